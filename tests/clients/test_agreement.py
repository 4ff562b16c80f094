"""Agreement figures against published worked examples, other libraries' numbers and literal formulas."""

from __future__ import annotations

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.clients.agreement import (
    agreement,
    bootstrap_interval,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    percent_agreement,
)
from mmreason.types import ConfigError, DataError

_ = None
# Krippendorff (2011), examples C and D: four observers (rows here), twelve units.
KRIPPENDORFF = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
        strict=True,
    )
)
# The example of the article on Fleiss' kappa in Wikipedia: 14 raters, 10 subjects, how many took each of 5 categories.
FLEISS_COUNTS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
FLEISS = [[category for category, n in enumerate(row) for _i in range(n)] for row in FLEISS_COUNTS]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_of_krippendorffs_worked_example(level, alpha):
    assert krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_krippendorffs_binary_and_nominal_examples():
    """Krippendorff (2011), examples A (two observers, binary, 0.095) and B (two observers, five categories, 0.692)."""
    a = list(zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True))
    assert krippendorff_alpha(a) == pytest.approx(0.095, abs=5e-4)
    b = list(zip("aabbdcccedda", "babbbccceddd", strict=True))
    assert krippendorff_alpha(b) == pytest.approx(0.692, abs=5e-4)


def test_fleiss_of_the_published_example():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)


