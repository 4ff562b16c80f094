"""Rate limits, Retry-After, backoff and the circuit breaker, on a clock that the tests turn."""

from __future__ import annotations

import asyncio
import random
import statistics
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.clients.limits import Bucket, CircuitBreaker, PerLoop, RateLimiter, backoff_s, retry_after_s


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([1, 2, 7, 60, 500]),
    idle=st.lists(st.floats(0, 90), min_size=5, max_size=40),
)
def test_no_sixty_seconds_have_more_requests_than_the_limit(limit: int, idle: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(limit, clock)
    passed = []
    for pause in idle:
        clock.now += pause
        for _ in range(limit // 2 + 2):
            bucket.take(1)
            clock.now += bucket.wait_s
            passed.append(clock.now)
    for start in passed:
        # half-open, and a nanosecond for the rounding of sums
        assert sum(start <= t < start + 60 - 1e-6 for t in passed) <= limit


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=60), idle=st.floats(0, 30))
def test_no_sixty_seconds_have_more_tokens_than_the_limit(sizes: list[int], idle: float) -> None:
    limit, clock = 6000, Clock()
    bucket = Bucket(limit, clock)
    passed = []
    for i, size in enumerate(sizes):
        clock.now += idle if i % 7 == 0 else 0
        bucket.take(size)
        clock.now += bucket.wait_s
        passed.append((clock.now, size))
    for start, _ in passed:
        # What was begun before the window is paid for in it, so one request may stand over.
        inside = [size for t, size in passed if start < t < start + 60 - 1e-6]
        assert sum(inside) <= limit + 1


def test_a_busy_bucket_uses_nearly_all_of_its_limit() -> None:
    clock = Clock()
    bucket = Bucket(600, clock)
    start = clock.now
    for _ in range(6000):
        bucket.take(1)
        clock.now += bucket.wait_s
    assert 600 * (clock.now - start) / 60 * 0.98 < 6000


def test_unused_tokens_are_given_back() -> None:
    clock = Clock()
    limiter = RateLimiter(None, 600, clock)

    async def run() -> float:
        await limiter.acquire(10)
        limiter.settle(10, 0)
        await limiter.acquire(10)
        return clock.now

    assert asyncio.run(run()) == 1000.0


def test_the_limiter_is_first_come_first_served_in_real_time() -> None:
    limiter = RateLimiter(requests_per_minute=1200, tokens_per_minute=None)
    order: list[int] = []

    async def one(i: int) -> None:
        await limiter.acquire(1)
        order.append(i)

    async def run() -> float:
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(one(i) for i in range(40)))
        return asyncio.get_running_loop().time() - start

    seconds = asyncio.run(run())
    assert order == list(range(40))
    assert seconds >= 20 / 20  # 20 at once, then 20 a second


def test_a_cancelled_request_gives_its_place_back() -> None:
    limiter = RateLimiter(requests_per_minute=60, tokens_per_minute=None)

    async def run() -> None:
        await limiter.acquire(1)
        waiting = asyncio.create_task(limiter.acquire(1))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(run())
    assert limiter._requests is not None and limiter._requests.wait_s < 0.95


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
        ("Wed, 01 Jul 2026 11:00:00 GMT", 0.0),
        ("Wednesday, 01-Jul-26 12:00:30 GMT", 30.0),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
        (None, None),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)) == seconds


def test_backoff_is_uniform_below_a_doubling_bound() -> None:
    rng = random.Random(0)
    for attempt in range(8):
        bound = min(30.0, 0.5 * 2**attempt)
        draws = [backoff_s(attempt, 0.5, 30.0, rng) for _ in range(4000)]
        assert min(draws) >= 0 and max(draws) <= bound
        # mean and variance of a uniform distribution
        assert statistics.fmean(draws) == pytest.approx(bound / 2, rel=0.05)
        assert statistics.pvariance(draws) == pytest.approx(bound**2 / 12, rel=0.1)
    assert backoff_s(10_000, 0.5, 30.0, rng) <= 30


class TestCircuitBreaker:
    def breaker(self) -> tuple[CircuitBreaker, Clock]:
        clock = Clock()
        return CircuitBreaker("x", threshold=3, cooldown_s=5, clock=clock), clock

    def fail(self, breaker: CircuitBreaker, times: int) -> None:
        for _ in range(times):
            breaker.failed("HTTP 500", probe=breaker.enter())

    def test_it_opens_after_failures_in_a_row_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        breaker, _ = self.breaker()
        self.fail(breaker, 2)
        breaker.succeeded()
        self.fail(breaker, 2)
        assert not breaker.is_open and breaker.wait_s == 0
        self.fail(breaker, 1)
        assert breaker.is_open and breaker.wait_s == 5
        assert "3 failures in a row (the last: HTTP 500): the circuit is open" in caplog.text

    def test_one_probe_decides(self, caplog: pytest.LogCaptureFixture) -> None:
        breaker, clock = self.breaker()
        self.fail(breaker, 3)
        clock.now += 5
        assert breaker.wait_s == 0
        assert breaker.enter()
        assert breaker.wait_s > 0  # no second one beside it
        breaker.failed("HTTP 500", probe=True)
        assert breaker.wait_s == 10  # doubled
        clock.now += 10
        assert breaker.enter()
        breaker.succeeded()
        assert not breaker.is_open and breaker.wait_s == 0
        assert "answers again after 15 s" in caplog.text
        self.fail(breaker, 3)
        assert breaker.wait_s == 5  # back at the first cool-down

    def test_stragglers_do_not_postpone_the_probe(self) -> None:
        breaker, clock = self.breaker()
        sent_before = [breaker.enter() for _ in range(5)]
        self.fail(breaker, 3)
        clock.now += 4
        for probe in sent_before:
            breaker.failed("late", probe=probe)
        assert breaker.wait_s == 1

    def test_a_probe_that_tells_nothing_makes_room_for_the_next(self) -> None:
        breaker, clock = self.breaker()
        self.fail(breaker, 3)
        clock.now += 5
        breaker.abandoned(probe=breaker.enter())
        assert breaker.wait_s == 0 and breaker.is_open

    def test_the_cooldown_ends_at_a_minute(self) -> None:
        breaker, clock = self.breaker()
        self.fail(breaker, 3)
        for _ in range(10):
            clock.now += breaker.wait_s
            breaker.failed("HTTP 500", probe=breaker.enter())
        assert breaker.wait_s == 60


def test_each_event_loop_has_its_own_object() -> None:
    made: PerLoop[asyncio.Lock] = PerLoop(asyncio.Lock)

    async def twice() -> tuple[asyncio.Lock, asyncio.Lock]:
        return made.get(), made.get()

    first, second = asyncio.run(twice()), asyncio.run(twice())
    assert first[0] is first[1] and second[0] is second[1] and first[0] is not second[0]
