# %% [markdown]
# # 05 · Know where you are without being told: Mix-FFN
#
# About 35 minutes to read and run, 50 more for the exercises. The code itself takes about half a
# minute and about 1 GB of memory on a CPU. No GPU is needed, and the modes fast and full are the
# same here.

# %% [markdown]
# **What you build.** The second half of every SegFormer block: Mix-FFN, two linear maps with a small
# convolution between them. At the end it carries the package's weights and gives the package's
# numbers.
#
# **What you learn.**
#
# - what attention knows of a token's place, and what a table of positions does about it;
# - what happens to such a table when the picture grows;
# - what a depth-wise convolution computes, and what it saves: 0.54 instead of 2.69 million
#   parameters in one feed-forward part of stage 4;
# - how zeros around a picture tell every token where it is, measured before and after training;
# - that Mix-FFN is not the only door through which position comes in.
#
# **What you need.** [Chapter 03](03_patch_embedding.ipynb) (patch embedding). Of attention
# ([chapter 04](04_efficient_attention.ipynb)) only this much: every token looks at all the others.

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import position_maps, position_spread, split_padding
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models.variants import MLPFFN, FullConvFFN, LearnedPosition, set_padding

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit="mix_ffn")

# %% [markdown]
# Every block of every stage ends with the orange part. Attention lets tokens look at each other;
# Mix-FFN then works on what each of them found.

# %% [markdown]
# ## The question
#
# In a street scene the sky is above and the road below. A network that labels pixels should be able
# to use that. **How does a token know where it is?**
#
# Surely attention sees it? Chapter 04 has tried; recall it, or try again: take a map of 6 × 6
# tokens, shuffle the 36 tokens, and send both maps through plain self-attention.
#
# **Predict, then run.** What happens to the output when the tokens are shuffled?
#
# - A. It is shuffled in the same way, and nothing else changes.
# - B. Every token changes: its neighbours are others now.
# - C. Only tokens that were moved far change.

# %%
attention = sl.EfficientSelfAttention(dim=32, heads=2, stride=1)  # stride 1: no reduction
tokens, order = torch.randn(1, 6, 6, 32), torch.randperm(36)


def shuffle(x):
    return x.flatten(1, 2)[:, order].reshape(x.shape)


alike = torch.allclose(attention(shuffle(tokens)), shuffle(attention(tokens)), atol=1e-6)
print("output shuffled likewise:", alike)

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** Attention compares *contents*: each query asks all keys, and the sum over all of them is the
# same in any order. To attention a picture is a bag of tokens. Sky above road or road above sky: it
# cannot tell.
#
# </details>
#
# ## The usual answer: a table
#
# The Vision Transformer (ViT) keeps a **table of positions**: one learned vector for every place,
# added to the token that stands there. The package has it as `LearnedPosition`, a patch embedding
# plus a table. For pictures of 64 pixels stage 1 has 16 × 16 places:

# %%
with_table = LearnedPosition(3, 32, kernel=7, stride=4, grid=(16, 16))
print("table ", tuple(with_table.position.shape))
print("tokens", tuple(with_table(torch.randn(1, 3, 64, 64)).shape))

# %% [markdown]
# This works, and it costs. Tables as large as the maps of all four stages, for pictures of 512
# pixels and the widths of MiT-B0:

# %%
sizes = [(512 // step) ** 2 * dim for step, dim in zip((4, 8, 16, 32), (32, 64, 160, 256))]
print("numbers per table", sizes)
print(f"together {sum(sizes):,}; the whole encoder without them has 3,319,392")

# %% [markdown]
# ### What happens at another size
#
# A picture of 128 pixels has 32 × 32 tokens in stage 1, and the table has 16 × 16 places. Somebody
# has to invent the rest. The usual way is to stretch the table by bicubic interpolation. The
# function runs; look at what the network gets.
#
# For a drawing, take a table with a single channel and a single line of 16 places: a slow wave with
# a little noise on it, as a trained table might have.

# %%
place = torch.arange(16.0)
line = torch.sin(place / 2.5) + 0.3 * torch.randn(16)
square = line.expand(1, 1, 16, 16)  # the same line in every row
stretched = F.interpolate(square, size=(32, 32), mode="bicubic", align_corners=False)[0, 0, 16]

fig, ax = plt.subplots(figsize=(5.5, 2.3))
ax.plot(line, "o-", label="the table: 16 places")
ax.plot(stretched, ".--", label="stretched: 32 places")
ax.set(xlabel="token, counted from the left border", ylabel="one channel of the table")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "One channel of a table along a line of tokens. The original is a bumpy wave over tokens 0 to "
    "15. The stretched one is the same wave drawn out over tokens 0 to 31, with every slope half as "
    "steep."))

# %% [markdown]
# The network was trained with the solid line. Its tokens learned things like "my neighbour's vector
# differs from mine by so much". On the dashed line every such difference is about half as large,
# and the value that meant *fifth from the left* now stands on the tenth token.

# %%
def step_length(table):
    """Mean length of the difference between a place's vector and that of its right neighbour."""
    return (table[..., 1:] - table[..., :-1]).norm(dim=1).mean().item()


for name, table in [("smooth", square), ("untrained", with_table.position.detach())]:
    larger = F.interpolate(table, size=(32, 32), mode="bicubic", align_corners=False)
    print(f"{name:10s} step to the neighbour falls to {step_length(larger) / step_length(table):.0%}")

# %% [markdown]
# Smooth or not, the step to the neighbour falls to about one half, and nobody tells the network.
#
# The paper measured what that costs, on Cityscapes (Table 1c; mIoU in percent):
#
# | | windows of 768 × 768 | whole pictures, 1024 × 2048 | change |
# |---|---|---|---|
# | table of positions | 77.3 | 74.0 | −3.3 |
# | Mix-FFN | 80.5 | 79.8 | −0.7 |
#
# Two things stand there. The table loses more when the size changes. And Mix-FFN is better *at either
# size*. (The size of the training crops is not printed.) So what is it?

