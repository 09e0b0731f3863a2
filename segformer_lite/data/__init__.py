"""Data sets that give (image, label map) pairs, a synthetic sample of each, and the augmentation."""

import inspect
import os
from pathlib import Path

from .base import SegmentationDataset, course_folder, default_palette, read_image, runs_folder
from .batch_transforms import BatchAugmentation
from .chest_ct import ChestCT
from .coco import CocoSegmentation
from .folder import FolderSegmentation
from .pack import INDEX, PackedSegmentation, pack_dataset
from .sample import make_sample
from .transforms import augmentation, resize_short_side

__all__ = [
    "BatchAugmentation",
    "ChestCT",
    "CocoSegmentation",
    "FolderSegmentation",
    "PackedSegmentation",
    "SegmentationDataset",
    "augmentation",
    "course_folder",
    "default_palette",
    "layout_of",
    "make_sample",
    "named_folder",
    "open_dataset",
    "pack_dataset",
    "read_image",
    "resize_short_side",
    "runs_folder",
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
            live under SEGFORMER_LITE_DATA, else in data/ of the course's folder.
        split: "train" or "val".
        options: what the data set takes besides: `CocoSegmentation`, `ChestCT`, `FolderSegmentation` or
            `PackedSegmentation`.

    Raises FileNotFoundError for a missing folder, ValueError for one of no known layout or an option it lacks.
    """
    name = data if isinstance(data, str) and data in NAMED else ""
    folder = named_folder(name) if name else Path(data)
    if name.startswith("sample-") and not folder.exists():
        make_sample(folder.name, folder)
    if not folder.is_dir():
        advice = "data/README.md says how to get it" if name else f"give a folder or one of {', '.join(NAMED)}"
        raise FileNotFoundError(f"{folder} does not exist: {advice}")
    kind: type = layout_of(folder)
    known = list(inspect.signature(kind).parameters)[2:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{folder} opens as {kind.__name__}, which has no {unknown[0]!r}: it takes {', '.join(known)}")
    return kind(folder, split, **options)


def layout_of(folder: Path) -> type[SegmentationDataset]:
    """The data set that reads what a folder holds. Raises ValueError where none does."""
    if (folder / INDEX).is_file():
        return PackedSegmentation
    if any(folder.glob("annotations/instances_*.json")):
        return CocoSegmentation
    if (folder / "train.csv").is_file():
        return ChestCT
    if (folder / "classes.txt").is_file():
        return FolderSegmentation
    raise ValueError(
        f"{folder} has no layout known here: expected annotations/instances_*.json (COCO), "
        "train.csv (chest CT), classes.txt with images/ and masks/, or pack.json"
    )
