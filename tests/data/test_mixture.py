"""Shares hold in every prefix, caps and ends are exact, and any resume on any process reads the same sequence."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmreason.data._schedule import FairSchedule, whole_shares
from mmreason.data.mixture import MixtureOrder, MixtureSet, OrderSampler, ShuffledOrder
from mmreason.types import ConfigError

Units = st.lists(st.integers(1, 50), min_size=1, max_size=7)


@given(Units)
def test_every_prefix_has_the_shares_to_within_one_row(units: list[int]) -> None:
    schedule = FairSchedule(units)
    sets, ordinals = schedule.lookup(0, 2 * schedule.period + 3)
    counts = [0] * len(units)
    bound = Fraction(1) - Fraction(1, max(2, 2 * len(units) - 2))
    for turn, (which, ordinal) in enumerate(zip(sets.tolist(), ordinals.tolist(), strict=True), 1):
        assert ordinal == counts[which]
        counts[which] += 1
        for count, unit in zip(counts, units, strict=True):
            assert abs(count - turn * Fraction(unit, sum(units))) <= bound


@given(Units, st.integers(0, 400), st.data())
def test_a_schedule_answers_for_any_place(units: list[int], position: int, data: st.DataObject) -> None:
    """Lookups far out equal a walk from the start; positions and counts are each other's inverse."""
    schedule = FairSchedule(units)
    walked, _ = FairSchedule(units).lookup(0, position + 1)
    sets, ordinals = schedule.lookup(position, 1)
    assert sets[0] == walked[-1]
    counts = Counter(walked[:-1].tolist())
    assert schedule.turns_before(position) == [counts[i] for i in range(len(units))]
    assert schedule.position_of(int(sets[0]), int(ordinals[0])) == position
    which = data.draw(st.integers(0, len(units) - 1))
    found = schedule.position_of(which, position)
    assert schedule.turns_before(found)[which] == position and schedule.lookup(found, 1)[0][0] == which


@pytest.mark.parametrize(
    ("weights", "units"),
    [([0.7, 0.2, 0.1], [7, 2, 1]), ([1, 3], [1, 3]), ([7473, 3076], [7473, 3076]), ([Fraction(1, 3), 1], [1, 3])],
)
def test_decimal_weights_are_kept_as_written(weights: list[Any], units: list[int]) -> None:
    assert FairSchedule(whole_shares(weights)).units == units


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=9))
def test_other_weights_are_rounded_to_a_part_in_a_million(weights: list[float]) -> None:
    units = whole_shares(weights)
    assert min(units) >= 1
    for unit, weight in zip(units, weights, strict=True):
        assert abs(unit / sum(units) - weight / sum(weights)) < len(weights) / (1 << 20)


@pytest.mark.parametrize("weight", [0, -1, 0.0])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        whole_shares([1, weight])


@given(st.integers(1, 30), st.integers(0, 10**6), st.integers(0, 100), st.integers(0, 70))
def test_each_pass_has_every_row_once(rows: int, seed: int, start: int, count: int) -> None:
    order = ShuffledOrder(rows, seed)
    whole = order.take(0, 6 * rows + 170)
    for number in range(6):
        assert sorted(whole[number * rows : (number + 1) * rows]) == list(range(rows))
    assert ShuffledOrder(rows, seed).take(start, count) == whole[start : start + count]


