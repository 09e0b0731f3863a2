"""CT pictures as another scanner or another reader would have given them: window, contrast and dose, five severities.

Functions of uint8 pictures (..., H, W) to the same; noise is a function of its seed. Two artefacts beside them, rings
and the streaks of metal, are made where they arise: as an error of the measured rays, carried into the picture by
filtered back-projection, which is linear.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .corruptions import Corrupted

SEVERITIES: dict[str, list[dict[str, float]]] = {
    "brighter": [{"level": -move} for move in (10, 20, 35, 50, 70)],
    "darker": [{"level": move} for move in (10, 20, 35, 50, 70)],
    "flatter": [{"width": factor} for factor in (1.2, 1.5, 2.0, 2.8, 4.0)],
    "noisier": [{"sd": sd} for sd in (4, 8, 14, 22, 32)],
}


def window(image: Tensor, level: float = 0.0, width: float = 1.0) -> Tensor:
    """The picture seen through another window.

    Arguments: `image` uint8; `level`: grey values by which the window's middle moves up, which darkens the picture;
    `width`: the window's width in widths of the old one, above 1 flattens the contrast. What the old window cut off
    stays black or white: it is not in the picture.
    """
    grey = (image.float() - 127.5 - level) / width + 127.5
    return grey.round().clamp(0, 255).to(torch.uint8)


def dose_noise(image: Tensor, sd: float, seed: int = 0) -> Tensor:
    """The picture as from a lower dose: Gaussian noise of `sd` grey values, the same in all channels.

    A quarter of the dose doubles the noise. It is smoothed over 3 x 3 pixels, as reconstruction does, and brought
    back to `sd`. Beyond the clipping at 0 and 255 the mean stays.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 1, *image.shape[-2:], generator=generator)
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = line[:, None] * line
    noise = F.conv2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), (kernel / kernel.norm())[None, None])[0, 0]
    return (image.float() + sd * noise).round().clamp(0, 255).to(torch.uint8)


def rings(image: Tensor, sd: float, seed: int = 0) -> Tensor:
    """The picture as from a scanner with a dozen wrong detector elements: rings around the axis of rotation.

    An element that reads too much or too little does so at every angle, always along rays of one distance from the
    axis. `sd`: standard deviation of the artefact in grey values.
    """
    return (image.float() + sd * _ring_map(tuple(image.shape[-2:]), seed)).round().clamp(0, 255).to(torch.uint8)


def metal(image: Tensor, sd: float, seed: int = 0) -> Tensor:
    """The picture with two metal rods: white discs, streaks from them and a dark band between them.

    Rays through metal are read too low, the more so the more of it they cross (beam hardening, in proportion to the
    square of the length), and few quanta arrive, so they are noisy. `sd`: of the artefact in grey values.
    """
    streaks, rods = _metal_map(tuple(image.shape[-2:]), seed)
    shaded = (image.float() + sd * streaks).round().clamp(0, 255).to(torch.uint8)
    return torch.where(rods, 255, shaded)


@lru_cache(16)
def _ring_map(size: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    error, side = torch.zeros(len(_elements(size))), min(size)
    wrong = len(error) // 2 - side // 2 + torch.randperm(side, generator=generator)[:12]  # within the field of view
    error[wrong] = torch.randn(12, generator=generator)
    return _unit(back_project(error.expand(360, -1), size))


@lru_cache(16)
def _metal_map(size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side = min(size)
    radius = side * (0.01 + 0.008 * torch.rand(2, generator=generator))
    x = side * (torch.tensor([-0.2, 0.2]) + 0.1 * torch.rand(2, generator=generator) - 0.05)
    y = side * 0.2 * torch.rand(2, generator=generator)  # below the middle, where the spine is
    angles = torch.arange(360) * torch.pi / 180
    ray = _elements(size)
    centre = x[:, None] * angles.cos() + y[:, None] * angles.sin()  # (rods, angles): where its shadow falls
    length = (radius[:, None, None] ** 2 - (ray - centre[..., None]) ** 2).clamp(min=0).sqrt().sum(0) / side
    noise = 0.02 * torch.randn(length.shape, generator=generator)
    down, across = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    rods = (torch.hypot(across[None] - x[:, None, None], down[None] - y[:, None, None]) < radius[:, None, None]).any(0)
    return _unit(back_project(length * noise - length**2, size), ~rods), rods


def back_project(sinogram: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture (H, W) of rays (angles over 360 degrees, elements one px apart, the middle one through the axis).

    Filtered back-projection with the ramp filter of Ramachandran and Lakshminarayanan (1971): each angle's rays,
    filtered, are smeared back over the picture they came from.
    """
    angles, elements = sinogram.shape
    lag = torch.arange(-elements + 1, elements)
    ramp = torch.where(lag % 2 == 1, -1 / (torch.pi * lag) ** 2, 0.25 * (lag == 0))
    rays = F.conv1d(sinogram[:, None], ramp[None, None], padding=elements - 1)[:, 0]
    down, across = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    picture = torch.zeros(size)
    for turn, ray in zip(2 * torch.pi * torch.arange(angles) / angles, rays, strict=True):
        place = (across * turn.cos() + down * turn.sin() + elements // 2).clamp(0, elements - 1.001)
        left = place.floor()
        picture += torch.lerp(ray[left.long()], ray[left.long() + 1], place - left)
    return torch.pi * picture / angles


def _elements(size: tuple[int, int]) -> Tensor:
    """Distances of the rays from the axis, one px apart, as far as the picture's corners."""
    reach = int(math.hypot(*size) / 2) + 1
    return torch.arange(-reach, reach + 1)


def _unit(artefact: Tensor, where: Tensor | None = None) -> Tensor:
    """With standard deviation 1 `where` it counts."""
    return artefact / (artefact if where is None else artefact[where]).std()


def shift(image: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """A picture shifted as `SEVERITIES` says: `kind` one of its names, `severity` 1 to 5, 0 for none.

    Raises ValueError for another kind or severity, and for a picture that is not uint8.
    """
    if kind not in SEVERITIES:
        raise ValueError(f"no CT shift {kind!r}; there are {', '.join(SEVERITIES)}")
    if severity not in range(len(SEVERITIES[kind]) + 1):
        raise ValueError(f"severity is {severity}: give 1 to {len(SEVERITIES[kind])}, or 0 for none")
    if image.dtype != torch.uint8:
        raise ValueError(f"the picture is {image.dtype}: CT shifts take uint8, before any normalising")
    if severity == 0:
        return image
    settings = SEVERITIES[kind][severity - 1]
    return dose_noise(image, seed=seed, **settings) if "sd" in settings else window(image, **settings)


class Shifted(Corrupted):
    """A data set whose pictures are shifted and whose labels are not; the noise of picture i has its own seed."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.dataset[index]
        return shift(image.as_subclass(Tensor), *self.how, self.seed_of(index)), label
