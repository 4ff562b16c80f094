"""The work itself: tasks under way, their rows taken in order, shards written, and the end in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from data_builders.building.build import Drop, Made, Task
from data_builders.building.prepare import Job
from data_builders.building.taking import Taking
from data_builders.building.teachers import METER, Meter
from mmreason.clients.types import EndpointError
from mmreason.types import MMReasonError

if TYPE_CHECKING:
    from mmreason.data.overlap import Hit

AHEAD = 8
"""Tasks begun and not taken yet, as a multiple of the concurrency, so that a slow one doesn't hold back others."""


@dataclass
class Outcome:
    """What a task has become. error: what ended it; made: else. hits: of each row the test item that it holds."""

    task: Task
    made: Made | None = None
    hits: Sequence[Hit | None] = ()
    error: BaseException | None = None
    meter: Meter = field(default_factory=Meter)
    seconds: float = 0.0


async def attempt(job: Job, task: Task) -> Outcome:
    """Make a task; whatever comes is in the outcome, but for a cancellation."""
    meter, start = Meter(), time.monotonic()
    METER.set(meter)
    outcome = Outcome(task, meter=meter)
    try:
        outcome.made = await job.builder.make(task, job.tools)
        outcome.hits = job.test_sets.find(outcome.made.rows)
    except UnicodeEncodeError as error:  # half a character of one reply would have gone into the next request
        outcome.made, outcome.hits = Made(drops=[Drop("bad_encoding", str(error))]), ()
    except Exception as error:
        outcome.error = error
    outcome.seconds = time.monotonic() - start
    return outcome


class Work:
    """A run. Args: say: told what happens. progress: show a bar."""

    def __init__(self, job: Job, say: Callable[[str], None], *, progress: bool) -> None:
        self.job, self.say = job, say
        self.taking = Taking(job, say, progress=progress)
        self.error: BaseException | None = None
        self._running: set[asyncio.Task[Outcome]] = set()
        self._ended = asyncio.Event()
        self._is_exhausted = self._is_broken = False

    @property
    def status(self) -> int:
        """See the top of `building/runner.py`."""
        if self.taking.stop is not None:
            return self.taking.stop.status
        return 1 if self.taking.failed else 0

    async def run(self, *, signals: bool) -> None:
        """Do all tasks, or stop early; what is done is written either way.

        Raises: what a builder raised that was no EndpointError; MMReasonError: the folder can't be written.
        """
        with self._signals() if signals else contextlib.nullcontext(), self.taking:
            try:
                async for tasks in self._rounds():
                    await self._round(tasks)
                    if self.taking.stop is not None or self.error is not None:
                        break
                if not self._is_broken:
                    self.taking.close(normal=not self._is_stopping, ended=self._is_exhausted)
            except OSError as error:
                self._break(error)
            except Exception as error:
                self.error = error
            finally:
                for task in self._running:
                    task.cancel()
                await asyncio.gather(*self._running, return_exceptions=True)
                await asyncio.gather(*(endpoint.aclose() for endpoint in self.job.endpoints))
        if isinstance(self.error, OSError) and self.error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MMReasonError(f"{self.error}: make room; the same command goes on where it ended") from self.error
        if self.error is not None:
            raise self.error

    def finish(self, description: str) -> dict[str, Any]:
        """Write the manifest, the card and the report; returns the manifest."""
        return self.taking.finish(description, self.error)

    # ----------------------------------------------------------------------------------------------------------------
    # Which tasks

    async def _rounds(self) -> AsyncIterator[Iterator[Task]]:
        """The tasks, in groups of which each begins when all rows of the last one are taken."""
        job = self.job
        if job.tasks is not None:
            self._is_exhausted = job.ends
            yield iter(job.tasks)
            return
        left, size = job.options.limit, job.builder.round_size
        assert size is not None
        while left is None or left > 0:
            tasks = list(islice(job.plan, size if left is None else min(size, left)))
            if not tasks:
                self._is_exhausted = True
                return
            left = None if left is None else left - len(tasks)
            yield iter(tasks)

    async def _round(self, tasks: Iterator[Task]) -> None:
        for task in islice(tasks, max(0, self.job.done_tasks - self.taking.index)):
            self.taking.replay(task)
        pending: deque[asyncio.Task[Outcome]] = deque()
        limit = self.job.options.concurrency
        while True:
            while len(self._running) < limit and len(pending) < AHEAD * limit and not self._is_stopping:
                following = next(tasks, None)
                if following is None:
                    break
                pending.append(self._begin(following))
            if not pending:
                return
            if not pending[0].done():
                self._ended.clear()
                await self._ended.wait()
            while pending and pending[0].done():
                self._take(pending.popleft())
                await asyncio.sleep(0)

    @property
    def _is_stopping(self) -> bool:
        return self.taking.stop is not None or self.error is not None

    def _begin(self, task: Task) -> asyncio.Task[Outcome]:
        running = asyncio.create_task(attempt(self.job, task))
        self._running.add(running)

        def ended(done: asyncio.Task[Outcome]) -> None:
            self._running.discard(done)
            self._ended.set()
            if not done.cancelled():
                self.taking.saw(done.result())

        running.add_done_callback(ended)
        return running

    def _take(self, done: asyncio.Task[Outcome]) -> None:
        """Take a task's rows, unless something before it ended the run in the middle."""
        if self.error is not None:
            return
        if done.cancelled():
            self.error = KeyboardInterrupt()
            return
        outcome = done.result()
        if outcome.error is not None and not isinstance(outcome.error, EndpointError):
            self.error = outcome.error
            return
        try:
            self.taking.take(outcome)
        except OSError as error:  # what is under way was paid for: it ends, and its replies go to the ledger
            self._break(error)
        except MMReasonError as error:
            self.error = error

    def _break(self, error: OSError) -> None:
        self._is_broken = True
        self.error = MMReasonError(
            f"{self.job.store.folder}: can't be written ({error.strerror or error}). Make room or give permission "
            "there; the same command goes on where it ended"
        )
        self.error.__cause__ = error

    # ----------------------------------------------------------------------------------------------------------------
    # Interrupts

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal lets the tasks under way end; the second one cuts them off."""
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            if self.taking.interrupt():
                count = len(self._running)
                self.say(f"interrupted: {count} tasks under way end first; once more to cut them off")
            else:
                for task in self._running:
                    task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
