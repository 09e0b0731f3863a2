"""Checks of chapter 15, the family tree."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...models import MLPDecoder, SegFormer
from .expect import same, true

BINS = (1, 2, 3, 6)


def window_attention(function) -> None:
    """`function(q, k, v, window, shift)`: (B, H, W, C) each -> same, attention inside shifted windows, really cut."""
    generator = torch.Generator().manual_seed(0)
    for b, h, w, c, window, shift in ((1, 8, 8, 4, 4, 0), (2, 8, 12, 6, 4, 2), (1, 9, 6, 5, 3, 1), (2, 16, 8, 4, 4, 1)):
        q, k, v = (torch.randn(b, h, w, c, generator=generator) for _ in range(3))
        wanted = _windows(q, k, v, window, shift)
        slips = [(cause, _windows(q, k, v, window, shift, **change)) for cause, change in (
            ("the shift is not used", {"moved": 0, "masked": False}),
            ("rolled in the wrong direction: the windows begin `shift` tokens further down and right, roll by -shift",
             {"moved": -shift}),
            ("only one axis is rolled", {"axes": 1}),
            ("the window that holds several corners after rolling is not masked", {"masked": False}),
            ("the result is not rolled back", {"back": 0}),
            ("rolled back in the wrong direction: the tokens came by -shift and go back by +shift", {"back": -shift}),
            ("the scores are not divided by the root of C", {"scale": 1.0}),
        )]
        slips.append(("cut by a reshape alone: split both axes first, then bring the windows' axes together",
                      _strips(q, k, v, window, shift)))
        what = f"my_window_attention({b} x {h} x {w} x {c}, window={window}, shift={shift})"
        # The plain formula instead of a fused kernel: only then are the products inside attention counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            got = function(q.clone(), k.clone(), v.clone(), window, shift)
        same(got, wanted, what, slips)
        macs, most = counter.get_total_flops() // 2, 2 * b * h * w * window**2 * c
        true(macs <= most, f"{what}: the numbers are right, but they took {macs:,} multiply-accumulates where windows "
                           f"need {most:,}; likely cause: all pairs of the map are computed, then masked")
    print("my_window_attention: correct with and without shift, and as cheap as windows are.")


def pyramid_model(model) -> None:
    """A SegFormer-B0 for 5 classes whose decoder lays the means of F4 over 1, 4, 9, 36 regions beside F4."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    decoder = model.decoder
    true(isinstance(decoder, MLPDecoder) and type(decoder) is not MLPDecoder,
         f"the decoder must be your PyramidDecoder, which inherits from MLPDecoder, got {type(decoder).__name__}; "
         "pass decoder=PyramidDecoder to create_model")
    widths = [linear.in_features for linear in decoder.linear]
    true(widths == [32, 64, 160, 5 * 256],
         f"the decoder's levels must take 32, 64, 160 and 5 x 256 = 1280 channels, they take {widths}; "
         "F4 and four maps of means, 256 channels each")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():  # large, so that every slip shows
            parameter.normal_(std=0.2, generator=generator)
        model.eval()
        x = torch.randn(1, 3, 192, 256, generator=generator)
        features = model.encoder(x)
        slips = [(cause, _pyramid(decoder, features, **change)) for cause, change in (
            ("the means stand before F4: F4 comes first", {"first": False}),
            ("the levels are in another order: 1, 2, 3, 6 regions a side", {"bins": BINS[::-1]}),
            ("max pooling in place of the mean", {"pool": F.adaptive_max_pool2d}),
            ("enlarged without mode='bilinear': the nearest neighbour is the default", {"mode": "nearest"}),
            ("enlarged with align_corners=True", {"corners": True}),
            ("pooled with a window of 1, 2, 3, 6 places: 1, 2, 3, 6 is the number of regions a side",
             {"pool": lambda f, b: F.avg_pool2d(f, b)}),
            ("F4 is laid beside itself five times, nothing is pooled", {"pool": lambda f, b: f}),
        )]
        same(model(x), _pyramid(decoder, features), "pyramid_segformer, logits of a 192 x 256 px image", slips)
    print("pyramid_segformer: correct; every place of the decoder now hears of the whole picture.")


