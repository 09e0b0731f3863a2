# %% [markdown]
# # 02 · Bring the detail back: FCN-8s, SegNet and U-Net
#
# About 40 minutes to read and run, 65 more for the exercises. The code takes about one minute on
# two CPU cores, nearly all of it small trainings, and about 1.5 GB of memory. No GPU is needed, and
# the modes fast and full are the same here.

# %% [markdown]
# **What you build.** Three decoders, each in about a dozen lines, that stand on the same kind of
# encoder: `FCNDecoder`, `SegNetDecoder`, `UNetDecoder`. At the end they carry the package's weights
# and give the package's numbers.
#
# **What you learn.**
#
# - what pooling throws away, and what is bought with it;
# - three ways to bring it back: add scores, remember places, hand over whole maps;
# - why a fully connected layer is a convolution, and what FCN does with that;
# - why "concatenate, then convolve" contains "add" as a special case;
# - how these networks and SegFormer compare when data, steps and seeds are the same;
# - whether large objects are a weakness of the convolutional network, of the Transformer, or of
#   both.
#
# **What you need.** Convolutions, and from [chapter 01](01_what_is_segmentation.ipynb) the scores
# (IoU, boundary IoU), unpooling and the transposed convolution.

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import macs, parameters
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.evaluation import metrics
from segformer_lite.show import masks

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "mask"))

# %% [markdown]
# Only the two ends are lit: a picture goes in, a mask comes out. In this chapter everything between
# them is exchanged, three times. The three networks are older than SegFormer, and what they have to
# say about its decoder is worth the detour.

# %% [markdown]
# ## The question
#
# To know *what* is in a picture a network has to see much of it at once, so it makes its maps
# smaller and smaller. To draw a mask it has to know *where*, to the pixel. **How does the detail
# that was lost on the way down come back on the way up?**
#
# Three answers, all of the same shape: a *skip connection* carries something from the way down over
# to the way up. A map or a score arrives **after** the coarse map has been enlarged, because only
# then do both have the same size (FCN, U-Net). SegNet's places are as small as the coarse map: they
# *do* the enlarging.
#
# | network | what is handed over | how the two meet |
# |---|---|---|
# | FCN-8s (2015) | score maps at 1/16 and 1/8 | by **sum** |
# | SegNet (2015) | the places of the maxima, at every level | by **indices** |
# | U-Net (2015) | the feature maps, at every level | by **concatenation** |
#
# | in papers | here | meaning |
# |---|---|---|
# | pool3, pool4, pool5 | `max_pool` of $F_3$, $F_4$, $F_5$ | maps at 1/8, 1/16, 1/32 |
# | fc6, fc7 | `fc6`, `fc7` | VGG's fully connected layers, as convolutions |
# | deconvolution, up-convolution | `up` | transposed convolution |
# | $K$, $S$, $P$ | `kernel_size`, `stride`, `padding` | of a convolution, transposed or not |

# %% [markdown]
# ## The way down
#
# All three begin in the same way: 3 × 3 convolutions, then max pooling, which keeps the largest of
# four numbers and halves both sides; and again, five times (U-Net: four). FCN and SegNet take the
# thirteen convolutions of VGG-16 (Simonyan and Zisserman, 2014,
# [arXiv:1409.1556](https://arxiv.org/abs/1409.1556)), a network that was made to name pictures;
# U-Net takes ten of its own.

