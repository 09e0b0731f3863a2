# %% [markdown]
# # 14 · Make it fast, and know why it is
#
# About 45 minutes to read and run, 55 more for the exercises. The code times many small things and
# trains one small SegFormer: about a minute and a half on two CPU cores and 1.5 GB of memory. No GPU is
# needed, and the modes fast and full are the same here.

# %% [markdown]
# **What you build.** A bench: a clock that can be trusted, the roofline of your own machine, and a
# list of what each step of this package brought, measured by you. At the end stands one file that
# runs the network without PyTorch.
#
# **What you learn.**
#
# - how to time two things so that the answer is about them, and not about the machine's mood;
# - why FLOPs do not predict speed, shown on the paper's own table and on your processor;
# - what memory costs: bytes moved, tensors alive, pages that come and go;
# - how a loss that was the largest tensor of all became a small one;
# - what bf16 and a smaller input save, and what you pay;
# - how to leave: ONNX, any batch and any size, with the same logits.
#
# **What you need.** [Chapter 07](07_mlp_decoder.ipynb) for the folded decoder, [chapter
# 04](04_efficient_attention.ipynb) for $R$. Matrix products.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import inspect
import json
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks on GPUs that are not there

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import macs, speed
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.evaluation import resize_for_model
from segformer_lite.memory import keep_freed_memory
from segformer_lite.models import MLPDecoder, interpolation, upsample
from segformer_lite.models.blocks import linear_map
from segformer_lite.show import masks

session = setup()
CPU = torch.device("cpu")
TURNS = 1 if session.quick else 9
scratch = tempfile.TemporaryDirectory()
WORK = Path(scratch.name)  # all that this chapter writes; gone when the notebook is closed
RESULTS = sl.data.course_folder() / "docs" / "results"

# %% [markdown]
# Everything in this chapter is measured on the CPU, whatever else your machine has: there an
# operation is over when the call returns, and nothing hides. Where a GPU differs, the text says so.
# Milliseconds belong to a machine, so the text holds none. It says what to look for; the cells print.

# %% [markdown]
# ## You are here

# %%
show.network(lit=("patch_embed", "attention", "mix_ffn", "decoder"))

# %% [markdown]
# The whole network is lit, and nothing about what it computes will change. Only how.

# %% [markdown]
# ## The question
#
# Table 2 of the paper compares small networks on ADE20K: how much they compute, how many pictures
# per second (FPS) they manage, how good they are.
#
# | paper | code | meaning |
# |---|---|---|
# | FLOPs | `macs(model, size)` | multiply-accumulates (MACs) of one picture: a product and a sum each |
# | FPS | `1 / timing.median(...)` | pictures per second, one at a time |
# | mIoU | `sl.evaluate(...).miou` | how good |

# %%
TABLE_2 = {  # G multiply-accumulates, FPS, mIoU on ADE20K
    "FCN, MobileNetV2": (39.6, 64.4, 19.7), "PSPNet, MobileNetV2": (52.9, 57.7, 29.6),
    "DeepLabV3+, MobileNetV2": (69.4, 43.1, 34.0), "SegFormer-B0": (8.4, 50.5, 37.4),
}
for name, (gigas, fps, miou) in TABLE_2.items():
    print(f"{name:24s}{gigas:5.1f} G  {fps:5.1f} FPS  mIoU {miou}   {gigas * fps:5.0f} G in a second")
fcn, b0 = TABLE_2["FCN, MobileNetV2"], TABLE_2["SegFormer-B0"]
print(f"B0 computes {fcn[0] / b0[0]:.1f} times less than the FCN, and takes {fcn[1] / b0[1]:.2f} times as long")

# %% [markdown]
# B0 is by far the best of the four, and needs the least arithmetic. But the FCN, with nearly five
# times as much to compute, is *faster*. Look at the last column: on the same card one network manages
# 2,550 G multiply-accumulates in a second, the other 424. **Where does the time go, if not into
# arithmetic?**
#
# To answer it we need a clock first.

# %% [markdown]
# ## By hand: a clock
#
# You change a line, time it before and after, and it is 30 % faster. Is it? Here is a toy machine
# on which *two equal* programs run, each for one second plus a little noise. In the middle somebody
# else begins to use the machine, and everything takes 30 % longer.

# %%
rng = np.random.default_rng(0)
moment = np.arange(20)
seconds = 1 + 0.3 * (moment >= 10) + rng.exponential(0.02, 20)  # what the clock shows, turn by turn

before, after = seconds[:10], seconds[10:]  # first all readings of A, then all of B
a, b = seconds[::2], seconds[1::2]          # or in turns: A B A B
print(f"one after the other:  B takes {np.median(after) / np.median(before):.2f} times as long as A")
print(f"in turns, medians:    B takes {np.median(b) / np.median(a):.2f} times as long as A")
print(f"in turns, each pair:  B takes {np.median(b / a):.2f} times as long as A")

# %% [markdown]
# The first line is the usual way, and it is wrong by the whole drift. In turns, both contestants
# meet the same machine. The last line is the best of the three: a ratio for each *pair* of
# neighbours, then the median of the ratios. The machine's mood divides out.
#
# Three rules follow, and the package's `take_turns` holds them:
#
# - **in turns**, in one process, after one call that warms up;
# - **ratios**, turn by turn, because milliseconds belong to a machine and a moment;
# - **the median and the quartiles**: one turn in which the machine looked away must not count, and
#   how far the ratios spread says what can't be told apart.

# %%
print(inspect.getsource(speed.take_turns).split('"""')[2])

# %% [markdown]
# The line with `synchronize` is for a GPU: there a call returns as soon as the work is *queued*.
# Whoever stops the clock then has timed the queue, which looks like magic.
#
# Now a real one: the very same function under two names.

# %% tags=["nbval-ignore-output"]
m = torch.randn(256, 256)
twins = speed.take_turns({"one": lambda: m @ m, "other": lambda: m @ m}, turns=25)
low, middle, high = twins.ratio("one", "other")
print(f"ratio {middle:.2f}, half of the turns between {low:.2f} and {high:.2f}")

fig, ax = plt.subplots(figsize=(5.2, 2.2))
for (name, values), colour in zip(twins.seconds.items(), ("blue", "orange")):
    ax.plot(1e3 * np.array(values), "o-", ms=3, lw=1, color=show.COLOURS[colour], label=name)
ax.set(xlabel="turn", ylabel="ms", ylim=(0, None))
ax.legend()
show.figure(fig, alt=(
    "Two lines of 25 readings each, of the same matrix product under two names, in milliseconds, close "
    f"together, with a peak here and there; the median of their ratio is {middle:.2f}."))

# %% [markdown]
# The readings wander a little; peaks are moments in which something else ran. The ratio should be
# close to 1, and the width of its quartiles is what this bench can see today: **a difference that
# is smaller is no result.**

# %% [markdown] tags=["exercise"]
# ### Exercise 1: an honest ratio (5 minutes)
#
# From the seconds of two functions that took turns: how many times longer A takes than B, so that
# neither the machine's drift nor one bad turn moves it.
#
# <details>
# <summary>Hint</summary>
# Pair the readings: the first with the first, the second with the second. One ratio per pair.
# </details>
# <details>
# <summary>Help: it says that the machine's drift is in your ratio</summary>
# A ratio of two medians compares moments that may lie far apart. Divide first, take the median after.
# </details>

# %% tags=["exercise"]
def my_ratio(a: list[float], b: list[float]) -> float:
    """How many times longer A takes than B; a[i] and b[i] are the seconds of turn i."""
    # SOLUTION
    return float(np.median(np.array(a) / np.array(b)))
    # END SOLUTION


checks.honest_ratio(my_ratio)

# %% [markdown]
# ## Where the arithmetic is
#
# B0 with 150 classes, a picture of 256 px. First the parts ([chapter 07](07_mlp_decoder.ipynb) did
# this at 512 px):

# %%
torch.manual_seed(0)
model = sl.create_model("segformer_b0", num_classes=150).eval()
parts = {part: macs(model, 256, part) for part in (*(f"encoder.stages.{i}" for i in range(4)), "decoder")}
for part, count in parts.items():
    print(f"{part:18s}{count / 1e6:6.0f} M  {count / sum(parts.values()):4.0%}")
assert sum(parts.values()) == macs(model, 256)

# %% [markdown]
# Then by *kind*. A kind of operation is the better question, for a processor knows no stages. The
# depth-wise 3 × 3 of Mix-FFN is counted apart. The other convolutions and the linear maps of tokens
# are one kind, for a linear map *is* a 1 × 1 convolution, and may be computed as one:

