"""The checks of chapter 10: each accepts the answer, rejects the stub and planted mistakes, and says why."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks
from segformer_lite.training import class_weights


def dice(predictions, labels, c):
    known = labels != 255
    p, q = (predictions == c) & known, (labels == c) & known
    total = (p.sum() + q.sum()).item()
    return 2 * (p & q).sum().item() / total if total else float("nan")


def mean_of_slices(predictions, labels, c, empty=float("nan")):
    each = [dice(p, q, c) for p, q in zip(predictions, labels, strict=True)]
    return np.nanmean([empty if np.isnan(value) else value for value in each])


def iou(predictions, labels, c):
    value = dice(predictions, labels, c)
    return value / (2 - value)


def interval(values, patients, rng, level=0.95, draws=2000):
    means = np.array([values[patients == p].mean() for p in np.unique(patients)])
    drawn = rng.choice(means, size=(draws, len(means))).mean(1)
    return tuple(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))


def by_slice(values, patients, rng):
    return tuple(np.quantile(rng.choice(values, size=(2000, len(values))).mean(1), [0.025, 0.975]))


def of_patients(values, patients, rng):
    return tuple(np.quantile([values[patients == p].mean() for p in np.unique(patients)], [0.025, 0.975]))


def pooled(values, patients, rng):
    stacks = [values[patients == p] for p in np.unique(patients)]
    means = [np.concatenate([stacks[k] for k in rng.integers(len(stacks), size=len(stacks))]).mean()
             for _ in range(2000)]
    return tuple(np.quantile(means, [0.025, 0.975]))


def no_replacement(values, patients, rng):
    means = np.array([values[patients == p].mean() for p in np.unique(patients)])
    return np.sort(means).mean(), np.sort(means).mean()


def counts(*splits):
    sets = [sl.data.open_dataset("sample-chest-ct", split) for split in splits]
    return sum(np.bincount(s.read_mask(i).ravel(), minlength=4) for s in sets for i in range(len(s)))


def recipe(**changes):
    settings = {"size": 192, "batch_size": 4, "class_weights": class_weights(counts("train"))}
    return sl.TrainConfig.preset("sample-chest-ct", **{**settings, **changes})


RIGHT = [(checks.patient_dice, dice), (checks.patient_interval, interval), (checks.rare_recipe, partial(recipe))]
WRONG = [
    (checks.patient_dice, mean_of_slices, "mean of the slices"),
    (checks.patient_dice, lambda p, q, c: mean_of_slices(p, q, c, empty=1.0), "counted as 1"),
    (checks.patient_dice, lambda p, q, c: mean_of_slices(p, q, c, empty=0.0), "counted as 0"),
    (checks.patient_dice, iou, "IoU"),
    (checks.patient_dice, lambda p, q, c: dice(p, torch.where(q == 255, 0, q), c), "255"),
    (checks.patient_dice, lambda p, q, c: np.nan_to_num(dice(p, q, c), nan=1.0), "expected nan"),
    (checks.patient_dice, lambda p, q, c: dice(p, q, c) if (q == c).any() else None, "without the organ.*return"),
    (checks.patient_interval, lambda v, p, r: interval(v, p, r)[0], "the pair"),
    (checks.patient_interval, by_slice, "slices were drawn"),
    (checks.patient_interval, of_patients, "of the patients themselves"),
    (checks.patient_interval, pooled, "weighs more"),
    (checks.patient_interval, lambda v, p, r: interval(v, p, r, level=0.9), "90 %"),
    (checks.patient_interval, no_replacement, "without replacement"),
    (checks.patient_interval, lambda v, p, r: interval(v, p, r)[::-1], "exchange"),
    (checks.rare_recipe, None, "return"),
    (checks.rare_recipe, partial(recipe, size=96), "expected 192"),
    (checks.rare_recipe, partial(recipe, batch_size=16), "pixels a step"),
    (checks.rare_recipe, partial(recipe, class_weights=None), "one weight a class"),
    (checks.rare_recipe, partial(lambda: recipe(class_weights=class_weights(counts("val")))), "validation"),
    (checks.rare_recipe, partial(lambda: recipe(class_weights=class_weights(counts("train", "val")))), "all patients"),
    (checks.rare_recipe, partial(lambda: recipe(class_weights=(counts("train").sum() / counts("train")).tolist())),
     "without the root"),
    (checks.rare_recipe, partial(recipe, class_weights=[1.0, 2.0, 3.0]), "3 weights for 4"),
    (checks.rare_recipe, partial(recipe, lr=1e-2), "lr differ"),
    (checks.rare_recipe, partial(lambda: replace(recipe(), data_options={"split_by": "slice"})), "data is to stay"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
