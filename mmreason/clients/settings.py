"""The settings of an endpoint and of a ledger, as dataclasses for Python and for `mmreason.config.parse_config`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmreason._functions import did_you_mean
from mmreason.clients.keys import check_address, check_variable
from mmreason.clients.ledger import Ledger
from mmreason.clients.prices import Price, load_prices, parse_price, require_price
from mmreason.clients.wire import LimitField
from mmreason.config import parse_config
from mmreason.types import ConfigError

MAX_CONCURRENCY = 1000
"""Connections that the SDK opens at most."""

_SERVER, _LIMITS, _MONEY = "Endpoint", "Limits and retries", "Ledger and money"


def _help(text: str, group: str) -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An OpenAI-compatible server and one of its models. See the `help` of each field; no field ever holds a key.

    Raises:
        ConfigError: on construction, for values that can't be.
    """

    base_url: str = field(metadata=_help("Address up to /v1, e.g. http://localhost:8000/v1.", _SERVER))
    model: str = field(metadata=_help("The model's name as the server knows it.", _SERVER))
    name: str = field(default="", metadata=_help("Name in messages and in the ledger (default: the host).", _SERVER))
    revision: str = field(
        default="",
        metadata=_help("Part of each request's key: change it when other weights take the same model name.", _SERVER),
    )
    api_key_env: str | None = field(
        default="OPENAI_API_KEY",
        metadata=_help("Environment variable with the key; null for none. A local server does without it.", _SERVER),
    )
    extra_body: dict[str, Any] = field(
        default_factory=dict,
        metadata=_help("Further fields of every request's body, e.g. {reasoning_effort: low}.", _SERVER),
    )
    limit_field: LimitField = field(
        default="max_tokens", metadata=_help("The field in which the server takes the limit of a completion.", _SERVER)
    )
    price: dict[str, float] | None = field(
        default=None,
        metadata=_help(
            "US dollars per million tokens: {input: 0.15, output: 0.6}, perhaps cached, and batch (a factor).", _SERVER
        ),
    )
    image_tokens: int | None = field(
        default=None,
        metadata=_help(
            "The most prompt tokens that one image is charged as; a budget needs it where there are images.", _SERVER
        ),
    )
    concurrency: int = field(default=64, metadata=_help(f"Requests in flight, 1 to {MAX_CONCURRENCY}.", _LIMITS))
    requests_per_minute: float | None = field(
        default=None, metadata=_help("At most so many requests in any 60 seconds.", _LIMITS)
    )
    tokens_per_minute: float | None = field(
        default=None, metadata=_help("At most so many tokens, prompt and completion, in any 60 seconds.", _LIMITS)
    )
    timeout_s: float = field(
        default=600.0, metadata=_help("Seconds for one try, from sending to the last byte.", _LIMITS)
    )
    max_retries: int = field(
        default=8,
        metadata=_help("Tries after the first, for what may pass: 429, 5xx, time-outs, broken replies.", _LIMITS),
    )
    retry_s: float = field(
        default=600.0,
        metadata=_help("Seconds that a request may spend on retries and waiting for the server in all.", _LIMITS),
    )
    backoff_s: float = field(
        default=0.5, metadata=_help("First backoff; doubles with each retry, with full jitter, up to 30 s.", _LIMITS)
    )
    schema_retries: int = field(
        default=2, metadata=_help("How often a reply that doesn't fit its JSON schema is asked again.", _LIMITS)
    )
    circuit_failures: int = field(
        default=16, metadata=_help("Failures in a row after which the server is left alone for a while.", _LIMITS)
    )
    circuit_s: float = field(
        default=5.0, metadata=_help("Seconds until it is probed; doubles with each failed probe, up to 60.", _LIMITS)
    )

    def __post_init__(self) -> None:
        check_address(self.base_url)
        check_variable(self.api_key_env)
        if not self.model:
            raise ConfigError("model must be the name that the server knows, not empty")
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigError(f"concurrency must be from 1 to {MAX_CONCURRENCY}, not {self.concurrency}")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout_s", "circuit_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be above 0, not {value}")
        for name in ("max_retries", "retry_s", "backoff_s", "schema_retries", "image_tokens"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be 0 or more, not {value}")
        if self.circuit_failures < 1:
            raise ConfigError(f"circuit_failures must be at least 1, not {self.circuit_failures}")
        if self.price is not None:
            parse_price(self.price, self.model)

    @property
    def label(self) -> str:
        """The endpoint's name in messages."""
        return self.name or urlsplit(self.base_url).netloc

    @property
    def prices(self) -> Price | None:
        """The price, parsed."""
        return None if self.price is None else parse_price(self.price, self.model)


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Where replies are kept and what they may cost; shared by all commands that ask an endpoint."""

    ledger: Path | None = field(
        default=None, metadata=_help("The ledger's file; what it holds is never asked again.", _MONEY)
    )
    prices: Path | None = field(
        default=None, metadata=_help("YAML file with a line `MODEL: {input: 0.15, output: 0.60}` per model.", _MONEY)
    )
    max_budget: float | None = field(
        default=None, metadata=_help("US dollars that the ledger's requests may cost, all runs together.", _MONEY)
    )
    settle_doubtful: float | None = field(
        default=None,
        metadata=_help(
            "Settle requests that may have been charged: what the provider's bill has for them, in US dollars.", _MONEY
        ),
    )

    def open(self, default: Path, configs: Sequence[EndpointConfig]) -> Ledger:
        """The ledger, after the prices that a budget needs were found.

        Args:
            default: its file where none is named.
            configs: the endpoints that are going to be asked, `priced`.

        Raises:
            ConfigError: a budget without a price. DataError: the file can't be used.
        """
        if self.max_budget is not None:
            for config in configs:
                require_price(config.prices, config.model, "a budget")
        return Ledger(self.ledger or default, max_budget=self.max_budget)

    def priced(self, config: EndpointConfig) -> EndpointConfig:
        """The endpoint's settings with the price of the table, where it has none of its own."""
        if config.price is not None or self.prices is None:
            return config
        found = load_prices(self.prices).get(config.model)
        if found is None:
            return config
        given = {"input": found.input, "output": found.output, "cached": found.cached, "batch": found.batch}
        return replace(config, price={name: float(value) for name, value in given.items() if value is not None})


def parse_endpoint(settings: Mapping[str, Any], what: str) -> EndpointConfig:
    """Settings from a user's mapping, each checked for its type.

    Args: what: the option's name, for messages.
    Raises: ConfigError.
    """
    known = [f.name for f in fields(EndpointConfig)]
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{what}: expected settings such as {{base_url: …, model: …}}, got {settings!r}")
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"{what}: unknown setting {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if "base_url" not in settings or "model" not in settings:
        raise ConfigError(f"{what}: give base_url and model, e.g. {{base_url: http://localhost:8000/v1, model: NAME}}")
    words = [word for name, value in settings.items() for word in (f"--{name}", _word(value))]
    try:
        return parse_config(EndpointConfig, words)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{what}: {line}" for line in str(error).splitlines())) from None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