# %%
def conv3(c_in, c_out):
    """3x3 convolution, batch norm, ReLU; the size stays."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                         nn.BatchNorm2d(c_out), nn.ReLU())


def row(*channels):
    """conv3 from channels[0] to channels[1], from there to channels[2], and so on."""
    return nn.Sequential(*[conv3(a, b) for a, b in zip(channels, channels[1:])])


class Encoder(nn.Module):
    """Picture (B, 3, H, W) -> [F1, ..., F5] at 1, 1/2, 1/4, 1/8, 1/16, each before pooling."""

    def __init__(self, dims, depths):
        super().__init__()
        sizes = zip((3, *dims), dims, depths)
        self.stages = nn.ModuleList(row(before, *[c] * n) for before, c, n in sizes)

    def forward(self, x):
        features = []
        for stage in self.stages:
            features.append(stage(x))
            x = F.max_pool2d(features[-1], 2, ceil_mode=True)  # sizes are rounded up
        return features

# %%
vgg = Encoder(dims=(16, 32, 64, 128, 128), depths=(2, 2, 3, 3, 3)).eval()
with torch.no_grad():
    for i, feature in enumerate(vgg(torch.zeros(1, 3, 96, 96)), start=1):
        print(f"F{i}", tuple(feature.shape))

# %% [markdown]
# This is the teaching size: 16 channels at first, where VGG has 64. Is it the same network
# otherwise? Count it at full width against torchvision's. A convolution before a batch norm needs
# no bias (the norm subtracts it again); torchvision's has one, ours has not.

# %%
with torch.device("meta"):  # no numbers in it: enough to count, and free
    full = Encoder(dims=(64, 128, 256, 512, 512), depths=(2, 2, 3, 3, 3))
    theirs = torchvision.models.vgg16_bn(weights=None).features
biases = sum(m.bias.numel() for m in theirs if isinstance(m, nn.Conv2d))
print(f"ours {parameters(full):,} + {biases:,} biases; torchvision {parameters(theirs):,}")
assert parameters(full) + biases == parameters(theirs)

# %% [markdown]
# ### What is bought
#
# Each pooling doubles the step from one place of the map to the next, and from then on every 3 × 3
# convolution reaches twice as far. How far has the network seen? A layer with kernel $K$ adds $K -
# 1$ steps to the reach; a stride multiplies the step.

# %%
def reach(layers):
    """Pixels that one output sees along a line, behind layers of (kernel, stride)."""
    seen, step = 1, 1
    for kernel, stride in layers:
        seen, step = seen + (kernel - 1) * step, step * stride
    return seen


conv, pool = (3, 1), (2, 2)
VGG = [layer for n in (2, 2, 3, 3, 3) for layer in [conv] * n + [pool]]
UNET = [conv, conv, pool] * 4 + [conv, conv]
print("thirteen convolutions without pooling", reach([conv] * 13), "px")
print("VGG-16", reach(VGG), "px, with fc6", reach([*VGG, (7, 1)]), "px")
print("U-Net", reach(UNET), "px")

# %% [markdown]
# Without pooling 27 pixels, with it 140 and more: FCN's last map sees 404, less than a picture of
# 512 and far more than the 96 pixels of this course's short runs. Keep that in mind for the question
# about large objects. (SegFormer's attention sees the whole picture in its first block already. What
# a network *could* see and what it *uses* are two things; [chapter 11](11_receptive_fields.ipynb)
# measures the second.)

# %% [markdown]
# ### What it costs
#
# Each number that is left came from one of four places, and which one is forgotten.

# %%
def one_map(*rows):
    """Rows of digits, "9000", "0100", as a map (1, 1, 2, 4)."""
    return torch.tensor([[float(digit) for digit in row] for row in rows])[None, None]


here = one_map("9000", "0100", "0020", "0400")
there = one_map("1000", "0900", "4000", "0002")
assert torch.equal(F.max_pool2d(here, 2), F.max_pool2d(there, 2))
print(F.max_pool2d(here, 2)[0, 0])
print("after five poolings a number may come from", 4**5, "places")

# %% [markdown]
# Two maps that differ, one pooled map. What can be drawn from so little? The next section measures
# it, for the network that came first.

# %% [markdown]
# ## FCN: the last layer slides
#
# FCN stands for *fully convolutional network*: it has no fully connected layer left. VGG names a
# picture with a linear map that reads the whole last map at once, and so works at one picture size
# only. But a linear map that reads a 7 × 7 map is a convolution with a 7 × 7 kernel that has just
# one place to stand on:

# %%
torch.manual_seed(0)
linear, conv = nn.Linear(8 * 7 * 7, 10), nn.Conv2d(8, 10, kernel_size=7)
conv.weight.data = linear.weight.data.reshape(10, 8, 7, 7)
conv.bias.data = linear.bias.data
x = torch.randn(1, 8, 7, 7)
torch.testing.assert_close(conv(x).flatten(1), linear(x.flatten(1)))
print("one answer:", tuple(conv(x).shape))

# %% [markdown]
# And what a linear map cannot do: on a larger map the kernel **slides**, and gives the linear map's
# answer for every 7 × 7 window.

# %%
x = torch.randn(1, 8, 9, 12)
answers = conv(x)
for i in range(3):
    for j in range(6):
        window = x[..., i:i + 7, j:j + 7]
        torch.testing.assert_close(answers[..., i, j], linear(window.flatten(1)))
print("a map of answers:", tuple(answers.shape))

# %% [markdown]
# So a network that says "cat" becomes one that says where "cat" is true: a **score map**, one
# number per class and place. It is coarse, 1/32 of the picture.
#
# In VGG-16 that first linear map, fc6, is by far the largest layer. FCN keeps it:

# %%
print(f"fc6 of VGG-16: {7 * 7 * 512 * 4096 + 4096:,} parameters")
print(f"all 13 convolutions, with their norms: {parameters(full):,}")

# %% [markdown]
# ### How fine must the scores be?
#
# Suppose a network whose scores are as good as they can be: at each place, the share of each class
# among the pixels there. Enlarge them bilinearly and let the largest win. What is left of a mask?
#
# **Predict, then run.** Scores at 1/32 without any error in them. How high is the mIoU on the
# scenes?
#
# - A. About 0.9: only the rims suffer.
# - B. About 0.5: large things survive, small ones vanish.
# - C. About 0.1: at 1/32 nothing can be drawn.

# %%
def from_shares(label, stride):
    """The mask that exact shares of the classes at 1/stride give: (H, W)."""
    is_class = F.one_hot(torch.where(label == 255, 0, label), 11).permute(2, 0, 1)[None]
    shares = F.avg_pool2d(is_class.float(), stride, ceil_mode=True, count_include_pad=False)
    enlarged = F.interpolate(shares, scale_factor=stride, mode="bilinear")
    return enlarged[0, :, :label.shape[0], :label.shape[1]].argmax(0)


def totals(pairs, num_classes=11):
    """mIoU and boundary IoU over pairs (prediction, label)."""
    matrix, bands = np.zeros((num_classes, num_classes)), np.zeros((2, num_classes))
    for prediction, label in pairs:
        matrix += metrics.confusion_matrix(prediction, label, num_classes).numpy()
        bands += metrics.boundary_counts(prediction, label, num_classes).numpy()
    return np.nanmean(metrics.iou_per_class(matrix)), np.nanmean(bands[0] / bands[1])

# %%
val_set = sl.data.open_dataset("sample-coco", "val")
labels = [val_set[i][1].as_subclass(torch.Tensor) for i in range(0, len(val_set), 3)]
limits = {stride: totals([(from_shares(label, stride), label) for label in labels])
          for stride in (32, 16, 8, 4)}
for stride, (miou, rim) in limits.items():
    print(f"scores at 1/{stride:<2}: mIoU {miou:.2f}, boundary IoU {rim:.2f}")

# %%
scene, truth = (item.as_subclass(torch.Tensor) for item in val_set[27])
drawn = {"the picture": scene, "the label": masks.overlay(scene, truth, val_set.palette, 0.85)}
for s in limits:
    mask = from_shares(truth, s)
    drawn[f"scores at 1/{s}"] = masks.overlay(scene, mask, val_set.palette, 0.85)
fig = show.grid(list(drawn.values()), list(drawn), columns=3, cell=2.2)
show.figure(fig, alt=(
    "A drawn beach: a person under an umbrella, a boat, a bird and a kite on a string. With the "
    "label every part is outlined. With scores at 1/32 three formless patches are left where "
    "person, umbrella and boat are; at 1/16 they have a rough shape; at 1/8 they can be recognised, "
    "without their thin parts; at 1/4 nearly all is there, kite and bird as well."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** At 1/32 person, umbrella and boat are formless patches. Each halving of the step brings a good
# deal back, and the rims gain more than the areas. Kite and bird return at 1/4 only.
#
# *Why.* A thing that is never the majority where the scores are taken cannot win there.
#
# </details>
#
# These are not strict limits, as a network may bend its scores to draw better; but they are the
# reason why FCN does not stop at 1/32 (that network is called FCN-32s), and adds scores from 1/16
# (FCN-16s) and from 1/8 (FCN-8s). SegFormer's decoder works at 1/4.
#
# If the notebook is running, look at other scenes:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, SelectionSlider, interact


def try_scores(number, stride):
    """A scene's label, and what exact shares at 1/stride leave of it."""
    image, label = (item.as_subclass(torch.Tensor) for item in val_set[number])
    maps = (label, from_shares(label, stride))
    panels = [masks.overlay(image, m, val_set.palette, 0.85) for m in maps]
    fig = show.grid(panels, ["the label", f"scores at 1/{stride}"], columns=2, cell=3)
    show.figure(fig, alt=f"Scene {number} with its label and with scores at 1/{stride}.")


_ = interact(try_scores, number=IntSlider(53, 0, len(val_set) - 1, continuous_update=False),
             stride=SelectionSlider(value=16, options=(2, 4, 8, 16, 32), continuous_update=False))

# %% [markdown]
# ### Skip by sum
#
# The finer maps get a score layer of their own, a linear map at each place. Then: enlarge the coarse
# scores by two, **add** the finer ones. With pencil and paper, one class against the background; a
# positive sum means "here":

# %%
coarse = torch.tensor([[-2.0, 3.0], [-2.0, -2.0]])[None, None]  # knows what, and roughly where
fine = torch.zeros(1, 1, 4, 4)
fine[0, 0, 1] = torch.tensor([0.0, 2.0, 0.0, -2.0])             # has two corrections
enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear")
for name, scores in {"coarse alone": enlarged, "with the fine scores": enlarged + fine}.items():
    print(name, (scores[0, 0] > 0).int().numpy(), sep="\n")

# %% [markdown]
# The coarse map puts a square of four pixels down. The fine map has no idea about most places (its
# scores are 0), but it takes one pixel away and adds another.
#
# What does a sum of scores mean? Softmax turns a score into a probability by $e^s$, and $e^{s + t} =
# e^s e^t$. **To add scores is to multiply votes**: each level has its say, none can be sure alone
# if another is strongly against it.

# %%
one, other = torch.randn(2, 5)
product = one.softmax(0) * other.softmax(0)
torch.testing.assert_close((one + other).softmax(0), product / product.sum())
print("softmax of the sum = product of the softmaxes, divided by its total")

# %% [markdown]
# ### Twice as large, exactly
#
# FCN enlarges with transposed convolutions that begin as bilinear ones
# ([chapter 01](01_what_is_segmentation.ipynb#even-counts-are-not-enough)) and may learn from there.
# Their size is $n_{out} = (n_{in} - 1) S - 2P + K$. With $K = 4$, $S = 2$, $P = 1$ that is exactly $2
# n$; the original has $P = 0$ and cuts off what is too much.

# %%
for padding in (0, 1):
    up = nn.ConvTranspose2d(1, 1, kernel_size=4, stride=2, padding=padding)
    sizes = {n: up(torch.zeros(1, 1, n, n)).shape[-1] for n in (3, 6, 13)}
    assert all(out == (n - 1) * 2 - 2 * padding + 4 for n, out in sizes.items())
    print(f"P={padding}:", ", ".join(f"{n} -> {out}" for n, out in sizes.items()))

# %% [markdown]
# The last case is a trap. Pooling has rounded an odd size up: 25 became 13. On the way back 13
# becomes 26, and 26 does not fit on 25. So one row and one column too many are **cut off** before
# the two maps are added:

# %%
def crop(x, like):
    """`x` without the rows and columns that it has more than `like`."""
    return x[..., : like.shape[-2], : like.shape[-1]]


