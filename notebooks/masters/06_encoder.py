# %% [markdown]
# # 06 · Build the encoder: blocks, stages, the Mix Transformer
#
# About 40 minutes to read and run, 70 more for the exercises. The code takes about one minute on two
# CPU cores, most of it two short trainings, and about 1.5 GB of memory. No GPU is needed, and the
# modes fast and full are the same here.

# %% [markdown]
# **What you build.** `Encoder`, the whole Mix Transformer (MiT), out of the three parts that you
# know: patch embedding, efficient attention, Mix-FFN. About thirty lines. At the end it carries the
# weights of the package's encoder and gives its four feature maps, number for number.
#
# **What you learn.**
#
# - what a block is, why the norms stand where they stand, and what drop path drops;
# - in which order a stage works, and where the paper's Figure 2 misleads;
# - how B0 to B5 differ, what they cost, and which printed numbers are not those of the code;
# - why the first random weights matter: the same network, a Mix-FFN that starts much weaker;
# - what the four feature maps of a picture look like, and why a colourful picture of them hides
#   what was learned.
#
# **What you need.** Chapters [03](03_patch_embedding.ipynb) (patch embedding),
# [04](04_efficient_attention.ipynb) (efficient attention) and [05](05_mix_ffn.ipynb) (Mix-FFN), or at
# least an idea of what goes in and out of these three.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import inspect
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import macs, parameters
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models.segformer import VARIANTS

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("patch_embed", "attention", "mix_ffn"))

# %% [markdown]
# All that is lit is the encoder: four stages, each a patch embedding and then $L_i$ blocks of
# attention and Mix-FFN. Its four maps, $F_1$ to $F_4$, are all that the decoder gets to see.

# %% [markdown]
# ## The question
#
# Three parts are on the table. **How do you stack them so that many layers can still be trained, so
# that the picture is seen at four resolutions, and so that one recipe gives a small network as well
# as a large one?**
#
# One recipe, six networks. This is what has to be chosen, with the paper's symbol and the code's
# name:
#
# | paper | code | stages 1, 2, 3, 4 | meaning |
# |---|---|---|---|
# | $C_i$ | `dims` | 32, 64, 160, 256 (B0) | length of a token |
# | $L_i$ | `depths` | 2, 2, 2, 2 (B0) | blocks in a stage |
# | $N_i$ | `heads` | 1, 2, 5, 8 (all) | heads of the attention |
# | $R_i$ | `stride` $s_i$, $R_i = s_i^2$ | $s$ = 8, 4, 2, 1 (all) | how much the list of keys is shortened |
# | $E_i$ | `expansion` | 4, 4, 4, 4 (all) | hidden width of Mix-FFN: $E_i C_i$ |
#
# Only the first two rows tell B0 from B5.

# %% [markdown]
# ## A block by hand
#
# A block does two things to a map of tokens. Tokens look at each other (attention), then each token
# is worked on with its neighbours (Mix-FFN). Take a small map, 16 × 16 tokens of length 32, and the
# parts:

# %%
from segformer_lite.models.segformer import init_weights

tokens = torch.randn(1, 16, 16, 32)  # (B, H, W, C)
norm1, norm2 = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
attention = sl.EfficientSelfAttention(32, heads=1, stride=8)
ffn = sl.MixFFN(32, expansion=4)
for part in (attention, ffn):
    part.apply(init_weights)  # the released start; more on it below

# %% [markdown]
# **The first branch.** Normalise, attend. The result is not the new map: it is *added* to the old
# one. Where nothing is to be changed, the branch only has to give zero.

# %%
looked = attention(norm1(tokens))
after_attention = tokens + looked
print("branch", tuple(looked.shape), "| sum", tuple(after_attention.shape))

# %% [markdown]
# **The second branch** does the same with the other norm and Mix-FFN, starting from what the first
# has left.

# %%
worked = ffn(norm2(after_attention))
after_block = after_attention + worked
for name, part in {"tokens": tokens, "attention adds": looked, "Mix-FFN adds": worked}.items():
    print(f"{name:<15} size {part.std():.3f}")

# %% [markdown]
# *Size* is the standard deviation over all numbers. A fresh block adds little to what comes in; it
# begins its life close to "change nothing". Is this what the package's block does? Give it the same
# parts and compare:

# %%
block = sl.TransformerBlock(32, heads=1, stride=8, expansion=4).eval()
block.norm1, block.attention, block.norm2, block.ffn = norm1, attention, norm2, ffn
torch.testing.assert_close(block(tokens), after_block, rtol=0, atol=0)
print("equal:", tuple(block(tokens).shape))

# %% [markdown]
# A block never changes the shape. So any number of them can be stacked.

# %% [markdown]
# ## Where the norm stands
#
# There are three places for a norm, and for each there are networks that do it so:
#
# - **none**: $x + f(x)$;
# - **post-norm**: $\mathrm{LN}(x + f(x))$, as in the first transformer;
# - **pre-norm**: $x + f(\mathrm{LN}(x))$, as in SegFormer's code. (Its equations don't say.)
#
# B5 has 40 blocks in stage 3. Stack 40 fresh blocks in each of the three ways, with weights that
# keep the size of what they read (standard deviation $1/\sqrt{\text{inputs}}$), and follow the size
# of the tokens.
#
# **Predict, then run.** How large are the tokens after 40 pre-norm blocks, if they start at 1?
#
# - A. Still about 1: there is a norm in every branch.
# - B. Between 5 and 10: they grow, but slowly.
# - C. Thousands: every block adds something of the size of what it sees.

