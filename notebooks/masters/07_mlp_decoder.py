# %% [markdown]
# # 07 · Turn four maps into one mask: the all-MLP decoder
#
# About 45 minutes to read and run, 75 more for the exercises. The code takes about half a minute
# and less than 2 GB of memory on a CPU; the optional training at the end takes one minute more. No
# GPU is needed, and the modes fast and full are the same here.

# %% [markdown]
# **What you build.** The decoder of SegFormer in four lines, then the same decoder at less than a
# fifth of the work, and with it the complete network, which learns a first picture by heart.
#
# **What you learn.**
#
# - why the decoder may be called an MLP, and what would be left of it without its ReLU;
# - what the decoder costs in arithmetic, and how two matrices that meet become one;
# - what `align_corners` moves, and how far;
# - why the scores come at a quarter of the picture's size, and what that costs a thin structure
#   such as the trachea;
# - how wide a decoder should be.
#
# **What you need.** `nn.Linear`, `nn.Conv2d` and matrix products. The encoder of
# [chapter 06](06_encoder.ipynb) is used here, not opened.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import inspect
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
from segformer_lite.analysis import macs, parameters
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models import upsample
from segformer_lite.show import masks

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit="decoder")

# %% [markdown]
# The orange box on top takes the maps F1 to F4 of all four stages and gives the mask. It is the
# last part; with it the network is complete.

# %% [markdown]
# ## The question
#
# The encoder leaves four maps of the same picture. F1 is large and knows little: edges and colours,
# exactly where they are. F4 is small and knows much: there is a cat, somewhere around here. **How
# do you make one map of class scores from them that knows both what and where, with as little
# machinery as possible?**
#
# Earlier networks gave this a heavy machine: large convolutions, pyramids of pooling
# ([chapter 15](15_family_tree.ipynb) builds some). SegFormer's answer is four lines, equation 4 of
# the paper ([arXiv:2105.15203](https://arxiv.org/abs/2105.15203); equations 5 to 8 of the report that
# this course follows):
#
# $$
# \begin{aligned}
# \hat F_i &= \text{Linear}(C_i, C)(F_i), \quad \forall i \\
# \hat F_i &= \text{Upsample}(H/4 \times W/4)(\hat F_i), \quad \forall i \\
# F &= \text{Linear}(4C, C)(\text{Concat}(\hat F_i)), \quad \forall i \\
# M &= \text{Linear}(C, N_{cls})(F)
# \end{aligned}
# $$
#
# | paper | code | in B0 | meaning |
# |---|---|---|---|
# | $F_i$ | `features[i - 1]` | 1/4, 1/8, 1/16, 1/32 | map of stage $i$ |
# | $C_i$ | `in_channels` | 32, 64, 160, 256 | its channels |
# | $C$ | `dim` | 256 | width of the decoder |
# | $N_{cls}$ | `num_classes` | 150 for ADE20K | classes (background is one in COCO and chest CT, not in ADE20K) |
#
# (The paper prints $W/4 \times W/4$ in the second line; $H/4 \times W/4$ is meant.)

# %% [markdown]
# ## By hand, line by line
#
# Four toy maps of one picture: sides 8, 4, 2, 1 and 2, 3, 5, 4 channels. The decoder is $C = 6$
# wide and knows three classes.

# %%
channels, sides, C = (2, 3, 5, 4), (8, 4, 2, 1), 6
features = [torch.randn(1, c, side, side) for c, side in zip(channels, sides)]  # (B, C_i, H_i, W_i)
print(*[tuple(f.shape) for f in features])

# %% [markdown]
# ### Line 1: the same matrix at every place
#
# The four maps speak four languages. One matrix per level translates them all into $C$ numbers. The
# matrix is laid on every pixel alike, so the same thing has two names: a `Linear` on the last axis,
# or a convolution with a 1 × 1 kernel.

# %%
def pixelwise(linear, x):
    """A Linear on the channels of every pixel: (B, C, H, W) -> (B, C', H, W)."""
    return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


project = [nn.Linear(c, C) for c in channels]
conv = nn.Conv2d(channels[0], C, kernel_size=1)
conv.weight.data, conv.bias.data = project[0].weight.data[:, :, None, None], project[0].bias.data
torch.testing.assert_close(conv(features[0]), pixelwise(project[0], features[0]))

# %% [markdown]
# The assertion passes: **a 1 × 1 convolution is a `Linear`.** That is why the paper may speak of
# MLPs while many programs write `Conv2d(…, 1)`. Here are all four levels:

# %%
projected = [pixelwise(linear, f) for linear, f in zip(project, features)]
print(*[tuple(f.shape) for f in projected])

# %% [markdown]
# ### Line 2: one size for all
#
# Every map grows to the size of the first, by drawing straight lines between its values. In one
# dimension this is pencil work: two pixels, 0 and 4, become four.

# %%
row = torch.tensor([[[0.0, 4.0]]])
print(F.interpolate(row, scale_factor=2, mode="linear", align_corners=False).flatten().tolist())

# %% [markdown]
# The new pixels are half as wide. Their centres lie a quarter of an old pixel to the left and to
# the right of the old centres: the two inner ones at a quarter and three quarters of the way, so 1
# and 3. The outer ones lie beyond the old centres and keep the end values. No number is learned
# here.
#
# In two dimensions the same is done along both axes; that is called *bilinear*, and `upsample` of
# the package is this one line:

# %%
print(inspect.getsource(upsample).splitlines()[-1].strip())
grown = [upsample(f, (8, 8)) for f in projected]
print(*[tuple(f.shape) for f in grown])

# %% [markdown]
# ### Lines 3 and 4: mix the levels, then decide
#
# The four maps are stacked, 24 numbers per pixel, and one matrix mixes them down to 6. The last
# matrix gives a score per class.

# %%
fuse, classify = nn.Linear(4 * C, C, bias=False), nn.Linear(C, 3)
stacked = torch.cat([grown[3], grown[2], grown[1], grown[0]], dim=1)  # F4 first
fused = pixelwise(fuse, stacked)
scores = pixelwise(classify, fused)
print("stacked", tuple(stacked.shape), "fused", tuple(fused.shape), "scores", tuple(scores.shape))

# %% [markdown]
# **F4 comes first.** The equation leaves the order open, and for a network that is yet to be
# trained it makes no difference. But the columns of a trained `fuse` remember it, and the released
# weights have F4 first. The wrong order raises no error. It only gives wrong masks.

# %% [markdown]
# ## The class
#
# Between line 3 and line 4 the released network has three things that the equation does not print:
# a batch norm, a ReLU and a dropout of whole channels. (Because of the batch norm `fuse` needs no
# bias: it would be subtracted at once.) The submodules are named as in the package.

# %%
class Decoder(nn.Module):
    """Maps (B, C_i, H_i, W_i) -> scores (B, num_classes, H_1, W_1): equation 4, with norm, ReLU, dropout."""

    def __init__(self, in_channels, dim, num_classes, dropout=0.1):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(c, dim) for c in in_channels)
        self.fuse = nn.Linear(len(in_channels) * dim, dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)

    def mix(self, features):
        """Lines 1 to 3: (B, dim, H_1, W_1)."""
        size = features[0].shape[-2:]
        projected = [pixelwise(linear, f) for linear, f in zip(self.linear, features)]
        grown = [upsample(f, size) for f in projected]
        return pixelwise(self.fuse, torch.cat(grown[::-1], dim=1))

    def forward(self, features):
        x = F.relu(self.norm(self.mix(features)))
        return self.classify(self.dropout(x))

# %% [markdown]
# ## Shapes, and a count
#
# A real picture of an awkward size goes through a real, untrained encoder. The picture is a
# photograph that comes with matplotlib: Rear Admiral Grace Hopper.

# %%
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    photo = torch.from_numpy(np.array(file.convert("RGB"))[20:532]).permute(2, 0, 1)[None]
image = sl.preprocess(photo)[..., :250, :333]
torch.manual_seed(0)
b0 = sl.create_model("segformer_b0", num_classes=150).eval()
with torch.no_grad():
    pyramid = b0.encoder(image)
