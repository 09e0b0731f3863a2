"""Chapter 01's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

import numpy as np
import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks


def foreground(dataset, predict, first=1, mean=np.nanmean, drop=255, ignore=True, of_iou=lambda m: m):
    """Both scores from two matrices; the options are mistakes."""
    k = len(dataset.classes)
    matrices = [torch.zeros(k, k, dtype=torch.int64) for _ in range(2)]
    for i in range(len(dataset)):
        image, label = dataset[i]
        label = label if drop == 255 else torch.where(label == 255, 0, label)
        for matrix, truth in zip(matrices, (label, torch.where(label == 0, 255, label) if ignore else label)):
            matrix += sl.evaluation.confusion_matrix(predict(image), truth, k)
    return tuple(mean(sl.evaluation.iou_per_class(of_iou(m).numpy())[first:]) for m in matrices)


def by_picture(dataset, predict):
    class One:
        classes, ignore_index = dataset.classes, 255

        def __init__(self, i):
            self.i = i

        def __len__(self):
            return 1

        def __getitem__(self, _):
            return dataset[self.i]

    return tuple(np.mean([foreground(One(i), predict) for i in range(len(dataset))], axis=0))


def merge(masks, scores, stuff, descending=True, share=0.5, strict=False, blocks=False, first=1, over=False,
          count=False, order=None):
    ids, free, kept = stuff.clone(), torch.ones_like(stuff, dtype=torch.bool), 0
    for i in order(scores) if order else scores.argsort(descending=descending).tolist():
        visible, area = masks[i] & free, int(masks[i].sum())
        enough = visible.sum() > share * area if strict else visible.sum() >= share * area
        if enough:
            ids[masks[i] if over else visible] = kept + 1 if count else i + first
            kept += 1
        if enough or blocks:
            free &= ~masks[i]
    return ids


def pq(prediction, label, tie=False, void=True, forgive=0.5, fp=0.5, fn=0.5, sum_iou=True):
    predicted = [prediction == n for n in prediction.unique() if n > 0]
    labelled = [label == n for n in label.unique() if 0 < n < 255]
    valid = label != 255 if void else label == label
    table = torch.zeros(len(labelled), len(predicted))
    for i, g in enumerate(labelled):
        for j, p in enumerate(predicted):
            table[i, j] = (g & p).sum() / ((g | p) & valid).sum()
    match = table >= 0.5 if tie else table > 0.5
    hidden = torch.tensor([(label[p] == 255).float().mean() for p in predicted])
    alone = ~match.any(0) & (hidden <= forgive)
    total = table[match].sum() if sum_iou else match.sum()
    return (total / (match.any(1).sum() + fp * alone.sum() + fn * (~match.any(1)).sum())).item()


def by_stamps(x, weight, stride, padding=0, add=True, flip=False, step=None, swap=False, cut=True, turn=False):
    weight = weight.flip(2, 3) if flip else weight.transpose(2, 3) if turn else weight
    k, step = weight.shape[-1], step or stride
    weight = weight.transpose(0, 1) if swap and weight.shape[0] == weight.shape[1] else weight
    out = x.new_zeros(len(x), weight.shape[1], *((n - 1) * step + k for n in x.shape[-2:]))
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            here = out[..., i * step:i * step + k, j * step:j * step + k]
            stamp = torch.einsum("bc,cokl->bokl", x[:, :, i, j], weight)
            here.copy_(here + stamp if add else stamp)
    p = padding if cut else 0
    return out[..., p:out.shape[-2] - p, p:out.shape[-1] - p]


RIGHT = [
    (checks.foreground_scores, foreground),
    (checks.panoptic_merge, merge),
    (checks.panoptic_quality, pq),
    (checks.stamps, by_stamps),
    (checks.stamps, lambda x, w, stride, padding=0: F.conv_transpose2d(x, w, stride=stride, padding=padding)),
]
WRONG = [
    (checks.foreground_scores, lambda d, p: foreground(d, p)[::-1], "exchanged"),
    (checks.foreground_scores, lambda d, p: foreground(d, p, first=0), "class 0 is in the mean"),
    (checks.foreground_scores, lambda d, p: (foreground(d, p)[0], foreground(d, p, ignore=False)[0]), "exchanged"),
    (checks.foreground_scores, lambda d, p: foreground(d, p, drop=None), "255 were counted"),
    (checks.foreground_scores, lambda d, p: foreground(d, p, mean=np.mean), "nanmean"),
    (checks.foreground_scores, lambda d, p: foreground(d, p, mean=lambda v: np.nan_to_num(v).mean()), "counted as 0"),
    (checks.foreground_scores, by_picture, "each picture's score"),
    (checks.foreground_scores, lambda d, p: foreground(d, p)[0], "pair"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, descending=False), "lowest score"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, order=lambda s: range(len(s))), "order of the list"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, share=0), "not dropped"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, share=1), "at least half of it is free"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, strict=True), "exactly half"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, blocks=True), "still blocks"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, over=True), "not free any more"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, count=True), "kept masks"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t, first=0), "begin with 0"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, torch.zeros_like(t)), "it is stuff"),
    (checks.panoptic_merge, lambda m, s, t: merge(m, s, t).float(), "int64"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, tie=True), "no match"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, void=False), "in the union"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, forgive=1), "mostly void is no false alarm"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, forgive=0), "touches void"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, fp=0, fn=0), "SQ"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, fp=1, fn=1), "one half each"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, fp=0), "FP. were not counted"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, fn=0), "FN. were not counted"),
    (checks.panoptic_quality, lambda p, g: pq(p, g, sum_iou=False), "RQ"),
    (checks.panoptic_quality, lambda p, g: float(np.nan_to_num(pq(p, g))), "nothing to match"),
    (checks.stamps, lambda *a: by_stamps(*a, add=False), "replaced"),
    (checks.stamps, lambda *a: by_stamps(*a, flip=True), "turned round"),
    (checks.stamps, lambda *a: by_stamps(*a, turn=True), "exchanged"),
    (checks.stamps, lambda *a: by_stamps(*a, step=1), "by one pixel"),
    (checks.stamps, lambda *a: by_stamps(*a, cut=False), "not cut off"),
    (checks.stamps, lambda *a: by_stamps(*a, swap=True), "was used as"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
