"""Checks of chapter 12, robustness."""

import numpy as np
import torch
from torch import nn

from ...analysis.corruptions import FAMILIES, Corrupted, counted
from ...evaluation import evaluate
from .expect import number, same


def swap_pixels(function) -> None:
    """`function(image, a, b)`: the image (3, H, W) with the pixels at `a` and `b`, (row, column), exchanged."""
    generator = torch.Generator().manual_seed(0)
    for size, a, b in (((4, 6), (0, 1), (3, 5)), ((5, 5), (2, 4), (4, 1)), ((3, 7), (1, 2), (1, 3))):
        image = torch.randperm(3 * size[0] * size[1], generator=generator).reshape(3, *size).float()
        swapped = image.clone()
        swapped[:, a[0], a[1]], swapped[:, b[0], b[1]] = image[:, b[0], b[1]], image[:, a[0], a[1]]
        lost = "the pixel at {} was lost, that at {} is there twice: image[:, y, x] is a view, not a copy"
        twice = {}
        for place, other in ((a, b), (b, a)):
            twice[place] = image.clone()
            twice[place][:, place[0], place[1]] = image[:, other[0], other[1]]
        one = image.clone()
        one[0] = swapped[0]
        slips = ((lost.format(a, b), twice[a]), (lost.format(b, a), twice[b]), ("nothing was exchanged", image),
                 ("only the first channel was exchanged: a pixel has three", one))
        same(function(image.clone(), a, b), swapped, f"my_swap of {a} and {b} in {size[0]} x {size[1]} px", slips)
    print("my_swap: correct; both pixels are still there.")


def retention(function) -> None:
    """`function(scores, clean)`: corruption -> mIoU at severities 1 to 5, clean mIoU -> retention over all."""
    rng = np.random.default_rng(0)
    for names in ([n for group in FAMILIES.values() for n in group], ["fog", "shot_noise", "contrast"], ["snow"]):
        scores = {name: np.sort(rng.uniform(0.05, 0.7, 5))[::-1].tolist() for name in names}
        clean = float(rng.uniform(0.7, 0.9))
        used = [[values[s - 1] for s in counted(name)] for name, values in scores.items()]
        mean = np.mean([np.mean(values) for values in used])
        slips = (("severities 4 and 5 of noise count too: they are left out",
                  np.mean(list(scores.values())) / clean),
                 ("only severities 1 to 3 of everything: that holds for noise alone",
                  np.mean([values[:3] for values in scores.values()]) / clean),
                 ("all conditions were thrown into one mean: average each corruption first",
                  np.mean(np.concatenate(used)) / clean),
                 ("not divided by the clean mIoU", mean),
                 ("per cent: give a share", 100 * mean / clean),
                 ("upside down: the corrupted mIoU is divided by the clean one", clean / mean),
                 ("that is what is lost, not what is kept", 1 - mean / clean))
        number(function({name: list(v) for name, v in scores.items()}, clean), mean / clean,
               f"my_retention of {len(names)} corruption{'s' * (len(names) > 1)}", slips, within=1e-6)
    print("my_retention: correct; each corruption weighs the same.")


class Threshold(nn.Module):
    """A network of two classes, dark and bright, which noise and light easily mislead."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 5, padding=2, padding_mode="replicate")
        self.conv.weight.data = torch.stack([torch.full((3, 5, 5), sign / 75) for sign in (-1.0, 1.0)])
        self.conv.bias.data.zero_()

    def forward(self, x):
        return self.conv(x)


class Stripes:
    """Three pictures of bright and dark stripes, labelled so, on which size and corruption matter."""

    classes, palette, ignore_index = ["dark", "bright"], np.zeros((256, 3), np.uint8), 255
    names = ("one", "two", "three")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        label = (torch.arange(64) // (3 + index) % 2).expand(64, 64).clone()
        return (60 + 120 * label).to(torch.uint8).expand(3, -1, -1).clone(), label


def corrupted_score(function) -> None:
    """`function(model, dataset, name, size)`: mean mIoU over the severities that count, pictures at `size` px."""
    model, dataset = Threshold().eval(), Stripes()

    def score(name: str, severities, size: int | None) -> float:
        return float(np.mean([evaluate(model, Corrupted(dataset, name, s), size, progress=False).miou
                              for s in severities]))

    for name, size in (("gaussian_noise", 64), ("contrast", 32)):
        slips = (("the pictures were not corrupted", (0,), size),
                 ("severities 4 and 5 of noise count too: ask counted(name)", range(1, 6), size),
                 ("only severities 1 to 3: that holds for noise alone, ask counted(name)", (1, 2, 3), size),
                 ("one severity only", (3,), size), ("one severity only", (1,), size),
                 ("the size is missing: the network must see the pictures at `size` px", counted(name), None))
        number(function(model, dataset, name, size), score(name, counted(name), size),
               f"my_score under {name} at {size} px", ((cause, score(name, *how)) for cause, *how in slips),
               within=1e-6)
    print("my_score: correct; the severities that count, at the size that was trained.")


def wrong_elements(function) -> None:
    """`function(wrong, angles, elements)`: error (angles, elements) of elements that misread at every angle."""
    for wrong, angles, elements in (({3: 1.5}, 4, 7), ({0: -1.0, 4: 2.0}, 6, 5), ({2: 0.5, 5: 1.0}, 8, 8)):
        error = torch.zeros(angles, elements)
        rows = torch.zeros(angles, elements)
        first = torch.zeros(angles, elements)
        for element, offset in wrong.items():
            error[:, element] = offset
            rows[element % angles] = offset
            first[0, element] = offset
        slips = (("one moment is wrong, not one element: rows are angles, columns are elements", rows),
                 ("wrong at one angle only: such an element always misreads", first),
                 ("angles and elements are exchanged", error.T.contiguous()),
                 ("every offset became 1", (error != 0).float()))
        same(function(dict(wrong), angles, elements), error, f"my_error with {wrong}, {angles} angles and {elements} "
             "elements", slips)
    print("my_error: correct; every column of it becomes a ring.")
