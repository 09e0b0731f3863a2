# %% [markdown]
# # 15 · Draw the family tree: who took what from whom
#
# About 40 minutes to read and run, 55 more for the exercises. The code takes about half a minute
# and about 1 GB of memory on a CPU. No GPU is needed, and the modes fast and full are the same
# here: what was trained is read from a file.

# %% [markdown]
# **What you build.** The tree of SegFormer's relatives, drawn from a table, and the idea of each of
# nine of them in at most thirty lines. Wherever it fits, the idea then takes the place of
# SegFormer's own in a real SegFormer-B0, so that what it costs can be counted.
#
# **What you learn.**
#
# - which of SegFormer's parts were new, and which it took from a neighbour, down to equal numbers;
# - pyramid pooling (PSPNet), holes in a kernel (DeepLabV3+), one scale and a table of places (ViT,
#   SETR);
# - branches that exchange (HRNet), windows that shift (Swin), places made by a convolution (CPVT),
#   layers that start switched off (SeMask), queries instead of pixels (MaskFormer);
# - what each costs in parameters and in multiply-accumulates;
# - how the trained ones compare on equal data and budget, and how much of a difference is noise.
#
# **What you need.** Chapters [03](03_patch_embedding.ipynb) to [07](07_mlp_decoder.ipynb), or an
# idea of what patch embedding, attention, Mix-FFN and decoder do.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import inspect
import itertools
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from matplotlib import cbook
from PIL import Image
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import macs, parameters
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models import MLPDecoder, upsample
from segformer_lite.models.variants import MLPFFN

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("patch_embed", "attention", "mix_ffn", "decoder"))

# %% [markdown]
# All of it is lit: every part of SegFormer is the answer to a question that others have answered
# differently.

# %% [markdown]
# ## The question
#
# **What is SegFormer's own, and what would have been another choice?** "The Transformer is better"
# is no answer. Five choices are, and each has neighbours:
#
# | choice | SegFormer's answer | in the code | others in this chapter |
# |---|---|---|---|
# | scales | four, $F_1$ to $F_4$ at 1/4 to 1/32 | `encoder` | one (SETR), four in parallel (HRNet) |
# | tokens | windows that overlap, $K > S$ | `patch_embed=` | patches side by side (ViT, PVT) |
# | who looks at whom | all at $N / R$ merged tokens | `attention=` | all at all (ViT), windows (Swin) |
# | where am I? | a 3 × 3 in each Mix-FFN | `ffn=` | a table (ViT, PVT), one 3 × 3 (CPVT) |
# | map to mask | sum of four maps, two layers | `decoder=` | pooling, holes, queries |
#
# The third column is what makes this chapter possible: `create_model` takes another class for each
# of the parts, so a neighbour's idea can stand in SegFormer's own place.

# %% [markdown]
# ## The tree
#
# First the networks: their number on arXiv, which begins with year and month, a row to draw them
# in, and the family they belong to.

# %%
NETWORKS = {  # name: (arXiv number, row, family)
    "FCN": ("1411.4038", 4.0, "convolution"),
    "U-Net": ("1505.04597", 5.7, "convolution"),
    "SegNet": ("1511.00561", 2.4, "convolution"),
    "PSPNet": ("1612.01105", 4.0, "convolution"),
    "DeepLabV3+": ("1802.02611", 5.2, "convolution"),
    "HRNet": ("1908.07919", 2.4, "convolution"),
    "zero padding": ("2001.08248", 0.9, "study"),
    "DETR": ("2005.12872", 5.6, "attention"),
    "ViT": ("2010.11929", 3.4, "attention"),
    "SETR": ("2012.15840", 5.0, "attention"),
    "PVT": ("2102.12122", 3.1, "attention"),
    "CPVT": ("2102.10882", 0.3, "attention"),
    "Swin": ("2103.14030", 4.3, "attention"),
    "SegFormer": ("2105.15203", 1.8, "SegFormer"),
    "MaskFormer": ("2107.06278", 5.6, "attention"),
    "SeMask": ("2112.12782", 3.2, "attention"),
}

# %% [markdown]
# Then who took what from whom. A line is *taken* when the younger network has the older one's part
# in it, and *alike* when both do the same without one having it from the other's code.

# %%
TAKEN = [  # (from, to, what)
    ("FCN", "U-Net", "skips"), ("FCN", "SegNet", ""), ("FCN", "PSPNet", ""), ("FCN", "HRNet", ""),
    ("U-Net", "DeepLabV3+", "a skip"), ("PSPNet", "DeepLabV3+", "pooling"),
    ("ViT", "SETR", "encoder"), ("ViT", "PVT", ""), ("ViT", "CPVT", ""), ("ViT", "Swin", ""),
    ("PVT", "SegFormer", "shorter keys,\nfour scales"), ("CPVT", "SegFormer", "3 × 3"),
    ("zero padding", "SegFormer", "position leaks"),
    ("DETR", "MaskFormer", "queries"), ("Swin", "MaskFormer", "encoder"),
    ("Swin", "SeMask", "encoder"), ("SegFormer", "SeMask", "encoder"),
]
ALIKE = [("HRNet", "SegFormer", "all maps at 1/4")]

# %%
YEARS, ACROSS = [2014.5, 2020, 2020.8, 2021.5, 2022.1], [0, 4.3, 5.4, 10, 11.4]
LOOK = {"convolution": (show.COLOURS["sky"], "square"), "study": ("white", "square"),
        "attention": (show.COLOURS["yellow"], "round"), "SegFormer": (show.COLOURS["orange"], "round")}


def draw_name(ax, name):
    """A box at its time (years without much news pressed together) and row; returns the box."""
    number, row, family = NETWORKS[name]
    year = 2000 + int(number[:2]) + (int(number[2:4]) - 1) / 12
    colour, corners = LOOK[family]
    return ax.text(np.interp(year, YEARS, ACROSS), row, name, ha="center", va="center", fontsize=7.5,
                   zorder=3, bbox={"boxstyle": f"{corners},pad=0.4", "fc": colour, "ec": "#555555"})


def draw_line(ax, old, new, what, style):
    colour = "black" if "SegFormer" in (old.get_text(), new.get_text()) else "#999999"
    (x0, y0), (x1, y1) = old.get_position(), new.get_position()
    ax.annotate("", (x1, y1), (x0, y0), zorder=1, arrowprops={
        "arrowstyle": "-|>", "color": colour, "ls": style, "lw": 1.2, "shrinkA": 2, "shrinkB": 2,
        "patchA": old.get_bbox_patch(), "patchB": new.get_bbox_patch()})
    ax.text(0.55 * x0 + 0.45 * x1, 0.55 * y0 + 0.45 * y1, what, fontsize=6.5, zorder=2,
            ha="center", va="center", bbox={"fc": "white", "ec": "none", "pad": 0.6})


# %%
fig, ax = plt.subplots(figsize=(7, 4))
years = [*range(2015, 2023)]
ax.set(xlim=(-0.4, 11.8), ylim=(-0.2, 6.2), yticks=[], xticks=np.interp(years, YEARS, ACROSS),
       xticklabels=years)
ax.spines["left"].set_visible(False)
boxes = {name: draw_name(ax, name) for name in NETWORKS}
fig.canvas.draw()  # now the boxes know their size
for lines, style in ((TAKEN, "-"), (ALIKE, "--")):
    for old, new, what in lines:
        draw_line(ax, boxes[old], boxes[new], what, style)
show.figure(fig, alt=(
    "A tree of sixteen boxes over the years 2014 to 2021. Square blue boxes are convolution "
    "networks, round yellow ones use attention. From FCN lines lead to U-Net, SegNet, PSPNet and "
    "HRNet, from U-Net and PSPNet to DeepLabV3+. From ViT lines lead to SETR, PVT, CPVT and Swin. "
    "Into SegFormer, in orange, lead PVT with shorter keys and four scales, CPVT with a 3 by 3 "
    "convolution, the study of zero padding, and a dashed line from HRNet. DETR and Swin lead to "
    "MaskFormer, Swin and SegFormer to SeMask."))

