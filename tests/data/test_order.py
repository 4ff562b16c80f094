"""Each step's rows are a random draw, sorted; every row once an epoch; epochs differ, the same seed doesn't."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.order import SortedWithinSteps


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 17), st.integers(0, 10**6), st.integers(0, 3))
def test_a_permutation_sorted_within_steps(lengths: list[int], per_step: int, seed: int, epoch: int) -> None:
    sampler = SortedWithinSteps(lengths, per_step, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)
    for start in range(0, len(order), per_step):
        step = [lengths[row] for row in order[start : start + per_step]]
        assert step == sorted(step)
    assert order == list(sampler)


def test_steps_are_random_draws() -> None:
    """The mean length of a step is not that of its neighbours in a sorted list: each holds short and long rows."""
    sampler = SortedWithinSteps(list(range(1000)), 50, seed=0)
    first = list(sampler)
    means = [sum(first[i : i + 50]) / 50 for i in range(0, 1000, 50)]
    assert max(means) - min(means) < 300  # grouped over the epoch it would be 950
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(SortedWithinSteps(list(range(1000)), 50, seed=1)) != first
