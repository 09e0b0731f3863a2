# %% [markdown]
# # 10 · Train on chest CT, and find out what a mean hides
#
# About 40 minutes to read and run, 25 more for the exercises. In fast mode the code trains one small
# SegFormer on drawn slices: about one minute on two CPU cores and 1.5 GB of memory. Full mode is the
# report's run on the real slices and needs a CUDA GPU.

# %% [markdown]
# **What you build.** A training run with a window into it, the report's figures 7 and 8, and the
# measurements that the report does not have: Dice and boundary IoU for every organ and every patient,
# with an honest interval.
#
# **What you learn.**
#
# - what happens in the fast phase of the learning curve;
# - why one figure for one patient is the unit, and a slice is not;
# - why the trachea is missed: three suspects, questioned one at a time;
# - which of three remedies helps it, measured: class weights, Dice loss, a larger input;
# - how far "varying imaging conditions" may vary, with and without colours in the augmentation;
# - what a split by slice does to the number that is reported.
#
# **What you need.** [Chapter 08](08_data.ipynb) for windows, masks and the split by patient; IoU,
# Dice and boundary IoU as in [chapter 00](00_start_here.ipynb)'s report ([chapter
# 01](01_what_is_segmentation.ipynb) goes deeper).

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis.ct_shifts import SEVERITIES, shift
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.evaluation import interval, metrics, resize_for_model
from segformer_lite.models import upsample
from segformer_lite.show import masks
from segformer_lite.training import class_weights, make_optimizer, poly_with_warmup
from segformer_lite.training.batches import Augmented, StepBatches
from segformer_lite.training.loop import train_step

MODE = None  # "fast" or "full"; None: what SEGFORMER_LITE_MODE says, else "fast"
TRAIN = False  # full mode: True trains here, for hours; False shows the newest finished run
session = setup(MODE)

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "patch_embed", "attention", "mix_ffn", "decoder", "mask"))

# %% [markdown]
# The whole network, from the slice to the mask.

# %% [markdown]
# ## The question
#
# The report's second experiment (section 4.2) trains the smallest SegFormer on 15,000 chest CT slices
# of 512 × 512 pixels, 50 epochs. It shows a learning curve (figure 7) that has a *phase of fast
# progress*, and nine slices never seen in training (figure 8). Its findings: lung and heart are found;
# the small trachea is missed in some slices; and the main organs are found although imaging conditions
# and contrast vary.
#
# No number is given for any of it. **Which numbers would settle it?** Four:
#
# | claim | what to measure |
# |---|---|
# | lung and heart are found | Dice and boundary IoU of each organ, for patients never seen |
# | the trachea is missed in some slices | share found, by size |
# | conditions vary, the result holds | Dice against the strength of a shift that *we* choose |
# | (not said) how it was divided | the same run, divided by slice and by patient |
#
# Dice is $2I / (P + L)$: $I$ the pixels that prediction and label share, $P$ and $L$ the pixels of
# each; `dice` in the code. Boundary IoU is the IoU, $I / (P + L - I)$, of a thin band along the
# rim: `boundary_iou`.

# %% [markdown]
# ## The slices
#
# Fast mode has twelve drawn patients in the layout of the Kaggle set. The package divides them by
# patient ([chapter 08](08_data.ipynb) measured why):

# %%
train_set, val_set = (sl.data.open_dataset("sample-chest-ct", split) for split in ("train", "val"))
for name, dataset in (("train", train_set), ("val", val_set)):
    print(f"{name:5s} {len(dataset)} slices of {len(set(dataset.patients))} patients")
counts = np.bincount(np.stack([train_set.read_mask(i) for i in range(len(train_set))]).ravel())
for name, count in zip(train_set.classes, counts):
    print(f"{name:10s} {count / counts.sum():7.2%} of the training pixels")

# %% [markdown]
# The trachea has two pixels in a thousand. Leave it out altogether and the pixel accuracy loses
# exactly that. Whoever looks at accuracy, or at the loss, hardly hears of it.
#
# ### Dice by hand
#
# A row of six pixels, three of them trachea; the prediction finds two and invents one:

# %%
label = torch.tensor([0, 3, 3, 3, 0, 0])
prediction = torch.tensor([0, 0, 3, 3, 3, 0])
p, q = prediction == 3, label == 3
shared, P, L = (int(mask.sum()) for mask in (p & q, p, q))
print(f"I = {shared}, P = {P}, L = {L}: Dice {2 * shared / (P + L):.3f}, IoU {shared / (P + L - shared):.3f}")

# %% [markdown]
# For one patient the slices are a stack, (S, H, W), and the organ is one thing in it. So count the
# pixels of the whole stack, then divide *once*. The mean of the slices' own Dice is another number: a
# slice that just touches the tip of an organ then weighs as much as one through its middle.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: one figure for one patient (7 minutes)
#
# The Dice of one class in one patient's stack: count pixels over all slices, leave out those
# labelled 255, divide once. Where neither prediction nor label has the class, the answer is nan.
#
# <details><summary>Hint</summary>
#
# Make two masks, "predicted as c" and "labelled c", both without the pixels labelled 255. Three sums
# over the whole stack are all you need.
#
# </details>
# <details><summary>Help: it says that nan was expected</summary>
#
# A patient whose stack shows no heart, and where none was predicted, has no Dice: 0 / 0. Calling it 1
# flatters the mean, calling it 0 punishes a right answer.
#
# </details>

# %% tags=["exercise"]
def my_dice(predictions, labels, c):
    """Dice of class c in one patient's stack, label maps (S, H, W): float, nan where neither has it."""
    # SOLUTION
    known = labels != 255
    p, q = (predictions == c) & known, (labels == c) & known
    total = (p.sum() + q.sum()).item()
    return 2 * (p & q).sum().item() / total if total else math.nan
    # END SOLUTION


checks.patient_dice(my_dice)

# %% [markdown]
# ## The run, with a window
#
# `sl.train(config)` does all of it in one call. Here its loop is opened: the same parts in the same
# order, so that every five steps we can ask each organ how it is. Augmentation is off: from slices that
# all lie alike a network learns faster, and this run is short. (Try `augment="flip"`.)
#
# Who is asked: every third slice of the patients held out. Pictures go in at 96 pixels; the logits
# come out at 24 × 24 and are upsampled to the labels.

