"""Chapter 06's checks accept the right answers and reject the open stub and planted mistakes, naming the cause."""

import torch
from checks_table import accepts, complete, rejects, stub
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks
from segformer_lite.models.blocks import DropPath


class Right(nn.Module):
    def __init__(self, dim, heads, stride, expansion, drop_path):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attention = sl.EfficientSelfAttention(dim, heads, stride)
        self.ffn = sl.MixFFN(dim, expansion)
        self.drop_path = DropPath(drop_path)

    def look(self, x):
        return x + self.drop_path(self.attention(self.norm1(x)))

    def work(self, x):
        return x + self.drop_path(self.ffn(self.norm2(x)))

    def forward(self, x):
        return self.work(self.look(x))


def with_forward(function):
    return type(function.__name__, (Right,), {"forward": function})


def post_norm(b, x):
    x = b.norm1(x + b.drop_path(b.attention(x)))
    return b.norm2(x + b.drop_path(b.ffn(x)))

def no_norm2(b, x): return (lambda y: y + b.drop_path(b.ffn(y)))(b.look(x))
def no_norm1(b, x): return b.work(x + b.drop_path(b.attention(x)))
def norm1_twice(b, x): return (lambda y: y + b.drop_path(b.ffn(b.norm1(y))))(b.look(x))
def no_first_residual(b, x): return b.work(b.drop_path(b.attention(b.norm1(x))))
def no_second_residual(b, x): return b.drop_path(b.ffn(b.norm2(b.look(x))))
def parallel(b, x): return b.look(x) + b.drop_path(b.ffn(b.norm2(x)))
def input_twice(b, x): return x + b.drop_path(b.ffn(b.norm2(b.look(x))))
def exchanged(b, x): return b.look(b.work(x))
def never_dropped(b, x): return (lambda y: y + b.ffn(b.norm2(y)))(x + b.attention(b.norm1(x)))

def sum_dropped(b, x):
    x = b.drop_path(x + b.attention(b.norm1(x)))
    return b.drop_path(x + b.ffn(b.norm2(x)))

def first_sum_dropped(b, x): return (lambda y: y + b.ffn(b.norm2(y)))(b.drop_path(x + b.attention(b.norm1(x))))
def last_sum_dropped(b, x): return b.drop_path((lambda y: y + b.ffn(b.norm2(y)))(x + b.attention(b.norm1(x))))

def norm_replaces(b, x):
    x = b.norm1(x)
    x = b.norm2(x + b.drop_path(b.attention(x)))
    return x + b.drop_path(b.ffn(x))

def norm1_replaces(b, x): return (lambda y: b.work(y + b.drop_path(b.attention(y))))(b.norm1(x))
def norm2_replaces(b, x): return (lambda y: y + b.drop_path(b.ffn(y)))(b.norm2(b.look(x)))
def first_dropped(b, x): return (lambda y: y + b.ffn(b.norm2(y)))(b.look(x))
def second_dropped(b, x): return b.work(x + b.attention(b.norm1(x)))
def unsaid(b, x): pass


class OwnNames(Right):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.norm3 = nn.LayerNorm(4)


def rates(depths, top):
    flat = [top * i / (sum(depths) - 1) for i in range(sum(depths))]
    return cut(flat, depths)


def cut(flat, depths):
    pieces = iter(flat)
    return [[next(pieces) for _ in range(depth)] for depth in depths]


def line(start, stop):
    def wrong(depths, top):
        n = sum(depths)
        return cut([top * (i + start) / (n + stop) for i in range(n)], depths)

    return wrong


def per_stage(depths, top):
    return [torch.linspace(0, top, n).tolist() for n in depths]


def one_per_stage(depths, top):
    return [[top * i / 3] * n for i, n in enumerate(depths)]


def count(dims, depths, expansions, bias=1, reduce_norm=1, stage_norm=1, embed_norm=1, block_norms=1, power=2,
          conv=9, every_stage=False, shorten=True, full=False, one=False, maps=4, four=False):
    total, before = 0, 3
    for c, depth, e, s, k in zip(dims, depths, expansions, (8, 4, 2, 1), (7, 3, 3, 3)):
        hidden = (4 if four else e) * c
        block = maps * (c * c + bias * c) + 4 * c * block_norms + 2 * c * hidden + bias * (hidden + c)
        block += (conv * (hidden if full else 1) + bias) * hidden if conv else 0
        if shorten and (s > 1 or every_stage):
            block += s**power * c * c + bias * c + 2 * c * reduce_norm
        total += k * k * before * c + bias * c + 2 * c * embed_norm + (1 if one else depth) * block + 2 * c * stage_norm
        before = c
    return total


def slip(**changes):
    return lambda dims, depths, expansions: count(dims, depths, expansions, **changes)


def network(expansion, classes=5, base=sl.MixFFN):
    """SegFormer-B0 whose Mix-FFN of width `dim` expands by expansion(dim)."""

    class Other(base):
        def __init__(self, dim, _):
            super().__init__(dim, expansion(dim))

    return sl.create_model("segformer_b0", num_classes=classes, ffn=Other)


