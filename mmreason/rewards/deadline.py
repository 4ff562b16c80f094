"""A bound on the time that a reward function may take, and what that can't do.

Python can't end a thread. A plain function that hangs is given up: its thread stays behind, and costs memory and,
where it computes, time, until the function returns by itself or the run ends. A few such threads are put up with, more
are not. A call for a whole batch doesn't count once calls for its rows alone hang in its place, so there may be twice
as many threads. A coroutine is cancelled where it waits, which ends it. Code that holds Python's lock for ever (a C
extension that never lets go) stops everything, the clock here included; what may do that belongs into a process of its
own, as mmreason.tools.sandbox and the `code` reward have it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

MOST_GIVEN_UP = 3
"""Hanging calls that are put up with at a time."""
_GRACE_S = 5.0  # for the loop to say by itself which coroutines took too long

_LOCK = threading.Lock()
_LOOPS: list[asyncio.AbstractEventLoop] = []
_given_up: dict[threading.Thread, str] = {}  # and what was called


class HangsError(Exception):
    """A call took longer than it may.

    Attributes: thread: what stays behind of it, None: nothing. what: was called.
    """

    def __init__(self, message: str, thread: threading.Thread | None = None, what: str = "a call") -> None:
        super().__init__(message)
        self.thread, self.what = thread, what

    def count(self, counts: bool) -> None:
        """Whether what stays behind is one of the hanging calls, as it is at first."""
        if self.thread is not None:
            with _LOCK:
                _given_up.pop(self.thread, None)
                if counts:
                    _given_up[self.thread] = self.what


def hanging() -> int:
    """How many calls were given up and still hang."""
    return len(hanging_calls())


def hanging_calls() -> list[str]:
    """What was called and still hangs."""
    with _LOCK:
        for thread in [thread for thread in _given_up if not thread.is_alive()]:
            del _given_up[thread]
        return list(_given_up.values())


def within(seconds: float | None, call: Callable[[], Any], what: str = "a call") -> Any:
    """What `call()` returns or raises; with a bound, in a thread of its own. Raises HangsError after `seconds`.

    Args: what: is called, for `hanging_calls`.
    """
    if seconds is None:
        return call()
    outcome: list[tuple[Any, BaseException | None]] = []
    device = _cuda_device()

    def body() -> None:
        try:
            if device is not None:
                sys.modules["torch"].cuda.set_device(device)  # a new thread begins on the first one
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=body, name="mmreason-reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        hangs = HangsError(f"no answer within reward_timeout={seconds:g} s", thread, what)
        hangs.count(True)
        raise hangs
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _cuda_device() -> int | None:
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else None


async def awaited(awaitable: Any, seconds: float | None) -> Any:
    """The awaitable's value. Raises HangsError after `seconds`; by then it is cancelled."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError as error:
        if seconds is None:
            raise
        raise HangsError(f"no answer within reward_timeout={seconds:g} s") from error


def run_async(coroutine: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
    """Run a coroutine to its end from any thread, on one lasting event loop.

    The loop lasts so that a reward's HTTP client may keep its connections from step to step, and it has a thread of
    its own so that callers inside a running loop (notebooks) work too.

    Args: seconds: that the coroutine keeps to by itself, see `awaited`. A loop in which something computes or sleeps
        without `await` can't keep to it: then the loop is left behind with its thread, and HangsError raised.
    """
    with _LOCK:
        if not _LOOPS:
            fresh = asyncio.new_event_loop()
            thread = threading.Thread(target=fresh.run_forever, name="mmreason-rewards", daemon=True)
            thread.start()
            _LOOPS.append(fresh)
            _THREADS[fresh] = thread
        loop = _LOOPS[0]
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result(None if seconds is None else seconds + _GRACE_S)
    except TimeoutError as error:
        if future.done():  # the coroutine's own
            raise
        with _LOCK:
            left = _THREADS.pop(loop, None)
            if loop in _LOOPS:
                _LOOPS.remove(loop)
        loop.call_soon_threadsafe(loop.stop)
        hangs = HangsError("a coroutine blocks its event loop: it waits without `await`", left, "a coroutine")
        hangs.count(True)
        raise hangs from error


_THREADS: dict[asyncio.AbstractEventLoop, threading.Thread] = {}
