# %% [markdown]
# # 01 · Name every pixel: what segmentation is, how it is scored, how it is enlarged
#
# About 45 minutes to read and run, 65 more for the exercises. The code itself takes about ten
# seconds on one CPU core and about 1 GB of memory. No GPU is needed, and the modes fast and
# full are the same here. If the sample has never been drawn on this machine, that takes a
# quarter of a minute more, once.

# %% [markdown]
# **What you build.** Five answers to "what is in this picture?" out of one annotation file; the
# scores that judge such answers, up to `PanopticQuality`; and a transposed convolution as a
# matrix.
#
# **What you learn.**
#
# - what classification, detection, semantic, instance and panoptic segmentation say, and what each
#   leaves out;
# - pixel accuracy, IoU, Dice, boundary IoU and PQ, on drawings small enough to count;
# - for each of them a case in which it misleads;
# - nearest, bilinear, unpooling, transposed convolution: four ways from a small map to a large one;
# - what a transposed convolution is, whether it undoes a convolution, and where checkerboards come
#   from.
#
# **What you need.** Tensors. What a convolution does helps in the last third. No earlier chapter.

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch
from pycocotools import mask as coco_mask

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.show import masks

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("decoder", "mask"))

# %% [markdown]
# The end of the map is lit. What is that mask, when is it a good one, and how does a decoder get
# from maps as small as 1/32 of the picture back to its full size? All of this is older than
# SegFormer, and everything later is measured with it.

# %% [markdown]
# ## The question
#
# *What is in this picture?* can be answered in five ways. **What does each of them say, what does
# it leave out, and how do you put a number on a wrong answer without fooling yourself?**
#
# | in papers | here | meaning |
# |---|---|---|
# | ground truth | `label` | what is right |
# | prediction | `prediction` | what a network says |
# | $TP$, $FP$, $FN$ | both, prediction only, label only | pixels, or segments, by who claims them |
# | $N_{cls}$ | `num_classes` | number of classes, the background among them |
# | void | 255 | "nobody says": counts nowhere |
# | $K$, $S$, $P$ | `kernel`, `stride`, `padding` | of a convolution, in the last third |

# %% [markdown]
# ## One file, five answers
#
# The course draws its own little scenes and stores them exactly as the COCO data set does: pictures
# in a folder, and one JSON file with everything that was marked in them.

# %% tags=["nbval-ignore-output"]
coco = sl.data.open_dataset("sample-coco")
print(coco)

# %%
root = sl.data.named_folder("sample-coco")
content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
info = next(image for image in content["images"] if image["id"] == 555531)
annotations = [a for a in content["annotations"] if a["image_id"] == info["id"]]
name_of = {category["id"]: category["name"] for category in content["categories"]}
height, width = info["height"], info["width"]
for a in annotations:
    print(f"{name_of[a['category_id']]:7s} crowd {a['iscrowd']}  area {a['area']:5d}  box {a['bbox']}")

# %% [markdown]
# Seven annotations, one per line: a category, the number of pixels, a box (x, y, width, height) and
# the outline, which is not printed here. One is a *crowd*: many people, marked as one region,
# because nobody outlined them singly.
#
# **Classification** asks only which categories occur:

# %%
print(sorted({name_of[a["category_id"]] for a in annotations}))

# %% [markdown]
# **Detection** adds a box around each object. A box is cheap to draw, and generous. How much of a
# box is its object?

# %%
objects = [a for a in content["annotations"] if not a["iscrowd"]]
filled = [a["area"] / (a["bbox"][2] * a["bbox"][3]) for a in objects]
print(f"{len(objects)} boxes: on average {np.mean(filled):.0%} of a box is the object")

# %% [markdown]
# **Instance segmentation** replaces the box by the pixels. pycocotools, COCO's own library, decides
# which pixels lie inside an outline ([chapter 08](08_data.ipynb#paint) opens that box). The map below
# gives every object a number, the largest first, so that small things in front stay visible. Crowd
# pixels get 255.

# %%
def region(annotation):
    """The pixels of one annotation, bool (H, W)."""
    runs = coco_mask.frPyObjects(annotation["segmentation"], height, width)
    runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return torch.from_numpy(coco_mask.decode(runs).astype(bool))


instances = torch.zeros(height, width, dtype=torch.int64)  # 0: no object
things = {}  # number -> category id
for a in sorted(annotations, key=lambda a: (not a["iscrowd"], -a["area"])):
    number = 255 if a["iscrowd"] else len(things) + 1
    instances[region(a)] = number
    if not a["iscrowd"]:
        things[number] = a["category_id"]
print({number: name_of[category] for number, category in things.items()})

# %% [markdown]
# **Semantic segmentation** forgets the numbers and keeps the class. That is one look-up per pixel,
# and the result is the label map that this course trains on:

# %%
class_of_number = torch.zeros(256, dtype=torch.int64)
class_of_number[255] = 255
for number, category in things.items():
    class_of_number[number] = coco.label_of_category[category]
semantic = class_of_number[instances]

position = coco.names.index(info["file_name"])
assert np.array_equal(semantic, coco.read_mask(position))
print("classes in the map:", [coco.classes[c] for c in semantic.unique() if c < 255])

# %% [markdown]
# **Panoptic segmentation** ("seeing all") leaves no pixel out. Boats and birds can be counted: they
# are *things*. Sky, sea and sand cannot: they are *stuff*. An instances file has no stuff; COCO
# keeps it in a second file. Here three bands will do. Stuff goes below, things above, and each
# pixel gets exactly one segment:

# %%
def merge(bands, instances):
    """Stuff as bands of rows, things on top: ids (H, W), things 1.., stuff 11.., void 255."""
    ids = torch.zeros_like(instances)
    for number, (top, bottom) in enumerate(bands.values(), start=11):
        ids[top:bottom] = number
    return torch.where(instances > 0, instances, ids)


bands = {"sky": (0, 55), "sea": (55, 123), "sand": (123, height)}
panoptic = merge(bands, instances)
segments = {number: name_of[category] for number, category in things.items()}
segments |= dict(enumerate(bands, start=11))
for number, name in segments.items():
    print(f"segment {number:2d} {name:7s} {(panoptic == number).sum():6d} px")
print(f"void               {(panoptic == 255).sum():6d} px, together {panoptic.numel()}")

# %% [markdown]
# The numbers add up to the whole picture. (The person has one pixel less than the file says: a file
# stores outlines, and outlines round.) And all five, side by side; first, colours for ids:

# %%
def in_colours(ids, colours):
    """An id map as (H, W, 3); ids without a colour are light grey, void is white."""
    table = np.full((256, 3), 0.93)
    table[255] = 1
    for number, colour in colours.items():
        table[number] = to_rgb(colour)
    return table[ids]


tints = {1: "blue", 2: "sky", 3: "orange", 4: "green", 5: "red", 6: "pink"}
thing_colours = {number: show.COLOURS[tint] for number, tint in tints.items()}
all_colours = thing_colours | {11: "#DCEBF5", 12: "#9DB4C0", 13: "#D9CBB0"}

# %%
picture = masks.as_picture(coco[position][0])
panels = {"the picture": picture, "classification\nbird, boat, person": picture, "detection": picture,
          "semantic": masks.colourise(semantic, coco.palette),
          "instance": in_colours(instances, thing_colours),
          "panoptic": in_colours(panoptic, all_colours)}
fig = show.grid(list(panels.values()), list(panels), columns=3, cell=2.3)
for a in annotations:
    if not a["iscrowd"]:
        x, y, w, h = a["bbox"]
        box = plt.Rectangle((x - 0.5, y - 0.5), w, h, fill=False, ec=show.COLOURS["yellow"], lw=1.5)
        fig.axes[2].add_patch(box)
for ax, ids in zip(fig.axes[4:], [instances, panoptic]):
    for number in set(ids.unique().tolist()) - {0, 255}:
        y, x = (ids == number).nonzero().float().median(0).values.tolist()
        x += 13 * ((ids == number).sum() < 100)  # beside what is small
        ax.text(x, y, number, fontsize=7, ha="center", va="center",
                bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8})
show.figure(fig, alt=(
    "Six panels of one drawn beach: three boats that overlap, two birds, a person and a crowd. The "
    "picture; the same with three words as its title; with a yellow box around each object; the "
    "semantic map, in which the boats are one area of one colour; the instance map with six "
    "numbered objects on grey; the panoptic map, where sky, sea and sand are filled as well. The "
    "crowd is white in all three maps."))

