"""From rewards to advantages: against the others of a group, or against the whole batch.

Shapes: N completions of all processes, G to a prompt and next to each other, R reward functions; B completions of C
tokens of one process. A reward is nan where no function gave one: such a completion gets advantage 0 and moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScaleRewards = Literal["group", "batch", "none"]
RewardAggregation = Literal["sum_then_normalize", "normalize_then_sum"]

# Added to the standard deviation, as in the reference implementations of arXiv 2402.03300.
_EPS = 1e-4


@dataclass(frozen=True)
class GroupAdvantages:
    """advantages (N,), rewards (N,) weighted sums with nan where no reward applied, zero_std (N/G,) bool."""

    advantages: Tensor
    rewards: Tensor
    zero_std: Tensor


def _nanstd(x: Tensor, dim: int) -> Tensor:
    """Sample standard deviation (n-1) over the entries that are not nan; 0 where fewer than two are left."""
    valid = ~torch.isnan(x)
    count = valid.sum(dim, keepdim=True)
    mean = torch.nansum(x, dim=dim, keepdim=True) / count.clamp(min=1)
    squares = torch.where(valid, x - mean, torch.zeros_like(x)).pow(2).sum(dim, keepdim=True)
    return torch.where(count > 1, squares / (count - 1).clamp(min=1), torch.zeros_like(squares)).sqrt()


def _equal(x: Tensor, dim: int) -> Tensor:
    """True where the entries that are not nan are all the same, or fewer than two; keeps `dim`.

    By comparison: of equal float32 numbers such as eight times 0.3 the mean is rounded, and their deviation above 0.
    """
    missing = torch.isnan(x)
    lowest = x.masked_fill(missing, torch.inf).amin(dim, keepdim=True)
    return lowest >= x.masked_fill(missing, -torch.inf).amax(dim, keepdim=True)


def _grouped(rewards: Tensor, num_generations: int) -> Tensor:
    """(N,) → (N/G, G)."""
    if len(rewards) % num_generations:
        raise ValueError(f"{len(rewards)} rewards can't be split into groups of num_generations={num_generations}")
    return rewards.view(-1, num_generations)


def total_rewards(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """(N, R) and (R,) → (N,) weighted sums over the functions that gave a reward; nan where none did."""
    unscored = torch.isnan(rewards_per_func).all(dim=1)
    return torch.nansum(rewards_per_func * weights, dim=1).masked_fill(unscored, torch.nan)


def without_signal(rewards: Tensor, num_generations: int) -> Tensor:
    """(N,) → (N/G,) bool: groups whose rewards are all equal, or of which fewer than two have one."""
    return _equal(_grouped(rewards, num_generations), dim=1).squeeze(1)


def group_advantages(
    rewards_per_func: Tensor,
    weights: Tensor,
    num_generations: int,
    *,
    scale_rewards: ScaleRewards = "group",
    aggregation: RewardAggregation = "sum_then_normalize",
) -> GroupAdvantages:
    """Group-relative advantages: A_i = (r_i - mean(r)) / (std(r) + 1e-4) over the G completions of one prompt.

    Sources: GRPO, arXiv 2402.03300 eq. 3 discussion (`scale_rewards="group"`); Dr. GRPO, arXiv 2503.20783, drops the
    division (`"none"`); `"batch"` divides by the standard deviation of the whole batch (arXiv 2508.08221).
    `normalize_then_sum` normalises each reward in its group before the weighted sum and the result over the batch
    (GDPO, arXiv 2601.05242). Groups of equal rewards get exactly 0; with `normalize_then_sum` those in which each
    function gave all the same.

    Args:
        rewards_per_func: (N, R) float32, nan where a reward function abstained; the G completions of a prompt adjacent.
        weights: (R,) float32.
        num_generations: G, a divisor of N.

    Returns:
        Advantages with 0 for a completion that no function scored: it neither moves the policy nor the baseline.

    Raises:
        ValueError: N is not a multiple of G, or an option is unknown.
    """
    n, num_funcs = rewards_per_func.shape
    rewards = total_rewards(rewards_per_func, weights)
    unscored = torch.isnan(rewards)
    groups = _grouped(rewards, num_generations)
    group_std = _nanstd(groups, dim=1)
    zero_std = without_signal(rewards, num_generations)
    settled = zero_std  # (N/G,): there is nothing to learn

    if aggregation == "sum_then_normalize":
        centred = (groups - torch.nanmean(groups, dim=1, keepdim=True)).view(-1)
        if scale_rewards == "group":
            advantages = centred / (group_std.expand_as(groups).reshape(-1) + _EPS)
        elif scale_rewards == "batch":
            advantages = centred / (_nanstd(rewards, dim=0) + _EPS)
        elif scale_rewards == "none":
            advantages = centred
        else:
            raise ValueError(f"scale_rewards must be 'group', 'batch' or 'none', not {scale_rewards!r}")
    elif aggregation == "normalize_then_sum":
        per_group = rewards_per_func.view(-1, num_generations, num_funcs)
        mean = torch.nanmean(per_group, dim=1, keepdim=True)
        centred = _zero_where_equal(per_group - mean, per_group)
        normalised = (centred / (_nanstd(per_group, dim=1) + _EPS)).view(n, num_funcs)
        settled = _equal(per_group, dim=1).all(dim=2).squeeze(1)
        summed = torch.nansum(normalised * weights, dim=1).masked_fill(unscored, torch.nan)
        advantages = (summed - torch.nanmean(summed)) / (_nanstd(summed, dim=0) + _EPS)
    else:
        raise ValueError(
            f"multi_objective_aggregation must be 'sum_then_normalize' or 'normalize_then_sum', not {aggregation!r}"
        )
    advantages = torch.nan_to_num(advantages, nan=0.0)
    return GroupAdvantages(advantages.masked_fill(settled.repeat_interleave(num_generations), 0.0), rewards, zero_std)


def leave_one_out(rewards: Tensor, num_generations: int) -> Tensor:
    """RLOO: A_i = r_i - mean of the *other* rewards of its group (arXiv 2402.14740 sec. 3.3; Kool et al. 2019).

    The baseline doesn't depend on the completion it is subtracted from, so the estimate stays unbiased.

    Args: rewards: (N,), nan where there is none.

    Returns: (N,), nan there and where a group has no other reward, exactly 0 where its rewards are equal.
    """
    groups = _grouped(rewards, num_generations)
    others = (~torch.isnan(groups)).sum(1, keepdim=True) - 1
    baseline = (torch.nansum(groups, dim=1, keepdim=True) - groups) / others
    centred = torch.where(others > 0, groups - baseline, torch.nan)
    return _zero_where_equal(centred, groups).view(-1)


def centred_in_group(rewards: Tensor, num_generations: int) -> Tensor:
    """(N,) rewards minus the mean of their group; nan where there is none, exactly 0 where they are equal."""
    groups = _grouped(rewards, num_generations)
    return _zero_where_equal(groups - torch.nanmean(groups, dim=1, keepdim=True), groups).view(-1)


def _zero_where_equal(centred: Tensor, groups: Tensor) -> Tensor:
    """(N/G, G, …) differences without what rounding left of them in groups of equal rewards; nan stays."""
    return torch.where(_equal(groups, dim=1) & ~torch.isnan(centred), torch.zeros_like(centred), centred)


def normalized(values: Tensor) -> Tensor:
    """(N,) → (x - mean) / (std + 1e-4) over the whole batch; nan is left out of both and becomes 0."""
    return ((values - torch.nanmean(values)) / (_nanstd(values, dim=0) + _EPS)).nan_to_num(nan=0.0)


def penalized_returns(rewards: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards at the end of completions and a KL penalty at each token, as undiscounted returns from each token on.

    A_t = r - β Σ_{i ≥ t} kl_i (REINFORCE++, arXiv 2501.03262 sec. 3, with γ = 1).

    Args:
        rewards: (B,). kl: (B, C) nats, log π_old - log π_ref of each token. mask: (B, C), 1 on the policy's tokens.

    Returns:
        (B, C), 0 where the mask is.
    """
    penalties = beta * kl * mask
    ahead = penalties.flip(-1).cumsum(-1).flip(-1)
    return (rewards.unsqueeze(1) - ahead) * mask
