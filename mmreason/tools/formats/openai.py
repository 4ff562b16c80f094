"""Tool calls of chat messages: the OpenAI form, and the text that Hermes and Qwen chat templates make of it.

A message: {"role": "assistant", "content": ..., "tool_calls": [{"id": "c1", "type": "function", "function": {"name":
"calculator", "arguments": "{\\"expression\\": \\"3*4\\"}"}}]}, answered by one {"role": "tool", "tool_call_id": "c1",
"content": "12"} for each call. As text, several calls in a row:

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "3*4"}}
    </tool_call>

answered by `<tool_response>` blocks. A call that can't be read keeps its raw text as `ToolCall.arguments` (its name is
"" where that can't be read either); `Toolbox.run` answers it with an error.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.tools._objects import read_object, why_no_object
from mmreason.tools.types import ToolCall, ToolResult
from mmreason.types import DataError

STOP = ("<tool_response>",)
"""Where a completion in the text form must end: results are written by the host, never by the model."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"\s*")
_NEXT = re.compile(rf"{_OPEN}|{_CLOSE}")


@dataclass(frozen=True, slots=True)
class CallText:
    """A completion in the text form. parts: text and calls as they alternate, no two texts beside each other."""

    parts: tuple[str | ToolCall, ...]

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def text(self) -> str:
        """What stands outside the calls."""
        return "".join(part for part in self.parts if isinstance(part, str)).strip()


def parse_message(message: Mapping[str, Any]) -> list[ToolCall]:
    """The calls of an assistant message, [] where it has none.

    Arguments are JSON text, as the API sends them, or mappings, as chat templates take them.

    Raises: DataError where `tool_calls` isn't of the OpenAI form; servers write it, not models.
    """
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise DataError(f"tool_calls must be a list, not {type(calls).__name__}", reason="bad_messages")
    found = []
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            raise DataError(
                f'tool_calls[{number}] has no {{"function": {{"name": ..., "arguments": ...}}}}', reason="bad_messages"
            )
        found.append(ToolCall(name, _arguments(function.get("arguments", {})), str(call.get("id") or "")))
    return found


def render_message(calls: Sequence[ToolCall], content: str = "") -> dict[str, Any]:
    """The assistant message that makes these calls. `parse_message` gives them back."""
    rendered = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments if isinstance(call.arguments, str) else _dumps(call.arguments),
            },
        }
        for call in calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | ({"tool_calls": rendered} if rendered else {})


def render_result(result: ToolResult) -> dict[str, Any]:
    """The `tool` message that answers a call."""
    call = result.call
    return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result.content}


def parse_text(text: str) -> CallText:
    """The calls of a completion in the text form, and the text around them."""
    parts: list[str | ToolCall] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        if start > position:
            parts.append(text[position:start])
        call, position = _call_at(text, start + len(_OPEN))
        parts.append(call)
    if position < len(text):
        parts.append(text[position:])
    return CallText(tuple(parts))


def render_text(parts: Sequence[str | ToolCall]) -> str:
    """Text and calls as a completion in the text form. `parse_text` gives the same parts back.

    Raises: ValueError for a text with "<tool_call>" in it.
    """
    rendered = []
    for part in parts:
        if isinstance(part, ToolCall):
            raw = isinstance(part.arguments, str) and not part.name
            body = part.arguments if raw else _dumps({"name": part.name, "arguments": part.arguments})
            rendered.append(f"{_OPEN}\n{body}\n{_CLOSE}")
        elif _OPEN in part:
            raise ValueError(f"a text between calls can't hold {_OPEN}")
        else:
            rendered.append(part)
    return "".join(rendered)


def render_response(results: Sequence[ToolResult]) -> str:
    """The text that answers the calls, in their order; chat templates put it into a user turn."""
    return "\n".join(f"<tool_response>\n{result.content}\n</tool_response>" for result in results)


def _call_at(text: str, start: int) -> tuple[ToolCall, int]:
    """The call whose body starts at `start`, and where the text goes on behind it."""
    body = _after_space(text, start)
    # The JSON decides where the call ends: "</tool_call>" may stand in one of its strings.
    end = None
    if text.startswith("{", body):
        with contextlib.suppress(ValueError, RecursionError):
            _, end = json.JSONDecoder().raw_decode(text, body)
    if end is not None:
        after = _after_space(text, end)
        if text.startswith(_CLOSE, after):
            return _named(text[body:end]), after + len(_CLOSE)
    match = _NEXT.search(text, start)
    if match is None:
        return ToolCall("", text[start:].strip()), len(text)
    return ToolCall("", text[start : match.start()].strip()), match.end() if match[0] == _CLOSE else match.start()


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _named(body: str) -> ToolCall:
    """The call of {"name": ..., "arguments": ...}; its raw text under no name where it is anything else."""
    try:
        value = read_object(body)
    except ValueError:
        return ToolCall("", body)
    if not isinstance(value.get("name"), str) or not value["name"] or set(value) - {"name", "arguments", "id"}:
        return ToolCall("", body)
    arguments = value.get("arguments", {})
    if not isinstance(arguments, (str, dict)):
        return ToolCall("", body)
    return ToolCall(value["name"], _arguments(arguments), str(value.get("id") or ""))


def _arguments(value: Any) -> dict[str, Any] | str:
    """Arguments as a mapping; as their raw text where they are no JSON object."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        return _dumps(value)
    return value if why_no_object(value) else read_object(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
