# %% [markdown]
# # 08 · Read the labels: what a data set says, and what is done to it
#
# About 45 minutes to read and run, 70 more for the exercises. The code takes about 20 seconds on
# one CPU core and less than 2 GB of memory. No GPU is needed, and the modes fast and full are the
# same here. If the two samples have never been drawn on this machine, that takes half a minute
# more, once.

# %% [markdown]
# **What you build.** `TinyCoco`: a COCO data set in two dozen lines, from the JSON file to the
# label map. At the end its maps equal the package's in every pixel.
#
# **What you learn.**
#
# - what is in an annotation file: polygons, run lengths, crowds, ids with gaps;
# - why objects are painted largest first, and what 255 is for;
# - how a picture and its labels are augmented together, step by step, and what goes wrong if they
#   are not;
# - what a JPEG mask, a CT window and a threshold do to an outline;
# - what dividing by slice or by patient does to a score, measured.
#
# **What you need.** Tensors and a little NumPy. [Chapter 00](00_start_here.ipynb) has shown the
# sample; no other chapter is needed.

# %% tags=["setup", "nbval-ignore-output"]
import csv
import inspect
import io
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.show import masks

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "mask"))

# %% [markdown]
# The two ends of the map are lit: the picture that goes in, and the mask that the network should
# give back. In training the mask comes from a file. This chapter is about that file.

# %% [markdown]
# ## The question
#
# A network learns what its labels say and nothing else. **What exactly is a label, what can go
# wrong on its way from the file to the loss, and how would you notice?** Hardly any of these
# mistakes raises an error. The network trains, a little worse, and the loss curve looks fine.
#
# | in papers | code | shape, type | meaning |
# |---|---|---|---|
# | image | `image` | (3, H, W) uint8 | red, green, blue, 0 to 255 |
# | label map, mask, ground truth | `label`, `mask` | (H, W) int64 | the class of every pixel |
# | $N_{cls}$ | `num_classes` | a number | classes, the background among them |
# | void, ignore | `ignore_index` = 255 | a label | "nobody says": counts nowhere |
#
# Two data sets, both drawn by the course itself, both written exactly as the real ones are:

# %% tags=["nbval-ignore-output"]
coco = sl.data.open_dataset("sample-coco")
ct = sl.data.open_dataset("sample-chest-ct")
print(coco, ct)

# %% [markdown]
# ## By hand: a mask in five numbers
#
# A mask is large and mostly made of runs: many zeros, some ones, many zeros. COCO writes down the
# *lengths* of the runs. Three rules: the runs alternate, **the first run is of zeros**, and the
# pixels are counted **column by column**.

# %%
counts, height, width = [5, 2, 2, 3, 8], 4, 5
runs = np.repeat([0, 1, 0, 1, 0], counts)  # 5 zeros, 2 ones, 2 zeros, 3 ones, 8 zeros
print(runs)
print(runs.reshape(width, height).T)

# %% [markdown]
# Twenty pixels in five numbers. `reshape` fills rows, so it is given `width` rows of `height`
# pixels, and the transpose `.T` turns them into columns. If a mask begins with a one, its first
# run has length 0.

# %%
def decode(counts, height, width):
    """Run lengths -> bool (H, W)."""
    values = np.arange(len(counts)) % 2  # 0 1 0 1 ...
    return np.repeat(values, counts).reshape(width, height).T.astype(bool)


print(decode([0, 3, 3], 2, 3).astype(int))

# %% [markdown]
# ## Open the file
#
# A COCO instances file is one JSON dictionary. Look at it before you trust it.

# %%
root = sl.data.named_folder("sample-coco")
content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
for key, value in content.items():
    print(f"{key:12s} {type(value).__name__} with {len(value)} entries")

# %% [markdown]
# 600 images, although the data set above has 580: twenty show no object, and the package leaves them
# out. One entry of each kind:

# %%
content["images"][0]

# %%
annotation = dict(content["annotations"][0])
outline = annotation.pop("segmentation")
print(annotation)
print(len(outline), "polygons, the first:", outline[0][:6], "...")

# %% [markdown]
# An *annotation* is one object: which image, which category, its `area` in pixels, a box (x, y,
# width, height) and its outline. The outline is a list of polygons, because an object behind a
# lamp post comes in two pieces. A polygon is a flat list x, y, x, y, …, in fractions of a pixel.
#
# A crowd is different. Nobody outlines forty heads one by one, so the annotators painted the whole
# group, and the file stores the run lengths of what they painted:

# %%
crowd = next(a for a in content["annotations"] if a["iscrowd"])
lengths = crowd["segmentation"]
print("iscrowd", crowd["iscrowd"], "size", lengths["size"], "counts", lengths["counts"][:8], "...")
print(Counter("crowd, run lengths" if a["iscrowd"] else "object, polygons"
              for a in content["annotations"]))

# %% [markdown]
# **Predict, then run.** What does the crowd look like if the run lengths are read row by row?
#
# - A. The same, turned on its side.
# - B. Short dashes, scattered from top to bottom.
# - C. `reshape` raises an error.

# %%
height, width = lengths["size"]
flat = decode(lengths["counts"], height, width).T.ravel()
readings = {"column by column": flat.reshape(width, height).T,
            "row by row": flat.reshape(height, width),
            "ones first": ~flat.reshape(width, height).T}
name = next(image["file_name"] for image in content["images"] if image["id"] == crowd["image_id"])
with Image.open(root / "train2017" / name) as file:
    scene = np.array(file.convert("RGB"))
