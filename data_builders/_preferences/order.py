"""Rankings and pairs: a ranking's pairs, and the ranking that pairs come to. Pure functions over item numbers.

A ranking is a sequence of levels, best first, each a tuple of items that tie: ((2,), (0, 3), (1,)) is C > A = D > B.
A pair (i, j) says that i is better than j.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import get_args

from data_builders._preferences.options import PairMode
from mmreason.types import ConfigError

Levels = tuple[tuple[int, ...], ...]
Pair = tuple[int, int]

_STEPS = 10_000
_SAME = 1e-6
"""Strengths (natural logarithms) that differ by less are a tie: far above the fit's error, far below half a game."""


@dataclass(frozen=True, slots=True)
class Order:
    """What pairs come to.

    Attributes:
        levels: the items that stand in some pair, best first. Each pair's better item stands on a better level, but for
            pairs inside a cycle.
        cycles: groups of items each of which is better than itself by the pairs (A > B > C > A), in ascending order.
        unplaced: items that no pair (and no tie) names.
    """

    levels: Levels
    cycles: tuple[tuple[int, ...], ...] = ()
    unplaced: tuple[int, ...] = ()


def pairs_of(
    levels: Sequence[Sequence[int]], mode: PairMode = "all", *, min_gap: int = 1
) -> list[tuple[int, int, int]]:
    """The pairs of a ranking, as (better, worse, levels between them); ties give none.

    Args:
        levels: best first.
        mode: see `PairMode`.
        min_gap: the least number of levels from one to the other.

    Raises: ConfigError for an unknown mode.
    """
    if mode not in get_args(PairMode):
        raise ConfigError(f"pairs: mode {mode!r}; there are {', '.join(get_args(PairMode))}")
    found = []
    for upper, lower in combinations(range(len(levels)), 2):
        gap = lower - upper
        wanted = mode == "all" or (mode == "adjacent" and gap == 1) or (mode == "best_worst" and gap == len(levels) - 1)
        if wanted and gap >= min_gap:
            found += [(i, j, gap) for i, j in product(levels[upper], levels[lower])]
    return found


def levels_of(scores: Mapping[int, float], tolerance: float = 0.0) -> Levels:
    """The ranking by score, highest first; items within `tolerance` of the best of their level tie."""
    levels: list[list[int]] = []
    for item in sorted(scores, key=lambda item: (-scores[item], item)):
        if levels and scores[levels[-1][0]] - scores[item] <= tolerance:
            levels[-1].append(item)
        else:
            levels.append([item])
    return tuple(tuple(sorted(level)) for level in levels)


def order_of(n: int, pairs: Iterable[Pair]) -> Order:
    """The ranking of n items by topological sorting: an item's level is the longest chain of better ones above it.

    All pairs of a ranking, or those of adjacent levels, give the ranking back. Where the pairs leave two items open,
    the levels say more than the pairs do. The items of a cycle tie.
    """
    worse_of: dict[int, set[int]] = defaultdict(set)
    named: set[int] = set()
    for better, worse in pairs:
        worse_of[better].add(worse)
        named |= {better, worse}
    groups = _components(sorted(named), worse_of)
    group_of = {item: number for number, group in enumerate(groups) for item in group}
    depth = [0] * len(groups)
    # Tarjan's groups come in reverse topological order, so that the better ones are met from the end.
    for number in range(len(groups) - 1, -1, -1):
        for item in groups[number]:
            for other in worse_of[item]:
                if group_of[other] != number:
                    depth[group_of[other]] = max(depth[group_of[other]], depth[number] + 1)
    levels: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        levels[depth[number]] += group
    cycles = tuple(sorted(tuple(sorted(group)) for group in groups if _is_cycle(group, worse_of)))
    ordered = tuple(tuple(sorted(levels[place])) for place in sorted(levels))
    return Order(ordered, cycles, tuple(item for item in range(n) if item not in named))


def _is_cycle(group: Sequence[int], worse_of: Mapping[int, set[int]]) -> bool:
    return len(group) > 1 or group[0] in worse_of[group[0]]


def _components(items: Sequence[int], worse_of: Mapping[int, set[int]]) -> list[list[int]]:
    """Strongly connected components, the worse before the better (Tarjan 1972), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_items: list[int] = []
    is_open: set[int] = set()
    found: list[list[int]] = []
    for root in items:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        open_items.append(root)
        is_open.add(root)
        work = [(root, iter(sorted(worse_of[root])))]
        while work:
            item, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    open_items.append(other)
                    is_open.add(other)
                    work.append((other, iter(sorted(worse_of[other]))))
                    break
                if other in is_open:
                    low[item] = min(low[item], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[item])
                if low[item] == index[item]:
                    at = open_items.index(item)
                    found.append(open_items[at:])
                    is_open -= set(found[-1])
                    del open_items[at:]
    return found


def bradley_terry(n: int, games: Mapping[Pair, float], *, prior: float = 0.5) -> list[float]:
    """Strengths of n items, natural logarithms: P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952).

    Fitted by Hunter's minorisation-maximisation (2004, equation 3). Every item also wins and loses `prior` games
    against one of strength 0, so that the strengths are finite where somebody wins all games, and comparable where the
    games don't connect all items. Where each two items have met equally often, the order is that of the points.

    Args:
        games: (i, j) -> how often i has beaten j; a tie is half a win for each.
        prior: above 0.
    """
    wins = [prior] * n
    met: dict[Pair, float] = defaultdict(float)
    for (i, j), count in games.items():
        wins[i] += count
        met[min(i, j), max(i, j)] += count
    opponents: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    for (i, j), count in met.items():
        opponents[i].append((j, count))
        opponents[j].append((i, count))
    strength = [1.0] * n
    for _ in range(_STEPS):
        moved = 0.0
        for i in range(n):
            expected = 2 * prior / (strength[i] + 1.0)
            expected += sum(count / (strength[i] + strength[j]) for j, count in opponents[i])
            new = wins[i] / expected
            moved = max(moved, abs(math.log(new / strength[i])))
            strength[i] = new
        if moved < 1e-12:
            break
    return [math.log(value) for value in strength]


def order_by_strength(n: int, pairs: Iterable[Pair], ties: Iterable[Pair] = ()) -> Order:
    """The ranking of n items by their Bradley-Terry strengths; the levels may contradict single pairs.

    Args:
        pairs: each is a game; repeats count.
        ties: games that nobody has won.
    """
    games: dict[Pair, float] = defaultdict(float)
    won = list(pairs)
    for i, j in won:
        games[i, j] += 1.0
    for i, j in ties:
        games[i, j] += 0.5
        games[j, i] += 0.5
    named = sorted({item for game in games for item in game})
    strengths = bradley_terry(n, games)
    cycles = order_of(n, won).cycles
    unplaced = tuple(item for item in range(n) if item not in set(named))
    return Order(levels_of({item: strengths[item] for item in named}, _SAME), cycles, unplaced)
