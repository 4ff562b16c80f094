"""Ratios of tokens and of completions, and what stands for the clip: against literal float64 loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmreason.losses.policy import (
    RATIO_LEVELS,
    RatioLevel,
    cispo_surrogate,
    clipped_surrogate,
    high_entropy_mask,
    log_importance_ratio,
    off_policy_mask,
    sapo_surrogate,
    vespo_surrogate,
)

B, C = 6, 7
LENGTHS = [7, 4, 1, 5, 0, 3]
MASK = (torch.arange(C) < torch.tensor(LENGTHS)[:, None]).double()
ADVANTAGES = torch.tensor([1.3, -0.7, 0.9, 0.0, 1.0, -2.0], dtype=torch.float64)


def randn(seed: int, scale: float = 0.4) -> Tensor:
    return scale * torch.randn(B, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1.5


def ratio_by_loop(logps: list[float], old: list[float], n: int, level: str) -> float:
    total = sum(logps[t] - old[t] for t in range(n))
    return math.exp(total if level == "sequence_sum" else total / max(n, 1))


def by_loop(logps: Tensor, old: Tensor, level: str, per_token: Callable[[float, float, float], float]) -> list[float]:
    """Sums over each completion's tokens of per_token(log π, ratio, A)."""
    out = []
    for i, n in enumerate(LENGTHS):
        row, before = logps[i].tolist(), old[i].tolist()
        whole = ratio_by_loop(row, before, n, level)
        out.append(
            sum(
                per_token(row[t], math.exp(row[t] - before[t]) if level == "token" else whole, ADVANTAGES[i].item())
                for t in range(n)
            )
        )
    return out


def clipped(low: float, high: float) -> Callable[[float, float, float], float]:
    return lambda logp, r, a: -min(r * a, min(max(r, 1 - low), 1 + high) * a)


@pytest.mark.parametrize("level", RATIO_LEVELS)
def test_clipped_surrogate_with_each_ratio(level: RatioLevel) -> None:
    logps, old = randn(1), randn(2)
    log_ratio = log_importance_ratio(logps, old, MASK, level)
    assert log_ratio.shape == ((B, 1) if level in ("sequence", "sequence_sum") else (B, C))
    found = clipped_surrogate(log_ratio, ADVANTAGES, epsilon_low=0.1, epsilon_high=0.15)
    expected = by_loop(logps, old, level, clipped(0.1, 0.15))
    torch.testing.assert_close((found.loss * MASK).sum(-1), torch.tensor(expected, dtype=torch.float64))
    assert found.clipped_low.any() and found.clipped_high.any(), "the bounds bind nowhere: this proves nothing"


def test_gspo_token_has_gspos_value_and_gradient() -> None:
    """Where all tokens of a completion share an advantage, losses and gradients are equal (2507.18071 sec. 4.3)."""
    old, results = randn(3), []
    for level in ("sequence", "sequence_token"):
        logps = randn(4).requires_grad_()
        log_ratio = log_importance_ratio(logps, old, MASK, level)  # type: ignore[arg-type]
        loss = clipped_surrogate(log_ratio, ADVANTAGES).loss * MASK
        means = loss.sum(-1) / MASK.sum(-1).clamp(min=1)
        means.sum().backward()
        results.append((means.detach(), logps.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][1].abs().max() > 0.01


@pytest.mark.parametrize("level", ["sequence", "sequence_sum"])
def test_gradient_of_a_completions_ratio(level: RatioLevel) -> None:
    """d r / d log π_t is r for the sum over tokens, and r / |y| for the mean: by hand, and 0 outside the mask."""
    old, logps = randn(5), randn(6).requires_grad_()
    torch.exp(log_importance_ratio(logps, old, MASK, level)).sum().backward()
    for i, n in enumerate(LENGTHS):
        r = ratio_by_loop(logps[i].tolist(), old[i].tolist(), n, level)
        expected = [(r if level == "sequence_sum" else r / n) if t < n else 0.0 for t in range(C)]
        torch.testing.assert_close(logps.grad[i], torch.tensor(expected, dtype=torch.float64))


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="paragraph"):
        log_importance_ratio(randn(1), randn(2), MASK, "paragraph")  # type: ignore[arg-type]


