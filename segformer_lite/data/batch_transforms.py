"""The recipes of `augmentation` on whole batches, on any device: the same steps in the same order, all at once.

Scaling, cropping and mirroring together say from where in its picture each pixel of the crop comes, and how wide it
looks: as wide as it must to be antialiased, exactly as the resizing of single pictures does. So with the same angle,
factor, place and colours a batch holds what `augmentation` gives picture by picture, but for roundings by 1 of 255 and
for the outermost pixels of a turned picture.
All chance is in one row of numbers for each picture: what becomes of it depends on no other picture of the batch.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from .base import IGNORE_INDEX
from .transforms import COLOURS, MEAN_COLOUR, SHARE, TRIES, PhotometricDistortion, augmentation

STEPS = {
    "none": (),
    "flip": ("scale", "mirror"),
    "pspnet": ("rotate", "scale", "blur", "mirror"),
    "segformer": ("scale", "vary", "mirror", "colours"),
}
TAPS = 5  # pixels that one is made of along an axis, when a picture shrinks to half
CHANCES = 6 + 2 * len(COLOURS) + 2 * TRIES


def chances(seed: int) -> Tensor:
    """The numbers (CHANCES,) in [0, 1) that decide over one picture."""
    return torch.rand(CHANCES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_canvas(items: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (3, h, w), labels (h, w) and chances as the arguments of `BatchAugmentation`, each in the top left
    corner of a canvas that is large enough for all."""
    images, labels, rows = zip(*items, strict=True)
    sizes = torch.tensor([label.shape for label in labels])
    height, width = sizes.amax(dim=0).tolist()
    image_canvas = torch.zeros(len(items), 3, height, width, dtype=torch.uint8)
    label_canvas = torch.zeros(len(items), height, width, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes.tolist()):
        image_canvas[i, :, :h, :w] = images[i]
        label_canvas[i, :h, :w] = labels[i]
    return image_canvas, label_canvas, sizes, torch.stack(rows)