# %% [markdown]
# ## SegFormer's answer
#
# $$x_{out} = \mathrm{MLP}(\mathrm{GELU}(\mathrm{Conv}_{3\times3}(\mathrm{MLP}(x_{in})))) + x_{in}$$
#
# This is the paper's equation 3. Its names and the code's:
#
# | paper | code | meaning |
# |---|---|---|
# | $x_{in}$, $x_{out}$ | `x` | token map, (B, H, W, C) |
# | first MLP | `fc1` | linear map from C to E · C channels |
# | $\mathrm{Conv}_{3\times3}$ | `dwconv` | 3 × 3 convolution of each channel on its own |
# | second MLP | `fc2` | linear map from E · C back to C channels |
# | $E$ | `expansion` | 4 in the released network |
# | $+\,x_{in}$ | | the residual: what came in is added to the result; the block does it, not Mix-FFN |
#
# Without the convolution this is the feed-forward network of every transformer: it treats each token
# on its own. With it, each token also sees its eight neighbours.

# %% [markdown]
# ## By hand: one kernel per channel
#
# A picture of 5 × 5 with two channels: the numbers 0 to 24, and ones everywhere. And two kernels,
# one for each channel: the first takes the neighbour to the right, the second sums all nine.

# %%
toy = torch.stack([torch.arange(25.0).reshape(5, 5), torch.ones(5, 5)])[None]  # (B, C, H, W)
kernels = torch.zeros(2, 1, 3, 3)  # (C, 1, 3, 3): one kernel for each channel
kernels[0, 0, 1, 2] = 1            # row 1, column 2: the neighbour to the right
kernels[1] = 1
print(tuple(toy.shape), tuple(kernels.shape))

# %% [markdown]
# One place by hand: row 2, column 2 of channel 0. Lay the kernel on the window, multiply, sum.

# %%
window = toy[0, 0, 1:4, 1:4]
print(window)
print("by hand:", (window * kernels[0, 0]).sum().item())

# %% [markdown]
# The window has 12 in its middle, and the result is its right neighbour, 13. All places at once:
# `padding=1` keeps the map at 5 × 5, and `groups=2` says "two channels, each on its own".
#
# **Predict, then run.** Channel 1 is one everywhere and its kernel sums nine numbers. What comes
# out?
#
# - A. Nine everywhere.
# - B. Nine inside, less at the border.
# - C. One everywhere.

# %%
out = F.conv2d(toy, kernels, padding=1, groups=2)
print(out[0, 0])
print(out[0, 1])

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Inside nine, at an edge six, in a corner four. The picture was constant, and the result is
# not.
#
# *Why.* `padding=1` puts a frame of zeros around the map, and the kernel counts them.
#
# </details>
#
# Here is the whole idea of this chapter in 25 numbers: **a convolution with zero padding tells
# every place near the border where it is.** Channel 0 shows the other side: the right column got a
# zero, because there was no neighbour to take.
#
# ### Depth-wise and full
#
# A *full* convolution has a kernel for every pair of channels, (C, C, 3, 3). A depth-wise one is a
# full one in which all kernels between different channels are zero:

# %%
full = torch.zeros(2, 2, 3, 3)  # (out, in, 3, 3)
full[0, 0], full[1, 1] = kernels[0, 0], kernels[1, 0]
torch.testing.assert_close(F.conv2d(toy, full, padding=1), out)
print("full", full.numel(), "weights, depth-wise", kernels.numel())

# %% [markdown]
# The full one *could* mix channels. In Mix-FFN it need not: two linear maps stand left and right of
# it and mix all the channels there are. So the convolution only has to look at neighbours.

# %% [markdown]
# ## The class
#
# First the steps one by one, on a map of 16 × 16 tokens of length 32:

# %%
x = torch.randn(1, 16, 16, 32)  # (B, H, W, C)
fc1, dwconv, fc2 = nn.Linear(32, 128), nn.Conv2d(128, 128, 3, padding=1, groups=128), nn.Linear(128, 32)
x = fc1(x)
print("fc1      ", tuple(x.shape), "  four times as many channels")
x = x.permute(0, 3, 1, 2)
print("permute  ", tuple(x.shape), "  convolutions want channels first")
x = dwconv(x)
print("dwconv   ", tuple(x.shape), "  3 x 3 neighbours, each channel on its own")
x = F.gelu(x.permute(0, 2, 3, 1))
print("GELU     ", tuple(x.shape), "  channels last again")
print("fc2      ", tuple(fc2(x).shape))

# %% [markdown]
# GELU is the only step that is not linear. Without it the three maps in a row could be multiplied
# into one, and the fourfold width would buy nothing.

# %%
class MixFeedForward(nn.Module):
    """(B, H, W, dim) -> (B, H, W, dim): each token with its eight neighbours."""

    def __init__(self, dim, expansion):
        super().__init__()
        hidden = dim * expansion
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        x = self.fc1(x)              # (B, H, W, hidden)
        x = x.permute(0, 3, 1, 2)    # (B, hidden, H, W)
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)    # (B, H, W, hidden)
        return self.fc2(F.gelu(x))   # (B, H, W, dim)


mix = MixFeedForward(32, expansion=4)
print("(1, 16, 16, 32) ->", tuple(mix(torch.randn(1, 16, 16, 32)).shape))
print("(2, 5, 9, 32)   ->", tuple(mix(torch.randn(2, 5, 9, 32)).shape))

# %% [markdown]
# Nothing in it knows the size of the map. A map of any height and width goes through with the same
# weights: no table, nothing to stretch.

# %% [markdown]
# ## Count the parameters
#
# Three feed-forward networks of the same width: a plain MLP, Mix-FFN, and the one of the report
# that this course follows, which has a *full* 3 × 3 convolution (1 × 1 from C to C, 3 × 3 from C to
# E · C, 1 × 1 back).

# %%
def count(module):
    return sum(p.numel() for p in module.parameters())