# %%
CONFIG = sl.TrainConfig.preset("sample-chest-ct", augment="none", steps=20 if session.quick else 150)
ORGANS = val_set.classes[1:]
some = [val_set[i] for i in range(0, len(val_set), 3)]
asked = torch.stack([resize_for_model(image.as_subclass(torch.Tensor), CONFIG.size) for image, _ in some])
truth = torch.stack([label.as_subclass(torch.Tensor) for _, label in some])
print("asked", tuple(asked.shape), "labels", tuple(truth.shape), "organs", ORGANS)


# %%
@torch.inference_mode()
def segment(model, images, size):
    """uint8 (B, 3, h, w) -> label maps (B, *size), the decision taken at the labels' resolution."""
    device = next(model.parameters()).device
    return upsample(model.eval()(sl.preprocess(images.to(device))), size).argmax(1).cpu()


def dice_now(model):
    """Dice of each organ over the slices that are asked."""
    confusion = metrics.confusion_matrix(segment(model, asked, truth.shape[-2:]), truth, 4).numpy()
    return dict(zip(ORGANS, metrics.dice_per_class(confusion)[1:]))


# %%
def learn(config, every=5):
    """The loop of `sl.train`, without files; returns the network and what was seen on the way."""
    order = StepBatches(len(train_set), config.batch_size, config.steps, config.seed)
    pictures = Augmented(train_set, config.short_side, config.size, config.augment, config.seed)
    torch.manual_seed(config.seed)
    model = sl.create_model(config.model, len(train_set.classes)).to(session.device)
    optimizer = make_optimizer(model, config.lr, config.weight_decay, config.head_lr_mult)
    scaler = torch.amp.GradScaler(enabled=False)
    history = []
    for step, (images, labels) in enumerate(DataLoader(pictures, batch_sampler=order), start=1):
        factor = poly_with_warmup(step - 1, config.steps, config.warmup)
        loss, _ = train_step(model, optimizer, scaler, images.to(session.device),
                             labels.to(session.device), factor, config, torch.float32)
        history.append({"step": step, "loss": loss.item()})
        if step % every == 0:
            history[-1] |= dice_now(model)
    return model.eval(), history


# %% [markdown]
# **Predict, then run.** Four classes, one loss. In which order are they learned?
#
# - A. All together: the loss is one number, and every step improves it for all.
# - B. The trachea first: its tube of air is the darkest and simplest thing in the picture.
# - C. By their share of the pixels: background, lung, heart, trachea.

# %% tags=["nbval-ignore-output"]
model, history = learn(CONFIG)
print(history[-1]["step"], "steps;", ", ".join(f"{organ} {history[-1][organ]:.2f}" for organ in ORGANS))

# %% tags=["nbval-ignore-output"]
STYLES = {"lung": ("blue", "-"), "heart": ("green", "--"), "trachea": ("red", ":")}


