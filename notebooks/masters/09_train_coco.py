# %% [markdown]
# # 09 · Train on COCO, and put a claim to the test
#
# About 40 minutes to read and run, 50 more for the exercises. In fast mode the code trains four
# small networks, which takes about two minutes on two CPU cores and less than 2 GB of memory. Full
# mode shows a run on the real COCO pictures, which a CUDA GPU trains in hours, outside the notebook.

# %% [markdown]
# **What you build.** The report's COCO experiment (section 4.1): a SegFormer-B0 from random weights,
# its curve, its nine best and nine worst pictures. Then what the report leaves out: a table that
# tells how objects of each size fare.
#
# **What you learn.**
#
# - to read a loss and a metric together;
# - what the pictures with the largest loss have in common, and whether that tells about the network;
# - to ask a claim a question that it could fail: by size, at the rim, by class, against a network
#   of the other kind, over several seeds;
# - how background, 255 and class weights move a score without a better network.
#
# **What you need.** [Chapter 04](04_efficient_attention.ipynb) for strips and squares. [Chapter
# 02](02_cnn_baselines.ipynb) asked the same of older networks with recall alone.

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json
import math
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import macs, parameters
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.evaluation.metrics import connected_components, iou_per_class, size_counts
from segformer_lite.models.variants import StripReduction
from segformer_lite.show import masks
from segformer_lite.show.curves import loss_curve
from segformer_lite.training import class_weights

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "patch_embed", "attention", "mix_ffn", "decoder", "mask"))

# %% [markdown]
# All parts are on. The blocks are finished; from here on the whole network is trained and judged.

# %% [markdown]
# ## The question
#
# The report trains on 50,000 COCO pictures of 256 × 256 pixels for 100 epochs, from random weights,
# with PSPNet's augmentation. Then it takes 50 pictures that the network has not seen and shows the
# nine with the smallest loss (its figure 5) and the nine with the largest (figure 6). It concludes:
# very small objects are found; objects that fill the picture are not; and that is a weakness which
# Transformer encoders have in common.
#
# **Does it follow?** The report prints no score, one run, and no second network. Three doubts:
#
# 1. Does a picture have a large loss *because* its large object is missed, or because it is large?
# 2. If large objects are lost, is it the Transformer, or this one? The report's code merges keys in
#    strips, not in squares ([chapter 04](04_efficient_attention.ipynb)).
# 3. Would another seed say the same?
#
# | in papers | code | meaning |
# |---|---|---|
# | $R$ | `stride**2` | tokens that become one key |
# | loss, cross-entropy | `segmentation_loss` | mean of $-\log p$ over the labelled pixels |
# | IoU, $I / (P + L - I)$ | `report.iou` | overlap of predicted ($P$) and labelled ($L$) pixels |
# | recall, $I / L$ | `report.per_class` | share of the labelled pixels that are right |

# %% [markdown]
# ## The run
#
# Fast mode trains here, on the course's drawn scenes. Full mode looks for the newest finished run of
# the preset `report-coco`. Where there is none it says how to make one, and goes on with the sample.

# %%
TRAIN = False  # full mode only: True trains in this notebook, for hours

HOW = """Fetch the pictures (9.2 GB), then train, on one GPU or on several:
  segformer-lite data coco --images 50000 --out data/coco
  segformer-lite train --preset report-coco
  torchrun --nproc-per-node 4 -m segformer_lite train --preset report-coco
A run that was cut goes on with: segformer-lite train --resume runs/<its folder>"""

# %%
found = session.newest_run("report-coco")
full = session.full and (TRAIN or found is not None)
settings = sl.TrainConfig.preset("report-coco" if full else "sample-coco")
if session.full and not full:
    print(HOW)
print(f"preset {settings.name}: {settings.model}, {settings.size} px, batch {settings.batch_size}, "
      f"augmentation {settings.augment}, " + (f"{settings.epochs:g} epochs" if settings.epochs
                                              else f"{settings.steps} steps"))

# %% [markdown]
# ### Before the run: two answers that look at nothing
#
# A loss of 0.6: is that good? Only a comparison can tell. Take an answer that does not look at the
# picture at all and gives every pixel the shares of the classes in the training labels. No constant
# answer costs less.

# %%
train_set = sl.data.open_dataset(settings.data, "train", limit=1000 if full else None)
classes, palette, K = train_set.classes, train_set.palette, len(train_set.classes)
counts = sum(torch.bincount(label.flatten(), minlength=256) for _, label in train_set)[:K]
shares = counts / counts.sum()
blind_loss = float(torch.special.entr(shares).sum())  # the mean of -log(share)
print(f"{K} classes, {shares[0]:.0%} of the pixels are background")
print(f"blind answer: loss {blind_loss:.2f}.   background everywhere: mIoU {shares[0] / K:.3f}")

# %% [markdown]
# These are the two marks to beat: the loss must fall *below* the first number, the mIoU rise *above*
# the second. In fast mode the recipe's 1,000 steps are cut to 300, and the learning rate falls to 0 by
# then; the validation pictures are looked at every 60.

# %% tags=["nbval-ignore-output"]
scratch = tempfile.TemporaryDirectory()
length = {"steps": 4, "eval_every": 2, "data_options": {"limit": 24}} if session.quick else {
    "steps": 300, "eval_every": 60}
if full and not TRAIN:
    folder = found
else:
    config = settings if full else replace(settings, folder=tempfile.mkdtemp(dir=scratch.name), **length)
    folder = sl.train(config, progress=not session.quick).folder
history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
model = sl.load_model(folder)[0].to(session.device).eval()
print("in the run's folder:", ", ".join(sorted(path.name for path in folder.iterdir())))

# %% [markdown]
# Every run leaves such a folder: `config.json` (all settings), `log.jsonl` (a line for each logged
# step), `loss.png`, `report.json`, the checkpoint and the weights, and `preview.png` if it validates
# on the way. This chapter reads nothing else.
#
# ### Loss and metric, read together
#
# **Predict, then run.** When the loss falls below that of the blind answer, what does the mIoU do?
#
# - A. It has risen already: loss and mIoU are two names of one thing.
# - B. It has only just left "background everywhere": most classes are still at zero.
# - C. It jumps at that moment.

# %% tags=["nbval-ignore-output"]
fig = loss_curve(history)
fig.axes[0].axhline(blind_loss, color=show.COLOURS["grey"], ls="--", label="blind answer")
fig.axes[-1].axhline(float(shares[0]) / K, color=show.COLOURS["red"], ls=":", lw=1)
show.figure(fig, alt=(
    "One panel with two scales over the steps. On the left scale the loss of single batches and its mean, "
    "with a dashed line for the blind answer; on the right scale the validation mIoU, with a dotted line for "
    "background everywhere. The next cell prints both."))

