"""Chapter 05's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects, stub
from torch import nn

import segformer_lite as sl
from segformer_lite.analysis import split_padding
from segformer_lite.course import checks
from segformer_lite.models.variants import MLPFFN, set_padding


def depthwise(x, weight, pad=None, flip=False):
    height, width = x.shape[-2:]
    x = F.pad(x, (1, 1, 1, 1)) if pad is None else F.pad(x, (1, 1, 1, 1), mode=pad)
    out = 0
    for i in range(3):
        for j in range(3):
            part = x[..., i : i + height, j : j + width]
            out = out + part * weight[:, 0, 2 - i if flip else i, 2 - j if flip else j, None, None]
    return out


class Right(nn.Module):
    order = "conv, gelu"

    def __init__(self, dim, expansion):
        super().__init__()
        hidden = dim * expansion
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=self.groups(hidden))
        self.fc2 = nn.Linear(hidden, dim)

    def groups(self, hidden):
        return hidden

    def conv(self, x):
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x):
        return self.fc2(F.gelu(self.conv(self.fc1(x))))


class ForwardOpen(Right):
    def forward(self, x):
        raise NotImplementedError


class NoGroups(Right):
    def groups(self, hidden):
        return 1


class GeluFirst(Right):
    def forward(self, x):
        return self.fc2(self.conv(F.gelu(self.fc1(x))))


class GeluTwice(Right):
    def forward(self, x):
        return self.fc2(F.gelu(self.conv(F.gelu(self.fc1(x)))))


class GeluLast(Right):
    def forward(self, x):
        return F.gelu(self.fc2(self.conv(self.fc1(x))))


class Residual(Right):
    def forward(self, x):
        return x + super().forward(x)


class Relu(Right):
    def forward(self, x):
        return self.fc2(F.relu(self.conv(self.fc1(x))))


class NoGelu(Right):
    def forward(self, x):
        return self.fc2(self.conv(self.fc1(x)))


class NoConv(Right):
    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class NoPermute(Right):
    def conv(self, x):
        return self.dwconv(x)


class Reshaped(Right):
    def conv(self, x):
        b, h, w, c = x.shape
        return self.dwconv(x.reshape(b, c, h, w)).reshape(b, h, w, c)


class ReshapedBack(Right):
    def conv(self, x):
        return self.dwconv(x.permute(0, 3, 1, 2)).reshape(x.shape)


class Turned(Right):
    def conv(self, x):
        return self.dwconv(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)


class NoFc2(nn.Module):
    def __init__(self, dim, expansion):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * expansion)
        self.dwconv = nn.Conv2d(dim * expansion, dim * expansion, 3, padding=1, groups=dim * expansion)


class ExtraNorm(Right):
    def __init__(self, dim, expansion):
        super().__init__(dim, expansion)
        self.norm = nn.LayerNorm(dim)


class Nothing(Right):
    def forward(self, x):
        super().forward(x)


def counts(dim, expansion):
    hidden = dim * expansion
    maps = dim * hidden + hidden + hidden * dim + dim
    full = dim * dim + dim + 9 * dim * hidden + hidden + hidden * dim + dim
    return maps + 10 * hidden, full, maps


def change(i, amount):
    """`counts` with entry i changed by amount(dim, hidden)."""

    def wrong(dim, expansion):
        right = list(counts(dim, expansion))
        right[i] += amount(dim, dim * expansion)
        return right

    return wrong


def model(patch_embed="circular", padding="circular", classes=5, **options):
    net = sl.create_model("segformer_b0", num_classes=classes, **options)
    split_padding(net.encoder, patch_embed, padding)
    return net


RIGHT = [
    (checks.depthwise, depthwise),
    (checks.mix_ffn, Right),
    (checks.mix_ffn, sl.MixFFN),
    (checks.ffn_counts, counts),
    (checks.leak_free, model()),
]
WRONG = [
    (checks.depthwise, lambda x, w: depthwise(x, w[:1]), "one kernel for all"),
    (checks.depthwise, lambda x, w: depthwise(x, w, flip=True), "flipped"),
    (checks.depthwise, lambda x, w: depthwise(x, w.transpose(2, 3)), "exchanged"),
    (checks.depthwise, lambda x, w: depthwise(x, w, pad="circular"), "circular"),
    (checks.depthwise, lambda x, w: depthwise(x, w, pad="replicate"), "zeros are missing"),
    (checks.depthwise, lambda x, w: F.conv2d(x, w, groups=len(w)), "expected shape.*no padding"),
    (checks.depthwise, lambda x, w: F.conv2d(x, w.expand(-1, len(w), 3, 3), padding=1), "summed"),
    (checks.mix_ffn, stub, None),
    (checks.mix_ffn, ForwardOpen, None),
    (checks.mix_ffn, NoGroups, "groups"),
    (checks.mix_ffn, GeluFirst, "GELU stands before"),
    (checks.mix_ffn, GeluTwice, "GELU stands twice"),
    (checks.mix_ffn, GeluLast, "GELU stands after fc2"),
    (checks.mix_ffn, Residual, "residual"),
    (checks.mix_ffn, Relu, "ReLU"),
    (checks.mix_ffn, NoGelu, "GELU is missing"),
    (checks.mix_ffn, NoConv, "not called"),
    (checks.mix_ffn, NoPermute, "permute"),
    (checks.mix_ffn, Reshaped, "reshape"),
    (checks.mix_ffn, ReshapedBack, "reshape.*back"),
    (checks.mix_ffn, Turned, "height and width"),
    (checks.mix_ffn, NoFc2, "fc2"),
    (checks.mix_ffn, ExtraNorm, "norm"),
    (checks.mix_ffn, Nothing, "return"),
    (checks.mix_ffn, Right(8, 4), "the class itself, without brackets"),
    (checks.ffn_counts, lambda d, e: counts(d, e)[:2], "three counts"),
    (checks.ffn_counts, change(0, lambda d, h: -2 * h - d), "biases are missing"),
    (checks.ffn_counts, change(0, lambda d, h: 9 * h * h - 9 * h), "full one"),
    (checks.ffn_counts, change(0, lambda d, h: -6 * h), "nine weights"),
    (checks.ffn_counts, change(0, lambda d, h: -h), "convolution's biases"),
    (checks.ffn_counts, change(1, lambda d, h: d * h + h - d * d - d + 9 * h * (h - d)), "the report widens"),
    (checks.ffn_counts, change(2, lambda d, h: 1), "plain MLP"),
    (checks.leak_free, None, "expected the network"),
    (checks.leak_free, model("zeros", "zeros"), "constant picture"),
    (checks.leak_free, model("zeros", "circular"), "a patch embedding still"),
    (checks.leak_free, model("circular", "zeros"), "a Mix-FFN still"),
    (checks.leak_free, model("reflect", "reflect"), "reflect padding"),
    (checks.leak_free, model("circular", "replicate"), "replicate padding"),
    (checks.leak_free, model(ffn=MLPFFN), "lost its 3x3"),
    (checks.leak_free, model(classes=6), "5 classes"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)


def test_set_padding_on_the_whole_model_is_the_exercise_solution():
    torch.manual_seed(0)
    checks.leak_free(set_padding(sl.create_model("segformer_b0", num_classes=5), "circular"))
