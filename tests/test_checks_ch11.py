"""The checks of chapter 11: each accepts the right answer, rejects the stub and typical mistakes, and says why."""

import math

import pytest
import torch
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks


def stub(*arguments):
    raise NotImplementedError


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


@pytest.mark.parametrize("mistake, cause", [
    (stub, None),
    (lambda *a: None, "return"),
    (lambda *a: field(*a, relu=False), "ReLU"),
    (lambda *a: field(*a, absolute=False), "sign"),
    (lambda *a: field(*a, colours=True), "colours are summed"),
    (lambda *a: field(*a, each=False), "averaged first"),
    (unscaled, "not divided"),
    (lambda n, i, row, column: field(n, i, column, row), "exchanged"),
    (lambda *a: field(*a)[None], "expected shape"),
    (in_place, "clone"),
])
def test_erf_map_rejects(mistake, cause):
    checks.erf_map(field)
    with pytest.raises(AssertionError if cause else NotImplementedError, match=cause):
        checks.erf_map(mistake)


def side(values, pixel, share, reach=False):
    rows, columns = (torch.arange(n) - p for n, p in zip(values.shape, pixel, strict=True))
    rings = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    r = next(r for r in range(max(values.shape)) if values[rings <= r].sum() >= share - 1e-9)
    return r if reach else 2 * r + 1


def rows_only(values, pixel, share):
    rows = (torch.arange(values.shape[0]) - pixel[0]).abs()
    return next(2 * r + 1 for r in range(99) if values[rows <= r].sum() >= share - 1e-9)


@pytest.mark.parametrize("mistake, cause", [
    (stub, None),
    (lambda *a: None, "return"),
    (lambda *a: "41", "a number"),
    (lambda *a: side(*a, reach=True), "reach to one side"),
    (lambda *a: side(*a) - 1, "leaves out the pixel itself"),
    (lambda *a: side(*a) ** 2, "area"),
    (lambda v, pixel, share: side(v, (v.shape[0] // 2, v.shape[1] // 2), share), "centred on the pixel"),
    (lambda v, pixel, share: int((v >= share * v.max()).sum()), "largest value"),
    (rows_only, "only rows"),
])
def test_erf_side_rejects(mistake, cause):
    checks.erf_side(side)
    with pytest.raises(AssertionError if cause else NotImplementedError, match=cause):
        checks.erf_side(mistake)


def spread(layers, strided=True, own=False, slip=0, root=True, together=True):
    parts, step = [], 1
    for kernel, stride in layers:
        at = step * stride if own else step
        parts.append((at if strided else 1) ** 2 * (kernel**2 - 1 + slip) / 12)
        step *= stride
    total = sum(parts) if together else sum(map(math.sqrt, parts)) ** 2
    return math.sqrt(total) if root else total


@pytest.mark.parametrize("mistake, cause", [
    (stub, None),
    (lambda layers: None, "return"),
    (lambda layers: spread(layers, strided=False), "strides before"),
    (lambda layers: spread(layers, own=True), "own stride"),
    (lambda layers: spread(layers, slip=1), "continuous box"),
    (lambda layers: spread(layers, root=False), "take the root"),
    (lambda layers: spread(layers, together=False), "variances add up"),
])
def test_erf_spread_rejects(mistake, cause):
    checks.erf_spread(spread)
    with pytest.raises(AssertionError if cause else NotImplementedError, match=cause):
        checks.erf_spread(mistake)


class OwnToken(nn.Module):
    def __init__(self, dim, heads, stride):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        return self.proj(x)


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


def network(attention):
    return sl.create_model("segformer_b0", num_classes=5, attention=attention)


@pytest.mark.parametrize("mistake, cause", [
    (None, "sl.create_model"),
    (nn.Identity(), "Identity"),
    (lambda: sl.create_model("segformer_b0", num_classes=5), "attention=…"),
    (lambda: network(Mean), "only its own may"),
    (lambda: network(Window), "only its own may"),
    (lambda: network(Nothing), "nothing is handed on"),
    (lambda: network(Wide), "looks further"),
    (lambda: network(OtherShape), "same shape"),
])
def test_own_token_model_rejects(mistake, cause):
    torch.manual_seed(0)
    checks.own_token_model(network(OwnToken))
    model = mistake() if callable(mistake) and not isinstance(mistake, nn.Module) else mistake
    with pytest.raises(AssertionError, match=cause):
        checks.own_token_model(model)
