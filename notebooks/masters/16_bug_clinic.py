# %% [markdown]
# # 16 · Mend eight broken training runs
#
# About 35 minutes to read and run, 25 more for the exercises. The code trains nine tiny networks,
# which takes about a minute on one CPU core and less than 1 GB of memory. No GPU is needed, and the
# modes fast and full are the same here.

# %% [markdown]
# **What you build.** A clinic: one short training script, healthy, and eight sick copies of it.
# Each copy differs in one function. You look at its line, its curve and its masks, name the mistake
# and mend it.
#
# **What you learn.**
#
# - which mistakes stop the run, which only show in a score, and which show nowhere;
# - why a falling loss is no proof of anything;
# - how a mistake that sits in training *and* in evaluation hides itself;
# - for each suspect, a test of a few lines that needs no training.
#
# **What you need.** Chapters [03](03_patch_embedding.ipynb) and [04](04_efficient_attention.ipynb)
# for tokens and reduction, [chapter 08](08_data.ipynb) for labels.

# %% tags=["setup", "nbval-ignore-output"]
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.course import checks
from segformer_lite.course.setup import setup
from segformer_lite.show import masks
from segformer_lite.training import segmentation_loss

session = setup()

# %% [markdown]
# ## You are here

# %%
show.network(lit=("image", "patch_embed", "attention", "mix_ffn", "decoder", "mask"))

# %% [markdown]
# Everything is lit: a mistake can sit anywhere between the image and the mask.

# %% [markdown]
# ## The question
#
# A shape that does not fit stops the program, and you mend it in a minute. Most mistakes in
# segmentation fit perfectly. The network learns *something*, the loss falls, a picture comes out.
# **How do you notice, and how do you find the line?**
#
# The course's CT phantom serves as the patient's body: slices that show the heart, cut to 160 × 160
# pixels around it. Pictures go in at 64 × 64, labels stay at 160 × 160 for now. Three classes:
# background, lung, heart.

# %% tags=["nbval-ignore-output"]
CLASSES, SIDE = ["background", "lung", "heart"], 64


def heart_slices(split):
    """Images (B, 1, 64, 64) float and label maps (B, 160, 160) of the slices that show the heart."""
    pairs = [(image[:1, 32:192, 50:210], label[32:192, 50:210])
             for image, label in sl.data.open_dataset("sample-chest-ct", split) if (label == 2).any()]
    images, labels = (torch.stack(part).as_subclass(torch.Tensor) for part in zip(*pairs))
    images = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return images / 60 - 1, labels.long() * (labels < 3)  # the trachea is left to chapter 10


train_images, train_labels = heart_slices("train")
val_images, val_labels = heart_slices("val")
print(len(train_images), "slices to train on,", len(val_images), "of other patients to validate")

# %% [markdown]
# ## The healthy script
#
# ### Eight parts
#
# A training script is a chain of small decisions. Here are eight of them, one function each. Every
# one is right. Read them once; each will come back broken. When you come to mend a patient, write
# the part yourself before you look back here.
#
# | part | decides | comes back as |
# |---|---|---|
# | `to_map` | how a list of tokens becomes a map again | patient 1 |
# | `shrink` | how labels get the network's size | patient 2 |
# | `loss` | what is punished | patient 3 |
# | `reduction` | how keys are shortened, $R$ to one | patient 4 |
# | `scores` | what the network gives out | patient 5 |
# | `mirror` | the augmentation | patient 6 |
# | `predict` | how a finished network is asked | patient 7 |
# | `rate` | the learning rate of each step | patient 8 |

# %%
def to_map(tokens, height, width):
    """(B, N, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def shrink(labels, size):
    """Label maps (B, H, W) int64 at another size."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def loss(logits, labels):
    """Mean cross-entropy of logits (B, K, H, W) against labels (B, H, W)."""
    return F.cross_entropy(logits, labels, ignore_index=255)


def reduction(dim, R):
    """Merges R tokens of a map (B, C, H, W) into one: squares of side sqrt(R)."""
    side = math.isqrt(R)
    return nn.Conv2d(dim, dim, kernel_size=side, stride=side)


# %%
def scores(logits, size):
    """Class logits (B, K, h, w), enlarged to the size of the labels."""
    return F.interpolate(logits, size=size, mode="bilinear")


def mirror(images, labels):
    """A batch with left and right exchanged."""
    return images.flip(-1), labels.flip(-1)


