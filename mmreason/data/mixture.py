"""In which order the rows of several sets are learned from: one global sequence, known at every position.

An order is a pure function of the position. So a run that goes on at position n needs to remember nothing but n; every
process can work out the whole sequence and take its part, and the sequence is the same for any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from mmreason.data._schedule import FairSchedule, whole_shares
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from fractions import Fraction

    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

Stop = Literal["all_exhausted", "first_exhausted"]
_KEPT_PASSES = 2  # permutations of a set that are kept: a window may lie across two passes


class RowOrder(Protocol):
    """A fixed sequence of row indices; position 0 is learned from first.

    Attributes:
        rows_per_epoch: positions that make an epoch. The sequence goes on behind it, in another order.
        total: positions there are in all; None for a sequence without an end.
    """

    @property
    def rows_per_epoch(self) -> int: ...

    @property
    def total(self) -> int | None: ...

    def take(self, start: int, count: int) -> list[int]:
        """The rows at positions start … start + count - 1; fewer where the sequence ends before. Pure."""
        ...


class ShuffledOrder:
    """Pass after pass over some rows, each pass in an order of its own.

    Args:
        rows: their indices, or their number for the rows 0 … n - 1.
        seed: of the order; the same seed gives the same sequence.
        shuffle: False keeps the order of `rows` in every pass.
    """

    total = None

    def __init__(self, rows: Sequence[int] | int, seed: int, *, shuffle: bool = True) -> None:
        self._rows: Rows = np.arange(rows) if isinstance(rows, int) else np.array(rows, dtype=np.int64)
        if not len(self._rows):
            raise ConfigError("an order needs at least one row")
        self._seed, self._shuffle = seed, shuffle
        self._passes: dict[int, Rows] = {}

    @property
    def rows_per_epoch(self) -> int:
        return len(self._rows)

    def take(self, start: int, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            number, place = divmod(start + len(taken), len(self._rows))
            taken += self._pass(number)[place : place + count - len(taken)].tolist()
        return taken

    def _pass(self, number: int) -> Rows:
        if not self._shuffle:
            return self._rows
        if number not in self._passes:
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, number))
            permutation = torch.randperm(len(self._rows), generator=generator).numpy()
            while len(self._passes) >= _KEPT_PASSES:
                del self._passes[next(iter(self._passes))]
            self._passes[number] = self._rows[permutation]
        return self._passes[number]


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers: (seed, set, pass). Neighbouring numbers give unrelated seeds."""
    state = np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in numbers]).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


@dataclass(frozen=True)
class MixtureSet:
    """One set of a mixture.

    Attributes:
        order: of its rows. weight: relative to the other sets', above 0.
        max_rows: after so many draws the set is used up, and the others share its part by their weights.
        max_epochs: the same, in passes over the set; 1.5 is one and a half.
        counts: False for a set that decides over no epoch's end: the replay of pretraining text.
    """

    order: RowOrder
    weight: int | float | Fraction
    max_rows: int | None = None
    max_epochs: float | None = None
    counts: bool = True

    @property
    def limit(self) -> int | None:
        """Draws after which the set is used up; None for never."""
        limits = [self.order.total, self.max_rows]
        if self.max_epochs is not None:
            limits.append(max(1, round(self.max_epochs * self.order.rows_per_epoch)))
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Phase:
    """A stretch in which the same sets take part. drawn: rows of every set that were drawn before it."""

    start: int
    end: int | None
    active: tuple[int, ...]
    schedule: FairSchedule
    drawn: tuple[int, ...]


