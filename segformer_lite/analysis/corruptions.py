"""The 16 corruptions of Cityscapes-C in five severities each, and the score that is made of them.

Every function takes a picture x (3, H, W) float in 0..1, a generator `rng`, `px`, the pixels of one unit of radius,
and the setting of its severity; `corrupt` brings uint8 pictures there and back. The settings are those of the
imagecorruptions package (Michaelis et al. 2019, after Hendrycks and Dietterich 2019). Snow, spatter, fog and frost
are made of our own seeded clouds of noise, where the original takes photographs and plasma: their severities are
comparable, their pictures and scores are not the same.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

SMALLEST = 32  # px a side

# Noise


def gaussian_noise(x: Tensor, rng: Generator, px: float, sd: float) -> Tensor:
    """Noise of standard deviation `sd`, whatever the value."""
    return x + sd * torch.randn(x.shape, generator=rng)


def shot_noise(x: Tensor, rng: Generator, px: float, photons: float) -> Tensor:
    """White is `photons` light quanta on average; each value counts its own."""
    return torch.poisson(x * photons, generator=rng) / photons


def impulse_noise(x: Tensor, rng: Generator, px: float, share: float) -> Tensor:
    """A `share` of the values becomes 0 or 1."""
    hit = torch.rand(x.shape, generator=rng) < share
    return torch.where(hit, torch.randint(0, 2, x.shape, generator=rng).float(), x)


def speckle_noise(x: Tensor, rng: Generator, px: float, sd: float) -> Tensor:
    """Noise in proportion to the value: black stays black."""
    return x + x * sd * torch.randn(x.shape, generator=rng)


# Blur


def gaussian_blur(x: Tensor, rng: Generator, px: float, sigma: float) -> Tensor:
    """Each pixel becomes a mean of its neighbours, which weigh less the farther they are; along rows, then columns."""
    radius = int(4 * sigma * px) + 1
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / (sigma * px)) ** 2)
    return filtered(filtered(x, line[None, :]), line[:, None])


def defocus_blur(x: Tensor, rng: Generator, px: float, radius: float) -> Tensor:
    """The mean over a disc, with a rim one pixel soft: a point out of focus is an image of the aperture."""
    reach = int(radius * px) + 1
    y, x_ = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    return filtered(x, (radius * px + 0.5 - torch.hypot(y, x_)).clamp(0, 1))


def motion_blur(x: Tensor, rng: Generator, px: float, radius: float, sigma: float) -> Tensor:
    """A trail of 2 * `radius` that fades as a Gaussian, up to 45 degrees from the horizontal."""
    angle = torch.deg2rad(90 * torch.rand((), generator=rng) - 45)
    return trail(x, 2 * radius * px, sigma * px, float(angle))


def glass_blur(x: Tensor, rng: Generator, px: float, sigma: float, reach: float, times: int) -> Tensor:
    """Frosted glass: neighbouring pixels change places, between two slight blurs."""
    x = gaussian_blur(x, rng, px, sigma)
    for _ in range(times):
        x = local_shuffle(x, rng, reach * px)
    return gaussian_blur(x, rng, px, sigma)


# Digital


def brightness(x: Tensor, rng: Generator, px: float, more: float) -> Tensor:
    """HSV value plus `more`; hue and saturation stay."""
    value = x.amax(0, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x / value.clamp(min=1e-6) * brighter, brighter)


def contrast(x: Tensor, rng: Generator, px: float, factor: float) -> Tensor:
    """Distances to each channel's mean, times `factor`."""
    mean = x.mean((1, 2), keepdim=True)
    return mean + factor * (x - mean)


def saturate(x: Tensor, rng: Generator, px: float, factor: float, more: float) -> Tensor:
    """HSV saturation times `factor` plus `more`; hue and value stay, and grey, which has no hue, stays grey."""
    value = x.amax(0, keepdim=True)
    saturation = 1 - x.amin(0, keepdim=True) / value.clamp(min=1e-6)
    stretch = (factor * saturation + more).clamp(max=1) / saturation.clamp(min=1e-6)
    return torch.where(saturation > 0, value - (value - x) * stretch, x)


def jpeg_compression(x: Tensor, rng: Generator, px: float, quality: int) -> Tensor:
    """Written as a JPEG file of `quality` (1 to 100) and read again."""
    file = io.BytesIO()
    pixels = (255 * x).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255


# Weather


