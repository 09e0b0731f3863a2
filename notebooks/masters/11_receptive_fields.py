# %% [markdown]
# # 11 · See what the network sees: receptive fields
#
# About 40 minutes to read and run, 55 more for the exercises. The code takes about two minutes on
# two CPU cores, half of it three short trainings, and about 1.5 GB of memory. No GPU is needed, and
# the modes fast and full are the same here.

# %% [markdown]
# **What you build.** `field_of`, a function of six lines that says which pixels a place of any stage
# depends on, and how strongly. At the end it gives the package's numbers.
#
# **What you learn.**
#
# - what a network *could* see and what it *does* see, and why they differ by so much;
# - why the field of a stack of convolutions is a bell, and how it grows with the depth;
# - four choices that a receptive field depends on and that most pictures of one don't state;
# - how to compare SegFormer, DeepLabV3+ and U-Net, each with an untrained control beside it;
# - a measure that many use and that changes its verdict with the unit of its input;
# - what maps of attention cannot tell.
#
# **What you need.** Gradients (`backward`), and from [chapter 04](04_efficient_attention.ipynb)
# queries, keys and the two ways of merging tokens. [Chapter 00](00_start_here.ipynb) has shown a
# first receptive field. DeepLabV3+ and U-Net are taken as they come; chapters
# [15](15_family_tree.ipynb) and [02](02_cnn_baselines.ipynb) open them.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import inspect
from contextlib import suppress

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from matplotlib import cbook
from PIL import Image
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import Probe, ReceptiveField, receptive_field
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.models.variants import StripReduction
from segformer_lite.show import masks, widgets

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit="image")

# %% [markdown]
# This chapter walks the map backwards. It starts at one place of any box, follows every line back to
# the image, and asks there: which pixels did this place listen to?

# %% [markdown]
# ## The question
#
# Two answers have the same name, *receptive field*, and mean different things.
#
# - **What could be seen**: all pixels from which any line leads to the place. Counted from kernels
#   and strides; [chapter 02](02_cnn_baselines.ipynb) did it and found 404 pixels for FCN-8s.
# - **What is seen**: how much the place *changes* when a pixel changes. This is the **effective**
#   receptive field of Luo and others (2016), and it is measured, with a gradient.
#
# A pixel may be one of the first and count for next to nothing in the second. **How much of what a
# network could see does it use, and does SegFormer use more than a convolutional network?** The
# paper says yes and shows it in its Figures 3 and 6. How these figures were made it doesn't say.
#
# | in Luo's paper | code | meaning |
# |---|---|---|
# | $x_{i,j}$ | `images` | pixels |
# | $y_{0,0}$ | `layer`, `pixel`, `scalar` | one number of one place of one layer |
# | $\partial y_{0,0} / \partial x_{i,j}$ | the gradient | change of that number for a small change of the pixel |
# | ERF | `receptive_field(...).map` | its absolute value, averaged, sum 1 |

# %% [markdown]
# ## By hand: a row of pixels
#
# The simplest network: every layer takes the mean of three neighbours, a *box filter*. Stack them,
# take the middle number of the last layer and differentiate it by every pixel.