class MixtureOrder:
    """Several sets in fixed shares.

    Which set a position belongs to is no draw of chance: in every prefix of the sequence each set has its share to
    within one row (see FairSchedule), and in any window to within two. Once a set is used up, the others' shares grow
    in proportion, and the count begins anew.

    Args:
        sets: at least one.
        stop: where an epoch ends: "first_exhausted", once some set was passed over; "all_exhausted", once each was
            (small sets are then repeated). A set that is used up before counts as passed over. The sequence goes on
            behind the epoch; it ends only where every set (that counts) is used up.
    """

    def __init__(self, sets: Sequence[MixtureSet], stop: Stop = "all_exhausted") -> None:
        if not any(one.counts for one in sets):
            raise ConfigError("a mixture needs at least one set beside the replay")
        self._sets = list(sets)
        self._phases = list(_phases(self._sets))
        passed = [self._position_after(i) for i, one in enumerate(self._sets) if one.counts]
        self._rows_per_epoch = max(passed) if stop == "all_exhausted" else min(passed)

    @property
    def rows_per_epoch(self) -> int:
        return self._rows_per_epoch

    @property
    def total(self) -> int | None:
        return self._phases[-1].end

    def take(self, start: int, count: int) -> list[int]:
        return [row for _, row in self.take_with_sets(start, count)]

    def take_with_sets(self, start: int, count: int) -> list[tuple[int, int]]:
        """(set, row) at each of the positions."""
        taken: list[tuple[int, int]] = []
        for phase in self._phases:
            at = start + len(taken)
            end = start + count if phase.end is None else min(start + count, phase.end)
            if at < end:
                taken += self._take_of_phase(phase, at, end - at)
        return taken

    def _take_of_phase(self, phase: _Phase, start: int, count: int) -> list[tuple[int, int]]:
        turns, ordinals = phase.schedule.lookup(start - phase.start, count)
        rows = np.empty(count, dtype=np.int64)
        sets = np.array(phase.active)[turns]
        for which in phase.active:
            mine = np.flatnonzero(sets == which)
            if len(mine):
                first = phase.drawn[which] + int(ordinals[mine[0]])
                rows[mine] = self._sets[which].order.take(first, len(mine))  # a set's turns are numbered without gaps
        return list(zip(sets.tolist(), rows.tolist(), strict=True))

    def _position_after(self, which: int) -> int:
        """The position behind the draw with which a set was passed over, or used up."""
        one = self._sets[which]
        wanted = one.order.rows_per_epoch if one.limit is None else min(one.limit, one.order.rows_per_epoch)
        phase = [phase for phase in self._phases if phase.drawn[which] < wanted][-1]
        ordinal = wanted - 1 - phase.drawn[which]
        return phase.start + phase.schedule.position_of(phase.active.index(which), ordinal) + 1


def _phases(sets: Sequence[MixtureSet]) -> Iterator[_Phase]:
    """The stretches between the ends of sets; the last has no end where a set is without a limit."""
    drawn, start = [0] * len(sets), 0
    limits = [one.limit for one in sets]
    while True:
        active = tuple(i for i, limit in enumerate(limits) if limit is None or drawn[i] < limit)
        if not any(sets[i].counts for i in active):
            return
        schedule = FairSchedule(whole_shares([sets[i].weight for i in active]))
        ends = [
            schedule.position_of(place, limit - drawn[i] - 1) + 1
            for place, i in enumerate(active)
            if (limit := limits[i]) is not None
        ]
        end = start + min(ends) if ends else None
        yield _Phase(start, end, active, schedule, tuple(drawn))
        if end is None:
            return
        for i, turns in zip(active, schedule.turns_before(end - start), strict=True):
            drawn[i] += turns
        start = end


class OrderSampler(Sampler[int]):
    """An order's rows for torch's DataLoader: one epoch at a time, from a consumed count on.

    Args:
        order: what to yield.
        process_index, num_processes: a process yields every num_processes-th position. Leave them out where
            Accelerate shares out the batches, as the transformers Trainer has it do.
    """

    def __init__(self, order: RowOrder, *, process_index: int = 0, num_processes: int = 1) -> None:
        if not 0 <= process_index < num_processes:
            raise ConfigError(f"process_index={process_index} must be from 0 to {num_processes - 1}")
        self.order, self.process_index, self.num_processes = order, process_index, num_processes
        self._consumed = 0  # global positions that were handed out, all processes together

    def set_epoch(self, epoch: int) -> None:
        """Begin at an epoch's start; called by Accelerate's data loader. Keeps the place inside the same epoch."""
        if self._consumed // self.order.rows_per_epoch != epoch:
            self._consumed = epoch * self.order.rows_per_epoch

    def __len__(self) -> int:
        """Rows of a whole epoch for this process."""
        rows = self._end(self._consumed) - self._epoch_start() - self.process_index
        return max(0, math.ceil(rows / self.num_processes))

    def __iter__(self) -> Iterator[int]:
        end = self._end(self._consumed)
        while self._consumed < end:
            block = self.order.take(self._consumed, min(256 * self.num_processes, end - self._consumed))
            for place in range(0, len(block), self.num_processes):
                self._consumed += min(self.num_processes, len(block) - place)
                if place + self.process_index < len(block):
                    yield block[place + self.process_index]

    def state_dict(self) -> dict[str, Any]:
        """{"consumed": positions handed out, over all processes and epochs}.

        A loader that reads ahead has been handed more than was learned from: it saves step x rows per step instead.
        """
        return {"consumed": self._consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind `consumed` positions; the number of processes may be another than before."""
        self._consumed = int(state["consumed"])

    def _epoch_start(self) -> int:
        return self._consumed // self.order.rows_per_epoch * self.order.rows_per_epoch

    def _end(self, position: int) -> int:
        """Where the epoch of a position ends."""
        end = (position // self.order.rows_per_epoch + 1) * self.order.rows_per_epoch
        return end if self.order.total is None else min(end, self.order.total)