def snow(x: Tensor, rng: Generator, px: float, mean: float, sd: float, flake: float, least: float,
         radius: float, sigma: float, keep: float) -> Tensor:
    """Whiter ground, and flakes where a noise of `mean` and `sd` exceeds `least`, each drawn out as it falls."""
    flakes = mean + 2 / 3 * sd * clouds(x.shape[-2:], flake * px, rng)  # 2/3 of the sd outlives enlarging noise
    flakes = torch.where(flakes > least, flakes, 0).clamp(0, 1)
    angle = torch.deg2rad(45 + 90 * torch.rand((), generator=rng))  # from 45 degrees left to 45 right of straight down
    flakes = trail(flakes[None], 2 * radius * px, sigma * px, float(angle))
    white = torch.maximum(x, 1.5 * grey(x) + 0.5)
    return keep * x + (1 - keep) * white + flakes + flakes.flip(-1, -2)


def spatter(x: Tensor, rng: Generator, px: float, mean: float, sd: float, sigma: float, least: float,
            strength: float, mud: bool) -> Tensor:
    """Drops where a noise smoothed by `sigma` exceeds `least`: water, which shines with `strength`, or mud, which
    covers wherever drops stand close (after smoothing by `strength` more, on three quarters)."""
    smoothed = sd / (2 * np.pi**0.5 * sigma)  # what a Gaussian filter leaves of the sd of white noise
    depth = (mean - least) / smoothed + clouds(x.shape[-2:], 2 * sigma * px, rng)
    colour = torch.tensor([63, 42, 20] if mud else [175, 238, 238])[:, None, None] / 255
    if not mud:
        return x + strength * depth.clamp(0, 1) * colour
    cover = gaussian_blur((depth > 0).float()[None], rng, px, strength)
    return torch.where(cover > 0.75, (1 - cover) * x + cover * colour, x)


def fog(x: Tensor, rng: Generator, px: float, thickness: float, decay: float) -> Tensor:
    """Clouds of all sizes, each half as large and 1 / `decay` as strong as the one before; then less contrast."""
    size, brightest = x.shape[-2:], x.max()
    grains = [max(size) / 2**octave for octave in range(1, 7)]
    plasma = sum((decay**-octave * clouds(size, grain, rng) for octave, grain in enumerate(grains)), torch.zeros(size))
    plasma = (plasma - plasma.min()) / (plasma.max() - plasma.min())
    return (x + thickness * plasma) * brightest / (brightest + thickness)


def frost(x: Tensor, rng: Generator, px: float, keep: float, ice: float) -> Tensor:
    """Ice over a picture that loses light: needles in six directions, dense where a large cloud is."""
    size, length = x.shape[-2:], max(x.shape[-2:]) / 8
    thick = 0.3 + 0.15 * clouds(size, 3 * length, rng)
    seeds = (clouds(size, length / 12, rng) + 3 * thick > 2.5).float()[None]
    needles = sum(trail(seeds, length, length / 2, turn * np.pi / 3 + 0.2) for turn in range(6))
    colour = torch.tensor([0.85, 0.93, 1.0])[:, None, None]
    return keep * x + ice * colour * (thick + needles / 2).clamp(0, 1)


