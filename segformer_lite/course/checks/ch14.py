"""Checks of chapter 14, speed."""

import copy
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...analysis.speed import flops
from ...models import MLPDecoder, SegFormer, create_model
from .expect import number, same, true


def honest_ratio(function) -> None:
    """`function(a, b)`: the median of the ratios a / b, turn by turn."""
    generator = torch.Generator().manual_seed(0)
    for turns in (3, 8, 25):
        drift = torch.linspace(1, 3, turns) ** 2 * (1 + 0.3 * torch.rand(turns, generator=generator))
        a, b = (drift * (1 + 0.5 * torch.rand(turns, generator=generator)) * scale for scale in (1.7, 1.0))
        a[1] *= 6  # somebody looked away
        ratios = (a / b).tolist()
        a, b = a.tolist(), b.tolist()
        slips = (("the drift of the machine is in it: divide turn by turn first, then take the median",
                  statistics.median(a) / statistics.median(b)),
                 ("the mean lets one bad turn count: take the median", statistics.mean(ratios)),
                 ("sums or means are divided: one ratio for each turn, then their median", sum(a) / sum(b)),
                 ("B and A are exchanged: how many times longer A takes is a / b",
                  statistics.median([1 / ratio for ratio in ratios])),
                 ("the fastest turns are compared, and they lie at different moments", min(a) / min(b)))
        number(function(list(a), list(b)), statistics.median(ratios), f"my_ratio of {turns} turns", slips)
    print("my_ratio: correct; neither drift nor one bad turn moves it.")


def arithmetic_intensity(function) -> None:
    """`function(tokens, c_in, c_out, size)`: operations per byte of a linear layer without bias."""
    for tokens, c_in, c_out, size in ((4096, 32, 128, 4), (64, 256, 1024, 4), (1, 768, 150, 8), (16384, 160, 160, 1)):
        operations = 2 * tokens * c_in * c_out
        read, matrix, written = tokens * c_in, c_in * c_out, tokens * c_out
        whole = read + matrix + written
        slips = (("a product and a sum are two operations", operations / 2 / whole / size),
                 ("that is operations per value: a value has `size` bytes", operations / whole),
                 ("the matrix must be fetched too", operations / (read + written) / size),
                 ("what is written moves as well as what is read", operations / (read + matrix) / size),
                 ("the tokens must be fetched as well", operations / (matrix + written) / size),
                 ("a value has `size` bytes, not always 4", operations / whole / 4),
                 ("that is bytes per operation", whole * size / operations))
        what = f"my_intensity({tokens}, {c_in}, {c_out}, size={size})"
        number(function(tokens, c_in, c_out, size), operations / whole / size, what, slips)
    print("my_intensity: correct; wide layers with many tokens lie to the right.")


def interpolation_matrix(function) -> None:
    """`function(length, size)` -> (size, length): bilinear resize of a row, pixel areas aligned."""
    for length, size in ((4, 8), (2, 8), (5, 20), (7, 10), (16, 16)):
        rows = torch.eye(length)[:, None]  # a picture for each old value that is 1 alone

        def resized(rows: Tensor = rows, size: int = size, **options) -> Tensor:
            return F.interpolate(rows, size=size, **options)[:, 0].T

        wanted = resized(mode="linear", align_corners=False)
        place = (torch.arange(size) * length / size).clamp(max=length - 1)
        free = (torch.arange(size) + 0.5) * length / size - 0.5
        slips = (("transposed: a line for each new value, a column for each old one", wanted.T),
                 ("that is align_corners=True: the outer centres were pinned to each other",
                  resized(mode="linear", align_corners=True)),
                 ("one entry in each line, the nearest: two neighbours share a new value", resized(mode="nearest")),
                 ("place i * length / size: a centre lies half a pixel from its edge", _shares(place, length)),
                 ("beyond the outermost centres the line went on: clamp the places to 0 and length - 1",
                  _shares(free, length)),
                 ("the shares are exchanged: the nearer neighbour has the larger share",
                  _shares(free.clamp(0, length - 1), length, exchanged=True)))
        same(function(length, size), wanted, f"my_matrix({length}, {size})", slips)
    print("my_matrix: correct; its products are PyTorch's bilinear upsampling.")


