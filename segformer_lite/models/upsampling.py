"""Bilinear upsampling of logits to the size of the labels: whole, some classes or some rows at a time."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**20  # values of upsampled logits in a strip: 4 MiB in float32, about what a core's cache holds
GPU = 64  # strips of a CPU in one of a GPU, which would idle between smaller ones


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of a (B, K, h, w) map to (B, K, *size), pixel areas aligned (align_corners=False)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def label_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of each pixel, `upsample(logits, size).argmax(1)`: (B, K, h, w) -> int64 (B, *size).

    Sixteen classes at a time: all 150 of ADE20K at the size of a photograph are gigabytes.
    """
    largest, labels = upsample(logits[:, :16], size).max(dim=1)
    for first in range(16, logits.shape[1], 16):
        value, label = upsample(logits[:, first:first + 16], size).max(dim=1)
        labels = torch.where(value > largest, label + first, labels)
        largest = torch.maximum(value, largest)
    return labels


def interpolation(length: int, size: int, like: Tensor) -> Tensor:
    """Bilinear resize of one axis as a matrix (size, length): `upsample(x)` is rows @ x @ columns.T.

    Each line holds the shares of the two nearest of `length` values; `like`: a tensor for device and dtype.
    """
    identity = torch.eye(length, device=like.device, dtype=like.dtype)
    return F.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T


def strips(logits: Tensor, labels: Tensor) -> Iterator[tuple]:
    """Cut labels (B, H, W) into strips of about `PART` upsampled logits: some pictures, or some rows of one.

    Yields for each: where in `logits` (B, K, h, w) its neighbours are, the matrices that upsample their rows and
    columns (see `interpolation`), None where the logits are as large as the labels, and the strip's labels.
    """
    height, width = labels.shape[-2:]
    values = PART if logits.device.type == "cpu" else PART * GPU
    as_large = logits.shape[2:] == labels.shape[1:]
    rows, columns = interpolation(logits.shape[2], height, logits), interpolation(logits.shape[3], width, logits)
    lines = max(1, values // (logits.shape[1] * width))
    pictures, lines = max(1, lines // height), min(lines, height)
    scale = logits.shape[2] / height
    for i, j in product(range(0, len(labels), pictures), range(0, height, lines)):
        label = labels[i:i + pictures, j:j + lines]
        first = max(0, int((j + 0.5) * scale - 0.5))  # of the two rows of logits nearest to the strip's first line
        last = int((j + label.shape[1] - 0.5) * scale - 0.5) + 1
        near = slice(j, j + lines) if as_large else slice(first, last + 1)
        matrices = None if as_large else (rows[j:j + lines, near], columns)
        yield (slice(i, i + pictures), slice(None), near), matrices, label


def pixels(logits: Tensor, matrices: tuple[Tensor, Tensor] | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Upsampled logits and labels as cross-entropy takes them fastest: as maps, (B, K, H, W) and (B, H, W); many
    classes on a CPU as one row for each pixel, (B H W, K) and (B H W), as the decoder leaves them in memory."""
    if logits.shape[1] < 64 or logits.device.type != "cpu":
        if matrices:
            rows, columns = matrices
            logits = rows @ (logits @ columns.T)
        return logits, labels
    values = logits.permute(0, 2, 3, 1)  # (B, h, w, K)
    if matrices:
        rows, columns = matrices
        values = rows @ (columns @ values).flatten(2)
    return values.reshape(-1, logits.shape[1]), labels.flatten()