# %% [markdown]
# Read it from left to right. Square and blue: networks of convolutions. Round and yellow: networks
# with attention. White: a study that trained no segmenter, but asked where networks know positions
# from. A plain line without a word means *from end to end*: the child took the whole way of
# working, convolutions throughout from FCN, patches as tokens from ViT. The years before the autumn
# of 2020 are pressed together; eight of the networks are from fourteen months.
#
# The black lines are SegFormer's own. Three of them are named in its paper (section 3.1): the
# shorter list of keys comes from PVT, the 3 × 3 convolution for positions answers CPVT, and that
# zero padding gives positions away is taken from the study. The dashed one is not: HRNet's head
# brings all its maps to 1/4 and puts them side by side before a 1 × 1 convolution, and so does the
# MLP decoder. Both can be seen in code; that one was taken from the other is written nowhere.

# %% [markdown]
# ## Two tools
#
# The ideas come as small classes. `step` stands inside them and says the shape after each step, but
# only while a toy runs. `toy_run` runs one.

# %%
aloud = False  # whether `step` speaks


def step(name, x):
    """Hand x on unchanged; while a toy runs, say its shape."""
    if aloud:
        print(f"{name:32s}{tuple(x.shape)}")
    return x


@torch.no_grad()
def toy_run(module, x):
    """Run the module on a toy tensor, or on a list of maps, with every step said aloud."""
    global aloud
    aloud = True
    for part in x if isinstance(x, list) else [x]:
        step("in", part)
    out = module(x)
    aloud = False
    return out


# %% [markdown]
# `in_its_place` builds a SegFormer-B0 in which a neighbour's class stands where SegFormer's own
# stood, and counts: parameters, and the multiply-accumulates (MACs) of one picture of 128 × 128
# pixels. Nothing is trained, so the numbers speak of cost and of nothing else.

# %%
SIDE, CLASSES = 128, 11
released = sl.create_model("segformer_b0", num_classes=CLASSES)
costs = {"SegFormer-B0": (parameters(released), macs(released, SIDE))}


def note(name, count, work):
    """Keep a cost and say by how much it differs from SegFormer-B0's."""
    costs[name] = count, work
    own_count, own_work = costs["SegFormer-B0"]
    print(f"{name}: {count:,} parameters ({count - own_count:+,}), "
          f"{work / 1e6:.0f} M MACs ({work / own_work - 1:+.0%})")


def in_its_place(name, **parts):
    model = sl.create_model("segformer_b0", num_classes=CLASSES, **parts)
    note(name, parameters(model), macs(model, SIDE))
    return model


note("SegFormer-B0", *costs["SegFormer-B0"])

# %% [markdown]
# And a picture, the photograph that comes with matplotlib: Rear Admiral Grace Hopper.

# %%
def picture(side):
    """The photograph as uint8 (1, 3, side, side)."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
        square = file.convert("RGB").crop((0, 20, 512, 532))
    small = square.resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]


with torch.no_grad():
    maps = released.eval().encoder(sl.preprocess(picture(SIDE)))  # [F1, F2, F3, F4]
print([tuple(m.shape) for m in maps])

# %% [markdown]
# ## PSPNet: a pyramid of means
#
# **The idea.** A 3 × 3 convolution reads nine places. To know that the blue patch is sea and not
# sky, a place needs the rest of the scene. PSPNet computes the map's mean over the whole, over 2 ×
# 2, 3 × 3 and 6 × 6 regions, enlarges each to the size of the map and lays all of them beside it.
# On the photograph itself:

# %%
square = picture(96).float() / 255
pooled = [upsample(F.adaptive_avg_pool2d(square, bins), (96, 96))[0] for bins in (1, 2, 3, 6)]
titles = ["the map", "1 × 1", "2 × 2", "3 × 3", "6 × 6"]
fig = show.grid([square[0], *pooled], titles, columns=5, cell=1.35)
show.figure(fig, alt=(
    "The photograph and four blurred versions of it: one even grey-brown, then soft gradients made "
    "of 4, 9 and 36 means, in the last of which the face is a bright spot."))

# %% [markdown]
# From left to right: the map, then what each level of the pyramid tells every pixel about its
# surroundings, coarse to less coarse. In the network each level first goes through a 1 × 1
# convolution that keeps a quarter of the channels, so that the four levels together weigh as much
# as the map.

# %%
class Pyramid(nn.Module):
    """(B, C, H, W) -> (B, 2C, H, W): the map, and beside it its means over 1, 4, 9 and 36 regions."""

    def __init__(self, channels, bins=(1, 2, 3, 6)):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), self.thin(channels, channels // 4)) for b in bins)

    @staticmethod
    def thin(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, x):
        pooled = [step("pooled, thinned", level(x)) for level in self.levels]
        enlarged = [upsample(p, x.shape[-2:]) for p in pooled]
        return step("all side by side", torch.cat([x, *enlarged], dim=1))


pyramid = Pyramid(256).eval()
_ = toy_run(pyramid, torch.randn(1, 256, 12, 12))

# %% [markdown]
# **Predict, then run.** A map of 12 × 12 places; the values at its upper left corner change. How
# many of the 144 places hear of it after the pyramid?
#
# - A. The four places of the corner.
# - B. The 36 places of its 2 × 2 region.
# - C. All 144.

# %%
def hears(module, side=12):
    """How many places of the result change when the corner of a random map does."""
    x = torch.randn(1, 256, side, side, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 0, 0] += 10
    with torch.no_grad():
        return int(((module(changed) - module(x)).abs().amax(1) > 1e-6).sum())


stage_4 = released.encoder.stages[3].blocks[0].attention


def by_attention(x):
    """Attention of SegFormer's fourth stage on (B, C, H, W)."""
    return stage_4(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


conv = nn.Conv2d(256, 256, 3, padding=1)
for name, module in {"3 x 3 convolution": conv, "pyramid": pyramid, "attention": by_attention}.items():
    print(f"{name:18s}{hears(module):4d} of 144")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why?* The level with one region is the mean of everything, and every place gets it. But
# all places get the *same* message. Attention also reaches all 144, and there each place asks for
# what it needs.
#
# </details>
#
# SegFormer has no pyramid: its fourth stage does that work inside the encoder.
#
# The class carries the package's weights:

# %%
package = sl.models.resnet.PyramidPooling(256).eval()
pyramid.load_state_dict(package.state_dict(), strict=True)
x = torch.randn(1, 256, 12, 12)
torch.testing.assert_close(pyramid(x), package(x), rtol=0, atol=0)
print(f"equal; {parameters(package):,} parameters")

# %% [markdown]
# ## DeepLabV3+: holes in the kernel
#
# **The idea.** Instead of pooling, pull the nine taps of a 3 × 3 kernel apart. With *rate* $r$ they
# stand $r$ places from each other; the French *à trous*, with holes, gave *atrous*. Nine
# multiplications per place as before, and a window of $2r + 1$.

# %%
def taps(rate, side=24):
    """Which places of a side x side map the middle place reads: (side, side)."""
    weight, middle = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, side, side)
    middle[..., side // 2, side // 2] = 1
    return F.conv_transpose2d(middle, weight, padding=rate, dilation=rate)[0, 0]


def draw_taps(rates, cell=1.15):
    titles = [f"rate {rate}" for rate in rates]
    return show.grid([taps(rate) for rate in rates], titles, columns=6, cell=cell, cmap="cividis")


show.figure(draw_taps((1, 2, 4, 6, 9, 12)), alt=(
    "Six maps of 24 by 24 places with the nine taps of a 3 by 3 kernel around the middle. At rate 1 "
    "they touch, at rate 6 they span half the map, at rate 12 the outer ones lie on or beyond the "
    "edge and only four of the nine are left."))

# %% [markdown]
# The same nine weights in all six. At rate 12 the middle of a 24-wide map still reads four real
# places; the other taps have fallen off the edge and read padding. If the notebook is running,
# slide:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_rate(rate):
    show.figure(draw_taps((rate,), cell=2.6), alt=(
        f"The taps of a 3 by 3 kernel at rate {rate} on a map of 24 by 24 places."))


_ = interact(try_rate, rate=IntSlider(4, 1, 24, continuous_update=False))

# %% [markdown]
# **Predict, then run.** A map of 24 × 24 places, a 3 × 3 kernel at rate 18. How many of its nine
# taps are on real places, on average over the map?
#
# - A. Nearly nine: only the border loses some.
# - B. About five.
# - C. About two.

# %%
def real_taps(rate, side):
    """How many of the nine taps lie on the map, the mean over all places."""
    ones, weight = torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3)
    return F.conv2d(ones, weight, padding=rate, dilation=rate).mean().item()