print(tuple(image.shape), "->", *[tuple(f.shape[1:]) for f in pyramid])

# %%
in_channels = b0.encoder.dims
decoder = Decoder(in_channels, dim=256, num_classes=150).eval()
print("scores", tuple(decoder(pyramid).shape))

# %% [markdown]
# Sizes round up in the encoder, and the decoder takes the size of F1 as it is. Nothing in it asks
# for multiples of 32. The parameters, one term per submodule:

# %%
c_sum = sum(in_channels)
terms = {"linear": c_sum * 256 + 4 * 256, "fuse": 4 * 256 * 256, "norm": 2 * 256,
         "classify": 256 * 150 + 150}
for name, expected in terms.items():
    print(f"{name:8s} {expected:8,d}")
    assert expected == parameters(getattr(decoder, name))
print(f"together {sum(terms.values()):8,d} of {parameters(b0):,}: "
      f"{sum(terms.values()) / parameters(b0):.1%}")
assert parameters(decoder) == parameters(b0.decoder) == 433_302

# %% [markdown]
# 433,302, as released: the paper's 0.4 M (Table 1a). The whole decoder is about a ninth of the
# network. That is what the paper means by *lightweight*.

# %% [markdown]
# ## Where the work goes
#
# Parameters are one thing, work is another: a matrix is used once for *every pixel*. The usual
# measure is the *multiply-accumulate*, MAC: one product, added up. The numbers which the paper prints
# as "FLOPs" are MACs ([chapter 06](06_encoder.ipynb#the-family)); you will see them come out below.
#
# **Predict, then run.** A ninth of B0's parameters are in the decoder. What is its share of the
# work, for a picture of 512 × 512 pixels?
#
# - A. About a ninth as well.
# - B. Next to nothing: no attention, no large kernels.
# - C. More than half.

