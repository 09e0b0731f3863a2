"""Checks of chapter 08, data."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...data import ChestCT
from ...data.sample import run_lengths as _run_lengths
from .expect import likely, same, true


def run_lengths(function) -> None:
    """`function(mask)`: bool (H, W) -> COCO's run lengths, column by column, zeros first."""
    rng = np.random.default_rng(0)
    masks = [rng.random((3, 5)) < 0.5 for _ in range(6)]
    masks[0][0, 0], masks[1][0, 0] = False, True
    for mask in [*masks, np.zeros((2, 3), bool), np.ones((2, 3), bool)]:
        wanted, by_row = _run_lengths(mask), _run_lengths(mask.T)
        got = function(mask.copy())
        true(got is not None, "my_run_lengths: got None; is a `return` missing?")
        true(isinstance(got, list | tuple | np.ndarray), "my_run_lengths: expected a list of numbers, got "
             f"{type(got).__name__}")
        got = [int(n) for n in got]
        slips = {"the pixels were counted row by row, COCO counts column by column": by_row,
                 "the mask begins with a one: the first run, of zeros, has length 0 and is written": wanted[1:],
                 "the first run must be of zeros": _run_lengths(~mask),
                 "places where runs end, not their lengths": np.cumsum(wanted).tolist(),
                 "the last run is missing": wanted[:-1]}
        _compare(got, wanted, f"my_run_lengths of the mask {mask.astype(int).tolist()}", slips)
    print("my_run_lengths: correct, also for masks that begin with a one, and for empty and full ones.")


def paint(function) -> None:
    """`function(instances, size, wanted)` -> uint8 label map of the wanted classes, largest object first."""
    size, wanted = (12, 16), {1: 1, 3: 2}

    def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
        pixels = np.zeros(size, bool)
        pixels[top:bottom, left:right] = True
        return pixels

    cup, person, table = rectangle(3, 3, 5, 5), rectangle(1, 9, 11, 12), rectangle(2, 1, 10, 13)
    cat, crowd, herd = rectangle(4, 9, 7, 11), rectangle(0, 0, 5, 9), rectangle(10, 2, 12, 8)
    instances = [(cup, 1, False), (table, 3, False), (cat, 17, False), (crowd, 1, True), (person, 1, False),
                 (herd, 17, True)]
    slips = {"the smallest object was painted first: the large ones hide it": {"largest_first": False},
             "the objects were painted in the order of the list, not by size": {"largest_first": None},
             "crowds were painted last: they lie below all objects": {"crowd_last": True},
             "crowds were sorted in among the objects: paint all crowds first, then the objects": {"sort_all": True},
             "crowds are labelled like objects: they get 255": {"crowd_label": 1},
             "crowds leave no trace: those of a wanted class get 255": {"crowd_label": 0},
             "classes that are not wanted were left out: what lies behind them shows through": {"skip": True},
             "classes that are not wanted became 255: they are background, 0": {"other": 255},
             "crowds of a class that is not wanted became 255": {"all_crowds": True},
             "pixels of no object became 255: they are background, 0": {"background": 255},
             "category ids were painted, not labels": {"raw": True}}
    for some in (instances, instances[::-1], instances[2:4], instances[:2], []):
        got = function([(pixels.copy(), i, c) for pixels, i, c in some], size, dict(wanted))
        true(got is not None, "my_paint: got None; is a `return` missing?")
        got = torch.as_tensor(np.asarray(got))
        results = [(cause, torch.as_tensor(_paint(some, size, wanted, **slip))) for cause, slip in slips.items()]
        right = torch.as_tensor(_paint(some, size, wanted))
        same(got, right, f"my_paint with {len(some)} instances", results)
    true(got.dtype == torch.uint8, f"my_paint: a label map is uint8 here, got {got.dtype}")
    print("my_paint: correct; crowds lie below, and what is not wanted still hides.")


def _paint(instances, size, wanted, largest_first=True, crowd_last=False, crowd_label=255, skip=False, other=0,
           all_crowds=False, background=0, raw=False, sort_all=False) -> np.ndarray:
    labels = np.full(size, background, np.uint8)
    crowds = [(pixels, crowd_label) for pixels, i, crowd in instances if crowd and (all_crowds or i in wanted)]
    objects = [(pixels, (i if raw else wanted[i]) if i in wanted else other)
               for pixels, i, crowd in instances if not crowd and (i in wanted or not skip)]
    if sort_all:
        crowds, objects = [], crowds + objects
    if largest_first is not None:
        objects.sort(key=lambda pair: pair[0].sum(), reverse=largest_first)
    for pixels, label in [*objects, *crowds] if crowd_last else [*crowds, *objects]:
        labels[pixels] = label
    return labels


