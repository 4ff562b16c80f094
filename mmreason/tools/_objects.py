"""JSON objects as models write them, read without guessing."""

from __future__ import annotations

from json import JSONDecodeError
from typing import Any

from mmreason._json import strict_json


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
        value = strict_json(text)
    except JSONDecodeError as error:
        raise ValueError(f"no JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON, but a {type(value).__name__} and no object")
    return value