# %%
def box_row(layers, pixels=201, kernel=3):
    """Gradient of the middle of a stack of box filters by each pixel of a row: (pixels,)."""
    x = torch.zeros(1, 1, pixels, dtype=torch.double, requires_grad=True)
    box = torch.full((1, 1, kernel), 1 / kernel, dtype=torch.double)
    y = x
    for _ in range(layers):
        y = F.conv1d(y, box, padding=kernel // 2)
    y[0, 0, pixels // 2].backward()
    return x.grad[0, 0]


for layers in (1, 2, 3):
    print(layers, (3**layers * box_row(layers)).round().int()[96:105].tolist())

# %% [markdown]
# Multiplied by $3^n$ these are whole numbers, and they *count*: in how many ways can one walk from
# the pixel to the place, one layer at a time, each step left, straight on or right? Three layers
# reach three pixels to each side. But only one way leads to the outermost pixel, and seven to the
# middle.
#
# That is the whole secret. A place at the rim of what could be seen is connected, by a single path;
# the middle is connected by very many.

# %% [markdown]
# ### Four times as deep
#
# **Predict, then run.** Four times as many layers: what could be seen grows about fourfold. By how
# much does the width of what *is* seen grow, its standard deviation $\sigma$?
#
# - A. Fourfold as well.
# - B. Twofold.
# - C. Hardly at all.

# %%
def spread(row):
    """Standard deviation of a row of weights around its middle, in pixels."""
    distance = torch.arange(len(row)) - len(row) // 2
    return (row * distance**2).sum().sqrt().item()


for layers in (1, 4, 16, 64):
    print(f"{layers:2d} layers: could see {2 * layers + 1:3d} px, sigma {spread(box_row(layers)):5.2f} px")

# %% [markdown]
# In closed form: each step of a walk is left, straight on or right by chance, so the end point is a
# sum of $n$ independent steps. Variances add. A box of $K$ pixels has variance $(K^2 - 1) / 12$, hence
#
# $$\sigma = \sqrt{n \, (K^2 - 1) / 12},$$
#
# and by the central limit theorem the shape is a bell, the normal distribution. With $K = 3$ that is
# $\sqrt{2 n / 3}$:

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
x = np.arange(-70, 71)
for i, (layers, colour) in enumerate({4: "blue", 16: "orange", 64: "green"}.items(), start=1):
    sigma = (layers * 2 / 3) ** 0.5
    left.bar(x, box_row(layers)[30:171], width=1, color=show.COLOURS[colour], alpha=0.6,
             label=f"{layers} layers")
    left.plot(x, np.exp(-x**2 / 2 / sigma**2) / sigma / (2 * np.pi) ** 0.5, color="black", lw=0.8)
    left.plot([-layers, layers], [-0.015 * i] * 2, color=show.COLOURS[colour], lw=3)  # could see
left.set(xlim=(-68, 68), xlabel="pixel", title="share of the gradient; line: a normal curve")
left.legend()
n = np.arange(1, 101)
right.plot(n, 2 * n + 1, color=show.COLOURS["grey"], label="could see: 2n + 1")
right.plot(n, 4 * (n * 2 / 3) ** 0.5, color=show.COLOURS["red"], label="sees: 4 sigma (95 %)")
right.set(xlabel="layers n", ylabel="px")
right.legend()
show.figure(fig, alt=(
    "Left, the gradient of 4, 16 and 64 box filters along a row of pixels: three bells, which a normal curve "
    "follows closely; a coloured bar below each shows how far it could see. Right, over the number of layers, what "
    "could be seen, in grey, and what is seen, in red."))

# %% [markdown]
# Left: the bells and, as lines below them, what could be seen. Right: both widths over the depth.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **B**: with four times as many layers, $\sigma$ doubles. On the right the straight line leaves the
# root behind. The share that is used *falls* as $1 / \sqrt{n}$: the deeper the stack, the smaller
# the part of its reach that counts.
#
# *Why* does it matter? "Deep enough, and it sees everything" is true of the count and false of the
# measure. Sixty-four layers could see 129 pixels and take 95 % of their answer from 26.
#
# </details>

# %%
# What the answer says, checked.
for layers in (1, 4, 16, 64):
    assert abs(spread(box_row(layers)) - (layers * 2 / 3) ** 0.5) < 1e-6

# %% [markdown]
# ### The same with random weights and ReLU
#
# No network has box filters. Take random weights, ReLU, two dimensions, and the package's function,
# which we build ourselves in a moment. `side(0.5)` is the side of the smallest square around the
# middle that holds half of all there is.

# %%
def stack(layers, dilations=(1,), strides=()):
    """3 x 3 convolutions with random weights and ReLU; layers named in `strides` halve the map."""
    net, channels = nn.Sequential(), 3
    for i in range(layers):
        dilation, stride = dilations[i % len(dilations)], 2 if i in strides else 1
        net.append(nn.Conv2d(channels, 16, 3, stride, padding=dilation, dilation=dilation,
                             bias=False))
        nn.init.kaiming_normal_(net[-1].weight, nonlinearity="relu")
        net.append(nn.ReLU())
        channels = 16
    return net


def side_of(**settings):
    """Mean of `side(0.5)` over eight random networks."""
    noise = torch.randn(2, 3, 96, 96)
    nets = [stack(**settings) for _ in range(8)]
    return np.mean([receptive_field(net, noise, str(len(net) - 1)).side(0.5) for net in nets])

# %%
torch.manual_seed(0)
sides = {layers: side_of(layers=layers) for layers in (4, 16)}
for layers, side in sides.items():
    print(f"{layers:2d} layers: could see {2 * layers + 1} px, half of it in about {side:.0f} px")
assert 1.6 < sides[16] / sides[4] < 2.4

# %% [markdown]
# Twice as wide for four times the depth, again. So how does a convolutional network come to see far?
# Not by depth. It makes its *steps* longer: with a stride, all later layers walk in steps of two
# pixels; with dilation, which pulls the nine taps of a kernel apart, one layer does.

# %%
torch.manual_seed(0)
ways = {"eight layers": {}, "stride 2 in two of them": {"strides": (1, 3)},
        "dilations 1, 2, 4, 8": {"dilations": (1, 2, 4, 8)}}
for name, settings in ways.items():
    print(f"{name:24} half of it in about {side_of(layers=8, **settings):.0f} px")

# %% [markdown]
# These are the two ways of DeepLab: strides first, then dilated layers. SegFormer has strides and a
# third way, attention, where one step leads anywhere.

# %% [markdown]
# ## From the definition to a function
#
# Now for any stage of SegFormer. Choose a number, call `backward`, read the gradient at the pixels:

# %%
def field_of(model, images, stage, pixel):
    """Field of the place of F_stage that lies over `pixel`: (H, W), sum 1. images: (B, 3, H, W)."""
    x = images.clone().requires_grad_()
    feature = model.eval().encoder(x)[stage - 1]                       # (B, C, h, w)
    row, column = (p * n // N for p, n, N in zip(pixel, feature.shape[2:], x.shape[2:]))
    feature[:, :, row, column].relu().sum().backward()                 # one number per picture
    maps = x.grad.abs().sum(1)                                         # (B, H, W), colours added up
    return (maps / maps.sum((1, 2), keepdim=True)).mean(0)             # pictures count alike

# %%
torch.manual_seed(0)
noise = torch.randn(4, 3, 256, 256)
fresh = sl.create_model("segformer_b0", num_classes=11)
mine = field_of(fresh, noise, stage=4, pixel=(128, 128))
theirs = receptive_field(fresh, noise, "stage4", pixel=(128, 128))
np.testing.assert_allclose(mine, theirs.map, rtol=1e-3, atol=1e-9)
print(tuple(mine.shape), f"sum {mine.sum():.3f}, equal to the package's")

# %% [markdown]
# Six lines, and four choices in them. A picture of a receptive field means little if they are not
# stated; the paper's Figure 3 states none.
#
# 1. **`eval()`**: no dropout, no dropped paths, stored batch statistics. Otherwise the map is that of
#    another, random network each time.
# 2. **The number**: the sum of the channels behind a ReLU, as in a script that many have taken over,
#    that of RepLKNet (a convolutional network with very large kernels). In the head one takes a class
#    score instead, here the largest.
# 3. **`abs()`**: a pixel that pushes down counts like one that pushes up. Without it the two cancel
#    wherever pictures or colours are added.
# 4. **Each picture divided by its own sum** before the mean. Otherwise one loud picture drowns the
#    others.

# %% [markdown]
# ### The number that is always zero
#
# Why the ReLU in choice 2? The plain sum of channels seems simpler. Try it on the network above:

# %%
def mass(scalar):
    """Sum of the absolute gradient of `scalar(channels)` at the middle of stage 4."""
    x = noise[:1].clone().requires_grad_()
    scalar(fresh.encoder(x)[3][0, :, 4, 4]).backward()
    return x.grad.abs().sum().item()


plain, behind_relu = mass(torch.sum), mass(lambda channels: channels.relu().sum())
assert plain < 1e-4 * behind_relu
print("the plain sum moves less than a ten-thousandth as much as the sum behind a ReLU")

# %% [markdown]
# A stage ends in a layer norm, and a fresh one gives every token the mean 0, whatever the picture.
# The sum of channels is 0 *always*. Its gradient is zero up to rounding errors, and divided by its
# sum it would be a proud picture of rounding errors. The package refuses only where nothing at all
# is left; rounding errors it would draw. So keep the ReLU.

# %% [markdown]
# ### Where is a place?
#
# At 256 px stage 4 has 8 × 8 places, and one place lies over pixels 128 to 159. Is pixel 144, the
# middle of that square, the middle of the field? Compute the field's centre of mass.

# %%
def centre_of_mass(field):
    """(row, column) in pixels."""
    return tuple(float((field.map.sum(1 - axis) * np.arange(n)).sum())
                 for axis, n in enumerate(field.map.shape))


for layer in ("stage4", "decoder"):
    row, column = centre_of_mass(receptive_field(fresh, noise, layer, pixel=(128, 128)))
    print(f"{layer:7} asked at (128, 128): centre of mass ({row:.0f}, {column:.0f})")
for pixel in (128, 144):
    field = receptive_field(fresh, noise, "stage4", pixel=(pixel, pixel))
    print(f"stage4 asked at {pixel}: "
          f"half of it in a square of {field.side(0.5)} px around that pixel")

# %% [markdown]
# The field of stage 4 sits on pixel 128, the upper left corner of its square, not on the middle. A
# padded convolution with an odd kernel looks symmetrically around pixel $S \cdot i$ ([chapter
# 03](03_patch_embedding.ipynb)). So ask at multiples of 32: around 144 the *same* field needs a
# larger square, and looks larger than it is.
#
# The head looks up and to the left of where it stands. Bilinear upsampling does put place $i$ in the
# middle of its square, so what the head reads from stage 4 was seen some 16 px further up and left;
# the finer stages less so. Trained weights have to live with it.

# %% [markdown]
# ## Measures
#
# A map convinces, a number compares. All are read off the raw map, around the pixel:

# %%
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    square = file.convert("RGB").crop((0, 20, 512, 532)).resize((256, 256))
photo = torch.from_numpy(np.array(square)).permute(2, 0, 1)
wide = receptive_field(fresh, photo[None], "stage4", pixel=(128, 128))
sides = {f"{q:.0%}": wide.side(q) for q in (0.2, 0.5, 0.95)}
fig = masks.field_figure(photo, wide, wide.pixel, sides, "stage 4, random weights", width=2.2)
show.figure(fig, colours=64, alt=(
    "The photograph of a woman in uniform, and beside it the receptive field of the place in its "
    "middle, stage 4 of a random SegFormer: a bright patch in the middle that fades, and a faint "
    "mosaic over the whole picture. Three squares around the middle hold 20, 50 and 95 percent "
    "of the mass."))

# %%
print(f"side(0.5)       {wide.side(0.5)} px: the smallest square that holds half of the mass")
print(f"area(0.5)       {wide.area(0.5):.3f}: the share of the picture that this square takes")
print(f"extent(0.5)     {wide.extent(0.5)}: rows and columns of the smallest bands")
print(f"anisotropy(0.5) {wide.anisotropy(0.5):.2f}: "
      "columns over rows; a horizontal streak is above 1")
print(f"centre_share(8) {wide.centre_share(8):.2f}: mass within 8 px of the pixel")
print(f"support()       {wide.support():.0%}: pixels with any gradient at all")

# %% [markdown]
# The colours go down by powers of ten, so the faint mosaic is real and a thousandth as bright. Half of
# the mass, a patch. Support, everything.

# %% [markdown]
# ## What global attention sees
#
# That was stage 4, the end of the encoder. Attention works in every block from the first one on. Does
# the beginning see as far?
#
# A `Probe` is one forward pass, kept; every field is then one backward pass through it.
#
# **Predict, then run.** A SegFormer with random weights and noise of 256 px. What does stage 1 see?
#
# - A. A few pixels around the place, as a convolution would.
# - B. The whole picture, evenly.
# - C. The whole picture, and most of the mass is near.

# %%
probe = Probe(fresh, noise, ["stage1", "stage2", "stage3", "stage4"])
print("        area that holds     any gradient")
print("        20 %   30 %   50 %    at all")
for layer in probe.layers:
    field = probe(layer)
    print(layer, *(f" {field.area(q):.3f}" for q in (0.2, 0.3, 0.5)), f"   {field.support():.0%}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Each stage has *some* gradient from every pixel, and half of stage 1's mass lies in a
# thousandth of the picture.
#
# *Why?* Every token asks keys from the whole picture, from the first block of stage 1 on. A fresh
# attention weighs all keys alike ([chapter 04](04_efficient_attention.ipynb)), so it
# adds the mean of the picture, and each pixel's part in a mean is small. The token itself comes
# around it on the residual path, unhindered.
#
# </details>
#
# **Global attention is an opportunity.** Whether it is taken is decided by training.

# %% [markdown]
# ### A measure with a trap
#
# Many papers measure fields as RepLKNet's script does: take $\log_{10}(g + 1)$ of the gradient $g$,
# *then* look for the square that holds half. The logarithm makes faint parts visible. But gradients
# have a scale, and it says nothing about where a network looks: double the loss, and all gradients
# double. Take the fields of stages 1 and 4, with all gradients multiplied by 1, by 100 and by 10,000:

# %%
SCALES = (1, 100, 10_000)
two = {layer: probe(layer) for layer in ("stage1", "stage4")}
print("gradients times", *(f"{scale:>8,}" for scale in SCALES), "    without log")
for layer, field in two.items():
    areas = [f"{field.log_area(0.5, scale):8.3f}" for scale in SCALES]
    print(f"{layer}         ", *areas, f"{field.area(0.5):14.3f}")

# %%
many = np.logspace(0, 6, 25)
fig, ax = plt.subplots(figsize=(4.6, 2.5))
for (layer, field), colour in zip(two.items(), ("blue", "orange")):
    areas = [field.log_area(0.5, s) for s in many]
    ax.semilogx(many, areas, color=show.COLOURS[colour], label=layer)
    ax.axhline(field.area(0.5), color=show.COLOURS[colour], ls=":", lw=1)
ax.set(xlabel="gradients multiplied by", ylabel="area for half of the sum")
ax.legend()
show.figure(fig, alt=(
    "The area that holds half of the logarithms, over the factor by which all gradients were "
    "multiplied, from 1 to a million. Both curves start low and rise, that of stage 1 steeply; "
    "stage 4 is above stage 1 at first and far below it from some thousand on. Dotted lines, the "
    "areas without logarithm, stay level."))

# %% [markdown]
# At scale 1 stage 4 sees more than stage 1, at 10,000 much less. Nothing about the network has
# changed. Where $g$ is far below 1, $\log(g + 1)$ is a straight line and does nothing; where it is
# far above, even the faintest gradient counts nearly like the strongest, and stage 1, with gradient
# everywhere, "sees" half of the picture. So compare networks by measures that don't know the scale:
# the dotted lines. For *drawing* a logarithm is fine, if the picture says where it ends; ours end
# at a thousandth of the largest value where nothing else is said.

# %% [markdown]
# ## Three networks, before and after training
#
# The course comes without trained weights, so train: SegFormer-B0, DeepLabV3+ and U-Net on the
# synthetic scenes, the same number of steps each. It takes about a minute on two CPU cores.

# %% tags=["nbval-ignore-output"]
STEPS = 12 if session.quick else 150  # the course's own tests train less
NAMES = {"SegFormer": "segformer_b0", "DeepLabV3+": "deeplabv3plus", "U-Net": "unet"}
untrained, trained, histories = {}, {}, {}
for name, model in NAMES.items():
    torch.manual_seed(0)
    untrained[name] = sl.create_model(model, num_classes=11)
    config = sl.TrainConfig(data="sample-coco", model=model, size=64, batch_size=8, steps=STEPS,
                            augment="flip", name=f"11-{model}")
    run = sl.train(config, progress=not session.quick)
    trained[name], histories[name] = run.model.cpu(), run.history

# %%
for name, history in histories.items():
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0], f"{name}: the loss must fall"
print("all three losses fell")

# %% [markdown]
# Each network is shown eight validation scenes of 192 × 192 px, larger than those it was trained on
# (64 px), so that its field has room. The pixel is the middle, (96, 96): a multiple of 32, see above.
# A place whose channels are all silenced by ReLUs has no gradient; U-Net has such places, and they
# are left out.

# %%
val_set = sl.data.open_dataset("sample-coco", "val")
resized = [sl.evaluation.resize_for_model(val_set[i][0], 192) for i in range(0, 64, 8)]
scenes = torch.stack([scene[:, :192, :192].as_subclass(torch.Tensor) for scene in resized])
MIDDLE = (96, 96)
LAYERS = ["stage1", "stage2", "stage3", "stage4", "decoder"]
LAYERS_OF = {"SegFormer": LAYERS, "DeepLabV3+": LAYERS,
             "U-Net": ["stage1", "stage2", "stage3", "stage4", "stage5", "decoder"]}


def fields_of(model, layers):
    """Every layer's fields at the middle, one for each scene where there is a gradient."""
    fields = {layer: [] for layer in layers}
    for scene in scenes:
        probe = Probe(model, scene[None], layers)
        for layer in layers:
            with suppress(ValueError):  # silent: nothing moves this place
                fields[layer].append(probe(layer, MIDDLE))
    return fields


def mean_of(fields):
    """The mean of fields of one place in several scenes."""
    first, mean = fields[0], np.mean([field.map for field in fields], axis=0)
    return ReceptiveField(mean, first.layer, first.scalar, MIDDLE)


print(tuple(scenes.shape))

# %% tags=["nbval-ignore-output"]
each = {(name, when): fields_of(models[name], LAYERS_OF[name])
        for name in NAMES for when, models in (("untrained", untrained), ("trained", trained))}
average = {key: [mean_of(fields) for fields in layers.values() if fields]
           for key, layers in each.items()}

# %% tags=["nbval-ignore-output"]
def side_by_side(keys, height):
    """A row for each network and state, a column for each layer; five powers of ten."""
    fig, axes = plt.subplots(len(keys), 5, figsize=(5.6, height))
    for row, key in zip(axes, keys):
        for ax, field in zip(row, average[key][-5:]):
            masks.draw_field(ax, field, decades=5)
            half = field.side(0.5)
            corner = [96 - half / 2] * 2
            ax.add_patch(plt.Rectangle(corner, half, half, fill=False, ec="white", lw=1))
            ax.set_title(f"{field.layer}: {half} px", fontsize=8, pad=2)
        for ax in row:
            ax.set(xticks=[], yticks=[], xlim=(0, 191), ylim=(191, 0))
        row[0].set_ylabel("\n".join(key), fontsize=8)
    return fig


states = ("untrained", "trained")
rows = [(name, when) for name in ("SegFormer", "DeepLabV3+") for when in states]
fig = side_by_side(rows, height=5)
show.figure(fig, colours=48, alt=(
    "Receptive fields of the middle pixel, four rows by five columns: SegFormer untrained and "
    "trained, DeepLabV3+ untrained and trained, over four stages and the decoder. In both "
    "networks the bright patch grows from stage to stage. SegFormer has a faint glow over the "
    "whole picture from stage 1 on; the first two stages of DeepLabV3+ are dark outside of a "
    "sharp square."))

# %% [markdown]
# This is the layout of the paper's Figure 3, with the control that it doesn't have: an untrained row
# above every trained one. The white square holds half of the mass, and the title gives its side. The
# colours go down by five powers of ten here, to make the faintest visible.
#
# The bright patch grows with the stages in both. DeepLabV3+'s first stages end at sharp squares, the
# limits of what they *could* see; SegFormer has a glow behind the patch from stage 1 on. And compare
# each pair of rows: much of what one might praise in a trained network was there before training.
# Without the control you would have put it down to learning.

# %% tags=["nbval-ignore-output"]
fig = side_by_side([("U-Net", when) for when in states], height=2.6)
show.figure(fig, colours=48, alt=(
    "The same for U-Net, untrained and trained, stages 2 to 5 and decoder: in every stage a "
    "bright patch ends at a sharp square, larger from stage to stage; the decoder has a small "
    "bright spot on a wide ground."))

# %% [markdown]
# U-Net: nothing but sharp squares, up to the last stage. It couldn't see further if it wanted to.

# %% tags=["nbval-ignore-output"]
print(f"{'':25}half of the mass in a square of ... px")
for name in NAMES:
    for before, after in zip(average[name, "untrained"], average[name, "trained"]):
        print(f"{name:11} {before.layer:8} untrained {before.side(0.5):4d}   "
              f"trained {after.side(0.5):4d}")
heads = {key: fields[-1].side(0.5) for key, fields in average.items()}
if not session.quick:
    for name in ("SegFormer", "DeepLabV3+"):
        assert heads[name, "trained"] < heads[name, "untrained"]

# %% [markdown]
# Three things to see.
#
# - **The first stages hardly change.** Their size is a matter of kernels and strides.
# - **The fields of both heads, SegFormer's and DeepLabV3+'s, shrink.** An untrained head adds up
#   all levels by chance; a trained one has learned that the pixel's own surroundings say most about
#   it. The far glow stays. So "larger field" and "better network" are not the same, and an
#   untrained network may well have the larger field of the two. (U-Net's head begins as the
#   smallest, and grows.)
# - **DeepLabV3+'s stage 4 is the widest here, before any training.** Its strides and dilations see
#   to that. The paper's Figure 3 shows the reverse for its two trained networks: Cityscapes at its
#   full size, where DeepLab's reach is a small part of the picture. Here the picture is small and
#   the training short. State the size of the picture and the training with every field.

# %% [markdown]
# ### A closer look
#
# The paper adds zoom boxes of stage 4 and head. Here is the middle of both, 96 px wide:

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(1, 4, figsize=(7, 2.1))
pairs = [(name, index) for name in ("SegFormer", "DeepLabV3+") for index in (3, 4)]
for ax, (name, index) in zip(axes, pairs):
    field = average[name, "trained"][index]
    masks.draw_field(ax, field.map[48:144, 48:144])
    ax.set_title(f"{name}, {field.layer}", fontsize=8)
    ax.axis("off")
show.figure(fig, colours=64, alt=(
    "The middle 96 pixels of four fields. SegFormer's stage 4 is a wide patch with a fine grid "
    "in it; its head is a small bright spot on a faint ground. DeepLabV3+'s stage 4 is a wide "
    "even patch with a grid of dots; its head has a bright spot in a wide patch."))

# %% [markdown]
# Both heads have two parts: a bright spot, which is the fine map (F1 in SegFormer, the shortcut from
# stage 1 in DeepLabV3+), and a wide ground, the coarse ones. This is what a segmentation
# needs: the *where* from near, the *what* from afar. The grids are no defect of the drawing. Windows
# that overlap read some pixels more often than others, and each stride passes the pattern on.

# %% [markdown]
# ### Somebody else's network
#
# The function takes any model and any layer by its path. torchvision's DeepLabV3 with a ResNet-50, as
# it is, with random weights:

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
deeplab = torchvision.models.segmentation.deeplabv3_resnet50(
    weights=None, weights_backbone=None, num_classes=11)
paths = [*(f"backbone.layer{i}" for i in (1, 2, 4)), "classifier"]
in_torchvision = Probe(deeplab, scenes[:1], paths)
for layer in paths:
    field = in_torchvision(layer, MIDDLE)
    print(f"{layer:16} half of the mass in {field.side(0.5):3d} px, support {field.support():.0%}")

# %% [markdown]
# At its end a random ResNet-50 with dilated layers has a wide field: support everywhere, and half of
# the mass in a square of about half the picture's side. That is no error, and no merit: random
# weights have not yet learned what to leave out.

# %% [markdown]
# ## Do fields follow the picture?
#
# Figure 6 of the paper shows fields of single pictures instead of a mean: SegFormer's follow the
# content, DeepLabV3+'s look the same each time. Can that be a number? Take the fields of one place in
# two scenes, coarsened to squares of 16 px, and add up the smaller of the two everywhere: their
# *overlap*, 1 if they are equal and 0 if they share nothing.

# %%
def overlap(maps):
    """Mean over all pairs of maps (H, W) with sum 1: how much they share, on squares of 16 px."""
    edges = range(0, 192, 16)
    coarse = [np.add.reduceat(np.add.reduceat(m, edges), edges, axis=1) for m in maps]
    return np.mean([np.minimum(a, b).sum() for i, a in enumerate(coarse) for b in coarse[:i]])


print(f"a map with itself: {overlap([np.full((192, 192), 1 / 192**2)] * 2):.2f}")

# %% tags=["nbval-ignore-output"]
shared = {}
for (name, when), layers in each.items():
    shared[name, when] = overlap([field.map for field in list(layers.values())[-2]])
    print(f"{name:11} {when:9} last stage: the fields of two scenes share {shared[name, when]:.2f}")
assert session.quick or shared["SegFormer", "trained"] < shared["DeepLabV3+", "trained"]

# %% tags=["nbval-ignore-output"]
rows = {"the scene": None, **{name: each[name, "trained"] for name in ("SegFormer", "DeepLabV3+")}}
fig, axes = plt.subplots(3, 4, figsize=(5.0, 3.9))
for row, (name, fields) in zip(axes, rows.items()):
    for ax, i in zip(row, (0, 2, 5, 7)):
        if fields is None:
            ax.imshow(scenes[i].permute(1, 2, 0))
        else:
            masks.draw_field(ax, fields["stage4"][i], decades=2)
        ax.plot(*MIDDLE, "+", color="white", markersize=6)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=8)
show.figure(fig, colours=96, alt=(
    "Four drawn scenes and below each the field of its middle in stage 4 of the trained "
    "SegFormer and of the trained DeepLabV3+. SegFormer's fields are a patch around the middle "
    "that fades in other ways in each scene, in some of them with a brighter block far from it; "
    "DeepLabV3+'s are a wide cloud over most of the picture that differs less from scene to scene."))

# %% [markdown]
# Untrained, all three share most of their fields from scene to scene. Training takes SegFormer's
# apart and leaves DeepLabV3+'s nearly as they were: that is the direction of Figure 6, after a
# minute of training. (The colours end at a hundredth of the largest value here.)
#
# Before you thank attention, look at U-Net's number. Its fields come apart as well, *within* their
# square: ReLUs and max pooling, too, open and close paths by content. The number says that fields
# differ; only the pictures say where. SegFormer's patch around the middle stays, and far from it
# others come and go with the scene. DeepLabV3+'s wide cloud stays as a whole, and only brightens and
# fades in places. Whether a bright place lies on something that matters is another question.

# %% [markdown]
# ## The streak of the strips
#
# [Chapter 04](04_efficient_attention.ipynb) took equation 2 at its word: reshaped, 64 consecutive
# tokens merge into one key, a strip and not a square. Nothing in shapes or counts tells them apart.
# A field does. Ask *one key* of stage 1, at 256 px, which pixels it was made from:

# %%
torch.manual_seed(0)
strips = sl.create_model("segformer_b0", num_classes=11, attention=StripReduction).eval()


def strip_key_field(model, pixel):
    """Field of the first block's key that the token over `pixel` goes into, in stage 1."""
    x = noise[:1].clone().requires_grad_()
    stage = model.encoder.stages[0]
    tokens = stage.blocks[0].norm1(stage.patch_embed(x))                 # (1, h, w, C)
    attention = stage.blocks[0].attention
    token = pixel[0] // 4 * tokens.shape[2] + pixel[1] // 4
    keys = attention.k(tokens.reshape(1, -1, attention.reduction * tokens.shape[-1]))
    keys[0, token // attention.reduction].relu().sum().backward()
    gradient = x.grad.abs().sum((0, 1)).double().numpy()
    return ReceptiveField(gradient / gradient.sum(), "key", "sum of ReLU", pixel)

# %%
path = "encoder.stages.0.blocks.0.attention.reduce"
keys = {"squares": receptive_field(fresh, noise[:1], path, pixel=(144, 144)),
        "strips": strip_key_field(strips, (144, 144))}
for name, field in keys.items():
    rows, columns = field.extent(0.5)
    print(f"{name}: half of the mass in {rows} rows, {columns} columns; "
          f"anisotropy {field.anisotropy(0.5):.1f}")
assert keys["squares"].anisotropy() < 1.5 and keys["strips"].anisotropy() > 10

# %%
fig = show.grid([masks.heat(masks.decades_below(f), -3, 0) for f in keys.values()],
                ["a key of stage 1: squares", "a key of stage 1: strips"], columns=2, cell=2.4)
show.figure(fig, colours=64, alt=(
    "The fields of one key of stage 1, by squares and by strips. By squares a bright block of "
    "about 35 by 35 pixels; by strips a bright line, seven pixels high, across the whole width "
    "of the picture."))

# %% [markdown]
# A key is made of about 35 × 35 pixels (8 × 8 tokens of stride 4, with overlapping windows), or of a
# line right across the picture: a **streak**, and `anisotropy` says how long. Now the whole network,
# each stage's field, both reductions, untrained:

# %%
for layer in ("stage1", "stage2", "stage3", "stage4"):
    pair = [receptive_field(net, noise[:2], layer, pixel=(128, 128)).anisotropy(0.5)
            for net in (fresh, strips)]
    print(f"{layer}: anisotropy {pair[0]:.1f} with squares, {pair[1]:.1f} with strips")

# %% [markdown]
# No streak. A token asks *all* keys, a fresh one all alike, and all strips together are the whole
# picture, as all squares are. The streak is in each key, not in their sum. Only when attention
# chooses among the keys can strips show in the network's field, so don't expect a horizontal smear
# in every picture of the report's network, and don't take a round field as proof of squares. Look at
# a key.

# %% [markdown]
# ## What attention maps don't show
#
# [Chapter 04](04_efficient_attention.ipynb) laid attention weights over pixels: every key's weight
# on the 32 × 32 pixels that it was merged from. It ended with a warning. Here are three numbers for
# it.
#
# ### A key is not its square
#
# In stages 1, 2 and 3 every key stands for a square of 32 × 32 px: 8 × 8, 4 × 4 and 2 × 2 tokens. How
# much of what the key was made from lies in its square?

# %%
square = slice(128, 160)
for stage in (1, 2, 3):
    path = f"encoder.stages.{stage - 1}.blocks.0.attention.reduce"
    field = receptive_field(fresh, noise, path, pixel=(144, 144))
    share = field.map[square, square].sum()
    print(f"stage {stage}: {share:.0%} of a key's mass lies in its square")

# %% [markdown]
# In stage 1 seven eighths: lifting the weight back to the square is fair. In stage 3 about half. By
# then each token has seen its neighbours and, faintly, everything. A bright square says "this key
# was asked", not "this is where the answer came from".
#
# ### Rollout
#
# *Attention rollout* (Abnar and Zuidema, 2020) wants to mend that: follow the weights through all
# blocks. Each block's matrix, averaged over the heads, is mixed half and half with the identity for
# the residual path, and the matrices are multiplied. For shortened keys, share each key's weight out
# among its tokens first:

# %%
def token_weights(attention, tokens):
    """tokens (1, h, w, C) -> (N, N): weight of every token for every token, mean of the heads."""
    (h, w), s = tokens.shape[1:3], attention.stride
    q, k, _ = attention.queries_keys_values(tokens)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).mean(1)[0]   # (N, N / R)
    squares = weights.view(-1, h // s, w // s).repeat_interleave(s, 1).repeat_interleave(s, 2)
    return squares.flatten(1) / s**2


@torch.no_grad()
def rollout(model, image, stage):
    """(N, N): the attention of a stage's blocks, multiplied; the residual path is half of each."""
    kept = []
    blocks = model.eval().encoder.stages[stage - 1].blocks

    def keep(attention, args):
        kept.append(token_weights(attention, args[0]))

    hooks = [block.attention.register_forward_pre_hook(keep) for block in blocks]
    model.encoder(sl.preprocess(image[None]))
    for hook in hooks:
        hook.remove()
    total = torch.eye(len(kept[0]))
    for weights in kept:
        total = (weights + torch.eye(len(weights))) / 2 @ total
    return total

# %%
segformer, scene = trained["SegFormer"], scenes[3]
rolled = rollout(segformer, scene, stage=3)
torch.testing.assert_close(rolled.sum(1), torch.ones(len(rolled)))
print(tuple(rolled.shape), "every row sums to 1")

# %% [markdown]
# 144 tokens in stage 3, and for each the weights of all 144. Now cut a wire: in the last block of stage
# 3 set the attention's output map `proj` to zero. Whatever attention gathers there, nothing of it goes
# on.
#
# **Predict, then run.** What do rollout and receptive field say of the cut?
#
# - A. Both change.
# - B. The field changes, rollout doesn't.
# - C. Rollout changes, the field doesn't.

# %%
cut = copy.deepcopy(segformer)
with torch.no_grad():
    for weight in cut.encoder.stages[2].blocks[-1].attention.proj.parameters():
        weight.zero_()
before, after = (receptive_field(net, scene[None], "stage3", MIDDLE).map
                 for net in (segformer, cut))
print("rollout has changed:  ", not torch.equal(rollout(cut, scene, stage=3), rolled))
print("the field has changed:", bool(abs(before - after).sum() > 0.01))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why?* Rollout multiplies *weights*. It never looks at what is done with the values that were
# fetched: not at the values themselves, not at `proj`, not at Mix-FFN with its convolution, which
# moves things between tokens too. For the residual path it assumes one half, whatever the truth.
#
# </details>
#
# A gradient is that *of* something: of this class at this pixel. Rollout has no such question, it
# has one map for all classes.

# %% tags=["nbval-ignore-output"]
late = Probe(segformer, scene[None], ["stage3", "decoder"])
classes = [late("decoder", MIDDLE, f"logit {k}").map for k in (0, 1, 5)]
print(f"fields of three classes share {overlap(classes):.2f} (1: all the same)")
place = MIDDLE[0] // 16 * 12 + MIDDLE[1] // 16
asked = sl.analysis.attention_map(segformer, scene, "stage3.block2", MIDDLE).mean(0)
rollout_map = rolled[place].view(12, 12).repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
panels = {"attention, last block": asked, "rollout, stage 3": rollout_map,
          "field, stage 3": late("stage3", MIDDLE).map}

# %% tags=["nbval-ignore-output"]
fig = show.grid([scene, *(masks.heat(masks.decades_below(p, 2), -2, 0) for p in panels.values())],
                ["the scene", *panels], columns=4, cell=1.7)
for ax in fig.axes:
    ax.plot(*MIDDLE, "+", color="white", markersize=7)
show.figure(fig, colours=160, alt=(
    "A drawn scene and three maps of its middle in stage 3, each over two powers of ten: the "
    "attention of the last block, a mosaic of squares of 32 pixels with no special place for the "
    "middle; rollout, a dimmer mosaic with one bright token next to the middle; the receptive "
    "field, a bright fine-grained patch around the middle."))

# %% [markdown]
# Three answers to three questions. Attention: which keys did this token take from, in this block?
# Rollout: the same through the stage, if nothing but attention moved anything. The field: which
# pixels would change the result? Only the last is about everything between the pixels and the
# place, and it too is local: it says what a *small* change would do, from where the picture is now.
# (The fields of three classes share most of their mass here: the question *can* be asked, but after
# so short a training the answers differ little.)

# %% [markdown]
# ## Look for yourself
#
# If the notebook is running: choose network, layer and pixel. The square holds half of the mass; the
# last panel is the network's mask of the scene. Tab goes from control to control; the space bar presses
# a button, the arrow keys move a slider.

# %% tags=["nbval-ignore-output"]
shown = {f"{name}, trained": trained[name] for name in NAMES}
shown["SegFormer, untrained"] = untrained["SegFormer"]
probes = {name: Probe(model, scene[None], LAYERS_OF[name.split(",")[0]])
          for name, model in shown.items()}
labels = {name: model.predict(scene[None])[0] for name, model in shown.items()}
widgets.erf_explorer(probes, scene, labels, val_set.palette, val_set.classes)

# %% [markdown]
# Try a place near the rim of a thing, then one in the sky. Then go through the layers of one network; at
# its last layer change the network. And compare two masks of the scene, SegFormer's left of the line
# and DeepLabV3+'s right of it:

# %% tags=["nbval-ignore-output"]
names = ("SegFormer, trained", "DeepLabV3+, trained")
widgets.mask_slider(*(masks.overlay(scene, labels[name], val_set.palette) for name in names), names)

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. The field of any network (15 minutes)
#
# The definition for any network that gives a map (B, C, h, w): sum of the ReLU of the channels at place
# (row, column) of the *output map*, gradient by the pixels, absolute value, colours added up, each
# picture divided by its sum, mean over the pictures.
#
# <details><summary>Hint</summary>
#
# `x = images.clone().requires_grad_()`, then run the network on `x`; after `backward()` the gradient
# is in `x.grad`.
#
# </details>
# <details><summary>Help: "grad can be implicitly created only for scalar outputs"</summary>
#
# `backward` wants one number. The pictures don't touch each other, so their sum will do: each picture's
# gradient is its own.
#
# </details>

# %% tags=["exercise"]
def my_field(network: nn.Module, images: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """images (B, 3, H, W) -> (H, W), sum 1."""
    # SOLUTION
    x = images.clone().requires_grad_()
    network(x)[:, :, row, column].relu().sum().backward()
    maps = x.grad.abs().sum(1)
    return (maps / maps.sum((1, 2), keepdim=True)).mean(0)
    # END SOLUTION


checks.erf_map(my_field)

# %% [markdown] tags=["exercise"]
# ### 2. The square that holds half (15 minutes)
#
# The side in px of the smallest square, centred on `pixel`, that holds `share` of the field's sum. Sides
# are odd: 1, 3, 5 and so on. Where the square reaches over the border, its side counts in full.
#
# <details><summary>Hint</summary>
#
# A pixel is in the square of reach $r$ if neither its row nor its column is more than $r$ away. Let $r$
# grow from 0, and mind rounding: compare with `share - 1e-9`.
#
# </details>
# <details><summary>Help: an index below zero</summary>
#
# A slice `field[row - r:row + r + 1]` goes wrong where `row - r` is negative: `max(0, row - r)`.
#
# </details>

# %% tags=["exercise"]
def my_side(field: torch.Tensor, pixel: tuple[int, int], share: float) -> int:
    """field (H, W), sum 1 -> px."""
    # SOLUTION
    row, column = pixel
    for r in range(max(field.shape)):
        square = field[max(0, row - r):row + r + 1, max(0, column - r):column + r + 1]
        if square.sum() >= share - 1e-9:
            return 2 * r + 1
    # END SOLUTION


checks.erf_side(my_side)

# %% [markdown] tags=["exercise"]
# ### 3. Steps that grow (10 minutes)
#
# The closed form for box filters with strides. A box of $K$ pixels has variance $(K^2 - 1) / 12$, in
# units of the step at which its layer works: the product of all strides *before* it.
#
# <details><summary>Hint</summary>
#
# Lengths multiplied by a step multiply the variance by the step squared.
#
# </details>
# <details><summary>Help: a little too large</summary>
#
# A layer's own stride makes the steps of the layers behind it longer, not its own.
#
# </details>

# %% tags=["exercise"]
def my_spread(layers: list[tuple[int, int]]) -> float:
    """Layers of (kernel, stride) -> standard deviation of the field of one place, in px."""
    # SOLUTION
    variance, step = 0.0, 1
    for kernel, stride in layers:
        variance += step**2 * (kernel**2 - 1) / 12
        step *= stride
    return variance**0.5
    # END SOLUTION


checks.erf_spread(my_spread)

# %% [markdown] tags=["exercise"]
# ### 4. A SegFormer that keeps to itself (15 minutes)
#
# How much of the field of an untrained SegFormer is owed to attention? Take it away. Write an attention
# in which every token sees itself only, and build a SegFormer-B0 for 5 classes with it, through
# `sl.create_model(..., attention=...)`. The check measures the finished network's field: stage 1 may
# see 23 × 23 px (the 7 × 7 window, and a 3 × 3 convolution of step 4 in each of two blocks) and no
# more.
#
# The network calls your class as `OwnToken(dim, heads, stride)`. Not tested: what is done to the token.
#
# <details><summary>Hint</summary>
#
# `nn.Linear` works on the last axis and leaves the others alone.
#
# </details>
# <details><summary>Help: the check finds tokens that moved</summary>
#
# A mean, a softmax over tokens or a convolution connects tokens. Only maps of the last axis don't.
#
# </details>

# %% tags=["exercise"]
class OwnToken(nn.Module):
    """(B, H, W, C) -> same; each token sees itself only."""

    def __init__(self, dim: int, heads: int, stride: int):
        super().__init__()
        # SOLUTION
        self.proj = nn.Linear(dim, dim)
        # END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SOLUTION
        return self.proj(x)
        # END SOLUTION


def own_token_segformer() -> nn.Module:
    """A SegFormer-B0 for 5 classes with OwnToken in every block."""
    # SOLUTION
    return sl.create_model("segformer_b0", num_classes=5, attention=OwnToken)
    # END SOLUTION


checks.own_token_model(own_token_segformer())

# %% [markdown]
# ## The package's version
#
# The package's function is a mean over a `Probe`'s answers. A `Probe` runs the network once and keeps
# the outputs of the layers; each question is then one backward pass:

# %%
print(inspect.getsource(Probe.__call__))

# %% [markdown]
# The same lines, with care for sizes, names and silent places. Equal for every stage and another
# pixel:

# %%
for stage in (1, 2, 3, 4):
    mine = field_of(fresh, noise, stage, pixel=(64, 160))
    theirs = receptive_field(fresh, noise, f"stage{stage}", pixel=(64, 160))
    np.testing.assert_allclose(mine, theirs.map, rtol=1e-3, atol=1e-9)
    print(f"stage {stage}: equal, sum {theirs.map.sum():.3f}")

# %% [markdown]
# ## What the paper says, what the code does
#
# - **Figure 3** is a mean over 100 Cityscapes pictures, of four stages and head; the zoom boxes are
#   those of stage 4 and head. Not stated: which number is differentiated, whether its absolute
#   value is taken, which class, the size of the pictures, the scale of colours. The authors
#   published no code for it ([issue 5 of the released code](https://github.com/NVlabs/SegFormer/issues/5)).
# - **Local first, non-local in stage 4, both in the head.** So section 3.2 reads the figure: lower
#   stages act like convolutions, stage 4 sees far (DeepLabV3+'s doesn't), and the head adds a
#   strong local part. The order from stage to stage and the two parts of the head are in our maps
#   too. That DeepLabV3+ sees less in stage 4 is not: it depends on the size of the picture.
# - **Figure 6**: fields of single pictures follow the content. A number for it is above.
# - **Luo and others** show the bell and the root on networks with random weights, and that training
#   makes the field larger. Ours did so a little in the last stages of SegFormer and DeepLabV3+ and
#   much in U-Net's head, and the opposite in U-Net's last stage and in the two other heads.
#
# Sources: SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203); Luo and others 2016,
# [arXiv:1701.04128](https://arxiv.org/abs/1701.04128); RepLKNet,
# [arXiv:2203.06717](https://arxiv.org/abs/2203.06717); attention rollout,
# [arXiv:2005.00928](https://arxiv.org/abs/2005.00928).

# %% [markdown]
# ## Pitfalls
#
# - No `eval()`: dropout and dropped paths make another network of each pass.
# - The plain sum of channels behind a fresh layer norm: a map of rounding errors.
# - Asking stage 4 in the middle of its square instead of at a multiple of 32: fields look larger.
# - `log(g + 1)` without a fixed scale: the verdict depends on the unit.
# - No untrained control: what was there before gets the credit of training.
# - Two networks at two sizes of pictures: areas are shares of the picture, so state the size and give
#   sides in px as well.

# %% [markdown]
# ## In short
#
# - Effective receptive field: the absolute gradient of one number of one place by every pixel, each
#   picture divided by its sum.
# - Does SegFormer use more? Here its last stage has no larger field than U-Net's, and DeepLabV3+'s is
#   the largest; pictures and training are small. What it has is some gradient from everywhere,
#   from stage 1 on.
# - Convolutions see a bell whose width grows with the root of the depth. Strides and dilation make
#   it wide, depth doesn't.
# - SegFormer has support everywhere from its first block, and most of its mass near by. Training
#   decides about the rest.
# - Compare by measures that don't depend on the gradient's scale, with an untrained control.
# - Attention maps and rollout show who was asked; only a gradient shows what it changed.

# %% [markdown]
# ## What people ask
#
# **How is the receptive-field figure of the paper made?** It isn't known, see above. This chapter's
# way is one that answers the same question, with every choice stated.
#
# **Which layer is the "head"?** In the paper's caption the decoder. Here `"decoder"` is the decoder's
# output, the class scores at 1/4 of the size.
#
# **ReLU or absolute value of the gradient?** RepLKNet's script takes the positive part, `field_of` the
# absolute value. A pixel that lowers the score matters as well.
#
# **Why does the result change with the size of the picture?** Global keys: the weight is shared out
# over more keys, and zero padding is further away. Areas are shares of the picture on top of that.
#
# **Why can an untrained network look larger than a trained one?** Nothing has taught it yet which
# paths to leave out. Here it was so for two heads of three; the last stages changed little. A
# large field is not a good in itself.
#
# **Can the weights of somebody's SegFormer be looked at like this?** Yes:
# `sl.SegFormer.from_pretrained(...)`, then the same calls; or `segformer-lite erf` on files.

# %% [markdown]
# ## Next
#
# You can see now what a network looks at. Take the runs that you train in other chapters, and your
# own pictures, and look: `segformer-lite erf runs/<date>-... photo.jpg --layer stage4`. [Chapter
# 12](12_robustness.ipynb) makes the pictures worse, and asks what is left of the masks.