fig = show.grid([scene, *readings.values()], ["the picture", *readings], cell=1.2, cmap="cividis")
show.figure(fig, alt=(
    "A drawn street scene with a row of small people, and three readings of the crowd's run lengths: column by "
    "column, row by row, and starting with ones. The answer below says what they show."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Second panel: right. Third: the same numbers, read row by row. No error, because height
# times width is width times height. (On a square picture it would have been A.) Last: a reader who
# begins with ones gets everything but the crowd.
#
# </details>
#
# *Why columns?* COCO's tools exist for MATLAB too, which stores a matrix column by column. It is
# as good a rule as any, and costs everybody an hour once.

# %% [markdown]
# ### From 1 … 90 to 1 … 80
#
# COCO's category ids run from 1 to 90, but there are 80 categories: ten ids are not used. The
# classifier needs labels without holes, so the ids are numbered anew, in order.

# %%
unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
ids = [i for i in range(1, 91) if i not in unused]
label_of_id = {category: label for label, category in enumerate(ids, start=1)}
print(len(ids), "ids;", ", ".join(f"{i} -> {label_of_id[i]}" for i in (1, 11, 13, 59, 90)))

# %% [markdown]
# 0 is left for the background, so a network for COCO has 81 outputs. The sample has ten of the
# categories, with their real ids, and they become 1 to 10 in the same way:

# %%
for category in content["categories"]:
    print(f"{category['id']:3d} -> {coco.label_of_category[category['id']]:2d}  {category['name']}")

# %% [markdown]
# ## Paint
#
# Now one label map from many outlines. First the pixels of a single annotation; for the polygons
# pycocotools, COCO's own library, decides which pixels lie inside.

# %%
def region(annotation, height, width):
    """The pixels of one annotation, bool (H, W)."""
    shape = annotation["segmentation"]
    if annotation["iscrowd"]:
        return decode(shape["counts"], height, width)
    runs = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    return coco_mask.decode(runs).astype(bool)


# %% [markdown]
# Outlines overlap, but a pixel has one label. So the order of painting decides.

# %%
def paint(annotations, height, width, label_of_id, largest_first=True):
    """The label map (H, W) uint8 of one image: 0, then crowds 255, then the objects."""
    labels = np.zeros((height, width), np.uint8)
    regions = [(region(a, height, width), a) for a in annotations]
    for pixels, a in regions:
        if a["iscrowd"]:
            labels[pixels] = 255
    objects = [(pixels, a) for pixels, a in regions if not a["iscrowd"]]
    for pixels, a in sorted(objects, key=lambda pair: pair[0].sum(), reverse=largest_first):
        labels[pixels] = label_of_id[a["category_id"]]
    return labels


# %% [markdown]
# A laid table, annotated the way people annotate: a dining table (67), a pizza (59), two cups (47)
# and a fork (48).

# %%
def disc(x, y, r):
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return [np.stack([x + r * np.cos(t), y + r * np.sin(t)], 1).ravel().tolist()]


table = {67: [[[12, 28, 148, 28, 156, 104, 4, 104]]], 59: [disc(70, 66, 25)],
         47: [disc(118, 50, 9), disc(28, 52, 9)], 48: [[[104, 66, 108, 66, 108, 96, 104, 96]]]}
laid = [{"category_id": i, "iscrowd": 0, "segmentation": s} for i, all_ in table.items() for s in all_]
print([(a["category_id"], int(region(a, 112, 160).sum())) for a in laid])

# %% [markdown]
# **Predict, then run.** What is left if the smallest object is painted first?
#
# - A. The table, and nothing on it.
# - B. The same map: each object paints its own pixels.
# - C. The table with a hole where the pizza was.

# %%
names = ["background", "dining table", "pizza", "cup", "fork"]
new = {67: 1, 59: 2, 47: 3, 48: 4}
painted = [paint(laid, 112, 160, new, largest_first=largest) for largest in (True, False)]
palette = sl.data.default_palette(5)
fig, axes = plt.subplots(1, 3, figsize=(7, 2.1))
for a in laid:
    for polygon in a["segmentation"]:
        axes[0].fill(polygon[::2], polygon[1::2], fc="none", ec=show.COLOURS["blue"])
axes[0].set(xlim=(0, 160), ylim=(112, 0), aspect="equal")
for ax, labels in zip(axes[1:], painted):
    ax.imshow(masks.colourise(labels, palette))
for ax, title in zip(axes, ["the outlines", "largest first", "smallest first"]):
    ax.set(title=title, xticks=[], yticks=[])
masks.legend(fig, painted, names, palette)
show.figure(fig, alt=(
    "Left, the outlines of a table with a pizza, two cups and a fork on it. Middle and right, their label map "
    "painted largest first and smallest first; the answer below says what is left of them."))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** The table's polygon runs around the *whole* table, pizza and all. Painted last, it covers
# everything that lies on it.
#
# </details>
#
# So a polygon has no holes, and where two outlines overlap, the smaller thing nearly always lies in
# front: paint the largest first.
#
# How much does the order matter over many pictures? The sample's outlines were drawn by a program
# that knows what is visible, and hardly ever overlap. So take the most hurried outline there is,
# the box, and ask of each object: does it keep at least half of the pixels that are really its own?

# %%
def painted_in(order, dataset, outline):
    """Share of objects that keep half of their pixels, and of object pixels with the right class."""
    kept, right = [], []
    for image, annotations in zip(dataset.images, dataset.annotations):
        objects = [a for a in annotations if not a["iscrowd"]]
        real = [region(a, image["height"], image["width"]) for a in objects]
        owner = np.full((image["height"], image["width"]), -1)
        for k in sorted(range(len(objects)), key=lambda k: order(objects[k])):
            owner[outline(objects[k], real[k])] = k
        category = np.array([a["category_id"] for a in objects] + [0])  # the last one for "nobody"
        kept += [(owner[pixels] == k).mean() >= 0.5 for k, pixels in enumerate(real) if pixels.any()]
        right += [category[owner[pixels]] == category[k] for k, pixels in enumerate(real)]
    return np.mean(kept), np.concatenate(right).mean()


def box(annotation, pixels):
    x, y, w, h = map(round, annotation["bbox"])
    return np.s_[y:y + h, x:x + w]


orders = {"largest first": lambda a: -a["area"], "as in the file": lambda a: 0,
          "smallest first": lambda a: a["area"]}
for name, order in orders.items():
    objects, pixels = painted_in(order, coco, box)
    print(f"{name:15s} {objects:.1%} of the objects kept, {pixels:.1%} of their pixels right")

# %% [markdown]
# One object in five is lost if the smallest is painted first, and the order of a file is no rule at
# all. Now the surprise: by *pixels* there is next to no difference, and the order that loses most
# objects even comes out a little ahead of the right one. What gets lost is small. A mistake of this
# kind hides from every score that counts pixels.

# %% [markdown]
# ## The class
#
# That was the hard part. The rest is reading files.

# %%
class TinyCoco(Dataset):
    """Pictures and label maps of a COCO instances file: uint8 (3, H, W), int64 (H, W)."""

    def __init__(self, root, name):
        content = json.loads((root / "annotations" / f"instances_{name}.json").read_text())
        self.folder = root / name
        self.images = sorted(content["images"], key=lambda image: image["id"])
        self.annotations = defaultdict(list)  # image id -> its annotations
        for annotation in content["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)
        ids = sorted(category["id"] for category in content["categories"])
        self.label_of_id = {i: label for label, i in enumerate(ids, start=1)}

    def __len__(self):
        return len(self.images)

    def label_map(self, i):
        image = self.images[i]
        size = image["height"], image["width"]
        return paint(self.annotations[image["id"]], *size, self.label_of_id)

    def __getitem__(self, i):
        with Image.open(self.folder / self.images[i]["file_name"]) as file:
            pixels = np.array(file.convert("RGB"))  # some files are grey
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(self.label_map(i)).long()


tiny = TinyCoco(root, "train2017")
image, label = tiny[110]
print(len(tiny), "pictures;", tuple(image.shape), image.dtype, tuple(label.shape), label.dtype)

# %% [markdown]
# Pictures in COCO come in many sizes, and so do these. A batch needs one size; that is what the
# crop of the augmentation is for.

# %%
print(Counter((image["height"], image["width"]) for image in tiny.images).most_common())

# %% [markdown]
# ## The rarest class has the fewest pixels
#
# Count them: pixels of each class, and pictures it occurs in.

# %%
maps = [coco.read_mask(i) for i in range(len(coco))]
pixels = sum(np.bincount(m.ravel(), minlength=256) for m in maps)
occurs_in = sum(np.bincount(np.unique(m), minlength=256) for m in maps)
share = pixels[:11] / pixels[:11].sum()
by_share = np.argsort(-share)
fig, ax = plt.subplots(figsize=(5.2, 2.6))
ax.barh(range(11), 100 * share[by_share], color=coco.palette[by_share] / 255, ec="#555555")
ax.set(xscale="log", yticks=range(11), yticklabels=[coco.classes[c] for c in by_share],
       xlabel="per cent of the labelled pixels (logarithmic)")
ax.invert_yaxis()
show.figure(fig, alt=(
    "Bars of the share of labelled pixels per class on a logarithmic axis. Background has "
    "nearly 80 per cent, pizza follows with 6, and the kite is last with half a per cent."))

# %%
for c in (by_share[0], by_share[1], by_share[-1]):
    of_pictures = occurs_in[c] / len(maps)
    print(f"{coco.classes[c]:10s} {share[c]:6.2%} of pixels, in {of_pictures:4.0%} of pictures")
print(f"labelled 255: {pixels[255] / pixels.sum():.2%} of all pixels")

# %% [markdown]
# The longest bar is background, about 80 % of all pixels. Every other class is at least ten times
# rarer, and the last more than a hundred times. (A kite is in more pictures than a pizza. It is
# rare because it is *small*.) In chest CT it is worse: the trachea has about two pixels in a
# thousand. Three things follow.
#
# - Always answering "background" is 80 % right. So the score is the *mean over classes*, mIoU.
# - The first thing a network learns is how common each class is. It is the first thing that a loss
#   curve shows.
# - A random crop is often all background. SegFormer's released recipe draws a crop anew, up to ten
#   times, while one class fills 75 % of it.

# %% [markdown]
# ## 255: a label that says "nobody says"
#
# A crowd is not background, and it is not one person either. Its pixels get 255, and the loss
# leaves them out. Four pixels, three classes; the network says "person" (1) on the last two, which
# belong to a crowd:

# %%
logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 3, 0]])
for what, last in [("255", 255), ("background", 0)]:
    label = torch.tensor([0, 1, last, last])
    print(f"crowd as {what:10s}: loss {F.cross_entropy(logits, label, ignore_index=255):.3f}")

