"""A field of an options dataclass, with its line of --help."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def _opt(default: Any, help: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})