# %% [markdown]
# Follow the boats. The word says that there is at least one. Three boxes count them, and overlap.
# The semantic map has their outline, and one class for all of them. The instance map knows their number
# as well, and says nothing about the grey rest. The panoptic map has one number at every pixel; only
# the crowd is white, because the file does not say who is who.
#
# SegFormer is a network for the semantic map.

# %% [markdown]
# ### The way back
#
# From the instance map to the semantic map was one look-up.
#
# **Predict, then run.** Can you get the objects back by numbering the connected areas of each
# class?
#
# - A. Yes: an object is a connected area.
# - B. Nearly always: things rarely touch their own kind.
# - C. Often not: objects touch, and one that stands behind another comes in pieces.

# %%
def count_regions(label_map):
    """Class -> number of its connected areas."""
    return {c: sl.evaluation.metrics.connected_components(label_map == c).max()
            for c in np.unique(label_map) if c not in (0, 255)}


print("here:", {coco.classes[c]: int(n) for c, n in count_regions(semantic.numpy()).items()})
same = []
for i in range(0, len(coco), 3):
    labels = [coco.label_of_category[a["category_id"]] for a in coco.annotations[i] if not a["iscrowd"]]
    same.append(count_regions(coco.read_mask(i)) == {c: labels.count(c) for c in set(labels)})
print(f"right number of every class: {np.mean(same):.0%} of {len(same)} pictures")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Three boats became one area, and two birds came in three pieces. In two pictures of three
# the numbers are wrong. *Why it matters.* A semantic map answers "how much of the picture is boat",
# never "how many boats". If your question has a number in it, you need instances.
#
# </details>
#
# Every arrow between the five answers goes one way only: from panoptic you can compute all the
# others, from the others never the panoptic map.

# %% [markdown]
# ## Four counts on squared paper
#
# Now the scores. Take one class at a time: each pixel is claimed by the label, by the prediction,
# by both or by neither. Drawings are written as digits, and shown so that you can count.

# %%
KINDS = {"both": show.COLOURS["green"], "prediction only": show.COLOURS["orange"],
         "label only": show.COLOURS["blue"], "neither": "#E8E8E8"}


def drawing(rows):
    """"0110 0110" -> int64 (2, 4)."""
    return torch.tensor([[int(digit) for digit in row] for row in rows.split()])


def draw_pair(ax, prediction, label, title=""):
    """Two masks (H, W) as four colours; small drawings on squared paper."""
    prediction, label = prediction > 0, label > 0
    kind = torch.where(label, torch.where(prediction, 0, 2), torch.where(prediction, 1, 3))
    ax.imshow(kind, cmap=ListedColormap(list(KINDS.values())), vmin=0, vmax=3)
    lines = [np.arange(0.5, n - 1) if n <= 20 else [] for n in kind.shape]
    ax.set(yticks=lines[0], xticks=lines[1], xticklabels=[], yticklabels=[])
    ax.set_title(title, fontsize=8)
    ax.grid(color="white", lw=1)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_anchor("N")


def name_kinds(fig):
    handles = [Patch(color=colour, label=kind) for kind, colour in KINDS.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)


# %%
label = drawing("00000000 01111000 01111000 01111000 01111000 00000000 00000000 00000000")
moved = drawing("00000000 00111100 00111100 00111100 00111100 00000000 00000000 00000000")
blind = torch.zeros_like(label)
tiny = drawing("00000000 00000000 00000000 00000000 00000000 00000110 00000110 00000000")
fig, axes = plt.subplots(1, 3, figsize=(6.4, 2.5))
draw_pair(axes[0], label, label, "all right")
draw_pair(axes[1], moved, label, "one pixel to the right")
draw_pair(axes[2], blind, tiny, "nothing found")
name_kinds(fig)
show.figure(fig, alt=(
    "Three drawings of 8 by 8 pixels. Left, a square of 4 by 4 pixels, claimed by both. Middle, "
    "the predicted square is one pixel too far right: 12 pixels both, a column of 4 prediction "
    "only, a column of 4 label only. Right, a label of 2 by 2 pixels and an empty prediction."))

# %% [markdown]
# Green is what both claim, and there you want everything to be. Orange is claimed wrongly, blue is
# missed. In the middle: 12 green, 4 orange, 4 blue, and 44 grey.
#
# With any number of classes all these counts fit into one table, the **confusion matrix**: row =
# label, column = prediction.

# %%
def count_pairs(prediction, label, num_classes):
    """Confusion matrix, int64 (num_classes, num_classes): row = label, column = prediction."""
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for row, column in zip(label.flatten().tolist(), prediction.flatten().tolist()):
        if row != 255:
            matrix[row, column] += 1
    return matrix


count_pairs(moved, label, 2)

# %% [markdown]
# The diagonal is right. From the matrix come three scores:
#
# - **pixel accuracy**: the diagonal over everything, $(12 + 44) / 64$;
# - **IoU** (intersection over union, Jaccard index) of a class: green over green, orange and blue,
#   $12 / (12 + 4 + 4)$. Its mean over the classes is **mIoU**;
# - **Dice** (F1 score): twice green over both areas, $2 \cdot 12 / (16 + 16)$.

# %%
def scores(matrix):
    """Pixel accuracy, and IoU and Dice of each class."""
    both, label, prediction = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou, dice = both / (label + prediction - both), 2 * both / (label + prediction)
    return (both.sum() / matrix.sum()).item(), iou, dice


def report(name, prediction, label, num_classes=2):
    accuracy, iou, dice = scores(count_pairs(prediction, label, num_classes))
    print(f"{name:24s} accuracy {accuracy:.3f}  IoU {iou.numpy()}  Dice {dice.numpy()}")


report("all right", label, label)
report("one pixel to the right", moved, label)

# %% [markdown]
# IoU and Dice have two entries each, background and square. 0.6 for a square that is one pixel off: IoU
# is strict.

# %% [markdown]
# ### Pixel accuracy and small things
#
# **Predict, then run.** "Nothing found" (right drawing) against "one pixel to the right" (middle).
# Who has the higher pixel accuracy?
#
# - A. The moved square: it found something.
# - B. The blind one.
# - C. They are equal.

# %%
report("one pixel to the right", moved, label)
report("nothing found", blind, tiny)

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** 60 of 64 pixels are right without looking. *Why:* the grey pixels count as successes, and
# when things are small nearly all pixels are grey. IoU never counts grey, so it gives the blind
# answer its 0.
#
# </details>

# %% [markdown]
# ### IoU misleads about size
#
# A mask that is one pixel too wide all around, at five sizes:

