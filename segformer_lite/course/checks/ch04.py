"""Checks of chapter 04, efficient self-attention."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import EfficientSelfAttention, SegFormer
from .expect import likely, pairs, same, true


def _run(function, what: str, advice: str):
    """What `function()` returns; an error of torch in it becomes a message that says where and what to look at."""
    try:
        return function()
    except (RuntimeError, IndexError) as error:
        if isinstance(error, NotImplementedError):  # the open stub
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AssertionError(f"{what}: torch says '{first_line}'. Likely cause: {advice}.") from None


def softmax_attention(function) -> None:
    """`function(q, k, v)`: q (B, heads, N, d), k and v (B, heads, M, d) -> (B, heads, N, d)."""
    generator = torch.Generator().manual_seed(0)
    for b, heads, n, m, d in ((2, 3, 12, 4, 8), (1, 2, 7, 7, 16), (1, 1, 5, 5, 5)):
        q = torch.randn(b, heads, n, d, generator=generator)
        k, v = torch.randn(2, b, heads, m, d, generator=generator)
        scores = q @ k.transpose(-2, -1)
        root = math.sqrt(d)
        weights = (scores / root).softmax(-1)
        slips = [
            ("the scale is missing: divide the scores by sqrt(d)", scores.softmax(-1) @ v),
            ("divided by d: it is the square root of d", (scores / d).softmax(-1) @ v),
            ("multiplied by sqrt(d) where one divides", (scores * root).softmax(-1) @ v),
            ("divided by sqrt(heads * d) = sqrt(C): each head has only d numbers to sum",
             (scores / math.sqrt(heads * d)).softmax(-1) @ v),
            ("softmax over the wrong axis: the weights of one query, the last axis, must sum to 1",
             (scores / root).softmax(-2) @ v),
            ("softmax over the heads: dim=1 counts from the left", (scores / root).softmax(1) @ v),
            ("the scale must come before the softmax", scores.softmax(-1) / root @ v),
            ("there is no softmax", scores / root @ v),
            ("the weights were used on k: keys are compared, values are mixed", weights @ k),
        ]
        if n == m:
            slips.append(("the weights are transposed: row i holds what query i gives", weights.transpose(-2, -1) @ v))
            slips.append(("queries and keys are exchanged", (k @ q.transpose(-2, -1) / root).softmax(-1) @ v))
        if n == m == d:
            slips.append(("k was not transposed: exchange its last two axes", (q @ k / root).softmax(-1) @ v))
        what = f"my_attention on {heads} head(s), {n} queries, {m} keys of length {d}"
        got = _run(lambda q=q, k=k, v=v: function(q.clone(), k.clone(), v.clone()), what,
                   "the scores are q times k with k's last two axes exchanged, (N, d) times (d, M)")
        same(got, weights @ v, what, slips)
    print("my_attention: correct for three shapes, fewer keys than queries among them.")


def _squares(x: Tensor, stride: int, order: tuple[int, ...] = (0, 1, 3, 5, 2, 4)) -> Tensor:
    """(B, H, W, C) -> (B, H // s, W // s, C * s * s); `order` of the axes (b, h, y, w, x, c)."""
    b, height, width, c = x.shape
    h, w = height // stride, width // stride
    x = x[:, : h * stride, : w * stride].reshape(b, h, stride, w, stride, c)
    return x.permute(order).reshape(b, h, w, -1)


def reduce_squares(function) -> None:
    """`function(x, weight, bias, stride)`: (B, H, W, C), (D, C, s, s), (D,) -> (B, H // s, W // s, D)."""
    generator = torch.Generator().manual_seed(0)
    for b, height, width, c, d, stride in ((2, 8, 12, 3, 5, 2), (1, 8, 16, 2, 2, 4), (2, 9, 15, 4, 3, 4)):
        x = torch.randn(b, height, width, c, generator=generator)
        weight = torch.randn(d, c, stride, stride, generator=generator)
        bias = torch.randn(d, generator=generator)
        wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride).permute(0, 2, 3, 1)
        h, w, matrix = height // stride, width // stride, weight.flatten(1)

        def linear(squares, matrix=matrix, bias=bias):
            return F.linear(squares, matrix, bias)

        slips = [
            ("the numbers inside a square are in the order (y, x, C): the weight is (C, y, x)",
             linear(_squares(x, stride, (0, 1, 3, 2, 4, 5)))),
            ("y and x are exchanged inside a square", linear(_squares(x, stride, (0, 1, 3, 5, 4, 2)))),
            ("the bias is missing", wanted - bias),
        ]
        if height % stride or width % stride:
            padded = F.pad(x, (0, 0, 0, -width % stride, 0, -height % stride))
            slips.append(("the rest was padded: tokens that fill no square are left out",
                          linear(_squares(padded, stride))))
        else:
            raster = x.reshape(b, h, w, -1)
            strips = x.reshape(b, h, w, stride * stride, c).transpose(-1, -2).flatten(3)
            for merged in (raster, strips):
                slips.append(("these are strips of consecutive tokens, not squares: split H and W first, then "
                              "permute", linear(merged)))
        what = f"my_reduce on {height} x {width} tokens, stride {stride}"
        got = _run(lambda x=x, weight=weight, bias=bias, stride=stride: function(x.clone(), weight, bias, stride), what,
                   "tokens in the last H mod s rows and W mod s columns fill no square: cut them off first"
                   if slips[-1][0].startswith("the rest") else "one reshape gives (B, H/s, s, W/s, s, C)")
        same(got, wanted, what, slips)
    print("my_reduce: correct; squares and a matrix are the strided convolution, also where s does not divide.")