widths = (32, 64, 160, 256)  # stages 1 to 4 of MiT-B0
print("stage      MLP  Mix-FFN  full 3x3")
for stage, dim in enumerate(widths, start=1):
    row = [count(kind(dim, 4)) for kind in (MLPFFN, MixFeedForward, FullConvFFN)]
    print(f"  {stage}   {row[0]:7,}  {row[1]:7,} {row[2]:9,}")

# %% [markdown]
# In stage 4 the full convolution takes 2.69 million parameters, Mix-FFN 0.54: a fifth. Against the
# plain MLP Mix-FFN needs hardly more. By formula: the two linear maps have $2 E C^2$ weights, the
# depth-wise convolution $9 E C$, the full one $9 E C^2$.

# %%
encoder = sl.create_model("segformer_b0", num_classes=150).encoder
share = sum(count(block.ffn) for stage in encoder.stages for block in stage.blocks)
convs = sum(count(block.ffn.dwconv) for stage in encoder.stages for block in stage.blocks)
print(f"encoder {count(encoder):,}, all Mix-FFN {share:,} ({share / count(encoder):.0%})")
print(f"the eight 3 x 3 convolutions {convs:,} ({convs / count(encoder):.1%})")
assert count(encoder) == 3_319_392
assert [count(s.blocks[0].ffn) for s in encoder.stages] == [count(MixFeedForward(d, 4)) for d in widths]

# %% [markdown]
# The published encoder is met exactly. Half of its parameters sit in Mix-FFN, and nearly all of
# those in the linear maps: what this chapter is about costs about one percent of the encoder.

# %% [markdown]
# ## What it does to a picture
#
# ### Who hears of a change?
#
# Change one token in the middle of a map and see which tokens of the output move.

# %%
def footprint(*layers):
    """(11, 11): how much each token of the output moves when the middle token of the input does."""
    x = torch.randn(1, 11, 11, 16)
    moved = x.clone()
    moved[0, 5, 5] += 1
    for layer in layers:
        x, moved = layer(x), layer(moved)
    return (moved - x).norm(dim=-1)[0].detach()


torch.manual_seed(0)
mixers = [MixFeedForward(16, 4) for _ in range(2)]
prints = [footprint(MLPFFN(16, 4)), footprint(mixers[0]), footprint(*mixers)]
print("tokens that moved:", [int((p > 0).sum()) for p in prints])

# %%
names = ["MLP", "Mix-FFN", "Mix-FFN twice"]
fig = show.grid([p / p.max() for p in prints], names, columns=3, cell=1.7, cmap="cividis")
show.figure(fig, alt=(
    "Three maps of 11 by 11 tokens. After the MLP only the middle token is lit, after Mix-FFN the "
    "3 by 3 tokens around it, after two of them 5 by 5, fading outwards."))

# %% [markdown]
# The MLP leaves the change where it was. One Mix-FFN passes it to the eight neighbours, two of them
# two tokens far. This is where the *Mix* in its name comes from: it mixes channels, as any MLP, and
# neighbours, as a convolution. Attention carries content over any distance; Mix-FFN handles the
# fine local structure that a mask needs.

# %% [markdown]
# ### On a photograph
#
# The tokens of a photograph, from a patch embedding with random weights, through `fc1`: here are
# four of the 128 hidden channels, before and after the depth-wise convolution. All weights are as
# they are before training.

# %%
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    photo = torch.from_numpy(np.array(file.convert("RGB"))[20:532]).permute(2, 0, 1)[None]
stage = encoder.stages[0]
with torch.no_grad():
    hidden = stage.blocks[0].ffn.fc1(stage.patch_embed(sl.preprocess(photo))).permute(0, 3, 1, 2)
    mixed = stage.blocks[0].ffn.dwconv(hidden)
fig = show.grid([*hidden[0, :4], *mixed[0, :4]], columns=4, cell=1.7, cmap="gray")
show.figure(fig, alt=(
    "Upper row: four hidden channels of the photograph of a woman in uniform, before the "
    "convolution. Lower row: the same four after it, each made from the one above: one is turned "
    "into its negative and softened, the others show face, cap and flag in relief."))

# %% [markdown]
# Each picture of the lower row is made from the one above it and from no other: that is what
# *depth-wise* means. Nine random weights are enough to soften it, to invert it or to turn it into
# relief.

# %% [markdown]
# ## The leak
#
# Now the main thing. Send a map through Mix-FFN on which all tokens are equal, and ask which tokens
# of the output differ from the middle one. There are four usual ways to fill the frame around a map;
# on a line of four numbers they look like this:

# %%
paddings = ("zeros", "circular", "reflect", "replicate")
line = torch.arange(1.0, 5).reshape(1, 1, 4)
for mode in paddings:
    frame = F.pad(line, (2, 2), mode="constant" if mode == "zeros" else mode)[0, 0].int().tolist()
    print(f"{mode:10s}", *frame[:2], "|", *frame[2:6], "|", *frame[6:])

# %% [markdown]
# Zeros; the other end of the line; a mirror; the last number again.

# %%
constant = torch.randn(32).expand(1, 16, 16, 32)  # 256 equal tokens
for mode in paddings:
    with torch.no_grad():
        tokens = set_padding(mix, mode)(constant)[0]
    differ = ((tokens - tokens[8, 8]).norm(dim=-1) > 1e-5).sum().item()
    print(f"{mode:10s} {differ:2d} of 256 tokens differ from the middle one")
_ = set_padding(mix, "zeros")

# %% [markdown]
# Zeros mark the 60 tokens of the outermost ring. The other three fill the frame with what is there
# anyway, and a constant map stays constant. Position that comes in through padding is called a
# **leak**: nobody built it, nobody asked for it, it just drips in (Islam et al., 2020,
# [arXiv:2001.08248](https://arxiv.org/abs/2001.08248)). SegFormer relies on it.

