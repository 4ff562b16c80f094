"""Losses of reward models: rankings (pairs, Plackett-Luce), right and wrong answers, right and wrong steps.

A ranking is a row of rewards and a row of ranks: (N, K), 0 for the best, larger ranks for worse ones, `ABSENT` where a
row has fewer than K completions. Equal ranks are ties: their completions are not compared with each other.

Every function gives one loss per row, (N,), in nats; what it is averaged over is the caller's matter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1
"""Rank of a place without a completion."""


def compared(ranks: Tensor) -> Tensor:
    """(N, K, K) bool: whether completion i is ranked above completion j."""
    there = ranks != ABSENT
    return (ranks[:, :, None] < ranks[:, None, :]) & there[:, :, None] & there[:, None, :]


def pair_loss(rewards: Tensor, ranks: Tensor, margin: Tensor | None = None) -> Tensor:
    """Bradley-Terry over all compared pairs of a ranking: -1/P Σ log σ(r_i - r_j - m), P their number.

    Of K completions without ties these are K(K-1)/2 pairs (InstructGPT, arXiv 2203.02155, eq. 1); a pair is the case
    K = 2. The margin is that of Llama 2 (arXiv 2307.09288, eq. 2).

    Args:
        rewards: (N, K) float, higher is better. ranks: (N, K) int64.
        margin: (N,) by how much the better one shall be ahead; None: 0.

    Returns: (N,) float; 0 for a row in which nothing is compared.
    """
    better = compared(ranks)
    ahead = rewards[:, :, None] - rewards[:, None, :]
    if margin is not None:
        ahead = ahead - margin[:, None, None]
    lost = torch.where(better, -F.logsigmoid(ahead), 0.0).sum((1, 2))
    return lost / better.sum((1, 2)).clamp(min=1)


def plackett_luce_loss(rewards: Tensor, ranks: Tensor, margin: Tensor | None = None) -> Tensor:
    """The negative log-likelihood of whole rankings: Σ_i [log Σ_{j = i or below i} exp r_j - r_i].

    Plackett-Luce: the best is chosen among all, the second among the rest, and so on (Luce 1959; Plackett 1975, eq. 1;
    ListMLE, Xia et al. 2008). A completion that ties with others is chosen among itself and those ranked below it. For
    two completions this is `pair_loss`.

    Args: see `pair_loss`; the margin is added to the rewards of those below.
    Returns: (N,) float; 0 for a row in which nothing is compared.
    """
    below = compared(ranks)
    others = rewards[:, None, :] if margin is None else rewards[:, None, :] + margin[:, None, None]
    itself = torch.eye(rewards.shape[1], dtype=torch.bool, device=rewards.device)
    contest = torch.where(itself, rewards[:, None, :], others).masked_fill(~(below | itself), float("-inf"))
    lost = torch.logsumexp(contest, dim=2) - rewards
    return torch.where(below.any(2), lost, 0.0).sum(1)


def centring_penalty(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Mean over compared pairs of (r_i + r_j)², which keeps rewards around 0 (arXiv 2312.09244, eq. 2; TRL).

    Args: see `pair_loss`. Returns: (N,) float.
    """
    better = compared(ranks)
    squared = (rewards[:, :, None] + rewards[:, None, :]) ** 2
    return torch.where(better, squared, 0.0).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def outcome_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of whole answers: -y log σ(r) - (1-y) log(1-σ(r)) (verifiers, arXiv 2110.14168, section 4).

    Args: logits: (N,) float. labels: (N,) float, 1 for right, 0 for wrong. Returns: (N,) float.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


def process_loss(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    """Binary cross-entropy summed over the steps of an answer (arXiv 2305.20050; Math-Shepherd, 2312.08935, eq. 3).

    Args: logits: (N, S) float, at the end of each step. labels: (N, S) float in [0, 1]; shares are soft labels.
        there: (N, S) bool, False where a row has fewer than S steps.
    Returns: (N,) float: sums, so that a mean over steps is their sum over the number of steps.
    """
    lost = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return torch.where(there, lost, 0.0).sum(1)