# %%
def full_size(module):
    """Weights that keep the size of what they read."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        nn.init.zeros_(module.bias)


def norm(x):
    return F.layer_norm(x, x.shape[-1:])


ORDERS = {"no norm": lambda x, f: x + f(x),
          "post-norm": lambda x, f: norm(x + f(x)),
          "pre-norm": lambda x, f: x + f(norm(x))}

# %%
@torch.no_grad()
def stack(order, init, depth=40):
    """Size of the tokens after each block, and how alike they still are to those that came in."""
    torch.manual_seed(0)
    x = start = torch.randn(1, 14, 14, 64)
    sizes, likeness = [], []
    for _ in range(depth):
        block = sl.TransformerBlock(64, heads=1, stride=2, expansion=4).apply(init)
        for branch in (block.attention, block.ffn):
            x = order(x, branch)
        sizes.append(x.std().item())
        likeness.append(F.cosine_similarity(x.flatten(), start.flatten(), dim=0).item())
    return sizes, likeness


stacks = {name: stack(order, full_size) for name, order in ORDERS.items()}

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5))
for (name, curves), style in zip(stacks.items(), ["--", ":", "-"]):
    for ax, curve in zip(axes, curves):
        ax.plot(range(1, 41), curve, style, label=name)
axes[0].set(yscale="log", xlabel="blocks", ylabel="size of the tokens")
axes[1].set(xlabel="blocks", ylabel="likeness to the start", ylim=(-0.05, 1))
axes[0].legend()
show.figure(fig, alt=" ".join([
    "Two panels over 40 blocks: size of the tokens on a logarithmic axis, and likeness to the start.",
    *(f"{name}: at the end size {size[-1]:.2g}, likeness {like[-1]:.2f}." for name, (size, like) in stacks.items())]))

# %%
for name, (sizes, likeness) in stacks.items():
    some = "  ".join(f"{sizes[n - 1]:7.2g}" for n in (10, 20, 40))
    print(f"{name:<10} size after 10, 20, 40 blocks: {some} | likeness {likeness[-1]:.2f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Left panel, logarithmic: without a norm (dashed) the size explodes. With pre-norm (solid)
# it grows, and ever more slowly. Right panel: how much of the start is still in the sum.
#
# *Why.* Without a norm what a branch adds is always the same share of what it reads, so the size is
# multiplied, block after block. With pre-norm each branch reads tokens of size 1, whatever their
# size in the sum: it adds about the same amount every time. Independent amounts would add up
# in their squares, and the size would grow like the square root of the number of blocks; here it grows
# a little faster, 2.4 times from 10 to 40 blocks in place of 2. Post-norm holds the
# size at 1, but has to shrink everything that is already in the sum to do so, time and again: after
# fifteen blocks nothing is left of what came in.
#
# </details>

# %%
# What the answer says, checked.
assert 5 < stacks["pre-norm"][0][-1] < 10

# %% [markdown]
# Three consequences of pre-norm. The whole stage is one sum, so on its way back a gradient reaches
# the first block without passing through any other. The later a block, the smaller its *share* of
# the sum. And what leaves the last block has an arbitrary size, so **each stage ends with one more
# norm**, before its map goes to the decoder and to the next stage.
#
# The released start is gentler still: its weights are small (more on that below), and 40 blocks
# hardly add anything.

# %%
sizes, likeness = stack(ORDERS["pre-norm"], init_weights)
print(f"released start, 40 blocks: size {sizes[-1]:.2f}, likeness to the start {likeness[-1]:.2f}")

# %% [markdown]
# ## Drop path
#
# If a block is a small correction, the network should survive without it now and then. **Drop path**
# (stochastic depth, Huang et al., 2016, [arXiv:1603.09382](https://arxiv.org/abs/1603.09382)) trains
# it so: for each picture of a batch, each branch is left out with a small probability $p$. A branch
# that stays is divided by $1 - p$.

# %%
torch.manual_seed(0)
p, branch = 0.25, torch.ones(8, 1, 1, 1)  # what a branch adds, for 8 pictures
stays = torch.rand(8, 1, 1, 1) < 1 - p    # one number per picture
print((branch * stays / (1 - p)).flatten())

# %% [markdown]
# Zero, or a third more. Why the third? So that the *average* stays what it was, and nothing has to
# be changed when the network is used and nothing is dropped:

# %%
block = sl.TransformerBlock(32, heads=1, stride=8, expansion=4, drop_path=p).train()
print(f"mean over 100,000 pictures: {block.drop_path(torch.ones(100_000, 1, 1, 1)).mean():.2f}")
print(f"in evaluation: {block.eval().drop_path(torch.ones(1, 1, 1, 1)).item():.2f}")

# %% [markdown]
# The rate is 0 in the first block of the encoder and rises on a straight line to 0.1 in the last
# (released code; the paper doesn't mention it). Early blocks are what all others build on, so they
# are spared. To see more of it, let the line rise to 0.5:

# %%
torch.manual_seed(1)
model = sl.create_model("segformer_b0", num_classes=11, drop_path=0.5).train()
drops = [block.drop_path for stage in model.encoder.stages for block in stage.blocks]
ones = torch.ones(20, 1, 1, 1)
kept = torch.stack([drop(ones).flatten() for drop in drops for _ in range(2)], dim=1)
print("rates", " ".join(f"{drop.rate:.2f}" for drop in drops))
print(f"kept {(kept > 0).float().mean():.0%} of {kept.numel()} branches")

# %%
fig, ax = plt.subplots(figsize=(6, 3))
drawn = ax.imshow(kept, cmap="cividis", aspect="auto")
ax.set(xlabel="branch: attention and Mix-FFN of 8 blocks", ylabel="picture of the batch",
       xticks=np.arange(0.5, 16, 2), xticklabels=[f"block {i}" for i in range(1, 9)], yticks=[])
for i in (3.5, 7.5, 11.5):
    ax.axvline(i, color="white", lw=2)
fig.colorbar(drawn, label="factor on the branch")
show.figure(fig, alt=(
    "A table of 20 pictures by 16 branches, coloured by the factor on the branch. The two "
    "branches of block 1 are kept for every picture with factor 1; towards block 8 more and more "
    "cells are dark, dropped, and the rest are brighter, up to factor 2."))

# %% [markdown]
# Each row is one picture on its way through the encoder, from left to right; white lines part the
# stages. Dark: this picture skips this branch. The brighter a cell, the more it is scaled up. Hardly
# two rows are alike: nearly every picture trains another, shallower network out of the same weights.
#
# Drop path is not dropout. Dropout zeroes single numbers, drop path a whole branch for a whole
# picture. The released encoder uses no dropout.

# %% [markdown]
# ## From blocks to a stage
#
# In which order do the parts of a stage come? The paper's Figure 2 and the released code give two
# answers.

# %%
WIDTHS = {"embedding": 15, "merging": 15, "attention": 16, "Mix-FFN": 14, "norm": 9}
ROWS = {"Figure 2 of the paper": [["embedding"], *[["attention", "Mix-FFN", "merging"]] * 2],
        "the code": [["embedding", "attention", "Mix-FFN", "norm"]] * 2}


def draw_row(ax, y, stages, x=2):
    """Boxes from left to right; several that belong together get a dashed frame."""
    for parts in stages:
        start = x
        for name in parts:
            colour = show.COLOURS["orange"] if name in ("embedding", "merging") else "white"
            ax.add_patch(plt.Rectangle((x, y), WIDTHS[name], 8, fc=colour, ec="#777777"))
            ax.text(x + WIDTHS[name] / 2, y + 4, name, ha="center", va="center", fontsize=7.5)
            x += WIDTHS[name] + 1
        if len(parts) > 1:
            corner, width = (start - 1.5, y - 1.5), x - start + 2
            ax.add_patch(plt.Rectangle(corner, width, 11, fc="none", ec="#AAAAAA", ls="--"))
        x += 4
    ax.text(x, y + 3, "…", fontsize=12)

# %%
fig, ax = plt.subplots(figsize=(7, 2))
ax.set(xlim=(0, 134), ylim=(-4, 38)), ax.axis("off")
for y, (title, stages) in zip((20, -2), ROWS.items()):
    draw_row(ax, y, stages)
    ax.text(0.5, y + 12, title)
show.figure(fig, alt=(
    "Two rows of boxes for the first two stages. Above, Figure 2 of the paper: one embedding, "
    "then each stage is attention, Mix-FFN, merging. Below, the code: each stage is embedding, "
    "attention, Mix-FFN, norm. Embedding and merging, which shrink the map, are orange."))

# %% [markdown]
# A dashed frame is a stage, orange is what makes the map smaller. In both rows there is one orange
# box between any two stages; but where does a stage *end*? Read literally, the upper row ends stage
# 1 after its merging:

# %%
literal = [4 * 2 ** (stage + 1) for stage in range(4)]  # by 4, then a merging by 2 in each stage
by_code = [4 * 2**stage for stage in range(4)]
in_the_text = [2 ** (stage + 1) for stage in range(1, 5)]  # section 3.1: F_i is H / 2^(i+1) high
rows = {"figure, literally": literal, "code": by_code, "section 3.1": in_the_text}
for name, shares in rows.items():
    print(f"{name:<18} F1 to F4 at", ", ".join(f"1/{n}" for n in shares))

# %% [markdown]
# The text and the code agree: 1/4 to 1/32. The figure is to be read with each merging at the
# *beginning* of the next stage, where it is the same thing as the first embedding: a strided
# convolution and a norm ([chapter 03](03_patch_embedding.ipynb)). Then a stage is: **embed, $L$
# blocks, norm.** Nothing shrinks twice.

# %% [markdown]
# ## The classes
#
# A stage in the order of the code. It starts from a map with channels first, as pictures come, and
# gives one back, so the next stage can start from it. (Drop path is left out; its rates are
# exercise 2.)

# %%
class MyStage(nn.Module):
    """One resolution: embed, L blocks, norm. (B, C_in, H, W) -> (B, C, H', W')."""

    def __init__(self, c_in, dim, depth, heads, stride, expansion, kernel, step):
        super().__init__()
        self.patch_embed = sl.OverlapPatchEmbed(c_in, dim, kernel, step)
        self.blocks = nn.ModuleList(
            sl.TransformerBlock(dim, heads, stride, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x)               # (B, H', W', C)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).permute(0, 3, 1, 2)  # (B, C, H', W')

# %% [markdown]
# The encoder is four of them in a row, and it keeps what each gives.

# %%
class Encoder(nn.Module):
    """The Mix Transformer: picture (B, 3, H, W) -> [F1, F2, F3, F4] at 1/4, 1/8, 1/16, 1/32."""

    def __init__(self, dims, depths, expansions=(4, 4, 4, 4)):
        super().__init__()
        before = (3, *dims[:3])
        heads, strides, kernels, steps = (1, 2, 5, 8), (8, 4, 2, 1), (7, 3, 3, 3), (4, 2, 2, 2)
        settings = zip(before, dims, depths, heads, strides, expansions, kernels, steps)
        self.stages = nn.ModuleList(MyStage(*setting) for setting in settings)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

# %% [markdown]
# ## Shapes and parameters

# %%
b0 = Encoder(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)).eval()
with torch.no_grad():
    features = b0(torch.zeros(1, 3, 512, 512))
for i, feature in enumerate(features, start=1):
    print(f"F{i}", tuple(feature.shape))

# %% [markdown]
# Each step halves the sides and lengthens the tokens: fewer places, more to say about each. This is
# the *pyramid* that convolutional networks have and ViT has not.

# %%
print(f"ours {parameters(b0):,}")
assert parameters(b0) == 3_319_392  # the released MiT-B0

# %% [markdown]
# 3,319,392, the count of the released MiT-B0. (The paper's Table 1a prints 3.4 M for the encoder,
# where 3.3 would be right, and 0.4 M for the decoder. Their sum is right: 3.8 for 3.75 M with 150
# classes.)
#
# ### Odd sizes
#
# Sizes round up at each embedding, so every picture goes through:

# %%
for size in [(65, 97), (250, 333), (32, 32)]:
    with torch.no_grad():
        maps = [tuple(f.shape[-2:]) for f in b0(torch.zeros(1, 3, *size))]
    print(f"{size[0]:3d} x {size[1]:3d} px:", ", ".join(f"{h} x {w}" for h, w in maps))

# %% [markdown]
# How small may a picture be? At 32 pixels the last map is a single token. Below that, it depends on a
# part that does *not* round up: the reducing convolution of attention in stage 1 wants 8 × 8 tokens.

# %%
for side in (29, 28):
    try:
        b0(torch.zeros(1, 3, side, side))
        print(side, "px: goes through")
    except RuntimeError:
        print(side, "px: RuntimeError, the kernel is larger than the map")

# %% [markdown]
# 29 pixels give 8 tokens (29 / 4, rounded up), 28 give 7. The package draws the line at 32 and says
# so in words:

# %%
encoder = sl.create_model("segformer_b0", num_classes=150).encoder.eval()
try:
    encoder(torch.zeros(1, 3, 31, 64))
except ValueError as error:
    print(error)

# %% [markdown]
# ## The family
#
# All six, from one class. The table counts parameters and multiply-accumulates (MACs) of one picture
# of 512 × 512 pixels (for B5 of 640 × 640, as the paper does) with 150 classes, and sets them beside what
# the paper's Table 1a prints. The
# decoder is the one of the paper's equations; the package's computes the same with less
# ([chapter 07](07_mlp_decoder.ipynb#the-folded-decoder)).

# %%
class AsPrinted(sl.models.MLPDecoder):
    """The decoder with every step of the paper's equation 4."""

    forward = sl.models.MLPDecoder.forward_unfolded


