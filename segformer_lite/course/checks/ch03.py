"""Checks of chapter 03, patch embedding."""

import torch
import torch.nn.functional as F
from torch import nn

from ...models import OverlapPatchEmbed, SegFormer, create_model
from .expect import likely, pairs, same, true

RELEASED = ((7, 4), (3, 2), (3, 2), (3, 2))  # kernel, stride of the four stages


def stage_sizes(function) -> None:
    """`function(height, width)` -> [(H1, W1), …, (H4, W4)], the token maps of the four stages."""
    for height, width in ((512, 512), (65, 97), (250, 333), (32, 33), (375, 500)):
        x, wanted = torch.zeros(1, 1, height, width), []
        for kernel, stride in RELEASED:
            x = F.conv2d(x, torch.zeros(1, 1, kernel, kernel), stride=stride, padding=kernel // 2)
            wanted.append(tuple(x.shape[-2:]))
        got = function(height, width)
        got = pairs(got, f"my_stage_sizes, {height} x {width} px")
        if got != wanted:
            slips = {
                "rounding down: a padded convolution rounds up": [(height // s, width // s) for s in (4, 8, 16, 32)],
                "height and width are exchanged": [(w, h) for h, w in wanted],
                "every stage halves: the first divides by 4": [
                    (-(-height // s), -(-width // s)) for s in (2, 4, 8, 16)
                ],
            }
            causes = [cause for cause, result in slips.items() if result == got]
            hint = likely(causes)
            raise AssertionError(f"{height} x {width} px: expected {wanted}, got {got}.{hint}")
    print("my_stage_sizes: correct for five sizes, odd ones among them.")


def patchify(function) -> None:
    """`function(image, size)`: (B, C, H, W) -> (B, H/size, W/size, C*size*size), in a conv's order."""
    generator = torch.Generator().manual_seed(0)
    for b, c, height, width, size in ((1, 1, 4, 4, 2), (2, 3, 8, 12, 4), (1, 2, 15, 6, 3), (3, 3, 32, 16, 16)):
        image = torch.randn(b, c, height, width, generator=generator)
        h, w = height // size, width // size
        rows = image.reshape(b, c, h, size, w, size)  # axes: b c h y w x
        wanted = rows.permute(0, 2, 4, 1, 3, 5).reshape(b, h, w, -1)
        slips = (
            (
                "a reshape alone: it cuts the raster line by line, so first split both axes, then permute",
                image.reshape(b, h, w, -1),
            ),
            (
                "the order inside a patch is (y, x, C): a convolution's weight is (C, y, x)",
                rows.permute(0, 2, 4, 3, 5, 1).reshape(b, h, w, -1),
            ),
            ("x and y are exchanged inside a patch", rows.permute(0, 2, 4, 1, 5, 3).reshape(b, h, w, -1)),
            ("the patches are counted column by column", rows.permute(0, 4, 2, 1, 3, 5).reshape(b, w, h, -1)),
            (
                "channels and patch positions are mixed: permute to (b, h, w, c, y, x) before the reshape",
                rows.reshape(b, h, w, -1),
            ),
        )
        what = f"my_patchify({b} x {c} x {height} x {width}, {size})"
        got = function(image.clone(), size)
        same(got, wanted, what, slips)
        conv = nn.Conv2d(c, 5, size, size)
        same(F.linear(got, conv.weight.flatten(1), conv.bias), conv(image).permute(0, 2, 3, 1), what + " then Linear")
    print("my_patchify: correct; a Linear on your patches equals the strided convolution.")


def coverage(function) -> None:
    """`function(height, width, kernel, stride)` -> (H', W'), the share of each window on real pixels."""
    for height, width, kernel, stride in ((16, 16, 7, 4), (65, 97, 7, 4), (16, 24, 3, 2), (9, 7, 3, 2), (8, 8, 5, 3)):

        def share(pad: int, h: int = height, w: int = width, k: int = kernel, s: int = stride):
            return (F.conv2d(torch.ones(1, 1, h, w), torch.ones(1, 1, k, k), stride=s, padding=pad)[0, 0] / k**2)

        wanted = share(kernel // 2)
        across = share(kernel // 2, h=10_000)[1:2] * torch.ones_like(wanted)
        slips = (
            ("the window is counted in pixels: divide by kernel * kernel", wanted * kernel**2),
            ("divided by kernel where the window has kernel * kernel pixels", wanted * kernel),
            ("no padding: the module pads by kernel // 2", share(0)),
            ("only the width is looked at", across),
            ("the padding is counted as real", torch.ones_like(wanted)),
        )
        same(
            function(height, width, kernel, stride),
            wanted,
            f"my_coverage(height={height}, width={width}, kernel={kernel}, stride={stride})",
            slips,
        )
    print("my_coverage: correct; corners see least.")


def plain_model(model) -> None:
    """A SegFormer-B0 for 5 classes whose four patch embeddings do not overlap."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(0)
    for number, (stage, (_, stride)) in enumerate(zip(model.encoder.stages, RELEASED, strict=True), start=1):
        embed = stage.patch_embed
        true(
            type(embed) is not OverlapPatchEmbed,
            f"stage {number} still has the package's OverlapPatchEmbed: pass patch_embed=… to create_model",
        )
        for name, kind in (("proj", nn.Conv2d), ("norm", nn.LayerNorm)):
            true(
                isinstance(getattr(embed, name, None), kind),
                f"stage {number}: expected a submodule {name} of class {kind.__name__}",
            )
        dim = embed.proj.out_channels
        x = torch.randn(1, embed.proj.in_channels, 4 * stride, 6 * stride, generator=generator)
        before = embed(x)
        true(
            tuple(before.shape) == (1, 4, 6, dim),
            f"stage {number}: {tuple(x.shape)} must become {(1, 4, 6, dim)}, "
            f"got {tuple(before.shape)}; is the stride {stride}, the padding 0, the result (B, H', W', dim)?",
        )
        changed = x.clone()
        changed[..., 2 * stride - 1, 3 * stride - 1] += 10  # the last pixel of patch (1, 2)
        where = (embed(changed) - before).abs().amax(-1)[0].gt(1e-6).nonzero().tolist()
        true(
            where == [[1, 2]],
            f"stage {number}: one changed pixel must change the one token [1, 2], it changed {where}; "
            f"with kernel = stride = {stride} and no padding no two windows share a pixel",
        )
        true(before.mean(-1).abs().max() < 1e-4, f"stage {number}: tokens are not normalised; is `self.norm` called?")
    logits = model.eval()(torch.randn(1, 3, 64, 96, generator=generator))
    true(
        tuple(logits.shape) == (1, 5, 16, 24),
        f"logits for a 64 x 96 px image: expected (1, 5, 16, 24), got {tuple(logits.shape)}",
    )
    saved = sum(p.numel() for p in create_model("segformer_b0", num_classes=5).parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    print(f"plain_model: correct; without overlap the network has {saved:,} parameters fewer.")
