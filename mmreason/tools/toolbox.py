"""A set of tools as a model meets it: their schemas, and `run`, which answers every call, also the impossible ones."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from mmreason._values import nearest
from mmreason.tools._objects import why_no_object
from mmreason.tools.schemas import ArgumentSchema
from mmreason.tools.types import TOOL_PARTS, Tool, ToolCall, ToolError, ToolResult
from mmreason.types import ConfigError, MMReasonError

_log = logging.getLogger(__name__)
_MAX_ERROR = 500
_MIN_CHARS = 100


class Toolbox:
    """Tools under their names.

    Args:
        tools: at least one; each with a name of its own.
        timeout_s: wall seconds of one call.
        max_chars: of a result, the note about what is left out included.

    Raises: ConfigError for a name or a schema that isn't valid, two tools of one name, what is no tool, and limits out
        of their range.
    """

    def __init__(self, tools: Sequence[Tool], *, timeout_s: float = 5.0, max_chars: int = 4000) -> None:
        if not 0 < timeout_s < math.inf or max_chars < _MIN_CHARS:
            raise ConfigError(
                f"timeout_s must be above 0 and finite, max_chars at least {_MIN_CHARS}: {timeout_s}, {max_chars}"
            )
        self.timeout_s, self.max_chars = timeout_s, max_chars
        self._tools: dict[str, Tool] = {}
        self._arguments: dict[str, ArgumentSchema] = {}
        for tool in tools:
            if not all(hasattr(tool, part) for part in TOOL_PARTS):
                raise ConfigError(f"{tool!r} is no tool; load_tools([...]) makes tools of names and typed functions")
            schema = ArgumentSchema(tool.name, tool.parameters)
            if tool.name in self._tools:
                raise ConfigError(f"two tools are called {tool.name!r}")
            self._tools[tool.name], self._arguments[tool.name] = tool, schema
        if not self._tools:
            raise ConfigError("a toolbox needs at least one tool")

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in the OpenAI form, which chat templates take too."""
        return [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in self._tools.values()
        ]

    def run(self, call: ToolCall) -> ToolResult:
        """Run a call. What the model did wrong comes back as a result with an error, in words for the model.

        An exception of a tool that is no `ToolError` is `failed`, and logged with its traceback: it may be a fault of
        the tool.

        Raises: MMReasonError for what only the user can cure, such as a machine without any isolation for `python`.
        """
        start = time.perf_counter()
        try:
            content, error = self._cut(self._run(call)), None
        except ToolError as problem:
            content, error = self._cut(f"Error: {problem}"), problem.kind
        except MMReasonError:
            raise
        except Exception as problem:
            _log.warning("tool %s failed on %.500r", call.name, call.arguments, exc_info=True)
            content, error = f"Error: {type(problem).__name__}: {str(problem)[:_MAX_ERROR]}", "failed"
        return ToolResult(call, content, error, time.perf_counter() - start)

    def _run(self, call: ToolCall) -> str:
        if not call.name:
            why = why_no_object(call.arguments) if isinstance(call.arguments, str) else "it names no tool"
            wanted = '{"name": "...", "arguments": {...}}'
            raise ToolError("bad_arguments", f"the call can't be read ({why or 'other keys'}); it must be {wanted}")
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools)
            hint = nearest(call.name, self._tools)
            raise ToolError("unknown_tool", f"there is no tool {call.name[:100]!r}; the tools are: {names}{hint}")
        schema = self._arguments[call.name]
        if isinstance(call.arguments, str):
            raise ToolError(
                "bad_arguments",
                f"the arguments of {call.name} must be one JSON object "
                f"({why_no_object(call.arguments) or 'they came as a text'}); {call.name} takes {schema.signature()}",
            )
        problems = schema.problems(call.arguments)
        if problems:
            raise ToolError("bad_arguments", f"{'; '.join(problems)}. {call.name} takes {schema.signature()}")
        return tool.call(call.arguments, timeout_s=self.timeout_s)

    def _cut(self, text: str) -> str:
        """At most max_chars: the beginning, how much is left out, and the end (where a traceback says what it is)."""
        if len(text) <= self.max_chars:
            return text
        room = self.max_chars - 60
        tail = room // 4
        head = room - tail
        return (
            f"{text[:head]}\n[... {len(text) - head - tail:,} of {len(text):,} characters left out ...]\n{text[-tail:]}"
        )
