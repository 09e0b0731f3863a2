"""Chapter 03's checks accept the right answers and reject the open stub and typical mistakes, naming the cause."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks


def stage_sizes(height, width):
    return [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


def patchify(image, size):
    b, c, height, width = image.shape
    x = image.reshape(b, c, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
    return x.flatten(3)


def coverage(height, width, kernel, stride):
    ones = torch.ones(1, 1, height, width)
    return (F.conv2d(ones, torch.ones(1, 1, kernel, kernel), stride=stride, padding=kernel // 2)[0, 0] / kernel**2)


def by_unfold(order):
    def patches(image, size):
        b, c, height, width = image.shape
        h, w = height // size, width // size
        return image.reshape(b, c, h, size, w, size).permute(order).reshape(b, h, w, -1)

    return patches


class Plain(nn.Module):
    kernel_is_stride, normed, channels_last, axes = True, True, True, (0, 2, 3, 1)

    def __init__(self, in_channels, dim, kernel, stride):
        super().__init__()
        kernel, pad = (stride, 0) if self.kernel_is_stride else (kernel, kernel // 2)
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, pad)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x).permute(self.axes)
        return self.norm(x) if self.normed else x


class Overlapping(Plain):
    kernel_is_stride = False


class WithoutNorm(Plain):
    normed = False


class Turned(Plain):
    axes = (0, 3, 2, 1)


class Inherited(sl.OverlapPatchEmbed):
    """As right as one written from nothing."""

    def __init__(self, in_channels, dim, kernel, stride):
        super().__init__(in_channels, dim, stride, stride)
        self.proj.padding = (0, 0)


def model(patch_embed=Plain, **kwargs):
    return sl.create_model("segformer_b0", num_classes=5, patch_embed=patch_embed, **kwargs)


RIGHT = [
    (checks.stage_sizes, stage_sizes),
    (checks.patchify, patchify),
    (checks.coverage, coverage),
    (checks.plain_model, model()),
    (checks.plain_model, model(Inherited)),
]
WRONG = [
    (checks.stage_sizes, lambda h, w: [(h // s, w // s) for s in (4, 8, 16, 32)], "rounding down"),
    (checks.stage_sizes, lambda h, w: [(a, b) for b, a in stage_sizes(h, w)], "exchanged"),
    (checks.stage_sizes, lambda h, w: [(-(-h // s), -(-w // s)) for s in (2, 4, 8, 16)], "halves"),
    (checks.stage_sizes, lambda h, w: [(round(h / s), round(w / s)) for s in (4, 8, 16, 32)], "expected"),
    (checks.stage_sizes, lambda h, w: [n for size in stage_sizes(h, w) for n in size], "expected pairs.*got .128, 128"),
    (checks.patchify, lambda x, s: x.reshape(len(x), x.shape[2] // s, x.shape[3] // s, -1), "reshape alone"),
    (checks.patchify, by_unfold((0, 2, 4, 3, 5, 1)), "y, x, C"),
    (checks.patchify, by_unfold((0, 2, 4, 1, 5, 3)), "x and y"),
    (checks.patchify, by_unfold((0, 4, 2, 1, 3, 5)), "column by column"),
    (checks.patchify, by_unfold((0, 1, 2, 3, 4, 5)), "mixed|reshape alone"),
    (checks.patchify, lambda x, s: patchify(x, s).flatten(1, 2), "expected shape"),
    (checks.coverage, lambda h, w, k, s: coverage(h, w, k, s) * k * k, "counted in pixels"),
    (checks.coverage, lambda h, w, k, s: coverage(h, w, k, s) * k, "kernel"),
    (checks.coverage, lambda h, w, k, s: torch.ones_like(coverage(h, w, k, s)), "counted as real"),
    (checks.coverage, lambda h, w, k, s: coverage(10_000, w, k, s)[1:2].expand(coverage(h, w, k, s).shape), "width"),
    (
        checks.coverage,
        lambda h, w, k, s: F.conv2d(torch.ones(1, 1, h, w), torch.ones(1, 1, k, k), stride=s)[0, 0] / k**2,
        "no padding",
    ),
    (checks.plain_model, None, "expected the network"),
    (checks.plain_model, sl.create_model("segformer_b0", num_classes=5), "OverlapPatchEmbed"),
    (checks.plain_model, model(Overlapping), "changed"),
    (checks.plain_model, model(WithoutNorm), "is `self.norm` called"),
    (checks.plain_model, sl.create_model("segformer_b0", num_classes=6, patch_embed=Plain), "logits"),
    (checks.plain_model, model(Turned), "must become"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
