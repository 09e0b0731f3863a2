"""The loss: cross-entropy of every labelled pixel."""

import torch.nn.functional as F
from torch import Tensor

from ..models import upsample


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, count: float | None = None) -> Tensor:
    """Mean cross-entropy over the valid pixels of a batch; 0 (with zero gradients) when none is valid.

    Arguments: `logits` (B, K, h, w) at any resolution, upsampled here to the labels' size; `labels` int64
    (B, H, W) with classes 0..K-1 or `ignore_index`; `count`: divide by this many pixels instead, where the batch is
    one process's share of a larger one. Source: section 3.2 (the loss acts at label resolution).
    """
    logits = upsample(logits, labels.shape[-2:])
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / ((labels != ignore_index).sum().clamp(min=1) if count is None else count)