# %%
def square(side, size=64, grow=0):
    """A centred square, bool (size, size), made larger by `grow` pixels on each side."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    low, high = (size - side) // 2 - grow, (size + side) // 2 + grow
    mask[low:high, low:high] = True
    return mask


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


for side in (2, 4, 8, 16, 32):
    print(f"side {side:2d}: IoU {iou(square(side, grow=1), square(side)):.2f}")

# %% [markdown]
# The same outline, the same care, and IoU goes from "useless" to "excellent". That is one side.
# The other: mIoU counts over a whole data set, and there large things drown small ones.

# %%
six = torch.zeros(16, 16, dtype=torch.int64)
six[1:11, 1:11] = 1
for corner in (1, 4, 7, 10, 13):
    six[13:15, corner:corner + 2] = 1
only_large = six.clone()
only_large[13:15] = 0
fig, ax = plt.subplots(figsize=(2.6, 2.4))
draw_pair(ax, only_large, six)
show.figure(fig, alt=(
    "A drawing of 16 by 16 pixels. A square of 10 by 10 pixels is claimed by both; in a row below "
    "it five squares of 2 by 2 pixels are label only."))
report("one of six found", only_large, six)

# %% [markdown]
# One object of six is found, and the IoU of the class is 0.833: 100 green pixels, 20 blue ones. So
# the course's reports also say how many *regions* were found, by size.

# %% [markdown]
# ### mIoU misleads when a class is absent
#
# Four classes, but this picture only has 0, 1 and 2. The prediction is right everywhere except for
# one pixel, which it calls class 3.
#
# **Predict, then run.** One pixel of 64 is wrong. What happens to the mean IoU? (The mean leaves out a
# class that is in neither map.)
#
# - A. It falls by about one 64th.
# - B. It falls by about a quarter.
# - C. Nothing: class 3 does not occur, so it is left out.

# %%
three = drawing("00000000 01100000 01100000 00000000 00002222 00002222 00002222 00000000")
stray = three.clone()
stray[0, 7] = 3
for name, prediction in {"all right": three, "one stray pixel": stray}.items():
    values = scores(count_pairs(prediction, three, 4))[1]
    means = values.nanmean(), values.nan_to_num(0).mean(), values.nan_to_num(1).mean()
    print(f"{name:16s} IoU {values.numpy()}  mean, 0/0 left out {means[0]:.3f}, as 0 {means[1]:.3f},"
          f" as 1 {means[2]:.3f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** A class that is predicted somewhere and labelled nowhere has IoU 0 / 1, and the mean over four
# classes loses a quarter. (Only where 0 / 0 counts as 0 hardly anything happens: that mean had lost the
# quarter before.)
#
# </details>
#
# A class that is in *neither* map gives 0 / 0, *not a number*, and there are three habits: leave
# it out, call it 0, call it 1. A perfect answer gets 1, 0.75 or 1 from them. The package leaves it
# out, as benchmark code usually does. This is also a reason to add up one matrix over the whole
# data set first: single pictures lack most classes, data sets hardly any.

# %% [markdown]
# ### When the background is ignored
#
# Pixels labelled 255 count nowhere. Some data sets say so of the whole background: "not annotated".
#
# **Predict, then run.** The background is labelled 255, and a prediction says class 1 at every
# pixel. What is the IoU of class 1?
#
# - A. 16 / 64: the square over everything claimed.
# - B. 1.
# - C. Not a number.

# %%
flood = torch.ones_like(label)
ignored = torch.where(label == 0, 255, label)
for name, truth in {"background labelled": label, "background ignored": ignored}.items():
    values = [scores(count_pairs(p, truth, 2))[1][1].item() for p in (flood, moved)]
    print(f"{name:20s} IoU of class 1: flood {values[0]:.2f}, moved square {values[1]:.2f}")
print(f"recall of the moved square: {((moved == 1) & (label == 1)).sum() / (label == 1).sum():.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(4.6, 2.5))
draw_pair(axes[0], flood, label, "labelled: 16 both, 48 orange")
draw_pair(axes[1], flood, label, "ignored: 16 both")
veil = np.ma.masked_where(label > 0, torch.ones(8, 8))
axes[1].imshow(veil, cmap=ListedColormap(["white"]))
name_kinds(fig)
show.figure(fig, alt=(
    "The flood, twice. Left, 16 green pixels in a field of 48 orange ones. Right, the background "
    "is ignored: the 48 pixels are white and only the green square is left."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** All orange pixels lie on the background, and the background does not count. What is left is
# green / (green + blue), and nothing is blue. Flooding is never punished, and the sloppy answer
# beats the careful one.
#
# </details>
#
# With the background ignored, and only one other class, the IoU of that class is the *recall*, the share
# of the label that was found. (Of several classes only the mix-ups among them are still punished.) This
# is a real trap: a setting made for data with unlabelled regions, used on data
# whose background is simply background. A *foreground mIoU* is something else: there the background
# is labelled, its wrong claims count, and only its own row is left out of the mean.

# %% [markdown]
# ### Dice misleads in two ways
#
# Dice ($D$) and IoU ($J$, for Jaccard) of one class say the same in other words: $D = 2J / (1 + J)$,
# never the smaller of the two. Their *means* may disagree. Network A is excellent at one class and
# poor at the other, B is middling at both:

# %%
pairs = {"A": np.array([0.90, 0.10]), "B": np.array([0.47, 0.47])}


def to_dice(j):
    return 2 * j / (1 + j)


for name, j in pairs.items():
    print(f"{name}: IoU {j}, mean {j.mean():.3f}   Dice {to_dice(j)}, mean {to_dice(j).mean():.3f}")

# %%
fig, ax = plt.subplots(figsize=(3.6, 2.7))
line = np.linspace(0, 1, 50)
ax.plot(line, to_dice(line), color="#999999")
for (name, j), colour in zip(pairs.items(), ["orange", "blue"]):
    ax.plot(j, to_dice(j), "o-", color=show.COLOURS[colour], lw=1)
    ax.plot(j.mean(), to_dice(j).mean(), "s", ms=8, color=show.COLOURS[colour], label=f"mean of {name}")
ax.set(xlabel="IoU", ylabel="Dice")
ax.legend(loc="lower right")
show.figure(fig, alt=(
    "Dice against IoU, a curve that bends upwards above the diagonal. The two classes of network A "
    "are far apart on it, and their mean lies on the straight line between them, well below the "
    "curve. The mean of B lies on the curve itself: further left, yet higher."))

# %% [markdown]
# The squares are the means: A is ahead by IoU (further right), B by Dice (higher). The curve is
# bent, so Dice forgives middling answers more than IoU does. Neither is wrong; but never compare a
# Dice with an IoU, nor a ranking by one with a ranking by the other.
#
# The second way is common in medicine. Score slice by slice, and give 1 to a slice where label and
# prediction are both empty:

# %%
slices = torch.zeros(10, 8, 8, dtype=torch.int64)
slices[4] = label  # the organ is in one slice of ten
nothing = torch.zeros_like(slices)
by_slice = [scores(count_pairs(p, s, 2))[2][1].nan_to_num(1).item() for p, s in zip(nothing, slices)]
whole = scores(count_pairs(nothing, slices, 2))[2][1].item()
print(f"predict nothing: Dice, mean of slices {np.mean(by_slice):.2f}, over the volume {whole:.2f}")

# %% [markdown]
# 0.90 for a network that never found the organ. Ask of every Dice: counted over what, and what is
# an empty slice worth?

# %% [markdown]
# ## Boundary IoU: only the rim counts
#
# The larger a thing is, the less its outline matters to IoU. **Boundary IoU** (Cheng et al., 2021)
# looks at the rim only: of each mask it keeps the band of $d$ pixels along the inner edge, and
# takes the IoU of the two bands. $d$ is 2 % of the picture's diagonal, at least 1.

# %%
def band(mask, d):
    """The pixels of a bool (H, W) mask at most d from its edge; the picture's edge is one, too."""
    outside = F.pad((~mask).float()[None, None], (d, d, d, d), value=1.0)
    return mask & (F.max_pool2d(outside, 2 * d + 1, stride=1)[0, 0] > 0)


def boundary_iou(prediction, label):
    d = max(1, round(0.02 * float(np.hypot(*label.shape))))
    return iou(band(prediction, d), band(label, d))


# %% [markdown]
# Max pooling over "outside" asks: is there an outside pixel within $d$? On squared paper, $d = 1$,
# a square of 8 × 8 and a prediction that lacks one column:

# %%
big = square(8, size=12)
cut = big.clone()
cut[:, 9] = False
fig, axes = plt.subplots(1, 2, figsize=(4.6, 2.6))
draw_pair(axes[0], cut, big, "the masks: 56 both, 8 blue")
draw_pair(axes[1], band(cut, 1), band(big, 1), "the bands: 20 both, 6 + 8 not")
name_kinds(fig)
show.figure(fig, alt=(
    "Left, a square of 8 by 8 pixels whose last column is label only. Right, the one-pixel bands of "
    "both: left, upper and lower sides agree in 20 pixels; on the right the two bands stand side by "
    "side, 6 pixels prediction only and 8 pixels label only."))
print(f"IoU {iou(cut, big):.3f}  boundary IoU {boundary_iou(cut, big):.3f}")

# %% [markdown]
# Left 56 of 64. Right the bands agree on three sides; on the fourth they stand next to each other
# and share nothing: 20 of 34. Now the experiment from above, one pixel too wide, at all sizes:

# %%
sides = range(2, 61, 2)
curves = {"IoU": [iou(square(s, grow=1), square(s)) for s in sides],
          "boundary IoU": [boundary_iou(square(s, grow=1), square(s)) for s in sides]}
fig, ax = plt.subplots(figsize=(4.6, 2.4))
for (name, values), style in zip(curves.items(), ["-", "--"]):
    ax.plot(sides, values, style, label=name)
ax.set(xlabel="side of the square, px", ylabel="score", ylim=(0, 1))
ax.legend()
show.figure(fig, alt=(
    "Two curves against the side of a square whose prediction is one pixel too wide. They are equal "
    "at a side of 2 pixels. IoU then rises towards 1, boundary IoU levels off near one third."))

# %% [markdown]
# IoU (solid) rises with size until the mistake cannot be seen any more. Boundary IoU (dashed) stays
# near one third: bands of 2 pixels, one pixel apart, share one pixel of three.

# %% [markdown]
# ### What the rim tells
#
# **Predict, then run.** A prediction is a picture frame: exactly the band, and nothing inside. What
# is its boundary IoU?
#
# - A. 0: a frame has an inner edge as well, and that is wrong.
# - B. About one half: the outer edge is right, the inner is wrong.
# - C. 1.

