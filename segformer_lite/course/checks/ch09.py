"""Checks of chapter 09, training on COCO."""

import math

import numpy as np
import torch

from ...evaluation.metrics import connected_components, iou_per_class
from ...training import TrainConfig, class_weights
from .expect import number, same, true


def mean_iou(function) -> None:
    """`function(confusion, background)`: counts (K, K) by (label, prediction) -> mean IoU."""
    cases = {"three classes": [[6, 1, 1], [2, 5, 0], [0, 3, 2]],
             "a class that is nowhere": [[8, 2, 0, 0], [1, 4, 0, 1], [0, 0, 0, 0], [2, 1, 0, 5]],
             "a class that is predicted only": [[7, 1, 2], [3, 4, 1], [0, 0, 0]]}
    for name, rows in cases.items():
        for background in (True, False):
            confusion = np.array(rows)
            wanted = _mean_iou(confusion, background)
            number(function(confusion.copy(), background), wanted,
                    f"my_mean_iou, {name}, background={background}", _slips(confusion, background).items())
    print("my_mean_iou: correct, with and without background, with absent classes.")


def region_score(function) -> None:
    """`function(prediction, label)`: (H, W) each -> mean over foreground regions of the share of right pixels."""
    label = torch.zeros(12, 12, dtype=torch.int64)
    label[0:2, 0:2] = 1  # small, missed
    label[4:12, 2:12] = 2  # large, seven tenths right
    label[4:6, 0:2] = 1  # touches it, half right
    label[0, 6:12] = 255
    prediction = torch.zeros_like(label)
    prediction[4:12, 2:10] = 2
    prediction[4:12, 8] = 1
    prediction[4, 0:2] = 1
    prediction[0, 6:9] = 1
    empty = torch.zeros(5, 6, dtype=torch.int64)
    for name, p, q in (("three regions", prediction, label), ("upside down", prediction.flip(0), label.flip(0)),
                       ("one region", prediction[:, 2:], label[:, 2:])):
        foreground = (q > 0) & (q != 255)
        shares = {c: _shares(p == c, q == c) for c in (1, 2) if (q == c).any()}
        every = sum(shares.values(), [])
        slips = {
            "all pixels in one pot, so that the large region decides: one share for each region, then their mean":
                (p == q)[foreground].float().mean(),
            "regions of two classes that touch were taken for one: number the regions of each class":
                np.mean(_shares(p == q, foreground)),
            "one share for each class: each region has its own":
                np.mean([float((p == c)[q == c].float().mean()) for c in shares]),
            "the background is no region: only classes from 1 up":
                np.mean(every + _shares(p == 0, q == 0)),
            "255 is no region: nobody knows what is there": np.mean([*every, 0.0]),
            "wrong only if background: another class is wrong too":
                np.mean(sum((_shares(p > 0, q == c) for c in shares), [])),
        }
        number(function(p.clone(), q.clone()), float(np.mean(every)), f"my_region_score, {name}", slips.items())
    nothing = function(empty.clone(), empty.clone())
    true(nothing is not None and math.isnan(float(nothing)),
         f"my_region_score of a picture without a region: expected nan (nothing to find), got {nothing}")
    print("my_region_score: correct; a small region counts as much as a large one.")


