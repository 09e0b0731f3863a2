"""The checks of chapter 16: each accepts the mended function, rejects the stub and the sick ones, and says why."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects
from torch import nn

from segformer_lite.course import checks


def to_map(tokens, height, width):
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def shrink(labels, size, mode="nearest-exact"):
    return F.interpolate(labels[:, None].float(), size=size, mode=mode)[:, 0].round().long()


def loss(logits, labels):
    known = labels != 255
    each = F.cross_entropy(logits, labels * known, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def reduction(dim, R):
    return nn.Conv2d(dim, dim, round(R**0.5), round(R**0.5))


def scores(logits, size, **options):
    return F.interpolate(logits, size=size, mode="bilinear", **options)


def mirror(images, labels):
    return images.flip(-1), labels.flip(-1)


def predict(net, images, restore=True, axis=1, grad=False):
    before = net.training
    net.eval()
    with torch.set_grad_enabled(grad):
        labels = net(images).argmax(axis)
    if restore:
        net.train(before)
    return labels


def rate(step, steps, peak=0.01, warmup=20):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup + 1)


def no_eval(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


RIGHT = [
    (checks.tokens_to_map, to_map),
    (checks.shrink_labels, shrink),
    (checks.labelled_loss, loss),
    (checks.square_reduction, reduction),
    (checks.raw_scores, scores),
    (checks.mirror_both, mirror),
    (checks.calm_prediction, predict),
    (checks.learning_rate, rate),
]
WRONG = [
    (checks.tokens_to_map, lambda t, h, w: t.reshape(len(t), -1, h, w), "reshape alone"),
    (checks.tokens_to_map, lambda t, h, w: to_map(t, w, h), "height and width"),
    (checks.tokens_to_map, lambda t, h, w: t.reshape(len(t), h, w, -1), "channels are still last"),
    (checks.shrink_labels, lambda x, s: shrink(x, s, "bilinear"), "invented"),
    (checks.shrink_labels, lambda x, s: shrink(x, s, "nearest"), "shifted"),
    (checks.shrink_labels, lambda x, s: shrink(x, s).float(), "int64"),
    (checks.labelled_loss, lambda x, y: F.cross_entropy(x, y.clamp(max=3)), "clamped"),
    (checks.labelled_loss, lambda x, y: F.cross_entropy(x, y * (y < 4)), "background"),
    (checks.labelled_loss, lambda x, y: F.cross_entropy(x, y, ignore_index=255, reduction="sum") / y.numel(),
     "divided by all"),
    (checks.labelled_loss, lambda x, y: F.cross_entropy(x, y, ignore_index=255), "expected 0, got nan"),
    (checks.square_reduction, lambda d, R: nn.Conv2d(d, d, R, R), "sqrt"),
    (checks.square_reduction, lambda d, R: nn.Conv2d(d, d, (1, R), (1, R)), "strips"),
    (checks.square_reduction, lambda d, R: nn.Conv2d(d, d, 3, round(R**0.5), 1), "\\[0, 0\\] only"),
    (checks.raw_scores, lambda x, s: scores(x, s).softmax(1), "second softmax"),
    (checks.raw_scores, lambda x, s: scores(x.softmax(1), s), "second softmax"),
    (checks.raw_scores, lambda x, s: scores(x, s, align_corners=True), "aligned"),
    (checks.mirror_both, lambda x, y: (x.flip(-1), y), "labels were not mirrored"),
    (checks.mirror_both, lambda x, y: (x, y.flip(-1)), "images were not mirrored"),
    (checks.mirror_both, lambda x, y: (x.flip(2), y.flip(2)), "top and bottom"),
    (checks.calm_prediction, no_eval, "net.eval"),
    (checks.calm_prediction, lambda n, x: predict(n, x, restore=False), "must leave in it"),
    (checks.calm_prediction, lambda n, x: predict(n, x, axis=-1), "wrong axis"),
    (checks.calm_prediction, lambda n, x: predict(n, x, grad=True), "no_grad"),
    (checks.learning_rate, lambda s, n, p, w: 100 * rate(s, n, p, w), "hundred times"),
    (checks.learning_rate, lambda s, n, p, w: p * min(1, (s + 1) / w) * (1 - s / n), "begins at step 0"),
    (checks.learning_rate, lambda s, n, p, w: rate(s, n, p, w) if s >= w else p * s / w, "first step"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
