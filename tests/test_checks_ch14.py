"""The checks of chapter 14: each accepts the answer, rejects the stub and planted mistakes, and says why."""

import copy
import statistics

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects
from torch import nn

from segformer_lite.course import checks
from segformer_lite.models import interpolation, upsample


def ratio(a, b): return statistics.median(x / y for x, y in zip(a, b, strict=True))
def of_medians(a, b): return statistics.median(a) / statistics.median(b)
def of_sums(a, b): return sum(a) / sum(b)
def mean_of_ratios(a, b): return statistics.mean(x / y for x, y in zip(a, b, strict=True))
def other_way(a, b): return ratio(b, a)
def of_fastest(a, b): return min(a) / min(b)


def intensity(tokens, c_in, c_out, size=4, twice=2, read=1, matrix=1, written=1, values=False, fixed=False):
    moved = read * tokens * c_in + matrix * c_in * c_out + written * tokens * c_out
    return twice * tokens * c_in * c_out / moved / (1 if values else 4 if fixed else size)


def other_intensity(**changes):
    return lambda *arguments: intensity(*arguments, **changes)


def turned_over(tokens, c_in, c_out, size=4): return 1 / intensity(tokens, c_in, c_out, size)


def matrix(length, size, shift=0.5, clamp=True, exchanged=False):
    place = (torch.arange(size) + shift) * length / size - shift
    place = place.clamp(0, length - 1) if clamp else place
    low = place.floor().long().clamp(0, length - 2)
    share, rows, line = place - low, torch.zeros(size, length), torch.arange(size)
    rows[line, low] = share if exchanged else 1 - share
    rows[line, low + 1] = 1 - share if exchanged else share
    return rows


def other_matrix(**changes):
    return lambda length, size: matrix(length, size, **changes)


def across(length, size): return interpolation(length, size, torch.zeros(())).T
def nearest(length, size): return F.interpolate(torch.eye(length)[None], size=size)[0].T


def corners(length, size):
    return F.interpolate(torch.eye(length)[None], size=size, mode="linear", align_corners=True)[0].T


class Frozen(nn.Module):
    def __init__(self, decoder, eps=1.0, outside=False, power=0.5, level=1.0, mean_scaled=True, mean=1.0, shift=1.0,
                 scaled=True, relu=True):
        super().__init__()
        norm, self.relu = decoder.norm, relu
        variance, eps = norm.running_var, eps * norm.eps
        scale = norm.weight / (variance.sqrt() + eps if outside else (variance + eps) ** power)
        slices = list(reversed(decoder.fuse.weight.chunk(4, dim=1)))
        self.matrices = [(scale[:, None] if scaled else 1) * (fuse @ linear.weight)
                         for fuse, linear in zip(slices, decoder.linear, strict=True)]
        bias = level * sum(fuse @ linear.bias for fuse, linear in zip(slices, decoder.linear, strict=True))
        centre = mean * norm.running_mean
        self.bias = (scale * (bias - centre) if mean_scaled else scale * bias - centre) + shift * norm.bias
        self.classify = copy.deepcopy(decoder.classify)

    def forward(self, features):
        size = features[0].shape[-2:]
        mixed = [F.linear(f.permute(0, 2, 3, 1), m).permute(0, 3, 1, 2)
                 for f, m in zip(features, self.matrices, strict=True)]
        fused = sum(upsample(y, size) for y in mixed) + self.bias[:, None, None]
        return self.classify(fused.relu() if self.relu else fused)


def frozen(model, **changes):
    model = copy.deepcopy(model).eval()
    model.decoder = Frozen(model.decoder, **changes)
    return model.eval()


def other_frozen(**changes):
    return lambda model: frozen(model, **changes)


class EachTime(Frozen):
    """Makes its matrices anew in every call."""

    def __init__(self, decoder):
        super().__init__(decoder)
        self.whole = [copy.deepcopy(decoder).requires_grad_(False)]

    def forward(self, features):
        self.__dict__.update(Frozen(self.whole[0]).__dict__)
        return Frozen.forward(self, features)


def each_time(model):
    model = copy.deepcopy(model)
    model.decoder = EachTime(model.decoder)
    return model.eval()


def in_place(model):
    model.decoder = Frozen(model.decoder)
    return model.eval()


def still_training(model): return frozen(model).train()
def not_frozen(model): return copy.deepcopy(model).eval()
def the_decoder(model): return Frozen(model.decoder)


RIGHT = [
    (checks.honest_ratio, ratio),
    (checks.arithmetic_intensity, intensity),
    (checks.interpolation_matrix, matrix),
    (checks.frozen_network, frozen),
]
WRONG = [
    (checks.honest_ratio, of_medians, "drift"),
    (checks.honest_ratio, of_sums, "one ratio for each turn"),
    (checks.honest_ratio, mean_of_ratios, "one bad turn"),
    (checks.honest_ratio, other_way, "exchanged"),
    (checks.honest_ratio, of_fastest, "fastest"),
    (checks.arithmetic_intensity, other_intensity(twice=1), "two operations"),
    (checks.arithmetic_intensity, other_intensity(matrix=0), "matrix must be fetched"),
    (checks.arithmetic_intensity, other_intensity(written=0), "what is written"),
    (checks.arithmetic_intensity, other_intensity(read=0), "tokens must be fetched"),
    (checks.arithmetic_intensity, other_intensity(values=True), "per value"),
    (checks.arithmetic_intensity, other_intensity(fixed=True), "not always 4"),
    (checks.arithmetic_intensity, turned_over, "bytes per operation"),
    (checks.interpolation_matrix, across, "transposed"),
    (checks.interpolation_matrix, corners, "align_corners=True"),
    (checks.interpolation_matrix, nearest, "nearest"),
    (checks.interpolation_matrix, other_matrix(shift=0.0), "half a pixel"),
    (checks.interpolation_matrix, other_matrix(clamp=False), "clamp the places"),
    (checks.interpolation_matrix, other_matrix(exchanged=True), "shares are exchanged"),
    (checks.frozen_network, other_frozen(eps=0.0), "epsilon is left out"),
    (checks.frozen_network, other_frozen(outside=True), "outside of the root"),
    (checks.frozen_network, other_frozen(power=1.0), "it is the root"),
    (checks.frozen_network, other_frozen(level=0.0), "four levels are lost"),
    (checks.frozen_network, other_frozen(mean_scaled=False), "must be scaled"),
    (checks.frozen_network, other_frozen(mean=0.0), "not taken away"),
    (checks.frozen_network, other_frozen(shift=0.0), "shift of the batch norm"),
    (checks.frozen_network, other_frozen(scaled=False), "matrices and bias alike"),
    (checks.frozen_network, other_frozen(relu=False), "ReLU is missing"),
    (checks.frozen_network, in_place, "deepcopy"),
    (checks.frozen_network, still_training, r"\.eval\(\)"),
    (checks.frozen_network, not_frozen, "still a batch norm"),
    (checks.frozen_network, each_time, "in every call"),
    (checks.frozen_network, the_decoder, "expected a SegFormer"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
