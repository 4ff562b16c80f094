"""How far a run is: a bar on a terminal, else a line for each shard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from data_builders.building.counts import Counts
from data_builders.building.prepare import Job


class Progress:
    """Rate, time left, accept rate, spend and failures. Args: bar: show a bar."""

    def __init__(self, job: Job, say: Callable[[str], None], *, bar: bool) -> None:
        self._job, self._say, self._has_bar = job, say, bar
        self._bar: Any = None
        self._begun = time.monotonic()
        self._old = self._new = self._accepted = self._failed = self._tasks = 0
        self.spent = 0.0

    def start(self) -> None:
        """Begin; also counts the time from here."""
        from tqdm import tqdm

        self._begun = time.monotonic()
        total = self._job.planned
        self._say(self._job.describe() + (f"; {self._job.done_tasks} done already" if self._job.done_tasks else ""))
        self._bar = tqdm(
            desc=self._job.builder.name, total=total, unit="task", disable=not self._has_bar, smoothing=0.05,
            dynamic_ncols=True,
        )  # fmt: skip

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def replayed(self, counts: Counts) -> None:
        """Tasks of a finished shard."""
        self._old += counts.tasks
        self._add(counts.tasks, counts.accepted, counts.failed.total())
        if self._has_bar:
            self._bar.initial += counts.tasks  # no part of the rate
            self._bar.update(counts.tasks)

    def saw(self, spent: float) -> None:
        """US dollars that a task has cost now."""
        self.spent += spent

    def took(self, *, accepted: bool, failed: bool) -> None:
        """A new task."""
        self._new += 1
        self._add(1, int(accepted), int(failed))
        if self._has_bar:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update()

    def _add(self, tasks: int, accepted: int, failed: int) -> None:
        self._tasks += tasks
        self._accepted += accepted
        self._failed += failed

    def wrote(self, counts: Counts) -> None:
        """A shard is written."""
        if self._has_bar:
            return
        seconds = max(1e-9, time.monotonic() - self._begun)
        rate = self._new / seconds
        planned = self._job.planned
        left = "" if planned is None or self._tasks >= planned else f", {duration((planned - self._tasks) / rate)} left"
        of = "" if planned is None else f" of {planned}"
        self._say(f"{self._tasks}{of} tasks, {rate:.3g}/s{left}; {self._state()}; last shard {counts.kept} rows")

    def _state(self) -> str:
        share = self._accepted / max(1, self._tasks)
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{share:.0%} accepted{failed}, {self.money()}"

    def money(self) -> str:
        """What this run has spent."""
        return f"${self.spent:.4g} spent now"


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