# %% [markdown]
# As background the crowd punishes the network for being right. As 255 it changes nothing: the mean
# is taken over the two labelled pixels. Three ways in which this goes wrong:

# %%
everything = F.cross_entropy(logits, torch.full((4,), 255), ignore_index=255)
print("a crop with 255 only:", everything.item())
try:
    F.cross_entropy(logits, torch.tensor([0, 1, 85, 85]), ignore_index=255)
except IndexError as error:
    print("COCO's raw id as label:", error)
label = torch.tensor([0, 1, 2, 255])
print("all labels lowered by one, twice:", (label - 1) % 256, "->", (label - 2) % 256)

# %% [markdown]
# 1. A crop that holds *only* 255 has no mean: not a number, and one step later the whole network
#    is. Training code has to guard against it; the package's loss does.
# 2. A raw id is out of bounds. That one at least raises an error. On a GPU it is a less friendly
#    one, a "device-side assert".
# 3. Some data sets call 0 "other" and want it ignored, so their loaders lower every label by one
#    and turn 0 into 255 (the setting is often called `reduce_zero_label`). Twice is once too often:
#    class 1 is gone. And 255 itself must be put back, which the arithmetic alone does not do: what was
#    ignored counts as class 254 or 253.
#
# And one that is not a mistake but a decision: **is background a class?** In COCO yes: "none of the
# 80" is an answer, and it is scored. If you make it 255 instead, nothing that is wrongly found on
# background counts against the network, and its IoU becomes a kind of recall.

# %% [markdown]
# ## Resize a label
#
# Pictures are resized with *bilinear* interpolation: a new pixel is a weighted mean of old ones. Do
# the same to a label map and see. The map has background (0), stop sign (4) and a few others.
#
# **Predict, then run.** A label map is made half as large by bilinear interpolation and rounded.
# What happens at the edge of a stop sign?
#
# - A. The edge becomes a little softer.
# - B. A line of people, cars and boats runs around the sign.
# - C. The edge becomes 255.

# %%
image, label = coco[237]
label = label.as_subclass(torch.Tensor)


def half(label, mode):
    return F.interpolate(label[None, None].float(), scale_factor=0.5, mode=mode)[0, 0].round().long()


halves = {mode: half(label, mode) for mode in ("nearest-exact", "bilinear")}
pieces = {"the picture": image[:, :80, 56:136], "nearest": halves["nearest-exact"][:40, 28:68],
          "bilinear": halves["bilinear"][:40, 28:68]}
fig, axes = plt.subplots(1, 3, figsize=(6, 2.4))
for ax, (title, piece) in zip(axes, pieces.items()):
    ax.imshow(masks.as_picture(piece) if piece.ndim == 3 else masks.colourise(piece, coco.palette))
    ax.set(title=title, xticks=[], yticks=[])
masks.legend(fig, [pieces["nearest"], pieces["bilinear"].where(pieces["bilinear"] < 11, 255)],
             coco.classes, coco.palette)
show.figure(fig, alt=(
    "A stop sign in a drawn street, and its label map at half size, reduced by nearest and by bilinear "
    "interpolation. The next cell counts what the second has invented, and the answer says where."))

# %%
def invented(label, mode):
    """Share of pixels whose new label is nowhere in the picture, and these labels."""
    small = half(label, mode)
    strange = ~torch.isin(small, label.unique())
    return strange.float().mean().item(), small[strange].unique().tolist()


for mode in halves:
    part, which = invented(label, mode)
    print(f"{mode:13s} {part:.2%} invented;", [coco.classes[c] for c in which if c < 11],
          "and", sum(c > 10 for c in which), "labels of no class")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** The rim of the sign in the last panel: halfway between background 0 and stop sign 4 lies 2, a
# car; a quarter of the way, 1, a person. (The cell counts only classes that the scene has nowhere
# else, so *car* is not in its list.) Class numbers are *names*, and
# there is no mean of two names. Worse, between 0 and 255 lie labels that no class has at all: that
# would be an error, if you are lucky.
#
# </details>
#
# Labels, then, are resized with *nearest*: a new pixel takes the label of one old pixel. But which
# one?