class FCNDecoder(nn.Module):
    """[F1, ..., F5] -> scores at 1/8: those of three levels, summed."""

    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        c3, c4, c5 = in_channels[2:]
        k = num_classes
        self.fc6 = nn.Sequential(nn.Conv2d(c5, dim, 7, padding=3, bias=False),
                                 nn.BatchNorm2d(dim), nn.ReLU())
        self.fc7 = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
        self.score3, self.score4, self.score7 = (nn.Conv2d(c, k, 1) for c in (c3, c4, dim))
        self.up4 = nn.ConvTranspose2d(k, k, kernel_size=4, stride=2, padding=1, bias=False)
        self.up7 = nn.ConvTranspose2d(k, k, kernel_size=4, stride=2, padding=1, bias=False)

    def forward(self, features):
        pool3, pool4, pool5 = (F.max_pool2d(f, 2, ceil_mode=True) for f in features[2:])
        score = self.score7(self.fc7(self.fc6(pool5)))                  # 1/32: what
        score = self.score4(pool4) + crop(self.up7(score), like=pool4)  # 1/16
        return self.score3(pool3) + crop(self.up4(score), like=pool3)   # 1/8: where

# %%
decoder = FCNDecoder((16, 32, 64, 128, 128), dim=256, num_classes=11).eval()
for size in [(96, 96), (65, 97)]:
    with torch.no_grad():
        features = vgg(torch.zeros(1, 3, *size))
        print(size, "-> scores", tuple(decoder(features).shape))

# %% [markdown]
# That is the whole of FCN-8s. What crosses from the way down to the way up is thin: as many numbers
# per place as there are classes.

# %% [markdown]
# ## SegNet: the places of the maxima
#
# SegNet hands over no feature and no score. Max pooling notes *where* in its 2 × 2 window each
# maximum stood (two bits), and on the way up `max_unpool2d` puts each number back there, with zeros
# around it. Then convolutions fill the gaps. One channel, one step, on the map from above:

# %%
pooled, places = F.max_pool2d(here, 2, return_indices=True)
print(F.max_unpool2d(pooled, places, 2, output_size=here.shape[-2:])[0, 0])
filled = F.conv2d(F.max_unpool2d(pooled, places, 2), torch.ones(1, 1, 3, 3), padding=1)
print(filled[0, 0])

# %% [markdown]
# The 9 stands in its corner again, as in `here`; pooled, it was anywhere in the upper left quarter.
# After a convolution (here: the sum of 3 × 3 numbers) the holes around the maxima are filled; the two
# zeros left lie in the upper right quarter, whose maximum is 0.
#
# The decoder is the encoder in a mirror: unpool, convolutions, unpool, convolutions. The last
# convolution of each stage goes over to the width of the next; that of the finest stage is
# `classify`.

# %%
class SegNetDecoder(nn.Module):
    """Pooled F5, the places of the maxima, the sizes before pooling -> logits at full size."""

    def __init__(self, dims, depths, num_classes):
        super().__init__()
        last = ([], *([c] for c in dims))  # a stage ends in the width of the next finer one
        sizes = zip(dims, depths, last)
        self.stages = nn.ModuleList(row(*[c] * n, *finer) for c, n, finer in sizes)
        self.classify = nn.Conv2d(dims[0], num_classes, 3, padding=1)

    def forward(self, x, places, sizes):
        for stage, where, size in reversed(list(zip(self.stages, places, sizes))):
            x = stage(F.max_unpool2d(x, where, 2, output_size=size))
        return self.classify(x)

# %% [markdown]
# `output_size` is not decoration. Places are stored as numbers that count through the map before
# pooling, row by row, and a pooled map of 13 may come from 25 or from 26. Told the wrong width,
# every row would begin at the wrong pixel.

# %%
odd = torch.arange(25.0).reshape(1, 1, 5, 5)
pooled, places = F.max_pool2d(odd, 2, return_indices=True, ceil_mode=True)
print("places", places.flatten().tolist(), "in a map that is 5 wide")
print(F.max_unpool2d(pooled, places, 2, output_size=(5, 5))[0, 0].int())

# %% [markdown]
# ### What the places bring back
#
# Take how strongly the scene changes from pixel to pixel, pool that map three times, and go back up
# in two ways: to the places that were noted, or always to the upper left corner of each window,
# which is what a network without a memory could do.
#
# **Predict, then run.** After three poolings one number of 64 is left. How strong are the edges
# under the dots, if their places are remembered?
#
# - A. Average: one number of 64 cannot know much.
# - B. Several times the average: the dots stand on the strongest edges.
# - C. Zero: the dots fall between the edges.

# %%
def down_and_up(x, times=3, remember=True):
    """Pool `times` times and unpool: to the places of the maxima, or to the windows' corners."""
    kept = []
    for _ in range(times):
        size = x.shape[-2:]
        x, places = F.max_pool2d(x, 2, return_indices=True)
        corners = torch.arange(size.numel()).reshape(size)[::2, ::2].expand_as(places)
        kept.append((places if remember else corners.contiguous(), size))
    for where, size in reversed(kept):
        x = F.max_unpool2d(x, where, 2, output_size=size)
    return x


brightness = scene.float().mean(0)[None, None] / 255
edges = F.pad((brightness[..., 1:, 1:] - brightness[..., :-1, :-1]).abs(), (0, 1, 0, 1))
dots = {"corners": down_and_up(edges, remember=False), "noted places": down_and_up(edges)}
print(f"average strength of an edge: {edges.mean():.3f}")
for name, back in dots.items():
    print(f"under the dots, {name}: {edges[back > 0].mean():.3f}")

# %%
panels = {"edges": edges, "pooled, 1/8": F.max_pool2d(edges, 8)}
for name, back in dots.items():
    panels[f"unpooled to the\n{name}"] = F.max_pool2d(back, 3, 1, 1)
fig = show.grid([p[0, 0] for p in panels.values()], list(panels), columns=4, cell=1.75,
                cmap="cividis", vmin=0, vmax=0.3)
