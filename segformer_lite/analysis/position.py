"""What a network knows of place: what padding tells it, what of that reaches each stage, where it costs IoU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.metrics import confusion_matrix, iou_per_class
from ..models import MixTransformer, Segmenter, device_of
from ..models.variants import Padding, set_padding


def split_padding(encoder: MixTransformer, patch_embed: Padding, ffn: Padding) -> MixTransformer:
    """Let the patch embeddings of `encoder` pad one way and its Mix-FFNs another; returns it.

    Arguments: `patch_embed` and `ffn`: "zeros", "circular", "reflect" or "replicate".
    """
    stage: Any  # torch calls every submodule "Tensor | Module"
    for stage in encoder.stages:
        set_padding(stage.patch_embed, patch_embed)
        set_padding(stage.blocks, ffn)  # attention's convolution is not padded
    return encoder


@torch.no_grad()
def constant_features(encoder: nn.Module, size: int = 256) -> list[Tensor]:
    """What each stage makes of a picture of one colour, `size` px a side: feature maps (C, H, W).

    Such a picture has no content, so whatever differs between two places of a map is position.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        return [f[0].cpu() for f in encoder(torch.ones(1, 3, size, size, device=device_of(encoder)))]
    finally:
        encoder.train(was_training)


def position_spread(encoder: nn.Module, size: int = 256) -> list[float]:
    """How much of each stage's output is position: for a constant picture, spread over places over spread of all.

    The root of (variance over places, mean of channels) / (variance of all numbers): 0 where every place is the
    same, 1 where nothing but place matters.
    """
    spread = []
    for f in constant_features(encoder, size):
        over_places, of_all = f.var((1, 2), correction=0).mean(), f.var(correction=0)
        spread.append((over_places / of_all).sqrt().item())
    return spread


def position_maps(encoder: nn.Module, size: int = 256) -> list[Tensor]:
    """Where position leaks in: (H, W) per stage, distance of each place from the middle one, constant picture.

    Euclidean, over the root-mean-square length of a place's features, so stages can be compared.
    """
    maps = []
    for f in constant_features(encoder, size):
        middle = f[:, f.shape[1] // 2, f.shape[2] // 2, None, None]
        maps.append((f - middle).norm(dim=0) / f.square().sum(0).mean().sqrt())
    return maps


class PositionReadout(nn.Module):
    """An encoder with one linear map per stage that says where each place lies: (y, x), each from -1 to 1.

    Arguments: `encoder`, with `dims`. Images (B, 3, H, W) -> one (B, 2, H_i, W_i) per stage.
    Source: the question of Islam et al. 2020, How Much Position Information Do CNNs Encode?
    """

    def __init__(self, encoder: MixTransformer):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Conv2d(dim, 2, kernel_size=1) for dim in encoder.dims)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [head(f) for head, f in zip(self.heads, self.encoder(images), strict=True)]


def coordinates(height: int, width: int) -> Tensor:
    """(2, H, W): y and x of the centre of each place, from -1 (top, left) to 1 (bottom, right)."""
    y, x = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def train_readout(encoder: MixTransformer, size: int = 96, steps: int = 250, batch_size: int = 8, lr: float = 2e-3,
                  seed: int = 0) -> PositionReadout:
    """Train an encoder, all of it, to tell place on pictures of noise: what it can learn, it learns from padding.

    Arguments: `size` of the pictures in px; `lr` the peak rate of AdamW, falling linearly to 0; `seed` of heads
    and noise. The pictures hold nothing but noise, so none of it can come from their content.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    device = device_of(encoder)
    readout = PositionReadout(encoder).to(device).train()
    optimizer = torch.optim.AdamW(readout.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        places = readout(torch.randn(batch_size, 3, size, size, generator=generator).to(device))
        loss = sum((p - coordinates(*p.shape[-2:]).to(device)).square().mean() for p in places)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(readout.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return readout.eval()


@torch.no_grad()
def readout_r2(readout: PositionReadout, size: int = 96, images: int = 16, seed: int = 1000) -> list[float]:
    """R² of the places that a readout tells on new noise, per stage: 1 is exact, 0 no better than "the middle"."""
    noise = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))
    scores = []
    for place in readout(noise.to(device_of(readout))):
        true = coordinates(*place.shape[-2:]).to(place.device)
        scores.append(1 - ((place - true).square().mean() / true.square().mean()).item())
    return scores


def border_distance(height: int, width: int) -> Tensor:
    """(H, W) int64: pixels between each pixel and the nearest border, 0 on it."""
    y, x = torch.arange(height), torch.arange(width)
    return torch.minimum(torch.minimum(y, y.flip(0))[:, None], torch.minimum(x, x.flip(0))[None])


@torch.inference_mode()
def iou_by_border_distance(model: Segmenter, dataset, edges: Sequence[int]) -> np.ndarray:
    """Mean IoU of the pixels in each band of distance from the picture's border: (len(edges) - 1,).

    Arguments: `model` with `predict`; `dataset`: items (uint8 image, int64 label map), `classes`, `ignore_index`;
    `edges`: increasing distances in px, band i holds edges[i] <= distance < edges[i + 1]. Bands differ in what
    they show (objects that the border cuts), so compare networks within a band, not bands of one network.
    """
    count = len(dataset.classes)
    confusion = torch.zeros(len(edges) - 1, count, count, dtype=torch.int64)
    for i in range(len(dataset)):
        image, label = (item.as_subclass(Tensor) for item in dataset[i])
        prediction, distance = model.predict(image[None])[0].cpu(), border_distance(*label.shape)
        for band, (near, far) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            inside = (distance >= near) & (distance < far)
            confusion[band] += confusion_matrix(prediction[inside], label[inside], count, dataset.ignore_index)
    return np.array([np.nanmean(iou_per_class(c)) for c in confusion.numpy()])
