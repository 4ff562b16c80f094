"""Length control against closed forms and a plain gradient ascent."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.clients.judge import Judge
from mmreason.clients.judge_length import length_controlled_win_rate, win_rate_by_length
from mmreason.clients.judge_types import PairItem
from mmreason.types import ConfigError, DataError
from tests.clients.scripted_judges import Scripted, prefers_longer


def logit(p):
    return math.log(p / (1 - p))


def logistic(x):
    return 1 / (1 + math.exp(-x))


def test_two_lengths_have_a_closed_form():
    """With differences of +50 and -50 only, the model is saturated: theta is the mean of the two groups' logits."""
    outcomes = [1.0] * 8 + [0.0] * 2 + [1.0] * 3 + [0.0] * 7
    a, b = [100] * 10 + [50] * 10, [50] * 10 + [100] * 10
    fit = length_controlled_win_rate(outcomes, a, b, l2=0.0)
    assert fit.controlled == pytest.approx(logistic((logit(0.8) + logit(0.3)) / 2), abs=1e-9)
    assert fit.length_effect == pytest.approx((logit(0.8) - logit(0.3)) / 2 / math.tanh(1.0), abs=1e-8)
    assert fit.win_rate == 0.55 and fit.items == 20
    # The saturated model's theta has variance (1 / (n p q) of one group + that of the other) / 4.
    error = math.sqrt((1 / (10 * 0.8 * 0.2) + 1 / (10 * 0.3 * 0.7)) / 4)
    theta = logit(fit.controlled)
    assert (logit(fit.low), logit(fit.high)) == pytest.approx((theta - 1.96 * error, theta + 1.96 * error), abs=1e-3)


def _ascent(outcomes, a, b, l2):
    """theta and phi by plain gradient ascent in pure Python."""
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    lengths = [math.tanh(gap / spread) for gap in gaps]
    theta = phi = 0.0
    for _ in range(4000):
        rest = [y - logistic(theta + phi * t) for y, t in zip(outcomes, lengths, strict=True)]
        theta += 2.0 / len(gaps) * sum(rest)
        phi += 2.0 / len(gaps) * (sum(r * t for r, t in zip(rest, lengths, strict=True)) - l2 * phi)
    return theta, phi


@pytest.mark.parametrize("l2", [0.3, 1.0])
def test_the_fit_equals_gradient_ascent(l2):
    rng = random.Random(3)
    a, b = [rng.randint(10, 900) for _ in range(60)], [rng.randint(10, 500) for _ in range(60)]
    outcomes = [rng.choice([0.0, 0.5, 1.0, 1.0 if x > y else 0.0]) for x, y in zip(a, b, strict=True)]
    theta, phi = _ascent(outcomes, a, b, l2)
    fit = length_controlled_win_rate(outcomes, a, b, l2=l2)
    assert (fit.controlled, fit.length_effect) == pytest.approx((logistic(theta), phi), abs=1e-6)


def test_a_judge_that_only_looks_at_length_is_brought_back_to_a_half():
    rng = random.Random(0)
    items = [
        PairItem(id=str(i), question="?", answer_a="a" * rng.randint(50, 400), answer_b="b" * rng.randint(20, 300))
        for i in range(200)
    ]
    report = asyncio.run(Judge(Scripted(prefers_longer)).compare(items))
    fit = report.length_controlled()
    assert fit.win_rate == report.win_rate
    assert abs(fit.controlled - 0.5) < 0.1 < report.win_rate - 0.6
    assert fit.length_effect > 2
    buckets = report.by_length()
    assert [bucket.win_rate for bucket in buckets if bucket.high <= 0.8] == [0.0, 0.0]
    assert [bucket.win_rate for bucket in buckets if bucket.low >= 1.25] == [1.0, 1.0]
    assert sum(bucket.items for bucket in buckets) == 200


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=25
    )
)
def test_exchanging_the_models_mirrors_the_rate(rows):
    outcomes, a, b = zip(*rows, strict=True)
    forth = length_controlled_win_rate(outcomes, a, b)
    back = length_controlled_win_rate([1 - y for y in outcomes], b, a)
    assert forth.controlled == pytest.approx(1 - back.controlled, abs=1e-7)
    assert forth.length_effect == pytest.approx(back.length_effect, abs=1e-6)
    assert 0 <= forth.low <= forth.controlled <= forth.high <= 1


@settings(max_examples=30, deadline=None)
@given(outcomes=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=25), gap=st.integers(-50, 50))
def test_without_spread_in_length_there_is_nothing_to_control(outcomes, gap):
    fit = length_controlled_win_rate(outcomes, [100 + gap] * len(outcomes), [100] * len(outcomes))
    assert fit.controlled == pytest.approx(fit.win_rate, abs=1e-7) and fit.length_effect == 0.0


def test_clear_cases_and_wrong_input():
    all_won = length_controlled_win_rate([1.0, 1.0], [5, 9], [3, 4])
    assert (all_won.controlled, all_won.low, all_won.high) == (1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="no outcomes"):
        length_controlled_win_rate([], [], [])
    with pytest.raises(DataError, match="2 outcomes, 1 lengths of A and 2 of B"):
        length_controlled_win_rate([1.0, 0.0], [5], [3, 4])
    with pytest.raises(DataError, match=r"outcomes are 1 \(A won\)"):
        length_controlled_win_rate([2.0], [5], [3])
    with pytest.raises(ConfigError, match="use l2 above 0"):
        length_controlled_win_rate([1.0, 1.0, 0.0, 0.0], [9, 8, 1, 2], [1, 2, 9, 8], l2=0.0)
    with pytest.raises(ConfigError, match="must be above 0 and increase"):
        win_rate_by_length([1.0], [1], [1], ratios=[2.0, 1.0])


def test_buckets_by_hand():
    buckets = win_rate_by_length([1, 0, 0.5, 1, 1], [10, 79, 80, 200, 0], [100, 100, 100, 100, 0], ratios=[0.8, 2.0])
    assert [(bucket.items, bucket.win_rate) for bucket in buckets] == [(2, 0.5), (2, 0.75), (1, 1.0)]
    assert math.isnan(win_rate_by_length([], [], [])[0].win_rate)
