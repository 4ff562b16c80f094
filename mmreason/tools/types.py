"""What a tool, a call and its result are. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mmreason.types import MMReasonError

ErrorKind = Literal["unknown_tool", "bad_arguments", "timeout", "refused", "failed"]
"""Why a call gave no result: no such tool; arguments that are no JSON or don't fit the schema; out of time; something
that the tool never does (a write, a file outside); anything else that the called code ended with."""


class ToolError(MMReasonError):
    """A call that gave no result. ``str(error)`` is what the model is shown.

    Args:
        kind: why.
        message: in words, without a traceback and without anything of the machine it ran on.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asked for.

    Attributes:
        name: the tool's name as the model wrote it.
        arguments: the arguments; the raw text where it was no JSON object, so that nothing is guessed.
        id: the call's id of the OpenAI form, "" in the forms that have none.
    """

    name: str
    arguments: dict[str, Any] | str
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What became of a call.

    Attributes:
        call: the call.
        content: what the model is shown: the result, or the error in words.
        error: None for a result.
        seconds: wall time.
    """

    call: ToolCall
    content: str
    error: ErrorKind | None
    seconds: float


TOOL_PARTS = ("name", "description", "parameters", "call")
"""What an object must have to be a `Tool`."""


class Tool(Protocol):
    """A tool: how a model is told of it, and the call.

    Attributes:
        name: letters, digits, `_` and `-`.
        description: one or two sentences for the model.
        parameters: JSON Schema of the arguments, `{"type": "object", ...}`.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """Run once. The arguments fit the schema: `Toolbox.run` has checked them.

        Args:
            arguments: by name.
            timeout_s: wall seconds; the call returns or raises within this and a small grace.

        Raises:
            ToolError: no result.
        """
        ...
