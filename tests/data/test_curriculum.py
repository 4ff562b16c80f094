"""The pacing is the paper's, no row comes before its time, and the order is a function of the position."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.curriculum import DRAWN_AT_ONCE, CurriculumOrder, Pacing, difficulties
from mmreason.types import ConfigError, DataError

Pacings = st.builds(
    Pacing,
    rows=st.integers(1, 700),
    kind=st.sampled_from(["linear", "root", "step"]),
    start=st.floats(0.01, 1.0),
    power=st.floats(1.0, 5.0),
    steps=st.integers(1, 6),
)
Difficulties = st.lists(st.integers(0, 9), min_size=1, max_size=90)


def test_competence_at_points_worked_out_by_hand() -> None:
    linear, root = Pacing(1000, "linear", 0.2), Pacing(1000, "root", 0.2)
    assert [linear.competence(t) for t in (0, 250, 500, 1000, 5000)] == pytest.approx([0.2, 0.4, 0.6, 1, 1])
    assert [root.competence(t) for t in (0, 500, 1000)] == pytest.approx([0.2, math.sqrt(0.52), 1])
    cubic = Pacing(1000, "root", 0.5, power=3)
    assert cubic.competence(400) == pytest.approx((0.4 * 0.875 + 0.125) ** (1 / 3))
    steps = Pacing(1000, "step", 0.2, steps=4)
    assert [steps.competence(t) for t in (0, 249, 250, 499, 500, 999, 1000)] == pytest.approx(
        [0.2, 0.2, 0.4, 0.4, 0.6, 0.8, 1]
    )


@given(Pacings, st.integers(0, 800))
def test_competence_grows_from_its_start_to_one(pacing: Pacing, t: int) -> None:
    assert pacing.competence(0) == pytest.approx(pacing.start)
    assert pacing.start - 1e-12 <= pacing.competence(t) <= pacing.competence(t + 1) <= 1
    assert pacing.competence(pacing.rows) == 1
    assert Pacing(pacing.rows, "root", pacing.start, power=1.0).competence(t) == pytest.approx(
        Pacing(pacing.rows, "linear", pacing.start).competence(t)
    )


@given(Difficulties, Pacings, st.integers(0, 99), st.booleans())
def test_no_row_comes_before_its_time(difficulty: list[int], pacing: Pacing, seed: int, hardest: bool) -> None:
    """At position t only the c(t) N easiest rows (at least one) may stand, c taken at the start of 64 rows."""
    order = CurriculumOrder(difficulty, pacing, seed, hardest_first=hardest)
    ranked = sorted(difficulty, reverse=hardest)
    for position, row in enumerate(order.take(0, pacing.rows)):
        block = position // DRAWN_AT_ONCE * DRAWN_AT_ONCE
        hardest_allowed = ranked[max(1, math.floor(pacing.competence(block) * len(ranked))) - 1]
        assert difficulty[row] >= hardest_allowed if hardest else difficulty[row] <= hardest_allowed


@given(Difficulties, Pacings, st.integers(0, 99), st.integers(0, 900), st.integers(0, 300))
def test_a_function_of_the_position(difficulty: list[int], pacing: Pacing, seed: int, start: int, count: int) -> None:
    rows = [10 * i for i in range(len(difficulty))]
    order = CurriculumOrder(difficulty, pacing, seed, rows=rows)
    expected = CurriculumOrder(difficulty, pacing, seed, rows=rows).take(0, start + count)[start:]
    assert order.take(start, count) == expected
    assert set(expected) <= set(rows)


@given(Difficulties, Pacings, st.integers(0, 99))
def test_afterwards_passes_over_all_rows(difficulty: list[int], pacing: Pacing, seed: int) -> None:
    order, n = CurriculumOrder(difficulty, pacing, seed), len(difficulty)
    for number in range(2):
        assert sorted(order.take(pacing.rows + number * n, n)) == list(range(n))


def test_every_open_row_is_drawn_equally_often() -> None:
    """Chi-square of the draws at a fixed competence (one stage): each of 200 open rows of 400, 12,800 draws."""
    order = CurriculumOrder(list(range(400)), Pacing(12_800, "step", 0.5, steps=1), seed=3)
    drawn = Counter(order.take(0, 12_800))
    assert set(drawn) == set(range(200))
    statistic = sum((drawn[row] - 64) ** 2 / 64 for row in range(200))
    assert (
        100 < statistic < 250
    )  # expected about 199 · (1 - 64/200) = 135, standard deviation 14, as 64 at a time differ
    assert len(set(order.take(0, 64))) == 64


def test_harder_rows_come_later_on_average() -> None:
    order = CurriculumOrder(list(range(1000)), Pacing(2000, "root", 0.1), seed=0)
    means = [sum(order.take(start, 500)) / 500 for start in range(0, 2000, 500)]
    assert means == sorted(means) and means[0] < 250 and means[-1] > 420


def test_equal_difficulties_are_ordered_by_the_seed() -> None:
    pacing = Pacing(64, "linear", 0.1)
    drawn = [set(CurriculumOrder([1.0] * 100, pacing, seed).take(0, 64)) for seed in (0, 1)]
    assert len(drawn[0]) == 10 and drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 0}, "rows=0"), ({"rows": 5, "start": 0}, "start=0"), ({"rows": 5, "start": 1.5}, "start=1.5"),
        ({"rows": 5, "power": 0.5}, "power=0.5"), ({"rows": 5, "power": math.nan}, "power=nan"),
        ({"rows": 5, "steps": 0}, "steps=0"), ({"rows": 5, "kind": "sqrt"}, "'sqrt' is none of"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pacing(**settings)


def test_difficulties_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="finite"):
        CurriculumOrder([1.0, math.nan], Pacing(4), 0)
    with pytest.raises(ConfigError, match="2 difficulties for 1 rows"):
        CurriculumOrder([1.0, 2.0], Pacing(4), 0, rows=[5])


def meta_rows() -> Dataset:
    return Dataset.from_list(
        [
            {"id": "a", "meta": {"level": "Level 5", "score": 0.5}, "answer": "3"},
            {"id": "b", "meta": {"level": "Level 2", "score": -1.0}, "answer": "x"},
        ]
    )


def test_difficulty_of_columns_keys_and_lengths() -> None:
    rows = meta_rows()
    assert difficulties(rows, "meta.level") == [5.0, 2.0]
    assert difficulties(rows, "meta.score") == [0.5, -1.0]
    assert difficulties(rows, "length", lengths=[7, 9]) == [7.0, 9.0]


@pytest.mark.parametrize("by", ["answer", "meta.missing", "meta"])
def test_a_row_without_a_difficulty_is_named(by: str) -> None:
    with pytest.raises(DataError, match=f"row [ab]: curriculum: {by} is"):
        difficulties(meta_rows(), by)


def test_no_such_column_or_no_lengths() -> None:
    with pytest.raises(DataError, match=r"no column 'levl'; there are length, id, meta, answer.*\."):
        difficulties(meta_rows(), "levl")
    with pytest.raises(ConfigError, match="needs the rows' lengths"):
        difficulties(meta_rows(), "length")
    with pytest.raises(ConfigError, match="1 lengths for 2 rows"):
        difficulties(meta_rows(), "length", lengths=[1])
    nan = Dataset.from_dict({"id": ["r1"], "score": [math.nan]})
    with pytest.raises(DataError, match="row r1: curriculum: score is nan"):
        difficulties(nan, "score")
