"""Checks of chapter 13, pretrained weights and own data."""

import math
import tempfile
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...models import SegFormer, create_model
from ...training import TrainConfig, train
from .expect import likely, number, pairs, true


def window_starts(function) -> None:
    """`function(length, window, stride)` -> first pixels of windows that cover an axis, the last one flush."""
    for length, window, stride in ((128, 64, 32), (100, 64, 32), (64, 64, 48), (65, 64, 32), (200, 64, 64),
                                   (40, 64, 32)):
        what = f"my_starts({length}, {window}, {stride})"
        got = function(length, window, stride)
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(np.iterable(got), f"{what}: expected a list of starts, got {got!r}")
        got, last = [int(start) for start in got], max(0, length - window)
        wanted = sorted({*range(0, last, stride), last})
        if got == wanted:
            continue
        reasons = [(any(start < 0 for start in got), "a window begins before the picture"),
                   (len(set(got)) < len(got), "a start is there twice"),
                   (any(start > last for start in got), "the last window reaches over the edge: move it back"),
                   (not got or max(got) < last, "the last pixels are never seen: one more window, flush with the end"),
                   (got != sorted(got), "the starts must rise")]
        cause = next((text for wrong, text in reasons if wrong), "the steps are not `stride`")
        true(False, f"{what}: expected {wanted}, got {got}. Likely cause: {cause}.")
    print("my_starts: correct; every pixel is seen, and no window leaves the picture.")


def shape_outline(function) -> None:
    """`function(shape)` -> points of the outline of LabelMe's polygons, rectangles and circles."""
    polygon = [[5, 5], [50, 12], [30, 55]]
    _drawn(function, {"shape_type": "polygon", "points": polygon}, _painted(polygon), [])
    for one, other in (([10, 20], [50, 44]), ([50, 44], [10, 20]), ([10, 44], [50, 20])):
        (x1, y1), (x2, y2) = one, other
        wanted = _painted([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
        slips = [("the corners do not go around: neighbours in the list must share an edge",
                  _painted([(x1, y1), (x2, y2), (x2, y1), (x1, y2)])),
                 ("two points are no outline: the other two corners are missing", _painted([one, other]))]
        _drawn(function, {"shape_type": "rectangle", "points": [one, other]}, wanted, slips)
    for (cx, cy), (a, b) in (((32, 30), (32, 50)), ((30, 33), (42, 24))):
        r = math.hypot(a - cx, b - cy)
        slips = [("the distance of the points is the radius, not the diameter", _disc(cx, cy, r / 2)),
                 ("centre and rim are exchanged: the first point is the centre", _disc(a, b, r)),
                 ("the distance is the root of the squares, not the sum of both",
                  _disc(cx, cy, abs(a - cx) + abs(b - cy))),
                 ("two points are no outline: a circle needs points all around", _painted([(cx, cy), (a, b)]))]
        _drawn(function, {"shape_type": "circle", "points": [[cx, cy], [a, b]]}, _disc(cx, cy, r), slips, least=32)
    try:
        function({"shape_type": "line", "points": [[1, 1], [9, 9]]})
    except ValueError:
        print("my_outline: correct for polygons, rectangles and circles; a line is refused.")
        return
    true(False, "my_outline of a line: expected a ValueError; a line has no inside to paint")


def rater_agreement(function) -> None:
    """`function(maps, c)`: mean Dice of class `c` over all pairs of people; maps (R, S, H, W), 255 counts nowhere."""
    rng = np.random.default_rng(0)
    for people, c in ((2, 1), (3, 2), (4, 3)):
        truth = rng.integers(0, 4, (3, 8, 9))
        maps = np.stack([np.where(rng.random(truth.shape) < 0.3 + 0.1 * k, rng.integers(0, 4, truth.shape), truth)
                         for k in range(people)])
        maps[0, 0, :3], maps[-1, 1, :, :2] = 255, 255
        maps[1:][maps[1:] == 3] = 0  # class 3 is drawn by one person alone
        what = f"my_agreement of {people} people on class {c}"
        ordered = [_dice(a, b, c) for a, b in combinations(maps, 2)]
        slips = (("everybody is compared with themselves too: pairs of different people only",
                  _mean([_dice(a, b, c) for a, b in combinations_with_replacement(maps, 2)])),
                 ("that too counts people with themselves", _mean([_dice(a, b, c) for a, b in product(maps, maps)])),
                 ("pixels marked 255 by one of the two count: leave them out for that pair",
                  _mean([_dice(a, b, c, known=np.ones_like(a, bool)) for a, b in combinations(maps, 2)])),
                 ("that is IoU: Dice is 2 I / (P + L)", _mean([d / (2 - d) for d in ordered])),
                 ("only the first person is compared with the others", _mean(ordered[: people - 1])),
                 ("slices were averaged: count over the whole stack, divide once",
                  _mean([_mean([_dice(p, q, c) for p, q in zip(a, b, strict=True)])
                         for a, b in combinations(maps, 2)])))
        got = function(maps.copy(), c)
        number(got, _mean(ordered), what, slips, within=1e-6)
    drawn = np.zeros((3, 1, 4, 4), int)
    drawn[0, 0, 0] = drawn[1, 0, :2] = 2
    pairwise = [_dice(a, b, 2) for a, b in combinations(drawn, 2)]
    slips = [("two of the three pairs are 0: a pair is left out only if neither drew the class", max(pairwise))]
    number(function(drawn.copy(), 2), _mean(pairwise), "my_agreement where one of three drew nothing", slips, 1e-6)
    number(function(np.zeros((2, 1, 4, 4), int), 1), math.nan, "my_agreement on a class that nobody drew")
    print("my_agreement: correct; that is the end of the scale.")


def finetune_recipe(function) -> None:
    """`function(data, weights, folder)` -> TrainConfig: from the weights, encoder at lr / 10, decoder as ever."""
    default = TrainConfig()
    with tempfile.TemporaryDirectory() as here:
        here = Path(here)
        torch.manual_seed(5)
        create_model("segformer_b0", 3, norm_eps=1e-5).save_pretrained(here / "weights")
        data = _four_pictures(here / "data")
        config = function(str(data), str(here / "weights"), str(here / "run"))
        true(config is not None, "my_recipe: got None; is a `return` missing?")
        true(isinstance(config, TrainConfig), f"my_recipe: expected a TrainConfig, got {type(config).__name__}")
        true(config.weights is not None, "my_recipe: weights is None, so the encoder starts at random: pass weights=")
        for key, wanted in (("data", data), ("weights", here / "weights"), ("folder", here / "run")):
            got = getattr(config, key)
            true(str(got) == str(wanted), f"my_recipe: {key} is {got!r}, expected the one that was given")
        true(not config.freeze_encoder, "my_recipe: the encoder is frozen; it is to learn, at a tenth of the rate")
        encoder, decoder = config.lr, config.lr * config.head_lr_mult
        usual = default.lr * default.head_lr_mult
        true(math.isclose(encoder, default.lr / 10), f"my_recipe: the encoder's rate is {encoder:g}, expected "
             f"{default.lr / 10:g}, a tenth of the default {default.lr:g}")
        true(math.isclose(decoder, usual), f"my_recipe: the decoder's rate, lr * head_lr_mult, is {decoder:g}, "
             f"expected {usual:g} as by default: when lr falls, head_lr_mult must rise")
        for key, value in dict(size=32, base_size=None, steps=1, epochs=None, batch_size=2, warmup=0, device="cpu",
                               precision="fp32", eval_every=0, workers=0).items():
            setattr(config, key, value)  # a step is enough to see what moves
        start = SegFormer.from_pretrained(here / "weights").encoder.state_dict()
        moved = train(config, progress=False).model.encoder.state_dict()
        far = max((moved[name] - value).abs().max().item() for name, value in start.items())
        true(0 < far <= 2 * encoder, f"my_recipe: one step moved the encoder by {far:g} from the weights given, "
             f"expected at most about its rate, {encoder:g}")
    print("my_recipe: correct; one step from the weights that were given, and a small one.")


def _four_pictures(root: Path) -> Path:
    """A data set of noise in the layout of `FolderSegmentation`."""
    rng = np.random.default_rng(0)
    for part, top in (("images", 256), ("masks", 3)):
        (root / part).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, top, (32, 32), dtype=np.uint8)).save(root / part / f"{k}.png")
    (root / "classes.txt").write_text("background\nmetal\npore\n")
    return root


