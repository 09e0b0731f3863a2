"""Checks of chapter 10, training on chest CT."""

import math

import numpy as np
import torch

from ...data import open_dataset
from ...training import TrainConfig, class_weights
from .expect import likely, number, true


def patient_dice(function) -> None:
    """`function(predictions, labels, c)`: Dice of class `c` in the whole stack of one patient's slices (S, H, W)."""
    generator = torch.Generator().manual_seed(0)
    for slices, c in ((5, 1), (8, 3), (6, 2)):
        labels = torch.randint(0, 4, (slices, 6, 7), generator=generator)
        predictions = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels,
                                  torch.randint(0, 4, labels.shape, generator=generator))
        for i, cut in enumerate(range(slices)):  # an organ is large in some slices, small in others
            labels[i, : cut % 6][labels[i, : cut % 6] == c] = 0
        labels[0][labels[0] == c], predictions[0][predictions[0] == c] = 0, 0  # and missing in one, rightly so
        labels[-1, 0] = 255
        known = labels != 255
        p, q = (predictions == c) & known, (labels == c) & known
        each = [_dice(a, b) for a, b in zip(p, q, strict=True)]
        slips = (("the mean of the slices' Dice: count the pixels of the whole stack first, then divide once",
                  np.nanmean(each)),
                 ("an empty slice counted as 1: it holds nothing to be right about",
                  np.mean([1.0 if math.isnan(d) else d for d in each])),
                 ("an empty slice counted as 0: it holds nothing to be right about", np.mean(np.nan_to_num(each))),
                 ("that is IoU: Dice is 2 I / (P + L)", _iou(p, q)),
                 ("pixels labelled 255 count: nobody knows what they show, leave them out",
                  _dice(predictions == c, labels == c)))
        number(function(predictions.clone(), labels.clone(), c), _dice(p, q), f"my_dice of {slices} slices", slips)
    nobody = function(torch.zeros(2, 3, 3, dtype=torch.long), torch.zeros(2, 3, 3, dtype=torch.long), 1)
    number(nobody, math.nan, "my_dice of a patient without the organ, where none was predicted either")
    print("my_dice: correct; one figure for one patient.")


def patient_interval(function) -> None:
    """`function(values, patients, rng)`: 95 % bootstrap interval (low, high) of the mean over patients."""
    rng = np.random.default_rng(0)
    many = {  # patient -> values of the slices; alike within a patient, as neighbours are
        "alike": {k: np.full(20, level) for k, level in enumerate(rng.uniform(0.4, 0.9, 12))},
        "unequal": {k: np.full(40 if level > 0.7 else 4, level) for k, level in enumerate(rng.uniform(0.3, 0.9, 10))},
    }
    for case, table in many.items():
        means = np.array([values.mean() for values in table.values()])
        values = np.concatenate(list(table.values()))
        patients = np.repeat(list(table), [len(v) for v in table.values()])
        order = rng.permutation(len(values))
        what = f"my_interval of {len(table)} patients with {len(values)} slices"
        got = function(values[order], patients[order], np.random.default_rng(1))
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(np.shape(got) == (2,), f"{what}: expected the pair (low, high), got {got!r}")
        low, high = map(float, got)
        true(low < high, f"{what}: low is {low:.3f} and high {high:.3f}; did you draw without replacement, so that "
             "every draw holds the same patients?" if low == high else f"{what}: low is above high; exchange them")
        wanted, slips = _interval(means), (
            ("slices were drawn, not patients: twenty neighbours are not twenty witnesses", _interval(values)),
            ("percentiles of the patients themselves: the interval of the mean is asked, so average each draw",
             tuple(np.quantile(means, [0.025, 0.975]))),
            ("a patient with many slices weighs more: average each patient first",
             _interval(means, [len(v) for v in table.values()])),
            ("that holds 90 %: cut 2.5 % off each side", _interval(means, share=0.9)))
        near = 0.06 * (wanted[1] - wanted[0])  # what chance moves at two thousand draws and more
        if max(abs(low - wanted[0]), abs(high - wanted[1])) > near:
            gaps = {cause: max(abs(low - a), abs(high - b)) for cause, (a, b) in slips}
            cause = min(gaps, key=gaps.get)
            hint = likely([cause] if gaps[cause] < 3 * near else [])
            true(False, f"{what}, {case}: expected about {wanted[0]:.3f} to {wanted[1]:.3f}, got {low:.3f} to "
                 f"{high:.3f}.{hint}")
    print("my_interval: correct; patients were drawn, and it is as wide as they are few.")


