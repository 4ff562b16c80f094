"""What a student loses against its teachers at the places of a micro-batch, and how far apart they are on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmreason.losses.distill import NO_TOKEN, Divergence, in_chunks, logits_divergence, top_k_divergence, top_k_logps
from mmreason.losses.lm import token_logps
from mmreason.trainers.distill_heads import Head
from mmreason.trainers.distill_teacher import TeacherView
from mmreason.trainers.distributed import DataParallel


@dataclass(frozen=True)
class PlaceValues:
    """Of the S places of a micro-batch, (S,) float32 each; nll and divergence are differentiable.

    nll: of the row's own token. divergence: Σ over teachers of weight × divergence. agree: weight of the teachers whose
    likeliest token is the student's. confidence, correct: of the student's likeliest token; teacher_confidence,
    teacher_correct: of the teachers', weighted.
    """

    nll: Tensor
    divergence: Tensor
    agree: Tensor
    confidence: Tensor
    correct: Tensor
    teacher_confidence: Tensor
    teacher_correct: Tensor


@dataclass(frozen=True)
class Comparison:
    """How distributions are compared. vocab: tokens that all have logits for. top_k: None for all of them."""

    kind: Divergence
    beta: float
    temperature: float
    vocab: int
    top_k: int | None = None
    chunk: int | None = None

    def values(
        self, states: Tensor, head: Head | None, tokens: Tensor, views: Sequence[TeacherView], weights: Tensor
    ) -> PlaceValues:
        """Args:
        states: (S, H) what the student's head makes logits of, or (S, V) the logits where head is None.
        tokens: (S,) of the rows. weights: (S, J) of the J teachers at each place.
        """
        parts = [tensor for view in views for tensor in view.tensors()]
        counts = [len(view.tensors()) for view in views]
        heads = [view.head for view in views]

        def compute(states: Tensor, tokens: Tensor, weights: Tensor, *given: Tensor) -> Tensor:
            logits = (states if head is None else head(states))[:, : self.vocab]
            rest = list(given)
            teachers = [[rest.pop(0) for _ in range(count)] for count in counts]
            return self._columns(logits, tokens, weights, teachers, heads)

        rows = (states, tokens, weights, *parts)
        made = compute(*rows) if self.chunk is None else in_chunks(compute, *rows, size=self.chunk)
        return PlaceValues(*made.unbind(1))

    def _columns(
        self,
        logits: Tensor,
        tokens: Tensor,
        weights: Tensor,
        teachers: Sequence[Sequence[Tensor]],
        heads: Sequence[Head | None],
    ) -> Tensor:
        """(chunk, 7): the fields of PlaceValues."""
        logps, _ = token_logps(logits, tokens)
        with torch.no_grad():
            best = logits.argmax(-1)
            confidence = torch.softmax(logits.float(), -1).amax(-1)
        divergence = torch.zeros_like(logps)
        agree, sure, right = (torch.zeros_like(logps) for _ in range(3))
        for weight, given, head in zip(weights.unbind(1), teachers, heads, strict=True):
            far, likeliest, certain = self._against(logits, given, head)
            # a teacher without a say here may say anything, NaN too
            divergence = divergence + torch.where(weight > 0, weight * far, 0.0)
            agree += weight * (likeliest == best)
            sure += torch.where(weight > 0, weight * certain, 0.0)
            right += weight * (likeliest == tokens)
        return torch.stack([-logps, divergence, agree, confidence, (best == tokens).float(), sure, right], dim=1)

    def _against(self, logits: Tensor, given: Sequence[Tensor], head: Head | None) -> tuple[Tensor, Tensor, Tensor]:
        """(divergence, the teacher's likeliest token, its probability at the run's temperature), (chunk,) each."""
        options = {"temperature": self.temperature, "beta": self.beta}
        if len(given) == 2:
            ids, logps = given[0].long(), given[1]
            ids = torch.where(ids < logits.shape[-1], ids, NO_TOKEN)
            far = top_k_divergence(logits, ids, logps, self.kind, **options)
            return far, ids[:, 0], logps[:, 0].exp()
        with torch.no_grad():
            theirs = (given[0] if head is None else head(given[0]))[:, : logits.shape[-1]].to(logits.device)
            likeliest, certain = theirs.argmax(-1), torch.softmax(theirs.float() / self.temperature, -1).amax(-1)
        if self.top_k is None:
            return logits_divergence(logits, theirs, self.kind, **options), likeliest, certain
        ids, logps = top_k_logps(theirs, self.top_k, temperature=self.temperature)
        return top_k_divergence(logits, ids, logps, self.kind, **options), likeliest, certain


@torch.no_grad()
def label_logps(view: TeacherView, tokens: Tensor, vocab: int | None, chunk: int | None) -> Tensor:
    """(S,) what a teacher gives the rows' own tokens, nats at temperature 1. vocab: its size; None: all of it."""
    if view.label_logps is not None:
        return view.label_logps
    assert view.states is not None
    head = view.head

    def compute(states: Tensor, tokens: Tensor) -> Tensor:
        return token_logps((states if head is None else head(states))[:, :vocab], tokens)[0]

    return in_chunks(compute, view.states, tokens, size=chunk or len(tokens) or 1)


