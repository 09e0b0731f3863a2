"""Checks of chapter 05, Mix-FFN."""

import torch
import torch.nn.functional as F
from torch import nn

from ...analysis.position import position_spread
from ...models import MixFFN, SegFormer
from ...models.variants import MLPFFN, FullConvFFN
from .expect import a_class, likely, same, true


def depthwise(function) -> None:
    """`function(x, weight)`: (B, C, H, W), (C, 1, 3, 3) -> (B, C, H, W), the depth-wise 3x3 convolution."""
    generator = torch.Generator().manual_seed(0)
    for b, c, height, width in ((1, 2, 5, 5), (2, 3, 4, 7), (1, 5, 6, 3)):
        x = torch.randn(b, c, height, width, generator=generator)
        weight = torch.randn(c, 1, 3, 3, generator=generator)

        def by(kernels, x=x, padding=1, groups=c):
            return F.conv2d(x, kernels, padding=padding, groups=groups)

        slips = (
            ("one kernel for all channels: channel c has its own, weight[c]", by(weight[:1].expand_as(weight))),
            ("the kernel is flipped: weight[c, 0, 0, 0] belongs to the neighbour above and to the left",
             by(weight.flip(2, 3))),
            ("rows and columns of the kernel are exchanged", by(weight.transpose(2, 3))),
            ("circular padding: torch.roll brings pixels back in on the other side; outside are zeros",
             by(weight, F.pad(x, (1, 1, 1, 1), mode="circular"), padding=0)),
            ("replicate padding: the zeros are missing", by(weight, F.pad(x, (1, 1, 1, 1), mode="replicate"),
                                                            padding=0)),
            ("no padding: add one row and one column of zeros on every side", by(weight, padding=0)),
            ("the channels are summed, as a full convolution does", by(weight.expand(c, c, 3, 3), groups=1)),
        )
        same(function(x.clone(), weight.clone()), by(weight), f"my_depthwise({b} x {c} x {height} x {width})", slips)
    print("my_depthwise: correct; nine shifts, nine weights per channel, equal to the grouped convolution.")


def mix_ffn(cls) -> None:
    """`cls(dim, expansion)` with submodules fc1, dwconv, fc2; (B, H, W, dim) -> same, as `MixFFN`."""
    a_class(cls, "MyMixFFN")
    name = getattr(cls, "__name__", str(cls))
    for dim, expansion, height, width in ((8, 4, 5, 7), (6, 2, 4, 4)):
        torch.manual_seed(dim)
        hidden, reference, mine = dim * expansion, MixFFN(dim, expansion), cls(dim, expansion)
        for part, kind in (("fc1", nn.Linear), ("dwconv", nn.Conv2d), ("fc2", nn.Linear)):
            true(
                isinstance(getattr(mine, part, None), kind),
                f"{name}: expected a submodule {part} of class {kind.__name__}",
            )
        wanted, got = tuple(reference.dwconv.weight.shape), tuple(mine.dwconv.weight.shape)
        cause = " Likely cause: groups=hidden is missing." if got == (hidden, hidden, 3, 3) else ""
        true(got == wanted, f"{name}({dim}, {expansion}).dwconv: expected weights {wanted}, got {got}.{cause}")
        try:
            mine.load_state_dict(reference.state_dict(), strict=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise AssertionError(f"{name}({dim}, {expansion}): the weights of MixFFN do not fit: {reason}") from None
        x = torch.randn(2, height, width, dim)
        what = f"{name}({dim}, {expansion}) on {tuple(x.shape)}"
        try:
            got = mine(x)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError):  # the open stub
                raise
            raise AssertionError(
                f"{what}: {str(error).splitlines()[0]}. Likely cause: a convolution wants channels first, "
                "a Linear wants them last: permute before dwconv and back after it"
            ) from None
        same(got, reference(x), what, _mix_ffn_slips(reference, x))
    print(f"{name}: correct; it takes the package's weights and gives the package's numbers.")


