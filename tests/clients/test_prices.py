"""Prices: exact amounts, upper bounds, and what is said where one is missing."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.clients.prices import Price, load_prices, parse_price, require_price, to_dollars, to_pico
from mmreason.types import ConfigError

MICRO = st.integers(0, 10**9).map(lambda n: Decimal(n) / 10**6)  # up to $1000 per million, six decimals
TOKENS = st.integers(0, 10**7)


@given(MICRO, MICRO, MICRO, TOKENS, TOKENS, TOKENS)
def test_cost_is_exact(i: Decimal, o: Decimal, c: Decimal, prompt: int, completion: int, cached: int) -> None:
    cached = min(cached, prompt)
    found = Price(i, o, c).cost(prompt, completion, cached)
    per_million = Fraction(i) * (prompt - cached) + Fraction(c) * cached + Fraction(o) * completion
    assert Fraction(found, 10**12) == per_million / 10**6


@given(MICRO, MICRO, st.none() | MICRO, TOKENS, TOKENS, TOKENS, st.booleans())
def test_the_bound_bounds(
    i: Decimal, o: Decimal, c: Decimal | None, prompt: int, completion: int, cached: int, batch: bool
) -> None:
    price = Price(i, o, c, Decimal("0.5"))
    assert price.cost(prompt, completion, min(cached, prompt), batch=batch) <= price.bound(
        prompt, completion, batch=batch
    )


def test_a_published_example() -> None:
    """A million of each at $0.15 and $0.60 is $0.75; half of it in a batch."""
    price = parse_price({"input": 0.15, "output": 0.60, "batch": 0.5}, "m")
    assert to_dollars(price.cost(10**6, 10**6)) == 0.75
    assert to_dollars(price.cost(10**6, 10**6, batch=True)) == 0.375
    assert to_pico("0.1") + to_pico("0.2") == to_pico("0.3")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"input": 1}, "no 'output'"),
        ({"input": 1, "output": 2, "ouput": 3}, "unknown key 'ouput'"),
        ({"input": -1, "output": 2}, "from 0 up"),
        ({"input": "much", "output": 2}, "'much'"),
        ({"input": float("nan"), "output": 2}, "from 0 up"),
        ({"input": True, "output": 2}, "True"),
        ({"input": 1, "output": 2, "batch": 2}, "factor"),
    ],
)
def test_a_wrong_price_is_named(value: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_price(value, "m")


def test_a_missing_price_comes_with_the_yaml_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        require_price(None, "big-model", "a budget")
    text = str(caught.value)
    assert "the price of big-model" in text
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("big-model:")]
    table = tmp_path / "prices.yaml"
    table.write_text(line + "\n")
    assert load_prices(table)["big-model"] == Price(Decimal("0.15"), Decimal("0.6"))


def test_a_table_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    with pytest.raises(ConfigError, match="can't be read"):
        load_prices(path)
    path.write_text("m: 3\n")
    with pytest.raises(ConfigError, match="expected a line"):
        load_prices(path)
    path.write_text("m: {input: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_prices(path)