# %% tags=["nbval-ignore-output"]
print(f"{'step':>6}{'loss':>8}{'accuracy':>10}{'mIoU':>7}{'objects':>9}")
for i, entry in enumerate(history):
    if "miou" in entry:
        recent = np.mean([e["loss"] for e in history[max(0, i - 4): i + 1]])
        print(f"{entry['step']:>6}{recent:>8.2f}{entry['pixel_accuracy']:>10.2f}"
              f"{entry['miou']:>7.2f}{entry['miou_foreground']:>9.2f}")

# %% [markdown]
# Columns: mean loss of the last logged batches, share of right pixels, mIoU, mIoU without
# background. (The score after the last step is in the report further down.) Grey, dashed: the blind
# answer's loss; red, dotted: the mIoU of background everywhere.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** The loss counts pixels, and most pixels are background: to learn *that* is the cheapest
# gain, and worth almost no mIoU: in the first line the accuracy is that of background everywhere,
# and the objects have nothing. The mIoU counts classes, each as much as the other, so it moves when
# another *class* is learned, not when the loss falls.
#
# </details>

# %%
# What the answer says, checked.
assert session.quick or history[-1]["loss"] < blind_loss

# %% [markdown]
# Read the loss to see *whether* something is learned, the metric to see *what*, and stop by
# neither the one nor the other alone.

# %% [markdown]
# ## Fifty unseen pictures
#
# As the report does: 50 validation pictures, the loss of each, the nine smallest and the nine
# largest.

# %% tags=["nbval-ignore-output"]
fifty = sl.data.open_dataset(settings.data, "val", limit=50)
report = sl.evaluate(model, fifty, settings.short_side, progress=False)
order = np.argsort(report.losses)


@torch.no_grad()
def logits_of(image, shape):
    """The network's logits (K, H, W) for one picture, in the size of its label."""
    small = sl.evaluation.resize_for_model(image.as_subclass(torch.Tensor), settings.short_side)
    logits = model(sl.preprocess(small[None].to(session.device)))
    return sl.models.upsample(logits.float(), shape)[0].cpu()


# %%
def nine(chosen):
    """A column for each of nine pictures: (a) input, (b) prediction, (c) label."""
    pairs = [fifty[i] for i in chosen]
    answers = [logits_of(image, label.shape).argmax(0) for image, label in pairs]
    rows = {"(a) input": [masks.as_picture(image) for image, _ in pairs],
            "(b) prediction": [masks.overlay(image, m, palette, 0.8)
                               for (image, _), m in zip(pairs, answers)],
            "(c) label": [masks.overlay(image, label, palette, 0.8) for image, label in pairs]}
    fig, axes = plt.subplots(3, 9, figsize=(7, 3.3))
    for line, (title, panels) in zip(axes, rows.items()):
        line[0].set_title(title, loc="left")
        for ax, panel in zip(line, panels):
            ax.imshow(panel)
            ax.set_axis_off()
    masks.legend(fig, [*answers, *(label for _, label in pairs)], classes, palette, most=10)
    return fig


# %% [markdown]
# The nine smallest losses (the report's figure 5):

# %% tags=["nbval-ignore-output"]
show.figure(nine(order[:9]), alt=(
    "Nine pictures in columns, input above prediction above label. In the fast run most labels hold "
    "little: small objects on much background, and the predictions hold less still. In the others there is "
    "a pizza, and the prediction has it."))

# %% [markdown]
# In the fast run most hold little, and the mask is right nearly everywhere because nearly everywhere
# is background. Look closely at (b): are their small objects *found*? The nine largest losses (figure
# 6):

# %% tags=["nbval-ignore-output"]
show.figure(nine(order[::-1][:9]), alt=(
    "Nine pictures in columns, input above prediction above label. In the fast run clocks, cars, stop signs "
    "or persons cover a large part of the picture; the predictions cover parts of them, or "
    "give them another class."))

# %% [markdown]
# Large objects, partly missed, partly taken for another class. It is the report's finding, re-made
# in small: pictures of small ones look fine, pictures of large ones fail. Chapter closed? (Keep the
# pizzas among the best in mind. They are large, too.)

# %% [markdown]
# ## Doubt 1: what a ranking by loss ranks
#
# **Predict, then run.** Rank the same 50 pictures by the loss of the blind answer, which sees no
# picture. What do its nine worst show?
#
# - A. A random nine: who sees nothing can have no favourites.
# - B. Pictures that objects fill.
# - C. The nine with the most objects.

# %%
labels = [label.as_subclass(torch.Tensor) for _, label in fifty]
labelled = [label[label != 255] for label in labels]
filled = np.array([float((known > 0).float().mean()) for known in labelled])
blind = np.array([float(-shares.log()[known.long()].mean()) for known in labelled])
worst, best = np.argsort(-blind)[:9], np.argsort(blind)[:9]
print(f"objects fill {filled.mean():.0%} of the 50 pictures on average")
print(f"blind answer, nine largest losses: {filled[worst].mean():.0%}; "
      f"nine smallest: {filled[best].mean():.0%}")
print(f"correlation of its loss with the filled share: {np.corrcoef(filled, blind)[0, 1]:.2f}")

# %% tags=["nbval-ignore-output"]
losses = np.array(report.losses)
trained_worst = order[::-1][:9]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7))
for ax, values, title in zip(axes, (blind, losses), ("blind answer", "trained network")):
    ax.plot(filled, values, "o", color=show.COLOURS["sky"], markersize=4)
    nine_worst = np.argsort(-values)[:9]
    ax.plot(filled[nine_worst], values[nine_worst], "o", color=show.COLOURS["red"], markersize=5)
    ax.set(title=title, xlabel="share of the picture that objects fill", ylabel="loss", ylim=(0, None))
show.figure(fig, alt=(
    "Loss of each of 50 pictures against the share that objects fill, left for the blind answer, right for the "
    "trained network, the nine largest losses in red. Correlation with that share: "
    f"{np.corrcoef(filled, blind)[0, 1]:.2f} and {np.corrcoef(filled, losses)[0, 1]:.2f}."))
print(f"trained network: correlation with the filled share {np.corrcoef(filled, losses)[0, 1]:.2f}; "
      f"of its nine worst, {len(set(trained_worst) & set(worst))} are among the blind answer's nine "
      f"(by chance: {9 * 9 / 50:.1f})")
