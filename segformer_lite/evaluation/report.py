"""Evaluate a network on a data set, and the report that comes out."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from ..files import write_text
from ..models import Segmenter, device_of, label_map, preprocess
from ..models.upsampling import pixels, strips
from ..threads import in_threads
from . import metrics

LONGEST = 32  # times its short side is a picture's long side at most
MOST_WAITING = 8  # batches of pictures that wait for others of their shape
COUNTED = 4  # pictures at a time: each thread that counts has threads of its own below
LARGE = 2**21  # pixels; pictures of more are counted one at a time
_alone = Lock()


@dataclass
class Report:
    """What an evaluation found; every figure follows from the counts in it.

    `classes`: names; `confusion` (K, K) pixels by (label, prediction); `boundary` (2, K): intersection and union of
    boundary bands; `sizes` (3, 5): see `metrics.size_counts`; `losses`: mean cross-entropy of each picture, `names`:
    of each picture. Means leave out classes that are neither labelled nor predicted anywhere.
    """

    classes: list[str]
    confusion: np.ndarray
    boundary: np.ndarray
    sizes: np.ndarray
    losses: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def iou(self) -> np.ndarray:
        """IoU of each class (K,), NaN for absent ones."""
        return metrics.iou_per_class(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU; background counts."""
        return _mean(self.iou)

    @property
    def miou_foreground(self) -> float:
        """Mean IoU without class 0."""
        return _mean(self.iou[1:])

    @property
    def dice(self) -> float:
        """Mean Dice; background counts."""
        return _mean(metrics.dice_per_class(self.confusion))

    @property
    def dice_foreground(self) -> float:
        """Mean Dice without class 0."""
        return _mean(metrics.dice_per_class(self.confusion)[1:])

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def boundary_iou(self) -> float:
        """Mean over classes of the IoU of boundary bands (2 % of the diagonal wide); background counts."""
        with np.errstate(invalid="ignore"):
            return _mean(self.boundary[0] / self.boundary[1])

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """iou, dice, recall, precision of each class and its share of the labelled pixels."""
        label, prediction = self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {"iou": self.iou, "dice": metrics.dice_per_class(self.confusion),
                       "recall": np.diag(self.confusion) / label, "precision": np.diag(self.confusion) / prediction,
                       "share": label / label.sum()}
        return {name: {key: float(column[i]) for key, column in columns.items()}
                for i, name in enumerate(self.classes)}

    @property
    def per_size(self) -> dict[str, dict[str, float]]:
        """For small, medium and large regions: how many, the share found, and recall and IoU of their pixels."""
        return {name: {"regions": int(n), "found": float(found / n) if n else float("nan"),
                       "recall": float(right / pixels) if n else float("nan"),
                       "iou": float(right / (pixels + wrong)) if n else float("nan")}
                for name, (n, found, pixels, right, wrong) in zip(metrics.SIZE_BINS, self.sizes, strict=True)}

    def summary(self) -> dict[str, float]:
        """The headline figures."""
        return {key: getattr(self, key) for key in ("miou", "miou_foreground", "dice", "dice_foreground",
                                                    "pixel_accuracy", "boundary_iou")}

    def save(self, path: str | Path) -> None:
        """Write figures and counts as JSON; NaN becomes null. Raises OSError where `path` cannot be written."""
        content = {**self.summary(), "per_class": self.per_class, "per_size": self.per_size,
                   "confusion": self.confusion.tolist()}
        write_text(path, json.dumps(_nan_to_none(content), indent=1))

    def __str__(self) -> str:
        lines = ["  ".join(f"{key} {value:.3f}" for key, value in self.summary().items()), ""]
        lines += [f"{'class':<16}{'IoU':>7}{'Dice':>7}{'recall':>8}{'share':>8}"]
        lines += [f"{name:<16}{c['iou']:>7.3f}{c['dice']:>7.3f}{c['recall']:>8.3f}{c['share']:>8.1%}"
                  for name, c in self.per_class.items() if not np.isnan(c["iou"])]
        lines += ["", f"{'region size':<16}{'regions':>8}{'found':>7}{'recall':>8}{'IoU':>7}"]
        lines += [f"{name:<16}{s['regions']:>8}{s['found']:>7.2f}{s['recall']:>8.2f}{s['iou']:>7.2f}"
                  for name, s in self.per_size.items()]
        return "\n".join(lines)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _nan_to_none(value):
    if isinstance(value, dict):
        return {k: _nan_to_none(v) for k, v in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def aligned_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size with the short side `short_side` px, the aspect kept, both sides rounded to multiples of 32.

    At such sizes every token becomes a key: reduction drops none. Source: the released test settings.
    """
    scale = short_side / min(height, width)
    height, width = (max(32, round(side * scale / 32) * 32) for side in (height, width))
    return height, width


def resize_for_model(image: Tensor, short_side: int | None) -> Tensor:
    """uint8 (3, H, W) resized to `aligned_size`; as it is when `short_side` is None.

    Raises ValueError for a thread of a picture, which would become one of a size that no memory holds.
    """
    if short_side is None:
        return image
    height, width = image.shape[-2:]
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(f"the picture is {height} x {width} px, one side more than {LONGEST} times the other: cut it "
                         "into pieces")
    return TF.resize(image, list(aligned_size(height, width, short_side)), antialias=True)


@torch.inference_mode()
def predict_labels(model: Segmenter, image: Tensor, size: int) -> np.ndarray:
    """Label map (H, W) of one uint8 image (3, H, W), seen by the network at short side `size`, as in training."""
    logits = model(preprocess(resize_for_model(image, size)[None].to(device_of(model))))
    return label_map(logits.float(), image.shape[-2:])[0].cpu().numpy().astype(np.uint8)


@torch.inference_mode()
def evaluate(model: Segmenter, dataset, size: int | None = None, batch_size: int = 8, progress: bool = True) -> Report:
    """Compare a network's label maps with a data set's, at the labels' own resolution.

    Arguments: `model`, on any device, evaluated as it is (its mode is restored); `dataset`: items (uint8 image,
    int64 label map), `classes`, `ignore_index`; `size`: short side in px that pictures are resized to before the
    network sees them (None: as they are); logits are upsampled back to each label map before the decision. Threads
    read items ahead, and count behind.
    Raises ValueError when model and data set differ in the number of classes, or a label is none of them.
    """
    num_classes = len(dataset.classes)
    if model.num_classes != num_classes:
        raise ValueError(f"the model gives {model.num_classes} classes but the data set has {num_classes} "
                         f"({', '.join(dataset.classes[:4])}, ...); choose the data set it was trained on")
    report = Report(list(dataset.classes), np.zeros((num_classes, num_classes), np.int64),
                    np.zeros((2, num_classes), np.int64), np.zeros((len(metrics.SIZE_BINS), 5), np.int64),
                    [0.0] * len(dataset), list(getattr(dataset, "names", map(str, range(len(dataset))))))
    count = partial(_count, num_classes=num_classes, ignore_index=dataset.ignore_index)
    counted = in_threads(count, _judged(model, dataset, size, batch_size), COUNTED)
    was_training = model.training
    model.eval()
    try:
        for i, *counts, loss in tqdm(counted, desc="evaluate", total=len(dataset), unit="img", disable=not progress,
                                     leave=False):
            for whole, part in zip((report.confusion, report.boundary, report.sizes), counts, strict=True):
                whole += part
            report.losses[i] = loss
    finally:
        model.train(was_training)
    return report


def _judged(model: Segmenter, dataset, size: int | None, batch_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """What the network makes of the items, in any order: (index, logits (K, h, w), label map (H, W))."""
    device = device_of(model)
    for indices, images, labels in _batches(dataset, size, batch_size):
        yield from zip(indices, model(preprocess(images.to(device))).float(), labels, strict=True)


def _batches(dataset, size: int | None, batch_size: int):
    """Items gathered into batches of one shape: (indices, images (B, 3, H, W), list of labels)."""
    def load(i: int) -> tuple[int, Tensor, Tensor]:
        image, label = dataset[i]
        return i, resize_for_model(image.as_subclass(Tensor), size), label.as_subclass(Tensor)

    waiting: dict[tuple, list] = defaultdict(list)
    for item in in_threads(load, range(len(dataset))):
        group = waiting[tuple(item[1].shape)]
        group.append(item)
        many = sum(map(len, waiting.values())) >= MOST_WAITING * batch_size  # pictures of many shapes fill the memory
        if many or len(group) == batch_size:
            yield _stack(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    for group in waiting.values():
        yield _stack(group)


def _stack(group: list) -> tuple:
    indices, images, labels = zip(*group, strict=True)
    return indices, torch.stack(images), labels


@torch.inference_mode()  # each thread has its own
def _count(item: tuple[int, Tensor, Tensor], num_classes: int, ignore_index: int) -> tuple:
    """What a picture adds to a report: its index, its confusion, boundary and sizes, and its loss.

    Argument `item`: see `_judged`. Large pictures wait for each other: a count takes a hundred bytes a pixel and more.
    """
    i, logits, label = item
    with _alone if label.numel() > LARGE else nullcontext():
        there = label.to(logits.device)
        prediction = label_map(logits[None], label.shape)[0]
        return (i, metrics.confusion_matrix(prediction, there, num_classes, ignore_index).cpu().numpy(),
                metrics.boundary_counts(prediction, there, num_classes, ignore_index).numpy(),
                metrics.size_counts(prediction, label, ignore_index),
                float(_cross_entropy(logits, there, ignore_index)))


def _cross_entropy(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over the labelled pixels of one picture, some of its rows at a time; 0 where there are none.

    All 81 classes of COCO at the size of a photograph are gigabytes.
    """
    parts = (F.cross_entropy(*pixels(logits[None][where], matrices, truth), ignore_index=ignore_index, reduction="sum")
             for where, matrices, truth in strips(logits[None], label[None]))
    return torch.stack(list(parts)).sum() / (label != ignore_index).sum().clamp(min=1)