def _mix_ffn_slips(ffn: MixFFN, x: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """(likely cause, the result it gives) with the weights of `ffn`."""
    hidden = ffn.fc1(x)

    def conv(y):
        return ffn.dwconv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def tail(y):
        return ffn.fc2(F.gelu(y))

    b, height, width, c = hidden.shape
    lying = ffn.dwconv(hidden.reshape(b, c, height, width))
    turned = ffn.dwconv(hidden.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
    unpadded = F.conv2d(hidden.permute(0, 3, 1, 2), ffn.dwconv.weight, ffn.dwconv.bias, groups=c)
    return [
        ("GELU stands before the convolution; it belongs after it", ffn.fc2(conv(F.gelu(hidden)))),
        ("the residual is added inside; the transformer block adds it", tail(conv(hidden)) + x),
        ("GELU stands twice; it stands once, after the convolution", tail(conv(F.gelu(hidden)))),
        ("GELU stands after fc2; it belongs before it", F.gelu(ffn.fc2(conv(hidden)))),
        ("GELU is missing", ffn.fc2(conv(hidden))),
        ("ReLU where GELU belongs", ffn.fc2(F.relu(conv(hidden)))),
        ("the tanh approximation of GELU; the released network uses the exact one",
         ffn.fc2(F.gelu(conv(hidden), approximate="tanh"))),
        ("dwconv is not called", tail(hidden)),
        ("reshape moves no number: permute (B, H, W, C) to (B, C, H, W)", tail(lying.reshape(hidden.shape))),
        ("reshape moves no number: permute back to (B, H, W, C)",
         tail(ffn.dwconv(hidden.permute(0, 3, 1, 2)).reshape(hidden.shape))),
        ("height and width are exchanged on the way", tail(turned)),
        ("padding=1 is missing", tail(unpadded.permute(0, 2, 3, 1))),
    ]


def ffn_counts(function) -> None:
    """`function(dim, expansion)` -> parameters of (Mix-FFN, the report's full convolution, a plain MLP)."""
    names = ("Mix-FFN", "the full convolution", "the plain MLP")
    for dim, expansion in ((256, 4), (32, 8), (7, 3)):
        counts = [sum(p.numel() for p in kind(dim, expansion).parameters())
                  for kind in (MixFFN, FullConvFFN, MLPFFN)]
        hidden, maps = dim * expansion, 2 * dim * dim * expansion
        slips = {
            "the biases are missing": (maps + 9 * hidden, dim * dim + 9 * dim * hidden + hidden * dim, maps),
            "a 3 x 3 kernel has nine weights": (counts[0] - 6 * hidden, counts[1] - 6 * dim * hidden, None),
            "the convolution is counted as a full one, every channel with every other":
                (counts[0] - 9 * hidden + 9 * hidden * hidden, None, None),
            "the report widens inside its convolution: its first map is dim -> dim":
                (None, maps + hidden + dim + 9 * hidden * hidden + hidden, None),
            "the convolution's biases are missing": (counts[0] - hidden, counts[1] - hidden, None),
        }
        got = function(dim, expansion)
        true(got is not None, "my_ffn_counts: got None; is a `return` missing?")
        true(len(got) == 3, f"my_ffn_counts: expected three counts, got {got}")
        for i, (name, wanted, mine) in enumerate(zip(names, counts, got, strict=True)):
            if mine != wanted:
                causes = [cause for cause, results in slips.items() if results[i] == mine]
                hint = likely(causes)
                raise AssertionError(
                    f"my_ffn_counts(dim={dim}, expansion={expansion}), {name}: expected {wanted:,}, got {mine:,}.{hint}"
                )
    print("my_ffn_counts: correct for three widths.")


def leak_free(model) -> None:
    """A SegFormer for 5 classes, all its convolutions in place, in which no padding tells a place."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    encoder = model.eval().encoder
    for number, stage in enumerate(encoder.stages, start=1):
        for block in stage.blocks:
            conv = getattr(block.ffn, "dwconv", None)
            true(
                isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1),
                f"stage {number}: Mix-FFN has lost its 3x3 convolution with padding 1; change only how it pads",
            )
    zeros = [name for name, part in model.named_modules()
             if isinstance(part, nn.Conv2d) and part.padding != (0, 0) and part.padding_mode == "zeros"]
    for stage, spread in enumerate(position_spread(encoder, 64), start=1):
        kinds = {"a patch embedding" if "patch_embed" in name else "a Mix-FFN" for name in zeros}
        cause = f" Likely cause: {' and '.join(sorted(kinds))} still pads with zeros, {zeros[0]}." if zeros else ""
        true(
            spread < 1e-3,
            f"a constant picture does not stay constant: spread {spread:.3f} in stage {stage}, expected 0.{cause}",
        )
    picture = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = encoder(picture), encoder(picture.roll((32, 64), (2, 3)))
        logits = model(picture)
    modes = {part.padding_mode for part in model.modules() if isinstance(part, nn.Conv2d)} - {"zeros", "circular"}
    cause = f" Likely cause: {' and '.join(sorted(modes))} padding; it hides a border only from constant pictures."
    for number, (f, g) in enumerate(zip(before, after, strict=True), start=1):
        step = 2 ** (number + 1)
        difference = (g - f.roll((32 // step, 64 // step), (2, 3))).abs().max().item()
        true(
            difference < 1e-3,
            "a picture moved round by 32 and 64 pixels must give features moved round by as much: "
            f"stage {number} differs by {difference:.2g}.{cause if modes else ''}",
        )
    true(logits.shape[1] == 5, f"logits: expected 5 classes, got {logits.shape[1]}")
    print("leak_free: correct; a constant picture stays constant, and a moved one moves its features.")
