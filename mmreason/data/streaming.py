"""A mixture of streams: the order law of mmreason.data.mixture for sets that are read from end to end, never held."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from mmreason.data._schedule import FairSchedule, whole_shares
from mmreason.data.mixture import Stop, mixed_seed
from mmreason.types import ConfigError, DataError

_TURNS_AT_ONCE = 256


@dataclass(frozen=True)
class StreamSet:
    """One stream of a mixture.

    Attributes:
        name: for errors and logs.
        rows: gives the same rows at every iteration, as a `datasets.IterableDataset` does (its `skip` and `set_epoch`
            are used where it has them, so a shuffled one is shuffled anew in each pass).
        weight: relative to the other sets', above 0. Sizes aren't known, so there is no default.
        max_rows: draws after which the stream is used up. max_epochs: the same in passes, at least 1.
        counts: False for a set that decides over no epoch's end (replay).
    """

    name: str
    rows: Iterable[Any]
    weight: int | float | Fraction
    max_rows: int | None = None
    max_epochs: float | None = None
    counts: bool = True


class MixtureStream(IterableDataset[Any]):
    """Rows of several streams in fixed shares: the sequence that MixtureOrder has for the same sets in memory.

    Each iteration is one epoch, and goes on where the last one ended. The stream is the global sequence: in a run of
    several processes each reads all of it and keeps its batches (what Accelerate does with an IterableDataset), so the
    order doesn't depend on their number.

    Args:
        sets: at least one that counts.
        stop: where an epoch ends, see MixtureOrder.
        shuffle_block: rows of a stream that are shuffled among each other: the first so many, the next so many … A
            resumed run reads its block again, so nothing is lost, unlike with a shuffle buffer. 1: as they come.
        seed: of the shuffling.
    """

    def __init__(
        self, sets: Sequence[StreamSet], stop: Stop = "all_exhausted", *, shuffle_block: int = 1, seed: int = 0
    ) -> None:
        if not any(one.counts for one in sets):
            raise ConfigError("a mixture needs at least one set beside the replay")
        if shuffle_block < 1:
            raise ConfigError(f"shuffle_block={shuffle_block} must be at least 1")
        self._stop = stop
        self._readers = [_Reader(one, shuffle_block, mixed_seed(seed, number)) for number, one in enumerate(sets)]
        self._position = self._phase_start = 0
        self._rows_per_epoch: int | None = None
        self._turns: list[int] = []
        self._active: list[int] = []
        self._schedule: FairSchedule | None = None

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError("a mixture of streams is one sequence: use dataloader_num_workers 0 or 1")
        ended = False
        while not ended and self._begin_turn():
            row = self._readers[self._turns.pop()].next()
            self._position += 1
            ended = self._epoch_ends()
            yield row

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands, as plain numbers; to be taken between two rows."""
        return {
            "position": self._position,
            "phase_start": self._phase_start,
            "active": list(self._active),
            "rows_per_epoch": self._rows_per_epoch,
            "sets": [{"name": r.one.name, "drawn": r.drawn, "size": r.size} for r in self._readers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises: ConfigError where it is that of other sets."""
        mine = [reader.one.name for reader in self._readers]
        theirs = [one["name"] for one in state["sets"]]
        if mine != theirs:
            raise ConfigError(f"the state is that of a mixture of {theirs}, not of {mine}")
        self._position, self._phase_start = state["position"], state["phase_start"]
        self._rows_per_epoch = state["rows_per_epoch"]
        for reader, one in zip(self._readers, state["sets"], strict=True):
            reader.seek(one["drawn"], one["size"])
        self._schedule, self._turns, self._active = None, [], list(state["active"])

    def _begin_turn(self) -> bool:
        """Make sure that `_turns` ends with the set whose turn it is; False where the sequence ends."""
        active = [i for i, reader in enumerate(self._readers) if not reader.used_up]
        if not any(self._readers[i].one.counts for i in active):
            return False
        if active != self._active:
            self._active, self._phase_start, self._schedule, self._turns = active, self._position, None, []
        if self._schedule is None:
            self._schedule = FairSchedule(whole_shares([self._readers[i].one.weight for i in active]))
        if not self._turns:
            places, _ = self._schedule.lookup(self._position - self._phase_start, _TURNS_AT_ONCE)
            self._turns = np.array(active)[places][::-1].tolist()
        return True

    def _epoch_ends(self) -> bool:
        if self._rows_per_epoch is None:
            passed = [reader.passed for reader in self._readers if reader.one.counts]
            if all(passed) if self._stop == "all_exhausted" else any(passed):
                self._rows_per_epoch = self._position
        return self._rows_per_epoch is not None and self._position % self._rows_per_epoch == 0


class _Reader:
    """A stream, pass after pass. One row is read ahead, so that the last draw is known to be the last.

    Attributes: drawn: rows given. size: rows of a pass, once its end was seen.
    """

    def __init__(self, one: StreamSet, block: int, seed: int) -> None:
        if one.max_epochs is not None and one.max_epochs < 1:
            raise ConfigError(f"{one.name}: max_epochs={one.max_epochs} of a stream must be at least 1; use max_rows")
        self.one, self._block, self._seed = one, block, seed
        self.seek(0, None)

    def seek(self, drawn: int, size: int | None) -> None:
        self.drawn, self.size = drawn, size
        self._rows = self._all_passes()
        self._ahead: list[Any] = []

    def next(self) -> Any:
        self._look_ahead()
        self.drawn += 1
        return self._ahead.pop()

    @property
    def used_up(self) -> bool:
        limit = self.one.max_rows
        if self.one.max_epochs is not None and self._known_size is not None:
            passes = round(self.one.max_epochs * self._known_size)
            limit = passes if limit is None else min(limit, passes)
        return limit is not None and self.drawn >= limit

    @property
    def passed(self) -> bool:
        """Was every row given once, or all that may be?"""
        return self.used_up or (self._known_size is not None and self.drawn >= self._known_size)

    @property
    def _known_size(self) -> int | None:
        if self.size is None and self.drawn:
            self._look_ahead()
        return self.size

    def _look_ahead(self) -> None:
        if not self._ahead:
            self._ahead.append(next(self._rows))

    def _all_passes(self) -> Iterator[Any]:
        number, skipped = divmod(self.drawn, self.size) if self.size else (0, self.drawn)
        while True:
            count = skipped
            for row in self._one_pass(number, skipped):
                yield row
                count += 1
            if count == 0:
                raise DataError(f"{self.one.name}: the stream has no rows", path=self.one.name, reason="empty")
            if self.size is not None and count != self.size:
                raise DataError(f"{self.one.name}: {count} rows in pass {number + 1}, but {self.size} in the first")
            self.size = count
            number, skipped = number + 1, 0

    def _one_pass(self, number: int, skipped: int) -> Iterator[Any]:
        """The rows of a pass without the first `skipped`."""
        block, place = divmod(skipped, self._block)
        rows = _open(self.one.rows, number, block * self._block)
        while held := list(islice(rows, self._block)):
            random.Random(mixed_seed(self._seed, number, block)).shuffle(held)
            yield from held[place:]
            block, place = block + 1, 0


def _open(rows: Iterable[Any], number: int, start: int) -> Iterator[Any]:
    """The rows of pass `number` from `start` on."""
    if start and hasattr(rows, "skip"):
        rows, start = rows.skip(start), 0
    if hasattr(rows, "set_epoch"):
        rows.set_epoch(number)
    return islice(iter(rows), start, None)
