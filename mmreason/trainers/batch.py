"""One rollout as the update sees it, and as a checkpoint keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from mmreason.trainers.state import CheckpointError


@dataclass
class Samples:
    """This process's completions, whole groups next to each other. All lists have one entry per completion.

    rows: index into the training set. sampling_logps: the engine's, nats. advantages: 0 where nothing was rewarded.
    in_loss: False leaves a completion out of the loss (cut off, with mask_truncated_completions).
    old_logps, ref_logps: the policy's at sampling time and the reference's, filled in where the objective needs them.
    """

    rows: list[int]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    sampling_logps: list[list[float]]
    truncated: list[bool]
    in_loss: list[bool]
    advantages: list[float] = field(default_factory=list)
    old_logps: list[list[float]] = field(default_factory=list)
    ref_logps: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, stop: int) -> Samples:
        """Completions start … stop-1; lists that were not filled stay empty."""
        return Samples(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def loss_tokens(self) -> int:
        """Completion tokens that count in the loss."""
        return sum(len(ids) for ids, used in zip(self.completion_ids, self.in_loss, strict=True) if used)

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
