"""What a data set's folder holds, what of it is broken, and what to do: every picture read as training reads it."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..threads import in_threads
from . import layout_of
from .base import IMAGE_SUFFIXES, SegmentationDataset
from .chest_ct import ChestCT, picture_folder, read_pairs
from .coco import CocoSegmentation, files_of, read_instances
from .download.coco import RECIPE
from .folder import FolderSegmentation, read_classes
from .pack import PackedSegmentation

SHOWN = 10  # broken files that are listed by name


@dataclass(frozen=True)
class Row:
    """One kind of thing in a folder: how many of it are whole, what is wrong with the others, and what to do."""

    what: str
    whole: int
    broken: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Verification:
    """The rows of a folder's table; `print` shows it."""

    folder: Path
    layout: str
    rows: list[Row]

    @property
    def broken(self) -> list[str]:
        """Everything that is wrong, one line each."""
        return [line for row in self.rows for line in row.broken]

    def __str__(self) -> str:
        width = max(len(row.what) for row in self.rows)
        table = [f"{self.folder}: {self.layout}", f"{'':{width}}  {'whole':>9}  {'broken':>7}  what to do"]
        for row in self.rows:
            table.append(f"{row.what:{width}}  {row.whole:9,}  {len(row.broken):7,}  {row.advice}".rstrip())
        more = len(self.broken) - SHOWN
        listed = ["", *self.broken[:SHOWN], *([f"… and {more:,} more"] if more > 0 else [])] if self.broken else []
        return "\n".join(table + listed)


