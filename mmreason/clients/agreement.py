"""How far raters agree beyond chance: percent agreement, Cohen's and Fleiss' kappa, Krippendorff's alpha, intervals.

A table of ratings is a sequence of items, each a sequence with one entry for each rater (the same order everywhere);
None is a missing rating. Values are strings or numbers for the level "nominal", numbers for the others.

Every coefficient is nan where it isn't defined: nothing to compare, or chance agreement of 1 because only one category
was used (0 / 0; calling that 0 or 1 would be a guess).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmreason.types import ConfigError, DataError

Level = Literal["nominal", "ordinal", "interval", "ratio"]
"""What the values mean: names; ranks; numbers whose differences count; numbers above 0 whose ratios count."""
Weights = Literal["linear", "quadratic"]
Ratings = Sequence[Sequence[Any]]
Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.intp]], float]
"""A figure of the items with these numbers; repeats count."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A bootstrap percentile interval.

    Attributes:
        low, high: its ends; nan where no resample gave a value.
        undefined: resamples in which the statistic was nan; they are left out.
    """

    low: float
    high: float
    undefined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The agreement figures of one table.

    Attributes:
        items: items with at least two ratings; the others carry no information about agreement.
        single: items with one rating or none.
        raters: raters of those items.
        percent: share of agreeing pairs of ratings, 0 to 1.
        kappa: Cohen's for two raters (quadratic weights unless nominal), Fleiss' for more with a complete nominal
            table; nan otherwise.
        kappa_kind: which of them, or "".
        alpha: Krippendorff's, at `level`.
        percent_interval, kappa_interval, alpha_interval: 95 %, over items.
        level: level of measurement.
    """

    items: int
    single: int
    raters: int
    percent: float
    kappa: float
    kappa_kind: Literal["cohen", "cohen quadratic", "fleiss", ""]
    alpha: float
    percent_interval: Interval
    kappa_interval: Interval
    alpha_interval: Interval
    level: Level


