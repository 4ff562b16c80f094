"""From rewards to advantages, over all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmreason.losses.advantages import (
    GroupAdvantages,
    centred_in_group,
    group_advantages,
    leave_one_out,
    normalized,
    penalized_returns,
    without_signal,
)
from mmreason.losses.policy import kl_to_reference
from mmreason.losses.value import masked_moments, whiten
from mmreason.rollout.scoring import pad_right
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, unpad
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.scorer import Scorer, micro_batches
from mmreason.trainers.value_tracker import ValueTracker


def estimate_advantages(
    args: PolicyConfig,
    reward_weights: Sequence[float] | None,
    per_func: Tensor,
    samples: Samples,
    parallel: DataParallel,
    tracker: ValueTracker | None = None,
) -> GroupAdvantages:
    """Fill in `samples.advantages`. Groups may be spread over processes: rewards are compared globally, each process
    keeps its slice.

    Args: per_func: (N, R) the rewards of all processes, nan where a function abstained. samples: of this process, with
        the log-probabilities that stay fixed already there. tracker: SPO's, which takes the rewards in.

    Returns: of all N completions; `rewards` without a KL that was subtracted.
    """
    weights = torch.tensor(reward_weights or [1.0] * per_func.shape[1], device=per_func.device)
    found = group_advantages(
        per_func.float(),
        weights,
        args.num_generations,
        scale_rewards=args.scale_rewards,
        aggregation=args.multi_objective_aggregation,
    )
    if args.num_generations == 1:  # no group to compare with: the batch stands for it
        found = replace(found, zero_std=without_signal(found.rewards, len(found.rewards)).expand(len(found.rewards)))
    if args.advantage_estimator == "reinforce_plus_plus":
        advantages = _per_token(args, found.rewards, samples, parallel)
    elif args.advantage_estimator == "group" and not args.penalizes_reward:
        advantages = found.advantages
    else:
        advantages = _per_completion(args, found.rewards, samples, parallel, tracker)
    samples.advantages = _local(advantages, samples, parallel).tolist()
    return replace(found, advantages=advantages)


def _per_completion(
    args: PolicyConfig, rewards: Tensor, samples: Samples, parallel: DataParallel, tracker: ValueTracker | None
) -> Tensor:
    """(N,) by the estimators that give all tokens of a completion the same."""
    g, plain = args.num_generations, rewards
    if args.penalizes_reward:
        kl, mask = _kl(samples, rewards.device)
        rewards = rewards - args.beta * parallel.gather((kl * mask).sum(-1))
    if args.advantage_estimator == "rloo":
        advantages = leave_one_out(rewards, g)
        return _normalized(advantages, rewards, g) if args.normalize_advantages else advantages.nan_to_num(nan=0.0)
    if args.advantage_estimator == "reinforce_plus_plus_baseline":
        return _normalized(centred_in_group(rewards, g), rewards, g)
    if args.advantage_estimator == "spo":
        if tracker is None:
            raise ValueError("advantage_estimator spo needs a ValueTracker")
        rows = parallel.gather(torch.tensor(samples.rows, device=rewards.device)).tolist()
        before = tracker.observe(rows, plain.tolist())
        return normalized(rewards - torch.tensor(before, device=rewards.device))
    one = torch.ones(1, device=rewards.device)
    return group_advantages(rewards.unsqueeze(1), one, g, scale_rewards=args.scale_rewards).advantages


def _normalized(advantages: Tensor, rewards: Tensor, g: int) -> Tensor:
    """(N,) over the batch, and still exactly 0 in groups of equal rewards, from which a rounded mean is subtracted."""
    return normalized(advantages).masked_fill(without_signal(rewards, g).repeat_interleave(g), 0.0)


def _per_token(args: PolicyConfig, rewards: Tensor, samples: Samples, parallel: DataParallel) -> Tensor:
    """REINFORCE++: fill in `samples.token_advantages`; (N,) their means over each completion."""
    mine = _local(rewards, samples, parallel)
    kl, mask = _kl(samples, rewards.device)
    mask = mask * ~torch.isnan(mine).unsqueeze(1)
    returns = penalized_returns(mine.nan_to_num(nan=0.0), kl, mask, args.beta if args.penalizes_reward else 0.0)
    advantages = whiten(returns, mask, masked_moments(returns, mask, parallel.sum)).float()
    samples.token_advantages = unpad(advantages, samples.completion_ids)
    return parallel.gather(advantages.sum(-1) / mask.sum(-1).clamp(min=1))


def _local(values: Tensor, samples: Samples, parallel: DataParallel) -> Tensor:
    """Of (N,) of all processes, this one's."""
    start = parallel.rank * len(samples)
    return values[start : start + len(samples)]


def _kl(samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, C) log π_old - log π_ref of each token, nats (k1; 0 without a reference), and the mask of sampled tokens."""
    mask = samples.sampled_mask(device)
    if not samples.ref_logps:
        return torch.zeros_like(mask), mask
    old = pad_right(samples.old_logps or samples.sampling_logps, 0.0, torch.float32, device)
    return (old - pad_right(samples.ref_logps, 0.0, torch.float32, device)) * mask, mask


@torch.no_grad()
def policy_drift(scorer: Scorer, policy: Any, samples: Samples, parallel: DataParallel, size: int) -> float:
    """KL(π_before ‖ π) of a rollout that was used up, nats per token: from its first `size` completions (collective).

    The k3 estimate, by tokens that π_before sampled and the log-probabilities it gave them.
    """
    training = policy.training
    policy.eval()
    batch = next(micro_batches(samples, size))
    logps, _ = scorer.logps(policy, batch, with_entropy=False)
    policy.train(training)
    before = pad_right(batch.old_logps or batch.sampling_logps, math.nan, torch.float32, logps.device)
    mask = batch.sampled_mask(logps.device) * ~torch.isnan(before)
    kl = kl_to_reference(before.nan_to_num(nan=0.0), logps.float()) * mask
    total, count = parallel.sum(torch.stack([kl.sum(), mask.sum()])).tolist()
    return float(total / count) if count else 0.0
