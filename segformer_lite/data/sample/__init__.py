"""Synthetic data sets in the file layouts of COCO 2017 and of the Kaggle chest CT set, made in seconds."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .objects import CLASSES
from .phantom import Phantom
from .scenes import draw_scene
from .stage import Instance

MARKER = "sample.json"
VERSION = 1  # raise it whenever the same arguments would give other files
PATIENTS = 12
MASK_JPEG = {"quality": 90, "subsampling": 0}  # artefacts at the borders, as in the Kaggle masks
HEADER = {  # of the JSON files, with COCO's fields
    "info": {"description": "Synthetic scenes in the layout of COCO 2017", "url": "", "version": str(VERSION),
             "year": 2017, "contributor": "segformer-lite", "date_created": "2017/09/01"},
    "licenses": [{"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}],
}
DEFAULT_COUNT = {"coco": 720, "chest_ct": 324}


def make_sample(kind: str, folder: str | Path, *, count: int | None = None, seed: int = 0,
                progress: bool = True) -> Path:
    """Make a small synthetic data set, or find it already made; same arguments, same files.

    Args:
        kind: "coco" (scenes with ten classes, one in six for validation) or "chest_ct" (12 phantoms).
        folder: where it goes; nothing that is already there is ever touched.
        count: how many images, 720 or 324 by default.
        seed: another seed gives other pictures.
        progress: show a bar.

    Returns the folder. Raises ValueError for an unknown kind, fewer than 12 images, or a folder that holds
    something else.
    """
    if kind not in DEFAULT_COUNT:
        raise ValueError(f"unknown sample {kind!r}: choose 'coco' or 'chest_ct'")
    count = DEFAULT_COUNT[kind] if count is None else count
    if count < 12:
        raise ValueError(f"a sample needs at least 12 images, not {count}")
    folder = Path(folder)
    recipe = json.dumps({"kind": kind, "count": count, "seed": seed, "version": VERSION})
    if _is_made(folder, recipe):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside the folder and moved there when complete, so a broken run leaves no half sample.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        root = Path(beside) / folder.name
        root.mkdir()
        (_write_coco if kind == "coco" else _write_chest_ct)(root, count, seed, progress)
        (root / MARKER).write_text(recipe + "\n")
        if folder.is_dir() and not _is_made(folder, recipe):  # it is empty: _is_made raises otherwise
            folder.rmdir()
        if not folder.exists():  # another process may have been faster with the same files
            os.replace(root, folder)
    return folder


def _is_made(folder: Path, recipe: str) -> bool:
    """Whether `folder` holds exactly this sample; ValueError if it holds anything else, False if nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    found = marker.read_text().strip() if marker.is_file() else None
    if found is None:
        raise ValueError(f"{folder} holds something else (no {MARKER} in it): choose another folder")
    if found != recipe:
        raise ValueError(f"{folder} holds another sample, {found}, not {recipe}: delete it or choose another folder")
    return True


# ---- COCO ------------------------------------------------------------------------------------------------


