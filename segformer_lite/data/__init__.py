"""Data sets that give (image, label map) pairs, a synthetic sample of each, and the augmentation."""

import os
from pathlib import Path

from .base import SegmentationDataset, course_folder, default_palette, read_image
from .chest_ct import ChestCT
from .coco import CocoSegmentation
from .folder import FolderSegmentation
from .sample import make_sample
from .transforms import augmentation, resize_short_side

__all__ = [
    "ChestCT",
    "CocoSegmentation",
    "FolderSegmentation",
    "SegmentationDataset",
    "augmentation",
    "course_folder",
    "default_palette",
    "make_sample",
    "named_folder",
    "open_dataset",
    "read_image",
    "resize_short_side",
]

NAMED = {
    "sample-coco": "sample/coco",
    "sample-chest-ct": "sample/chest_ct",
    "coco": "coco",
    "chest_ct": "chest_ct",
}


def named_folder(name: str) -> Path:
    """Where the data set of a name lives: under SEGFORMER_LITE_DATA, else under data/ of the course's folder."""
    return Path(os.environ.get("SEGFORMER_LITE_DATA") or course_folder() / "data") / NAMED[name]


def open_dataset(data: str | Path, split: str = "train", **options) -> SegmentationDataset:
    """The data set of a folder, its layout recognised, or of a name.

    Args:
        data: a folder, or "sample-coco", "sample-chest-ct" (made on first use), "coco", "chest_ct": these
            live under SEGFORMER_LITE_DATA, else ./data.
        split: "train" or "val".
        options: what the data set takes besides: `CocoSegmentation`, `ChestCT` or `FolderSegmentation`.

    Raises FileNotFoundError for a missing folder, ValueError for one of no known layout.
    """
    named = isinstance(data, str) and data in NAMED
    folder = named_folder(data) if named else Path(data)
    if named and data.startswith("sample-") and not folder.exists():
        make_sample(folder.name, folder)
    if not folder.is_dir():
        advice = "data/README.md says how to get it" if named else f"give a folder or one of {', '.join(NAMED)}"
        raise FileNotFoundError(f"{folder} does not exist: {advice}")
    if any(folder.glob("annotations/instances_*.json")):
        return CocoSegmentation(folder, split, **options)
    if (folder / "train.csv").is_file():
        return ChestCT(folder, split, **options)
    if (folder / "classes.txt").is_file():
        return FolderSegmentation(folder, split, **options)
    raise ValueError(
        f"{folder} has no layout known here: expected annotations/instances_*.json (COCO), "
        "train.csv (chest CT), or classes.txt with images/ and masks/"
    )