def squares_in_order(function) -> None:
    """`function(x, s)`: tokens (B, H, W, C) -> (B, N, C), those of each s x s square one after the other."""
    for b, h, w, c, s in ((1, 4, 4, 1, 2), (2, 6, 4, 3, 2), (1, 8, 16, 2, 4)):
        x = torch.arange(b * h * w * c).view(b, h, w, c)
        grid = x.view(b, h // s, s, w // s, s, c)
        slips = (("tokens in the order of the rows make strips: split H and W into (H/s, s) and (W/s, s) first, then "
                  "bring both s to the end", x.reshape(b, -1, c)),
                 ("inside each square the tokens run down the columns",
                  grid.permute(0, 1, 3, 4, 2, 5).reshape(b, -1, c)),
                 ("the squares run down the columns", grid.permute(0, 3, 1, 2, 4, 5).reshape(b, -1, c)),
                 ("channels and tokens are mixed: C stays the last axis all the way",
                  x.permute(0, 3, 1, 2).reshape(b, -1, c)),
                 ("every s-th token was taken: the squares are contiguous",
                  x.view(b, s, h // s, s, w // s, c).transpose(2, 3).reshape(b, -1, c)))
        same(function(x.clone(), s), grid.transpose(2, 3).reshape(b, -1, c), f"my_squares of {h} x {w} tokens, s = {s}",
             slips)
    print("my_squares: correct for three maps; R = s * s tokens in a row are a square.")


def weighted_config(function) -> None:
    """`function(train_set)`: a `TrainConfig` of the preset "sample-coco" with class weights from the set's labels."""
    train_set = _Drawn()
    counts = torch.bincount(torch.stack([label for _, label in train_set]).flatten(), minlength=256)
    wanted = class_weights(counts[:3].tolist())
    config = function(train_set)
    true(config is not None, "my_weighted_config: got None; is a `return` missing?")
    true(isinstance(config, TrainConfig), f"my_weighted_config: expected a sl.TrainConfig, got {type(config).__name__}")
    true(config.data == "sample-coco" and config.size == 96, 'my_weighted_config: expected the settings of '
         f'sl.TrainConfig.preset("sample-coco", ...), got data={config.data!r}, size={config.size}')
    true(config.class_weights is not None, "my_weighted_config: class_weights is not set: pass it to the preset")
    got = torch.tensor(config.class_weights)
    true(len(got) == 3, f"my_weighted_config: expected one weight for each of 3 classes, got {len(got)}; "
         "255 is no class")
    background = [int(counts[0] + counts[255]), *counts[1:3].tolist()]
    first = torch.bincount(train_set[0][1].flatten(), minlength=256)[:3].tolist()
    shares = counts[:3] / counts[:3].sum()
    slips = (("the pixels labelled 255 were counted as background", torch.tensor(class_weights(background))),
             ("only the first picture was counted", torch.tensor(class_weights(first))),
             ("the counts themselves are the weights: rare classes need the large ones", counts[:3].float()),
             ("the shares themselves are the weights: rare classes need the large ones", shares),
             ("one over the share: sl.training.class_weights takes its root and divides by the mean", 1 / shares),
             ("all classes weigh the same", torch.ones(3)))
    same(got, torch.tensor(wanted), "my_weighted_config, class_weights", slips)
    print("my_weighted_config: correct; rare classes weigh more, 255 weighs nothing.")


class _Drawn:
    """Three pictures of three classes, one of them rare, with 255 in the middle."""

    classes, ignore_index = ["background", "much", "rare"], 255

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < 3:
            raise IndexError(i)
        label = torch.zeros(10, 12 + i, dtype=torch.int64)[:, :12]
        label[: 3 + i] = 1
        label[9, : i] = 2
        label[5, 3:9] = 255
        return label.byte().expand(3, -1, -1), label

    def read_mask(self, i: int) -> np.ndarray:
        return self[i][1].byte().numpy()


def _mean_iou(confusion: np.ndarray, background: bool) -> float:
    return float(np.nanmean(iou_per_class(confusion)[0 if background else 1:]))


def _slips(confusion: np.ndarray, background: bool) -> dict[str, float]:
    """Typical mistakes of `mean_iou` and the number that each gives."""
    kept = slice(0 if background else 1, None)
    label, prediction, hit = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    iou, only_objects = iou_per_class(confusion), np.vstack([0 * confusion[:1], confusion[1:]])
    false_alarms = "and false alarms with them: leave class 0 out of the mean, not out of the counts"
    return {
        "0 / 0 of a class that is nowhere: leave it out of the mean": math.nan,
        "the background was counted (class 0 is for `background=True`)": np.nanmean(iou),
        "the background was left out": np.nanmean(iou[1:]),
        f"pixels labelled background were thrown away, {false_alarms}": _mean_iou(only_objects, background),
        f"row and column of the background were cut off, {false_alarms}": np.nanmean(iou_per_class(confusion[1:, 1:])),
        "a class that is nowhere counts as 0: leave it out": np.nan_to_num(iou)[kept].mean(),
        "a class that is predicted but not labelled has IoU 0, it is not left out": iou[kept][label[kept] > 0].mean(),
        "this is the mean recall, I / L: what is predicted wrongly belongs to the union too":
            (hit / np.maximum(label, 1))[kept].mean(),
        "intersections belong to label and prediction, so L + P counts them twice: subtract one":
            (hit / np.maximum(label + prediction, 1))[kept].mean(),
    }


def _shares(right: torch.Tensor, labelled: torch.Tensor) -> list[float]:
    """Share of right pixels of each region of a bool (H, W) map."""
    regions = connected_components(labelled.numpy())
    return [float(right.numpy()[regions == n].mean()) for n in range(1, regions.max() + 1)]
