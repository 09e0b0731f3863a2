"""The checks of chapter 11: each accepts the right answer, rejects the stub and typical mistakes, and says why."""

import math
from functools import partial

import torch
from checks_table import accepts, complete, rejects
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks


def field(network, images, row, column, relu=True, absolute=True, colours=False, each=True, place=None):
    x = images.clone().requires_grad_()
    feature = network(x)
    feature = feature.relu() if relu else feature
    feature[:, :, row % feature.shape[2], column % feature.shape[3]].sum().backward()
    gradient = x.grad.sum(1, keepdim=True) if colours else x.grad
    maps = (gradient.abs() if absolute else gradient).sum(1)
    maps = maps / maps.sum((1, 2), keepdim=True) if each else maps
    return maps.mean(0) / maps.mean(0).sum()


def unscaled(network, images, row, column):
    x = images.clone().requires_grad_()
    network(x)[:, :, row, column].relu().sum().backward()
    return x.grad.abs().sum(1).mean(0)


def in_place(network, images, row, column):
    result = field(network, images, row, column)
    images.zero_()
    return result


def side(values, pixel, share, reach=False):
    rows, columns = (torch.arange(n) - p for n, p in zip(values.shape, pixel, strict=True))
    rings = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    r = next(r for r in range(max(values.shape)) if values[rings <= r].sum() >= share - 1e-9)
    return r if reach else 2 * r + 1


def rows_only(values, pixel, share):
    rows = (torch.arange(values.shape[0]) - pixel[0]).abs()
    return next(2 * r + 1 for r in range(99) if values[rows <= r].sum() >= share - 1e-9)


def spread(layers, strided=True, own=False, slip=0, root=True, together=True):
    parts, step = [], 1
    for kernel, stride in layers:
        at = step * stride if own else step
        parts.append((at if strided else 1) ** 2 * (kernel**2 - 1 + slip) / 12)
        step *= stride
    total = sum(parts) if together else sum(map(math.sqrt, parts)) ** 2
    return math.sqrt(total) if root else total


class OwnToken(nn.Module):
    def __init__(self, dim, heads, stride):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        return self.proj(x)


class Inherited(sl.EfficientSelfAttention):
    """As right as one written from nothing."""

    def forward(self, x):
        return self.proj(self.kv(x)[..., x.shape[-1]:])


class Mean(OwnToken):
    def forward(self, x):
        return self.proj(x) + x.mean((1, 2), keepdim=True)


class Window(OwnToken):
    def forward(self, x):
        return nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)


class Nothing(OwnToken):
    def forward(self, x):
        return torch.zeros_like(x)


class Wide(OwnToken):
    """Its own token in stage 2, where the check looks first, and another far away in stage 1."""

    def forward(self, x):
        return self.proj(x) + (x.roll(3, 1) if x.shape[-1] == 32 else 0)


class OtherShape(OwnToken):
    def forward(self, x):
        return x.flatten(1, 2)


def network(attention, name="segformer_b0", classes=5):
    return sl.create_model(name, num_classes=classes, attention=attention)


RIGHT = [
    (checks.erf_map, field),
    (checks.erf_side, side),
    (checks.erf_spread, spread),
    (checks.own_token_model, partial(network, OwnToken)),
    (checks.own_token_model, partial(network, Inherited)),
]
WRONG = [
    (checks.erf_map, lambda *a: field(*a, relu=False), "ReLU"),
    (checks.erf_map, lambda *a: field(*a, absolute=False), "sign"),
    (checks.erf_map, lambda *a: field(*a, colours=True), "colours are summed"),
    (checks.erf_map, lambda *a: field(*a, each=False), "averaged first"),
    (checks.erf_map, unscaled, "not divided"),
    (checks.erf_map, lambda n, i, row, column: field(n, i, column, row), "exchanged"),
    (checks.erf_map, lambda *a: field(*a)[None], "expected shape"),
    (checks.erf_map, in_place, "clone"),
    (checks.erf_side, lambda *a: "41", "a number"),
    (checks.erf_side, lambda *a: side(*a, reach=True), "reach to one side"),
    (checks.erf_side, lambda *a: side(*a) - 1, "leaves out the pixel itself"),
    (checks.erf_side, lambda *a: side(*a) ** 2, "area"),
    (checks.erf_side, lambda v, pixel, share: side(v, (v.shape[0] // 2, v.shape[1] // 2), share),
     "centred on the pixel"),
    (checks.erf_side, lambda v, pixel, share: int((v >= share * v.max()).sum()), "largest value"),
    (checks.erf_side, rows_only, "only rows"),
    (checks.erf_spread, lambda layers: spread(layers, strided=False), "strides before"),
    (checks.erf_spread, lambda layers: spread(layers, own=True), "own stride"),
    (checks.erf_spread, lambda layers: spread(layers, slip=1), "continuous box"),
    (checks.erf_spread, lambda layers: spread(layers, root=False), "take the root"),
    (checks.erf_spread, lambda layers: spread(layers, together=False), "variances add up"),
    (checks.own_token_model, None, "sl.create_model"),
    (checks.own_token_model, nn.Identity(), "Identity"),
    (checks.own_token_model, partial(sl.create_model, "segformer_b0", num_classes=5), "attention=…"),
    (checks.own_token_model, partial(network, OwnToken, classes=150), "expected 5 classes, got 150"),
    (checks.own_token_model, partial(network, OwnToken, "segformer_b1"), "a SegFormer-B0"),
    (checks.own_token_model, partial(network, Mean), "only its own may"),
    (checks.own_token_model, partial(network, Window), "only its own may"),
    (checks.own_token_model, partial(network, Nothing), "nothing is handed on"),
    (checks.own_token_model, partial(network, Wide), "looks further"),
    (checks.own_token_model, partial(network, OtherShape), "same shape"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