def rare_recipe(config) -> None:
    """`config`: the sample's preset with 192 px, as many pixels a step as before, and weights from training labels."""
    preset = TrainConfig.preset("sample-chest-ct")
    true(config is not None, "my_recipe: got None; is a `return` missing?")
    true(isinstance(config, TrainConfig), f"my_recipe: expected a TrainConfig, got {type(config).__name__}")
    true(config.data == preset.data and not config.data_options, "my_recipe: the data is to stay sample-chest-ct")
    true(config.size == 192, f"my_recipe: size is {config.size}, expected 192")
    pixels, before = config.batch_size * config.size**2, preset.batch_size * preset.size**2
    true(pixels == before, f"my_recipe: {config.batch_size} pictures of {config.size} px are {pixels:,} pixels a step, "
         f"expected {before:,} as in the preset; twice the side is four times the pixels")
    true(config.class_weights is not None, "my_recipe: class_weights is None: give one weight a class")
    counts = {split: _pixel_counts(split) for split in ("train", "val")}
    weights, wanted = np.array(config.class_weights, dtype=float), np.array(class_weights(counts["train"]))
    true(len(weights) == len(wanted), f"my_recipe: {len(weights)} weights for {len(wanted)} classes")
    slips = {"the pixels of the validation patients were counted: that lets the test into the training":
                 class_weights(counts["val"]),
             "all patients were counted: only the training labels may be": class_weights(counts["train"]
                                                                                       + counts["val"]),
             "the counts themselves: class_weights(counts) makes rare classes heavy": counts["train"].tolist(),
             "one over the share, without the root": (counts["train"].sum() / counts["train"]).tolist()}
    if not np.allclose(weights, wanted, rtol=1e-3):
        causes = [c for c, slip in slips.items() if np.allclose(weights, slip, rtol=1e-3)]
        true(False, f"my_recipe: expected the weights {wanted.round(2).tolist()}, got {weights.round(2).tolist()}."
             + likely(causes))
    same = {key: value for key, value in config.as_dict().items() if value != getattr(preset, key)}
    others = sorted(set(same) - {"size", "batch_size", "class_weights", "name", "seed", "folder"})
    true(not others, f"my_recipe: {', '.join(others)} differ from the preset too; change three settings only")
    print("my_recipe: correct; three settings, one cost.")


def _dice(p, q) -> float:
    total = float(p.sum() + q.sum())
    return 2 * float((p & q).sum()) / total if total else math.nan


def _iou(p, q) -> float:
    return float((p & q).sum()) / float((p | q).sum())


def _interval(values, weights=None, share: float = 0.95) -> tuple[float, float]:
    """The percentile interval by many draws; `weights` as in a mean."""
    values, weights = np.asarray(values), np.ones(len(values)) if weights is None else np.asarray(weights)
    drawn = np.random.default_rng(2).integers(len(values), size=(20_000, len(values)))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    return tuple(np.quantile(means, [(1 - share) / 2, (1 + share) / 2]))


def _pixel_counts(split: str) -> np.ndarray:
    dataset = open_dataset("sample-chest-ct", split)
    return sum(np.bincount(dataset.read_mask(i).ravel(), minlength=4) for i in range(len(dataset)))
