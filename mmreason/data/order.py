"""In which order rows are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class SortedWithinSteps(Sampler[int]):
    """A random order in which the rows that feed one optimizer step stand sorted by length.

    Its micro-batches then need little padding, while each step still sees a random draw of rows: with a loss that is
    normalised over all tokens of the step, the gradient is that of the unsorted order. (Grouping over whole batches, as
    transformers' group_by_length does, gives short rows a larger weight and makes each step's rows alike.)

    Args:
        lengths: of the rows, in tokens. rows_per_step: micro-batch × accumulation × processes.
        seed: of the order, together with the epoch.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self.lengths, self.rows_per_step, self.seed = list(lengths), rows_per_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's data loader; each epoch has an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.rows_per_step):
            yield from sorted(order[start : start + self.rows_per_step], key=lambda row: self.lengths[row])