def six(dim):
    return 8 if dim <= 64 else 4


def with_position():
    model = network(six)
    model.encoder.position = nn.Parameter(torch.zeros(1, 32, 8, 8))
    return model


RIGHT = [
    (checks.transformer_block, Right),
    (checks.transformer_block, sl.TransformerBlock),
    (checks.drop_rates, rates),
    (checks.drop_rates, lambda depths, top: torch.linspace(0, top, sum(depths)).split(list(depths))),
    (checks.encoder_count, count),
    (checks.printed_encoder, network(six)),
]
WRONG = [
    (checks.transformer_block, stub, None),
    (checks.transformer_block, with_forward(stub), None),
    (checks.transformer_block, with_forward(unsaid), "return"),
    (checks.transformer_block, with_forward(post_norm), "post-norm"),
    (checks.transformer_block, with_forward(no_norm2), "norm2 is forgotten"),
    (checks.transformer_block, with_forward(no_norm1), "norm1 is forgotten"),
    (checks.transformer_block, with_forward(norm1_twice), "norm1 is used in both"),
    (checks.transformer_block, with_forward(no_first_residual), "only one residual: what came in"),
    (checks.transformer_block, with_forward(no_second_residual), "only one residual: Mix-FFN"),
    (checks.transformer_block, with_forward(parallel), "reads the block's input"),
    (checks.transformer_block, with_forward(input_twice), "added twice"),
    (checks.transformer_block, with_forward(exchanged), "before attention"),
    (checks.transformer_block, with_forward(never_dropped), "not used"),
    (checks.transformer_block, with_forward(sum_dropped), "the tokens themselves"),
    (checks.transformer_block, with_forward(first_sum_dropped), "around the sum"),
    (checks.transformer_block, with_forward(last_sum_dropped), "around the sum"),
    (checks.transformer_block, with_forward(norm_replaces), "the norm replaced the tokens"),
    (checks.transformer_block, with_forward(norm1_replaces), "the norm replaced the tokens"),
    (checks.transformer_block, with_forward(norm2_replaces), "the norm replaced the tokens"),
    (checks.transformer_block, Right(8, 2, 1, 4, 0.1), "the class itself, without brackets"),
    (checks.transformer_block, with_forward(first_dropped), "attention branch only"),
    (checks.transformer_block, with_forward(second_dropped), "Mix-FFN branch only"),
    (checks.transformer_block, OwnNames, "norm3"),
    (checks.drop_rates, lambda depths, top: torch.linspace(0, top, sum(depths)), "four lists"),
    (checks.drop_rates, lambda depths, top: sum(rates(depths, top), []), "four lists"),
    (checks.drop_rates, lambda depths, top: rates(depths[::-1], top)[:3], "expected lists of"),
    (checks.drop_rates, per_stage, "each stage begins at 0"),
    (checks.drop_rates, line(1, 0), "starts above 0"),
    (checks.drop_rates, line(0, 0), "stays under"),
    (checks.drop_rates, one_per_stage, "one rate per stage"),
    (checks.drop_rates, lambda depths, top: [[top] * n for n in depths], "same rate everywhere"),
    (checks.drop_rates, lambda depths, top: [[top - r for r in piece] for piece in rates(depths, top)], "falling"),
    (checks.encoder_count, slip(bias=0), "biases"),
    (checks.encoder_count, slip(stage_norm=0), "a norm is missing in each stage"),
    (checks.encoder_count, slip(embed_norm=0), "a norm is missing in each stage"),
    (checks.encoder_count, slip(block_norms=0), "two norms of a block"),
    (checks.encoder_count, slip(reduce_norm=0), "norm after the shortening"),
    (checks.encoder_count, slip(shorten=False), "shortening convolution of attention is missing"),
    (checks.encoder_count, slip(every_stage=True), "stage 4 has stride 1"),
    (checks.encoder_count, slip(power=4), "R = 64"),
    (checks.encoder_count, slip(full=True), "depth-wise: 9"),
    (checks.encoder_count, slip(conv=0), "3x3 convolution of Mix-FFN is missing"),
    (checks.encoder_count, slip(one=True), "one block per stage"),
    (checks.encoder_count, slip(four=True), "expansions were not used"),
    (checks.encoder_count, slip(maps=3), "K and V"),
    (checks.encoder_count, lambda *a: count(*a) + 7, r"That is \+7"),
    (checks.printed_encoder, None, "expected the network"),
    (checks.printed_encoder, sl.create_model("segformer_b0", num_classes=5), "released encoder"),
    (checks.printed_encoder, network(lambda dim: 8), "every stage"),
    (checks.printed_encoder, network(lambda dim: 4 if dim <= 64 else 8), "stages 3 and 4 instead"),
    (checks.printed_encoder, network(lambda dim: 8 if dim < 64 else 4), "stage 1 only"),
    (checks.printed_encoder, network(six, base=sl.models.variants.MLPFFN), "expand by"),
    (checks.printed_encoder, network(six, classes=6), "logits"),
    (checks.printed_encoder, with_position(), "something else differs"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
