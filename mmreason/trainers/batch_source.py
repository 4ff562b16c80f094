"""Training on micro-batches without end that each process makes for itself, from any place on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset

from mmreason.trainers.arguments import TrainingOptions
from mmreason.trainers.hf_loop import HFLoop
from mmreason.types import ConfigError

PLACE = "data.json"
"""In a checkpoint: where the data stand."""
Place = dict[str, int]


class BatchSource(Protocol):
    """Micro-batches of one process, from any place on, for ever. A pure function of the place."""

    def batches(self, place: Place, rank: int, world_size: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """(a micro-batch, where all processes together stand behind it)."""
        ...


class _Batches(IterableDataset[tuple[dict[str, Any], Place]]):
    def __init__(self, source: BatchSource, place: Place, rank: int, world_size: int) -> None:
        self.source, self.place, self.rank, self.world_size = source, place, rank, world_size

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Place]]:
        return self.source.batches(self.place, self.rank, self.world_size)


class SourceTrainer(HFLoop):
    """A trainer whose data are a `BatchSource`. Where they stand is kept in every checkpoint.

    Attributes: place: behind the last micro-batch that was taken, for all processes together.
    """

    source: BatchSource
    place: Place

    def begin(  # type: ignore[override]
        self, options: TrainingOptions, checkpoint: Path | None, source: BatchSource, start: Place
    ) -> None:
        """See `HFLoop.begin`. source: of micro-batches. start: where it begins in a new run."""
        super().begin(options, checkpoint)
        self.source = source
        self.place = start if checkpoint is None else _read_place(checkpoint)

    def get_train_dataloader(self) -> Any:
        """Not Accelerate's: each process makes its own micro-batches, and knows the place of all."""
        data = _Batches(self.source, self.place, self.parallel.rank, self.parallel.size)
        return DataLoader(data, batch_size=None, num_workers=self.args.dataloader_num_workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        found = list(islice(epoch_iterator, num_batches))
        self.place = found[-1][1]
        samples = [batch for batch, _ in found]
        return samples, self._get_num_items_in_batch(samples, device)

    def before_checkpoint(self, folder: Path) -> None:
        (folder / PLACE).write_text(json.dumps(self.place), encoding="utf-8")


def _read_place(checkpoint: Path) -> Place:
    try:
        found = json.loads((checkpoint / PLACE).read_text(encoding="utf-8"))
        return {name: int(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{checkpoint} doesn't say where its data stand ({error}); name another with --resume, or start over with "
            "--overwrite_output_dir"
        ) from error
