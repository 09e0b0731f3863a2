"""Augmentation of an image and its label map together: they move as one, and only the image changes colour.

All chance comes from torch's global generator: `torch.manual_seed` before a call makes it repeatable.
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .base import IGNORE_INDEX

MEAN_COLOUR = (124, 116, 104)  # the mean of ImageNet's pixels: close to zero once the model has normalised it
SHARE, TRIES = 0.75, 10  # of a crop's labels, one class must hold less; so many crops are drawn to find one
COLOURS = {"brightness": (-32 / 255, 32 / 255), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
FILL = {tv_tensors.Image: MEAN_COLOUR, tv_tensors.Mask: IGNORE_INDEX}


def augmentation(name: str, size: int) -> v2.Transform:
    """A transform of (Image (3, H, W) uint8, Mask (H, W)) to one of (3, size, size) and (size, size).

    Names:
        "none": the centre, nothing by chance.
        "flip": scale 0.5-2, crop, mirror.
        "pspnet": rotate up to 10 degrees, scale 0.5-2, crop, blur, mirror (Zhao et al. 2017).
        "segformer": scale 0.5-2, crop with no class above 75 %, mirror, colours (Xie et al. 2021, section
            4.1; share and colours as in the released settings).

    What lies beyond the image is mean colour, label 255. Raises ValueError for an unknown name.
    """
    crop = v2.RandomCrop(size, pad_if_needed=True, fill=FILL)
    mirror = v2.RandomHorizontalFlip(0.5)
    recipes = {
        "none": [CentreCrop(size)],
        "flip": [RandomScale(0.5, 2.0), crop, mirror],
        # PSPNet's order is scale, rotate, blur, mirror, crop. Rotation may swap with scaling, blur and mirror
        # with the crop: the costly steps then meet few pixels, and the whole takes half the time.
        # Its 5x5 blur leaves sigma to OpenCV, which takes 1.1.
        "pspnet": [
            v2.RandomApply([v2.RandomRotation(10, InterpolationMode.BILINEAR, fill=FILL)], p=0.5),
            RandomScale(0.5, 2.0),
            crop,
            v2.RandomApply([v2.GaussianBlur(5, sigma=1.1)], p=0.5),
            mirror,
        ],
        "segformer": [RandomScale(0.5, 2.0), VariedCrop(size), mirror, PhotometricDistortion()],
    }
    if name not in recipes:
        raise ValueError(f"augmentation {name!r} is unknown: choose one of {', '.join(recipes)}")
    return v2.Compose(recipes[name])


def resize(item: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """An Image (bilinear, antialiased) or a Mask (nearest) at another size.

    torchvision's own resize of masks takes the pixel left above the centre, which moves labels by up to half
    a pixel of the coarser grid against the image; "nearest-exact" takes the one at the centre.
    """
    if not isinstance(item, tv_tensors.Mask):
        return F.resize(item, [height, width], antialias=True)
    labels = item.as_subclass(torch.Tensor)[None]
    labels = F.resize_image(labels, [height, width], interpolation=InterpolationMode.NEAREST_EXACT)
    return tv_tensors.wrap(labels[0], like=item)


def resize_short_side(
    image: tv_tensors.Image, mask: tv_tensors.Mask, size: int
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image (3, H, W) and mask (H, W) with the shorter side brought to `size` pixels, proportions kept."""
    height, width = mask.shape
    factor = size / min(height, width)
    shape = round(height * factor), round(width * factor)
    return resize(image, *shape), resize(mask, *shape)


class RandomScale(v2.Transform):
    """Both sides times one factor, drawn evenly from low..high."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list) -> dict:
        factor = torch.empty(()).uniform_(self.low, self.high).item()
        height, width = F.get_size(flat_inputs[0])
        return {"height": max(round(height * factor), 1), "width": max(round(width * factor), 1)}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return resize(inpt, **params)


class CentreCrop(v2.Transform):
    """The middle `size` x `size` pixels; a smaller image is padded evenly."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        height, width = F.get_size(inpt)
        down, across = max(self.size - height, 0), max(self.size - width, 0)
        if down or across:
            around = [across // 2, down // 2, across - across // 2, down - down // 2]
            inpt = F.pad(inpt, around, fill=FILL[type(inpt)])
        return F.center_crop(inpt, [self.size, self.size])


class VariedCrop(v2.RandomCrop):
    """A random crop, drawn anew up to `tries` times while one class holds `share` or more of its labels."""

    def __init__(self, size: int, share: float = SHARE, tries: int = TRIES):
        super().__init__(size, pad_if_needed=True, fill=FILL)
        self.share, self.tries = share, tries

    def make_params(self, flat_inputs: list) -> dict:
        mask = next(item for item in flat_inputs if isinstance(item, tv_tensors.Mask))
        for _ in range(self.tries):
            params = super().make_params(flat_inputs)
            labels = self.transform(mask, params).as_subclass(torch.Tensor)
            counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
            if counts.max() < self.share * counts.sum():
                break
        return params


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue of an image (3, H, W) uint8, each changed half of the time.

    Brightness moves by up to 32 of 255, contrast and saturation are multiplied by 0.5-1.5, hue turns by up to
    36 degrees (18 of OpenCV's 180 steps); contrast comes before or after those two by chance. Source:
    SSD (Liu et al. 2016), with the numbers of SegFormer's released settings. Each step takes images (..., 3, H, W)
    in 0..1 and an amount, one for all or (B, 1, 1, 1).
    """

    def make_params(self, flat_inputs: list) -> dict:
        def draw(low: float, high: float) -> float | None:
            return torch.empty(()).uniform_(low, high).item() if torch.rand(()) < 0.5 else None

        steps = {name: draw(*limits) for name, limits in COLOURS.items()}
        late = torch.rand(()) < 0.5
        order = ["brightness", "saturation", "hue", "contrast"] if late else list(steps)
        return {"steps": [(name, steps[name]) for name in order if steps[name] is not None]}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if isinstance(inpt, tv_tensors.Mask) or not params["steps"]:
            return inpt
        image = inpt.as_subclass(torch.Tensor).float() / 255
        for name, amount in params["steps"]:
            image = getattr(self, name)(image, amount).clamp(0, 1)
        return tv_tensors.wrap((image * 255).round().to(torch.uint8), like=inpt)

    @staticmethod
    def brightness(image: torch.Tensor, amount: float) -> torch.Tensor:
        return image + amount

    @staticmethod
    def contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
        return image * factor

    @staticmethod
    def saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
        """Scale S of HSV: every channel moves from or to the largest one, at most until the smallest is 0."""
        low, high = image.aminmax(dim=-3, keepdim=True)
        most = high / (high - low).clamp_min(1e-6)
        return high - torch.clamp(most, max=factor) * (high - image)

    @staticmethod
    def hue(image: torch.Tensor, turn: float) -> torch.Tensor:
        """Turn H of HSV: the largest and the smallest channel's values stay, and pass on to other channels."""
        low, high = image.aminmax(dim=-3, keepdim=True)
        spread = high - low
        red, green, blue = image.split(1, dim=-3)
        difference = torch.where(high == red, green - blue, torch.where(high == green, blue - red, red - green))
        sixth = torch.where(high == red, 0, torch.where(high == green, 2, 4))
        hue = sixth + difference / spread.clamp_min(1e-6) + 6 * turn  # in sixths of the circle: red, yellow, green, ...
        distance = (hue + torch.arange(5, 0, -2, device=image.device).view(3, 1, 1)) % 6
        return high - spread * torch.minimum(distance, 4 - distance).clamp(0, 1)