def predict(net, images):
    """Label maps (B, H, W), one image at a time."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(image[None]).argmax(1) for image in images])


def rate(step, steps):
    """Learning rate: rises for 20 steps; always times a straight line from 0.01 down to 0."""
    return 0.01 * min(1, (step + 1) / 20) * (1 - step / steps)


@dataclass(frozen=True)
class Parts:
    to_map: Callable = to_map
    shrink: Callable = shrink
    loss: Callable = loss
    reduction: Callable = reduction
    scores: Callable = scores
    mirror: Callable = mirror
    predict: Callable = predict
    rate: Callable = rate


# %% [markdown]
# ### The network
#
# SegFormer in miniature: an embedding that divides the size by four, one block with shortened keys
# and a Mix-FFN (its convolution 7 × 7 here, not 3 × 3), and a head with batch norm and dropout. At
# 64 pixels there are $N = 16 × 16 = 256$ tokens; $R = 16$ leaves 16 keys.

# %%
class TinyNet(nn.Module):
    def __init__(self, parts, dim=32, R=16):
        super().__init__()
        self.parts = parts
        self.embed = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
                                   nn.Conv2d(16, dim, 3, 2, 1))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.reduce = parts.reduction(dim, R)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dwconv = nn.Conv2d(4 * dim, 4 * dim, 7, padding=3, groups=4 * dim)
        self.head = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU(), nn.Dropout2d(0.1),
                                  nn.Conv2d(dim, len(CLASSES), 1))

    def forward(self, x):
        features = self.embed(x)                       # (B, C, H, W)
        size = features.shape[-2:]
        tokens = features.flatten(2).transpose(1, 2)   # (B, N, C)
        y = self.norm1(tokens)
        short = self.reduce(self.parts.to_map(y, *size)).flatten(2).transpose(1, 2)  # (B, N / R, C)
        y = F.scaled_dot_product_attention(self.q(y), self.k(short), self.v(short))
        tokens = tokens + self.proj(y)
        y = self.dwconv(self.parts.to_map(self.fc1(self.norm2(tokens)), *size))
        tokens = tokens + self.fc2(F.gelu(y).flatten(2).transpose(1, 2))
        return self.parts.scores(self.head(self.parts.to_map(tokens, *size)), x.shape[-2:])


# %% [markdown]
# ### The training
#
# Batches of 8, half of them mirrored, all moved by up to 4 pixels. What is moved in from outside is
# black, and nobody knows what it shows: its label is **255**.
#
# At the end two scores are taken. `own` is what the script itself would report, with its own
# `shrink` and its own `predict`. `true` uses the healthy ones. In life only the first is there.

# %%
def move(images, labels, generator):
    """Both moved by up to 4 pixels; what comes in is black, label 255."""
    y, x = torch.randint(0, 9, (2,), generator=generator).tolist()
    images, labels = F.pad(images, [4] * 4, value=-1.0), F.pad(labels, [4] * 4, value=255)
    return images[..., y : y + SIDE, x : x + SIDE], labels[..., y : y + SIDE, x : x + SIDE]


def ious(predicted, labels):
    """IoU of each class, over all pixels that have a label."""
    return torch.stack([((predicted == c) & (labels == c)).sum()
                        / (((predicted == c) | (labels == c)) & (labels != 255)).sum()
                        for c in range(len(CLASSES))])


# %%
STEPS = 30 if session.quick else 150  # the course's own tests train less


def train(parts, seed=0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = TinyNet(parts)
    optimizer = torch.optim.AdamW(net.parameters())
    labels = parts.shrink(train_labels, (SIDE, SIDE))
    losses = []
    for step in range(STEPS):
        chosen = torch.randint(len(train_images), (8,), generator=generator)
        batch, target = train_images[chosen], labels[chosen]
        if torch.rand((), generator=generator) < 0.5:
            batch, target = parts.mirror(batch, target)
        batch, target = move(batch, target, generator)
        optimizer.param_groups[0]["lr"] = parts.rate(step, STEPS)
        value = parts.loss(net(batch), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    mask = predict(net, val_images)
    true = ious(mask, shrink(val_labels, (SIDE, SIDE)))
    net.train()  # as the training left it
    mask = parts.predict(net, val_images)
    own = ious(mask, parts.shrink(val_labels, (SIDE, SIDE)))
    return {"net": net, "loss": losses, "mask": mask, "own": own, "true": true}


# %% [markdown]
# ### The healthy run

# %% tags=["nbval-ignore-output"]
HEALTHY = Parts()
ward = {"healthy": train(HEALTHY)}
PALETTE = sl.data.open_dataset("sample-chest-ct", "val").palette
SLICES = (4, 12)


def bedside(name):
    """Loss of the healthy run and of a patient; label, healthy mask, patient's mask of two slices."""
    fig, axes = plt.subplots(2, 4, figsize=(7, 3.1), width_ratios=[2.2, 1, 1, 1])
    for ax in axes[:, 0]:
        ax.remove()
    ax = fig.add_subplot(axes[0, 0].get_gridspec()[:, 0])
    smooth = torch.ones(1, 1, 9) / 9
    for who, colour in {"healthy": show.COLOURS["grey"], name: show.COLOURS["red"]}.items():
        values = torch.tensor(ward[who]["loss"])
        mean = F.conv1d(values[None, None], smooth)[0, 0]
        ax.plot(range(4, len(values) - 4), mean, color=colour, label=who)
    ax.set(xlabel="step", ylabel="loss (mean of 9 steps)", ylim=(0, None))
    ax.legend()
    truth = shrink(val_labels, (SIDE, SIDE))
    for row, i in enumerate(SLICES):
        picture = ((val_images[i] + 1) * 60).clamp(0, 255).byte().expand(3, -1, -1)
        maps = {"label": truth[i], "healthy": ward["healthy"]["mask"][i],
                "patient": ward[name]["mask"][i]}
        for ax, (title, labels) in zip(axes[row, 1:], maps.items()):
            ax.imshow(masks.overlay(picture, labels, PALETTE))
            ax.set_axis_off()
            ax.set_title(title if row == 0 else "")
    return fig


