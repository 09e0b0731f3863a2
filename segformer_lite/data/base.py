"""What every data set of the package has in common: classes, colours, splits, and pictures read with care."""

import os
import struct
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors

IGNORE_INDEX = 255
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def course_folder() -> Path:
    """The folder that data/ and runs/ belong to: the nearest one above here that holds course.py, else this one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "course.py").is_file()), here)


def runs_folder() -> Path:
    """Where trained networks go: SEGFORMER_LITE_RUNS, else runs/ of the course's folder."""
    return Path(os.environ.get("SEGFORMER_LITE_RUNS") or course_folder() / "runs")


class SegmentationDataset(Dataset, ABC):
    """Images with a class per pixel: `dataset[i]` is (Image uint8 (3, H, W), Mask int64 (H, W)).

    A data set fills in `classes` (index = label, 0 is background), `palette` (K, 3) uint8 and `image_paths`,
    and says in `read_mask(i)` how its label map (H, W) uint8 is made. Pixels of label 255 count nowhere.
    """

    classes: list[str]
    palette: np.ndarray
    image_paths: list[Path]
    ignore_index = IGNORE_INDEX

    @cached_property
    def names(self) -> list[str]:
        """The file name of every image, for messages and reports."""
        return [path.name for path in self.image_paths]

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        path = self.image_paths[index]
        mask = self.read_mask(index)
        height, width = mask.shape
        image = read_image(path, size=(width, height), size_from=self.mask_source(index))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(mask.astype(np.int64)))

    @abstractmethod
    def read_mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of one image."""

    @abstractmethod
    def mask_source(self, index: int) -> Path:
        """The file that the label map of one image comes from, for messages."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.classes)} classes)"


def open_picture(path: Path) -> Image.Image:
    """The decoded picture of a file, in whatever mode it was stored.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged or no picture.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except UNREADABLE as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "is no picture" if unknown else f"cannot be decoded ({error})"
        raise ValueError(f"{path} {reason}: if it is damaged or cut short, fetch or export it again") from None


def read_image(
    path: Path, size: tuple[int, int] | None = None, size_from: Path | str = "its mask"
) -> Image.Image:
    """An RGB picture as a person would see it, from grey, CMYK, palette, transparent, 16-bit, turned files.

    `size` is the (width, height) that the labels were drawn on. Cameras store a turned picture plus a note
    (EXIF) to turn it back. Labels are nearly always drawn on the upright picture, but some tools ignore the
    note; so the upright picture is taken unless only the stored one has the labels' size.

    Raises FileNotFoundError, or ValueError for an unreadable file or one whose size is not `size`.
    """
    stored = open_picture(path)
    try:
        upright = ImageOps.exif_transpose(stored)
    except UNREADABLE:
        upright = stored  # the note is damaged, the picture is not
    picture = stored if size and upright.size != size == stored.size else upright
    if size and picture.size != size:
        seen, wanted = "{}x{}".format(*picture.size), "{}x{}".format(*size)
        raise ValueError(f"{path} is {seen} pixels but {size_from} is {wanted}: the labels belong to another picture")
    return to_rgb(picture, path)


def to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """A picture of any mode as RGB; where it is transparent it shows white, as on a page."""
    if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips all above 255 to white
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path} holds values outside 0..65535: save it as an 8- or 16-bit picture")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError(f"{path} holds floating-point values: save it as an 8- or 16-bit picture")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def divide(count: int, val_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices 0..count-1 divided at random into (train, val), in order; of two or more, neither is empty."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}: give a share between 0 and 1")
    order = np.random.default_rng(seed).permutation(count)
    val_count = min(max(round(count * val_share), 1), count - 1)
    return sorted(order[val_count:].tolist()), sorted(order[:val_count].tolist())


def choose(items: list, limit: int | None, seed: int) -> list:
    """At most `limit` of the items, drawn at random, in order; a larger limit keeps a smaller's choice."""
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"limit is {limit}: give a count of at least 1, or None for all")
    chosen = np.random.default_rng(seed).permutation(len(items))[:limit]
    return [items[i] for i in sorted(chosen.tolist())]


def require_split(split: str) -> None:
    """Raises ValueError where `split` is neither "train" nor "val"."""
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r} is unknown: choose 'train' or 'val'")


def require_files(paths: list[Path], what: str, advice: str) -> None:
    """Raises FileNotFoundError, with a count and the first path, where files are missing on disk."""
    folders = {path.parent for path in paths}  # one listing a folder, not one question a file
    on_disk = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    missing = [path for path in paths if path.name not in on_disk[path.parent]]
    if missing:
        count = f"{len(missing)} of {len(paths)}"
        raise FileNotFoundError(f"{count} {what} missing, first {missing[0]}: {advice}")


# Okabe and Ito (2008): seven colours that people with and without colour-blindness tell apart.
OKABE_ITO = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
BACKGROUND = (40, 40, 40)


def default_palette(count: int) -> np.ndarray:
    """Colours (count, 3) uint8: dark grey, Okabe and Ito's seven, then each time the one farthest from all.

    Distance is the smallest of three: as seen with full colour vision, without red and without green cones.
    """
    steps = np.linspace(0, 255, 10).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    views = _appearance(candidates)
    light = views[0, :, 0] > 0.5  # darker ones look like background
    candidates, views = candidates[light], views[:, light]
    colours = [BACKGROUND, *OKABE_ITO][:count]
    taken = np.array([*colours, (255, 255, 255)], dtype=float)  # white stays free for "not labelled"
    gap = _distance(views, _appearance(taken)).min(axis=1)
    while len(colours) < count:
        farthest = gap.argmax()
        colours.append(tuple(candidates[farthest]))
        gap = np.minimum(gap, _distance(views, views[:, farthest : farthest + 1])[:, 0])
    return np.array(colours, dtype=np.uint8)


def _appearance(colours: np.ndarray) -> np.ndarray:
    """sRGB colours (n, 3) as Oklab coordinates (3, n, 3) under normal, protan and deutan vision.

    Sources: Viénot, Brettel and Mollon (1999) for the missing cones, Ottosson (2020) for Oklab.
    """
    level = colours / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    protan = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
    deutan = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    seen = np.stack([linear @ np.transpose(vision) for vision in (np.eye(3), protan, deutan)]).clip(0, 1)
    return np.cbrt(seen @ np.transpose(to_cones)) @ np.transpose(to_lab)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances (n, m) between colours (3, n, 3) and (3, m, 3): the smallest of the three kinds of vision."""
    return np.linalg.norm(a[:, :, None] - b[:, None, :], axis=-1).min(axis=0)
