"""Checks of chapter 06, the encoder."""

import torch
from torch import Tensor, nn

from ...models import MixTransformer, SegFormer, TransformerBlock
from ...models.segformer import KERNELS, REDUCTION_STRIDES, VARIANTS
from .expect import a_class, likely, same, true

TABLE_6 = (8, 8, 4, 4)  # the expansions as printed


def transformer_block(cls) -> None:
    """`cls(dim, heads, stride, expansion, drop_path)`: the package's block, its forward written by the learner."""
    a_class(cls, "MyBlock")
    generator = torch.Generator().manual_seed(0)
    for dim, heads, stride, shape in ((32, 1, 4, (2, 8, 12)), (40, 5, 2, (3, 5, 6)), (16, 2, 1, (1, 4, 4))):
        ours = TransformerBlock(dim, heads, stride, 4, drop_path=0.5)
        for p in ours.parameters():  # large, and no bias zero, so that every slip shows
            p.data = torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.7)
        mine = cls(dim, heads, stride, 4, 0.5)
        true(isinstance(mine, nn.Module), f"expected an nn.Module, got {type(mine).__name__}")
        lacking = set(ours.state_dict()) ^ set(mine.state_dict())
        true(not lacking, f"leave __init__ as it is: {', '.join(sorted(lacking)[:3])} is missing or too many")
        mine.load_state_dict(ours.state_dict())
        x = torch.randn(*shape, dim, generator=generator)
        with torch.no_grad():
            ours.eval(), mine.eval()
            wanted = ours(x)
            same(mine(x.clone()), wanted, f"MyBlock on tokens {tuple(x.shape)}", _block_slips(ours, x))
            ours.train(), mine.train()
            torch.manual_seed(0)
            dropped = ours(x)
            torch.manual_seed(0)
            slips = [("drop path is not used: wrap each branch in self.drop_path(...)", wanted)]
            for cause, slip in _drop_slips(ours, x):
                torch.manual_seed(0)
                slips.append((cause, slip()))
            torch.manual_seed(0)
            same(mine(x.clone()), dropped, f"MyBlock in training, drop path 0.5, tokens {tuple(x.shape)}", slips)
    print("MyBlock: correct, in evaluation and with drop path.")


def _block_slips(b: TransformerBlock, x: Tensor) -> list[tuple[str, Tensor]]:
    looked = x + b.attention(b.norm1(x))
    post = b.norm1(x + b.attention(x))
    read = b.norm1(x)
    normed = read + b.attention(read)
    replaced = "the norm replaced the tokens: x itself must stay un-normalised in the sum"
    return [
        *((replaced, y + b.ffn(y)) for y in (b.norm2(normed), b.norm2(looked))),
        (replaced, _ffn(b, normed)),
        ("post-norm: the norm belongs inside the branch, before attention and before Mix-FFN",
         b.norm2(post + b.ffn(post))),
        ("norm2 is forgotten: Mix-FFN reads normalised tokens too", looked + b.ffn(looked)),
        ("norm1 is forgotten: attention reads normalised tokens", _ffn(b, x + b.attention(x))),
        ("norm1 is used in both places", looked + b.ffn(b.norm1(looked))),
        ("only one residual: what came in is not added to attention's result", _ffn(b, b.attention(b.norm1(x)))),
        ("only one residual: Mix-FFN's result is not added to what went into it", b.ffn(b.norm2(looked))),
        ("Mix-FFN reads the block's input: it comes after attention", looked + b.ffn(b.norm2(x))),
        ("the block's input is added twice: the second residual adds what attention left", x + b.ffn(b.norm2(looked))),
        ("Mix-FFN stands before attention", (lambda y: y + b.attention(b.norm1(y)))(_ffn(b, x))),
    ]


def _ffn(b: TransformerBlock, x: Tensor) -> Tensor:
    return x + b.ffn(b.norm2(x))