# %%
y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
radius, angle = torch.hypot(x, y), torch.atan2(y, x)
frame = band(square(40), 2)
cases = {"a rough outline": (radius < 24 + 1.5 * torch.sin(12 * angle).sign(), radius < 24),
         "4 px, moved by 1": (square(4).roll(1, 1), square(4)),
         "only the frame": (frame, square(40))}
fig, axes = plt.subplots(1, 3, figsize=(6.6, 2.8))
for ax, (name, (prediction, truth)) in zip(axes, cases.items()):
    values = f"IoU {iou(prediction, truth):.2f}, boundary {boundary_iou(prediction, truth):.2f}"
    draw_pair(ax, prediction, truth, f"{name}\n{values}")
    print(f"{name:17s} {values}")
name_kinds(fig)
show.figure(fig, alt=(
    "Three pictures of 64 by 64 pixels: a disc with a jagged prediction; a square of 4 pixels moved by one; a "
    "large square of which only a frame of two pixels is predicted. The titles hold the printed scores."))

# %% [markdown]
# Left, what boundary IoU is for: it sees the jagged rim that IoU hardly minds. Middle: a thing at
# most $2d$ wide is all band, so the two scores are the same.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Right, where it misleads: every pixel of the frame is within $d$ of some edge, so the
# frame's band is the frame, and so is the square's. The missing inside is not looked at.
#
# </details>
#
# *The cure* is in the authors' own code: where boundary IoU replaces IoU in a detection or
# panoptic score, it uses the smaller of the two.

# %% [markdown]
# ## Panoptic quality
#
# How right is a map of *segments*? First decide which predicted segment answers which labelled one.
# The rule: same class, and **IoU above one half**. Matched pairs are $TP$, predicted segments
# without a partner $FP$, labelled ones without a partner $FN$. Then
#
# $$\mathrm{PQ} = \frac{\sum_{TP} \mathrm{IoU}}{TP + \frac12 FP + \frac12 FN}
#   = \underbrace{\frac{\sum_{TP} \mathrm{IoU}}{TP}}_{\text{SQ: how well}} \times
#     \underbrace{\frac{TP}{TP + \frac12 FP + \frac12 FN}}_{\text{RQ: how many}}$$
#
# for each class, and the mean over classes. By hand, with three boats:

# %%
boats = drawing("1111000022 1111000022 1111003300 0000003300")
found = drawing("1110000222 1110000022 1110033000 0000033000")
colours = {1: show.COLOURS["blue"], 2: show.COLOURS["orange"], 3: show.COLOURS["green"]}
fig = show.grid([in_colours(boats, colours), in_colours(found, colours)], ["label", "prediction"],
                columns=2, cell=3)
for ax, ids in zip(fig.axes, [boats, found]):
    for row, column in ids.nonzero().tolist():
        ax.text(column, row, int(ids[row, column]), ha="center", va="center", color="white")
show.figure(fig, alt=(
    "Two drawings of 4 by 10 pixels with three numbered segments each. Label: segment 1 has 3 by 4 "
    "pixels, segments 2 and 3 have 2 by 2. Prediction: segment 1 lacks its right column, segment 2 "
    "has one pixel more, segment 3 lies one pixel too far left."))

# %% tags=["setup"]
def pairwise_iou(prediction, label):
    """IoU of every labelled with every predicted segment: (segments in label, in prediction).

    Both are id maps of one class; 0 is no segment, 255 in the label is void and counts nowhere.
    """
    prediction = torch.where(label == 255, 0, prediction)

    def one_row_each(ids):
        numbers = ids.unique()
        numbers = numbers[(numbers > 0) & (numbers < 255)]
        return (ids.flatten() == numbers[:, None]).float()  # (segments, H * W)

    p, g = one_row_each(prediction), one_row_each(label)
    both = g @ p.T
    return both / (g.sum(1)[:, None] + p.sum(1) - both)


# %%
pairwise_iou(found, boats)

# %% [markdown]
# Rows: the label's segments, columns: the prediction's. Count it: 9 of 12, 4 of 5, and 2 of 6. Two
# matches; the third boat, found one pixel too far left, counts as both a miss and a false alarm.
# $\mathrm{PQ} = (0.75 + 0.8) / (2 + \frac12 + \frac12)$:

# %%
by_hand = (9 / 12 + 4 / 5) / (2 + 1 / 2 + 1 / 2)
print(f"SQ {(9 / 12 + 4 / 5) / 2:.3f} x RQ {2 / 3:.3f} = PQ {by_hand:.3f}")

# %% [markdown]
# ### Why one half?
#
# Because above one half nobody has to choose. Segments of one map share no pixel. IoU above one
# half means: the common pixels are more than half of the union, so more than half *of each of the
# two*. Two predictions cannot both hold more than half of one label.

# %%
strips = {"the label": "11111111", "two halves:\neach IoU 1/2": "22223333",
          "5 and 3:\n5/8 and 3/8": "22222333"}
