"""Chest CT slices with lung, heart and trachea, in the layout of Kaggle polomarco/chest-ct-segmentation."""

import csv
import os
import re
from pathlib import Path

import numpy as np

from .base import (
    BACKGROUND,
    IMAGE_SUFFIXES,
    SegmentationDataset,
    choose,
    divide,
    open_picture,
    require_files,
    require_split,
)

CLASSES = ["background", "lung", "heart", "trachea"]
PALETTE = [BACKGROUND, (0, 114, 178), (0, 158, 115), (213, 94, 0)]  # blue, green, red of Okabe and Ito (2008)
RED, GREEN, BLUE = 0, 1, 2
CHANNELS = [BLUE, GREEN, RED]  # of lung, heart, trachea; later ones win where two overlap


class ChestCT(SegmentationDataset):
    """CT slices divided by patient: neighbours are near-copies, a split by slice would test what was learnt.

    Masks are JPEG pictures with one class per colour channel. Compression leaves noise around both levels, 0
    and 255; the middle, 127, keeps each outline where it was drawn. (At 240 the border goes, and with it a
    sixth of the trachea.)

    Args:
        root: folder with `train.csv` (ImageId, MaskId), `images/images/*.jpg` and `masks/masks/*.jpg`; the
            doubled folder may be single.
        split: "train" or "val".
        val_patients: these patients are "val", all others "train". None: a share drawn by `seed`.
        val_share: share of the patients (or slices) in "val", at least one.
        threshold: a mask channel counts where it is above this value (0..255).
        split_by: "patient", or "slice" where there is one patient only.
        limit: at most this many slices, chosen by `seed`.

    `patients` holds the patient of every slice; `without_mask` the images on disk that train.csv gives no
    mask. Slices follow each other as in the body. Raises FileNotFoundError for missing files, ValueError for
    a train.csv that lacks a column, an unknown patient, or a split that leaves one side empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        val_patients: list[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        threshold: int = 127,
        split_by: str = "patient",
        limit: int | None = None,
    ):
        require_split(split)
        self.classes = list(CLASSES)
        self.palette = np.array(PALETTE, dtype=np.uint8)
        self.threshold = threshold
        images, masks = picture_folder(Path(root), "images"), picture_folder(Path(root), "masks")

        pairs = sorted(read_pairs(Path(root) / "train.csv"), key=lambda pair: _patient_and_slice(pair[0]))
        patients = [_patient_and_slice(image)[0] for image, _ in pairs]
        on_disk = {name for name in os.listdir(images) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        self.without_mask = sorted(on_disk - {image for image, _ in pairs})

        if split_by == "slice":
            if val_patients is not None:
                raise ValueError("val_patients needs split_by='patient': leave one of the two out")
            in_val = set(divide(len(pairs), val_share, seed)[1])
        elif split_by == "patient":
            chosen = _choose_patients(patients, val_patients, val_share, seed)
            in_val = {i for i, patient in enumerate(patients) if patient in chosen}
        else:
            raise ValueError(f"split_by {split_by!r} is unknown: choose 'patient' or 'slice'")
        rows = [i for i in range(len(pairs)) if (i in in_val) == (split == "val")]
        if not rows:
            raise ValueError(f"{root}: no slice is left for {split!r}; patients are {sorted(set(patients))}")

        rows = choose(rows, limit, seed)
        self.patients = [patients[i] for i in rows]
        self.image_paths = [images / pairs[i][0] for i in rows]
        self.mask_paths = [masks / pairs[i][1] for i in rows]
        for paths, what in ((self.image_paths, "images"), (self.mask_paths, "masks")):
            require_files(paths, f"{what} named in train.csv", "unpack the download again, or mend train.csv")

    def mask_source(self, index: int) -> Path:
        return self.mask_paths[index]

    def read_mask(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of one slice."""
        path = self.mask_paths[index]
        picture = open_picture(path)
        if picture.mode != "RGB":
            expected = "red for trachea, green for heart, blue for lung"
            raise ValueError(f"{path} is no colour picture (mode {picture.mode}): expected {expected}")
        drawn = np.asarray(picture) > self.threshold
        label_map = np.zeros(drawn.shape[:2], dtype=np.uint8)
        for label, channel in enumerate(CHANNELS, start=1):
            label_map[drawn[..., channel]] = label
        return label_map


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The (image, mask) file names of train.csv. The two folders alone do not tell: not every image has a
    mask.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected train.csv beside the folders images/ and masks/")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV text ({error}): fetch it again") from None
    for column in ("ImageId", "MaskId"):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}: expected ImageId,MaskId, found {','.join(columns)}")
    for index, row in enumerate(rows):
        if not row["ImageId"] or not row["MaskId"]:
            raise ValueError(f"{path}: row {index + 1} names no image or no mask: expected ImageId,MaskId in every row")
    if not rows:
        raise ValueError(f"{path} has no rows: expected one image and one mask name in each")
    return [(row["ImageId"], row["MaskId"]) for row in rows]


def _patient_and_slice(name: str) -> tuple[str, int]:
    """`ID…_12.jpg` -> ("ID…", 12). The slice is a number: as text, 100 would come before 12."""
    match = re.fullmatch(r"([^_]+)_(\d+)\.\w+", name)
    if not match:
        raise ValueError(f"image {name!r} in train.csv tells no patient and slice: expected a name like ID0001_12.jpg")
    return match[1], int(match[2])


def _choose_patients(patients: list[str], wanted: list[str] | None, val_share: float, seed: int) -> set[str]:
    known = sorted(set(patients))
    if wanted is not None:
        wanted = [wanted] if isinstance(wanted, str) else wanted
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise ValueError(f"patients {unknown} are not in train.csv: it has {known}")
        return set(wanted)
    if len(known) < 2:
        raise ValueError(f"there is one patient only ({known[0]}): split_by='slice' divides its slices, a weaker test")
    return {known[i] for i in divide(len(known), val_share, seed)[1]}


def picture_folder(root: Path, name: str) -> Path:
    """root/name/name as Kaggle unpacks it, or root/name."""
    for folder in (root / name / name, root / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{root / name} does not exist: expected train.csv, images/images/ and masks/masks/ in {root}"
    )
