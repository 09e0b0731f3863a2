"""One's own images and masks in two folders."""

from collections import Counter
from pathlib import Path

import numpy as np

from .base import (
    IGNORE_INDEX,
    IMAGE_SUFFIXES,
    SegmentationDataset,
    choose,
    default_palette,
    divide,
    open_picture,
    require_files,
    require_split,
)


class FolderSegmentation(SegmentationDataset):
    """Pictures with masks of class ids: `images/cat.jpg` belongs to `masks/cat.png`.

    Args:
        root: folder with `images/`, `masks/` (PNG, one class id per pixel, 255 for "not labelled") and
            `classes.txt` (a name per line, the first is background, id 0). `train.txt` or `val.txt`, a name
            per line, decide the split; with one of them alone, the other side is the rest.
        split: "train" or "val".
        val_share: without lists, this share of the images is "val", drawn by `seed`.
        limit: at most this many images, chosen by `seed`.

    Raises FileNotFoundError for missing folders or masks, ValueError for class names, lists or mask values
    that do not fit together.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        val_share: float = 0.2,
        seed: int = 0,
        limit: int | None = None,
    ):
        require_split(split)
        root = Path(root)
        self.classes = read_classes(root / "classes.txt")
        self.palette = default_palette(len(self.classes))
        for folder in (root / "images", root / "masks"):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} does not exist: expected images/, masks/ and classes.txt in {root}")
        images = sorted(path for path in (root / "images").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        twice = [stem for stem, count in Counter(path.stem for path in images).items() if count > 1]
        if twice:
            raise ValueError(f"{root / 'images'} has several images named {twice[0]!r}: each needs a name of its own")
        images = choose(_divide(root, images, split, val_share, seed), limit, seed)
        if not images:
            raise ValueError(f"{root} has no image for split {split!r}: expected pictures in images/")
        self.image_paths = images
        self.mask_paths = [root / "masks" / f"{path.stem}.png" for path in images]
        require_files(self.mask_paths, "masks", "expected a PNG of class ids with the image's name")

    def mask_source(self, index: int) -> Path:
        return self.mask_paths[index]

    def read_mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of one image, its values checked against the classes."""
        path = self.mask_paths[index]
        picture = open_picture(path)
        if picture.mode not in ("L", "P", "1"):
            raise ValueError(
                f"{path} is a picture of mode {picture.mode}: save class ids as 8-bit grey (L) or palette (P)"
            )
        mask = np.array(picture, dtype=np.uint8)
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        foreign = [int(value) for value in values if len(self.classes) <= value != IGNORE_INDEX]
        if foreign:
            last = len(self.classes) - 1
            raise ValueError(f"{path} holds the value {foreign[0]}: classes.txt allows 0..{last}, and 255 for no label")
        return mask


def read_classes(path: Path) -> list[str]:
    """Class names, one per line of a text file, empty lines left out."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a class name per line, the first for background")
    names = _lines(path)
    if not 2 <= len(names) <= IGNORE_INDEX or len(set(names)) < len(names):
        count = f"{len(names)} names, {len(set(names))} of them different"
        raise ValueError(f"{path} has {count}: expected 2 to 255, each once")
    return names


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None


def _divide(root: Path, images: list[Path], split: str, val_share: float, seed: int) -> list[Path]:
    """The images of a split: as train.txt and val.txt say, else drawn by seed."""
    lists = {name: root / f"{name}.txt" for name in ("train", "val")}
    listed = {name: _listed(path, images) for name, path in lists.items() if path.is_file()}
    if not listed:
        return [images[i] for i in divide(len(images), val_share, seed)[split == "val"]]
    shared = set.intersection(*listed.values()) if len(listed) == 2 else ()
    if shared:
        raise ValueError(f"{min(shared).name} is in both train.txt and val.txt of {root}: a test image must be unseen")
    if split in listed:
        return sorted(listed[split])
    return [path for path in images if path not in next(iter(listed.values()))]


def _listed(path: Path, images: list[Path]) -> set[Path]:
    """The images that a list names, with or without suffix."""
    by_name = {key: image for image in images for key in (image.name, image.stem)}
    names = _lines(path)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"{path} names {len(unknown)} images that are not in images/, first {unknown[0]!r}")
    return {by_name[name] for name in names}