# %%
def shift(factor, mode):
    """By how many pixels labels move when their map is made `factor` times smaller."""
    position = torch.arange(60) + 0.5
    taken_from = F.interpolate(position[None, None], size=60 // factor, mode=mode)[0, 0]
    put_at = factor * (torch.arange(60 // factor) + 0.5)
    return (put_at - taken_from).mean().item()


for factor in (2, 3, 4, 5):
    print(f"{factor} times smaller:", ", ".join(f"{mode} {shift(factor, mode):+.1f} px"
                                                for mode in ("nearest", "nearest-exact")))

# %% [markdown]
# `"nearest"` takes the first pixel of each cell, and the labels slide against the picture by up to
# half a cell. `"nearest-exact"` takes the one in the middle (an even cell has no middle; half a
# pixel remains). The package uses the second.

# %% [markdown]
# ## Move both or none
#
# Augmentation shows the network each picture in ever new versions: turned, scaled, mirrored, cut.
# What moves the picture must move the labels, by the same amount. torchvision's transforms do
# that by *type*: an `Image` and a `Mask` that go through together get one common draw.

# %%
image, label = coco[237]
print(type(image).__name__, tuple(image.shape), "|", type(label).__name__, tuple(label.shape))
a, b = v2.RandomHorizontalFlip(p=1.0)(image, label)
print("both mirrored:", torch.equal(a, image.flip(-1)), torch.equal(b, label.flip(-1)))

# %% [markdown]
# And if only the picture is mirrored? Take a network that answers perfectly, and mirror its answers
# against the labels:

# %%
def scores(pairs):
    """(pixel accuracy, mIoU over 11 classes) of (prediction, label) pairs."""
    confusion = sum(sl.evaluation.confusion_matrix(p, q, 11) for p, q in pairs)
    iou = confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())
    return (confusion.diag().sum() / confusion.sum()).item(), iou.mean().item()


tensors = [torch.from_numpy(m).long() for m in maps[::4]]
right, miou = scores([(m.flip(-1).where(m.flip(-1) < 11, 0), m) for m in tensors])
print(f"perfect, but mirrored: {right:.0%} of pixels right, mIoU {miou:.2f}")

# %% [markdown]
# Most pixels are still right, and the mIoU of a *perfect* answer falls from 1 to 0.22, not far
# above what a minute of training reaches in [chapter 00](00_start_here.ipynb). With a flip at every
# second picture, half of all lessons would be like that. The loss would still fall.

# %% [markdown]
# ### PSPNet's recipe, step by step
#
# The report that this course follows trains on COCO with the augmentation of PSPNet. Here it is,
# with the coin tosses left out: every step is taken.

# %%
def every_step(size, seed):
    """Name, picture and label after each step of PSPNet's recipe, each step taken."""
    torch.manual_seed(seed)
    image, label = coco[237]
    yield "original", image, label
    for step in sl.data.augmentation("pspnet", size).transforms:
        step.p = 1.0
        inner = step.transforms[0] if isinstance(step, v2.RandomApply) else step
        image, label = inner(image, label)
        yield type(inner).__name__.removeprefix("Random"), image, label


fig, axes = plt.subplots(2, 6, figsize=(5.2, 2.2))
for column, (title, picture, labels) in zip(axes.T, every_step(size=144, seed=11)):
    column[0].imshow(masks.as_picture(picture), interpolation="auto")
    column[1].imshow(masks.colourise(labels, coco.palette))
    column[0].set_title(f"{title}\n{tuple(labels.shape)}", fontsize=7)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
show.figure(fig, colours=128, alt=(
    "Six columns show a street scene above its label map: the original, turned by a few degrees, "
    "enlarged, cut to a square, blurred, and mirrored so that the word STOP reads backwards. The "
    "label map takes part in every step except the blur; corners that the turn has opened are "
    "grey in the picture and white, 255, in the map."))

# %% [markdown]
# From left to right: turn by up to 10°, scale by 0.5 to 2, cut a square, blur, mirror. The lower
# row takes part in each step but the blur: colour and sharpness are the picture's business alone.
# In the corners that turning opens there is no picture. They get ImageNet's mean colour, which is 0
# once the picture is normalised, and the label 255, because nobody says what is there.
#
# PSPNet's own code scales first, then turns, blurs, mirrors, cuts. Turning and scaling may be
# exchanged, and so may blur and mirror with the cut; the costly steps then meet fewer pixels.

# %% [markdown]
# ### By chance
#
# Now as it is in training, with SegFormer's recipe for comparison.

# %%
torch.manual_seed(3)
drawn = [sl.data.augmentation(name, 128)(*coco[237]) for name in ["pspnet"] * 2 + ["segformer"] * 2]
pictures = [masks.overlay(image, label, coco.palette, 0.45) for image, label in drawn]
fig = show.grid(pictures, columns=4, cell=1.4, interpolation="auto")
show.figure(fig, alt=(
    "Four versions of the same street scene with the labels laid over it. Left two, PSPNet's recipe: "
    "crops of different size, turned or blurred. Right two, SegFormer's recipe: crops without turning "
    "or blur, in changed colours."))

# %% [markdown]
# Left two PSPNet, right two SegFormer. In all of them the coloured areas sit exactly on the
# things: that is the test to make with one's own eyes, for every new data set, before training.
#
# SegFormer does not turn and does not blur. It changes colours instead.

# %% [markdown]
# ### Photometric distortion
#
# Four changes, each made half of the time, each by a random amount. The ends of the four ranges,
# on a photograph that comes with matplotlib:

# %%
with Image.open(cbook.get_sample_data("grace_hopper.jpg")) as file:
    photo = torch.from_numpy(np.array(file.convert("RGB"))[20:420, 60:460]).permute(2, 0, 1)
small = F.interpolate(photo[None].float() / 255, size=56, mode="bilinear", antialias=True)[0]
distort = sl.data.transforms.PhotometricDistortion()
ends = {"brightness": (-32 / 255, 32 / 255), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5),
        "hue": (-0.1, 0.1)}
pictures = [getattr(distort, name)(small, amount).clamp(0, 1)
            for name, pair in ends.items() for amount in pair]
amounts = ["-32", "+32", "× 0.5", "× 1.5", "× 0.5", "× 1.5", "-36°", "+36°"]
titles = [f"{name}\n{amount}" for name, amount in zip(np.repeat(list(ends), 2), amounts)]
fig = show.grid(pictures, titles, columns=4, cell=1.5)
show.figure(fig, alt=(
    "Eight versions of a portrait in front of a flag: darker and brighter, half and one and a "
    "half times the contrast, paler and stronger colours, and the hue turned both ways, which "
    "makes skin pinkish or yellowish green."))

# %% [markdown]
# Upper row brightness and contrast, lower row saturation and hue. A face stays a face in all of
# them, and that is the lesson for the network. "Contrast" here is multiplication by a factor, so it
# changes the brightness too. The numbers come from the released settings; the paper does not
# mention this step.

# %% [markdown]
# ### Crops that show something
#
# How often does one class fill three quarters of a crop? With a plain random crop, and with the
# one that may try ten times:

# %%
def crowded(crop, draws=150):
    """Share of random crops in which one class has 75 % of the labelled pixels or more."""
    torch.manual_seed(0)
    full = 0
    for i in range(draws):
        mask = tv_tensors.Mask(torch.from_numpy(maps[3 * i].astype(np.int64)))
        labels = crop(mask).as_subclass(torch.Tensor)
        counts = torch.bincount(labels[labels != 255], minlength=1)
        full += counts.max() >= 0.75 * counts.sum()
    return full.item() / draws


plain, varied = v2.RandomCrop(96), sl.data.transforms.VariedCrop(96)
print(f"plain crop {crowded(plain):.0%}, up to ten tries {crowded(varied):.0%}")

# %% [markdown]
# Trying again helps, but it cannot find what is not there: many of these scenes are nearly all
# background wherever one looks.

# %% [markdown]
# ### Turn the knobs
#
# One function moves picture and labels together; first a grid, then, if the notebook is running,
# sliders.

# %%
def moved(angle, scale, mirror, image_only=False):
    """Picture and labels turned, scaled and mirrored, laid over each other."""
    image, label = coco[237]

    def move(item, fill):
        item = item.flip(-1) if mirror else item
        return TF.affine(tv_tensors.wrap(item, like=image if fill else label), angle, [0, 0], scale,
                         [0, 0], interpolation=v2.InterpolationMode.NEAREST, fill=fill or 255)

    return masks.overlay(move(image, [124, 116, 104]), label if image_only else move(label, None),
                         coco.palette, 0.45)


settings = [(10, 1.0, False), (0, 0.6, True), (-10, 1.8, False)]
titles = ["10°", "× 0.6, mirrored", "-10°, × 1.8"]
wrong = moved(*settings[-1], image_only=True)
pictures = [*(moved(*s) for s in settings), wrong]
fig = show.grid(pictures, [*titles, "picture only"], columns=4, cell=1.5, interpolation="auto")
show.figure(fig, alt=(
    "The street scene with its labels laid over it: turned by ten degrees, made "
    "smaller and mirrored, and enlarged and turned; the coloured areas always lie on the things. "
    "In the last panel only the picture has moved, and the areas lie beside them."))

# %% [markdown]
# Three settings in which the areas follow the things, and last what happens if only the picture
# moves.

# %% tags=["nbval-ignore-output"]
from ipywidgets import Checkbox, FloatSlider, IntSlider, interact


def try_move(angle, scale, mirror, picture_only):
    fig = show.grid([moved(angle, scale, mirror, picture_only)], [f"{angle}°, × {scale:.1f}"], cell=4)
    show.figure(fig, alt=f"The street scene turned by {angle} degrees and scaled by {scale:.1f}.")


_ = interact(try_move, angle=IntSlider(10, -45, 45, continuous_update=False),
             scale=FloatSlider(value=1, min=0.5, max=2, step=0.1, continuous_update=False),
             mirror=Checkbox(False), picture_only=Checkbox(False))

# %% [markdown]
# ## Chest CT: masks in three colours
#
# The second data set is a stack of slices through the chest. Its layout: a folder of pictures, a
# folder of masks, and `train.csv`, which says what belongs to what.

# %%
ct_root = sl.data.named_folder("sample-chest-ct")
with open(ct_root / "train.csv", newline="") as file:
    rows = list(csv.DictReader(file))
count = len(list((ct_root / "images" / "images").iterdir()))
print(len(rows), "pairs;", count - len(rows), "pictures have no mask")
print(*rows[0].items(), sep="\n")

# %% [markdown]
# - The **patient** is the part before the first underscore, the **slice** is the number. Nothing
#   else in the file says who is who.
# - Some pictures have no mask, as in the real set: pair by the table, never by two sorted lists.
# - Slice numbers have no leading zeros. As text, 100 comes before 35:

# %%
def patient_and_slice(name):
    patient, number = Path(name).stem.split("_")
    return patient, int(number)


patient = patient_and_slice(rows[0]["ImageId"])[0]
names = [row["ImageId"] for row in rows if patient_and_slice(row["ImageId"])[0] == patient]
for how, key in {"as text:  ": None, "as number:": patient_and_slice}.items():
    print("sorted", how, [patient_and_slice(name)[1] for name in sorted(names, key=key)][:8])

# %% [markdown]
# Each mask is a colour picture. The channels are classes: **red trachea, green heart, blue lung**.
# (Libraries that read blue first, such as OpenCV, see lung, heart, trachea.)

# %%
index = 226
with Image.open(ct.mask_paths[index]) as file:
    stored = np.array(file)
image, label = ct[index]
pictures = [masks.as_picture(image), stored, stored[..., 2], stored[..., 1], stored[..., 0],
            masks.overlay(image, label, ct.palette)]
titles = ["slice", "mask file", "blue: lung", "green: heart", "red: trachea", "label map"]
fig = show.grid(pictures, titles, columns=6, cell=1.0, cmap="gray", vmin=0, vmax=255,
                interpolation="auto")
show.figure(fig, alt=(
    "A slice through a drawn chest, its mask file in red, green and blue, the three channels in "
    "grey, and the resulting label map laid over the slice: two lungs, the heart between them "
    "and the small windpipe."))

# %% [markdown]
# From left to right: the slice, the file, its three channels, and the label map made from them.
# There is no channel for background: it is where none of the three says anything. And nothing in
# such a file forbids two channels at once. The package lets the later class win: heart over lung,
# trachea over both, so that the smallest is never hidden. (The released solution of the data set's
# author has three independent yes-or-no outputs instead. Then nothing needs to win, but nothing
# forbids a heart inside the lung either.)

# %% [markdown]
# ### Which values are "yes"?
#
# The masks are JPEG files. JPEG keeps pictures small by forgetting what the eye does not miss, and a
# sharp edge comes back with ripples. It forgets even more of colours: usually they are kept at half
# the resolution, and here the *class* is a colour. Look at the values that are in the files, and at
# those that come back if the same masks are saved again in the usual way:

# %%
channels = {"lung": 2, "heart": 1, "trachea": 0}


def saved_again(labels, quality):
    """What comes back of a label map that is saved as JPEG: uint8 (H, W, 3)."""
    colours = 255 * np.stack([labels == value for value in (3, 2, 1)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="JPEG", quality=quality)
    return np.array(Image.open(file))


def read_rgb(path):
    with Image.open(path) as file:
        return np.array(file.convert("RGB"))


some = range(0, len(ct), 3)
stored = np.stack([read_rgb(ct.mask_paths[i]) for i in some])
again = np.stack([saved_again(ct.read_mask(i), quality=75) for i in some])

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), sharey=True)
for ax, (title, values) in zip(axes, {"as stored": stored, "saved again, quality 75": again}.items()):
    for (name, channel), colour in zip(channels.items(), ["blue", "green", "red"]):
        histogram = np.bincount(values[..., channel].ravel(), minlength=256)
        ax.step(range(256), histogram + 0.5, where="mid", color=show.COLOURS[colour], lw=1, label=name)
    for threshold in (127, 240):
        ax.axvline(threshold, color="#555555", ls="--", lw=1)
    ax.set(title=title, yscale="log", xlabel="value in the mask", xticks=(0, 64, 127, 192, 240))