# %% [markdown]
# ### Through the whole encoder
#
# Mix-FFN is not the only place with zero padding. The overlapping patch embeddings have it too
# ([chapter 03](03_patch_embedding.ipynb#a-trace-of-the-border)). Which of the two lets in more? Take
# a fresh MiT-B0 and a constant picture of 256 pixels. `split_padding` gives the patch embeddings one
# padding and the Mix-FFNs another; `position_spread` measures at the end of each stage how much of
# the output is position: the spread over places, divided by the spread of all numbers. It is 0 where
# all places are equal.
#
# **Predict, then run.** Zeros only in the four patch embeddings, or zeros only in the eight
# Mix-FFNs: which leaks more in a fresh network?
#
# - A. Mix-FFN, by far: that is what it is for.
# - B. Both about the same.
# - C. The patch embeddings, by far.

# %%
settings = {  # padding of the patch embeddings, of Mix-FFN, class of the feed-forward network
    "zeros everywhere": ("zeros", "zeros", sl.MixFFN),
    "zeros in Mix-FFN only": ("circular", "zeros", sl.MixFFN),
    "zeros in patch embeddings only": ("zeros", "circular", sl.MixFFN),
    "zeros, Mix-FFN without convolution": ("zeros", "zeros", MLPFFN),
    "circular everywhere": ("circular", "circular", sl.MixFFN),
    "reflect everywhere": ("reflect", "reflect", sl.MixFFN),
    "replicate everywhere": ("replicate", "replicate", sl.MixFFN),
}


def fresh_encoder(patch_embed, padding, ffn=sl.MixFFN, seed=0):
    torch.manual_seed(seed)
    model = sl.create_model("segformer_b0", num_classes=5, ffn=ffn)
    return split_padding(model.encoder, patch_embed, padding)


# %%
spread = {name: np.mean([position_spread(fresh_encoder(*setting, seed=seed)) for seed in range(2)], 0)
          for name, setting in settings.items()}
print(" " * 35, "stage 1     2     3     4")
for name, stages in spread.items():
    print(f"{name:36s}", "  ".join(f"{s:.2f}" for s in stages))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C**, and by a lot. With zeros only in the patch embeddings nearly all of the leak is there; with
# zeros only in Mix-FFN, the block that is said to bring the position in, it is a small fraction
# of it. In the first four rows it grows from stage to stage. The last three are zero throughout: on a
# constant picture, no zeros, no leak.
#
# *Why.* Every token *is* the output of a patch embedding, but Mix-FFN is only *added* to the stream
# of tokens.
#
# </details>
#
# How strong is Mix-FFN beside the stream of tokens that it is added to? Before training:

# %%
def strengths(encoder):
    """Per stage: spread of what the first Mix-FFN adds, as a share of the stream it is added to."""
    found, hooks = [], []
    for stage in encoder.stages:
        block = stage.blocks[0]
        hooks.append(block.norm2.register_forward_hook(lambda m, i, o: found.append(i[0].std())))
        hooks.append(block.ffn.register_forward_hook(lambda m, i, o: found.append(o.std())))
    with torch.no_grad():
        encoder.eval()(sl.preprocess(photo[..., ::2, ::2]))
    for hook in hooks:
        hook.remove()
    return [(ffn / stream).item() for stream, ffn in zip(found[::2], found[1::2])]


print("Mix-FFN / stream:", " ".join(f"{s:.3f}" for s in strengths(fresh_encoder("zeros", "zeros"))))

# %% [markdown]
# At the beginning Mix-FFN whispers: what it adds in stage 1 is a fiftieth of what it is added to, and
# in stage 4 about a seventh. So its leak is faint, too. That says something about the *start* of
# training. What the network makes of it is another question; it comes below.

# %% [markdown]
# ### Where it leaks in
#
# `position_maps` gives the leak as a picture: how far each place is from the middle one.

# %%
def draw_leak(ax, field, title):
    ax.imshow(field / max(field.max(), 1e-3), cmap="cividis", vmin=0, vmax=1)
    ax.set(title=f"{title}max {field.max():.2f}", xticks=[], yticks=[])


rows = ["zeros in patch embeddings only", "zeros in Mix-FFN only"]
fig, axes = plt.subplots(2, 4, figsize=(7, 4))
for line, name in zip(axes, rows):
    for stage, (ax, field) in enumerate(zip(line, position_maps(fresh_encoder(*settings[name]))), 1):
        draw_leak(ax, field, f"stage {stage}: ")
    line[0].set_ylabel(name.replace(" in ", " in\n").replace(" only", "\nonly"))
show.figure(fig, alt=(
    "Eight leak maps of a constant picture, one row for each of two settings and one column for each "
    "stage. With zeros in the patch embeddings only, the upper and left borders are bright in stage "
    "1 and the bright border grows wider until in stage 4 it fills a large part of the map. With "
    "zeros in Mix-FFN only, all four borders are lit evenly, but the values are far smaller."))

# %% [markdown]
# Each map has its own scale, with its largest value in the title. Zeros in the patch embeddings
# (upper row) mark mostly the upper and left border, as in chapter 03: at sizes that 32 divides, the
# last window ends on the last pixel and sees no padding. Zeros in Mix-FFN (lower row) mark all four
# sides, by little. From stage to stage the marked frame reaches further in, because a token covers
# more of the picture and two more blocks have passed it on.
#
# If the notebook is running, choose yourself. Zeros in both places look much like the upper row, and
# circular padding in both leaves nothing:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_padding(patch_embed, mix_ffn, stage):
    field = position_maps(fresh_encoder(patch_embed, mix_ffn))[stage - 1]
    fig, ax = plt.subplots(figsize=(2.8, 3))
    draw_leak(ax, field, f"stage {stage}: ")
    show.figure(fig, alt=f"Leak map of stage {stage}: {patch_embed} in the patch embeddings, "
                         f"{mix_ffn} in Mix-FFN.")


