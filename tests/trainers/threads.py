"""Data-parallel processes played by threads: the collectives of DataParallel, without a launch for every example."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Meeting:
    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=300)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        every = list(self.slots)
        self.barrier.wait()
        return every


class ThreadParallel:
    """What DataParallel offers, on one of several threads."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting
        self.accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=size)

    def gather(self, rows: Tensor) -> Tensor:
        every = self._meeting.exchange(self.rank, rows)
        assert len({part.shape for part in every}) == 1, "a collective needs the same shape on all processes"
        return torch.cat(every)

    def sum(self, values: Tensor) -> Tensor:
        return self.gather(values.unsqueeze(0)).sum(0)

    def gather_objects(self, items: list[Any]) -> list[Any]:
        return [item for part in self._meeting.exchange(self.rank, items) for item in part]


def on_ranks(size: int, work: Callable[[Any], T]) -> list[T]:
    """What `work` returns on each of `size` ranks that run at the same time."""
    meeting, results, errors = _Meeting(size), dict[int, T](), list[BaseException]()

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadParallel(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return [results[rank] for rank in range(size)]
