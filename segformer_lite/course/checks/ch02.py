"""Checks of chapter 02, convolutional baselines."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import SegFormer, create_model, upsample
from .expect import likely, same, true


def unet_side(function) -> None:
    """`function(side, poolings)` -> side of the mask of a U-Net without padding, None where it does not fit."""
    true(_side(572, 4) == 388, "the check disagrees with the paper: please report this")
    silent = function(572, 4) is None and function(70, 1) is None
    true(not silent, "my_unet_side: expected 388 for 572 and 54 for 70 with one pooling, got None for both; is a "
                     "`return` missing?")
    cases = [(188, 2), (70, 1), (572, 4), (188, 4), (284, 3), (44, 2), (1052, 5), (571, 4), (574, 4), (140, 4),
             (48, 2), (8, 0)]
    for side, poolings in cases:
        wanted, got = _side(side, poolings), function(side, poolings)
        if got != wanted:
            causes = [cause for slip, cause in SIDE_SLIPS.items() if _side(side, poolings, slip) == got]
            hint = likely(causes)
            raise AssertionError(f"my_unet_side({side}, poolings={poolings}): expected {wanted}, got {got}.{hint}")
    print("my_unet_side: correct for twelve sizes, three of which do not fit.")


SIDE_SLIPS = {
    "four poolings": "`poolings` was not used, 4 was",
    "padded": "that is the padded U-Net: here every 3x3 convolution takes off two pixels",
    "one": "each level has two convolutions, and each takes off two pixels",
    "no bottom": "the two convolutions at the bottom are missing",
    "no up": "on the way up each level has two convolutions as well",
    "stays down": "the way up is missing: the transposed convolutions double the side",
    "early": "only the picture's side was tested: every pooling must meet an even one",
    "odd": "a pooling met an odd side, which loses a row: that is None",
    "nothing": "nothing is left of the picture: that is None",
}


def _side(side: int, poolings: int, slip: str = "") -> int | None:
    taken = {"padded": 0, "one": 2}.get(slip, 4)
    poolings = 4 if slip == "four poolings" else poolings
    if slip == "early" and side % 2:
        return None
    for _ in range(poolings):
        side -= taken
        if side % 2 and slip not in ("odd", "early"):
            return None
        side //= 2
    side -= 0 if slip == "no bottom" else taken
    for _ in range(0 if slip == "stays down" else poolings):
        side = 2 * side - (0 if slip == "no up" else taken)
    return side if side > 0 or slip == "nothing" else None


def unpool(function) -> None:
    """`function(pooled, places, size)`: (B, C, h, w) twice -> (B, C, *size), each number at its place, else 0."""
    generator = torch.Generator().manual_seed(0)
    for b, c, height, width in ((1, 1, 4, 4), (1, 1, 4, 6), (2, 3, 8, 6), (1, 2, 5, 7), (3, 2, 9, 4)):
        x = torch.randn(b, c, height, width, generator=generator)
        pooled, places = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        wanted = F.max_unpool2d(pooled, places, 2, output_size=(height, width))
        what = f"my_unpool({tuple(pooled.shape)}, places, ({height}, {width}))"
        got = function(pooled.clone(), places.clone(), (height, width))
        same(got, wanted, what, _unpool_slips(pooled, places, height, width))
    print("my_unpool: correct for five sizes, odd ones among them.")


def _unpool_slips(pooled: Tensor, places: Tensor, height: int, width: int) -> list[tuple[str, Tensor]]:
    def put(where: Tensor, size: tuple[int, int] = (height, width)) -> Tensor:
        flat = pooled.new_zeros(*pooled.shape[:2], max(size[0] * size[1], int(where.max()) + 1))
        return flat.scatter(2, where.flatten(2), pooled.flatten(2))[..., : size[0] * size[1]].unflatten(2, size)

    h, w = pooled.shape[-2:]
    rows, columns = torch.arange(h)[:, None] * 2, torch.arange(w) * 2
    corners = (rows * width + columns).expand_as(places)
    turned = places % width * height + places // width  # counted column by column
    first = pooled[:1, :1], places[:1, :1]
    shared = F.max_unpool2d(*first, 2, output_size=(height, width)).expand(*pooled.shape[:2], -1, -1)
    return [
        ("the places were not used: every number went to the upper left corner of its window", put(corners)),
        ("every number fills its whole window: all but the place of the maximum is zero",
         F.interpolate(pooled, scale_factor=2)[..., :height, :width]),
        ("places count row by row, they were read column by column", put(turned)),
        ("the places of the first channel of the first picture were used for all: each has its own", shared),
        ("the places of the first channel were used for all channels: each has its own",
         put(places[:, :1].expand_as(places))),
        ("the map before pooling has the given size, not twice the pooled one", put(places, (2 * h, 2 * w))),
    ]


def unet_count(function) -> None:
    """`function(width, num_classes)` -> number of parameters of the package's U-Net."""
    for width, classes in ((12, 11), (64, 2), (5, 3)):
        with torch.device("meta"):
            counted = sum(p.numel() for p in create_model("unet", classes, width=width).parameters())
        true(_count(width, classes) == counted, "the check disagrees with the network: please report this")
        got = function(width, classes)
        true(got is not None, "my_unet_count: got None; is a `return` missing?")
        if int(got) != counted:
            causes = [cause for flag, cause in COUNT_SLIPS.items() if _count(width, classes, flag) == int(got)]
            hint = likely(causes) or f" That is {int(got) - counted:+,}."
            raise AssertionError(f"my_unet_count(width={width}, num_classes={classes}): expected {counted:,}, "
                                 f"got {int(got):,}.{hint}")
    print(f"my_unet_count: correct; {_count(64, 2):,} at the original width with two classes.")


