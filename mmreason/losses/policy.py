"""Policy-gradient losses of the GRPO family, per token, and the ways of averaging them.

Three choices are kept apart, as papers mix them freely: what the importance ratio is a ratio of, the surrogate of one
token (clipping or what stands for it), and the normaliser of the sum over tokens. Shapes: B rows of the micro-batch,
C completion tokens; mask (B, C) is 1 on the tokens that count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
RatioLevel = Literal["token", "sequence", "sequence_token", "sequence_sum"]
RATIO_LEVELS: tuple[RatioLevel, ...] = ("token", "sequence", "sequence_token", "sequence_sum")
ImportanceMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
IMPORTANCE_MODES: tuple[ImportanceMode, ...] = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class Surrogate:
    """Per token, all (B, C): the loss to minimise, the ratio, and (bool) where the clip took the gradient away."""

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def log_importance_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor, level: RatioLevel = "token") -> Tensor:
    """log π/π_old, nats: of each token, or one number for a completion y of |y| tokens.

    - `token`: of the token (PPO, GRPO). (B, C).
    - `sequence`: s = (π(y)/π_old(y))^(1/|y|), the mean over tokens (GSPO, arXiv 2507.18071 eq. 7). (B, 1).
    - `sequence_token`: the value of s, the gradient of the token's own ratio, so that tokens can have advantages of
      their own (GSPO-token, eq. 14). (B, C).
    - `sequence_sum`: π(y)/π_old(y), the sum over tokens: the whole completion is one action (RLOO, arXiv 2402.14740).
      (B, 1).

    Args: logps, old_logps: (B, C) float32, nats. level: one of RATIO_LEVELS.
    """
    log_ratio = logps - old_logps
    if level == "token":
        return log_ratio
    if level not in RATIO_LEVELS:
        raise ValueError(f"unknown importance_sampling_level {level!r}; choose one of {', '.join(RATIO_LEVELS)}")
    summed = (log_ratio * mask).sum(-1, keepdim=True)
    if level == "sequence_sum":
        return summed
    mean = summed / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean if level == "sequence" else mean.detach() + logps - logps.detach()


def _of_tokens(advantages: Tensor) -> Tensor:
    """(B,) → (B, 1); advantages that tokens have of their own stay (B, C)."""
    return advantages.unsqueeze(1) if advantages.dim() == 1 else advantages


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
) -> Surrogate:
    """PPO's clipped objective: -min(r A, clip(r, 1-ε_low, 1+ε_high) A).

    Sources: PPO, arXiv 1707.06347 eq. 7; separate bounds ("clip-higher"), DAPO, arXiv 2503.14476 eq. 10; the upper
    bound δ on the unclipped ratio for negative advantages, INTELLECT-2, arXiv 2505.07291.

    Args:
        log_ratio: (B, C) or (B, 1) float32, nats: log r, from `log_importance_ratio`.
        advantages: (B,) float32, or (B, C) where tokens have their own.
        delta: None, or a bound > 1 + epsilon_high on r in the unclipped term.
    """
    advantages = _of_tokens(advantages)
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - epsilon_low, 1 + epsilon_high)
    bounded = ratio if delta is None else torch.clamp(ratio, max=delta)
    return Surrogate(
        loss=-torch.min(bounded * advantages, clipped * advantages),
        ratio=ratio,
        clipped_low=(ratio < 1 - epsilon_low) & (advantages < 0),
        clipped_high=(ratio > 1 + epsilon_high) & (advantages > 0),
    )


def cispo_surrogate(logps: Tensor, log_ratio: Tensor, advantages: Tensor, *, epsilon_high: float) -> Surrogate:
    """CISPO: -sg(min(r, ε_high)) A log π; the *weight* is clipped, so no token loses its gradient.

    Source: MiniMax-M1, arXiv 2506.13585 eq. 4 and 5, without a lower bound, as there. epsilon_high is the bound on r
    itself (TRL's meaning, ε_max of ScaleRL, arXiv 2510.13786, which recommends 5), not a distance from 1.

    Args: logps: (B, C) float32, nats, with gradient. log_ratio, advantages: see `clipped_surrogate`.
    """
    advantages = _of_tokens(advantages)
    ratio = torch.exp(log_ratio)
    weight = torch.clamp(ratio, max=epsilon_high).detach()
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    return Surrogate(-weight * advantages * logps, ratio, nowhere, (ratio > epsilon_high) & (advantages > 0))


def sapo_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05
) -> Surrogate:
    """SAPO: -(4/τ) σ(τ (r - 1)) A: a gate that closes smoothly, τ by the sign of A (arXiv 2511.20347 sec. 3).

    Args: log_ratio, advantages: see `clipped_surrogate`. Nothing counts as clipped.
    """
    advantages = _of_tokens(advantages)
    ratio = torch.exp(log_ratio)
    temperature = torch.where(advantages > 0, temperature_pos, temperature_neg)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    return Surrogate(-gate * advantages, ratio, nowhere, nowhere)


_LOG_W_MIN, _LOG_W_MAX = math.log(1e-8), 20.0  # bounds of log w, as in the reference implementation of VESPO


def vespo_surrogate(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
    engine_weights: Tensor | None = None,
) -> Surrogate:
    """VESPO: -sg(φ(w)) A log π with φ(w) = w^k exp(λ (1 - w)) and w = π(y)/π_old(y), k and λ by the sign of A.

    The weight of a whole completion fades on both sides of w = 1 instead of being clipped (arXiv 2602.10693).

    Args:
        logps, old_logps: (B, C) float32, nats. advantages: (B,) or (B, C).
        engine_weights: (B, C) or (B, 1) from `importance_weights`; they become part of w, and are not to be used again.
    """
    advantages = _of_tokens(advantages)
    with torch.no_grad():
        log_w = (torch.clamp(logps - old_logps, -20.0, _LOG_W_MAX) * mask).sum(-1, keepdim=True)
        if engine_weights is not None:
            log_w = log_w + torch.clamp(torch.log(engine_weights), _LOG_W_MIN, _LOG_W_MAX).sum(-1, keepdim=True)
        log_w = torch.clamp(log_w, _LOG_W_MIN, _LOG_W_MAX)
        k = torch.where(advantages >= 0, k_pos, k_neg)
        decay = torch.where(advantages >= 0, lambda_pos, lambda_neg).clamp(min=1e-4)
        weight = torch.exp(decay + k * log_w - decay * torch.exp(log_w))
    nowhere = torch.zeros_like(mask, dtype=torch.bool)
    return Surrogate(-weight * advantages * logps, torch.exp(logps - old_logps), nowhere, nowhere)


def off_policy_mask(
    advantages: Tensor, logps: Tensor, sampling_logps: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """(B, 1) or (B, C) of 1 and 0: completions with a negative advantage whose policy has moved away are left out.

    Moved away: the mean over tokens of log π_sampling - log π is above `threshold` nats (DeepSeek-V3.2, arXiv
    2512.02556 eq. 9). sampling_logps may be nan where the engine gave none.
    """
    gap = torch.nan_to_num(sampling_logps - logps.detach(), nan=0.0) * mask
    moved = gap.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return ((_of_tokens(advantages) >= 0) | (moved <= threshold)).to(mask.dtype)


def high_entropy_mask(entropy: Tensor, mask: Tensor, share: float, everywhere: Tensor) -> Tensor:
    """(B, C) of 1 and 0: the tokens among the `share` of highest entropy; others get no policy gradient.

    Source: arXiv 2506.01939 sec. 5: the few tokens at which a solution forks carry what is learned.

    Args: entropy: (B, C) nats. everywhere: (K,) nats, the entropies among which the quantile is taken.
    """
    if not len(everywhere):
        return torch.zeros_like(mask)
    return mask * (entropy >= torch.quantile(everywhere.float(), 1 - share))


def kl_to_reference(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(π ‖ π_ref): π_ref/π - log(π_ref/π) - 1, ≥ 0, nats (arXiv 2402.03300 eq. 4)."""
    log_ratio = ref_logps - logps
    return torch.exp(log_ratio) - log_ratio - 1


def importance_weights(
    logps: Tensor,
    sampling_logps: Tensor,
    mask: Tensor,
    mode: ImportanceMode,
    clip_max: float | None,
    clip_min: float | None = None,
) -> Tensor:
    """Weights π_trainer/π_engine that correct for an engine whose probabilities differ from the trainer's.

    Truncated importance sampling clamps the ratio (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"); masked importance sampling drops what lies outside the bounds (IcePop, arXiv 2510.18855).
    Either per token or for the whole sequence.

    Args:
        logps: (B, C) float32, the trainer's, with the weights that the engine sampled with. No gradient flows back.
        sampling_logps: (B, C) float32, the engine's; nan where the engine gave none (that token counts as ratio 1).
        mask: (B, C), 1 on completion tokens.
        clip_max, clip_min: bounds of the ratio, None: unbounded on that side.

    Returns:
        (B, C) for token modes, (B, 1) for sequence modes.
    """
    if mode not in IMPORTANCE_MODES:
        raise ValueError(f"unknown importance sampling mode {mode!r}; choose one of {', '.join(IMPORTANCE_MODES)}")
    log_ratio = torch.nan_to_num((logps.detach() - sampling_logps) * mask, nan=0.0)
    if mode.startswith("sequence"):
        log_ratio = log_ratio.sum(-1, keepdim=True)
    ratio = torch.exp(log_ratio)
    if clip_min is None and clip_max is None:
        return ratio
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=clip_min, max=clip_max)
    keep = torch.ones_like(ratio, dtype=torch.bool)
    if clip_min is not None:
        keep &= ratio >= clip_min
    if clip_max is not None:
        keep &= ratio <= clip_max
    return ratio * keep