def _drop_slips(b: TransformerBlock, x: Tensor) -> list[tuple[str, object]]:
    def looked() -> Tensor:
        return x + b.attention(b.norm1(x))

    around = "drop path is around the sum, so it drops the tokens themselves: put it around the branch"
    return [
        (around, lambda: b.drop_path(_ffn(b, b.drop_path(looked())))),
        (around, lambda: b.drop_path(_ffn(b, looked()))),
        (around, lambda: _ffn(b, b.drop_path(looked()))),
        ("drop path is on the attention branch only",
         lambda: _ffn(b, x + b.drop_path(b.attention(b.norm1(x))))),
        ("drop path is on the Mix-FFN branch only",
         lambda: (lambda y: y + b.drop_path(b.ffn(b.norm2(y))))(looked())),
    ]


def drop_rates(function) -> None:
    """`function(depths, top)` -> one list of rates per stage: 0 for the first block of all, `top` for the last."""
    for depths, top in (((2, 2, 2, 2), 0.1), ((3, 4, 6, 3), 0.1), ((3, 8, 27, 3), 0.3), ((1, 1, 2, 1), 0.2)):
        with torch.device("meta"):
            encoder = MixTransformer((2, 2, 10, 8), depths, drop_path=top)
        wanted = [[block.drop_path.rate for block in stage.blocks] for stage in encoder.stages]
        got = function(depths, top)
        true(got is not None, "my_drop_rates: got None; is a `return` missing?")
        what, total = f"my_drop_rates({depths}, {top})", sum(depths)
        true(not any(isinstance(rates, int | float) or getattr(rates, "ndim", 1) == 0 for rates in got),
             f"{what}: expected four lists, one per stage, got one of {len(got)} numbers: cut it by depths")
        sizes = tuple(len(rates) for rates in got)
        true(sizes == tuple(depths), f"{what}: expected lists of {tuple(depths)} rates, got {sizes}")
        flat = torch.tensor([float(rate) for rates in got for rate in rates])
        place = torch.arange(total)
        same(flat, torch.tensor([rate for rates in wanted for rate in rates]), what, (
            ("each stage begins at 0 again: the line runs through all blocks of the encoder",
             torch.cat([torch.linspace(0, top, n) for n in depths])),
            ("starts above 0: the very first block is never dropped", (place + 1) / total * top),
            ("the last block stays under `top`: divide by the number of steps, one fewer than blocks",
             place / total * top),
            ("the same rate everywhere: it rises from 0 to `top`", torch.full((total,), top)),
            ("one rate per stage: it rises from block to block", torch.repeat_interleave(
                torch.linspace(0, top, 4), torch.tensor(depths))),
            ("falling: early blocks are the ones to keep", torch.linspace(top, 0, total)),
        ))
    print("my_drop_rates: correct for B0, B2, B4 and an odd one.")


def encoder_count(function) -> None:
    """`function(dims, depths, expansions)` -> number of parameters of that Mix Transformer."""
    for variant in ("b0", "b1", "b2", "b5"):  # the formula here against the network itself
        dims, depths, _ = VARIANTS[variant]
        with torch.device("meta"):
            counted = sum(p.numel() for p in MixTransformer(dims, depths).parameters())
        true(_count(dims, depths, (4, 4, 4, 4)) == counted, f"the check disagrees with {variant}: please report this")
    # B2 comes first: in B0 several slips cost the same number of parameters.
    cases = [("B2", *VARIANTS["b2"][:2], (4, 4, 4, 4)), ("B0", *VARIANTS["b0"][:2], (4, 4, 4, 4)),
             ("B5", *VARIANTS["b5"][:2], (4, 4, 4, 4)), ("B0 of Table 6", *VARIANTS["b0"][:2], TABLE_6),
             ("an odd one", (8, 20, 30, 48), (1, 5, 2, 3), (2, 3, 4, 1))]
    for name, dims, depths, expansions in cases:
        wanted = _count(dims, depths, expansions)
        got = function(dims, depths, expansions)
        true(got is not None, "my_encoder_count: got None; is a `return` missing?")
        if int(got) != wanted:
            causes = [cause for flag, cause in SLIPS.items() if _count(dims, depths, expansions, slip=flag) == int(got)]
            hint = likely(causes) or f" That is {int(got) - wanted:+,}."
            raise AssertionError(f"my_encoder_count, {name}: expected {wanted:,}, got {int(got):,}.{hint}")
    print("my_encoder_count: correct for B0, B2, B5, the encoder of Table 6, and one that nobody has built.")


