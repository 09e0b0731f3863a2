# %% [markdown]
# # 00 · Train SegFormer from scratch and look at its masks
#
# About 20 minutes to read and run, 25 more for the exercises. The code takes about two minutes on
# two CPU cores and about 1.5 GB of memory.

# %% [markdown]
# **What you build.** A network that says of every pixel what it belongs to, trained in front of
# your eyes, from nothing.
#
# **What you learn.**
#
# - whether this machine is ready for the course;
# - what a picture and its label map look like, as pictures and as tensors;
# - what goes into SegFormer, what comes out, and what is done with it;
# - how to read a loss curve and an mIoU, and which cheap trick a good number must beat.
#
# **What you need.** Python, and to have met a tensor. Nothing of SegFormer: what appears here without
# a reason gets its reason in a later chapter.
#
# `python3 course.py lab` opens a copy of this chapter in `work/` in which no cell has run yet. Run them
# one after another with Shift+Enter; that way no result is there before you have guessed it. The
# first cell of every chapter prints a *mode*: fast means drawn pictures and short runs, for any
# machine; full (`SEGFORMER_LITE_MODE=full`) the real data and a CUDA GPU. In this chapter both are the
# same.

# %% tags=["setup", "nbval-ignore-output"]
import matplotlib.pyplot as plt
import numpy as np
import torch

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.show import curves, masks

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "mask"))

# %% [markdown]
# SegFormer as a map: the picture enters at the lower left, four stages look at it, each at half the
# resolution of the one before, and a small decoder puts what they saw into one mask. The course
# builds these boxes one by one. This chapter uses them all at once and looks at the two ends, lit
# in orange.

# %% [markdown]
# ## Is this machine ready?
#
# One line per finding. `[OK]` is fine, `[--]` is optional, and a `[FAIL]` says what to do.

# %% tags=["nbval-ignore-output"]
from segformer_lite.course import doctor

_ = doctor.main()

# %% [markdown]
# ## The question
#
# A classifier gives one answer per picture: *there is a cat*. **Semantic segmentation gives one
# answer per pixel: *this pixel is cat, that one is background*.** How does a network that has seen
# nothing before learn to do that, and how do we know how well it does?

# %% [markdown]
# ## The data
#
# The course brings a sample that it draws itself: little scenes in the exact file layout of the
# COCO data set, with ten of its classes. It is made once, in seconds, and everything that works on
# it works on the real COCO pictures.

# %% tags=["setup", "nbval-ignore-output"]
train_set = sl.data.open_dataset("sample-coco", "train")
val_set = sl.data.open_dataset("sample-coco", "val")
print(train_set, val_set)

# %%
print(len(train_set), "pictures to learn from,", len(val_set), "to test on")
print(train_set.classes)

# %% [markdown]
# One item is a pair: a picture and a map of the same size that holds the class of every pixel as a
# whole number.

# %%
image, label = train_set[7]
print("picture", tuple(image.shape), image.dtype)
print("label  ", tuple(label.shape), label.dtype, "holding", sorted(label.unique().tolist()))

# %% [markdown]
# Letters for shapes are the same in the whole course: **B** pictures, **C** channels, **H** rows,
# **W** columns. The picture is (C, H, W) with C = 3 colours, the label (H, W).

# %%
chosen = [7, 30, 84, 163]
items = [train_set[i] for i in chosen]
fig, axes = plt.subplots(2, 4, figsize=(7, 3.3))
for column, (image, label) in zip(axes.T, items):
    column[0].imshow(masks.as_picture(image))
    column[1].imshow(masks.overlay(image, label, train_set.palette, strength=0.8))
for ax in axes.flat:
    ax.axis("off")
masks.legend(fig, [label for _, label in items], train_set.classes, train_set.palette)
show.figure(fig, alt=(
    "Upper row: four drawn scenes from the sample. Lower row: the same scenes with every "
    "object filled in the colour of its class; the legend below names the classes."))

# %% [markdown]
# Upper row: what the network gets. Lower row: what it should say, a colour for each class. Objects
# are tiny and large, they hide each other, and the same thing comes in many colours.
#
# White, where it occurs, means 255, *not labelled*: a crowd too dense to draw. Those pixels count
# nowhere, neither in the loss nor in any score.

# %% [markdown]
# ### How much is background?
#
# Before some cells a question asks what they will show. Choose before you run the cell, then unfold
# the answer below it.
#
# **Predict, then run.** How many of all labelled pixels are background?
#
# - A. About one in eleven: there are eleven classes.
# - B. About half.
# - C. Well over two thirds.