def network(variant, classes=150, decoder=AsPrinted):
    """A SegFormer without numbers in it: enough to count, and free."""
    with torch.device("meta"):
        return sl.create_model(f"segformer_{variant}", classes, decoder=decoder)


# Table 1a: parameters of encoder and decoder (M), "FLOPs" on ADE20K (G; B5: at 640 px)
PRINTED = {"b0": (3.4, 0.4, 8.4), "b1": (13.1, 0.6, 15.9), "b2": (24.2, 3.3, 62.4),
           "b3": (44.0, 3.3, 79.0), "b4": (60.8, 3.3, 95.7), "b5": (81.4, 3.3, 183.3)}

# %%
print(f"{'':4}{'encoder':>12}{'decoder':>11}{'paper, M':>12}{'GMAC':>9}{'paper, G':>10}")
counted = {}
for variant, (enc, dec, flops) in PRINTED.items():
    model = network(variant)
    counted[variant] = macs(model, 640 if variant == "b5" else 512) / 1e9
    print(f"{variant:<4}{parameters(model.encoder):>12,}{parameters(model.decoder):>11,}"
          f"{enc:>7} + {dec}{counted[variant]:>9.1f}{flops:>10}")
assert all(abs(counted[v] / PRINTED[v][2] - 1) < 0.003 for v in PRINTED)

# %% [markdown]
# The parameters agree to a tenth of a million. And the last two columns agree to a third of a
# percent: **what the paper calls FLOPs are multiply-accumulates.** Counted as two operations each,
# the numbers would be twice as large. (None of these counts is a time: [chapter 14](14_speed.ipynb).)
#
# ### Why is my count another one?
#
# Four honest people can get four numbers for the same B0:

# %%
tokens, keys = [(512 // n) ** 2 for n in (4, 8, 16, 32)], 256
in_a_block = sum(2 * n * keys * c for n, c in zip(tokens, VARIANTS["b0"].dims))  # Q Kᵀ and A V
products = 2 * in_a_block / 1e9  # two blocks in each stage
folded = macs(network("b0", decoder=sl.models.MLPDecoder), 512) / 1e9
for what, value in [("multiply-accumulates, all of them", counted["b0"]),
                    ("twice that: additions and multiplications", 2 * counted["b0"]),
                    ("a counter of layers, which misses Q Kᵀ and A V", counted["b0"] - products),
                    ("all of them, with the package's decoder", folded)]:
    print(f"{value:5.2f} G  {what}")

# %% [markdown]
# And a fifth, for street scenes of 1024 × 2048 pixels. Cityscapes has 19 classes. Which of the
# paper's numbers know that?

# %%
for variant, in_1a, in_2 in [("b0", 125.5, 125.5), ("b4", 1240.6, 1240.6), ("b5", 1460.4, 1447.6)]:
    counts = [macs(network(variant, classes), (1024, 2048)) / 1e9 for classes in (19, 150)]
    print(f"{variant}: {counts[0]:.1f} G with 19 classes, {counts[1]:.1f} G with 150"
          f" | printed: Table 1a {in_1a}, Table 2 {in_2}")

# %% [markdown]
# Table 1a was counted with the 150 classes of ADE20K; so were B0 and B4 in Table 2. B5 there is the
# count with 19 classes. A difference of one to four percent, and nobody's ranking changes; but
# whoever compares to the last digit should know.

# %% [markdown]
# ### Heads
#
# A token of length $C_i$ is shared among $N_i$ heads. The numbers 1, 2, 5, 8 look odd until one
# divides:

# %%
for variant in ("b0", "b1"):
    dims = VARIANTS[variant].dims
    print(variant, " ".join(f"{c}/{n} = {c // n}" for c, n in zip(dims, (1, 2, 5, 8))))

# %% [markdown]
# Every head is 32 wide in B0 and 64 in all others (B2 to B5 have the widths of B1). The longer the
# tokens, the more heads; each head stays the same.

# %% [markdown]
# ### Two errors in Table 6
#
# The paper's Table 6 lists the settings of all variants. Two of them are not those of the code. It
# prints $L_2 = 3$ for B2 and B3, and $E = 8, 8, 4, 4$ for B0 to B4. Which are right? Count:

# %%
def count(variant, expansions=(4, 4, 4, 4), depths=None):
    dims, released, _ = VARIANTS[variant]
    with torch.device("meta"):
        return parameters(Encoder(dims, depths or released, expansions))


print("E = 8, 8, 4, 4 in B0:", f"{count('b0', (8, 8, 4, 4)):,}", "| E = 4:", f"{count('b0'):,}")
for variant, stage_3, printed in [("b2", 6, 24.2), ("b3", 18, 44.0)]:
    three, four = (count(variant, depths=(3, second, stage_3, 3)) / 1e6 for second in (3, 4))
    print(f"{variant}: L2 = 3 gives {three:.1f} M, L2 = 4 {four:.1f} M; Table 1a: {printed} M")

# %% [markdown]
# The paper's own Table 1a decides for $L_2 = 4$ (B3's 44.07 M is printed as 44.0). And $E$? With $E
# = 4$ the counts are those of the released weights. But then there is Table 7, the encoders on
# ImageNet, with a head for 1000 classes:

# %%
TABLE_7 = {"b0": 3.7, "b1": 14.0, "b2": 25.4, "b3": 45.2, "b4": 62.6, "b5": 82.0}  # M parameters
print(f"{'':4}{'E = 4, 4, 4, 4':>16}{'E = 8, 8, 4, 4':>16}{'Table 7':>10}")
for variant, printed in TABLE_7.items():
    head = 1000 * (VARIANTS[variant].dims[-1] + 1)
    as_is, wide = ((count(variant, E) + head) / 1e6 for E in ((4, 4, 4, 4), (8, 8, 4, 4)))
    print(f"{variant:<4}{as_is:>16.2f}{wide:>16.2f}{printed:>10}")
    assert abs((as_is if variant == "b5" else wide) - printed) < 0.05

# %% [markdown]
# Table 7 is the column $E = 8, 8, 4, 4$ for B0 to B4 and $E = 4$ for B5, exactly as Table 6 prints.
# So the two tables agree with each other, and not with the released weights. The same six counts
# stand in the model list of PVTv2 ([arXiv:2106.13797](https://arxiv.org/abs/2106.13797)), a sister
# network with the same block, which does use $E = 8, 8, 4, 4$ (and 4 in its B5). The often quoted
# "MiT-B0: 3.7 M parameters, 70.5 % on ImageNet" is therefore no description of the 3.32 M encoder
# that everybody downloads.

# %% [markdown]
# ### Where the parameters sit, and where the work is done
#
# **Predict, then run.** Stage 4 holds 59 % of the parameters of B0's encoder. What is its share of
# the multiply-accumulates at 512 pixels?
#
# - A. About 60 %: more weights, more work.
# - B. About 18 %.
# - C. About 1 %: it has only 1/64 of stage 1's tokens.

# %%
def shares(variant, size=512):
    """Of each stage: its share of the encoder's parameters, and of its MACs."""
    model = network(variant)
    held = [parameters(stage) for stage in model.encoder.stages]
    done = [macs(model, size, part=f"encoder.stages.{i}") for i in range(4)]
    return [[n / sum(row) for n in row] for row in (held, done)]


both = {variant: shares(variant) for variant in ("b0", "b3")}
for variant, (held, done) in both.items():
    print(variant, "parameters", " ".join(f"{s:4.0%}" for s in held),
          "| MACs", " ".join(f"{s:4.0%}" for s in done))

# %%
fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.3), sharey=True)
for ax, (variant, rows) in zip(axes, both.items()):
    for i, (row, label) in enumerate(zip(rows, ["parameters", "MACs at 512 px"])):
        ax.bar(np.arange(1, 5) + 0.4 * i - 0.2, row, width=0.38, label=label,
               hatch=("", "//")[i], edgecolor="white")
    ax.set(title=f"MiT-{variant.upper()}", xlabel="stage", xticks=range(1, 5))
