"""Which rows go through the model together, and in which order they are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mmreason.data.mixture import RowOrder, mixed_seed
from mmreason.data.packing import best_fit
from mmreason.types import ConfigError

Bin = tuple[int, ...]
"""Rows that stand in one sequence. A negative number ~row is a filler: the row goes through, but carries no loss."""


class StepOrder(Sampler[Bin]):
    """Bins of rows in the order in which micro-batches are cut from them, a step's bins next to each other.

    Without packing a bin is one row. A step sees a random draw of rows; within the step they are put so that its
    micro-batches cost little: sorted by length where rows are padded, else dealt out so that all have about as many
    tokens. With a loss that is normalised over the whole step its gradient is that of the unsorted rows. (Grouping over
    whole batches, as transformers' group_by_length does, gives short rows a larger weight and makes steps alike.)

    The bins are a pure function of the epoch, whatever the number of processes; nothing is repeated to make the last
    step whole: it is filled with rows that carry no loss. An epoch has as many bins as the first one; where later
    passes make more or fewer of their rows (mixtures do), borders of passes move against those of epochs.

    Args:
        order: of the rows. lengths: (N,) of the rows, in tokens.
        bins_per_micro_batch: on one device. micro_batches: of one step, on all devices together.
        devices: processes that each take a micro-batch at the same time.
        capacity: tokens of a bin; None: no packing.
        window: rows that are packed together at most, in the order's sequence; None: those of a whole epoch.
        padded: micro-batches are padded to their longest row.
        seed: of the bins' order.

    Raises: ConfigError where a row is longer than a bin, or the order ends before an epoch does.
    """

    def __init__(
        self,
        order: RowOrder,
        lengths: Sequence[int],
        *,
        bins_per_micro_batch: int,
        micro_batches: int,
        devices: int = 1,
        capacity: int | None = None,
        window: int | None = None,
        padded: bool = True,
        seed: int = 0,
    ) -> None:
        self.order, self.lengths = order, np.asarray(lengths, dtype=np.int64)
        self.per_micro_batch, self.devices = bins_per_micro_batch, devices
        self.per_step = bins_per_micro_batch * micro_batches
        self.capacity, self.padded, self.seed = capacity, padded, seed
        self.epoch = 0
        windows = -(-order.rows_per_epoch // (window or order.rows_per_epoch))
        self.window = -(-order.rows_per_epoch // windows)  # about as many in each, so that an epoch ends with a window
        self._counts: list[int] = []  # bins of each window so far
        self.bins_per_epoch = (
            order.rows_per_epoch if capacity is None else sum(len(self._window(i)) for i in range(windows))
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's data loader; each epoch has an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.per_micro_batch * self.devices
        return -(-self.bins_per_epoch // together) * together

    def __iter__(self) -> Iterator[Bin]:
        bins = self._bins(self.epoch * self.bins_per_epoch, self.bins_per_epoch)
        for start in range(0, len(bins), self.per_step):
            yield from self._arranged(bins[start : start + self.per_step])

    def _bins(self, start: int, count: int) -> list[Bin]:
        """Bins start … start + count - 1 of the endless sequence."""
        if self.capacity is None:
            bins: list[Bin] = [(row,) for row in self.order.take(start, count)]
        else:
            bins, number, before = [], 0, 0
            while before < start + count:
                skipped = number < len(self._counts) and before + self._counts[number] <= start
                window = [] if skipped else self._window(number)
                bins += window[max(0, start - before) : max(0, start + count - before)]
                if not self._counts[number]:
                    break
                before += self._counts[number]
                number += 1
        if len(bins) < count:
            raise ConfigError(
                f"the rows end after {start + len(bins)} of the {start + count} that so many epochs take: every set "
                "has reached its limit. Lower num_train_epochs or max_steps, or raise max_rows or max_epochs of a set"
            )
        return bins

    def _window(self, number: int) -> list[Bin]:
        """The packed bins of one window, shuffled: best-fit decreasing puts the long rows first."""
        assert self.capacity is not None
        rows = self.order.take(number * self.window, self.window)
        packed = best_fit(self.lengths[rows].tolist(), self.capacity)
        if number == len(self._counts):
            self._counts.append(len(packed))
        shuffled = np.random.default_rng(mixed_seed(self.seed, number)).permutation(len(packed))
        return [tuple(rows[i] for i in packed[place]) for place in shuffled]

    def _arranged(self, bins: list[Bin]) -> list[Bin]:
        together = self.per_micro_batch * self.devices
        shortest = min((row for one in bins for row in one), key=lambda row: (self.lengths[row], row))
        bins = [*bins, *[(~shortest,)] * (-len(bins) % together)]
        if self.capacity is not None:
            return bins
        ordered = sorted(bins, key=lambda one: self._length(one))
        return ordered if self.padded else _dealt(ordered, len(bins) // self.per_micro_batch)

    def _length(self, one: Bin) -> int:
        return int(sum(self.lengths[max(row, ~row)] for row in one))


def _dealt(ordered: list[Bin], hands: int) -> list[Bin]:
    """Bins dealt to so many micro-batches there and back, so that each has about as many tokens."""
    given: list[list[Bin]] = [[] for _ in range(hands)]
    for place, one in enumerate(reversed(ordered)):
        turn, hand = divmod(place, hands)
        given[hand if turn % 2 == 0 else hands - 1 - hand].append(one)
    return [one for hand in given for one in hand]