# %%
pixels = torch.zeros(256, dtype=torch.int64)
for i in range(len(train_set)):
    pixels += torch.bincount(train_set[i][1].flatten(), minlength=256)
share = (pixels[:11] / pixels[:11].sum()).tolist()
for name, part in sorted(zip(train_set.classes, share), key=lambda pair: -pair[1]):
    print(f"{name:12s} {part:6.1%}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Nearly four pixels of five. *Why it matters.* Whoever answers "background" everywhere gets
# most pixels right without having looked: the share of right pixels is a poor score.
#
# </details>
#
# This course reports another one, **mIoU**: for each class the *intersection over union* of
# predicted and true area, then the mean over classes.

# %% [markdown]
# ### mIoU with a pencil
#
# Two maps of 3 × 4 pixels, two classes. Prediction and truth share 3 pixels of class 1; together
# they cover 6.

# %%
truth = torch.tensor([[0, 0, 1, 1],
                      [0, 0, 1, 1],
                      [0, 0, 0, 0]])
guess = torch.tensor([[0, 0, 0, 1],
                      [0, 1, 1, 1],
                      [0, 0, 0, 1]])
for c in (0, 1):
    intersection = ((truth == c) & (guess == c)).sum().item()
    union = ((truth == c) | (guess == c)).sum().item()
    print(f"class {c}: {intersection} / {union} = {intersection / union:.3f}")

# %% [markdown]
# The mean of the two is the mIoU, 0.583. The share of right pixels is 9 of 12, 0.75. And the lazy
# answer, all zeros?

# %%
lazy = torch.zeros_like(truth)
right = (lazy == truth).float().mean().item()
iou = [((truth == c) & (lazy == c)).sum().item() / ((truth == c) | (lazy == c)).sum().item() for c in (0, 1)]
print(f"right pixels {right:.3f}, IoU {iou[0]:.3f} and {iou[1]:.3f}, mIoU {sum(iou) / 2:.3f}")

# %% [markdown]
# Two thirds of its pixels are right, and its mIoU is a third. mIoU is not so easily pleased.

# %% [markdown]
# ## The network
#
# One line. B0 is the smallest SegFormer; its weights are random numbers.

# %%
model = sl.create_model("segformer_b0", num_classes=len(train_set.classes))
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# Follow one picture through it, shape by shape.

# %%
image, label = train_set[7]
batch = sl.preprocess(image[None])
features = model.encoder(batch)
logits = model.decoder(features)
print("picture in ", tuple(batch.shape))
for number, feature in enumerate(features, start=1):
    print(f"stage {number}     {tuple(feature.shape)}")
print("logits out ", tuple(logits.shape))

# %% [markdown]
# The four stages hold ever fewer, ever longer vectors: 1/4, 1/8, 1/16 and 1/32 of the picture's
# sides. The decoder answers at 1/4, with eleven numbers at every place, one per class: the
# *logits*. The class with the largest one wins. To get a map as large as the picture, the logits
# are enlarged first, and only then is the winner chosen. That is what `predict` does:

# %%
guess = model.predict(image[None])
print(tuple(guess.shape), guess.dtype)

# %% [markdown]
# ## Train
#
# The **loss** is one number for how wrong the network is: for each pixel minus the logarithm of the
# probability that it gave to the right class (*cross-entropy*), then the mean over all pixels. 0 is
# perfect. A *step* looks at one batch, here of 8 pictures, and changes the weights a little so that
# the loss falls.
#
# Before you read on, look at the settings. What they do not name has its default, such as the learning
# rate (1e-3, and ten times that in the decoder) and the seed (0); `print(config)` shows them all. 400
# steps of 8 pictures take about a minute on two CPU cores. (Much slower on yours? Stop the cell, set
# `STEPS` to 200 and run it again; the results below will be weaker.)

# %% tags=["nbval-ignore-output"]
STEPS = 40 if session.quick else 400  # the course's own tests train less
config = sl.TrainConfig(data="sample-coco", model="segformer_b0", size=96, batch_size=8, steps=STEPS,
                        augment="flip", name="00-first-run")
run = sl.train(config, progress=not session.quick)
print(f"{STEPS} steps; {run.folder.name} holds", sorted(path.name for path in run.folder.iterdir()))

# %%
losses = [entry["loss"] for entry in run.history]
few = max(1, len(losses) // 4)  # one batch alone says little
first, last = np.mean(losses[:few]), np.mean(losses[-few:])
assert last < first, "the loss must fall"
print("the loss fell")

# %% tags=["nbval-ignore-output"]
fig = curves.loss_curve(run.history)
show.figure(fig, alt=(
    "The loss over the steps of the run: a thin line that jumps from batch to batch, and a thick "
    "line, its running mean, which falls slowly and unevenly and climbs at times."))

# %% [markdown]
# *How to read it.* The thin line is the loss of single batches; it jumps because every batch is
# different. The thick one is its running mean. In between it may climb for fifty steps; with 8
# pictures a batch that is no cause for alarm. Only the trend over hundreds of steps counts. And where
# would a network start that knows nothing, and gives every class the same chance?

# %%
print(f"minus the logarithm of 1/{len(train_set.classes)}: {np.log(len(train_set.classes)):.2f}")
print(f"every pixel given the shares of the classes: {-sum(p * np.log(p) for p in share):.2f}")

# %% [markdown]
# The curve begins well below the first number: before its first point, at step 10, the network has
# begun to learn that most is background. The second number is the loss of a network that knows how
# common each class is, and nothing else; the thick line takes about a hundred steps to get there. What
# comes after is slower, and is what we want: shapes.

# %% [markdown]
# ## See
#
# **Predict, then run.** What will a network see that has trained for a minute?
#
# - A. Nothing: a Transformer needs millions of pictures.
# - B. Large things, in blobs, some of them with a wrong class; small things hardly.
# - C. Nearly all things, small ones too, some with a wrong class.

# %% tags=["nbval-ignore-output"]
chosen = [17, 40, 72]
items = [val_set[i] for i in chosen]
before = [model.predict(image[None])[0] for image, _ in items]
after = [run.model.cpu().predict(image[None])[0] for image, _ in items]

fig, axes = plt.subplots(3, 4, figsize=(7, 5))
for row, (image, label), a, b in zip(axes, items, before, after):
    layers = [image.numpy().transpose(1, 2, 0)]
    layers += [masks.overlay(image, m, val_set.palette, strength=0.75) for m in (a, b, label)]
    for ax, layer in zip(row, layers):
        ax.imshow(layer)
        ax.axis("off")
for ax, title in zip(axes[0], ["picture", "before training", "after training", "truth"]):
    ax.set_title(title)
masks.legend(fig, [*before, *after, *(label for _, label in items)], val_set.classes, val_set.palette)
seen = [f"Scene {n}: {', '.join(val_set.classes[c] for c in mask.unique())}." for n, mask in enumerate(after, 1)]
show.figure(fig, alt=" ".join([
    "Three scenes, each as picture, mask before training, mask after training and truth. In the masks after "
    "training:", *seen]))

# %% [markdown]
# These are pictures from the validation set: the network has never seen them.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Before training it guesses without sense. After a minute it has found where
# *something* large is; outlines are soft and small things are missing. What it is, it knows for the
# most common shapes only: here the pizzas are right, and parts of the stop sign; clock and cat were
# given other classes, and the car was found in pieces at best, and not as a car. (Your run may get
# others right.)
#
# *Why.* The loss counts pixels, so what is large and frequent is learned first.
#
# </details>
#
# Patience helps: `python3 course.py run` shows the network five times as many pictures.

# %% [markdown]
# ## Measure
#
# A picture convinces, a number compares. `sl.evaluate` counts over the whole validation set.

# %% tags=["nbval-ignore-output"]
print(run.report)

# %% [markdown]
# Read it from the top: mIoU with background and without, Dice likewise, right pixels, and how well the
# outlines fit (boundary IoU). Dice is a relative of IoU that is kinder to small overlaps: 2 ·
# intersection / (sum of both areas). Then each class with its share of the pixels. *Recall* is the
# share of a class's true pixels that were found. At the bottom, by size (small: up to 1/300 of the
# picture, large: from 3 % on): the number of connected regions, the share of them that was *found* (at
# least half of their pixels right), and recall and IoU of their pixels.
#
# One number alone means nothing. What would a cheap trick get? The cheapest is the lazy answer from
# above, the majority class everywhere:

# %%
classes = len(val_set.classes)
confusion = torch.zeros(classes, classes, dtype=torch.int64)
for _, label in (val_set[i] for i in range(len(val_set))):
    confusion += sl.evaluation.confusion_matrix(torch.zeros_like(label), label, classes)
lazy_iou = sl.evaluation.iou_per_class(confusion.numpy())
print(f"lazy: pixel accuracy {confusion.trace() / confusion.sum():.3f}, mIoU {np.nanmean(lazy_iou):.3f}")

# %%
quick_or_better = run.report.miou > np.nanmean(lazy_iou) or session.quick
assert quick_or_better, "a minute of training must beat the lazy answer"
print("better than the lazy answer:", bool(quick_or_better))

# %% [markdown]
# ## Where does it look?
#
# One more figure, and a promise. Take the pixel in the middle and ask which pixels of the input
# its answer depends on, and how much: its *receptive field*, here the mean over four pictures.

# %% tags=["nbval-ignore-output"]
four = torch.stack([sl.evaluation.resize_for_model(val_set[i][0], 96)[:, :96, :96] for i in (3, 17, 40, 72)])
fields = {"before training": sl.analysis.receptive_field(model, four, "decoder"),
          "after training": sl.analysis.receptive_field(run.model, four, "decoder")}
fig, axes = plt.subplots(1, 2, figsize=(5, 2.4))
for ax, (title, field) in zip(axes, fields.items()):
    masks.draw_field(ax, field)
    ax.set_title(f"{title}\nhalf of it within {field.area(0.5):.0%} of the picture", fontsize=8)
    ax.axis("off")
show.figure(fig, alt=(
    "The receptive field of the middle pixel before and after training, bright where the answer "
    "depends on the input most. Before training a faint glow covers most of the picture around a "
    "bright spot; after training the glow has drawn together around the middle."))

# %% [markdown]
# Bright: the answer in the middle depends strongly on that pixel. The scale goes down by powers of
# ten, and the titles say how much of the picture holds half of the whole. An untrained network looks
# everywhere a little; in this short run training has drawn its gaze together. The fine grid and the
# sharp edges come from windows and squares that the network works in; chapters
# [03](03_patch_embedding.ipynb) and [04](04_efficient_attention.ipynb) show them. How such maps are
# made, why they reach so far, and how they differ between networks is the subject of
# [chapter 11](11_receptive_fields.ipynb).

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. IoU (10 minutes)
#
# Write the IoU of one class. Pixels labelled 255 count nowhere, in neither map. If neither map has
# the class, the answer is *not a number*, `float("nan")`: there was nothing to find, and nothing
# was invented.
#
# <details><summary>Hint</summary>
#
# First throw the pixels away that do not count: `valid = label != 255`, then `prediction[valid]`.
#
# </details>
# <details><summary>Help: division by zero</summary>
#
# The union is empty when the class occurs in neither map. Test for that before you divide.
#
# </details>

# %% tags=["exercise"]
def my_iou(prediction: torch.Tensor, label: torch.Tensor, c: int) -> float:
    """IoU of class c between two int64 maps (H, W); 255 in `label` counts nowhere."""
    # SOLUTION
    valid = label != 255
    p, q = prediction[valid] == c, label[valid] == c
    union = (p | q).sum().item()
    return (p & q).sum().item() / union if union else float("nan")
    # END SOLUTION


checks.iou(my_iou)

# %% [markdown] tags=["exercise"]
# ### 2. From logits to a label map (5 minutes)
#
# The last step of `predict`. You get logits at 1/4 and the size of the picture. Enlarge the logits
# (bilinear, `align_corners=False`), then choose the class at every pixel.
#
# <details><summary>Hint</summary>
#
# `torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)`
#
# </details>
# <details><summary>Help: the outlines are steps, or an error about spatial dimensions</summary>
#
# Either you chose the class first and enlarged the labels after: class 3 is not the middle between 2
# and 4, labels can't be blended, logits can. Or `mode="bilinear"` is missing: left to itself
# `interpolate` repeats the nearest value.
#
# </details>

# %% tags=["exercise"]
def my_label_map(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """logits (B, K, h, w), K classes at h x w places -> int64 (B, *size)."""
    # SOLUTION
    large = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return large.argmax(dim=1)
    # END SOLUTION


checks.label_map(my_label_map)

# %% [markdown] tags=["exercise"]
# ### 3. How common is each class? (10 minutes, with `sl`)
#
# Write a function that takes a data set and gives the share of each class among the labelled
# pixels, a float tensor (K,), K the number of classes, that sums to 1. It must work for every data
# set of the package; the check tries it on a small one with pixels labelled 255.
#
# <details><summary>Hint</summary>
#
# `dataset[i][1]` is a label map, `len(dataset.classes)` is K, and
# `torch.bincount(values, minlength=K)` counts whole numbers.
#
# </details>
# <details><summary>Help: my result is too long, or "must match the size of tensor b (256)"</summary>
#
# `bincount` over pixels labelled 255 gives 256 counts. Drop those pixels first.
#
# </details>

# %% tags=["exercise"]
def my_class_shares(dataset) -> torch.Tensor:
    """Share of each class among the labelled pixels of a data set: float (K,), sums to 1."""
    # SOLUTION
    counts = torch.zeros(len(dataset.classes))
    for i in range(len(dataset)):
        label = dataset[i][1]
        counts += torch.bincount(label[label != dataset.ignore_index], minlength=len(counts))
    return counts / counts.sum()
    # END SOLUTION


checks.class_shares(my_class_shares)

# %% [markdown]
# ## The package's version
#
# The IoU of this chapter, done with a pencil, against the package's, which gets it from one
# confusion matrix over a whole data set:

# %%
truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
guess = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
confusion = sl.evaluation.confusion_matrix(guess, truth, num_classes=2)
print(confusion.tolist(), "rows: truth, columns: prediction")
values = sl.evaluation.iou_per_class(confusion.numpy())
np.testing.assert_allclose(values, [6 / 9, 3 / 6])
print("IoU per class", values.round(3))

# %% [markdown]
# ## What the paper says, what you did
#
# - The paper (E. Xie and others, *SegFormer*, 2021,
#   [arXiv:2105.15203](https://arxiv.org/abs/2105.15203)) *fine-tunes*: its encoder first saw
#   ImageNet, then ADE20K for 160,000 steps of 16 pictures, at a learning rate of 6e-5. You started
#   from random weights, with a higher rate, 580 pictures and 400 steps of 8. So low numbers are no
#   surprise, and they say nothing about the network's limits.
# - The report that this course follows (K. Hirokawa, *Image Segmentation using Deep Learning (III):
#   SegFormer*) trains from scratch too, with 50,000 COCO pictures for 100 epochs. That run has a name
#   here, `report-coco`, and needs the real data and a GPU.
# - The released code computes the loss at the size of the label map, as you did, although the network
#   answers at 1/4.

# %% [markdown]
# ## Pitfalls
#
# - Judging by the share of right pixels: the lazy answer wins.
# - Averaging the IoU of single pictures instead of counting over the whole set: another number,
#   which jumps with every small object.
# - Enlarging labels instead of logits.
# - Reading something into one run. Another seed gives another number; comparisons in this course
#   use three.

# %% [markdown]
# ## In short
#
# - Segmentation is one answer per pixel; a label map is a picture of class numbers.
# - SegFormer sees a picture at 1/4, 1/8, 1/16, 1/32, answers at 1/4, and the answer is
#   enlarged to the picture's size.
# - mIoU is the score, over the whole data set, and the lazy answer is what it has to beat.

# %% [markdown]
# ## What people ask
#
# **Why is everything background in my own run?** Because that is the fastest way to a low loss.
# Give it more steps, a larger learning rate at the start, and look at the loss after the first
# steep fall. With few pictures and random weights, patience is needed; pretrained weights are the
# usual cure.
#
# **Is it normal that training from scratch on a small set gives low numbers?** Yes. Large
# Transformers are normally pretrained; [chapter 13](13_pretrained_and_own_data.ipynb) starts from
# such weights. Small scenes like these can be learned from scratch, and that is why the course starts
# with them.
#
# **Who enlarges the logits, and to what size?** The loss enlarges them to the label's size,
# `predict` to the picture's. The network itself never does.
#
# **My numbers differ from those printed here.** Cells with training differ between machines in the
# last digits, and with a GPU a little more. Cells without training should agree.

# %% [markdown]
# ## Next
#
# [Chapter 01](01_what_is_segmentation.ipynb) asks what segmentation is: five tasks, how each is
# scored, and how a map is enlarged. [Chapter 02](02_cnn_baselines.ipynb) builds the networks that
# came before. In a hurry for SegFormer? [Chapter 03](03_patch_embedding.ipynb), patch embedding,
# opens the first box: how a picture becomes tokens. To see at any time which exercises you have
# solved: `checks.progress()`.
