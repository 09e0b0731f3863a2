"""Counting right and wrong pixels: one confusion matrix over the whole data set, and what follows from it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# COCO's size bins as shares of the picture (32² and 96² px of a 640 x 480 one), so that they hold at any size.
SIZE_BINS = {"small": (0.0, 1 / 300), "medium": (1 / 300, 0.03), "large": (0.03, 1.01)}


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels by (label, prediction), two maps of whole numbers of one shape: int64 (K, K).

    Pixels labelled `ignore_index` are left out of both.
    """
    valid = label != ignore_index
    pairs = num_classes * label[valid].long() + prediction[valid]  # a uint8 would start again at 256
    return torch.bincount(pairs.flatten(), minlength=num_classes**2).reshape(num_classes, num_classes)


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


def boundary(mask: Tensor, d: int) -> Tensor:
    """The inner band of a bool (..., H, W) mask: its pixels within d px of its edge or of the picture's.

    A pixel belongs to it when the square of 2 d + 1 px around it holds a pixel outside of the mask. Sums over the
    square come from running sums, so a wide band costs no more than a narrow one.
    """
    outside = F.pad(~mask, (d, d, d, d), value=True).int()
    for axis in (-1, -2):
        running = F.pad(outside.transpose(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        outside = (running[..., 2 * d + 1:] - running[..., : -2 * d - 1]).transpose(axis, -1)
    return mask & (outside > 0)


def boundary_counts(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Intersection and union of the boundary bands of each class in one picture: int64 (2, K).

    Arguments: `prediction` and `label` (H, W). Source: Boundary IoU, Cheng et al. 2021, section 4.
    """
    counts = torch.zeros(2, num_classes, dtype=torch.int64)
    valid = label != ignore_index
    present = torch.unique(torch.cat([prediction[valid], label[valid]])).long()
    if len(present) == 0:
        return counts
    prediction = torch.where(valid, prediction, ignore_index)
    d = boundary_distance(*label.shape)
    p = boundary(prediction == present.view(-1, 1, 1), d) & valid
    q = boundary(label == present.view(-1, 1, 1), d) & valid
    counts[0, present.cpu()] = (p & q).sum((1, 2)).cpu()
    counts[1, present.cpu()] = (p | q).sum((1, 2)).cpu()
    return counts


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Number the 4-connected regions of a bool (H, W) mask: int64 (H, W), 0 outside, 1, 2, ... inside.

    Pixels of a row that touch form a run. Runs of neighbouring rows that touch take over the smaller number, until
    nothing changes; following numbers to the run that they name keeps the rounds few.
    """
    height, width = mask.shape
    starts = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :width]
    run = np.where(mask, np.cumsum(starts).reshape(height, width), 0)
    touching = mask[1:] & mask[:-1]
    upper, lower = np.unique(np.stack([run[:-1][touching], run[1:][touching]]), axis=1)
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
    counts = np.zeros((len(bins), 5), dtype=np.int64)
    edges = np.array([low for low, _ in bins.values()][1:]) * label.numel()
    label, prediction = label.cpu().numpy(), prediction.cpu().numpy()
    for c in np.unique(label):
        if c in (0, ignore_index):
            continue
        labelled, predicted = label == c, (prediction == c) & (label != ignore_index)
        regions, blobs = connected_components(labelled), connected_components(predicted)
        pixels = np.bincount(regions.ravel())[1:]
        right = np.bincount(regions[predicted], minlength=len(pixels) + 1)[1:]
        region, blob = np.unique(np.stack([regions, blobs])[:, labelled & predicted], axis=1)  # pairs that touch
        outside = np.bincount(blobs[~labelled], minlength=blobs.max() + 1)
        wrong = np.bincount(region, outside[blob], len(pixels) + 1)[1:].astype(np.int64)
        rows = np.searchsorted(edges, pixels, side="right")
        np.add.at(counts, rows, np.stack([np.ones_like(pixels), 2 * right >= pixels, pixels, right, wrong], axis=1))
    return counts