def curve(history, title):
    """Figure 7: the loss; where it was measured, the Dice of each organ below it."""
    window = min(9, len(history))
    smooth = np.convolve([e["loss"] for e in history], np.ones(window) / window, "valid")
    watched = [e for e in history if "lung" in e]
    fig, axes = plt.subplots(1, 2 if watched else 1, figsize=(7, 2.5), squeeze=False)
    axes[0, 0].plot([e["step"] for e in history], [e["loss"] for e in history], color="#BBBBBB", lw=0.8)
    axes[0, 0].plot([e["step"] for e in history][window // 2 : window // 2 + len(smooth)], smooth)
    axes[0, 0].set(title=title, xlabel="step", ylabel="loss", yscale="log")
    for organ, (colour, style) in STYLES.items() if watched else ():
        axes[0, 1].plot([e["step"] for e in watched], [e[organ] for e in watched], style,
                        color=show.COLOURS[colour], label=organ)
        axes[0, 1].set(title="patients never seen", xlabel="step", ylabel="Dice", ylim=(0, 1))
        axes[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


half = {organ: [e["step"] for e in history if e.get(organ, 0) >= 0.5][:1] for organ in ORGANS}
show.figure(curve(history, "loss (log scale)"), alt=(
    "Left, the loss on a logarithmic scale, falling. Right, the Dice of the organs. First at one half: "
    + ", ".join(f"{organ} at step {steps[0]}" if steps else f"{organ} never"
                for organ, steps in half.items())))

# %% [markdown]
# Left the loss, grey each batch and blue the mean of nine; right the Dice.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why this order?* Cross-entropy is a mean over pixels. What holds most pixels has most to
# say in the gradient; only when the lung costs little does the heart's share count, and then the
# trachea's. **The fast phase of a curve is a large class being understood.** A flat curve
# afterwards does not say that all is learned: the class that is still missing may be too small to
# be heard in it.
#
# In the drawn slices the fast phase is the lung, and the heart close behind. When the trachea
# begins to rise, nearly all of the loss is gone: only the logarithm still shows the rest falling.
#
# </details>

# %%
# What the answer says, checked.
losses = [entry["loss"] for entry in history]
assert np.mean(losses[-10:]) < losses[0], "the loss must fall"
assert session.quick or history[-1]["lung"] > 0.7, "a minute must teach the lung"

# %% [markdown]
# What was learned in the fast phase of the report's figure 7 we cannot know; the same window on the
# real run would tell.

# %% [markdown]
# ### The real run
#
# Full mode looks for the newest finished run of the report's preset. Without one, it prints the
# command, and the chapter goes on with the run above.

# %% tags=["nbval-ignore-output"]
data, size = CONFIG.data, CONFIG.size
if session.full:
    if TRAIN:
        sl.train(sl.TrainConfig.preset("report-chest-ct"))
    folder = session.newest_run("report-chest-ct")
    if folder is None:
        print("no finished run yet; start it with\n  segformer-lite train --preset report-chest-ct")
    else:
        model, about = sl.load_model(folder)
        model, data, size = model.to(session.device), about["data"], about["size"]
        val_set = sl.data.open_dataset(data, "val", **about["data_options"])
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        show.figure(curve(log, folder.name), alt="The loss of the newest run of the report's preset.")
print(len(val_set), "slices to test on, at", size, "pixels")

# %% [markdown]
# ## Nine slices nobody chose
#
# The report draws nine unseen slices *at random*: (a) input, (b) prediction, (c) label. Random matters;
# nine chosen slices prove nothing. Its colours are green for the heart, blue for the lung, red for the
# trachea.
#
# The package's palette has the same three names in other shades (Okabe and Ito's). Pure red and pure
# green are hard to tell apart for people without red or green cones; these shades stay distinct, and
# they differ in lightness. Both, once:

# %% tags=["nbval-ignore-output"]
REPORT = np.array([(0, 0, 0), (0, 0, 255), (0, 255, 0), (255, 0, 0)], np.uint8)


def mosaic(pictures, columns=3):
    """Nine pictures (H, W, 3) as one, 3 × 3."""
    rows = [np.hstack(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    return np.vstack(rows)


chosen = torch.randperm(len(val_set), generator=torch.Generator().manual_seed(0))[:9].sort().values
slices, labels = zip(*(val_set[i] for i in chosen.tolist()))
guesses = [segment(model, resize_for_model(image.as_subclass(torch.Tensor), size)[None],
                   label.shape)[0] for image, label in zip(slices, labels)]
plain = [masks.as_picture(image)[::2, ::2] for image in slices]
drawn = {name: [masks.colourise(m[::2, ::2], REPORT) for m in maps]
         for name, maps in (("guess", guesses), ("label", labels))}
fig = show.grid([mosaic(plain), mosaic(drawn["guess"]), mosaic(drawn["label"])],
                ["(a) input", "(b) prediction", "(c) label"], columns=3, cell=2.3, interpolation="auto")
show.figure(fig, colours=128, alt=(
    "Three blocks of nine slices: the inputs in grey; the predictions and the labels in pure colours on "
    "black. Blue lungs and green hearts agree in place and roughly in outline; the few red tracheas are a "
    "handful of pixels each, and their shapes differ."))

# %% tags=["nbval-ignore-output"]
overlays = [mosaic([masks.overlay(image, m, val_set.palette)[::2, ::2] for image, m in zip(slices, maps)])
            for maps in (guesses, labels)]
fig = show.grid([mosaic(plain), *overlays], ["input", "prediction", "label"], columns=3, cell=2.3,
                interpolation="auto")
masks.legend(fig, [*guesses, *labels], val_set.classes, val_set.palette)
show.figure(fig, colours=128, alt=(
    "The same nine slices in the package's colours, laid over the pictures, with a legend: bluish lungs, "
    "a green heart and an orange-red trachea."))

# %% [markdown]
# Compare (b) with (c), slice by slice: first the lungs, then the hearts, then the small red spots. What
# is missing, what invented? The report found heart and lung in place and the trachea missed in some
# slices. How often, and how badly, nine pictures can't say.

# %% [markdown]
# ## Every patient a figure
#
# `sl.evaluate` counts a whole data set. For one patient, hold out that patient alone:

# %% tags=["nbval-ignore-output"]
def patient_report(patient):
    """The report of one patient's slices."""
    one = sl.data.open_dataset(data, "val", val_patients=[patient])
    return sl.evaluate(model, one, size, progress=False)


few = list(dict.fromkeys(val_set.patients))[:12]
reports = {patient: patient_report(patient) for patient in few}
for number, report in enumerate(reports.values(), start=1):
    border = report.boundary[0] / report.boundary[1]
    print(f"patient {number}:", ", ".join(f"{organ} {report.per_class[organ]['dice']:.2f} "
                                          f"(rim {border[c]:.2f})" for c, organ in enumerate(ORGANS, 1)))

# %% [markdown]
# Two patients, two rows. How would the network do on the *next* patient? The mean of two says little,
# and an interval from two would be a guess in disguise. The package refuses:

# %%
try:
    interval([0.7, 0.8], ["patient 1", "patient 2"])
except ValueError as error:
    print(error)

# %% [markdown]
# ### Twelve patients
#
# So test on all twelve. `benchmarks/chest_claims.py` deals them into three groups; run $k$ holds out
# group $k$, with its own seed. Each patient is tested once, by a network that has never seen it. The
# results lie in `docs/results`, with the command that makes them again:

# %%
path = sl.data.course_folder() / "docs" / "results" / "chest-claims.json"
stored = json.loads(path.read_text(encoding="utf-8"))
SETTINGS = stored["settings"]
base = SETTINGS["plain"]["config"]
keys = ("size", "steps", "batch_size", "augment")
print(stored["command"], "|", ", ".join(f"{key} {base[key]}" for key in keys))


def patient_values(name, organ, metric="dice"):
    """patient -> the metric under one setting; nan where there is nothing to measure."""
    rows = {p: row for run in SETTINGS[name]["runs"] for p, row in run["patients"].items()}
    return {p: math.nan if row[organ][metric] is None else row[organ][metric] for p, row in rows.items()}


print(len(patient_values("plain", "lung")), "patients, each tested once")

# %% [markdown]
# **The bootstrap.** Twelve values, and one mean. How far might the mean have come out elsewhere, with
# twelve *other* patients? We have no others. So draw twelve from our twelve, with replacement: some
# come twice, some not at all. Take the mean, and again, ten thousand times. The middle 95 % of these
# means is the interval.

# %%
def bootstrap(means, draws=10_000, seed=0):
    """Mean over patients (n,), and the 2.5 % and 97.5 % points of the means of redrawn patients."""
    drawn = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))  # (draws, n)
    low, high = np.quantile(means[drawn].mean(1), [0.025, 0.975])
    return means.mean(), low, high


for organ in ORGANS:
    for metric in ("dice", "boundary_iou"):
        values = np.array(list(patient_values("plain", organ, metric).values()))
        mean, low, high = bootstrap(values)
        print(f"{organ:8s} {metric:13s} {mean:.3f}  [{low:.3f}, {high:.3f}]  "
              f"worst patient {values.min():.3f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2), sharey=True)
for ax, metric, label in zip(axes, ("dice", "boundary_iou"), ("Dice", "boundary IoU")):
    for y, organ in enumerate(ORGANS):
        values = np.array(list(patient_values("plain", organ, metric).values()))
        mean, low, high = bootstrap(values)
        ax.plot(values, [y] * len(values), "o", color=show.COLOURS["sky"], ms=4)
        ax.plot([low, high], [y + 0.22] * 2, color="#333333", lw=2)
        ax.plot(mean, y + 0.22, "|", color="#333333", ms=10)
    ax.set(yticks=range(3), yticklabels=ORGANS, ylim=(2.5, -0.5), xlim=(0, 1), xlabel=label)
means = {metric: ", ".join(f"{organ} {np.mean(list(patient_values('plain', organ, metric).values())):.2f}"
                           for organ in ORGANS) for metric in ("dice", "boundary_iou")}
show.figure(fig, alt=(
    "For each organ twelve dots, one a patient, and below them a line for the interval of the mean. Left "
    f"Dice, with the means {means['dice']}; right boundary IoU, {means['boundary_iou']}."))

# %% [markdown]
# A dot is a patient, the black line the interval of their mean. Read the claim "lung and heart are
# found" off the left panel, and at what quality of outline off the right one. The report chose
# SegFormer for its *boundaries*; the rim is where most is lost.
#
# The dots say more than the line. A line that looks short may still have one patient far to the left,
# and it is that patient who comes to harm.
#
# ### The unit is the patient
#
# **Predict, then run.** Let each patient have 27 slices. Take slices as the unit and draw 324 of
# them. What happens to the interval?
#
# - A. Nothing: the mean is the same, so its interval is too.
# - B. It becomes about five times narrower.
# - C. It becomes wider, since slices differ more than patients.
#
# To see it in its pure form, let all 27 slices of a patient have the patient's value.

# %%
values = np.array(list(patient_values("plain", "trachea").values()))
slices_of = np.repeat(values, 27)
for unit, groups in {"patients": np.repeat(np.arange(12), 27), "slices": np.arange(12 * 27)}.items():
    mean, low, high = interval(slices_of, groups)
    print(f"{unit:9s} drawn: {mean:.3f} [{low:.3f}, {high:.3f}], {high - low:.3f} wide")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Twenty-seven copies of an opinion are one opinion. The interval of a mean shrinks with the
# root of what is drawn, and $\sqrt{27} ≈ 5.2$. Real slices differ within a patient, so the mistake
# is smaller there, but it always points the same way: **it makes you surer than you may be.**
#
# </details>
#
# How many patients are enough for an interval at all? Below eight the package gives none: with two
# or three, redrawing shows the same handful again and again.

# %% [markdown] tags=["exercise"]
# ### Exercise 2: draw patients (10 minutes)
#
# `values` holds a number for each *slice*, `patients` whose slice it is. Average each patient, then
# draw patients, 5,000 times.
#
# <details><summary>Hint</summary>
#
# `np.unique(patients)` lists them. Once you have one mean for each, the chapter's `bootstrap` is
# nearly the rest.
#
# </details>
# <details><summary>Help: it says that slices were drawn</summary>
#
# The second axis of your draws must be as long as the list of patients, not of values.
#
# </details>

# %% tags=["exercise"]
def my_interval(values, patients, rng):
    """values (n,), patients (n,), numpy generator -> (low, high), 95 % interval of the mean over patients."""
    # SOLUTION
    means = np.array([values[patients == patient].mean() for patient in np.unique(patients)])
    drawn = rng.choice(means, size=(5000, len(means))).mean(1)
    return np.quantile(drawn, 0.025), np.quantile(drawn, 0.975)
    # END SOLUTION


checks.patient_interval(my_interval)

# %% [markdown]
# ## Why the trachea is missed
#
# Three suspects: it is small, the network answers at a quarter of the resolution, and it has few
# pixels to vote with. Question them one at a time.
#
# ### Suspects one and two: size, and the stride of 4
#
# How wide is a trachea, in the cells of the logit map? A piece of $A$ pixels is as large as a disc of
# diameter $2 \sqrt{A / π}$.

# %%
areas = []
for i in range(min(len(val_set), 60)):
    pieces = metrics.connected_components(np.asarray(val_set[i][1]) == 3)
    areas += np.bincount(pieces.ravel())[1:].tolist()
side = val_set[0][1].shape[0]
diameter = 2 * math.sqrt(np.median(areas) / math.pi)
print(f"{len(areas)} pieces, the middle one of {np.median(areas):.0f} px: {diameter:.1f} px across, "
      f"of {side}")
for pixels in (64, 96, 192, 512):
    print(f"input {pixels:3d} px: logits {pixels // 4:3d} × {pixels // 4:<3d}, "
          f"the trachea is {diameter * pixels / side / 4:.1f} cells across")

# %% [markdown]
# At 96 pixels the trachea is hardly more than one cell. What can a map of this resolution say at all?
# Two answers, both from the label itself, no network:
#
# - **shares**, as [chapter 07](07_mlp_decoder.ipynb) had them at the slices' full size: every cell
#   holds the exact share of each class in it. They are upsampled as logits are, and the largest
#   wins;
# - **best scores**: every cell holds whatever number serves best, found by gradient descent.
#
# **Predict, then run.** How much of the trachea must be lost at 96 pixels?
#
# - A. Nearly all: something one cell wide can't have an outline.
# - B. More than half with shares, little with the best scores.
# - C. About a quarter with both: one pixel in four is kept along each side.

# %%
def by_shares(labels, cells):
    """Dice of each class when a map of cells × cells holds the true shares: (B, H, W) -> (K,)."""
    shares = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()         # (B, K, H, W)
    coarse = F.interpolate(shares, size=(cells, cells), mode="area")  # (B, K, cells, cells)
    answer = upsample(coarse, labels.shape[-2:]).argmax(1)
    return metrics.dice_per_class(metrics.confusion_matrix(answer, labels, 4).numpy())


def by_best_scores(labels, cells, c, steps=40):
    """Dice of class c when a map of cells × cells holds the best scores found: (B, H, W) -> float."""
    wanted = (labels == c).float()[:, None]
    scores = (20 * F.interpolate(wanted, size=(cells, cells), mode="area") - 5).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=1.0)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(upsample(scores, labels.shape[-2:]), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answer = (upsample(scores.detach(), labels.shape[-2:]) > 0)[:, 0].long()
    return metrics.dice_per_class(metrics.confusion_matrix(answer, (labels == c).long(), 2).numpy())[1]


# %%
shares = {pixels: by_shares(truth, pixels // 4) for pixels in (64, 96, 128, 192)}
best = {pixels: by_best_scores(truth, pixels // 4, 3) for pixels in shares}
for pixels, values in shares.items():
    print(f"input {pixels:3d} px: shares", ", ".join(f"{o} {v:.2f}" for o, v in zip(ORGANS, values[1:])),
          f"| best scores, trachea {best[pixels]:.1f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** *Why the gap?* A cell half trachea, half not, says "undecided", and its neighbours pull it down:
# shares lose whatever is narrower than about two cells. The best scores do something cleverer. They
# *exaggerate*: strongly yes in the middle, strongly no beside it, by just so much that the interpolated
# zero falls on the rim. That is how a map of cells can hold an outline finer than a cell. So the stride
# does not forbid the trachea. It makes it a fine adjustment, to be learned from few pixels.
#
# </details>

# %% [markdown]
# **Predict, then run.** The next figure sorts the pieces of trachea by size and asks how many were
# found (half of their pixels). What shape has it?
#
# - A. Flat: pieces are missed at random.
# - B. Rising: the small ones are missed.
# - C. Falling: large pieces touch more things that they can be mistaken for.

# %%
def found_by_size(name, edges):
    """For each bin of area: pieces, and the share of them found."""
    pixels, right = np.array([row for run in SETTINGS[name]["runs"] for row in run["regions"]]).T
    bins = np.digitize(pixels, edges)
    return [(int((bins == b).sum()), float(np.mean(2 * right[bins == b] >= pixels[bins == b])))
            for b in range(len(edges) + 1)]


EDGES = (140, 170, 200, 260)
NAMES = [f"below {EDGES[0]}", *(f"to {high}" for high in EDGES[1:]), f"above {EDGES[-1]}"]
by_area = found_by_size("plain", EDGES)
for name, (count, share) in zip(NAMES, by_area):
    print(f"{name:9s} px: {count:3d} pieces, {share:.0%} found")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4))
for c, (organ, (colour, style)) in enumerate(STYLES.items(), start=1):
    left.plot(list(shares), [values[c] for values in shares.values()], "o" + style, ms=4,
              color=show.COLOURS[colour], label=f"{organ}, shares")
left.plot(list(best), list(best.values()), "^-", ms=4, color=show.COLOURS["orange"],
          label="trachea, best scores")
left.axvline(CONFIG.size, color="#999999", lw=1)
left.set(xlabel="input, px", ylabel="Dice at stride 4", ylim=(0, 1.02))
left.legend(fontsize=7, loc="lower right")
right.bar(range(len(by_area)), [share for _, share in by_area], color=show.COLOURS["red"])
right.set(xticks=range(len(by_area)), ylim=(0, 1), xlabel="pixels of the piece (file of 256 px)",
          ylabel="share found")
right.set_xticklabels(NAMES, rotation=30, ha="right", fontsize=8)
show.figure(fig, alt=(
    "Left, Dice at stride 4 without any network, against the input's size: lung and heart lie above 0.85 "
    "everywhere; the trachea by shares rises from zero at 64 pixels to about 0.9 at 192, by best scores it "
    "begins above 0.7 and rises to nearly one. Right, bars of the share of trachea pieces that were "
    "found, by their size: "
    + ", ".join(f"{name} px {share:.0%}" for name, (_, share) in zip(NAMES, by_area)) + "."))

# %% [markdown]
# Left what a map can hold, the grey line at the size that was trained; right the network that was
# trained.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **B**, in the main: the smallest pieces are missed most, the largest least, and the three kinds
# between lie between, in no order. The smallest pieces come in pairs: they are the main bronchi below
# the fork, which the labels call trachea as well.
#
# </details>
#
# In the report's run, at 512 pixels, size and stride are hardly an excuse: the trachea is several
# cells wide there. What is left is the third suspect.

# %% [markdown]
# ### Suspect three: the share of the pixels
#
# Cross-entropy averages over pixels, so a class has as many votes as pixels. Two remedies change the
# vote. **Class weights** give each class a factor. **Dice loss** asks for the overlap of each class in
# each picture and takes the mean over classes, where the trachea counts as much as the lung. It is
# added to the cross-entropy, not put in its place.

# %%
for name, share, weight in zip(train_set.classes, counts / counts.sum(), class_weights(counts)):
    print(f"{name:10s} share {share:7.2%}  weight {weight:6.2f}  share of the vote {share * weight:6.1%}")

# %% [markdown]
# The weights are one over the *root* of the share. One over the share would give all classes the same
# vote, and each pixel of the trachea, the doubtful ones at its rim included, a few hundred times the
# weight of a background pixel.
#
# What does a weight do to the answer? It moves the decision. Trained with weight $w$, a network calls a
# pixel trachea once its probability times $w$ beats the others'; between two classes, of weights 1 and
# $w$, that is from $1 / (1 + w)$ on.

# %% [markdown]
# ## What helps
#
# Four settings, each with the same three groups and seeds. "192 px" has pictures twice as large in
# batches of 4, so that it costs the same: as many pixels a step.
#
# **Predict, then run.** Class weights as above: what happens to the trachea?
#
# - A. Its Dice rises: it is what the weights are for.
# - B. Nearly all of it is found, and its Dice falls.
# - C. Little changes: a weight is only a scale, and AdamW divides it out.

# %%
HELP = ("plain", "class weights", "Dice loss", "192 px")
METRICS = ("dice", "recall", "precision", "boundary_iou")
print(f"{'trachea':15s}" + "".join(f"{metric:>14s}" for metric in METRICS))
for name in HELP:
    cells = [np.nanmean(list(patient_values(name, "trachea", metric).values())) for metric in METRICS]
    print(f"{name:15s}" + "".join(f"{cell:14.3f}" for cell in cells))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Recall is nearly whole, and precision pays for it: a broad red blot holds every trachea. *Why?*
# Where the network is in doubt, a missed pixel now costs about twenty times an invented one. It learned
# the same, and answers "trachea" from a far lower probability on. Weights are for a detector that
# must not miss, not for an outline.
#
# </details>
#
# Dice loss asks for the *overlap* itself: an invented pixel enlarges $P$, a missed one leaves $I$
# small, and both cost about the same. It raises recall at a far smaller price.
#
# Two settings are tested on the same patients, so compare patient by patient: the hard ones are hard
# for both, and the difference leaves that out. If the interval of the *difference* lies on one side of
# zero, it is more than the luck of which patients were drawn.

# %%
def difference(name, organ, metric="dice", other="plain"):
    """Setting minus other, patient by patient: mean and interval."""
    a, b = patient_values(name, organ, metric), patient_values(other, organ, metric)
    return interval([a[p] - b[p] for p in a], list(a))


def says(low, high):
    return "helps" if low > 0 else "harms" if high < 0 else "cannot be told from none"


for organ in ("trachea", "heart", "lung"):
    for name in HELP[1:]:
        mean, low, high = difference(name, organ)
        print(f"{organ:8s} {name:14s} {mean:+.3f} [{low:+.3f}, {high:+.3f}]  {says(low, high)}")

# %%
fig, ax = plt.subplots(figsize=(6, 2))
for y, name in enumerate(HELP):
    values = np.array(list(patient_values(name, "trachea").values()))
    mean, low, high = bootstrap(values)
    ax.plot(values, [y] * len(values), "o", color=show.COLOURS["sky"], ms=4)
    ax.plot([low, high], [y + 0.25] * 2, color="#333333", lw=2)
    ax.plot(mean, y + 0.25, "|", color="#333333", ms=10)
ax.set(yticks=range(len(HELP)), yticklabels=HELP, ylim=(3.6, -0.5), xlim=(0, 1),
       xlabel="Dice of the trachea (dots: patients)")
means = {name: np.nanmean(list(patient_values(name, "trachea").values())) for name in HELP}
show.figure(fig, alt=(
    "Dice of the trachea under four settings, a dot for each of twelve patients and a line for the interval "
    "of the mean. Means: " + ", ".join(f"{name} {value:.2f}" for name, value in means.items()) + "."))

# %% [markdown]
# Read three things together: the mean, the interval of the *difference* in the cell above, and what
# the other organs paid. The larger input shows four times the pixels of each trachea, but at equal cost
# only a quarter of the pictures; the heart, a large thing of many shapes, would rather have seen more
# chests. (As many pictures at 192 pixels cost four times as much; that was not tried here.) Three runs on
# drawn slices stand behind the words; for your data, run the comparison again.

# %% [markdown] tags=["exercise"]
# ### Exercise 3: two remedies at once (8 minutes)
#
# The benchmark tried one thing at a time. Write the settings of a run that has the larger input *and*
# the weights: 192 pixels, as many pixels a step as the preset, and class weights from the training
# labels. All else stays as in the preset.
#
# <details><summary>Hint</summary>
#
# `sl.TrainConfig.preset("sample-chest-ct", size=…, batch_size=…, class_weights=…)`, and count the pixels
# of the training labels as "The slices" did.
#
# </details>
# <details><summary>Help: it says that pixels a step differ</summary>
#
# Twice the side is four times the pixels, so a quarter of the pictures.
#
# </details>

# %% tags=["exercise"]
def my_recipe():
    """A TrainConfig: the preset sample-chest-ct at 192 px, equal pixels a step, class weights."""
    # SOLUTION
    patients = sl.data.open_dataset("sample-chest-ct", "train")
    maps = np.stack([patients.read_mask(i) for i in range(len(patients))])
    weights = class_weights(np.bincount(maps.ravel()))
    return sl.TrainConfig.preset("sample-chest-ct", size=192, batch_size=4, class_weights=weights)
    # END SOLUTION


checks.rare_recipe(my_recipe())

# %% [markdown]
# `sl.train(my_recipe())` trains it, in about three minutes on two cores. For a verdict put it beside
# the preset, with three seeds: `sl.compare({"preset": …, "mine": my_recipe()}, seeds=3)`.

# %% [markdown]
# ## Imaging conditions that vary
#
# The report says that its pictures vary in conditions and contrast and that the main organs are found
# all the same. But training and test pictures varied *alike*. The question for a new scanner is another:
# how far may conditions move *away* from those of the training?
#
# So move them, by a known amount. Four shifts, five severities, pictures only; the labels stay:
#
# | shift | what would do it | function |
# |---|---|---|
# | brighter, darker | the window's middle moves ([chapter 08](08_data.ipynb)) | `window(image, level=…)` |
# | flatter | a wider window | `window(image, width=…)` |
# | noisier | a lower dose: a quarter of it doubles the noise | `dose_noise(image, sd=…)` |
#
# Each pixel of a shifted window is $(g - 127.5 - \text{level}) / \text{width} + 127.5$, rounded and
# cut off at 0 and 255. What the first window cut off does not come back.

# %%
from segformer_lite.analysis import ct_shifts

print(inspect.getsource(ct_shifts.window))
greys = torch.tensor([0, 60, 127, 200, 255], dtype=torch.uint8)
print("level +20:", ct_shifts.window(greys, level=20).tolist())
print("width 2:  ", ct_shifts.window(greys, width=2.0).tolist())

# %% tags=["nbval-ignore-output"]
image, label = val_set[len(val_set) * 4 // 5]
image = image.as_subclass(torch.Tensor)


def look(kind, severity):
    """The shifted slice with the network's answer laid over it: (H, W, 3) uint8."""
    shifted = shift(image, kind, severity)
    answer = segment(model, resize_for_model(shifted, size)[None], label.shape)[0]
    return masks.overlay(shifted, answer, val_set.palette)


LEVELS = (0, 1, 3, 5)
views = [look(kind, severity) for kind in SEVERITIES for severity in LEVELS]
titles = [f"{kind}, {severity}" if severity else "as it is" for kind in SEVERITIES for severity in LEVELS]
show.figure(show.grid(views, titles, columns=4, cell=1.3, interpolation="auto"), colours=128, alt=(
    "A slice under four shifts, a row each, from the picture as it is to severity 5, with the network's "
    "answer in colour. At weak shifts the answer hardly changes; at strong ones organs shrink, vanish "
    "or spill over their rim."))

# %% [markdown]
# Each row begins with the picture as it is. See where the colours begin to fail. This is one slice and
# one network; the curves below have all patients.
#
# Is it a matter of what the network has *seen*? The benchmark trained three ways: **not augmented** (the
# centre, nothing by chance), **plain** (scale, crop, mirror) and **colours** (the released recipe: scale,
# crop, mirror and *photometric distortion*, which changes brightness and contrast at random).
#
# **Predict, then run.** Severity 5 of each: which does the plain network survive best?
#
# - A. Brighter: the shapes stay, and layer norms remove what is added everywhere.
# - B. Flatter: every edge stays where it was, only weaker.
# - C. Noisier: it looks worst, but nothing is systematically moved.

# %%
TRAINED = {"not augmented": ("o--", "grey"), "plain": ("s-", "blue"), "colours": ("^-", "orange")}


def under_shift(name, kind, organs):
    """Mean Dice of organs from severity 0 to 5, one row a run: (runs, 6)."""
    return np.array([[np.mean([(figures[organ] or 0) for organ in organs])
                      for figures in run["shifts"]["as they are"] + run["shifts"][kind]]
                     for run in SETTINGS[name]["runs"]])


for kind in SEVERITIES:
    for name in TRAINED:
        row = under_shift(name, kind, ("lung", "heart")).mean(0)
        print(f"{kind:9s} {name:14s} lung and heart:", " > ".join(f"{value:.2f}" for value in row))

# %%
fig, axes = plt.subplots(2, 4, figsize=(7, 3.6), sharex=True, sharey=True)
for line, organs in zip(axes, (("lung", "heart"), ("trachea",))):
    for ax, kind in zip(line, SEVERITIES):
        for name, (style, colour) in TRAINED.items():
            values = under_shift(name, kind, organs)
            ax.plot(values.mean(0), style, color=show.COLOURS[colour], ms=3, lw=1.3, label=name)
            ax.fill_between(range(6), values.min(0), values.max(0), color=show.COLOURS[colour],
                            alpha=0.2, lw=0)
        ax.set(ylim=(0, 1), title=kind if organs[0] == "lung" else "")
    line[0].set_ylabel("Dice, " + " and ".join(organs))
axes[1, 0].set_xlabel("severity")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
worst = {name: {kind: under_shift(name, kind, ("lung", "heart")).mean(0)[5] for kind in SEVERITIES}
         for name in TRAINED}
show.figure(fig, alt=(
    "Dice against the severity of four shifts, above for lung and heart, below for the trachea, one line for "
    "each way of training. At severity 5, lung and heart: "
    + "; ".join(f"{name} " + ", ".join(f"{kind} {value:.2f}" for kind, value in row.items())
                for name, row in worst.items()) + "."))

# %% [markdown]
# Upper row lung and heart, lower row the trachea; a band spans the three runs.
#
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** *Why does noise cost so little?* The picture is reduced to 96 pixels first, which averages
# it away, and the drawn patients are noisy themselves. Flattening costs most: black air turns grey,
# and no slice of the training has a grey lung between grey muscles. Layer norm removes what is
# common to all channels of a *token*, not what is common to all pixels, and the very first thing a
# picture meets is a convolution with a bias.
#
# </details>
#
# Follow one colour from left to right: the claim "stable" holds up to where the line bends, and
# that depends on the shift. "Robust" without *to what* and *how far* is no statement.
#
# And look at severity 0: what has augmentation bought on slices as they are? These runs are short, and the
# bodies all lie alike. Augmentation is paid for in steps; it pays back when the network begins to know
# its slices by heart.
#
# Does it help to have seen colours change? In each run both networks were tested on the same slices;
# here are the differences, the mean over all three organs:

# %%
for kind in SEVERITIES:
    gain = (under_shift("colours", kind, ORGANS) - under_shift("plain", kind, ORGANS))[:, [0, 3, 5]]
    print(f"{kind:9s} colours - plain at severity 0, 3, 5: {gain.mean(0).round(2)}, "
          f"ahead at 5 in {(gain[:, 2] > 0).sum()} of {len(gain)} runs")

# %% [markdown]
# The first number is the price, on slices as they are; the others are the gain. Against darker
# pictures colours help, in every run, even beyond the 32 grey values that training moves them by.
# Against brighter and noisier ones the plain network loses little, so there is little to win.
# Against flatter ones they don't help in the mean, although contrast is changed in training as well. *Why?*
# The contrast step of photometric distortion *multiplies* the grey values: black air stays black, and
# its brightness step lifts air by 32 at most. A wider window lifts air to grey, by 64 and more from
# severity 3 on. Both are called contrast, and to the network they are two different things. **Augment
# with what your scanner does, not with what has the right name:** for CT that is the window itself,
# `ct_shifts.window` with random level and width.

# %% [markdown]
# The same picture with a slider (optional):

# %% tags=["nbval-ignore-output"]
from ipywidgets import Dropdown, IntSlider, interact


def try_shift(kind, severity):
    pair = [look(kind, 0), look(kind, severity)]
    show.figure(show.grid(pair, ["as it is", f"{kind}, {severity}"], cell=2.4, interpolation="auto"),
                alt=f"A slice and the network's answer, as it is and {kind} at severity {severity}.")


_ = interact(try_shift, kind=Dropdown(options=list(SEVERITIES)),
             severity=IntSlider(3, 0, 5, continuous_update=False))

# %% [markdown]
# ## A mirrored heart is no anatomy
#
# Every augmentation of the course but "none" mirrors half of the pictures. For a street that is
# harmless. In a chest the heart lies to the patient's *left*; a mirrored slice shows a body that hardly
# anybody has (the condition has a name, *situs inversus*). What does the network learn from it? Test
# each on the slices as they are and mirrored, pictures and labels alike:

# %%
for name in TRAINED:
    rows = [[np.mean([run["shifts"][test][0][organ] or 0 for run in SETTINGS[name]["runs"]])
             for organ in ORGANS] for test in ("as they are", "mirrored")]
    print(f"{name:14s}" + "   ".join(f"{organ} {a:.2f} > {b:.2f}" for organ, a, b in zip(ORGANS, *rows)))

# %% [markdown]
# Before the arrow the slices as they are, behind it mirrored. For the two networks trained with mirrors
# little changes. The one trained without has never seen a heart on the other side, and loses most of it
# there: it has learned *where* a heart is, not only how it looks.
#
# Neither is simply right. With few patients, mirroring doubles the shapes that are seen. But place is
# knowledge, and the mirror throws it away: half of what the network is shown has the heart where
# practically nobody has it. It then *cannot notice* a slice that was stored the wrong way round, a common
# slip between file formats. And if two classes differ by side only (left lung, right lung), mirroring
# teaches that they are the same. Rule: **mirror only what may be mirrored in the world, or exchange the
# labels along with the sides.** (The row "not augmented" also lacks scale and crop, so its first number
# is not the price of the mirror alone.)

# %% [markdown]
# ## Split by slice, split by patient
#
# [Chapter 08](08_data.ipynb) copied masks from neighbours to show the leak. Here is what it does to
# a *trained* network: the same settings and as many slices to learn from, but held out are random
# slices in place of whole patients.

# %%
for organ in ORGANS:
    rows = {name: [run["pooled"][organ]["dice"] for run in SETTINGS[name]["runs"]]
            for name in ("plain", "split by slice")}
    (patient, by_slice), spread = map(np.mean, rows.values()), [np.ptp(v) for v in rows.values()]
    print(f"{organ:8s} by patient {patient:.3f} (runs differ by {spread[0]:.3f}), "
          f"by slice {by_slice:.3f} ({spread[1]:.3f}): {by_slice - patient:+.3f}")

# %% [markdown]
# Here it adds nothing: no difference is larger than what the three runs differ by themselves, in
# brackets, and a difference below that is no evidence. Where a split by slice does add something,
# it is not quality, but the same network asked about patients it knows. What makes a leak large is
# time to remember (these runs see each slice about thirty times; the report's 50 epochs, on a
# larger set) and neighbours that lie close ([chapter 08](08_data.ipynb)). The report does not say
# how it divided its slices, and the set's own author divides them by row, that is, by slice. A
# number without its split can't be compared with another.
#
# On the few real slices that were at hand, of three patients, the difference is larger than noise
# (`docs/results/real-sets.md`): with 6 slices held out the organs have a mean IoU of 0.29; trained
# on one patient and asked about 3 slices of the two others, 0.00. Those patients were stored with
# another window. Three patients prove nothing about chests; they show what a split can hide.

# %% [markdown]
# ## The package's version
#
# Two things of this chapter are in the package. The interval, with its refusal:

# %%
print(inspect.getsource(interval))

# %%
table = patient_values("plain", "heart")
means = np.array([table[patient] for patient in sorted(table)])
assert np.allclose(interval(list(table.values()), list(table)), bootstrap(means))
print("interval: equal to the chapter's bootstrap, draw by draw")

# %% [markdown]
# The Dice of a report, against the three sums of this chapter:

# %%
tiny = sl.create_model("segformer_b0", num_classes=4).eval()
one = sl.data.open_dataset("sample-chest-ct", "val", limit=6)
report = sl.evaluate(tiny, one, 64, progress=False)
answers, wanted = [], torch.stack([one[i][1].as_subclass(torch.Tensor) for i in range(len(one))])
for i in range(len(one)):
    small = resize_for_model(one[i][0].as_subclass(torch.Tensor), 64)
    answers.append(segment(tiny, small[None], wanted.shape[-2:])[0])
p, q = torch.stack(answers) == 1, wanted == 1
mine = 2 * (p & q).sum().item() / (p.sum() + q.sum()).item()
assert math.isclose(mine, report.per_class["lung"]["dice"], rel_tol=1e-6)
print("evaluate: equal to counting a stack once")

# %% [markdown]
# And the loop: `sl.train` takes the same steps as `learn`, with checkpoints, a log and a report around
# them. Class weights and Dice loss are two of its settings, `class_weights` and `dice_weight`.

# %% [markdown]
# ## What the report says, what was measured
#
# - **"A phase of fast progress."** In the drawn slices it is the largest class being learned; smaller
#   ones follow, and the loss hardly tells.
# - **"Lung and heart are found."** Yes, and the tables above say how well, for whom, and that the rims
#   lag behind the areas.
# - **"The trachea is missed in some slices."** The small pieces are. The stride of 4 does not forbid
#   them even at 96 pixels, but it asks for scores that are finer than shares; at the report's 512 pixels
#   that excuse is gone, and the share of the pixels remains.
# - **"Stable under varying conditions."** As far as they vary in training. Beyond, it depends on the
#   shift and on the augmentation.
# - **Not given:** the split, the loss, the rates, the augmentation for this run, seeds, and any metric.
#   Our preset is a guess where the report is silent, and it uses the released network.
# - **Ours, too, has limits.** Drawn bodies, 96 pixels, a few hundred steps, twelve patients. The
#   *methods* carry over; the numbers do not.
#
# Sources: SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203); the chest CT set, [on
# Kaggle](https://www.kaggle.com/datasets/polomarco/chest-ct-segmentation); Efron and Tibshirani,
# *An Introduction to the Bootstrap*, 1993.

# %% [markdown]
# ## Pitfalls
#
# - The mean over slices in place of patients, with empty slices counted as 1: the best way to a high
#   number.
# - An interval from slices, or from three patients.
# - Class weights where outlines count: recall up, precision down.
# - "Contrast" in the augmentation that is not the contrast of the scanner.
# - A remedy judged by recall alone, or by one seed.
# - Labels of the test patients in the class counts.
# - A mirror where left and right mean something.
# - "Random" slices for a figure, drawn again until they look well.

# %% [markdown]
# ## In short
#
# - Classes are learned by their share of the pixels; the fast phase is the largest of them.
# - The unit is the patient: one figure each, intervals over patients, from eight upwards.
# - Small organs meet three limits: their size, the stride, their share. The input's size moves the
#   first two, the loss the third: Dice loss asks for overlap, class weights move the threshold.
# - Compare settings patient by patient; the interval of the difference decides.
# - Robustness is a curve, with a named shift on its axis.
# - A split by slice can report how well patients are remembered. Here it added nothing that three runs
#   could show; split by patient anyway.

# %% [markdown]
# ## What people ask
#
# **Why not one sigmoid for each organ, as the set's author does?** His masks may overlap, and three
# yes-or-no answers allow that. Overlaps are rare; a softmax over
# four classes decides them one way, and every score of the course applies unchanged.
#
# **Is a Dice of 0.9 good?** For a lung at 96 pixels it is what a short run reaches, and poor at full size;
# for a trachea one cell wide it is close to the best there is. Compare with that, and with a second
# person's labels, if there are any.
#
# **Should I use Hounsfield units in place of grey values?** If you have them, yes: the window is then
# your choice and can be part of the augmentation. In the Kaggle set it has been chosen already.
#
# **Can this be used on patients?** No. It is a lesson on drawn bodies.

# %% [markdown]
# ## Next
#
# [Chapter 11](11_receptive_fields.ipynb) looks into the network: which pixels does one place of it
# see? And if a curve of yours looks odd, [chapter 16](16_bug_clinic.ipynb), the bug clinic, breaks
# a run on these slices in eight ways.
