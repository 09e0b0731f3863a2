"""Checks of chapter 11, receptive fields."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...analysis import Probe, ReceptiveField
from ...models import EfficientSelfAttention, SegFormer
from .expect import likely, same, true


class Squares(nn.Module):
    """A network whose gradient depends on its input: a bright picture has more of it than a dark one."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
        self.last = nn.Parameter(torch.randn(5, 6, 3, 3, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.first, padding=1, stride=2).square(), self.last, padding=1)


def erf_map(function) -> None:
    """`function(network, images, row, column)` -> (H, W): the field of a place of the network's output map."""
    network = Squares()
    for count, height, width, row, column in ((1, 16, 16, 3, 3), (3, 14, 20, 5, 2), (4, 24, 18, 3, 5)):
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))
        images *= 4.0 ** torch.arange(count).view(-1, 1, 1, 1)  # from quiet to loud
        before = images.clone()

        def field(relu=True, absolute=True, colours=False, each=True, whole=True, images=images, place=(row, column)):
            x = images.clone().requires_grad_()
            feature = network(x)
            feature = (feature.relu() if relu else feature)[:, :, place[0] % feature.shape[2],
                                                            place[1] % feature.shape[3]]
            gradient, = torch.autograd.grad(feature.sum(), x)
            if colours:
                gradient = gradient.sum(1, keepdim=True)
            maps = (gradient.abs() if absolute else gradient).sum(1)
            maps = maps / maps.sum((1, 2), keepdim=True) if each else maps
            return maps.mean(0) / (maps.mean(0).sum() if whole else 1)

        slips = (
            ("no ReLU: channels below zero must be silent", field(relu=False)),
            ("the gradient's sign is kept: take its absolute value before colours or pictures are summed",
             field(absolute=False)),
            ("the colours are summed before the absolute value: they cancel", field(colours=True)),
            ("averaged first, then made 1: the loudest picture drowns the others", field(each=False)),
            ("the map is not divided by its sum", field(each=False, whole=False)),
            ("row and column are exchanged", field(place=(column, row))),
        )
        wanted, got = field(), function(network, images, row, column)
        what = f"my_field, {count} pictures of {height} x {width} px, place ({row}, {column})"
        true(torch.equal(images, before), f"{what}: the pictures were changed: work on a clone")
        same(got.detach() if isinstance(got, Tensor) else got, wanted, what, slips)
    print("my_field: correct, for one picture and for several of different strength.")


