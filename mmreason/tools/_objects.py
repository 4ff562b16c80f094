"""JSON objects as models write them, read without guessing."""

from __future__ import annotations

import json
from typing import Any


def why_no_object(text: str) -> str | None:
    """Why `read_object` doesn't take a text, in a few words; None where it does."""
    try:
        read_object(text)
    except ValueError as error:
        return str(error)
    return None


def read_object(text: str) -> dict[str, Any]:
    """A JSON object as it was meant: no key twice, no NaN, nothing around it.

    Raises: ValueError, saying why it isn't one.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON, but a {type(value).__name__} and no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
