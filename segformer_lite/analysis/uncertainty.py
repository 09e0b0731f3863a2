"""How unsure a network is of each pixel."""

import math

from torch import Tensor

MEASURES = ("entropy", "margin")


def uncertainty(logits: Tensor, measure: str = "entropy") -> Tensor:
    """From 0, sure of one class, to 1, cannot tell: class logits (B, K, H, W) -> (B, H, W).

    "entropy" of the softmax over all K classes, as a share of log K, its largest value; "margin": 1 less the
    distance of the two largest probabilities, which asks only whether the second class was close. Neither says
    that the network is right: it can be sure of a wrong class. Raises ValueError for another measure, or K < 2.
    """
    if measure not in MEASURES:
        raise ValueError(f"no measure {measure!r} of uncertainty; there are {', '.join(MEASURES)}")
    if logits.ndim != 4 or logits.shape[1] < 2:
        raise ValueError(f"uncertainty wants logits (B, K, H, W) of at least 2 classes, got {tuple(logits.shape)}")
    log_p = logits.float().log_softmax(1)
    if measure == "entropy":
        return (-(log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])).clamp(0, 1)
    first, second = log_p.exp().topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)
