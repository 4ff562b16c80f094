"""Length control for pairwise verdicts: win rates by length, and the win rate at equal lengths.

Judges like long answers. The first shows it, the second takes it out after the fact with a logistic regression, as
AlpacaEval's length-controlled win rate does (arXiv 2404.04475).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmreason.types import ConfigError, DataError

LENGTH_RATIOS = (0.5, 0.8, 1.25, 2.0)
"""Edges of the default buckets: A less than half as long as B, shorter, about as long, longer, at least twice."""
_MAX_STEPS = 100
_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Pairs whose length ratio len(A) / len(B) is in [low, high).

    Attributes:
        low, high: the ratio's range; the last ends in infinity.
        items: pairs in it.
        win_rate: A's, ties as half; nan without pairs.
    """

    low: float
    high: float
    items: int
    win_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """The win rate of A that the fit predicts for answers of equal length.

    Attributes:
        items: pairs fitted.
        win_rate: as counted, ties as half.
        controlled: logistic(theta).
        low, high: 95 % interval of `controlled`; both equal it where all pairs went one way.
        length_effect: phi, above 0 if the longer answer gains; 0 if all pairs went one way or all differ equally.
    """

    items: int
    win_rate: float
    controlled: float
    low: float
    high: float
    length_effect: float


def win_rate_by_length(
    outcomes: Sequence[float],
    lengths_a: Sequence[int],
    lengths_b: Sequence[int],
    ratios: Sequence[float] = LENGTH_RATIOS,
) -> list[LengthBucket]:
    """A's win rate within ranges of len(A) / len(B).

    Args:
        outcomes: 1 where A won, 0 where B won, 0.5 for a tie.
        lengths_a, lengths_b: in characters or tokens, the same unit for both. Two empty answers have the ratio 1.
        ratios: increasing edges above 0.

    Raises: DataError for unequal lengths of the arguments; ConfigError for edges that don't increase.
    """
    if list(ratios) != sorted(set(ratios)) or any(edge <= 0 for edge in ratios):
        raise ConfigError(f"length ratios {list(ratios)} must be above 0 and increase")
    won, a, b = _arrays(outcomes, lengths_a, lengths_b)
    ratio = np.where(b > 0, a / np.maximum(b, 1), np.where(a > 0, math.inf, 1.0))
    place = np.searchsorted(np.array(ratios), ratio, side="right")
    edges = [0.0, *ratios, math.inf]
    return [
        LengthBucket(edges[i], edges[i + 1], int((place == i).sum()), _mean(won[place == i]))
        for i in range(len(edges) - 1)
    ]


def length_controlled_win_rate(
    outcomes: Sequence[float], lengths_a: Sequence[int], lengths_b: Sequence[int], *, l2: float = 1.0
) -> LengthControlled:
    """A's win rate at equal lengths (after arXiv 2404.04475, section 3, without its term for the instruction).

    The model is P(A wins) = logistic(theta + phi * t) with t = tanh(d / std(d)), d = len(A) - len(B). Fitted is the
    maximum of sum(y log p + (1 - y) log(1 - p)) - l2 / 2 * phi^2 by Newton's steps (iteratively reweighted least
    squares), ties as y = 0.5. The answer is logistic(theta): the length term set to 0. It is symmetric: with A and B
    exchanged it is 1 minus itself. The paper also fits a difficulty of each instruction over many models, which a
    single pair of models can't give.

    The interval is logistic(theta +- 1.96 se), with White's sandwich variance, which stays right for ties as 0.5.

    Args:
        outcomes: 1 where A won, 0 where B won, 0.5 for a tie.
        lengths_a, lengths_b: in characters or tokens, the same unit for both.
        l2: above 0 keeps phi finite where length parts wins from losses completely; the paper regularises it too, so
            that a model can't gain by cutting its bad answers short.

    Raises: DataError for no outcomes, outcomes outside 0 to 1 or unequal lengths of the arguments; ConfigError for
        l2 < 0, or l2 = 0 where the lengths part wins from losses.
    """
    if l2 < 0:
        raise ConfigError(f"length control: l2 {l2} must not be negative")
    won, a, b = _arrays(outcomes, lengths_a, lengths_b)
    if not len(won):
        raise DataError("length control: no outcomes")
    rate = _mean(won)
    if rate in (0.0, 1.0):  # theta runs to infinity, and so does the length term's say
        return LengthControlled(items=len(won), win_rate=rate, controlled=rate, low=rate, high=rate, length_effect=0.0)
    gap = a - b
    spread = float(gap.std())
    length = np.tanh(gap / max(spread, 1e-12))
    # Without spread the length can't be told from A's quality, and the fit has no term for it.
    design = np.stack([np.ones_like(length), length], axis=1) if spread > 0 else np.ones((len(won), 1))
    penalty = np.array([0.0, l2])[: design.shape[1]]
    weights = _fit(design, won, penalty)
    error = math.sqrt(_sandwich(design, won, weights, penalty)[0, 0])
    theta = float(weights[0])
    low, middle, high = (float(_sigmoid(np.array(theta + z * error))) for z in (-_Z_95, 0.0, _Z_95))
    return LengthControlled(
        items=len(won),
        win_rate=rate,
        controlled=middle,
        low=low,
        high=high,
        length_effect=float(weights[1]) if len(weights) > 1 else 0.0,
    )


def _fit(design: NDArray[np.float64], won: NDArray[np.float64], penalty: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's method on the penalised log-likelihood, halving steps that don't raise it."""

    def value(at: NDArray[np.float64]) -> float:
        logits = design @ at
        return float((won * logits - np.logaddexp(0.0, logits)).sum() - 0.5 * (penalty * at**2).sum())

    weights = np.zeros(design.shape[1])
    for _ in range(_MAX_STEPS):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (won - p) - penalty * weights
        hessian = (design * (p * (1.0 - p))[:, None]).T @ design + np.diag(penalty)
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            break
        scale, before = 1.0, value(weights)
        while scale > 1e-8 and value(weights + scale * step) < before - 1e-12:
            scale /= 2
        weights = weights + scale * step
        if float(np.abs(scale * step).max()) < 1e-10:
            return weights
    raise ConfigError(
        "length control: the fit has no finite answer, because lengths part wins from losses; use l2 above 0"
    )


def _sandwich(
    design: NDArray[np.float64], won: NDArray[np.float64], weights: NDArray[np.float64], penalty: NDArray[np.float64]
) -> NDArray[np.float64]:
    p = _sigmoid(design @ weights)
    bread = np.linalg.inv((design * (p * (1.0 - p))[:, None]).T @ design + np.diag(penalty))
    scores = design * (won - p)[:, None]
    return np.asarray(bread @ (scores.T @ scores) @ bread)


def _arrays(
    outcomes: Sequence[float], lengths_a: Sequence[int], lengths_b: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    if not len(outcomes) == len(lengths_a) == len(lengths_b):
        raise DataError(
            f"length control: {len(outcomes)} outcomes, {len(lengths_a)} lengths of A and {len(lengths_b)} of B"
        )
    won = np.array(outcomes, dtype=np.float64)
    if len(won) and not bool(((won >= 0) & (won <= 1)).all()):
        raise DataError("length control: outcomes are 1 (A won), 0 (B won) or 0.5 (tie)")
    return won, np.array(lengths_a, dtype=np.float64), np.array(lengths_b, dtype=np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))  # no overflow, whatever x
