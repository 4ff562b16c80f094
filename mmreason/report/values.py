"""Reading values that may be missing, of another type than expected, or not finite."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> float | None:
    """A finite float, None for anything else. A bool is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, int | float):
        try:
            value = float(value)
        except OverflowError:
            return None
        return value if math.isfinite(value) else None
    return None


def whole(value: Any) -> int | None:
    """An integer, or a float that is one."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def text(value: Any, limit: int) -> str | None:
    """Anything as text of at most `limit` characters, None stays None."""
    if value is None:
        return None
    full = value if isinstance(value, str) else str(value)
    return full if len(full) <= limit else full[:limit] + f" … [{len(full) - limit:,} more characters]"


def rounded(value: float | None, digits: int = 5) -> float | int | None:
    """`digits` significant digits, which is more than a screen shows."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def why(error: BaseException) -> str:
    """The first line of an error, short enough for a list."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
