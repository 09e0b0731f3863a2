"""Checks of chapter 01, what segmentation is."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation import confusion_matrix, iou_per_class
from .expect import number, same, true


class _Scenes:
    """Three label maps with pixels labelled 255 and a class that never occurs; the image holds the prediction."""

    classes, ignore_index = ["background", "a", "b", "never"], 255

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.items = []
        for height, width in ((8, 8), (6, 11), (5, 4)):
            label = torch.zeros(height, width, dtype=torch.int64)
            label[1:4, 1:3], label[2:5, 3:] = 1, 2
            label[0] = 255
            prediction = torch.where(torch.rand(height, width, generator=generator) < 0.4, 1, label)
            prediction[0], prediction[-1, 0], prediction[3, 1] = 2, 3, 0
            self.items.append((prediction.to(torch.uint8).expand(3, height, width), label))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        image, label = self.items[i]
        return image.clone(), label.clone()


def foreground_scores(function) -> None:
    """`function(dataset, predict)` -> mean IoU without class 0: as labelled, and with the background as 255."""
    scenes = _Scenes()

    def predict(image: Tensor) -> Tensor:
        return image[0].long()

    def counts(ignored: bool, label_too: bool = True) -> list[np.ndarray]:
        matrices = []
        for image, label in (scenes[i] for i in range(len(scenes))):
            prediction = predict(image)
            truth = torch.where(label == 0, 255, label) if ignored else label
            truth = truth if label_too else torch.where(label == 255, 0, truth)
            matrices.append(confusion_matrix(prediction, truth, 4).numpy())
        return matrices

    def mean(matrices: list[np.ndarray], first: int = 1, nan: float | None = None) -> float:
        iou = iou_per_class(sum(matrices))[first:]
        return float(np.nanmean(iou if nan is None else np.nan_to_num(iou, nan=nan)))

    wanted = mean(counts(False)), mean(counts(True))
    got = function(scenes, predict)
    true(got is not None, "my_foreground_scores: got None; is a `return` missing?")
    true(isinstance(got, tuple | list) and len(got) == 2,
         "my_foreground_scores: expected the pair (labelled, ignored)")
    for which, ignored in (("labelled", False), ("ignored", True)):
        by_picture = [mean([m]) for m in counts(ignored)]
        slips = {"the two scores are exchanged": wanted[not ignored],
                 "a class that gives not a number was counted as 0": mean(counts(ignored), nan=0),
                 "class 0 is in the mean": mean(counts(ignored), first=0),
                 "the mean of each picture's score: add up one matrix over the data set": np.mean(by_picture),
                 "pixels labelled 255 were counted": mean(counts(ignored, label_too=False)),
                 "a plain mean over a class that gives not a number: np.nanmean leaves it out": math.nan}
        number(got[ignored], wanted[ignored], f"my_foreground_scores, background {which}", slips.items(), within=1e-6)
    print(f"my_foreground_scores: correct; {wanted[0]:.2f} with the background labelled, "
          f"{wanted[1]:.2f} with it ignored.")


def panoptic_merge(function) -> None:
    """`function(masks, scores, stuff)`: bool (N, H, W), (N,), int64 (H, W) -> ids int64 (H, W)."""
    slips = {"the mask with the lowest score came first": {"descending": False},
             "the masks were taken in the order of the list, not of their scores": {"descending": None},
             "masks that are mostly hidden were not dropped": {"share": 0.0},
             "a mask of which exactly half is free is kept": {"strict": True},
             "a mask was dropped though at least half of it is free": {"share": 1.0},
             "a dropped mask still blocks those after it: only a kept one takes pixels": {"blocks": True},
             "a mask took pixels that were not free any more": {"overwrite": True},
             "ids count the kept masks: mask i has the id i + 1, kept or not": {"renumber": True},
             "ids begin with 0: mask i has the id i + 1": {"first": 0},
             "what no mask takes became 0: it is stuff": {"no_stuff": True}}
    stuff = torch.full((8, 10), 12)
    stuff[:4], stuff[7] = 11, 255

    def box(top: int, left: int, bottom: int, right: int) -> Tensor:
        mask = torch.zeros(8, 10, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return mask

    cases = [([box(0, 0, 4, 4)], [0.3]),
             ([box(1, 1, 4, 7), box(0, 0, 4, 6), box(3, 4, 8, 8)], [0.6, 0.9, 0.5]),
             ([box(2, 2, 6, 6), box(0, 0, 4, 4), box(5, 5, 8, 10)], [0.9, 0.8, 0.95]),
             ([box(0, 0, 4, 6), box(0, 4, 4, 8)], [0.4, 0.7]),
             ([box(0, 0, 6, 6), box(1, 3, 7, 8), box(3, 7, 8, 10)], [0.9, 0.6, 0.5]),
             ([box(1, 3, 7, 8), box(4, 4, 7, 10), box(0, 0, 6, 6)], [0.6, 0.3, 0.9]),
             ([box(0, 0, 4, 4), box(0, 0, 4, 8)], [0.9, 0.5])]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        corners = torch.randint(0, 4, (5, 2), generator=generator).tolist()
        cases.append(([box(t, w, t + 4, w + 5) for t, w in corners], torch.rand(5, generator=generator).tolist()))
    for masks, scores in cases:
        masks, scores = torch.stack(masks), torch.tensor(scores)
        got = function(masks.clone(), scores.clone(), stuff.clone())
        results = [(cause, _merge(masks, scores, stuff, **slip)) for cause, slip in slips.items()]
        same(got, _merge(masks, scores, stuff), f"my_merge of {len(masks)} masks", results)
    true(got.dtype == torch.int64, f"my_merge: ids are whole numbers (int64), got {got.dtype}")
    print("my_merge: correct; no pixel twice, and what is mostly hidden is dropped.")


def _merge(masks, scores, stuff, descending=True, share=0.5, strict=False, blocks=False, overwrite=False,
           renumber=False, first=1, no_stuff=False) -> Tensor:
    ids, free, kept = torch.zeros_like(stuff) if no_stuff else stuff.clone(), torch.ones_like(stuff) > 0, 0
    order = range(len(scores)) if descending is None else scores.argsort(descending=descending).tolist()
    for i in order:
        visible, area = masks[i] & free, masks[i].sum().item()
        keep = visible.sum().item() >= share * area and not (strict and 2 * visible.sum().item() == area)
        if keep:
            ids[masks[i] if overwrite else visible] = kept + 1 if renumber else i + first
            kept += 1
        if keep or blocks:
            free = free & ~masks[i]
    return ids


def panoptic_quality(function) -> None:
    """`function(prediction, label)` -> PQ of one class in one picture; 255 in the label is void."""
    slips = {"IoU of exactly one half is no match": {"tie": True},
             "void pixels were counted in the union": {"void": False},
             "a prediction that is mostly void is no false alarm": {"forgive": 2.0},
             "every prediction that touches void was forgiven: more than half of it must be void": {"forgive": 0.0},
             "that is SQ: the sum was divided by the matches only": {"weights": (0, 0)},
             "FP and FN count one half each": {"weights": (1, 1)},
             "false alarms (FP) were not counted": {"weights": (0, 0.5)},
             "missed segments (FN) were not counted": {"weights": (0.5, 0)},
             "that is RQ: sum the IoU of the matches, not the matches": {"counted": True}}
    cases = [("1111000022 1111000022 1111003300 0000003300", "1110000222 1110000022 1110033000 4400033000"),
             ("11110000 11110000 00000000 00000000", "11000000 11000000 00000022 00000022"),  # a tie, a false alarm
             ("vvvv0011 vvvv0011 vvvv0000 22220000", "33300011 33300011 30000000 02220044"),  # 3 lies in void
             ("vvvv0000 vvvv0000 00000011 00000011", "22222000 00000000 03330011 00000011"),  # 2 mostly in void
             ("vv000000 vv000000 00000011 00000011", "02222000 00000000 00000011 00000011"),  # 2 partly in void
             ("vv1111vv vv1111vv vv1111vv 00000000", "11111111 11111111 11111111 00000000"),  # union in void
             ("11110000 11110000", "00000000 00000000"), ("00000000 00000000", "00550000 00550000")]
    for rows, others in cases:
        label, prediction = _ids(rows), _ids(others)
        what = f"my_panoptic_quality of label {rows!r} and prediction {others!r} (v is 255)"
        got = function(prediction.clone(), label.clone())
        wrong = ((cause, _pq(prediction, label, **slip)) for cause, slip in slips.items())
        number(got, _pq(prediction, label), what, wrong, within=1e-5)
    empty = torch.zeros(3, 4, dtype=torch.int64)
    for label, prediction in ((empty, empty), (empty + 255, empty + 1)):
        value = function(prediction.clone(), label.clone())
        true(value is not None and math.isnan(float(value)),
             f"my_panoptic_quality: nothing to match and no false alarm must give float('nan'), got {value}")
    print("my_panoptic_quality: correct, with ties, with void and with nothing at all.")


def _ids(rows: str) -> Tensor:
    return torch.tensor([[255 if c == "v" else int(c) for c in row] for row in rows.split()])


def _pq(prediction, label, tie=False, void=True, forgive=0.5, weights=(0.5, 0.5), counted=False) -> float:
    """PQ by plain loops; the options are typical mistakes."""
    valid = label != 255 if void else torch.ones_like(label, dtype=torch.bool)
    predicted = {n: prediction == n for n in prediction.unique().tolist() if n}
    labelled = {n: label == n for n in label.unique().tolist() if n not in (0, 255)}
    total, partners, answered = 0.0, set(), set()
    for g, there in labelled.items():
        for p, here in predicted.items():
            both, either = (here & there).sum().item(), ((here | there) & valid).sum().item()
            if 2 * both > either or (tie and 2 * both == either):
                total += 1 if counted else both / either
                partners.add(p)
                answered.add(g)
    alone = [p for p, here in predicted.items() if p not in partners
             and ((label[here] == 255).float().mean().item() <= forgive)]
    weight = len(answered) + weights[0] * len(alone) + weights[1] * (len(labelled) - len(answered))
    return total / weight if weight else math.nan


def stamps(function) -> None:
    """`function(x, weight, stride, padding)`: transposed convolution of (B, in, H, W) by (in, out, K, K)."""
    generator = torch.Generator().manual_seed(0)
    for b, c, out, h, w, k, s, p in ((1, 1, 1, 2, 3, 3, 2, 0), (2, 3, 2, 4, 3, 3, 2, 0), (1, 2, 2, 3, 5, 4, 2, 1),
                                     (2, 2, 2, 4, 4, 5, 3, 2), (1, 3, 1, 3, 2, 2, 3, 0), (1, 1, 2, 5, 4, 3, 1, 1)):
        x, weight = torch.randn(b, c, h, w, generator=generator), torch.randn(c, out, k, k, generator=generator)
        wanted = F.conv_transpose2d(x, weight, stride=s, padding=p)
        slips = [("the kernel was turned round: a stamp is pressed as it is",
                  F.conv_transpose2d(x, weight.flip(2, 3), stride=s, padding=p)),
                 ("rows and columns of the kernel are exchanged",
                  F.conv_transpose2d(x, weight.transpose(2, 3), stride=s, padding=p)),
                 ("the padding was not cut off", F.conv_transpose2d(x, weight, stride=s)),
                 ("a later stamp replaced an earlier one: add them", _replaced(x, weight, s, p))]
        if c == out:
            slips.append(("weight is (in, out, K, K), it was used as (out, in, K, K)",
                          F.conv_transpose2d(x, weight.transpose(0, 1), stride=s, padding=p)))
        if s > 1:
            slips.append(("the stamps moved by one pixel, not by the stride", F.conv_transpose2d(x, weight, padding=p)))
        what = f"my_stamps({tuple(x.shape)}, {tuple(weight.shape)}, stride={s}, padding={p})"
        same(function(x.clone(), weight.clone(), s, p), wanted, what, slips)
    weight = torch.randn(2, 3, 3, 3, generator=generator)
    pixels = torch.eye(3 * 7 * 7).reshape(-1, 3, 7, 7)
    matrix = F.conv2d(pixels, weight, stride=2).flatten(1).T  # 18 x 147: the convolution from 3 to 2 channels
    y = torch.randn(1, 2, 3, 3, generator=generator)
    got = function(y, weight, 2)
    same(got.flatten(), matrix.T @ y.flatten(), "my_stamps against the transposed matrix of a convolution")
    print("my_stamps: correct for six settings, and equal to the transposed matrix of a convolution.")


def _replaced(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Stamps that overwrite each other, for the message."""
    _, _, h, w = x.shape
    k = weight.shape[-1]
    out = x.new_zeros(len(x), weight.shape[1], (h - 1) * stride + k, (w - 1) * stride + k)
    for i in range(h):
        for j in range(w):
            stamp = torch.einsum("bc,cokl->bokl", x[:, :, i, j], weight)
            out[..., i * stride:i * stride + k, j * stride:j * stride + k] = stamp
    return out[..., padding:out.shape[-2] - padding, padding:out.shape[-1] - padding]
