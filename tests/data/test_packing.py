"""Best-fit decreasing: every row once, no bin over its size, equal to a plain reading of the definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.packing import best_fit
from mmreason.types import ConfigError

LENGTHS = st.lists(st.integers(1, 64), max_size=80)


def plain_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The definition, looking at every open bin for each row."""
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        spaces = [capacity - sum(lengths[i] for i in one) for one in bins]
        fitting = [(space, i) for i, space in enumerate(spaces) if space >= lengths[row]]
        if fitting:
            bins[min(fitting)[1]].append(row)
        else:
            bins.append([row])
    return bins


@given(LENGTHS, st.integers(64, 200))
def test_it_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert bins == plain_best_fit(lengths, capacity)
    assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in one) <= capacity for one in bins)
    assert (len(bins) - 1) * capacity <= 2 * sum(lengths), "two bins that would fit into one"


def test_many_rows_are_packed_tightly() -> None:
    lengths = [(i * 7919) % 900 + 20 for i in range(20_000)]
    bins = best_fit(lengths, 2048)
    assert len(bins) * 2048 <= 1.002 * sum(lengths)


@pytest.mark.parametrize("length", [0, 9])
def test_rows_that_cant_be_packed(length: int) -> None:
    with pytest.raises(ConfigError, match=f"row 1 has {length} tokens"):
        best_fit([3, length], 8)
