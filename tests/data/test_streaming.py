"""A mixture of streams is the mixture of the same sets in memory, and goes on after a resume at any row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmreason.data.mixture import MixtureOrder, MixtureSet, ShuffledOrder
from mmreason.data.streaming import MixtureStream, StreamSet
from mmreason.types import ConfigError, DataError

STOPS = ("all_exhausted", "first_exhausted")


@st.composite
def specs(draw: st.DrawFn) -> tuple[list[tuple[int, int, int | None, float | None, bool]], str]:
    """((rows, weight, max_rows, max_epochs, counts) of each set, stop)."""
    one = st.tuples(
        st.integers(1, 12),
        st.integers(1, 6),
        st.one_of(st.none(), st.integers(1, 20)),
        st.one_of(st.none(), st.sampled_from([1, 1.5, 2])),
        st.booleans(),
    )
    sets = draw(st.lists(one, min_size=1, max_size=4))
    return [(*sets[0][:4], True), *sets[1:]], draw(st.sampled_from(STOPS))


def stream(spec: Any, block: int = 1) -> MixtureStream:
    sets = [
        StreamSet(f"s{i}", range(1000 * i, 1000 * i + size), weight, rows, epochs, counts)
        for i, (size, weight, rows, epochs, counts) in enumerate(spec[0])
    ]
    return MixtureStream(sets, spec[1], shuffle_block=block, seed=5)


def epochs_of(mixture: MixtureStream, count: int) -> list[list[int]]:
    return [list(islice(mixture, 500)) for _ in range(count)]


@given(specs())
def test_the_sequence_and_its_epochs_are_those_of_the_sets_in_memory(spec: Any) -> None:
    sets = [
        MixtureSet(ShuffledOrder(range(1000 * i, 1000 * i + size), 0, shuffle=False), weight, rows, epochs, counts)
        for i, (size, weight, rows, epochs, counts) in enumerate(spec[0])
    ]
    order = MixtureOrder(sets, spec[1])
    epoch = order.rows_per_epoch
    expected = [order.take(i * epoch, epoch) for i in range(3)]
    assert epochs_of(stream(spec), 3) == expected


@given(specs(), st.integers(1, 5), st.integers(0, 60))
def test_resumed_at_any_row(spec: Any, block: int, stopped: int) -> None:
    """The rest of the epoch, and the next epochs, are those of the unbroken stream."""
    epochs = epochs_of(stream(spec, block), 3)
    first, got, left = stream(spec, block), 0, stopped
    while (part := len(list(islice(first, left)))) and left > part:
        got, left = got + 1, left - part
    second = stream(spec, block)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    done = sum(map(len, epochs[:got])) + min(left, len(epochs[got]) if got < 3 else 0)
    rows = [row for epoch in epochs for row in epoch][done:]
    ends = [end for end in itertools.accumulate(map(len, epochs)) if end > done]
    resumed = epochs_of(second, len(ends))
    assert [row for epoch in resumed for row in epoch] == rows
    assert list(itertools.accumulate(map(len, resumed), initial=done))[1:] == ends


@given(st.integers(1, 30), st.integers(1, 9))
def test_shuffled_within_blocks(size: int, block: int) -> None:
    mixture = MixtureStream([StreamSet("a", range(size), 1)], shuffle_block=block)
    first, second = list(mixture), list(mixture)
    for rows in (first, second):
        for start in range(0, size, block):
            assert sorted(rows[start : start + block]) == list(range(size))[start : start + block]
    assert size < 20 or block < 5 or first != second


def test_hf_streams_are_skipped_and_shuffled_by_themselves() -> None:
    def build() -> MixtureStream:
        rows = Dataset.from_dict({"row": list(range(40))}).to_iterable_dataset(num_shards=4)
        return MixtureStream([StreamSet("hf", rows.shuffle(seed=1, buffer_size=8), 2), StreamSet("text", "abcdefg", 1)])

    whole = build()
    first, second = list(whole), list(whole)
    for cut in (0, 17, len(first), len(first) + 5):
        part, again = build(), build()
        got = [*islice(part, min(cut, len(first))), *islice(part, max(0, cut - len(first)))]
        again.load_state_dict(part.state_dict())
        rest = list(again)
        assert got + rest == (first + second)[: len(got) + len(rest)] and len(rest) > 0
    numbers = [row["row"] for row in first if isinstance(row, dict)]
    assert sorted(numbers) == list(range(40)) != numbers


def test_accelerate_shares_the_stream_among_processes() -> None:
    """Batches of the global sequence go to processes in turn, whatever their number."""
    from accelerate.data_loader import prepare_data_loader

    def rows(processes: int) -> list[int]:
        parts = []
        for process in range(processes):
            mixture = MixtureStream([StreamSet("a", range(16), 2), StreamSet("b", range(100, 108), 1)])
            loader = DataLoader(mixture, batch_size=12 // processes)
            prepared = prepare_data_loader(
                loader, num_processes=processes, process_index=process, put_on_device=False, dispatch_batches=False
            )
            parts.append([batch.tolist() for batch in prepared])
        return [row for batches in zip(*parts, strict=True) for batch in batches for row in batch]

    assert rows(1) == rows(2) == rows(3) == rows(4)


def test_several_workers_are_refused() -> None:
    mixture = MixtureStream([StreamSet("a", range(8), 1)])
    assert list(DataLoader(mixture, batch_size=None, num_workers=1)) == list(range(8))
    with pytest.raises(ConfigError, match="dataloader_num_workers"):
        list(DataLoader(mixture, batch_size=None, num_workers=2))


class Shrinking:
    """A stream that gives one row less in its second pass."""

    def __init__(self) -> None:
        self.rows = 5

    def __iter__(self) -> Iterator[int]:
        self.rows -= 1
        return iter(range(self.rows))


def test_streams_that_cannot_be_mixed_are_named() -> None:
    with pytest.raises(DataError, match="empty-one: the stream has no rows"):
        list(MixtureStream([StreamSet("empty-one", [], 1)]))
    mixture = MixtureStream([StreamSet("s", Shrinking(), 1), StreamSet("long", range(50), 1)])
    with pytest.raises(DataError, match="s: 3 rows in pass 2, but 4 in the first"):
        list(mixture)
    with pytest.raises(ConfigError, match="max_epochs=0.5"):
        MixtureStream([StreamSet("s", range(3), 1, max_epochs=0.5)])
    with pytest.raises(ConfigError, match=r"\['a'\], not of \['b'\]"):
        MixtureStream([StreamSet("b", [1], 1)]).load_state_dict(MixtureStream([StreamSet("a", [1], 1)]).state_dict())