show.figure(fig, alt=(
    "The edges of the beach scene; the same pooled to 1/8, a mosaic of 18 by 24 squares; unpooled to "
    "corners, dots on a regular grid; unpooled to the noted places, dots that lie on the horizon and "
    "along the outlines of sail and umbrella."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** (The dots are drawn three pixels wide so that you see them.) Third panel: a regular grid,
# which says no more than the mosaic. Fourth panel: the same numbers, now on the lines themselves; the
# horizon is a line again, and sail and umbrella begin to show.
#
# *Why.* The maximum stands *on* the edge; its place is the edge's place, to the pixel.
#
# </details>
#
# What the places cannot say is whose edge it is. All knowledge about classes has to come up from
# the bottom, through the numbers themselves.

# %% [markdown]
# ## U-Net: the whole map
#
# U-Net hands over everything. Enlarge the coarse map by two, put the map of the way down **beside**
# it (more channels, same size), convolve. Is that very different from adding? Write the kernel of
# that convolution in two halves, one for each part:

# %%
skip, coarse = torch.randn(1, 12, 8, 8), torch.randn(1, 12, 8, 8)
both = nn.Conv2d(24, 12, 3, padding=1, bias=False)
for_skip, for_coarse = both.weight[:, :12], both.weight[:, 12:]
together = both(torch.cat([skip, coarse], dim=1))
apart = F.conv2d(skip, for_skip, padding=1) + F.conv2d(coarse, for_coarse, padding=1)
torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
print("concatenate, then convolve = convolve each, then add:", tuple(together.shape))

# %% [markdown]
# **Concatenation is a sum, too, in which each part has weights of its own.** FCN's sum is the case
# in which both halves are fixed to "take it as it is". So concatenation can do what the sum can,
# and more: it need not speak in scores, it can weigh one part against the other, and the ReLU
# behind lets one part decide whether the other counts. The price is the second half of the weights,
# and that the whole map must be kept.
#
# SegFormer's decoder stands between the two: it concatenates, and the linear map behind makes a sum
# of it. [Chapter 07](07_mlp_decoder.ipynb#two-a-matrix-on-a-stack-is-a-sum-of-matrices) makes use of
# that.

# %%
class UNetDecoder(nn.Module):
    """[F1, ..., F5] -> logits at full size."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        pairs = list(zip(in_channels, in_channels[1:]))  # (finer, coarser)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.stages = nn.ModuleList(row(2 * a, a, a) for a, _ in pairs)
        self.classify = nn.Conv2d(in_channels[0], num_classes, 1)

    def forward(self, features):
        *skips, x = features
        for up, stage, skip in reversed(list(zip(self.ups, self.stages, skips))):
            x = crop(up(x), like=skip)                # now as large as the skip
            x = stage(torch.cat([skip, x], dim=1))    # so they fit beside each other
        return self.classify(x)

# %%
down = Encoder(dims=(12, 24, 48, 96, 192), depths=(2, 2, 2, 2, 2)).eval()
decoder = UNetDecoder((12, 24, 48, 96, 192), num_classes=11).eval()
for size in [(96, 96), (65, 97)]:
    with torch.no_grad():
        print(size, "-> logits", tuple(decoder(down(torch.zeros(1, 3, *size))).shape))

# %% [markdown]
# Here the transposed convolution has $K = S = 2$: each number paints a square of its own, no two
# overlap. And the last map is at the picture's full size. Where FCN answers at 1/8 and SegFormer at
# 1/4, SegNet and U-Net answer for every pixel.
#
# ### What the maps bring back
#
# One channel of each map for the beach scene, in a network with random weights:

# %%
torch.manual_seed(0)
fresh = sl.create_model("unet", num_classes=11).eval()
with torch.no_grad():
    features = fresh.encoder(sl.preprocess(scene[None]))
strongest = [f[0, f[0].flatten(1).std(1).argmax()] for f in features]
titles = [f"F{i}: 1/{2**i // 2}" for i in range(1, 6)]
fig = show.grid(strongest, titles, columns=5, cell=1.4, cmap="gray")
show.figure(fig, alt=(
    "Five channels for the beach scene. In F1 and F2 umbrella, shirt and sail are sharp, in F3 they "
    "are smeared, F4 is a mosaic without a figure, and F5 is a few grey squares."))

# %% [markdown]
# Nothing is trained, and $F_1$ is as sharp as the picture: it has never been pooled. U-Net hands over
# the first four. Without them, all that its decoder gets is the last panel.

# %% [markdown]
# ## Three bills
#
# How much does each network hand over? At the original width (64) and 512 pixels, for 21 classes;
# a number of a map takes 4 bytes, a place in a 2 × 2 window takes 2 bits.

# %%
with torch.device("meta"):
    x = torch.zeros(1, 3, 512, 512)
    vgg_maps = full(x)
    unet_maps = Encoder((64, 128, 256, 512, 1024), (2, 2, 2, 2, 2))(x)
bills = {"FCN-8s, scores": 21 * (64 * 64 + 32 * 32) * 4,          # at 1/8 and 1/16
         "SegNet, places": sum(f.numel() / 4 for f in vgg_maps) * 2 / 8,
         "U-Net, maps": sum(f.numel() for f in unet_maps[:4]) * 4}
for name, size in bills.items():
    print(f"{name:<15}{size / 2**20:7.1f} MiB")
print("PyTorch stores a place as", F.max_pool2d(here, 2, return_indices=True)[1].dtype)

# %% [markdown]
# Between the first and the last lies a factor of nearly 300. SegNet's bill is the remarkable one:
# detail at every level, for little. (On paper. PyTorch spends 64 bits on each place, not 2.)
#
# And the networks in teaching size, as `sl.create_model` gives them, beside SegFormer-B0, for one
# picture of 96 × 96:

# %%
NETWORKS = ("fcn8s", "segnet", "unet", "segformer_b0")
print(f"{'':14}{'parameters':>12}   encoder, decoder{'MACs':>10}   encoder, decoder")
for name in NETWORKS:
    with torch.device("meta"):
        model = sl.create_model(name, num_classes=11)
    held = parameters(model.encoder) / parameters(model)
    work = macs(model, 96, part="encoder") / macs(model, 96)
    print(f"{name:<14}{parameters(model) / 1e6:>10.2f} M{held:>10.0%}{1 - held:>9.0%}"
          f"{macs(model, 96) / 1e9:>8.2f} G{work:>10.0%}{1 - work:>9.0%}")

# %% [markdown]
# In work (multiply-accumulates, MACs) the four lie within a factor of two; SegFormer has the most
# parameters and does the least with each. FCN's decoder is heavy because of fc6, light in work
# because fc6 stands at 1/32. In SegNet and U-Net half of the work, or more, is the way up.

# %% [markdown]
# ## With the skip and without it
#
# What does each skip bring back when a network is *trained* with it? Take a task that nobody can
# learn by heart: every picture is drawn anew, a thin ring and a filled disc of the same grey, at
# random places, in noise. *What* is it, ring or disc? And *where*, to the pixel: the ring is only two
# pixels wide.

# %%
def drawings(count, generator, size=64):
    """uint8 (count, 3, size, size) and labels: 1 a ring 2 px wide, 2 a disc in front of it."""
    y, x = torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for label in labels:
        for shape in (1, 2):
            radius = 6 + 10 * torch.rand(1, generator=generator)
            cy, cx = radius + (size - 2 * radius) * torch.rand(2, generator=generator)
            outside = ((y - cy) ** 2 + (x - cx) ** 2).sqrt() - radius
            label[outside.abs() < 1 if shape == 1 else outside < 0] = shape
    grey = 90 + 60 * (labels > 0) + 15 * torch.randn(labels.shape, generator=generator)
    return grey.clamp(0, 255).byte()[:, None].expand(-1, 3, -1, -1), labels

# %% [markdown]
# And the same networks with their skip cut. The feature maps that would be handed over are replaced by
# zeros (of FCN's finer scores only the bias is left), places by the corners of the windows. Nothing
# else changes.

# %%
def zeros(features, levels):
    return [torch.zeros_like(f) if i in levels else f for i, f in enumerate(features)]


def fcn(model, x, skip):
    features = model.encoder(x)
    return model.decoder(features if skip else zeros(features, levels=(2, 3)))


def segnet(model, x, skip):
    features, places = model.encoder(x, return_indices=True)
    sizes = [f.shape[-2:] for f in features]
    if not skip:
        grids = [torch.arange(size.numel()).reshape(size)[::2, ::2] for size in sizes]
        places = [grid.expand_as(p).contiguous() for grid, p in zip(grids, places)]
    return model.decoder(F.max_pool2d(features[-1], 2, ceil_mode=True), places, sizes)


def unet(model, x, skip):
    features = model.encoder(x)
    return model.decoder(features if skip else zeros(features, levels=(0, 1, 2, 3)))


WAYS = {"fcn8s": fcn, "segnet": segnet, "unet": unet}

# %%
def train_on_drawings(name, skip, steps):
    """A network of width 8, trained for some steps on drawings, each new."""
    torch.manual_seed(0)
    model = sl.create_model(name, num_classes=3, width=8).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = sl.training.make_optimizer(model, lr=1e-2, head_lr_mult=1)
    for step in range(steps):
        pictures, labels = drawings(8, generator)
        logits = WAYS[name](model, sl.preprocess(pictures), skip)
        loss = sl.training.segmentation_loss(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
    return model.eval()

# %% [markdown]
# **Predict, then run.** SegNet's places come from all edges alike. With their help, what will it
# make of the ring?
#
# - A. A clean ring of the right class.
# - B. Nothing: it gets no features of the ring.
# - C. Something at the right place, of the wrong class.

# %% tags=["nbval-ignore-output"]
STEPS = 2 if session.quick else 120  # the course's own tests train less
pictures, labels = drawings(16, torch.Generator().manual_seed(9))
guesses, learned = {}, {}
for name in WAYS:
    for skip in (False, True):
        learned[name, skip] = train_on_drawings(name, skip, STEPS)
        with torch.no_grad():
            logits = WAYS[name](learned[name, skip], sl.preprocess(pictures), skip)
        guesses[name, skip] = sl.models.upsample(logits, labels.shape[-2:]).argmax(1)

# %% tags=["nbval-ignore-output"]
print(f"{'':18}{'IoU disc':>10}{'IoU ring':>10}   ring pixels not taken for background")
ring = {}
for (name, skip), guess in guesses.items():
    matrix = metrics.confusion_matrix(guess, labels, 3).numpy()
    _, ring[name, skip], disc = metrics.iou_per_class(matrix)
    seen = (guess[labels == 1] > 0).float().mean()
    how = "with" if skip else "without"
    print(f"{name:<8}{how:<10}{disc:>10.2f}{ring[name, skip]:>10.2f}{seen:>10.0%}")

# %% tags=["nbval-ignore-output"]
tints = np.array([[225, 225, 225], [213, 94, 0], [0, 114, 178]], np.uint8)  # grey, orange, blue
panels, titles = [], []
for i in (0, 1):
    for left, skip in ((pictures[i], False), (masks.colourise(labels[i], tints), True)):
        panels += [left, *(masks.colourise(guesses[name, skip][i], tints) for name in WAYS)]
        titles += ["the label" if skip else "the drawing"]
        titles += [f"{name}, {'with' if skip else 'without'}" for name in WAYS]
fig = show.grid(panels, titles, columns=4, cell=1.25)
show.figure(fig, alt=(
    "Two drawings of a ring and a disc, with the label below, and the masks of three networks "
    "without their skip and with it. Without, they draw a rounded disc or nothing, and no ring. "
    "With it, FCN-8s adds a few short pieces of the ring in a coarse grid, SegNet draws dots along "
    "the ring in the colour of the disc, and U-Net draws both as they are."))

# %% [markdown]
# Orange is "ring", blue is "disc".
#
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Without skips (first and third row) the networks know that there is a disc, and roughly
# where (FCN-8s misses the smaller one); of the ring nothing is left. With them:
#
# - **by sum**: FCN-8s has pieces of the ring, as fine as its finest scores, 1/8;
# - **by indices**: SegNet puts dots *on the ring*, to the pixel, and calls them disc. The numbers
#   that come up know of the disc only, and the places spread them over every edge nearby;
# - **by concatenation**: U-Net has both, outline and class. Its fine maps bring features, and from
#   features a class can be told.
#
# </details>

# %%
# What the answer says, checked.
assert session.quick or ring["unet", True] > 0.5 > 0.1 > ring["unet", False]

# %% [markdown]
# FCN's sum can be opened. Its score for the ring, and for the disc, is three parts, one per level:

# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def in_parts(model, x):
    """FCN-8s' scores at 1/8, level by level: their sum is what the network gives."""
    d = model.decoder
    pool3, pool4, pool5 = (F.max_pool2d(f, 2, ceil_mode=True) for f in model.encoder(x)[2:])
    parts = [d.up4(d.up7(d.score7(d.fc7(d.fc6(pool5))))), d.up4(d.score4(pool4)), d.score3(pool3)]
    torch.testing.assert_close(sum(parts), model(x), rtol=1e-3, atol=1e-3)
    return parts


parts = in_parts(learned["fcn8s", True], sl.preprocess(pictures[:1]))
panels, titles = [], []
for shape, name in ((1, "ring"), (2, "disc")):
    for what, part in zip(("1/32", "1/16", "1/8", "sum"), (*parts, sum(parts))):
        panels.append(part[0, shape] - part[0, 0])
        titles.append(f"{name}: {what}")
fig = show.grid(panels, titles, columns=4, cell=1.5, cmap="RdBu_r", vmin=-4, vmax=4)
show.figure(fig, alt=(
    "Score minus background score for ring (upper row) and disc (lower row), from three levels and "
    "summed, red for and blue against. The 1/32 level is faintly blue everywhere, 1/16 is blue with "
    "a paler area around the shapes, 1/8 is strongly red on the ring and on the disc."))
print("a place of the 1/8 map sees", reach(VGG[:10]), "px; a shape is 12 to 32 px wide")

# %% [markdown]
# Red speaks for the shape, blue for the background, first row the ring. The coarse level mildly says
# "background" everywhere; the middle one knows the neighbourhood; the fine one decides. *Why so?*
# Here the fine level can do it alone: the shapes are small enough for it to see whole. Levels share
# the work as the task allows, not as the textbook has it. For things larger than the fine level's
# reach the coarse ones are needed.
#
# *What does not follow.* After 120 steps these networks are beginners, and SegNet, the deepest of
# them, begins slowest. The order on fuller pictures is another question. It is the next one.

# %% [markdown]
# ## Same data, same budget, same seeds
#
# "Network X is better than Y" is often "X was trained longer, on more, by its own authors". Here all
# get the same pictures in the same order, the same number of steps, three seeds each; nobody is
# pretrained. One thing is each network's own: its learning rate, the best of three settings after a
# quarter of the steps on the scenes, with a seed that is not among the three. (The slices take the rate
# of the scenes.) The script `benchmarks/neighbours.py` does it with one call of `sl.compare` per data set.
# This is what it left:

# %%
path = sl.data.course_folder() / "docs" / "results" / "neighbours.json"
stored = json.loads(path.read_text(encoding="utf-8"))
SETS = {name: content["rows"] for name, content in stored["sets"].items()}
settings = next(iter(stored["sets"].values()))["settings"]
keys = ("size", "steps", "batch_size", "augment")
print(stored["command"], "|", ", ".join(f"{key} {settings[key]}" for key in keys))
for name in NETWORKS:
    rate = stored["rates"][name]
    print(f"{name:<14} learning rate {rate['lr']}, decoder {rate['head_lr_mult']:g} times that")

# %% [markdown]
# Two answers that look at no shape stand beside them: *one class everywhere*, and a *table of
# colours*, which gives each pixel the class that its colour had most often in the training pictures.

# %%
def mean_sd(rows, network, metric):
    values = [run[metric] for run in rows[network]]
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else math.nan


def print_table(columns, rows_of):
    """One line per network, mean ± sd over seeds; rows_of: name of the set -> rows."""
    for name, rows in rows_of.items():
        print(f"{name:<18}" + "".join(f"{column:>17}" for column in columns))
        for network in NETWORKS:
            cells = [mean_sd(rows, network, column) for column in columns]
            print(f"  {network:<16}" + "".join(f"{f'{m:.3f} ± {sd:.3f}':>17}" for m, sd in cells))


print_table(("miou", "miou_foreground", "boundary_iou", "pixel_accuracy"), SETS)
for name, rows in SETS.items():
    print(f"{name}: a table of colours has mIoU {rows['colour'][0]['miou']:.3f}, "
          f"one class everywhere {rows['majority'][0]['miou']:.3f}")

# %% [markdown]
# (The benchmark trains more networks than these four;
# [chapter 15](15_family_tree.ipynb#trained-on-equal-terms) has them all. Whoever is not clearly above
# the table of colours has learned nothing worth the name.)

# %%
def draw_bars(ax, rows, metric):
    """One bar per network, a dot for each seed."""
    for y, network in enumerate(NETWORKS):
        values = [run[metric] for run in rows[network]]
        colour = show.COLOURS["orange" if network.startswith("segformer") else "sky"]
        ax.barh(y, np.mean(values), color=colour, height=0.6)
        ax.plot(values, [y] * len(values), ".", color="#333333", markersize=4)
    ax.set(yticks=range(len(NETWORKS)), yticklabels=NETWORKS, xlim=(0, None), ylim=(3.6, -0.6))


def in_words(rows, metric):
    return ", ".join(f"{name} {mean_sd(rows, name, metric)[0]:.2f}" for name in NETWORKS)


fig, axes = plt.subplots(2, 2, figsize=(7, 3.6), sharey=True)
for line, (name, rows) in zip(axes, SETS.items()):
    for ax, metric, label in zip(line, ("miou", "boundary_iou"), ("mIoU", "boundary IoU")):
        draw_bars(ax, rows, metric)
        ax.axvline(rows["colour"][0][metric], color="#333333", ls="--", lw=1)
        ax.set(title=name, xlabel=f"{label} (dashed: table of colours)")
read = [f"{name}, {metric}: {in_words(rows, metric)}."
        for name, rows in SETS.items() for metric in ("miou", "boundary_iou")]
show.figure(fig, alt=" ".join(["Bars of four networks on two sets, a dot for each seed.", *read]))

# %% [markdown]
# Upper row the drawn scenes, lower row the drawn chest slices; left the areas, right the rims. Each
# bar is the mean of three seeds, each dot a seed. Before you rank: is a difference larger than what
# another seed does? The spread of a difference of two runs is $\sqrt{sd_1^2 + sd_2^2}$; the cell
# says "more" from twice that on.

# %%
def verdict(rows, metric, name, other="segformer_b0"):
    """Says whether two networks differ by more than two seeds of one network do."""
    (a, sd_a), (b, sd_b) = mean_sd(rows, name, metric), mean_sd(rows, other, metric)
    noise = math.hypot(sd_a, sd_b)
    says = "more" if abs(a - b) > 2 * noise else "no more"
    return f"{name} - {other}: {a - b:+.3f} ± {noise:.3f}, {says} than another seed does"


for name, rows in SETS.items():
    for metric in ("miou", "boundary_iou"):
        print(f"{name}, {metric}")
        for network in NETWORKS[:3]:
            print("   ", verdict(rows, metric, network))

# %% [markdown]
# The two sets give two orders. On the scenes FCN is ahead of everybody by far more than a seed, and
# SegFormer of U-Net and SegNet; SegNet has hardly left the table of colours behind. On the chest
# slices, where everything lies in its place and the outlines decide, U-Net leads, SegFormer follows,
# then come FCN, which answers at 1/8, and SegNet, each behind the one before by more than a seed.
# The rims rank as the areas do, with two things to see: on the scenes SegFormer's lead over U-Net is
# no larger there than what another seed does, and on the slices U-Net's lead is wider at the rims than in
# the areas. Detail handed over whole pays where the outline is the task.
#
# *Is SegNet unable, or slow?* The script asked it. Every network that stays below one and a half times
# the table of colours is trained anew with three times the steps, again with three seeds. That is no
# part of the comparison, whose budget is one for all.

# %%
for name, content in stored["sets"].items():
    for network in content["longer"]["rows"]:
        mean, sd = mean_sd(content["longer"]["rows"], network, "miou")
        colours = content["rows"]["colour"][0]["miou"]
        print(f"{name}, {network}, {content['longer']['steps']} steps: mIoU {mean:.3f} ± {sd:.3f}, "
              f"the table of colours {colours:.3f}")
        assert mean > 1.5 * colours

# %% [markdown]
# Slow. Thirteen convolutions down and thirteen up lie between a pixel and its class, and no feature
# takes a shorter way; the places of the maxima say where, never what. Such a network learns later
# than its neighbours do.
#
# Two things belong to every reading. The pictures are small and few and drawn by a program. And all
# start from nothing: FCN and SegNet were published with an encoder trained on ImageNet, and so was
# SegFormer. What is compared here is how fast each *architecture* learns from little.

# %% [markdown]
# ### What each costs
#
# The same table once more, beside the bill. Milliseconds are for one picture in float32 on the
# machine of the benchmark; yours will differ, the ratios less so.

# %%
print(f"{'':14}{'parameters':>12}{'MACs':>9}{'ms':>7}"
      + "".join(f"{'mIoU, ' + name:>23}" for name in SETS))
for name in NETWORKS:
    cost = stored["costs"][name]
    scores = "".join(f"{mean_sd(rows, name, 'miou')[0]:>23.3f}" for rows in SETS.values())
    print(f"{name:<14}{cost['parameters'] / 1e6:>10.2f} M{cost['macs'] / 1e9:>7.2f} G"
          f"{cost['ms']:>7.1f}{scores}")
    assert cost["macs"] == macs(sl.create_model(name, num_classes=9), stored["size_px"])

# %% [markdown]
# The score follows none of them. SegFormer has the most parameters and the fewest MACs, and the
# milliseconds of all four lie close together. Why MACs do not predict milliseconds is a question for
# [chapter 14](14_speed.ipynb).

# %% [markdown]
# ## Large objects: whose failure?
#
# Of FCN one reads that it fails on objects that do not match the size of its window, large ones above
# all. Of SegFormer the report that this course follows (section 4.1) writes that objects which fill
# the picture come out worse, while very small ones are found, and calls that a problem which
# Transformer encoders have in common. So is it the one, the other, or both? Ask the numbers: of the
# pixels of *small, medium and large* objects, how many are right (the **recall**)?
#
# First, what is large? A region of the label is small up to 1/300 of its picture, large from 3 % on
# (COCO's limits, as shares of its pictures).

# %%
for name in SETS:
    shares = []
    dataset = sl.data.open_dataset(name, "val")
    for i in range(len(dataset)):
        label = np.asarray(dataset[i][1])
        for c in set(np.unique(label)) - {0, 255}:
            areas = np.bincount(metrics.connected_components(label == c).ravel())[1:]
            shares += (areas / label.size).tolist()
    counts = np.histogram(shares, [0, 1 / 300, 0.03, 0.3, 1])[0]
    print(f"{name}: {counts[0]} small, {counts[1]} medium, {counts[2:].sum()} large regions; "
          f"{counts[3]} of them fill over 30 %, the largest {max(shares):.0%}")

# %%
STYLES = dict(zip(NETWORKS, (("sky", ""), ("blue", "//"), ("green", ".."), ("orange", ""))))
fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), sharey=True)
for ax, (name, rows) in zip(axes, SETS.items()):
    for i, (network, (tint, hatch)) in enumerate(STYLES.items()):
        x = np.arange(3) + 0.2 * i - 0.3
        seeds = np.array([[run[f"recall_{s}"] for run in rows[network]] for s in metrics.SIZE_BINS])
        ax.bar(x, seeds.mean(1), width=0.18, color=show.COLOURS[tint], hatch=hatch,
               edgecolor="white", label=network)
        ax.plot(x, seeds, ".", color="#333333", markersize=3)
    ax.set(title=name, xticks=range(3), xticklabels=list(metrics.SIZE_BINS), ylim=(0, 1))