SLIPS = {
    "no bias": "biases are missing: every linear map and every convolution has one",
    "no stage norm": "a norm is missing in each stage: the patch embedding has one, the end of the stage another",
    "no block norms": "the two norms of a block are missing",
    "no reduce norm": "the norm after the shortening convolution is missing",
    "no reduce": "the shortening convolution of attention is missing",
    "reduce always": "stage 4 has stride 1: there is no shortening convolution and no norm after it",
    "reduce R": "the shortening convolution has s x s places, s = 8, 4, 2; with R = 64, 16, 4 it is too large",
    "full conv": "the 3x3 convolution of Mix-FFN is depth-wise: 9 weights per channel",
    "no conv": "the 3x3 convolution of Mix-FFN is missing",
    "depth one": "one block per stage was counted",
    "E four": "the expansions were not used, 4 was",
    "one kv": "K and V are two maps: C x 2C",
}


def _count(dims, depths, expansions, slip: str = "") -> int:
    total, c_in = 0, 3
    norms = {name: f"no {name}" != slip for name in ("stage norm", "block norms", "reduce norm")}
    bias = slip != "no bias"
    for c, depth, e, s, k in zip(dims, depths, expansions, REDUCTION_STRIDES, KERNELS):
        e, depth = 4 if slip == "E four" else e, 1 if slip == "depth one" else depth
        attention = (3 if slip == "one kv" else 4) * (c * c + bias * c)  # q, k, v, proj
        if (s > 1 or slip == "reduce always") and slip != "no reduce":
            side = s * s if slip == "reduce R" else s
            attention += side * side * c * c + bias * c + norms["reduce norm"] * 2 * c
        hidden = e * c
        conv = 0 if slip == "no conv" else hidden * 9 * (hidden if slip == "full conv" else 1) + bias * hidden
        ffn = 2 * c * hidden + bias * (hidden + c) + conv
        total += k * k * c_in * c + bias * c + 2 * c
        total += depth * (attention + ffn + norms["block norms"] * 4 * c) + norms["stage norm"] * 2 * c
        c_in = c
    return total


def printed_encoder(model) -> None:
    """A SegFormer-B0 for 5 classes whose Mix-FFNs expand by 8, 8, 4, 4, as Table 6 prints."""
    true(isinstance(model, SegFormer), f"expected the network of sl.create_model, got {type(model).__name__}")
    found = []
    for stage, c in zip(model.encoder.stages, VARIANTS["b0"].dims):
        for one in stage.blocks:
            size = sum(p.numel() for p in one.ffn.parameters())
            found.append((size - c) / (2 * c * c + 11 * c))  # of 2·E·C² + 11·E·C + C parameters
    wanted = [float(e) for e, depth in zip(TABLE_6, VARIANTS["b0"].depths) for _ in range(depth)]
    if found != wanted:
        slips = {"this is the released encoder: pass ffn=... to create_model": [4.0] * 8,
                 "doubled in every stage: stages 3 and 4 keep 4": [8.0] * 8,
                 "doubled in stages 3 and 4 instead of 1 and 2": [4.0] * 4 + [8.0] * 4,
                 "doubled in stage 1 only: stage 2 has 64 channels": [8.0] * 2 + [4.0] * 6}
        causes = [cause for cause, values in slips.items() if values == found]
        hint = likely(causes)
        got, due = (", ".join(f"{e:.3g}" for e in values) for values in (found, wanted))
        raise AssertionError(f"the Mix-FFNs of the eight blocks expand by {got}, expected {due}.{hint}")
    count = sum(p.numel() for p in model.encoder.parameters())
    true(count == 3_409_760, f"the encoder has {count:,} parameters, expected 3,409,760: the Mix-FFNs are right, "
                             "something else differs from the released B0")
    logits = model.eval()(torch.zeros(1, 3, 64, 96))
    true(tuple(logits.shape) == (1, 5, 16, 24),
         f"logits for a 64 x 96 px image: expected (1, 5, 16, 24), got {tuple(logits.shape)}; 5 classes?")
    head = 1000 * (VARIANTS["b0"].dims[-1] + 1)
    print(f"printed_encoder: correct; {count:,} parameters, with a head for 1000 classes {(count + head) / 1e6:.2f} M.")