def chart(name):
    """The scores that a patient's script reports, and the true ones."""
    for key in ("own", "true"):
        values = ward[name][key]
        print(f"{name:20s} {key:5s} mIoU {values.nanmean():.2f} |",
              "  ".join(f"{c} {v:.2f}" for c, v in zip(CLASSES, values)))


chart("healthy")

# %%
healthy = ward["healthy"]
assert healthy["loss"][-1] < 0.8 * healthy["loss"][0], "the loss must fall"
assert session.quick or healthy["true"].nanmean() > 0.6, "a minute must teach the heart"
assert torch.equal(healthy["own"], healthy["true"])

# %% [markdown]
# In the healthy run the own score and the true one are the same number. Keep its chart in view; every
# patient is compared with it, trained with the same seed on the same slices.

# %% [markdown]
# ## Patient 1
#
# The first patient has another `to_map`:

# %%
def patient_1(tokens, height, width):
    return tokens.reshape(len(tokens), -1, height, width)


# %% tags=["nbval-ignore-output"]
ward["patient 1"] = train(replace(HEALTHY, to_map=patient_1))
chart("patient 1")
show.figure(bedside("patient 1"), alt=(
    "Left, two falling loss curves; the patient's, in vermilion, stays well above the healthy one. Right, "
    "two slices with label, healthy mask and patient's mask: the patient's lungs are "
    "equally large on both sides and its heart is a small block, where the healthy masks follow the label."))

# %% [markdown]
# The loss falls, so the run looks alive. But it stays high, and the masks are crude: lungs alike on
# both sides, a heart far too small.
#
# **Name it.** What happens in that one line?
#
# - A. The tokens are in the right order, but height and width are exchanged.
# - B. A row of the result is filled with all channels of one token, then of the next.
# - C. Nothing wrong: `reshape` is what `flatten(2)` undoes.
#
# A test that needs no training: number the tokens, give each two equal channels, and look.

# %%
numbers = torch.arange(6.0)[None, :, None].expand(1, 6, 2)  # (B, N, C): token n says n, n
print("healthy", to_map(numbers, 2, 3)[0].tolist())
print("patient", patient_1(numbers, 2, 3)[0].tolist())

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Each channel should be the map 0 1 2 / 3 4 5. The patient's first channel is 0 0 1 / 1 2 2:
# both channels of token 0 side by side. *Why does it train at all?* The scrambling is the same every
# time, and the head can still learn which mixture is likely where. **Silent:** no error, a falling
# loss.
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 1: mend it (3 minutes)
#
# Turn a list of tokens into a map again, the channels first. Token $n$ goes to row
# $\lfloor n / W \rfloor$ and column $n \bmod W$.
#
# <details><summary>Hint</summary>
#
# The axis that becomes height and width must be the last one before you reshape.
#
# </details>
# <details><summary>Help: it says that channels and places are mixed</summary>
#
# `reshape` never moves a number, it only counts on. `transpose(1, 2)` swaps the axes first.
#
# </details>

# %% tags=["exercise"]
def my_to_map(tokens, height, width):
    """(B, N, C) -> (B, C, H, W), token n at row n // W and column n % W."""
    # SOLUTION
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
    # END SOLUTION


checks.tokens_to_map(my_to_map)

# %% [markdown]
# ## Patient 2
#
# The labels come in at 160 pixels and are brought to 64 by this function:

# %%
def patient_2(labels, size):
    small = F.interpolate(labels[:, None].float(), size=size, mode="bilinear")
    return small[:, 0].round().long()


# %% tags=["nbval-ignore-output"]
ward["patient 2"] = train(replace(HEALTHY, shrink=patient_2))
chart("patient 2")
show.figure(bedside("patient 2"), alt=(
    "Left, the loss curves of the healthy run and of the patient lie almost on top of each other. "
    "Right, label, healthy mask and patient's mask of two slices look nearly alike."))

