"""One OpenAI-compatible server: requests in, replies out, within its limits, paid for once.

    config = EndpointConfig(base_url="http://localhost:8000/v1", model="Qwen/Qwen3-8B")
    async with Endpoint(config, ledger=Ledger("teacher.ledger")) as endpoint:
        reply = await endpoint.complete(Request(messages=[{"role": "user", "content": "What is 7 * 8?"}]))

The SDK's own retries are off. Here a failure is retried if it may pass, for a bounded time, and every try is accounted
for in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from mmreason.clients.keys import NO_KEY, is_loopback, quoted, read_key
from mmreason.clients.ledger import Ledger, Reservation
from mmreason.clients.limits import CircuitBreaker, PerLoop, RateLimiter, backoff_s, retry_after_s
from mmreason.clients.prices import format_dollars, require_price, to_dollars
from mmreason.clients.schemas import check_schema
from mmreason.clients.settings import EndpointConfig
from mmreason.clients.types import EndpointError, ErrorKind, Reply, Request
from mmreason.clients.wire import (
    ReplyError,
    Usage,
    check_encoding,
    parse_completion,
    prompt_bound,
    request_body,
    request_key,
)
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

LONGEST_BACKOFF_S = 30.0
BYTES_PER_TOKEN = 3
"""For the estimate that tokens_per_minute works with until the server has counted."""

log = logging.getLogger("mmreason.clients")

Charge = Literal["none", "perhaps"]
_STATUS_KINDS: dict[int, ErrorKind] = {
    401: "auth",
    403: "auth",
    408: "timeout",
    409: "server",
    425: "server",
    429: "rate_limit",
}
_NEVER_PASSES = ("insufficient_quota", "billing_hard_limit_reached")
_FILTERS = ("content_filter", "content_policy_violation")


@dataclass(frozen=True, slots=True)
class Failure:
    """A try without a usable reply.

    Attributes:
        kind, message, status: of the EndpointError that it becomes.
        passes: whether another try may fare better.
        charge: what it cost: nothing for certain, perhaps something, or what the server counted.
        retry_after_s: what the server asked for.
        is_server: whether the circuit breaker counts it.
    """

    kind: ErrorKind
    message: str
    status: int | None = None
    passes: bool = False
    charge: Charge | Usage = "none"
    retry_after_s: float | None = None
    is_server: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A request with all that is worked out once. amount: the most that it can cost, picodollars."""

    request: Request
    key: str
    body: dict[str, Any]
    amount: int | None
    tokens: int


