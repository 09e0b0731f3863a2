"""Chapter 02's checks accept the right answers and reject the open stub and planted mistakes, naming the cause."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, nothing, rejects, stub
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks


def side(n, poolings=4, taken=4, bottom=4, up=4, strict=True, left=True):
    for _ in range(poolings):
        n -= taken
        if n % 2 and strict:
            return None
        n //= 2
    n -= bottom
    for _ in range(poolings):
        n = 2 * n - up
    return n if n > 0 or not left else None

def always_four(n, poolings=4): return side(n, 4)
def padded(n, poolings=4): return side(n, poolings, 0, 0, 0)
def one_each(n, poolings=4): return side(n, poolings, 2, 2, 2)
def no_bottom(n, poolings=4): return side(n, poolings, bottom=0)
def only_doubled(n, poolings=4): return side(n, poolings, up=0)
def odd_allowed(n, poolings=4): return side(n, poolings, strict=False)
def below_zero(n, poolings=4): return side(n, poolings, left=False)

def only_the_first(n, poolings=4): return None if n % 2 else side(n, poolings, strict=False)

def never_up(n, poolings=4):
    for _ in range(poolings):
        n -= 4
        if n % 2:
            return None
        n //= 2
    return n - 4 if n > 4 else None

def by_scatter(pooled, places, size):
    flat = pooled.new_zeros(*pooled.shape[:2], size[0] * size[1])
    return flat.scatter(2, places.flatten(2), pooled.flatten(2)).reshape(*pooled.shape[:2], *size)

def corners_of(places, size):
    rows, columns = (2 * torch.arange(n) for n in places.shape[-2:])
    return (rows[:, None] * size[1] + columns).expand_as(places)

def to_corners(pooled, places, size): return by_scatter(pooled, corners_of(places, size), size)
def everywhere(pooled, places, size): return F.interpolate(pooled, scale_factor=2)[..., : size[0], : size[1]]
def one_channel(pooled, places, size): return by_scatter(pooled, places[:, :1].expand_as(places), size)

def by_columns(pooled, places, size):
    return by_scatter(pooled, places % size[1] * size[0] + places // size[1], size)

def twice(pooled, places, size): return by_scatter(pooled, places, tuple(2 * n for n in pooled.shape[-2:]))
def turned(pooled, places, size): return by_scatter(pooled, places, size).mT
def as_list(pooled, places, size): return by_scatter(pooled, places, size).tolist()

def first_only(pooled, places, size):
    first = by_scatter(pooled[:1, :1], places[:1, :1], size)
    return first.expand(*pooled.shape[:2], -1, -1)

def count(width, classes, norm=2, bias=0, joined=2, second=True, up=1, up_bias=1, kernel=4, keeps=1, levels=5,
          colours=3, last=1, last_bias=1):
    dims = [width * 2**i for i in range(5)]
    def conv(a, b): return 9 * a * b + norm * b + bias * b
    def pair(a, b): return conv(a, b) + (conv(b, b) if second else 0)
    total = sum(pair(a, b) for a, b in zip([colours, *dims], dims[:levels]))
    for c in dims[:-1]:
        total += up * (kernel * 2 * c * keeps * c + up_bias * keeps * c) + pair(joined * c, c)
    return total + last * (width * classes + last_bias * classes)


def slip(**changes):
    return lambda width, classes: count(width, classes, **changes)


class Sum(nn.Module):
    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in in_channels)

    def forward(self, features):
        return self.add([score(f) for score, f in zip(self.scores, features, strict=True)])

    def add(self, maps):
        total = maps[-1]
        for score in maps[-2::-1]:
            total = score + self.enlarge(total, score.shape[-2:])
        return total

    enlarge = staticmethod(sl.models.upsample)


def network(classes=5, **methods):
    return sl.create_model("segformer_b0", classes, decoder=type("Other", (Sum,), methods))


def at_once(self, maps):
    return sum(sl.models.upsample(m, maps[0].shape[-2:]) for m in maps)


def concatenated(self, maps):
    return torch.cat([sl.models.upsample(m, maps[0].shape[-2:]) for m in maps], dim=1)


def own_init(make):
    def init(self, in_channels, dim, num_classes):
        nn.Module.__init__(self)
        self.scores = make(in_channels, num_classes)

    return init


def hidden(self, in_channels, dim, num_classes):
    Sum.__init__(self, in_channels, dim, num_classes)
    self.more = nn.Conv2d(num_classes, num_classes, 1)


def layers(**options):
    return own_init(lambda dims, k: nn.ModuleList(nn.Conv2d(c, k, **{"kernel_size": 1, **options}) for c in dims))


plain_list = own_init(lambda dims, k: [nn.Conv2d(c, k, 1) for c in dims])
three = own_init(lambda dims, k: nn.ModuleList(nn.Conv2d(c, k, 1) for c in dims[:3]))
same_width = own_init(lambda dims, k: nn.ModuleList(nn.Conv2d(c, c, 1) for c in dims))


@staticmethod
def corners(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


RIGHT = [
    (checks.unet_side, side),
    (checks.unpool, by_scatter),
    (checks.unpool, lambda p, w, size: F.max_unpool2d(p, w, 2, output_size=size)),
    (checks.unet_count, count),
    (checks.score_sum, network()),
]
WRONG = [
    (checks.unet_side, always_four, "`poolings` was not used"),
    (checks.unet_side, padded, "padded U-Net"),
    (checks.unet_side, one_each, "two convolutions, and each"),
    (checks.unet_side, no_bottom, "at the bottom"),
    (checks.unet_side, only_doubled, "on the way up each level"),
    (checks.unet_side, never_up, "the way up is missing"),
    (checks.unet_side, odd_allowed, "a pooling met an odd side"),
    (checks.unet_side, only_the_first, "only the picture's side was tested"),
    (checks.unet_side, below_zero, "nothing is left"),
    (checks.unpool, as_list, "expected a tensor"),
    (checks.unpool, to_corners, "upper left corner"),
    (checks.unpool, everywhere, "fills its whole window"),
    (checks.unpool, by_columns, "column by column"),
    (checks.unpool, one_channel, "first channel were used for all channels"),
    (checks.unpool, first_only, "first channel of the first picture"),
    (checks.unpool, twice, "not twice the pooled one"),
    (checks.unpool, turned, "the numbers are not"),
    (checks.unet_count, slip(norm=0), "batch norms are missing"),
    (checks.unet_count, slip(norm=4), "running mean"),
    (checks.unet_count, slip(bias=1), "has no bias here"),
    (checks.unet_count, slip(joined=1), "after the concatenation"),
    (checks.unet_count, slip(second=False), "two convolutions"),
    (checks.unet_count, slip(up=0), "transposed convolutions are missing"),
    (checks.unet_count, slip(up_bias=0), "transposed convolutions have a bias"),
    (checks.unet_count, slip(kernel=9), "are 2x2"),
    (checks.unet_count, slip(keeps=2), "from 2c to c channels"),
    (checks.unet_count, slip(levels=4), "fifth level"),
    (checks.unet_count, slip(colours=1), "three channels"),
    (checks.unet_count, slip(last=0), "from width to the classes"),
    (checks.unet_count, slip(last_bias=0), "last convolution has a bias"),
    (checks.unet_count, lambda *a: count(*a) + 7, r"That is \+7"),
    (checks.score_sum, None, "expected the network"),
    (checks.score_sum, sl.create_model("segformer_b0", 5), "decoder=... to create_model"),
    (checks.score_sum, sl.create_model("unet", 5), "expected the network"),
    (checks.score_sum, network(classes=6), "5 classes out"),
    (checks.score_sum, network(__init__=plain_list), "ModuleList of four"),
    (checks.score_sum, network(__init__=three), "ModuleList of four"),
    (checks.score_sum, network(__init__=layers(bias=False)), "with bias"),
    (checks.score_sum, network(__init__=layers(kernel_size=3, padding=1)), "1x1 convolution"),
    (checks.score_sum, network(__init__=same_width), "5 classes out"),
    (checks.score_sum, network(__init__=hidden), "nothing else in it"),
    (checks.score_sum, network(forward=stub), None),
    (checks.score_sum, network(forward=nothing), "return"),
    (checks.score_sum, network(add=at_once), "at once"),
    (checks.score_sum, network(add=concatenated), "concatenated"),
    (checks.score_sum, network(add=lambda self, maps: Sum.add(self, maps) / 4), "that is the mean"),
    (checks.score_sum, network(add=lambda self, maps: Sum.add(self, maps[:3])), "F4, where the sum begins"),
    (checks.score_sum, network(add=lambda self, maps: Sum.add(self, maps[1:])), "F1 is missing"),
    (checks.score_sum, network(add=lambda self, maps: maps[0]), "only F1"),
    (checks.score_sum, network(enlarge=staticmethod(lambda x, size: F.interpolate(x, size=size))), "nearest"),
    (checks.score_sum, network(enlarge=corners), "align_corners=True"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