def test_cispo_equals_a_loop_and_keeps_every_gradient() -> None:
    logps, old, bound = randn(7).requires_grad_(), randn(8), 1.2
    found = cispo_surrogate(logps, log_importance_ratio(logps, old, MASK), ADVANTAGES, epsilon_high=bound)
    expected = by_loop(logps.detach(), old, "token", lambda logp, r, a: -min(r, bound) * a * logp)
    torch.testing.assert_close((found.loss * MASK).sum(-1), torch.tensor(expected, dtype=torch.float64))
    (found.loss * MASK).sum().backward()
    weights = torch.exp(logps.detach() - old).clamp(max=bound)
    torch.testing.assert_close(logps.grad, -weights * ADVANTAGES[:, None] * MASK)
    assert (weights == bound).any(), "no weight is clipped: this proves nothing"


def test_sapo_equals_a_loop() -> None:
    logps, old = randn(9, 1.0), randn(10, 1.0)

    def gate(logp: float, r: float, a: float) -> float:
        tau = 1.0 if a > 0 else 1.05
        return -4 / tau / (1 + math.exp(-tau * (r - 1))) * a

    found = sapo_surrogate(log_importance_ratio(logps, old, MASK), ADVANTAGES)
    expected = by_loop(logps, old, "token", gate)
    torch.testing.assert_close((found.loss * MASK).sum(-1), torch.tensor(expected, dtype=torch.float64))


def test_sapos_gradient_is_the_policy_gradient_on_policy() -> None:
    """4/τ σ'(0) τ = 1: the gate has slope 1 where the ratio is 1, whatever the temperature."""
    logps = randn(11).requires_grad_()
    sapo_surrogate(logps - logps.detach(), ADVANTAGES, temperature_pos=0.5, temperature_neg=3.0).loss.sum().backward()
    torch.testing.assert_close(logps.grad, -ADVANTAGES[:, None].expand(B, C))


@pytest.mark.parametrize("corrected", [False, True])
def test_vespo_equals_a_loop(corrected: bool) -> None:
    logps, old = randn(12).requires_grad_(), randn(13)
    engine = torch.exp(0.1 * randn(14)) if corrected else None
    found = vespo_surrogate(logps, old, ADVANTAGES, MASK, engine_weights=engine)
    (found.loss * MASK).sum().backward()
    for i, n in enumerate(LENGTHS):
        a = ADVANTAGES[i].item()
        k, decay = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        w = ratio_by_loop(logps[i].tolist(), old[i].tolist(), n, "sequence_sum")
        if engine is not None:
            w *= math.prod(engine[i].tolist())
        phi = w**k * math.exp(decay * (1 - w))
        for t in range(n):
            assert found.loss[i, t].item() == pytest.approx(-phi * a * logps[i, t].item(), rel=1e-9)
            assert logps.grad[i, t].item() == pytest.approx(-phi * a, rel=1e-9)


def test_vespos_weight_is_1_on_policy_and_bounded_far_away() -> None:
    same = randn(15)
    torch.testing.assert_close(vespo_surrogate(same, same, ADVANTAGES, MASK).loss, -ADVANTAGES[:, None] * same)
    far = vespo_surrogate(same + 40, same, ADVANTAGES, MASK)
    near = vespo_surrogate(same - 40, same, ADVANTAGES, MASK)
    assert far.loss.isfinite().all() and near.loss.isfinite().all()
    assert (far.loss[LENGTHS.index(7)].abs() < 1e-6).all() and (near.loss[0].abs() < 1e-6).all()


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_off_policy_mask_equals_a_loop(threshold: float) -> None:
    logps, sampling = randn(16), randn(17) + 0.2
    sampling[1, 2] = float("nan")
    found = off_policy_mask(ADVANTAGES, logps, sampling, MASK, threshold)
    expected = []
    for i, n in enumerate(LENGTHS):
        gaps = [sampling[i, t].item() - logps[i, t].item() for t in range(n)]
        mean = sum(gap for gap in gaps if not math.isnan(gap)) / max(n, 1)
        expected.append([float(ADVANTAGES[i].item() >= 0 or mean <= threshold)])
    assert found.tolist() == expected
    assert 0.0 in found, "nothing is masked: this proves nothing"


def test_high_entropy_mask_takes_the_share_among_all_tokens() -> None:
    entropy = torch.arange(20.0).view(2, 10)
    mask = torch.ones(2, 10)
    mask[1, 5:] = 0
    everywhere = entropy[mask.bool()]
    found = high_entropy_mask(entropy, mask, 0.2, everywhere)
    assert found.nonzero().tolist() == [[1, 2], [1, 3], [1, 4]]  # 12, 13 and 14 of 0 … 14
    assert (high_entropy_mask(entropy, mask, 1.0, everywhere) == mask).all()
    assert (high_entropy_mask(entropy, mask * 0, 0.2, everywhere[:0]) == 0).all()