axes[0].set_ylabel("recall of their pixels")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
read = [f"{name}, {s}: {in_words(rows, f'recall_{s}')}."
        for name, rows in SETS.items() for s in metrics.SIZE_BINS]
show.figure(fig, alt=" ".join(["Recall by size, four bars in each group.", *read]))

# %%
print_table([f"recall_{size}" for size in metrics.SIZE_BINS], SETS)

# %% [markdown]
# How to read it. The groups of bars go from small to large; a failure on large objects would be a
# bar that *falls* from "medium" to "large". And for "whose": compare the right-most group between
# the networks.

# %%
for name, rows in SETS.items():
    print(name)
    for network in NETWORKS:
        gap = [run["recall_large"] - run["recall_medium"] for run in rows[network]]
        print(f"    {network}: large - medium {np.mean(gap):+.3f} ± {np.std(gap, ddof=1):.3f}")
    for network in NETWORKS[:3]:
        print("    recall of large,", verdict(rows, "recall_large", network))

# %% [markdown]
# Nobody's, on these pictures. No network, of either kind, falls from medium to large: every one of
# them finds large things best, on both sets. What they miss is small. On the scenes FCN has the
# highest recall of large things, SegFormer and U-Net follow; on the slices SegFormer and U-Net lead,
# not to be told apart, and FCN and SegNet are behind. Small things are found hardly at all on the
# scenes; on the slices U-Net and SegFormer get more than half of their pixels, FCN and SegNet far
# fewer. So neither claim shows here, and the second, that a Transformer finds the very small and
# loses the large, is the opposite of what was measured.
#
# What these numbers cannot say. "Large" begins at 3 % of the picture, and few regions fill most of
# it; at 96 pixels the middle of every network's last map can see the whole picture (140 pixels for
# U-Net, 404 for FCN, all of it for SegFormer). And a failing picture is not yet a failing *size*:
# the report looks at the pictures with the largest loss, and a large object that is wrong makes a
# large loss, whatever the reason. A small one that is wrong hardly shows. [Chapter
# 09](09_train_coco.ipynb) takes that claim apart.

