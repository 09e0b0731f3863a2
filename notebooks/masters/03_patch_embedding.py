# %% [markdown]
# # 03 · Turn a picture into tokens: overlapping patch embedding
#
# About 35 minutes to read and run, 55 more for the exercises. The code itself takes about ten seconds
# and about 1 GB of memory on a CPU. No GPU is needed, and the modes fast and full are the same here.

# %% [markdown]
# **What you build.** The first block of every SegFormer stage: `PatchEmbed`, a dozen lines that
# turn a picture into a map of tokens. At the end it carries the package's weights and gives the
# package's numbers.
#
# **What you learn.**
#
# - why "cut, flatten, multiply" and "strided convolution" are the same thing, shown by equality;
# - how large each token map is, for any picture size;
# - what an overlap of the windows buys, and what it does not;
# - what the layer norm at the end does, and what its `eps` is for;
# - what one innocent-looking reshape does to a picture.
#
# **What you need.** Tensors, `nn.Conv2d` and `nn.Linear`. No earlier chapter is needed;
# [01](01_what_is_segmentation.ipynb) and [02](02_cnn_baselines.ipynb) say what segmentation is and
# how it was done before.

# %% tags=["setup", "nbval-ignore-output"]
import inspect

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

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit="patch_embed")

# %% [markdown]
# The map shows SegFormer from the image at the lower left to the mask at the upper right. Four
# stages, each smaller than the one before, and each begins with the orange block of this chapter.

# %% [markdown]
# ## The question
#
# A transformer works on a list of vectors, the *tokens*. A picture is a grid of pixels. **How do
# you make the one from the other without losing what a segmentation needs: fine detail, and which
# thing is next to which?**
#
# SegFormer's answer has four numbers per stage. The paper and the code name them like this:
#
# | paper | code | stage 1 | stages 2, 3, 4 | meaning |
# |---|---|---|---|---|
# | $K$ | `kernel` | 7 | 3 | side of the window that becomes one token |
# | $S$ | `stride` | 4 | 2 | step from one window to the next |
# | $P$ | `kernel // 2` | 3 | 1 | zeros added around the picture |
# | $C_i$ | `dim` | 32 | 64, 160, 256 (B0) | length of a token |
#
# B0 is the smallest of six SegFormers, B0 to B5. Its encoder, the four stages, is called MiT-B0, and
# *released* means the authors' published code and weights.
#
# The token map of stage $i$ has $N = H_i \times W_i$ tokens. In this course shapes are written
# with the same letters everywhere: **B** pictures, **C** channels, **H** rows, **W** columns, **N**
# tokens.

# %% [markdown]
# ## By hand: cut, flatten, multiply
#
# Start with the way of the Vision Transformer (ViT, Dosovitskiy et al., 2020,
# [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)): patches that do *not* overlap. A toy picture
# of 4 × 4 pixels and patches of 2 × 2 can be done with a pencil.

# %%
toy = torch.arange(16.0).reshape(1, 1, 4, 4)  # (B, C, H, W)
toy[0, 0]

# %% [markdown]
# **Cut and flatten.** `F.unfold` cuts out every window and writes it as one column; transposed,
# each *row* is a patch.

# %%
patches = F.unfold(toy, kernel_size=2, stride=2).transpose(1, 2)  # (B, N, C * K * K)
print(tuple(patches.shape))
patches[0]

# %% [markdown]
# The first row, `0 1 4 5`, is the upper left corner of the picture. Four patches of four numbers.
#
# **Multiply.** One matrix makes a token from a patch. To see what it does, let it compute two
# things one can check by eye: the mean of the patch, and right column minus left column.

# %%
linear = nn.Linear(4, 2, bias=False)
linear.weight.data = torch.tensor([[0.25, 0.25, 0.25, 0.25],
                                   [-0.5, 0.5, -0.5, 0.5]])
tokens = linear(patches)  # (B, N, dim)
tokens[0].detach()

# %% [markdown]
# Four tokens of length 2. The means are 2.5, 4.5, 10.5, 12.5, and everywhere the right column is
# larger by one.
#
# Now look at what the matrix did: the same two rows of four weights, laid on every patch in turn.
# That is what a convolution does, if it steps as far as its kernel is wide. So give the same weights to
# a convolution:

# %%
conv = nn.Conv2d(1, 2, kernel_size=2, stride=2, bias=False)
conv.weight.data = linear.weight.data.reshape(2, 1, 2, 2)  # (dim, C, K, K)
by_conv = conv(toy)  # (B, dim, H', W')
print("linear on patches", tuple(tokens.shape), "| convolution", tuple(by_conv.shape))
torch.testing.assert_close(by_conv.flatten(2).transpose(1, 2), tokens)

# %% [markdown]
# The assertion passes: **a patch embedding is a strided convolution.** The two results hold the
# same numbers, only the axes are named in another order: a list of N tokens, or a map with H' rows
# and W' columns.
#
# The same holds when the windows overlap and the border is padded. Kernel 3, stride 2, padding 1,
# the setting of stages 2 to 4:

# %%
windows = F.unfold(toy, kernel_size=3, stride=2, padding=1).transpose(1, 2)
print(tuple(windows.shape))
windows[0, 0].reshape(3, 3)

# %% [markdown]
# This is the first window, back in its square form. Its upper row and left column are zeros that do
# not exist in the picture: the padding. Remember them; they come back at the end of the chapter.

