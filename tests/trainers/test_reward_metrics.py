"""Measurements of reward models against scipy and scikit-learn, and on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import f1_score, roc_auc_score

from mmreason.trainers.reward_metrics import Calibration, of_outcomes, of_rankings, of_steps


def test_rank_correlation_is_scipys() -> None:
    draw = np.random.default_rng(0)
    ranks = [list(map(int, draw.permutation(k))) for k in (2, 3, 5, 7, 4)]
    rewards = [list(draw.normal(size=len(row))) for row in ranks]
    expected = [kendalltau([-r for r in row], values).statistic for row, values in zip(ranks, rewards, strict=True)]
    assert of_rankings(ranks, rewards)["kendall_tau"]["value"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_pairs_are_counted_over_all_rankings() -> None:
    found = of_rankings([[0, 1], [0, 0, 1], [1, 0]], [[2.0, 1.0], [0.5, -1.0, 0.0], [3.0, 3.0]])
    assert (found["pair_accuracy"]["correct"], found["pair_accuracy"]["n"]) == (2, 4)  # equal rewards aren't right
    assert found["mean_margin"]["value"] == pytest.approx((1.0 + 0.5 - 1.0 + 0.0) / 4)
    assert found["kendall_tau"]["value"] == pytest.approx((1.0 + 0.0 + 0.0) / 3)
    assert found["mean_reward"]["value"] == pytest.approx(np.mean([2, 1, 0.5, -1, 0, 3, 3]))


def test_calibration_by_hand() -> None:
    probabilities = np.array([0.55, 0.58, 0.95, 0.99, 1.0])
    found = Calibration.of(probabilities, np.array([True, False, True, True, False]), low=0.5)
    first, last = (0.55 + 0.58) / 2, (0.99 + 1.0) / 2
    # bins of width 0.05 from 0.5: 0.55 and 0.58 share one, 0.95 to 1.0 are the last
    assert [n for *_, n in found.bins] == [2, 3]
    assert found.error == pytest.approx(2 / 5 * abs(0.5 - first) + 3 / 5 * abs(2 / 3 - (0.95 + 2 * last) / 3))


def test_what_is_drawn_from_its_probabilities_is_calibrated() -> None:
    draw = np.random.default_rng(1)
    probabilities = draw.uniform(0, 1, 40_000)
    came_true = draw.uniform(size=40_000) < probabilities
    assert Calibration.of(probabilities, came_true).error < 0.01
    assert Calibration.of(probabilities**3, came_true).error > 0.1


def test_outcomes() -> None:
    draw = np.random.default_rng(2)
    labels = draw.uniform(size=300) < 0.4
    odds = np.round(draw.normal(size=300) + labels, 1)  # with equal scores
    found = of_outcomes(labels, odds)
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(labels, odds), abs=1e-12)
    assert found["accuracy"]["value"] == pytest.approx(((odds > 0) == labels).mean())
    assert of_outcomes(np.array([True, True]), np.array([1.0, 2.0]))["roc_auc"]["value"] is None


def test_first_errors() -> None:
    """ProcessBench: of wrong solutions the first wrong step must be found, right ones must pass."""
    labels = [[1, 1, 0, 0], [1, 0, 1], [1, 1], [1], [0]]
    odds = [[2.0, 1.0, -1.0, 5.0], [-1.0, -2.0, 3.0], [1.0, 1.0], [-1.0], [-3.0]]
    found = of_steps([np.array(row) > 0 for row in labels], odds)
    assert (found["first_error"]["correct"], found["first_error"]["n"]) == (2, 3)
    assert (found["all_right"]["correct"], found["all_right"]["n"]) == (1, 2)
    assert found["first_error_f1"]["value"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    flat = [label for row in labels for label in row], [odd > 0 for row in odds for odd in row]
    assert found["step_accuracy"]["value"] == pytest.approx(np.mean(np.array(flat[0]) == np.array(flat[1])))
    assert f1_score(*flat) > 0.5  # the F1 of steps is another number than that of first errors
