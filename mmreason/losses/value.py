"""What PPO has beside the clipped policy loss: rewards per token, advantages from values, and the loss of the values.

Shapes: B rows, C completion tokens; `mask` (B, C) is 1 on the tokens that the policy sampled. These are the time steps:
what an environment wrote between them is no action, and is stepped over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k3"]
_EPS = 1e-8  # added to variances, as TRL's PPO did


def kl_per_token(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Estimates of KL(π ‖ π_ref) from the tokens that π sampled, nats (Schulman 2020, "Approximating KL divergence").

    k1 = log π - log π_ref is unbiased and may be negative, k3 = π_ref/π - 1 - log(π_ref/π) is never negative.

    Args: logps, ref_logps: (B, C) float32, nats.
    """
    if estimator == "k1":
        return logps - ref_logps
    if estimator == "k3":
        log_ratio = ref_logps - logps
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}; choose k1 or k3")


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """r_t = -penalty_t, and the completion's score beside it on the last sampled token (arXiv 1909.08593 eq. 2).

    Args: scores: (B,). penalties: (B, C), β · KL per token. A row without a sampled token gets no reward.
    Returns: (B, C), 0 outside the mask.
    """
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * columns).argmax(-1, keepdim=True) if mask.shape[1] else columns.new_zeros(len(mask), 0)
    return (torch.zeros_like(penalties).scatter(1, last, scores.unsqueeze(1)) - penalties) * mask


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns over the sampled tokens of each row.

    A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) - V(s_t) (arXiv 1506.02438 eq. 16). The return is
    A_t + V(s_t).

    Args:
        rewards, values: (B, C); values[:, t] is V of the text before token t. Both are read inside the mask only.
        bootstrap: (B,) V of the state behind the last sampled token, for rows that were cut off there; 0 where the
            completion had ended. None: 0 for all.

    Returns: advantages and returns, (B, C), 0 outside the mask.
    """
    following = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    running = torch.zeros_like(following)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        acts = mask[:, t].bool()
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(acts, delta + gamma * lam * running, running)
        following = torch.where(acts, values[:, t], following)
        advantages[:, t] = torch.where(acts, running, 0.0)
    return advantages, (advantages + values) * mask


@dataclass(frozen=True)
class ValueLoss:
    """Per token, (B, C): the loss to minimise, and (bool) where the clipped term is the larger one."""

    loss: Tensor
    clipped: Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None = 0.2
) -> ValueLoss:
    """½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²), as OpenAI's PPO2 has it (arXiv 2005.12729 sec. 3).

    Args: values: (B, C) with gradient. old_values, returns: (B, C). cliprange_value: ε; None: no clipping.
    """
    plain = (values - returns).square()
    if cliprange_value is None:
        return ValueLoss(0.5 * plain, torch.zeros_like(plain, dtype=torch.bool))
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    bounded = (near - returns).square()
    return ValueLoss(0.5 * torch.max(plain, bounded), bounded > plain)


@dataclass(frozen=True)
class Moments:
    """Of the entries inside a mask, over all processes: their number, mean and sample variance (n - 1)."""

    count: float
    mean: float
    variance: float


def masked_moments(x: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Moments:
    """Args: total: adds the tensors of all processes up; every process has to call this. 0 and 0 where nothing counts.

    The sum of squares is that of the differences from the mean, so a large mean costs no digits.
    """
    x, mask = x.double(), mask.double()
    count, plain = total(torch.stack([mask.sum(), (x * mask).sum()])).tolist()
    mean = plain / count if count else 0.0
    (squares,) = total(((x - mean).square() * mask).sum().view(1)).tolist()
    return Moments(count, mean, squares / (count - 1) if count > 1 else 0.0)


def whiten(x: Tensor, mask: Tensor, moments: Moments, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) / std, or x / std where the mean is to stay where it is divided by that too; 0 outside the mask.

    shift_mean=False is what TRL's PPO did with rewards: (x - mean) / std + mean.
    """
    out = (x - moments.mean) / (moments.variance + _EPS) ** 0.5
    return (out if shift_mean else out + moments.mean) * mask


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums
) -> float:
    """1 - Var(R - V) / Var(R): 1 for perfect values, 0 for a constant; nan where all returns are the same."""
    of_returns = masked_moments(returns, mask, total).variance
    of_errors = masked_moments(returns - values, mask, total).variance
    return 1 - of_errors / of_returns if of_returns > 0 else float("nan")