# %% [markdown]
# Nothing to see, neither in the curve nor in the masks, and the scores hardly move.
#
# **Name it.** Background is 0, lung 1, heart 2. What is wrong with these labels?
#
# - A. Half-way between heart and background lies lung: a rim of lung around the heart.
# - B. `round` shifts the whole map by half a pixel.
# - C. The labels become fractions, and the loss reads them as probabilities.
#
# A test: a heart alone in the dark must not produce a third class.

# %%
y, x = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
alone = 2 * ((y - 80) ** 2 + (x - 80) ** 2 < 40**2)[None]  # a round heart, (1, 160, 160)
for name, function in {"healthy": shrink, "patient": patient_2}.items():
    print(name, "classes", function(alone, (SIDE, SIDE)).unique().tolist())
wrong = patient_2(val_labels, (SIDE, SIDE)) != shrink(val_labels, (SIDE, SIDE))
print(f"of the validation labels {wrong.float().mean():.1%} of all pixels are changed")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** The class *numbers* were averaged, and an average of class numbers is another class.
# *Why so quiet?* Only pixels between heart and background change, a thousandth of all (between heart
# and lung rounding gives one of the two), and the mistake sits in the validation labels too:
# the script compares its network with the same wrong rims that it was taught. Had the labels held
# 255, the averages would have become labels such as 128, and the loss would have stopped the run.
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 2: mend it (3 minutes)
#
# Bring label maps to another size, smaller or larger. Every label comes from the middle of its
# place; none is invented, none shifted.
#
# <details><summary>Hint</summary>
#
# Of the modes of `F.interpolate` two copy a pixel instead of averaging. `"nearest-exact"` takes the
# one at the centre.
#
# </details>
# <details><summary>Help: it says that the labels are shifted</summary>
#
# `"nearest"` takes the pixel left above the centre. That is nearly half a pixel of the coarse grid off.
#
# </details>

# %% tags=["exercise"]
def my_shrink(labels, size):
    """Label maps (B, H, W) int64 -> (B, *size) int64; every label is one that was there."""
    # SOLUTION
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    # END SOLUTION


checks.shrink_labels(my_shrink)

# %% [markdown]
# ## Patient 3
#
# This one announced itself at first: without `ignore_index` the loss meets a label 255 and stops.

# %%
try:
    F.cross_entropy(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255))
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# Then somebody silenced the error:

# %%
def patient_3(logits, labels):
    labels = labels.clamp(max=logits.shape[1] - 1)
    return F.cross_entropy(logits, labels)


# %% tags=["nbval-ignore-output"]
ward["patient 3"] = train(replace(HEALTHY, loss=patient_3))
chart("patient 3")
show.figure(bedside("patient 3"), alt=(
    "Left, the patient's loss falls like the healthy one but stays above it. Right, label, healthy "
    "mask and patient's mask of two slices: the patient's masks have a frame or corners of heart at "
    "the border of the picture, where the label has only background."))

# %% [markdown]
# The run goes through. Its masks know a heart that nobody has.
#
# **Name it.** Where does the additional heart come from?
#
# - A. The clamp turns 255 into 2: "nobody knows" is taught as heart.
# - B. Without `ignore_index` the heart counts twice in the mean.
# - C. The clamp cuts off the largest logits.
#
# A test: whatever the network says where the label is 255, the loss must not care.

# %%
logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
labels[:, 0] = 255
changed = logits.clone()
changed[:, :, 0] += torch.randn(1, 3, 4)
for name, function in {"healthy": loss, "patient": patient_3}.items():
    print(name, "does not care:", torch.equal(function(logits, labels), function(changed, labels)))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** What is moved in from outside is black and labelled 255; the patient learns that black near a
# border is heart. *Why is it worse than the error?* The error named the line. The clamp made it a
# question of medicine. **Loud at first, then silenced.**
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 3: mend it (4 minutes)
#
# Without `ignore_index`, to see what it does: the mean over the pixels that have a label. A batch
# without any such pixel gives 0, not "not a number".
#
# <details><summary>Hint</summary>
#
# `reduction="none"` gives the loss of every pixel, but it needs a legal label everywhere. Put any
# class where the label is 255, then leave those pixels out of sum and count.
#
# </details>
# <details><summary>Help: the value is too small</summary>
#
# Divide by the number of labelled pixels, not of all.
#
# </details>

