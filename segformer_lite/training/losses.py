"""The loss: cross-entropy of every labelled pixel, weighted by class where asked, and Dice of whole regions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import upsample


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, count: float | None = None,
                      class_weights: Sequence[float] | None = None, dice_weight: float = 0.0) -> Tensor:
    """Mean cross-entropy over the valid pixels of a batch; 0 (with zero gradients) when none is valid.

    Arguments: `logits` (B, K, h, w) at any resolution, upsampled here to the labels' size; `labels` int64
    (B, H, W) with classes 0..K-1 or `ignore_index`; `count`: divide by this many pixels instead, where the batch is
    one process's share of a larger one; `class_weights`: a factor for the pixels of each class; `dice_weight`: how
    much of `dice_loss` is added. Source: section 3.2 (the loss acts at label resolution).
    """
    logits = upsample(logits, labels.shape[-2:])
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    total = F.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="sum")
    loss = total / ((labels != ignore_index).sum().clamp(min=1) if count is None else count)
    return loss + dice_weight * dice_loss(logits, labels, ignore_index) if dice_weight else loss


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """1 - Dice of the probabilities, mean over pictures and classes: a small region counts as much as a large one.

    Arguments: `logits` (B, K, H, W) and `labels` int64 (B, H, W) of one size. One pixel is added to both sides of
    the fraction, so that a class that a picture lacks costs nothing where it is not predicted. Each process of
    several takes the mean of its own pictures.
    Source: V-Net, Milletari et al. 2016, section 3 (there with squared terms below).
    """
    valid = (labels != ignore_index)[:, None]
    truth = F.one_hot(labels.where(valid[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2) * valid
    probability = logits.softmax(dim=1) * valid
    overlap, size = (probability * truth).sum((2, 3)), (probability + truth).sum((2, 3))
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


def class_weights(counts: Sequence[float]) -> list[float]:
    """A weight for each class from its number of pixels: one over the root of its share, 1 for the mean pixel.

    The root is between no weights and full balance, which lets a rare class's noise lead. A class without a pixel
    gets 0. Raises ValueError where no class has any.
    """
    shares = torch.as_tensor(counts, dtype=torch.float64)
    if not shares.sum() > 0:
        raise ValueError("no class has a pixel: class weights need the pixel counts of the training labels")
    shares = shares / shares.sum()
    weights = torch.where(shares > 0, shares.clamp(min=1e-12).rsqrt(), 0)
    return [round(weight, 4) for weight in (weights / (weights * shares).sum()).tolist()]
