"""From log-probabilities of both sides to the objective of a step, and what a run records of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmreason.losses import preference as losses
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.preference_arguments import PreferenceOptions


@dataclass(frozen=True)
class Scores:
    """P pairs of a micro-batch.

    Attributes:
        logps: (2, P) float32, nats, summed over the tokens that count: of the first side and of the second.
        reference: the same under the reference; None without one.
        tokens: (2, P) how many tokens count.
        labels: (P,) bool, whether the first side is wanted, where the items are KTO's; the second is its baseline's.
        counts: (P,) float, 1 for pairs that count, 0 for those that only fill a batch.
    """

    logps: Tensor
    reference: Tensor | None
    tokens: Tensor
    labels: Tensor | None
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(2, P) per token."""
        return self.logps / self.tokens

    @property
    def ratios(self) -> Tensor:
        """(2, P) log π/π_ref."""
        assert self.reference is not None
        return self.logps - self.reference


@dataclass(frozen=True)
class StepSize:
    """What a step's losses are divided by, over all its micro-batches and processes: pairs, tokens of chosen sides."""

    pairs: Tensor
    tokens: Tensor


def objective(
    options: PreferenceOptions, scores: Scores, size: StepSize, parallel: DataParallel
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of the step's loss, and each loss's (P,) terms whose mean over pairs it is.

    Preference losses are averaged over the step's pairs; likelihoods (`sft`, and in `orpo`) over the tokens of its
    chosen sides, so that the way in which a step is cut into micro-batches changes neither. KTO's baseline is the mean
    over a micro-batch of all processes, as its paper has it.
    """
    total = scores.logps.sum() * 0.0  # a graph, also where nothing counts
    terms: dict[str, Tensor] = {}
    for name, weight in zip(options.losses, options.weights, strict=True):
        if name in ("sft", "orpo"):
            nll = -scores.logps[0] * scores.counts
            total = total + weight * nll.sum() / size.tokens
            terms["nll" if name == "orpo" else name] = nll.detach() * (size.pairs / size.tokens)
        if name == "sft":
            continue
        each = _terms(name, options, scores, parallel)
        total = total + weight * (each * scores.counts).sum() / size.pairs
        terms[name] = each.detach()
    return total, terms


def _terms(name: str, options: PreferenceOptions, scores: Scores, parallel: DataParallel) -> Tensor:
    """(P,) of one loss."""
    beta = options.beta
    if name == "simpo":
        return losses.simpo_loss(*scores.means, beta=beta, gamma=options.simpo_gamma)
    if name == "orpo":
        return beta * losses.odds_ratio_loss(*scores.means)
    ratios = scores.ratios
    if name == "kto":
        assert scores.labels is not None
        return losses.kto_loss(
            ratios[0],
            scores.labels,
            kto_baseline(scores, parallel),
            beta=beta,
            desirable_weight=options.desirable_weight,
            undesirable_weight=options.undesirable_weight,
        )
    if name == "dpo":
        return losses.dpo_loss(*ratios, beta=beta, label_smoothing=options.label_smoothing)
    if name == "robust":
        return losses.robust_dpo_loss(*ratios, beta=beta, label_smoothing=options.label_smoothing)
    if name == "hinge":
        return losses.hinge_loss(*ratios, beta=beta)
    if name == "bco":
        return losses.bco_pair_loss(*ratios, beta=beta)
    return losses.ipo_loss(*(ratios / scores.tokens), beta=beta)


def kto_baseline(scores: Scores, parallel: DataParallel) -> Tensor:
    """z0 of a micro-batch, the same on all processes. Collective."""
    ratios = scores.ratios[1].detach()
    summed, count = parallel.sum(torch.stack([(ratios * scores.counts).sum(), scores.counts.sum()]))
    return losses.kto_baseline(summed / count.clamp(min=1))


def implicit_rewards(options: PreferenceOptions, scores: Scores) -> Tensor:
    """(2, P) what the policy implicitly gives each side: β log π/π_ref, or, without a reference, β log π per token."""
    return options.beta * (scores.means if scores.reference is None else scores.ratios).detach()


class Measured:
    """Means over pairs of several micro-batches and of all processes, under TRL's names."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, options: PreferenceOptions, scores: Scores, terms: Mapping[str, Tensor]) -> None:
        """A micro-batch: its losses' terms (P,) by name, rewards and log-probabilities."""
        counts = scores.counts
        for name, each in terms.items():
            self._mean(f"loss/{name}", each, counts)
        rewards = implicit_rewards(options, scores)
        if scores.labels is not None:
            wanted = scores.labels.to(counts.dtype) * counts
            for name, which in (("chosen", wanted), ("rejected", counts - wanted)):
                self._mean(f"rewards/{name}", rewards[0], which)
                self._mean(f"logps/{name}", scores.logps[0], which)
            self._mean("kl", scores.ratios[1], counts)
            return
        for side, name in enumerate(("chosen", "rejected")):
            self._mean(f"rewards/{name}", rewards[side], counts)
            self._mean(f"logps/{name}", scores.logps[side], counts)
        self._mean("rewards/accuracies", (rewards[0] > rewards[1]).to(counts.dtype), counts)
        self._mean("rewards/margins", rewards[0] - rewards[1], counts)

    def _mean(self, name: str, values: Tensor, counts: Tensor) -> None:
        values = torch.where(counts > 0, values.detach(), 0.0)
        sums = torch.stack([(values * counts).sum(), counts.sum()]).double()
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def collect(self, parallel: DataParallel) -> dict[str, float]:
        """The means; forgets what was added. All processes have added the same names. Collective."""
        names = sorted(self._sums)
        if not names:
            return {}
        every = parallel.sum(torch.stack([self._sums[name] for name in names])).tolist()
        self._sums = {}
        found = {name: total / count for name, (total, count) in zip(names, every, strict=True) if count}
        if "rewards/margins" not in found and {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found