for side in (64, 24, 12):
    counts = [f"rate {rate}: {real_taps(rate, side):.1f}" for rate in (2, 6, 12, 18)]
    print(f"{side} places a side:", ", ".join(counts))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why?* At rate 18 the outer taps are on the map only for the places within six of an edge.
# Where they are not, the 3 × 3 kernel has become a 1 × 1.
#
# </details>
#
# Rates belong to a map size. DeepLab's 6, 12, 18 (or 12, 24, 36) are for large pictures; on the 12
# × 12 map of a picture of 96 pixels most of that kernel would be padding. The package's network in
# teaching size therefore has 2, 4, 6.
#
# DeepLabV3+ reads the last map five times, with a 1 × 1, with three rates, and as a mean, which is
# PSPNet's coarsest level. That is *atrous spatial pyramid pooling* (ASPP).

# %%
class Atrous(nn.Module):
    """(B, C, H, W) -> (B, dim, H, W): a 1 x 1, three 3 x 3 with holes and the mean, put together."""

    def __init__(self, c_in, dim, rates):
        super().__init__()
        self.branches = nn.ModuleList([self.layer(c_in, dim, 1, 1)])
        self.branches.extend(self.layer(c_in, dim, 3, rate) for rate in rates)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), self.layer(c_in, dim, 1, 1))
        self.project = self.layer((len(rates) + 2) * dim, dim, 1, 1)

    @staticmethod
    def layer(c_in, c_out, kernel, rate):
        conv = nn.Conv2d(c_in, c_out, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, x):
        read = [step("one branch", branch(x)) for branch in self.branches]
        mean = step("the mean", self.image(x)).expand(-1, -1, *x.shape[-2:])
        return step("together", self.project(torch.cat([*read, mean], dim=1)))


