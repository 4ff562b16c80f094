"""The mean of paired differences against enumerated sign flips, known intervals and Student's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.rollout.paired import EXACT_UP_TO, paired_mean

whole = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=8)


def flipped(values: list[float], delta: float) -> float:
    """Two-sided p of the test that `values` are spread evenly around delta: every pattern of signs, one by one."""
    off = [value - delta for value in values]
    sums = [
        sum(s * v for s, v in zip(signs, off, strict=True)) for signs in itertools.product((1, -1), repeat=len(off))
    ]
    above, below = (sum(sign * total >= sign * sum(off) for total in sums) for sign in (1, -1))
    return min(1.0, 2 * min(above, below) / len(sums))


@settings(max_examples=40, deadline=None)
@given(whole)
def test_p_is_that_of_all_sign_flips(values: list[float]) -> None:
    found = paired_mean(values)
    assert found.p == pytest.approx(flipped(values, 0.0))
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.n == len(values)


@settings(max_examples=40, deadline=None)
@given(whole.filter(lambda values: len(values) >= 6))
def test_the_interval_holds_what_the_test_does_not_refuse(values: list[float]) -> None:
    found = paired_mean(values)
    step = 1e-6
    assert flipped(values, found.low + step) > 0.05 or found.low == found.high
    assert flipped(values, found.high - step) > 0.05 or found.low == found.high
    assert flipped(values, found.low - step) <= 0.05
    assert flipped(values, found.high + step) <= 0.05
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize("n", [1, 5])
def test_too_few_pairs_exclude_nothing(n: int) -> None:
    """2 / 2^5 is above 0.05: not even five equal signs say anything at 95 %."""
    found = paired_mean([1.0 + i for i in range(n)])
    assert (found.low, found.high) == (-math.inf, math.inf) and found.p > 0.05


def test_six_pairs_give_their_range() -> None:
    """One of 2^6 patterns may be left out at each end: the smallest and the largest mean of a subset, single values."""
    found = paired_mean([3.0, 8.0, 1.0, 4.0, 2.0, 6.0])
    assert (found.low, found.high) == (1.0, 8.0)
    assert found.p == pytest.approx(2 / 64)


@pytest.mark.parametrize("n", [EXACT_UP_TO, 60, 400])
def test_near_students_interval_for_normal_differences(n: int) -> None:
    from scipy.stats import t

    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    found = paired_mean(values.tolist())
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (found.p <= 0.05) == (found.low > 0 or found.high < 0)


def test_it_covers_as_often_as_it_says() -> None:
    """Of skewless differences around 0, whatever their tails, 95 of 100 intervals hold 0."""
    random = np.random.default_rng(0)
    held = [
        found.low <= 0 <= found.high for found in (paired_mean(random.standard_t(2, 9).tolist()) for _ in range(400))
    ]
    assert 0.92 <= sum(held) / len(held) <= 0.98


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no differences"):
        paired_mean([])
