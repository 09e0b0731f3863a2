"""Checks of chapter 07, the MLP decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import MLPDecoder, SegFormer, create_model
from .expect import a_class, same, true


def upsample_row(function) -> None:
    """`function(row, factor)`: (N,) -> (N * factor,), linear between pixel centres, areas aligned."""
    generator = torch.Generator().manual_seed(0)
    for n, factor in ((2, 2), (5, 4), (3, 3), (8, 8)):
        row = torch.randn(n, generator=generator)
        edges = torch.cat([2 * row[:1] - row[1:2], row, 2 * row[-1:] - row[-2:-1]])  # the line goes on

        def grown(x: Tensor, corners: bool = False, factor: int = factor) -> Tensor:
            return F.interpolate(x[None, None], scale_factor=factor, mode="linear", align_corners=corners)[0, 0]

        def inner(x: Tensor, factor: int = factor) -> Tensor:
            return grown(x)[factor:-factor]

        steps = (torch.arange(n * factor) / factor).clamp(max=n - 1)
        low = steps.long().clamp(max=n - 2)
        slips = (
            ("that is align_corners=True: the outer pixel centres were pinned to each other", grown(row, True)),
            ("every value is repeated: that is the nearest neighbour, not a line between two",
             row.repeat_interleave(factor)),
            ("position i / factor: a pixel's centre lies half a pixel from its edge, on both sides",
             torch.lerp(row[low], row[low + 1], steps - low)),
            ("beyond the outermost centres the line was continued: hold the first and last value", inner(edges)),
            ("beyond the outermost centres zeros were read: hold the first and last value",
             inner(F.pad(row, (1, 1)))),
        )
        same(function(row.clone(), factor), grown(row), f"my_upsample_row({n} values, factor {factor})", slips)
    print("my_upsample_row: correct for four rows, equal to PyTorch with align_corners=False.")


def fold_linear(function) -> None:
    """`function(first, second)` -> one nn.Linear equal to second(first(x)); either may lack its bias."""
    generator = torch.Generator().manual_seed(0)
    for a, b, c, has_first, has_second in ((4, 4, 4, True, True), (3, 6, 2, True, False), (5, 2, 7, False, True),
                                           (2, 8, 3, False, False)):
        first, second = nn.Linear(a, b, bias=has_first), nn.Linear(b, c, bias=has_second)
        for p in (*first.parameters(), *second.parameters()):
            nn.init.normal_(p, generator=generator)
        x = torch.randn(9, a, generator=generator)
        with torch.no_grad():
            wanted, got = second(first(x)), function(first, second)
        what = f"my_fold(Linear({a}, {b}, bias={has_first}), Linear({b}, {c}, bias={has_second}))"
        true(got is not None, f"{what}: got None; is a `return` missing?")
        true(isinstance(got, nn.Linear), f"{what}: expected an nn.Linear, got {type(got).__name__}")
        w1, w2 = first.weight, second.weight
        b1, b2 = (m.bias if m.bias is not None else torch.zeros(m.out_features) for m in (first, second))
        true(tuple(got.weight.shape) == (c, a),
             f"{what}: the weight of a Linear({a}, {c}) is {(c, a)}, got {tuple(got.weight.shape)}; "
             f"the product is {(c, b)} times {(b, a)}, second @ first")
        slips = [("the first bias is forgotten: it goes through the second matrix", F.linear(x, w2 @ w1, b2)),
                 ("the first bias must go through the second matrix as well", F.linear(x, w2 @ w1, b1 + b2))
                 if b == c else None,
                 ("the second bias is forgotten", F.linear(x, w2 @ w1, w2 @ b1)),
                 ("both biases are forgotten", F.linear(x, w2 @ w1))]
        if a == b == c:
            slips += [("the product is in the wrong order: the matrix applied last stands first, second @ first",
                       F.linear(x, w1 @ w2, w2 @ b1 + b2)),
                      ("the product is transposed", F.linear(x, (w2 @ w1).T, w2 @ b1 + b2))]
        with torch.no_grad():
            same(got(x), wanted, what, [slip for slip in slips if slip])
    print("my_fold: correct, with and without biases.")


def mlp_decoder(decoder) -> None:
    """`decoder(in_channels, dim, num_classes)`: a class with the submodules and the results of the package's."""
    a_class(decoder, "MyDecoder")
    generator, channels, dim, classes = torch.Generator().manual_seed(0), (4, 6, 8, 10), 12, 5
    reference, mine = MLPDecoder(channels, dim, classes), decoder(channels, dim, classes)
    _stir(reference, generator)
    theirs, ours = reference.state_dict(), mine.state_dict()
    if set(theirs) != set(ours):
        missing, extra = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
        hint = " Likely cause: the batch norm is forgotten." if any("norm." in k for k in missing) else ""
        hint = " Likely cause: the fusing map has no bias (bias=False)." if extra == ["fuse.bias"] else hint
        raise AssertionError(f"MyDecoder: weights missing {missing or 'none'}, left over {extra or 'none'}: "
                             f"the submodules are linear, fuse, norm, dropout, classify.{hint}")
    for name, tensor in theirs.items():
        true(ours[name].shape == tensor.shape,
             f"MyDecoder: {name} must have shape {tuple(tensor.shape)}, got {tuple(ours[name].shape)}")
    mine.load_state_dict(theirs)

    sizes = ((17, 25), (9, 13), (5, 7), (3, 4))
    features = [torch.randn(2, c, *size, generator=generator) for c, size in zip(channels, sizes)]
    with torch.no_grad():
        slips = [(cause, _decode(reference, features, **change)) for cause, change in (
            ("the maps are concatenated as [F1, F2, F3, F4]; these weights want [F4, F3, F2, F1]", {"order": 1}),
            ("upsampling with align_corners=True", {"corners": True}),
            ("upsampling without mode='bilinear': the nearest neighbour is the default", {"mode": "nearest"}),
            ("upsampled to the size of the input image: the decoder works at 1/4, the size of F1", {"scale": 4}),
            ("the batch norm is not used in forward", {"norm": False}),
            ("the ReLU after the batch norm is forgotten", {"relu": False}),
            ("the ReLU stands before the batch norm", {"relu_first": True}))]
        same(mine.eval()(features), _decode(reference, features), "MyDecoder with the package's weights", slips)
        dropout = getattr(mine, "dropout", None)
        true(isinstance(dropout, nn.Dropout2d), "MyDecoder: dropout must be an nn.Dropout2d, which drops whole "
             f"channels, got {type(dropout).__name__}; nn.Dropout drops single numbers")
        mine.train().dropout.p = 1.0
        true(torch.allclose(mine(features), theirs["classify.bias"].view(-1, 1, 1).expand(2, classes, 17, 25)),
             "MyDecoder: with dropout.p = 1 nothing but the classifier's bias may be left while training; "
             "is self.dropout used, just before self.classify?")
    print("MyDecoder: correct at odd sizes, with the package's own weights.")


