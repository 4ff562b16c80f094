"""Rankings to pairs and back: against networkx and the maximum of the likelihood, for any ranking and any pairs."""

from __future__ import annotations

from itertools import pairwise

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders._preferences.order import (
    Levels,
    bradley_terry,
    levels_of,
    order_by_strength,
    order_of,
    pairs_of,
)
from mmreason.types import ConfigError


@st.composite
def rankings(draw: st.DrawFn, least: int = 1) -> tuple[int, Levels]:
    """(items, a ranking of them with ties) of at least so many levels."""
    n = draw(st.integers(least, 9))
    order = draw(st.permutations(range(n)))
    cuts = draw(st.sets(st.integers(1, n - 1), min_size=least - 1)) if n > 1 else set()
    edges = [0, *sorted(cuts), n]
    return n, tuple(tuple(sorted(order[a:b])) for a, b in pairwise(edges))


def place_of(levels: Levels) -> dict[int, int]:
    return {item: place for place, level in enumerate(levels) for item in level}


@given(rankings(least=2), st.sampled_from(["all", "adjacent"]), st.randoms())
def test_pairs_of_a_ranking_give_it_back_in_any_order(
    ranking: tuple[int, Levels], mode: str, random: np.random.Generator
) -> None:
    n, levels = ranking
    pairs = [(i, j) for i, j, _ in pairs_of(levels, mode)]  # type: ignore[arg-type]
    random.shuffle(pairs)
    found = order_of(n, pairs)
    assert found.levels == levels and not found.cycles and not found.unplaced


@given(rankings(least=2))
def test_strengths_of_all_pairs_and_ties_give_the_ranking_back(ranking: tuple[int, Levels]) -> None:
    n, levels = ranking
    ties = [(i, j) for level in levels for i in level for j in level if i < j]
    found = order_by_strength(n, [(i, j) for i, j, _ in pairs_of(levels)], ties)
    assert found.levels == levels and not found.cycles


@given(rankings(), st.sampled_from(["all", "adjacent", "best_worst"]), st.integers(1, 4))
def test_pairs_keep_the_order_and_the_gap(ranking: tuple[int, Levels], mode: str, least: int) -> None:
    _, levels = ranking
    place = place_of(levels)
    pairs = pairs_of(levels, mode, min_gap=least)  # type: ignore[arg-type]
    assert len(set(pairs)) == len(pairs)
    for better, worse, gap in pairs:
        assert place[worse] - place[better] == gap >= least
    if mode == "all":  # a literal count of every two items
        assert len(pairs) == sum(place[j] - place[i] >= least for i in place for j in place)
    if mode == "best_worst" and pairs:
        assert {i for i, _, _ in pairs} == set(levels[0]) and {j for _, j, _ in pairs} == set(levels[-1])


@given(st.integers(2, 8), st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=24))
def test_any_pairs_keep_their_order_but_in_cycles(n: int, pairs: set[tuple[int, int]]) -> None:
    pairs = {(i, j) for i, j in pairs if i < n and j < n}
    graph = networkx.DiGraph(list(pairs))
    found = order_of(n, pairs)
    cycles = [
        tuple(sorted(group))
        for group in networkx.strongly_connected_components(graph)
        if len(group) > 1 or graph.has_edge(*(list(group) * 2))
    ]
    assert sorted(found.cycles) == sorted(cycles)
    place = place_of(found.levels)
    together = {item: cycle for cycle in cycles for item in cycle}
    for i, j in pairs:
        if together.get(i) is not None and together.get(i) == together.get(j):
            assert place[i] == place[j]
        else:
            assert place[i] < place[j]
    assert sorted([*place, *found.unplaced]) == list(range(n))


def test_a_cycle_is_reported_and_its_items_tie() -> None:
    found = order_of(5, [(0, 1), (1, 2), (2, 0), (2, 3)])
    assert found.cycles == ((0, 1, 2),) and found.levels == ((0, 1, 2), (3,)) and found.unplaced == (4,)
    # 0 has beaten 1 twice: strengths tell the three apart, and the cycle is still told.
    by_strength = order_by_strength(4, [(0, 1), (0, 1), (1, 2), (2, 0), (2, 3)])
    assert by_strength.cycles == ((0, 1, 2),) and by_strength.levels[0] == (0,)


@given(st.integers(2, 5), st.data())
def test_strengths_are_the_maximum_of_the_likelihood(n: int, data: st.DataObject) -> None:
    games = {(i, j): float(data.draw(st.integers(0, 4))) / 2 for i in range(n) for j in range(n) if i != j}
    strengths = np.array(bradley_terry(n, games, prior=0.5))
    # The gradient of sum(w_ij log P(i beats j)) with half a win and half a loss against strength 0 is zero there.
    gradient = 0.5 - 1 / (1 + np.exp(-strengths))
    for (i, j), count in games.items():
        lost = count / (1 + np.exp(strengths[i] - strengths[j]))
        gradient[i] += lost
        gradient[j] -= lost
    assert np.abs(gradient).max() < 1e-6


def test_scores_within_the_tolerance_tie() -> None:
    assert levels_of({0: 1.0, 1: 3.0, 2: 1.0}) == ((1,), (0, 2))
    assert levels_of({0: 1.0, 1: 1.4, 2: 2.0}, tolerance=0.5) == ((2,), (0, 1))


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="there are all, adjacent, best_worst"):
        pairs_of(((0,), (1,)), "every")  # type: ignore[arg-type]