# %%
def by_hand(in_channels, dim, classes, height, width):
    """MACs of lines 1, 3 and 4 for one picture, each level at its own size."""
    pixels = [height // s * (width // s) for s in (4, 8, 16, 32)]
    return {"line 1": sum(n * c * dim for n, c in zip(pixels, in_channels)),
            "line 3": pixels[0] * 4 * dim * dim,
            "line 4": pixels[0] * dim * classes}


for line, count in by_hand(in_channels, 256, 150, 512, 512).items():
    print(f"{line}: {count / 1e9:.2f} G")

# %% [markdown]
# Line 2 has no matrix; it is not counted, here as everywhere. `macs` of the package counts a whole
# network while it runs, and it runs on *meta* tensors, which have a shape and no numbers. So even a
# B5 on a large picture costs nothing to count.

# %%
def shapes_only(name, num_classes=150, **options):
    """A network to count with: shapes, no numbers."""
    with torch.device("meta"):
        return sl.create_model(name, num_classes, **options)


printed = shapes_only("segformer_b0", decoder=Decoder)
in_decoder, in_all = macs(printed, 512, part="decoder"), macs(printed, 512)
print(f"decoder {in_decoder / 1e9:.2f} G of {in_all / 1e9:.2f} G: {in_decoder / in_all:.0%}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** 8.39 G is the 8.4 of the paper's Table 1a, and 62 % of it is spent in the "lightweight"
# decoder. *Why?* One matrix, `fuse`, takes 4.29 G, more than the whole encoder: it has only 262,144
# weights, but each is used at all 16,384 pixels of F1's size. The encoder works at that size,
# too, but on tokens of 32 numbers, not on stacks of 1,024.
#
# </details>

# %%
# What the answer says, checked.
assert in_decoder == sum(by_hand(in_channels, 256, 150, 512, 512).values())

# %% [markdown]
# ## Three observations
#
# Line 3 is laid on 16,384 pixels. But F4, from which a quarter of its input comes, has only 256.
# All the others were drawn in between by line 2. Is it necessary to translate drawn pixels one by
# one?
#
# ### One: the order of upsampling and channel maps
#
# **Predict, then run.** A small colour picture is to become a large grey one. Does it matter
# whether you mix the colours first, or enlarge first?
#
# - A. Enlarging first is better: mixing then has more pixels to work with.
# - B. The results are the same, to the last visible digit.
# - C. They differ at edges, where bilinear upsampling blurs.

# %%
small = F.avg_pool2d(photo[..., 140:204, 170:266].float() / 255, 2)  # (1, 3, 32, 48)
grey = nn.Linear(3, 1, bias=False)
grey.weight.data = torch.tensor([[0.299, 0.587, 0.114]])  # how bright each colour is to the eye
size = (256, 384)
with torch.no_grad():
    small_grey = pixelwise(grey, small)
    enlarged_first, mixed_first = pixelwise(grey, upsample(small, size)), upsample(small_grey, size)

# %%
def contrast(x):
    """Lift what is brighter than the middle, cut off the rest: a ReLU."""
    return F.relu(x - 0.5) * 2


apart = (enlarged_first - mixed_first).abs()
apart_with_relu = (contrast(mixed_first) - upsample(contrast(small_grey), size)).abs()
pictures = [enlarged_first, mixed_first, 4 * apart, 4 * apart_with_relu]
titles = ["enlarge, then mix", "mix, then enlarge", "difference x 4", "with a ReLU: x 4"]
fig = show.grid([p[0, 0] for p in pictures], titles, cell=1.75, cmap="gray", vmin=0, vmax=1)
show.figure(fig, alt=(
    "An eye enlarged eight times, before and after its colours were mixed to grey; then two differences, of at "
    f"most {apart.max():.2f}, and {apart_with_relu.max():.2f} with a ReLU in place of the mixing."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** The first two pictures are equal, the third, their difference, is black. *Why.* Every new
# pixel is a weighted mean of old pixels. A matrix mixes the channels *inside* a pixel, the mean
# mixes *pixels*, channel by channel; neither notices what the other does. Even a bias passes
# unchanged, because the weights of the mean add up to one.
#
# On the right the control: with a ReLU in place of the mixing the two ways differ, along every edge
# where one pixel is cut off and its neighbour is not. So the trade is open to linear steps only.
#
# </details>

# %%
# What the answer says, checked.
torch.testing.assert_close(enlarged_first, mixed_first)

# %%
with torch.no_grad():
    first = pixelwise(project[2], upsample(features[2], (8, 8)))  # with a bias
    last = upsample(pixelwise(project[2], features[2]), (8, 8))
    torch.testing.assert_close(first, last)
    ones = upsample(torch.ones(1, 1, 5, 3), (37, 29))
    torch.testing.assert_close(ones, torch.ones_like(ones))
print("level 3 either way", tuple(last.shape), "and ones stay ones")

# %% [markdown]
# ### Two: a matrix on a stack is a sum of matrices
#
# `fuse` has $4C$ columns: the first $C$ act on F4's part of the stack, the next on F3's, and so on.
# Cut it into four square matrices, and the stack is not needed.

# %%
for_f4, for_f3, for_f2, for_f1 = fuse.weight.chunk(4, dim=1)  # four times (C, C)
with torch.no_grad():
    summed = sum(pixelwise(lambda x, m=m: x @ m.T, g)
                 for m, g in zip((for_f1, for_f2, for_f3, for_f4), grown))
torch.testing.assert_close(summed, fused)
print("slices", tuple(for_f1.shape), "sum", tuple(summed.shape))

# %% [markdown]
# ### Three: two matrices in a row are one
#
# Now level 4 meets two matrices, one before and one after the upsampling: $W_4$ of line 1 and its
# slice $V_4$ of `fuse`. By observation one they may stand side by side, at the small size. And
# then
#
# $$V_4 (W_4 x + b_4) = (V_4 W_4)\, x + V_4 b_4 :$$
#
# one matrix, $C \times C_4$, worked out once and laid on 256 pixels in place of 16,384.

# %%
W, b, V = project[3].weight, project[3].bias, for_f4
with torch.no_grad():
    one_matrix = F.linear(features[3].permute(0, 2, 3, 1), V @ W, V @ b).permute(0, 3, 1, 2)
    torch.testing.assert_close(upsample(one_matrix, (8, 8)), pixelwise(lambda x: x @ V.T, grown[3]))
print(tuple(V.shape), "@", tuple(W.shape), "->", tuple((V @ W).shape))

# %% [markdown]
# ## The folded decoder
#
# All three together. Only lines 1 to 3 change; weights and their names stay.

# %%
class FoldedDecoder(Decoder):
    """The same function: one C x C_i matrix per level, at the level's own size; then sums."""

    def mix(self, features):
        size = features[0].shape[-2:]
        slices = self.fuse.weight.chunk(len(features), dim=1)[::-1]  # for F1, F2, F3, F4
        total = 0
        for f, linear, fuse in zip(features, self.linear, slices):
            small = F.linear(f.permute(0, 2, 3, 1), fuse @ linear.weight, fuse @ linear.bias)
            total = total + upsample(small.permute(0, 3, 1, 2), size)
        return total


folded = FoldedDecoder(in_channels, 256, 150).eval()
folded.load_state_dict(decoder.state_dict(), strict=True)
with torch.no_grad():
    torch.testing.assert_close(folded(pyramid), decoder(pyramid), rtol=1e-4, atol=1e-5)
print("equal, at", tuple(folded(pyramid).shape))

# %% [markdown]
# Equal outputs. Is it still the same when *training*? The product of two matrices is worked out
# anew in every step, and gradients flow through it to both. In double precision, so that rounding
# cannot hide anything, with the batch norm in training mode and random weights on the scores:

# %%
def gradients(decoder, features, weights):
    decoder = copy.deepcopy(decoder).double().train()
    decoder.dropout.p = 0.0
    features = [f.double().requires_grad_() for f in features]
    inputs = [*features, *decoder.parameters()]
    return torch.autograd.grad((decoder(features) * weights).sum(), inputs)


torch.manual_seed(0)
weights = torch.randn(1, 150, *pyramid[0].shape[-2:], dtype=torch.float64)
pairs = list(zip(gradients(decoder, pyramid, weights), gradients(folded, pyramid, weights)))
for one, other in pairs:
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
print(len(pairs), "gradients equal: four maps, and every weight and bias")

# %% [markdown]
# Not an approximation, then, and nothing was removed: the same function, the same parameters, the
# same gradients. Only the order of the work has changed.

# %% [markdown]
# ### The work, side by side
#
# The folded decoder has no line 3 at full size. In its place stand the four products $V_i W_i$,
# $C \cdot C \cdot C_i$ multiply-accumulates each.

# %%
def folded_by_hand(in_channels, dim, classes, height, width):
    lines = by_hand(in_channels, dim, classes, height, width)
    return {**lines, "line 3": dim * dim * sum(in_channels)}


slim = shapes_only("segformer_b0", decoder=FoldedDecoder)
in_decoder, in_all = macs(slim, 512, part="decoder"), macs(slim, 512)
assert in_decoder == sum(folded_by_hand(in_channels, 256, 150, 512, 512).values())
print(f"B0's decoder {in_decoder / 1e9:.2f} G of {in_all / 1e9:.2f} G: {in_decoder / in_all:.0%}")

# %%
TABLE_1A = (8.4, 15.9, 62.4, 79.0, 95.7, 111.6)  # 512 px; B5's from the COCO-Stuff column
counts = []
print("    paper    as printed   folded    the decoder's share, as printed, of")
print("                                    work    parameters")
for number, in_paper in enumerate(TABLE_1A):
    net = shapes_only(f"segformer_b{number}", decoder=Decoder)
    setting = net.encoder.dims, net.decoder.norm.num_features, 150, 512, 512
    total, share = macs(net, 512), parameters(net.decoder) / parameters(net)
    long, short = (sum(count(*setting).values()) for count in (by_hand, folded_by_hand))
    counts.append((total - long, long, short))
    print(f"B{number}  {in_paper:5.1f}   {total / 1e9:8.2f} G  {(total - long + short) / 1e9:6.2f} G"
          f"    {long / total:4.0%}   {share:10.1%}")
    assert abs(total / 1e9 - in_paper) < 0.2

# %%
encoder, as_printed, as_folded = np.array(counts).T / 1e9
fig, ax = plt.subplots(figsize=(6.2, 2.7))
y = np.arange(6)
for shift, part, name, colour in ((-0.2, as_printed, "decoder as printed", "orange"),
                                  (0.2, as_folded, "decoder, folded", "red")):
    ax.barh(y + shift, encoder, height=0.36, color=show.COLOURS["sky"])
    ax.barh(y + shift, part, left=encoder, height=0.36, color=show.COLOURS[colour], label=name)
ax.barh(0, 0, color=show.COLOURS["sky"], label="encoder")
ax.set(yticks=y, yticklabels=[f"B{i}" for i in y], xlabel="G multiply-accumulates at 512 x 512 px")
ax.invert_yaxis()
ax.legend(loc="upper right")
show.figure(fig, alt=(
    "Two bars each for B0 to B5: the encoder's work, the same in both, followed by the decoder's "
    "work as printed or folded. As printed the decoder takes about 5 G in B0 and B1 and 42 G in "
    "B2 to B5; folded it is a thin slice at the end of each bar."))

# %% [markdown]
# As printed (upper bars) every count is the paper's, so its "FLOPs" are MACs. Folded (lower bars)
# the decoder shrinks to a slice, and what is left is the encoder. B0 falls from 8.39 to 4.13 G, B2
# from 62.3 to 24.3 G.
#
# What a clock says about B0, on this machine, with the same weights, the two in turn:

# %% tags=["nbval-ignore-output"]
def seconds(decoder):
    start = time.perf_counter()
    with torch.inference_mode():
        decoder(b0.encoder(picture))
    return time.perf_counter() - start


picture = sl.preprocess(photo)[..., :512, :512]
times = {"as printed": [], "folded": []}
for _ in range(3 if session.quick else 7):
    times["as printed"].append(seconds(decoder))
    times["folded"].append(seconds(folded))
slow, fast = (float(np.median(t)) for t in times.values())
print(f"B0, one picture of 512 x 512: {slow * 1000:.0f} ms as printed, {fast * 1000:.0f} ms folded; "
      f"{slow / fast:.1f} times as fast")

# %%
assert fast < slow
stack = 4 * 256 * 128 * 128 * 4 / 2**20
print(f"and a stack of {stack:.0f} MB is never written")

# %% [markdown]
# The clock follows the count, not exactly. The stack of four maps, $4C$ numbers per pixel of F1's
# size, need not be written and read any more; that is a gain which no MAC tells of. On the other hand
# norms, softmax and upsampling take their time and are counted nowhere. [Chapter 14](14_speed.ipynb)
# follows the clock further.
#
# ### When it does not pay
#
# The products $V_i W_i$ cost the same for a picture of any size. So they weigh most in a small one.

# %%
for name, dims, dim in (("B0", (32, 64, 160, 256), 256), ("B2", (64, 128, 320, 512), 768)):
    for px in (64, 128, 512):
        long, short = (sum(count(dims, dim, 150, px, px).values()) for count in (by_hand, folded_by_hand))
        print(f"{name}, {px:3d} px: as printed the decoder has {long / short:4.1f} times the work")

# %% [markdown]
# At 64 pixels B2's folded decoder has gained nothing: line 3 as printed costs 256 pixels × 4 · 768²,
# and the four products of matrices 768² × (64 + 128 + 320 + 512), the same 0.6 G. Pictures that
# small are rare. And once a network is trained, the products may be worked out once and kept;
# exercise 4 does that.

# %% [markdown]
# ## Where the folding must stop
#
# If folding is so good, why stop at `fuse`? `classify` is a matrix too, and in evaluation the batch
# norm is a scale and a shift. Only the ReLU between them is not linear.
#
# **Predict, then run.** Leave the ReLU out. How many numbers then do what the 433,302 parameters do?
#
# - A. As many.
# - B. About 300,000, those of `fuse` and `classify`.
# - C. Fewer than 80,000.

# %%
with torch.no_grad():
    bare = decoder.classify(decoder.norm(decoder.mix(pyramid)))
    scale = decoder.norm.weight / torch.sqrt(decoder.norm.running_var + decoder.norm.eps)
    head = decoder.classify.weight[:, :, 0, 0] * scale  # (classes, C), the norm's scale inside
    slices = decoder.fuse.weight.chunk(4, dim=1)[::-1]
    matrices = [head @ v @ linear.weight for v, linear in zip(slices, decoder.linear)]
    one_per_level = sum(upsample(pixelwise(lambda x, m=m: x @ m.T, f), bare.shape[-2:])
                        for m, f in zip(matrices, pyramid))
difference = bare - one_per_level  # biases and shifts: one number per class
print("matrices", *[tuple(m.shape) for m in matrices])
print(f"{sum(m.numel() for m in matrices) + 150:,} numbers for {parameters(decoder):,} parameters")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Without the ReLU two linear maps in a row, three, a hundred, are one. All of this decoder
# would be 76,950 numbers that do nothing but *add up* what the levels say, each on its own. **The
# ReLU makes it an MLP.**
#
# </details>

# %%
# What the answer says, checked.
torch.testing.assert_close(difference, difference.mean((2, 3), keepdim=True).expand_as(difference),
                           rtol=1e-4, atol=1e-5)

# %% [markdown]
# What is out of reach for a decoder that only adds? Take two levels that say one thing each: F1
# sees stripes, F4 knows which half of the picture is which. The right answer is "the light stripes on
# the left, the dark stripes on the right".

# %%
stripes = (torch.arange(32) // 4 % 2).float().expand(32, 32)  # what F1 says
half = (torch.arange(32) >= 16).float().expand(32, 32)  # what F4 says, enlarged
answer = (stripes != half).float()

inputs = torch.stack([stripes, half, torch.ones(32, 32)], dim=-1).reshape(-1, 3)
best = torch.linalg.lstsq(inputs, answer.reshape(-1, 1)).solution
linear_answer = (inputs @ best).reshape(32, 32)
with_relu = F.relu(stripes - half) + F.relu(half - stripes)  # two hidden channels
print(f"best linear: from {linear_answer.min():.2f} to {linear_answer.max():.2f};",
      "two ReLUs right everywhere:", torch.equal(with_relu, answer))

# %%
pictures = [stripes, half, answer, linear_answer, with_relu]
titles = ["F1 says", "F4 says", "the answer", "best linear", "two ReLUs"]
fig = show.grid(pictures, titles, columns=5, cell=1.35, cmap="cividis", vmin=0, vmax=1)
show.figure(fig, alt=(
    "Five squares, 0 dark blue and 1 yellow. F1 says: vertical stripes. F4 says: left half dark, right "
    "half light. The answer: stripes that change places with their gaps in the middle. The best linear "
    "combination is one even grey. Two ReLUs give the answer exactly."))

# %% [markdown]
# The best linear combination of the two levels is grey: it has no idea. Two hidden channels with a
# ReLU are enough. "This texture means one thing *there* and another *here*" needs a bend between two
# matrices; B0's decoder has 256 such channels per pixel.
#
# The bend stands *behind* the batch norm, which sees to it that about half of the values are
# negative, so that there is something to bend.

# %% [markdown]
# ## The complete network
#
# The encoder of chapter 06, the decoder of this one: that is all of SegFormer-B0.

# %%
class Network(nn.Module):
    """Normalised images (B, 3, H, W) -> class scores (B, num_classes, H / 4, W / 4)."""

    def __init__(self, num_classes, drop_path=0.1, dropout=0.1):
        super().__init__()
        dims = (32, 64, 160, 256)
        self.encoder = sl.models.MixTransformer(dims, depths=(2, 2, 2, 2), drop_path=drop_path)
        self.decoder = FoldedDecoder(dims, 256, num_classes, dropout)

    def forward(self, x):
        return self.decoder(self.encoder(x))


print(f"{parameters(Network(150)):,} parameters")
assert parameters(Network(150)) == 3_752_694

# %% [markdown]
# 3,752,694: the number of the released SegFormer-B0 with 150 classes, to the last weight. The
# package's weights fit, `strict`, and give the same scores:

# %%
network = Network(150).eval()
network.load_state_dict(b0.state_dict(), strict=True)
with torch.no_grad():
    torch.testing.assert_close(network(image), b0(image), rtol=1e-4, atol=1e-5)
print("equal, at", tuple(b0(image).shape))

# %% [markdown]
# ### The first thing to ask of a new network
#
# Can it learn *one* picture by heart? That needs no data set and takes seconds. A network that
# cannot do it has a mistake somewhere, and no amount of training will mend it. Dropout and drop
# path are off: they are there to prevent exactly this.

# %% tags=["nbval-ignore-output"]
train_set = sl.data.open_dataset("sample-coco", "train")
image, label = (t.as_subclass(torch.Tensor) for t in train_set[84])
x, y = sl.preprocess(image[None]), label[None]
print(tuple(x.shape), [train_set.classes[c] for c in label.unique()])

# %% tags=["nbval-ignore-output"]
STEPS = 25 if session.quick else 60
torch.manual_seed(0)
network = Network(len(train_set.classes), drop_path=0.0, dropout=0.0).train()
optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
losses, seen = [], {}
for step in range(1, STEPS + 1):
    scores = network(x)  # (1, 11, 40, 52): a quarter
    loss = sl.training.segmentation_loss(scores, y)  # enlarges the scores to the label's size
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
    if step in (1, 6, STEPS):
        seen[f"step {step}"] = upsample(scores.detach(), y.shape[-2:]).argmax(1)[0]
print(f"loss: {losses[0]:.2f} at the first step, {losses[-1]:.3f} at step {STEPS}")

# %%
assert losses[-1] < 0.1 * losses[0]
print("the picture is learned")

# %% tags=["nbval-ignore-output"]
wrong = np.where((seen[f"step {STEPS}"] != label)[..., None], np.uint8(255), masks.as_picture(image) // 3)
pictures = [masks.as_picture(image),
            *[masks.overlay(image, m, train_set.palette) for m in (label, *seen.values())], wrong]
fig = show.grid(pictures, ["the picture", "the label", *seen, "wrong at the end"], columns=3, cell=1.8)
show.figure(fig, alt=(
    "A drawn cat and two pizzas on a wooden table: the picture, its label, and what the network "
    "says at three moments of training. At first the colours are scattered, then rounded spots "
    "lie over cat and pizzas, and at the end the mask can hardly be told from the label. The last "
    "picture shows the pixels that are still wrong, in white: single pixels along the outlines, "
    "most of them around the cat."))

# %% [markdown]
# From scattered colours to the label. What is wrong at the end, white in the last picture, lies
# along the outlines and in thin parts. The section "Why a quarter?" gives the reason.

# %% [markdown]
# ### Who knows what?
#
# Take the trained network and wipe out *where* from some of the levels: put the mean of the map in
# place of every pixel of it. The level still says what it says on average; it no longer says where.

# %% tags=["nbval-ignore-output"]
def keep(levels):
    """The label map when only these levels know where things are."""
    with torch.no_grad():
        maps = network.eval().encoder(x)
        maps = [f if i in levels else f.mean((2, 3), keepdim=True).expand_as(f)
                for i, f in enumerate(maps, start=1)]
        return upsample(network.decoder(maps), y.shape[-2:]).argmax(1)[0]


choices = [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4), (1,), (1, 2)]
pictures = [masks.overlay(image, keep(levels), train_set.palette) for levels in choices]
titles = [" + ".join(f"F{i}" for i in levels) for levels in choices]
fig = show.grid(pictures, titles, columns=3, cell=1.8)
show.figure(fig, alt=(
    "Six masks of the same picture by the same network, each with only some of the four feature "
    "maps left in place. F4 alone gives one blurred blob over both pizzas. With every level that "
    "joins, outlines become finer, and with all four the whole cat is there too. F1 alone, or F1 and "
    "F2, give pieces of the right classes and also patches of them on the table and the plate."))

# %% [markdown]
# Upper row and the first of the lower: from F4 alone to all four. F4 knows that there is pizza, and
# where, within 32 pixels. Every level that joins makes the outlines finer. Then F1, and F1 with F2,
# without the deep levels: sharp pieces, some of them in wrong places, because a bit of the table
# looks like a bit of pizza.
#
# Nothing in the decoder says which level has which task. (Yours may be divided a little
# differently.) That is left to training; the decoder only sees to it that all four can be heard.

# %% [markdown]
# ## `align_corners`
#
# There are two ways to lay a small map over a large one. With `align_corners=False` their *areas*
# coincide: a pixel is a little square. With `True` the *centres of the corner pixels* coincide: a
# pixel is a point. In one dimension:

# %%
for corners in (False, True):
    grown = F.interpolate(row, scale_factor=2, mode="linear", align_corners=corners)
    print(f"{corners!s:5}", grown.flatten())

# %% [markdown]
# The released network says False. The report's decoder uses `nn.UpsamplingBilinear2d`, and that is
# always True.
#
# **Predict, then run.** A map of 8 × 8 grows to 64 × 64, as F4 of a 256-pixel picture grows to F1's
# size. A network is trained with one setting and run with the other. How far are things moved?
#
# - A. Not at all: both are bilinear.
# - B. By half a pixel of the large map.
# - C. By up to three pixels of the large map, depending on the place.

# %%
new = np.arange(64)
by_area = np.clip((new + 0.5) / 8 - 0.5, 0, 7)  # where each new pixel reads the old map
by_corner = new * 7 / 63
worst = abs(by_corner - by_area).max()
print(f"at most {worst:.2f} pixels of the small map, {8 * worst:.1f} of the large one")

# %%
def grow(share, corners):
    return F.interpolate(share, size=(64, 64), mode="bilinear", align_corners=corners)[0, 0]


yy, xx = np.mgrid[:64, :64] + 0.5
truth = torch.zeros(64, 64)
for cy, cx in ((14, 14), (14, 50), (50, 14), (50, 50), (32, 32)):
    truth[torch.from_numpy(np.hypot(yy - cy, xx - cx) < 9)] = 1
share = F.avg_pool2d(truth[None, None], 8)  # how much of each token's square is inside

fig, axes = plt.subplots(1, 2, figsize=(6.6, 2.7), width_ratios=(1.5, 1))
axes[0].plot(new, 8 * (by_corner - by_area), color=show.COLOURS["orange"])
axes[0].axhline(0, color="#BBBBBB", lw=0.8, zorder=0)
axes[0].set(xlabel="pixel of the large map", ylabel="shift in large pixels", xticks=range(0, 65, 16))
axes[1].imshow(truth, cmap="Greys", vmax=3)
for corners, colour, style in ((False, "blue", "solid"), (True, "orange", "dashed")):
    axes[1].contour(grow(share, corners), [0.5], colors=show.COLOURS[colour], linestyles=style)
axes[1].set(title="solid False, dashed True", xticks=[], yticks=[])
show.figure(fig, alt=(
    "Left: the shift between the two settings along 64 pixels. It is zero at both ends and in the "
    "middle, about three pixels one way near the left end and three the other way near the right "
    "end. Right: five grey discs with the outlines that come back from "
    "an 8 by 8 map; the solid outlines sit on the discs, the dashed ones near the corners are "
    "moved outwards."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Left: the shift along a row, 3.1 pixels at worst, close to the borders, none in the middle.
# Right: five grey discs, averaged down to 8 × 8 and brought back. Solid (False) the outlines lie on
# the discs as well as 8 × 8 numbers can tell. Dashed (True) everything is stretched from the middle:
# the outer four are moved towards the corners, the middle one stays.
#
# *Why it matters.* Train and run with the same setting, and the network learns to live with it,
# though the shift at a given pixel changes with the size of the picture. Load weights trained with
# one into code with the other, and every mask is off by a little, most near the borders. No error
# message, just a lower mIoU.
#
# </details>

# %%
# What the answer says, checked.
old = torch.arange(8.0)[None, None]  # a map that holds its own positions tells the same
for corners, positions in ((False, by_area), (True, by_corner)):
    read = F.interpolate(old, size=64, mode="linear", align_corners=corners).flatten()
    np.testing.assert_allclose(read, positions, atol=1e-5)

# %% [markdown]
# ## Why a quarter?
#
# The scores come at 1/4 of the picture's side, and then bilinear upsampling draws the rest. For a
# large object that is no loss: its border is nearly straight between two tokens. What about small
# ones?
#
# [Chapter 02](02_cnn_baselines.ipynb#how-fine-must-the-scores-be) asked that of whole scenes; here
# size is all that varies. Make it a fair trial. Let every token know *exactly* which share of its 4 ×
# 4 pixels belongs to a disc; then upsample these shares and cut at one half. Average the IoU over 64
# places of the disc's centre within one token.

# %%
def disc(radius, cy, cx, size=112):
    y, x = np.mgrid[:size, :size] + 0.5
    return torch.from_numpy(np.hypot(y - cy, x - cx) < radius)


def through(mask, stride):
    """The mask after shares per stride x stride pixels, bilinear upsampling and a cut at 1/2."""
    share = F.avg_pool2d(mask[None, None].float(), stride)
    return upsample(share, mask.shape)[0, 0] >= 0.5


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


def mean_iou(radius, stride):
    places = [48 + stride * (i + 0.5) / 8 for i in range(8)]
    discs = [disc(radius, cy, cx) for cy in places for cx in places]
    return float(np.mean([iou(d, through(d, stride)) for d in discs]))

# %% [markdown]
# **Predict, then run.** A disc of radius 3 has 28 pixels, nearly two tokens' worth. How much of it
# survives a stride of 4?
#
# - A. IoU about 0.9: its share is known exactly.
# - B. IoU about 0.4.
# - C. Nothing: no token is covered for the most part.

# %%
radii = (2, 3, 4, 6, 8, 16, 32)
table = {stride: [mean_iou(r, stride) for r in radii] for stride in (2, 4, 8, 16)}
print("radius   ", *[f"{r:5d}" for r in radii])
for stride, values in table.items():
    print(f"stride {stride:2d}", *[f"{v:5.2f}" for v in values])

# %%
fig, ax = plt.subplots(figsize=(5, 2.5))
for (stride, values), style in zip(table.items(), ("s:", "o-", "^--", "v-.")):
    ax.semilogx(radii, values, style, label=f"stride {stride}", base=2)
ax.set(xlabel="radius of the disc in pixels", ylabel="mean IoU", xticks=radii, xticklabels=radii)
ax.minorticks_off()
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Mean IoU against the radius of a disc from 2 to 32 pixels, one curve per stride 2, 4, 8 and "
    "16. Stride 2 rises from 0.78 to 1, the others from near 0 to over 0.9; each doubling of the "
    "stride moves the curve to the right by a doubling of the radius. At stride 4 it passes one half "
    "between radius 3 and 4."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** At stride 4 (solid) discs of radius 6 and more are kept well, at radius 3 it is luck, and at
# radius 2 next to nothing is left. The curves are the same curve, moved: only the radius *in tokens*
# counts. *Why?* A small disc often lies across several tokens without covering most of any; then, cut
# at one half, all say background. When it sits in the middle of a token, it survives.
#
# </details>
#
# A network may do better than this figure. Its scores are no shares, they may be higher for small
# things, and it has all of F1's channels to place an edge by. But it has to *learn* to do better,
# and below about 50 pixels of area the grid itself is against it.
#
# Why not decode at 1/2, then? As printed, lines 3 and 4 cost four times as much, and the maps take
# four times the memory; and there is no F0 to take fine detail from: the first thing the network
# does to the picture is a step of four pixels.

# %% [markdown]
# ### The trachea
#
# In chest CT the lungs are large and the trachea is a thin tube. The course draws its own patients
# (the phantom of [chapter 08](08_data.ipynb)), with masks in the layout of a real data set.

# %% tags=["nbval-ignore-output"]
chest = sl.data.open_dataset("sample-chest-ct", "val")
print(chest)

# %%
def ideal(label, stride, classes=4):
    """The best-scored class when every token knows its exact share of each class."""
    one_hot = F.one_hot(label, classes).permute(2, 0, 1)[None].float()
    return upsample(F.avg_pool2d(one_hot, stride), label.shape)[0].argmax(0)


labels = [chest[i][1].as_subclass(torch.Tensor) for i in range(len(chest))]
print("stride   ", *[f"{name:>8s}" for name in chest.classes[1:]])
for stride in (2, 4, 8, 16):
    found = [ideal(label, stride) for label in labels]
    ious = [iou(torch.stack(found) == c, torch.stack(labels) == c) for c in (1, 2, 3)]
    print(f"{stride:6d}   ", *[f"{v:8.2f}" for v in ious])

# %%
slice_label = labels[30]
area = {name: int((slice_label == c).sum()) for c, name in enumerate(chest.classes)}
print(area, "of", tuple(slice_label.shape))
crop = (slice(88, 168), slice(58, 198))
ct = masks.as_picture(chest[30][0])
maps = [slice_label, *[ideal(slice_label, stride) for stride in (4, 8, 16)]]
pictures = [masks.overlay(ct, m, chest.palette)[crop] for m in maps]
fig = show.grid(pictures, ["the label", "stride 4", "stride 8", "stride 16"], columns=2, cell=3.1)
show.figure(fig, alt=(
    "The middle of a slice of the chest phantom, four times: the label with both lungs in blue "
    "and the round trachea in orange between them, and what is left of it at stride 4, 8 and "
    "16. At stride 4 both are nearly unchanged; at 8 the trachea has shrunk to its middle; at 16 "
    "it is gone, and the corners of the lungs are cut off."))

# %% [markdown]
# The whole set in the table, one slice in the picture. (The small black disc below the trachea is air
# in the gullet; it has no class.) From stride 2 to stride 16 the heart loses
# little, the lungs lose their rims and corners, and the trachea is lost altogether: about fourteen
# pixels across here, it is kept at stride 4, shrunk at 8 and gone at 16. That is so at 256 pixels a
# side. Train with slices scaled to 128, as one does to save time, and a stride of 4 acts on the
# trachea like one of 8.
#
# If the notebook is running, move the disc and the stride yourself:

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, SelectionSlider, interact


def try_disc(radius, stride, place):
    mask = disc(radius, 48 + place, 48 + place)
    kept = through(mask, stride)
    share = F.avg_pool2d(mask[None, None].float(), stride)[0, 0]
    titles = ["the disc", f"shares, one per {stride} px", f"what comes back\nIoU {iou(mask, kept):.2f}"]
    fig = show.grid([mask, share, kept], titles, cell=2.2, cmap="cividis", vmin=0, vmax=1)
    show.figure(fig, alt=f"A disc of radius {radius}, its shares at stride {stride}, and what comes back.")


_ = interact(try_disc, radius=FloatSlider(value=6, min=1, max=32, step=0.5, continuous_update=False),
             stride=SelectionSlider(options=[1, 2, 4, 8, 16], value=4, continuous_update=False),
             place=FloatSlider(value=0, min=0, max=8, step=0.5, continuous_update=False))

# %% [markdown]
# ## How wide?
#
# $C$ is 256 in B0 and B1 and 768 in B2 to B5. The paper tried five widths with B2 on ADE20K (Table
# 1b). Parameters and work can be counted here, the mIoU is theirs:

# %%
TABLE_1B = {256: (24.7, 25.7, 44.9), 512: (25.8, 39.8, 45.0), 768: (27.5, 62.4, 45.4),
            1024: (29.6, 93.6, 45.2), 2048: (43.4, 304.4, 45.6)}  # M parameters, G, mIoU


def with_width(cls, dim):
    return lambda in_channels, _, num_classes: cls(in_channels, dim, num_classes)


widths = {}
print("   C   parameters (paper)   as printed (paper)     folded   mIoU (paper)")
for dim, (m, g, miou) in TABLE_1B.items():
    net = shapes_only("segformer_b2", decoder=with_width(Decoder, dim))
    setting = net.encoder.dims, dim, 150, 512, 512
    long, short = (sum(count(*setting).values()) for count in (by_hand, folded_by_hand))
    total = macs(net, 512)
    widths[dim] = total / 1e9, (total - long + short) / 1e9
    print(f"{dim:4d}   {parameters(net) / 1e6:7.2f} M  ({m:4.1f})    {widths[dim][0]:7.2f} G  ({g:5.1f})"
          f"   {widths[dim][1]:6.2f} G   {miou:.1f}")
    assert abs(parameters(net) / 1e6 - m) < 0.1 and abs(widths[dim][0] - g) < 0.1

# %%
fig, ax = plt.subplots(figsize=(5.2, 2.5))
for column, name, style in ((0, "as printed", "o-"), (1, "folded", "s--")):
    ax.plot([w[column] for w in widths.values()], [row[2] for row in TABLE_1B.values()], style, label=name)
for dim, pair in widths.items():
    for work, place in zip(pair, ((4, -10), (-4, 5))):
        ax.annotate(dim, (work, TABLE_1B[dim][2]), xytext=place, fontsize=8, textcoords="offset points",
                    ha="left" if place[0] > 0 else "right")
ax.set(xlabel="G multiply-accumulates at 512 px", ylabel="mIoU on ADE20K (paper)", ylim=(44.5, 46),
       xscale="log", xlim=(17, 400))
ax.minorticks_off()
ax.set_xticks([20, 50, 100, 200, 300], [20, 50, 100, 200, 300])
ax.legend(loc="lower right")
show.figure(fig, alt=(
    "mIoU from the paper against work on a logarithmic axis, five decoder widths. As printed the work runs from 26 G "
    "at width 256 to 304 G at width 2048 for a gain of 0.7 points; folded the same five points "
    "lie between 21 and 34 G."))

# %% [markdown]
# Every count is the paper's. (Its caption does not say which encoder; the counts say B2.) Eight
# times the width buys 0.7 points and costs twelve times the work, so the paper settles on 768. Its
# reason is the work *as printed*, which grows with $C^2$ at every pixel. Folded (dashed) it grows
# little faster than $C$, and the same gain would cost about half as much again. What stays is
# memory: $C$ numbers at every pixel of F1's size, for the batch norm to work on.

# %% [markdown]
# ## The report's decoder
#
# The report writes the decoder a little differently, and the package has it beside the released
# one. The differences: a bias on the fusing map and none on the levels, `align_corners=True`, the order
# [F1, F2, F3, F4], group norm with GELU for batch norm with ReLU, and no dropout. (The report leaves the
# number of groups open; 32 is ours.)

# %%
from segformer_lite.models.variants import ReportDecoder

report = ReportDecoder(in_channels, 256, 150)
print("released", f"{parameters(decoder):,}", "report", f"{parameters(report):,}")
print({name: parameters(part) for name, part in report.named_children()})
same_work = macs(shapes_only("segformer_b0", decoder=ReportDecoder), 512) == macs(printed, 512)
print("the same work as the paper's equation:", same_work)

# %% [markdown]
# No great difference in size: 1,024 biases of the levels are gone, 256 of the fusing map have come.
# Group norm and `align_corners=True` are open to folding as well: everything before the norm is as
# linear as before.
#
# The norm does make a difference. Batch norm takes its mean over the whole batch while training;
# group norm takes it over one picture. Compare a picture alone with the same picture in company:

# %%
torch.manual_seed(0)
company = [torch.cat([f, 3 * torch.randn_like(f)]) for f in pyramid]
with torch.no_grad():
    for name, part in (("batch norm", copy.deepcopy(decoder).train()), ("group norm", report.train())):
        if name == "batch norm":
            part.dropout.p = 0.0
        alone, together = part(pyramid), part(company)[:1]
        print(f"{name}: relative change {(alone - together).norm() / alone.norm():.2f}")

# %% [markdown]
# With batch norm what the network says of one picture depends on its neighbours in the batch, much
# so if the batch is small. With group norm it does not. That is a good reason for group norm when
# only two or four pictures fit into memory. (The original has a batch norm *synchronised* between its
# GPUs, so that the batch it sees is not small.) In evaluation batch norm uses the means it has
# collected, and the dependence is gone.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. Upsample a row (15 minutes)
#
# Line 2 without `F.interpolate`, in one dimension, with areas aligned. New pixel $j$ has its centre
# at $(j + 1/2)/f - 1/2$, counted in old pixels.
#
# <details><summary>Hint</summary>
#
# Clamp the positions to 0 … N - 1. The value lies between the pixels `floor(position)` and one
# further; the fraction says how far. `torch.lerp(a, b, t)` is $a + t (b - a)$.
#
# </details>
# <details><summary>Help: index out of range at the right end</summary>
#
# At the last centre `floor` gives N - 1 and there is no pixel further on. Clamp the left neighbour
# to N - 2; the fraction is then 1.
#
# </details>

# %% tags=["exercise"]
def my_upsample_row(row: torch.Tensor, factor: int) -> torch.Tensor:
    """row: (N,), N at least 2 -> (N * factor,), as bilinear upsampling with align_corners=False."""
    # SOLUTION
    n = len(row)
    position = ((torch.arange(n * factor) + 0.5) / factor - 0.5).clamp(0, n - 1)
    left = position.long().clamp(max=n - 2)
    return torch.lerp(row[left], row[left + 1], position - left)
    # END SOLUTION


checks.upsample_row(my_upsample_row)

# %% [markdown] tags=["exercise"]
# ### 2. Fold two layers (10 minutes)
#
# Make one `nn.Linear` that does what `second(first(x))` does. Either may have been made with
# `bias=False`; its `bias` is then None.
#
# <details><summary>Hint</summary>
#
# Write $V(Wx + b) + c$ and multiply out. In PyTorch a `Linear(a, b)` keeps its matrix as (b, a).
#
# </details>
# <details><summary>Help: the shapes do not multiply</summary>
#
# What acts last stands first in a product: `second.weight @ first.weight`.
#
# </details>

# %% tags=["exercise"]
def my_fold(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Linear(a, b) and Linear(b, c) -> one Linear(a, c) equal to second(first(x))."""
    # SOLUTION
    folded = nn.Linear(first.in_features, second.out_features)
    bias = torch.zeros(second.out_features) if second.bias is None else second.bias
    if first.bias is not None:
        bias = bias + second.weight @ first.bias
    folded.weight.data, folded.bias.data = (second.weight @ first.weight).data, bias.data
    return folded
    # END SOLUTION


checks.fold_linear(my_fold)

# %% [markdown] tags=["exercise"]
# ### 3. The decoder from its equation (25 minutes)
#
# Scroll up to the four lines of the question, no further, and write the decoder as printed, with
# the batch norm, the ReLU and the dropout of whole channels before the last line. The check loads
# the package's weights into yours, so the names must fit: `linear` (a `ModuleList` of `nn.Linear`),
# `fuse` (an `nn.Linear` without bias), `norm`, `dropout`, and `classify`, a 1 × 1 convolution. F4
# comes first in the stack.
#
# <details><summary>Hint</summary>
#
# The size to grow to is that of the first map, `features[0].shape[-2:]`. A `Linear` wants the
# channels last.
#
# </details>
# <details><summary>Help: weights missing or left over</summary>
#
# The names in the message are paths: `linear.0.weight` is the weight of the first entry of
# `self.linear`. A batch norm has five: weight, bias, running mean, running variance, and a counter.
#
# </details>

# %% tags=["exercise"]
class MyDecoder(nn.Module):
    """Maps (B, C_i, H_i, W_i), largest first -> class scores (B, num_classes, H_1, W_1)."""

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        super().__init__()
        # SOLUTION
        self.linear = nn.ModuleList(nn.Linear(c, dim) for c in in_channels)
        self.fuse = nn.Linear(len(in_channels) * dim, dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(dim, num_classes, 1)
        # END SOLUTION

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        # SOLUTION
        size = features[0].shape[-2:]
        grown = []
        for f, linear in zip(features, self.linear):
            f = linear(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            grown.append(F.interpolate(f, size=size, mode="bilinear", align_corners=False))
        stacked = torch.cat(grown[::-1], dim=1).permute(0, 2, 3, 1)
        x = F.relu(self.norm(self.fuse(stacked).permute(0, 3, 1, 2)))
        return self.classify(self.dropout(x))
        # END SOLUTION


checks.mlp_decoder(MyDecoder)

# %% [markdown] tags=["exercise"]
# ### 4. Folded for good (25 minutes)
#
# For use, a trained network can be folded once and for all. A decoder that *adds* one map per level
# has no `fuse` at all, and still gives the same scores. Write `SumDecoder`, then a function that
# takes a SegFormer-B0 and returns a new one for as many classes (`model.num_classes`), made with
# `sl.create_model(..., decoder=SumDecoder)`, with the same encoder and the right numbers in its
# decoder. The check compares the scores of the two networks and counts their parameters.
#
# <details><summary>Hint</summary>
#
# Level $i$ needs the weight $V_i W_i$ and the bias $V_i b_i$. The four $V$ are
# `model.decoder.fuse.weight.chunk(4, dim=1)`, for F4 first. Everything else is copied with
# `load_state_dict`.
#
# </details>
# <details><summary>Help: the numbers are close, but not equal</summary>
#
# Were the running mean and variance of the batch norm copied? They are no parameters, but
# `norm.load_state_dict(...)` takes them along.
#
# </details>

# %% tags=["exercise"]
class SumDecoder(nn.Module):
    """Maps (B, C_i, H_i, W_i), largest first -> class scores (B, num_classes, H_1, W_1).

    Submodules: linear (a ModuleList), norm, dropout, classify. The projected maps are added up.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        super().__init__()
        # SOLUTION
        self.linear = nn.ModuleList(nn.Linear(c, dim) for c in in_channels)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(dim, num_classes, 1)
        # END SOLUTION

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        # SOLUTION
        size = features[0].shape[-2:]
        total = 0
        for f, linear in zip(features, self.linear):
            total = total + upsample(linear(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size)
        return self.classify(self.dropout(F.relu(self.norm(total))))
        # END SOLUTION


def my_folded_network(model: sl.SegFormer) -> sl.SegFormer:
    """A new SegFormer-B0 with SumDecoder that gives the scores of `model`, a SegFormer-B0."""
    # SOLUTION
    network = sl.create_model("segformer_b0", model.num_classes, decoder=SumDecoder)
    old, new = model.decoder, network.decoder
    network.encoder.load_state_dict(model.encoder.state_dict())
    new.norm.load_state_dict(old.norm.state_dict())
    new.classify.load_state_dict(old.classify.state_dict())
    for mine, theirs, fuse in zip(new.linear, old.linear, old.fuse.weight.chunk(4, dim=1)[::-1]):
        mine.weight.data = (fuse @ theirs.weight).detach()
        mine.bias.data = (fuse @ theirs.bias).detach()
    return network
    # END SOLUTION


checks.folded_network(my_folded_network)

# %% [markdown]
# ## The package's version
#
# Here is the decoder that the rest of the course uses, in place:

# %%
print(inspect.getsource(sl.models.MLPDecoder.forward))
print(inspect.getsource(sl.models.MLPDecoder.folded))
print(inspect.getsource(sl.models.MLPDecoder.forward_unfolded))
print(inspect.getsource(sl.models.MLPDecoder.scores))

# %% [markdown]
# `forward` is `folded` and then `scores`; `forward_unfolded` is the equation as printed and ends in
# `scores` as well: batch norm, dropout, ReLU, `classify`. (Dropout multiplies by 0 or by a positive
# number, so a ReLU behind it gives the same as one before it; this way round both can work in place.)
# `linear_map` is `F.linear` of every token, by the faster of two ways on some processors ([chapter
# 14](14_speed.ipynb)). The rest saves memory, too: a map that has the right size already is not
# upsampled, the maps are made one at a time, from the coarsest on, and each is added in place to the
# sum, for these are the largest maps of the network. The class of this chapter takes the package's
# weights, `strict`, so that no key may be missing or left over, and must give the same numbers.

# %%
torch.manual_seed(0)
for variant, width in (("b0", 256), ("b2", 768)):
    net = sl.create_model(f"segformer_{variant}", num_classes=19).eval()
    maps = [torch.randn(1, c, s, s + 3) for c, s in zip(net.encoder.dims, (29, 15, 8, 4))]
    for cls in (Decoder, FoldedDecoder):
        mine = cls(net.encoder.dims, width, 19).eval()
        mine.load_state_dict(net.decoder.state_dict(), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(mine(maps), net.decoder(maps), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mine(maps), net.decoder.forward_unfolded(maps), rtol=1e-4, atol=1e-5)
    print(f"{variant}: {parameters(mine):,} parameters, equal")

# %% [markdown]
# ## What the paper says, what the code does
#
# - **Four linear lines** (section 3.2, equation 4). The released code puts a batch norm behind line 3
#   (whose map then needs no bias), a ReLU, and a dropout of whole channels, rate 0.1. The equation
#   shows none of them, and without the ReLU it would be one linear map.
# - **$W/4 \times W/4$**, as printed, is a slip: the maps grow to $H/4 \times W/4$, the size of F1.
# - **The order of the stack** is not in the paper. Released code and transformers have
#   [F4, F3, F2, F1], mmsegmentation and the report [F1, F2, F3, F4]. The weights differ accordingly.
# - **mmsegmentation** has $C = 256$ for *all* of B0 to B5, and a batch norm and ReLU on every level
#   before the upsampling. There the two matrices of a level cannot become one, a ReLU stands between
#   them; the slices of the fusing matrix could still run at the small size.
# - **transformers** drops single numbers (`nn.Dropout`) where the released code drops whole
#   channels (`nn.Dropout2d`). In evaluation there is no difference.
# - **segmentation_models_pytorch** has no dropout here, $C = 256$ for every encoder, and enlarges
#   the scores inside the model with `align_corners=True`.
# - **"FLOPs"** are multiply-accumulates, counted with the decoder as printed.

# %% [markdown]
# ## Pitfalls
#
# - The stack in another order than the weights were trained with: no error, wrong masks.
# - `align_corners` forgotten or changed: everything moves a little, most near the borders. For
#   bilinear upsampling PyTorch's default is False.
# - Class *labels* upsampled in place of scores: outlines become steps. Enlarge first, then `argmax`.
# - Upsampling the four maps to the picture's full size: sixteen times the work and memory.
# - A bias that stays outside when two layers are folded: it must go through the second matrix.
# - A norm over the channels of each pixel (`LayerNorm`) on a (B, C, H, W) map: it wants channels
#   last, and it is not what the weights were trained with.
# - A batch of one and maps of one pixel: batch norm has nothing to take a mean over.

# %% [markdown]
# ## In short
#
# - The decoder is two matrices per pixel with a bend between them: an MLP, the same at every place.
# - Upsampling commutes with channel maps, so level and fusing matrix fold into one: the same
#   function and gradients. All of B0 at 512 pixels then takes 4.1 in place of 8.4 G.
# - "Lightweight" is true of the parameters. As printed, the decoder is 62 % of B0's work.
# - Scores come at 1/4. What is smaller than a few tokens across is lost unless the network learns
#   to exaggerate it.
# - Width buys little: 0.7 points of mIoU for eight times as much.

# %% [markdown]
# ## What people ask
#
# **Is the decoder an MLP, when it is all 1 × 1 convolutions?** Yes. A 1 × 1 convolution is a
# `Linear` on every pixel, as line 1 showed. The hidden batch norm and ReLU make two of them a
# multi-layer perceptron.
#
# **Why two linear layers per level, one before and one after the concatenation?** As a function
# they are one, as you have seen. Training two factors is not the same as training their product,
# and the paper does not compare the two. For use, one is enough.
#
# **256 or 768, and why do mmsegmentation's weights not fit?** Released: 256 for B0 and B1, 768 for
# the others. mmsegmentation: 256 for all, norms on every level, another order.
#
# **The output has a quarter of my picture's size. Who enlarges it, and to what?** You do, and to
# the size of the label: `segmentation_loss` and `model.predict` of the package both do it, on the
# scores. The decoder itself never does.
#
# **My FLOPs are twice the paper's, or smaller.**
# [Chapter 06](06_encoder.ipynb#why-is-my-count-another-one) shows four ways to count one network.
#
# **"Default process group has not been initialized"?** A synchronised batch norm, meant for several
# GPUs, runs in a single process. An ordinary `BatchNorm2d` has the same weights.

# %% [markdown]
# ## Optional: a network of your own
#
# All parts of SegFormer are built now, and each can be replaced. Here are two blocks with ideas of
# their own. The keys and values of `MyAttention` come from plain *means* over squares of tokens, in
# place of a learned convolution. `MyMixFFN` convolves *before* it widens, on a quarter of the
# channels. Put in your own; the signatures are those of the package's blocks.

# %%
class MyAttention(nn.Module):
    """(B, H, W, C) -> same. Keys and values from means of stride x stride tokens."""

    def __init__(self, dim, heads, stride):
        super().__init__()
        self.heads, self.stride = heads, stride
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, h, w, c = x.shape
        means = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride).flatten(2).transpose(1, 2)
        q = self.q(x).view(b, h * w, self.heads, -1).transpose(1, 2)
        k, v = self.kv(means).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, h, w, c))


class MyMixFFN(nn.Module):
    """(B, H, W, C) -> same. The depth-wise convolution comes first, on the narrow side."""

    def __init__(self, dim, expansion):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim * expansion), nn.Linear(dim * expansion, dim)

    def forward(self, x):
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(self.fc1(x)))


mine = shapes_only("segformer_b0", attention=MyAttention, ffn=MyMixFFN)
print(f"{parameters(mine):,} parameters, {macs(mine, 512) / 1e9:.2f} G at 512 px")

# %% [markdown]
# Train it beside the package's own, on the drawn scenes: same pictures, same steps, same seed.

# %% tags=["nbval-ignore-output"]
runs = {}
for name, blocks in (("package", {}), ("own", {"attention": MyAttention, "ffn": MyMixFFN})):
    config = sl.TrainConfig(data="sample-coco", size=64, batch_size=8, warmup=10, augment="flip",
                            steps=12 if session.quick else 100, model_options=blocks,
                            data_options={"limit": 24} if session.quick else {}, name=f"07-{name}")
    runs[name] = sl.train(config, progress=not session.quick)
    print(f"{name}: loss {runs[name].history[-1]['loss']:.2f}, mIoU {runs[name].report.miou:.3f}")

# %%
guessing = np.log(11)  # the loss of a network that finds all eleven classes equally likely
assert all(run.history[-1]["loss"] < guessing for run in runs.values())
print("both are better than a guess")

# %% [markdown]
# Your own network trains. The mIoU is still low: in a hundred steps a network learns how common each
# class is, and little else. Which of the two is better cannot be said from that, nor from one seed.
# `sl.compare` with more steps and several seeds is how one finds out.

# %% [markdown]
# ## Next
#
# The network is complete, and everything from here on is about what it learns from.
# [Chapter 08](08_data.ipynb), data: what a label is, how it is drawn, cut, flipped and damaged, and
# why the same patient must not be in training and in test.
