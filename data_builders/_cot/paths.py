"""Which of several right solutions of a problem are kept: those that go about it most differently.

Rejection-sampling fine-tuning (arXiv:2308.01825) keeps one solution for each set of equations. Where that leaves more
than are wanted, the choice here is the one whose sets differ most: the largest sum of pairwise Jaccard distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

MAX_NODES = 20_000
"""Partial choices that are looked at; beyond it the best found so far is taken."""


def choose_paths(keys: Sequence[frozenset[str]], most: int | None = None) -> list[int]:
    """The solutions to keep, as indices in ascending order.

    Args:
        keys: the set of equations of each solution.
        most: of one problem; None keeps all that differ.

    Returns: the first solution of each set; of more than `most` those with the largest sum of 1 - |A ∩ B| / |A ∪ B|
        over all pairs, and of several such choices the first in the order of the indices. Exact unless more than
        `MAX_NODES` partial choices would have to be looked at: then a greedy choice that no exchange of one for another
        makes better.
    """
    first: dict[frozenset[str], int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    kept = list(first.values())
    if most is None or len(kept) <= most:
        return kept
    chosen = _Choice(distances([keys[i] for i in kept]), most).best()
    return [kept[i] for i in chosen]


def distances(keys: Sequence[frozenset[str]]) -> list[list[int]]:
    """Jaccard distances of all pairs as whole numbers: the true ones times one common denominator."""
    unions = {len(one | other) for one, other in combinations(keys, 2)} | {1}
    scale = math.lcm(*(union for union in unions if union))
    table = [[0] * len(keys) for _ in keys]
    for (i, one), (j, other) in combinations(enumerate(keys), 2):
        union = len(one | other)
        table[i][j] = table[j][i] = scale - (scale * len(one & other) // union if union else scale)
    return table


class _Choice:
    """Branch and bound over the indices in ascending order, so that the first of equally good choices is found."""

    def __init__(self, table: list[list[int]], most: int) -> None:
        self.table, self.most, self.n = table, most, len(table)
        self.far = max(map(max, table))
        self.nodes = 0
        self.fallback = self._exchanged(self._greedy())
        self.value = self._sum(self.fallback)
        self.found: tuple[int, ...] | None = None

    def best(self) -> tuple[int, ...]:
        self._extend((), 0, [0] * self.n)
        if self.found is None or self.nodes > MAX_NODES:
            return self.fallback if self.found is None or self._sum(self.found) < self.value else self.found
        return self.found

    def _extend(self, chosen: tuple[int, ...], value: int, gains: list[int]) -> None:
        """gains: of each index, the sum of its distances to those chosen."""
        missing = self.most - len(chosen)
        if missing == 0:
            if value > self.value or self.found is None:
                self.found, self.value = chosen, value
            return
        start = chosen[-1] + 1 if chosen else 0
        for i in range(start, self.n - missing + 1):
            self.nodes += 1
            if self.nodes > MAX_NODES:
                return
            # At the best, the others that are missing gain most with those chosen, and are as far apart as any.
            rest = sorted(gains[i + 1 :], reverse=True)[: missing - 1]
            bound = value + gains[i] + sum(rest) + self.far * math.comb(missing, 2)
            if bound < self.value or (bound == self.value and self.found is not None):
                continue
            self._extend((*chosen, i), value + gains[i], [gain + self.table[i][j] for j, gain in enumerate(gains)])

    def _sum(self, chosen: Sequence[int]) -> int:
        return sum(self.table[i][j] for i, j in combinations(chosen, 2))

    def _greedy(self) -> list[int]:
        chosen = [max(range(self.n), key=lambda i: (sum(self.table[i]), -i))]
        while len(chosen) < self.most:
            others = (i for i in range(self.n) if i not in chosen)
            chosen.append(max(others, key=lambda i: (sum(self.table[i][j] for j in chosen), -i)))
        return chosen

    def _exchanged(self, chosen: list[int]) -> tuple[int, ...]:
        """No exchange of one for another makes it better."""
        better = True
        while better:
            better = False
            for place in range(self.most):
                rest = chosen[:place] + chosen[place + 1 :]
                now = sum(self.table[chosen[place]][j] for j in rest)
                others = (i for i in range(self.n) if i not in chosen)
                new = max(others, key=lambda i: (sum(self.table[i][j] for j in rest), -i))
                if sum(self.table[new][j] for j in rest) > now:
                    chosen[place], better = new, True
        return tuple(sorted(chosen))
