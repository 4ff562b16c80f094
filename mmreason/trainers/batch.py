"""One rollout as the update sees it, and as a checkpoint keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from mmreason.rollout.scoring import completion_mask, pad_right
from mmreason.rollout.types import Completion
from mmreason.trainers.state import CheckpointError


@dataclass
class Samples:
    """This process's completions, whole groups next to each other. All lists have one entry per completion.

    rows: index into the training set. sampling_logps: the engine's, nats. advantages: 0 where nothing was rewarded.
    in_loss: False leaves a completion out of the loss (cut off, with mask_truncated_completions).
    sampled: which tokens the policy sampled; the others came from an environment. Empty: all of them.
    token_advantages: where an estimator tells tokens apart; `advantages` then holds their means.
    old_logps, ref_logps: the policy's at sampling time and the reference's, filled in where the objective needs them.
    values, returns: a critic's at sampling time, before each token and behind the last, and what it is to learn.
    """

    rows: list[int]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    sampling_logps: list[list[float]]
    truncated: list[bool]
    in_loss: list[bool]
    sampled: list[list[bool]] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    token_advantages: list[list[float]] = field(default_factory=list)
    old_logps: list[list[float]] = field(default_factory=list)
    ref_logps: list[list[float]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(
        cls, rows: list[int], prompts: Sequence[list[int]], drawn: Sequence[Completion], mask_truncated: bool
    ) -> Samples:
        """Args: rows: of each completion. prompts: token ids of every training row."""
        apart = any(completion.sampled is not None for completion in drawn)
        return cls(
            rows=rows,
            prompt_ids=[prompts[row] for row in rows],
            completion_ids=[c.token_ids for c in drawn],
            sampling_logps=[c.logps for c in drawn],
            truncated=[c.truncated for c in drawn],
            in_loss=[c.failed is None and not (c.truncated and mask_truncated) for c in drawn],
            sampled=[c.sampled or [True] * len(c.token_ids) for c in drawn] if apart else [],
        )

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, stop: int) -> Samples:
        """Completions start … stop-1; lists that were not filled stay empty."""
        return Samples(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def take(self, order: Sequence[int]) -> Samples:
        """The completions of these numbers, in this order; lists that were not filled stay empty."""
        lists = {f.name: getattr(self, f.name) for f in fields(self)}
        return Samples(**{name: [rows[i] for i in order] if rows else [] for name, rows in lists.items()})

    def loss_tokens(self) -> int:
        """Completion tokens that count in the loss."""
        counts = map(sum, self.sampled) if self.sampled else map(len, self.completion_ids)
        return sum(count for count, used in zip(counts, self.in_loss, strict=True) if used)

    def sampled_mask(self, device: torch.device) -> Tensor:
        """(B, C) float32: 1 on the tokens that the policy sampled."""
        if self.sampled:
            return pad_right(self.sampled, 0.0, torch.float32, device)
        return completion_mask(self.completion_ids, device)

    def loss_mask(self, device: torch.device) -> Tensor:
        """(B, C) float32: 1 on the tokens that count in the loss."""
        return self.sampled_mask(device) * torch.tensor(self.in_loss, device=device).float().unsqueeze(1)

    def advantage_tensor(self, device: torch.device) -> Tensor:
        """(B,), or (B, C) where tokens have advantages of their own; float32."""
        if self.token_advantages:
            return pad_right(self.token_advantages, 0.0, torch.float32, device)
        return torch.tensor(self.advantages, device=device)

    def save(self, path: Path) -> None:
        """Write as parquet. Log-probabilities and advantages are float32 values and come back bit for bit."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        filled = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        pq.write_table(pa.table(filled), path)

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Read what `save` wrote. Raises CheckpointError naming the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return cls(**pq.read_table(path).to_pydict())
        except (OSError, pa.ArrowException, TypeError) as error:
            raise CheckpointError(
                f"{path}: the rollout in flight can't be read ({error}); name another checkpoint with --resume"
            ) from error


def unpad(values: Tensor, completions: Sequence[Sequence[int]]) -> list[list[float]]:
    """(B, C) → B lists, each as long as its completion."""
    return [row[: len(ids)] for row, ids in zip(values.tolist(), completions, strict=True)]


class StepMetrics:
    """Sums, maxima and minima over micro-batches and processes, read once per step."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}
        self._extremes: dict[str, Tensor] = {}

    def mean(self, name: str, total: Tensor, count: Tensor) -> None:
        """Adds to the numerator and the denominator of a mean."""
        pair = torch.stack([total.detach().double(), count.detach().double()])
        self._sums.setdefault(name, []).append(pair)

    def maximum(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        old = self._extremes.get(name)
        self._extremes[name] = value if old is None else torch.maximum(old, value)

    def reduce(self, gather: object) -> dict[str, float]:
        """Over all processes. `gather` is DataParallel.gather; every process must have the same names."""
        out: dict[str, float] = {}
        for name in sorted(self._sums):
            pairs = gather(torch.stack(self._sums[name]).sum(0).float().unsqueeze(0))  # type: ignore[operator]
            total, count = pairs.double().sum(0).tolist()
            out[name] = total / count if count else math.nan
        for name in sorted(self._extremes):
            out[name] = gather(self._extremes[name].float().view(1)).max().item()  # type: ignore[operator]
        return out
