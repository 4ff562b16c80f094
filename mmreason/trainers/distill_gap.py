"""Rows by the gap between student and teacher: those on which they are farther apart are learned from more often."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmreason._files import write_whole
from mmreason.types import ConfigError

FILE = "gaps.npy"
"""In the output folder: (N,) float64, each training row's mean divergence per token before the first step, nats."""


class GapOrder:
    """Rows drawn with a chance in proportion to gap^power, anew each epoch; a pure function of gaps and seed.

    Args: rows: how many there are. power: 0 draws all alike.
    Attributes: gaps: (N,), once they are known: before anything is taken.
    """

    total = None

    def __init__(self, rows: int, seed: int, power: float) -> None:
        self.rows, self.seed, self.power = rows, seed, power
        self.gaps: np.ndarray[Any, Any] | None = None
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def rows_per_epoch(self) -> int:
        return self.rows

    def take(self, start: int, count: int) -> list[int]:
        """See `mmreason.data.mixture.RowOrder`. Raises: RuntimeError before the gaps are known."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, place = divmod(start + len(taken), self.rows)
            taken += self._drawn(epoch)[place : place + count - len(taken)]
        return taken

    def _drawn(self, epoch: int) -> list[int]:
        if self.gaps is None:
            raise RuntimeError("the gaps of the rows are not measured yet")
        if self._epoch[0] != epoch:
            chances = np.maximum(self.gaps, 1e-12) ** self.power
            draw = np.random.default_rng([self.seed, epoch])
            self._epoch = (epoch, draw.choice(self.rows, self.rows, p=chances / chances.sum()).tolist())
        return self._epoch[1]


def read_gaps(folder: str | Path, rows: int) -> np.ndarray[Any, Any] | None:
    """What was measured at the beginning of this run; None where nothing was."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    if found.shape != (rows,):
        raise ConfigError(
            f"{path} holds gaps of {found.shape[0]} rows, not of {rows}; start over in another output_dir"
        )
    return np.asarray(found)


def write_gaps(folder: str | Path, gaps: np.ndarray[Any, Any]) -> None:
    """Atomic; called by one process."""
    buffer = io.BytesIO()
    np.save(buffer, gaps)
    write_whole(Path(folder) / FILE, buffer.getvalue())


@torch.no_grad()
def measure_gaps(trainer: Any, rows: int) -> np.ndarray[Any, Any]:
    """Mean divergence per token of each training row under the current weights. Collective.

    Args: trainer: a DistillTrainer whose teachers are ready.
    """
    from tqdm.auto import tqdm

    size, world = trainer.args.per_device_train_batch_size, trainer.parallel.size
    sums = torch.zeros(rows, 2, dtype=torch.float64, device=trainer.accelerator.device)
    model, training = trainer.model_wrapped, trainer.model.training
    model.eval()
    bar = tqdm(range(0, rows, size * world), desc="gaps", unit="batch", disable=not trainer.accelerator.is_main_process)
    for start in bar:
        first = start + trainer.parallel.rank * size
        mine = list(range(first, min(first + size, rows)))
        batch = trainer.collate([trainer.train_dataset[(number,)] for number in mine or [0]])
        told = trainer.gaps_of(model, batch)
        for number, pair in zip(mine, told, strict=False):
            sums[number] = pair
    model.train(training)
    total = trainer.parallel.sum(sums).cpu().numpy()
    return np.asarray(total[:, 0] / np.maximum(total[:, 1], 1e-12))


def row_sums(values: Any, weights: Any, row_numbers: Any, rows: int) -> torch.Tensor:
    """(R, 2) float64: Σ weight · divergence and Σ weight of each row of a micro-batch."""
    parts = torch.stack([values * weights, weights], dim=1).double()
    return torch.zeros(rows, 2, dtype=torch.float64, device=parts.device).index_add_(0, row_numbers, parts)