# %%
conv = nn.Conv2d(1, 5, kernel_size=3, stride=2, padding=1)
as_linear = F.linear(windows, conv.weight.flatten(1), conv.bias)
torch.testing.assert_close(conv(toy).flatten(2).transpose(1, 2), as_linear)
print("still the same:", tuple(as_linear.shape))

# %% [markdown]
# ## Windows on a line
#
# Overlap is easiest to see along one row of pixels.

# %%
def draw_windows(ax, kernel, stride, pixels=20):
    padding = kernel // 2 if kernel > stride else 0
    count = (pixels + 2 * padding - kernel) // stride + 1
    ax.axvspan(0, pixels, color="#EEEEEE")  # the real pixels
    for i in range(count):
        ax.barh(-i, kernel, left=i * stride - padding, height=0.7, alpha=0.8,
                color=show.COLOURS["blue" if i % 2 == 0 else "orange"])
    ax.set(title=f"K={kernel}, S={stride}, P={padding}: {count} tokens", xlabel="pixel",
           xlim=(-4, pixels + 4), xticks=range(0, pixels + 1, 4), yticks=[])


fig, axes = plt.subplots(1, 3, figsize=(7, 2.2))
for ax, (kernel, stride) in zip(axes, [(4, 4), (7, 4), (3, 2)]):
    draw_windows(ax, kernel, stride)
show.figure(fig, alt=(
    "Three panels show windows as bars over a row of 20 pixels. With kernel 4 and stride 4 the "
    "five bars touch but never overlap; with kernel 7 and stride 4 each of five bars shares "
    "three pixels with the next and the first begins three pixels before the picture; with "
    "kernel 3 and stride 2 each of ten bars shares one pixel with the next."))

# %% [markdown]
# Grey is the picture, each bar one window. Left, the ViT way: bars touch, none overlap. In the
# middle SegFormer's stage 1: the same number of tokens, but neighbours share $K - S = 3$ pixels.
# Right, stages 2 to 4: neighbours share one pixel. The first bar of both begins outside the
# picture, in the padding.

# %% [markdown]
# ### How many tokens?
#
# A window fits $\lfloor (n + 2P - K) / S \rfloor + 1$ times. With an odd kernel and
# $P = (K - 1) / 2$ this becomes $\lfloor (n - 1) / S \rfloor + 1 = \lceil n / S \rceil$: **the size
# is divided by the stride and rounded up.** Nothing is lost at the right and lower edge. Follow an
# awkward picture of 65 × 97 pixels through four stages:

