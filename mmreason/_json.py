"""JSON as models write it, read without guessing."""

from __future__ import annotations

import json
from typing import Any


def strict_json(text: str) -> Any:
    """The value of a JSON text in which no key of an object stands twice and no number is NaN or infinite.

    `json.loads` would take the last of two values of a key; which one was meant, nobody knows.

    Raises: ValueError, saying why it can't be read; json.JSONDecodeError, which is one, where it is no JSON at all.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