_ = interact(try_padding, patch_embed=list(paddings), mix_ffn=list(paddings),
             stage=IntSlider(4, 1, 4, continuous_update=False))

# %% [markdown]
# ## Can a network use it?
#
# A leak is one thing, reading it is another. So train: a tiny encoder (widths 16, 32, 40, 64), with
# one linear map at each stage that has to say where each token lies, $(y, x)$ from −1 to 1. The
# pictures are *noise*, new at every step. Nothing in them tells a place. Whatever the network learns
# to say, it has from its padding.
#
# The score is R²: 1 means every place named exactly, 0 means no better than always saying "the
# middle". Here are two such trainings, small and short (one block a stage, 64 pixels):

# %% tags=["nbval-ignore-output"]
from segformer_lite.analysis import readout_r2, train_readout
from segformer_lite.models import MixTransformer

readouts, scores = {}, {}
for mode in ("zeros", "circular"):
    torch.manual_seed(0)
    tiny = set_padding(MixTransformer((16, 32, 40, 64), depths=(1, 1, 1, 1)), mode)
    readouts[mode] = train_readout(tiny, size=64, steps=40 if session.quick else 150, batch_size=8)
    scores[mode] = readout_r2(readouts[mode], size=64)
    print(f"{mode:10s} R² of stages 1 to 4:", " ".join(f"{round(s, 2) + 0.0:.2f}" for s in scores[mode]))

# %%
assert scores["zeros"][3] > 0.5 and max(scores["circular"]) < 0.1
print("zeros tell the place, circular padding does not")

# %% [markdown]
# The full measurement has two blocks a stage, seven settings, 250 steps on pictures of 96 pixels, and
# three seeds. It takes some minutes, so its results lie in `docs/results/position-leak.json`, with the
# command that makes them.
#
# **Predict, then run.** Which of the seven networks can name places in stage 4?
#
# - A. Those whose Mix-FFN pads with zeros, and no other.
# - B. All with zeros anywhere.
# - C. All with zeros anywhere, and one without any zeros.

# %%
results = sl.data.course_folder() / "docs" / "results"
leak = json.loads((results / "position-leak.json").read_text())
print(leak["command"])
r2 = {name: {size: np.mean(runs, 0) for size, runs in sizes.items()}
      for name, sizes in leak["readout"]["r2_by_size_and_seed"].items()}
print(" " * 35, "at 96 px, stages 1-4     at 192 px, stages 1-4")
for name, at in r2.items():
    print(f"{name:36s}", "    ".join(" ".join(f"{round(v, 2) + 0.0:.2f}" for v in at[s])
                                      for s in ("96", "192")))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
for ax, size in zip(axes, ("96", "192")):
    for i, ((name, at), mark) in enumerate(zip(r2.items(), "os^vDP*")):
        ax.plot(range(1, 5), at[size], mark, ls=(i * 4, (4, 4)), label=name)
    ax.set(title=f"{size} px", xlabel="stage", xticks=range(1, 5), ylim=(-0.05, 1.05))