@dataclass(frozen=True)
class BatchSize:
    """What one optimizer step averages over, counted over all its micro-batches and all processes.

    sequences: completions. tokens: completion tokens that count in the loss. micro_batches: of all processes together.
    """

    sequences: int
    tokens: int
    micro_batches: int


def aggregate(
    token_loss: Tensor, mask: Tensor, loss_type: LossType, size: BatchSize, max_completion_length: int
) -> Tensor:
    """This micro-batch's share of the step's loss; the shares of all micro-batches and processes add up to the loss.

    - `grpo`: mean over sequences of the mean over their tokens (arXiv 2402.03300 eq. 3).
    - `dr_grpo`: sum over tokens / (sequences × max_completion_length), free of length bias (arXiv 2503.20783 sec. 3).
    - `dapo`: mean over all tokens of the step (arXiv 2503.14476 eq. 8).
      `cispo` and `vespo` take it too (arXiv 2506.13585 eq. 4), `sapo` that of `grpo`.
    - `luspo`: mean over sequences of the *sum* over their tokens: with a sequence's ratio, a long answer weighs as much
      per token as a short one (arXiv 2602.05261).
    - `bnpo`: mean over the tokens of the *micro-batch*, averaged over micro-batches. It is local by definition, so it
      alone changes with `per_device_train_batch_size`; the others do not.

    Args:
        token_loss, mask: (B, C).
        size: of the whole optimizer step, see BatchSize. Counting it globally is what makes the gradient independent of
            gradient accumulation, micro-batch size and the number of processes.
        max_completion_length: the constant normaliser of Dr. GRPO.
    """
    masked = token_loss * mask
    if loss_type in ("grpo", "sapo"):
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / max(size.sequences, 1)
    if loss_type == "dr_grpo":
        return masked.sum() / (max(size.sequences, 1) * max_completion_length)
    if loss_type in ("dapo", "cispo", "vespo"):
        return masked.sum() / max(size.tokens, 1)
    if loss_type == "luspo":
        return masked.sum() / max(size.sequences, 1)
    if loss_type == "bnpo":
        return masked.sum() / mask.sum().clamp(min=1) / max(size.micro_batches, 1)
    raise ValueError(f"unknown loss_type {loss_type!r}; choose one of {', '.join(LOSS_TYPES)}")
