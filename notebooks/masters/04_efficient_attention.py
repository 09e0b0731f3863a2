# %% [markdown]
# # 04 · Look everywhere without paying for it: efficient self-attention
#
# About 40 minutes to read and run, 60 more for the exercises. The code takes about two minutes on a
# CPU, up to half of it a short training, and 1.2 GB of memory. No GPU is needed, and the modes fast and
# full are the same here.

# %% [markdown]
# **What you build.** `EfficientAttention`, the part of SegFormer in which every token looks at the
# whole picture, from a softmax done by hand to a class that carries the package's weights and gives
# the package's numbers.
#
# **What you learn.**
#
# - what queries, keys and values are, why the scores are scaled, what the heads are for;
# - how SegFormer shortens the list of keys, and what that saves, counted and measured;
# - which tokens really merge into one key. The paper's equation and the released code do different
#   things here, and neither shapes nor parameter counts tell them apart;
# - which tokens are never seen at all;
# - how to look at attention: which places a pixel asks, stage by stage and head by head.
#
# **What you need.** Tensors, `nn.Linear`, `nn.Conv2d`, and tokens:
# [chapter 03](03_patch_embedding.ipynb).

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models.variants import StripReduction

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit="attention")

# %% [markdown]
# The map shows SegFormer from the image at the lower left to the mask at the upper right. In each
# of the four stages the tokens pass through a row of blocks, and each block begins with the orange
# part of this chapter.

# %% [markdown]
# ## The question
#
# After the patch embedding of stage 1 a token knows 7 × 7 pixels. It can't know whether its patch
# of blue is sky, sea or a shirt: the answer lies elsewhere in the picture. Attention lets it ask.
# Every token sends a question to all tokens and mixes their answers. That makes $N$ questions to $N$
# tokens, and a 512-pixel picture has $N$ = 16,384 of them in stage 1. **How can every token look at
# the whole picture when there are so many?**
#
# | paper | code | stages 1, 2, 3, 4 of B0 | meaning |
# |---|---|---|---|
# | $N = H \times W$ | `H * W` of (B, H, W, C) | 1/4, 1/8, 1/16, 1/32 per side | tokens of the stage |
# | $C$ | `dim` | 32, 64, 160, 256 | length of a token |
# | $N_i$ | `heads` | 1, 2, 5, 8 | attentions side by side (the paper uses $N$ for tokens, $N_i$ for heads) |
# | $d_{head}$ | `dim // heads` | 32 in all stages | length of a query, key or value |
# | $R$ | `stride ** 2` | 64, 16, 4, 1 | tokens that merge into one key |
# | | `stride` | 8, 4, 2, 1 | the same per axis: $R$ is its square |

# %% [markdown]
# ## By hand: three tokens
#
# Each token gets three vectors. Its **query** says what it looks for, its **key** what it has to
# offer, its **value** what it hands out. Three tokens are enough for a pencil:

# %%
q = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])  # (N, d), what is looked for
k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # (N, d), what is offered
v = torch.tensor([[10.0], [20.0], [40.0]])              # (N, 1), what is handed out

# %% [markdown]
# **Compare** every query with every key: one product per pair, divided by $\sqrt{d}$.

# %%
scores = q @ k.T / 2**0.5  # (N, N): row i is what query i thinks of all keys
scores

# %% [markdown]
# **Share out.** The softmax turns each *row* into weights that are positive and sum to one.

# %%
weights = scores.softmax(dim=-1)
print(weights)
print("sum of each row", weights.sum(-1))

# %% [markdown]
# Token 0 looks for the first feature and finds it in tokens 0 and 2, equally. Token 1 finds what it
# wants in itself. Token 2 looks for nothing and treats all alike.
#
# **Mix** the values with these weights:

# %%
out = weights @ v
out.T

# %% [markdown]
# Token 0 has got nearly the mean of 10 and 40, token 1 nearly 20, token 2 the mean of all three.
# That is equation 1 of the paper, whole:
#
# $$\text{Attention}(Q, K, V) = \text{Softmax}\!\left(\frac{Q K^T}{\sqrt{d_{head}}}\right) V$$
#
# PyTorch has it as one function:

# %%
torch.testing.assert_close(F.scaled_dot_product_attention(q[None], k[None], v[None])[0], out)
print("by hand = scaled_dot_product_attention")

# %% [markdown]
# ### Which axis?
#
# The softmax has two axes to choose from, the matrix is square, and either gives weights between 0
# and 1. Over the wrong axis it is no longer the *queries* that share out their attention:

# %%
wrong = scores.softmax(dim=0)
print("sum of each row", wrong.sum(-1))
print("mixed values   ", (wrong @ v).T)

# %% [markdown]
# Token 0 gets 46, more than any value there is to mix. Token 2 asked for nothing in particular and
# gets next to nothing. No shape differs, so no shape test finds it. **Softmax over the keys, the
# last axis.**

# %% [markdown]
# ### Why divide by the root of d?
#
# **Predict, then run.** Random queries and keys, every number with standard deviation 1, and 64
# keys to choose from. Without the division: how much weight does the best key get when the vectors
# are 512 numbers long?
#
# - A. About 1/64: all keys are equally random.
# - B. About a tenth: a few are a little better.
# - C. Nearly all of it.

# %%
generator = torch.Generator().manual_seed(0)
for d in (8, 32, 128, 512):
    queries = torch.randn(500, d, generator=generator)
    keys = torch.randn(500, 64, d, generator=generator)
    products = torch.einsum("nd,nmd->nm", queries, keys)
    best = [(products * scale).softmax(-1).amax(-1).mean().item() for scale in (1, d**-0.5)]
    print(f"d = {d:3d}: products spread by {products.std():4.1f}, "
          f"the best key gets {best[0]:.2f} without scale, {best[1]:.2f} with it")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why?* A product is a sum of $d$ random terms, so it spreads like $\sqrt{d}$. The softmax
# sees differences: at a spread of 20 the best key is usually several points ahead, and every point
# is a factor of 2.7. Attention that has already decided can hardly learn, because where a weight is
# 0 or 1 the softmax is flat. Divided by $\sqrt{d}$ the scores spread by 1, and the last column no
# longer depends on $d$.
#
# </details>

# %% [markdown]
# ## From tokens to queries, keys, values
#
# In the network all three come from the same tokens (*self*-attention), by three learned matrices.
# And not once: the channels are split among several **heads**, and each head has its own attention.
# Follow a map of 6 × 8 tokens with 64 channels and 2 heads:

# %%
torch.manual_seed(0)
B, H, W, C, heads = 1, 6, 8, 64, 2
x = torch.randn(B, H, W, C)
to_q, to_k, to_v = (nn.Linear(C, C) for _ in range(3))