def test_passes_and_seeds_differ_unless_the_order_is_kept() -> None:
    order = ShuffledOrder(range(100, 200), 0)
    assert order.take(0, 100) != order.take(100, 100) != ShuffledOrder(range(100, 200), 1).take(100, 100)
    assert ShuffledOrder(range(5), 0, shuffle=False).take(3, 4) == [3, 4, 0, 1]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], MixtureOrder]:
    """(the sets' sizes, their mixture); row 1000 i + j is row j of set i."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    sets = []
    for i, size in enumerate(sizes):
        order = ShuffledOrder(range(1000 * i, 1000 * i + size), seed=i)
        rows = draw(st.one_of(st.none(), st.integers(1, 30)))
        epochs = draw(st.one_of(st.none(), st.sampled_from([0.5, 1, 1.5, 2])))
        sets.append(MixtureSet(order, draw(st.integers(1, 9)), rows, epochs, counts=i == 0 or draw(st.booleans())))
    return sizes, MixtureOrder(sets, draw(st.sampled_from(["all_exhausted", "first_exhausted"])))


@given(mixtures(), st.integers(0, 150), st.integers(0, 60))
def test_a_mixture_is_a_function_of_the_position(
    mixture: tuple[list[int], MixtureOrder], start: int, count: int
) -> None:
    _, order = mixture
    assert order.take(start, count) == order.take(0, start + count)[start:]
    assert order.take(start, count) == [row for i in range(count) for row in order.take(start + i, 1)]
    whole = order.take(0, 2000)
    assert len(whole) == (2000 if order.total is None else order.total)


@given(mixtures())
def test_limits_hold_and_what_is_left_keeps_its_shares(mixture: tuple[list[int], MixtureOrder]) -> None:
    """A literal walk: each set ends at its limit; from there on the others have their renormalised shares."""
    _, order = mixture
    sets = order._sets
    drawn, phase, alive = Counter[int](), Counter[int](), None
    for row in order.take(0, 400):
        active = [i for i, one in enumerate(sets) if one.limit is None or drawn[i] < one.limit]
        if active != alive:
            alive, phase = active, Counter()
        drawn[row // 1000] += 1
        phase[row // 1000] += 1
        assert row // 1000 in active
        weights = sum(Fraction(sets[i].weight) for i in active)
        for i in active:
            assert abs(phase[i] - sum(phase.values()) * Fraction(sets[i].weight) / weights) < 1
    if order.total is not None and order.total < 400:
        assert all(drawn[i] == one.limit for i, one in enumerate(sets) if one.counts)


@given(mixtures())
def test_where_an_epoch_ends(mixture: tuple[list[int], MixtureOrder]) -> None:
    """Against a walk over the draws; a set counts as passed once it gave every row, or all it may give."""
    _, order = mixture
    stop = any if order.rows_per_epoch < MixtureOrder(order._sets).rows_per_epoch else all
    needed = {
        i: min(one.order.rows_per_epoch, one.limit or one.order.rows_per_epoch)
        for i, one in enumerate(order._sets)
        if one.counts
    }
    for end in (order.rows_per_epoch - 1, order.rows_per_epoch):
        drawn = Counter(row // 1000 for row in order.take(0, end))
        assert stop(drawn[i] >= count for i, count in needed.items()) == (end == order.rows_per_epoch)


def test_shares_by_size_pass_over_every_set_together() -> None:
    """The natural mixture is a plain epoch: each row once, and evenly mixed at that."""
    sets = [MixtureSet(ShuffledOrder(range(0, 60), 0), 60), MixtureSet(ShuffledOrder(range(60, 100), 1), 40)]
    for stop in ("all_exhausted", "first_exhausted"):
        order = MixtureOrder(sets, stop)  # type: ignore[arg-type]
        assert abs(order.rows_per_epoch - 100) <= 1
    assert sorted(order.take(0, 100)) == list(range(100))
    assert [sum(row < 60 for row in order.take(5 * i, 5)) for i in range(20)] == [3] * 20


def test_a_replay_never_ends_an_epoch_nor_outlives_the_rest() -> None:
    main, replay = ShuffledOrder(range(90), 0), ShuffledOrder(range(1000, 1005), 1)
    order = MixtureOrder([MixtureSet(main, 9, max_epochs=2), MixtureSet(replay, 1, counts=False)])
    assert 99 <= order.rows_per_epoch <= 101
    assert order.total is not None and Counter(row >= 1000 for row in order.take(0, 10**4))[False] == 180
    with pytest.raises(ConfigError, match="beside the replay"):
        MixtureOrder([MixtureSet(replay, 1, counts=False)])


@settings(max_examples=60)
@given(mixtures(), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3, 4]), st.integers(0, 40), st.integers(0, 2))
def test_any_number_of_processes_reads_the_same_sequence_also_after_a_resume(
    mixture: tuple[list[int], MixtureOrder], before: int, after: int, steps: int, epoch: int
) -> None:
    """Steps of 12 rows, by some processes, then by another number of processes: together the unbroken sequence."""
    _, order = mixture
    epoch_rows = order.take(epoch * order.rows_per_epoch, order.rows_per_epoch)
    stopped = min(12 * steps, len(epoch_rows))

    def read(processes: int, state: dict[str, Any] | None, at_most: int | None) -> tuple[list[int], list[Any]]:
        samplers = [OrderSampler(order, process_index=p, num_processes=processes) for p in range(processes)]
        for sampler in samplers:
            if state is not None:
                sampler.load_state_dict(state)
            sampler.set_epoch(epoch)
        share = None if at_most is None else math.ceil(at_most / processes)
        parts = [list(islice(sampler, share)) for sampler in samplers]
        rows = [part[i] for i in range(max(map(len, parts), default=0)) for part in parts if i < len(part)]
        return rows, [sampler.state_dict() for sampler in samplers]

    first, states = read(before, None, stopped)
    first = first[:stopped]
    if stopped % before == 0 and stopped > 0:
        assert all(state == states[0] for state in states)
        assert states[0] == {"consumed": epoch * order.rows_per_epoch + stopped}
    state = {"consumed": epoch * order.rows_per_epoch + stopped}
    rest, _ = read(after, state, None)
    assert first + (rest if stopped < len(epoch_rows) else []) == epoch_rows


@given(mixtures(), st.integers(1, 4))
def test_the_length_of_a_sampler_is_what_it_yields(mixture: tuple[list[int], MixtureOrder], processes: int) -> None:
    _, order = mixture
    for epoch in range(3):
        total = 0
        for process in range(processes):
            sampler = OrderSampler(order, process_index=process, num_processes=processes)
            sampler.set_epoch(epoch)
            length = len(sampler)
            assert length == len(list(sampler))
            total += length
        assert total == len(order.take(epoch * order.rows_per_epoch, order.rows_per_epoch))


def test_in_torchs_loader_epoch_after_epoch() -> None:
    order = ShuffledOrder(10, 3)
    loader = DataLoader(list(range(10)), batch_size=4, sampler=OrderSampler(order), collate_fn=list)  # type: ignore[arg-type]
    rows = [row for _ in range(2) for batch in loader for row in batch]
    assert rows == order.take(0, 20)
    with pytest.raises(ConfigError, match="process_index"):
        OrderSampler(order, process_index=2, num_processes=2)


def test_accelerate_gives_processes_their_batches_of_the_global_sequence() -> None:
    """As the transformers Trainer prepares a loader: micro-batch b goes to process b mod 2."""
    from accelerate.data_loader import prepare_data_loader

    order = ShuffledOrder(24, 0)
    data = Dataset.from_dict({"row": list(range(24))})
    parts = []
    for process in range(2):
        loader = DataLoader(data, batch_size=3, sampler=OrderSampler(order))  # type: ignore[arg-type]
        prepared = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        parts.append([batch["row"].tolist() for batch in prepared])
    assert [row for pair in zip(*parts, strict=True) for batch in pair for row in batch] == order.take(0, 24)