axes[0].set_ylabel("share of the encoder")
axes[0].legend()
show.figure(fig, alt=(
    "Bars per stage for B0 and B3. In B0 the parameters rise steeply from 5 percent in stage 1 to "
    "59 in stage 4, while the MACs are spread evenly, from 32 percent in stage 1 to 18 in stage "
    "4. In B3 about two thirds of both sit in stage 3."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Plain bars: parameters. Hatched: work. In B0 the weights sit in the late stages and the
# work is spread over all four; stage 1 has the largest share, a third.
#
# *Why.* Parameters grow with the *square of the token's length* and know nothing of the picture.
# The work is parameters times places: stage 4 has 64 times fewer tokens than stage 1, each 8 times
# longer. $8^2 = 64$: the two nearly cancel. In B3 the picture changes for another reason: 18 of its
# 28 blocks are in stage 3, and so is most of everything.
#
# </details>

# %% [markdown]
# ## The first weights
#
# Training starts from random numbers. The released code draws them by two rules:
#
# - linear maps: normal with standard deviation 0.02, cut off far out;
# - convolutions: normal with $\sqrt{2 / \text{fan-out}}$, where fan-out counts the outputs that one
#   input reaches: $K^2 \cdot C_{out} / \text{groups}$.
#
# A well-known library, transformers, uses 0.02 for everything in its SegFormer, convolutions as
# well. Does that matter?

# %%
def normal_everywhere(module):
    """transformers' rule: 0.02 for every linear map and every convolution."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


stage = sl.create_model("segformer_b0", num_classes=150).encoder.stages[0]
block = stage.blocks[0]
convs = {"patch embedding": stage.patch_embed.proj, "reduction": block.attention.reduce,
         "depth-wise": block.ffn.dwconv}
for name, conv in convs.items():
    fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
    rule, measured = math.sqrt(2 / fan_out), conv.weight.std()
    print(f"{name:<16} fan-out {fan_out:>5}: rule {rule:.3f}, measured {measured:.2f}")

# %% [markdown]
# For two of the three convolutions the rule stays within twice 0.02. The depth-wise one stands
# out: one input channel reaches 9 outputs and no more, so the rule says $\sqrt{2/9} = 0.471$. That
# is 24 times 0.02.
#
# **Predict, then run.** How much weaker is what a fresh Mix-FFN adds, if its depth-wise weights are
# 24 times smaller?
#
# - A. Not at all: there is a norm in front, and GELU behind.
# - B. About 24 times.
# - C. About 576 times, 24 squared: GELU of something small is smaller still.

# %%
def trace(init, seed=0):
    """Size after the depth-wise convolution, and of what a fresh Mix-FFN of stage 1 adds."""
    torch.manual_seed(seed)
    ffn, tokens = sl.MixFFN(32, expansion=4).apply(init), torch.randn(1, 64, 64, 32)
    with torch.no_grad():
        inside = ffn.dwconv(ffn.fc1(tokens).permute(0, 3, 1, 2))
        return inside.std().item(), ffn(tokens).std().item()


rules = {"released": init_weights, "0.02 everywhere": normal_everywhere}
traced = {name: np.mean([trace(init, seed) for seed in range(8)], axis=0)
          for name, init in rules.items()}
for name, (inside, added) in traced.items():
    print(f"{name:<16} after the convolution {inside:.4f} | Mix-FFN adds {added:.5f}")
weaker = traced["released"] / traced["0.02 everywhere"]
print(f"weaker by a factor of {weaker[0]:.0f} and {weaker[1]:.0f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** From tokens of size 1, the released start adds 0.018, the other 0.0008.
#
# *Why.* The norm stands *before* the first linear map and evens out only what comes in. Behind the
# convolution there is none until the sum. And close to zero GELU is nearly the straight line $x /
# 2$: it hands the factor on as it is.
#
# So a network with 0.02 everywhere begins with its Mix-FFN all but switched off, in every block.
#
# </details>

# %%
# What the answer says, checked.
assert (abs(weaker - 24) < 2).all()

# %% [markdown]
# Does the start matter once training is under way? Train both on the same pictures and watch what
# the first Mix-FFN adds.

# %% tags=["nbval-ignore-output"]
train_set = sl.data.open_dataset("sample-coco", "train")
cut = sl.data.augmentation("none", 96)
chosen = range(32 if session.quick else 160)
pairs = [cut(*sl.data.resize_short_side(*train_set[i], 96)) for i in chosen]
pictures = torch.stack([picture.as_subclass(torch.Tensor) for picture, _ in pairs])
labels = torch.stack([label.as_subclass(torch.Tensor) for _, label in pairs])
print("pictures", tuple(pictures.shape), "labels", tuple(labels.shape))

# %%
def first_mix_ffn(model):
    """Size of what the first Mix-FFN adds to the tokens of four pictures."""
    stage = model.eval().encoder.stages[0]
    block = stage.blocks[0]
    with torch.no_grad():
        tokens = stage.patch_embed(sl.preprocess(pictures[:4]))
        tokens = tokens + block.attention(block.norm1(tokens))
        return block.ffn(block.norm2(tokens)).std().item()


def train_some(model, steps, seed=0):
    """A plain training loop; returns the losses and the size of what Mix-FFN adds, step by step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = sl.training.make_optimizer(model, lr=1e-3)
    losses, added = [], []
    for step in range(steps):
        added.append(first_mix_ffn(model))
        chosen = torch.randint(len(pictures), (8,), generator=generator)
        logits = model.train()(sl.preprocess(pictures[chosen]))
        loss = sl.training.segmentation_loss(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (step + 1) / 10)  # ten steps of warm-up
        optimizer.step()
        losses.append(loss.item())
    return losses, added

# %% tags=["nbval-ignore-output"]
STEPS = 6 if session.quick else 60  # the course's own tests train less
runs, models = {}, {}
for name, init in rules.items():
    torch.manual_seed(0)
    models[name] = sl.create_model("segformer_b0", num_classes=11)
    models[name].encoder.apply(init)
    runs[name] = train_some(models[name], STEPS)
start, end = (runs["released"][1][i] / runs["0.02 everywhere"][1][i] for i in (0, -1))
print(f"Mix-FFN with 0.02: {start:.0f} times weaker at first, {end:.1f} times after {STEPS} steps")
late = [np.mean(losses[STEPS // 2:]) for losses, _ in runs.values()]
print(f"mean loss of the second half: released {late[0]:.2f}, 0.02 everywhere {late[1]:.2f}")
assert start > 15 and end > 1

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4))
for (name, (losses, added)), style in zip(runs.items(), ["-", "--"]):
    window = max(1, STEPS // 12)
    axes[0].plot(np.convolve(losses, np.ones(window) / window, "valid"), style, label=name)
    axes[1].plot(added, style, label=name)
axes[0].set(xlabel="step", ylabel="loss, mean of a few steps")
axes[1].set(xlabel="step", ylabel="what Mix-FFN adds", yscale="log")
axes[0].legend()
show.figure(fig, alt=(
    "Left, the loss of both starts over the first steps: the two curves lie close together and "
    "both fall, the one with 0.02 everywhere a little above in the second half. Right, on a "
    "logarithmic axis, what the first Mix-FFN adds: the released start is far above and rises "
    "slowly; the other starts some 24 times lower and catches up, but not all the way."))

# %% [markdown]
# Right: with 0.02 everywhere the Mix-FFN wakes up, and is still several times weaker at the end.
# Left: the loss tells the two apart only a little. Decoder, embeddings and attention start nearly
# alike in both networks and can learn from the first step; the depth-wise convolution has to wait
# for its turn.
#
# What follows from it, and what doesn't: a start like this costs something at the beginning of a
# training *from scratch*. Sixty steps say nothing about the end of a long one. And whoever loads
# trained weights overwrites either start.

# %% [markdown]
# ## The pyramid looked at
#
# What is in the four maps? A token of $F_4$ has 256 numbers, a screen shows three. *Principal
# component analysis* (PCA) finds the three directions along which the tokens of one map differ
# most; paint them red, green and blue. Tokens of like colour are alike for the network.

# %%
def to_colours(feature):
    """(C, H, W) -> (H, W, 3): the tokens' three strongest directions as red, green, blue."""
    tokens = feature.flatten(1).T  # (N, C)
    tokens = tokens - tokens.mean(0)
    directions = torch.linalg.svd(tokens, full_matrices=False).Vh[:3]
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    colours = tokens @ (directions * strongest.sign()).T  # a direction has no sign: choose one
    low, high = colours.quantile(0.02, 0), colours.quantile(0.98, 0)
    colours = ((colours - low) / (high - low)).clamp(0, 1)
    return colours.reshape(*feature.shape[1:], 3)


def pyramid(model, image):
    with torch.no_grad():
        return [to_colours(f[0]) for f in model.eval().encoder(sl.preprocess(image))]

# %% [markdown]
# Two pictures: the photograph that comes with matplotlib, and a scene from the sample that was not
# used for training.

# %% tags=["nbval-ignore-output"]
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    square = file.convert("RGB").crop((0, 20, 512, 532)).resize((256, 256))
photo = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
val_set = sl.data.open_dataset("sample-coco", "val")
scene = sl.data.augmentation("none", 192)(*sl.data.resize_short_side(*val_set[1], 192))[0]
images = {"photograph": photo, "scene": scene.as_subclass(torch.Tensor)[None]}
print({name: tuple(image.shape) for name, image in images.items()})

# %% [markdown]
# **Predict, then run.** What do the four maps of a network with random weights look like?
#
# - A. Noise: it hasn't learned anything.
# - B. The picture itself, coarser from stage to stage, in odd colours.
# - C. One colour: random weights average everything away.

# %%
torch.manual_seed(0)
fresh = sl.create_model("segformer_b0", num_classes=11)
rows = [[image[0], *pyramid(fresh, image)] for image in images.values()]
fig = show.grid(sum(rows, []), ["picture", "F1", "F2", "F3", "F4"] * 2, columns=5, cell=1.35)
show.figure(fig, alt=(
    "Two rows: the photograph and a sample scene, each with its four feature maps of a random network in "
    "false colours, from 64 by 64 and 48 by 48 squares for F1 to 8 by 8 and 6 by 6 for F4. The text below "
    "says what is to be seen in them."))

# %% [markdown]
# From left to right: the picture, then stages 1 to 4, each token one square of colour.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why.* A random convolution is still a filter, and what is different before it is different
# after it. And the blocks of a fresh network add little, as their sizes have shown: what you see is
# mostly the work of four random patch embeddings.
#
# </details>
#
# Now train: the network of the last section with the released start goes on for some more steps.

# %% tags=["nbval-ignore-output"]
MORE = 4 if session.quick else 200
trained = copy.deepcopy(models["released"])  # so the cell can run again
losses, _ = train_some(trained, MORE, seed=1)
print(f"after {STEPS + MORE} steps in all: loss {np.mean(losses[-20:]):.2f}")

# %% tags=["nbval-ignore-output"]
rows = [[image[0], *pyramid(trained, image)] for image in images.values()]
fig = show.grid(sum(rows, []), ["picture", "F1", "F2", "F3", "F4"] * 2, columns=5, cell=1.35)
show.figure(fig, alt=(
    "The same two pictures with the four feature maps of the briefly trained network, in other "
    "colours. F1 and F2 are still copies of the picture; F3 and F4 are mosaics, that of the "
    "photograph more mixed than before; no map shows the objects clearly, each as an area of one "
    "colour."))

# %% [markdown]
# Other colours, and of the photograph less is left from $F_3$ on. But where are the objects? They
# stand out no more than before: to the eye, training has done little. Ask with a number: **how much
# of what the tokens of a map differ in is due to the class of their place?** Zero would mean that
# tokens on objects look like those on the background, one that tokens of a class are all the same.
#
# **Predict, then run.** How large is that share in $F_4$ after this short training?
#
# - A. Under 15 %.
# - B. About half.
# - C. Over 90 %: the network gives good labels by now.

# %%
@torch.no_grad()
def due_to_class(model, pictures, labels):
    """Of each map: the share of the variance of its tokens that lies between classes."""
    found = []
    for f in model.eval().encoder(sl.preprocess(pictures)):
        small = F.interpolate(labels[:, None].float(), f.shape[-2:], mode="nearest-exact")
        tokens, classes = f.permute(0, 2, 3, 1).flatten(0, 2), small.flatten()
        tokens, classes = tokens[classes != 255], classes[classes != 255]
        between, centre = 0, tokens.mean(0)
        for c in classes.unique():
            of_class = tokens[classes == c]
            between += len(of_class) * (of_class.mean(0) - centre).square().sum()
        found.append((between / (tokens - centre).square().sum()).item())
    return found

# %% tags=["nbval-ignore-output"]
unseen = [cut(*sl.data.resize_short_side(*val_set[i], 96)) for i in range(48)]
columns = [torch.stack([item.as_subclass(torch.Tensor) for item in c]) for c in zip(*unseen)]
before, after = due_to_class(fresh, *columns), due_to_class(trained, *columns)
print("random weights ", " ".join(f"F{i} {share:.1%}" for i, share in enumerate(before, 1)))
print("some training  ", " ".join(f"F{i} {share:.1%}" for i, share in enumerate(after, 1)))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** Training raises the share, most of all in the last map; and still nearly all that the tokens
# differ in is something else: brightness, colour, the place in the frame.
#
# </details>

# %%
# What the answer says, checked.
assert max(after) < 0.15 and (session.quick or after[3] > before[3])

# %% [markdown]
# *Why don't the pictures show what is learned?* PCA paints the *strongest* directions. What the
# network has learned sits in weaker ones, and the decoder finds those because it is trained to. A
# picture of the strongest directions is not a picture of what a network knows: keep that in mind
# for every colourful feature map that you meet.

# %% [markdown]
# ### Single channels
#
# PCA is a summary. The channels themselves, four from each stage of the trained network:

# %% tags=["nbval-ignore-output"]
def channel(stage, number, name="scene"):
    """One channel of one stage: (H, W)."""
    with torch.no_grad():
        return trained.eval().encoder(sl.preprocess(images[name]))[stage - 1][0, number]


chosen = [(stage, number) for stage in (1, 2, 3, 4) for number in (0, 8, 16, 24)]
fig = show.grid([channel(*pair) for pair in chosen], [f"F{s}, channel {n}" for s, n in chosen],
                columns=4, cell=1.25, cmap="cividis")
show.figure(fig, alt=(
    "Four channels of each map for the sample scene, one row per stage. In F1 the channels show "
    "edges and surfaces in fine detail; F2 is a coarser version; F3 and F4 are mosaics in which "
    "single squares light up."))

# %% [markdown]
# One row per stage. $F_1$ answers to edges and surfaces; from $F_3$ on the patterns have no names
# any more. If the notebook is running, look at others:

# %% tags=["nbval-ignore-output"]
from ipywidgets import Dropdown, IntSlider, interact


def try_channel(stage, number, name):
    """One channel, large."""
    title = f"{name}: stage {stage}, channel {number}"
    fig = show.grid([channel(stage, number, name)], [title], cell=3.2, cmap="cividis")
    show.figure(fig, alt=f"A map of light and dark squares, {title}.")


_ = interact(try_channel, stage=IntSlider(2, 1, 4, continuous_update=False),
             number=IntSlider(0, 0, 31, continuous_update=False),
             name=Dropdown(options=list(images)))

# %% [markdown]
# ## What matters: width, and all four stages
#
# Two questions about the encoder can only be answered by training. Does a wider one help (B1 has
# twice the channels of B0)? And does the decoder need all four maps, or is the last one enough? For
# the second, a decoder that reads $F_4$ alone:

# %%
class LastStage(nn.Module):
    """(F1, F2, F3, F4) -> class logits at the size of F1, from F4 alone."""

    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        self.linear = nn.Conv2d(in_channels[-1], dim, kernel_size=1)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)

    def forward(self, features):
        y = sl.models.upsample(self.linear(features[-1]), features[0].shape[-2:])
        return self.classify(self.dropout(F.relu(self.norm(y))))


model = network("b2", decoder=LastStage)
print(f"B2, F4 only: {parameters(model) / 1e6:.1f} M, {macs(model, 512) / 1e9:.1f} GMAC")

# %% [markdown]
# The paper's Table 1d prints 24.7 M and 22.3 G for this network: ours is the same, as far as one
# can tell. On ADE20K, with B2, it prints 43.1 mIoU for $F_4$ alone and 45.4 for all four. In Table
# 1a B1 is ahead of B0 by 42.2 to 37.4.
#
# And small, from scratch, on our sample? Three networks, six seeds each, otherwise alike; the
# script `benchmarks/encoder_ablation.py` has trained them with one call of `sl.compare`. Here is
# what it left.

# %% tags=["nbval-ignore-output"]
path = sl.data.course_folder() / "docs" / "results" / "encoder-ablation.json"
if path.exists():
    stored = json.loads(path.read_text(encoding="utf-8"))
    table = sl.training.Comparison(stored["results"])
    keys = ("data", "size", "steps", "batch_size", "augment")
    print(stored["command"], "|", ", ".join(f"{key} {stored['settings'][key]}" for key in keys))
    print(table)
else:
    print("Not there yet. Train it: python benchmarks/encoder_ablation.py")

# %% tags=["nbval-ignore-output"]
def verdict(table, name, other):
    """Says whether a difference is larger than what another seed would do."""
    (a, sd_a), (b, sd_b) = table.mean_sd()[name], table.mean_sd()[other]
    noise = math.hypot(sd_a, sd_b)  # of a difference of two runs
    says = "more than" if abs(a - b) > 2 * noise else "not clearly more than"
    print(f"{name} against {other}: {a - b:+.3f} mIoU, {says} another seed does (sd {noise:.3f})")


if path.exists():
    means = ", ".join(f"{name} {mean:.2f}" for name, (mean, _) in table.mean_sd().items())
    alt = f"Bars of the mean validation mIoU, a dot for each seed: {means}."
    show.figure(table.figure(), alt)
    baseline, wider, last = table.results
    verdict(table, wider, baseline)
    verdict(table, baseline, last)
    assert all(mean > 0.08 for mean, _ in table.mean_sd().values())  # "background" everywhere gives 0.071

# %% [markdown]
# Each bar is a mean over seeds, each dot one seed. Read them with two things in mind. The pictures
# are tiny: at 96 pixels $F_4$ has 3 × 3 tokens, so alone it is worse off than at 512. The answer to the
# second question points where the paper's does: all four maps are ahead of $F_4$ alone, by more than a
# change of seed would explain. The first question has no answer yet: B1's lead is smaller than that.
# Nothing here was pretrained: a larger network needs more than some hundred steps to show
# what it can do.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. The block (15 minutes)
#
# Write the forward pass of a block, with both norms, both residuals and drop path on both branches.
# The parts are given; `self.drop_path` is a module, called with what a branch adds.
#
# <details><summary>Hint</summary>
#
# Two lines, one per branch: what comes in, plus `self.drop_path(…)` of what attention (or Mix-FFN)
# makes of the normalised tokens.
#
# </details>
# <details><summary>Help: right in evaluation, wrong in training</summary>
#
# Only the branch may be dropped. `drop_path(x + ...)` drops the tokens themselves, for good.
#
# </details>

# %% tags=["exercise"]
class MyBlock(nn.Module):
    """Tokens (B, H, W, C) -> same: attention, then Mix-FFN, each normalised before and added."""

    def __init__(self, dim: int, heads: int, stride: int, expansion: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = sl.EfficientSelfAttention(dim, heads, stride)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = sl.MixFFN(dim, expansion)
        self.drop_path = sl.models.blocks.DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SOLUTION
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))
        # END SOLUTION


checks.transformer_block(MyBlock)

# %% [markdown] tags=["exercise"]
# ### 2. The rates of drop path (10 minutes)
#
# Give every block its rate: on one straight line through *all* blocks of the encoder, 0 for the
# very first, `top` for the very last, cut into one list per stage.
#
# <details><summary>Hint</summary>
#
# `torch.linspace` makes the line and `split` cuts it, if told the sizes of the pieces. Or count the
# blocks as you go: block number $n$ of $n_{all}$ gets $top \cdot n / (n_{all} - 1)$.
#
# </details>
# <details><summary>Help: each stage begins at 0 again</summary>
#
# The line runs through the whole network. Count the blocks of the stages before.
#
# </details>

# %% tags=["exercise"]
def my_drop_rates(depths: tuple[int, ...], top: float) -> list[list[float]]:
    """Rate of every block, one list per stage: from 0 (first block) to `top` (last block)."""
    # SOLUTION
    line = torch.linspace(0, top, sum(depths))
    return [piece.tolist() for piece in line.split(list(depths))]
    # END SOLUTION


checks.drop_rates(my_drop_rates)

# %% [markdown] tags=["exercise"]
# ### 3. Count without building (25 minutes)
#
# A formula for the parameters of any Mix Transformer. Strides 8, 4, 2, 1, kernels 7, 3, 3, 3, as
# always. Every linear map and every convolution has a bias; a norm has $2C$ parameters.
#
# <details><summary>Hint</summary>
#
# Write down one stage: embedding (convolution, norm); $L$ times the block (two norms; q, kv and proj;
# the reducing convolution and its norm where the stride is over 1; fc1, the depth-wise convolution,
# fc2); the norm at the end. Print `sl.TransformerBlock(32, 1, 8, 4)` to see all of them.
#
# </details>
# <details><summary>Help: how many weights has a depth-wise convolution?</summary>
#
# One 3 × 3 kernel for each channel: $9 E C$ weights, and $E C$ biases.
#
# </details>

# %% tags=["exercise"]
def my_encoder_count(dims: list[int], depths: list[int], expansions: list[int]) -> int:
    """Parameters of a Mix Transformer with the given C, L and E of its four stages."""
    # SOLUTION
    total, before = 0, 3
    for c, depth, e, s, k in zip(dims, depths, expansions, (8, 4, 2, 1), (7, 3, 3, 3)):
        embed = k * k * before * c + c + 2 * c
        attention = 4 * (c * c + c)  # q, k, v, proj
        if s > 1:
            attention += s * s * c * c + c + 2 * c
        ffn = (c * e * c + e * c) + (9 * e * c + e * c) + (e * c * c + c)
        total += embed + depth * (2 * c + attention + 2 * c + ffn) + 2 * c
        before = c
    return total
    # END SOLUTION


checks.encoder_count(my_encoder_count)

# %% [markdown] tags=["exercise"]
# ### 4. The encoder of Table 6, with `sl` (20 minutes)
#
# Build the network that Table 6 describes: a SegFormer-B0 for 5 classes whose Mix-FFNs expand by 8
# in stages 1 and 2 and by 4 in stages 3 and 4. The package fixes $E = 4$, but it takes a class of
# yours for Mix-FFN: `sl.create_model(..., ffn=...)`. The network calls it as `TableSixFFN(dim,
# expansion)`, with `expansion=4` everywhere. The check looks at the finished network.
#
# <details><summary>Hint</summary>
#
# Your class is not told its stage. But it is told `dim`, and in B0 that gives the stage away: 32,
# 64, 160, 256. Inherit from `sl.MixFFN` and call its `__init__` with another expansion.
#
# </details>
# <details><summary>Help: the check says that all expand by 4</summary>
#
# Did `create_model` get the class itself (`ffn=TableSixFFN`, no brackets behind it)?
#
# </details>

# %% tags=["exercise"]
class TableSixFFN(sl.MixFFN):
    """Mix-FFN with twice the expansion in the first two stages of B0."""

    def __init__(self, dim: int, expansion: int):
        # SOLUTION
        super().__init__(dim, 2 * expansion if dim <= 64 else expansion)
        # END SOLUTION


def table_six_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with E = 8, 8, 4, 4."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, ffn=TableSixFFN)
    # END SOLUTION


checks.printed_encoder(table_six_segformer())

# %% [markdown]
# ## The package's version
#
# The package's encoder is `MixTransformer`. Its stage, and the two lines of its block:

# %%
print(inspect.getsource(sl.models.segformer.Stage))
print(inspect.getsource(sl.TransformerBlock.forward))

# %% [markdown]
# The same. What the package adds is drop path, the choice of classes (`attention=`, `ffn=`,
# `patch_embed=`), the released start and the message for pictures that are too small. The proof:
# the encoder of this chapter takes the package's weights, `strict`, and must give the same four
# maps.

# %%
mine = Encoder(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)).eval()
mine.load_state_dict(encoder.state_dict(), strict=True)
x = sl.preprocess(photo)[..., :250, :]  # an awkward size
with torch.no_grad():
    for i, (ours, theirs) in enumerate(zip(mine(x), encoder(x)), start=1):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        print(f"F{i} {tuple(ours.shape)}, equal")

# %% [markdown]
# ## What the paper says, what the code does
#
# - **Order.** Figure 2 of the paper ([arXiv:2105.15203](https://arxiv.org/abs/2105.15203)): one
#   embedding, then stages of attention, Mix-FFN, merging. Code: stages of embedding, blocks, norm.
#   The sizes in section 3.1 are those of the code.
# - **Norms.** The paper's equations show none. Code: before attention and before Mix-FFN (`eps`
#   1e-6), at the end of each stage (1e-6), after each embedding and after the reducing convolution
#   (1e-5).
# - **Residuals.** Equation 3 adds $x_{in}$ in Mix-FFN; the code has a residual around attention as
#   well.
# - **Table 6.** $E = 8, 8, 4, 4$ and $L_2 = 3$ (B2, B3) are printed; 4, 4, 4, 4 and $L_2 = 4$ are
#   released.
# - **Table 7** describes encoders with $E = 8, 8, 4, 4$ (B5: 4), with a head.
# - **"FLOPs"** are multiply-accumulates; for Cityscapes mostly with a head for 150 classes.
# - **Drop path** from 0 to 0.1, and the rules for the first weights, are in the code only.

# %% [markdown]
# ## Pitfalls
#
# - Post-norm from habit: another network. Released weights fit into it without an error and give
#   nonsense.
# - A stage without its last norm: shapes are right, the decoder gets maps of any size.
# - Drop path on the sum instead of on the branch: a dropped picture is a picture of zeros.
# - `model.train()` left on while predicting: branches are dropped, and the same picture gives
#   another mask each time.
# - 0.02 for every convolution when training from scratch: Mix-FFN starts 24 times weaker.
# - Comparing your FLOPs with the paper's MACs.

# %% [markdown]
# ## In short
#
# - A block is two branches, normalise-attend and normalise-work, each *added* to what came in.
# - Pre-norm makes each stage one long sum: nothing explodes, nothing of the start is lost at once.
# - Drop path leaves out whole branches, late ones more often, and keeps their average.
# - A stage is embed, blocks, norm; four stages give maps at 1/4, 1/8, 1/16 and 1/32 of any picture
#   from 32 pixels up.
# - The encoders of B0 to B5 differ in `dims` and `depths` only. In B0 parameters sit late, and the
#   work is done everywhere.
# - The paper's "FLOPs" are multiply-accumulates; its Tables 6 and 7 describe wider Mix-FFNs than
#   those released.
# - The first weights decide which parts are awake when training begins.
# - A picture of the strongest directions of a feature map shows the picture, not what was learned.

# %% [markdown]
# ## What people ask
#
# **Figure 2 shrinks twice, or in the wrong order. What is right?** Each stage is: patch embedding,
# blocks, norm; see [above](#from-blocks-to-a-stage).
#
# **MLP ratio 8, 8, 4, 4 or 4, 4, 4, 4? My count disagrees with Table 7.** The released network has
# 4 everywhere and 3,319,392 parameters in B0's encoder. Tables 6 and 7 describe another one, with 8
# in the first two stages.
#
# **My FLOPs are half, or twice, the paper's.** The paper counts multiply-accumulates. Twice that
# are operations. About half, 4.13 G for B0, is the package's folded decoder
# ([chapter 07](07_mlp_decoder.ipynb#the-folded-decoder)). Counters that look at layers only miss the two
# products inside attention, about 1 G in B0 at 512 pixels.
#
# **May the picture have any size?** From 32 pixels a side, yes. Sizes round up, as 65 × 97 showed;
# only the shortened list of keys leaves out some tokens at odd sizes
# ([chapter 04](04_efficient_attention.ipynb#tokens-that-nobody-sees)).
#
# **Is there no class token, no table of positions, no extra stem?** None of them. The encoder gives
# maps, not one vector; position comes from zero padding ([chapter 05](05_mix_ffn.ipynb#the-leak)).

# %% [markdown]
# ## Next
#
# Four maps of four sizes, and one mask is wanted. [Chapter 07](07_mlp_decoder.ipynb), the MLP
# decoder, puts them together, with hardly more than matrix multiplications.