axes[0].set_ylabel("R² of (y, x)")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
show.figure(fig, alt=(
    "R squared of the named place against the stage, one line for each of seven settings, left at "
    "the size of training, right at twice that size. Left, the lines with zeros somewhere and with "
    "replicate padding rise towards 1, the one without the convolution of Mix-FFN more slowly; "
    "circular and reflect padding stay at 0. Right, all lines that rise end lower."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Read the left half line by line. The lines are dashed because two pairs lie on each other:
# zeros everywhere (blue) with zeros in Mix-FFN only (orange), and at the bottom reflect with circular.
#
# - *Zeros in Mix-FFN only* does as well as zeros everywhere. So the paper is right: a 3 × 3
#   convolution with zero padding is **enough** to know the place. It whispers at the start, but
#   training turns it up.
# - *Zeros in patch embeddings only* ends just as high. So it is **not necessary**: position would be
#   there without any zeros in Mix-FFN.
# - *Without the convolution* the place gets in through the patch embeddings, but spreads slowly:
#   0.75 in stage 4, where the others reach 1.00. Somebody has to pass the message on from the
#   border, and the 3 × 3 convolution does.
# - *Replicate* leaks although it did nothing to a constant picture: in noise, a row that occurs twice
#   gives the border away. *Circular* and *reflect* tell nothing.
#
# </details>

# %%
# What the answer says, checked.
at_96, at_192 = ({name: at[size] for name, at in r2.items()} for size in ("96", "192"))
for name in ("zeros in Mix-FFN only", "zeros in patch embeddings only", "replicate everywhere"):
    assert at_96[name][3] > 0.9 and at_192[name][3] < at_96[name][3] - 0.05
assert 0.3 < at_96["zeros, Mix-FFN without convolution"][3] < 0.9
assert max(at_96["circular everywhere"][3], at_96["reflect everywhere"][3]) < 0.05
assert np.allclose(at_96["zeros everywhere"], at_96["zeros in Mix-FFN only"], atol=0.05)

# %% [markdown]
# ### A ruler counted in tokens
#
# Stage 1 of the full measurement stops at an R² of about 0.4. Why? It has two blocks, so two
# convolutions, and a message from the border gets two tokens far. Suppose that every token within
# two of a border knows its row or column exactly, and all others say "the middle":

# %%
def best_r2(tokens, reach):
    """R² if tokens within `reach` of a border know their place and the others say 0."""
    place = (2 * np.arange(tokens) + 1) / tokens - 1
    known = np.minimum(np.arange(tokens), np.arange(tokens)[::-1]) < reach
    return (place**2 * known).sum() / (place**2).sum()


for size in (96, 192):
    measured = r2["zeros everywhere"][str(size)][0]
    print(f"{size} px: by this thought {best_r2(size // 4, 2):.2f}, measured {measured:.2f}")
    assert abs(best_r2(size // 4, 2) - measured) < 0.05

# %% [markdown]
# It fits. The network has learned a *ruler that starts at the border and counts tokens*. That also
# explains the right half of the figure: at twice the size the same two tokens are a smaller part of
# the map.
#
# In the later stages the ruler is longer. Ask the network trained above (zeros, pictures of 64
# pixels) which $y$ it names in stage 3, row by row, and then give it pictures of 128 pixels:

# %% tags=["nbval-ignore-output"]
fig, ax = plt.subplots(figsize=(5.5, 2.4))
named = {}
for size, style in [(64, "o-"), (128, "s--")]:
    with torch.no_grad():
        places = readouts["zeros"](torch.randn(16, 3, size, size))[2]  # stage 3: (B, 2, H, W)
    named[size] = places[:, 0].mean((0, 2))  # y, mean over pictures and columns
    ax.plot(range(1, len(named[size]) + 1), named[size], style, label=f"{size} px")
print(f"rows 4 to 7 at 128 px: {named[128][3:7].mean():.2f}; row 3 at 64 px: {named[64][2]:.2f}")
ax.set(xlabel="row of tokens, from the upper border", ylabel="y that it names")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "The named y against the row of tokens in stage 3. At 64 pixels four rows rise in a straight "
    "line. At 128 pixels the first rows of eight follow the same line, the rows after them all get "
    "the same value, and the last row gets the value of the last row at 64 pixels."))

# %%
small, large = named[64], named[128]
assert abs(large[0] - small[0]) < 0.2 and abs(large[-1] - small[-1]) < 0.2
assert large[3:6].std() < 0.1
print("rows at the border: named as at 64 px; rows in the middle: all named alike")

# %% [markdown]
# Solid: four rows, named as they lie. Dashed: eight rows. The first ones say what the first ones said
# in training, although they now lie closer to the border than their names claim; the last one says
# what the last one said. In between the ruler does not reach, and all rows give the same value. It is
# not 0, the middle, but about what row 3 of 4 gave: in training no row lay deeper inside than the two
# middle ones, and the network falls back on what it says of one of them. Read it as "somewhere inside".
#
# So the position that comes from padding does not survive a change of size untouched. But it fails
# gently: near the border it stays as it was, in the middle it is blank. A stretched table changes
# under *every* token. That fits the −0.7 against −3.3 of Table 1c: less of a loss, not none.
#
# ## Table 1c in small
#
# Does it matter for a mask? The same question as in the paper, on the drawn sample and at far less
# cost: four networks, each trained on crops of 64 pixels out of pictures of 128, and validated twice
# on the same pixels: in four windows of 64, as trained, and whole.
#
# - **Mix-FFN**: the released MiT-B0.
# - **table**: a plain MLP in place of Mix-FFN, and a table of positions in every stage.
# - **neither**: the plain MLP and no table. What is left then?
# - **Mix-FFN, circular padding**: the convolution is there, the leak is closed, in the patch
#   embeddings too.
#
# It trains with `sl.compare`, 3,000 steps each, for most of an hour, so its results lie in
# `docs/results` too.
#
# **Predict, then run.** Which step makes the largest difference to the masks?
#
# - A. From neither to the table: position is what a plain MLP lacks.
# - B. From neither to Mix-FFN with circular padding: looking at the neighbours.
# - C. From circular to zero padding: position again.

# %%
small = json.loads((results / "position-table.json").read_text())
print(small["command"], "|", small["settings"]["steps"], "steps,", small["seeds"], "seeds")
runs = small["miou_by_seed"]


def both_ways(name):
    """(seeds, 2): mIoU in windows and whole, in percent."""
    return 100 * np.array([[run["windows"], run["whole"]] for run in runs[name]])


print(" " * 28, "windows      whole        change")
for name in runs:
    values = both_ways(name)
    values = np.column_stack([values, values[:, 1] - values[:, 0]])
    cells = [f"{m:5.1f} ± {s:.1f}" for m, s in zip(values.mean(0), values.std(0, ddof=1))]
    print(f"{name:28s}", "  ".join(cells))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B**, by far. *Why?* A plain MLP sees one token at a time. Give it neighbours, and every seed of
# the network does better than every seed without, some ten points, *whether or not* zeros tell it
# where the border is. The table adds less to "neither" than another seed would, and zero padding
# adds nothing to circular; without its leak the network is even a little ahead. For masks of these
# scenes it matters little *where* on the picture a thing is, and much what stands beside it.
#
# </details>

# %%
# What the answer says, checked.
windows = {name: both_ways(name)[:, 0] for name in runs}
assert min(windows["Mix-FFN"].min(), windows["Mix-FFN, circular padding"].min()) > windows["table"].max()
assert abs(windows["table"].mean() - windows["neither"].mean()) < windows["neither"].std(ddof=1)
assert windows["Mix-FFN"].mean() < windows["Mix-FFN, circular padding"].max()
assert all((both_ways(name)[:, 1] > both_ways(name)[:, 0]).all() for name in runs)

# %% [markdown]
# And the loss at twice the size? There is none here, for nobody: all four are *better* on whole
# pictures, the table too. In a window of 64 px many a thing is cut in half, and seeing all of it
# outweighs a table that had to be enlarged. The paper's Table 1c starts from windows of 768 px,
# where little is gained by more. So take from here what neighbours are worth, and from the paper
# what a stretched table costs.

# %% [markdown]
# ### Where on the picture?
#
# If zeros at the border tell something, it might show *near the border*. The mean IoU of the pixels
# in bands around the border, whole pictures, zero against circular padding:

# %%
edges = small["edges_px"]
middles = np.convolve(edges, [0.5, 0.5], "valid")
fig, ax = plt.subplots(figsize=(5.5, 2.6))
for (name, label), style in zip([("Mix-FFN", "zeros"), ("Mix-FFN, circular padding", "circular")],
                                ["o-", "s--"]):
    bands = 100 * np.array([run["by_border_distance"] for run in runs[name]])
    ax.errorbar(middles, bands.mean(0), bands.std(0, ddof=1), fmt=style, label=label, capsize=3)
ax.set(xlabel="pixels from the border", ylabel="mIoU of the band, percent")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Mean IoU of bands around the border for zero and circular padding. Both rise, from 28 and 30 "
    "percent in the outermost four pixels to 35 and 37 at about 24 pixels, and fall by a point or two "
    "in the innermost band; circular padding is above at every distance, by about two points."))
