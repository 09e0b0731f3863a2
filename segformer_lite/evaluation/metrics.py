"""Counting right and wrong pixels: one confusion matrix over the whole data set, and what follows from it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# COCO's size bins as shares of the picture (32² and 96² px of a 640 x 480 one), so that they hold at any size.
SIZE_BINS = {"small": (0.0, 1 / 300), "medium": (1 / 300, 0.03), "large": (0.03, 1.01)}


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels by (label, prediction), two maps of one shape with classes from 0 to K - 1: int64 (K, K).

    Pixels labelled `ignore_index` are left out of both. Raises ValueError where a map holds another number.
    """
    label, prediction, known = label.long(), prediction.long(), label != ignore_index
    low, high = torch.minimum(label, prediction), torch.maximum(label, prediction)
    if (known & ((low < 0) | (high >= num_classes))).any():
        raise ValueError(f"label or prediction holds a number that is none of the {num_classes} classes "
                         f"(0 to {num_classes - 1}); for pixels that nobody labelled set ignore_index")
    pairs = torch.where(known, num_classes * label + prediction, num_classes**2)  # the last is counted, and cut off
    return torch.bincount(pairs.flatten(), minlength=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, (K, K) -> (K,): I / (P + L - I); NaN where neither map has it.

    A class that is predicted somewhere but labelled nowhere counts as 0.
    """
    intersection, label, prediction = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        return intersection / (label + prediction - intersection)


def dice_per_class(confusion: np.ndarray) -> np.ndarray:
    """Dice coefficient of each class, (K, K) -> (K,): 2 I / (P + L) = 2 IoU / (1 + IoU); NaN as in `iou_per_class`."""
    with np.errstate(invalid="ignore"):
        return 2 * np.diag(confusion) / (confusion.sum(0) + confusion.sum(1))


def boundary_distance(height: int, width: int, share: float = 0.02) -> int:
    """Width d of the boundary band in px: 2 % of the picture's diagonal, at least 1."""
    return max(1, round(share * (height**2 + width**2) ** 0.5))


def boundaries(labels: Tensor, d: int) -> Tensor:
    """The inner bands of all classes of a label map (H, W): bool (H, W), the pixels within d px of another class.

    A pixel belongs to its class's band when the square of 2 d + 1 px around it holds two values, the outside of the
    picture being one: when its maximum is not its minimum. A maximum over 2, 4, 8, ... px is one over two of half
    the width, so a wide band costs hardly more than a narrow one.
    """
    extremes = F.pad(labels.short(), (d, d, d, d), value=-1)
    extremes = torch.stack([extremes, -extremes])
    for _ in range(2):  # along the rows, then along the columns
        reach = 1
        while 2 * reach <= 2 * d + 1:
            extremes = torch.maximum(extremes[..., :-reach], extremes[..., reach:])
            reach *= 2
        rest = 2 * d + 1 - reach
        extremes = torch.maximum(extremes[..., :extremes.shape[-1] - rest], extremes[..., rest:]).transpose(1, 2)
    return extremes[0] != -extremes[1]


def boundary_counts(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Intersection and union of the boundary bands of each class in one picture: int64 (2, K).

    Arguments: `prediction` and `label` (H, W). Source: Boundary IoU, Cheng et al. 2021, section 4.
    """
    valid, d = label != ignore_index, boundary_distance(*label.shape)
    prediction = torch.where(valid, prediction, ignore_index)
    p, q = boundaries(prediction, d) & valid, boundaries(label, d) & valid

    def pixels(of: Tensor, where: Tensor) -> Tensor:
        return torch.bincount(torch.where(where, of.long(), num_classes).flatten(), minlength=num_classes + 1)[:-1]

    intersection = pixels(label, p & q & (prediction == label))
    return torch.stack([intersection, pixels(prediction, p) + pixels(label, q) - intersection]).cpu()


def connected_components(labels: np.ndarray) -> np.ndarray:
    """Number the 4-connected regions of one label in a map (H, W), or of True in a mask: int64 (H, W).

    0 where the label is 0; 1, 2, ... elsewhere. Pixels of a row that touch and are alike form a run. Runs of
    neighbouring rows that touch and are alike take over the smaller number, until nothing changes; following numbers
    to the run that they name keeps the rounds few.
    """
    inside = labels != 0
    starts = inside.copy()
    starts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    run = np.where(inside, np.cumsum(starts).reshape(labels.shape), 0)
    touching = inside[1:] & (labels[1:] == labels[:-1])
    first = touching.copy()  # of the pixels where the same two runs touch, one is enough
    first[:, 1:] &= ~touching[:, :-1] | starts[1:, 1:] | starts[:-1, 1:]
    upper, lower = run[:-1][first], run[1:][first]
    number = np.arange(starts.sum() + 1)
    while True:
        new = number.copy()
        smaller = np.minimum(number[upper], number[lower])
        for side in (upper, lower):
            np.minimum.at(new, side, smaller)
            np.minimum.at(new, number[side], smaller)
        new = new[new]
        if np.array_equal(new, number):
            return np.unique(number, return_inverse=True)[1][run]
        number = new


def size_counts(prediction: Tensor, label: Tensor, ignore_index: int = 255,
                bins: dict[str, tuple[float, float]] = SIZE_BINS) -> np.ndarray:
    """How the labelled regions of one picture fared, by size bin: int64 (len(bins), 5).

    Rows: `bins` of shares of the picture, rising, without gaps. Columns: regions, regions found (at least half of
    their pixels right), their pixels, their pixels that are right, and wrong pixels in the predicted regions of their
    class that touch them: right / (pixels + wrong) is an IoU. A region is a connected component of a foreground class.
    """
    edges = np.array([low for low, _ in bins.values()][1:]) * label.numel()
    label, prediction = label.cpu().numpy(), prediction.cpu().numpy()
    regions, blobs = (connected_components(np.where(label == ignore_index, 0, of)) for of in (label, prediction))
    right = (label == prediction) & (regions > 0)
    areas = np.bincount(regions.ravel())
    hits = np.bincount(regions[right], minlength=len(areas))
    outside = np.bincount(blobs[label != prediction], minlength=blobs.max() + 1)  # of each blob, its wrong pixels
    pairs = (regions * (blobs.max() + 1) + blobs)[right]  # which region and which blob share a pixel, as one number
    region, blob = np.divmod(np.unique(pairs[np.diff(pairs, prepend=-1) != 0]), blobs.max() + 1)
    wrong = np.bincount(region, outside[blob], len(areas)).astype(np.int64)
    counts = np.zeros((len(bins), 5), dtype=np.int64)
    table = np.stack([np.ones_like(areas), 2 * hits >= areas, areas, hits, wrong], axis=1)
    np.add.at(counts, np.searchsorted(edges, areas[1:], side="right"), table[1:])
    return counts