# %% [markdown]
# ## Two of them, here and now
#
# Train two yourself, as the benchmark does but shorter and with a single seed: less than a minute
# on two CPU cores. Then ask them about the sizes in finer steps, up to objects that fill more than
# 30 % of their picture.

# %% tags=["nbval-ignore-output"]
PAIR = ("fcn8s", "segformer_b0")
shorter = {"steps": 3, "data_options": {"limit": 24}} if session.quick else {"steps": 200}
rates = stored["rates"]
configs = {name: sl.TrainConfig.preset("sample-coco", model=name, **rates[name], **shorter)
           for name in PAIR}
with tempfile.TemporaryDirectory() as folder:
    table = sl.compare(configs, seeds=1, folder=folder, progress=not session.quick)
    trained = {name: sl.load_model(Path(folder, name, "0"))[0].cpu().eval() for name in PAIR}
for name, runs in table.results.items():
    for run in runs:  # one for each seed
        print(f"{name:<14} mIoU {run['miou']:.3f}, boundary IoU {run['boundary_iou']:.3f}, "
              f"recall of large regions {run['recall_large']:.2f}")
lazy = SETS["sample-coco"]["majority"][0]["miou"]
assert session.quick or all(run["miou"] > lazy for runs in table.results.values() for run in runs)