bands = {name: np.array([run["by_border_distance"] for run in runs[name]]) for name in runs}
zeros, circular = bands["Mix-FFN"], bands["Mix-FFN, circular padding"]
assert (zeros[:, 0] < zeros[:, 3]).all() and (circular[:, 0] < circular[:, 3]).all()
assert zeros[:, 0].mean() < circular[:, 0].mean()

# %% [markdown]
# Both lines rise from the border to about 24 pixels, and fall a little in the middle of the
# picture: near the border a thing is cut off, and half of what surrounds it is missing. If knowing
# the border helped, zeros would be ahead on the left; they are behind there, as everywhere, by
# about two points. Three seeds are too few to say that zeros do harm. But on these scenes the leak
# is real, and worth nothing that they could show.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. A convolution without a convolution (15 minutes)
#
# Compute the depth-wise 3 × 3 convolution by shifting and adding: pad with zeros, cut out the map at
# nine shifts, multiply each with its weight, one per channel, and sum. No `F.conv2d`, no `unfold`.
#
# <details><summary>Hint</summary>
#
# `F.pad(x, (1, 1, 1, 1))` adds the frame of zeros. With weight row `i` and column `j` belongs the
# piece of the padded map that begins at row `i` and column `j` and is as large as `x`. The weight of
# all channels there is `weight[:, 0, i, j]`, shape (C,); `[:, None, None]` makes it fit (C, H, W).
#
# </details>
# <details><summary>Help: the numbers are mirrored</summary>
#
# Then you wrote the textbook's convolution, which flips the kernel. Deep learning's "convolution"
# does not flip it: weight (0, 0) belongs to the neighbour *above and to the left*.
#
# </details>

