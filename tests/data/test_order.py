"""A step's rows are a random draw, arranged; every row once an epoch; fillers carry nothing; bins keep their size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.mixture import MixtureOrder, MixtureSet, ShuffledOrder
from mmreason.data.order import StepOrder
from mmreason.types import ConfigError

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def rows_of(sampler: StepOrder) -> list[int]:
    return [row for one in sampler for row in one if row >= 0]


def order(lengths: list[int], seed: int = 0, **settings: Any) -> StepOrder:
    given_settings: dict[str, Any] = {"bins_per_micro_batch": 4, "micro_batches": 2}
    return StepOrder(ShuffledOrder(len(lengths), seed), lengths, seed=seed, **given_settings | settings)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_every_row_once_and_steps_whole(
    lengths: list[int], size: int, accumulation: int, devices: int, epoch: int
) -> None:
    for padded in (True, False):
        sampler = order(
            lengths, bins_per_micro_batch=size, micro_batches=accumulation * devices, devices=devices, padded=padded
        )
        sampler.set_epoch(epoch)
        bins = list(sampler)
        assert len(bins) == len(sampler) and len(bins) % (size * devices) == 0
        assert sorted(rows_of(sampler)) == list(range(len(lengths)))
        assert bins == list(sampler)
        for start in range(0, len(bins), sampler.per_step):
            step = [lengths[max(row, ~row)] for (row,) in bins[start : start + sampler.per_step]]
            if padded:
                assert step == sorted(step)


@given(LENGTHS, st.integers(1, 4), st.integers(0, 2))
def test_the_number_of_devices_changes_no_step(lengths: list[int], size: int, epoch: int) -> None:
    """8 × 1, 1 × 8, 2 processes × 4: the same rows in each step."""
    total = 8
    steps = []
    for devices, micro in ((1, total), (1, 1), (2, 4)):
        sampler = order(lengths, bins_per_micro_batch=micro, micro_batches=total // micro, devices=devices)
        sampler.set_epoch(epoch)
        bins = list(sampler)
        steps.append([sorted(r for (r,) in bins[i : i + total] if r >= 0) for i in range(0, len(lengths), total)])
    assert steps[0] == steps[1] == steps[2]


def test_without_padding_micro_batches_are_even() -> None:
    lengths = list(range(1, 65))
    sampler = order(lengths, bins_per_micro_batch=8, micro_batches=8, padded=False)
    bins = list(sampler)
    tokens = [sum(lengths[row] for (row,) in bins[i : i + 8]) for i in range(0, 64, 8)]
    assert max(tokens) - min(tokens) <= 0.02 * sum(tokens)


def test_steps_are_random_draws() -> None:
    """The mean length of a step is not that of its neighbours in a sorted list: each holds short and long rows."""
    sampler = order(list(range(1000)), bins_per_micro_batch=50, micro_batches=1)
    first = rows_of(sampler)
    means = [sum(first[i : i + 50]) / 50 for i in range(0, 1000, 50)]
    assert max(means) - min(means) < 300  # grouped over the epoch it would be 950
    sampler.set_epoch(1)
    assert rows_of(sampler) != first
    assert rows_of(order(list(range(1000)), 1, bins_per_micro_batch=50, micro_batches=1)) != first


@given(LENGTHS, st.integers(50, 120), st.one_of(st.none(), st.integers(1, 20)))
def test_packed_bins(lengths: list[int], capacity: int, window: int | None) -> None:
    sampler = order(lengths, bins_per_micro_batch=2, micro_batches=2, capacity=capacity, window=window)
    for one in sampler:
        assert sum(lengths[row] for row in one if row >= 0) <= capacity
    if window is None:
        assert sorted(rows_of(sampler)) == list(range(len(lengths)))
    # Nothing is lost or repeated where windows and epochs don't end together.
    seen: list[int] = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen += rows_of(sampler)
    counts = [seen.count(row) for row in range(len(lengths))]
    assert max(counts) - min(counts) <= 2


def test_windows_keep_the_order_between_them() -> None:
    """Packed 10 at a time in the order given: a curriculum stays one."""
    lengths = [5 + i % 7 for i in range(100)]
    sampler = StepOrder(
        ShuffledOrder(100, 0, shuffle=False), lengths, bins_per_micro_batch=1, micro_batches=1, capacity=20, window=10
    )
    assert [row // 10 for row in rows_of(sampler)] == sorted(row // 10 for row in range(100))


def test_an_epoch_is_found_without_those_before_it() -> None:
    """As after a resume: a fresh sampler set to an epoch gives what one gave that went through all."""
    lengths = [3 + (i * 37) % 29 for i in range(150)]
    walked, epochs = order(lengths, capacity=40, window=32), []
    for epoch in range(4):
        walked.set_epoch(epoch)
        epochs.append(list(walked))
    for epoch in (3, 1):
        fresh = order(lengths, capacity=40, window=32)
        fresh.set_epoch(epoch)
        assert list(fresh) == epochs[epoch]


def test_rows_that_end() -> None:
    mixed = MixtureOrder([MixtureSet(ShuffledOrder(range(10), 0), 1, max_epochs=1)])
    sampler = StepOrder(mixed, [4] * 10, bins_per_micro_batch=1, micro_batches=1)
    assert sorted(rows_of(sampler)) == list(range(10))
    sampler.set_epoch(1)
    with pytest.raises(ConfigError, match="the rows end after 10 of the 20"):
        list(sampler)