axes[0].set_ylabel("pixels (logarithmic)")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "Histograms of the values in the masks' three channels on a logarithmic axis. As stored there "
    "is a peak at 0 and one at 255, each with a skirt, and nothing between 70 and 200. Saved again "
    "with half the colour resolution, the skirts of lung and trachea have grown together; only the heart keeps a gap "
    "around the middle. Dashed lines mark 127, in the middle, and 240, within the skirt of the upper peak."))

# %% [markdown]
# Left, gentle compression: two peaks with skirts, and a clean gap. Right, the usual one: for lung and
# trachea the gap has filled up. A threshold has to be chosen. The data set's author keeps 240 and above (right dashed
# line); the package keeps everything above 127, the middle. What does the higher one cost?

# %%
def lost(values, threshold=240):
    """Share of each class's pixels (above 127) that a higher threshold drops."""
    part = {name: 1 - (values[..., c] >= threshold).sum() / (values[..., c] > 127).sum()
            for name, c in channels.items()}
    return ", ".join(f"{name} {value:.0%}" for name, value in part.items())


print("as stored:  ", lost(stored))
for quality in (95, 75, 50):
    print(f"quality {quality}: ", lost(np.stack([saved_again(ct.read_mask(i), quality) for i in some])))

# %%
truth = ct.read_mask(index)
y, x = (int(v.mean()) for v in np.nonzero(truth == 3))
here = np.s_[y - 13:y + 13, x - 30:x + 30]
values = [read_rgb(ct.mask_paths[index])[here][..., 0], saved_again(truth, 75)[here][..., 0]]
four = np.array([[40, 40, 40], [0, 114, 178], [230, 159, 0], [240, 240, 240]], np.uint8)
groups = [3 * (truth[here] == 3), *(np.digitize(v, [16, 128, 240]) for v in values)]
titles = ["trachea in the label map", "the file's red channel", "saved again, quality 75"]
fig = show.grid([four[group] for group in groups], titles, cell=2.3)
show.figure(fig, alt=(
    "The trachea of one slice, enlarged, in four colours. In the file its shapes are white with a "
    "few orange pixels, most of them near the rim, and a few blue ones outside. Saved again, an orange "
    "band one to three pixels wide runs around a smaller white core with orange specks in it, and a "
    "blue band around that."))

# %% [markdown]
# White (240 and more) is kept by both thresholds; orange (128 to 239) is lost at 240; blue (16 to
# 127) is noise that both drop. **Most of what is lost lies along the border.** As the masks are stored, a
# few per cent are gone. Saved again in the usual way, the heart loses least, the lung with its long
# outline a fifth, and the trachea, a thin thing that is all border, nearly half; at 127 the outline
# stays where it was drawn. (The real masks lie between the gentle and the usual compression;
# once they are on your disk, a cell further down measures them.)
#
# So: look at the values before you choose, take the middle, and save your *own* masks as PNG.

# %% [markdown]
# ### Window and contrast
#
# A scanner measures in Hounsfield units: air −1000, water 0, bone 700 and more. A picture has 256
# greys. A *window* says which part of the scale they are spent on: below it everything is black,
# above it white. The phantom behind our sample knows its true values, so the same slice can be
# looked at through three windows:

# %%
from segformer_lite.data.sample.phantom import Phantom

windows = {"lung\n-1350 to 150": (-1350, 150), "soft tissue\n-160 to 240": (-160, 240),
           "bone\n-450 to 1050": (-450, 1050)}
views = []
for window in windows.values():
    phantom = Phantom(np.random.default_rng(7))
    scanner = phantom.scanner
    scanner.window, scanner.gamma, scanner.round_view = window, 1.0, False
    views.append(phantom.slice(0.55)[0])