def test_cohen_of_the_grant_example():
    """Both yes 20, both no 15, first only 5, second only 10: observed 0.7, by chance 0.5, kappa 0.4."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)
    assert percent_agreement(pairs) == pytest.approx(0.7)


def test_cohen_of_the_diagnosis_example():
    """Cohen (1968), table 1: two raters, three diagnoses, proportions in percent; he prints 0.492 for equal weights."""
    table = [[44, 5, 1], [7, 20, 3], [9, 5, 6]]
    pairs = [(i, j) for i in range(3) for j in range(3) for _i in range(table[i][j])]
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.492, abs=1e-3)


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, 0.375), ("linear", 0.6753246753246753), ("quadratic", 0.8648648648648649)]
)
def test_cohen_equals_scikit_learn(weights, expected):
    """The expected numbers are those of sklearn.metrics.cohen_kappa_score."""
    first, second = [1, 2, 3, 4, 5, 5, 3, 2, 1, 4], [1, 2, 4, 4, 5, 4, 3, 1, 2, 3]
    assert cohen_kappa(first, second, weights=weights) == pytest.approx(expected, abs=1e-9)


def _literal_alpha(ratings, difference):
    """alpha as mean squared difference within items over that between all pairable ratings, pair by pair."""
    units = [[value for value in row if value is not None] for row in ratings]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [value for unit in units for value in unit]
    n = len(pooled)
    observed = sum(
        difference(a, b, pooled) / (len(unit) - 1)
        for unit in units
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j
    ) / max(n, 1)
    expected = sum(
        difference(a, b, pooled) for i, a in enumerate(pooled) for j, b in enumerate(pooled) if i != j
    ) / max(n * (n - 1), 1)
    return 1 - observed / expected if expected else math.nan


def _ordinal(a, b, pooled):
    low, high = min(a, b), max(a, b)
    return (
        (sum(low <= value <= high for value in pooled) - (pooled.count(a) + pooled.count(b)) / 2) ** 2 if a != b else 0
    )


DIFFERENCES = {
    "nominal": lambda a, b, pooled: float(a != b),
    "ordinal": _ordinal,
    "interval": lambda a, b, pooled: (a - b) ** 2,
    "ratio": lambda a, b, pooled: ((a - b) / (a + b)) ** 2 if a + b else 0.0,
}
TABLES = st.integers(2, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.none() | st.integers(0, 5), min_size=raters, max_size=raters), min_size=1, max_size=8
    )
)


@settings(max_examples=150, deadline=None)
@given(table=TABLES, level=st.sampled_from(sorted(DIFFERENCES)))
def test_alpha_equals_the_literal_definition(table, level):
    ours, literal = krippendorff_alpha(table, level), _literal_alpha(table, DIFFERENCES[level])
    assert ours == pytest.approx(literal, abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(table=TABLES, level=st.sampled_from(sorted(DIFFERENCES)), seed=st.randoms(use_true_random=False))
def test_the_order_of_items_and_raters_does_not_matter(table, level, seed):
    before = krippendorff_alpha(table, level), percent_agreement(table)
    places = list(range(len(table[0])))
    seed.shuffle(places)
    shuffled = [[row[i] for i in places] for row in table]
    seed.shuffle(shuffled)
    after = krippendorff_alpha(shuffled, level), percent_agreement(shuffled)
    assert after == pytest.approx(before, abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(table=TABLES)
def test_renaming_nominal_values_and_shifting_interval_values_changes_nothing(table):
    names = {None: None, **{value: f"name {(value * 7) % 11}" for value in range(6)}}
    renamed = [[names[value] for value in row] for row in table]
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(table), abs=1e-9, nan_ok=True)
    moved = [[None if value is None else 3.5 * value - 8 for value in row] for row in table]
    expected = krippendorff_alpha(table, "interval")
    assert krippendorff_alpha(moved, "interval") == pytest.approx(expected, abs=1e-7, nan_ok=True)


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(pairs=PAIRS)
def test_quadratic_kappa_is_the_concordance_coefficient(pairs):
    """Fleiss and Cohen (1973): kappa with quadratic weights = 2 cov / (var + var + (difference of the means)^2)."""
    first, second = np.array(pairs, dtype=float).T
    scale = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    expected = 2 * ((first - first.mean()) * (second - second.mean())).mean() / scale if scale else math.nan
    ours = cohen_kappa([a for a, _b in pairs], [b for _a, b in pairs], weights="quadratic", categories=range(5))
    assert ours == pytest.approx(expected, abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(pairs=PAIRS, weights=st.sampled_from([None, "linear", "quadratic"]))
def test_cohen_is_symmetric_and_at_most_one(pairs, weights):
    first, second = zip(*pairs, strict=True)
    forth, back = cohen_kappa(first, second, weights=weights), cohen_kappa(second, first, weights=weights)
    assert forth == pytest.approx(back, abs=1e-12, nan_ok=True)
    assert math.isnan(forth) or forth <= 1 + 1e-12
    itself = cohen_kappa(first, first, weights=weights)
    assert math.isnan(itself) or itself == pytest.approx(1.0)


def test_percent_agreement_counts_pairs():
    table = [["a", "a", "b"], ["a", None, "a"], ["b", None, None]]
    agreeing = sum(x == y for row in table for x, y in combinations([value for value in row if value is not None], 2))
    assert percent_agreement(table) == agreeing / 4


def test_undefined_is_nan_not_a_number_made_up():
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, None], [None, 2]]))
    assert math.isnan(cohen_kappa(["a"], ["a"]))
    assert math.isnan(fleiss_kappa([["a", "a", "a"]]))
    assert math.isnan(percent_agreement([["a", None]]))
    assert math.isnan(krippendorff_alpha([]))


def test_wrong_tables_are_refused():
    with pytest.raises(DataError, match="rows of 2 and 3 entries"):
        percent_agreement([[1, 2], [1, 2, 3]])
    with pytest.raises(DataError, match="same number of ratings"):
        fleiss_kappa([["a", "b"], ["a", None]])
    with pytest.raises(DataError, match="item 1 has 'x'"):
        krippendorff_alpha([[1, 2], [1, "x"]], "interval")
    with pytest.raises(DataError, match="'ratio' takes numbers from 0 up"):
        krippendorff_alpha([[1, -2]], "ratio")
    with pytest.raises(DataError, match="3 ratings, the other 2"):
        cohen_kappa([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="z not among the categories"):
        cohen_kappa(["a"], ["z"], categories=["a", "b"])
    for level in ("nominal", "interval"):
        with pytest.raises(DataError, match="item 1 has nan.*None marks a missing"):
            krippendorff_alpha([[1.0, 2.0], [math.nan, 1.0]], level)


def test_a_misspelt_level_is_none():
    """It must not fall through to some other level's distance."""
    for figure in (krippendorff_alpha, agreement):
        with pytest.raises(ConfigError, match="level 'ordnial'; there are nominal, ordinal"):
            figure([[1, 2], [2, 2]], "ordnial")
    with pytest.raises(ConfigError, match="weights 'square'; there are linear, quadratic"):
        cohen_kappa([1, 2], [1, 3], weights="square")


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one():
    """For a mean of 400 draws the percentile interval comes close to mean +- 1.96 sd / sqrt(n)."""
    draws = np.random.default_rng(5).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(lambda rows: float(draws[rows].mean()), 400, resamples=4000, seed=1)
    half = 1.96 * draws.std() / 20
    assert interval.low == pytest.approx(draws.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(draws.mean() + half, abs=0.02)
    again = bootstrap_interval(lambda rows: float(draws[rows].mean()), 400, resamples=4000, seed=1)
    assert again == interval
    assert bootstrap_interval(lambda rows: float(draws[rows].mean()), 400, seed=2) != interval


def test_resamples_without_a_value_are_counted():
    interval = bootstrap_interval(lambda rows: math.nan if rows[0] == 0 else 1.0, 2, resamples=200)
    assert (interval.low, interval.high) == (1.0, 1.0)
    assert 60 < interval.undefined < 140


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_many_different_values_take_no_time(level):
    """Ratings on a continuous scale: as many values as ratings."""
    rng = np.random.default_rng(3)
    rows = rng.normal(1e6, 1.0, size=(400, 2))
    start = time.perf_counter()
    figures = agreement(rows.tolist(), level)
    assert time.perf_counter() - start < 10
    if level == "interval":  # far from 0, where sums of squares cancel: the literal definition on shifted numbers
        shifted = krippendorff_alpha((rows - 1e6).tolist(), "interval")
        assert figures.alpha == pytest.approx(shifted, abs=1e-6)


def test_all_figures_of_two_raters_and_of_many():
    two = agreement([["A", "A"], ["A", "B"], ["B", "B"], ["tie", "tie"], ["A", None]], resamples=200)
    assert (two.items, two.single, two.raters, two.kappa_kind) == (4, 1, 2, "cohen")
    assert two.kappa == pytest.approx(cohen_kappa(["A", "A", "B", "tie"], ["A", "B", "B", "tie"]))
    assert two.percent_interval.low <= two.percent <= two.percent_interval.high
    many = agreement(FLEISS, resamples=200)
    assert (many.kappa_kind, many.raters) == ("fleiss", 14)
    assert many.kappa == pytest.approx(0.210, abs=5e-4)
    assert many.kappa_interval.low < many.kappa < many.kappa_interval.high
    gaps = agreement(KRIPPENDORFF, "interval", resamples=50)
    assert gaps.kappa_kind == "" and math.isnan(gaps.kappa)
    assert gaps.alpha == pytest.approx(0.849, abs=5e-4)
    assert (gaps.items, gaps.single) == (11, 1)


def test_quadratic_weights_of_scores_use_the_scores_not_their_ranks():
    """Scores 1, 2 and 10: 2 against 10 is further off than 1 against 2."""
    first, second = [1, 2, 10, 10, 1, 2], [1, 1, 10, 2, 2, 2]
    figures = agreement(list(zip(first, second, strict=True)), "interval", resamples=10)
    assert figures.kappa == pytest.approx(cohen_kappa(first, second, weights="quadratic", categories=range(1, 11)))
