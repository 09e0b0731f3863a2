"""A part of COCO 2017: the annotations, and of the photographs only those that were chosen."""

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..base import choose
from ..coco import choose_names, read_instances
from .fetch import (
    BROKEN_ZIP,
    NETWORK,
    Picture,
    Unfetched,
    connect,
    fetch_file,
    fetch_pictures,
    is_there,
    readable,
    reason,
    require_room,
    write,
)

# The project's own host name has no valid certificate; the store behind it has one under the provider's name.
ADDRESSES = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
ARCHIVE = "annotations_trainval2017.zip"
ARCHIVE_BYTES = 252_907_541
PICTURE_BYTES = 163_500  # on average: train2017.zip holds 118,287 pictures in 19,336,861,798 bytes
PICTURES = {"train": 118_287, "val": 5_000}
RECIPE = "subset.json"  # how the pictures of a folder were chosen, and the mark of a folder made here


@dataclass(frozen=True)
class Download:
    """What a download left in `folder`: how many pictures were wanted and fetched, and why others failed, by name."""

    folder: Path
    wanted: int
    fetched: int
    failed: dict[str, str]

    def __str__(self) -> str:
        there = self.wanted - len(self.failed)
        return f"{there:,} of {self.wanted:,} pictures are in {self.folder}, whole; fetched now: {self.fetched:,}"


def download_coco(
    folder: str | Path,
    images: int | None = None,
    split: str = "both",
    classes: list[str] | None = None,
    seed: int = 0,
    *,
    agree: Callable[[str], None] = lambda plan: None,
    progress: bool = False,
    addresses: Sequence[str] = (),
) -> Download:
    """Fetch a part of COCO 2017 that `CocoSegmentation(folder)` opens; what is there already is not fetched again.

    The choice is that of `CocoSegmentation(whole, limit=images, classes=classes, seed=seed)` on the whole set, so
    a larger number keeps a smaller one's. Every picture is decoded and measured before it gets its name.

    Args:
        folder: for annotations/, train2017/, val2017/, the archive of all annotations, and subset.json.
        images: at most this many of each split; None for all that hold an object.
        split: "train", "val" or "both".
        classes: only pictures with an object of these names; their annotations keep all objects.
        agree: called with what is about to be fetched; raises ValueError to prevent it.
        addresses: servers in place of COCO's own; the first that answers is used.

    Pictures that failed are left out of the annotations, and named in the result. Raises ValueError for arguments
    that make no sense, a folder with other annotations, too little room, or servers that do not answer.
    """
    if split not in (*PICTURES, "both"):
        raise ValueError(f"split {split!r} is unknown: choose 'train', 'val' or 'both'")
    if images is not None and images < 1:
        raise ValueError(f"images is {images}: give a count of at least 1")
    folder, addresses = Path(folder), addresses or ADDRESSES
    if any(folder.glob("annotations/instances_*.json")) and not (folder / RECIPE).exists():
        raise ValueError(f"{folder} holds annotations from elsewhere: nothing was changed, choose another folder")

    splits = list(PICTURES) if split == "both" else [split]
    archive = folder / ARCHIVE
    agreed = not archive.exists()
    if agreed:
        most = sum(min(images or PICTURES[name], PICTURES[name]) for name in splits)
        _settle(folder, f"up to {most:,} photographs and the annotations", most * PICTURE_BYTES + ARCHIVE_BYTES, agree)
        folder.mkdir(parents=True, exist_ok=True)
        fetch_file(f"{_answering(addresses)}/annotations/{ARCHIVE}", archive, _require_annotations, progress)

    subsets = {name: choose_subset(archive, name, images, classes, seed) for name in splits}
    pictures = [picture for name in splits for picture in _pictures(subsets[name]["images"], folder / f"{name}2017")]
    missing = [picture for picture in pictures if not is_there(picture)]
    if missing and not agreed:
        what = f"{len(missing):,} of {len(pictures):,} photographs"
        _settle(folder, what, len(missing) * PICTURE_BYTES, agree)
    recipe: dict[str, object] = {"images": images, "split": split, "classes": classes, "seed": seed}
    recipe["chosen"] = {name: len(subset["images"]) for name, subset in subsets.items()}
    write(folder / RECIPE, json.dumps(recipe, indent=1).encode())

    base = _answering(addresses) if missing else ""
    failed = fetch_pictures([p._replace(address=base + p.address) for p in missing], progress)
    for name, subset in subsets.items():
        there = [image for image in subset["images"] if f"{name}2017/{image['file_name']}" not in failed]
        content = json.dumps(keep_images(subset, there))
        write(folder / "annotations" / f"instances_{name}2017.json", content.encode())
    return Download(folder, len(pictures), len(missing) - len(failed), failed)


def choose_subset(archive: Path, split: str, count: int | None, classes: list[str] | None, seed: int) -> dict:
    """The annotations of at most `count` images of a split that hold an object of the classes, drawn by seed."""
    try:
        content = read_instances(zipfile.Path(archive, f"annotations/instances_{split}2017.json"))
    except (*BROKEN_ZIP, FileNotFoundError, KeyError) as error:
        raise ValueError(f"{archive} is damaged ({error}): delete it and run the same command again") from None
    names = [category["name"] for category in content["categories"]]
    chosen = names if classes is None else choose_names(classes, names, archive)
    wanted = {category["id"] for category in content["categories"] if category["name"] in chosen}
    with_object = {a["image_id"] for a in content["annotations"] if a["category_id"] in wanted}
    images = sorted((i for i in content["images"] if i["id"] in with_object), key=lambda image: image["id"])
    return keep_images(content, choose(images, count, seed))


def keep_images(content: dict, images: list[dict]) -> dict:
    """An instances file with these images and their annotations alone."""
    ids = {image["id"] for image in images}
    return content | {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def _pictures(images: list[dict], folder: Path) -> list[Picture]:
    """What is to be fetched, by address below the server's. Raises ValueError for a file name that is none."""
    pictures = []
    for image in images:
        name = image["file_name"]
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"the annotations call an image {name!r}, which is no plain file name")
        address = urlsplit(image.get("coco_url") or f"/{folder.name}/{name}").path
        pictures.append(Picture(address, folder / name, (image["width"], image["height"])))
    return pictures


def _require_annotations(path: Path) -> None:
    """Raises Unfetched where a file is not the whole archive of annotations; every byte of it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except BROKEN_ZIP as error:
        raise Unfetched(f"what came is no whole archive: {error}") from None
    missing = {f"annotations/instances_{split}2017.json" for split in PICTURES}.difference(names)
    if damaged or missing:
        raise Unfetched(f"what came is damaged in {damaged}" if damaged else f"what came lacks {min(missing)}")


def _settle(folder: Path, what: str, size: int, agree: Callable[[str], None]) -> None:
    """Have the plan agreed to; raises ValueError where the disk has no room for it."""
    plan = f"{what} of COCO 2017, about {readable(size)}, to {folder}"
    require_room(folder, int(size * 1.1), plan)
    agree(f"{plan} (each photograph keeps its own Flickr licence)")


def _answering(addresses: Sequence[str]) -> str:
    """The first of the servers that has the archive of annotations."""
    reasons = []
    for address in addresses:
        try:
            with connect(f"{address}/annotations/{ARCHIVE}", method="HEAD"):
                return address
        except NETWORK as error:
            reasons.append(f"{address}: {reason(error)}")
    raise ValueError(f"no server answers ({'; '.join(reasons)}): look after network and proxy, then run this again")