def _painted(points) -> np.ndarray:
    canvas = Image.new("1", (64, 64))
    ImageDraw.Draw(canvas).polygon([tuple(map(float, point)) for point in points], fill=1)
    return np.array(canvas)


def _disc(x: float, y: float, r: float) -> np.ndarray:
    return _painted([(x + r * math.cos(t), y + r * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 64)])


def _drawn(function, shape: dict, wanted: np.ndarray, slips, least: int = 3) -> None:
    """Raise AssertionError unless the outline of `shape` encloses the pixels `wanted`."""
    kind = shape["shape_type"]
    what = f"my_outline of a {kind} {shape['points']}"
    points = function({"shape_type": kind, "points": [list(point) for point in shape["points"]], "label": "part"})
    true(points is not None, f"{what}: got None; is a `return` missing?")
    points = list(points) if np.iterable(points) else points
    pairs(points, what)
    points = [tuple(map(float, point)) for point in points]
    drawn = _painted(points) if len(points) >= 2 else np.zeros((64, 64), bool)
    if _iou(drawn, wanted) > 0.93:
        true(len(points) >= least, f"{what}: {len(points)} points, expected at least {least}")
        return
    causes = [cause for cause, slip in slips if _iou(drawn, slip) > 0.93]
    hint = likely(causes)
    true(False, f"{what}: the outline encloses {int(drawn.sum())} pixels, expected {int(wanted.sum())}, of which it "
         f"has {int((drawn & wanted).sum())}.{hint}")


def _iou(p: np.ndarray, q: np.ndarray) -> float:
    return float((p & q).sum() / max(1, (p | q).sum()))


def _dice(one, other, c: int, known=None) -> float:
    known = (one != 255) & (other != 255) if known is None else known
    p, q = (one == c) & known, (other == c) & known
    total = p.sum() + q.sum()
    return 2 * float((p & q).sum()) / float(total) if total else math.nan


def _mean(values) -> float:
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan
