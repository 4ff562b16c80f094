"""SPO's values: a Beta posterior with forgetting, against a literal loop; what depends on what, and the way back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.value_tracker import TrackerOptions, ValueTracker
from mmreason.types import ConfigError

NAN = float("nan")


def test_it_is_a_beta_posterior_with_forgetting() -> None:
    """α ← ρ α + r, β ← ρ β + 1 - r, v = α / (α + β), one observation after the other."""
    options = TrackerOptions(rho_min=0.3, rho_max=0.9, half_life=0.5, prior=0.25, prior_weight=4)
    tracker = ValueTracker(options)
    alpha, beta, moved = 0.25 * 4, 0.75 * 4, 0.0
    for number, (reward, drift) in enumerate([(1.0, 0.1), (0.0, 0.6), (1.0, 0.0), (0.5, 5.0), (1.0, 0.2)]):
        assert tracker.value(3) == pytest.approx(alpha / (alpha + beta))
        rho = 1.0 if number == 0 else min(max(2 ** (-moved / 0.5), 0.3), 0.9)
        (before,) = tracker.observe([3], [reward])
        assert before == pytest.approx(alpha / (alpha + beta))
        alpha, beta = rho * alpha + reward, rho * beta + 1 - reward
        assert tracker.value(3) == pytest.approx(alpha / (alpha + beta))
        tracker.moved(drift)
        tracker.observe([9], [0.0])  # another row's turn doesn't touch this one
        moved = drift


def test_a_baseline_is_what_stood_before_the_whole_rollout() -> None:
    tracker = ValueTracker(TrackerOptions(prior=0.5))
    assert tracker.observe([1, 1, 2], [1.0, 0.0, 1.0]) == [0.5, 0.5, 0.5]
    assert tracker.observe([1, 2], [1.0, 1.0])[0] != 0.5


def test_prompts_never_asked_take_the_mean_of_all_rewards() -> None:
    tracker = ValueTracker(TrackerOptions())
    assert tracker.observe([0, 1, 2, 3], [1.0, 0.0, NAN, 1.0]) == [pytest.approx(2 / 3)] * 4
    assert tracker.observe([7], [0.0]) == [pytest.approx(2 / 3)]
    assert tracker.value(8) == pytest.approx(0.5)  # 2 of 4 by now
    assert len(tracker) == 4, "a row without a reward was taken for one that was judged"


def test_the_faster_the_policy_moves_the_faster_it_forgets() -> None:
    values = []
    for drift in (0.0, 0.03, 0.06, 1.0):
        tracker = ValueTracker(TrackerOptions(rho_min=0.1, rho_max=0.99, half_life=0.06))
        for _ in range(20):
            tracker.observe([0], [0.0])
        tracker.moved(drift)
        tracker.observe([0], [1.0])
        values.append(tracker.value(0))
    assert values == sorted(values) and values[-1] > 2 * values[0]


rewarded = st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 0.3, NAN]))  # row, reward


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.lists(rewarded, max_size=6), st.floats(0, 1)), max_size=12), cut=st.integers(0, 12))
def test_it_goes_on_from_its_state(steps: list[tuple[list[tuple[int, float]], float]], cut: int) -> None:
    whole, parts = ValueTracker(TrackerOptions()), ValueTracker(TrackerOptions())
    for number, (seen, drift) in enumerate(steps):
        if number == cut:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = ValueTracker(TrackerOptions())
            parts.load_state_dict(state)
        rows, rewards = [row for row, _ in seen], [reward for _, reward in seen]
        assert whole.observe(rows, rewards) == parts.observe(rows, rewards)
        whole.moved(drift)
        parts.moved(drift)
    assert whole.state_dict() == parts.state_dict()
    assert all(math.isfinite(whole.value(row)) and 0 <= whole.value(row) <= 1 for row in range(6))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"rho_mim": 0.5}, "unknown key 'rho_mim' Did you mean 'rho_min'"),
        ({"rho_min": 0.97}, "rho_max"),
        ({"rho_max": 1.0}, "< 1"),
        ({"half_life": 0}, "half_life=0 must be above 0"),
        ({"half_life": "long"}, "must be a number"),
        ({"prior": True}, "must be a number"),
    ],
)
def test_a_wrong_block_is_refused(block: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrackerOptions.of(block)