def agreement(ratings: Ratings, level: Level = "nominal", *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """All figures of one table.

    Args:
        ratings: items x raters, None for missing.
        level: level of measurement.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises: DataError for rows of unequal length, or values that don't fit the level; ConfigError for an unknown level.
    """
    codes, values = _encode(ratings, level)
    counts = _counts(codes, len(values))
    paired = counts.sum(axis=1) >= 2
    codes, counts = codes[paired], counts[paired]
    codes = codes[:, (codes >= 0).any(axis=0)]
    percent_of, alpha_of = _percent(counts), _alpha(counts, values, level)
    kappa_of, kind = _kappa_for(codes, counts, values, level)

    def interval(statistic: Statistic) -> Interval:
        return bootstrap_interval(statistic, len(counts), resamples=resamples, seed=seed)

    everything = np.arange(len(counts))
    return Agreement(
        items=int(paired.sum()),
        single=int((~paired).sum()),
        raters=codes.shape[1],
        percent=percent_of(everything),
        kappa=kappa_of(everything),
        kappa_kind=kind,
        alpha=alpha_of(everything),
        percent_interval=interval(percent_of),
        kappa_interval=interval(kappa_of),
        alpha_interval=interval(alpha_of),
        level=level,
    )


def percent_agreement(ratings: Ratings) -> float:
    """Share of agreeing pairs among all pairs of ratings of the same item, 0 to 1; nan without a pair."""
    codes, values = _encode(ratings, "nominal")
    return _percent(_counts(codes, len(values)))(np.arange(len(codes)))


def cohen_kappa(
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    weights: Weights | None = None,
    categories: Sequence[Hashable] | None = None,
) -> float:
    """Cohen's kappa of two raters (Cohen 1960), or weighted kappa (Cohen 1968).

    kappa = 1 - sum(w o) / sum(w e), with o the joint and e the product of the marginal distributions, and the
    disagreement weight w_ij = [i != j], |i - j| (linear) or (i - j)^2 (quadratic), i and j places in `categories`.

    Args:
        first, second: a rating each for every item; items that one of them didn't rate (None) are left out.
        weights: None for the unweighted form.
        categories: all categories in order; None takes those seen, sorted. Weights count the unused ones between.

    Raises: DataError for unequal lengths or a value outside `categories`; ConfigError for unknown weights.
    """
    if weights not in (None, *get_args(Weights)):
        raise ConfigError(f"Cohen's kappa: weights {weights!r}; there are {', '.join(get_args(Weights))}, or None")
    if len(first) != len(second):
        raise DataError(f"Cohen's kappa: one rater has {len(first)} ratings, the other {len(second)}")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    order = list(categories) if categories is not None else _sorted({value for pair in both for value in pair})
    place = {value: i for i, value in enumerate(order)}
    unknown = sorted({str(value) for pair in both for value in pair if value not in place})
    if unknown:
        raise DataError(f"Cohen's kappa: {', '.join(unknown)} not among the categories {order}")
    pairs = np.array([(place[a], place[b]) for a, b in both], dtype=np.intp).reshape(-1, 2)
    return _cohen(pairs, np.arange(len(order), dtype=np.float64), weights)


def fleiss_kappa(ratings: Ratings) -> float:
    """Fleiss' kappa (Fleiss 1971) for the same number of nominal ratings of each item, whoever gave them.

    Raises: DataError where items have different numbers of ratings (`krippendorff_alpha` takes those).
    """
    codes, values = _encode(ratings, "nominal")
    counts = _counts(codes, len(values))
    if len(set(counts.sum(axis=1).tolist())) > 1:
        raise DataError(
            "Fleiss' kappa needs the same number of ratings of each item; use krippendorff_alpha for missing ratings"
        )
    return _fleiss(counts)


def krippendorff_alpha(ratings: Ratings, level: Level = "nominal") -> float:
    """Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability"): any number of raters, with gaps.

    alpha = 1 - D_o / D_e = 1 - (n - 1) * sum_ck(o_ck d_ck) / sum_ck(n_c n_k d_ck), with o_ck the coincidences of values
    c and k (each item's pairs count 1 / (m_u - 1), m_u its ratings), n_c = sum_k o_ck, n = sum_c n_c, and d the squared
    difference of the level: [c != k]; the number of ranks between; (c - k)^2; ((c - k) / (c + k))^2.

    Raises: DataError for values that don't fit the level; ConfigError for an unknown level.
    """
    codes, values = _encode(ratings, level)
    counts = _counts(codes, len(values))
    counts = counts[counts.sum(axis=1) >= 2]
    return _alpha(counts, values, level)(np.arange(len(counts)))


def bootstrap_interval(
    statistic: Statistic,
    items: int,
    *,
    coverage: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic under resampling of items with replacement (Efron 1979).

    Args:
        statistic: from the numbers of the drawn items (repeats are meant) to a value; nan is left out and counted.
        items: how many there are.
        coverage: share of the resamples between the ends.
        resamples: how many draws.
        seed: same seed, same interval.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, items, size=items)) for _ in range(resamples)] if items else []
    defined = [value for value in drawn if not math.isnan(value)]
    if not defined:
        return Interval(math.nan, math.nan, len(drawn))
    low, high = np.quantile(defined, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(float(low), float(high), len(drawn) - len(defined))


def _sorted(values: set[Any]) -> list[Any]:
    """In their own order where they have one, else by type and text."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda value: (type(value).__name__, str(value)))


def _encode(ratings: Ratings, level: Level) -> tuple[NDArray[np.intp], list[Any]]:
    """Codes (items, raters), -1 for missing, and the sorted values they stand for."""
    if level not in get_args(Level):
        raise ConfigError(f"agreement: level {level!r}; there are {', '.join(get_args(Level))}")
    widths = {len(row) for row in ratings}
    if len(widths) > 1:
        raise DataError(f"ratings: rows of {' and '.join(map(str, sorted(widths)))} entries; None marks a missing one")
    for number, row in enumerate(ratings):
        if any(isinstance(value, float) and math.isnan(value) for value in row):
            raise DataError(f"ratings: item {number} has nan, which is no rating; None marks a missing one")
    if level != "nominal":
        _check_numbers(ratings, level)
    values = _sorted({value for row in ratings for value in row if value is not None})
    place = {value: i for i, value in enumerate(values)}
    codes = [[-1 if value is None else place[value] for value in row] for row in ratings]
    return np.array(codes, dtype=np.intp).reshape(len(ratings), next(iter(widths), 0)), values


def _check_numbers(ratings: Ratings, level: Level) -> None:
    for number, row in enumerate(ratings):
        for value in row:
            if value is None:
                continue
            # numpy's floats are Python floats, its integers only have __index__.
            whole = hasattr(value, "__index__") and not isinstance(value, bool)
            if not (whole or isinstance(value, float)) or not math.isfinite(value):
                raise DataError(f"ratings: item {number} has {value!r}; level {level!r} takes finite numbers")
            if level == "ratio" and value < 0:
                raise DataError(f"ratings: item {number} has {value!r}; level 'ratio' takes numbers from 0 up")


def _counts(codes: NDArray[np.intp], values: int) -> Floats:
    """How many raters gave an item each value, (items, values)."""
    counts = np.zeros((len(codes), values))
    rows, columns = np.nonzero(codes >= 0)
    np.add.at(counts, (rows, codes[rows, columns]), 1.0)
    return counts


def _kappa_for(
    codes: NDArray[np.intp], counts: Floats, values: Sequence[Any], level: Level
) -> tuple[Statistic, Literal["cohen", "cohen quadratic", "fleiss", ""]]:
    """The kappa that fits the table, as a function of the drawn items, and its name."""
    if codes.shape[1] == 2:
        weights: Weights | None = None if level == "nominal" else "quadratic"
        kind: Literal["cohen", "cohen quadratic"] = "cohen" if weights is None else "cohen quadratic"
        # Ranks among the values seen, unless the level says that their differences count.
        metric = level in ("interval", "ratio")
        places = np.array(values if metric else range(len(values)), dtype=np.float64)
        return lambda rows: _cohen(codes[rows], places, weights), kind
    if codes.shape[1] > 2 and level == "nominal" and bool((codes >= 0).all()):
        return lambda rows: _fleiss(counts[rows]), "fleiss"
    return lambda rows: math.nan, ""


def _percent(counts: Floats) -> Statistic:
    """Of items (items, values): agreeing pairs of ratings over all."""
    ratings = counts.sum(axis=1)
    agreeing, pairs = (counts * (counts - 1)).sum(axis=1), ratings * (ratings - 1)

    def percent(rows: NDArray[np.intp]) -> float:
        total = float(pairs[rows].sum())
        return float(agreeing[rows].sum()) / total if total else math.nan

    return percent


def _cohen(pairs: NDArray[np.intp], places: Floats, weights: Weights | None) -> float:
    """From codes (items, 2) and the place of each code on the scale, ascending."""
    if not len(pairs):
        return math.nan
    first, second = (np.bincount(pairs[:, i], minlength=len(places)) / len(pairs) for i in (0, 1))
    if np.count_nonzero(first + second) < 2:
        return math.nan
    apart = np.abs(places[pairs[:, 0]] - places[pairs[:, 1]])
    if weights is None:
        observed, by_chance = (apart > 0).mean(), 1.0 - first @ second
    elif weights == "linear":  # E|X - Y| = the integral of F (1 - G) + G (1 - F) over the scale
        below, below2 = first.cumsum()[:-1], second.cumsum()[:-1]
        observed, by_chance = apart.mean(), np.diff(places) @ (below * (1 - below2) + below2 * (1 - below))
    else:  # E(X - Y)^2 from the first two moments, about a middle so that nothing cancels
        centred = places - places @ (first + second) / 2
        observed = (apart**2).mean()
        by_chance = (first + second) @ centred**2 - 2 * (first @ centred) * (second @ centred)
    return 1.0 - float(observed) / float(by_chance) if by_chance > 0 else math.nan


def _fleiss(counts: Floats) -> float:
    if not len(counts):
        return math.nan
    raters = counts[0].sum()
    if raters < 2:
        return math.nan
    observed = float(((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))).mean())
    shares = counts.sum(axis=0) / (len(counts) * raters)
    by_chance = float((shares**2).sum())
    # A single used category gives exactly 1; rounding of unequal shares never does.
    return (observed - by_chance) / (1.0 - by_chance) if np.count_nonzero(shares) > 1 else math.nan


def _alpha(counts: Floats, values: Sequence[Any], level: Level) -> Statistic:
    """Of items (items, values) with two ratings and more each.

    The sums over pairs of values stand in closed form, so that a resample costs items x values and not values squared.
    """
    if not len(counts):
        return lambda rows: math.nan
    weights = 1.0 / (counts.sum(axis=1) - 1.0)
    fixed = None if level == "ordinal" else _pair_sums(counts, counts.sum(axis=0), values, level) * weights

    def alpha(rows: NDArray[np.intp]) -> float:
        drawn = np.bincount(rows, minlength=len(counts)).astype(np.float64)
        totals = drawn @ counts
        by_chance = float(_pair_sums(totals, totals, values, level))
        if np.count_nonzero(totals) < 2 or by_chance <= 0:  # rounding may leave a little more than 0 of one value
            return math.nan
        items = _pair_sums(counts, totals, values, level) * weights if fixed is None else fixed
        return 1.0 - (float(totals.sum()) - 1.0) * float(drawn @ items) / by_chance

    return alpha


def _pair_sums(counts: Floats, totals: Floats, values: Sequence[Any], level: Level) -> Floats:
    """sum_ck n_c n_k d_ck, d as Krippendorff (2011) defines it. counts n: (..., values), totals of all items: (values,)

    The totals decide the ranks of the ordinal level, and where the middle of a scale lies.
    """
    size = counts.sum(axis=-1)
    if level == "nominal":
        return np.asarray(size**2 - (counts**2).sum(axis=-1))
    if level == "ratio":
        numbers = np.array(values, dtype=np.float64)
        gaps, sums = np.subtract.outer(numbers, numbers), np.add.outer(numbers, numbers)
        distance = np.divide(gaps, sums, out=np.zeros_like(gaps), where=sums != 0) ** 2
        return np.asarray(((counts @ distance) * counts).sum(axis=-1))
    # Squared distances on a line. Ordinal: sum of n_g from c to k less half of both ends, the distance of mid-ranks.
    places = np.cumsum(totals) - totals / 2 if level == "ordinal" else np.array(values, dtype=np.float64)
    places = places - totals @ places / totals.sum()  # about the mean, so that nothing cancels
    return np.asarray(2 * np.maximum(size * (counts @ places**2) - (counts @ places) ** 2, 0.0))