assert len({view.tobytes() for view in views}) == 3, "each window gives another picture"
fig = show.grid(views, list(windows), cell=1.5, cmap="gray", vmin=0, vmax=255, interpolation="auto")
show.figure(fig, colours=64, alt=(
    "The same drawn slice through three windows. The lung window shows vessels in the lungs and "
    "everything else pale; the soft-tissue window shows fat, muscle and heart in different greys "
    "and the lungs plain black; the bone window is grey with bright bones."))

# %% [markdown]
# Left: fine vessels in the lung, everything else pale. Middle: heart, muscle and fat apart, the
# lung one black hole. Right: bone. These three are customary settings. What lies outside the window
# is *gone*: no brightness slider brings it back from an 8-bit picture.
#
# In the Kaggle set the choice has been made already, and not the same for everybody. Our sample is like
# it there. Five of its drawn patients, at about the same height:

# %%
first_of = {patient: ct.patients.index(patient) for patient in dict.fromkeys(ct.patients)}
starts = [list(first_of.values())[k] for k in (0, 1, 2, 3, 5)]
pictures = [ct[start + 11][0] for start in starts]
titles = [f"mean {picture.float().mean():.0f}" for picture in pictures]
seen = torch.stack([ct[starts[-1] + i][0][0] for i in range(27)]).amax(0) > 4  # ever, in 27 slices
fig = show.grid([*pictures, seen], [*titles, "ever above 4"], columns=6, cell=0.95, cmap="gray",
                interpolation="auto")
show.figure(fig, colours=64, alt=(
    "Five drawn patients at about the same height. Some are dark, some bright, and some have arms "
    "beside the chest. A sixth panel shows where the fifth patient's slices are ever brighter than "
    "4: in a disc that touches the four sides of the picture."))

# %% [markdown]
# Brightness differs between patients, but hardly within one: it is a *signature*. A network has to
# learn not to rely on it (photometric distortion helps), and a test on the same patients would reward
# relying on it.
#
# The last panel shows something that the eye overlooks on black: a **circular field of view**. Beyond
# the disc the scanner saw nothing, and the value is 0 in every slice (but for JPEG's ripples at the rim,
# hence the 4). The masks say
# background there, and so does the package. Calling it 255 would be defensible too; it would hardly
# change a score, because black corners are easily told from lungs.

# %% [markdown]
# ## The leak between neighbours
#
# Neighbouring slices are near-copies. If slices are divided at random, nearly every slice of the
# test has its neighbour in training. How good does a method look that understands *nothing*?
#
# Take the dumbest method there is: **for each slice find the most similar other slice, and copy its
# mask.** Similar means: smallest difference of the pictures, shrunk to 32 × 32 pixels and brought
# to the same mean and contrast. Nothing is trained.
#
# Two rules. *By slice*: any other slice may be copied, as after a random split. *By patient*: only
# slices of other patients may be.
#
# **Predict, then run.** What mIoU does copying reach by slice and by patient?
#
# - A. Low under both rules: copying is not segmentation.
# - B. About 0.8 by slice, and clearly less by patient.
# - C. About 0.65 under both: chests look alike anyway.

# %%
both = [sl.data.open_dataset("sample-chest-ct", split) for split in ("train", "val")]
items = [dataset[i] for dataset in both for i in range(len(dataset))]
patients = np.array([p for dataset in both for p in dataset.patients])
small = torch.stack([F.avg_pool2d(image[:1].float(), 8).flatten() for image, _ in items])
small = (small - small.mean(1, keepdim=True)) / small.std(1, keepdim=True)
labels = torch.stack([label.as_subclass(torch.Tensor)[::2, ::2] for _, label in items])
print(tuple(small.shape), tuple(labels.shape), len(set(patients)), "patients")

# %%
def most_similar(small, patients, rule):
    """For each slice the index of the one to copy."""
    distance = torch.cdist(small, small).fill_diagonal_(torch.inf)  # not itself
    if rule == "by patient":
        distance[torch.from_numpy(patients[:, None] == patients)] = torch.inf
    return distance.argmin(1)


def copied_iou(labels, source):
    confusion = sl.evaluation.confusion_matrix(labels[source], labels, 4)
    return confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())


