"""Chapter 04's checks accept the right answer, reject the open stub, and name the mistakes that were planted."""

import math

import pytest
import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks

# 1. Softmax attention


def attention(q, k, v, scale=None, axis=-1):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ k.transpose(-2, -1) * scale).softmax(axis) @ v


def by_all_channels(q, k, v):
    return attention(q, k, v, scale=(q.shape[1] * q.shape[-1]) ** -0.5)


def keys_not_transposed(q, k, v):
    return (q @ k / q.shape[-1] ** 0.5).softmax(-1) @ v


# 2. Squares


def squares(x, weight, bias, stride, order=(0, 1, 3, 5, 2, 4), cut=True):
    b, height, width, c = x.shape
    h, w = height // stride, width // stride
    x = x[:, : h * stride, : w * stride] if cut else x
    x = x.reshape(b, h, stride, w, stride, c).permute(order).reshape(b, h, w, -1)
    return F.linear(x, weight.flatten(1), bias)


def strips(x, weight, bias, stride):
    b, height, width, c = x.shape
    x = x.reshape(b, height // stride, width // stride, stride * stride * c)
    return F.linear(x, weight.flatten(1), bias)


def strips_in_order(x, weight, bias, stride):
    b, height, width, c = x.shape
    x = x.reshape(b, height // stride, width // stride, stride * stride, c).transpose(-1, -2)
    return F.linear(x.flatten(3), weight.flatten(1), bias)


def padded(x, weight, bias, stride):
    return squares(F.pad(x, (0, 0, 0, -x.shape[2] % stride, 0, -x.shape[1] % stride)), weight, bias, stride)


# 3. Strips


def strip(width, reduction, key):
    return [divmod(n, width) for n in range(key * reduction, (key + 1) * reduction)]


def square(width, reduction, key):
    side = math.isqrt(reduction)
    y, x = divmod(key, max(width // side, 1))
    return [(y * side + dy, x * side + dx) for dy in range(side) for dx in range(side)]


# 4. The block in the network


class Mine(nn.Module):
    """Right as it stands; each planted mistake below changes one attribute."""

    names, power, axis, root, merge, kind = "reduce", 2, -1, "head", True, "squares"
    normed, kv_first, cut = True, 0, True

    def __init__(self, dim, heads, stride):
        super().__init__()
        self.heads, self.stride = heads, stride
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if stride > 1:
            setattr(self, self.names, nn.Linear(dim * stride**self.power, dim))
            if self.normed is not None:
                self.norm = nn.LayerNorm(dim)

    def shorten(self, x):
        b, height, width, c = x.shape
        s, reduce = self.stride, getattr(self, self.names)
        if self.kind == "strips":
            return reduce(x.reshape(b, -1, s * s * c))
        h, w = height // s, width // s
        x = x[:, : h * s, : w * s] if self.cut else x
        order = (0, 1, 3, 5, 2, 4) if self.kind == "squares" else (0, 1, 3, 2, 4, 5)
        return reduce(x.reshape(b, h, s, w, s, c).permute(order).flatten(3))

    def forward(self, x):
        b, _, _, c = x.shape
        short = x
        if self.stride > 1:
            short = self.shorten(x)
            short = self.norm(short) if self.normed else short

        def split(y):
            return y.reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)

        pair = self.kv(short).chunk(2, dim=-1)
        q, k, v = split(self.q(x)), split(pair[self.kv_first]), split(pair[1 - self.kv_first])
        scale = {"head": (c // self.heads) ** -0.5, "all": c**-0.5, "none": 1}[self.root]
        out = (q @ k.transpose(-2, -1) * scale).softmax(self.axis) @ v
        return self.proj((out.transpose(1, 2) if self.merge else out).reshape(x.shape))


class WithConvolution(Mine):
    """The released form: the check takes it too."""

    def __init__(self, dim, heads, stride):
        super().__init__(dim, heads, stride)
        if stride > 1:
            self.reduce = nn.Conv2d(dim, dim, stride, stride)

    def shorten(self, x):
        return self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Inherited(sl.EfficientSelfAttention):
    """As right as one written from nothing."""

    def forward(self, x):
        return self.proj(attention(*self.queries_keys_values(x)).transpose(1, 2).reshape(x.shape))


class StrideSquaredTwice(WithConvolution):
    def __init__(self, dim, heads, stride):
        super().__init__(dim, heads, stride)
        if stride > 1:
            self.reduce = nn.Conv2d(dim, dim, stride**2, stride**2)


def planted(**changes):
    return sl.create_model("segformer_b0", num_classes=5, attention=type("Planted", (Mine,), changes))


RIGHT = [
    (checks.softmax_attention, attention),
    (checks.reduce_squares, squares),
    (checks.strip_of_key, strip),
    (checks.attention_model, planted()),
    (checks.attention_model, sl.create_model("segformer_b0", num_classes=5, attention=WithConvolution)),
    (checks.attention_model, sl.create_model("segformer_b0", num_classes=5, attention=Inherited)),
]
WRONG = [
    (checks.softmax_attention, lambda q, k, v: attention(q, k, v, axis=-2), "wrong axis"),
    (checks.softmax_attention, lambda q, k, v: attention(q, k, v, scale=1), "scale is missing"),
    (checks.softmax_attention, by_all_channels, r"sqrt\(C\)"),
    (checks.softmax_attention, lambda q, k, v: attention(q, k, v, scale=1 / q.shape[-1]), "divided by d"),
    (checks.softmax_attention, lambda q, k, v: attention(q, k, k), "used on k"),
    (checks.softmax_attention, keys_not_transposed, "torch says .*exchanged"),
    (checks.softmax_attention, lambda q, k, v: attention(q, k, v).transpose(1, 2), "expected shape"),
    (checks.reduce_squares, strips, "strips of consecutive tokens"),
    (checks.reduce_squares, strips_in_order, "strips of consecutive tokens"),
    (checks.reduce_squares, lambda *a: squares(*a, order=(0, 1, 3, 2, 4, 5)), r"order \(y, x, C\)"),
    (checks.reduce_squares, lambda *a: squares(*a, order=(0, 1, 3, 5, 4, 2)), "y and x are exchanged"),
    (checks.reduce_squares, lambda x, w, b, s: squares(x, w, None, s), "bias"),
    (checks.reduce_squares, lambda *a: squares(*a, cut=False), "fill no square"),
    (checks.reduce_squares, padded, "expected shape .*padded"),
    (checks.strip_of_key, square, "a square of side"),
    (checks.strip_of_key, lambda w, r, k: strip(w, math.isqrt(r), k), "stride is its root"),
    (checks.strip_of_key, lambda w, r, k: [(c, n) for n, c in strip(w, r, k)], "rows and columns"),
    (checks.strip_of_key, lambda w, r, k: [(k * r // w, k * r % w + i) for i in range(r)], "past the end"),
    (checks.strip_of_key, lambda w, r, k: [(k * r // w, (k * r + i) % w) for i in range(r)], "begins again"),
    (checks.strip_of_key, lambda w, r, k: strip(w, r, k - 1), "count from 0"),
    (checks.strip_of_key, lambda w, r, k: [n for place in strip(w, r, k) for n in place], "expected pairs"),
    (checks.attention_model, None, "expected the network"),
    (checks.attention_model, sl.create_model("segformer_b0", num_classes=5), "pass attention"),
    (checks.attention_model, planted(axis=-2), "stage 1.*wrong axis"),
    (checks.attention_model, planted(root="none"), "stage 1.*scale is missing"),
    (checks.attention_model, planted(root="all"), r"stage 2.*sqrt\(dim\)"),
    (checks.attention_model, planted(merge=False), "stage 2.*without transpose"),
    (checks.attention_model, planted(kind="strips"), "strips of R"),
    (checks.attention_model, planted(kind="rows first"), r"\(C, y, x\)"),
    (checks.attention_model, planted(normed=False), "norm after the reduction is missing"),
    (checks.attention_model, planted(normed=None), "no parameter norm"),
    (checks.attention_model, planted(kv_first=1), "keys and values are exchanged"),
    (checks.attention_model, planted(names="sr"), "no parameter reduce"),
    (checks.attention_model, planted(power=1), r"stands where R"),
    (checks.attention_model, sl.create_model("segformer_b0", num_classes=5, attention=StrideSquaredTwice),
     "squared twice"),
    (checks.attention_model, planted(cut=False), "fill no square"),
    (checks.attention_model, sl.create_model("segformer_b0", num_classes=6, attention=Mine), "logits"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)


def test_an_unfinished_block_stays_unfinished():
    class Open(nn.Module):
        def __init__(self, dim, heads, stride):
            super().__init__()
            raise NotImplementedError

    with pytest.raises(NotImplementedError):
        sl.create_model("segformer_b0", num_classes=5, attention=Open)


def test_the_check_leaves_the_learners_model_as_it_was():
    model = planted().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checks.attention_model(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