def segments(function) -> None:
    """`function(class_logits (Q, K + 1), mask_logits (Q, H, W))` -> classes and query numbers, both (H, W)."""
    generator = torch.Generator().manual_seed(0)
    for queries, classes, height, width in ((6, 3, 5, 7), (12, 4, 8, 8), (5, 2, 4, 9)):
        names = torch.randn(queries, classes + 1, generator=generator) * 1.5
        names[0, -1], names[1, -1] = 5.0, -5.0  # one surely names nothing, one surely a thing
        names[2, 0], names[2, -1] = 3.9, 4.0  # and one would win, were it not for nothing by a hair
        masks = torch.randn(queries, height, width, generator=generator) * 2
        masks[[0, 2]] += 4
        what = f"my_segments({queries} queries, {classes} classes, {height} x {width})"
        got = function(names.clone(), masks.clone())
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(isinstance(got, tuple | list) and len(got) == 2,
             f"{what}: expected two maps, the classes and the query numbers, got {type(got).__name__}")
        wanted = _segments(names, masks)
        # Keeping only some queries counts the rest anew, so this slip has its own line.
        kept = names.argmax(-1) != classes
        renumbered = _segments(names[kept], masks[kept])
        slips = [(cause, _segments(names, masks, **change)) for cause, change in (
            ("queries that name nothing still take pixels", {"drop": False}),
            ("the class probability is not used: a query unsure of its class should lose", {"weigh": False}),
            ("the masks are not sent through the sigmoid", {"sigmoid": False}),
            ("the softmax runs over the queries: it runs over the classes, the last axis", {"axis": 0}),
            ("the class is taken among the real ones only: a query whose likeliest is nothing is out", {"real": True}),
        )]
        slips.append(("the queries were counted anew after some were dropped: keep their numbers", renumbered))
        for i, kind in enumerate(("classes", "query numbers")):
            same(got[i], wanted[i], f"{what}, the {kind}", [(cause, slip[i]) for cause, slip in slips])
    print("my_segments: correct; two of a kind stay two.")


def _numbers(h: int, w: int, window: int, shift: int) -> Tensor:
    row, column = ((torch.arange(n) - shift + window) // window for n in (h, w))
    return row[:, None] * (w + window) + column


def _windows(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int, moved: int | None = None,
             back: int | None = None, axes: int = 2, masked: bool = True, scale: float | None = None) -> Tensor:
    """Attention among tokens with the same window number, all pairs computed; with one thing or another done wrong."""
    b, h, w, c = q.shape
    moved = shift if moved is None else moved
    # After rolling by -moved, windows are plain squares: their numbers, brought back to where the tokens were.
    place = _numbers(h, w, window, 0).roll((moved, moved)[:axes], dims=(0, 1)[:axes]).flatten()
    allowed = place[:, None] == place
    if masked:
        piece = _numbers(h, w, window, shift).flatten()
        allowed = allowed & (piece[:, None] == piece)
    q, k, v = (x.reshape(b, h * w, c) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale).reshape(b, h, w, c)
    if back is not None:  # as it came out of the windows, then rolled by `back`
        out = out.roll((back - shift, back - shift), dims=(1, 2))
    return out


def _strips(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int) -> Tensor:
    """What a single reshape makes of the rolled maps: runs of window² tokens of the raster in place of squares."""
    b, h, w, c = q.shape

    def cut(x: Tensor) -> Tensor:
        return x.roll((-shift, -shift), dims=(1, 2)).reshape(len(x), -1, window**2, x.shape[-1])

    numbers = cut(_numbers(h, w, window, shift)[None, ..., None])
    out = F.scaled_dot_product_attention(cut(q), cut(k), cut(v), attn_mask=numbers == numbers.transpose(-2, -1))
    return out.reshape(b, h, w, c).roll((shift, shift), dims=(1, 2))


def _pyramid(decoder: MLPDecoder, features: list[Tensor], bins: tuple[int, ...] = BINS, pool=F.adaptive_avg_pool2d,
             mode: str = "bilinear", corners: bool = False, first: bool = True) -> Tensor:
    """The decoder's logits by way of the pyramid; with one thing or another done wrong."""
    *rest, last = features
    size = last.shape[-2:]
    how = {} if mode == "nearest" else {"align_corners": corners}
    means = [F.interpolate(pool(last, b), size, mode=mode, **how) for b in bins]
    return MLPDecoder.forward(decoder, [*rest, torch.cat([last, *means] if first else [*means, last], dim=1)])


def _segments(names: Tensor, masks: Tensor, drop: bool = True, weigh: bool = True, sigmoid: bool = True, axis: int = -1,
              real: bool = False) -> tuple[Tensor, Tensor]:
    """Each pixel to its best query that names a thing; with one thing or another done wrong."""
    nothing = names.shape[-1] - 1
    shares = names.softmax(axis)
    probability, label = (shares[:, :-1] if real else shares).max(-1)
    score = masks.sigmoid() if sigmoid else masks
    score = probability[:, None, None] * score if weigh else score.clone()
    if drop:
        score[label == nothing] = -torch.inf
    query = score.argmax(0)
    return label[query], query
