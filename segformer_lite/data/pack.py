"""A data set at one base size in two flat files: training maps them into memory and decodes no picture any more."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors
from tqdm.auto import tqdm

from ..files import writing
from ..threads import in_threads
from .base import IGNORE_INDEX, SegmentationDataset, choose, require_split
from .transforms import resize_short_side

INDEX, IMAGES, LABELS, JOURNAL = "pack.json", "images.bin", "labels.bin", "journal.jsonl"
FORMAT = 1
LARGEST = 4096  # px, a short side that no training asks for


class PackedSegmentation(SegmentationDataset):
    """The items of another data set as `pack_dataset` left them: resized, uint8, one behind the other.

    Images are (3, H, W) each in images.bin, label maps (H, W) in labels.bin; pack.json tells classes, palette, and
    of each picture its split, name, height, width and checksum. Labels have the base size as well: figures at their
    own resolution need the source. `image_paths` are the names alone.

    Args:
        root: folder that `pack_dataset` wrote.
        split: "train" or "val".
        limit: at most this many images, chosen by `seed`, the same as the source's own `limit` chooses.

    Raises FileNotFoundError or ValueError where files are missing, damaged or of another size than pack.json says.
    """

    def __init__(self, root: str | Path, split: str = "train", limit: int | None = None, seed: int = 0):
        require_split(split)
        self.root = Path(root)
        index = read_index(self.root)
        self.classes, self.palette = index["classes"], np.array(index["palette"], dtype=np.uint8)
        starts = np.cumsum([0] + [picture["height"] * picture["width"] for picture in index["pictures"]])
        places = [place for place, picture in enumerate(index["pictures"]) if picture["split"] == split]
        if not places:
            raise ValueError(f"{self.root} holds no picture of the split {split!r}: pack the source again")
        places = choose(places, limit, seed)
        self.pictures = [index["pictures"][place] for place in places]
        self.starts = starts[places]  # in pixels
        self.image_paths = [Path(picture["name"]) for picture in self.pictures]

    @cached_property
    def _maps(self) -> tuple[np.memmap, np.memmap]:
        images, labels = (np.memmap(self.root / name, dtype=np.uint8, mode="r") for name in (IMAGES, LABELS))
        return images, labels

    def __getstate__(self) -> dict:
        """What goes to a loader's worker: it opens the maps itself, where pickling would copy all their bytes."""
        return {key: value for key, value in vars(self).items() if key != "_maps"}

    def _arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.pictures[index]["height"], self.pictures[index]["width"]
        start, end = self.starts[index], self.starts[index] + height * width
        images, labels = self._maps
        return images[3 * start : 3 * end].reshape(3, height, width), labels[start:end].reshape(height, width)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = self._arrays(index)
        return tv_tensors.Image(torch.from_numpy(np.array(image))), tv_tensors.Mask(
            torch.from_numpy(label.astype(np.int64))
        )

    def read_mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of one image."""
        return np.array(self._arrays(index)[1])

    def mask_source(self, index: int) -> Path:
        return self.root / LABELS

    def check(self, index: int) -> None:
        """Raises ValueError where a picture's bytes are not those that were packed."""
        if _checksum(*(array.data for array in self._arrays(index))) != self.pictures[index]["checksum"]:
            raise ValueError(f"{self.root}: the bytes of {self.names[index]} changed after they were packed")


def read_index(root: Path) -> dict:
    """The content of a pack's pack.json, checked against the sizes of the two files beside it.

    Raises FileNotFoundError or ValueError, in one line.
    """
    path, again = root / INDEX, "delete the folder and pack again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder that `segformer-lite data pack` wrote")
    try:
        index = json.loads(path.read_bytes())
        pixels = sum(picture["height"] * picture["width"] for picture in index["pictures"])
        index["format"], index["classes"], index["palette"]  # a foreign file has none of them
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole index of a pack ({error}): {again}") from None
    if index["format"] != FORMAT:
        raise ValueError(f"{path} has format {index['format']}, not {FORMAT}, which this version reads: {again}")
    for name, expected in ((IMAGES, 3 * pixels), (LABELS, pixels)):
        found = (root / name).stat().st_size if (root / name).is_file() else 0
        if found != expected:
            raise ValueError(f"{root / name} holds {found:,} bytes, but {INDEX} tells of {expected:,}: {again}")
    return index