fig, axes = plt.subplots(3, 1, figsize=(5, 2))
strip_colours = {1: "#BBBBBB", 2: show.COLOURS["blue"], 3: show.COLOURS["orange"]}
for ax, (name, text) in zip(axes, strips.items()):
    ax.imshow(in_colours(drawing(text), strip_colours))
    ax.set(xticks=np.arange(0.5, 7), xticklabels=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    ax.grid(color="white", lw=1)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
show.figure(fig, alt=(
    "Three strips of eight pixels. The label is one segment. Two predicted halves have IoU one half "
    "each. Of two predicted segments of five and three pixels only the longer has an IoU above one "
    "half."))

# %% [markdown]
# At exactly one half there can be a tie (second strip). Above, one of the two must be shorter
# (third). A check by chance, over three thousand random pairs of maps: the most partners that any
# segment gets.

# %%
generator = torch.Generator().manual_seed(0)


def random_strip():
    return (torch.rand(1, 12, generator=generator) < 0.35).cumsum(1) + 1


tables = [pairwise_iou(random_strip(), random_strip()) for _ in range(3000)]
rules = {"above 0.5": lambda t: t > 0.5, "0.5 or more": lambda t: t >= 0.5,
         "above 0.3": lambda t: t > 0.3}
for name, rule in rules.items():
    most = max(max(rule(t).sum(0).max(), rule(t).sum(1).max()).item() for t in tables)
    print(f"{name:12s} at most {most} partner{'s' if most > 1 else ''}")

# %% [markdown]
# ## The class
#
# Matches are found picture by picture, counts are added up over the data set, and the division
# comes last, as with the confusion matrix.

# %%
class PanopticQuality:
    """PQ of one class, counted over any number of pictures."""

    def __init__(self):
        self.iou, self.tp, self.fp, self.fn = 0.0, 0, 0, 0

    def add(self, prediction, label):
        """Count one picture: two id maps (H, W) of this class, 0 elsewhere, 255 void in the label."""
        table = pairwise_iou(prediction, label)
        match = table > 0.5  # at most one per row and column
        self.iou += table[match].sum().item()
        self.tp += match.sum().item()
        self.fp += (~match.any(0)).sum().item()
        self.fn += (~match.any(1)).sum().item()
        return self

    def result(self):
        """SQ, RQ, PQ; not a number where the class is in neither map."""
        weight = self.tp + self.fp / 2 + self.fn / 2
        rq = self.tp / weight if weight else float("nan")
        sq = self.iou / self.tp if self.tp else 0.0
        return sq, rq, sq * rq


values = PanopticQuality().add(found, boats).result()
assert np.isclose(values[2], by_hand)
print("SQ {:.3f}  RQ {:.3f}  PQ {:.3f}".format(*values))

# %% [markdown]
# ### On the beach
#
# There is no network in this chapter, so make a prediction by hand, with four mistakes: the two
# large boats are glued into one, the small bird is missed, the person is one pixel too wide all
# around, and the sea reaches four rows too far down.
#
# **Predict, then run.** Which mistake does the semantic IoU not see at all?
#
# - A. The missed bird: it has 43 pixels.
# - B. The glued boats.
# - C. The sea: four rows of so many.

# %%
guessed = instances.clone()
guessed[guessed == 2] = 1  # glued
guessed[guessed == 6] = 0  # missed
wider = F.max_pool2d((guessed == 3).float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
guessed[wider & (guessed == 0)] = 3
guessed[guessed == 255] = 0
guess = merge(bands | {"sea": (55, 127), "sand": (127, height)}, guessed)
fig = show.grid([in_colours(panoptic, all_colours), in_colours(guess, all_colours)],
                ["label", "prediction"], columns=2, cell=3)
show.figure(fig, alt=(
    "Label and prediction of the beach as panoptic maps. In the prediction the two large boats have "
    "one colour, the bird in the sky is missing, the person is a little wider, the sea ends lower, "
    "and the white crowd is filled with sea and sand."))

# %%
def of_class(ids, name):
    """The id map with all other segments set to 0; void stays."""
    keep = [number for number, its_name in segments.items() if its_name == name]
    return torch.where(torch.isin(ids, torch.tensor([*keep, 255])), ids, 0)


print("class    IoU    SQ     RQ     PQ")
quality = {}
for name in ("boat", "bird", "person", "sky", "sea", "sand"):
    p, g = of_class(guess, name), of_class(panoptic, name)
    quality[name] = PanopticQuality().add(p, g).result()
    both = iou((p > 0)[g != 255], (g > 0)[g != 255])
    print(f"{name:7s}", "  ".join(f"{v:.3f}" for v in (both, *quality[name])))
for kind, members in {"things": ("boat", "bird", "person"), "stuff": ("sky", "sea", "sand")}.items():
    print(f"PQ of {kind}: {np.mean([quality[name][2] for name in members]):.3f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** The semantic IoU of the boats is 1.000, and their PQ 0.641: one boat of three has no
# partner, and another is matched with a segment far too large. The bird is the reverse: 43 pixels
# cost a seventh of the IoU and a third of the PQ, because PQ counts birds, not pixels.
#
# </details>
#
# For stuff there is one segment per picture. Matched, SQ *is* the IoU and RQ is 1; not matched, both
# are 0.

# %% [markdown]
# ### PQ misleads at the cliff
#
# A predicted square slides over a labelled one, 24 px wide, in a picture of 64. Four of this chapter's
# five scores, all but pixel accuracy:

# %%
def slide(shift, side=24):
    """Prediction and label: the square moved right and down by `shift`, and in its place."""
    return square(side).roll((shift, shift), (0, 1)), square(side)


def four_scores(prediction, label):
    dice = 2 * (prediction & label).sum() / (prediction.sum() + label.sum())
    pq = PanopticQuality().add(prediction.long(), label.long()).result()[2]
    return {"IoU": iou(prediction, label), "Dice": dice.item(),
            "boundary IoU": boundary_iou(prediction, label), "PQ": pq}


shifts = range(0, 17)
table = [four_scores(*slide(s)) for s in shifts]
fig, ax = plt.subplots(figsize=(5, 2.7))
for name, style in {"Dice": "-", "IoU": "-", "boundary IoU": "--", "PQ": "o:"}.items():
    ax.plot(shifts, [row[name] for row in table], style, label=name, ms=4)
ax.axhline(0.5, color="#BBBBBB", lw=0.8, zorder=0)
ax.set(xlabel="px to the right and down", ylabel="score", xticks=range(0, 17, 2))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Four scores against the shift of a square. Dice lies above IoU and both fall evenly. Boundary "
    "IoU drops steeply within two pixels. PQ follows IoU down to one half and then jumps to zero "
    "between 4 and 5 pixels."))

# %%
for shift in (1, 2, 4, 5):
    print(f"{shift} px:", "  ".join(f"{name} {value:.2f}" for name, value in table[shift].items()))

# %% [markdown]
# PQ (dots) is IoU while there is a match, and 0 from the moment there is none: between 4 and 5 pixels
# it drops from 0.53 to nothing. A detector that gets all things almost right scores like one that
# sees nothing. Boundary IoU (dashed) has lost two thirds of its value after one pixel, and nearly all
# of it after two. Each score has its own idea of *near*.

# %% [markdown]
# ## Move the square
#
# The same as pictures: one function of shift and size.

# %%
def show_slide(shifts, sides):
    """One panel for each pair of shift and side; returns the figure."""
    across = max(4.4, 1.75 * len(shifts))  # inches
    fig, axes = plt.subplots(1, len(shifts), figsize=(across, 2.65), squeeze=False)
    for ax, shift, side in zip(axes[0], shifts, sides):
        pair = slide(shift, side)
        lines = [f"{name} {value:.2f}" for name, value in four_scores(*pair).items()]
        draw_pair(ax, *pair, "\n".join(lines))
    name_kinds(fig)
    return fig


fig = show_slide([1, 4, 1, 4], [32, 32, 8, 8])
show.figure(fig, alt=(
    "Four pictures of a square and its moved prediction with four scores each. A square of 32 pixels "
    "moved by 1 and by 4 pixels overlaps well; one of 8 pixels moved by 1 loses some overlap, and "
    "moved by 4 it keeps only a quarter of its area."))

# %% [markdown]
# The same two shifts, a large square and a small one. One pixel: the large square keeps an IoU of
# 0.88, the small one 0.62, and their boundary IoUs are nearly equal. Four pixels: only the small
# one has fallen off the cliff of PQ. If the notebook is running, look for the place where it falls:

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider, interact


def try_slide(shift, side):
    fig = show_slide([shift], [side])
    show.figure(fig, alt=f"A square of {side} px, a prediction moved by {shift} px, four scores.")


_ = interact(try_slide, shift=IntSlider(3, 0, 16, continuous_update=False),
             side=IntSlider(24, 4, 32, 2, continuous_update=False))

# %% [markdown]
# ## From small to large
#
# A network that knows *what* something is has seen much of the picture at once, and its map is
# small: 1/32 of the side in SegFormer's last stage. The mask must be large again. Four ways, on a
# map of 2 × 2.

# %%
small = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]  # (B, C, H, W)
print(F.interpolate(small, scale_factor=2, mode="nearest")[0, 0])
print(F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)[0, 0])

# %% [markdown]
# **Nearest** repeats each number. **Bilinear** blends: a new pixel takes the numbers around it,
# nearer ones more; 1.25 is three parts of 1 and one part of 2. Nothing is learned in either. Class
# *numbers* may only be enlarged with nearest: half-way between class 1 and class 3 is not class 2.

# %% [markdown]
# ### Unpooling remembers where
#
# Max pooling keeps the largest of four and forgets which it was. SegNet lets it note the place (the
# *index*) and puts the number back there later:

# %%
fine = torch.tensor([[5.0, 1, 0, 0], [0, 0, 0, 7], [0, 2, 3, 0], [9, 0, 0, 0]])[None, None]
pooled, places = F.max_pool2d(fine, 2, return_indices=True)
print(pooled[0, 0])
print(places[0, 0], "places in the flattened map")
print(F.max_unpool2d(pooled, places, 2)[0, 0])

# %% [markdown]
# Every maximum stands where it came from, to the pixel. All else is zero, and the convolutions that
# follow have to fill the gaps. On a drawn line:

# %%
t = torch.linspace(0, 2 * np.pi, 400)
line = torch.zeros(1, 1, 32, 32)
line[0, 0, (15.5 + 9 * torch.sin(2 * t)).round().long(), (15.5 + 13 * torch.cos(t)).round().long()] = 1
pooled, places = F.max_pool2d(line, 4, return_indices=True)
grown = {"the line": line, "pooled, 1/4": pooled, "nearest": F.interpolate(pooled, scale_factor=4),
         "bilinear": F.interpolate(pooled, scale_factor=4, mode="bilinear"),
         "unpooled": F.max_unpool2d(pooled, places, 4)}
fig = show.grid([g[0, 0] for g in grown.values()], list(grown), columns=5, cell=1.4, cmap="cividis")
show.figure(fig, alt=(
    "A thin line in the form of a figure of eight, and the same after max pooling to a quarter. "
    "Enlarged with nearest it is made of thick blocks, with bilinear it is a thick blurred band, and "
    "unpooled it is a dotted line whose dots lie on the original."))
back = grown["unpooled"] > 0
print(f"unpooled: {(back & (line > 0)).sum()} of {back.sum()} dots lie on the line")

# %% [markdown]
# Nearest and bilinear know where the line is to within four pixels. The unpooled dots lie on it
# exactly, and there are gaps. The price: the places must be kept from the way down, and they say
# where the largest *number* was, not where the thing is.

# %% [markdown]
# ## Transposed convolution
#
# The fourth way learns its weights. It is also called *deconvolution*, which promises too much. To
# see what it is, write a convolution as a matrix. Seven pixels in a row, kernel (1, 2, 3), stride
# 2: send in one pixel at a time, and each answer is one column.

