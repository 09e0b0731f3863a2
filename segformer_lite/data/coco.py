"""COCO instance annotations as one label map per image."""

import difflib
import gc
import hashlib
import json
import os
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import beside
from .base import (
    IGNORE_INDEX,
    SegmentationDataset,
    choose,
    default_palette,
    divide,
    open_picture,
    require_files,
    require_split,
)

PAINTING_VERSION = 1  # raise it whenever paint() would draw another map: older cached maps are then not used
VAL_SHARE = 0.15
LARGEST_SIDE = 2**16  # px
SIDE = (int, f"a whole number of pixels up to {LARGEST_SIDE}")
FIELDS = {  # what everything later relies on
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}
KINDS = {  # what a field must be, and how to say it
    "id": (int, "a whole number"),
    "image_id": (int, "a whole number"),
    "category_id": (int, "a whole number"),
    "width": SIDE,
    "height": SIDE,
    "file_name": (str, "a file's name"),
    "name": (str, "a text"),
}


class CocoSegmentation(SegmentationDataset):
    """COCO objects as semantic labels: crowd regions 255, then every object, the largest first.

    Category ids (1..90 in COCO 2017, with gaps) become labels 1..80 in order of id; 0 is background.

    Args:
        root: folder with `annotations/instances_{train,val}2017.json`, `train2017/` and `val2017/`; where
            only one of the two pairs is there, its images are divided 85/15 by `seed`.
        split: "train" or "val".
        classes: names to learn, label 1 first; all other objects become background. None: every class.
        limit: at most this many images, chosen by `seed`.
        keep_empty: keep images that hold no object of these classes.
        cache: folder for the painted maps; None: SEGFORMER_LITE_CACHE, else ~/.cache/segformer_lite.

    Raises FileNotFoundError for missing folders, files or images, ValueError for a file that is no COCO
    instances JSON or an unknown class name.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        classes: list[str] | None = None,
        limit: int | None = None,
        seed: int = 0,
        keep_empty: bool = False,
        cache: str | Path | None = None,
    ):
        require_split(split)
        year, divided = find_pair(Path(root), split)
        self.json_path, image_folder = files_of(Path(root), year)
        content = read_instances(self.json_path)

        categories = sorted(content["categories"], key=lambda category: category["id"])
        # Categories of one name are one class, and one called background is label 0.
        known = [name for name in dict.fromkeys(c["name"] for c in categories) if name != "background"]
        chosen = known if classes is None else choose_names(classes, known, self.json_path)
        self.classes = ["background", *chosen]
        self.palette = default_palette(len(self.classes))
        label_of_name = {name: label for label, name in enumerate(self.classes) if label}
        self.label_of_category = {c["id"]: label_of_name.get(c["name"], 0) for c in categories}

        annotations = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        images = sorted(content["images"], key=lambda image: image["id"])
        if divided:  # before any image is left out: no choice of classes moves one to the other side
            images = [images[i] for i in divide(len(images), VAL_SHARE, seed)[split == "val"]]
        if not keep_empty:
            images = [image for image in images if self._has_objects(annotations[image["id"]])]
        self.images = choose(images, limit, seed)
        if not self.images:
            raise ValueError(f"{self.json_path} has no {split} image with an object of the classes {chosen}")
        self.annotations = [annotations[image["id"]] for image in self.images]
        self.image_paths = [image_folder / image["file_name"] for image in self.images]
        what = f"images of {self.json_path.name}"
        require_files(self.image_paths, what, "fetch them, or mend their file_name")
        self.cache: Path | None = self._cache_folder(cache)

    def _has_objects(self, annotations: list[dict]) -> bool:
        return any(self.label_of_category[annotation["category_id"]] for annotation in annotations)

    def mask_source(self, index: int) -> Path:
        return self.json_path

    def read_mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8, from the cache where it is there, else painted and cached."""
        image = self.images[index]
        size = (image["width"], image["height"])
        mask = self._cached(image["id"], size)
        if mask is None:
            try:
                mask = paint(self.annotations[index], size, self.label_of_category)
            except ValueError as error:
                raise ValueError(f"{self.json_path}: {error}") from None
            self._write(image["id"], mask)
        return mask

    def _cache_folder(self, cache: str | Path | None) -> Path:
        """A folder named after all that a map depends on: the file's content, the classes, the painting."""
        home = Path.home() / ".cache" / "segformer_lite"
        folder = Path(cache or os.environ.get("SEGFORMER_LITE_CACHE") or home)
        with open(self.json_path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        depends_on = json.dumps([content, self.classes, PAINTING_VERSION])
        return folder / "coco" / hashlib.sha256(depends_on.encode()).hexdigest()[:16]

    def _cached(self, image_id: int, size: tuple[int, int]) -> np.ndarray | None:
        """The cached map of an image; None where there is none, or a damaged one."""
        try:
            picture = open_picture(self.cache / f"{image_id}.png") if self.cache else None
        except (FileNotFoundError, ValueError):
            return None
        return np.array(picture) if picture and (picture.mode, picture.size) == ("L", size) else None

    def _write(self, image_id: int, mask: np.ndarray) -> None:
        """Cache a map. Where that fails, say so once and do without."""
        if self.cache is None:
            return
        try:
            with beside(self.cache / f"{image_id}.png", shared=True) as part:
                Image.fromarray(mask).save(part, format="PNG")
        except OSError as error:
            self.cache = None
            advice = "set SEGFORMER_LITE_CACHE to a folder that can be written"
            warnings.warn(f"painted label maps are not cached ({error}): {advice}", stacklevel=3)


def paint(annotations: list[dict], size: tuple[int, int], label_of_category: dict[int, int]) -> np.ndarray:
    """One label map (H, W) uint8 of an image's annotations.

    A crowd region marks many objects as one, so it says "not background" but not which pixel is which: 255,
    below all else. Objects follow from the largest to the smallest, so that a cup on a table stays visible;
    an object without a label of its own paints background over what it hides.

    Args:
        size: (width, height) in pixels.
        label_of_category: category id -> label, 0 for categories that are not learnt.
    Raises ValueError, naming the annotation, for an outline that cannot be drawn.
    """
    from pycocotools import mask as coco_mask

    width, height = size
    label_map = np.zeros((height, width), dtype=np.uint8)
    objects = []
    for annotation in annotations:
        label = label_of_category[annotation["category_id"]]
        region = _encode(annotation, size)
        if region is None:
            continue
        if not annotation.get("iscrowd", 0):
            objects.append((region, label))
        elif label:
            label_map[coco_mask.decode(region) == 1] = IGNORE_INDEX
    objects.sort(key=lambda pair: -int(coco_mask.area(pair[0])))
    for region, label in objects:
        label_map[coco_mask.decode(region) == 1] = label
    return label_map


def _encode(annotation: dict, size: tuple[int, int]) -> dict | None:
    """The region of an annotation (polygons, or run lengths) as packed run lengths; None if it is empty."""
    from pycocotools import mask as coco_mask

    width, height = size
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, dict):
            if list(shape["size"]) != [height, width]:
                raise ValueError(f"its run lengths are for {shape['size']}, not for [{height}, {width}]")
            if isinstance(shape["counts"], str | bytes):
                return shape
            if sum(shape["counts"]) != width * height:  # pycocotools would leave the rest to chance
                raise ValueError("its run lengths do not add up to the picture")
            return coco_mask.frPyObjects(shape, height, width)
        polygons = [polygon for polygon in shape if len(polygon) >= 6]  # two points enclose no pixel
        if any(len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon needs an x and a y for every point")
        if any(not np.all(np.abs(np.asarray(polygon, dtype=float)) <= LARGEST_SIDE) for polygon in polygons):
            raise ValueError("a point lies far outside of the picture")  # pycocotools would walk all the way there
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = f"annotation {annotation.get('id')} has an outline that cannot be drawn"
        raise ValueError(f"{what} ({error}): export it again") from None


def read_instances(path: Path | zipfile.Path) -> dict:
    """The content of a COCO instances file, checked: its fields, ids and outlines.

    Raises ValueError naming the file, and the entry where there is one.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: looking for some doubles the time
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): the file may be cut short, fetch it again") from None
    finally:
        if collecting:
            gc.enable()
    _require_fields(content, path)
    _require_links(content, path)
    return content


def _require_fields(content, path) -> None:
    """Raises ValueError where a list, a field of an entry, or the kind of its value is missing."""
    for key, fields in FIELDS.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(
                f"{path} is no COCO instances file: it has no list {key!r} (images, annotations, categories)"
            )
        for index, entry in enumerate(entries):
            missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if missing:
                raise ValueError(f"{path}: {key}[{index}] has no {missing[0]!r}, which an instances file needs")
            for field in fields:
                wrong = KINDS.get(field) and not isinstance(entry[field], KINDS[field][0])
                if wrong or field in ("width", "height") and not 0 < entry[field] <= LARGEST_SIDE:
                    shown, kind = repr(entry[field])[:60], KINDS[field][1]
                    raise ValueError(f"{path}: {key}[{index}] has {field} {shown}, not {kind}")


def _require_links(content: dict, path) -> None:
    """Raises ValueError where an id stands twice or for nothing, or where an annotation has nothing to paint."""
    if len(content["categories"]) >= IGNORE_INDEX:
        raise ValueError(f"{path} has {len(content['categories'])} categories: label maps hold at most 254")
    images = {image["id"] for image in content["images"]}
    if len(images) < len(content["images"]):
        raise ValueError(f"{path} gives the same id to several images: every image needs its own")
    categories = {category["id"] for category in content["categories"]}
    for index, annotation in enumerate(content["annotations"]):
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{path}: annotations[{index}] has category_id {annotation['category_id']!r}, "
                f"which is not in 'categories' (ids {_shorten(sorted(categories, key=str))})"
            )
        if annotation["image_id"] not in images:
            raise ValueError(f"{path}: annotations[{index}] has image_id {annotation['image_id']!r}, not in 'images'")
        if not annotation["segmentation"]:
            raise ValueError(f"{path}: annotations[{index}] has no outline: a file of boxes alone cannot be painted")


def files_of(root: Path, split: str) -> tuple[Path, Path]:
    """The JSON and the image folder of a split."""
    return root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017"


def find_pair(root: Path, split: str) -> tuple[str, bool]:
    """Which of the root's two pairs (JSON, image folder) serves a split, and whether it must be divided."""
    there = [name for name in ("train", "val") if all(path.exists() for path in files_of(root, name))]
    if not there:
        state = "holds no COCO data" if root.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{root} {state}: expected annotations/instances_train2017.json and train2017/, or val for train"
        )
    return (split, False) if len(there) == 2 else (there[0], True)


def choose_names(classes: list[str], known: list[str], path: Path) -> list[str]:
    """The class names as a list. Raises ValueError, naming the file and what is near, for one that is not known."""
    chosen = [classes] if isinstance(classes, str) else list(classes)
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_shorten(known)}"
            raise ValueError(f"class {name!r} is not in {path}: {hint}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes {chosen} names a class twice")
    return chosen


def _shorten(items: list) -> str:
    return ", ".join(map(str, items[:8])) + (f" … ({len(items)} in all)" if len(items) > 8 else "")