# %% tags=["exercise"]
def my_loss(logits, labels):
    """Mean cross-entropy of logits (B, K, H, W) over the pixels of labels (B, H, W) that are not 255."""
    # SOLUTION
    known = labels != 255
    each = F.cross_entropy(logits, labels * known, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
    # END SOLUTION


checks.labelled_loss(my_loss)

# %% [markdown]
# ## Patient 4
#
# The paper says: $R$ tokens become one key. Here $R = 16$, so 256 tokens should leave 16 keys.

# %%
def patient_4(dim, R):
    return nn.Conv2d(dim, dim, kernel_size=R, stride=R)


# %% tags=["nbval-ignore-output"]
ward["patient 4"] = train(replace(HEALTHY, reduction=patient_4))
chart("patient 4")
show.figure(bedside("patient 4"), alt=(
    "Left, the patient's loss falls much like the healthy one, a little above it. Right, label, "
    "healthy mask and patient's mask of two slices: the patient's lungs are good, its heart has lost "
    "its round shape."))

# %% [markdown]
# The curve is nearly the healthy one, the lungs are good, only the heart has lost its shape. Whoever
# sees this run alone would ask for more training.
#
# **Name it.** How many keys does this network have?
#
# - A. 16, as the paper says.
# - B. 4: the kernel is 16 wide, but only 4 high.
# - C. One.
#
# A test: count them, and the weights.

# %%
for name, function in {"healthy": reduction, "patient": patient_4}.items():
    layer = function(32, 16)
    keys = layer(torch.zeros(1, 32, 16, 16)).shape[-2:].numel()
    print(f"{name}: {keys:2d} keys, {layer.weight.numel():,} weights")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** $R$ counts tokens of the *list*; kernel and stride count tokens along *one axis*. A square
# of side $R$ merges $R^2$. With a single key the softmax has nothing to choose: every token gets
# the same value, and attention is a constant that is added everywhere. *Why does it work at all?*
# The convolutions around it do the job. **Silent:** only a count gives it away. (In stage 1 of
# SegFormer the kernel would be 64 wide, and small pictures would raise an error.)
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 4: mend it (3 minutes)
#
# A layer that merges $R$ tokens into one key, in squares: of $H × W$ tokens it leaves
# $H / \sqrt{R} × W / \sqrt{R}$.
#
# <details><summary>Hint</summary>
#
# A square of side $s$ holds $s^2$ tokens.
#
# </details>
# <details><summary>Help: it says that strips are merged</summary>
#
# A kernel of $(1, R)$ merges $R$ tokens too, but in a line. The square has the same height and width.
#
# </details>

# %% tags=["exercise"]
def my_reduction(dim, R):
    """A module (B, dim, H, W) -> (B, dim, H / s, W / s) that merges squares of R = s * s tokens."""
    # SOLUTION
    side = math.isqrt(R)
    return nn.Conv2d(dim, dim, kernel_size=side, stride=side)
    # END SOLUTION


checks.square_reduction(my_reduction)

# %% [markdown]
# ## Patient 5

# %%
def patient_5(logits, size):
    logits = F.interpolate(logits, size=size, mode="bilinear")
    return logits.softmax(dim=1)


# %% tags=["nbval-ignore-output"]
ward["patient 5"] = train(replace(HEALTHY, scores=patient_5))
chart("patient 5")
show.figure(bedside("patient 5"), alt=(
    "Left, the patient's loss sinks slowly and levels off high above the healthy one. Right, label, "
    "healthy mask and patient's mask of two slices: the patient's masks are only slightly "
    "worse than the healthy ones."))

# %% [markdown]
# The masks are passable. The curve sinks slowly and seems to lie on a floor.
#
# **Name it.** Why does the loss not come down?
#
# - A. The learning rate is too small.
# - B. `cross_entropy` takes the softmax itself; a second one can never be sure of anything.
# - C. The softmax runs over the wrong axis.
#
# A test: a perfect answer, as sure as can be, must cost nothing.

# %%
sure = torch.full((1, 3, 1, 1), -50.0)
sure[:, 1] = 50.0
for name, function in {"healthy": scores, "patient": patient_5}.items():
    print(f"{name}: {loss(function(sure, (8, 8)), torch.ones(1, 8, 8, dtype=torch.int64)):.3f}")
print(f"log(1 + 2 / e) = {math.log(1 + 2 / math.e):.3f}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** Probabilities lie between 0 and 1. Read as logits of three classes, the best possible
# answer 0, 1, 0 has probability $e / (e + 2)$, and the loss cannot fall below $\log(1 + 2 / e)$.
# *Why do the masks look passable?* The largest probability belongs to the largest logit. But the
# gradient is weak: the network is never told to be sure. **It announces itself in the loss:** a
# floor that can be computed.
#
# </details>

# %%
# What the answer says, checked.
assert min(ward["patient 5"]["loss"]) > math.log(1 + 2 / math.e)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: mend it (2 minutes)
#
# Enlarge the logits to the size of the labels, bilinearly, and give out what `cross_entropy`
# expects.
#
# <details><summary>Hint</summary>
#
# Less is more.
#
# </details>
# <details><summary>Help: it says that the borders are aligned</summary>
#
# Leave `align_corners` at its default, False: pixels are areas, not points.
#
# </details>

# %% tags=["exercise"]
def my_scores(logits, size):
    """Logits (B, K, h, w) -> what `cross_entropy` wants, (B, K, *size), enlarged bilinearly."""
    # SOLUTION
    return F.interpolate(logits, size=size, mode="bilinear")
    # END SOLUTION


checks.raw_scores(my_scores)

# %% [markdown]
# ## Patient 6

# %%
def patient_6(images, labels):
    images = images.flip(-1)
    return images, labels


# %% tags=["nbval-ignore-output"]
ward["patient 6"] = train(replace(HEALTHY, mirror=patient_6))
chart("patient 6")
show.figure(bedside("patient 6"), alt=(
    "Left, the patient's loss falls more slowly, is less steady and ends above the healthy one. "
    "Right, label, healthy mask and patient's mask of two slices: the patient's heart is smaller "
    "and has another outline."))

# %% [markdown]
# The loss falls, but it is restless: some batches cost much more than others.
#
# **Name it.** Which class suffers most?
#
# - A. The background: it is the largest.
# - B. The lung: it lies on both sides.
# - C. The heart: it lies on one side.
#
# A test: an image that *is* its own label must still be so afterwards.

# %%
label = torch.randint(0, 3, (2, 4, 5))
for name, function in {"healthy": mirror, "patient": patient_6}.items():
    image, moved = function(label[:, None].float(), label)
    print(name, "image and label agree:", torch.equal(image[:, 0].long(), moved))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **C.** In the chart the heart has lost most, or nearly so. *Why?* A chest is nearly symmetric: for
# lung and background about the right pixels stay right. The heart is taught on the wrong side in
# half of the batches. On pictures without any symmetry the score would fall much further, and you
# would notice sooner. **Silent:** a restless curve and one weak class.
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 6: mend it (2 minutes)
#
# Mirror a batch: left and right exchanged, in images and labels alike.
#
# <details><summary>Hint</summary>
#
# Left and right are the last axis, in images and in labels.
#
# </details>
# <details><summary>Help: it says that top and bottom were exchanged</summary>
#
# Axis 2 is the width in labels (B, H, W), but the height in images (B, C, H, W). Count from the end.
#
# </details>

# %% tags=["exercise"]
def my_mirror(images, labels):
    """Images (B, C, H, W) and labels (B, H, W), both with left and right exchanged."""
    # SOLUTION
    return images.flip(-1), labels.flip(-1)
    # END SOLUTION


checks.mirror_both(my_mirror)

# %% [markdown]
# ## Patient 7

# %%
def patient_7(net, images):
    with torch.no_grad():
        return torch.cat([net(image[None]).argmax(1) for image in images])


# %% tags=["nbval-ignore-output"]
ward["patient 7"] = train(replace(HEALTHY, predict=patient_7))
chart("patient 7")
show.figure(bedside("patient 7"), alt=(
    "Left, the two loss curves are one and the same line. Right, label, healthy mask and patient's "
    "mask of two slices: some outlines of the patient's masks differ from the healthy ones."))

# %%
assert ward["patient 7"]["loss"] == ward["healthy"]["loss"]
print("the two loss curves are equal, number by number")

# %% [markdown]
# The training was healthy to the last digit. Only the own score differs from the true one.
#
# **Name it.** What is missing?
#
# - A. `net.eval()`: dropout still drops, batch norm still takes the statistics of the batch.
# - B. A softmax before `argmax`.
# - C. The images are asked one by one, in training they came in batches.
#
# A test: the same question twice, and the state before and after.

# %%
for name, function in {"healthy": predict, "patient": patient_7}.items():
    net = TinyNet(HEALTHY).train()
    before = net.head[0].running_mean.clone()
    twice = [function(net, val_images[:4]) for _ in range(2)]
    print(f"{name}: the same answer twice {torch.equal(*twice)},",
          f"batch norm untouched {torch.equal(before, net.head[0].running_mean)}")

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **A.** Two layers behave differently in training. Dropout makes the answer a matter of luck. Batch
# norm measures the one image that is asked, and *writes down* what it measured: the evaluation has
# changed the network. **Silent:** the loss is perfect, the score is wrong, and asking again gives
# another one.
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 7: mend it (4 minutes)
#
# A polite version: the network is left in the mode it came in.
#
# <details><summary>Hint</summary>
#
# `net.training` says in which mode it is, `net.train(mode)` sets it.
#
# </details>
# <details><summary>Help: it says that the result needs gradients, or that the mode has changed</summary>
#
# Ask inside `torch.no_grad()`, and call `net.train(before)` at the end.
#
# </details>

# %% tags=["exercise"]
def my_predict(net, images):
    """Label maps (B, H, W) of images (B, C, H, W), in evaluation mode; the mode of `net` is restored."""
    # SOLUTION
    before = net.training
    net.eval()
    with torch.no_grad():
        labels = net(images).argmax(1)
    net.train(before)
    return labels
    # END SOLUTION


checks.calm_prediction(my_predict)

# %% [markdown]
# ## Patient 8

# %%
def patient_8(step, steps):
    return 1.0 * min(1, (step + 1) / 20) * (1 - step / steps)


# %% tags=["nbval-ignore-output"]
ward["patient 8"] = train(replace(HEALTHY, rate=patient_8))
chart("patient 8")
show.figure(bedside("patient 8"), alt=(
    "Left, the patient's loss is flat after a few steps, far above the healthy one. Right, label, "
    "healthy mask and patient's mask of two slices: the patient's masks hold next to nothing."))

# %%
assert session.quick or ward["patient 8"]["true"][1:].max() < 0.1, "hardly any organ is found"
assert ward["patient 8"]["loss"][-1] > ward["healthy"]["loss"][-1]

# %% [markdown]
# After a few steps the curve is flat, and the masks are empty.
#
# **Name it.** What should be looked at first?
#
# - A. The size of the network: it is too small.
# - B. The rate: the steps are so long that they destroy what the layers knew.
# - C. The last steps: the rate falls too late.
#
# A test: compare the floor with the loss of a network that is blind and knows only how frequent each
# class is.

# %%
shares = torch.bincount(shrink(train_labels, (SIDE, SIDE)).flatten()) / (len(train_labels) * SIDE**2)
print("shares", [round(x, 2) for x in shares.tolist()])
print(f"the blind answer costs {-(shares * shares.log()).sum():.2f}; guessing costs {math.log(3):.2f}")
print("rate at step 20 of 150: healthy", round(rate(19, 150), 4), "| patient", round(patient_8(19, 150), 2))

# %% [markdown]
# <details>
# <summary><b>Answer</b></summary>
#
# **B.** The rate goes up to 1 where 0.01 was meant. AdamW moves *every* weight by about the learning
# rate in a step, however small its gradient; weights of size 0.1 are gone early in the warm-up. *Why
# does the loss not explode?* The norms hold the numbers in check, and the last bias learns the class
# shares: the loss ends not far below that of the blind answer. **It announces itself** in the curve,
# and nothing but background in the masks confirms it.
#
# </details>

# %% [markdown] tags=["exercise"]
# ### Exercise 8: mend it (4 minutes)
#
# A little better than the healthy one, whose line falls from the first step on, so that its peak is
# never reached. Here: up in a straight line over `warmup` steps, reaching `peak` at the last of them,
# then down in a straight line, so that 0 would be reached at step `steps`.
#
# <details><summary>Hint</summary>
#
# Two factors: one rises to 1 and stays there, the other is 1 up to the end of the warm-up and falls
# to 0.
#
# </details>
# <details><summary>Help: the first step has rate 0</summary>
#
# Then it teaches nothing. Count from one: step 0 is the first of `warmup` steps.
#
# </details>

# %% tags=["exercise"]
def my_rate(step, steps, peak=0.01, warmup=20):
    """Rate of `step` (0 ... steps - 1): step 0 has peak / warmup, step warmup - 1 has peak."""
    # SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup + 1)
    # END SOLUTION


checks.learning_rate(my_rate)

# %% [markdown]
# ## The round
#
# All nine side by side: the loss at the end, the score that the script itself reports, the true one.

# %% tags=["nbval-ignore-output"]
NAMES = ["transpose", "bilinear labels", "255", "R for √R", "double softmax", "half a mirror",
         "no eval", "rate x 100"]
print(f"{'':28s}{'loss':>6s}{'own':>7s}{'true':>7s}{'heart':>7s}")
for (name, run), what in zip(ward.items(), ["", *NAMES]):
    final, own, true = sum(run["loss"][-9:]) / 9, run["own"].nanmean(), run["true"].nanmean()
    print(f"{name + ' ' + what:28s}{final:6.2f}{own:7.3f}{true:7.3f}{run['true'][2]:7.2f}")

# %%
differ = [name for name, c in ward.items() if not torch.equal(c["own"], c["true"])]
assert set(differ) <= {"patient 2", "patient 7"} and "patient 2" in differ
print("the own score differs from the true one only where the evaluation itself is broken:",
      set(differ) <= {"patient 2", "patient 7"})

# %% [markdown]
# One run per patient and one seed: enough to recognise a symptom, not enough to rank small
# differences. What does not depend on the seed is in the tests.
#
# - **Loud.** A label 255 raises an error (patient 3, before it was silenced). A rate a hundred times
#   too large flattens the curve. Two softmaxes put a floor under the loss.
# - **Silent.** The transpose, the silenced 255, $R$ for $\sqrt{R}$, half a mirror: the loss falls, and
#   only a comparison tells. That a loss falls says that something is being learned, not what.
# - **Not what it seems.** Two patients report a score that is not theirs, because their mistake sits
#   in the evaluation. Bilinear labels are compared with equally wrong labels; without evaluation
#   mode the score is another one each time. Here the first is off by a thousandth, and the second makes
#   a good network look worse. Either can go the other way: believe no score of a script under
#   suspicion.
#
# ### What to do with a new patient
#
# | symptom, as seen above | suspect | test without training |
# |---|---|---|
# | falling loss that stays high | tokens to map, no transpose | number the tokens |
# | none: curve, masks and score look healthy | averaged labels | one class alone: no third one |
# | IndexError, or an organ at the border | 255 in the loss | change logits where 255 is |
# | curve nearly healthy, one organ has lost its shape | $R$ where $\sqrt{R}$ belongs | count keys and weights |
# | loss lies on a floor | softmax before `cross_entropy` | a sure answer costs 0 |
# | restless loss, one-sided class weak | half a mirror | an image that is its own label |
# | healthy loss, other score each time | no evaluation mode | ask twice |
# | flat loss, empty masks | learning rate | the cost of the blind answer |

# %% [markdown]
# ## The package's version
#
# The healthy parts are in the package, too. Same inputs, same outputs:

# %%
torch.manual_seed(0)
logits, labels = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 64, 64))
labels[:, :9] = 255
torch.testing.assert_close(segmentation_loss(logits, labels), loss(scores(logits, (64, 64)), labels))
print(inspect.getsource(segmentation_loss).split('"""')[2])