# Tools


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of x (C, H, W) filtered with a kernel of odd sides that sums to 1; the rim is repeated outwards."""
    height, width = kernel.shape
    padded = F.pad(x[:, None], (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def trail(x: Tensor, length: float, sigma: float, angle: float) -> Tensor:
    """x (C, H, W) drawn out over `length` px, fading with `sigma`; `angle` in radians, 0 to the right, then down."""
    reach, (height, width) = int(length), x.shape[-2:]
    far = torch.arange(reach + 1)
    weights = torch.exp(-0.5 * (far / sigma) ** 2)
    tops, lefts = ((reach - far * part).round().long().tolist() for part in (np.sin(angle), np.cos(angle)))
    padded = F.pad(x[:, None], (reach,) * 4, mode="replicate")[:, 0]
    moved = (w * padded[:, top : top + height, left : left + width]
             for w, top, left in zip(weights / weights.sum(), tops, lefts, strict=True))
    return sum(moved)


def local_shuffle(x: Tensor, rng: Generator, reach: float) -> Tensor:
    """Pixels of x (C, H, W) in new places, each moved by less than 2 * `reach` along either axis.

    A row is sorted by its column numbers, each shaken by up to `reach`; then every column alike. Sorting only changes
    places, so the same pixels remain.
    """
    for axis in (-1, -2):
        place = torch.arange(x.shape[axis]) if axis == -1 else torch.arange(x.shape[axis])[:, None]
        shaken = place + reach * (2 * torch.rand(x.shape[-2:], generator=rng) - 1)
        x = x.gather(axis, shaken.argsort(axis).expand(x.shape))
    return x


def clouds(size: Sequence[int], grain: float, rng: Generator) -> Tensor:
    """Smooth noise (H, W) of mean 0 and sd 1 with features of `grain` px, at least one."""
    coarse = [max(2, round(side / max(1.0, grain)) + 1) for side in size]
    noise = torch.randn(1, 1, *coarse, generator=rng)
    noise = F.interpolate(noise, size=tuple(size), mode="bicubic")[0, 0]
    return (noise - noise.mean()) / noise.std()


def grey(x: Tensor) -> Tensor:
    """Luminance (1, H, W) of x (3, H, W)."""
    return (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)


# The tables: of families (the columns of Table 5 in Xie et al. 2021) and of names: function, settings 1 to 5

FAMILIES = {
    "blur": ("motion_blur", "defocus_blur", "glass_blur", "gaussian_blur"),
    "noise": ("gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"),
    "digital": ("brightness", "contrast", "saturate", "jpeg_compression"),
    "weather": ("snow", "spatter", "fog", "frost"),
}
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple]]] = {
    "motion_blur": (motion_blur, [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]),
    "defocus_blur": (defocus_blur, [(3,), (4,), (6,), (8,), (10,)]),
    "glass_blur": (glass_blur, [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)]),
    "gaussian_blur": (gaussian_blur, [(1,), (2,), (3,), (4,), (6,)]),
    "gaussian_noise": (gaussian_noise, [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)]),
    "impulse_noise": (impulse_noise, [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)]),
    "shot_noise": (shot_noise, [(60,), (25,), (12,), (5,), (3,)]),
    "speckle_noise": (speckle_noise, [(0.15,), (0.2,), (0.35,), (0.45,), (0.6,)]),
    "brightness": (brightness, [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)]),
    "contrast": (contrast, [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)]),
    "saturate": (saturate, [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)]),
    "jpeg_compression": (jpeg_compression, [(25,), (18,), (15,), (10,), (7,)]),
    "snow": (snow, [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)]),
    "spatter": (spatter, [(0.65, 0.3, 4, 0.69, 0.6, False), (0.65, 0.3, 3, 0.68, 0.6, False),
                          (0.65, 0.3, 2, 0.68, 0.5, False), (0.65, 0.3, 1, 0.65, 1.5, True),
                          (0.67, 0.4, 1, 0.65, 1.5, True)]),
    "fog": (fog, [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]),
    "frost": (frost, [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)]),
}


def corrupt(image: Tensor, name: str, severity: int, seed: int = 0, made_for: int | None = None) -> Tensor:
    """A picture, corrupted; the same for the same seed.

    Arguments: `image` (3, H, W) uint8, at least 32 px a side; `name` of `CORRUPTIONS`; `severity` 1 to 5, 0 for none;
    `made_for`: the short side in px at which radii mean pixels, so that they shrink and grow with the picture (1024
    for those of Cityscapes). None: radii are in pixels whatever the size, as in the original. Returns the same shape
    and type. Raises ValueError for another name, severity or picture.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    function, settings = CORRUPTIONS[name]
    if severity not in range(len(settings) + 1):
        raise ValueError(f"severity is {severity}: give 1 to {len(settings)}, or 0 for none")
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or min(image.shape[1:]) < SMALLEST:
        raise ValueError(f"the picture is {image.dtype} of shape {tuple(image.shape)}: corruptions take uint8 "
                         f"(3, H, W) with at least {SMALLEST} px a side, before any normalising")
    if severity == 0:
        return image
    px = min(image.shape[1:]) / made_for if made_for else 1.0
    rng = torch.Generator().manual_seed(seed)
    x = function(image.as_subclass(Tensor) / 255, rng, px, *settings[severity - 1])
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


class Corrupted:
    """A data set whose pictures are corrupted and whose labels are not; picture i has a seed of its own."""

    def __init__(self, dataset, name: str, severity: int, seed: int = 0, made_for: int | None = None):
        self.dataset, self.how = dataset, (name, severity)
        self.seed, self.made_for = seed, made_for
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        self.names = dataset.names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.dataset[index]
        return corrupt(image, *self.how, self.seed_of(index), self.made_for), label

    def seed_of(self, index: int) -> int:
        """The seed of one picture's chances."""
        return 1_000_003 * self.seed + index


def counted(name: str) -> tuple[int, ...]:
    """The severities that count in the score: 1 to 3 for noise, 1 to 5 for the rest (Xie et al. 2021, appendix D)."""
    return (1, 2, 3) if name in FAMILIES["noise"] else (1, 2, 3, 4, 5)


def robustness(scores: Mapping[str, Sequence[float]], clean: float) -> dict[str, float]:
    """Retention of each family and of "all": the mean score of its corruptions as a share of the clean score.

    Arguments: `scores`: corruption -> score at severities 1, 2, ... (those that count are averaged first); `clean`:
    the score on pictures as they are. Families without any score are left out.
    """
    means = {name: float(np.mean([values[s - 1] for s in counted(name)])) for name, values in scores.items()}
    groups = {family: [means[n] for n in names if n in means] for family, names in FAMILIES.items()}
    groups["all"] = list(means.values())
    return {group: float(np.mean(values)) / clean for group, values in groups.items() if values}