# %% tags=["nbval-ignore-output"]
LIMITS = (0, 1 / 300, 0.03, 0.1, 0.3, 1.01)  # shares of the picture


@torch.no_grad()
def masks_of(model, image, shape):
    """Label map of one picture, seen at the size of training, in its label's own size."""
    small = sl.evaluation.resize_for_model(image.as_subclass(torch.Tensor), 96)
    return sl.models.upsample(model(sl.preprocess(small[None])), shape).argmax(1)[0].numpy()


def recall_by_share(model, pictures):
    """Share of right pixels among those of regions that fill so much of their picture."""
    right, pixels = np.zeros(5), np.zeros(5)
    for image, label in pictures:
        good, label = masks_of(model, image, label.shape) == label.numpy(), label.numpy()
        for c in set(np.unique(label)) - {0, 255}:
            regions = metrics.connected_components(label == c)
            area = np.bincount(regions.ravel())[1:]
            hits = np.bincount(regions[good], minlength=len(area) + 1)[1:]
            bins = np.digitize(area / label.size, LIMITS) - 1
            np.add.at(right, bins, hits)
            np.add.at(pixels, bins, area)
    return right / np.maximum(pixels, 1)

# %% tags=["nbval-ignore-output"]
some = [val_set[i] for i in range(12 if session.quick else len(val_set))]
finer = {name: recall_by_share(model, some) for name, model in trained.items()}
print(f"{'fills of its picture':<22}" + "".join(f"{name:>14}" for name in PAIR))
for i, (low, high) in enumerate(zip(LIMITS, LIMITS[1:])):
    shares = f"{low:.1%} to {min(high, 1):.1%}"
    print(f"{shares:<22}" + "".join(f"{finer[name][i]:>14.2f}" for name in PAIR))

# %% tags=["nbval-ignore-output"]
panels = []
for i in (17, 12, 46):
    image, label = val_set[i]
    guessed = [masks_of(trained[name], image, label.shape) for name in PAIR]
    panels += [masks.overlay(image, m, val_set.palette, 0.8) for m in (label, *guessed)]
fig = show.grid(panels, ["the label", *PAIR] * 3, columns=3, cell=1.6)
show.figure(fig, alt=(
    "Three validation scenes, each with its label and the masks of the two networks after a short "
    "training. Both are rough: blobs on some of the larger objects, partly of wrong classes; thin and "
    "small things are missing, and in one scene nearly everything."))

# %% [markdown]
# **One run is no evidence.** Is your order the one of the table above? Change `seeds=1` to another
# number, or the steps, and see which differences stay (sizes and masks are always those of seed 0).
# Few regions fill over 30 % of their picture, so the last line hangs on a handful of pictures.
#
# The masks show beginners: after 200 steps neither network is what it will be, and which of them
# *begins* faster is not which of them ends higher.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. Sizes without padding (15 minutes)
#
# The original U-Net does not pad its 3 × 3 convolutions: each takes two pixels off each side length.
# Two of them at every level; between the levels, max pooling on the way down (which must meet an
# even number) and a transposed convolution with $K = S = 2$ on the way up. Give the side of the
# mask for a square picture, or `None` where a pooling would meet an odd side or nothing is left.
#
# <details><summary>Hint</summary>
#
# Down, `poolings` times: minus 4, must be even, halve. At the bottom minus 4. Up, `poolings` times:
# double, minus 4. The skips are cropped to fit; they do not change the sizes.
#
# </details>
# <details><summary>Help: 572 should give 388</summary>
#
# Print the side after every step. On the way down 572, 568, 284, 280, 140, 136, 68, 64, 32; at the
# bottom 28.
#
# </details>

# %% tags=["exercise"]
def my_unet_side(side: int, poolings: int = 4) -> int | None:
    """Side of an unpadded U-Net's mask for a picture with this side; None if it does not fit."""
    # SOLUTION
    for _ in range(poolings):
        side -= 4
        if side % 2:
            return None
        side //= 2
    side -= 4
    for _ in range(poolings):
        side = 2 * side - 4
    return side if side > 0 else None
    # END SOLUTION


checks.unet_side(my_unet_side)

# %% [markdown] tags=["exercise"]
# ### 2. Unpool by hand (15 minutes)
#
# Put every pooled number back to its place, without `max_unpool2d`. Places count row by row through
# the map before pooling, in each channel of each picture from 0 again; all else is zero.
#
# <details><summary>Hint</summary>
#
# Flatten the two last axes of everything. `scatter_(dim, index, source)` writes `source` where
# `index` says.
#
# </details>
# <details><summary>Help: odd sizes come out shifted</summary>
#
# The map before pooling has the given `size`, not twice the pooled one: 5 × 7 is pooled to 3 × 4.
#
# </details>