class Endpoint:
    """A server that answers requests; a `Completer`.

    Args:
        config: where it is and how it may be asked.
        ledger: what is in it is not asked again; None asks always.

    Raises:
        ConfigError: no key, or a budget without the price.
    """

    def __init__(self, config: EndpointConfig, *, ledger: Ledger | None = None) -> None:
        self.config = config
        self.ledger = ledger
        self.name = config.label
        self.price = config.prices
        if ledger is not None and ledger.budget is not None:
            require_price(self.price, config.model, "a budget")
        self._key = read_key(config.api_key_env, config.base_url)
        self._limiter = RateLimiter(config.requests_per_minute, config.tokens_per_minute)
        self._breaker = CircuitBreaker(self.name, config.circuit_failures, config.circuit_s)
        self._client: PerLoop[AsyncOpenAI] = PerLoop(self._make_client)
        self._slots = PerLoop(lambda: asyncio.Semaphore(config.concurrency))
        self._rng = random.Random()
        self._begun = 0
        self._locked_out: EndpointError | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, model={self.config.model!r})"

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    @property
    def load(self) -> float:
        """Requests begun and not ended, as a multiple of the concurrency."""
        return self._begun / self.config.concurrency

    @property
    def is_available(self) -> bool:
        """Would a request be sent now, as far as the server's own failures and its Retry-After say?"""
        return self._breaker.wait_s == 0 and self._limiter.paused_s == 0

    @property
    def client(self) -> AsyncOpenAI:
        """The SDK's client for the running event loop."""
        return self._client.get()

    def known(self, request: Request) -> Reply | None:
        """The reply that the ledger holds."""
        return None if self.ledger is None else self.ledger.find(self.key(request))

    def key(self, request: Request) -> str:
        """What the ledger keeps the reply under."""
        return request_key(request, self.config.model, self.config.revision, self.config.extra_body)

    def job(self, request: Request, *, batch: bool = False) -> Job:
        """The request, checked and made ready to be sent.

        Raises:
            ConfigError: a schema that nothing fits, images in the wrong number or format, fields that can't be.
        """
        config = self.config
        if request.json_schema is not None:
            check_schema(request.json_schema)
        if request.top_logprobs is not None and request.top_logprobs < 0:
            raise ConfigError(f"top_logprobs must be 0 or more, not {request.top_logprobs}")
        body = request_body(request, config.model, config.extra_body, config.limit_field)
        bound = prompt_bound(request, config.image_tokens or 0)
        amount = None
        if self.price is not None:
            if request.images and config.image_tokens is None and self.price.input > 0:
                raise ConfigError(
                    "the cost of a request with images has no upper bound without image_tokens: the most prompt tokens "
                    f"that {config.model} is charged for one image"
                )
            amount = self.price.bound(bound, request.max_tokens, batch=batch)
        return Job(request, self.key(request), body, amount, bound // BYTES_PER_TOKEN + request.max_tokens)

    async def complete(self, request: Request, *, wait: bool = True) -> Reply:
        """Ask, unless the ledger has the reply.

        Args:
            request: what is wanted.
            wait: False gives up at the first failure that is the server's, for a caller who has another one to ask.

        Raises:
            EndpointError: no reply, after all retries.
            ConfigError: a request that can't be sent.
            UnicodeEncodeError: one with half a character (a lone surrogate), for which UTF-8 has no form.
        """
        job = self.job(request)
        known = None if self.ledger is None else self.ledger.find(job.key)
        if known is not None:
            return known
        check_encoding(request)  # before money is reserved: the SDK would fail when the request counts as sent
        self._begun += 1
        try:
            return await self._persist(job, wait)
        finally:
            self._begun -= 1

    async def _persist(self, job: Job, wait: bool) -> Reply:
        """Try until there is a reply, or no hope of one."""
        started, tries, schema_tries = time.monotonic(), 0, 0
        while True:
            outcome = await self._when_possible(job, started, wait)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.kind == "schema" and schema_tries < self.config.schema_retries:
                schema_tries += 1
                continue
            pause = outcome.retry_after_s
            if pause is None:
                pause = backoff_s(tries, self.config.backoff_s, LONGEST_BACKOFF_S, self._rng)
            tries += 1
            late = time.monotonic() - started + pause > self.config.retry_s
            if not outcome.passes or not wait or tries > self.config.max_retries or late:
                error = self.error(outcome, tries + schema_tries, late=late and outcome.passes)
                if error.status == 401:  # what waits for its turn would meet it too
                    self._locked_out = error
                raise error
            await asyncio.sleep(pause)

    # ----------------------------------------------------------------------------------------------------------------
    # One try

    async def _when_possible(self, job: Job, started: float, wait: bool) -> Reply | Failure:
        """Try once the circuit lets it, no twin of the request is in flight, and the budget has room."""
        delay = 0.02
        while True:
            if self._locked_out is not None:
                raise self._locked_out
            pause = self._breaker.wait_s
            if pause > 0:
                patient = wait and self._breaker.open_s + pause < self.config.retry_s
                if not patient or time.monotonic() - started + pause > self.config.retry_s:
                    raise EndpointError("circuit_open", f"{self.name} fails again and again and is left alone for now")
                await asyncio.sleep(pause)
                continue
            if not wait and self._limiter.paused_s > 0:
                raise EndpointError(
                    "rate_limit", f"{self.name} asked to be left alone for {self._limiter.paused_s:.0f} s"
                )
            async with self._slots.get():
                if self._breaker.wait_s == 0 and self._locked_out is None:
                    reserved = None
                    if self.ledger is not None:
                        reserved = self.ledger.reserve(job.key, endpoint=self.name, amount=job.amount)
                    if isinstance(reserved, Reply):
                        return reserved
                    if not isinstance(reserved, str):
                        return await self._attempt(job, reserved)
            await asyncio.sleep(self._rng.uniform(0, delay))  # apart from the others that wait
            delay = min(1.5 * delay, 0.5)

    async def _attempt(self, job: Job, reservation: Reservation | None) -> Reply | Failure:
        """Send once, and book what came of it, whatever comes."""
        probe = self._breaker.enter()
        is_sent = False
        try:
            await self._limiter.acquire(job.tokens)
            is_sent = True
            start = time.monotonic()
            outcome = await self._send(job)
            if isinstance(outcome, Reply):
                outcome = replace(outcome, endpoint=self.name, seconds=time.monotonic() - start)
        except BaseException:  # cancelled
            self._breaker.abandoned(probe=probe)
            self._book(reservation, Failure("connection", "", charge="perhaps" if is_sent else "none"), None)
            raise
        self._tell_breaker(outcome, probe)
        self._settle_tokens(job, outcome)
        return self._book(reservation, outcome, job.amount)

    async def _send(self, job: Job) -> Reply | Failure:
        import openai

        body = dict(job.body)
        messages, model = body.pop("messages"), body.pop("model")
        failed: Exception
        try:
            async with asyncio.timeout(self.config.timeout_s):
                raw = await self.client.chat.completions.with_raw_response.create(
                    messages=messages, model=model, extra_body=body
                )
            return parse_completion(raw.text, job.request)
        except (openai.OpenAIError, ReplyError, TimeoutError) as error:
            failed = error
        # Outside of `except`: the SDK's errors hold the request with its headers; no later error may drag them along.
        return self.failure(failed)

    def failure(self, error: Exception) -> Failure:
        """What an error of the SDK, or a reply that can't be used, means; without the key."""
        import openai

        if isinstance(error, ReplyError):
            is_broken = error.kind == "bad_reply"
            charge: Charge | Usage = error.usage or "perhaps"
            words = self.quoted(str(error))
            return Failure(error.kind, words, passes=is_broken, charge=charge, is_server=is_broken)
        if isinstance(error, openai.APIStatusError):
            return self._status_failure(error)
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            words = f"no reply within {self.config.timeout_s:g} s"
            return Failure("timeout", words, passes=True, charge="perhaps", is_server=True)
        # Without a connection the server has certainly not seen the request.
        unseen = type(error.__cause__).__name__ == "ConnectError"
        words = "no connection" if unseen else "the connection broke before the reply was whole"
        cause = self.quoted(str(error.__cause__ or error))
        return Failure(
            "connection", f"{words} ({cause})", passes=True, charge="none" if unseen else "perhaps", is_server=True
        )

    def _status_failure(self, error: APIStatusError) -> Failure:
        status = error.status_code
        words = self.quoted(str(error.body or error.message))
        code = error.code or ""
        kind = _STATUS_KINDS.get(status, "server" if status >= 500 else "bad_request")
        if status == 400 and code in _FILTERS:
            kind = "refused"
        message = f"HTTP {status}: {words}"
        if kind == "auth":
            variable = self.config.api_key_env
            wrong = (
                f"the key of {variable} was not accepted"
                if self._key != NO_KEY
                else f"no key was sent (set {variable})"
            )
            message = f"{wrong}; {message}"
        after = retry_after_s(error.response.headers.get("retry-after"))
        passes = (kind in ("rate_limit", "server", "timeout")) and code not in _NEVER_PASSES
        if after is not None and passes and after <= self.config.retry_s:
            self._limiter.pause(after)
        # An overloaded server says 503 before it works; behind any other 5xx a gateway may hide a finished completion.
        charge: Charge = "perhaps" if status >= 500 and status != 503 else "none"
        return Failure(kind, message, status, passes, charge, after, is_server=status >= 500)

    # ----------------------------------------------------------------------------------------------------------------
    # Booking

    def _book(self, reservation: Reservation | None, outcome: Reply | Failure, bound: int | None) -> Reply | Failure:
        """Write what a try cost into the ledger; a reply gets its cost."""
        ledger = self.ledger
        if isinstance(outcome, Reply):
            cost = self.cost(Usage(outcome.prompt_tokens, outcome.completion_tokens, outcome.cached_tokens), bound)
            outcome = replace(outcome, cost=None if cost is None else to_dollars(cost))
            if ledger is not None and reservation is not None:
                ledger.commit(reservation, outcome, cost)
        elif ledger is not None and reservation is not None:
            if isinstance(outcome.charge, Usage):
                ledger.waste(reservation, self.cost(outcome.charge, bound))
            elif outcome.charge == "perhaps":
                ledger.doubt(reservation)
            else:
                ledger.release(reservation)
        return outcome

    def cost(self, usage: Usage, bound: int | None, *, batch: bool = False) -> int | None:
        """Picodollars; the upper bound where the server counted nothing, None without a price."""
        if self.price is None:
            return None
        if usage.prompt == 0:
            return bound
        cost = self.price.cost(usage.prompt, usage.completion, usage.cached, batch=batch)
        if bound is not None and cost > bound:
            log.warning(
                "%s charged %d + %d tokens (%s) for a request that could cost %s at most: is image_tokens too low, or "
                "doesn't %s bound what %s writes?",
                self.name, usage.prompt, usage.completion, format_dollars(cost), format_dollars(bound),
                self.config.limit_field, self.config.model,
            )  # fmt: skip
        return cost

    def _tell_breaker(self, outcome: Reply | Failure, probe: bool) -> None:
        if isinstance(outcome, Reply) or not (outcome.is_server or outcome.kind == "rate_limit"):
            self._breaker.succeeded()
        elif outcome.is_server:
            self._breaker.failed(outcome.message, probe=probe)
        else:
            self._breaker.abandoned(probe=probe)

    def _settle_tokens(self, job: Job, outcome: Reply | Failure) -> None:
        if isinstance(outcome, Reply):
            real = outcome.prompt_tokens + outcome.completion_tokens
        elif isinstance(outcome.charge, Usage):
            real = outcome.charge.prompt + outcome.charge.completion
        else:
            return
        if real:
            self._limiter.settle(job.tokens, real)

    def quoted(self, text: str) -> str:
        """A server's words, fit for a message: without the key, cut."""
        return quoted(text, self._key)

    def error(self, failure: Failure, tries: int = 1, *, late: bool = False) -> EndpointError:
        """The error that a failure becomes. late: the time for retries is used up."""
        after = f" after {tries} tries" if tries > 1 else ""
        if late:
            wait = f", and asked for {failure.retry_after_s:.0f} s more" if failure.retry_after_s else ""
            after += f" within retry_s={self.config.retry_s:g}{wait}"
        return EndpointError(
            failure.kind, f"{self.name} ({self.config.model}){after}: {failure.message}", status=failure.status
        )

    def _make_client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        # A proxy of the environment must not stand between this machine and itself.
        http = DefaultAsyncHttpxClient(trust_env=not is_loopback(self.config.base_url))
        timeout = Timeout(self.config.timeout_s, connect=min(30.0, self.config.timeout_s))
        return AsyncOpenAI(
            api_key=self._key, base_url=self.config.base_url, max_retries=0, timeout=timeout, http_client=http
        )