class BatchAugmentation:
    """The recipe `name` of `augmentation` for batches: crops of `size` x `size` pixels.

    Raises ValueError for an unknown name.
    """

    def __init__(self, name: str, size: int):
        augmentation(name, size)  # complains of a name it does not know
        self.steps, self.size = STEPS[name], size

    def __call__(self, images: Tensor, labels: Tensor, sizes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Crops uint8 (B, 3, size, size) and their labels int64 (B, size, size).

        Arguments: `images` uint8 (B, 3, H, W) and `labels` uint8 (B, H, W), canvases that hold a picture each;
        `sizes` (B, 2): its height and width in px; `rows` (B, CHANCES): its `chances`. All on one device.
        """
        turn, angle, factor, soft, mirrored, late, *_ = rows.unbind(dim=1)
        amounts, places = rows[:, 6 : 6 + 2 * len(COLOURS)], rows[:, 6 + 2 * len(COLOURS) :].unflatten(1, (TRIES, 2))
        if "rotate" in self.steps:
            images, labels = rotate(images, labels, sizes, torch.where(turn < 0.5, 20 * angle - 10, 0))
        scaled = sizes
        if "scale" in self.steps:
            scaled = (sizes * (0.5 + 1.5 * factor[:, None])).round().clamp(min=1).long()
        corners = self.corners(scaled, places)
        corner = self.varied(corners, labels, sizes, scaled) if "vary" in self.steps else corners[:, 0]
        mirrored = (mirrored < 0.5) & ("mirror" in self.steps)
        lines = self.lines(sizes, scaled, corner, mirrored)
        images, labels = crop_images(images, sizes, scaled, *lines), crop_labels(labels, *lines)
        if "blur" in self.steps:
            images = torch.where((soft < 0.5)[:, None, None, None], blur(images), images)
        if "colours" in self.steps:
            images = distort(images, amounts, late < 0.5)
        return images, labels.long()

    def corners(self, scaled: Tensor, places: Tensor) -> Tensor:
        """Top left corners (B, TRIES, 2) of crops in the scaled picture; a smaller one lies anywhere in its crop."""
        room = scaled[:, None] - self.size
        if not self.steps:  # the centre, as `CentreCrop` takes it
            return torch.where(room < 0, -((-room).div(2, rounding_mode="floor")), (room / 2).round().long())
        return room.clamp(max=0) + (places * (room.abs() + 1)).long()

    def varied(self, corners: Tensor, labels: Tensor, sizes: Tensor, scaled: Tensor) -> Tensor:
        """Of each picture's corners the first (B, 2) where no class holds SHARE of the labelled pixels, or the last."""
        as_is = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        fine, chosen = as_is, corners[:, 0]
        for corner in corners.unbind(dim=1):
            chosen = torch.where(fine[:, None], chosen, corner)
            found = crop_labels(labels, *self.lines(sizes, scaled, chosen, as_is)).flatten(1).long()
            counts = torch.zeros(len(found), IGNORE_INDEX + 1, device=found.device)
            counts = counts.scatter_add(1, found, torch.ones_like(found, dtype=counts.dtype))[:, :IGNORE_INDEX]
            fine = counts.amax(dim=1) < SHARE * counts.sum(dim=1)
        return chosen

    def lines(self, sizes: Tensor, scaled: Tensor, corner: Tensor, mirrored: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For the crop's rows, then its columns: where their centres lie in the picture (B, size), in px, and whether
        they lie in it at all."""
        count = torch.arange(self.size, device=sizes.device).expand(len(sizes), -1)
        found = []
        for axis, line in enumerate((count, torch.where(mirrored[:, None], count.flip(1), count))):
            length, steps = sizes[:, axis, None], scaled[:, axis, None]
            line = line + corner[:, axis, None]
            inside = (line >= 0) & (line < steps)
            line = torch.minimum(line.clamp(min=0), steps - 1)
            found.append(((line + 0.5) * (length.double() / steps), inside))
        return found


def crop_labels(labels: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """The label at each place (B, size, size), 255 outside the picture."""
    (y, in_rows), (x, in_columns) = rows, columns
    picture = torch.arange(len(labels), device=labels.device)[:, None, None]
    taken = labels[picture, y.long()[:, :, None], x.long()[:, None, :]]
    return torch.where(in_rows[:, :, None] & in_columns[:, None, :], taken, IGNORE_INDEX)


def crop_images(images: Tensor, sizes: Tensor, scaled: Tensor, rows: tuple, columns: tuple) -> Tensor:
    """The colour at each place, antialiased where the picture shrinks; mean colour outside the picture."""
    (y, in_rows), (x, in_columns) = rows, columns
    reach = (sizes.double() / scaled).clamp(min=1)
    images = along(2, images, y, reach[:, :1], sizes[:, :1])
    images = along(3, images, x, reach[:, 1:], sizes[:, 1:])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(inside, to_bytes(images), mean_colour(images.device))


def along(axis: int, images: Tensor, centres: Tensor, reach: Tensor, lengths: Tensor) -> Tensor:
    """Images (B, 3, H, W) resampled along one axis: at each centre (B, n) the mean of the pixels nearer than `reach`
    (B, 1), in px, the nearest weighing most. Pixels from `lengths` (B, 1) on are canvas."""
    shape = (len(images), 1, -1, 1) if axis == 2 else (len(images), 1, 1, -1)
    first = (centres - reach + 0.5).floor()
    total = weights = torch.zeros(())
    for tap in range(TAPS):
        place = first + tap
        weight = (1 - (place + 0.5 - centres).abs() / reach).clamp(min=0) * ((place >= 0) & (place < lengths))
        index = place.clamp(0, images.shape[axis] - 1).long().view(shape)
        total = total + weight.float().view(shape) * images.take_along_dim(index, dim=axis)
        weights = weights + weight
    return total / weights.float().view(shape)


def rotate(images: Tensor, labels: Tensor, sizes: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture turned counter-clockwise about its centre within its own frame: images bilinear, labels nearest."""
    height, width = (sizes[:, axis, None, None].float() for axis in (0, 1))
    y = torch.arange(images.shape[2], device=images.device)[:, None] + 0.5
    x = torch.arange(images.shape[3], device=images.device) + 0.5
    picture = ((y < height) & (x < width))[:, None].float()  # 1 there, 0 where the canvas goes on
    cos, sin = (f(torch.deg2rad(degrees)).float()[:, None, None] for f in (torch.cos, torch.sin))
    x, y = x - width / 2, y - height / 2
    x, y = cos * x - sin * y + width / 2, sin * x + cos * y + height / 2  # where each pixel comes from
    places = torch.stack([2 * x / images.shape[3] - 1, 2 * y / images.shape[2] - 1], dim=-1)

    # What lies outside is sampled as 0: no colour and no share of the picture, and of 255 - label, 255.
    turned = grid_sample(torch.cat([images * picture, picture], dim=1), places, align_corners=False)
    total, covered = turned.split((3, 1), dim=1)
    taken = grid_sample((IGNORE_INDEX - labels.float())[:, None] * picture, places, "nearest", align_corners=False)
    turned_labels = (IGNORE_INDEX - taken[:, 0]).to(labels.dtype)
    return to_bytes(total + (1 - covered) * mean_colour(images.device)), turned_labels


def blur(images: Tensor) -> Tensor:
    """A Gaussian of 5 x 5 pixels, sigma 1.1, as the recipe "pspnet" has it."""
    weights = torch.exp(-0.5 * (torch.arange(-2, 3) / 1.1) ** 2)
    weights = (weights / weights.sum()).tolist()
    padded = pad(images.float(), (2, 2, 2, 2), mode="reflect")
    for axis in (2, 3):
        length = images.shape[axis]
        padded = sum(weight * padded.narrow(axis, shift, length) for shift, weight in enumerate(weights))
    return to_bytes(padded)


def distort(images: Tensor, amounts: Tensor, late: Tensor) -> Tensor:
    """The steps of `PhotometricDistortion`; a step that is not drawn gets the amount that changes nothing.

    Arguments: `amounts` (B, 8): for each step, whether (below 0.5) and how much; `late` (B,): contrast comes last.
    """
    drawn, pairs = {}, amounts.unflatten(1, (-1, 2)).unbind(dim=1)
    for (name, (low, high)), pair in zip(COLOURS.items(), pairs, strict=True):
        whether, amount = pair.unbind(dim=1)
        drawn[name] = torch.where(whether < 0.5, low + (high - low) * amount, (low + high) / 2)
    colours = images.float() / 255
    order = ("brightness", "contrast", "saturation", "hue", "contrast")
    for step, name in enumerate(order):
        amount = drawn[name]
        if name == "contrast":
            amount = torch.where(late == (step == 4), amount, 1)
        colours = getattr(PhotometricDistortion, name)(colours, amount.float()[:, None, None, None]).clamp(0, 1)
    return to_bytes(255 * colours)


@cache  # to move it to a GPU anew for every batch would wait for all that the GPU has still to do
def mean_colour(device: torch.device) -> Tensor:
    """The colour of what lies beyond the picture, uint8 (1, 3, 1, 1)."""
    return torch.tensor(MEAN_COLOUR, dtype=torch.uint8, device=device).view(1, 3, 1, 1)


def to_bytes(images: Tensor) -> Tensor:
    """Whole numbers 0..255 from numbers that may lie a little beside or beyond."""
    return images.round().clamp(0, 255).to(torch.uint8)
