"""The mean of paired differences with an exact interval, from their signs alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 14
"""Differences up to which all subsets are looked at (2^14); beyond, DRAWN random ones."""
DRAWN = 9_999


@dataclass(frozen=True)
class PairedMean:
    """Mean of n differences. low, high: its interval, infinite where there are too few to exclude any value.

    p: of the two-sided sign-flip test that the differences are spread evenly around 0.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_mean(differences: list[float], *, confidence: float = 0.95, seed: int = 0) -> PairedMean:
    """Mean difference of pairs, its sign-flip permutation test and the interval that belongs to it.

    Nothing is assumed but that each difference is as likely to lie above the true value as below it by the same amount.
    Flipping the signs of the pairs in a subset K makes the sum of (difference - δ) no larger exactly where K's mean is
    at least δ, so the p-value of δ counts subset means, and the bounds are quantiles of them: the "typical values" of
    Hartigan (1969, Using Subsample Values as Typical Values, theorem 1). Interval and test always agree: p is at most
    1 - confidence exactly where the interval leaves 0 out. With fewer than 6 pairs, 95 % can't be reached.

    Args:
        differences: n finite numbers. seed: of the subsets, where there are too many to look at all.

    Raises: ValueError where there are none.
    """
    if not differences:
        raise ValueError("no differences")
    values = np.asarray(differences, dtype=np.float64)
    means = np.sort(_subset_means(values, seed))
    total = len(means) + 1  # the empty subset: nothing flipped
    allowed = math.floor((1 - confidence) / 2 * total + 1e-9)
    low, high = -math.inf, math.inf
    if allowed >= 1:
        low, high = float(means[allowed - 1]), float(means[len(means) - allowed])
    tails = (1 + int((means <= 0).sum()), 1 + int((means >= 0).sum()))
    return PairedMean(float(values.mean()), low, high, min(1.0, 2 * min(tails) / total), len(values))


def _subset_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of the non-empty subsets: of all, or of DRAWN that are drawn evenly from them."""
    n = len(values)
    if n <= EXACT_UP_TO:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        random = np.random.default_rng(seed)
        chosen = random.integers(0, 2, (DRAWN, n))
        chosen[chosen.sum(1) == 0, random.integers(n)] = 1  # one in 2^n
    means: np.ndarray = (chosen @ values) / chosen.sum(1)
    return means
