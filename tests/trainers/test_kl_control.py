"""The KL coefficient's controller and the scaling of scores, against hand values and statistics of all at once."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.kl_control import KLControl, ScoreScaling


def test_a_fixed_coefficient_stays() -> None:
    control = KLControl(0.05)
    control.update(100.0, 1000)
    assert control.value == 0.05


def test_the_controller_by_hand() -> None:
    """Target 6 nats, horizon 10,000, 256 completions: errors are clipped to ±0.2."""
    control = KLControl(0.2, target=6.0, horizon=10_000)
    control.update(6.6, 256)  # e = 0.1
    assert control.value == pytest.approx(0.2 * (1 + 0.1 * 256 / 10_000))
    before = control.value
    control.update(60.0, 256)  # e = 9, clipped
    assert control.value == pytest.approx(before * (1 + 0.2 * 256 / 10_000))
    before = control.value
    control.update(0.0, 256)
    assert control.value == pytest.approx(before * (1 - 0.2 * 256 / 10_000))


def test_a_rollout_larger_than_the_horizon_moves_by_the_clipped_error() -> None:
    """Horizon 100, 1,024 completions: unbounded, the first factor was 1 - 0.2 · 10.24, and β negative."""
    control = KLControl(0.05, target=6.0, horizon=100)
    control.update(0.0, 1024)
    assert control.value == pytest.approx(0.05 * 0.8)
    control.update(60.0, 1024)
    assert control.value == pytest.approx(0.05 * 0.8 * 1.2)
    control.update(6.6, 1024)
    assert control.value == pytest.approx(0.05 * 0.8 * 1.2 * 1.1)


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), -float("inf")])
def test_a_kl_that_is_not_finite_leaves_the_coefficient(kl: float) -> None:
    control = KLControl(0.05, target=6.0, horizon=100)
    control.update(kl, 64)
    assert control.value == 0.05
    control.update(6.6, 10)
    assert control.value == pytest.approx(0.05 * 1.01)


def test_the_controller_holds_a_kl_that_falls_with_the_coefficient() -> None:
    control = KLControl(1.0, target=3.0, horizon=1000)
    for _ in range(2000):
        control.update(0.6 / control.value, 100)  # as if KL = 0.6 / β
    assert 0.6 / control.value == pytest.approx(3.0, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), max_size=6), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_scores(batches: list[list[float]]) -> None:
    scaling = ScoreScaling(scale=True, norm=True, clip=None)
    for i, batch in enumerate(batches):
        scaling.update(batch)
        if i == len(batches) // 2:  # a checkpoint, through JSON
            state = json.loads(json.dumps(scaling.state_dict()))
            scaling = ScoreScaling(scale=True, norm=True, clip=None)
            scaling.load_state_dict(state)
    every = [score for batch in batches for score in batch]
    assert scaling.count == len(every)
    if len(every) > 1 and statistics.stdev(every) > 1e-3:
        expected = (7.0 - statistics.fmean(every)) / statistics.stdev(every)
        assert scaling(7.0) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_scores_are_scaled_and_bounded() -> None:
    assert ScoreScaling(scale=False, norm=False, clip=2.0)(5.0) == 2.0
    assert ScoreScaling(scale=False, norm=False, clip=None)(-5.0) == -5.0
    scaling = ScoreScaling(scale=True, norm=False, clip=1.5)
    scaling.update([0.0, 2.0])
    assert scaling(1.0) == pytest.approx(1 / 2**0.5) and scaling(100.0) == 1.5