# %%
kernel = torch.tensor([1.0, 2.0, 3.0])[None, None]  # (out, in, K)
C = torch.stack([F.conv1d(pixel[None, None], kernel, stride=2)[0, 0] for pixel in torch.eye(7)], dim=1)
print(C.int())

# %% [markdown]
# Three rows, one per output; each has the kernel in it, two steps further right. So the
# convolution is $y = Cx$. It makes three numbers out of seven. The other direction, seven out of
# three, is what the transposed matrix does, $C^\top y$, and **that is the transposed convolution**:

# %%
x, y = torch.tensor([1.0, 0, 2, 1, 0, 3, 1]), torch.tensor([1.0, 10.0, 100.0])
torch.testing.assert_close(C @ x, F.conv1d(x[None, None], kernel, stride=2)[0, 0])
torch.testing.assert_close(C.T @ y, F.conv_transpose1d(y[None, None], kernel, stride=2)[0, 0])
print(C.T.int())
print("transposed:", (C.T @ y).int().tolist())

# %% [markdown]
# Read the matrix by columns, and the transposed convolution is a **stamp**: each input number
# presses the kernel (1, 2, 3), times itself, onto the output; then the stamp moves on by the
# stride. Where stamps overlap they add up: 13 is 3 · 1 from the first and 1 · 10 from the second.
#
# Three inputs, 1, 2 and 1, and what each of them presses on:

# %%
fig, ax = plt.subplots(figsize=(4.6, 2.2))
height_so_far = torch.zeros(7)
for column, value, colour in zip(C, (1, 2, 1), ("blue", "orange", "green")):
    ax.bar(range(7), value * column, bottom=height_so_far, color=show.COLOURS[colour],
           label=f"({value}, {2 * value}, {3 * value})")
    height_so_far += value * column
ax.set(xlabel="output pixel", ylabel="sum of the stamps")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Seven bars of heights 1, 2, 5, 4, 7, 2, 3. The bars are coloured by the input that pressed them: "
    "each of the three stamps covers three bars, and the third and the fifth bar have two colours."))

# %% [markdown]
# Seven outputs, three stamps; at output pixels 2 and 4 two of them meet. Keep this picture for the
# checkerboards below. In two dimensions all of it is the same, only the matrix is larger:

# %%
def matrix_of(conv, size):
    """The matrix of a linear map of pictures (size x size): one column per input pixel."""
    pixels = torch.eye(size * size).reshape(-1, 1, size, size)
    return conv(pixels).flatten(1).T


plane = torch.rand(1, 1, 3, 3, generator=generator)  # weights (out, in, K, K)
big_C = matrix_of(lambda p: F.conv2d(p, plane, stride=2, padding=1), 8)
down = torch.rand(1, 1, 4, 4, generator=generator)
up = F.conv_transpose2d(down, plane, stride=2, padding=1, output_padding=1)  # the last: see the sizes below
torch.testing.assert_close((big_C.T @ down.flatten()).reshape(8, 8), up[0, 0])
print("C            ", tuple(big_C.shape), "makes 4 x 4 of 8 x 8")
print("its transpose", tuple(big_C.T.shape), "makes 8 x 8 of 4 x 4")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), width_ratios=(3, 1))
for ax, matrix, name in zip(axes, (big_C, big_C.T), ("C: 64 pixels in, 16 out", "its transpose")):
    ax.imshow(matrix, cmap="cividis")
    ax.set(title=name, xlabel="input", ylabel="output", xticks=[], yticks=[])
show.figure(fig, alt=(
    "Two matrices. Left, C with 16 rows and 64 columns: short groups of three bright cells in steps "
    "from the upper left to the lower right. Right, the same turned on its side."))

# %% [markdown]
# Left the convolution, right its transpose: the same weights at mirrored places, no others. And it
# is no stranger. When a network is trained, the error travels backwards through every convolution,
# and what carries it is exactly this matrix:

# %%
source = torch.rand(1, 1, 8, 8, generator=generator, requires_grad=True)
(F.conv2d(source, plane, stride=2, padding=1) * down).sum().backward()
torch.testing.assert_close(source.grad, up)
print("the gradient of a convolution is its transposed convolution")

# %% [markdown]
# ### Is it the inverse?
#
# **Predict, then run.** Convolve a row of seven ones, then convolve transposed with the same
# kernel. What comes back?
#
# - A. Seven ones.
# - B. Seven equal numbers: ones, up to a factor.
# - C. Unequal numbers, and no factor mends it.

# %%
ones = torch.ones(7)
print("there", (C @ ones).int().tolist(), "and back", (C.T @ (C @ ones)).int().tolist())
print("C C^T =", (C @ C.T).int().tolist())
print("rank of C:", torch.linalg.matrix_rank(C).item(), "of", C.shape[1], "inputs")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** What comes back is $C^\top C$ times what went in. If the transpose were the inverse, up to a
# factor, this would be a multiple of the identity, whose rank is 7; $C$ has rank 3. ($CC^\top$, a
# matrix of 14 and 3, is no multiple of the identity either.)
#
# </details>
#
# Could another matrix do it? $C$ keeps three numbers of seven, and different inputs give the same
# output. For example:

# %%
unseen = torch.tensor([2.0, -1, 0, 0, 0, 3, -2])  # 1·2 - 2·1 = 0 and 2·3 - 3·2 = 0
other = x + unseen
print("x     ", x.tolist(), "->", (C @ x).tolist())
print("other ", other.tolist(), "->", (C @ other).tolist())

# %% [markdown]
# So the name *deconvolution* is wrong twice: it does not undo the convolution, and nothing can.
# What the layer shares with an inverse is the shape of its input and output. On a picture:

# %%
grey = torch.from_numpy(picture).float().mean(-1)[None, None, 56:120, 132:192]
mean = torch.full((1, 1, 3, 3), 1 / 9)
there = F.conv2d(grey, mean, stride=2, padding=1)
back = F.conv_transpose2d(there, 4 * mean, stride=2, padding=1, output_padding=1)  # 4: as bright as before
panels = {"the picture": grey, "convolved, stride 2": there, "transposed back": back}
fig = show.grid([p[0, 0] for p in panels.values()], list(panels), columns=3, cell=2.2, cmap="gray")
show.figure(fig, alt=(
    "A grey cut-out of the person on the beach; the same at half size, blurred; and the transposed "
    "convolution of that, at full size again, blurred and covered with a regular grid of dots."))

# %% [markdown]
# The size is back, the picture is not: it is blurred twice, and a grid lies over it. The grid is
# the next subject. First the sizes, because that is what people stumble over:
#
# $$n_{out} = (n_{in} - 1) \, S - 2P + K + P_{out}$$
#
# ($P_{out}$: `output_padding`; without dilation.) Why that last term? Because two sizes can shrink
# to the same one, and the way back has to choose:

# %%
for n in (7, 8):
    smaller = F.conv1d(torch.zeros(1, 1, n), kernel, stride=2).shape[-1]
    for extra in (0, 1):
        y = torch.zeros(1, 1, smaller)
        larger = F.conv_transpose1d(y, kernel, stride=2, output_padding=extra).shape[-1]
        assert larger == (smaller - 1) * 2 + 3 + extra
        print(f"{n} -> {smaller}; back with output_padding={extra}: {larger}")

# %% [markdown]
# ## Checkerboards
#
# **Predict, then run.** All inputs are 1, all weights are 1, kernel 3, stride 2. What does the
# output look like, away from the border?
#
# - A. A chessboard of 1 and 2.
# - B. A pattern of 1, 2 and 4.
# - C. It grows towards the middle.

# %%
def stamped(kernel, stride, n=6):
    """How many stamps lie on each output pixel."""
    ones, stamp = torch.ones(1, 1, n, n), torch.ones(1, 1, kernel, kernel)
    return F.conv_transpose2d(ones, stamp, stride=stride)[0, 0]


stamped(3, 2)[:9, :9].int()

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why:* stamps three wide in steps of two overlap on every second pixel. Along a line the
# counts are 1, 2, 1, 2, and in the plane their products 1, 2, 4.
#
# </details>
#
# If the kernel is a multiple of the stride, every pixel gets the same number of stamps, the border
# apart:

# %%
settings = [(2, 2), (3, 2), (4, 2), (5, 2), (3, 3), (4, 3), (5, 3), (6, 3)]
fig = show.grid([stamped(k, s)[:12, :12] for k, s in settings],
                [f"K={k}, S={s}: " + ("even" if k % s == 0 else "uneven") for k, s in settings],
                columns=4, cell=1.65, cmap="cividis", vmin=0)