def _write_coco(root: Path, count: int, seed: int, progress: bool) -> None:
    """train2017/, val2017/ and annotations/instances_{train,val}2017.json."""
    rng = np.random.default_rng([seed, 0])
    ids = np.sort(rng.choice(np.arange(1, 580_000), count, replace=False)).tolist()
    val = set(rng.choice(count, count // 6, replace=False).tolist())
    (root / "annotations").mkdir()
    files = {}
    for name in ("train2017", "val2017"):
        (root / name).mkdir()
        files[name] = {**HEADER, "images": [], "annotations": [], "categories": [
            {"supercategory": group, "id": i, "name": name} for name, (i, group, *_) in CLASSES.items()]}
    annotation_id = 1
    for index, image_id in enumerate(tqdm(ids, "making the COCO sample", unit="image", disable=not progress)):
        image, instances = coco_scene(seed, index)
        name = "val2017" if index in val else "train2017"
        file_name = f"{image_id:012d}.jpg"
        image.save(root / name / file_name, quality=90)
        files[name]["images"].append(
            {"license": 1, "file_name": file_name, "height": image.height, "width": image.width,
             "date_captured": "2017-09-01 00:00:00", "id": image_id})
        for instance in instances:
            annotation = annotate(instance)
            files[name]["annotations"].append(annotation | {"image_id": image_id, "id": annotation_id})
            annotation_id += 1
    for name, content in files.items():
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def coco_scene(seed: int, index: int) -> tuple[Image.Image, list[Instance]]:
    """Image number `index` of a COCO sample and its instances; one in forty is empty, one in 150 is grey."""
    rng = np.random.default_rng([seed, 1, index])
    image, instances = draw_scene(rng, empty=index % 40 == 11)
    return (image.convert("L") if index % 150 == 5 else image), instances


def annotate(instance: Instance) -> dict:
    """COCO's fields of an instance: polygons, or run lengths for a crowd; area in pixels; box x, y, w, h."""
    mask = instance.visible > 0.5
    if instance.iscrowd:
        segmentation = {"counts": run_lengths(mask), "size": list(mask.shape)}
    else:
        segmentation = outline(instance.visible)
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    return {
        "segmentation": segmentation,
        "area": int(mask.sum()),
        "bbox": box,
        "iscrowd": int(instance.iscrowd),
        "category_id": CLASSES[instance.name][0],
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: pixels column by column, alternately off and on, off first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def outline(visible: np.ndarray) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] around where `visible` (H, W) exceeds one half; pixel (0, 0) spans 0..1.

    A polygon has no holes: a hole is joined to the outer ring by a cut of no width.
    """
    import contourpy

    # Coverage near one half would draw the line through a pixel's centre, where rounding decides: keep away.
    y, x = np.nonzero(visible > 0.5)
    left, top = max(x.min() - 1, 0), max(y.min() - 1, 0)
    part = visible[top : y.max() + 2, left : x.max() + 2]
    padded = np.pad(np.where(part > 0.5, part.clip(0.65), part.clip(None, 0.35)), 1)
    lines = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, np.inf)
    polygons = []
    for points, offsets in zip(*lines, strict=True):
        ring, *holes = (_thin_out(points[a : b - 1]) for a, b in pairwise(offsets))  # the last repeats the first
        for hole in holes:
            distance = np.square(ring[:, None] - hole[None]).sum(-1)
            i, j = np.unravel_index(distance.argmin(), distance.shape)
            ring = np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])
        if len(ring) >= 3:
            corners = ring + (left, top) - 1 + 0.5  # less the pad; the centre of a pixel is at one half
            polygons.append(corners.clip(0, visible.shape[::-1]).round(2).ravel().tolist())
    return polygons


def _thin_out(ring: np.ndarray) -> np.ndarray:
    """The ring (n, 2) without points that lie within 0.1 pixel of the line through their neighbours."""
    for _ in range(3):
        before, chord = np.roll(ring, 1, 0), np.roll(ring, -1, 0) - np.roll(ring, 1, 0)
        offset = np.abs((ring - before) @ [[0, 1], [-1, 0]] * chord @ [1, 1])
        every_other = np.arange(len(ring)) % 2 == 0
        ring = ring[every_other | (offset > 0.1 * np.hypot(*chord.T))]
    return ring


# ---- chest CT --------------------------------------------------------------------------------------------


def _write_chest_ct(root: Path, count: int, seed: int, progress: bool) -> None:
    """images/images/, masks/masks/ and train.csv, named as in the Kaggle set; one image in 40 has no mask."""
    images, masks, rows = root / "images" / "images", root / "masks" / "masks", []
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    with tqdm(total=count, desc="making the chest CT sample", unit="slice", disable=not progress) as bar:
        for patient in range(PATIENTS):
            rng = np.random.default_rng([seed, 2, patient])
            name = "ID" + "".join(map(str, rng.integers(0, 10, 23)))
            number, step = rng.integers(3, 40), rng.integers(5, 12)
            slices = len(range(patient, count, PATIENTS))
            for index, (picture, mask) in enumerate(ct_slices(seed, patient, slices)):
                picture.save(images / f"{name}_{number}.jpg", quality=90)
                if (index * PATIENTS + patient) % 40 != 39:
                    mask.save(masks / f"{name}_mask_{number}.jpg", **MASK_JPEG)
                    rows.append([f"{name}_{number}.jpg", f"{name}_mask_{number}.jpg"])
                number += step
                bar.update()
    with open(root / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ImageId", "MaskId"], *rows])


def ct_slices(seed: int, patient: int, count: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Picture and mask of `count` slices of one patient, from the neck to the belly."""
    phantom = Phantom(np.random.default_rng([seed, 3, patient]))
    for z in np.linspace(0.02, 0.98, count):
        yield phantom.slice(z)
