"""Chapter 00's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects

from segformer_lite.course import checks


def iou(prediction, label, c, ignore=True, over="union"):
    valid = label != 255 if ignore else torch.ones_like(label, dtype=torch.bool)
    p, q = (prediction == c) & valid, (label == c) & valid
    area = {"union": (p | q), "label": q}[over].sum().item() if over != "sum" else (p.sum() + q.sum()).item()
    return (p & q).sum().item() / area if area else float("nan")


def label_map(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)


def class_shares(dataset, drop=True):
    labels = torch.cat([dataset[i][1].flatten() for i in range(len(dataset))])
    counts = torch.bincount(labels[labels != 255], minlength=len(dataset.classes))
    return counts / (counts.sum() if drop else len(labels))


class One:
    """One item of a data set as a data set."""

    def __init__(self, dataset, i):
        self.item, self.classes = dataset[i], dataset.classes

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self.item


RIGHT = [
    (checks.iou, iou),
    (checks.label_map, label_map),
    (checks.class_shares, class_shares),
    (checks.class_shares, lambda dataset: class_shares(dataset).tolist()),
]
WRONG = [
    (checks.iou, lambda p, q, c: iou(p, q, c, ignore=False), "255"),
    (checks.iou, lambda p, q, c: iou(p, q, c, over="label"), "recall"),
    (checks.iou, lambda p, q, c: iou(p, q, c, over="sum"), "Dice"),
    (checks.iou, lambda p, q, c: (p == q).float().mean().item(), "one class"),
    (checks.iou, lambda p, q, c: (p == q)[q != 255].float().mean().item(), "share of right pixels over all"),
    (checks.iou, lambda p, q, c: ((p == c) == (q == c))[q != 255].float().mean().item(), "share of right pixels:"),
    (checks.iou, lambda p, q, c: 2 * iou(p, q, c) / (1 + iou(p, q, c)), "that is the Dice"),
    (checks.iou, lambda p, q, c: iou(p, q.where(q != 255, 0), c), "255 was turned into background"),
    (checks.iou, lambda p, q, c: None if iou(p, q, c) != iou(p, q, c) else iou(p, q, c), r"float\('nan'\), not None"),
    (checks.iou, lambda p, q, c: 0.0 if iou(p, q, c) != iou(p, q, c) else iou(p, q, c), "nan"),
    (checks.label_map, lambda x, s: F.interpolate(x.argmax(1, keepdim=True).float(), size=s)[:, 0].long(), "steps"),
    (checks.label_map, lambda x, s: F.interpolate(x, size=s).argmax(1), 'mode="bilinear" is missing'),
    (checks.label_map, lambda x, s: F.interpolate(x, size=s, mode="bilinear", align_corners=True).argmax(1), "corners"),
    (checks.label_map, lambda x, s: F.interpolate(x, size=s, mode="bilinear", align_corners=False), "no class"),
    (checks.label_map, lambda x, s: label_map(x, s).float(), "int64"),
    (checks.class_shares, lambda d: class_shares(d, drop=False), "all pixels"),
    (checks.class_shares, lambda d: class_shares(d) * 8, "counts"),
    (checks.class_shares, lambda d: torch.stack([class_shares(One(d, i)) for i in range(len(d))]).mean(0),
     "mean of each picture"),
    (checks.class_shares, lambda d: F.pad(class_shares(d), (0, 7)), "got 11 shares .* 4 classes.*len.dataset.classes"),
    (checks.class_shares, lambda d: F.pad(class_shares(d), (0, 252)), "drop the pixels labelled 255"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