show.figure(fig, alt=(
    "The upper left corners of eight maps of how many stamps lie on each pixel. For kernel 2 and "
    "stride 2, 4 and 2, 3 and 3, 6 and 3 the inside is even; for 3 and 2, 5 and 2, 4 and 3, 5 and 3 "
    "it is a checked pattern."))

# %%
for k, s in settings:
    inside = stamped(k, s, n=16)[k:-k, k:-k]
    print(f"K={k}, S={s}: stamps per pixel {inside.unique().int().tolist()}, rest {k % s}")

# %% [markdown]
# Even exactly where the division leaves no rest. So: choose a kernel that the stride divides, and
# all is well?

# %% [markdown]
# ### Even counts are not enough
#
# Learned weights are not all ones. With kernel 4 and stride 2 each output pixel gets four stamps,
# but its neighbour gets *other* weights of the kernel. A constant input shows it:

# %%
def bilinear_kernel(stride):
    """The kernel (2 S, 2 S) whose transposed convolution is bilinear enlarging by S."""
    distance = (torch.arange(2 * stride) - stride + 0.5).abs() / stride
    return torch.outer(1 - distance, 1 - distance)


constant = torch.ones(1, 1, 12, 12)
chance = {k: torch.rand(1, 1, k, k, generator=generator) for k in (3, 4)}
outputs = {"K=3, random": F.conv_transpose2d(constant, chance[3], stride=2),
           "K=4, random": F.conv_transpose2d(constant, chance[4], stride=2),
           "K=4, bilinear": F.conv_transpose2d(constant, bilinear_kernel(2)[None, None], stride=2),
           "enlarge, then\nconvolve, random":
               F.conv2d(F.interpolate(constant, scale_factor=2), chance[3])}
inside = [o[0, 0, 4:-4, 4:-4] / o[0, 0, 4:-4, 4:-4].mean() for o in outputs.values()]
fig = show.grid(inside, list(outputs), columns=4, cell=1.7, cmap="cividis", vmin=0.4, vmax=1.6)
show.figure(fig, alt=(
    "The inside of four enlarged constant maps. Random kernels of 3 and of 4 pixels with stride 2 "
    "both give a checked pattern; the bilinear kernel of 4 pixels and enlarging followed by a "
    "random convolution give an even surface."))

# %%
for name, part in zip(outputs, inside):
    print(f"{' '.join(name.split()):32s} varies by {part.std():.2f} of its mean")

# %% [markdown]
# A kernel that the stride divides *can* be even; training has to find it, and the counts at least do
# not stand in its way. Two ways out are known. FCN starts its transposed convolutions from the
# **bilinear kernel** (third panel), and from there they learn. Or enlarge first, with nearest or
# bilinear, and convolve after (fourth): then all pixels see the same weights, and no pattern can
# arise. Is the third really bilinear enlarging?

# %%
test = torch.rand(1, 1, 6, 6, generator=generator)
by_stamps = F.conv_transpose2d(test, bilinear_kernel(2)[None, None], stride=2, padding=1)
by_blending = F.interpolate(test, scale_factor=2, mode="bilinear", align_corners=False)
torch.testing.assert_close(by_stamps[..., 1:-1, 1:-1], by_blending[..., 1:-1, 1:-1])
print("equal inside:", tuple(by_stamps.shape))
print(f"largest difference on the border: {(by_stamps - by_blending).abs().max():.2f}")

# %% [markdown]
# Yes, up to the border, where `interpolate` repeats the last row and the stamps know only zeros. So
# three of the four ways are one family: bilinear is a transposed convolution with a fixed kernel.
# And so is nearest; which kernel would that be? (Stride 2, kernel 2, all ones.)

# %%
all_ones = torch.ones(1, 1, 2, 2)
by_ones = F.conv_transpose2d(test, all_ones, stride=2)
torch.testing.assert_close(by_ones, F.interpolate(test, scale_factor=2))
print("nearest is a stamp of ones")

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. With and without the background (15 minutes, with `sl`)
#
# Score a predictor twice on a data set: mean IoU over the classes *without* class 0, once with the
# labels as they are, once with every background pixel labelled 255. Count over the whole data set,
# with `sl.evaluation.confusion_matrix(prediction, label, num_classes)` and
# `sl.evaluation.iou_per_class(matrix)`; leave out classes that give not a number. The check brings
# a small data set and a predictor that claims too much.
#
# <details><summary>Hint</summary>
#
# `torch.where(label == 0, dataset.ignore_index, label)` is the second label map. Keep two matrices
# and add to them picture by picture; divide at the end, and `np.nanmean` the entries from 1 on.
#
# </details>
# <details><summary>Help: an error about tensors</summary>
#
# `iou_per_class` works on NumPy arrays: give it `matrix.numpy()`.
#
# </details>

# %% tags=["exercise"]
def my_foreground_scores(dataset, predict) -> tuple[float, float]:
    """Mean IoU without class 0, with the background labelled and with it ignored.

    dataset: items (image uint8 (3, H, W), label int64 (H, W)), `classes`, `ignore_index`.
    predict: image -> prediction int64 (H, W).
    """
    # SOLUTION
    num_classes = len(dataset.classes)
    matrices = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
    for i in range(len(dataset)):
        image, label = dataset[i]
        prediction = predict(image)
        without = torch.where(label == 0, dataset.ignore_index, label)
        for matrix, truth in zip(matrices, (label, without)):
            matrix += sl.evaluation.confusion_matrix(prediction, truth, num_classes)
    labelled, ignored = (np.nanmean(sl.evaluation.iou_per_class(m.numpy())[1:]) for m in matrices)
    return float(labelled), float(ignored)
    # END SOLUTION


checks.foreground_scores(my_foreground_scores)

# %% [markdown] tags=["exercise"]
# ### 2. From overlapping masks to a panoptic map (20 minutes)
#
# A label comes without overlaps, a network's masks do not. The usual rule: go through the masks
# from the highest score to the lowest. Each takes the pixels of its own that are still free, but
# only if at least half of its pixels are free; otherwise it is dropped whole. What is left at the
# end is stuff. Mask number $i$ (counted from 0) paints the id $i + 1$.
#
# <details><summary>Hint</summary>
#
# `scores.argsort(descending=True)` gives the order. Keep one bool map `free`, all true at first.
#
# </details>
# <details><summary>Help: the check says that a dropped mask blocks others</summary>
#
# Only a mask that is kept takes pixels out of `free`.
#
# </details>

# %% tags=["exercise"]
def my_merge(masks: torch.Tensor, scores: torch.Tensor, stuff: torch.Tensor) -> torch.Tensor:
    """Panoptic ids int64 (H, W): i + 1 where mask i was kept, else those of `stuff`.

    masks: bool (N, H, W), may overlap, none is empty. scores: (N,), all different. stuff: int64 (H, W).
    """
    # SOLUTION
    ids, free = stuff.clone(), torch.ones_like(stuff, dtype=torch.bool)
    for i in scores.argsort(descending=True).tolist():
        visible = masks[i] & free
        if 2 * visible.sum() >= masks[i].sum():
            ids[visible] = i + 1
            free &= ~visible
    return ids
    # END SOLUTION


checks.panoptic_merge(my_merge)

# %% [markdown] tags=["exercise"]
# ### 3. PQ with void (15 minutes)
#
# The label has void pixels (255): crowds, or what nobody marked. The full rule has two parts. Void
# pixels count in no intersection and no union; that is what `pairwise_iou` above does. And: a
# predicted segment without a partner is *not* a false alarm if more than half of its pixels are
# void, because it may well have found somebody in the crowd. Write the PQ of one class for one
# picture; not a number if there is nothing to count.
#
# <details><summary>Hint</summary>
#
# `pairwise_iou` has a column only for predicted segments with a pixel outside void, in order of
# their ids. Go through `prediction.unique()` yourself and look at `label[prediction == number]`.
#
# </details>
# <details><summary>Help: my columns and my segments are not the same number</summary>
#
# A segment that lies on void altogether has no column. It is no false alarm either, so leave it
# out.
#
# </details>

