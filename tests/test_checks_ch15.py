"""Chapter 15's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

from functools import partial

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.course import checks
from segformer_lite.models import MLPDecoder


def numbers_of(h, w, window, shift):
    row, column = ((torch.arange(n) - shift + window) // window for n in (h, w))
    return row[:, None] * 1000 + column


def window_attention(q, k, v, window, shift, go=-1, back=1, dims=(1, 2), masked=True, squares=True, scale=None):
    b, h, w, c = q.shape

    def cut(x):
        x = x.roll([go * shift] * len(dims), dims=dims)
        if squares:
            x = x.reshape(len(x), h // window, window, w // window, window, -1).transpose(2, 3)
        return x.reshape(len(x), -1, window**2, x.shape[-1])

    numbers = cut(numbers_of(h, w, window, shift)[None, ..., None])
    allowed = numbers == numbers.transpose(-2, -1) if masked else None
    out = F.scaled_dot_product_attention(cut(q), cut(k), cut(v), attn_mask=allowed, scale=scale)
    if squares:
        out = out.reshape(b, h // window, w // window, window, window, c).transpose(2, 3)
    return out.reshape(b, h, w, c).roll([back * shift] * len(dims), dims=dims)


def unshifted(q, k, v, window, shift):
    return window_attention(q, k, v, window, 0)


def all_pairs(q, k, v, window, shift):
    b, h, w, c = q.shape
    numbers = numbers_of(h, w, window, shift).flatten()
    flat = (x.reshape(b, h * w, c) for x in (q, k, v))
    return F.scaled_dot_product_attention(*flat, attn_mask=numbers[:, None] == numbers).reshape(b, h, w, c)


class PyramidDecoder(MLPDecoder):
    bins, how, first = (1, 2, 3, 6), {"mode": "bilinear", "align_corners": False}, True
    pool = staticmethod(F.adaptive_avg_pool2d)

    def __init__(self, in_channels, dim, num_classes):
        super().__init__((*in_channels[:3], 5 * in_channels[3]), dim, num_classes)

    def forward(self, features):
        *rest, last = features
        means = [F.interpolate(self.pool(last, b), last.shape[-2:], **self.how) for b in self.bins]
        return super().forward([*rest, torch.cat([last, *means] if self.first else [*means, last], dim=1)])


class SmallDecoder(PyramidDecoder):
    def __init__(self, in_channels, dim, num_classes):
        MLPDecoder.__init__(self, (*in_channels[:3], 4 * in_channels[3]), dim, num_classes)


def pyramid_segformer(decoder=PyramidDecoder, **attributes):
    return sl.create_model("segformer_b0", 5, decoder=type("PyramidDecoder", (decoder,), attributes))


def segments(names, masks, axis=-1, drop=True, squash=torch.sigmoid, weigh=True, real=False):
    shares = names.softmax(axis)
    probability, label = (shares[:, :-1] if real else shares).max(-1)
    score = squash(masks) * (probability if weigh else torch.ones_like(probability))[:, None, None]
    if drop:
        score[label == names.shape[-1] - 1] = -1000
    query = score.argmax(0)
    return label[query], query


def counted_anew(names, masks):
    kept = names.argmax(-1) != names.shape[-1] - 1
    return segments(names[kept], masks[kept])


def changed(function, **change):
    return lambda *arguments: function(*arguments, **change)


RIGHT = [
    (checks.window_attention, window_attention),
    (checks.pyramid_model, partial(pyramid_segformer)),
    (checks.segments, segments),
]
WRONG = [
    (checks.window_attention, unshifted, "shift is not used"),
    (checks.window_attention, changed(window_attention, go=1, back=-1), "wrong direction"),
    (checks.window_attention, changed(window_attention, dims=(1,)), "only one axis"),
    (checks.window_attention, changed(window_attention, masked=False), "not masked"),
    (checks.window_attention, changed(window_attention, back=0), "not rolled back"),
    (checks.window_attention, changed(window_attention, back=-1), "rolled back in the wrong direction"),
    (checks.window_attention, changed(window_attention, squares=False), "reshape alone"),
    (checks.window_attention, changed(window_attention, scale=1.0), "root of C"),
    (checks.window_attention, lambda *arguments: window_attention(*arguments)[:, :-1], "expected shape"),
    (checks.window_attention, all_pairs, "all pairs"),
    (checks.pyramid_model, None, "NoneType"),
    (checks.pyramid_model, partial(sl.create_model, "segformer_b0", 5), "inherits from MLPDecoder"),
    (checks.pyramid_model, partial(sl.create_model, "setr", 5), "sl.create_model"),
    (checks.pyramid_model, partial(pyramid_segformer, SmallDecoder), "1280"),
    (checks.pyramid_model, partial(pyramid_segformer, first=False), "F4 comes first"),
    (checks.pyramid_model, partial(pyramid_segformer, bins=(6, 3, 2, 1)), "another order"),
    (checks.pyramid_model, partial(pyramid_segformer, pool=staticmethod(F.adaptive_max_pool2d)), "max pooling"),
    (checks.pyramid_model, partial(pyramid_segformer, pool=staticmethod(F.avg_pool2d)),
     "a window of 1, 2, 3, 6 places"),
    (checks.pyramid_model, partial(pyramid_segformer, pool=staticmethod(lambda f, b: f)), "nothing is pooled"),
    (checks.pyramid_model, partial(pyramid_segformer, how={"mode": "nearest"}), "nearest"),
    (checks.pyramid_model, partial(pyramid_segformer, how={"mode": "bilinear", "align_corners": True}),
     "align_corners=True"),
    (checks.segments, changed(segments, drop=False), "still take pixels"),
    (checks.segments, changed(segments, weigh=False), "class probability is not used"),
    (checks.segments, changed(segments, squash=lambda x: x), "sigmoid"),
    (checks.segments, changed(segments, axis=0), "over the queries"),
    (checks.segments, changed(segments, real=True), "real ones only"),
    (checks.segments, counted_anew, "counted anew"),
    (checks.segments, lambda *arguments: segments(*arguments)[0], "two maps"),
    (checks.segments, lambda *arguments: segments(*arguments)[::-1], "not"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
