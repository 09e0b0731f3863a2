"""Chapter 08's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

import numpy as np
import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks


def run_lengths(mask, first_zero=True, by_row=False):
    flat = mask.ravel() if by_row else mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] and first_zero else lengths


def paint(instances, size, wanted, key=lambda pair: -pair[0].sum(), crowds="first", crowd_label=255, other=0,
          background=0):
    labels = np.full(size, background, np.uint8)

    def paint_crowds():
        for pixels, category, crowd in instances:
            if crowd and category in wanted:
                labels[pixels] = crowd_label

    if crowds == "first":
        paint_crowds()
    objects = [(pixels, category) for pixels, category, crowd in instances if not crowd]
    for pixels, category in sorted(objects, key=key):
        if category in wanted or other is not None:
            labels[pixels] = wanted.get(category, other)
    if crowds == "last":
        paint_crowds()
    return labels


def paint_sorted_together(instances, size, wanted):
    labels = np.zeros(size, np.uint8)
    for pixels, category, crowd in sorted(instances, key=lambda one: -one[0].sum()):
        if not crowd or category in wanted:
            labels[pixels] = 255 if crowd else wanted.get(category, 0)
    return labels


def augment(image, label, mirror, factor, top, left, size, both=True, mode="nearest", axis=-1, late=False,
            whole=torch.round):
    def flip(x):
        return x.flip(axis) if mirror else x

    image, label = (image, label) if late else (flip(image), flip(label) if both else label)
    image = F.interpolate(image[None].float(), scale_factor=factor, mode="bilinear")[0]
    label = F.interpolate(label[None, None].float(), scale_factor=factor, mode=mode)[0, 0]
    here = np.s_[..., top:top + size, left:left + size]
    image, label = image[here].round().to(torch.uint8), whole(label[here]).long()
    return (flip(image), flip(label)) if late else (image, label)


def folds(root, k, groups=None):
    everybody = sorted(set(sl.data.ChestCT(root, "train", val_patients=[]).patients))
    groups = groups(everybody, k) if groups else [everybody[i::k] for i in range(k)]
    return [(sl.data.ChestCT(root, "train", val_patients=g), sl.data.ChestCT(root, "val", val_patients=g))
            for g in groups]


def by_slice(root, k):
    return [tuple(sl.data.ChestCT(root, s, split_by="slice", seed=i, val_share=1 / k) for s in ("train", "val"))
            for i in range(k)]


def by_seed(root, k):
    return [tuple(sl.data.ChestCT(root, s, seed=0) for s in ("train", "val")) for _ in range(k)]


def val_from_next_group(root, k):
    pairs = folds(root, k)
    return [(pairs[i][0], pairs[(i + 1) % k][1]) for i in range(k)]


def train_cut_short(root, k):
    return [(sl.data.ChestCT(root, "train", val_patients=sorted(set(v.patients)), limit=2), v)
            for _, v in folds(root, k)]


def slice_groups(root, k):
    patients = sorted(sl.data.ChestCT(root, "train", val_patients=[]).patients)  # one entry for each slice
    return folds(root, k, lambda everybody, k: [patients[i::k] for i in range(k)])


def floor_groups(everybody, k):
    each = len(everybody) // k
    return [everybody[i * each:(i + 1) * each] for i in range(k)]


RIGHT = [
    (checks.run_lengths, run_lengths),
    (checks.paint, paint),
    (checks.augment, augment),
    (checks.patient_folds, folds),
]
WRONG = [
    (checks.run_lengths, lambda m: run_lengths(m, by_row=True), "row by row"),
    (checks.run_lengths, lambda m: run_lengths(m, first_zero=False), "begins with a one"),
    (checks.run_lengths, lambda m: run_lengths(~m), "must be of zeros"),
    (checks.run_lengths, lambda m: np.cumsum(run_lengths(m)), "places"),
    (checks.run_lengths, lambda m: run_lengths(m)[:-1], "last run"),
    (checks.run_lengths, lambda m: {"counts": run_lengths(m), "size": list(m.shape)}, "a list of numbers, got dict"),
    (checks.paint, lambda i, s, w: paint(i, s, w, key=lambda pair: pair[0].sum()), "smallest"),
    (checks.paint, lambda i, s, w: paint(i, s, w, key=lambda pair: 0), "order of the list"),
    (checks.paint, lambda i, s, w: paint(i, s, w, crowds="last"), "crowds were painted last"),
    (checks.paint, paint_sorted_together, "paint all crowds first"),
    (checks.paint, lambda i, s, w: paint(i, s, w, crowd_label=1), "like objects"),
    (checks.paint, lambda i, s, w: paint(i, s, w, crowds="never"), "no trace"),
    (checks.paint, lambda i, s, w: paint(i, s, w, other=None), "shows through"),
    (checks.paint, lambda i, s, w: paint(i, s, w, other=255), "became 255"),
    (checks.paint, lambda i, s, w: paint(i, s, w, background=255), "no object became 255"),
    (checks.paint, lambda i, s, w: paint(i, s, {c: c for c in w}), "category ids"),
    (checks.paint, lambda i, s, w: paint(i, s, w).astype(np.int64), "uint8"),
    (checks.paint, lambda i, s, w: paint(i, s, w).T, "shape"),
    (checks.augment, lambda *a: augment(*a, both=False), "only the image was mirrored"),
    (checks.augment, lambda *a: augment(*a, axis=-2), "top and bottom"),
    (checks.augment, lambda *a: augment(*a, mode="bilinear"), "invented"),
    (checks.augment, lambda *a: augment(*a, mode="bilinear", whole=torch.trunc), "invented"),
    (checks.augment, lambda *a: augment(*a, late=True), "before the mirror"),
    (checks.augment, lambda *a: (augment(*a)[0].float(), augment(*a)[1]), "uint8"),
    (checks.augment, lambda *a: (augment(*a)[0], augment(*a)[1].float()), "int64"),
    (checks.augment, lambda *a: augment(*a)[0], "pair"),
    (checks.augment, lambda image, label, mirror, *a: (augment(image, label, False, *a)[0],
                                                       augment(image, label, mirror, *a)[1]), "only the labels"),
    (checks.augment, lambda *a: (F.interpolate(a[0].flip(-1)[None] if a[2] else a[0][None], scale_factor=a[3])[
        0, :, a[4]:a[4] + a[6], a[5]:a[5] + a[6]], augment(*a)[1]), "enlarged with nearest"),
    (checks.patient_folds, by_slice, "by slice"),
    (checks.patient_folds, val_from_next_group, "both sides"),
    (checks.patient_folds, by_seed, "more than once"),
    (checks.patient_folds, slice_groups, "groups of slices"),
    (checks.patient_folds, lambda r, k: folds(r, k, floor_groups), "never in val"),
    (checks.patient_folds, lambda r, k: folds(r, k)[:1], "expected"),
    (checks.patient_folds, train_cut_short, "belongs to train"),
    (checks.patient_folds, lambda r, k: [train for train, _ in folds(r, k)], "pair"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
