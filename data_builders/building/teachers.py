"""The endpoints of a builder: their settings, the ledger behind them, and a meter for each task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_builders.building.build import BuildOptions
from mmreason.clients.endpoint import Endpoint
from mmreason.clients.keys import read_key
from mmreason.clients.ledger import Ledger, Reservation
from mmreason.clients.prices import require_price, to_dollars
from mmreason.clients.routing import Router
from mmreason.clients.settings import EndpointConfig, LedgerConfig, parse_endpoint
from mmreason.clients.types import Completer, Reply, Request
from mmreason.types import ConfigError

IDENTITY = ("model", "revision", "extra_body")
"""Settings of an endpoint that its replies depend on: what the ledger keys a request by."""


@dataclass
class Meter:
    """What a task has asked for.

    Attributes:
        replies, prompt_tokens, completion_tokens, dollars: of all replies that it got, old ones from the ledger too.
        from_ledger: those of them that were paid for earlier.
        new_dollars: what those of them cost that are new.
        spent: US dollars that it cost now, with replies that could not be used and tries in doubt.
    """

    replies: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    new_dollars: float = 0.0
    spent: float = 0.0


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The meter of the task that runs; what it starts inherits it."""


def _pay(amount: int | None) -> None:
    meter = METER.get()
    if meter is not None and amount is not None:
        meter.spent += to_dollars(amount)


class MeteredLedger(Ledger):
    """A ledger that tells the running task's meter what is spent, replies without use among it."""

    def commit(self, reservation: Reservation, reply: Reply, cost: int | None) -> None:
        super().commit(reservation, reply, cost)
        _pay(cost)

    def waste(self, reservation: Reservation, cost: int | None) -> None:
        super().waste(reservation, cost)
        _pay(cost)

    def doubt(self, reservation: Reservation) -> None:
        super().doubt(reservation)
        _pay(reservation.amount)


class Metered:
    """A completer that counts its replies for the task that asks. Args: books: whether a ledger meters the money."""

    def __init__(self, inner: Completer, *, books: bool) -> None:
        self.inner = inner
        self._books = books

    async def complete(self, request: Request) -> Reply:
        reply = await self.inner.complete(request)
        meter = METER.get()
        if meter is not None:
            meter.replies += 1
            meter.from_ledger += reply.from_ledger
            meter.prompt_tokens += reply.prompt_tokens
            meter.completion_tokens += reply.completion_tokens
            meter.dollars += reply.cost or 0.0
            meter.new_dollars += 0.0 if reply.from_ledger else reply.cost or 0.0
            if not self._books and not reply.from_ledger:
                meter.spent += reply.cost or 0.0
        return reply


class ToolBench:
    """The runner's `Tools`.

    Args:
        teachers: of each model the endpoint, or a router over its copies. router: what stands for all of them.
        others: further endpoints, by settings.
    """

    def __init__(
        self, teachers: Sequence[Completer], router: Completer | None, others: Mapping[str, Completer], *, own: bool
    ) -> None:
        self._teachers = tuple(teachers)
        self._router = router
        self._others = others
        self._own = own

    @property
    def teacher(self) -> Completer:
        if self._router is None:
            raise ConfigError(NO_TEACHER)
        return self._router

    @property
    def teachers(self) -> Sequence[Completer]:
        return self._teachers

    def endpoint(self, settings: Mapping[str, Any]) -> Completer:
        if self._own:
            return self.teacher
        found = self._others.get(_key(settings))
        if found is None:
            raise ConfigError(f"no endpoint has the settings {dict(settings)}: list them in other_endpoints()")
        return found


NO_TEACHER = (
    "this builder asks a teacher: give its server, for example --teacher.base_url http://localhost:8000/v1 "
    "--teacher.model NAME, or in YAML teacher: {base_url: …, model: …, price: {input: …, output: …}}"
)


def teacher_configs(options: BuildOptions) -> list[EndpointConfig]:
    """The teachers' settings, priced, each under a name of its own. Raises: ConfigError."""
    given = options.teacher
    listed = [] if given is None else list(given) if isinstance(given, list) else [given]
    what = "teacher" if not isinstance(given, list) else "teacher {}"
    configs = [parse_endpoint(one, what.format(number)) for number, one in enumerate(listed, 1)]
    return _named(_priced(options, configs))


def other_configs(options: BuildOptions, settings: Sequence[Mapping[str, Any]]) -> dict[str, EndpointConfig]:
    """The further endpoints' settings, priced, by their key. Raises: ConfigError."""
    configs = _priced(options, [parse_endpoint(one, "endpoint") for one in settings])
    return dict(zip(map(_key, settings), configs, strict=True))


def _priced(options: BuildOptions, configs: Sequence[EndpointConfig]) -> list[EndpointConfig]:
    money = LedgerConfig(prices=options.prices)
    configs = [money.priced(config) for config in configs]
    for config in configs:
        read_key(config.api_key_env, config.base_url)
        if options.max_budget is not None or options.quote:
            require_price(config.prices, config.model, "a quote" if options.quote else "a budget")
    return configs


def _named(configs: Sequence[EndpointConfig]) -> list[EndpointConfig]:
    labels = [config.label for config in configs]
    return [
        config if labels.count(config.label) == 1 else replace(config, name=f"{config.label} {config.model} {number}")
        for number, config in enumerate(configs, 1)
    ]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def replies_follow_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an endpoint's settings that its replies depend on, without what stands at its default."""
    return {name: settings[name] for name in IDENTITY if settings.get(name)}


def one_of_each(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first server of each model: copies of one model are one teacher, the ledger gives them the same replies."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in settings:
        found.setdefault(_key(replies_follow_from(one)), one)
    return list(found.values())


def ledger_path(options: BuildOptions) -> Path:
    """The ledger's file."""
    return options.ledger or options.out / "ledger"


def open_tools(
    teachers: Sequence[EndpointConfig], others: Mapping[str, EndpointConfig], ledger: Ledger | None
) -> tuple[ToolBench, list[Endpoint]]:
    """The endpoints, ready to be asked, and the list of them, to be closed. Raises: ConfigError: no key."""
    endpoints = [Endpoint(config, ledger=ledger) for config in teachers]
    further = {key: Endpoint(config, ledger=ledger) for key, config in others.items()}
    copies: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        copies.setdefault(_key(replies_follow_from(vars(endpoint.config))), []).append(endpoint)
    # Copies of one model share the work. Different models are not drawn by chance: the next one only stands in.
    models: list[Completer] = [one[0] if len(one) == 1 else Router(one, "least_busy") for one in copies.values()]
    router = Router(endpoints, "fail_over") if len(models) > 1 else models[0] if models else None
    books = ledger is not None
    bench = ToolBench(
        [Metered(model, books=books) for model in models],
        None if router is None else Metered(router, books=books),
        {key: Metered(endpoint, books=books) for key, endpoint in further.items()},
        own=False,
    )
    return bench, [*endpoints, *further.values()]


def lent(completers: Sequence[Completer]) -> ToolBench:
    """Tools around completers of the caller's own, which no ledger keeps."""
    metered = [Metered(completer, books=False) for completer in completers]
    return ToolBench(metered, metered[0], {}, own=True)