# %% [markdown]
# (`UpsampledCrossEntropy` is the cross-entropy of the upsampled logits, taken a few rows at a time:
# all at once they would be the largest tensor of the whole step. [Chapter
# 14](14_speed.ipynb#a-loss-in-strips) builds it.)

# %%
attention = sl.EfficientSelfAttention(32, heads=1, stride=4)  # the paper's R = 16
assert attention.reduce.weight.shape == reduction(32, 16).weight.shape
print("kernel", attention.reduce.kernel_size, "for R = 16")

# %%
print(inspect.getsource(sl.create_model("segformer_b0", num_classes=3).predict))

# %% [markdown]
# `predict` goes into evaluation mode and comes back out of it whatever happens. Labels are resized in
# `data/transforms.py` with `NEAREST_EXACT`; image and mask are mirrored there by one transform that
# takes both, so that patient 6 cannot be born.
#
# ## What the paper says, what the code does
#
# - **R.** The paper's $R$ counts tokens of the list (64, 16, 4, 1); the released code has the stride
#   (8, 4, 2, 1), $R = s^2$. Patient 4 took one for the other.
# - **Learning rate.** The paper trains with AdamW from 0.00006 on ADE20K and Cityscapes (section 4.1).
#   It belongs to a pre-trained encoder; the tiny network here starts from nothing and takes 0.01.
# - **Score.** The paper reports mIoU only. Patients 2 and 7 are the reason to say how it was taken.
#
# Sources: SegFormer, [arXiv:2105.15203](https://arxiv.org/abs/2105.15203).

