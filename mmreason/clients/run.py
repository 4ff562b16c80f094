"""Many requests: bounded in number, each with an outcome, none lost.

async for outcome in complete_all(endpoint, requests, progress="teacher"):
    if outcome.reply is not None:
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mmreason.clients.types import Completer, EndpointError, Reply, Request


@runtime_checkable
class Remembering(Completer, Protocol):
    """A completer that can say what is answered already."""

    def known(self, request: Request) -> Reply | None:
        """The reply that was paid for earlier; None where it would have to be asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: a reply or an error.

    Attributes:
        index: its place among the requests, from 0.
    """

    index: int
    request: Request
    reply: Reply | None = None
    error: EndpointError | None = None


@dataclass
class Tally:
    """Outcomes, counted.

    Attributes:
        answered: requests with a reply, `from_ledger` of them paid for earlier.
        failed: requests without one, by kind of error.
        prompt_tokens, completion_tokens, dollars: of the replies that were new.
    """

    answered: int = 0
    from_ledger: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.failed[outcome.error.kind] += 1
        reply = outcome.reply
        if reply is None:
            return
        self.answered += 1
        self.from_ledger += reply.from_ledger
        if not reply.from_ledger:
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            self.dollars += reply.cost or 0.0

    @property
    def total(self) -> int:
        return self.answered + self.failed.total()

    def describe(self) -> str:
        """One line: "118 answered (20 of them from the ledger), 2 failed (timeout 2), 400 + 2,100 tokens, $0.03"."""
        known = f" ({self.from_ledger} of them from the ledger)" if self.from_ledger else ""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failed.most_common())
        failed = f", {self.failed.total()} failed ({kinds})" if kinds else ""
        tokens = f", {self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        return f"{self.answered} answered{known}{failed}{tokens}, ${self.dollars:.4g}"


async def complete_all(
    completer: Completer,
    requests: Iterable[Request],
    *,
    in_flight: int = 256,
    ordered: bool = False,
    progress: str | None = None,
    total: int | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Ask for all of them, and yield an outcome for each.

    After an error that every later request would meet too (a refused key, a used-up budget) nothing more is sent: those
    in flight end, and the rest get the same error, unless they were answered earlier.

    Args:
        completer: an endpoint or a router. Its own concurrency holds; it should be below `in_flight`, because a request
            that waits for its next try keeps its place here.
        requests: read as they are needed.
        in_flight: how many are begun and not ended at a time.
        ordered: yield in the order of the requests instead of as they come; what comes early is held in memory.
        progress: the name of a progress bar with rate, time left, dollars and failures by kind; None shows none.
        total: how many requests there are, for the bar; found out where `requests` has a length.

    Raises:
        ConfigError, DataError: a request that can't be sent, a ledger that can't be written; those in flight are
            cancelled.
    """
    if total is None and isinstance(requests, Sized):
        total = len(requests)
    tally = Tally()
    held: dict[int, Outcome] = {}
    due = 0
    with _bar(progress, total) as bar:
        running = _as_completed(completer, requests, in_flight)
        async with contextlib.aclosing(running):
            async for outcome in running:
                tally.add(outcome)
                _show(bar, tally)
                if not ordered:
                    yield outcome
                    continue
                held[outcome.index] = outcome
                while due in held:
                    yield held.pop(due)
                    due += 1


async def _as_completed(
    completer: Completer, requests: Iterable[Request], in_flight: int
) -> AsyncGenerator[Outcome, None]:
    source = enumerate(requests)
    done: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue(maxsize=in_flight)
    stop: EndpointError | None = None

    async def work() -> None:
        nonlocal stop
        try:
            for index, request in source:  # shared: each worker takes the next one
                if stop is not None:
                    known = completer.known(request) if isinstance(completer, Remembering) else None
                    await done.put(Outcome(index, request, known, None if known else stop))
                    continue
                try:
                    await done.put(Outcome(index, request, reply=await completer.complete(request)))
                except EndpointError as error:
                    if _stops(error):
                        stop = stop or error
                    await done.put(Outcome(index, request, error=error))
        except Exception as error:
            await done.put(error)
        else:
            await done.put(None)

    workers = [asyncio.create_task(work()) for _ in range(max(1, in_flight))]
    try:
        left = len(workers)
        while left:
            item = await done.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _stops(error: EndpointError) -> bool:
    """Would every later request meet it too? A 403 may be about one request: some providers moderate with it."""
    return error.kind == "budget" or error.status == 401


def _bar(name: str | None, total: int | None) -> Any:
    from tqdm import tqdm

    return tqdm(desc=name, total=total, unit="row", disable=name is None, smoothing=0.05, dynamic_ncols=True)


def _show(bar: Any, tally: Tally) -> None:
    if bar.disable:
        return
    failed = {kind: count for kind, count in tally.failed.items() if count}
    bar.set_postfix({"$": f"{tally.dollars:.4g}", **failed}, refresh=False)
    bar.update()