def verify(folder: str | Path, progress: bool = False) -> Verification:
    """Read all of a data set (COCO, chest CT, one's own folder, or a pack) and say what is there and what is broken.

    Raises FileNotFoundError for a missing folder, ValueError for one of no known layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: give the folder of a data set")
    kind: type = CocoSegmentation if (folder / RECIPE).is_file() else layout_of(folder)  # its download may be cut
    layout, read_all = LAYOUTS[kind]
    rows = list(read_all(folder, progress))
    if not any(row.broken for row in rows):
        rows += [_attempt(f"opens as {split}", lambda split=split: kind(folder, split)) for split in ("train", "val")]
    return Verification(folder, layout, rows)


def _coco(root: Path, progress: bool) -> Iterator[Row]:
    again, chosen = "fetch them again, or mend the file", {}
    if (root / RECIPE).is_file():
        try:
            recipe = json.loads((root / RECIPE).read_bytes())
            again, chosen = f"run again: {_command(recipe, root)}", recipe["chosen"]
        except (ValueError, KeyError, TypeError):
            yield Row(RECIPE, 0, (f"{root / RECIPE} is damaged",), "run `segformer-lite data coco` again as before")
    for split in ("train", "val"):
        path, pictures = files_of(root, split)
        if not path.is_file():
            if split in chosen or pictures.is_dir():
                yield Row(f"{split} annotations", 0, (f"{path} does not exist",), again)
            continue
        if not pictures.is_dir() and split not in chosen:
            yield Row(f"{split} annotations", 1, advice=f"not used: there is no {pictures.name}/")
            continue
        try:
            content = read_instances(path)
        except ValueError as error:
            yield Row(f"{split} annotations", 0, (str(error),), again)
            continue
        yield Row(f"{split} annotations", 1)
        yield _read(f"{split} pictures", _coco_unchecked(path, pictures, content), again, progress)
        lacking = chosen.get(split, 0) - len(content["images"])
        if lacking > 0:
            yield Row(f"{split} choice", len(content["images"]), (f"{path} lacks {lacking} chosen pictures",), again)


def _command(recipe: dict, root: Path) -> str:
    """The command that made, or began, a part of COCO."""
    number = f"--images {recipe['images']} " if recipe["images"] else ""
    classes = f'--classes "{",".join(recipe["classes"])}" ' if recipe["classes"] else ""
    rest = f"--split {recipe['split']} {classes}--seed {recipe['seed']}"
    return f"segformer-lite data coco {number}{rest} --out {root}"


def _coco_unchecked(path: Path, pictures: Path, content: dict) -> SegmentationDataset:
    annotations: dict[int, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    return _unchecked(
        CocoSegmentation,
        json_path=path,
        images=content["images"],
        annotations=list(annotations.values()),
        image_paths=[pictures / image["file_name"] for image in content["images"]],
        label_of_category={c["id"]: label for label, c in enumerate(content["categories"], start=1)},
        cache=None,
    )


def _chest_ct(root: Path, progress: bool) -> Iterator[Row]:
    try:
        pairs = read_pairs(root / "train.csv")
        images, masks = picture_folder(root, "images"), picture_folder(root, "masks")
    except (ValueError, FileNotFoundError) as error:
        yield Row("train.csv", 0, (str(error),), "unpack the zip again: segformer-lite data chest-ct --zip FILE")
        return
    yield Row("train.csv", 1)
    slices = _unchecked(
        ChestCT,
        threshold=127,
        image_paths=[images / image for image, _ in pairs],
        mask_paths=[masks / mask for _, mask in pairs],
    )
    advice = f"delete what is damaged, then: segformer-lite data chest-ct --zip FILE --out {root}"
    yield _read("images with mask", slices, advice, progress)
    on_disk = {name for name in os.listdir(images) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    without = on_disk.difference(image for image, _ in pairs)
    advice = "nothing: train.csv names no mask for them" if without else ""
    yield Row("images without mask", len(without), advice=advice)


def _own(root: Path, progress: bool) -> Iterator[Row]:
    try:
        classes = read_classes(root / "classes.txt")
        listed = {name: sorted((root / name).iterdir()) for name in ("images", "masks")}
    except (ValueError, FileNotFoundError) as error:
        yield Row("classes.txt, images/, masks/", 0, (str(error),), "data/README.md shows how the folder should look")
        return
    yield Row("classes", len(classes))
    pictures = [path for path in listed["images"] if path.suffix.lower() in IMAGE_SUFFIXES]
    masks = [root / "masks" / f"{path.stem}.png" for path in pictures]
    own = _unchecked(FolderSegmentation, classes=classes, image_paths=pictures, mask_paths=masks)
    yield _read("images with mask", own, "export them again", progress)
    alone = set(listed["masks"]).difference(masks)
    yield Row("masks without image", len(alone), advice="not used: each needs an image of its name" if alone else "")


def _pack(root: Path, progress: bool) -> Iterator[Row]:
    again = "delete the folder and pack again"
    for split in ("train", "val"):
        try:
            packed = PackedSegmentation(root, split)
        except (ValueError, FileNotFoundError) as error:
            yield Row(split, 0, (str(error),), again)
        else:
            yield _read(split, packed, again, progress, packed.check)


LAYOUTS: dict[type, tuple[str, Callable[[Path, bool], Iterator[Row]]]] = {
    PackedSegmentation: ("pack", _pack),
    CocoSegmentation: ("COCO", _coco),
    ChestCT: ("chest CT", _chest_ct),
    FolderSegmentation: ("images and masks", _own),
}


def _unchecked(kind: type[SegmentationDataset], **contents) -> SegmentationDataset:
    """A data set over files that may be missing or broken, where its own constructor would stop at the first."""
    dataset = object.__new__(kind)
    vars(dataset).update(contents)
    return dataset


def _read(what: str, dataset: SegmentationDataset, advice: str, progress: bool, read: Callable | None = None) -> Row:
    """Read every item, or what `read` reads of its index; pictures are decoded by several threads."""
    read = read or dataset.__getitem__

    def complaint(index: int) -> str | None:
        try:
            read(index)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return None

    said = in_threads(complaint, range(len(dataset)))
    broken = tuple(filter(None, tqdm(said, total=len(dataset), unit="img", desc=what, disable=not progress)))
    return Row(what, len(dataset) - len(broken), broken, advice if broken else "")


def _attempt(what: str, action) -> Row:
    try:
        return Row(what, len(action()))
    except (ValueError, FileNotFoundError) as error:
        return Row(what, 0, (str(error),), "see below")