COUNT_SLIPS = {
    "no norm": "the batch norms are missing: two numbers per channel",
    "norm of running": "a batch norm's running mean and variance are no parameters: two numbers per channel, not four",
    "bias": "a 3x3 convolution before a batch norm has no bias here",
    "no cat": "after the concatenation there are twice as many channels: the first convolution up goes from 2c to c",
    "one": "each level has two convolutions",
    "no up": "the transposed convolutions are missing",
    "up bias": "the transposed convolutions have a bias",
    "up 3x3": "the transposed convolutions are 2x2",
    "up keeps": "the transposed convolution goes from 2c to c channels",
    "no bottom": "the fifth level, at the bottom, is missing",
    "grey": "the picture has three channels",
    "no classify": "the last convolution, from width to the classes, is missing",
    "classify bias": "the last convolution has a bias",
}


def _count(width: int, classes: int, slip: str = "") -> int:
    def conv(a: int, b: int) -> int:
        norm = {"no norm": 0, "norm of running": 4}.get(slip, 2)
        return 9 * a * b + norm * b + (b if slip == "bias" else 0)

    dims = [width * 2**i for i in range(5)]
    total = 0 if slip == "no classify" else width * classes + (0 if slip == "classify bias" else classes)
    levels = list(zip([1 if slip == "grey" else 3, *dims], dims, strict=False))
    for before, c in levels[:-1] if slip == "no bottom" else levels:
        total += conv(before, c) + (0 if slip == "one" else conv(c, c))
    for c in dims[:-1]:
        if slip != "no up":
            out = 2 * c if slip == "up keeps" else c
            total += (9 if slip == "up 3x3" else 4) * 2 * c * out + (0 if slip == "up bias" else out)
        total += conv(c if slip == "no cat" else 2 * c, c) + (0 if slip == "one" else conv(c, c))
    return total


def score_sum(model) -> None:
    """A SegFormer-B0 for 5 classes whose decoder sums score maps from coarse to fine."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    decoder = model.decoder
    scores = getattr(decoder, "scores", None)
    true(isinstance(scores, nn.ModuleList) and len(scores) == 4,
         f"the decoder is a {type(decoder).__name__}; expected a submodule scores, a ModuleList of four: was the "
         "class passed as decoder=... to create_model?")
    dims = model.encoder.dims
    for i, (layer, c) in enumerate(zip(scores, dims, strict=True), start=1):
        true(isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.bias is not None,
             f"score layer {i}: expected a 1x1 convolution with bias, got {layer}")
        true((layer.in_channels, layer.out_channels) == (c, 5),
             f"score layer {i}: expected {c} channels in and 5 classes out, got {layer.in_channels} and "
             f"{layer.out_channels}")
    count, due = sum(p.numel() for p in decoder.parameters()), sum(5 * c + 5 for c in dims)
    true(count == due, f"the decoder has {count:,} parameters, four score layers have {due:,}: "
                       "there is nothing else in it")
    generator = torch.Generator().manual_seed(0)
    model.eval()
    for height, width in ((64, 96), (65, 97), (100, 40)):
        x = torch.randn(1, 3, height, width, generator=generator)
        with torch.no_grad():
            features = [torch.randn(f.shape, generator=generator) for f in model.encoder(x)]
            maps = [layer(f) for layer, f in zip(scores, features, strict=True)]
            same(decoder(features), _sum(maps), f"ScoreSum for a {height} x {width} px picture", _sum_slips(maps))
    logits = model(torch.zeros(1, 3, 64, 96))
    true(tuple(logits.shape) == (1, 5, 16, 24),
         f"logits for a 64 x 96 px image: expected (1, 5, 16, 24), got {tuple(logits.shape)}")
    with torch.device("meta"):
        usual = sum(p.numel() for p in create_model("segformer_b0", 5).decoder.parameters())
    print(f"score_sum: correct; {count:,} parameters where the MLP decoder has {usual:,}.")


def _sum(maps: list[Tensor], enlarge=upsample) -> Tensor:
    *finer, total = maps
    for score in reversed(finer):
        total = score + enlarge(total, score.shape[-2:])
    return total


def _sum_slips(maps: list[Tensor]) -> list[tuple[str, Tensor]]:
    size = maps[0].shape[-2:]
    at_once = [upsample(m, size) for m in maps]

    def corners(x: Tensor, size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def nearest(x: Tensor, size) -> Tensor:
        return F.interpolate(x, size=size)

    return [
        ("all were enlarged to F1's size at once: enlarge by one level, add, and so on", sum(at_once)),
        ("that is the mean: add, do not divide", _sum(maps) / 4),
        ("the scores were concatenated, not added", torch.cat(at_once, dim=1)),
        ("F4, where the sum begins, is missing", _sum(maps[:3])),
        ("F1 is missing: the last sum is at F1's size", upsample(_sum(maps[1:]), size)),
        ("F1 is missing: the last sum is at F1's size", _sum(maps[1:])),
        ("the nearest neighbour was taken, not the bilinear value", _sum(maps, nearest)),
        ("align_corners=True was used: sl.models.upsample has False", _sum(maps, corners)),
        ("only F1's scores came out", maps[0]),
    ]