def confidence_weights(weights: Tensor, nll: Tensor) -> Tensor:
    """The better a teacher predicts a row's tokens, the more it counts: w_j · exp(-nll_j) / Σ, as shares of Σ w_j.

    For two teachers these are the weights of CA-MKD (arXiv 2201.00007, eq. 3-4).

    Args: weights: (R, J) as given. nll: (R, J) mean of each teacher over each row's tokens, nats.
    Returns: (R, J) with the same sum over teachers.
    """
    total = weights.sum(1, keepdim=True)
    scores = torch.where(weights > 0, weights.clamp(min=1e-30).log() - nll, float("-inf"))
    shares = torch.where(total > 0, torch.softmax(torch.where(total > 0, scores, 0.0), dim=1), 0.0)
    return shares * total


class TransferMonitor:
    """How near the student is to its teachers since this was last asked: by source, and how sure both are.

    Args: compares_tokens: both have the same tokens; else only divergences are told.
    """

    BINS = 10

    def __init__(self, sources: Sequence[str], *, compares_tokens: bool = True) -> None:
        self.sources, self.compares_tokens = list(sources), compares_tokens
        # per source: weight, divergence, agreement; and per bin of confidence: count, confidence, correct (both models)
        self._sums = torch.zeros(len(self.sources), 3, dtype=torch.float64)
        self._bins = torch.zeros(2, self.BINS, 3, dtype=torch.float64)
        self.skipped = 0

    @torch.no_grad()
    def add(self, values: PlaceValues, weights: Tensor, sources: Tensor) -> None:
        """weights: (S,) of the places. sources: (S,) each place's source."""
        counted = weights != 0
        parts = torch.stack([torch.ones_like(weights), values.divergence, values.agree], dim=1)[counted].double().cpu()
        self._sums.index_add_(0, sources[counted].cpu(), parts)
        pairs = ((values.confidence, values.correct), (values.teacher_confidence, values.teacher_correct))
        for which, (sure, right) in enumerate(pairs):
            sure, right = sure[counted].double().cpu(), right[counted].double().cpu()
            place = (sure * self.BINS).long().clamp(0, self.BINS - 1)
            told = torch.stack([torch.ones_like(sure), sure, right], dim=1)
            self._bins[which].index_add_(0, place, told)

    def collect(self, parallel: DataParallel) -> dict[str, float]:
        """Means over all processes; forgets what was added. Collective.

        Returns: distill/divergence, distill/agreement, of each source where there are several; distill/calibration and
        distill/teacher_calibration, the expected calibration error (arXiv 1706.04599, eq. 3) in ten bins;
        distill/skipped_rows.
        """
        device = parallel.accelerator.device
        sums = parallel.sum(self._sums.to(device)).cpu()
        bins = parallel.sum(self._bins.to(device)).cpu()
        skipped = int(parallel.sum(torch.tensor(float(self.skipped), device=device)))
        self._sums, self._bins, self.skipped = torch.zeros_like(sums), torch.zeros_like(bins), 0
        total = sums.sum(0)
        if not total[0]:
            return {"distill/skipped_rows": float(skipped)} if skipped else {}
        out = {"distill/divergence": (total[1] / total[0]).item(), "distill/agreement": (total[2] / total[0]).item()}
        if len(self.sources) > 1:
            for name, (count, far, agree) in zip(self.sources, sums.tolist(), strict=True):
                if count:
                    out[f"distill/divergence/{name}"] = far / count
                    out[f"distill/agreement/{name}"] = agree / count
        for name, table in zip(("calibration", "teacher_calibration"), bins, strict=True):
            out[f"distill/{name}"] = ((table[:, 1] - table[:, 2]).abs().sum() / total[0]).item()
        if not self.compares_tokens:
            out = {name: value for name, value in out.items() if "divergence" in name}
        return out | ({"distill/skipped_rows": float(skipped)} if skipped else {})


def farthest(divergence: Tensor, weights: Tensor, share: float) -> Tensor:
    """(S,) weights with which only the share of places counts on which both models are farthest apart.

    What is left counts more, so that the weights' sum stays what it was.
    """
    if share >= 1:
        return weights
    there = weights != 0
    keep = max(1, round(share * int(there.sum())))
    ranked = divergence.detach().masked_fill(~there, float("-inf"))
    kept = torch.zeros_like(weights).scatter(0, ranked.topk(min(keep, len(ranked))).indices, 1.0) * weights
    return kept * (weights.sum() / kept.sum().clamp(min=torch.finfo(torch.float32).tiny))