# %%
x = torch.zeros(1, 1, 65, 97)
for stage, (kernel, stride) in enumerate([(7, 4), (3, 2), (3, 2), (3, 2)], start=1):
    x = F.conv2d(x, torch.zeros(1, 1, kernel, kernel), stride=stride, padding=kernel // 2)
    height, width = x.shape[-2:]
    print(f"stage {stage}: {height:2d} x {width:2d} = {height * width:3d} tokens")

# %% [markdown]
# No padding to a multiple of 32, no cropping: any picture goes through. The windows of ViT would
# lose something here: with $P = 0$ the division rounds *down*.

# %%
without = F.conv2d(torch.zeros(1, 1, 65, 97), torch.zeros(1, 1, 4, 4), stride=4)
print("K=4, S=4, P=0 on 65 x 97:", tuple(without.shape[-2:]))
rows, columns = 65 - 4 * without.shape[-2], 97 - 4 * without.shape[-1]
print(f"never read: {rows} row at the lower edge, {columns} column at the right edge")

# %% [markdown]
# ### On a real picture
#
# From here on the picture is a photograph that comes with matplotlib: Rear Admiral Grace Hopper,
# cropped to 512 × 512 pixels. `preprocess` brings each colour to about mean 0 and spread 1, with the
# numbers of the ImageNet pictures.

# %%
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    photo = torch.from_numpy(np.array(file.convert("RGB"))[20:532]).permute(2, 0, 1)[None]
image = sl.preprocess(photo)
print(tuple(photo.shape), photo.dtype, "->", tuple(image.shape), image.dtype)

# %%
def draw_nine(ax, kernel):
    """Nine windows four pixels apart, the middle one in yellow."""
    for y in (8, 12, 16):
        for x in (8, 12, 16):
            corner = (x - kernel // 2 - 0.5, y - kernel // 2 - 0.5)
            ax.add_patch(plt.Rectangle(corner, kernel, kernel, fill=False, ec="white", lw=1))
    corner, yellow = 12 - kernel // 2 - 0.5, show.COLOURS["yellow"]
    ax.add_patch(plt.Rectangle((corner, corner), kernel, kernel, fill=False, ec=yellow, lw=2.5))


eye = photo[0, :, 154:182, 207:235]  # 28 x 28 pixels
fig = show.grid([eye, eye], ["K = 4: no shared pixel", "K = 7: shared borders"], cell=2.8)
draw_nine(fig.axes[0], kernel=4)
draw_nine(fig.axes[1], kernel=7)
show.figure(fig, alt=(
    "The same 28 by 28 pixels around an eye, twice, with three by three windows drawn on top. "
    "Left, windows of 4 by 4 pixels lie side by side like tiles. Right, windows of 7 by 7 "
    "pixels at the same step overlap, and the yellow one in the middle reaches into all its "
    "neighbours."))

# %% [markdown]
# Nine windows, four pixels apart, on the same piece of the photograph. Left they tile it. Right
# each window reaches into its neighbours: the yellow token in the middle knows something about all
# eight tokens around it.

# %% [markdown]
# ## The class
#
# A convolution, the axes turned so that a token's numbers lie next to each other, a layer norm over
# each token. That is all. The submodules are named `proj` and `norm`, as in the package.

# %%
class PatchEmbed(nn.Module):
    """(B, in_channels, H, W) -> (B, H', W', dim), one token per window."""

    def __init__(self, in_channels, dim, kernel, stride):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x)             # (B, dim, H', W')
        x = x.permute(0, 2, 3, 1)    # (B, H', W', dim): channels last
        return self.norm(x)          # mean 0, variance 1 over each token's channels


embed = PatchEmbed(3, 32, kernel=7, stride=4)
print(tuple(image.shape), "->", tuple(embed(image).shape))

# %% [markdown]
# 512 × 512 pixels with 3 numbers each became 128 × 128 tokens with 32 numbers each. The map stays a
# map: two axes for the place, one for the token. Flatten the two, and you have the paper's list of
# $N \times C$.

# %%
tokens = embed(image)
print("as a map", tuple(tokens.shape), " as a list", tuple(tokens.flatten(1, 2).shape))

# %% [markdown]
# ## Count the parameters
#
# The convolution has $K^2 \, C_{in} \, C$ weights and $C$ biases, the norm $C$ scales and $C$
# shifts.

# %%
def count(module):
    return sum(p.numel() for p in module.parameters())


print("stage 1 by hand", 7 * 7 * 3 * 32 + 32 + 2 * 32, "| counted", count(embed))

# %%
encoder = sl.create_model("segformer_b0", num_classes=150).encoder
# in_channels, dim, kernel, stride
stages = [(3, 32, 7, 4), (32, 64, 3, 2), (64, 160, 3, 2), (160, 256, 3, 2)]
ours = [count(PatchEmbed(*setting)) for setting in stages]
theirs = [count(stage.patch_embed) for stage in encoder.stages]
print("ours       ", ours)
print("the package", theirs)
print(f"together {sum(ours):,} of {count(encoder):,}: {sum(ours) / count(encoder):.1%}")
assert ours == theirs and count(encoder) == 3_319_392

# %% [markdown]
# All four agree with the package, whose encoder has the 3,319,392 parameters of the released
# MiT-B0. The four patch embeddings are about a seventh of it. Most of that is in the last one: the
# count grows with the product of channels before and after, not with the size of the picture.

# %% [markdown]
# ## What it does to a picture
#
# ### Six filters made by hand
#
# A trained network finds its own filters. To see what a token *can* say, set six by hand:
# brightness, two edges, a small spot, and two colour contrasts.

# %%
def six_filters(kernel):
    """(6, 3, K, K), in the order of `names`."""
    t = torch.linspace(-1, 1, kernel)
    bell = torch.exp(-2 * t**2)
    blur = torch.outer(bell, bell)
    vertical = blur * t
    spot = blur - blur.sqrt().sqrt()  # narrow minus wide
    spot = spot - spot.mean()
    grey, red_green, blue_yellow = torch.tensor([[1.0, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
    pairs = [(blur, grey), (vertical, grey), (vertical.T, grey), (spot, grey),
             (blur, red_green), (blur, blue_yellow)]
    filters = torch.stack([colour[:, None, None] * shape for shape, colour in pairs])
    return filters / filters.abs().sum((1, 2, 3), keepdim=True)


names = ["brightness", "vertical edge", "horizontal edge", "spot", "red - green", "blue - yellow"]
hand = PatchEmbed(3, 6, kernel=7, stride=4)
hand.proj.weight.data, hand.proj.bias.data = six_filters(7), torch.zeros(6)

# %%
def as_picture(filters):
    """Weights (3, K, K) as colours: grey is zero."""
    return (filters / filters.abs().max() / 2 + 0.5).permute(1, 2, 0)


with torch.no_grad():
    maps = hand.proj(image)[0]
pictures = [*map(as_picture, six_filters(7)), *maps]
fig = show.grid(pictures, names, columns=6, cell=1.15, cmap="gray")
show.figure(fig, alt=(
    "Upper row: six hand-made filters of 7 by 7 pixels. Lower row: their token maps of the "
    "photograph, 128 by 128 tokens each. The brightness map is a small copy of the photograph, "
    "the edge maps show the outlines of face, cap and flag in relief, the spot map shows eyes, "
    "buttons and stripes, and the two colour maps show flag and uniform as bright and dark "
    "areas."))

# %% [markdown]
# Upper row: the filters; mid-grey means zero. Lower row: one channel of the token map each. Every
# map is four times smaller than the photograph, and each keeps something else of it. A token is the
# column of numbers behind one pixel of these maps: here six, in B0's first stage 32.

# %% [markdown]
# ### Random filters already work a little

# %%
torch.manual_seed(0)
fresh = PatchEmbed(3, 6, kernel=7, stride=4)
with torch.no_grad():
    maps = fresh.proj(image)[0]
pictures = [*map(as_picture, fresh.proj.weight.detach()), *maps]
fig = show.grid(pictures, columns=6, cell=1.15, cmap="gray")
show.figure(fig, alt=(
    "Upper row: six random filters, coloured noise. Lower row: their token maps, in which face, "
    "cap and flag are easily recognised, in some as a positive, in others as a negative or as "
    "outlines."))

# %% [markdown]
# Upper row: six filters as they are before training. Lower row: their maps. Each is a poor mix of
# edge and colour, but the picture is there, and none of it had to be learned. Training turns the
# mixes into something useful.

# %% [markdown]
# ## What the overlap buys
#
# ### An edge that hides
#
# A white area begins somewhere on a black row of pixels. Two edge filters look for it:
# `-1 -1 +1 +1` in windows that do not overlap ($K = S = 4$), and `-1 -1 -1 0 +1 +1 +1` in windows
# that do ($K = 7$, $S = 4$). Both are scaled so that a well placed edge gives 1. Now the edge
# moves, one pixel at a time.
#
# **Predict, then run.** What is the strongest answer among all tokens, as the edge moves?
#
# - A. About 1 everywhere for both: some window always finds the edge.
# - B. Without overlap it falls to 0 at some places, with overlap it never does.
# - C. Both fall to 0 at some places, because both step by four.

# %%
def strongest(weight, padding, edge):
    """Largest answer of a token to a row of pixels that is 0 before `edge` and 1 from there on."""
    row = (torch.arange(-padding, 32 + padding) >= edge).float()  # goes on as it is past both ends
    return F.conv1d(row[None, None], weight[None, None], stride=4).abs().max().item()


tiled = torch.tensor([-1.0, -1, 1, 1]) / 2
overlapping = torch.tensor([-1.0, -1, -1, 0, 1, 1, 1]) / 3
edges = range(12, 21)
answers = {"K=4, S=4": [strongest(tiled, 0, e) for e in edges],
           "K=7, S=4": [strongest(overlapping, 3, e) for e in edges]}
for name, values in answers.items():
    print(name, " ".join(f"{v:.2f}" for v in values))

# %%
fig, ax = plt.subplots(figsize=(5, 2.3))
for (name, values), style in zip(answers.items(), ["o--", "s-"]):
    ax.plot(edges, values, style, label=name)
ax.set(xlabel="pixel where white begins", ylabel="strongest answer", xticks=edges)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Two curves against the position of the edge, from pixel 12 to 20. Without overlap the "
    "answer swings between 0 at pixels 12, 16 and 20 and 1 half-way between. With overlap it "
    "stays between two thirds and 1."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Dashed: without overlap the answer is exactly 0 whenever the edge falls on a boundary
# between two patches, once every four pixels. Solid: with overlap it never falls below two thirds.
#
# *Why.* If the edge lies between two patches, each patch is flat inside. Any filter whose weights
# sum to zero gives 0 on a flat patch, however well it was trained. That an edge is there can then
# only be found later, by comparing two tokens. An overlapping window always has the boundary
# somewhere inside.
#
# </details>
#
# What an overlap keeps is, in the paper's words, *local continuity*.

# %% [markdown]
# ### A photograph that moves
#
# The same question for a whole picture and arbitrary filters. Shift the photograph to the left,
# pixel by pixel, embed it again with the same 64 random filters, and ask how much the tokens
# changed, after moving the token map back by whole tokens as well as possible. (The outermost
# tokens are left out.)
#
# **Predict, then run.** By how much do the tokens change when the picture moves by 4 pixels, the
# stride?
#
# - A. Not at all: they are the same tokens, one place further.
# - B. Most of all: four is the largest step.
# - C. About as much as at 1 pixel: different pixels are different pixels.

# %%
def change(conv, shift):
    """Relative change of the tokens when the picture moves by `shift` pixels, at the best match."""
    with torch.no_grad():
        still = conv(image[..., :448])[0]
        moved = conv(image[..., shift : 448 + shift])[0]
    matches = [still - moved.roll(tokens, -1) for tokens in range(4)]
    return min((m[:, 8:-8, 8:-8].norm() / still[:, 8:-8, 8:-8].norm()).item() for m in matches)


def random_filters(kernel, stride, padding):
    """64 random filters that answer to structure only: each sums to zero in every colour."""
    conv = nn.Conv2d(3, 64, kernel, stride, padding)
    conv.weight.data -= conv.weight.data.mean((2, 3), keepdim=True)
    conv.bias.data.zero_()
    return conv


# %%
torch.manual_seed(0)
convs = {"K=4, S=4": random_filters(4, 4, 0), "K=7, S=4": random_filters(7, 4, 3)}
shifts = range(9)
changes = {name: [change(conv, s) for s in shifts] for name, conv in convs.items()}
for name, values in changes.items():
    print(name, " ".join(f"{v:.2f}" for v in values))

# %%
fig, ax = plt.subplots(figsize=(5, 2.3))
for (name, values), style in zip(changes.items(), ["o--", "s-"]):
    ax.plot(shifts, values, style, label=name)
ax.set(xlabel="pixels by which the photograph moved", ylabel="relative change", xticks=shifts)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Two saw-tooth curves of the change of the tokens against the shift from 0 to 8 pixels. "
    "Both are zero at 0, 4 and 8 pixels and highest at 2 and 6; the curve with overlap lies "
    "below the one without at all shifts in between."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** Both curves fall to zero at 4 and 8 pixels: there the window grid meets the picture as
# before, and the tokens are the same, moved by one or two places.
#
# </details>
#
# Between two steps all tokens change, with overlap (solid) a little less.
#
# *Why less?* One is tempted to say: because the windows share pixels. A control says otherwise:
# windows of 7 pixels that do *not* overlap.

# %%
torch.manual_seed(0)
for kernel, stride, padding in [(4, 4, 0), (7, 4, 3), (7, 7, 0)]:
    at_one_pixel = change(random_filters(kernel, stride, padding), shift=1)
    print(f"K={kernel}, S={stride}: {at_one_pixel:.2f}")

# %% [markdown]
# It is the *width* that counts: a wider window takes in larger structures, and those change less
# from one pixel to the next. Overlap is what makes wide windows possible at a step of four. And the
# gain is modest: between two steps the tokens still change a lot, so overlap does not make a
# network immune to small shifts.

# %% [markdown]
# ### Who sees a pixel?
#
# Count for each pixel the windows it falls into, $K = 7$ and $S = 4$:

# %%
ones = torch.ones(1, 49, 16)  # 7 x 7 pixels of each of 4 x 4 windows
seen = F.fold(ones, output_size=(16, 16), kernel_size=7, stride=4, padding=3)[0, 0]
print(seen[:8, :8].int())
print("pixels seen by 1, 2, 4 tokens:", [int((seen == n).sum()) for n in (1, 2, 4)])

# %% [markdown]
# Inside the picture, of sixteen pixels one belongs to a single token, six to two and nine to four.
# (The count above is for the whole map: behind its last three rows and columns no further window
# begins, so it has more ones and twos.) With $K = S$ every number here would be 1.

# %% [markdown]
# ## The norm at the end
#
# `norm` treats each token on its own: subtract the mean of its channels, divide by their standard
# deviation.

# %%
raw = embed.proj(image).permute(0, 2, 3, 1)
mean = raw.mean(-1, keepdim=True)
variance = raw.var(-1, unbiased=False, keepdim=True)
by_hand = (raw - mean) / torch.sqrt(variance + embed.norm.eps)
torch.testing.assert_close(by_hand, embed.norm(raw))


def strength(tokens):
    return tokens.std(-1, unbiased=False)


print(f"before: from {strength(raw).min():.2f} to {strength(raw).max():.2f}")
print(f"after:  from {strength(by_hand).min():.2f} to {strength(by_hand).max():.2f}")
print("eps", embed.norm.eps)

# %% [markdown]
# *Strength* is the standard deviation over the channels. After the norm a token from a bright and
# one from a dim part of the picture have the same strength: what is left is the *pattern* over the
# channels. For a whole picture of low contrast that is a gift. Does it have a limit?
#
# **Predict, then run.** The contrast of the photograph is turned down to one ten-thousandth, and the
# convolution has no bias. How strong are its tokens after the norm?
#
# - A. As strong as ever: the norm divides by whatever the strength is.
# - B. Close to zero: `eps` is now the larger part of what is divided by.
# - C. Not a number: zero divided by zero.

# %%
contrasts = 10.0 ** torch.arange(-5, 0.1, 0.25)
no_bias = F.conv2d(image, embed.proj.weight, stride=4, padding=3).permute(0, 2, 3, 1).detach()


def after_norm(contrast, eps):
    """Mean strength of the tokens of the photograph at this contrast."""
    return strength(F.layer_norm(contrast * no_bias, (32,), eps=eps)).mean().item()


fig, ax = plt.subplots(figsize=(5, 2.4))
for eps, style in [(1e-5, "-"), (1e-6, "--"), (1e-12, ":")]:
    ax.semilogx(contrasts, [after_norm(c, eps) for c in contrasts], style, label=f"eps = {eps:g}")
ax.set(xlabel="contrast of the picture", ylabel="strength after the norm")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt="Mean strength of a token after the norm against the contrast, three curves. At 0.0001: "
            + ", ".join(f"{after_norm(1e-4, eps):.2f} with eps {eps:g}" for eps in (1e-5, 1e-6, 1e-12)))

# %%
print(f"strength at contrast 0.0001, eps 1e-5: {after_norm(1e-4, 1e-5):.2f}")
print("all zeros, eps 1e-5:", F.layer_norm(torch.zeros(4), (4,), eps=1e-5).tolist())
print("all zeros, eps 0:   ", F.layer_norm(torch.zeros(4), (4,), eps=0.0).tolist())

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B**, with the `eps` of the patch embedding, 1e-5 (solid). For normal pictures all three curves
# are flat: contrast makes no difference. Below one hundredth `eps` takes over and the tokens fade
# out. (With a bias they would not: all would become one and the same token, that of the bias.)
#
# *Why it matters.* With next to no `eps` (dotted) a window with next to no signal would still give
# a token at full strength, made of noise. With none, a token of zeros becomes *not a number*, which
# one step of training spreads through the whole network.
#
# </details>
#
# The value of `eps` also belongs to the weights: the norms before attention and Mix-FFN and at the
# end of each stage use 1e-6, and weights loaded into a model with another `eps` give slightly
# different outputs.

# %% [markdown]
# ## One reshape that lies
#
# Convolutions want (B, C, H, W), attention wants a list (B, N, C). Code that goes back and forth
# sooner or later contains this line:
#
# ```python
# x = tokens.reshape(B, C, H, W)      # tokens: (B, N, C)
# ```
#
# The shape is right. Every shape test passes.
#
# **Predict, then run.** What does channel 0 of that tensor look like?
#
# - A. Like channel 0 of the token map.
# - B. Like the token map turned on its side.
# - C. Like a woven pattern: it is filled with *all* channels of the *first* tokens.

# %%
with torch.no_grad():
    token_map = hand(image)[:, ::2, ::2, :4]  # every other token, the first four channels
B, H, W, C = token_map.shape
tokens = token_map.flatten(1, 2)  # (B, N, C)
wrong = tokens.reshape(B, C, H, W)
right = tokens.transpose(1, 2).reshape(B, C, H, W)
print("wrong", tuple(wrong.shape), "right", tuple(right.shape), "equal:", torch.equal(wrong, right))

# %%
pictures = [right[0, 0], wrong[0, 0], right[0, 1], wrong[0, 1]]
titles = ["channel 0, right", "channel 0, wrong", "channel 1, right", "channel 1, wrong"]
fig = show.grid(pictures, titles, cell=1.7, cmap="gray")
show.figure(fig, alt=(
    "Channels 0 and 1 of a token map, each right and wrong. With the transpose the photograph "
    "can be recognised in both. Without it both are a woven pattern of short stripes, four "
    "columns wide, in which nothing can be recognised."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Right: with `transpose(1, 2)` first. Wrong: without. `reshape` never moves numbers, it only
# counts them off anew. In a token list the four numbers of one token stand side by side, so the
# "first channel" takes the first quarter of the *tokens*, all their channels woven into stripes.
# Training runs with this mistake, too, only badly, and no message says why.
#
# </details>
#
# The package avoids the question. Its token maps keep their two spatial axes, (B, H, W, C), and
# `permute` *names* what it moves.

# %% [markdown]
# ## How many tokens does a picture need?
#
# ViT cuts patches of 16 × 16 pixels, SegFormer's first stage starts from windows four pixels apart.

# %%
strides = {"ViT": 16, "SegFormer stage 1": 4, "stage 2": 8, "stage 3": 16, "stage 4": 32}
for name, stride in strides.items():
    n = (512 // stride) ** 2
    print(f"{name:18s} one token per {stride:2d} px: {n:6,d} tokens, {n * n:12,d} pairs")

# %% [markdown]
# The last column is what plain self-attention would compute: every token with every other. For stage
# 1 that is far too much, and [chapter 04](04_efficient_attention.ipynb) is about the way out. So why
# so many tokens at all? Draw something thin, a wheel of 160 pixels across, and give each token one
# label: that of most of its pixels. No network with one label per token gets more pixels right.

# %%
def wheel(size=192):
    """(size, size) bool: a tyre 4 px wide, a hub, and 16 spokes 2 px wide."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    to_spoke = abs((angle / (np.pi / 8) + 0.5) % 1 - 0.5) * (np.pi / 8) * radius
    tyre, hub, spokes = abs(radius - 78) < 2, radius < 8, (to_spoke < 1) & (radius < 78)
    return torch.from_numpy(tyre | hub | spokes)


def one_label_per_token(mask, stride):
    share = F.avg_pool2d(mask[None, None].float(), stride)
    return F.interpolate((share >= 0.5).float(), scale_factor=stride)[0, 0].bool()


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()

# %% [markdown]
# **Predict, then run.** What is left of the wheel with one label per 16 × 16 pixels?
#
# - A. A coarse ring with a hub, the spokes are gone.
# - B. A ring and spokes, all too thick.
# - C. One square where the hub was.

# %%
mask = wheel()
kept = {stride: one_label_per_token(mask, stride) for stride in (2, 4, 8, 16)}
titles = ["the mask", *[f"1 per {s} x {s} px\nIoU {iou(mask, k):.2f}" for s, k in kept.items()]]
fig = show.grid([mask, *kept.values()], titles, columns=5, cell=1.4, cmap="cividis", vmin=0, vmax=1)
show.figure(fig, alt="A thin wheel, and what is left of it with one label per token. IoU: "
            + ", ".join(f"{iou(mask, k):.2f} at {s} pixels" for s, k in kept.items()))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** From left to right the wheel falls apart: first the spokes, then the tyre. A tyre four
# pixels wide is never the majority of a 16 × 16 patch.
#
# </details>
#
# *Why this is not the whole story.* A network may give *shares* instead of labels, and its decoder
# may draw a finer picture than its tokens ([chapter 07](07_mlp_decoder.ipynb#why-a-quarter)
# measures how fine). But what never was in a token cannot be drawn. That is the reason for a first
# stage at 1/4, and for a decoder that uses all four stages.

# %% [markdown]
# ## Turn the two knobs
#
# One function shows what a choice of kernel and stride keeps: every token becomes the mean colour
# of its window, the middle counted more than the rim.

# %%
def token_colours(kernel, stride):
    """The photograph as mean colours of its windows: (3, H', W') between 0 and 1."""
    bell = torch.hann_window(kernel + 2, periodic=False)[1:-1]
    window = torch.outer(bell, bell).expand(3, 1, kernel, kernel)
    x, ones = photo.float() / 255, torch.ones(1, 3, *photo.shape[-2:])
    total = F.conv2d(x, window, stride=stride, padding=kernel // 2, groups=3)
    weight = F.conv2d(ones, window, stride=stride, padding=kernel // 2, groups=3)
    return (total / weight)[0].clamp(0, 1)


settings = [(1, 4), (7, 4), (15, 4), (1, 16), (31, 16), (63, 16)]
pictures = [token_colours(kernel, stride) for kernel, stride in settings]
fig = show.grid(pictures, [f"K={k}, S={s}" for k, s in settings], columns=3, cell=1.9)
show.figure(fig, alt=(
    "The photograph as mean colours of windows. Upper row, stride 4: kernel 1 is sharp but "
    "jagged, kernel 7 is clear, kernel 15 is blurred. Lower row, stride 16: kernel 1 picks "
    "scattered pixels, kernel 31 gives clean large squares, kernel 63 gives a face without "
    "features."))

# %% [markdown]
# Upper row stride 4, lower row stride 16; the kernel grows from left to right. The stride decides
# how many tokens there are, the kernel what each of them knows. With $K < S$ (left) most pixels are
# never read. $K = 2S - 1$ (middle) reads everything and blurs little; it is SegFormer's choice, 7/4
# and 3/2. Larger still (right) only mixes more.
#
# If the notebook is running, try it yourself:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_window(kernel, stride):
    colours = token_colours(kernel, stride)
    height, width = colours.shape[-2:]
    fig = show.grid([colours], [f"K={kernel}, S={stride}: {height} x {width} tokens"], cell=3.6)
    show.figure(fig, alt=f"The photograph as {height} by {width} mean colours of its windows.")


_ = interact(try_window, kernel=IntSlider(7, 1, 63, 2, continuous_update=False),
             stride=IntSlider(4, 2, 32, continuous_update=False))

# %% [markdown]
# ## A trace of the border
#
# One more look at the zeros around the picture. Embed a picture that is the same everywhere:

# %%
constant = torch.ones(1, 3, 64, 64)
with torch.no_grad():
    tokens = embed(constant)[0]
from_centre = (tokens - tokens[8, 8]).norm(dim=-1)
print(from_centre[:4, :6])

# %%
fig = show.grid([from_centre], ["distance from the middle token"], cell=2.2, cmap="cividis")
show.figure(fig, alt=(
    "The token map of a constant picture, 16 by 16 tokens, coloured by distance from the middle "
    "token. Only the first row and the first column stand out; all other tokens are equal."))

# %% [markdown]
# The picture has no structure at all, yet the tokens of the first row and column differ from the
# rest, and the corner differs from both. Only they have padding in their windows. The right and
# lower edges look like the middle: with 64 pixels and stride 4 the last window ends exactly at the
# last pixel.
#
# So a token knows when it is at the upper or left edge: **zero padding leaks position.** SegFormer
# has no positional embedding, and this is a part of the reason why it can do without.
# [Chapter 05](05_mix_ffn.ipynb#the-leak) measures how far the leak reaches.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. Sizes without a network (10 minutes)
#
# Work out the four token maps of any picture with nothing but integers.
#
# <details><summary>Hint</summary>
#
# Each stage divides by its stride and rounds up. In integers, `-(-n // s)` rounds up.
#
# </details>
# <details><summary>Help: my sizes are one too small</summary>
#
# `n // s` rounds down. That is right for windows as wide as the step, without padding. With
# `kernel // 2` zeros on both sides what is left over gets a window, too, so the size rounds up.
#
# </details>

# %% tags=["exercise"]
def my_stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes (H1, W1), ..., (H4, W4) of the four token maps of a height x width picture."""
    # SOLUTION
    sizes = []
    for stride in (4, 2, 2, 2):
        height, width = -(-height // stride), -(-width // stride)
        sizes.append((height, width))
    return sizes
    # END SOLUTION


checks.stage_sizes(my_stage_sizes)

# %% [markdown] tags=["exercise"]
# ### 2. Cut without `unfold` (15 minutes)
#
# Cut a picture into patches that do not overlap, using `reshape` and `permute` only. The numbers of
# a patch must come in the order in which a convolution stores its weights: channel, row, column.
# Then a `Linear` with the convolution's weights gives the convolution's result; the check tries
# exactly this. Sizes always divide.
#
# <details><summary>Hint</summary>
#
# Split H into (H', size) and W into (W', size): one `reshape` gives six axes (B, C, H', size, W',
# size). Then bring the axes into the order you want and merge the last three.
#
# </details>
# <details><summary>Help: the shape is right but the numbers are not</summary>
#
# A single `reshape` cuts the raster line by line, as in "One reshape that lies". Print your patches
# for `torch.arange(16.).reshape(1, 1, 4, 4)`: the first must be 0, 1, 4, 5.
#
# </details>

# %% tags=["exercise"]
def my_patchify(image: torch.Tensor, size: int) -> torch.Tensor:
    """image: (B, C, H, W) -> patches: (B, H / size, W / size, C * size * size)."""
    # SOLUTION
    b, c, height, width = image.shape
    x = image.reshape(b, c, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (b, h, w, c, y, x), the last three merged
    # END SOLUTION


checks.patchify(my_patchify)

# %% [markdown] tags=["exercise"]
# ### 3. How much of its window is real? (10 minutes)
#
# Near the border a part of each window is padding. Compute for every token the share of its
# `kernel * kernel` window that lies on real pixels: 1 where a window lies inside the picture, less
# where padding reaches into it, least in the upper left corner. (The lower and right border may have
# no padding, as in the last section.) This is the map behind the leak.
#
# <details><summary>Hint</summary>
#
# A picture of ones, padded with zeros, and a kernel of ones: what does their convolution count?
#
# </details>
# <details><summary>Help: error about the number of dimensions</summary>
#
# `F.conv2d` wants the picture as (B, C, H, W) and the weight as (dim, C, K, K). Use ones for B, C
# and dim, then take `[0, 0]` of the result.
#
# </details>

# %% tags=["exercise"]
def my_coverage(height: int, width: int, kernel: int, stride: int) -> torch.Tensor:
    """Share of real pixels in each token's window, (H', W'), padding kernel // 2."""
    # SOLUTION
    picture, window = torch.ones(1, 1, height, width), torch.ones(1, 1, kernel, kernel)
    return F.conv2d(picture, window, stride=stride, padding=kernel // 2)[0, 0] / kernel**2
    # END SOLUTION


checks.coverage(my_coverage)

# %% [markdown] tags=["exercise"]
# ### 4. Into the real network (20 minutes)
#
# Every block of the package's SegFormer can be replaced by a class of your own. Write
# `PlainPatchEmbed`: windows that do not overlap, as ViT and the first Pyramid Vision Transformer
# have them. Then build a SegFormer-B0 for 5 classes with it, through
# `sl.create_model(..., patch_embed=...)`. The check looks at the finished network: sizes, overlap,
# output.
#
# The network calls your class as `PlainPatchEmbed(in_channels, dim, kernel, stride)` with the
# kernels 7, 3, 3, 3. Yours ignores `kernel`. Not tested: pictures whose sides 32 does not divide.
#
# <details><summary>Hint</summary>
#
# Take the chapter's `PatchEmbed`; the window is as wide as the step, and nothing is padded.
#
# </details>
# <details><summary>Help: "normalized_shape" error</summary>
#
# `LayerNorm(dim)` works on the last axis. Permute (B, dim, H', W') to (B, H', W', dim) before it.
#
# </details>

# %% tags=["exercise"]
class PlainPatchEmbed(nn.Module):
    """(B, in_channels, H, W) -> (B, H / stride, W / stride, dim), no pixel shared.

    Submodules: proj, a convolution, and norm, a LayerNorm.
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int):
        super().__init__()
        # SOLUTION
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=stride, stride=stride)
        self.norm = nn.LayerNorm(dim)
        # END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SOLUTION
        return self.norm(self.proj(x).permute(0, 2, 3, 1))
        # END SOLUTION


def plain_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with PlainPatchEmbed in all four stages."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, patch_embed=PlainPatchEmbed)
    # END SOLUTION


checks.plain_model(plain_segformer())

# %% [markdown]
# ## The package's version
#
# Here is the block that the rest of the course uses, in place:

# %%
print(inspect.getsource(sl.OverlapPatchEmbed))

# %% [markdown]
# The same three steps. It is a test, not a matter of faith: the class of this chapter takes the
# weights of all four blocks of a real B0, `strict`, so that no key may be missing or left over, and
# must give the same numbers.

# %%
x = image[..., :250, :333]  # an awkward size
for number, stage in enumerate(encoder.stages, start=1):
    block = stage.patch_embed
    mine = PatchEmbed(*stages[number - 1])
    mine.load_state_dict(block.state_dict(), strict=True)
    torch.testing.assert_close(mine(x), block(x), rtol=0, atol=0)
    print(f"stage {number}: {tuple(x.shape)} -> {tuple(block(x).shape)}, equal")
    x = block(x).permute(0, 3, 1, 2)

# %% [markdown]
# ## What the paper says, what the code does
#
# - **Kernel 7, 3, 3, 3; stride 4, 2, 2, 2; padding 3, 1, 1, 1.** Paper
#   ([arXiv:2105.15203](https://arxiv.org/abs/2105.15203), section 3.1 and Table 6) and released code
#   agree.
# - **"Overlapped patch merging".** The paper describes merging patches between stages; in code the
#   block of stages 2 to 4 is the very same convolution and norm as at the beginning, and it stands
#   *first* in each stage.
# - **A norm after every patch embedding** is in the released code; the paper's text does not
#   mention it. Its `eps` is 1e-5, PyTorch's default.
# - **Does overlap matter?** The paper gives its reason, local continuity around patches, but no
#   experiment with and without it. Exercise 4 has built the network that such an experiment needs.

# %% [markdown]
# ## Pitfalls
#
# - `reshape` from (B, N, C) to (B, C, H, W) without a transpose: right shape, scrambled picture.
# - `H // patch_size` for the height of the token map: the *stride* decides, and the size rounds up.
# - $K = S$ and sides that do not divide: the last rows and columns are never read, and nothing
#   complains.
# - A norm over the wrong axis: `LayerNorm(dim)` wants the channels last.
# - Weights loaded into a model with another `eps`: no error, slightly different outputs.

# %% [markdown]
# ## In short
#
# - A patch embedding is a strided convolution: cut, flatten and multiply in one step.
# - Overlap ($K > S$) lets a window see across the boundary to its neighbour; an edge cannot hide
#   between two patches.
# - Sizes are divided by the stride and rounded up: 1/4, 1/8, 1/16, 1/32 of any picture.
# - The layer norm keeps the pattern of a token and drops its strength, down to a floor set by
#   `eps`.
# - The zeros around the picture tell the first row and column where they are.
# - `reshape` moves nothing, it counts off anew: from (B, N, C) to (B, C, H, W) only with a transpose.

# %% [markdown]
# ## What people ask
#
# **Figure 2 of the paper seems to shrink the picture twice at the start, and to merge at the end of a
# stage. Which is right?** In code each stage is: patch embedding, blocks, norm, and nothing shrinks
# twice. [Chapter 06](06_encoder.ipynb#from-blocks-to-a-stage) draws both.
#
# **Must the picture be a multiple of 4, 16 or 32 pixels?** No. Sizes round up, as 65 × 97 showed.
# Only attention's shortened keys skip some tokens at sizes that 32 does not divide
# ([chapter 04](04_efficient_attention.ipynb#tokens-that-nobody-sees)). The package asks for at least
# 32 pixels a side.
#
# **Is it a patch embedding at all, if it is a convolution?** Both names mean the same computation.
# "Embedding" says what it is for: numbers in, tokens out.
#
# **Does the convolution have a bias?** Yes, in the released network. Some rewrites on the web leave
# it out; their weights then do not fit.
#
# **Why are there no positional embeddings?** Zero padding tells position, here and in the 3 × 3
# convolution of Mix-FFN. You have seen the first trace of it; [chapter 05](05_mix_ffn.ipynb) is about
# the rest.

# %% [markdown]
# ## Next
#
# Stage 1 has 16,384 tokens for a 512-pixel picture, and 268 million pairs of them.
# [Chapter 04](04_efficient_attention.ipynb), efficient self-attention, shortens the list of keys and
# values until that can be afforded.
