"""What an endpoint's tokens cost. Prices come from the user: vendors change them, so none are built in.

Amounts are whole picodollars (1e-12 US dollars) inside the package, so that sums and comparisons with a budget are
exact; a price with up to six decimals per million tokens is a whole number of picodollars per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from mmreason.types import ConfigError

PICO = 10**12
"""Picodollars in a dollar."""

_KEYS = ("input", "output", "cached", "batch")


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost.

    Attributes:
        input: US dollars per million prompt tokens.
        output: US dollars per million completion tokens, reasoning included.
        cached: US dollars per million prompt tokens that the server had in its cache; None: like input.
        batch: the factor on all of them in the Batch API, for example 0.5.
    """

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    batch: Decimal = Decimal(1)

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, *, batch: bool = False) -> int:
        """Picodollars, rounded up.

        Args:
            prompt_tokens: all of the prompt. completion_tokens: all that was written.
            cached_tokens: the part of prompt_tokens that is charged as cached.
            batch: whether it goes through the Batch API.
        """
        cached_price = self.input if self.cached is None else self.cached
        per_million = (
            (prompt_tokens - cached_tokens) * self.input
            + cached_tokens * cached_price
            + completion_tokens * self.output
        )
        return math.ceil(per_million * (self.batch if batch else 1) * (PICO // 10**6))

    def bound(self, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> int:
        """Picodollars that so many tokens cost at most, whatever part of them is cached."""
        cached = prompt_tokens if self.cached is not None and self.cached > self.input else 0
        return self.cost(prompt_tokens, completion_tokens, cached, batch=batch)


def parse_price(value: Mapping[str, Any], name: str) -> Price:
    """A price from the user's numbers.

    Args:
        value: `input`, `output`, perhaps `cached` and `batch`.
        name: of the model, for messages.

    Raises:
        ConfigError: a key that is missing or unknown, or what is no number from 0 up.
    """
    unknown = [key for key in value if key not in _KEYS]
    missing = [key for key in ("input", "output") if key not in value]
    if unknown or missing:
        what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise ConfigError(f"the price of {name} has {what}. {how_to_give(name)}")
    numbers = {key: _amount(value[key], key, name) for key in value if value[key] is not None}
    if numbers.get("batch", Decimal(1)) > 1:
        raise ConfigError(f"the price of {name}: batch is a factor from 0 to 1, for example 0.5 for half the price")
    return Price(**numbers)


def load_prices(path: Path) -> dict[str, Price]:
    """The price table of a YAML file: model name → `{input: …, output: …}`.

    Raises:
        ConfigError: no such file, or not such a table.
    """
    import yaml

    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the price table {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(table, dict) or not all(isinstance(price, dict) for price in table.values()):
        raise ConfigError(f"{path}: expected a line `MODEL: {{input: 0.15, output: 0.60}}` for each model")
    return {str(model): parse_price(price, f"{model} in {path}") for model, price in table.items()}


def how_to_give(model: str) -> str:
    """The YAML that gives a price, as text for messages."""
    return (
        "Give it in US dollars per million tokens, in the configuration:\n"
        "  price: {input: 0.15, output: 0.60, cached: 0.075, batch: 0.5}    # cached and batch may be left out\n"
        "or in a file named with --prices:\n"
        f"  {model}: {{input: 0.15, output: 0.60}}\n"
        "with the numbers of your provider; {input: 0, output: 0} for a server of your own."
    )


def require_price(price: Price | None, model: str, why: str) -> Price:
    """Raises: ConfigError with the YAML to write where there is no price."""
    if price is None:
        raise ConfigError(f"{why} needs the price of {model}, which is not known. {how_to_give(model)}")
    return price


def to_pico(dollars: float | str | Decimal) -> int:
    """A budget in picodollars, rounded down."""
    return math.floor(Decimal(str(dollars)) * PICO)


def to_dollars(pico: int) -> float:
    return pico / PICO


def format_dollars(pico: int) -> str:
    """ "$1.23", with the decimals that small amounts need."""
    dollars = pico / PICO
    return f"${dollars:.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.3g}"


def _amount(value: Any, key: str, name: str) -> Decimal:
    try:
        if isinstance(value, bool):
            raise InvalidOperation
        number = Decimal(str(value))
        if not number.is_finite() or number < 0:
            raise InvalidOperation
    except InvalidOperation:
        raise ConfigError(f"the price of {name}: {key} must be a number from 0 up, not {value!r}") from None
    return number
