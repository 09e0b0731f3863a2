"""Checks of chapter 16, bug clinic."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .expect import likely, same, true


def tokens_to_map(function) -> None:
    """`function(tokens, height, width)`: (B, N, C) -> (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    for b, c, height, width in ((1, 2, 2, 3), (2, 5, 4, 4), (3, 4, 5, 2)):
        tokens = torch.randn(b, height * width, c, generator=generator)
        turned = tokens.transpose(1, 2)
        slips = (("a reshape alone mixes channels and places: first transpose(1, 2)",
                  tokens.reshape(b, c, height, width)),
                 ("height and width are exchanged", turned.reshape(b, c, width, height)),
                 ("the tokens were counted column by column",
                  turned.reshape(b, c, width, height).transpose(2, 3)),
                 ("the channels are still last: (B, H, W, C)", tokens.reshape(b, height, width, c)))
        same(function(tokens.clone(), height, width), turned.reshape(b, c, height, width),
             f"my_to_map of {b} x {height * width} x {c} tokens, {height} x {width}", slips)
    print("my_to_map: correct; every channel is a map again.")


def shrink_labels(function) -> None:
    """`function(labels, size)`: label maps at another size, no label invented, none moved."""
    generator = torch.Generator().manual_seed(0)
    for side, size in ((16, (4, 4)), (20, (8, 8)), (12, (6, 4)), (4, (8, 8))):
        labels = torch.randint(0, 4, (2, side, side), generator=generator)
        labels[:, 0] = 255

        def resized(mode: str, x=labels, size=size):
            return F.interpolate(x[:, None].float(), size=size, mode=mode)[:, 0]

        got = function(labels.clone(), size)
        invented = "classes were invented: an average of class numbers is another class"
        slips = ((invented, resized("bilinear").round().long()), (invented, resized("bilinear").long()),
                 (invented, resized("bilinear")), (invented, resized("bicubic").round().long()),
                 (invented, resized("area").round().long()),
                 ('the labels are shifted by half a coarse pixel: "nearest-exact" takes the centre',
                  resized("nearest").long()))
        same(got, resized("nearest-exact").long(), f"my_shrink from {side} x {side} to {size[0]} x {size[1]}", slips)
        true(got.dtype == torch.int64, f"my_shrink: labels are whole numbers (int64), got {got.dtype}")
    print("my_shrink: correct; every label is one that was there.")


def labelled_loss(function) -> None:
    """`function(logits, labels)`: mean cross-entropy over the pixels whose label is not 255."""
    generator = torch.Generator().manual_seed(0)
    for unknown in (0, 3, 20):
        logits = torch.randn(2, 4, 5, 6, generator=generator)
        labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
        labels.view(-1)[torch.randperm(60, generator=generator)[:unknown]] = 255
        wanted = F.cross_entropy(logits, labels, ignore_index=255)
        total = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
        slips = (("divided by all pixels: only those with a label count", total / 60),
                 ("a sum, not a mean", total),
                 ("255 was clamped to the last class: it means nobody knows",
                  F.cross_entropy(logits, labels.clamp(max=3))),
                 ("255 became background: it means nobody knows", F.cross_entropy(logits, labels * (labels < 4))),
                 ("the mean of each picture's mean: average over all pixels of the batch at once",
                  torch.stack([F.cross_entropy(a[None], b[None], ignore_index=255)
                               for a, b in zip(logits, labels, strict=True)]).mean()))
        same(function(logits.clone(), labels.clone()), wanted, f"my_loss with {unknown} of 60 pixels labelled 255",
             slips)
    nobody = function(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 255))
    true(float(nobody) == 0, f"my_loss without any labelled pixel: expected 0, got {float(nobody)}; "
         "divide by at least 1")
    print("my_loss: correct; what nobody knows costs nothing.")


