"""Several endpoints as one: a router asks one of them for each request, a committee asks all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmreason.clients.endpoint import Endpoint
from mmreason.clients.types import EndpointError, ErrorKind, Reply, Request
from mmreason.types import ConfigError

Policy = Literal["fail_over", "least_busy", "weighted"]
"""fail_over: the first that is available, in the order given. least_busy: the one with the smallest share of its
concurrency in flight. weighted: drawn with the weights."""

ELSEWHERE: tuple[ErrorKind, ...] = (
    "auth", "rate_limit", "server", "timeout", "connection", "circuit_open", "bad_reply", "logprobs",
)  # fmt: skip
"""Errors of one endpoint that say nothing about the next one."""


class Router:
    """Endpoints that can stand in for each other; a `Completer`.

    A request that any of them has answered earlier is not asked again, whatever the policy would choose now. An
    endpoint that fails, is left alone by its circuit breaker or wants a pause is passed over; where all of them are,
    the first choice is asked once more and waited for.

    Args:
        endpoints: at least one; they may serve different models.
        policy: how the first choice is made; the others follow in the same manner.
        weights: for "weighted", one for each endpoint.
        seed: of the draws of "weighted".

    Raises:
        ConfigError: no endpoint, an unknown policy, or weights that don't fit.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        policy: Policy = "fail_over",
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        _check_names(endpoints)
        if policy not in ("fail_over", "least_busy", "weighted"):
            raise ConfigError(f"unknown policy {policy!r}; there are fail_over, least_busy, weighted")
        if (weights is not None) != (policy == "weighted"):
            raise ConfigError("weights and the policy weighted go together")
        if weights is not None and (len(weights) != len(endpoints) or min(weights) <= 0):
            raise ConfigError(f"{len(endpoints)} endpoints need as many weights above 0")
        self.endpoints = tuple(endpoints)
        self.policy = policy
        self._weights = weights
        self._rng = random.Random(seed)

    def known(self, request: Request) -> Reply | None:
        """The reply that one of them has given earlier."""
        for endpoint in self.endpoints:
            reply = endpoint.known(request)
            if reply is not None:
                return reply
        return None

    async def complete(self, request: Request) -> Reply:
        """Ask the endpoints in the order of the policy until one answers.

        Raises:
            EndpointError: of the last one asked.
        """
        known = self.known(request)
        if known is not None:
            return known
        order = self._order()
        for endpoint in order:
            try:
                return await endpoint.complete(request, wait=False)
            except EndpointError as error:
                if error.kind not in ELSEWHERE:
                    raise
        return await order[0].complete(request)

    def _order(self) -> list[Endpoint]:
        """All endpoints: the available ones first, among them as the policy says."""
        order = list(self.endpoints)
        if self.policy == "least_busy":
            order.sort(key=lambda endpoint: endpoint.load)
        elif self._weights is not None:
            # The order of independent exponential times with these rates is a draw without replacement.
            times = {id(e): self._rng.expovariate(w) for e, w in zip(self.endpoints, self._weights, strict=True)}
            order.sort(key=lambda endpoint: times[id(endpoint)])
        return sorted(order, key=lambda endpoint: not endpoint.is_available)

    async def aclose(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(endpoint.aclose() for endpoint in self.endpoints))


@dataclass(frozen=True, slots=True)
class Vote:
    """What one member of a committee said: a reply or an error."""

    member: str
    reply: Reply | None = None
    error: EndpointError | None = None


class Committee:
    """Endpoints that are all asked the same. What their replies agree on is the caller's business.

    Args: endpoints: at least one, with different names.

    Raises:
        ConfigError: none, or two with the same name.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        _check_names(endpoints)
        self.endpoints = tuple(endpoints)

    async def ask(self, request: Request) -> tuple[Vote, ...]:
        """Every member's vote, in the order of the members."""

        async def vote(endpoint: Endpoint) -> Vote:
            try:
                return Vote(endpoint.name, reply=await endpoint.complete(request))
            except EndpointError as error:
                return Vote(endpoint.name, error=error)

        return tuple(await asyncio.gather(*map(vote, self.endpoints)))

    async def aclose(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(endpoint.aclose() for endpoint in self.endpoints))


def _check_names(endpoints: Sequence[Endpoint]) -> None:
    names = [endpoint.name for endpoint in endpoints]
    if not names:
        raise ConfigError("at least one endpoint is needed")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two endpoints are called {twice[0]!r}: give each its own name")