def strip_of_key(function) -> None:
    """`function(width, reduction, key)` -> [(row, column), …]: the tokens that the raster reshape merges."""
    for width, reduction, key in ((64, 64, 20), (16, 4, 9), (32, 64, 3), (56, 64, 10), (28, 16, 1), (7, 4, 5)):
        numbers = range(key * reduction, (key + 1) * reduction)
        wanted = [divmod(n, width) for n in numbers]
        got = function(width, reduction, key)
        got = pairs(got, f"my_strip_of_key({width}, {reduction}, {key})")
        side = math.isqrt(reduction)
        y, x = divmod(key, max(width // side, 1))
        row, column = divmod(key * reduction, width)
        slips = {
            "a square of side sqrt(R): that is the strided convolution; a reshape takes R tokens one after another":
                [(y * side + dy, x * side + dx) for dy in range(side) for dx in range(side)],
            "only sqrt(R) tokens: R counts the tokens that merge, the stride is its root":
                [divmod(n, width) for n in range(key * side, (key + 1) * side)],
            "rows and columns are exchanged": [(c, r) for r, c in wanted],
            "the strip runs past the end of the row: there it goes on in the next row":
                [(row, column + i) for i in range(reduction)],
            "the strip begins again in its own row: it goes on in the next row":
                [(row, (column + i) % width) for i in range(reduction)],
            "keys count from 0": [divmod(n - reduction, width) for n in numbers],
        }
        if sorted(got) != wanted:
            causes = [cause for cause, places in slips.items() if sorted(places) == sorted(got)]
            hint = likely(causes)
            raise AssertionError(f"W = {width}, R = {reduction}, key {key}: expected {_short(wanted)}, "
                                 f"got {_short(got)}.{hint}")
    print("my_strip_of_key: correct for six cases; three of them begin inside a row and wrap into the next.")


def _short(places: list) -> str:
    ends = f"{places[0]} … {places[-1]}" if len(places) > 1 else str(places)
    return f"{len(places)} tokens {ends}"


def attention_model(model) -> None:
    """A SegFormer-B0 for 5 classes with the learner's attention, which takes the package's weights."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    model = copy.deepcopy(model).eval()
    for number, stage in enumerate(model.encoder.stages, start=1):
        dim, stride = stage.patch_embed.proj.out_channels, (8, 4, 2, 1)[number - 1]
        for block in stage.blocks:
            _attention_block(block.attention, number, dim, (1, 2, 5, 8)[number - 1], stride)
    logits = _run(lambda: model(torch.randn(1, 3, 65, 97)), "a picture of 65 x 97 px",
                  "(B, H, W, C) must come out as it went in, at any size")
    true(tuple(logits.shape) == (1, 5, 17, 25),
         f"logits for a picture of 65 x 97 px: expected (1, 5, 17, 25), got {tuple(logits.shape)}")
    print("attention_model: correct in all eight blocks, with the package's weights, also at odd sizes.")


def _attention_block(mine: nn.Module, number: int, dim: int, heads: int, stride: int) -> None:
    """Raise AssertionError unless `mine` gives the package's numbers with the package's weights."""
    where = f"stage {number}"
    true(type(mine) is not EfficientSelfAttention,
         f"{where} still has the package's EfficientSelfAttention: pass attention=… to create_model")
    reference = _reference(dim, heads, stride)
    weights, own = reference.state_dict(), mine.state_dict()
    missing, extra = sorted(weights.keys() - own.keys()), sorted(own.keys() - weights.keys())
    true(not missing, f"{where}: no parameter {', '.join(missing)}; the submodules are called q, kv, proj, and "
                      "reduce and norm where stride > 1")
    true(not extra, f"{where} with stride {stride}: unexpected parameter {', '.join(extra)}; the submodules are called "
                    "q, kv, proj, and reduce and norm where stride > 1")
    for name, value in weights.items():
        wanted = (dim, dim * stride**2) if name == "reduce.weight" else tuple(value.shape)
        slips = {dim * dim * stride: "the stride s stands where R = s * s belongs",
                 dim * dim * stride**4: "s was squared twice: `stride` is s, and R = s * s tokens merge"}
        hint = slips.get(own[name].numel()) if name == "reduce.weight" else None
        true(own[name].numel() == value.numel(), f"{where}, {name}: expected shape {wanted}, got "
             f"{tuple(own[name].shape)}.{f' Likely cause: {hint}.' if hint else ''}")
    mine.load_state_dict({name: value.reshape(own[name].shape) for name, value in weights.items()})

    generator = torch.Generator().manual_seed(number)
    for height, width in ((4 * stride, 6 * stride), (4 * stride + 1, 7 * stride - 1)):
        x = torch.randn(2, height, width, dim, generator=generator)
        what = f"{where}, {heads} head(s), stride {stride}, {height} x {width} tokens"
        with torch.no_grad():
            advice = "tokens that fill no square must be cut off" if height % stride else "an axis in the wrong place"
            got = _run(lambda x=x: mine(x.clone()), what, advice)
            same(got, reference(x), what, _slips(reference, x))


def _reference(dim: int, heads: int, stride: int) -> EfficientSelfAttention:
    """The package's block with weights that make attention uneven, and a norm that does something."""
    generator = torch.Generator().manual_seed(0)
    block = EfficientSelfAttention(dim, heads, stride)
    with torch.no_grad():
        for name, p in block.named_parameters():
            spread = p[0].numel() ** -0.5 if p.ndim > 1 else 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * spread + float(name == "norm.weight"))
    return block


def _slips(block: EfficientSelfAttention, x: Tensor) -> list[tuple[str, Tensor]]:
    """Typical mistakes, each with the result it gives."""
    (b, height, width, c), heads, s = x.shape, block.heads, block.stride
    d = c // heads

    def split(y: Tensor) -> Tensor:
        return y.reshape(b, -1, heads, d).transpose(1, 2)

    def attend(short: Tensor, scale=d**-0.5, axis=-1, merge=True, order=(0, 1), split=split) -> Tensor:
        pair = block.kv(short).chunk(2, dim=-1)
        q, k, v = split(block.q(x)), split(pair[order[0]]), split(pair[order[1]])
        out = (q @ k.transpose(-2, -1) * scale).softmax(axis) @ v
        return block.proj((out.transpose(1, 2) if merge else out).reshape(x.shape))

    short = block.shorten(x)
    slips = [
        ("the scale is missing: divide the scores by sqrt(dim / heads)", attend(short, scale=1.0)),
        ("divided by sqrt(dim): each head has only dim / heads numbers to sum", attend(short, scale=c**-0.5)),
        ("divided by dim / heads, not by its root", attend(short, scale=1 / d)),
        ("softmax over the wrong axis: the weights of one query must sum to 1", attend(short, axis=-2)),
        ("the heads were merged without transpose(1, 2): that mixes tokens and heads", attend(short, merge=False)),
        ("keys and values are exchanged: in kv the keys come first", attend(short, order=(1, 0))),
        ("the heads are interleaved: head 0 has the first dim / heads channels",
         attend(short, split=lambda y: y.reshape(b, -1, d, heads).permute(0, 3, 1, 2))),
        ("the tokens were split into heads without transpose(1, 2)",
         attend(short, split=lambda y: y.reshape(b, heads, -1, d))),
    ]
    if s == 1:
        return slips
    matrix, bias = block.reduce.weight.flatten(1), block.reduce.bias

    def merged(tokens: Tensor) -> Tensor:
        return F.linear(tokens, matrix, bias)

    slips.append(("the norm after the reduction is missing", attend(block.reduce(x.permute(0, 3, 1, 2))
                                                                    .permute(0, 2, 3, 1))))
    slips.append(("inside a square the order must be (C, y, x)",
                  attend(block.norm(merged(_squares(x, s, (0, 1, 3, 2, 4, 5)))))))
    slips.append(("y and x are exchanged inside a square",
                  attend(block.norm(merged(_squares(x, s, (0, 1, 3, 5, 4, 2)))))))
    if height * width % (s * s) == 0:
        strips = x.reshape(b, -1, s * s, c)
        for tokens in (strips.flatten(2), strips.transpose(2, 3).flatten(2)):
            slips.append(("strips of R consecutive tokens were merged, not s x s squares",
                          attend(block.norm(merged(tokens)))))
    return slips