def erf_side(function) -> None:
    """`function(field, pixel, share)` -> px of the smallest square around `pixel` that holds `share` of the mass."""
    rng = np.random.default_rng(0)
    for height, width, pixel, share in ((21, 21, (10, 10), 0.5), (40, 30, (8, 19), 0.3), (24, 36, (12, 3), 0.95),
                                        (9, 9, (4, 4), 1.0)):
        y, x = np.mgrid[:height, :width]
        values = np.exp(-((y - pixel[0]) ** 2 + (x - pixel[1]) ** 2) / 60) * rng.random((height, width))
        values /= values.sum()
        field = ReceptiveField(values, "", "", pixel)
        wanted, (rows, columns) = field.side(share), field.extent(share)
        slips = {
            "that is the reach to one side; the square is 2 * reach + 1 wide": (wanted - 1) // 2,
            "2 * reach leaves out the pixel itself: 2 * reach + 1": wanted - 1,
            "that is the square's area, not its side": wanted**2,
            "the square must be centred on the pixel, not on the picture":
                ReceptiveField(values, "", "", (height // 2, width // 2)).side(share),
            "that counts the pixels above a share of the largest value; the measure is a share of the sum":
                int((values >= share * values.max()).sum()),
            "only rows are looked at": rows,
            "only columns are looked at": columns,
        }
        what = f"my_side, {height} x {width} px, pixel {pixel}, share {share}"
        got = function(torch.from_numpy(values), pixel, share)
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(isinstance(got, int | float | np.number | Tensor), f"{what}: expected a number, got {type(got).__name__}")
        causes = [cause for cause, value in slips.items() if value == got]
        hint = likely(causes)
        true(float(got) == wanted, f"{what}: expected {wanted}, got {float(got):g}.{hint}")
    print("my_side: correct for four fields, also where the pixel is not in the middle.")


def erf_spread(function) -> None:
    """`function(layers)`, a list of (kernel, stride) -> standard deviation in px of a stack of box filters' field."""
    for layers in ([(3, 1)], [(3, 1)] * 5, [(5, 1), (3, 1)], [(3, 2), (3, 1)], [(3, 2), (5, 3), (3, 1), (7, 2)]):
        steps = [math.prod(stride for _, stride in layers[:i]) for i in range(len(layers))]
        variances = [step**2 * (kernel**2 - 1) / 12 for step, (kernel, _) in zip(steps, layers, strict=True)]
        wanted = math.sqrt(sum(variances))
        slips = {
            "variances add up, standard deviations do not: add first, then take the root":
                sum(map(math.sqrt, variances)),
            "that is the variance: take the root": sum(variances),
            "the strides before a layer multiply the width of its box": math.sqrt(
                sum((k**2 - 1) / 12 for k, _ in layers)),
            "the variance of K equal steps is (K² - 1) / 12; K² / 12 is that of a continuous box": math.sqrt(
                sum(step**2 * k**2 / 12 for step, (k, _) in zip(steps, layers, strict=True))),
            "a layer's own stride acts on the layers behind it, not on itself": math.sqrt(
                sum((step * s) ** 2 * (k**2 - 1) / 12 for step, (k, s) in zip(steps, layers, strict=True))),
        }
        what = f"my_spread({layers})"
        got = function(list(layers))
        true(got is not None, f"{what}: got None; is a `return` missing?")
        got = float(got)
        causes = [cause for cause, value in slips.items() if math.isclose(value, got, rel_tol=1e-6)]
        hint = likely(causes)
        true(math.isclose(got, wanted, rel_tol=1e-6), f"{what}: expected {wanted:.4f} px, got {got:.4f}.{hint}")
    print("my_spread: correct for five stacks, strides among them.")


def own_token_model(model) -> None:
    """A SegFormer whose attention lets each token see itself only: its stage 1 sees 23 x 23 px, no more."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    true(model.num_classes == 5, f"expected 5 classes, got {model.num_classes}: pass num_classes=5")
    true(model.encoder.dims[1] == 64, 'expected a SegFormer-B0: create_model("segformer_b0", ...)')
    for number, stage in enumerate(model.encoder.stages, start=1):
        for block in stage.blocks:
            true(type(block.attention) is not EfficientSelfAttention,
                 f"stage {number} still has the package's EfficientSelfAttention: pass attention=… to create_model")
    attention = model.encoder.stages[1].blocks[0].attention
    x = torch.randn(2, 4, 6, 64, generator=torch.Generator().manual_seed(0))
    got = attention(x)
    true(isinstance(got, Tensor) and got.shape == x.shape,
         f"OwnToken: {tuple(x.shape)} must become the same shape, got {tuple(getattr(got, 'shape', ()))}")
    changed = x.clone()
    changed[1, 2, 3] += 1
    where = (attention(changed) - got).abs().amax(-1).gt(1e-6).nonzero().tolist()
    true([1, 2, 3] in where, "OwnToken: a changed token leaves its own output as it was: nothing is handed on")
    true(where == [[1, 2, 3]], f"OwnToken: token [1, 2, 3] was changed, and the outputs of {len(where)} tokens moved; "
                               "only its own may: a map of the last axis sees no other token")
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    probe = Probe(model, noise, ["stage1", "stage4"])
    seen = probe("stage1").side(1.0)
    true(seen <= 23, f"a place of stage 1 sees a square of {seen} px; patch embedding and two Mix-FFN reach 23 px, so "
                     "something else looks further")
    print(f"own_token_model: correct; stage 1 sees {seen} x {seen} px and no more, "
          f"half of its mass lies in {probe('stage1').side(0.5)} px.")
