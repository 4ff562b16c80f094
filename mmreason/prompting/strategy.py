"""What all strategies have in common: their parameters are frozen data, checked when they are made."""

from __future__ import annotations

import collections.abc
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mmreason._values import describe, is_union, nearest
from mmreason.prompting.prompts import TEXTS
from mmreason.prompting.session import Session
from mmreason.prompting.texts import Texts
from mmreason.prompting.types import Lang, Problem, Solution
from mmreason.types import ConfigError


def at_least(minimum: float, default: Any) -> Any:
    """A field whose value must not be below `minimum`."""
    return field(default=default, metadata={"minimum": minimum})


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """A way to solve a problem. Subclasses are frozen dataclasses too: their fields are their parameters.

    Attributes:
        language: language of the prompts.
        temperature, max_tokens: of every call that the strategy doesn't set otherwise; None leaves them to the sampler.

    Raises: ConfigError for a value of the wrong type or out of range.
    """

    language: Lang = "en"
    temperature: float | None = at_least(0, None)
    max_tokens: int | None = at_least(1, None)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in fields(self):
            value, wanted, minimum = getattr(self, each.name), hints[each.name], each.metadata.get("minimum")
            if not _fits(value, wanted):
                options = typing.get_args(wanted) if typing.get_origin(wanted) is Literal else ()
                hint = nearest(str(value), map(str, options))
                raise ConfigError(f"{self._where(each.name)}: expected {_in_words(wanted)}, got {value!r}{hint}")
            if minimum is not None and value is not None and not value >= minimum:
                raise ConfigError(f"{self._where(each.name)}: must be at least {minimum:g}, got {value!r}")

    @abstractmethod
    async def run(self, problem: Problem, session: Session) -> Solution:
        """Solve one problem by asking the session."""

    def _where(self, name: str) -> str:
        return f"strategy {type(self).__name__}, {name}"

    @property
    def texts(self) -> Texts:
        """The prompts in the strategy's language."""
        return TEXTS[self.language]


def _in_words(wanted: Any) -> str:
    names = {tuple: "list", collections.abc.Mapping: "mapping", collections.abc.Callable: "function"}
    members = typing.get_args(wanted) if is_union(wanted) else (wanted,)
    return " or ".join(names.get(typing.get_origin(member)) or describe(member) for member in members)


def _fits(value: Any, wanted: Any) -> bool:
    """Is it a value of the type? A whole number is also a float; a truth value is no number."""
    if wanted is Any:
        return True
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if is_union(wanted):
        return any(_fits(value, member) for member in args)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if wanted in (int, float):
        return isinstance(value, (int, float) if wanted is float else int) and not isinstance(value, bool)
    return isinstance(value, origin or wanted)