# %% tags=["exercise"]
def my_unpool(
    pooled: torch.Tensor, places: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """pooled, places: (B, C, h, w) -> (B, C, *size), zero but for the maxima."""
    # SOLUTION
    flat = pooled.new_zeros(*pooled.shape[:2], size[0] * size[1])
    flat.scatter_(2, places.flatten(2), pooled.flatten(2))
    return flat.unflatten(2, size)
    # END SOLUTION


checks.unpool(my_unpool)

# %% [markdown] tags=["exercise"]
# ### 3. Count U-Net's parameters (15 minutes)
#
# A formula for the package's U-Net: five levels with `width`, 2, 4, 8 and 16 times `width` channels.
# Every 3 × 3 convolution is without bias and has a batch norm behind it; transposed and last
# convolutions have a bias.
#
# <details><summary>Hint</summary>
#
# A convolution from $a$ to $b$ channels with its norm: $9ab + 2b$. A transposed one from $2c$ to $c$
# with $K = 2$: $4 \cdot 2c \cdot c + c$. Print `sl.create_model("unet", num_classes=2)` to see all.
#
# </details>
# <details><summary>Help: too few in the decoder</summary>
#
# After the concatenation there are $2c$ channels: $c$ from the skip and $c$ from below. The first
# convolution of each stage there goes from $2c$ to $c$.
#
# </details>

# %% tags=["exercise"]
def my_unet_count(width: int, num_classes: int) -> int:
    """Parameters of the package's U-Net."""
    # SOLUTION
    dims = [width * 2**i for i in range(5)]
    total = width * num_classes + num_classes
    for before, c in zip([3, *dims], dims):
        total += 9 * before * c + 2 * c + 9 * c * c + 2 * c
    for c in dims[:-1]:
        total += 4 * (2 * c) * c + c
        total += 9 * (2 * c) * c + 2 * c + 9 * c * c + 2 * c
    return total
    # END SOLUTION


checks.unet_count(my_unet_count)

# %% [markdown] tags=["exercise"]
# ### 4. FCN's decoder on SegFormer's encoder, with `sl` (20 minutes)
#
# Which part of a network makes the difference, the encoder or the decoder? To find out one has to
# mix them. Write a decoder by sum for SegFormer's four maps: a score layer (1 × 1 convolution with
# bias) on each; begin with $F_4$; enlarge bilinearly to the size of the next finer map with
# `sl.models.upsample(x, size)`, add its scores; and so on to $F_1$. Then build a SegFormer-B0 for 5
# classes with it: `sl.create_model(..., decoder=...)`. It calls your class as `ScoreSum(in_channels,
# dim, num_classes)`; you don't need `dim`.
#
# <details><summary>Hint</summary>
#
# Make the four score maps first, in a list. Start with the last one, then walk through the other
# three from coarse to fine.
#
# </details>
# <details><summary>Help: sizes do not match</summary>
#
# Do not multiply by two: at odd sizes that is one too many. `upsample` takes the size itself, the
# last two numbers of the finer map's shape.
#
# </details>

# %% tags=["exercise"]
class ScoreSum(nn.Module):
    """[F1, ..., F4] -> scores at F1's size, summed from coarse to fine.

    Submodule: scores, an nn.ModuleList of four 1x1 convolutions.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        super().__init__()
        # SOLUTION
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, kernel_size=1) for c in in_channels)
        # END SOLUTION

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        # SOLUTION
        *finer, total = [score(f) for score, f in zip(self.scores, features)]
        for score in reversed(finer):
            total = score + sl.models.upsample(total, score.shape[-2:])
        return total
        # END SOLUTION


def score_sum_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with ScoreSum as its decoder."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, decoder=ScoreSum)
    # END SOLUTION


checks.score_sum(score_sum_segformer())

# %% [markdown]
# ## The package's version
#
# The three forward passes as the course uses them:

# %%
from segformer_lite.models import cnn

for decoder in (cnn.FCNDecoder, cnn.SegNetDecoder, cnn.UNetDecoder):
    print(decoder.__name__)
    print(inspect.getsource(decoder.forward))

# %% [markdown]
# The same steps. What the package adds are first weights made for ReLU (He et al., 2015,
# [arXiv:1502.01852](https://arxiv.org/abs/1502.01852)), bilinear first weights in FCN's enlarging
# layers, a guard in FCN against wrong gradients in bf16, and the message for pictures that are too
# small. The proof: the classes of this chapter take the package's weights, `strict`, and must give the
# same numbers at an awkward size.

# %%
def mine(name, theirs):
    """This chapter's encoder and decoder in the size of the package's network."""
    dims = theirs.encoder.dims
    encoder = Encoder(dims, theirs.encoder.depths)
    if name == "fcn8s":
        return encoder, FCNDecoder(dims, 16 * dims[0], 11)
    if name == "segnet":
        return encoder, SegNetDecoder(dims, theirs.encoder.depths, 11)
    return encoder, UNetDecoder(dims, 11)


def pooled_with_places(features):
    pairs = [F.max_pool2d(f, 2, return_indices=True, ceil_mode=True) for f in features]
    return pairs[-1][0], [places for _, places in pairs], [f.shape[-2:] for f in features]


x = torch.randn(2, 3, 65, 97)
for name in WAYS:
    theirs = sl.create_model(name, num_classes=11).eval()
    encoder, decoder = mine(name, theirs)
    encoder.load_state_dict(theirs.encoder.state_dict(), strict=True)
    decoder.load_state_dict(theirs.decoder.state_dict(), strict=True)
    with torch.no_grad():
        features = encoder.eval()(x)
        given = pooled_with_places(features) if name == "segnet" else (features,)
        torch.testing.assert_close(decoder.eval()(*given), theirs(x), rtol=0, atol=0)
    print(f"{name}: {parameters(theirs):,} parameters loaded, {tuple(theirs(x).shape)}, equal")

# %% [markdown]
# ## What the papers say, what the code does
#
# - **FCN** (Long, Shelhamer and Darrell, 2015, [arXiv:1411.4038](https://arxiv.org/abs/1411.4038)).
#   fc6 and fc7 have 4096 channels and dropout; ours have 16 times the first width, and batch norm.
#   The original pads the picture by 100 pixels and crops later; here each convolution pads, and a
#   crop is needed at odd sizes only. Its last step, bilinear by 8, is left to loss and `predict`,
#   which enlarge the scores of every network alike.
# - **SegNet** (Badrinarayanan, Kendall and Cipolla, 2017,
#   [arXiv:1511.00561](https://arxiv.org/abs/1511.00561)). Batch norm is original. No transposed
#   convolution, no feature handed over. Many rewrites under its name use transposed convolutions, and
#   lose what is special about it.
# - **U-Net** (Ronneberger, Fischer and Brox, 2015,
#   [arXiv:1505.04597](https://arxiv.org/abs/1505.04597)). Five levels, four poolings. The original
#   does not pad, so that 572 pixels in give 388 out (exercise 1), and has no batch norm. Rewrites
#   that enlarge with bilinear interpolation are common.
# - **The order.** In FCN and U-Net the skip joins *after* the coarse map has been enlarged; texts
#   that let it join before have the sizes against them. SegNet's places are used in the enlarging
#   itself.
# - **"Deconvolution"** is the transposed convolution: the transpose, not the inverse
#   ([chapter 01](01_what_is_segmentation.ipynb#is-it-the-inverse)).

# %% [markdown]
# ## Pitfalls
#
# - `max_unpool2d` without `output_size` at odd sizes: an error if you are lucky.
# - Places of one level used at another: no error when the sizes allow it, and nonsense.
# - Enlarging layers of FCN with random weights: then every class votes for every other from the start.
#   Bilinear to begin with, each class on its own.
# - Crop at the wrong end: pooling that rounds up adds to the lower and right edge.
# - A table of networks with different budgets, different pictures, or one seed.
# - Batch norm in `train()` mode while predicting.

# %% [markdown]
# ## In short
#
# - Pooling buys reach and pays with places. All three networks pay the places back through a skip.
# - FCN adds scores: thin, fine to 1/8. To add scores is to multiply votes.
# - SegNet hands over places, two bits each: where, but not whose.
# - U-Net hands over whole maps and concatenates. Concatenate and convolve is a sum with weights of
#   its own for each part.
# - Without their skips all three draw blobs.
# - From scratch, at 96 pixels, FCN leads on the scenes, U-Net on the chest slices with SegFormer
#   next; and nobody fails on large objects, small ones are what is missed.
# - A comparison needs the same data, steps and several seeds; and a difference counts when it is
#   larger than what another seed does.

# %% [markdown]
# ## What people ask
#
# **Does FCN mean "fully connected network"?** No: fully *convolutional*. It is the network in which
# the fully connected layers have become convolutions.
#
# **Are SegNet's indices a skip connection?** Something skips from the way down to the way up, so in
# that sense yes. But no feature does: no gradient flows through a place.
#
# **Is U-Net only for medicine?** Its paper is about biomedical pictures, and thin outlines, which are
# its strength, matter there. Nothing in the network knows about medicine.
#
# **Can these networks take pictures of any size?** Yes, from 32 pixels on. None has a layer that
# knows the size; sizes round up on the way down and are cropped on the way up.
#
# **My FCN is far below published numbers.** Published ones start from ImageNet weights and train on
# thousands of pictures for days. From scratch and in a minute every network of this chapter is a
# beginner.
#
# **Is SegFormer's decoder one of the three?** It concatenates like U-Net, but only once, at 1/4, and
# with linear maps only; so it is a sum of four projected maps, like FCN's with longer vectors than
# scores.

# %% [markdown]
# ## Next
#
# [Chapter 03](03_patch_embedding.ipynb), patch embedding, opens SegFormer's own way down, which has
# no pooling at all: its windows step, overlap, and learn what to keep.