# %% [markdown]
# ## Pitfalls
#
# - To silence an error about labels with `clamp`, `abs` or `% K`.
# - To prepare the validation labels with the code under test.
# - To trust one number over all classes: patient 6 hides in a mean over many symmetric classes.
# - To compare runs with different seeds and call the difference a bug, or a cure.

# %% [markdown]
# ## In short
#
# - A falling loss says that something is learned; only a look says what.
# - Know two numbers beforehand: the loss of the blind answer, and the score of the lazy answer.
# - Evaluate with code that shares nothing with training but the network.
# - For each function of a training script there is a test of five lines on tensors. It is cheaper than
#   any run.

# %% [markdown]
# ## What people ask
#
# **My loss is negative.** Then the labels are no class numbers, or the loss is not a cross-entropy of
# logits: cross-entropy of legal labels is never below 0.
#
# **My mIoU is "not a number".** A class that occurs neither in labels nor in predictions has 0 / 0.
# It is left out of the mean (`nanmean`); [chapter 01](01_what_is_segmentation.ipynb) compares the
# three ways to count it.
#
# **A score falls at evaluation although training goes well. Overfitting?** Perhaps. First evaluate
# the training pictures with the evaluation code. If the score is low there too, it is patient 7 or a
# relative of it.
#
# **Should labels 0 be ignored?** Only if 0 means "nobody knows". In ADE20K it does, and the labels
# are shifted by one; doing that twice, or with a data set whose 0 is a class, loses a class
# ([chapter 08](08_data.ipynb)).

# %% [markdown]
# ## Next
#
# This was the last chapter. Take a script of your own, and write the eight tests for it before the
# next run. And if there is no script yet, only pictures: [chapter
# 13](13_pretrained_and_own_data.ipynb) takes them from labels to masks.