print("the six fullest pictures, by the class that fills most:")
for i in np.argsort(-filled)[:6]:
    objects = labelled[i][labelled[i] > 0].long()
    print(f"   {classes[int(objects.mode().values)]:<10} fills {filled[i]:.0%}, loss {losses[i]:.2f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Red: the nine largest losses. *Why?* The loss of a picture is a mean over its pixels. Let a
# background pixel cost $b$ on average, a pixel of an object $o$, and let objects fill the share
# $\varphi$ of the picture:
#
# $$\text{loss} = (1 - \varphi)\, b + \varphi\, o = b + \varphi\,(o - b)$$
#
# While a network is learning, $o$ is larger than $b$ for most classes. Then the loss grows with
# $\varphi$, *even if every object, small or large, is treated exactly alike*.
#
# An answer that sees *nothing* makes the report's figure: its best pictures hold next to no objects,
# its worst are filled with them. So such a figure cannot tell whether a network loses large objects.
# And the trained network's low points on the far right
# are large objects that it does *not* lose: they are of a class that it learned early. (The slope
# is $o - b$: the longer a network trains, the flatter. Then the class decides more and more.)
#
# </details>
#
# The ranking mixes in two more things.
#
# **How frequent a class is.** What a pixel costs the blind answer, class by class:

# %%
for c in shares.argsort(descending=True).tolist()[:12]:
    print(f"{classes[c]:<12} {shares[c]:6.1%} of the pixels, {-shares[c].log():.1f} for each")

# %% [markdown]
# A picture of a rare class is "difficult" before anybody has looked at it.
#
# **How much is labelled.** The mean is over labelled pixels. Take the fullest picture, and write 255
# over more and more of its background. Nothing else changes, least of all the network:

# %%
label = labels[int(filled.argmax())].clone()
background = (label == 0).nonzero()
for part in (0, 0.5, 1):
    rows, columns = background[: int(part * len(background))].unbind(1)
    marked = label.clone()
    marked[rows, columns] = 255
    loss = -shares.log()[marked[marked != 255].long()].mean()
    print(f"{part:4.0%} of its background is 255: loss {loss:.2f}")

# %% [markdown]
# Three causes, one number, and none of them is "how well are objects of this size found". The loss
# of a picture is good for finding wrong labels and strange pictures. For the claim we need to ask
# the objects.

# %% [markdown]
# ## Ask the objects
#
# A **region** is a connected piece of one class in the label. For each region:
#
# - **recall**: the share of its pixels that are right; *found* if it is at least one half;
# - **IoU**: right pixels / (its pixels + wrong pixels), where wrong pixels are those that the
#   network adds in predicted blobs of this class that share at least one pixel with the region (255
#   is nobody's).
#
# Recall alone can be bought: paint everything with a class, and all its regions are found. By hand,
# a small region and a large one:

# %%
two = np.zeros((6, 8), int)
two[0:2, 0:1] = 1   # small: 2 pixels
two[3:6, 3:7] = 1   # large: 12 pixels
claimed = np.zeros_like(two)
claimed[0:2, 0:3] = 1   # covers the small one, and four pixels too many
claimed[3:6, 3:6] = 1   # three quarters of the large one, nothing else
print(connected_components(two == 1))
print("small: recall 2 / 2, IoU 2 / (2 + 4).   large: recall 9 / 12, IoU 9 / (12 + 0)")

# %% [markdown]
# The small one has the better recall, the large one the better IoU. A claim about "found" should
# survive both. Now in code, for any number of classes and sizes. COCO calls an object small below
# 32² pixels and large from 96² on, in pictures of about 640 × 480:

# %%
print(f"small below {32**2 / (640 * 480):.4f} of the picture, large from {96**2 / (640 * 480):.3f}")
LIMITS = {"small": (0, 1 / 300), "medium": (1 / 300, 0.03), "large": (0.03, 0.1),
          "> 10 %": (0.1, 0.3), "> 30 %": (0.3, 1.01)}


# %%
def by_size(prediction, label, bins=LIMITS):
    """Label maps (H, W) -> counts (bins, 5): regions, found, pixels, right, wrong."""
    edges = [low for low, _ in bins.values()]
    table = np.zeros((len(bins), 5), int)
    for c in set(np.unique(label)) - {0, 255}:
        answer = (prediction == c) & (label != 255)
        regions, blobs = connected_components(label == c), connected_components(answer)
        for n in range(1, regions.max() + 1):
            region = regions == n
            right = region & answer
            wrong = np.isin(blobs, blobs[right]) & (label != c)
            area, hits = region.sum(), right.sum()
            row = np.digitize(area / label.size, edges) - 1
            table[row] += (1, 2 * hits >= area, area, hits, wrong.sum())
    return table


print(by_size(claimed, two))

# %% [markdown]
# Columns: regions, found, their pixels, right ones, wrong ones. In this tiny picture 2 pixels of 48 are
# "large" already, and 12 are over 10 %.
#
# COCO's "large" begins at 3 % of the picture. The report means objects that fill it, so the last bin
# is cut in three. How many such objects are there?

# %%
val_set = sl.data.open_dataset(settings.data, "val", limit=500 if full else None)
nothing = sum(by_size(np.zeros(label.shape), np.asarray(label)) for _, label in val_set)
for name, row in zip(LIMITS, nothing):
    print(f"{name:<8}{row[0]:>5} regions, {row[2] / nothing[:, 2].sum():6.1%} of all object pixels")

# %% [markdown]
# Keep the last two lines in mind: few regions fill over 10 % of their picture, but together they
# hold two thirds of all object pixels. Whoever averages over the pixels of objects hears mostly
# them.
#
# ### Our run, by size

# %% tags=["nbval-ignore-output"]
sizes = np.zeros((len(LIMITS), 5), int)
for image, label in val_set:
    sizes += by_size(logits_of(image, label.shape).argmax(0).numpy(), label.numpy())
print(f"{'':<8}{'regions':>8}{'found':>8}{'recall':>8}{'IoU':>8}")
for name, (n, hit, pixels, right, wrong) in zip(LIMITS, sizes):
    print(f"{name:<8}{n:>8}{hit / n:>8.2f}{right / pixels:>8.2f}{right / (pixels + wrong):>8.2f}")

# %% [markdown]
# Read from top to bottom. The claim says that the first lines are good and the last is bad. The
# picture-wise ranking seemed to show that. Region by region, what do *you* see?
#
# (Small regions have a limit of their own: the logits live at a quarter of the network's input, so
# what is under a few pixels wide hardly exists there. [Chapter 07](07_mlp_decoder.ipynb) measures
# it with discs.)
#
# ### At the rim, and class by class
#
# Large objects are forgiving: a mask that is 1.5 pixels too narrow all round costs a disc 100
# pixels wide 6 % and a disc 10 pixels wide half. Boundary IoU compares only a band along the rim (2
# % of the diagonal wide), so size matters less.

# %% tags=["nbval-ignore-output"]
whole = sl.evaluate(model, val_set, settings.short_side, progress=False)
rim = whole.boundary[0] / np.maximum(whole.boundary[1], 1)
rows = [c for c in np.argsort(-whole.confusion.sum(1)) if whole.confusion[c].sum()][:16]
fig, ax = plt.subplots(figsize=(6.5, 0.6 + 0.27 * len(rows)))
ax.barh(np.arange(len(rows)) - 0.2, whole.iou[rows], 0.38, color=show.COLOURS["sky"], label="IoU")
ax.barh(np.arange(len(rows)) + 0.2, rim[rows], 0.38, color=show.COLOURS["orange"], hatch="//",
        edgecolor="white", label="boundary IoU")
ax.set(yticks=range(len(rows)), yticklabels=[classes[c] for c in rows], xlim=(0, 1))
ax.invert_yaxis()
ax.legend(loc="lower right")
show.figure(fig, alt=(
    "Bars of IoU and boundary IoU for each class, the most frequent class on top. In the fast run background "
    "leads in IoU, pizza is not far behind, and four classes are at or close to zero; in every class that is "
    "found at all the boundary IoU is lower than the IoU."))

# %% tags=["nbval-ignore-output"]
print(whole)

# %% [markdown]
# Each class has two bars, area and rim; the classes are sorted by how many pixels they have. The rim
# is the weaker part nearly everywhere. And classes differ far more than the mean tells: a short run
# has learned a few of them and not even begun with others, whatever their size. The table below the
# figure has the numbers, with the sizes in COCO's three bins at its end.

# %% [markdown]
# ## Doubt 2: the Transformer, or the strips?
#
# The report's listing makes a key from $R$ *consecutive* tokens. The released network makes it from a
# square of $R$ tokens. At 256 pixels stage 1 has 64 × 64 tokens and $R = 64$: a key of the report
# is one row of the picture, 256 pixels wide and 4 high. If large objects suffer, strips are a
# suspect of their own, and no property of Transformers.

# %%
def keys_map(side, R, squares):
    """Which key each token of a side x side map goes into."""
    s = math.isqrt(R)
    rows, columns = np.mgrid[:side, :side]
    return rows // s * (side // s) + columns // s if squares else (rows * side + columns) // R


panels, titles = [], []
for pixels in (96, 256):
    for squares in (True, False):
        order_of_keys = keys_map(pixels // 4, 64, squares)
        shuffled = np.random.default_rng(0).permutation(order_of_keys.max() + 1)
        panels.append(shuffled[order_of_keys])  # neighbours in clearly different shades
        titles.append(f"{pixels} px, {'squares' if squares else 'strips'}")
show.figure(show.grid(panels, titles, columns=4, cell=1.7, cmap="cividis"), alt=(
    "Four maps of tokens in stage 1, one shade for each key. Squares at 96 px: three by three; strips "
    "at 96 px: nine bands of nearly three rows with steps in them. Squares at 256 px: eight by "
    "eight; strips at 256 px: 64 single rows."))

# %% [markdown]
# One shade is one key. The number of keys is the same in both; a strip mixes things from left to
# right, and hardly from top to bottom. (At 96 pixels a strip is two and two thirds rows.)
#
# ### A fair opponent
#
# Put `StripReduction` into the released network: now two things differ. The strips, and the layers:
# separate maps make K and V, and there is no norm behind the reduction. To separate the two, build a
# third kind: *exactly the layers of the strips, on squares*. Attention does not care in which order
# queries come. So set the tokens in an order in which the tokens of a square follow each other, call
# the strips, and set them back:

# %%
class Strips(StripReduction):
    """Strip reduction without its dropout, as the released attention has none."""

    def __init__(self, dim, heads, stride):
        super().__init__(dim, heads, stride, dropout=0.0)


class Blocks(Strips):
    """The maps of the strips on squares of R tokens: (B, H, W, C) -> same."""

    def forward(self, x):
        b, h, w, c = x.shape
        s = math.isqrt(self.reduction)
        squares = x.view(b, h // s, s, w // s, s, c).transpose(2, 3)
        y = super().forward(squares.reshape(x.shape)).view(squares.shape)
        return y.transpose(2, 3).reshape(x.shape)


KINDS = {"b0": {}, "b0-strips": {"attention": Strips}, "b0-blocks": {"attention": Blocks}}
for name, options in KINDS.items():
    network = sl.create_model("segformer_b0", num_classes=11, **options)
    print(f"{name:<10}{parameters(network):>11,} parameters{macs(network, 96) / 1e6:>7.1f} M MACs")

# %% [markdown]
# The last two have the same parameters and do the same work. **Only which tokens share a key differs.**
# Is that so? Change one token after the other, and note which key moves:

# %%
def key_of(layer, row, column):
    """Number of the key that changes with one token of an 8 x 8 map."""
    keys, x = [], torch.zeros(1, 8, 8, 16)
    x[0, row, column] = 1
    hook = layer.k.register_forward_hook(lambda module, inputs, output: keys.append(output[0]))
    with torch.no_grad():
        layer(torch.zeros_like(x)), layer(x)
    hook.remove()
    return (keys[0] != keys[1]).any(-1).nonzero().item()


for kind in (Strips, Blocks):
    layer = kind(16, 2, stride=4)
    numbers = np.array([[key_of(layer, row, column) for column in range(8)] for row in range(8)])
    np.testing.assert_array_equal(numbers, keys_map(8, 16, squares=kind is Blocks))
    print(kind.__name__, numbers, sep="\n")

# %% [markdown]
# ## Doubt 3: would another seed say the same?
#
# Six kinds of runs, three seeds each, same pictures, batches and steps; the learning rate of each is
# the better of two settings, tried with a seed of its own ("x 10": the decoder learns at ten times
# the encoder's rate; the run with class weights takes B0's). The script `benchmarks/coco_claims.py`
# does it with `sl.compare`, on the sample or, with `--data FOLDER`, on a real set. Here is what it
# left:

# %%
path = sl.data.course_folder() / "docs" / "results" / "coco-claims.json"
claims = json.loads(path.read_text(encoding="utf-8"))
TITLES = claims["titles"]
keys = ("data", "size", "steps", "batch_size", "augment")
print(claims["command"])
print(", ".join(f"{key} {claims['settings'][key]}" for key in keys))
for name, cost in claims["costs"].items():
    rate = claims["rates"][name]
    print(f"{TITLES[name]:<33}{cost['parameters'] / 1e6:6.2f} M{cost['macs'] / 1e6:5.0f} M MACs, "
          f"rate {rate['lr']} x {rate['head_lr_mult']:g}")

# %%
def seeds_of(name, what):
    """recall, IoU or found, by seed and bin: (seeds, 5)."""
    stored = np.array([run["sizes"] for run in claims["results"][name]], float)
    n, hit, pixels, right, wrong = np.moveaxis(stored, -1, 0)
    return {"recall": right / pixels, "IoU": right / (pixels + wrong), "found": hit / n}[what]


NETWORKS = [name for name in claims["results"] if name != "b0-weights"]
for what in ("recall", "IoU"):
    print(f"{what:<33}" + "".join(f"{name:>13}" for name in claims["bins"]))
    for name in NETWORKS:
        cells = zip(seeds_of(name, what).mean(0), seeds_of(name, what).std(0, ddof=1))
        print(f"  {TITLES[name]:<31}" + "".join(f"{f'{m:.2f} ± {sd:.2f}':>13}" for m, sd in cells))

# %% [markdown]
# **Predict, then run.** Read the tables. The claim is a shape: high for small, low for what fills
# the picture. Whose numbers have it?
#
# - A. All Transformers', and not U-Net's.
# - B. Those with strips, and nobody else's.
# - C. Nobody's.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 3.1), sharey=True)
for name, tint in zip(NETWORKS, ("blue", "orange", "green", "red", "grey")):
    for ax, what in zip(axes, ("recall", "IoU")):
        values = seeds_of(name, what)
        ax.plot(values.mean(0), color=show.COLOURS[tint], ls="--" if name == "unet" else "-",
                label=TITLES[name])
        ax.plot(values.T, ".", color=show.COLOURS[tint], markersize=4)
        ax.set_xticks(range(len(claims["bins"])), claims["bins"])
        ax.set(title=f"{what} of regions by size", ylim=(0, 1))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
ends = " ".join(f"{TITLES[n]}: recall {seeds_of(n, 'recall').mean(0)[0]:.2f} of small, "
                f"{seeds_of(n, 'recall').mean(0)[-1]:.2f} of the largest." for n in NETWORKS)
show.figure(fig, alt=(
    "Recall and IoU of regions against their size for five networks, a line for the mean and a dot "
    "for each seed. " + ends))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** All five lines rise to the right.
#
# </details>
#
# A line is a network, a dot a seed. The claim would be a line that *falls* to the right. Put in
# numbers, with the noise beside them: the difference of two means, and $\sqrt{sd_1^2 + sd_2^2}$ of
# two runs. The code says "more" only where the difference exceeds twice this noise, a strict rule
# for means of three seeds.

# %%
def says(a, b):
    """Difference of the means of two rows of seeds, and whether it exceeds the noise."""
    difference, noise = a.mean() - b.mean(), math.hypot(a.std(ddof=1), b.std(ddof=1))
    sure = "more" if abs(difference) > 2 * noise else "no more"
    return f"{difference:+.3f} ± {noise:.3f}, {sure} than another seed does"


print("recall of the largest minus recall of small:")
for name in NETWORKS:
    values = seeds_of(name, "recall")
    print(f"  {TITLES[name]:<33}", says(values[:, -1], values[:, 0]))

# %%
PAIRS = {"the shape alone": ("b0-strips", "b0-blocks"), "the layers alone": ("b0-blocks", "b0"),
         "strips and layers": ("b0-strips", "b0"), "the whole report": ("b0-report", "b0"),
         "no Transformer": ("unet", "b0")}
for what in ("recall", "IoU"):
    print(f"{what} of regions over 30 %:")
    for title, (name, other) in PAIRS.items():
        values = seeds_of(name, what)[:, -1], seeds_of(other, what)[:, -1]
        print(f"  {title:<18}{name:>10} - {other:<10}{says(*values)}")

# %% [markdown]
# How to read the two tables:
#
# - *Does the claim's shape exist?* A minus in the first of them would say: this network finds small
#   regions better than the largest. A clear plus says the opposite of the claim.
# - *Is it the Transformer?* Then U-Net, which has no attention, must be clearly better on the
#   largest regions than B0: a clear plus in the line "no Transformer".
# - *Is it the strips?* Then there must be a clear minus in the line "the shape alone".
# - *Or the rest of the report's network?* Then the minus appears in "the whole report" only.

# %%
def clearly(name, other, sign):
    """Whether recall and IoU of the largest regions both differ by more than the noise."""
    for what in ("recall", "IoU"):
        a, b = seeds_of(name, what)[:, -1], seeds_of(other, what)[:, -1]
        if sign * (a.mean() - b.mean()) <= 2 * math.hypot(a.std(ddof=1), b.std(ddof=1)):
            return False
    return True


def falls(name):
    """Whether the recall of the largest regions is clearly below that of small ones."""
    values = seeds_of(name, "recall")
    drop, noise = values[:, 0].mean() - values[:, -1].mean(), values[:, (0, -1)].std(0, ddof=1)
    return drop > 2 * math.hypot(*noise)


print("finds small regions clearly better than the largest:",
      ", ".join(TITLES[name] for name in NETWORKS if falls(name)) or "none of the five")
print("U-Net clearly better than B0 on the largest:", clearly("unet", "b0", +1))
print("strips clearly worse than squares with the same layers:", clearly("b0-strips", "b0-blocks", -1))
print("the report's network clearly worse than B0:", clearly("b0-report", "b0", -1))

# %% [markdown]
# In words: no network has the claim's shape; U-Net is not better on the largest; strips are not
# clearly worse than squares. Only the report's whole network is clearly worse on the largest, and
# the table of recall shows it behind B0 in *every* column: after these steps it has learned less, of
# large and of small. That is a slow beginner, no weakness for large objects.
#
# This is as far as the experiment reaches: drawn scenes of 96 pixels, some hundred steps, 17 validation
# regions over 30 %, a U-Net in teaching size that needs longer than B0 to get going, as does the
# report's network. At 96 pixels a strip is nearly three rows high, at 256 only one. The same script
# on real pictures, with more steps, is the test that the report's claim deserves:
#
# `python benchmarks/coco_claims.py --data data/coco --size 256 --steps 20000`

# %% [markdown]
# ### One run, here and now
#
# Three of the six again, at 64 pixels and 100 steps, one seed: strips against squares, and B0 with
# class weights, which a later section explains. (With a run on real COCO the first two only: weights
# belong to one set of classes.)

# %% tags=["nbval-ignore-output"]
weights = class_weights(counts.tolist())
common = sl.TrainConfig.preset("sample-coco", size=64, steps=100)
if session.quick:
    common = replace(common, steps=2, data_options={"limit": 24})
configs = {"b0": common, "b0-strips": replace(common, model_options={"attention": Strips})}
if not full:  # weights belong to one set of classes
    configs["b0-weights"] = replace(common, class_weights=weights)
table = sl.compare(configs, seeds=1, folder=tempfile.mkdtemp(dir=scratch.name), progress=not session.quick)
for name, runs in table.results.items():
    for run in runs:  # one for each seed
        print(f"{TITLES[name]:<28} mIoU {run['miou']:.3f}, recall of small {run['recall_small']:.2f}, "
              f"medium {run['recall_medium']:.2f}, large {run['recall_large']:.2f}")

# %%
spread = {name: np.std([run["miou"] for run in claims["results"][name]], ddof=1) for name in NETWORKS}
print("sd of the mIoU over seeds, in the stored runs:",
      ", ".join(f"{name} {value:.3f}" for name, value in spread.items()))

# %% [markdown]
# **One run is no evidence.** Compare your difference between strips and squares with the spread of a
# single kind of run over seeds: a few hundredths one way or the other are nothing. The report's
# figures come from one run. That is no reproach, it is a reason to say "we saw" and not "it is".

# %% [markdown]
# ## What moves the number without a better network
#
# Three decisions that papers often leave out. The first two follow from the confusion matrix alone
# (rows labels, columns predictions); the third needs the logits, but no training.
#
# ### Background in the mean, or not

# %% tags=["nbval-ignore-output"]
C = whole.confusion
iou = iou_per_class(C)
print(f"IoU of the background {iou[0]:.2f}")
print(f"mIoU with background  {np.nanmean(iou):.3f}")
print(f"mIoU without          {np.nanmean(iou[1:]):.3f}")

# %% [markdown]
# Same masks, two scores. The easy background lifts the mean, the more the fewer classes there are.
# With 81 classes it is one of 81, with four ([chapter 10](10_train_chest_ct.ipynb)) a quarter of
# the score. Neither is wrong; say which.
#
# ### Background as an ignored label
#
# It sounds like the same: "background does not interest us, label it 255". Pixels labelled 255 are
# left out altogether.
#
# **Predict, then run.** One object of 10 pixels. A network paints 40 pixels, the object among them.
# IoU 10 / 40. And with background ignored?
#
# - A. 0.25: the object has not changed.
# - B. 0.4: half of the false alarms count.
# - C. 1: it looks perfect.

# %%
toy = np.array([[60, 30],    # label background: 30 pixels falsely painted
                [0, 10]])    # label object: all 10 right
ignored = toy.copy()
ignored[0] = 0               # pixels labelled background count nowhere
print(f"IoU {iou_per_class(toy)[1]:.2f}, with background ignored {iou_per_class(ignored)[1]:.2f}, "
      f"recall {toy[1, 1] / toy[1].sum():.2f}")

# %% tags=["nbval-ignore-output"]
without = C.copy()
without[0] = 0
recall = np.diag(C)[1:] / np.maximum(C[1:].sum(1), 1)
present = C[1:].sum(1) > 0
print(f"mIoU of objects                         {np.nanmean(iou[1:]):.3f}")
print(f"the same, background ignored            {np.nanmean(iou_per_class(without)[1:]):.3f}")
print(f"mean recall of objects                  {recall[present].mean():.3f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** Every false alarm on background lies on a pixel that is left out. With one class the "IoU"
# *is* the recall ([chapter 01](01_what_is_segmentation.ipynb) flooded a field of squares to show it;
# the second cell asks the trained network). With several it lies between the two: confusions
# among objects still count, false alarms do not. Nothing in the code complains. A score that rises
# as soon as background is ignored has not improved; it has stopped looking.
#
# </details>

# %%
# What the answer says, checked.
assert np.nanmean(iou_per_class(without)[1:]) >= np.nanmean(iou[1:])

# %% [markdown]
# ### Class weights
#
# Background has most pixels, so the loss mostly hears background. `class_weights` multiplies what a
# pixel of class $c$ costs by $w_c$; `sl.training.class_weights(counts)` proposes one over the root of
# the share, scaled to 1 for the mean pixel.

# %%
for c in shares.argsort(descending=True).tolist()[:12]:
    print(f"{classes[c]:<12} {shares[c]:6.1%} of the pixels, weight {class_weights(counts.tolist())[c]:.2f}")

# %% [markdown]
# What does a weight do? If, among pixels that look alike, class $c$ has the share $p_c$, the weighted
# loss is smallest for the answer $q_c \propto w_c\, p_c$. So training with weights aims at the same
# probabilities, *tilted*. And tilting needs no training: add $t \log w_c$ to the logits of the
# network that we have. With $t = 0$ nothing happens, $t = 1$ is the full weight.
#
# **Predict, then run.** Tilted towards rare classes, what do recall and precision of the objects
# do?
#
# - A. Both rise: the objects were neglected.
# - B. Recall rises, precision falls.
# - C. Both stay: the network knows no more than before.

# %% tags=["nbval-ignore-output"]
tilt = torch.tensor(class_weights(counts.tolist())).clamp(min=1e-6).log()[:, None, None]
STRENGTHS = (0.0, 0.5, 1.0, 2.0)
tilted = dict.fromkeys(STRENGTHS, 0)
for image, label in fifty:
    logits = logits_of(image, label.shape)
    for t in STRENGTHS:
        answer = (logits + t * tilt).argmax(0)
        tilted[t] = tilted[t] + sl.evaluation.confusion_matrix(answer, label.long(), K).numpy()
print(f"{'t':>4}{'recall':>9}{'precision':>11}{'accuracy':>10}{'mIoU':>7}{'objects':>9}")
for t, M in tilted.items():
    M = np.asarray(M)
    hits, scores = np.diag(M)[1:].sum(), iou_per_class(M)
    print(f"{t:>4}{hits / M[1:].sum():>9.2f}{hits / max(1, M[:, 1:].sum()):>11.2f}"
          f"{np.trace(M) / M.sum():>10.2f}{np.nanmean(scores):>7.2f}{np.nanmean(scores[1:]):>9.2f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** More objects are painted, rightly and wrongly: recall up, precision and pixel accuracy
# down. The mIoU is a balance of the two and may go either way.
#
# </details>
#
# One picture, tilted more and more:

# %% tags=["nbval-ignore-output"]
def tilted_masks(picture, strengths):
    """One picture, its label, and the network's masks with logits tilted by the class weights."""
    image, label = fifty[picture]
    logits = logits_of(image, label.shape)
    panels = [masks.as_picture(image), masks.overlay(image, label, palette, 0.8)]
    panels += [masks.overlay(image, (logits + t * tilt).argmax(0), palette, 0.8) for t in strengths]
    return show.grid(panels, ["input", "label", *(f"t = {t:g}" for t in strengths)],
                     columns=len(panels), cell=7 / len(panels))


middle = int(order[25])
show.figure(tilted_masks(middle, (0, 0.5, 1, 2)), alt=(
    "A scene, its label, and four masks: with a stronger tilt towards rare classes the painted areas "
    "grow, over objects and beside them, until they cover much of the background."))

# %% [markdown]
# From left to right the painted area grows, over objects and beside them, until it covers what is
# plainly background. The tilt knows how frequent a class is, not where its objects are. A slider to
# try other pictures and strengths:

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, IntSlider, interact


def try_tilt(picture, t):
    show.figure(tilted_masks(picture, (0, t)), alt=(
        f"Picture {picture} with its label, the mask as it is and the mask tilted by {t:g}."))


_ = interact(try_tilt, picture=IntSlider(middle, 0, 49, continuous_update=False),
             t=FloatSlider(value=1, min=0, max=4, step=0.25, continuous_update=False))

# %% [markdown]
# And *trained* with weights? The stored runs, three seeds each:

# %%
for metric in ("miou", "miou_foreground", "pixel_accuracy", "boundary_iou"):
    with_weights, plain = (np.array([run[metric] for run in claims["results"][name]])
                           for name in ("b0-weights", "b0"))
    print(f"{metric:<18}{with_weights.mean():.3f} with, {plain.mean():.3f} without: "
          f"{says(with_weights, plain)}")
for size, column in (("small", 0), ("> 30 %", -1)):
    pair = (seeds_of(name, "recall")[:, column] for name in ("b0-weights", "b0"))
    print(f"recall of {size:<8}", says(*pair))

# %% [markdown]
# Weights are a choice of what to value, not a repair. Say in a report whether there were any: a
# number with and one without are numbers of two experiments.

# %% [markdown]
# ## Why from scratch is weak
#
# SegFormer's published scores start from an encoder that has been trained on ImageNet. How much has
# each network seen before its score was taken?

# %%
seen = {"paper, fine-tuning on ADE20K": 160_000 * 16,
        "before that, ImageNet, 300 epochs": 300 * 1_281_167,
        "report, COCO from scratch": 50_000 * 100,
        "preset sample-coco, 1,000 steps": 1000 * 16,
        "the stored runs of this chapter": claims["settings"]["steps"] * claims["settings"]["batch_size"]}
for name, pictures in seen.items():
    print(f"{name:<36}{pictures / 1e6:9.3f} million pictures")

# %% [markdown]
# Sources: paper, section 4.1 (160,000 iterations of 16 pictures); report, section 4.1. For ImageNet
# the paper gives no recipe; an author names one nearly the same as PVTv2's ([issue 67 of the
# released code](https://github.com/NVlabs/SegFormer/issues/67)), which has 300 epochs. So the
# report's network has seen about one seventy-seventh of what the paper's has; ours a fraction of
# that. Users of the released code who train ADE20K from scratch get very low scores ([issue
# 151](https://github.com/NVlabs/SegFormer/issues/151)). No number of this chapter says how good
# SegFormer can be. They say how fast each kind *begins*.

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Each is checked as soon as you run its cell. Replace `raise NotImplementedError` with your lines.
# The solutions are in `notebooks/solutions/`.
#
# ### 1. The mean, said precisely (10 minutes)
#
# Mean IoU from a confusion matrix, with the background (class 0) in the mean or without. A class that
# is neither labelled nor predicted is left out; one that is predicted only has IoU 0.
#
# <details><summary>Hint</summary>
#
# Labelled pixels are the sums of the rows, predicted ones the sums of the columns, right ones the
# diagonal. `np.nanmean` leaves out 0 / 0.
#
# </details>
# <details><summary>Help: too high without background</summary>
#
# Did you cut off row 0 and column 0? Then false alarms are gone. Compute all IoUs first, leave out
# the first one of them afterwards.
#
# </details>

# %% tags=["exercise"]
def my_mean_iou(confusion: np.ndarray, background: bool) -> float:
    """confusion (K, K): pixels by (label, prediction) -> mean IoU, with class 0 or without."""
    # SOLUTION
    right = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        iou = right / (confusion.sum(0) + confusion.sum(1) - right)
    return float(np.nanmean(iou if background else iou[1:]))
    # END SOLUTION


checks.mean_iou(my_mean_iou)

# %% [markdown] tags=["exercise"]
# ### 2. A ranking that size does not decide (15 minutes)
#
# A score for one picture in which every region counts the same: the share of right pixels of each
# foreground region, then the mean over regions. `nan` where there is none. 0 is background, 255 is
# nobody's.
#
# <details><summary>Hint</summary>
#
# Loop over the classes of the label, number the regions of each class with
# `connected_components((label == c).numpy())`, loop over the numbers from 1 up.
#
# </details>
# <details><summary>Help: regions of two classes that touch</summary>
#
# They are two regions. Number each class for itself, not `label > 0`.
#
# </details>

# %% tags=["exercise"]
def my_region_score(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """prediction, label: (H, W) int64 -> mean over foreground regions of the share that is right."""
    # SOLUTION
    shares = []
    for c in set(label.unique().tolist()) - {0, 255}:
        regions = connected_components((label == c).numpy())
        right = (prediction == c).numpy()
        shares += [right[regions == n].mean() for n in range(1, regions.max() + 1)]
    return float(np.mean(shares)) if shares else float("nan")
    # END SOLUTION


checks.region_score(my_region_score)

# %% [markdown] tags=["exercise"]
# ### 3. Squares in a row (10 minutes)
#
# The heart of `Blocks`: list the tokens so that the $R = s^2$ tokens of each square follow each
# other, squares and tokens inside a square row by row.
#
# <details><summary>Hint</summary>
#
# `view` H as (H / s, s) and W as (W / s, s), bring the two s to the end (before C), `reshape`.
#
# </details>
# <details><summary>Help: it says strips</summary>
#
# A single `reshape` never moves a token. Between `view` and `reshape` the axes must be exchanged.
#
# </details>

# %% tags=["exercise"]
def my_squares(x: torch.Tensor, s: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, N, C), the tokens of each s x s square one after the other."""
    # SOLUTION
    b, h, w, c = x.shape
    return x.view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(b, h * w, c)
    # END SOLUTION


checks.squares_in_order(my_squares)

# %% [markdown] tags=["exercise"]
# ### 4. A weighted run, with `sl` (15 minutes)
#
# Settings for a run of the preset `sample-coco` with class weights from the labels of a data set:
# count the pixels of each class over *all* its pictures, without 255, and let
# `sl.training.class_weights` turn the counts into weights.
#
# <details><summary>Hint</summary>
#
# `torch.bincount(label.flatten(), minlength=256)` for each picture, summed; the first
# `len(train_set.classes)` entries are the classes. `sl.TrainConfig.preset("sample-coco",
# class_weights=...)`.
#
# </details>
# <details><summary>Help: too many weights</summary>
#
# `bincount` with 256 entries also counts label 255. Cut after the last class.
#
# </details>

# %% tags=["exercise"]
def my_weighted_config(train_set) -> sl.TrainConfig:
    """Settings of the preset "sample-coco" with one weight for each class of the data set."""
    # SOLUTION
    counts = sum(torch.bincount(label.flatten(), minlength=256) for _, label in train_set)
    weights = sl.training.class_weights(counts[: len(train_set.classes)].tolist())
    return sl.TrainConfig.preset("sample-coco", class_weights=weights)
    # END SOLUTION


checks.weighted_config(my_weighted_config)

# %% [markdown]
# To train it: `sl.train(my_weighted_config(sl.data.open_dataset("sample-coco")))`, about three minutes
# on two CPU cores.

# %% [markdown]
# ## The package's version
#
# `sl.evaluate` counts regions with `size_counts`. It does all regions of all classes at once, without
# the two loops:

# %%
print(inspect.getsource(size_counts).split('"""')[2])

# %% [markdown]
# Is it the same as ours? On 30 pictures, with answers that are wrong in many ways: the label, moved by
# five pixels, half of it lost at random, the left half painted over with one class.

# %%
compared = 0
for _, label in (val_set[i] for i in range(30)):
    label = label.as_subclass(torch.Tensor).long()
    guess = torch.where(torch.rand(label.shape) < 0.5, label.roll(5, 1), 0)
    guess[:, : label.shape[1] // 2] = 1
    ours, theirs = by_size(guess.numpy(), label.numpy()), size_counts(guess, label, bins=LIMITS)
    np.testing.assert_array_equal(ours, theirs)
    compared += int(theirs[:, 0].sum())
print(f"equal counts for {compared} regions")

# %% [markdown]
# ## What the papers say, what the code does
#
# - **Data.** The report says 50,000 random COCO pictures at 256 × 256; not which labels. The preset
#   takes the 80 classes of the instances and background.
# - **Augmentation.** The report names PSPNet's. In PSPNet's released code that is scale 0.5 to 2,
#   rotation by up to 10°, blur, mirror, crop; `augment="pspnet"`. The paper's own is another.
# - **Loss, optimiser, learning rate, batch.** The report gives none of them. The preset's are ours.
# - **Network.** The report's "MiT-B0" differs from the released one in the reduction, the Mix-FFN,
#   the norms and the decoder: 9.97 against 3.32 million parameters in the encoder (chapters
#   [04](04_efficient_attention.ipynb) to [07](07_mlp_decoder.ipynb)).
# - **Scores.** The paper prints mIoU over a whole data set. The report prints pictures.
#
# Sources: SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203); PSPNet,
# [arXiv:1612.01105](https://arxiv.org/abs/1612.01105); PVTv2,
# [arXiv:2106.13797](https://arxiv.org/abs/2106.13797).

# %% [markdown]
# ## Pitfalls
#
# - To rank pictures by loss and to conclude about sizes.
# - To compare the mIoU of two papers without knowing whether background is in the mean.
# - To label background 255 and to enjoy the score.
# - To average the IoU of pictures: counts are summed over the set, then divided. A picture without a
#   class would give 0 / 0.
# - To compare a network with weights in its loss with one without.
# - To change strips *and* layers and to blame the strips.
# - To believe a difference that is smaller than that of two seeds.

# %% [markdown]
# ## In short
#
# - The loss counts pixels, mIoU counts classes, a region table counts objects. They answer three
#   questions.
# - The loss of a picture tends to grow with the share that objects fill, for any network that is
#   better on background. An answer that sees nothing makes the report's two figures.
# - A claim about size needs regions, recall *and* IoU; a claim about Transformers needs a network
#   that is none; a claim about strips needs squares with the same layers; all need seeds.
# - Background out of the mean lowers a score, background ignored raises it towards recall, weights
#   trade precision for recall. None of them makes a better network.

# %% [markdown]
# ## What people ask
#
# **I trained SegFormer from scratch and it is bad. Is that normal?** Yes. Users of the released
# code report the same for ADE20K, see "Why from scratch is weak". Start from pretrained weights if
# you want scores; start from nothing if you want to learn what the architecture brings.
#
# **All my masks are background.** Look at the table of loss and mIoU above: every run goes through
# that. If it stays, look at the labels ([chapter 08](08_data.ipynb)), then at the learning rate
# ([chapter 16](16_bug_clinic.ipynb)).
#
# **My mIoU is "not a number".** A class that is neither labelled nor predicted has 0 / 0. Here
# it is left out of the mean; [chapter 01](01_what_is_segmentation.ipynb) has the other habits.
#
# **Is mIoU fair to small objects?** Not quite: pixels of one class are in one pot, over all pictures,
# and large objects fill it. That is why the table by size stands beside it.
#
# **Does `torchrun` change the numbers?** The batch is shared among the processes and the loss divided
# by the labelled pixels of all of them, so a step is the same step up to rounding and dropout.

# %% [markdown]
# ## Next
#
# [Chapter 10](10_train_chest_ct.ipynb) takes the same care to the chest: few classes, a tiny
# trachea, and patients who must not sit on both sides of the split.