# %% tags=["exercise"]
def my_depthwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: (B, C, H, W), weight: (C, 1, 3, 3) -> (B, C, H, W), zeros outside."""
    # SOLUTION
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    total = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            piece = padded[..., i : i + height, j : j + width]
            total = total + weight[:, 0, i, j, None, None] * piece
    return total
    # END SOLUTION


checks.depthwise(my_depthwise)

# %% [markdown] tags=["exercise"]
# ### 2. Your own Mix-FFN (15 minutes)
#
# Write the block from equation 3, without looking at the class above if you can. The check loads the
# package's weights into it. Chapter 07 has a place where your class can train in the whole
# network.
#
# <details><summary>Hint</summary>
#
# Linear, then channels first, convolution, channels last, GELU, Linear. The residual is not yours:
# the transformer block adds it.
#
# </details>
# <details><summary>Help: "expected input to have … channels"</summary>
#
# A convolution reads axis 1 as channels, a Linear the last axis. `x.permute(0, 3, 1, 2)` goes from
# (B, H, W, C) to (B, C, H, W), `x.permute(0, 2, 3, 1)` goes back. A `reshape` has the same shape
# and scrambles the map.
#
# </details>

# %% tags=["exercise"]
class MyMixFFN(nn.Module):
    """(B, H, W, dim) -> (B, H, W, dim).

    Submodules: fc1 and fc2, Linear; dwconv, a depth-wise 3x3 Conv2d with padding 1.
    """

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        # SOLUTION
        hidden = dim * expansion
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        # END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SOLUTION
        x = self.fc1(x)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))
        # END SOLUTION


checks.mix_ffn(MyMixFFN)

# %% [markdown] tags=["exercise"]
# ### 3. Three counts on paper (10 minutes)
#
# Work out the parameters of the three feed-forward networks, biases included, with integers only:
# Mix-FFN; the report's (1 × 1 from `dim` to `dim`, full 3 × 3 from `dim` to `hidden`, 1 × 1 back);
# the plain MLP. `hidden` is `dim * expansion`.
#
# <details><summary>Hint</summary>
#
# A Linear from a to b has a · b weights and b biases. A convolution has (kernel side)² times *input
# channels per group* weights for each output channel, and one bias each.
#
# </details>
# <details><summary>Help: off by a few hundred or thousand</summary>
#
# That is nearly always a bias. Count them apart: Mix-FFN has `hidden + hidden + dim`.
#
# </details>

# %% tags=["exercise"]
def my_ffn_counts(dim: int, expansion: int) -> tuple[int, int, int]:
    """Parameters of (Mix-FFN, the report's full convolution, a plain MLP)."""
    # SOLUTION
    hidden = dim * expansion
    mlp = dim * hidden + hidden + hidden * dim + dim
    full = dim * dim + dim + 9 * dim * hidden + hidden + hidden * dim + dim
    return mlp + 9 * hidden + hidden, full, mlp
    # END SOLUTION


checks.ffn_counts(my_ffn_counts)

# %% [markdown] tags=["exercise"]
# ### 4. Stop the leak (10 minutes)
#
# Build a SegFormer-B0 for 5 classes that cannot know where anything is: every convolution stays,
# but none of them may tell a border from the middle. The check sends a constant picture through it,
# which must stay constant in all four stages. Then it moves a picture round by 32 rows and 64
# columns, what leaves on one side coming in on the other, and the features must move with it and
# change in nothing else.
#
# <details><summary>Hint</summary>
#
# `sl.create_model` builds the network; `set_padding(model, mode)` changes every padded convolution of
# a model and returns it. Which of the four modes has no border at all?
#
# </details>
# <details><summary>Help: the constant picture stays constant, the moved one fails</summary>
#
# A mirror and a repeated last row hide the border from a constant picture only. Look at the line
# `1 2 3 4` in the section on the leak: which frame continues a picture that goes round?
#
# </details>

# %% tags=["exercise"]
def leak_free_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes without any trace of position."""
    # SOLUTION
    return set_padding(sl.create_model("segformer_b0", num_classes=5), "circular")
    # END SOLUTION


checks.leak_free(leak_free_segformer())

# %% [markdown]
# ## The package's version
#
# Here is the block that the rest of the course uses, in place:

# %%
print(inspect.getsource(sl.MixFFN))

# %% [markdown]
# The same steps. (`Linear` is `nn.Linear` for maps of tokens: the same function, faster on some
# processors, see [chapter 14](14_speed.ipynb).) And the test: the class of this chapter takes the weights of all eight
# Mix-FFNs of a real B0, `strict`, and must give the same numbers.

# %%
encoder = fresh_encoder("zeros", "zeros")
for number, (stage, dim) in enumerate(zip(encoder.stages, widths), start=1):
    for block in stage.blocks:
        mine = MixFeedForward(dim, expansion=4)
        mine.load_state_dict(block.ffn.state_dict(), strict=True)
        x = torch.randn(2, 7, 10, dim)
        torch.testing.assert_close(mine(x), block.ffn(x))
    print(f"stage {number}: {tuple(x.shape)} -> {tuple(block.ffn(x).shape)}, both blocks equal")

# %% [markdown]
# ## What the paper says, what the code does
#
# - **Depth-wise or full?** The paper's equation 3
#   ([arXiv:2105.15203](https://arxiv.org/abs/2105.15203)) says only "Conv 3 × 3". The text below it
#   says depth-wise, and so does the released code. Whoever builds from the equation gets a full
#   convolution, as the report did (its section 3.2), and with it a stage-4 feed-forward of five times
#   the parameters.
# - **MLP means one linear map.** What equation 3 calls MLP is a single Linear in code: `fc1`, `fc2`.
# - **Expansion 8, 8, 4, 4?** So the paper's Table 6 has it for B0 to B4. The released code and
#   weights have 4 in every stage; [chapter 06](06_encoder.ipynb#two-errors-in-table-6) counts both.
# - **Where is the norm?** Not in equation 3. In code a layer norm stands *before* Mix-FFN (and
#   before attention), in the transformer block.
# - **"Positional encoding is not necessary."** The paper argues that a 3 × 3 convolution is enough to
#   provide position. The readout above agrees. It also shows what the paper does not mention: the
#   overlapped patch embeddings leak as well, and more at the start.
# - **How much does it lose at another size?** Table 1c says 0.7 points, not zero. Which encoder, which
#   table of positions and which training crops were used there, the paper does not say.

# %% [markdown]
# ## Pitfalls
#
# - `groups` forgotten: everything runs, the shapes are right, and each block of stage 4 has
#   9 · 1024² weights more, over nine million.
# - GELU before the convolution: the same keys and shapes, other numbers.
# - The residual added inside Mix-FFN *and* in the block: the stream is counted twice.
# - `reshape` where `permute` belongs: right shape, scrambled map
#   ([chapter 03](03_patch_embedding.ipynb#one-reshape-that-lies)).
# - Another start of the weights: with a standard deviation of 0.02 for *all* convolutions the
#   depth-wise one, which has only nine inputs, is as good as switched off at first. The package
#   starts it at 0.47, as the released code does; [chapter 06](06_encoder.ipynb#the-first-weights)
#   shows the difference.
# - "No positional embedding" taken for "no position": pictures that are padded, cut or tiled give
#   features that differ near the borders.

# %% [markdown]
# ## In short
#
# - Attention and plain MLPs cannot tell where a token is.
# - A table of positions can, for one size; at another it has to be stretched.
# - Mix-FFN puts a depth-wise 3 × 3 convolution between the two linear maps: hardly any parameters,
#   any size, and each token sees its neighbours.
# - Its zero padding marks the border, and from there a trained network counts inwards, in tokens.
# - The patch embeddings leak position as well, at the start far more. Zeros in Mix-FFN are enough,
#   but they are not the only source.
# - On the drawn scenes masks gain by the neighbours that Mix-FFN looks at, and by position nothing
#   that three seeds could show.

# %% [markdown]
# ## What people ask
#
# **Is a 1 × 1 convolution the same as a Linear?** Yes: a matrix for each place. Some versions write
# `fc1` and `fc2` as 1 × 1 convolutions, and only the layout of the axes differs:

# %%
x, linear = torch.randn(2, 5, 6, 8), nn.Linear(8, 3)
pointwise = nn.Conv2d(8, 3, kernel_size=1)
pointwise.weight.data, pointwise.bias.data = linear.weight.data[..., None, None], linear.bias.data
torch.testing.assert_close(pointwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), linear(x))
print("equal:", tuple(linear(x).shape))

# %% [markdown]
# **Then why not drop Mix-FFN's convolution, if the patch embeddings leak anyway?** Because without it
# the position spreads more slowly (the line *without convolution* above), and because it does a second
# thing: it mixes neighbours, which masks need.
#
# **Is this the same as CPVT's conditional encoding
# ([arXiv:2102.10882](https://arxiv.org/abs/2102.10882))?** A close relative, built in
# [chapter 15](15_family_tree.ipynb#cpvt-let-a-convolution-say-where). There one depth-wise 3 × 3
# convolution with zero padding, added to its input, stands between two blocks. Mix-FFN has one in
# every block, inside the wide part.
#
# **May I use another padding to avoid border effects?** Circular padding makes the network blind to
# position; replicate leaks, too. Released weights were trained with zeros and expect them.
#
# **Can I feed any picture size now?** Yes, nothing has to be stretched. In Table 1c the larger size
# costs Mix-FFN 0.7 points all the same; on the drawn scenes above whole pictures did better than
# windows.

# %% [markdown]
# ## Next
#
# Patch embedding, attention, Mix-FFN: all parts of a block are there. [Chapter 06](06_encoder.ipynb)
# stacks them to the whole encoder, meets the published sizes of B0 to B5, and looks at what the four
# stages see.