def folded_network(function) -> None:
    """`function(model)` -> the same SegFormer-B0 with a decoder that adds one map per level; no fusing map."""
    generator = torch.Generator().manual_seed(0)
    model = create_model("segformer_b0", num_classes=5).eval()
    _stir(model.decoder, generator)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = function(model)
    true(network is not None, "my_folded_network: got None; is a `return` missing?")
    true(isinstance(network, SegFormer) and network is not model,
         "my_folded_network: expected a new network of sl.create_model(..., decoder=SumDecoder)")
    true(all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()),
         "my_folded_network: the given model was changed; copy its weights, leave it as it is")
    saved = _count(model) - _count(network)
    fuse = model.decoder.fuse.weight
    true(saved == fuse.numel(),
         f"my_folded_network: expected {fuse.numel():,} parameters fewer, those of the fusing matrix, got {saved:,}")
    x, network = torch.randn(1, 3, 65, 97, generator=generator), network.eval()
    with torch.no_grad():
        features = model.encoder(x)
        for mine, theirs in zip(network.encoder(x), features):
            same(mine, theirs, "my_folded_network, the encoder's maps", ())
        slips = [(cause, _decode(model.decoder, features, **change)) for cause, change in (
            ("slice i of the fusing matrix belongs to level 4 - i: the order is [F4, F3, F2, F1]", {"order": 1}),
            ("the slices of the fusing matrix are transposed", {"transposed": True}),
            ("the biases of the levels did not go through their slice", {"bias": "kept"}),
            ("the biases of the levels are lost", {"bias": "lost"}),
            ("upsampling with align_corners=True", {"corners": True}),
            ("upsampled to the size of the input image: the decoder works at 1/4, the size of F1", {"scale": 4}),
            ("the batch norm is missing, in SumDecoder or in the copy", {"norm": False}),
            ("the running mean and variance of the batch norm were not copied", {"fresh": True}),
            ("the ReLU is forgotten", {"relu": False}))]
        same(network(x), model(x), "my_folded_network, logits of a 65 x 97 px image", slips)
    print(f"my_folded_network: correct; the same logits with {saved:,} parameters fewer.")


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _stir(decoder: MLPDecoder, generator: torch.Generator) -> None:
    """Give biases and batch norm values as after training: fresh ones would hide mistakes."""
    for tensor in (decoder.norm.weight.data, decoder.norm.running_var):
        tensor.uniform_(0.3, 1.5, generator=generator)
    for tensor in (decoder.norm.bias.data, decoder.norm.running_mean, *(m.bias.data for m in decoder.linear)):
        tensor.normal_(generator=generator)


def _decode(d: MLPDecoder, features: list[Tensor], order: int = -1, corners: bool = False, mode: str = "bilinear",
            scale: int = 1, norm: bool = True, relu: bool = True, relu_first: bool = False, fresh: bool = False,
            bias: str = "right", transposed: bool = False) -> Tensor:
    """Equation 4 in evaluation mode, with one thing or another done wrong."""
    height, width = features[0].shape[-2:]
    align = {} if mode == "nearest" else {"align_corners": corners}
    fused = 0
    for f, linear, fuse in zip(features, d.linear, d.fuse.weight.chunk(len(features), dim=1)[::order]):
        fuse = fuse.T if transposed else fuse
        offset = {"right": fuse @ linear.bias, "kept": linear.bias, "lost": None}[bias]
        y = F.linear(f.permute(0, 2, 3, 1), fuse @ linear.weight, offset).permute(0, 3, 1, 2)
        fused = fused + F.interpolate(y, (height * scale, width * scale), mode=mode, **align)
    mean, var = (torch.zeros(1), torch.ones(1)) if fresh else (d.norm.running_mean, d.norm.running_var)

    def normed(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean.expand(x.shape[1]), var.expand(x.shape[1]), d.norm.weight, d.norm.bias)

    if relu_first:
        return d.classify(normed(F.relu(fused)))
    fused = normed(fused) if norm else fused
    return d.classify(F.relu(fused) if relu else fused)