def pack_dataset(source: str | Path, folder: str | Path, size: int = 256, progress: bool = False, **options) -> Path:
    """Write both splits of a data set as a pack, the shorter side of every picture `size` px; gives its folder.

    Arguments: `source` and `options` as for `open_dataset`; `progress`: show a bar. It all goes into
    `<folder>.part`, which becomes `folder` when it is whole: cut anywhere, the same call goes on from there.
    Raises ValueError or OSError in one line for a source that cannot be read, a folder that is taken, a full disk.
    """
    from . import open_dataset

    if not 32 <= size <= LARGEST:
        raise ValueError(f"size is {size}: give a short side of 32 to {LARGEST} px, such as 256 or 512")
    folder = Path(folder)
    sets = {split: open_dataset(source, split, **options) for split in ("train", "val")}
    recipe = {"format": FORMAT, "source": str(source), "options": options, "size": size,
              "ignore_index": IGNORE_INDEX, "classes": sets["train"].classes,
              "palette": sets["train"].palette.tolist()}
    recipe = json.loads(json.dumps(recipe))
    wanted = [(split, number) for split in sets for number in range(len(sets[split]))]
    names = [(split, sets[split].names[number]) for split, number in wanted]
    if folder.exists():
        _require_same(folder, recipe, names)
        return folder

    def load(place: tuple[str, int]) -> tuple[dict, np.ndarray, np.ndarray]:
        split, number = place
        image, label = (item.numpy() for item in resize_short_side(*sets[split][number], size))
        label, (height, width) = label.astype(np.uint8), label.shape
        name, checksum = sets[split].names[number], _checksum(image.data, label.data)
        return {"split": split, "name": name, "height": height, "width": width, "checksum": checksum}, image, label

    part = folder.with_name(folder.name + ".part")
    with writing(part, "the same command goes on from here"):
        pictures = _go_on(part, recipe, names)
        rest = in_threads(load, wanted[len(pictures) :])
        with tqdm(rest, "pack", len(wanted), initial=len(pictures), unit="img", disable=not progress) as bar:
            pictures += _append(part, bar)
        (part / INDEX).write_text(json.dumps({**recipe, "pictures": pictures}), encoding="utf-8")
        os.replace(part, folder)
        (folder / JOURNAL).unlink()
    return folder


def _append(part: Path, items: Iterable[tuple[dict, np.ndarray, np.ndarray]]) -> list[dict]:
    """Add (what is told of it, image, label map) of each picture to the files; gives what is told."""
    told = []
    with (open(part / IMAGES, "ab") as images, open(part / LABELS, "ab") as labels,
          open(part / JOURNAL, "a", encoding="utf-8") as journal):
        for picture, image, label in items:
            images.write(image.data)
            labels.write(label.data)
            images.flush()
            labels.flush()
            journal.write(json.dumps(picture) + "\n")  # last, so that what it tells of is there
            journal.flush()
            told.append(picture)
        os.fsync(images.fileno())
        os.fsync(labels.fileno())
    return told


def _checksum(image: bytes | memoryview, label: bytes | memoryview) -> int:
    return zlib.crc32(label, zlib.crc32(image))


def _go_on(part: Path, recipe: dict, names: list[tuple[str, str]]) -> list[dict]:
    """The pictures that an earlier call packed after the same recipe; what came after the last whole one is cut off."""
    part.mkdir(parents=True, exist_ok=True)
    journal = part / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    header = json.dumps(recipe).encode() + b"\n"
    if lines[:1] != [header] or not all((part / name).is_file() for name in (IMAGES, LABELS)):
        shutil.rmtree(part)
        part.mkdir()
        for name in (IMAGES, LABELS):
            (part / name).touch()
        journal.write_bytes(header)
        return []
    pictures, pixels, written = [], 0, len(header)
    with open(part / IMAGES, "rb") as images, open(part / LABELS, "rb") as labels:
        for line, (split, name) in zip(lines[1:], names, strict=False):
            if not line.endswith(b"\n"):  # cut in the middle
                break
            picture = json.loads(line)
            area = picture["height"] * picture["width"]
            checksum = _checksum(images.read(3 * area), labels.read(area))
            if (picture["split"], picture["name"], picture["checksum"]) != (split, name, checksum):
                break
            pictures.append(picture)
            pixels, written = pixels + area, written + len(line)
    for path, length in ((part / IMAGES, 3 * pixels), (part / LABELS, pixels), (journal, written)):
        os.truncate(path, length)
    return pictures


def _require_same(folder: Path, recipe: dict, names: list[tuple[str, str]]) -> None:
    """Raises ValueError where a folder holds anything but the very pack that is to be written."""
    try:
        index = read_index(folder)
        same = {key: index.get(key) for key in recipe} == recipe
        same = same and [(picture["split"], picture["name"]) for picture in index["pictures"]] == names
    except (ValueError, FileNotFoundError):
        same = False
    if not same:
        raise ValueError(f"{folder} is there already and is not this pack: delete it, or choose another folder")