def augment(function) -> None:
    """`function(image, label, mirror, factor, top, left, size)` moves both in the same way."""
    generator = torch.Generator().manual_seed(0)
    for height, width, *how in ((7, 9, False, 1, 2, 3, 4), (7, 9, True, 1, 0, 4, 5), (6, 5, True, 2, 1, 3, 6),
                                (8, 6, False, 3, 5, 2, 11)):
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, 5, (height, width), generator=generator) * 50 + 5  # 5 .. 205, 255 below
        label[2] = 255
        got = function(image.clone(), label.clone(), *how)
        what = "my_augment(mirror={}, factor={}, top={}, left={}, size={})".format(*how)
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(isinstance(got, tuple | list) and len(got) == 2, f"{what}: expected the pair (image, label)")
        new_image, new_label = _augment(image, label, *how)
        _, kept = _augment(image, label, False, *how[1:])
        flipped = _augment(image, label.flip(0) if how[0] else label, False, *how[1:])[1]
        kept_image, _ = _augment(image, label, False, *how[1:])
        late_image, late = _augment(image, label, *how, late=True)
        same(got[1], new_label, f"{what}, labels",
             (("only the image was mirrored", kept), ("top and bottom were exchanged, not left and right", flipped),
              ("the cut came before the mirror", late),
              *(("classes were invented: labels are enlarged with nearest, never with a mean",
                 _augment(image, label, *how, mode="bilinear", whole=whole)[1])
                for whole in (torch.round, torch.trunc))))
        true(got[1].dtype == torch.int64, f"{what}: labels are whole numbers (int64), got {got[1].dtype}")
        true(isinstance(got[0], torch.Tensor), f"{what}: expected the image as a tensor")
        true(got[0].dtype == torch.uint8, f"{what}: the image stays uint8, got {got[0].dtype}; round, then convert")
        shape = tuple(got[0].shape)
        true(shape == tuple(new_image.shape), f"{what}: expected an image {tuple(new_image.shape)}, got {shape}")
        if (got[0].int() - new_image.int()).abs().max() > 1:  # one step of 255 is rounding
            same(got[0].float(), new_image.float(), f"{what}, image",
                 (("only the labels were mirrored", kept_image.float()),
                  ("the cut came before the mirror", late_image.float()),
                  ("the image was enlarged with nearest",
                   _augment(image, label, *how, image_mode="nearest")[0].float())))
    print("my_augment: correct; picture and labels move as one.")


def _augment(image, label, mirror, factor, top, left, size, mode="nearest", image_mode="bilinear", late=False,
             whole=torch.round):
    if mirror and not late:
        image, label = image.flip(-1), label.flip(-1)

    def enlarge(x, how):
        corners = {"align_corners": False} if how == "bilinear" else {}
        return F.interpolate(x[None].float(), scale_factor=factor, mode=how, **corners)[0]

    here = np.s_[..., top:top + size, left:left + size]
    image = enlarge(image, image_mode)[here].round().to(torch.uint8)
    label = whole(enlarge(label[None], mode)[0][here]).long()
    return (image.flip(-1), label.flip(-1)) if mirror and late else (image, label)


def patient_folds(function) -> None:
    """`function(root, k)` -> k pairs (train, val) of ChestCT; each patient is in val once, never on both sides."""
    slices = {"ID11": 5, "ID12": 1, "ID13": 3, "ID14": 2, "ID15": 4}
    with tempfile.TemporaryDirectory() as folder:
        _write_ct(Path(folder), slices)
        for k in (5, 2):
            folds = function(Path(folder), k)
            true(folds is not None, "my_folds: got None; is a `return` missing?")
            folds = list(folds)
            true(len(folds) == k, f"my_folds with k = {k}: expected {k} pairs, got {len(folds)}")
            tested = []
            for i, fold in enumerate(folds):
                true(isinstance(fold, tuple | list) and len(fold) == 2 and all(isinstance(d, ChestCT) for d in fold),
                     f"my_folds: turn {i} must be a pair (train, val) of sl.data.ChestCT")
                train, val = fold
                shared = sorted(set(train.patients) & set(val.patients))
                true(not shared, f"my_folds, k = {k}, turn {i}: {', '.join(shared)} on both sides. Likely cause: "
                                 "the split is by slice, or train and val got other val_patients.")
                true(len(train) + len(val) == sum(slices.values()),
                     f"my_folds, k = {k}, turn {i}: {len(train)} + {len(val)} slices, but the set has "
                     f"{sum(slices.values())}: who is not in val belongs to train")
                tested += sorted(set(val.patients))
            twice, never = sorted({p for p in tested if tested.count(p) > 1}), sorted(set(slices) - set(tested))
            true(not twice, f"my_folds, k = {k}: {', '.join(twice)} in val more than once. Likely cause: every turn "
                            "draws anew, or all turns have the same group, or the groups are groups of slices: take "
                            "sorted(set(patients)) first.")
            true(not never, f"my_folds, k = {k}: {', '.join(never)} never in val. Likely cause: the groups have "
                            f"len // k patients each, and {len(slices)} patients are not divisible by {k}.")
    print("my_folds: correct for 5 and for 2 turns; nobody is on both sides, everybody is tested once.")


def _write_ct(root: Path, slices: dict[str, int]) -> None:
    """A chest CT folder with tiny black pictures: patient -> number of slices."""
    for part in ("images", "masks"):
        (root / part / part).mkdir(parents=True)
    rows = [(f"{p}_{n}.jpg", f"{p}_mask_{n}.jpg") for p, count in slices.items() for n in range(count)]
    for image, mask in rows:
        Image.new("L", (8, 8)).save(root / "images" / "images" / image)
        Image.new("RGB", (8, 8)).save(root / "masks" / "masks" / mask)
    with open(root / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("ImageId", "MaskId"), *rows])


def _compare(got: list[int], wanted: list[int], what: str, slips: dict[str, list[int]]) -> None:
    """Lists of numbers, compared as `expect.same` compares tensors."""
    causes = [cause for cause, result in slips.items() if result == got]
    hint = likely(causes)
    true(got == wanted, f"{what}: expected {wanted}, got {got}.{hint}")
