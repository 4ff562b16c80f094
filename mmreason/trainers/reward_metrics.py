"""How good a reward model is on held-out rows: accuracy, rank correlation, margins, calibration, first errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreason.rollout.evaluate import Accuracy, wilson_interval
from mmreason.trainers.reward_data import RewardRows

BINS = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error (Naeini et al. 2015, eq. 3; arXiv 1706.04599, eq. 3) and the bins that it is made of.

    Attributes:
        error: Σ over bins of (share of cases) · |share that came true - mean predicted probability|.
        bins: of those that hold something: mean probability, share that came true, number of cases.
    """

    error: float
    bins: tuple[tuple[float, float, int], ...]

    @classmethod
    def of(cls, probabilities: Floats, came_true: NDArray[np.bool_], low: float = 0.0) -> Calibration:
        """Args: probabilities: (n,) in [low, 1], cut into bins of equal width. came_true: (n,)."""
        if not len(probabilities):
            return cls(math.nan, ())
        which = np.minimum(((probabilities - low) / (1 - low) * BINS).astype(int), BINS - 1)
        bins = []
        for number in np.unique(which):
            chosen = which == number
            bins.append((float(probabilities[chosen].mean()), float(came_true[chosen].mean()), int(chosen.sum())))
        error = sum(n * abs(right - said) for said, right, n in bins) / len(probabilities)
        return cls(float(error), tuple(bins))


def measured(rows: RewardRows, values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What a set comes to, as evaluation.json holds it.

    Args: values: of each row, in its order: rewards of its sequences, or log-odds at its places.

    Returns: parts by name: accuracies with their 95 % Wilson intervals ({correct, n, value, low, high}), numbers
        ({value}), and `reliability`, a list of bins.
    """
    if rows.head == "preference":
        bounds = list(zip(rows.starts, rows.starts[1:], strict=False))
        return of_rankings([list(rows.ranks[a:b]) for a, b in bounds], values)
    labels = [np.asarray(row) > 0.5 for row in rows.labels]
    if rows.head == "outcome":
        return of_outcomes(np.concatenate(labels), np.concatenate([np.asarray(row) for row in values]))
    return of_steps(labels, values)


def of_rankings(ranks: Sequence[Sequence[int]], rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Pairs and rankings.

    pair_accuracy: share of compared pairs whose better one has the larger reward (equal ones count as wrong).
    kendall_tau: mean over rankings of (concordant - discordant) / compared pairs: Kendall's τ, ties of the data left
    out. mean_margin: mean of r_i - r_j over pairs. calibration_error: of σ(|r_i - r_j|) as the probability that the
    order is right.
    """
    taus: list[float] = []
    margins: list[float] = []
    for row_ranks, row_rewards in zip(ranks, rewards, strict=True):
        ahead = [
            better - worse
            for better, above in zip(row_rewards, row_ranks, strict=True)
            for worse, below in zip(row_rewards, row_ranks, strict=True)
            if above < below
        ]
        taus.append(float(np.sign(ahead).mean()))
        margins += ahead
    found = np.asarray(margins)
    sure = Calibration.of(_sigmoid(np.abs(found)), found > 0, low=0.5)
    everything = np.concatenate([np.asarray(row) for row in rewards])
    return {
        "pair_accuracy": _accuracy(int((found > 0).sum()), len(found)),
        "kendall_tau": _number(np.mean(taus)),
        "mean_margin": _number(found.mean()),
        "mean_reward": _number(everything.mean()),
        "reward_std": _number(everything.std()),
        **_calibrated(sure),
    }


def of_outcomes(labels: NDArray[np.bool_], log_odds: Floats) -> dict[str, Any]:
    """Right and wrong answers: accuracy at probability 0.5, area under the ROC curve, calibration error."""
    found = Calibration.of(_sigmoid(log_odds), labels)
    return {
        "accuracy": _accuracy(int(((log_odds > 0) == labels).sum()), len(labels)),
        "roc_auc": _number(_roc_auc(labels, log_odds)),
        "mean_reward": _number(log_odds.mean()),
        **_calibrated(found),
    }


def of_steps(labels: Sequence[NDArray[np.bool_]], log_odds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Steps: accuracy of each, and of finding the first wrong one (ProcessBench, arXiv 2412.06559, section 4).

    first_error: share of wrong solutions whose first wrong step is the first one below probability 0.5;
    all_right: share of right solutions without such a step; first_error_f1: the two's harmonic mean.
    """
    flat, odds = np.concatenate(labels), np.concatenate([np.asarray(row) for row in log_odds])
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for row_labels, row_odds in zip(labels, log_odds, strict=True):
        is_right = bool(row_labels.all())
        hits[is_right].append(_first_wrong(row_labels) == _first_wrong(np.asarray(row_odds) > 0))
    wrong, right = (Accuracy(sum(hits[kind]), len(hits[kind])) for kind in (False, True))
    both = wrong.value + right.value
    f1 = 2 * wrong.value * right.value / both if both > 0 else 0.0 if both == 0 else math.nan
    found = Calibration.of(_sigmoid(odds), flat)
    return {
        "step_accuracy": _accuracy(int(((odds > 0) == flat).sum()), len(flat)),
        "first_error": _accuracy(wrong.correct, wrong.n),
        "all_right": _accuracy(right.correct, right.n),
        "first_error_f1": _number(f1),
        "roc_auc": _number(_roc_auc(flat, odds)),
        **_calibrated(found),
    }


def lines(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `measured` as metrics.jsonl has them."""
    return {name: part["value"] for name, part in found.items() if isinstance(part, Mapping)}


def shown(name: str, part: Mapping[str, Any]) -> str:
    """One part for people."""
    label = name.replace("_", " ").ljust(18)
    if "correct" in part:
        return f"{label} {Accuracy(part['correct'], part['n'])}"
    return f"{label} {part['value']:.3f}" if part["value"] is not None else f"{label} -"


def reliability_table(bins: Iterable[Sequence[float]]) -> str:
    """The bins of a calibration for people: predicted probability, share that came true, number of cases."""
    rows = [f"  {said:9.3f}  {right:9.3f}  {int(n):7d}" for said, right, n in bins]
    return "\n".join(["  predicted  came true    cases", *rows])


def _first_wrong(right: NDArray[np.bool_]) -> int:
    """The first step that isn't right; -1 where all are."""
    return -1 if right.all() else int(np.argmin(right))


def _roc_auc(labels: NDArray[np.bool_], scores: Floats) -> float:
    """P(score of a right one > score of a wrong one), ties counting half (Mann and Whitney 1947)."""
    right, wrong = np.sort(scores[labels]), np.sort(scores[~labels])
    if not len(right) or not len(wrong):
        return math.nan
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.sum() / 2 / (len(right) * len(wrong)))


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(values, dtype=np.float64)))


def _accuracy(correct: int, n: int) -> dict[str, float | int | None]:
    low, high = wilson_interval(correct, n)
    return {"correct": correct, "n": n, "value": correct / n if n else None, "low": low, "high": high}


def _number(value: Any) -> dict[str, float | None]:
    return {"value": float(value) if math.isfinite(value) else None}


def _calibrated(found: Calibration) -> dict[str, Any]:
    return {"calibration_error": _number(found.error), "reliability": [list(one) for one in found.bins]}
