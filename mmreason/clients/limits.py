"""How fast an endpoint may be asked: rate limits, Retry-After, backoff with jitter, a circuit breaker.

Times are seconds of `time.monotonic`, which tests replace. Nothing here belongs to an event loop except what `PerLoop`
keeps, so that one endpoint can be used from several `asyncio.run` calls.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar

from mmreason.types import ConfigError

T = TypeVar("T")
Clock = Callable[[], float]

log = logging.getLogger("mmreason.clients")

MINUTE = 60.0
_LOOK_S = 0.05  # how often the head of a queue looks whether room was given back


class PerLoop(Generic[T]):
    """An object for each event loop: connections, locks and semaphores can't move from one to the next."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        self._value: T | None = None

    def get(self) -> T:
        """The running loop's object, made now if it has none."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._value is None:
            self._loop, self._value = loop, self._make()
        return self._value


class Bucket:
    """A token bucket that lets at most `per_minute` pass in any 60 seconds.

    A plain one lets its capacity pass on top of a minute's refill. Here the capacity (a second's worth, or 1) is taken
    off the refill. What is larger than the capacity waits until the refill has paid for all of it.
    """

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self.capacity = max(per_minute / MINUTE, 1.0)
        self.rate = (per_minute - (self.capacity - 1)) / MINUTE
        self._level, self._clock, self._at = self.capacity, clock, clock()

    @property
    def wait_s(self) -> float:
        """Seconds until all that was taken is paid for; 0 for now."""
        self._refill()
        return max(0.0, -self._level / self.rate)

    def take(self, amount: float) -> None:
        """Take, into debt where it is more than there is. A negative amount is given back."""
        self._refill()
        self._level = min(self.capacity, self._level - amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now


class RateLimiter:
    """Requests and tokens a minute, first come first served.

    Args:
        requests_per_minute, tokens_per_minute: None for no limit.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock = time.monotonic
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._clock = clock
        self._paused_until = -math.inf
        self._turn = PerLoop(asyncio.Lock)

    @property
    def paused_s(self) -> float:
        """Seconds for which the server asked to be left alone."""
        return max(0.0, self._paused_until - self._clock())

    def pause(self, seconds: float) -> None:
        """Nothing passes for so long: the server said Retry-After."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    async def acquire(self, tokens: float) -> None:
        """Wait for room for one request of so many tokens (an estimate; `settle` puts it right)."""
        async with self._turn.get():
            self._take(1, tokens)
            try:
                while (wait := self._wait_s()) > 0:
                    await asyncio.sleep(min(wait, _LOOK_S))
            except asyncio.CancelledError:
                self._take(-1, -tokens)
                raise

    def settle(self, estimated: float, real: float) -> None:
        """Replace an acquired estimate by what the request really took."""
        self._take(0, real - estimated)

    def _take(self, requests: float, tokens: float) -> None:
        if self._requests:
            self._requests.take(requests)
        if self._tokens:
            self._tokens.take(tokens)

    def _wait_s(self) -> float:
        return max(self.paused_s, *(bucket.wait_s for bucket in (self._requests, self._tokens) if bucket), 0.0)


class CircuitBreaker:
    """Stops asking a server that fails again and again, and asks it one request at a time whether it is back.

    Closed: all pass; `threshold` failures in a row open it. Open: none pass for a cool-down, which doubles up to 60 s.
    Then one probe passes: its success closes the circuit, its failure opens it again.

    Args:
        name: of the endpoint, for the log.
        threshold: failures in a row. cooldown_s: the first cool-down.
    """

    MAX_COOLDOWN_S = 60.0

    def __init__(self, name: str, threshold: int, cooldown_s: float, clock: Clock = time.monotonic) -> None:
        if threshold < 1:
            raise ConfigError(f"circuit_failures must be at least 1, not {threshold}")
        self.name, self.threshold, self._first_cooldown_s, self._clock = name, threshold, cooldown_s, clock
        self._failures = 0
        self._cooldown_s = cooldown_s
        self._open_since: float | None = None
        self._probe_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._open_since is not None

    @property
    def open_s(self) -> float:
        """Seconds since the circuit opened; 0 where it is closed."""
        return 0.0 if self._open_since is None else self._clock() - self._open_since

    @property
    def wait_s(self) -> float:
        """Seconds until a request may pass; 0 for now."""
        if self._open_since is None:
            return 0.0
        return _LOOK_S if self._probing else max(0.0, self._probe_at - self._clock())

    def enter(self) -> bool:
        """Let a request pass, after `wait_s` was 0. True if it is the probe: its end must be told by all means."""
        if self._open_since is None:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The server answered, with whatever."""
        if self._open_since is not None:
            log.warning("%s: the server answers again after %.0f s; the circuit is closed", self.name, self.open_s)
        self._failures, self._open_since, self._probing = 0, None, False
        self._cooldown_s = self._first_cooldown_s

    def failed(self, why: str, *, probe: bool) -> None:
        """The server failed: an error of its own, no connection, no reply in time, a reply cut off."""
        self._failures += 1
        if self._open_since is None:
            if self._failures < self.threshold:
                return
            self._open_since = self._clock()
            log.warning(
                "%s: %d failures in a row (the last: %s): the circuit is open, a probe follows in %.1f s",
                self.name, self._failures, why, self._cooldown_s,
            )  # fmt: skip
        elif probe:
            self._cooldown_s = min(2 * self._cooldown_s, self.MAX_COOLDOWN_S)
            log.warning("%s: the probe failed too (%s); the next in %.1f s", self.name, why, self._cooldown_s)
        else:  # sent before it opened
            return
        self._probing = False
        self._probe_at = self._clock() + self._cooldown_s

    def abandoned(self, *, probe: bool) -> None:
        """A request ended without telling anything of the server: cancelled, or not sent after all."""
        if probe:
            self._probing = False


def backoff_s(attempt: int, first_s: float, longest_s: float, rng: random.Random) -> float:
    """Exponential backoff with full jitter: uniform between 0 and min(longest, first * 2^attempt).

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. attempt: 0 for the first retry.
    """
    return rng.uniform(0, min(longest_s, first_s * 2.0 ** min(attempt, 60)))


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, section 10.2.3); None where there is none that can be read.

    Args:
        value: whole seconds (fractions are taken too), or an HTTP date.
        now: the time that a date is counted from; the clock's if None.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
