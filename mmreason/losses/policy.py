"""Policy-gradient losses of the GRPO family, per token, and the ways of averaging them.

Two choices are kept apart because papers mix them freely: the surrogate of one token (ratio, clipping, KL) and the
normaliser of the sum over tokens. Shapes: B rows of the micro-batch, C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo")
ImportanceMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
IMPORTANCE_MODES: tuple[ImportanceMode, ...] = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class Surrogate:
    """Per token, all (B, C): the loss to minimise, the ratio, and (bool) where the clip took the gradient away."""

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_surrogate(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
) -> Surrogate:
    """PPO's clipped objective per token: -min(r A, clip(r, 1-ε_low, 1+ε_high) A), r = π/π_old.

    Sources: PPO, arXiv 1707.06347 eq. 7; separate bounds ("clip-higher"), DAPO, arXiv 2503.14476 eq. 10; the upper
    bound δ on the unclipped ratio for negative advantages, INTELLECT-2, arXiv 2505.07291.

    Args:
        logps, old_logps: (B, C) float32, nats.
        advantages: (B,) float32.
        delta: None, or a bound > 1 + epsilon_high on r in the unclipped term.
    """
    advantages = advantages.unsqueeze(1)
    ratio = torch.exp(logps - old_logps)
    clipped = torch.clamp(ratio, 1 - epsilon_low, 1 + epsilon_high)
    bounded = ratio if delta is None else torch.clamp(ratio, max=delta)
    return Surrogate(
        loss=-torch.min(bounded * advantages, clipped * advantages),
        ratio=ratio,
        clipped_low=(ratio < 1 - epsilon_low) & (advantages < 0),
        clipped_high=(ratio > 1 + epsilon_high) & (advantages > 0),
    )


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
    - `bnpo`: mean over the tokens of the *micro-batch*, averaged over micro-batches. It is local by definition, so it
      alone changes with `per_device_train_batch_size`; the others do not.

    Args:
        token_loss, mask: (B, C).
        size: of the whole optimizer step, see BatchSize. Counting it globally is what makes the gradient independent of
            gradient accumulation, micro-batch size and the number of processes.
        max_completion_length: the constant normaliser of Dr. GRPO.
    """
    masked = token_loss * mask
    if loss_type == "grpo":
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / max(size.sequences, 1)
    if loss_type == "dr_grpo":
        return masked.sum() / (max(size.sequences, 1) * max_completion_length)
    if loss_type == "dapo":
        return masked.sum() / max(size.tokens, 1)
    if loss_type == "bnpo":
        return masked.sum() / mask.sum().clamp(min=1) / max(size.micro_batches, 1)
    raise ValueError(f"unknown loss_type {loss_type!r}; choose one of {', '.join(LOSS_TYPES)}")
