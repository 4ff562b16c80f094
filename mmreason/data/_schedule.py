"""Whose turn is it: a fixed sequence of sets in which each has its share of every prefix, to within one row."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mmreason.types import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

_EXACT_PERIOD = 1 << 22  # turns; a longer period is not kept in memory whole (6 bytes each)
_ROUNDED_PERIOD = 1 << 20
_FIRST_TURNS = 1 << 12


def whole_shares(weights: Sequence[int | float | Fraction]) -> list[int]:
    """Weights as whole numbers: in a period of their sum, set i has `units[i]` turns.

    Decimal weights such as 0.7 are taken as written and kept exactly. Where the exact period would be longer than four
    million turns (roots of sizes, say), shares are rounded to parts of 2^20, each at least one part.
    """
    exact = [weight if isinstance(weight, Fraction) else Fraction(str(weight)) for weight in weights]
    if not exact or any(weight <= 0 for weight in exact):
        raise ConfigError(f"weights must be above 0, not {[float(weight) for weight in exact]}")
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= _EXACT_PERIOD:
        return [int(share * period) for share in shares]
    units = [max(1, int(share * _ROUNDED_PERIOD)) for share in shares]
    by_remainder = sorted(range(len(units)), key=lambda i: (units[i] - shares[i] * _ROUNDED_PERIOD, i))
    for i in by_remainder[: max(0, _ROUNDED_PERIOD - sum(units))]:
        units[i] += 1
    return units


class FairSchedule:
    """An endless sequence of sets 0 … k-1 in which set i has units[i] of every `period` turns, evenly spread.

    After any number n of turns, set i has had n·p_i turns, p_i = units[i] / period, to within 1 - 1/(2k - 2): the bound
    of R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980), reached by his rule (of the sets
    that may have a turn without running ahead, the one that must have it soonest). Drawing at random instead strays by
    some sqrt(n) turns; taking the set that is furthest behind can stray by more than one.

    Args: units: whole numbers above 0.
    """

    def __init__(self, units: Sequence[int]) -> None:
        divisor = math.gcd(*units)
        self.units = [unit // divisor for unit in units]
        self.period = sum(self.units)
        self._slack = max(2, 2 * len(units) - 2)
        self._turns = self._simulate()
        self._sets = np.zeros(0, dtype=np.uint16)
        self._ordinals = np.zeros(0, dtype=np.uint32)

    def lookup(self, start: int, count: int) -> tuple[Numbers, Numbers]:
        """The turns start … start + count - 1: (set of each, how many turns that set had before), both (count,)."""
        positions = np.arange(start, start + count, dtype=np.int64)
        rounds, places = np.divmod(positions, self.period)
        self._extend(int(places.max(initial=-1)) + 1)
        sets = self._sets[places].astype(np.int64)
        return sets, self._ordinals[places] + rounds * np.array(self.units, dtype=np.int64)[sets]

    def turns_before(self, position: int) -> list[int]:
        """How many of the first `position` turns each set has."""
        rounds, place = divmod(position, self.period)
        self._extend(place)
        counts = np.bincount(self._sets[:place], minlength=len(self.units))
        return [rounds * unit + int(count) for unit, count in zip(self.units, counts, strict=True)]

    def position_of(self, which: int, ordinal: int) -> int:
        """The position of a set's turn number `ordinal`, from 0."""
        rounds, ordinal = divmod(ordinal, self.units[which])
        first, last = self._release(which, ordinal) - 1, self._deadline(which, ordinal) + 1
        self._extend(min(last, self.period))
        found = (self._sets[first:last] == which) & (self._ordinals[first:last] == ordinal)
        return rounds * self.period + first + int(np.flatnonzero(found)[0])

    def _release(self, which: int, ordinal: int) -> int:
        """The first turn, counted from 1, that doesn't run more than the bound ahead: n p ≥ ordinal + 1/slack."""
        return -(-self.period * (self._slack * ordinal + 1) // (self._slack * self.units[which]))

    def _deadline(self, which: int, ordinal: int) -> int:
        """The last turn but one, counted from 1, that isn't later than the bound: n p ≤ ordinal + 1 - 1/slack."""
        return self.period * (self._slack * (ordinal + 1) - 1) // (self._slack * self.units[which])

    def _simulate(self) -> Iterator[tuple[int, int]]:
        """(set, ordinal) of each turn of one period."""
        waiting = [(self._release(i, 0), i, 0) for i in range(len(self.units))]
        heapq.heapify(waiting)
        ready: list[tuple[int, int, int]] = []
        for turn in range(1, self.period + 1):
            while waiting and waiting[0][0] <= turn:
                _, which, ordinal = heapq.heappop(waiting)
                heapq.heappush(ready, (self._deadline(which, ordinal), which, ordinal))
            _, which, ordinal = heapq.heappop(ready)
            heapq.heappush(waiting, (self._release(which, ordinal + 1), which, ordinal + 1))
            yield which, ordinal

    def _extend(self, turns: int) -> None:
        """Work out the first `turns` turns of the period, at least; twice as many as before, at least."""
        known = len(self._sets)
        if turns <= known:
            return
        wanted = min(self.period, max(turns, 2 * known, _FIRST_TURNS))
        new = np.array([next(self._turns) for _ in range(wanted - known)], dtype=np.int64)
        self._sets = np.concatenate([self._sets, new[:, 0].astype(np.uint16)])
        self._ordinals = np.concatenate([self._ordinals, new[:, 1].astype(np.uint32)])
