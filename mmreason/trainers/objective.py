"""The loss of one micro-batch: surrogate, engine correction, KL, and their average over the whole optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmreason.losses.policy import (
    BatchSize,
    Surrogate,
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    high_entropy_mask,
    importance_weights,
    kl_to_reference,
    log_importance_ratio,
    off_policy_mask,
    sapo_surrogate,
    vespo_surrogate,
)
from mmreason.rollout.scoring import pad_right
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, StepMetrics


def policy_loss(
    args: PolicyConfig,
    batch: Samples,
    logps: Tensor,
    entropy: Tensor | None,
    size: BatchSize,
    measured: StepMetrics,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """This micro-batch's share of the objective of one optimizer step (a scalar with gradient).

    Args:
        batch: B completions, with what was scored when they were sampled.
        logps: (B, C) under the current weights, nats. entropy: (B, C) nats, or None.
        size: of the whole step. measured: gets the means that metrics.jsonl tells.
        gather: (K,) → those of all processes, which may be of other lengths (for `top_entropy_quantile`).
    """
    device = logps.device
    mask = batch.loss_mask(device)
    old = pad_right(batch.old_logps, 0.0, torch.float32, device) if batch.old_logps else logps.detach()
    sampled = pad_right(batch.sampling_logps, 0.0, torch.float32, device)
    advantages = batch.advantage_tensor(device)
    correction = _engine_weights(args, old, sampled, mask)
    surrogate = _surrogate(args, logps, old, advantages, mask, correction)
    token_loss = surrogate.loss
    if args.off_policy_mask_threshold is not None:
        seen = sampled if args.use_vllm else old
        token_loss = token_loss * off_policy_mask(advantages, logps, seen, mask, args.off_policy_mask_threshold)
    if args.top_entropy_quantile < 1 and entropy is not None:
        local = entropy.detach()[mask.bool()]
        everywhere = local if gather is None else gather(local)
        token_loss = token_loss * high_entropy_mask(entropy.detach(), mask, args.top_entropy_quantile, everywhere)
    if correction is not None and args.loss_type != "vespo":  # which has it in its weights
        token_loss = token_loss * correction
    if args.beta > 0:
        kl = kl_to_reference(logps, pad_right(batch.ref_logps, 0.0, torch.float32, device))
        if not args.penalizes_reward:
            token_loss = token_loss + args.beta * (kl * surrogate.ratio if args.use_bias_correction_kl else kl)
        measured.mean("kl", (kl * mask).sum(), mask.sum())
    measured.mean("clip_ratio/low_mean", (surrogate.clipped_low * mask).sum(), mask.sum())
    measured.mean("clip_ratio/high_mean", (surrogate.clipped_high * mask).sum(), mask.sum())
    if entropy is not None:
        measured.mean("entropy", (entropy * mask).sum(), mask.sum())
    _measure_engine(old, sampled, mask, measured)
    return aggregate(token_loss, mask, args.loss_type, size, args.max_completion_length)


def _surrogate(
    args: PolicyConfig, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, correction: Tensor | None
) -> Surrogate:
    """Per token, or where the ratio is one of whole completions and nothing else tells tokens apart, per completion."""
    if args.loss_type == "vespo":
        return vespo_surrogate(
            logps,
            old,
            advantages,
            mask,
            k_pos=args.vespo_k_pos,
            lambda_pos=args.vespo_lambda_pos,
            k_neg=args.vespo_k_neg,
            lambda_neg=args.vespo_lambda_neg,
            engine_weights=correction,
        )
    log_ratio = log_importance_ratio(logps, old, mask, args.importance_sampling_level)
    if args.loss_type == "cispo":
        return cispo_surrogate(logps, log_ratio, advantages, epsilon_high=args.upper_clip)
    if args.loss_type == "sapo":
        return sapo_surrogate(
            log_ratio,
            advantages,
            temperature_pos=args.sapo_temperature_pos,
            temperature_neg=args.sapo_temperature_neg,
        )
    return clipped_surrogate(
        log_ratio, advantages, epsilon_low=args.epsilon, epsilon_high=args.upper_clip, delta=args.delta
    )


def _engine_weights(args: PolicyConfig, old: Tensor, sampled: Tensor, mask: Tensor) -> Tensor | None:
    """What corrects for an engine whose probabilities differ from the trainer's; None where nothing is to correct."""
    if not (args.use_vllm and args.vllm_importance_sampling_correction):
        return None
    return importance_weights(
        old,
        sampled,
        mask,
        args.vllm_importance_sampling_mode,
        args.vllm_importance_sampling_clip_max,
        args.vllm_importance_sampling_clip_min,
    )


def _measure_engine(old: Tensor, sampled: Tensor, mask: Tensor, measured: StepMetrics) -> None:
    """How far the engine's log-probabilities are from the trainer's: 0, and ratio 1, for the same policy."""
    gap = torch.nan_to_num((old - sampled) * mask, nan=0.0)
    measured.mean("sampling/sampling_logp_difference/mean", gap.abs().sum(), mask.sum())
    measured.maximum("sampling/sampling_logp_difference/max", gap.abs().max())
    ratio = torch.exp(gap.sum(-1))
    measured.mean("sampling/importance_sampling_ratio/mean", ratio.sum(), mask.new_tensor(float(len(ratio))))
    measured.maximum("sampling/importance_sampling_ratio/max", ratio.max())