deeplab = sl.create_model("deeplabv3plus", num_classes=CLASSES).eval()
channels = deeplab.encoder.dims[-1]
atrous, deep = Atrous(channels, channels // 4, rates=(2, 4, 6)).eval(), torch.randn(1, channels, 12, 12)
_ = toy_run(atrous, deep)

# %%
atrous.load_state_dict(deeplab.decoder.aspp.state_dict(), strict=True)
torch.testing.assert_close(atrous(deep), deeplab.decoder.aspp(deep), rtol=0, atol=0)
print(f"equal; {parameters(atrous):,} parameters, the whole network has {parameters(deeplab):,}")

# %% [markdown]
# The *plus* is the second half: the result is enlarged to 1/4, laid beside a thin copy of the first
# stage's map, and refined. What a coarse map knows and what a fine map sees come together once.

# %%
print(inspect.getsource(sl.models.resnet.DeepLabDecoder.forward))

# %% [markdown]
# SegFormer's decoder does that with all four maps, and has no 3 × 3 convolution at all: the
# neighbourhood has been read in the encoder. The paper makes this its argument (section 3.2): a
# light decoder is enough *because* the encoder's field of view is large.

# %% [markdown]
# ## ViT and SETR: one scale, and a table of places
#
# **The idea.** Cut the picture into patches side by side, give each a learned vector that says
# where it lies, and let all look at all. SETR takes a whole ViT as encoder, and enlarges its one
# map step by step. The package builds it from SegFormer's own block: with `stride=1` nothing is
# merged, and `MLPFFN` is a feed-forward network without the convolution.

# %%
setr = sl.create_model("setr", num_classes=CLASSES).eval()
embed, block = setr.encoder.stages[0].patch_embed, setr.encoder.stages[0].blocks[0]
x = sl.preprocess(picture(96))
with torch.no_grad():
    tokens = embed.proj(x)
    print("patches          ", tuple(tokens.shape))
    print("table of places  ", tuple(embed.position.shape))
    print("tokens           ", tuple(embed(x).shape))
    print("after a block    ", tuple(block(embed(x)).shape), type(block).__name__, type(block.ffn).__name__)
    print("the only map     ", tuple(setr.encoder(x)[0].shape))
    print("logits           ", tuple(setr(x).shape))

# %% [markdown]
# What the table is worth, and what it costs at another size, was [chapter 05](05_mix_ffn.ipynb)'s
# subject. Here the other two differences, in numbers: how many scales there are, and how many pairs
# of tokens a layer compares.

# %%
def pairs(side, patch, merged=1):
    """Pairs of query and key in one layer: all tokens with all tokens, `merged` of which share a key."""
    n = (side // patch) ** 2
    return n * n // merged


for side in (96, 512):
    print(f"{side} px")
    print(f"  patches of 16, as ViT         {pairs(side, 16):12,d}")
    print(f"  patches of 4, SegFormer's R   {pairs(side, 4, 64):12,d}")
    print(f"  patches of 4, nothing merged  {pairs(side, 4):12,d}")

# %% [markdown]
# With patches of 16 a ViT pays a quarter of what SegFormer's first stage pays, and has one token
# where SegFormer has sixteen. Patches of 4 without merging would cost a ViT 256 times as much.
# Merging keys ([chapter 04](04_efficient_attention.ipynb)) is what makes fine tokens affordable,
# and the other three stages give the coarse ones. The package's SETR has patches of 8, because a
# picture of 96 pixels would have only 6 × 6 patches of 16.
#
# The paper lists the differences to SETR itself (section 3.3): four scales instead of one,
# no table, a decoder without 3 × 3 convolutions, and an encoder that was pretrained on ImageNet-1K
# only.

# %%
for name in ("pspnet", "deeplabv3plus", "setr"):
    model = sl.create_model(name, num_classes=CLASSES)
    note(name, parameters(model), macs(model, SIDE))

# %% [markdown]
# The three whole networks in teaching size, beside SegFormer-B0: fewer parameters, more than twice
# the MACs. All three work at 1/8 for most of their way, where SegFormer has long gone on to 1/16
# and 1/32.

# %% [markdown]
# ## HRNet: four branches that never stop talking
#
# **The idea.** Other encoders shrink the map and win detail back later. HRNet never gives it up: it
# keeps a branch at 1/4 from beginning to end, adds smaller ones beside it, and lets all branches
# exchange again and again. In an exchange every branch gets the sum of all, each brought to its
# size: a 1 × 1 convolution and enlarging on the way up, a 3 × 3 of stride 2 per halving on the way
# down.
#
# SegFormer's four maps are four such branches. So let them exchange once, and put HRNet's head
# behind it (norms left out).

# %%
class ExchangeDecoder(nn.Module):
    """[F1..F4] -> logits at 1/4: one exchange between all maps, then all at 1/4, side by side."""

    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        self.paths = nn.ModuleList(nn.ModuleList(self.path(in_channels, a, b) for a in range(4))
                                   for b in range(4))
        self.fuse = nn.Conv2d(sum(in_channels), sum(in_channels), 1)
        self.classify = nn.Conv2d(sum(in_channels), num_classes, 1)

    @staticmethod
    def path(dims, a, b):
        """What brings branch a to the channels and, downwards, to the size of branch b."""
        if a == b:
            return nn.Identity()
        if a > b:
            return nn.Conv2d(dims[a], dims[b], 1)
        widths = [dims[a]] * (b - a) + [dims[b]]
        return nn.Sequential(*(nn.Conv2d(c, d, 3, stride=2, padding=1)
                               for c, d in itertools.pairwise(widths)))

    def forward(self, maps):
        sizes = [m.shape[-2:] for m in maps]
        mixed = [F.relu(sum(upsample(path(m), size) for path, m in zip(paths, maps)))
                 for paths, size in zip(self.paths, sizes)]
        mixed = [step("branch after the exchange", m) for m in mixed]
        stacked = step("side by side", torch.cat([upsample(m, sizes[0]) for m in mixed], dim=1))
        return step("logits", self.classify(F.relu(self.fuse(stacked))))


_ = toy_run(ExchangeDecoder((32, 64, 160, 256), 256, CLASSES), maps)

# %%
hrnet = in_its_place("HRNet's exchange", decoder=ExchangeDecoder)
theirs, ours = macs(hrnet, SIDE, "decoder"), macs(released, SIDE, "decoder")
print(f"decoder alone: {theirs / 1e6:.0f} M MACs, SegFormer's {ours / 1e6:.0f} M")

# %% [markdown]
# **SegFormer's choice:** its maps meet once, at the very end, in one sum, and never look back. A
# decoder with one exchange does almost six times the work, and the real HRNet has eight of them (1,
# 4 and 3 in its last three stages), with convolutions on all branches in between.

# %% [markdown]
# ## PVT: the parent
#
# **The idea.** A ViT with four scales. Patches are small and side by side, 4, then 2, 2, 2; each
# stage has its own table of places; and keys and values are shortened. PVT counts the shortening
# per axis: $(HW / R^2) \times (R^2 C)$ tokens go through a linear map. Written like this it looks
# unlike the convolution in SegFormer. Give it the convolution's weights:

# %%
def pvt_shorten(x, R, weight, bias):
    """PVT's equation on (B, H, W, C): Reshape to (HW / R², R² C), then a linear map back to C."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // R, R, w // R, R, c).permute(0, 1, 3, 5, 2, 4)  # b h w, then c y x
    x = step("HW / R² rows of R² C", x.reshape(b, h * w // R**2, R**2 * c))
    return F.linear(x, weight.flatten(1), bias)


class PVTPatches(nn.Module):
    """Patches side by side, and a learned place for each: right for pictures of SIDE x SIDE only."""

    def __init__(self, in_channels, dim, kernel, stride):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, stride, stride)
        self.norm = nn.LayerNorm(dim)
        side = SIDE // {32: 4, 64: 8, 160: 16, 256: 32}[dim]
        self.place = nn.Parameter(torch.zeros(side, side, dim))

    def forward(self, x):
        x = step("patches", self.norm(self.proj(x).permute(0, 2, 3, 1)))
        return step("patches with their places", x + self.place)


_ = toy_run(PVTPatches(3, 32, 7, 4), torch.randn(1, 3, SIDE, SIDE))
attention, F1 = released.encoder.stages[0].blocks[0].attention, maps[0].permute(0, 2, 3, 1)
short = toy_run(lambda x: pvt_shorten(x, 8, attention.reduce.weight, attention.reduce.bias), F1)

# %%
torch.testing.assert_close(attention.norm(short), attention.shorten(F1).flatten(1, 2))
print("PVT's shortening = SegFormer's,", tuple(short.shape))
pvt = in_its_place("PVT's patches and FFN", patch_embed=PVTPatches, ffn=MLPFFN)
print(f"numbers in the tables of places: {sum(s.patch_embed.place.numel() for s in pvt.encoder.stages):,}")

# %% [markdown]
# The assertion passes: SegFormer's efficient attention *is* PVT's. What it changed is around it.
# The patches overlap, and Mix-FFN replaces the four tables, which here hold more numbers than all 3
# × 3 convolutions of Mix-FFN. And a table belongs to one size:

# %%
for size in (SIDE, 160):
    try:
        print(f"{size} px:", tuple(pvt(torch.randn(1, 3, size, size)).shape))
    except RuntimeError as error:
        print(f"{size} px:", str(error).split(" at ")[0])

# %% [markdown]
# **SegFormer's choice:** overlap and the convolution in Mix-FFN, for which it pays a tenth of its
# MACs. In return any size runs, with nothing to resize.

# %% [markdown]
# ## Swin: look at your window, then shift the windows
#
# **The idea.** Don't shorten the list: cut the map into windows and let every token look at all
# tokens of its own window, and at no other. So that windows hear of each other, every second block
# moves them by half a window. (Swin's windows are 7 × 7 and move by 3; here 4 × 4, moved by 2.)
#
# Written down plainly, a window is a number that two tokens share:

# %%
def window_numbers(side, window, shift):
    """(side, side): the number of the window in which each token lies."""
    line = (torch.arange(side) - shift + window) // window
    return line[:, None] * (side // window + 1) + line


class WindowAttention(sl.EfficientSelfAttention):
    """(B, H, W, C) -> same: each token looks at its own window; every other block shifts the windows."""

    shifts = itertools.cycle((0, 2))

    def __init__(self, dim, heads, stride):
        super().__init__(dim, heads, stride=1)  # no merging
        self.shift = next(self.shifts)

    def forward(self, x):
        q, k, v = (step("q, k, v in turn", y) for y in self.queries_keys_values(x))
        numbers = window_numbers(x.shape[1], 4, self.shift).flatten().to(x.device)
        allowed = step("who may look at whom", numbers[:, None] == numbers)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return step("out", self.proj(out.transpose(1, 2).reshape(x.shape)))


plain, shifted = WindowAttention(64, 2, stride=4), WindowAttention(64, 2, stride=4)
_ = toy_run(shifted, torch.randn(1, 8, 8, 64))

# %%
def write_numbers(ax, numbers):
    """On each token the number of its window, counted from 1."""
    for y, x in np.ndindex(*numbers.shape):
        number = numbers.unique().tolist().index(numbers[y, x]) + 1
        ax.text(x, y, number, ha="center", va="center", fontsize=6, color="white", weight="bold")


numbers = [window_numbers(8, 4, shift) for shift in (0, 2)]
masks = [(n.flatten()[:, None] == n.flatten()).float() for n in numbers]
panels = [*(n / n.max() * 0.6 for n in numbers), *masks]
titles = ["windows", "windows, shifted", "who looks at whom", "the same, shifted"]
fig = show.grid(panels, titles, cell=1.7, cmap="cividis", vmin=0, vmax=1)
for ax, n in zip(fig.axes, numbers):
    write_numbers(ax, n)
show.figure(fig, alt=(
    "Left, a map of 8 by 8 tokens in four numbered square windows; beside it the same map with "
    "windows shifted by two: nine pieces, large in the middle, narrow at the edges, small in the "
    "corners. Right, two masks of 64 by 64, for each token the ones it may look at: two checkered "
    "squares along the diagonal; when shifted, a small, a large and a small one."))

# %% [markdown]
# Left two: 64 tokens, each with the number of its window. Shifted, they lie in *nine* pieces
# instead of four. Right two: row $i$ shows in yellow whom token $i$ may look at.
#
# Nine pieces of different size are awkward to compute. Swin's trick: roll the map by two tokens, so
# that what sticks out at the top comes back at the bottom. Now there are four full windows again,
# but some hold pieces of different corners of the picture, and those must not see each other. That
# is what Swin's *attention mask* is for.
#
# **Predict, then run.** After rolling, the lower right window holds 16 tokens. To how many of them
# may each look?
#
# - A. To all 16.
# - B. To 8.
# - C. To 4.

# %%
rolled = numbers[1].roll((-2, -2), dims=(0, 1))
windows = rolled.reshape(2, 4, 2, 4).transpose(1, 2).reshape(4, 16)  # four windows of 16 tokens
masks = windows[:, :, None] == windows[:, None, :]
print("tokens that each token may look at:", [int(m.sum(1).float().mean()) for m in masks])

# %%
titles = ["rolled map", "upper left", "upper right", "lower left", "lower right"]
panels = [rolled / rolled.max() * 0.6, *masks.float()]
fig = show.grid(panels, titles, columns=5, cell=1.35, cmap="cividis", vmin=0, vmax=1)
write_numbers(fig.axes[0], rolled)
show.figure(fig, alt=(
    "The rolled map with its nine pieces in four quadrants, and the four masks of 16 by 16: squares of "
    "tokens that may look at each other. The cell above has counted them."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why?* Left: the rolled map. Its lower right quadrant is made of the four corners of the
# picture. They are neighbours in the window and far apart in the picture, so each group of four
# keeps to itself. The upper left quadrant is one true window and needs no mask.
#
# </details>
#
# What does it cost? `WindowAttention` above is honest but lazy: it computes all pairs and masks
# most of them. With windows really cut out (exercise 1) the two products cost $2 N w^2 C$ for
# windows of $w \times w$, where SegFormer pays $2 N (N / R) C$.

# %%
def products(keys, side=SIDE):
    """MACs of both products of attention in B0's eight blocks; keys(n): keys per query among n tokens."""
    tokens = [(side // s) ** 2 for s in (4, 8, 16, 32)]
    return sum(2 * 2 * n * keys(n) * dim for n, dim in zip(tokens, (32, 64, 160, 256)))


lazy = sl.create_model("segformer_b0", num_classes=CLASSES, attention=WindowAttention)
cut = macs(lazy, SIDE) - products(lambda n: n) + products(lambda n: 16)
note("Swin's windows, 4 × 4", parameters(lazy), cut)
print("keys per query in stage 1")
for side in (128, 512, 1024):
    all_keys, merged = (side // 4) ** 2, (side // 32) ** 2
    print(f"{side:5d} px: nothing merged {all_keys:6,d}, SegFormer {merged:5,d}, Swin 49")

# %% [markdown]
# **SegFormer's choice:** at 128 pixels a query has 16 keys either way, with the windows of 4 × 4
# used here (Swin's own 7 × 7 have 49). SegFormer's 16 cover the whole picture, each a blurred
# square of 32 × 32 pixels; the window's 16 are the nearest tokens, sharp. In large pictures Swin's
# number stays and SegFormer's grows with the area. What a window costs is distance: news travels
# from window to window, one shift per two blocks.

# %% [markdown]
# ## CPVT: let a convolution say where
#
# **The idea.** A table of places belongs to one size. CPVT makes the place out of the tokens
# themselves: a depth-wise 3 × 3 convolution over the token map, zero-padded, added to it. It sits
# after the first block; here it follows the patch embedding, for that is where `create_model` has a
# slot.

# %%
class Conditional(sl.OverlapPatchEmbed):
    """Tokens plus what a depth-wise 3 x 3 convolution makes of their neighbourhood."""

    def __init__(self, in_channels, dim, kernel, stride):
        super().__init__(in_channels, dim, kernel, stride)
        self.peg = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def place(self, tokens):
        return tokens + self.peg(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x):
        tokens = step("tokens", super().forward(x))
        return step("tokens that know their place", self.place(tokens))


conditional = Conditional(3, 32, 7, 4)
_ = toy_run(conditional, torch.randn(1, 3, SIDE, SIDE))
same = torch.ones(1, 8, 8, 32)  # 64 tokens, all alike
with torch.no_grad():
    placed = (conditional.place(same) * 1e4).round().reshape(64, 32)
print("kinds of tokens: before", len(same.reshape(64, 32).unique(dim=0)), "after", len(placed.unique(dim=0)))

# %% [markdown]
# Sixty-four equal tokens go in, nine kinds come out: four corners, four edges, the middle. Padding
# is the only thing that tells them apart, and each further convolution carries the news one token
# deeper into the map.

# %%
cpvt = in_its_place("CPVT's positions", patch_embed=Conditional, ffn=MLPFFN)
once = sum(parameters(stage.patch_embed.peg) for stage in cpvt.encoder.stages)
always = sum(parameters(block.ffn.dwconv) for stage in released.encoder.stages for block in stage.blocks)
print(f"parameters of the 3 x 3 convolutions: once per stage {once:,}, in every Mix-FFN {always:,}")

# %% [markdown]
# **SegFormer's choice:** the same convolution, but in *every* block, on four times as many
# channels, inside the feed-forward network. Beside the patch embedding and the merging of keys it
# is the only place where neighbours meet, so it does more than tell places: it also reads detail.

# %% [markdown]
# ## SeMask: a layer that starts switched off
#
# **The idea.** Take a pretrained encoder, Swin's or SegFormer's, and after each stage let every
# token say which class it thinks it is; tokens of like mind share their values. The result is added
# with a factor $\gamma$ that starts at 0, so that the pretrained network is not disturbed. The
# class maps of all stages are supervised by an extra head. (SeMask cuts Swin's windows in large
# maps; here all tokens see all.)

# %%
class SemanticLayer(nn.Module):
    """(B, H, W, C) -> same: the stage's norm, then tokens of like class share; gamma starts at 0."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.to_classes, self.to_keys = nn.Linear(dim, CLASSES), nn.Linear(dim, CLASSES)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        x = self.norm(x)
        tokens = step("tokens", x.flatten(1, 2))
        classes = step("class map, supervised", self.to_classes(tokens))
        alike = step("who thinks alike", (classes @ self.to_keys(tokens).transpose(1, 2)).softmax(-1))
        shared = step("shared values", self.out(alike @ self.value(tokens)))
        return step("out", x + self.gamma * shared.reshape(x.shape))


layer = SemanticLayer(64)
x = torch.randn(1, 8, 8, 64)
out = toy_run(layer, x)
print("changes anything:", not torch.equal(out, layer.norm(x)))

# %% [markdown]
# **Predict, then run.** $\gamma$ is 0 and the layer changes nothing. Which of its *new* weights
# (the norm stood there before) get a gradient in the first step of training, from the loss at the
# network's end?
#
# - A. None: multiplied by 0, nothing can be learned.
# - B. $\gamma$ alone.
# - C. All of them.

# %%
def gradients(layer):
    """Largest gradient of each part after one backward pass of a random loss."""
    layer.zero_grad()
    (layer(x) * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return {name: float(p.grad.abs().max()) for name, p in layer.named_parameters()
            if name.endswith(("weight", "gamma")) and not name.startswith("norm")}


for moment, gamma in (("first step", 0.0), ("gamma = 0.01", 0.01)):
    layer.gamma.data.fill_(gamma)
    awake = [name for name, size in gradients(layer).items() if size > 0]
    print(f"{moment}: a gradient for {', '.join(awake)}")
locked = copy.deepcopy(layer)
for parameter in (locked.gamma, locked.out.weight, locked.out.bias):
    parameter.data.zero_()
awake = [name for name, size in gradients(locked).items() if size > 0]
print("out = 0 as well: a gradient for", awake or "nothing, for ever")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why?* The output is $x + \gamma s$. Its derivative by $\gamma$ is $s$, which is not zero;
# its derivative by anything inside $s$ carries the factor $\gamma$. So $\gamma$ moves first and
# then wakes the rest. *One* zero is a switch. Two zeros in a row, $\gamma$ and the last linear map,
# are a lock: each waits for the other, and the layer never learns.
#
# </details>

# %%
semask = in_its_place("SeMask's layers", stage_norm=SemanticLayer)
affinity = sum((SIDE // s) ** 4 * (CLASSES + dim)
               for s, dim in zip((4, 8, 16, 32), (32, 64, 160, 256)))
print(f"of that, comparing all tokens with all: {affinity / 1e6:.0f} M MACs")

# %% [markdown]
# **SegFormer's choice:** no class is named before the decoder's last layer, and no loss but the
# last one trains the encoder.

# %% [markdown]
# ## MaskFormer: ask what is there, then where
#
# **The idea.** All networks so far ask every pixel for its class. MaskFormer has a set of
# *queries*. Each query names one class, or *nothing*, and one mask: every pixel whose embedding
# points its way. A decoder makes embeddings of pixels; queries look at the coarsest map and become
# embeddings too; then mask = query · pixel. (The original has 100 queries that look six times; here
# 20 that look once.)

# %%
class QueryDecoder(nn.Module):
    """[F1..F4] -> class maps (B, num_classes, H/4, W/4), by way of queries."""

    def __init__(self, in_channels, dim, num_classes, queries=20):
        super().__init__()
        self.pixels = MLPDecoder(in_channels, dim, num_classes=dim)  # an embedding instead of classes
        self.queries = nn.Parameter(torch.randn(1, queries, dim))
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(in_channels[-1], 2 * dim)
        self.name, self.draw = nn.Linear(dim, num_classes + 1), nn.Linear(dim, dim)  # + 1: nothing

    def forward(self, features):
        k, v = self.kv(features[-1].flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        queries = self.queries.expand(len(k), -1, -1)
        queries = step("queries", queries + F.scaled_dot_product_attention(self.q(queries), k, v))
        names = step("names, the last is nothing", self.name(queries))
        masks = torch.einsum("bqc,bchw->bqhw", self.draw(queries), step("pixels", self.pixels(features)))
        share = names.softmax(-1)[..., :-1]
        return step("class maps", torch.einsum("bqk,bqhw->bkhw", share, step("masks", masks).sigmoid()))


_ = toy_run(QueryDecoder((32, 64, 160, 256), 256, CLASSES).eval(), maps)

# %% [markdown]
# The last line gives the semantic map: for each class the masks of all queries, weighted by how
# much each query thinks it is that class.
#
# **Training** needs one more step. Nobody says which query is responsible for which object, so each
# time the cheapest assignment is looked for, the Hungarian matching. For three queries one can try
# all six. A row of nine pixels, three objects, three queries with a mask each:

# %%
rows = ["111000000", "000111000", "000000111"], ["111111000", "100000000", "000000111"]
objects, drawn = (torch.tensor([[float(pixel) for pixel in row] for row in some]) for some in rows)
cost = 1 - 2 * drawn @ objects.T / (drawn.sum(1, keepdim=True) + objects.sum(1))  # 1 - Dice
print(cost)


def match(cost):
    """For each object its query, so that the sum of costs is least: all orders are tried."""
    orders = itertools.permutations(range(len(cost)), cost.shape[1])
    return min(orders, key=lambda order: sum(cost[q, o] for o, q in enumerate(order)))


print("each object takes its best query:", cost.argmin(0).tolist())
print("the cheapest assignment:         ", list(match(cost)))
shuffled = torch.tensor([2, 0, 1])
costs_of = [sum(c[q, o].item() for o, q in enumerate(match(c))) for c in (cost, cost[shuffled])]
print("its cost, and with the queries in another order: {:.3f} {:.3f}".format(*costs_of))

# %% [markdown]
# Rows are queries, columns objects. If every object took its best query, query 0 would have to be
# two objects and query 1 would learn nothing. The assignment gives each object a query of its own.
# And the order of the queries doesn't matter: they are a set.

# %%
maskformer = in_its_place("MaskFormer's queries", decoder=QueryDecoder)

# %% [markdown]
# **SegFormer's choice:** one linear map from pixel to class. That is cheaper by what is printed
# above, and it cannot tell two people who stand side by side apart. MaskFormer can (exercise 3),
# with the same network for semantic, instance and panoptic segmentation.

# %% [markdown]
# ## What each costs
#
# All of it again, at 128 × 128 pixels and 11 classes. The first four rows are whole networks, the
# others SegFormer-B0 with one neighbour's idea in it (PVT's and CPVT's take two parts).

# %%
print(f"{'':26s}{'parameters':>12s}{'M MACs':>9s}")
for name, (count, work) in costs.items():
    print(f"{name:26s}{count:12,d}{work / 1e6:9.0f}")

# %% [markdown]
# Two things to read from it. First, MACs and parameters are different questions: the two networks
# on a ResNet have half of SegFormer's parameters and more than twice its MACs, because they carry a
# map at 1/8 where SegFormer is at 1/16 and 1/32 already. Second, PVT's, Swin's and CPVT's ideas cost
# some per cent more or less. What is dear is to compare all tokens with all, as SeMask's layers do, and
# work at 1/4: HRNet's exchange, MaskFormer's pixels.
#
# And neither column is time; [chapter 14](14_speed.ipynb) shows why, with a clock. The paper's
# Table 2 has the example: FCN on MobileNetV2 needs 39.6 GFLOPs for a picture of ADE20K and runs at
# 64.4 pictures per second, SegFormer-B0 needs 8.4 and runs at 50.5.

# %% [markdown]
# ## Only the encoder exchanged: Table 1d
#
# Is it the encoder or the decoder? The paper puts its own decoder (with $C$ = 768) on CNN encoders.
# One can count along; torchvision has the encoders.

# %%
class UnderTheMLPDecoder(nn.Module):
    """A torchvision ResNet without its classifier, and SegFormer's decoder for 150 classes."""

    def __init__(self, name, dilate=False):
        super().__init__()
        resnet = getattr(torchvision.models, name)(replace_stride_with_dilation=(False, dilate, dilate))
        self.encoder = create_feature_extractor(resnet, [f"layer{i}" for i in range(1, 5)])
        self.decoder = MLPDecoder((256, 512, 1024, 2048), dim=768, num_classes=150)

    def forward(self, x):
        return self.decoder.forward_unfolded(list(self.encoder(x).values()))  # as the paper counts


printed = {"resnet50": (29.0, 69.2, 34.7), "resnet101": (47.9, 88.7, 38.7),
           "resnext101_64x4d": (86.8, 127.5, 39.8)}  # M parameters, G FLOPs, mIoU on ADE20K
for name, (millions, billions, miou) in printed.items():
    with torch.device("meta"):  # shapes without memory
        model = UnderTheMLPDecoder(name)
    print(f"{name:17s} {parameters(model) / 1e6:.1f} M and {macs(model, 512) / 1e9:.1f} G, "
          f"printed {millions} M and {billions} G, mIoU {miou}")
with torch.device("meta"):
    print(f"resnet50 dilated  {macs(UnderTheMLPDecoder('resnet50', dilate=True), 512) / 1e9:.1f} G")
    print(f"segformer_b2      {parameters(sl.create_model('segformer_b2', num_classes=150)) / 1e6:.1f} M, "
          "printed 27.7 M, mIoU 45.4")

# %% [markdown]
# The parameters agree to a tenth of a million (MiT-B2 is printed as 27.5 in Table 1b and as 27.7
# here). And they say what the table doesn't: *ResNeXt101* is the one called 64 × 4d. The MACs are a
# little under the printed ones and far under those of a dilated ResNet: the three are ordinary
# ones, whose last map is at 1/32. At equal size 10.7 points of mIoU lie between ResNet50 and MiT-B2.
#
# That is a strong result, and not quite a fair fight. In PSPNet and DeepLab the same ResNets are
# dilated and keep a map at 1/8; here their last map is at 1/32, under a decoder that was made for
# encoders which look far. The paper says so too, the other way round: its light decoder needs the
# Transformer's field of view.

# %% [markdown]
# ## Trained on equal terms
#
# Counting says nothing about quality. So seven networks were trained from scratch by one script, on
# both samples, with the same pictures, batches, steps and seeds, nothing pretrained. Only the
# learning rates are each network's own, the best of three settings in shorter runs: one rate for
# all would favour the network that happens to like it. Two baselines that look at no shape stand
# beside them: *majority* calls every pixel background, *colour* gives every colour its most
# frequent class.

# %% tags=["nbval-ignore-output"]
path = sl.data.course_folder() / "docs" / "results" / "neighbours.json"
stored = json.loads(path.read_text(encoding="utf-8"))
BASELINES = ("majority", "colour")
tables = {data: content["rows"] for data, content in stored["sets"].items()}  # data set -> name -> runs
networks = [*stored["costs"]]


def mean_sd(runs, metric="miou"):
    """Mean and standard deviation of a metric over seeds (0 for a single run)."""
    values = [run[metric] for run in runs]
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0


print(stored["command"])
for data, rows in tables.items():
    print(f"{data:18s}mIoU           boundary IoU   pixels")
    for name, runs in rows.items():
        scores = [mean_sd(runs, metric) for metric in ("miou", "boundary_iou")]
        print(f"{name:15s}", *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in scores), sep="  ", end="  ")
        print(f"{mean_sd(runs, 'pixel_accuracy')[0]:.3f}")

# %% tags=["nbval-ignore-output"]
for name in networks:
    cost, rate = stored["costs"][name], stored["rates"][name]
    print(f"{name:15s}{cost['parameters']:10,d} parameters {cost['macs'] / 1e6:5.0f} M MACs "
          f"{cost['ms']:6.1f} ms   learning rate {rate['lr']:g}, decoder x {rate['head_lr_mult']:g}")

# %% tags=["nbval-ignore-output"]
MARKS = dict(zip(networks, zip("os^vDP*", [*list(show.COLOURS.values())[:6], "black"])))


def draw_scores(ax, data, rows):
    """mIoU against MACs: a mark with its spread for each network, a line for each baseline."""
    for name, (mark, colour) in MARKS.items():
        (mean, sd), work = mean_sd(rows[name]), stored["costs"][name]["macs"] / 1e6
        ax.errorbar(work, mean, sd, marker=mark, color=colour, ls="", ms=8, label=name)
    for name, style in zip(BASELINES, (":", "--")):
        ax.axhline(mean_sd(rows[name])[0], color="black", ls=style, lw=1, label=name)
    ax.set(title=data, xlabel="M MACs of one picture", xlim=(0, None), ylim=(0, None))


fig, axes = plt.subplots(1, len(tables), figsize=(7, 3.4))
for ax, (data, rows) in zip(axes, tables.items()):
    draw_scores(ax, data, rows)
axes[0].set_ylabel("mIoU (line: sd over seeds)")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
best = ", ".join(f"{max(networks, key=lambda name: mean_sd(rows[name]))} on {data}"
                 for data, rows in tables.items())
show.figure(fig, alt=(
    "The mean mIoU of each network against its multiply-accumulates, a panel for each data set, the "
    f"two baselines as horizontal lines. All networks lie above both lines. Highest: {best}."))

# %% [markdown]
# Each mark is a mean over seeds, the bar through it the standard deviation; to the left is cheap,
# up is good. Look at the dashed lines first: a network near them has learned little that colours
# don't tell. (A network that is near them was also trained three times as long; that line follows
# below.) Then compare a difference with the length of the bars. Which differences are larger than
# what another seed does?

# %% tags=["nbval-ignore-output"]
def verdict(rows, name, other):
    """Says whether a difference is larger than what another seed would do."""
    (a, sd_a), (b, sd_b) = mean_sd(rows[name]), mean_sd(rows[other])
    noise = math.hypot(sd_a, sd_b)  # of a difference of two runs
    says = "more than" if abs(a - b) > 2 * noise else "not clearly more than"
    return f"{name:15s}{a - b:+.3f} mIoU, {says} another seed does (sd {noise:.3f})"


for data, rows in tables.items():
    print(f"{data}, against segformer_b0:")
    print(*(verdict(rows, name, "segformer_b0") for name in networks if name != "segformer_b0"), sep="\n")
    longer = stored["sets"][data]["longer"]
    for name, runs in longer["rows"].items():
        mean, sd = mean_sd(runs)
        print(f"{name:15s}after {longer['steps']} steps: {mean:.3f} ± {sd:.3f} mIoU")
    learned_nothing = max(mean_sd(rows[name])[0] for name in BASELINES)
    ends = {name: mean_sd(longer["rows"].get(name, rows[name]))[0] for name in networks}
    assert min(ends.values()) > 1.5 * learned_nothing

# %% [markdown]
# ### Large and small
#
# The report found very small objects segmented well and objects that fill the picture badly, and
# put it down to Transformer encoders as such. [Chapter 09](09_train_coco.ipynb) takes the claim
# apart; here it is asked of all seven networks at once, by their recall for each size of object.

# %% tags=["nbval-ignore-output"]
SIZES = ("small", "medium", "large")


def recalls(rows, name):
    """Recall of small, medium and large objects, the mean over seeds; NaN where there are none."""
    return [np.mean([run[f"recall_{size}"] for run in rows[name]]) for size in SIZES]


fig, axes = plt.subplots(1, len(tables), figsize=(7, 3.3), sharey=True)
for ax, (data, rows) in zip(axes, tables.items()):
    for name, (mark, colour) in MARKS.items():
        ax.plot(recalls(rows, name), mark + "-", color=colour, label=name, lw=1)
    ax.set(title=data, xticks=range(3), xticklabels=SIZES, ylim=(0, 1))
axes[0].set_ylabel("recall of the objects' pixels")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
means = {data: np.mean([recalls(rows, name) for name in networks], 0) for data, rows in tables.items()}
said = ", ".join(f"{data} {' '.join(f'{m:.2f}' for m in mean)}" for data, mean in means.items())
show.figure(fig, alt=(
    "Recall of small, medium and large objects, a line for each network and a panel for each data "
    f"set. Means over the networks: {said}."))

# %% [markdown]
# One line per network. *Small* is less than 1/300 of the picture, *large* more than 3 % (COCO's
# bounds, carried over by area). A line that falls to the right has the report's weakness, one that
# rises has the opposite. Before you conclude anything about a *kind* of network, ask whether all of
# its kind do the same.
#
# All lines rise, on both sets: seven networks, two of them Transformers, find large things best,
# and what [chapter 09](09_train_coco.ipynb) found for five kinds holds for these. And no family
# wins: on the scenes FCN-8s and PSPNet lead clearly, DeepLabV3+ by no more than another seed could
# do, and the other two convolution networks, U-Net and SegNet, come last; on the chest slices U-Net
# leads, whose skips go up to the full size, and DeepLabV3+ and SegFormer follow, which answer at
# 1/4. 500 steps from nothing say who learns fast from little, not who ends higher.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. Windows, really cut (25 minutes)
#
# The chapter's window attention computes all pairs and masks most of them. Do it as Swin does: roll
# the maps, cut them into windows, let the tokens of a window look at each other (masked where
# pieces of different corners met), put the windows back, roll back. One head, $H$ and $W$ divisible
# by `window`. The check compares your result with the masked one and counts your
# multiply-accumulates.
#
# Before rolling, the token at row $y$ belongs to the window row $\lfloor (y - \mathrm{shift} + w) /
# w \rfloor$ with $w$ = `window`, and so for the column. Tokens may look at each other where both agree.
#
# <details><summary>Hint</summary>
#
# Write one function `cut` that rolls and cuts a (B, H, W, C) tensor into (B, windows, window², C).
# Cut the *numbers* of the windows with it too, as a tensor with one channel: where two numbers are
# equal, attention is allowed.
#
# </details>
# <details><summary>Help: right without shift, wrong with it</summary>
#
# Roll by `-shift` before and by `+shift` after, on both axes. And the numbers must be those of the
# map *before* rolling, then rolled along.
#
# </details>

# %% tags=["exercise"]
def my_window_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, shift: int
) -> torch.Tensor:
    """q, k, v: (B, H, W, C) -> (B, H, W, C): attention inside windows of window x window, moved by shift."""
    # SOLUTION
    b, h, w, c = q.shape

    def cut(x):
        x = x.roll((-shift, -shift), dims=(1, 2))
        x = x.reshape(len(x), h // window, window, w // window, window, -1).transpose(2, 3)
        return x.reshape(len(x), -1, window**2, x.shape[-1])

    row, column = ((torch.arange(n) - shift + window) // window for n in (h, w))
    numbers = cut((row[:, None] * w + column)[None, ..., None])  # (1, windows, window², 1)
    allowed = numbers == numbers.transpose(-2, -1)
    out = F.scaled_dot_product_attention(cut(q), cut(k), cut(v), attn_mask=allowed)
    out = out.reshape(b, h // window, w // window, window, window, c).transpose(2, 3).reshape(b, h, w, c)
    return out.roll((shift, shift), dims=(1, 2))
    # END SOLUTION


checks.window_attention(my_window_attention)

# %% [markdown] tags=["exercise"]
# ### 2. A pyramid for SegFormer (15 minutes)
#
# Give SegFormer PSPNet's pyramid: before the MLP decoder does its work, lay $F_4$'s means over 1 ×
# 1, 2 × 2, 3 × 3 and 6 × 6 regions beside $F_4$, in this order, enlarged bilinearly
# (`align_corners=False`) and without 1 × 1 convolutions of their own. Inherit from the package's
# `MLPDecoder`; it only has to be told that its last level has five times as many channels. Then
# build a SegFormer-B0 for 5 classes with it, through `sl.create_model(..., decoder=...)`. The check
# compares the network's logits.
#
# <details><summary>Hint</summary>
#
# `*rest, last = features` takes the last map off the list. `F.adaptive_avg_pool2d(last, bins)`
# pools, `sl.models.upsample(x, size)` enlarges.
#
# </details>
# <details><summary>Help: a size mismatch in linear</summary>
#
# `super().__init__` must get the new channels: `(*in_channels[:3], 5 * in_channels[3])`.
#
# </details>

# %% tags=["exercise"]
class PyramidDecoder(MLPDecoder):
    """[F1..F4] -> logits at 1/4, where F4 has its means over 1, 4, 9 and 36 regions beside it."""

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        # SOLUTION
        super().__init__((*in_channels[:3], 5 * in_channels[3]), dim, num_classes)
        # END SOLUTION

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        # SOLUTION
        *rest, last = features
        means = [upsample(F.adaptive_avg_pool2d(last, bins), last.shape[-2:]) for bins in (1, 2, 3, 6)]
        return super().forward([*rest, torch.cat([last, *means], dim=1)])
        # END SOLUTION


def pyramid_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with PyramidDecoder."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, decoder=PyramidDecoder)
    # END SOLUTION


checks.pyramid_model(pyramid_segformer())

# %% [markdown] tags=["exercise"]
# ### 3. From queries to things (15 minutes)
#
# MaskFormer's queries can do more than class maps: each query is one thing, so two dogs side by
# side stay two. Every query takes its likeliest class. Those whose likeliest class is *nothing*
# (the last) are out. Each pixel goes to the query with the largest product of class probability
# (softmax) and mask probability (sigmoid). Return the class of each pixel and the number of its
# query.
#
# <details><summary>Hint</summary>
#
# `probability, label = class_logits.softmax(-1).max(-1)` gives both for all queries. A score of -1
# can never win against a product of probabilities.
#
# </details>
# <details><summary>Help: the numbers of my queries are too small</summary>
#
# If you drop the queries that name nothing from the list, the rest is counted anew. Keep all, and
# make theirs lose.
#
# </details>

# %% tags=["exercise"]
def my_segments(
    class_logits: torch.Tensor, mask_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """class_logits: (Q, K + 1), the last is nothing; mask_logits: (Q, H, W).

    Returns the class and the query number of each pixel, both (H, W).
    """
    # SOLUTION
    probability, label = class_logits.softmax(-1).max(-1)
    score = probability[:, None, None] * mask_logits.sigmoid()
    score[label == class_logits.shape[-1] - 1] = -1
    query = score.argmax(0)
    return label[query], query
    # END SOLUTION


checks.segments(my_segments)

# %% [markdown]
# ## The package's version
#
# The neighbours live in `models/resnet.py` (PSPNet, DeepLabV3+), `models/vit.py` (ViT, SETR) and
# `models/cnn.py` (FCN-8s, SegNet, U-Net). All are reached as SegFormer is, with the same
# `preprocess`, `predict`, `train` and `evaluate`:

# %%
with torch.no_grad():
    for name in ("fcn8s", "segnet", "unet", "pspnet", "deeplabv3plus", "setr", "segformer_b0"):
        model = sl.create_model(name, num_classes=CLASSES)
        print(f"{name:15s}logits {tuple(model.eval()(sl.preprocess(picture(96))).shape)}, "
              f"labels {tuple(model.predict(picture(96)).shape)}")
print(inspect.getsource(sl.models.resnet.PyramidPooling.forward))

# %% [markdown]
# ## What the papers say, what the code does
#
# - **Shorter keys.** SegFormer's paper credits PVT for them (section 3.1) and writes them with $R$
#   in tokens where PVT counts per axis. The code of both is a convolution with kernel = stride.
# - **CPVT.** SegFormer's paper says that CPVT uses a 3 × 3 convolution *together with* a positional
#   embedding. CPVT's own point is that the convolution *replaces* it.
# - **Table 1d** compares encoders under SegFormer's decoder, with CNN encoders that are not
#   dilated. It is no comparison with PSPNet or DeepLabV3+; Table 2 is, and there other training
#   recipes differ too.
# - **Teaching size.** The three neighbours here are small and start from scratch. PSPNet and
#   DeepLabV3+ have a ResNet-18 in place of a ResNet-101, no auxiliary loss, and rates made for
#   small pictures; SETR has few layers and patches of 8. What is shown is the idea under equal
#   conditions, not the published network.
#
# Sources, beside SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203), by the numbers of
# the tree: [PSPNet](https://arxiv.org/abs/1612.01105),
# [DeepLabV3+](https://arxiv.org/abs/1802.02611), [HRNet](https://arxiv.org/abs/1908.07919), [zero
# padding](https://arxiv.org/abs/2001.08248), [ViT](https://arxiv.org/abs/2010.11929),
# [SETR](https://arxiv.org/abs/2012.15840), [PVT](https://arxiv.org/abs/2102.12122),
# [CPVT](https://arxiv.org/abs/2102.10882), [Swin](https://arxiv.org/abs/2103.14030),
# [MaskFormer](https://arxiv.org/abs/2107.06278), [SeMask](https://arxiv.org/abs/2112.12782); and
# PVTv2, [2106.13797](https://arxiv.org/abs/2106.13797).
#
# ## Pitfalls
#
# - Rates from a paper on a small map: most taps read padding.
# - Windows rolled and not masked: the left edge of the picture looks at the right one.
# - Two zeros in a row at the start of a branch: it never wakes.
# - A loss between query $i$ and object $i$: the queries are a set, match first.
# - A "Segformer" of another library with a ResNet inside: look at the encoder's name, not at the
#   class's.
# - Comparing networks by one seed, or by MACs when you mean milliseconds.
#
# ## In short
#
# - SegFormer's attention is PVT's, with equal numbers. Its own are overlapping patches without a
#   table, the convolution inside the feed-forward network, and a decoder made of sums.
# - PSPNet tells all places the same about the whole, DeepLabV3+ reads far with nine taps, ViT lets
#   all look at all on one scale.
# - Swin looks near and sharp, SegFormer far and blurred; at 128 pixels both have 16 keys, with
#   windows of 4 × 4.
# - HRNet's branches exchange all the time, SegFormer's maps meet once.
# - MaskFormer asks queries instead of pixels, and so can tell two of a kind apart.
# - Costs can be counted before training. Quality can't, and needs several seeds.
#
# ## What people ask
#
# **Is SegFormer's encoder the same as PVTv2?** Nearly. Both have overlapping patches, a depth-wise
# convolution in the feed-forward network and no table. They differ in the expansion of early
# stages, in the classification head and its pooling.
#
# **I took "Segformer" from a library and it has a ResNet inside. Is that right?** In
# segmentation_models_pytorch the name stands for the decoder, and the default encoder is a
# ResNet-34. Ask for a MiT encoder if you want SegFormer.
#
# **Which should I take for large objects?** Try those whose last map sees far, by a pyramid, large
# rates, or attention over the whole picture. Then measure recall by size, as above: `evaluate`
# gives it with every report.
#
# **Why does SETR need so much more than SegFormer in the paper?** 318 million parameters are a
# ViT-Large, 24 layers of 1,024 channels at one scale. Table 2 has 0.5 pictures per second for it on
# Cityscapes and 2.5 for SegFormer-B5.
#
# **Is mask classification better than pixel classification?** It is more general: one network for
# semantic, instance and panoptic masks. Whether it is better on your classes is a question for two
# trainings and some seeds.
#
# ## Next
#
# You know the parts, the whole and the relatives. [Chapter 16](16_bug_clinic.ipynb), the bug
# clinic, is the last: eight broken trainings, each to be named and mended. And every network of
# this chapter trains on pictures of your own with one line: [chapter
# 13](13_pretrained_and_own_data.ipynb) brings them in.
