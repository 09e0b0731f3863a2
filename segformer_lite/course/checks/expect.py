"""What every check says when an answer is wrong: what came, what was expected, what the likely cause is."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def same(got, wanted: Tensor, what: str, slips: Iterable[tuple[str, Tensor]] = ()) -> None:
    """Raise AssertionError unless `got` is a tensor equal to `wanted` up to rounding.

    what: names the case in the message. slips: (likely cause, the result it gives) for typical mistakes.
    """
    if got is None:
        raise AssertionError(f"{what}: got None; is a `return` missing?")
    if not isinstance(got, Tensor):
        raise AssertionError(f"{what}: expected a tensor, got {type(got).__name__}")
    shapes_agree = got.shape == wanted.shape
    if shapes_agree and torch.allclose(got.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-5):
        return
    causes = (cause for cause, result in slips if got.shape == result.shape
              and torch.allclose(got.to(result.dtype), result, rtol=1e-4, atol=1e-5))
    hint = likely(causes)
    if not shapes_agree:
        raise AssertionError(f"{what}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}.{hint}")
    worst = (got.to(wanted.dtype) - wanted).abs().max().item()
    raise AssertionError(f"{what}: the shape is right, the numbers are not (largest difference {worst:.3g}).{hint}")


def number(got, wanted: float, what: str, slips: Iterable[tuple[str, float]] = (), within: float = 1e-4) -> None:
    """Raise AssertionError unless `got` is one number, `wanted` up to `within`; NaN is equal to NaN alone.

    slips: (likely cause, the number it gives) for typical mistakes; they are asked only if `got` is wrong.
    """
    true(got is not None, f"{what}: got None; is a `return` missing?")
    try:
        got = float(got)
    except (TypeError, ValueError):
        raise AssertionError(f"{what}: expected one number, got {type(got).__name__}") from None

    def gives(value: float) -> bool:
        return math.isclose(got, value, rel_tol=0, abs_tol=within) or (math.isnan(got) and math.isnan(value))

    if not gives(wanted):
        hint = likely(cause for cause, value in slips if gives(float(value)))
        raise AssertionError(f"{what}: expected {wanted:.4f}, got {got:.4f}.{hint}")


def pairs(got, what: str) -> list[tuple[int, int]]:
    """`got` as a list of pairs of whole numbers; AssertionError, naming `what`, for anything else."""
    true(got is not None, f"{what}: got None; is a `return` missing?")
    try:
        return [(int(first), int(second)) for first, second in got]
    except (TypeError, ValueError, OverflowError):
        shown = " ".join(repr(got).split())[:60]
        raise AssertionError(f"{what}: expected pairs, as in [(1, 2), (3, 4)], got {shown}") from None


def likely(causes: Iterable[str]) -> str:
    """How a message ends: with the first of the causes that fit, if any does."""
    cause = next(iter(causes), None)
    return f" Likely cause: {cause}." if cause else ""


def true(condition: bool, message: str) -> None:
    """Raise AssertionError with `message` unless `condition` holds (`assert` would vanish under -O)."""
    if not condition:
        raise AssertionError(message)


def a_class(cls, what: str) -> None:
    """Raise AssertionError, naming `what`, where an object stands in place of its class."""
    true(not isinstance(cls, nn.Module), f"{what}: must be the class itself, without brackets, as in MyBlock")
