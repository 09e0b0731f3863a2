"""The loss: cross-entropy of every labelled pixel, weighted by class where asked, and Dice of whole regions."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import upsample
from ..models.upsampling import pixels, strips


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255,
                      count: float | Tensor | None = None,
                      class_weights: Sequence[float] | None = None, dice_weight: float = 0.0) -> Tensor:
    """Mean cross-entropy over the valid pixels of a batch; 0 (with zero gradients) when none is valid.

    Arguments: `logits` (B, K, h, w) at any resolution, upsampled here to the labels' size; `labels` int64
    (B, H, W) with classes 0..K-1 or `ignore_index`; `count`: divide by this many pixels instead, where the batch is
    one process's share of a larger one; `class_weights`: a factor for the pixels of each class; `dice_weight`: how
    much of `dice_loss` is added. Source: section 3.2 (the loss acts at label resolution).
    """
    weights = None if class_weights is None else weights_on(logits.device, logits.dtype, tuple(class_weights))
    total = UpsampledCrossEntropy.apply(logits, labels, weights, ignore_index)
    loss = total / ((labels != ignore_index).sum().clamp(min=1) if count is None else count)
    if dice_weight:
        loss = loss + dice_weight * dice_loss(upsample(logits, labels.shape[-2:]), labels, ignore_index)
    return loss


@cache  # to copy them to a GPU for every batch would wait for all that the GPU has still to do
def weights_on(device: torch.device, dtype: torch.dtype, weights: tuple[float, ...]) -> Tensor:
    """Class weights as a tensor (K,)."""
    return torch.tensor(weights, device=device, dtype=dtype)


class UpsampledCrossEntropy(torch.autograd.Function):
    """Sum over the pixels of `F.cross_entropy(upsample(logits), labels)`, a strip of rows at a time.

    At label resolution logits are the largest tensor of a whole training step, 16 times those of the network, and
    their gradient is as large. A sum's gradient can be taken part by part: only one part exists at a time.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        for where, matrices, label in strips(logits, labels):
            part = logits[where].detach().requires_grad_()
            with torch.set_grad_enabled(ctx.needs_input_grad[0]), torch.autocast(logits.device.type, enabled=False):
                loss = F.cross_entropy(*pixels(part, matrices, label), weights, ignore_index=ignore_index,
                                       reduction="sum")
            total += loss.detach()
            if ctx.needs_input_grad[0]:
                gradient[where].add_(torch.autograd.grad(loss, part)[0])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0].mul_(gradient), None, None, None  # in place: it is needed once


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """1 - Dice of the probabilities, mean over pictures and classes: a small region counts as much as a large one.

    Arguments: `logits` (B, K, H, W) and `labels` int64 (B, H, W) of one size. One pixel is added to both sides of
    the fraction, so that a class that a picture lacks costs nothing where it is not predicted. Each process of
    several takes the mean of its own pictures.
    Source: V-Net, Milletari et al. 2016, section 3 (there with squared terms below).
    """
    valid = (labels != ignore_index)[:, None]
    truth = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device).view(-1, 1, 1)) & valid
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
