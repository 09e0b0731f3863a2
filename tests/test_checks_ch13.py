"""The checks of chapter 13: each accepts the answer, rejects the stub and planted mistakes, and says why."""

import math
from dataclasses import replace
from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks


def starts(length, window, stride):
    last = max(0, length - window)
    return [*range(0, last, stride), last]

def short(length, window, stride): return list(range(0, length - window + 1, stride)) or [0]
def over(length, window, stride): return list(range(0, length, stride))
def double(length, window, stride): return [*range(0, max(0, length - window) + 1, stride), max(0, length - window)]
def before(length, window, stride): return [*range(0, length - window, stride), length - window]
def falling(length, window, stride): return starts(length, window, stride)[::-1]
def narrow(length, window, stride): return starts(length, window, max(1, stride // 2))


def outline(shape, corners=lambda a, b, c, d: [(a, b), (c, b), (c, d), (a, d)], radius=math.hypot, swap=False, n=64,
            lenient=False):
    points, kind = shape["points"], shape["shape_type"]
    if kind == "polygon" or lenient and kind == "line":
        return [tuple(point) for point in points]
    if kind == "rectangle":
        return corners(*points[0], *points[1])
    if kind == "circle":
        (x, y), (a, b) = points[::-1] if swap else points
        r = radius(a - x, b - y)
        return [(x + r * math.cos(t), y + r * math.sin(t)) for t in np.linspace(0, 2 * math.pi, n, endpoint=False)]
    raise ValueError(f"a {kind} has no inside")


def slip(**changes):
    return lambda shape: outline(shape, **changes)


def agreement(maps, c, pairs=lambda m: combinations(m, 2), ignore=True, iou=False, empty=None, each_slice=False):
    values = []
    for one, other in pairs(maps):
        for a, b in zip(one, other, strict=True) if each_slice else ((one, other),):
            known = (a != 255) & (b != 255) if ignore else np.ones_like(a, bool)
            p, q = (a == c) & known, (b == c) & known
            both, total = (p & q).sum(), p.sum() + q.sum()
            if total:
                values.append(both / (total - both) if iou else 2 * both / total)
            elif empty is not None:
                values.append(empty)
    return float(np.mean(values)) if values else math.nan


def people(**changes):
    return lambda maps, c: agreement(maps, c, **changes)


def recipe(data, weights, folder):
    return sl.TrainConfig(data=data, weights=weights, folder=folder, lr=1e-4, head_lr_mult=100)


def other_recipe(**changes):
    return lambda *places: replace(recipe(*places), **changes)


RIGHT = [
    (checks.window_starts, starts),
    (checks.shape_outline, outline),
    (checks.rater_agreement, agreement),
    (checks.finetune_recipe, recipe),
]
WRONG = [
    (checks.window_starts, short, "never seen"),
    (checks.window_starts, over, "over the edge"),
    (checks.window_starts, double, "there twice"),
    (checks.window_starts, before, "before the picture"),
    (checks.window_starts, falling, "must rise"),
    (checks.window_starts, narrow, "not `stride`"),
    (checks.window_starts, lambda length, window, stride: length - window, "a list of starts"),
    (checks.shape_outline, slip(corners=lambda a, b, c, d: [(a, b), (c, d), (c, b), (a, d)]), "go around"),
    (checks.shape_outline, slip(corners=lambda a, b, c, d: [(a, b), (c, d)]), "two points"),
    (checks.shape_outline, slip(radius=lambda x, y: math.hypot(x, y) / 2), "not the diameter"),
    (checks.shape_outline, slip(radius=lambda x, y: abs(x) + abs(y)), "root of the squares"),
    (checks.shape_outline, slip(swap=True), "exchanged"),
    (checks.shape_outline, slip(n=16), "at least 32"),
    (checks.shape_outline, slip(lenient=True), "ValueError"),
    (checks.shape_outline, lambda shape: shape["points"], "two points"),
    (checks.shape_outline, lambda shape: sum(shape["points"], []), "expected pairs"),
    (checks.rater_agreement, people(pairs=lambda m: combinations_with_replacement(m, 2)), "themselves"),
    (checks.rater_agreement, people(pairs=lambda m: [(a, b) for a in m for b in m]), "themselves"),
    (checks.rater_agreement, people(ignore=False), "255"),
    (checks.rater_agreement, people(iou=True), "IoU"),
    (checks.rater_agreement, people(pairs=lambda m: [(m[0], b) for b in m[1:]]), "first person"),
    (checks.rater_agreement, people(each_slice=True), "whole stack"),
    (checks.rater_agreement, people(empty=1.0), "expected"),
    (checks.rater_agreement, people(empty=0.0), "expected"),
    (checks.rater_agreement, lambda maps, c: agreement(maps, c) if (maps == c).any() else None, "nobody drew.*return"),
    (checks.finetune_recipe, other_recipe(weights=None), "pass weights="),
    (checks.finetune_recipe, other_recipe(freeze_encoder=True), "frozen"),
    (checks.finetune_recipe, other_recipe(head_lr_mult=10), "must rise"),
    (checks.finetune_recipe, other_recipe(lr=1e-3, head_lr_mult=10), "a tenth"),
    (checks.finetune_recipe, other_recipe(data="sample-coco"), "the one that was given"),
    (checks.finetune_recipe, lambda *a: {"lr": 1e-4}, "expected a TrainConfig"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)


def test_the_recipe_is_judged_by_what_moved(monkeypatch):
    """A run that does not start from the weights is seen, whatever its settings say."""
    from segformer_lite.training import checkpoint

    monkeypatch.setattr(checkpoint, "start_from", lambda model, source: None)
    with pytest.raises(AssertionError, match="moved the encoder"):
        checks.finetune_recipe(recipe)
