"""A sampler over a batch engine: what many running strategies ask for meanwhile goes into one call."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mmreason.prompting.types import Completion
from mmreason.types import ConfigError, Message

# From an answer to its strategy's next call it takes about five passes: the waiting task, the gather around it, the
# strategy, the tasks of its next calls. A pass costs microseconds.
_QUIET_PASSES = 10


@dataclass(frozen=True, slots=True)
class BatchParams:
    """The settings that all conversations of one call share; see `Sample`."""

    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a batch: n completions are wanted; see `Sample` for `draw`."""

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    n: int = 1
    draw: int = 0


Generate = Callable[[list[Conversation], BatchParams], Sequence[Sequence[Completion] | Exception]]
"""A batch engine: for each conversation, in order, its n completions, or the exception that only this one ends with."""


@dataclass(eq=False, slots=True)
class _Waiting:
    conversation: Conversation
    params: BatchParams
    key: str
    done: asyncio.Future[list[Completion]]


@dataclass(eq=False)
class BatchSample:
    """Gathers concurrent calls into batches, oldest first.

    A batch goes out as soon as every running task has asked or waits for something else, and the engine is free; what
    is asked while the engine works goes into the next one. The oldest call decides the settings of a batch, and all
    waiting calls with the same settings join it in the order of asking. So none is overtaken for ever, and the same
    problems make the same batches (unless a strategy works in threads between its calls: tools, verifiers).

    An engine that raises is asked again with each half of the batch, until a call that can't be answered stands alone
    and gets the exception; so one prompt that is too long doesn't cost the others their answers.

    Attributes:
        generate: the engine; called in one thread of its own, never twice at a time.
        max_batch: completions in one call; a single conversation may want more.
        linger_s: seconds to wait for further calls before a batch goes out, for strategies that work in threads.
    """

    generate: Generate
    max_batch: int = 256
    linger_s: float = 0.0
    _queue: deque[_Waiting] = field(default_factory=deque, init=False, repr=False)
    _pump: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    _thread: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.linger_s < 0:
            raise ConfigError(f"max_batch must be at least 1, linger_s at least 0: {self.max_batch}, {self.linger_s}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def __call__(
        self,
        messages: Sequence[Message],
        *,
        images: Sequence[Any] = (),
        n: int = 1,
        draw: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Completion]:
        """See `Sample`. Raises: what the engine raised for this call."""
        params = BatchParams(temperature, max_tokens, tuple(stop), json_schema, tuple(tools))
        key = json.dumps([temperature, max_tokens, list(stop), json_schema, list(tools)], sort_keys=True)
        done: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(Conversation(tuple(messages), tuple(images), n, draw), params, key, done))
        if self._pump is None or self._pump.done() or self._pump.get_loop() is not done.get_loop():
            self._pump = asyncio.create_task(self._run())  # it ends with the queue, or is left behind with its loop
        return await done

    async def _run(self) -> None:
        while self._queue:
            await self._settle()
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _settle(self) -> None:
        """Wait until nobody asks any more: some passes of the event loop without a new call."""
        quiet, seen = 0, len(self._queue)
        while quiet < _QUIET_PASSES:
            await asyncio.sleep(0)
            quiet, seen = (quiet + 1, seen) if len(self._queue) == seen else (0, len(self._queue))
        if self.linger_s:
            await asyncio.sleep(self.linger_s)

    def _take(self) -> list[_Waiting]:
        """The oldest call and those that fit to it; who waits no more, or was left in another loop, is dropped."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        size, full = 0, False
        for waiting in self._queue:
            if waiting.done.done() or waiting.done.get_loop() is not loop:
                continue
            n = waiting.conversation.n
            fits = not batch or (waiting.key == batch[0].key and size + n <= self.max_batch)
            full = full or (not fits and waiting.key == batch[0].key)  # a later, smaller one must not slip past
            if fits and not full:
                batch.append(waiting)
                size += n
            else:
                others.append(waiting)
        self._queue = others
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, batch)
        if isinstance(rows, Exception):
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            rows = [rows]
        for waiting, row in zip(batch, rows, strict=True):
            if waiting.done.done():
                continue
            if isinstance(row, Exception):
                waiting.done.set_exception(row)
            else:
                waiting.done.set_result(row)

    def _generate(self, batch: list[_Waiting]) -> list[list[Completion] | Exception] | Exception:
        """One call of the engine, in its thread. It never raises: nobody would hear it, and all would wait for ever."""
        try:
            rows = list(self.generate([waiting.conversation for waiting in batch], batch[0].params))
        except Exception as error:  # of any kind: it goes to whom it belongs
            return _raisable(error)
        if len(rows) != len(batch):  # which row is whose can't be known
            return [ValueError(f"the engine gave {len(rows)} rows for {len(batch)} conversations") for _ in batch]
        return [
            _raisable(row) if isinstance(row, Exception)
            else list(row) if isinstance(row, list | tuple)
            else ValueError(f"the engine gave a {type(row).__name__} for a list of completions")
            for row in rows
        ]  # fmt: skip


def _raisable(error: Exception) -> Exception:
    """A future takes no StopIteration."""
    return RuntimeError(f"the engine raised {error!r}") if isinstance(error, StopIteration) else error