source = {rule: most_similar(small, patients, rule) for rule in ("by slice", "by patient")}
for rule, chosen in source.items():
    iou = copied_iou(labels, chosen)
    per_class = ", ".join(f"{name} {value:.2f}" for name, value in zip(ct.classes, iou))
    print(f"{rule:10s} mIoU {iou.mean():.2f} ({per_class})")
    print(f"{'':10s} copied from the same patient: {np.mean(patients[chosen] == patients):.0%}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** By slice, remembering scores 0.80. By patient, the only question that matters to the *next*
# patient, it scores far less, and the small trachea suffers most.
#
# </details>

# %%
asked = 92
chosen = [asked, *(int(found[asked]) for found in source.values())]
pictures = [masks.overlay(*items[i], ct.palette) for i in chosen]
titles = ["asked", "copied by slice", "copied by patient"]
fig = show.grid(pictures, titles, cell=1.6, interpolation="auto")
show.figure(fig, colours=64, alt=(
    "Three slices with their labels. The one copied by slice is almost the same picture as the "
    "one asked for. The one copied by patient is another body of similar shape, with lungs and "
    "main bronchi of other outlines."))

# %% [markdown]
# Left the slice in question. In the middle what the rule "by slice" finds: the neighbour, the same
# body cut a little higher or lower. Right the best that another patient has to offer.
#
# *Is it really the neighbours?* Then the leak must shrink when slices lie farther apart. Keep only
# every second, third, fourth slice of each patient:

# %%
rank = np.array([list(np.flatnonzero(patients == p)).index(i) for i, p in enumerate(patients)])
curve = {rule: [] for rule in source}
for step in (1, 2, 3, 4):
    keep = np.flatnonzero(rank % step == 0)
    for rule, values in curve.items():
        chosen = most_similar(small[keep], patients[keep], rule)
        values.append(copied_iou(labels[keep], chosen).mean().item())
for rule, values in curve.items():
    print(f"{rule:10s}", " ".join(f"{v:.2f}" for v in values))

# %%
fig, ax = plt.subplots(figsize=(4.8, 2.3))
for (rule, values), style in zip(curve.items(), ["o-", "s--"]):
    ax.plot((1, 2, 3, 4), values, style, label=rule)
ax.set(xlabel="every n-th slice is kept", ylabel="mIoU of copying", xticks=(1, 2, 3, 4),
       ylim=(0.4, 0.9))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show.figure(fig, alt=(
    "mIoU of copying against the spacing of slices. By slice it falls steeply, from 0.80 with all "
    "slices to about 0.53 with every fourth. By patient it stays nearly level around 0.65. The "
    "curves cross near every second slice."))

# %% [markdown]
# Yes. By slice (solid) the score hangs on the spacing; by patient (dashed) the spacing hardly
# matters. Far to the right the solid line even falls below: the most similar picture is still one of
# the same patient, whose outline gives it away, but it was cut at another height.
#
# Our phantom is cut into at most 27 slices from neck to belly. A real scan of 30 centimetres in steps
# of 1 to 5 millimetres has 60 to 300, so its neighbours are closer still, and the leak is larger.
#
# A trained network leaks in the same way: what it remembers of a patient is worth points. The remedy
# costs nothing. **Divide patients, not slices**; each slice goes where its patient goes. The package does
# it by default:

# %%
train_set, val_set = both
print(len(set(train_set.patients)), "patients to learn from,", len(set(val_set.patients)), "to test on")
assert set(train_set.patients).isdisjoint(val_set.patients)
print("nobody is in both")

# %% [markdown]
# Chest CT is not special. Frames of one video, satellite tiles of one town, photographs of one
# street: whatever comes in near-copies must be divided by its source.

# %% [markdown]
# ## The real data
#
# The whole course runs on the two samples. For results of the report's kind you need the real sets.
# How much is that?

# %%
sizes = {"COCO train2017.zip": 19_336_861_798, "COCO val2017.zip": 815_585_330,
         "COCO annotations_trainval2017.zip": 252_907_541, "chest CT, from Kaggle": 1_800_000_000}
for name, size in sizes.items():
    print(f"{name:34s} {size / 1e9:5.2f} GB, {size * 8 / 100e6 / 60:4.1f} minutes at 100 Mbit/s")

# %% [markdown]
# Nobody needs all of it. One command fetches the annotations and only the pictures that you ask for,
# checks each, and goes on where it was cut; another unpacks the zip from Kaggle:
#
# ```
# segformer-lite data coco --images 5000 --out data/coco             # 1.9 GB
# segformer-lite data chest-ct --zip FILE --out data/chest_ct
# segformer-lite data verify data/coco                               # what is there, what is broken
# ```
#
# They lie beside the samples, where `sl.data.open_dataset("coco")` and `("chest_ct")` find them.
# `data/README.md` has the sizes and the details. (What feeds a network fast enough, and what
# `segformer-lite data pack` has to do with it: [chapter 14](14_speed.ipynb#feeding-it).) Whoever
# has the archives already unpacks them there:
#
# | folder | holds |
# |---|---|
# | `data/coco/` | `annotations/` (with `instances_train2017.json`, …), `train2017/`, `val2017/` |
# | `data/chest_ct/` | `train.csv`, `images/images/`, `masks/masks/` |
#
# `val2017` and the annotations, 1.1 GB, are enough to begin with: a folder that holds only one of
# the two picture folders is divided, 85 % to learn from and 15 % to test on.
#
# Two words on licences. COCO's annotations are CC BY 4.0, but each photograph belongs to whoever
# took it, under the licence its entry names. The CT set's page states no licence that we could
# confirm: learn with it, pass nothing on. That is why this course shows drawn pictures only.
#
# If they are there, the measurements of this chapter on real pictures:

# %% tags=["nbval-ignore-output"]
if sl.data.named_folder("coco").is_dir():
    real = sl.data.open_dataset("coco", "val", limit=500)
    for name, order in orders.items():
        objects, _ = painted_in(order, real, outline=lambda annotation, pixels: pixels)
        print(f"COCO with its own outlines, {name}: {objects:.1%} of the objects kept")
if sl.data.named_folder("chest_ct").is_dir():
    real = sl.data.open_dataset("chest_ct", "val", limit=100)
    print("chest CT, lost at 240:", lost(np.stack([read_rgb(path) for path in real.mask_paths])))
print("done; what is not in the folder data is left out")

# %% [markdown]
# ### Your own pictures
#
# Two folders and `classes.txt`, a class's name in each line, are enough. Masks are grey PNG files, one
# class number per pixel. PNG, because it returns exactly what was put in. Two pictures lie in the folder
# below, and one is seen: without `train.txt` and `val.txt`, which list pictures, the folder is divided
# into training and validation.

# %%
folder = Path(tempfile.mkdtemp()) / "my_images"
for part in ("images", "masks"):
    (folder / part).mkdir(parents=True)
(folder / "classes.txt").write_text("background\nface\n")
mask = np.zeros((400, 400), np.uint8)
mask[70:190, 150:250] = 1  # a rough box around the face
mask[190:200, 150:250] = 255  # where does a face end? nobody says
for name in ("first", "second"):
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(folder / "images" / f"{name}.jpg")
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")

own = sl.data.open_dataset(folder)
image, label = own[0]
print(own, tuple(image.shape), label.unique().tolist())

# %% [markdown]
# And if a mask is wrong, for instance drawn with 200 instead of 1?

# %%
Image.fromarray(np.where(mask == 1, 200, mask).astype(np.uint8)).save(own.mask_paths[0])
try:
    own[0]
except ValueError as error:
    print(str(error).replace(str(folder), "my_images"))

# %% [markdown]
# It says which file, what it found, and what it expected. A loader that clipped, or divided by the
# largest value, would have been "more robust", and you would never have known.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. The other way round (15 minutes)
#
# Write the run lengths of a mask: column by column, zeros first.
#
# <details><summary>Hint</summary>
#
# Flatten the transposed mask. A run ends where the next pixel differs: `np.diff` and
# `np.flatnonzero` find those places, and `np.diff` of the places gives lengths.
#
# </details>
# <details><summary>Help: only some masks come back right</summary>
#
# Does the mask begin with a one? Then the first run, of zeros, has length 0 and must be written.
#
# </details>

# %% tags=["exercise"]
def my_run_lengths(mask: np.ndarray) -> list[int]:
    """mask: bool (H, W) -> COCO's uncompressed run lengths."""
    # SOLUTION
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths
    # END SOLUTION


checks.run_lengths(my_run_lengths)

# %% [markdown] tags=["exercise"]
# ### 2. Paint some classes only (20 minutes)
#
# A network should learn a few of the classes. Make its label map:
#
# - pixels of no object: 0;
# - crowds of a wanted class: 255, below all objects; crowds of other classes leave no trace;
# - then *all* objects, the one with the most pixels first. A wanted class paints its label. Any
#   other paints 0: it hides what is behind it, but has no name of its own.
#
# <details><summary>Hint</summary>
#
# Two loops: crowds first, then objects sorted by `pixels.sum()`, largest first.
# `wanted.get(category, 0)` is the label of any category.
#
# </details>
# <details><summary>Help: "what lies behind them shows through"</summary>
#
# A cat (not wanted) in front of a person (wanted): the cat's pixels are not person. Paint 0 there.
#
# </details>

# %% tags=["exercise"]
def my_paint(instances: list[tuple[np.ndarray, int, bool]], size: tuple[int, int],
             wanted: dict[int, int]) -> np.ndarray:
    """Label map uint8 (H, W) of `size`.

    instances: (pixels, bool (H, W); category id; whether it is a crowd).
    wanted: category id -> label, for the classes to learn.
    """
    # SOLUTION
    labels = np.zeros(size, np.uint8)
    for pixels, category, crowd in instances:
        if crowd and category in wanted:
            labels[pixels] = 255
    objects = [(pixels, category) for pixels, category, crowd in instances if not crowd]
    for pixels, category in sorted(objects, key=lambda pair: -pair[0].sum()):
        labels[pixels] = wanted.get(category, 0)
    return labels
    # END SOLUTION


checks.paint(my_paint)

# %% [markdown] tags=["exercise"]
# ### 3. Mirror, enlarge, cut: both (15 minutes)
#
# Three steps, in this order: mirror left and right if `mirror` says so; enlarge both sides
# `factor` times; cut the `size` × `size` square whose upper left pixel is (`top`, `left`). The
# picture is enlarged bilinearly by `F.interpolate` as it comes (`align_corners=False`), rounded or
# truncated, and stays uint8. The labels stay labels. The square always fits.
#
# <details><summary>Hint</summary>
#
# `F.interpolate` wants (B, C, H, W) and floats: `image[None].float()`, and `label[None, None]`.
#
# </details>
# <details><summary>Help: "classes were invented"</summary>
#
# The labels went through a mean. Use `mode="nearest-exact"` for them. (For whole factors `"nearest"`
# gives the same.)
#
# </details>

# %% tags=["exercise"]
def my_augment(image: torch.Tensor, label: torch.Tensor, mirror: bool, factor: int,
               top: int, left: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """image: uint8 (3, H, W), label: int64 (H, W) -> uint8 (3, size, size), int64 (size, size)."""
    # SOLUTION
    if mirror:
        image, label = image.flip(-1), label.flip(-1)
    image = F.interpolate(image[None].float(), scale_factor=factor, mode="bilinear")
    label = F.interpolate(label[None, None].float(), scale_factor=factor, mode="nearest-exact")
    here = np.s_[..., top:top + size, left:left + size]
    return image[0][here].round().to(torch.uint8), label[0, 0][here].long()
    # END SOLUTION


checks.augment(my_augment)

# %% [markdown] tags=["exercise"]
# ### 4. Every patient once (20 minutes)
#
# With few patients a single test set is a matter of luck. *Cross-validation* takes turns: divide
# the patients into `k` groups; in turn `i`, group `i` is the test and all others are the training.
# Make the `k` pairs of data sets with `sl.data.ChestCT(root, split, val_patients=...)`. The check
# has a small set of its own, with patients of unequal size.
#
# Not tested: which patient comes into which group.
#
# <details><summary>Hint</summary>
#
# `sl.data.ChestCT(root, "train", val_patients=[]).patients` names the patient of *every* slice.
# Then `everybody[i::k]` is group i.
#
# </details>
# <details><summary>Help: "no slice is left for 'val'"</summary>
#
# A group is empty. `sorted(set(...))` must come before the slicing `[i::k]`, and the groups are
# groups of patients, not of slices.
#
# </details>

# %% tags=["exercise"]
def my_folds(root: Path, k: int) -> list[tuple[sl.data.ChestCT, sl.data.ChestCT]]:
    """k pairs (train, val); every patient is in val once and never in train at the same time."""
    # SOLUTION
    everybody = sorted(set(sl.data.ChestCT(root, "train", val_patients=[]).patients))
    groups = [everybody[i::k] for i in range(k)]
    return [tuple(sl.data.ChestCT(root, split, val_patients=group) for split in ("train", "val"))
            for group in groups]
    # END SOLUTION


checks.patient_folds(my_folds)

# %% [markdown]
# ### How far have you come?
#
# Every check that passes is remembered, on this machine only. This lists the exercises of the whole
# course:

# %% tags=["nbval-ignore-output"]
checks.progress()

# %% [markdown]
# ## The package's version
#
# The painter, in place:

# %%
print(inspect.getsource(sl.data.coco.paint))

# %% [markdown]
# The same two passes, with a rule for classes that are not learned: an object of theirs paints
# background over what it hides, a crowd of theirs leaves no trace. Around it stands what a real file
# needs: maps are painted once and kept in a cache, every entry is checked, and an error names the
# file and the annotation. Now compare, every map of the training set, pixel by pixel:

# %%
number = {image["file_name"]: i for i, image in enumerate(tiny.images)}
for i, name in enumerate(coco.names):
    assert np.array_equal(tiny.label_map(number[name]), maps[i]), name
assert torch.equal(tiny[number[coco.names[0]]][0], coco[0][0].as_subclass(torch.Tensor))
print(len(coco), "label maps are equal")
print(len(tiny) - len(coco), "pictures without any object are left out by the package")

# %% [markdown]
# And a chest CT mask is a threshold and an order:

# %%
for i in range(0, len(ct), 10):
    with Image.open(ct.mask_paths[i]) as file:
        drawn = np.array(file) > 127
    mine = np.zeros(drawn.shape[:2], np.uint8)
    for value, channel in enumerate(channels.values(), start=1):  # lung, heart, trachea
        mine[drawn[..., channel]] = value
    assert np.array_equal(mine, ct.read_mask(i))
print("equal")

# %% [markdown]
# ## What the papers say, what the code does
#
# - **SegFormer's augmentation** (section 4.1): scale 0.5 to 2, mirror, crop of 512 × 512, 1024 ×
#   1024 or 640 × 640. The released settings also draw crops anew above 75 % of one class, and
#   change colours. Neither is in the paper.
# - **PSPNet's augmentation**, in its released code: scale 0.5 to 2, turn by up to 10° half of the
#   time, blur half of the time, mirror, crop of 473 × 473. No change of colours.
# - **The report** (section 4.1) trains on 50,000 COCO pictures of 256 × 256 with PSPNet's
#   augmentation. It does not say which labels it used or how many classes. Section 4.2 uses 15,000
#   chest CT slices and does not say how they were divided, so nobody can tell whether patients
#   leaked.
# - **COCO is several data sets.** This course learns the 80 kinds of *things*. The paper uses
#   COCO-Stuff, which adds *stuff* such as sky and grass: 172 classes in the paper's count, while
#   the released code lists 182 (the range of ids) and other software 171.
# - **The mean of the loss.** The released code divides by *all* pixels of a crop, 255 among them;
#   transformers divides by the labelled ones, and gives "not a number" when there are none.
#
# Sources: SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203); PSPNet,
# [arXiv:1612.01105](https://arxiv.org/abs/1612.01105); COCO,
# [arXiv:1405.0312](https://arxiv.org/abs/1405.0312); COCO-Stuff,
# [arXiv:1612.03716](https://arxiv.org/abs/1612.03716).

# %% [markdown]
# ## Pitfalls
#
# - Run lengths read row by row, or beginning with ones.
# - Category ids used as labels; a hole in the ids forgotten.
# - Objects painted in the order of the file, or crowds painted last, over the people before them.
# - Labels resized with a mean; labels resized with `"nearest"` and shifted against the picture.
# - A transform applied to the picture alone. Two calls with two draws are no better.
# - Masks saved as JPEG, and a threshold chosen without looking at the values.
# - Channels in the order of another library: lung and trachea change places.
# - Picture and mask paired by sorting two folders.
# - Slices of one patient on both sides of a split.

# %% [markdown]
# ## In short
#
# - A label map holds one class number per pixel. It is *made*, from outlines that overlap, by rules
#   somebody chose.
# - Crowds are 255: in no loss and in no score. Background is a class.
# - Largest first, because a polygon has no holes.
# - What moves the picture moves the labels; labels are picked, never averaged.
# - JPEG masks need a threshold, and a high one eats borders.
# - Divide by patient. Copying alone scores well when you do not.

# %% [markdown]
# ## What people ask
#
# **My labels are 0 and 255, two classes. What now?** If 255 means the object, divide by 255 first:
# left as it is, every object pixel is ignored and the loss knows background only. Do it once, and
# print the values after.
#
# **Binary task: one output or two?** Both are right. Two outputs with cross-entropy, or one output
# with binary cross-entropy on labels 0 and 1. A loss that becomes *negative* is a sign of labels
# like 255 in the second.
#
# **Do I need `reduce_zero_label`?** Only if 0 means "other" and shall not be scored, as in ADE20K.
# For COCO and chest CT 0 is background, a class: no.
#
# **Why do my IoU values look like recall?** Background is probably 255 in your labels. Then false
# finds on background are not counted.
#
# **Must padding be 255?** Yes, in the labels. In the picture any constant does; the mean colour is
# closest to "nothing".
#
# **Should rare classes get more weight in the loss?** SegFormer does without weights. Try it only
# after the plain loss, and look at the false finds too: weight buys recall and pays in precision.
#
# **Can I keep the score of a slice-wise split for comparison with others?** Report both, and say
# which is which.

# %% [markdown]
# ## Next
#
# The network is built, its data are in order. [Chapter 09](09_train_coco.ipynb) trains it on COCO
# and puts a claim to the test, [chapter 10](10_train_chest_ct.ipynb) trains it on chest CT and asks
# each organ of each patient.
