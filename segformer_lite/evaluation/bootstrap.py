"""How far a mean over patients can be trusted."""

from collections.abc import Sequence

import numpy as np

FEWEST = 8  # groups; of fewer, resampling shows the same handful again and again, and the interval is too narrow


def interval(values: Sequence[float], groups: Sequence, level: float = 0.95, draws: int = 10_000,
             seed: int = 0) -> tuple[float, float, float]:
    """Mean over groups with its bootstrap interval: (mean, low, high).

    Groups (patients), not values (slices), are what was drawn from the world: the values of each group are averaged,
    then groups are drawn anew with replacement, `draws` times. Percentile method.

    Arguments: `values`, NaN where there is none; `groups`: the group of each value; `level`: how often such intervals
    shall hold the true mean. Raises ValueError for fewer than 8 groups with a value, where no interval is honest.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if values.shape != groups.shape:
        raise ValueError(f"{len(values)} values but {len(groups)} groups: give the group of each value")
    known = ~np.isnan(values)
    means = np.array([values[known & (groups == group)].mean() for group in np.unique(groups[known])])
    if len(means) < FEWEST:
        raise ValueError(f"{len(means)} groups are too few for an interval, it would look surer than it is: "
                         f"show every value, or test on at least {FEWEST}")
    drawn = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(means.mean()), float(low), float(high)
