"""Checks of chapter 00, the first run."""

import math

import torch

from ...models import upsample
from .expect import number, same, true


def iou(function) -> None:
    """`function(prediction, label, c)` -> IoU of class c; 255 in the label counts nowhere, NaN where it is nowhere."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        label = torch.randint(0, 4, (7, 9), generator=generator)
        prediction = torch.randint(0, 4, (7, 9), generator=generator)
        label[:2] = 255
        for c in range(4):
            valid = label != 255
            p, q = prediction == c, label == c
            painted = q | ~valid if c == 0 else q  # as if 255 were background
            wanted = ((p & q & valid).sum() / ((p | q) & valid).sum()).item()
            got = function(prediction.clone(), label.clone(), c)
            slips = {"pixels labelled 255 were counted in the prediction": (p & q).sum() / (p | q).sum(),
                     "255 was turned into background: those pixels count nowhere, throw them away":
                         (p & painted).sum() / (p | painted).sum(),
                     "divided by the label's area: that is the recall": (p & q & valid).sum() / q.sum(),
                     "divided by the sum of both areas: that is half of the Dice":
                         (p & q & valid).sum() / ((p & valid).sum() + q.sum()),
                     "that is the Dice: IoU divides the intersection by the union":
                         2 * (p & q & valid).sum() / ((p & valid).sum() + q.sum()),
                     "that is the share of right pixels: count one class": (p == q)[valid].float().mean(),
                     "that is the share of right pixels over all classes: count one class":
                         (prediction == label)[valid].float().mean(),
                     "all pixels were counted, not one class": (prediction == label).float().mean()}
            number(got, wanted, f"my_iou, class {c}", slips.items(), within=1e-5)
    label = torch.zeros(3, 3, dtype=torch.int64)
    absent = function(label, label, 2)
    true(absent is not None, "my_iou: for a class in neither map return float('nan'), not None")
    true(math.isnan(float(absent)),
         "my_iou: a class in neither map must give float('nan'): there was nothing to find")
    label[0] = 1
    true(float(function(torch.zeros_like(label), label, 1)) == 0, "my_iou: a class that was missed must give 0")
    print("my_iou: correct, also for pixels that count nowhere and for absent classes.")


def label_map(function) -> None:
    """`function(logits, size)`: (B, K, h, w) -> int64 (B, *size), upsampled before the decision."""
    generator = torch.Generator().manual_seed(0)
    for b, k, h, w, size in ((1, 3, 4, 5, (16, 20)), (2, 7, 9, 6, (33, 23))):
        logits = torch.randn(b, k, h, w, generator=generator)
        wanted = upsample(logits, size).argmax(1)
        nearest = torch.nn.functional.interpolate(logits.argmax(1, keepdim=True).float(), size=size)[:, 0].long()
        corners = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=True).argmax(1)
        got = function(logits.clone(), size)
        same(got, wanted, f"my_label_map({tuple(logits.shape)}, {size})",
             (('the outlines are steps: either the labels were enlarged, not the logits, or mode="bilinear" is '
               "missing (PyTorch's default is nearest)", nearest),
              ("align_corners=True: that shifts everything towards the border", corners),
              ("the logits were enlarged but no class was chosen", upsample(logits, size))))
        true(got.dtype == torch.int64, f"my_label_map: labels are whole numbers (int64), got {got.dtype}")
    print("my_label_map: correct for two sizes.")


class _Tiny:
    """Three label maps of different sizes with some pixels labelled 255."""

    classes, ignore_index = ["background", "a", "b", "never"], 255
    labels = [torch.tensor([[0, 0, 1, 255]]), torch.tensor([[2, 2], [255, 255]]), torch.tensor([[0], [0], [1]])]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return torch.zeros(3, *self.labels[i].shape, dtype=torch.uint8), self.labels[i].clone()


def class_shares(function) -> None:
    """`function(dataset)` -> share of each class among the labelled pixels, float (K,)."""
    got = function(_Tiny())
    true(got is not None, "my_class_shares: got None; is a `return` missing?")
    got, count = torch.as_tensor(got).float(), len(_Tiny.classes)
    if got.ndim == 1 and len(got) != count:
        cause = ("drop the pixels labelled 255" if len(got) == 256 else
                 f"{len(got)} is written in; use len(dataset.classes), and it as minlength")
        raise AssertionError(f"my_class_shares: got {len(got)} shares for a data set with {count} classes. "
                             f"Likely cause: {cause}.")
    same(got, torch.tensor([4, 2, 2, 0]) / 8, "my_class_shares on a data set with 8 labelled pixels of 11",
         (("divided by all pixels, those labelled 255 among them", torch.tensor([4, 2, 2, 0]) / 11),
          ("these are counts: divide by their sum", torch.tensor([4.0, 2, 2, 0])),
          ("the mean of each picture's shares: large pictures must count more",
           torch.tensor([[2, 1, 0, 0], [0, 0, 3, 0], [2, 1, 0, 0]]).div(3).mean(0))))
    print("my_class_shares: correct.")