# %%
from torch.utils.flop_counter import FlopCounterMode

images = sl.preprocess(torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8))
forward = speed.inference(model, images, torch.float32)
with FlopCounterMode(display=False) as counter:
    forward()
counts = counter.get_flop_counts()
depthwise = sum(sum(ops.values()) for name, ops in counts.items() if name.endswith("dwconv"))
found = {str(op): n for op, n in counts["Global"].items()}
flops = {
    "linear, convolution": sum(n for op, n in found.items() if "mm" in op or "conv" in op) - depthwise,
    "depth-wise": depthwise,
    "attention": sum(n for op, n in found.items() if "attention" in op),
}
for kind, n in flops.items():
    print(f"{kind:20s}{n / 2e6:6.0f} M MACs  {n / sum(found.values()):5.1%}")

# %% [markdown]
# Linear maps and dense convolutions are nearly everything. Norms, GELU, upsampling and sums are
# not in the list at all: by custom nobody counts them.
#
# **Predict, then run.** Depth-wise convolutions have 2 % of the arithmetic; norms, GELU,
# upsampling, sums and copies have none that is counted. What share of the *time* do these take
# together?
#
# - A. Two or three percent, as their arithmetic says.
# - B. A tenth.
# - C. A quarter or more.
#
# PyTorch's profiler notes every operation, its time and the shapes that went in. Sorted by the same
# kinds:

# %%
KINDS = {"linear, convolution": ("mm", "conv"), "attention": ("attention", "softmax"), "norms": ("norm",),
         "GELU, ReLU": ("gelu", "relu", "clamp"), "upsampling": ("upsample",),
         "sums, copies": ("add", "copy", "clone", "cat", "contiguous", "mul", "sum")}


def kind_of(event):
    """The kind of one line of the profiler; depth-wise means one input channel per 3 x 3 kernel."""
    if "conv" in event.key and [1, 3, 3] in [list(shape[1:]) for shape in event.input_shapes]:
        return "depth-wise"
    kinds = [kind for kind, words in KINDS.items() if any(word in event.key for word in words)]
    return kinds[0] if kinds else "the rest"


def profiled(function, times=3):
    """Lines of the profiler for some calls after a first one."""
    function()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as records:
        for _ in range(times):
            function()
    return records.key_averages(group_by_input_shape=True)


def by_kind(events):
    """Kind -> share of the time, in the order of the table above."""
    spent = dict.fromkeys((*flops, *list(KINDS)[2:], "the rest"), 0.0)
    for event in events:
        spent[kind_of(event)] += event.self_cpu_time_total
    return {kind: value / sum(spent.values()) for kind, value in spent.items()}


# %% tags=["nbval-ignore-output"]
events = profiled(forward)
shares = by_kind(events)
fig, ax = plt.subplots(figsize=(6.4, 3))
place = np.arange(len(shares))
ax.barh(place - 0.2, [flops.get(kind, 0) / sum(found.values()) for kind in shares], 0.38,
        color=show.COLOURS["blue"], label="share of the arithmetic")
ax.barh(place + 0.2, list(shares.values()), 0.38, color=show.COLOURS["orange"], label="share of the time")
ax.set_yticks(place, list(shares))
ax.invert_yaxis()
ax.legend()
counted_kinds = ("linear, convolution", "attention")
uncounted = sum(value for kind, value in shares.items() if kind not in counted_kinds)
show.figure(fig, alt=(
    "Horizontal bars for kinds of operations, share of the arithmetic in blue and of the time in orange. "
    "Linear maps and convolutions have nearly all the arithmetic and a smaller share of the time; depth-wise "
    "convolutions, and all that is not counted, have a larger one. Time: "
    + ", ".join(f"{kind} {value:.0%}" for kind, value in shares.items()) + "."))
print(f"depth-wise, norms, GELU, upsampling, sums, copies and the rest: {uncounted:.0%} of the time")

# %% [markdown]
# Blue is what the FLOPs say, orange what the clock says.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **C**, on most machines. *Why?* Look at the bars that have orange and no blue: each of these
# operations does almost nothing with a number, but it must *fetch* the number and *put it back*. A
# FLOP count sees the arithmetic. It does not see the way to memory.
#
# </details>
#
# (A profiler is itself a passenger: it adds a little to each of the many small operations. Shares
# are for orientation; ratios are measured without it.)
#
# MobileNet's family, for which Table 2 has the fast FCN, is full of depth-wise convolutions too.
# So the table has no simple moral of "good" and "bad" operations. It has this one: **count, and then
# measure.**

# %% [markdown]
# ## The roofline of your machine
#
# Two things can be too slow: the processor, or the way to memory. Whatever an operation does, it
# takes at least
#
# $$t \geq \max\left(\frac{\text{operations}}{P},\ \frac{\text{bytes}}{M}\right),$$
#
# with $P$ operations a second at best and $M$ bytes a second at best. Divide operations by time,
# and write $I = \text{operations} / \text{bytes}$ for the **arithmetic intensity**:
#
# $$\text{operations a second} \leq \min(P,\ I \cdot M).$$
#
# Drawn over $I$ with both axes logarithmic this is a slope and a flat roof. They meet at
# $I = P / M$, the *ridge*.
#
# By hand, for a machine with $P = 100$ G operations and $M = 20$ GB a second, and one million
# values of 4 bytes each:

# %%
P, M, values = 100e9, 20e9, 10**6
toys = {  # operations, bytes: every value is read once and written once
    "GELU": (10 * values, 8 * values),           # about ten operations a value
    "depth-wise 3 x 3": (18 * values, 8 * values),  # nine products, nine sums
    "64 -> 64 channels": (128 * values, 8 * values),  # each new value: 64 products, 64 sums
}
print(f"ridge at {P / M:.0f} operations per byte")
for name, (operations, moved) in toys.items():
    compute, fetch = 1e3 * operations / P, 1e3 * moved / M
    print(f"{name:18s} I = {operations / moved:5.2f}   {compute:.2f} ms to compute, {fetch:.2f} ms to fetch: "
          f"{'memory' if fetch > compute else 'processor'} decides")

# %% [markdown]
# All three fetch the same bytes, so GELU and the convolution take *the same time*, although one has
# nearly twice the arithmetic. Below the ridge arithmetic is free.
#
# Now your machine. `ceilings` finds $P$ with a large matrix product and $M$ with a large copy, each
# from its best turn: a roof is what the machine *can*, so the points get their best turn too. Then
# seven operations of B0, at the size of stage 1 for eight pictures of 256 px: 32,768 tokens with 32
# channels outside and 128 inside Mix-FFN (`fuse`, from the decoder as printed, has 1024 channels and
# gets one picture only; `upsampling` makes its map four times as large and gets two). Operations and
# bytes are counted by hand, as above.

