"""Losses that learn from preferences, one number per pair or completion.

They take log-probabilities of whole completions, or what these gained over a reference, the log-ratios
log π(y|x)/π_ref(y|x). Where a method goes by the mean per token, its arguments say so. Shapes: B pairs (KTO:
completions). Averaging over a batch is left to the caller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """-log σ(β (log-ratio chosen - log-ratio rejected)): DPO, arXiv 2305.18290 eq. 7.

    With `label_smoothing` ε, the chance that a label is wrong, conservative DPO: (1 - ε) of that and ε of the loss of
    the exchanged pair (Mitchell 2023, "A note on DPO with noisy preferences").

    Args: chosen_logratios, rejected_logratios: (B,) float, nats, summed over tokens. label_smoothing: in [0, 0.5).
    Returns: (B,).
    """
    margins = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def robust_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Robust DPO, arXiv 2403.00409: unbiased where a share `label_smoothing` ε < 0.5 of the labels is wrong.

    Args, Returns: as `dpo_loss`. It may be negative.
    """
    margins = beta * (chosen_logratios - rejected_logratios)
    clean, flipped = -logsigmoid(margins), -logsigmoid(-margins)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - β (log-ratio chosen - log-ratio rejected)): SLiC's loss on DPO's margin (arXiv 2309.06657).

    Args, Returns: as `dpo_loss`.
    """
    return torch.relu(1 - beta * (chosen_logratios - rejected_logratios))


def ipo_loss(chosen_mean_logratios: Tensor, rejected_mean_logratios: Tensor, *, beta: float) -> Tensor:
    """(h - 1/(2τ))², h the difference of the log-ratios and τ = `beta`: IPO, arXiv 2310.12036 eq. 17.

    Args: (B,) log-ratios divided by the number of tokens, as the authors do it, so that τ means the same at any length.
    Returns: (B,).
    """
    return (chosen_mean_logratios - rejected_mean_logratios - 1 / (2 * beta)) ** 2


def bco_pair_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log σ(β chosen) - log σ(-β rejected): BCO, arXiv 2404.04656, with reward shift 0.

    The quality part of MPO (arXiv 2411.10442). Args, Returns: as `dpo_loss`.
    """
    return -logsigmoid(beta * chosen_logratios) - logsigmoid(-beta * rejected_logratios)


def simpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log σ(β (mean log-prob chosen - mean log-prob rejected) - γ): SimPO, arXiv 2405.14734 eq. 6. No reference.

    Args: (B,) float, nats per token. gamma: target reward margin γ.
    Returns: (B,).
    """
    return -logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) - gamma)


def odds_ratio_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """-log σ(log odds(chosen)/odds(rejected)), odds(y) = P(y)/(1 - P(y)): L_OR of ORPO, arXiv 2403.07691 eq. 7.

    ORPO (eq. 6) adds λ times this to the negative log-likelihood of the chosen answer. No reference.

    Args: (B,) float, below 0: log P(y) as the mean over the answer's tokens, nats.
    Returns: (B,).
    """
    log_odds = chosen_mean_logps - rejected_mean_logps - (log1mexp(chosen_mean_logps) - log1mexp(rejected_mean_logps))
    return -logsigmoid(log_odds)


def kto_loss(
    logratios: Tensor,
    labels: Tensor,
    kl: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_y - v(x, y): KTO, arXiv 2402.01306 eq. 8, of completions that are wanted or not, without pairs.

    v is λ_D σ(β (log-ratio - z0)) for wanted ones and λ_U σ(β (z0 - log-ratio)) for others.

    Args:
        logratios: (B,) float, nats, summed over tokens. labels: (B,) bool, is it wanted?
        kl: z0, see `kto_baseline`; a constant: no gradient may flow through it.
        desirable_weight, undesirable_weight: λ_D, λ_U.
    Returns: (B,).
    """
    one = logratios.new_ones(())
    signs = torch.where(labels, one, -one)
    weights = torch.where(labels, desirable_weight * one, undesirable_weight * one)
    return weights * (1 - torch.sigmoid(beta * signs * (logratios - kl)))


def kto_baseline(mean_logratio: Tensor) -> Tensor:
    """z0 = max(0, mean of log π(y'|x)/π_ref(y'|x)) over completions y' of other prompts, arXiv 2402.01306 section 4.1.

    A biased estimate of KL(π ‖ π_ref) that costs no sampling. Args: the mean, a scalar. Returns: a scalar, detached.
    """
    return mean_logratio.detach().clamp(min=0)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without cancellation (Mächler 2012, "Accurately computing log(1 - exp(-|a|))").

    At x = 0, a completion of probability 1, the smallest normal number stands for 1 - e^x, so that nothing is infinite.
    """
    tiny = torch.finfo(x.dtype).tiny
    small = x > -math.log(2)
    # The branch that isn't taken must not meet its pole either: its gradient would be nan times 0.
    near = torch.log((-torch.expm1(torch.where(small, x, -torch.ones_like(x)))).clamp(min=tiny))
    far = torch.log1p(-torch.exp(torch.where(small, -torch.ones_like(x), x)))
    return torch.where(small, near, far)