def square_reduction(function) -> None:
    """`function(dim, R)`: a module that merges squares of R tokens."""
    for dim, R in ((4, 4), (3, 16), (2, 64)):
        s = math.isqrt(R)
        layer, what = function(dim, R), f"my_reduction(dim={dim}, R={R})"
        true(layer is not None, f"{what}: got None; is a `return` missing?")
        true(isinstance(layer, nn.Module), f"{what}: expected a module, got {type(layer).__name__}")
        x = torch.zeros(1, dim, R, R)  # large enough for a square of side R
        got, wanted = tuple(layer(x).shape), (1, dim, R // s, R // s)
        cause = {(1, dim, 1, 1): " Likely cause: kernel and stride count tokens of one axis, so they are sqrt(R).",
                 (1, dim, R, 1): " Likely cause: strips are merged: a square has the same height and width."}
        true(got == wanted, f"{what} on {R} x {R} tokens: expected {wanted}, got {got}, "
             f"{R * R // max(1, got[-1] * got[-2])} tokens to a key in place of {R}.{cause.get(got, '')}")
        x[..., s - 1, s - 1] = 1  # the last token of the first square
        moved = (layer(x) - layer(torch.zeros_like(x))).abs().amax(1)[0].gt(0).nonzero().tolist()
        true(moved == [[0, 0]], f"{what}: one changed token of the first square must change the key [0, 0] only, "
             f"it changed {moved}; kernel and stride are both sqrt(R), without padding")
    print("my_reduction: correct; R tokens to a key, in squares.")


def raw_scores(function) -> None:
    """`function(logits, size)`: logits enlarged, ready for `cross_entropy` (which takes the softmax itself)."""
    generator = torch.Generator().manual_seed(0)
    for b, k, h, w, size in ((1, 3, 1, 1, (2, 2)), (2, 4, 3, 5, (12, 20)), (1, 2, 4, 4, (7, 9))):
        logits = 5 * torch.randn(b, k, h, w, generator=generator)
        large = F.interpolate(logits, size=size, mode="bilinear")
        twice = "a second softmax: cross_entropy takes the logits as they are"
        slips = ((twice, large.softmax(1)), (twice, F.interpolate(logits.softmax(1), size=size, mode="bilinear")),
                 ("a sigmoid makes probabilities too: cross_entropy takes the logits as they are", large.sigmoid()),
                 ("the borders are aligned: leave align_corners at False",
                  F.interpolate(logits, size=size, mode="bilinear", align_corners=True)),
                 ("enlarged with nearest, not bilinear", F.interpolate(logits, size=size)),
                 ("not enlarged", logits))
        same(function(logits.clone(), size), large, f"my_scores from {h} x {w} to {size[0]} x {size[1]}", slips)
    print("my_scores: correct; a sure answer may now cost nothing.")


def mirror_both(function) -> None:
    """`function(images, labels)`: both with left and right exchanged."""
    generator = torch.Generator().manual_seed(0)
    for b, c, h, w in ((1, 1, 2, 3), (3, 3, 4, 4), (2, 1, 5, 2)):
        images = torch.randn(b, c, h, w, generator=generator)
        labels = torch.randint(0, 5, (b, h, w), generator=generator)
        got = function(images.clone(), labels.clone())
        true(got is not None, "my_mirror: got None; is a `return` missing?")
        true(isinstance(got, tuple | list) and len(got) == 2, "my_mirror: expected the pair (images, labels)")
        for x, y, name in ((images, got[0], "images"), (labels, got[1], "labels")):
            slips = ((f"the {name} were not mirrored", x), ("top and bottom were exchanged", x.flip(-2)),
                     ("top and bottom, too, were exchanged", x.flip(-1, -2)),
                     ("the order of the batch was turned round", x.flip(0)))
            same(y, x.flip(-1), f"my_mirror, {name}", slips)
    print("my_mirror: correct; image and label move together.")


class _Moody(nn.Module):
    """A network whose answer depends on its mode and on its neighbours in the batch, as batch norm's does."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout2d(0.5)

    def forward(self, x):
        return self.dropout(self.norm(x))


def calm_prediction(function) -> None:
    """`function(net, images)`: label maps in evaluation mode, the network left as it was."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 6, 5, generator=generator)
    for training in (True, False):
        net = _Moody()
        net.norm.running_mean[:] = torch.tensor([1.0, 0.0, -1.0])
        state = {name: value.clone() for name, value in net.state_dict().items()}
        wanted = net.eval()(images).argmax(1)
        net.train(training)
        mode = f"my_predict of a network in {'training' if training else 'evaluation'} mode"
        got = function(net, images.clone())
        touched = any(not torch.equal(state[name], value) for name, value in net.state_dict().items())
        true(not touched, f"{mode}: batch norm's statistics have changed; is net.eval() missing?")
        true(isinstance(got, torch.Tensor) or got is None, f"{mode}: expected a tensor, got {type(got).__name__}")
        logits = net.eval()(images)
        same(got, wanted, mode, (("logits: the label is the argmax over the classes, axis 1", logits.detach()),
                                 ("argmax over the wrong axis: the classes are axis 1", logits.argmax(-1)),
                                 ("probabilities: take the argmax over axis 1", logits.softmax(1).detach())))
    asked = []
    for training in (True, False):
        net = _Moody().train(training)
        net.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
        function(net, images.clone())
        true(net.training == training, f"my_predict: the network came in {'training' if training else 'evaluation'} "
             "mode and must leave in it; keep net.training before net.eval(), then net.train(before)")
    true(not any(asked), "my_predict: gradients are kept though nobody needs them; ask inside torch.no_grad()")
    print("my_predict: correct; it asks calmly and leaves no trace.")


def learning_rate(function) -> None:
    """`function(step, steps, peak, warmup)`: a straight line up to `peak`, then a straight line down to 0."""
    for steps, peak, warmup in ((100, 0.005, 20), (10, 1.0, 1), (57, 0.3, 8)):
        def right(step: int, shift: int = 1, n: int = steps, top: float = peak, w: int = warmup) -> float:
            return top * (step + shift) / w if step < w else top * (n - step) / (n - w + 1)

        got = [function(step, steps, peak, warmup) for step in range(steps)]
        true(None not in got, "my_rate: got None; is a `return` missing?")
        line = [peak * min(1, (s + 1) / warmup) * (1 - s / steps) for s in range(steps)]
        slips = {"the first step has rate 0: step 0 is the first of the warm-up":
                     [right(s, shift=0) for s in range(steps)],
                 "a hundred times too large": [100 * right(s) for s in range(steps)],
                 "the fall begins at step 0, so the peak is never reached": line,
                 "no warm-up": [peak * (1 - s / steps) for s in range(steps)],
                 "it never falls": [peak * min(1, (s + 1) / warmup) for s in range(steps)]}

        def close(a: list, b: list) -> bool:
            return all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-9) for x, y in zip(a, b, strict=True))

        wanted = [right(s) for s in range(steps)]
        causes = [cause for cause, rates in slips.items() if close(got, rates)]
        hint = likely(causes)
        first = next((s for s in range(steps) if not math.isclose(got[s], wanted[s], rel_tol=1e-4)), 0)
        true(close(got, wanted), f"my_rate(step={first}, steps={steps}, peak={peak}, warmup={warmup}): expected "
             f"{wanted[first]:.4g}, got {got[first]:.4g}.{hint}")
    print("my_rate: correct; up gently, down to nothing.")
