"""The checks of chapter 09: each accepts a right answer, rejects the stub and planted mistakes, and says why."""

import numpy as np
import torch
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks
from segformer_lite.evaluation import metrics
from segformer_lite.training import class_weights


def mean_iou(confusion, background, absent=np.nan, rows=slice(None)):
    confusion = confusion[rows, rows]
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    iou = np.where(union > 0, hit / np.maximum(union, 1), absent)
    return np.nanmean(iou if background else iou[1:])


def ignoring_background(confusion, background):
    confusion = confusion.copy()
    confusion[0] = 0
    return mean_iou(confusion, False) if not background else mean_iou(confusion, True)


def region_score(prediction, label, classes=None, skip=(0, 255)):
    shares = []
    for c in set(label.unique().tolist()) - set(skip):
        regions = metrics.connected_components((label == c).numpy())
        shares += [(prediction.numpy()[regions == n] == c).mean() for n in range(1, regions.max() + 1)]
    return np.mean(shares) if shares else float("nan")


def one_pot(prediction, label):
    foreground = (label > 0) & (label != 255)
    return (prediction == label)[foreground].float().mean()


def merged(prediction, label):
    regions = metrics.connected_components(((label > 0) & (label != 255)).numpy())
    right = (prediction == label).numpy()
    return np.mean([right[regions == n].mean() for n in range(1, regions.max() + 1)])


def per_class(prediction, label):
    return np.mean([(prediction == c)[label == c].float().mean() for c in label.unique() if c not in (0, 255)])


def squares(x, s, order=(0, 1, 3, 2, 4, 5)):
    b, h, w, c = x.shape
    return x.view(b, h // s, s, w // s, s, c).permute(order).reshape(b, h * w, c)


def weighted(train_set, counts=None):
    if counts is None:
        counts = sum(torch.bincount(label.flatten(), minlength=256) for _, label in train_set)[:3]
    return sl.TrainConfig.preset("sample-coco", class_weights=class_weights(counts.tolist()))


def weighted_by_masks(train_set):
    """As right as one that loads the pictures, too."""
    masks = [train_set.read_mask(i) for i in range(len(train_set))]
    return weighted(train_set, sum(torch.from_numpy(np.bincount(mask.ravel(), minlength=256)) for mask in masks)[:3])


def with_void(train_set):
    counts = sum(torch.bincount(label.flatten(), minlength=256) for _, label in train_set)
    counts[0] += counts[255]
    return weighted(train_set, counts[:3])


RIGHT = [
    (checks.mean_iou, mean_iou),
    (checks.region_score, region_score),
    (checks.squares_in_order, squares),
    (checks.weighted_config, weighted),
    (checks.weighted_config, weighted_by_masks),
]
WRONG = [
    (checks.mean_iou, lambda c, b: mean_iou(c, True), "background was counted"),
    (checks.mean_iou, lambda c, b: mean_iou(c, False), "background was left out"),
    (checks.mean_iou, lambda c, b: mean_iou(c, b, absent=0), "nowhere counts as 0"),
    (checks.mean_iou, ignoring_background, "false alarms"),
    (checks.mean_iou, lambda c, b: mean_iou(c, True, rows=slice(not b, None)), "cut off"),
    (checks.mean_iou, lambda c, b: (np.diag(c) / c.sum(1).clip(1))[not b:].mean(), "mean recall"),
    (checks.mean_iou, lambda c, b: (np.diag(c) / (c.sum(1) + c.sum(0)).clip(1))[not b:].mean(), "twice"),
    (checks.mean_iou, lambda c, b: float("nan"), "0 / 0"),
    (checks.mean_iou, lambda c, b: c, "one number"),
    (checks.region_score, one_pot, "one pot"),
    (checks.region_score, merged, "taken for one"),
    (checks.region_score, per_class, "each region has its own"),
    (checks.region_score, lambda p, q: region_score(p, q, skip=(255,)), "background is no region"),
    (checks.region_score, lambda p, q: region_score(p, q, skip=(0,)), "255 is no region"),
    (checks.region_score, lambda p, q: np.nan_to_num(region_score(p, q)), "expected nan"),
    (checks.squares_in_order, lambda x, s: x.reshape(len(x), -1, x.shape[-1]), "strips"),
    (checks.squares_in_order, lambda x, s: squares(x, s, (0, 1, 3, 4, 2, 5)), "run down the columns"),
    (checks.squares_in_order, lambda x, s: squares(x, s, (0, 3, 1, 2, 4, 5)), "squares run down"),
    (checks.squares_in_order, lambda x, s: squares(x, s, (0, 5, 1, 3, 2, 4)), "the shape is right"),
    (checks.weighted_config, with_void, "255 were counted"),
    (checks.weighted_config, lambda s: weighted(s, torch.bincount(s[0][1].flatten())[:3]), "first picture"),
    (checks.weighted_config, lambda s: sl.TrainConfig.preset("sample-coco"), "not set"),
    (checks.weighted_config, lambda s: sl.TrainConfig.preset("sample-coco", class_weights=[1, 1, 1]), "the same"),
    (checks.weighted_config, lambda s: sl.TrainConfig(class_weights=[1, 1, 1]), "preset"),
    (checks.weighted_config, lambda s: weighted(s, torch.ones(4)), "255 is no class"),
    (checks.weighted_config, lambda s: [1.0, 2.0, 3.0], "TrainConfig"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