# %% tags=["exercise"]
def my_panoptic_quality(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """PQ of one class in one picture.

    prediction, label: ids int64 (H, W), 0 no segment; 255 in the label is void.
    """
    # SOLUTION
    table = pairwise_iou(prediction, label)
    match = table > 0.5
    on_void = [(label[prediction == number] == 255).float().mean().item()
               for number in prediction[label != 255].unique() if number > 0]  # one per column
    alone = ~match.any(0) & (torch.tensor(on_void) <= 0.5)
    weight = match.sum() + alone.sum() / 2 + (~match.any(1)).sum() / 2
    return (table[match].sum() / weight).item()  # 0 / 0 is not a number
    # END SOLUTION


checks.panoptic_quality(my_panoptic_quality)

# %% [markdown] tags=["exercise"]
# ### 4. Stamps (15 minutes)
#
# Write the transposed convolution without any convolution: stamp the kernel for each input pixel
# and add. At the end `padding` cuts that many rows and columns off every side of the result. The
# check compares with `F.conv_transpose2d`, and with the transpose of a convolution's matrix.
#
# <details><summary>Hint</summary>
#
# The result before cutting has $(H - 1) S + K$ rows. For the input pixel (i, j) the stamp lies on
# rows $iS$ to $iS + K$. All channels at once: `torch.einsum("bc,cokl->bokl", x[:, :, i, j],
# weight)`.
#
# </details>
# <details><summary>Help: the numbers are too small where stamps overlap</summary>
#
# Add with `+=`; the later stamp must not replace the earlier.
#
# </details>

# %% tags=["exercise"]
def my_stamps(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int = 0) -> torch.Tensor:
    """Transposed convolution, (B, in, H, W) -> (B, out, (H - 1) * stride + K - 2 * padding, ...).

    weight: (in, out, K, K), as `F.conv_transpose2d` wants it.
    """
    # SOLUTION
    batch, _, rows, columns = x.shape
    size = weight.shape[-1]
    out = x.new_zeros(batch, weight.shape[1], (rows - 1) * stride + size, (columns - 1) * stride + size)
    for i in range(rows):
        for j in range(columns):
            stamp = torch.einsum("bc,cokl->bokl", x[:, :, i, j], weight)
            out[..., i * stride:i * stride + size, j * stride:j * stride + size] += stamp
    return out[..., padding:out.shape[-2] - padding, padding:out.shape[-1] - padding]
    # END SOLUTION


checks.stamps(my_stamps)

# %% [markdown]
# ## The package's version
#
# The confusion matrix of the package has no loop: it numbers the pairs (label, prediction) and
# counts the numbers. (In the package's docstrings K is the number of classes.)

# %%
from segformer_lite.evaluation import metrics

print(inspect.getsource(metrics.confusion_matrix))
print(inspect.getsource(metrics.boundaries))

# %% [markdown]
# And the band does not go through the classes one by one: a pixel lies at a border where the
# largest and the smallest number around it differ, so one look at the label map finds the bands of
# all classes. The same results? On two hundred random pairs, with void, with absent classes:

# %%
for _ in range(200):
    size = torch.randint(4, 13, (2,), generator=generator).tolist()
    truth = torch.randint(0, 4, size, generator=generator)
    prediction = torch.randint(0, 5, size, generator=generator)
    truth[torch.rand(size, generator=generator) < 0.2] = 255
    matrix = count_pairs(prediction, truth, 6)
    assert torch.equal(matrix, metrics.confusion_matrix(prediction, truth, 6))
    _, ious, dices = scores(matrix)
    np.testing.assert_allclose(metrics.iou_per_class(matrix.numpy()), ious, rtol=1e-6)
    np.testing.assert_allclose(metrics.dice_per_class(matrix.numpy()), dices, rtol=1e-6)
    for d in (1, 2, 3):
        assert torch.equal((truth == 1) & metrics.boundaries(truth, d), band(truth == 1, d))
print("confusion matrix, IoU, Dice and boundary bands: equal")

# %%
truth, prediction = square(20).long(), square(20).roll(3, 1).long()
inter, union = sl.evaluation.boundary_counts(prediction, truth, 2)
np.testing.assert_allclose(inter[1] / union[1], boundary_iou(prediction > 0, truth > 0), rtol=1e-6)
sizes = [(64, 64), (512, 512), (1024, 2048)]
print("d in px:", {f"{h} x {w}": metrics.boundary_distance(h, w) for h, w in sizes})
print(f"boundary IoU of a square moved by 3 px: {inter[1] / union[1]:.3f}")

# %% [markdown]
# PQ is not in the package: SegFormer gives semantic maps, and the class of this chapter is all
# there is to it. Of the four ways to enlarge, SegFormer uses one, for feature maps and for scores:

# %%
from segformer_lite.models import upsample

print(inspect.getsource(upsample))

# %% [markdown]
# ## What the papers say, what the code does
#
# - **mIoU.** Benchmarks add up over the data set and drop label 255 from both maps, as the package
#   does. Code that averages the IoU of pictures gives another number under the same name.
# - **PQ** (Kirillov et al., 2019, [arXiv:1801.00868](https://arxiv.org/abs/1801.00868)): matching
#   above one half, void left out of the union, predictions mostly on void not counted. COCO's
#   panoptic code does the same; exercise 3 is that rule.
# - **Boundary IoU** (Cheng et al., 2021, [arXiv:2103.16562](https://arxiv.org/abs/2103.16562)): $d$
#   is 2 % of the diagonal by default. In AP and PQ the authors' code takes the smaller of mask and
#   boundary IoU; as a score of its own, and in this package, it stands alone.
# - **"Deconvolution"** is what the FCN paper (Long, Shelhamer and Darrell, 2015,
#   [arXiv:1411.4038](https://arxiv.org/abs/1411.4038)) calls the transposed convolution.
# - **Unpooling** with indices is SegNet's
#   ([chapter 02](02_cnn_baselines.ipynb#segnet-the-places-of-the-maxima)).
# - **Checkerboards**, and enlarging first as a way out: Odena, Dumoulin and Olah (2016),
#   [Deconvolution and Checkerboard Artifacts](https://distill.pub/2016/deconv-checkerboard/).
# - **`align_corners`.** Everything here is `False`: pixels are areas. Some older code says `True`;
#   [chapter 07](07_mlp_decoder.ipynb#align_corners) shows the difference.

# %% [markdown]
# ## Pitfalls
#
# - A score without saying over what: pixels or objects, a picture or the data set, with the
#   background or without.
# - 255 for background that *was* labelled: flooding pays.
# - 0 / 0: the class absent from both maps. Left out, 0 and 1 are three different scores.
# - Boundary IoU of a cut-out against that of the whole picture: $d$ depends on the picture's size.
# - PQ with "IoU at least one half": ties, and a segment with two partners.
# - Enlarging class numbers with bilinear.
# - `ConvTranspose2d(kernel_size=3, stride=2)`: uneven before the first step of training.
# - Weights of a transposed convolution are stored (in, out, K, K), those of a convolution (out, in,
#   K, K).

# %% [markdown]
# ## In short
#
# - Classification names, detection boxes, semantic maps fill, instance maps count, panoptic maps do
#   all of it; information is lost from the last to the first.
# - IoU = both / (both + prediction only + label only). Accuracy also counts the grey pixels, Dice is
#   IoU on a bent scale, boundary IoU looks at the rim, PQ counts segments.
# - Each has its blind spot: small things, absent classes, an ignored background, an empty inside,
#   the cliff at one half. Two scores see more than one.
# - A transposed convolution is $C^\top$: stamps that add up. It restores the shape, not the picture.
# - Uneven stamps make checkerboards; enlarging by bilinear, as SegFormer does, cannot.

# %% [markdown]
# ## What people ask
#
# **Is IoU the same as Jaccard, Dice the same as F1?** Yes, counted over pixels: Jaccard index and
# IoU are two names, and so are Dice coefficient and F1 score.
#
# **Why is my mIoU not a number?** A class is in neither map, and your code takes a plain mean. Use
# a mean that leaves these out, and count over the whole data set.
#
# **Why is my IoU so high although the masks flood everything?** Look at the label of the
# background. If it is 255 (or was shifted to 255 by an option such as *reduce zero label*), you are
# reading little more than a recall.
#
# **Can I count objects with a semantic network?** Only if they never touch and never hide each other.
# Otherwise train for instances, or give the rim between touching objects a class of its own.
#
# **Which score for thin or tiny things?** IoU of the class, *and* how many regions were found,
# *and* boundary IoU. The package's report has all three.
#
# **Transposed convolution or bilinear?** In the networks of [chapter 02](02_cnn_baselines.ipynb) you
# meet both. Bilinear has nothing to learn and no pattern; a convolution after it does the learning.

# %% [markdown]
# ## Next
#
# [Chapter 02](02_cnn_baselines.ipynb) puts these ways to work in FCN, SegNet and U-Net. If you would
# rather go straight to SegFormer: [chapter 03](03_patch_embedding.ipynb), patch embedding, opens its
# first box.