# %%
block = model.encoder.stages[0].blocks[0]
tokens = torch.randn(8, 64, 64, 32)
hidden, other = torch.randn(2, 8, 64, 64, 128)
as_map = hidden.permute(0, 3, 1, 2)  # what Mix-FFN hands to its convolution: a view, channels last
stacked = torch.randn(1, 64, 64, 1024)  # four levels of 256 channels
n, m, s = tokens.numel(), hidden.numel(), stacked.numel()
work = {  # name: function, operations, bytes
    "sum": (lambda: hidden + other, m, 12 * m),
    "layer norm": (lambda: block.norm1(tokens), 8 * n, 8 * n),
    "GELU": (lambda: F.gelu(hidden), 10 * m, 8 * m),
    "upsampling": (lambda: F.interpolate(as_map[:2], scale_factor=2, mode="bilinear"), 7 * m, 5 * m),
    "depth-wise": (lambda: block.ffn.dwconv(as_map), 18 * m, 8 * m),
    "fc1": (lambda: block.ffn.fc1(tokens), 2 * 32 * m, 4 * (n + m)),
    "fuse": (lambda: model.decoder.fuse(stacked), 2 * 256 * s, 4 * (s + s // 4)),
}
for name, (_, operations, moved) in work.items():
    print(f"{name:12s}{operations / 1e6:8.1f} M operations  {moved / 2**20:5.1f} MiB   "
          f"I = {operations / moved:6.2f}")

# %% [markdown]
# (Of a norm, about eight operations per value: mean, variance, scale and shift. GELU's ten are a
# guess as well; half or twice as many would move its point a little and change nothing below. The
# upsampling makes four values of one, seven operations each.)

# %% tags=["nbval-ignore-output"]
peak, copied = speed.ceilings(CPU, torch.float32)
with torch.inference_mode():
    timing = speed.take_turns({name: function for name, (function, *_) in work.items()}, TURNS)
points = {name: (operations / moved, operations / min(timing.seconds[name]))
          for name, (_, operations, moved) in work.items()}
ridge = peak / copied
print(f"P = {peak / 1e9:.0f} G operations a second, M = {copied / 1e9:.0f} GB a second, ridge at {ridge:.1f}")
for name, (intensity, rate) in points.items():
    roof = min(peak, intensity * copied)
    print(f"{name:12s}{rate / 1e9:7.1f} G a second, {rate / roof:5.0%} of its roof, {rate / peak:5.1%} of P")


# %% tags=["nbval-ignore-output"]
def draw_roof(points, title=""):
    """Slope, roof and points; returns the figure."""
    fig, ax = plt.subplots(figsize=(6.4, 3))
    across = np.array([0.05, ridge, 400])
    ax.loglog(across, np.minimum(peak, across * copied) / 1e9, color="black", lw=1.5)
    ax.axvline(ridge, color=show.COLOURS["grey"], ls=":", lw=1)
    for mark, (name, (intensity, rate)) in zip("os^vDP*X", points.items()):
        ax.plot(intensity, rate / 1e9, mark, ms=6, label=name,
                color=show.COLOURS["blue" if intensity < ridge else "orange"])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    ax.minorticks_off()
    ax.set(xlabel="operations per byte", ylabel="G operations a second", title=title)
    ax.set_yticks([1, 10, 100], ["1", "10", "100"])
    ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    return fig


left = [name for name, (intensity, _) in points.items() if intensity < ridge]
show.figure(draw_roof(points), alt=(
    "A roofline: a slope that rises with the operations per byte and ends in a flat roof at the ridge, "
    f"{ridge:.1f} operations per byte. Left of the ridge lie {', '.join(left)}, the others right of it. "
    "G operations a second: " + ", ".join(f"{name} {rate / 1e9:.1f}" for name, (_, rate) in points.items()) + "."))

# %% [markdown]
# Left of the dotted line, in blue, or close to it, is everything that FLOPs overlook. The blue points
# can rise to the slope and no further: at full speed they would still reach only a part of $P$. On the
# right, near the roof, the linear maps. *How to read what lies off:*
#
# - *below the slope*: something else than memory is slow. A norm has sums over 32 numbers that wait
#   for each other; GELU's error function is more work than our ten;
# - *above the slope*: the numbers never left the processor's *cache*, a small and fast memory of its
#   own. $M$ was measured with a copy that is larger than any cache;
# - *above the roof*: the machine was busy while $P$ was measured. Run the cell again.
#
# **To speed up a blue point, move fewer bytes**: work in place, in 16 bits, in one pass instead of
# three, or at a lower resolution. To speed up an orange one, do less arithmetic. The folded decoder
# of [chapter 07](07_mlp_decoder.ipynb) does both.
#
# ### Narrow networks are slow per operation
#
# A `Linear` with $C$ channels in and out needs $2C$ operations for each value it writes, and 8
# bytes. Its intensity is $C / 4$, as long as its matrix is small beside the tokens: it grows with
# the *width*.

# %%
def linear_work(channels, count=2**20):
    """A Linear of `channels` to `channels` on about a million values: function, operations, bytes."""
    x, matrix = torch.randn(1, 1, count // channels, channels), torch.randn(channels, channels)
    return (lambda: linear_map(x, matrix)), 2 * count * channels, 4 * (2 * count + channels**2)


for channels in (4, 32, 256):
    _, operations, moved = linear_work(channels)
    print(f"C = {channels:3d}: I = {operations / moved:.1f}")

# %% tags=["nbval-ignore-output"]
def measured(widths):
    """Points of the roofline for Linears of these widths."""
    tasks = {f"C = {c}": linear_work(c) for c in widths}
    timing = speed.take_turns({name: function for name, (function, *_) in tasks.items()}, TURNS)
    return {name: (operations / moved, operations / min(timing.seconds[name]))
            for name, (_, operations, moved) in tasks.items()}


widths = measured((4, 8, 16, 32, 64, 160, 256, 768))
show.figure(draw_roof(widths, "Linear, C to C"), alt=(
    "The same roofline with eight points for linear maps of 4 to 768 channels. They climb below the slope "
    "as the width grows, the narrowest far below it, and level out near the roof. G operations a second: "
    + ", ".join(f"{name} {rate / 1e9:.0f}" for name, (_, rate) in widths.items()) + "."))

# %% [markdown]
# The same operation, from left to right only wider, climbs below the slope and comes near the roof.
# (The narrowest stay far below even the slope: rows of four or eight numbers do not fill the
# processor's instructions.) B0 has 32, 64, 160 and 256 channels, B5's decoder 768. **A small
# network does not only compute less, it computes *more slowly*.** By how much depends on the ridge: the
# further right it lies, as on graphics cards, the more of B0's widths fall short of the roof. That is
# one part of the answer to Table 2; the other is all that is not counted.
#
# One width at a time, with a slider (optional):

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_width(log2):
    point = measured([2**log2])
    show.figure(draw_roof(point, "one width"),
                alt=f"The roofline with one point, a Linear of {2**log2} channels.")


_ = interact(try_width, log2=IntSlider(5, 1, 10, description="C = 2 to the", continuous_update=False))

# %% [markdown] tags=["exercise"]
# ### Exercise 2: arithmetic intensity (10 minutes)
#
# Of a linear layer with its matrix, as exact as it can be counted: tokens in, matrix in, tokens out,
# each once. The bias is left out. `size` is the number of bytes of one value: 4 in float32, 2 in
# bf16.
#
# <details>
# <summary>Hint</summary>
# Each of `tokens * c_out` new values is a sum of `c_in` products.
# </details>
# <details>
# <summary>Help: it says that a product and a sum are two</summary>
# A multiply-accumulate is two operations. The ceilings count them as two, so the intensity must too.
# </details>

# %% tags=["exercise"]
def my_intensity(tokens: int, c_in: int, c_out: int, size: int = 4) -> float:
    """Operations per byte of nn.Linear(c_in, c_out, bias=False) on (tokens, c_in)."""
    # SOLUTION
    operations = 2 * tokens * c_in * c_out
    moved = size * (tokens * c_in + c_in * c_out + tokens * c_out)
    return operations / moved
    # END SOLUTION


checks.arithmetic_intensity(my_intensity)

# %% [markdown]
# ## Read a profile
#
# Now look at the lines themselves: the five that take longest, of a forward pass and of a training
# step. `mkldnn_convolution` is a convolution by the library oneDNN, `_slow_conv2d_forward` one by
# PyTorch itself, for small maps or where there is one thread. `addmm` is a matrix product with a bias, so
# a linear map; with several threads most convolutions are linear maps, too
# ([why](#what-each-step-brought)). Names with `backward` belong to the gradient.

# %% tags=["nbval-ignore-output"]
def top_five(events, title):
    """The names that take longest, over all shapes."""
    spent = {}
    for event in events:
        spent[event.key] = spent.get(event.key, 0) + event.self_cpu_time_total
    total, calls = sum(spent.values()), sum(event.count for event in events)
    print(f"{title}: {calls} entries")
    for name, value in sorted(spent.items(), key=lambda pair: -pair[1])[:5]:
        print(f"  {value / total:4.0%}  {name.removeprefix('aten::')[:46]}")


labels = torch.randint(0, 150, (2, 128, 128))
pictures = sl.preprocess(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
learner = sl.create_model("segformer_b0", num_classes=150)
top_five(profiled(forward, times=1), "forward, one picture of 256 px")
plain_step = speed.plain_training_step(learner, pictures, labels, torch.float32)
top_five(profiled(plain_step, times=1), "plain training step, two pictures of 128 px")

# %% [markdown]
# *What to look for.* Forward: convolutions and products lead, and somewhere in the five stands
# something that no FLOP count knows. The training step is written as most people write it (upsample
# the logits, `F.cross_entropy`). Among its five you will find names that have nothing to do with the
# network: the log-softmax of the *loss*, its backward, the upsampling's backward. And note the number
# of entries: calls of operations, some inside others. Each costs a few millionths of a second before
# it does anything.
#
# The line to start with is always the first one. Making the tenth line twice as fast is work for
# nothing.

# %% [markdown]
# ### What a new tensor costs
#
# `x + y` makes a tensor; `x += y` writes into an old one. The additions are the same.
#
# **Predict, then run.** How many times longer does `x + y` take than `x += y`, for tensors from 8
# to 64 MiB?
#
# - A. As long: the arithmetic is the same.
# - B. Up to twice as long, by the same factor at every size: three tensors pass through memory, not
#   two.
# - C. Up to twice as long as far as some size, and then suddenly much longer.

# %% tags=["nbval-ignore-output"]
def new_against_old(mib):
    """Seconds of turns of x + y and of x += y on tensors of so many MiB."""
    x, y = torch.zeros(2, mib * 2**18)  # a float32 has four bytes
    return speed.take_turns({"new": lambda: x + y, "in place": lambda: x.add_(y)}, TURNS)


SIZES = (16, 40) if session.quick else (8, 16, 24, 30, 34, 40, 48, 64)
ratios = {mib: new_against_old(mib).ratio("new", "in place") for mib in SIZES}
fig, ax = plt.subplots(figsize=(5, 2.4))
low, middle, high = np.array(list(ratios.values())).T
ax.errorbar(SIZES, middle, [middle - low, high - middle], fmt="o-", ms=4, capsize=2,
            color=show.COLOURS["blue"])
ax.axvline(32, color=show.COLOURS["grey"], ls=":", lw=1)
ax.set(xlabel="size of each tensor, MiB", ylabel="times longer than in place", ylim=(0, None))
show.figure(fig, alt=(
    "How many times longer a sum into a new tensor takes than one in place, against the size of the tensor, "
    "with a dotted line at 32 MiB: " + ", ".join(f"{mib} MiB {m:.1f}" for mib, m in zip(SIZES, middle)) + "."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C** on Linux, where the curve has a step near 32 MiB. (Left of it the third tensor is what costs.)
# *Why there?* PyTorch asks the C library
# for memory. Small blocks it keeps and hands out again. A block beyond
# `DEFAULT_MMAP_THRESHOLD_MAX`, which is 32 MiB on 64-bit systems (manual page *mallopt*), it does not
# keep, unless a program [asks for it](#memory-that-is-kept).
#
# </details>
#
# So beyond 32 MiB (on Linux) every new tensor is made of memory that comes from the system and goes
# back at once. The system hands out memory in *pages* of a few kilobytes, must fill each with
# zeros, and does so when it is touched first: an interruption each time, which the operating system
# counts:

# %% tags=["nbval-ignore-output"]
try:
    import resource  # Linux and macOS
except ImportError:
    resource = None


def pages_of(function):
    """Pages that the system had to bring for one call, after three others; 0 where it does not count them."""
    for _ in range(3):
        function()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before if resource else 0


for mib in (16, 128):
    x, y = torch.zeros(2, mib * 2**18)
    print(f"{mib} MiB: {pages_of(partial(torch.add, x, y)):6,} pages brought anew")

# %% [markdown]
# (A single large size, in the curve or in this count, may fall back to the level of the small ones:
# there the library happened to hold a free block that was large enough. macOS, Windows and other C
# libraries draw the line elsewhere or not at all; your curve is what counts. A GPU has an allocator
# of PyTorch's own that keeps what it got.) So a large tensor is expensive just by being *new*. In the
# network's decoder the sums of the four levels are written `fused += y` for this reason, the largest
# maps of all.

# %% [markdown]
# ## A loss in strips
#
# What is the largest tensor of a training step? The logits come at a quarter of the size, the labels
# do not. For two pictures of 256 px and 150 classes:

# %%
logits = torch.randn(2, 150, 64, 64, generator=torch.Generator().manual_seed(0))
labels = torch.randint(0, 150, (2, 256, 256), generator=torch.Generator().manual_seed(1))
labels[:, :20] = 255  # unlabelled
print(f"logits, at 1/4: {logits.nbytes / 2**20:5.1f} MiB")
print(f"upsampled:      {16 * logits.nbytes / 2**20:5.1f} MiB, and its gradient as much again")


def plain_loss(logits, labels):
    """The mean cross-entropy of labelled pixels, as one writes it."""
    return F.cross_entropy(upsample(logits, labels.shape[-2:]), labels, ignore_index=255)


# %% [markdown]
# Sixteen times the logits, well past 32 MiB, written and read several times: upsampling, log-softmax,
# the gradients of both. The way out has two ideas.
#
# ### One: upsampling is two matrices
#
# Bilinear upsampling makes each new row a mixture of two old rows. A mixture is a matrix. From 4 to 8:

# %%
rows = interpolation(4, 8, torch.zeros(()))  # the third argument says where and of which type
rows

# %% [markdown]
# A line for each new value, a column for each old one. New value 1 lies a quarter of the way from
# old value 0 to old value 1: 0.75 and 0.25. Each line sums to one, and the first and last new value
# are held, because they lie outside of all old centres. Rows first, then columns:

# %%
x = torch.arange(16.0).reshape(4, 4)
by_matrices = rows @ x @ rows.T  # (8, 4) (4, 4) (4, 8)
torch.testing.assert_close(by_matrices, upsample(x[None, None], (8, 8))[0, 0])
print("rows @ x @ columns.T is the upsampling;", tuple(by_matrices.shape))
torch.testing.assert_close((rows @ x @ rows.T)[2:4], rows[2:4] @ x @ rows.T)
print("new rows 2 and 3 alone: two lines of the matrix, old rows",
      rows[2:4].any(dim=0).nonzero().flatten().tolist())

# %% [markdown]
# That is the point: **any strip of the large map can be made alone**, from a few old rows. And its
# gradient goes back by the transposed matrices, again a product, right of the ridge.
#
# ### Two: the gradient of a sum, part by part
#
# The loss is a sum over pixels. So take a strip of rows, its loss, its gradient at the *small*
# logits, add up, forget the strip:

# %%
def strip_loss(logits, labels, lines):
    """Sum of the cross-entropy and its gradient at `logits`, so many rows of labels at a time."""
    (height, width), (h, w) = labels.shape[-2:], logits.shape[-2:]
    rows, columns = interpolation(h, height, logits), interpolation(w, width, logits)
    total, gradient = 0.0, torch.zeros_like(logits)
    for top in range(0, height, lines):
        strip = slice(top, top + lines)
        part = logits.detach().requires_grad_()
        grown = rows[strip] @ part @ columns.T  # (B, K, lines, W)
        loss = F.cross_entropy(grown, labels[:, strip], ignore_index=255, reduction="sum")
        gradient += torch.autograd.grad(loss, part)[0]
        total += loss.detach()
    return total, gradient


small = logits[..., :16, :16].clone().requires_grad_()
total, gradient = strip_loss(small, labels[:, :64, :64], lines=8)
plain_loss(small, labels[:, :64, :64]).backward()
counted = (labels[:, :64, :64] != 255).sum()
torch.testing.assert_close(gradient / counted, small.grad)
print("strips of 8 rows: the same gradient as the plain loss")

# %% [markdown]
# At no time were there more than 8 rows at full size. The package's version goes one step further
# and gives each strip only the old rows it needs:

# %%
from segformer_lite.models.upsampling import PART
from segformer_lite.training.losses import UpsampledCrossEntropy, segmentation_loss

print(inspect.getsource(UpsampledCrossEntropy.forward))

# %%
small.grad = None
segmentation_loss(small, labels[:, :64, :64]).backward()
torch.testing.assert_close(small.grad, gradient / counted)
print("the package's gradient: the same;", f"a strip holds {PART * 4 / 2**20:.0f} MiB")

# %% [markdown]
# 4 MiB, about what a core's cache holds: the strip is upsampled, turned into probabilities and
# thrown away without ever going to memory. It is the roofline's advice, taken literally: the same
# arithmetic, fewer bytes.

# %% [markdown] tags=["exercise"]
# ### Exercise 3: the matrix of an upsampling (15 minutes)
#
# [Chapter 07](07_mlp_decoder.ipynb) upsampled a row. Here is the row's matrix. New value $i$ lies
# at $(i + 0.5) \cdot \text{length} / \text{size} - 0.5$, counted in old values, and never outside
# of 0 and length − 1.
#
# <details>
# <summary>Hint</summary>
# Clamp the places. The old neighbours are `place.long()` and the next one; the share of the next is
# what is left of the place. Begin with zeros, and set two entries in each line.
# </details>
# <details>
# <summary>Help: an index is out of range at the last line</summary>
# At the very end the next neighbour is beyond the row. Its share is 0: clamp its index.
# </details>

# %% tags=["exercise"]
def my_matrix(length: int, size: int) -> torch.Tensor:
    """(size, length): my_matrix(length, size) @ x is the row x of `length` values at `size` values."""
    # SOLUTION
    place = ((torch.arange(size) + 0.5) * length / size - 0.5).clamp(0, length - 1)
    low = place.long()
    high = (low + 1).clamp(max=length - 1)
    matrix = torch.zeros(size, length)
    line = torch.arange(size)
    matrix[line, low] += 1 - (place - low)
    matrix[line, high] += place - low
    return matrix
    # END SOLUTION


checks.interpolation_matrix(my_matrix)

# %% [markdown]
# ## What each step brought
#
# Four steps of this package against what one would write first. Three of them compute the same
# function, and that is shown *before* anything is timed: a fast wrong answer is no answer.

# %%
pair = sl.preprocess(torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8))
with torch.inference_mode():
    features = model.encoder(pair)
    folded, printed = model.decoder(features), model.decoder.forward_unfolded(features)
torch.testing.assert_close(folded, printed, rtol=1e-3, atol=1e-4)
print("folded decoder = equation 4 as printed:", tuple(folded.shape))

gradients = []
for loss in (plain_loss, segmentation_loss):
    point = logits.clone().requires_grad_()
    loss(point, labels).backward()
    gradients.append(point.grad)
torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-8)
print("loss in strips = plain loss, value and gradient")

maps, hidden_layer = torch.randn(2, 64, 64, 32), block.ffn.fc1
with torch.inference_mode():
    torch.testing.assert_close(hidden_layer(maps), F.linear(maps, hidden_layer.weight, hidden_layer.bias))
print("linear map of tokens = matrix product:", tuple(hidden_layer(maps).shape))

# %% [markdown]
# The last of these is the smallest trick of all. A linear map of every token is a 1 × 1 convolution, and in
# `preprocess`'s layout, channels last, turning one into the other costs nothing. Yet PyTorch hands
# them to different libraries: on an x86 processor `F.linear` in float32 goes to MKL, a convolution on
# several threads to oneDNN. Which is faster is a question to the processor, and the cell below asks
# yours.

# %% [markdown]
# The fourth step, attention with $R = 64$ in stage 1, is *not* the same function as attention to all
# tokens: it is the paper's idea, and [chapter 04](04_efficient_attention.ipynb) shows what it
# merges.

# %%
reduced = block.attention  # stride 8: R = 64
full = sl.EfficientSelfAttention(32, heads=1, stride=1).eval()


def learn(loss):
    """Loss and gradient once."""
    def run():
        loss(logits.detach().requires_grad_(), labels).backward()
    return run


STEPS = {  # name: (module, before, after)
    "decoder: as printed, folded": (model, lambda: model.decoder.forward_unfolded(features),
                                    lambda: model.decoder(features)),
    "loss: plain, in strips": (nn.Identity(), learn(plain_loss), learn(segmentation_loss)),
    "linear: product, 1 x 1": (block, lambda: F.linear(maps, hidden_layer.weight, hidden_layer.bias),
                               lambda: hidden_layer(maps)),
    "attention: R = 1, R = 64": (block, lambda: full(maps), lambda: reduced(maps)),
}

# %% [markdown]
# Peak memory first, of the two steps that were made to save it. `speed.peak_memory` follows every
# tensor until it dies; it is no clock, so it says the same on every machine:

# %%
for name, (part, before, after) in list(STEPS.items())[:2]:
    with torch.set_grad_enabled("loss" in name):
        most = [speed.peak_memory(function, part) / 2**20 for function in (before, after)]
    print(f"{name:28s}{most[0]:6.0f} -> {most[1]:4.0f} MiB")

# %% tags=["nbval-ignore-output"]
table = {}
for name, (_, before, after) in STEPS.items():
    with torch.set_grad_enabled("loss" in name):
        timing = speed.take_turns({"before": before, "after": after}, TURNS)
    low, middle, high = timing.ratio("before", "after")
    table[name] = [x / y for x, y in zip(timing.seconds["before"], timing.seconds["after"])]
    print(f"{name:28s}{middle:5.1f} times as fast (half of the turns: {low:.1f} to {high:.1f})")
fig = show.curves.bars(table, "times as fast; a dot for each turn")
fig.axes[0].axvline(1, color="#333333", ls="--", lw=1)
show.figure(fig, alt=(
    "Horizontal bars, how many times as fast each step made its part, with a dot for each turn and a dashed "
    "line at 1: " + ", ".join(f"{name} {np.median(values):.1f}" for name, values in table.items()) + "."))

# %%
assert session.quick or np.median(table["decoder: as printed, folded"]) > 1.5, "folding must pay"
assert session.quick or np.median(table["loss: plain, in strips"]) > 1.2, "strips must pay"

# %% [markdown]
# Compare the first bar with [chapter 07](07_mlp_decoder.ipynb)'s arithmetic: the folded decoder has
# 5.6 times fewer MACs at 512 px, about five at the 256 px of this cell. The clock gives about that or
# less: sums and upsamplings, which no MAC counts, are still there, though the four large maps are no
# longer laid side by side. The second bar saves no
# arithmetic at all, it does *more* (a matrix has many zeros to multiply with), and is faster by moving
# less. The third depends on the processor more than any other. It is 1 where there is one thread (as
# when these pages were made), or a PyTorch without oneDNN: there `linear_map` takes the product. The
# fourth is the paper's: each query meets 64 times fewer keys, and projections and the strided
# convolution leave a part of that factor.
#
# These are factors of *parts*. A part with a tenth of the time, made infinitely fast, gives 11 %
# (Amdahl's law): $1 / (1 - 0.1) = 1.11$.

# %% [markdown] tags=["exercise"]
# ### Exercise 4: freeze the decoder (25 minutes)
#
# While it learns, the decoder multiplies its matrices anew in each call, and a batch norm follows the
# sums. A network that is done learning needs neither. Write `FrozenDecoder`: worked out once from a
# trained `MLPDecoder`, it keeps four matrices, one bias and `classify`. The batch norm goes into
# matrices and bias: in evaluation it is a scale $a = \gamma / \sqrt{\sigma^2 + \epsilon}$ and a shift
# $\beta - a \mu$ for each channel.
#
# Then put it into a copy of the network, with `sl`. The check compares logits at several sizes, looks
# for batch norms, and makes sure that the original is as it was.
#
# <details>
# <summary>Hint</summary>
# `MLPDecoder.folded` in segformer_lite/models/segformer.py has the slices; they lie in the order
# F4, F3, F2, F1. For F1 to F4 take `reversed(decoder.fuse.weight.chunk(4, dim=1))`. Each matrix is
# `a[:, None] * (fuse @ linear.weight)`, each level gives `fuse @ linear.bias` to the bias. One bias
# is enough: a constant map stays constant under upsampling.
# </details>
# <details>
# <summary>Help: all logits are off a little</summary>
# The epsilon is under the root, with the variance: `(norm.running_var + norm.eps).sqrt()`. And the
# bias of the levels passes through the batch norm as well: it is scaled by `a`, the mean is
# subtracted first.
# </details>

# %% tags=["exercise"]
class FrozenDecoder(nn.Module):
    """The features of four levels -> logits, as `decoder` (an MLPDecoder) gives them in evaluation."""

    def __init__(self, decoder: MLPDecoder):
        super().__init__()
        # SOLUTION
        norm = decoder.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        slices = list(reversed(decoder.fuse.weight.chunk(4, dim=1)))
        matrices = [scale[:, None] * (fuse @ linear.weight) for fuse, linear in zip(slices, decoder.linear)]
        bias = sum(fuse @ linear.bias for fuse, linear in zip(slices, decoder.linear))
        self.matrices = nn.ParameterList(matrix.detach() for matrix in matrices)
        self.bias = nn.Parameter((scale * (bias - norm.running_mean) + norm.bias).detach())
        self.classify = copy.deepcopy(decoder.classify)
        # END SOLUTION

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        # SOLUTION
        size, biases = features[0].shape[-2:], (self.bias, None, None, None)
        mixed = [linear_map(f.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
                 for f, matrix, bias in zip(features, self.matrices, biases)]
        fused = mixed[0] + sum(upsample(y, size) for y in mixed[1:])
        return self.classify(F.relu(fused))
        # END SOLUTION


def my_frozen(model: sl.SegFormer) -> sl.SegFormer:
    """A copy of the network in evaluation mode, its decoder frozen; `model` itself stays as it is."""
    # SOLUTION
    frozen = copy.deepcopy(model)
    frozen.decoder = FrozenDecoder(model.decoder)
    return frozen.eval()
    # END SOLUTION


checks.frozen_network(my_frozen)

# %% [markdown]
# ## A small network to pay with
#
# Precision and input size cost accuracy, so a network is needed that has some. Half a minute on
# drawn CT slices ([chapter 10](10_train_chest_ct.ipynb)) at 96 px:

# %% tags=["nbval-ignore-output"]
config = sl.TrainConfig(data="sample-chest-ct", size=96, augment="flip", batch_size=2 if session.quick else 8,
                        device="cpu", steps=4 if session.quick else 300, warmup=10, folder=tempfile.mkdtemp(dir=WORK),
                        data_options={"limit": 16} if session.quick else {})
run = sl.train(config, progress=not session.quick)
network = run.model.eval()
print(f"mIoU on patients never seen: {run.report.miou:.2f}")

# %%
assert session.quick or run.report.miou > 0.4, "half a minute must teach the lung"
slices = sl.data.open_dataset("sample-chest-ct", "val", limit=6 if session.quick else None)
network.zero_grad()  # the gradients of the last step are still there, as large as all the weights

# %% [markdown]
# ## What bf16 costs
#
# A bf16 number has the range of float32 and 8 of its 24 binary digits. It takes half the bytes, and
# processors that have instructions for it do at least twice the products a second.
#
# **Predict, then run.** With such instructions: how many times as fast is the *whole* network in
# bf16?
#
# - A. Twice or more: half the bytes *and* faster products.
# - B. Between one and two.
# - C. As fast as before: converting back and forth eats it up.
#
# PyTorch's `torch.autocast` decides, operation by operation, what is computed in bf16. Ask it, with
# float32 coming in:

# %%
x = torch.randn(2, 8, 16, 16)
asked = {
    "linear": lambda: F.linear(x, torch.randn(4, 16)),
    "convolution": lambda: F.conv2d(x, torch.randn(4, 8, 3, 3)),
    "attention": lambda: F.scaled_dot_product_attention(x, x, x),
    "layer norm": lambda: F.layer_norm(x, (16,)),
    "GELU": lambda: F.gelu(x),
    "sum of float32 and bf16": lambda: x + x.bfloat16(),
    "cross-entropy of bf16": lambda: F.cross_entropy(x.bfloat16(), torch.zeros(2, 16, 16, dtype=torch.long)),
}
with torch.autocast("cpu", torch.bfloat16):
    for name, function in asked.items():
        print(f"{name:24s} gives {str(function().dtype).removeprefix('torch.')}")
    print("the tokens after stage 1 are", str(network.encoder.stages[0](images).dtype).removeprefix("torch."))
print("and the weights stay", str(next(network.parameters()).dtype).removeprefix("torch."))

# %% [markdown]
# Products go to bf16; norm and GELU keep the type of what comes in; what adds up many numbers, the
# loss, is lifted to float32. The first convolution leaves bf16, the norms keep it, and so all
# tokens are bf16: half the bytes everywhere. The weights stay exact, and a training step changes
# those: that is why bf16 needs no change in the network. (On a GPU autocast lifts layer norms to
# float32 as well, and the tokens that run from block to block with them.)

# %% tags=["nbval-ignore-output"]
shown = torch.stack([resize_for_model(slices[i][0], 96) for i in range(0, len(slices), 6)])
seen = [speed.inference(network, sl.preprocess(shown), dtype) for dtype in (torch.float32, torch.bfloat16)]
timing = speed.take_turns(dict(zip(("float32", "bf16"), seen)), TURNS)
exact, rounded = (upsample(function().float(), (96, 96)) for function in seen)
changed = exact.argmax(1) != rounded.argmax(1)
print("native bf16 instructions:", torch.cpu.get_capabilities().get("avx512_bf16", False))
print(f"bf16 is {timing.ratio('float32', 'bf16')[1]:.2f} times as fast")
print(f"logits: differ by {(exact - rounded).abs().mean():.3f} on average, they spread over {exact.std():.1f}")
print(f"pixels whose class changes: {changed.float().mean():.2%}")

# %% tags=["nbval-ignore-output"]
one = changed.sum((1, 2)).argmax()  # the slice with most of them
first, second = exact[one].topk(2, dim=0).values
winners = exact[one].argmax(0)
fig = show.grid([shown[one], masks.colourise(winners, slices.palette), first - second, changed[one].float()],
                ["slice", "classes, float32", "lead of the winner", "changed by bf16"], cell=1.7)
masks.legend(fig, [winners], slices.classes, slices.palette)
show.figure(fig, colours=128, alt=(
    "A drawn chest slice, its organs in colour, the lead of the winning class over the second, dark along "
    f"borders, and the pixels whose class changes in bf16: {int(changed[one].sum())} of "
    f"{changed[one].numel():,}, on such borders."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B** where the instructions are there. (Without them bf16 is imitated, and then it may well be
# slower than float32: your ratio tells.) *Why not A?* Only the products go faster. By the profile
# they are a part of the time, and the rest moves some bytes less, but converts in addition.
#
# </details>
#
# The price: a handful of pixels. The third picture shows where the winner leads by little, the
# fourth which pixels changed. They lie on borders, where two classes were about equal anyway. mIoU
# hardly feels it; but *bitwise equal* results are over.

# %% [markdown]
# ## What a smaller input saves
#
# The lower half of Table 2: B0 on Cityscapes with the short side of the test picture at 1024, 768,
# 640 and 512 px. Let `macs` count along, with the decoder as printed, for 19 classes and for 150:

# %%
class Printed(MLPDecoder):
    """Equation 4 as printed."""

    def forward(self, features):
        return self.forward_unfolded(features)


SHORT = {1024: (125.5, 15.2, 76.2), 768: (51.7, 26.3, 75.3), 640: (31.5, 37.1, 73.7), 512: (17.7, 47.6, 71.9)}
as_printed = {k: sl.create_model("segformer_b0", num_classes=k, decoder=Printed) for k in (19, 150)}
by_classes = {k: {side: macs(m, (side, 2 * side)) / 1e9 for side in SHORT} for k, m in as_printed.items()}
for side, (gigas, fps, miou) in SHORT.items():
    ours = "  ".join(f"{k} classes {by_side[side]:5.1f}" for k, by_side in by_classes.items())
    print(f"{side:5d} px: printed {gigas:5.1f} G, counted with {ours}   FPS {fps:4.1f}   mIoU {miou}")
at_1024, at_512 = SHORT[1024], SHORT[512]
print(f"1024 to 512: {at_1024[0] / at_512[0]:.1f} times less work as printed, "
      f"{by_classes[19][1024] / by_classes[19][512]:.1f} as counted with 19, "
      f"{at_512[1] / at_1024[1]:.1f} times the FPS, {at_1024[2] - at_512[2]:.1f} mIoU lost")

# %% [markdown]
# Two things. The first line fits a network with 150 classes and the other three one with 19; Cityscapes
# has 19. So the first figure of the last line is partly a matter of counting. And once again the clock
# gives less than the count: about three.
#
# Now ours, trained at 96 px, shown the slices at smaller and larger sides.
#
# **Predict, then run.** From 128 to 64 px there are four times fewer pixels. How many times as fast
# is *one* picture?
#
# - A. Four times.
# - B. About three times, as in Table 2 from 1024 to 512 px.
# - C. Still less.

# %% tags=["nbval-ignore-output"]
SIDES = (64, 128) if session.quick else (32, 64, 96, 128, 160)
reports = {side: sl.evaluate(network, slices, side, progress=False) for side in SIDES}
single = {side: speed.inference(network, torch.randn(1, 3, side, side), torch.float32) for side in SIDES}
timing = speed.take_turns(single, TURNS)
for side in SIDES:
    memory = speed.peak_memory(single[side], network) / 2**20
    faster = timing.ratio(SIDES[-1], side)[1]
    print(f"{side:4d} px: mIoU {reports[side].miou:.2f}   {faster:4.1f} times as fast as {SIDES[-1]} px   "
          f"peak memory {memory:5.1f} MiB")
print(f"from 128 to 64 px: {timing.ratio(128, 64)[1]:.1f} times as fast")

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7))
axes[0].plot([1e3 * timing.median(side) for side in SIDES], [reports[side].miou for side in SIDES], "o-",
             color=show.COLOURS["orange"])
for side in SIDES:
    axes[0].annotate(f"{side}", (1e3 * timing.median(side), reports[side].miou), xytext=(4, -10),
                     textcoords="offset points", fontsize=8)
axes[0].set(title="mIoU against time, one picture", xlabel="ms", ylabel="mIoU", xlim=(0, None), ylim=(0, 1))
organs = ("lung", "heart", "trachea")
for name, style in zip(organs, ("o-", "s--", "^:")):
    axes[1].plot(SIDES, [reports[side].per_class[name]["iou"] for side in SIDES], style, label=name)
axes[1].set(title="IoU of each organ", xlabel="side of the input, px", ylim=(0, 1))
axes[1].legend(fontsize=8)
show.figure(fig, alt=(
    "Left, mIoU against the milliseconds of one picture, a point for each side of the input: "
    + ", ".join(f"{side} px {reports[side].miou:.2f}" for side in SIDES) + ". Right, the IoU of each organ "
    f"against the side; at {SIDES[1]} px "
    + ", ".join(f"{name} {reports[SIDES[1]].per_class[name]['iou']:.2f}" for name in organs) + "."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why?* A small picture is many small calls: what a call costs before it does anything stays,
# and matrices of a few rows use the processor badly. And stage 1's attention, the part that could
# grow with the square, has 64 times fewer keys than tokens.
#
# </details>
#
# Left, the curve climbs and bends: beyond some side the milliseconds go on and the mIoU does not.
# Right: who pays at the small end. The lung is large and lasts longest; heart and trachea go first.
# (Far from the 96 px of its training a size is also *unfamiliar* to the network; [chapter
# 12](12_robustness.ipynb) has both ends of that curve.) **The smallest side that is good enough is
# the cheapest speed-up there is.** Choose it on validation pictures, by the class you care about.

# %% [markdown]
# ### What fits
#
# An edge device has little memory, and no second chance. What a forward pass needs at its worst
# moment, weights included, can be found *without computing*: PyTorch has tensors that are shapes
# only.

# %%
from torch._subclasses.fake_tensor import FakeTensorMode

b0s = {"folded": model,
       "as printed": sl.create_model("segformer_b0", num_classes=150, decoder=Printed).eval()}
print(f"weights: {sum(p.nbytes for p in model.parameters()) / 2**20:.0f} MiB in float32, half in 16 bits")
with FakeTensorMode(allow_non_fake_inputs=True):
    for side in (512, 1024, 2048):
        x = torch.empty(1, 3, side, side)
        peaks = {name: speed.peak_memory(speed.inference(m, x, torch.float32), m) for name, m in b0s.items()}
        print(f"{side:5d} px: "
              + "   ".join(f"{name} {value / 2**20:6.0f} MiB" for name, value in peaks.items()))

# %% [markdown]
# Beyond the weights everything grows with the number of pixels, four times from line to line. The
# memory that an operation uses inside itself is not in the figure, nor is PyTorch itself, so leave
# room. The picture that *fits* is
# usually limited by the decoder: the largest maps live there, and folding keeps them few.
#
# As a check a real call, followed in the same way. It agrees to a few percent:

# %%
real = speed.peak_memory(speed.inference(model, torch.zeros(1, 3, 512, 512), torch.float32), model)
print(f"512 px, computed: {real / 2**20:.0f} MiB")

# %% [markdown]
# ## Feeding it
#
# A network that waits for pictures is as slow as the disk. So compare two rates, in pictures per
# second: the loader's and the training step's. The first epoch reads and resizes; the package then
# keeps what it resized in memory, if it fits.

# %% tags=["nbval-ignore-output"]
from segformer_lite.training import make_optimizer
from segformer_lite.training.batches import StepBatches, load
from segformer_lite.training.loop import train_step

train_set, size = sl.data.open_dataset("sample-chest-ct", "train", limit=32), config.batch_size
epoch = len(train_set) // size  # batches
batches = load(train_set, StepBatches(len(train_set), size, 3 * epoch, seed=0), config, CPU)
began = time.perf_counter()
taken = [(batch, time.perf_counter()) for batch in batches]
(batch, ended), (_, first) = taken[-1], taken[epoch - 1]
optimizer, scaler = make_optimizer(learner, 1e-4), torch.amp.GradScaler("cpu", enabled=False)
step = speed.take_turns(
    {"": lambda: train_step(learner, optimizer, scaler, *batch, 1.0, config, torch.float32)}, TURNS)
pace = {"loader, first epoch": epoch * size / (first - began),
        "loader, later": 2 * epoch * size / (ended - first),
        "training step": size / step.median("")}
for name, rate in pace.items():
    print(f"{name:20s}{rate:8.0f} pictures a second")

# %% [markdown]
# **The rule: the loader never the bottleneck.** Its rate, times the number of `workers`, must be
# above the step's. Here one process does both, and the step is far slower; with a GPU it is often
# the other way round. What one thread manages on real COCO pictures is stored, with the command
# that measures it:

# %%
record = json.loads((RESULTS / "data-rates.json").read_text(encoding="utf-8"))
print(record["command"], "|", record["machine"], "|", record["size"], "px")
rates = record["rates"]
for name in ("rasterise", "read source, resize", "read pack"):
    print(f"{name:24s}{rates[name]:8,.0f} pictures a second")
for name, rate in rates["augment, picture by picture"].items():
    print(f"augmentation {name:11s}{rate:8,.0f}")

# %% [markdown]
# Reading a JPEG and reducing it costs far more than reading the finished pixels from one file, a
# *pack* (`segformer-lite data pack`). After packing, augmentation is what is left, and a GPU does it
# itself, for a whole batch at a time.

# %% [markdown]
# ## Leave PyTorch: ONNX
#
# A trained network need not take PyTorch along. ONNX is a file format for the operations and their
# weights; `onnxruntime` runs such files on servers, telephones and in browsers. Three sizes may vary:
# pictures in a batch, height, width. The example only shows the exporter the way; its own sizes must
# not be special, so it has none that are equal.

# %% tags=["nbval-ignore-output"]
import onnxruntime
from torch.export import Dim

free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    program = torch.onnx.export(network, (torch.randn(2, 3, 96, 160),), dynamo=True, dynamic_shapes=(free,),
                                input_names=["images"], output_names=["logits"], verbose=False)
program.save(WORK / "network.onnx")
print(f"{(WORK / 'network.onnx').stat().st_size / 2**20:.1f} MiB")

# %%
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch: a fair comparison
onnx_session = onnxruntime.InferenceSession(WORK / "network.onnx", options,
                                            providers=["CPUExecutionProvider"])
for shape in ((2, 3, 96, 160), (1, 3, 32, 32), (1, 3, 100, 75), (3, 3, 64, 96), (1, 3, 256, 256)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network(x).numpy()
    got = onnx_session.run(None, {"images": x.numpy()})[0]
    print(f"{shape!s:18s} -> {got.shape!s:17s} equal: {np.allclose(got, wanted, rtol=1e-3, atol=1e-3)}")

# %% [markdown]
# The first is the example's size; the other four the exporter has never seen, an odd one among them.
# **Always check at sizes that were not exported.** A network that was frozen at one size without a
# word is the commonest mistake here, and at that one size everything is right.
#
# The file begins *after* `preprocess` and ends *before* the upsampling to labels. Both belong to the
# application, and are a few lines of NumPy; the matrices of the loss serve once more:

# %%
from segformer_lite.models.segmenter import IMAGENET_MEAN, IMAGENET_STD


def segment_without_torch(picture, rows, columns):
    """uint8 (3, H, W) -> label map (H, W), by NumPy and onnxruntime alone."""
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    logits = onnx_session.run(None, {"images": ((picture - mean) / std)[None]})[0][0]
    return (rows @ logits @ columns.T).argmax(0)


picture = slices[0][0].as_subclass(torch.Tensor)
side = picture.shape[-1]
matrix = interpolation(-(-side // 4), side, torch.zeros(())).numpy()
mask = segment_without_torch(picture.numpy(), matrix, matrix)
agree = (mask == network.predict(picture[None])[0].numpy()).mean()
print(mask.shape, "pixels as network.predict gives them: more than 99.9 %:", bool(agree > 0.999))

# %% tags=["nbval-ignore-output"]
for shape in ((1, 3, 96, 96), (8, 3, 96, 96)):
    x = torch.randn(shape)
    race = speed.take_turns({"torch": speed.inference(network, x, torch.float32),
                             "onnx": partial(onnx_session.run, None, {"images": x.numpy()})}, TURNS)
    low, middle, high = race.ratio("torch", "onnx")
    print(f"{shape}: onnxruntime is {middle:.2f} times as fast as PyTorch ({low:.2f} to {high:.2f})")

# %% [markdown]
# *What to expect.* For one small picture the runtime gains most: it plans all memory beforehand, and
# joins neighbouring operations into one that goes to memory once. Both are advice from this chapter,
# taken by a program. For a large batch the linear maps decide, and both do those well.

# %% [markdown]
# ## Memory that is kept
#
# Back to the pages of [new tensors](#what-a-new-tensor-costs). On Linux with glibc, a program may ask
# that freed memory be kept for its next tensors: `keep_freed_memory` raises two of glibc's thresholds
# to a gigabyte: the size from which on a freed block goes straight back to the system, and how much
# free memory may gather at the end of the heap before it goes back, too. That holds for the whole
# process and is not taken back. So for once there are no turns: first a forward pass of eight
# pictures as it was, then the same again, kept. The pages brought for one pass are counted, too; a
# count has no mood.

# %% tags=["nbval-ignore-output"]
eight = speed.inference(model, sl.preprocess(torch.randint(0, 256, (8, 3, 256, 256), dtype=torch.uint8)),
                        torch.float32)
seconds, pages = {}, {}
for name in ("given back", "kept"):
    if name == "kept":
        keep_freed_memory()
    seconds |= speed.take_turns({name: eight}, TURNS).seconds
    pages[name] = pages_of(eight)
    print(f"memory {name}: {pages[name]:,} pages brought anew in one pass")
kept_ms = {name: [1e3 * s for s in values] for name, values in seconds.items()}
show.figure(show.curves.bars(kept_ms, "ms for eight pictures of 256 px; a dot for each turn"), alt=(
    "Two horizontal bars, milliseconds of a forward pass of eight pictures, with a dot for each turn: "
    + ", ".join(f"memory {name} {np.median(values):.0f}" for name, values in kept_ms.items()) + "."))

# %% [markdown]
# *What to look for.* On Linux the pages are gone and the second bar is the shorter one; by how much
# depends on what a page costs there. Elsewhere both are alike. The price is that the process stays as
# large as it ever was, or a little larger. So a *program* decides this, no library: every command of
# `segformer-lite` but `bench` does, and a script of your own may, in one line at its head. (Restart the
# kernel before you run this cell, or those of new tensors, again: what they show is gone now.)

# %% [markdown]
# ## Beside others
#
# `segformer-lite bench` puts this package beside other people's SegFormers on *your* machine, in
# turns, as ratios, and refuses to compare if the logits differ. What lies in the course's folder was
# measured by that command on the machine that it names:

# %% tags=["nbval-ignore-output"]
cases_read = {}
for path in sorted(RESULTS.glob("speed*.json"), key=lambda path: path.stem):
    record = json.loads(path.read_text(encoding="utf-8"))
    for row in record["rows"]:
        name = f"{record['variant'].upper()} {row['precision']} {row['size']} px x {row['batch']}"
        name += " compiled" if row["compiled"] else " kept" if path.stem.endswith("kept") else ""
        cases_read[row["work"], name] = row
print(f"{record['device']}, {record['threads']} threads, {len(cases_read)} cases;",
      ", ".join(f"{package} {version}" for package, version in record["versions"].items()))
shares = {key: row["peak_mb"]["segformer_lite"] / row["peak_mb"]["transformers"]
          for key, row in cases_read.items()}
for key in (min(shares, key=shares.get), max(shares, key=shares.get)):
    print(f"peak memory, {' '.join(key)}: {shares[key]:.2f} of theirs")
print("ours: work and bytes, as shares of what a large matrix product and a large copy reach")
for (task, name), row in cases_read.items():
    print(f"  {task:<10}{name:<28}{row['share_of_matrix_product']:4.0%}{row['share_of_copy']:6.0%}")

# %% tags=["nbval-ignore-output"]
names = list(dict.fromkeys(name for _, name in cases_read))
fig, axes = plt.subplots(1, 2, figsize=(7, 1 + 0.17 * len(names)), sharex=True, sharey=True)
for ax, task in zip(axes, ("inference", "training")):
    for place, name in enumerate(names):
        if row := cases_read.get((task, name)):
            low, middle, high = row["times_faster_than"]["transformers"]
            ax.plot([low, high], [place, place], color=show.COLOURS["sky"], lw=5)
            ax.plot(middle, place, "o", ms=4, color=show.COLOURS["orange" if "bf16" in name else "blue"])
    ax.axvline(1, color="#333333", ls="--", lw=1)
    ax.set(title=task, xlabel="times as fast as transformers", xlim=(0, None))
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
medians = [f"{task} {name} {row['times_faster_than']['transformers'][1]:.1f}"
           for (task, name), row in cases_read.items()]
show.figure(fig, alt=(
    "For inference and training, a dot for each case, how many times as fast this package is as "
    "transformers, with the quartiles as a bar and a dashed line at 1: " + ", ".join(medians) + "."))

# %% [markdown]
# How to read a dot: the same weights in both networks, the same precision, a turn each; the dot is
# the median ratio, the bar behind it spans the quartiles of the turns, at the dashed line both would
# be equally fast. Orange is bf16. (Training on the largest was left out, for want of memory.)
# Training sets two whole *steps* beside each other, each with its package's own loss. What a ratio
# does not say: that `transformers` is badly made. It is written for hundreds of networks and keeps
# the decoder as printed, which is what most readers of the paper want. In the cases named *kept* both
# sides keep what they free. Compare their dots with those of the same name without it: the difference
# is memory brought anew, of which theirs needs more. `bench` itself does not ask for it, as the users
# of other packages do not.
#
# Above the picture the best and the worst case of peak memory, and where each case lies under its
# machine's roofline: operations against the product's rate, and bytes that the operations read and
# write (`speed.traffic` counts them) against the copy's. Neither fills the time: a network alternates
# between operations under the one roof and under the other, so it is the *sum* of both shares that
# can come near to 100 %.
#
# **A figure for CUDA is missing.** No GPU was at hand when these were measured, and none is guessed. On
# yours the first line measures the same as here, the second the speeds that wait for a GPU, within
# eight minutes:
#
#     segformer-lite bench --sizes 256 512 1024 --precisions fp32 bf16 --out work/speed.json
#     python benchmarks/gpu.py

# %% [markdown]
# ## What the paper says, what the code does
#
# - **"FLOPs"** in Tables 1a, 1b and 2 are multiply-accumulates, and count the decoder as printed.
#   `macs` of this package gives the same figures with that decoder.
# - **FPS** in Table 2 are for one picture at a time; the paper does not name the card. The released
#   script times 200 pictures after five to warm up, their resizing included.
# - **Table 2, Cityscapes, B0:** 125.5 G at 1024 px fits 150 classes, the smaller sides fit 19, as
#   the cell above printed.
# - **The decoder** is printed and released unfolded. Folding, the loss in strips, the sums in place, and
#   convolutions in place of linear maps (the released decoder fuses by one, too) are this package's;
#   the function is the same.

# %% [markdown]
# ## Pitfalls
#
# - First all of A, then all of B: that measures the machine's afternoon.
# - A GPU's clock stopped without `synchronize`.
# - The first call, which loads, compiles and warms up, in the mean.
# - A comparison of two programs whose outputs nobody compared.
# - A share of time from the profiler, quoted as a speed-up.
# - FLOPs for speed, parameters for memory: neither holds.
# - An export tested at the size at which it was exported.
# - `model.train()` left on while timing inference: dropout, drop path and batch statistics run along.

# %% [markdown]
# ## In short
#
# - In turns, ratios, medians with their spread.
# - Time is the larger of arithmetic and bytes. What no FLOP count knows lies left of the ridge; narrow
#   linear maps come near it.
# - Fewer bytes beat fewer FLOPs: strips that stay in the cache, sums in place, maps at low resolution.
# - New large tensors cost pages; on Linux from 32 MiB on, unless the program keeps what it freed.
# - The same product takes another time in another library. Ask your processor.
# - bf16 changes pixels on borders only; a smaller input loses the small classes first.
# - ONNX: free sizes, checked at sizes that were not exported, preprocessing outside.

# %% [markdown]
# ## What people ask
#
# **My FLOPs are twice the paper's.** You count products and sums; the paper counts pairs. And some
# counters leave out attention's products, which in SegFormer must be added by hand there.
#
# **Why is B0 hardly faster than B1 on my GPU?** For one small picture neither fills the card. Several
# hundred calls, each launched from Python, take their time whatever is in them. Larger batches, or
# `torch.compile`, which joins calls, show the difference.
#
# **Does `torch.compile` help?** Measure: it joins small operations, knows nothing of folding or
# strips, and gets linear maps as products again. It takes a while at the first call and again for new
# sizes. On the CPU of the figures above it made some of the networks faster and some slower
# (`speed-compiled.json` beside `speed.json`, measured at different times: a hint, no ratio).
# `segformer-lite bench --compile` measures it on both sides, on a GPU too; where it pays,
# `segformer-lite train --compile default` uses it.
#
# **`channels_last` or not?** `preprocess` hands out channels last, the layout in which tokens and maps
# are views of each other. The weights stay as they are on a CPU; for CUDA the training loop changes
# them too.
#
# **Int8?** It needs calibration, and another chapter. Begin with the input size, then 16 bits.

# %% [markdown]
# ## Next
#
# [Chapter 15](15_family_tree.ipynb) walks through the family, from PSPNet to MaskFormer. With this
# chapter's clock you can ask each of its members what it costs, and not only what it counts.