def split(y):
    """(B, H, W, C) -> (B, heads, N, C / heads)."""
    return y.reshape(B, H * W, heads, C // heads).transpose(1, 2)


q, k, v = split(to_q(x)), split(to_k(x)), split(to_v(x))
weights = (q @ k.transpose(-2, -1) / (C // heads) ** 0.5).softmax(-1)
out = weights @ v
for name, tensor in {"q": q, "k": k, "weights": weights, "out": out}.items():
    print(f"{name:8s}{tuple(tensor.shape)}")

# %% [markdown]
# (B, heads, N, d): 48 queries of length 32 in each of two heads. The weights are one 48 × 48 matrix
# per head. What is left is to lay the heads side by side again, so that a token has its 64 numbers
# together.

# %%
right = out.transpose(1, 2).reshape(B, H, W, C)  # (B, N, heads, d), then heads and d become C
wrong = out.reshape(B, H, W, C)
print(tuple(right.shape), tuple(wrong.shape), "equal:", torch.equal(right, wrong))

# %% [markdown]
# The second line again has the right shape and the wrong content: without `transpose(1, 2)` the
# first "token" is made of two different tokens of head 0. With a single head, as in stage 1, both
# are the same. So a test of stage 1 doesn't find this mistake.

# %% [markdown]
# ### It doesn't know where anything is
#
# Shuffle the tokens, and see what attention makes of it:

# %%
def attend(tokens):
    """(N, C) -> (N, C), the plain attention above."""
    q, k, v = split(to_q(tokens)), split(to_k(tokens)), split(to_v(tokens))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(H * W, C)


tokens = x.reshape(H * W, C)
order = torch.randperm(H * W)
torch.testing.assert_close(attend(tokens[order]), attend(tokens)[order])
print("shuffled tokens in, the same answers shuffled out")

# %% [markdown]
# Distance, left and right do not exist here; [chapter 05](05_mix_ffn.ipynb) is about how SegFormer
# tells where things are. Remember the other side of it: the *list* order of tokens means nothing here
# either. It will, in a moment.

# %% [markdown]
# ## What it costs
#
# The weights are $N \times N$ numbers per head.

# %%
for side in (128, 256, 512, 1024):
    n = (side // 4) ** 2
    print(f"{side:4d} px: N = {n:6,d}, N x N = {n * n:13,d} numbers = {n * n * 4 / 1e9:6.2f} GB")

# %% [markdown]
# One picture, one block, one head, in float32. Twice the side is four times the tokens and sixteen
# times the numbers. At 1024 pixels it would be 17 GB, so stage 1 needs another way.
#
# ## Shorten the list
#
# SegFormer keeps all $N$ queries: each pixel of the mask deserves its own question. But it answers
# with fewer keys and values. Neighbouring tokens look much alike, so $R$ of them are merged into
# one. The paper's equation 2:
#
# $$\hat{K} = \text{Reshape}\!\left(\tfrac{N}{R},\, C \cdot R\right)(K), \qquad
# K = \text{Linear}(C \cdot R,\, C)(\hat{K})$$
#
# Lay $R$ tokens of length $C$ end to end, and let one matrix make a token of length $C$ from them.
# $N / R$ keys are left, the weights have $N \times N / R$ numbers, and the output still has $N$
# rows, one per query.
#
# ### Which tokens does it merge?
#
# Take 4 × 8 tokens of a single channel. Each token is its own number, so one can follow it.

# %%
numbers = torch.arange(32).reshape(4, 8)  # (H, W), C = 1
numbers

# %% [markdown]
# **Predict, then run.** R = 4. Which four tokens does Reshape(N/R, C·R) put into the first row?
#
# - A. 0, 1, 8, 9: the upper left square.
# - B. 0, 1, 2, 3: the left half of the upper row.
# - C. 0, 8, 16, 24: the left column.

# %%
R = 4
numbers.reshape(32 // R, 1 * R)  # (N / R, C * R)

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why?* A list of tokens holds the map row by row, like the lines of a page. `reshape`
# counts off $R$ tokens, then the next $R$. What stands side by side merges: a **strip**, one token
# high.
#
# </details>
#
# For a square one has to split both axes first, exactly as when cutting patches:

# %%
s = 2  # the stride: R = s * s
squares = numbers.reshape(4 // s, s, 8 // s, s).permute(0, 2, 1, 3)  # (H', W', s, s)
squares.reshape(-1, s * s)

# %% [markdown]
# The first row is now 0, 1, 8, 9. The released code merges such squares, with a convolution whose
# kernel and stride are $s$. It is called a *sequence reduction* either way. That both are the
# matrix of equation 2, only on other tokens, can be shown by equality. Strips, $R$ tokens of a row,
# first: where $R$ divides the width of the map, a linear map on strips is a convolution with kernel
# $(1, R)$ and stride $(1, R)$.

# %%
torch.manual_seed(0)
B, H, W, C, s = 2, 16, 16, 3, 4
R = s * s
x = torch.randn(B, H, W, C)

linear = nn.Linear(C * R, C)
conv = nn.Conv2d(C, C, kernel_size=(1, R), stride=(1, R))
conv.weight.data = linear.weight.data.reshape(C, 1, R, C).permute(0, 3, 1, 2)  # (C, C, 1, R)
conv.bias = linear.bias

from_strips = linear(x.reshape(B, H * W // R, C * R))  # equation 2, to the letter
by_conv = conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B, N / R, C)
torch.testing.assert_close(by_conv, from_strips)
print("strips:", tuple(from_strips.shape))

# %% [markdown]
# Then squares: the same matrix on squares is a convolution with kernel $s$ and stride $s$.

# %%
conv = nn.Conv2d(C, C, kernel_size=s, stride=s)
conv.weight.data = linear.weight.data.reshape(C, s, s, C).permute(0, 3, 1, 2)  # (C, C, s, s)
conv.bias = linear.bias

squares = x.reshape(B, H // s, s, W // s, s, C).permute(0, 1, 3, 2, 4, 5)  # b h w y x c
from_squares = linear(squares.reshape(B, H * W // R, C * R))
by_conv = conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
torch.testing.assert_close(by_conv, from_squares)
print("squares:", tuple(from_squares.shape))

# %% [markdown]
# Both assertions pass. Look at the two shapes, and at the number of weights:

# %%
def count(module):
    return sum(p.numel() for p in module.parameters())


print("strips", tuple(from_strips.shape), "| squares", tuple(from_squares.shape))
print("one matrix for both:", count(linear), "parameters; as a convolution:", count(conv))
print("equal numbers:", torch.equal(from_strips, from_squares))

# %% [markdown]
# **Same shape, same parameters, same cost. Other tokens.** No shape check, no parameter count and
# no stopwatch tells the strips from the squares. This is the trap of the chapter: whoever translates
# equation 2 word by word gets strips, and the network runs and trains.

# %% [markdown]
# ## The trap on a picture
#
# From here on the picture is a photograph that comes with matplotlib: Rear Admiral Grace Hopper, at
# any size one asks for.

# %%
def picture(height, width=None):
    """The photograph as uint8 (3, height, width)."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
        square = file.convert("RGB").crop((0, 20, 512, 532))
    small = square.resize((width or height, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def keys_of_tokens(height, width, stride, merge):
    """For each of height x width tokens the number of its key; -1 for none."""
    if merge == "strips":
        return torch.arange(height * width).reshape(height, width) // stride**2
    row, column = torch.arange(height)[:, None] // stride, torch.arange(width) // stride
    ids = row * (width // stride) + column
    return ids.masked_fill((row >= height // stride) | (column >= width // stride), -1)


print(keys_of_tokens(4, 8, stride=2, merge="strips"))
print(keys_of_tokens(4, 8, stride=2, merge="squares"))

# %% [markdown]
# Number of the key for each token, strips above, squares below. Now the same for real stages, laid
# over the pixels of the tokens. A token of stage 1 covers 4 × 4 pixels, one of stage 2 8 × 8, and so
# on.

# %%
def keys_of_pixels(side, stage, merge):
    """For each pixel of a side x side picture the number of its key in this stage."""
    token, stride = 4 * 2 ** (stage - 1), 8 // 2 ** (stage - 1)
    ids = keys_of_tokens(side // token, side // token, stride, merge)
    return ids.repeat_interleave(token, 0).repeat_interleave(token, 1)


def paint(side, stage, merge, keys):
    """The photograph, pale and grey, with the pixels of some keys in colour: (side, side, 3)."""
    grey = picture(64).float().mean(0)[None, None] / 255 * 0.6 + 0.4
    canvas = F.interpolate(grey, size=(side, side), mode="bilinear")[0, 0, ..., None].repeat(1, 1, 3)
    ids = keys_of_pixels(side, stage, merge)
    for key, name in zip(keys, ("red", "blue", "green")):
        canvas[ids == key] = torch.tensor(plt.matplotlib.colors.to_rgb(show.COLOURS[name]))
    return canvas


settings = [("squares", 1), ("strips", 1), ("strips", 2), ("strips", 3)]
fig = show.grid([paint(256, stage, merge, keys=(10, 29, 52)) for merge, stage in settings],
                ["squares, all stages", *(f"strips, stage {stage}" for stage in (1, 2, 3))],
                cell=1.65, interpolation="auto")
show.figure(fig, colours=96, alt=(
    "The photograph at 256 pixels in grey, four times, with keys 10, 29 and 52 in red, blue and "
    "green. Squares: each key is a square of 32 by 32 pixels. Strips: in stage 1 each key is a line "
    "across the whole picture, 4 pixels high; in stage 2 half a line, 8 pixels high; in stage 3 a "
    "bar of 64 by 16 pixels."))

# %% [markdown]
# Keys number 10, 29 and 52 of 64, in red, blue and green. Left, squares: in stages 1, 2 and 3 a key
# is the same square of 32 × 32 pixels. Then strips: in stage 1 **a key is a whole line of the
# picture**, 256 pixels wide and four high. The face, the flag and the wall behind them end up in one
# key. (Stage 4 has $R = 1$ and nothing to merge.)

# %%
def extent(side, stage, merge):
    """Height and width in pixels of a key in the middle of the picture."""
    ids = keys_of_pixels(side, stage, merge)
    rows, columns = (ids == ids.max() // 2).nonzero().T
    return f"{rows.max() - rows.min() + 1} x {columns.max() - columns.min() + 1}"


print("height x width of a key, in pixels")
for side in (128, 256, 512):
    for merge in ("squares", "strips"):
        sizes = [f"stage {stage}: {extent(side, stage, merge):>8s}" for stage in (1, 2, 3)]
        print(f"{side} px, {merge:8s}", "   ".join(sizes))

# %% [markdown]
# Squares are 32 × 32 at any size. A strip's shape depends on the width of the picture, because the
# reshape knows nothing of rows: at 128 pixels 64 tokens are *two* lines.
#
# **Predict, then run.** At 224 pixels a line of stage 1 has 56 tokens. R is still 64. What do the
# strips look like?
#
# - A. An error: 64 does not divide 56.
# - B. Strips of 56 tokens; the last 8 are dropped.
# - C. Strips of 64 tokens that go on in the next line, and do not all begin at the same place.

# %%
sides = (128, 224, 256)
fig = show.grid([paint(side, 1, "strips", keys=(side // 32, side // 16 + 3)) for side in sides],
                [f"{side} px" for side in sides], cell=2.2, interpolation="auto")
show.figure(fig, colours=96, alt=(
    "Two strips of stage 1 in the photograph at three sizes. At 128 pixels each is two full lines of tokens, at "
    "256 exactly one; the next cell prints where those at 224 begin and end."))

# %%
for key in (7, 17):  # the two in the middle picture
    first, last = (key * 64, key * 64 + 63)
    print(f"224 px, key {key}: from (row, column) {divmod(first, 56)} to {divmod(last, 56)}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** $N$ = 56 · 56 = 3,136 is divisible by 64, and that is all `reshape` asks for. Key 7 is one
# whole row and eight tokens of the next; key 17 begins in the middle of one row and ends in the next.
# So the same weights mean something else from key to key: the matrix's first block is sometimes the
# left edge, sometimes the right. With squares the first block always is the upper left corner.
#
# </details>

# %% [markdown]
# ### What a key can know
#
# Give each key the mean colour of its tokens, the simplest thing a merging matrix can learn, and
# paint it back. How much of the picture is left?

# %%
def merged_colours(side, stage, merge):
    """Every pixel gets the mean colour of its key: (3, side, side)."""
    ids = keys_of_pixels(side, stage, merge).flatten()
    colours = (picture(side) / 255).flatten(1)
    sums = torch.zeros(3, ids.max() + 1).index_add_(1, ids, colours)
    return (sums / torch.bincount(ids))[:, ids].reshape(3, side, side)


def kept(side, stage, merge):
    """Share of the picture's variance that is left when keys are mean colours."""
    means, pixels = merged_colours(side, stage, merge), picture(side) / 255
    centre = pixels.mean((1, 2), keepdim=True)
    return ((means - centre).square().sum() / (pixels - centre).square().sum()).item()


for stage in (1, 2, 3):
    print(f"stage {stage}: squares keep {kept(256, stage, 'squares'):.0%}, "
          f"strips {kept(256, stage, 'strips'):.0%}")

# %%
panels = [picture(256), merged_colours(256, 1, "squares"), merged_colours(256, 1, "strips")]
fig = show.grid(panels, ["the picture", "64 keys, squares", "64 keys, strips"], columns=3, cell=2.0,
                interpolation="auto")
show.figure(fig, alt=(
    "The photograph at 256 pixels and what is left of it when each of 64 keys of stage 1 is one "
    "mean colour. With squares a coarse mosaic in which head, cap and flag can be made out; with "
    "strips horizontal lines, blue-grey above, mauve in the middle and black below, in which no thing "
    "can be made out."))

# %% [markdown]
# 64 numbers per colour in both pictures. The mosaic of squares still shows where head, cap and flag
# are. The strips show the mean colour of each line, and no more. A trained matrix can do
# better than a mean, it may weigh the tokens of a strip by their place. But it has the same 32
# numbers for a whole line of 64 tokens that the square has for one neighbourhood.

# %% [markdown]
# ### What a query can ask
#
# Keys are there to be found. Let a query look for *its own colour*: with query $(2x, 1)$ and key
# $(y, -|y|^2)$ the product is $2xy - |y|^2$, which is $-|x - y|^2$ up to a number that is the same
# for all keys. So the closer the colour, the larger the weight. No training, just two maps made by
# hand.

# %%
def ask_for_colour(pixel, merge, side=256, scale=60):
    """Weight of each pixel's key for the query at `pixel`, in stage 1: (side, side)."""
    tokens = F.avg_pool2d(picture(side)[None] / 255, 4)[0].flatten(1).T  # (N, 3)
    ids = keys_of_tokens(side // 4, side // 4, 8, merge).flatten()
    if merge == "nothing":
        ids = torch.arange(len(tokens))
    sums = torch.zeros(ids.max() + 1, 3).index_add_(0, ids, tokens)
    y = sums / torch.bincount(ids)[:, None]  # mean colour of each key
    x = tokens[pixel[0] // 4 * (side // 4) + pixel[1] // 4]
    query = torch.cat([2 * x, torch.ones(1)])
    keys = torch.cat([y, -y.square().sum(1, keepdim=True)], dim=1)
    weights = (scale * keys @ query).softmax(0)
    return weights[ids].reshape(side // 4, side // 4)


# %%
def mark(ax, pixel):
    """A cross where the query is."""
    ax.plot(pixel[1], pixel[0], "+", color="white", ms=13, mew=4)
    ax.plot(pixel[1], pixel[0], "+", color="black", ms=11, mew=1.5)


queries = {"skin": (100, 122), "uniform": (215, 95)}
merges = ("nothing", "squares", "strips")
panels = [panel for pixel in queries.values()
          for panel in (picture(256), *(ask_for_colour(pixel, merge) for merge in merges))]
titles = ["the query", "all 4,096 tokens", "64 squares", "64 strips"] + [""] * 4
fig = show.grid(panels, titles, cell=1.35, cmap="cividis", interpolation="auto")
for ax, pixel in zip(fig.axes[::4], queries.values()):
    mark(ax, pixel)
show.figure(fig, alt=(
    "Two queries that look for their own colour, each with the photograph and three maps of "
    "weights. Asked for skin: with all tokens parts of the face light up, with squares a few squares "
    "on the face, with strips some lines across the picture. Asked for the dark uniform: with all "
    "tokens the uniform lights up, with squares the squares inside it, with strips some lines."))

# %% [markdown]
# Bright: much weight. Second column, every token a key: the query finds its own colour, pixel by
# pixel. Third, 64 squares: coarser, but the place is right. Fourth, 64 strips: the query learns at
# most *how high* in the picture something is. Left or right can't be asked for: the whole line has
# one key and one weight.

# %% [markdown]
# ## R or stride?
#
# The paper's text says $R$ = 64, 16, 4, 1; its Table 6 and the released code say 8, 4, 2, 1. Both
# are right. One counts tokens, the other steps per axis:

# %%
print("512 px    N         stride  R   keys  weights")
for stage, stride in enumerate((8, 4, 2, 1), start=1):
    h = 512 // (4 * 2 ** (stage - 1))
    keys = (h // stride) ** 2
    print(f"stage {stage}   {h * h:6,d}    {stride}       {stride**2:2d}  {keys}   {h * h * keys:9,d}")

# %% [markdown]
# Every stage has the same number of keys: $H/32 \times W/32$ of the picture. The strides are chosen so
# that every stage looks at the picture through the same grid of 32 × 32 pixels. Whoever takes 64 for
# the stride asks for 64 × 64 tokens per key; whoever takes 8 for $R$ gets eight times as many keys.

# %% [markdown]
# ## The class
#
# Everything is in place: three maps, heads, reduction by squares. One thing is new, a norm over each
# merged token, as after a patch embedding; the released code has it, equation 2 does not. The
# submodules have the package's names: `kv` makes keys and values in one go, `proj` mixes the heads
# at the end.

# %%
class EfficientAttention(nn.Module):
    """(B, H, W, C) -> the same shape; stride x stride tokens merge into one key."""

    def __init__(self, dim, heads, stride):
        super().__init__()
        self.heads, self.stride = heads, stride
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if stride > 1:
            self.reduce = nn.Conv2d(dim, dim, kernel_size=stride, stride=stride)
            self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, y):
        """(B, ..., C) -> (B, heads, tokens, C / heads)."""
        return y.reshape(len(y), -1, self.heads, y.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x):
        short = x
        if self.stride > 1:
            short = self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, H/s, W/s, C)
            short = self.norm(short)
        k, v = self.kv(short).chunk(2, dim=-1)
        q, k, v = self.split(self.q(x)), self.split(k), self.split(v)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)  # equation 1
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


# %%
block = EfficientAttention(dim=64, heads=2, stride=4)  # stage 2 of B0
x = torch.randn(1, 32, 32, 64)
short = block.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
print("tokens          ", tuple(x.shape))
print("shortened       ", tuple(short.shape))
print("queries         ", tuple(block.split(block.q(x)).shape))
print("keys            ", tuple(block.split(block.kv(short).chunk(2, dim=-1)[0]).shape))
print("out             ", tuple(block(x).shape))

# %% [markdown]
# 1,024 queries, 64 keys, 1,024 tokens out. The number of *keys* never shows in the result: it is
# summed over in `weights @ v`.

# %% [markdown]
# ## Count the parameters
#
# `q` and `proj` have $C^2 + C$ parameters each, `kv` twice as many, `reduce` $s^2 C^2 + C$, `norm`
# $2C$.

# %%
def by_hand(dim, stride):
    linear = dim * dim + dim
    return 4 * linear + (stride**2 * dim * dim + dim + 2 * dim if stride > 1 else 0)


encoder = sl.create_model("segformer_b0", num_classes=150).encoder
stages = [(32, 1, 8), (64, 2, 4), (160, 5, 2), (256, 8, 1)]  # dim, heads, stride
for stage, (dim, heads, stride) in enumerate(stages, start=1):
    ours = EfficientAttention(dim, heads, stride)
    theirs = encoder.stages[stage - 1].blocks[0].attention
    assert by_hand(dim, stride) == count(ours) == count(theirs)
    share = count(theirs.reduce) / count(theirs) if stride > 1 else 0
    print(f"stage {stage}: {count(theirs):7,d} parameters, {share:4.0%} in the reduction")

# %% [markdown]
# All four agree with the package. In stage 1 nearly all parameters sit in the reduction, whose job
# is to make the attention *smaller*. They are cheap to run: each square passes once.
#
# And the strips? A network with separate strip matrices for keys and for values, as one gets by
# writing equation 2 twice:

# %%
strips = StripReduction(dim=32, heads=1, stride=8)
print([name for name, _ in strips.named_children()], f"{count(strips):,} parameters")
print("matrix for K", tuple(strips.k.weight.shape), "for V", tuple(strips.v.weight.shape))
assert count(strips.k) == count(encoder.stages[0].blocks[0].attention.reduce)

# %% [markdown]
# Each of the two matrices has exactly the size of the released convolution. It is the same size for
# a line as for a square. Again the count says nothing about the geometry.

# %% [markdown]
# ## What it saves
#
# **Predict, then run.** With R = 64 the weights of stage 1 have 64 times fewer entries. Now the
# side of the picture doubles. By how much does the reduced matrix grow?
#
# - A. 4 times: it is now linear in the number of tokens.
# - B. 16 times, just like the full one.
# - C. 2 times.

# %%
print("  side       N      full: N x N   reduced: N x N/R")
for side in (128, 256, 512, 1024, 2048):
    n = (side // 4) ** 2
    print(f"{side:5d} {n:8,d} {n * n:16,d} {n * n // 64:18,d}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why?* Every key still stands for the same 32 × 32 pixels, so twice the side gives four times
# the queries *and* four times the keys. $O(N^2 / R)$ is quadratic; $R$ is a constant. What it buys is
# a head start: the reduced matrix is as large as the full one of a picture with $\sqrt[4]{64}$ = 2.8
# times shorter sides.
#
# </details>

# %% [markdown]
# ### Measured
#
# Counting is not timing. (How to time with care, and what else costs time:
# [chapter 14](14_speed.ipynb).) Three ways to compute one attention of stage 1 (32 channels, one
# head):
#
# - **full, matrix kept**: equation 1 as printed. All weights stand in memory;
# - **full, fused**: `F.scaled_dot_product_attention`, which works piece by piece and never keeps the
#   matrix;
# - **reduced, fused**: the package's block, $R = 64$.

# %%
full = sl.EfficientSelfAttention(dim=32, heads=1, stride=1)
reduced = sl.EfficientSelfAttention(dim=32, heads=1, stride=8)


def matrix_kept(x):
    q, k, v = full.queries_keys_values(x)
    weights = (q @ k.transpose(-2, -1) / 32**0.5).softmax(-1)
    return full.proj((weights @ v).transpose(1, 2).reshape(x.shape))


x = torch.randn(1, 16, 16, 32)
torch.testing.assert_close(matrix_kept(x), full(x))
print("kept and fused give the same numbers")

# %% [markdown]
# On your machine, for small pictures:

# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def milliseconds(function, side):
    x, times = torch.randn(1, side // 4, side // 4, 32), []
    for _ in range(4):
        start = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


forms = {"full, matrix kept": matrix_kept, "full, fused": full, "reduced, fused": reduced}
measured = {name: [milliseconds(f, side) for side in (64, 128, 256)]
            for name, f in forms.items()}
for name, values in measured.items():
    print(f"{name:18s}", "   ".join(f"{v:7.2f} ms" for v in values), "  at 64, 128, 256 px")

# %% tags=["nbval-ignore-output"]
slow, fused, fast = (values[-1] for values in measured.values())
assert fast < fused, "at 256 px the reduced attention must be the fastest"
print(f"at 256 px the reduced form is {slow / fast:.0f} times faster than the printed equation")

# %% [markdown]
# Large pictures take long, so they were measured once, by
# [benchmarks/attention_cost.py](../benchmarks/attention_cost.py), up to where each form was still
# sensible to run.

# %%
path = sl.data.course_folder() / "docs" / "results" / "attention-cost.json"
record = json.loads(path.read_text(encoding="utf-8"))
print(record["command"], "|", record["machine"], "| torch", record["torch"])
rows = {form: [row for row in record["rows"] if row["form"] == form and row["side"] >= 128]
        for form in forms}
for form, points in rows.items():
    print(f"{form:18s} measured up to {points[-1]['side']} px")

# %%
def draw_cost(ax, what, unit):
    """Measured points, and dashed the line on from the last one, computed as N squared."""
    for (form, points), style in zip(rows.items(), ("s-", "o-", "^-")):
        sides, values = [p["side"] for p in points], [p[what] * unit for p in points]
        line, = ax.loglog(sides, values, style, label=form, ms=3.5)
        if what != "memory_mb" and sides[-1] < 2048:
            end = values[-1] * (2048 / sides[-1]) ** 4  # N squared is the side to the fourth power
            ax.loglog([sides[-1], 2048], [values[-1], end], "--", color=line.get_color(), lw=1.2)
    ax.minorticks_off()
    ax.set_xticks([128, 512, 2048], ["128", "512", "2048"])
    ax.set_xlabel("side of the picture (px)")


fig, axes = plt.subplots(1, 3, figsize=(7, 2.8))
for ax, (what, unit, title) in zip(axes, [("entries", 1, "weights (number, counted)"),
                                          ("seconds", 1, "time (s), one thread"),
                                          ("memory_mb", 1e-3, "memory (GB)")]):
    draw_cost(ax, what, unit)
    ax.set_title(title)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
show.figure(fig, alt=(
    "Three panels on double logarithmic axes against the side of the picture from 128 to 2048 "
    "pixels. Number of weights: two parallel straight lines, the reduced one 64 times lower. Time: "
    "the matrix kept in memory is slowest, the fused full attention several times faster, the "
    "reduced one far below both and all become parallel for large pictures; dashed lines go on as "
    "computed. Memory: the kept matrix climbs steeply to 0.65 GB at 384 pixels; both fused forms stay far "
    "below."))

# %% [markdown]
# *How to read it.* Both axes are logarithmic, so a power is a straight line. Solid with marks:
# measured. Dashed: **computed**, going on as $N^2$ from the last measured point. Left, the two full
# forms are one line, as they have the same number of weights; that $O(N^2)$ line and the $O(N^2 / R)$
# line are parallel, 64 apart. In the middle the time follows them once the
# picture is large; for small ones the linear maps cost as much as the attention. Right, memory: only
# the printed equation climbs as $N^2$. The fused forms hold a few more maps as large as the tokens
# (queries, keys, values, the result), and no matrix.

# %%
full_1024, reduced_1024 = (next(p for p in rows[form] if p["side"] == 1024)
                           for form in ("full, fused", "reduced, fused"))
fewer, faster = (full_1024[what] / reduced_1024[what] for what in ("entries", "seconds"))
print(f"1024 px: {fewer:.0f} times fewer weights, {faster:.0f} times less time")
print(f"384 px, matrix kept: {rows['full, matrix kept'][-1]['memory_mb'] / 1000:.2f} GB")

# %% [markdown]
# So is the reduction still needed, now that fused attention does without the matrix? For memory no,
# for time yes.

# %% [markdown]
# ## Tokens that nobody sees
#
# The reducing convolution has no padding and rounds *down*: what doesn't fill a square is dropped.
#
# **Predict, then run.** A picture of 60 × 60 pixels has 15 × 15 tokens in stage 1, and the stride
# is 8. How many of its tokens go into a key?
#
# - A. All: the last squares are just smaller.
# - B. More than nine in ten.
# - C. Little more than a quarter.
#
# To find out, mark them: ask the package's own convolution which tokens its result depends on.

# %%
def seen(height, width, stage):
    """Which tokens of a stage go into a key, for a height x width picture: bool (H_i, W_i)."""
    reduce = encoder.stages[stage - 1].blocks[0].attention.reduce
    pixels = 2 ** (stage + 1)  # per token
    h, w = -(-height // pixels), -(-width // pixels)
    tokens = torch.zeros(1, reduce.in_channels, h, w, requires_grad=True)
    gradient, = torch.autograd.grad(reduce(tokens).sum(), tokens)
    return gradient[0].abs().sum(0) > 0


print("tokens seen as keys   stage 1   2     3")
sizes = [(60, 60), (100, 100), (250, 250), (300, 300), (375, 500), (720, 1280), (512, 512)]
for height, width in sizes:
    shares = [seen(height, width, stage).float().mean().item() for stage in (1, 2, 3)]
    print(f"{height:4d} x {width:4d}          ", "  ".join(f"{share:4.0%}" for share in shares))

# %%
def in_the_light(side, stage):
    """The photograph with all tokens dark that are no keys."""
    mask = seen(side, side, stage).float()[None, None]
    return picture(side) / 255 * (0.2 + 0.8 * F.interpolate(mask, size=(side, side)))[0]


settings = [(60, 1), (100, 1), (100, 2), (100, 3)]
fig = show.grid([in_the_light(*setting) for setting in settings],
                [f"{side} px, stage {stage}" for side, stage in settings], cell=1.5)
show.figure(fig, alt=(
    "The photograph with the tokens dark that go into no key. At 60 pixels stage 1 sees only the "
    "upper left quarter. At 100 pixels a border at the right and lower edge is dark, wider from "
    "stage 1 to stage 3."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C**, 28 percent: one square of 8 × 8 tokens fits into 15 × 15, and no second one. The dark tokens
# still *ask*, they are queries like all others. But nobody in their stage can ask *them*. What they
# know reaches the rest only through convolutions: Mix-FFN's, one token per block, and the next patch
# embedding.
#
# </details>
#
# *What to do.* For sides that are multiples of 32 every token is seen (last row of the table).
# Large pictures lose a thin border at most; small ones can lose most of their area. So resize to a
# multiple of 32 where you can.

# %% [markdown]
# ## Look at the attention
#
# `sl.analysis.attention_map` takes a model, a picture, a block and a pixel. It gives the weights of
# the query over that pixel, per head, and lays each key's weight over the pixels the key was made
# from.

# %%
torch.manual_seed(0)
fresh = sl.create_model("segformer_b0", num_classes=11)
weights = sl.analysis.attention_map(fresh, picture(256), "stage2.block1", pixel=(100, 122))
print(weights.shape, weights.dtype, "two heads over 256 x 256 pixels")

# %% [markdown]
# **Predict, then run.** This network has random weights. What does its attention look like?
#
# - A. Noise: random places, some much brighter than others.
# - B. Nearly the same weight everywhere.
# - C. Bright around the query and dark far away.

# %%
for stage in (1, 2, 3, 4):
    weights = sl.analysis.attention_map(fresh, picture(256), f"stage{stage}.block1", (100, 122))
    print(f"stage {stage}: 64 keys, largest weight {64 * weights.max():.2f} times the mean")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why?* The released network starts its linear maps with a standard deviation of 0.02, so
# all scores are close to zero and the softmax of equal numbers is equal. A fresh SegFormer averages
# over the whole picture, in every head of every stage. Looking at *places* has to be learned.
#
# </details>
#
# What does attention look at once it has learned something? Train a network. The scenes are the
# drawn sample of [chapter 00](00_start_here.ipynb); half a minute to a minute on two CPU cores.

# %% tags=["nbval-ignore-output"]
STEPS = 30 if session.quick else 250  # the course's own tests train less
config = sl.TrainConfig(data="sample-coco", model="segformer_b0", size=96, batch_size=8,
                        steps=STEPS, augment="flip", name="04-attention")
model = sl.train(config, progress=not session.quick).model.cpu()

# %% tags=["nbval-ignore-output"]
scene = sl.data.open_dataset("sample-coco", "val")[17][0]
scene = F.interpolate(scene[None].float(), size=(256, 256), mode="bilinear")[0].byte()


def heads_of(model, stage, pixel):
    """All heads' maps in the stage's first block, (heads, 256, 256); 1 is the mean weight."""
    maps = sl.analysis.attention_map(model, scene, f"stage{stage}.block1", pixel)
    return maps / maps.mean((1, 2), keepdims=True)


def sharpness(model, stage):
    """Largest weight over mean weight, averaged over heads and 16 queries."""
    places = [(row, column) for row in range(32, 256, 64) for column in range(32, 256, 64)]
    return np.mean([heads_of(model, stage, place).max((1, 2)) for place in places])


sharp = {stage: (sharpness(fresh, stage), sharpness(model, stage)) for stage in (1, 2, 3, 4)}
for stage, (before, after) in sharp.items():
    print(f"stage {stage}: largest weight over mean {before:.2f} before training, {after:.2f} after")
assert session.quick or sum(a for _, a in sharp.values()) > sum(b for b, _ in sharp.values())

# %% [markdown]
# Training sharpens the attention. After so short a run most of it happens in stages 3 and 4. Stage 1
# still looks at everything nearly alike, and stage 2 has only begun to choose. Their tokens know
# little more than a few pixels, so there is little yet to ask for.
#
# Where do the queries look? Light the scene, turned to grey, by the weights of one head, in each stage
# the one that chooses most sharply for the first query: a square at four times the mean weight or more
# shows the scene as it is, one at the mean is dim, one at zero nearly black. (So a chosen square looks
# grey where the scene itself is dark.)

# %% tags=["nbval-ignore-output"]
def lit(weights):
    """The scene in grey, each pixel as bright as the weight of its key: (256, 256)."""
    return scene.float().mean(0).numpy() / 255 * np.clip(0.05 + 0.25 * weights, 0, 1)


asked = [(70, 128), (170, 190)]
sharpest = {stage: heads_of(model, stage, asked[0]).max((1, 2)).argmax() for stage in (1, 2, 3, 4)}
panels, titles = [], []
for pixel in asked:
    panels, titles = [*panels, scene], [*titles, "the query"]
    for stage, head in sharpest.items():
        panels.append(lit(heads_of(model, stage, pixel)[head]))
        titles.append(f"stage {stage}, head {head}")
light = {"interpolation": "auto", "cmap": "gray", "vmin": 0, "vmax": 0.8}
fig = show.grid(panels, titles, columns=5, cell=1.2, **light)
for ax, pixel in zip(fig.axes[::5], asked):
    mark(ax, pixel)
show.figure(fig, colours=192, alt=(
    "Two queries in a drawn scene, one per row, and the scene lit by their attention in one head "
    "of each stage. In stages 1 and 2 the light is dim and nearly even; in stages 3 and 4 a few of "
    "the 8 by 8 squares stand out of the dark."))

# %% [markdown]
# One row per query, marked by the cross; one column per stage. Every map is made of the same 8 × 8
# squares, because in every stage a key stands for 32 × 32 pixels. Stages 1 and 2: dim and nearly
# even. Stages 3 and 4: a few squares stand out. Now compare the two rows, which show the same
# heads. Where they differ, the query has a say in what it looks at. Where they are alike, all
# queries take from the same few places: after a minute of training a head has often found something
# worth telling everybody, and not yet how to answer each one differently.
#
# Heads differ too. The eight heads of stage 4, for the first query:

# %% tags=["nbval-ignore-output"]
panels = [lit(weights) for weights in heads_of(model, 4, asked[0])]
fig = show.grid(panels, [f"head {head}" for head in range(8)], columns=4, cell=1.25, **light)
show.figure(fig, colours=64, alt=(
    "The scene lit by the attention of one query in each of the eight heads of stage 4. In most "
    "heads a few squares stand out of the dark, often the same ones; some heads spread their light "
    "more widely."))

# %% [markdown]
# Each head has its own queries and keys, 32 numbers each. One softmax can share out its weight in
# one way only, eight can do it in eight. Here all have begun to choose, and many chose the same
# squares: heads *may* differ, but nothing makes them.
#
# Be careful with such pictures. They say which places a query *takes from*. They do not say that the
# final mask depends on these places: the values still pass through other blocks, and every block
# *adds* its result to the tokens that came in, so what was there before also goes on past it.
# [Chapter 11](11_receptive_fields.ipynb#what-attention-maps-dont-show) compares the two.
#
# If the notebook is running, choose for yourself:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_query(row, column, stage, head):
    head = min(head, (1, 2, 5, 8)[stage - 1] - 1)
    panels = [scene, lit(heads_of(model, stage, (row, column))[head])]
    titles = ["the query", f"stage {stage}, head {head}"]
    fig = show.grid(panels, titles, cell=2.6, **light)
    mark(fig.axes[0], (row, column))
    show.figure(fig, alt=f"A scene with a query, and the scene lit by stage {stage}, head {head}.")


_ = interact(try_query, row=IntSlider(128, 0, 255, 8, continuous_update=False),
             column=IntSlider(128, 0, 255, 8, continuous_update=False),
             stage=IntSlider(3, 1, 4, continuous_update=False),
             head=IntSlider(0, 0, 7, continuous_update=False))

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. Softmax attention (10 minutes)
#
# Equation 1 for several heads at once, without `scaled_dot_product_attention`. There may be fewer
# keys than queries.
#
# <details><summary>Hint</summary>
#
# `@` multiplies the last two axes and leaves the others alone. `k.transpose(-2, -1)` exchanges
# those two.
#
# </details>
# <details><summary>Help: the shape is right but the numbers are not</summary>
#
# Check three things: the scale is the square root of the *last* axis of `q`; it comes before the
# softmax; and the softmax runs over the keys, the last axis of the scores.
#
# </details>

# %% tags=["exercise"]
def my_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q: (B, heads, N, d); k, v: (B, heads, M, d) -> (B, heads, N, d)."""
    # SOLUTION
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, heads, N, M)
    return scores.softmax(dim=-1) @ v
    # END SOLUTION


checks.softmax_attention(my_attention)

# %% [markdown] tags=["exercise"]
# ### 2. Squares without a convolution (15 minutes)
#
# Do what the reducing convolution does with `reshape`, `permute` and `F.linear` only. Its weight
# (D, C, s, s) becomes a matrix by `weight.flatten(1)`: so the numbers of a square have to come in
# the order channel, row, column. Tokens that fill no square are left out. The check compares with
# the convolution.
#
# <details><summary>Hint</summary>
#
# Cut the map to a multiple of `stride` first. Then split H into (H', s) and W into (W', s): six
# axes (B, H', s, W', s, C). Bring them into the order (B, H', W', C, s, s) and merge the last three.
#
# </details>
# <details><summary>Help: the check speaks of strips</summary>
#
# A single `reshape` to (B, N/R, C·R) takes tokens one after another, along the rows. Both axes must
# be split before anything is merged.
#
# </details>

# %% tags=["exercise"]
def my_reduce(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int
) -> torch.Tensor:
    """x: (B, H, W, C), weight: (D, C, s, s), bias: (D,) -> (B, H // s, W // s, D)."""
    # SOLUTION
    b, height, width, c = x.shape
    h, w = height // stride, width // stride
    x = x[:, : h * stride, : w * stride].reshape(b, h, stride, w, stride, c)
    squares = x.permute(0, 1, 3, 5, 2, 4).flatten(3)  # (B, H', W', C * s * s)
    return F.linear(squares, weight.flatten(1), bias)
    # END SOLUTION


checks.reduce_squares(my_reduce)

# %% [markdown] tags=["exercise"]
# ### 3. Which tokens are in the strip? (10 minutes)
#
# A map of any height, `width` tokens wide, goes through Reshape(N/R, C·R) as printed. List the
# places (row, column) of the tokens that end up in key number `key`. Keys, rows and columns count
# from 0.
#
# <details><summary>Hint</summary>
#
# The tokens of this key are number `key * R` to `key * R + R - 1` of the list. `divmod(n, width)`
# gives row and column.
#
# </details>
# <details><summary>Help: W = 64 and 16 pass, a later width fails</summary>
#
# A strip may be longer than a row, and may begin in the middle of one. Where a row ends it goes on at
# the beginning of the next.
#
# </details>

# %% tags=["exercise"]
def my_strip_of_key(width: int, reduction: int, key: int) -> list[tuple[int, int]]:
    """Places (row, column) of the `reduction` tokens that merge into this key."""
    # SOLUTION
    return [divmod(n, width) for n in range(key * reduction, (key + 1) * reduction)]
    # END SOLUTION


checks.strip_of_key(my_strip_of_key)

# %% [markdown] tags=["exercise"]
# ### 4. Equation 2, with squares, in the real network (25 minutes)
#
# Write `MyAttention`, an efficient attention without any convolution: `reduce` is the paper's
# `nn.Linear(C * R, C)`, but it works on squares. Everything else is as in the released block: `q`,
# `kv`, `norm` (a LayerNorm after the reduction), `proj`; no `reduce` and no `norm` where the stride
# is 1. Then build a SegFormer-B0 for 5 classes with it, through `sl.create_model(..., attention=...)`.
#
# The check gives your blocks the package's weights, with the convolution's (C, C, s, s) flattened
# to (C, C · R), and wants the package's numbers in all eight blocks: at even and at odd sizes. You
# may use your functions of exercises 1 and 2, or `F.scaled_dot_product_attention`. (It looks at names
# and numbers only, so it would take a convolution, too; leaving it out is up to you.)
#
# <details><summary>Hint</summary>
#
# Exercise 2 needs the weight as (C, C, s, s) only to flatten it. Here it is flat already: apply
# `self.reduce` to the squares.
#
# </details>
# <details><summary>Help: stage 1 is right, stage 2 is not</summary>
#
# Stage 1 has one head, so mistakes with heads do not show there. Is the scale the root of
# `dim // heads`? Is there a `transpose(1, 2)` both when heads are split and when they are merged?
#
# </details>

# %% tags=["exercise"]
class MyAttention(nn.Module):
    """(B, H, W, C) -> the same shape. Submodules: q, kv, proj; reduce and norm where stride > 1."""

    def __init__(self, dim: int, heads: int, stride: int):
        super().__init__()
        # SOLUTION
        self.heads, self.stride = heads, stride
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if stride > 1:
            self.reduce, self.norm = nn.Linear(dim * stride**2, dim), nn.LayerNorm(dim)
        # END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SOLUTION
        b, height, width, c = x.shape
        s, short = self.stride, x
        if s > 1:
            h, w = height // s, width // s
            squares = x[:, : h * s, : w * s].reshape(b, h, s, w, s, c).permute(0, 1, 3, 5, 2, 4)
            short = self.norm(self.reduce(squares.flatten(3)))

        def split(y):
            return y.reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)

        k, v = self.kv(short).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(split(self.q(x)), split(k), split(v))
        return self.proj(out.transpose(1, 2).reshape(x.shape))
        # END SOLUTION


def my_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with MyAttention in all its blocks."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, attention=MyAttention)
    # END SOLUTION


checks.attention_model(my_segformer())

# %% [markdown]
# ## The package's version
#
# Here is the block that the rest of the course uses, in place:

# %%
print(inspect.getsource(sl.EfficientSelfAttention))

# %% [markdown]
# The same steps; the softmax is left to the fused function, and `queries_keys_values` is a method of
# its own so that `attention_map` can use it. (`Linear` is `nn.Linear` for maps of tokens: the same
# function, faster on some processors, see [chapter 14](14_speed.ipynb).) The class of this chapter
# takes the weights of all four stages of a real B0, `strict`, and must give the same numbers, here on
# random tokens, as many as a picture of 250 × 333 pixels has:

# %%
for number, (dim, heads, stride) in enumerate(stages, start=1):
    theirs = encoder.stages[number - 1].blocks[0].attention
    mine = EfficientAttention(dim, heads, stride)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    pixels = 2 ** (number + 1)  # per token
    tokens = torch.randn(2, -(-250 // pixels), -(-333 // pixels), dim)
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), theirs(tokens))
    print(f"stage {number}: {tuple(tokens.shape)} -> {tuple(theirs(tokens).shape)}, equal")

# %% [markdown]
# ## What the paper says, what the code does
#
# - **How tokens merge.** Paper ([arXiv:2105.15203](https://arxiv.org/abs/2105.15203)), equation 2:
#   Reshape(N/R, C·R), then a linear map. Released code: a convolution with kernel and stride $s$, so
#   squares. On a row-major list the equation as printed gives strips.
# - **A norm after the reduction** is in the released code, not in the equation.
# - **One reduction for both.** In the released code keys and values are made from the same shortened
#   tokens. Equation 2 speaks of $K$ only.
# - **$R$.** The text of section 3.1 gives 64, 16, 4, 1; Table 6 and the code give the stride per
#   axis, 8, 4, 2, 1.
# - **Complexity.** $O(N^2/R)$ with $R = 64$, or $O(N^2/s^2)$ with $s = 8$: the same.
# - **The report** that this course follows (its section 3.2) implements the reshape as printed, with
#   separate maps for keys and values. It finds that large objects are missed, and puts that down to
#   this kind of encoder. The pictures of this chapter show what strips *can't* ask, not what a
#   trained network makes of them. Whether they have a part in it is tested in
#   [chapter 09](09_train_coco.ipynb#a-fair-opponent), by `attention=StripReduction` and a fair
#   opponent.

# %% [markdown]
# ## Pitfalls
#
# - `x.reshape(B, N // R, C * R)`: strips, not squares. Nothing complains.
# - $R$ where the stride belongs, or the stride where $R$ belongs.
# - Softmax over the queries instead of the keys.
# - No scale: the softmax decides too early.
# - $\sqrt{C}$ in place of $\sqrt{C / heads}$: invisible in stage 1, which has one head.
# - Heads merged without `transpose(1, 2)`: also invisible in stage 1.
# - Sides that are no multiple of 32: in some stages the last tokens are in no key. Small pictures lose
#   most.

# %% [markdown]
# ## In short
#
# - Attention: compare queries with keys, softmax over the keys, mix the values.
# - SegFormer keeps all $N$ queries and merges $R = s^2$ tokens into one key: 64, 16, 4, 1 in the four
#   stages, so that every stage has $H/32 \times W/32$ keys.
# - Merging squares is a strided convolution; merging what `reshape` finds is a convolution with
#   kernel $(1, R)$, where $R$ divides the width of the map. Same shapes, same counts, other places.
# - The cost falls by $R$ and stays quadratic. Fused attention removes the memory, not the time.
# - Tokens that fill no square are never keys; at sides that 32 divides there are none.
# - A fresh network looks everywhere equally; looking somewhere is learned.

# %% [markdown]
# ## What people ask
#
# **Where is the efficient attention in the code? It looks like plain multi-head attention.** It is
# plain attention, on a shorter list. The only difference is in the lines that make `short`.
#
# **How does the output get back to $N$ tokens?** It never left. The queries are not shortened, and
# the output has one row per query.
#
# **Is $R$ 64, 16, 4, 1 or 8, 4, 2, 1?** Both, see above: $R = s^2$.
#
# **Would mean pooling do instead of a learned reduction?** It has no parameters and merges the same
# squares. The convolution can do it too, with equal weights, and more. Which works better is an
# experiment; exercise 4 shows how to put such a block into the network.
#
# **Isn't it $O(N^2/R^2)$?** Only if keys *and* queries were shortened, or if $R$ means the stride.
# The Pyramid Vision Transformer (PVT, [arXiv:2102.12122](https://arxiv.org/abs/2102.12122)), which
# had the idea first, writes it with the stride; the number is the same.
#
# **Does the strided convolution overlap, like the patch embedding?** No. Kernel and stride are
# equal, and there is no padding: each token goes into one key at most.

# %% [markdown]
# ## Next
#
# Attention treats the tokens as a bag: shuffled in, shuffled out. So how does SegFormer know where
# things are, without any table of positions? [Chapter 05](05_mix_ffn.ipynb), Mix-FFN, finds the
# answer in the zeros at the border.