def frozen_network(function) -> None:
    """`function(model)` -> a copy with the same logits in evaluation, without a batch norm, its matrices ready."""
    torch.manual_seed(3)
    model = create_model("segformer_b0", num_classes=7).train()
    norm = model.decoder.norm
    for tensor, low, high in ((norm.weight, 0.02, 0.08), (norm.bias, -0.3, 0.3), (norm.running_mean, -0.3, 0.3),
                              (norm.running_var, 1e-4, 4e-4),  # so small that eps counts
                              (model.decoder.classify.weight, -0.1, 0.1)):
        nn.init.uniform_(tensor, low, high)
    for linear in model.decoder.linear:
        nn.init.uniform_(linear.bias, -1, 1)
    kept = copy.deepcopy(model)
    frozen = function(model)
    true(frozen is not None, "my_frozen: got None; is a `return` missing?")
    true(isinstance(frozen, SegFormer), f"my_frozen: expected a SegFormer, got {type(frozen).__name__}")
    unchanged = isinstance(model.decoder, MLPDecoder) and model.training and all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), kept.state_dict().values(), strict=True))
    true(unchanged, "my_frozen: the network that was given has changed; work on copy.deepcopy(model)")
    true(not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in frozen.modules()),
         "my_frozen: there is still a batch norm in it; work it into matrices and bias")
    true(not any(part.training for part in frozen.modules()),
         "my_frozen: expected a network in evaluation mode; call .eval() on it")
    kept.eval()
    for b, height, width in ((1, 64, 64), (2, 96, 65)):
        x = torch.randn(b, 3, height, width)
        with torch.no_grad():
            features = kept.encoder(x)
            wanted, got = kept.decoder(features), frozen(x)
        same(got, wanted, f"logits of your network for {b} x 3 x {height} x {width}", _slips(kept.decoder, features))
    with torch.no_grad():
        before, after = (flops(lambda net=net: net.decoder(features)) for net in (kept, frozen))
    true(after < before, "my_frozen: the logits are right, but the decoder still multiplies its matrices with each "
         "other in every call; do it once, in __init__")
    print("my_frozen: correct; the same logits, no batch norm, no matrix made twice.")


def _shares(place: Tensor, length: int, exchanged: bool = False) -> Tensor:
    """The matrix of a row's values at `place`, linear between two neighbours."""
    low = place.floor().long().clamp(0, length - 2)
    share = place - low
    matrix, line = torch.zeros(len(place), length), torch.arange(len(place))
    matrix[line, low + int(exchanged)] += 1 - share
    matrix[line, low + int(not exchanged)] += share
    return matrix


def _slips(decoder: MLPDecoder, features: list[Tensor]):
    """(cause, logits) of what goes wrong when a batch norm is worked into matrices and a bias."""
    norm, wrong = decoder.norm, []
    for cause, change in (
        ("the epsilon is left out: it stands under the root, beside the variance", {"eps": 0.0}),
        ("the epsilon was added outside of the root", {"root": True}),
        ("the scale is divided by the variance: it is the root", {"power": 1.0}),
        ("the biases of the four levels are lost", {"bias": 0.0}),
        ("the mean must be scaled before it is taken away", {"mean_scaled": False}),
        ("the mean is not taken away", {"mean": 0.0}),
        ("the shift of the batch norm (its bias) is lost", {"shift": 0.0}),
        ("the scale must be on matrices and bias alike", {"matrices": False}),
        ("the ReLU is missing before `classify`", {"relu": False}),
    ):
        wrong.append((cause, _by_hand(decoder, norm, features, **change)))
    return wrong


def _by_hand(decoder: MLPDecoder, norm: nn.BatchNorm2d, features: list[Tensor], eps: float = 1.0, root: bool = False,
             power: float = 0.5, bias: float = 1.0, mean_scaled: bool = True, mean: float = 1.0, shift: float = 1.0,
             matrices: bool = True, relu: bool = True) -> Tensor:
    """The frozen decoder with a mistake; as it stands, the right one."""
    variance, eps = norm.running_var, eps * norm.eps
    scale = norm.weight / (variance.sqrt() + eps if root else (variance + eps) ** power)
    size, total, level = features[0].shape[-2:], 0, 0
    with torch.no_grad():
        for f, linear, fuse in zip(features, decoder.linear, reversed(decoder.fuse.weight.chunk(4, dim=1)),
                                   strict=True):
            matrix = fuse @ linear.weight
            mixed = F.linear(f.permute(0, 2, 3, 1), scale[:, None] * matrix if matrices else matrix)
            total = total + F.interpolate(mixed.permute(0, 3, 1, 2), size=size, mode="bilinear")
            level = level + bias * (fuse @ linear.bias)
        centre = mean * norm.running_mean
        added = scale * (level - centre) if mean_scaled else scale * level - centre
        total = total + (added + shift * norm.bias)[:, None, None]
        return decoder.classify(total.relu() if relu else total)
