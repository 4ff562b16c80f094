"""What the formats of conversations share: messages, thoughts, tool calls and their results, the last turn.

A conversation becomes ``prompt``, all messages before the model's last turn, and ``completion``, that turn: one
message, or, where it calls tools, calls, results and answer. One that ends with a user's message has no completion.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.data.formats.common import RowError, shorten
from mmreason.tools.schemas import standard_name, standard_tool
from mmreason.types import ConfigError, ContentPart, Message, ToolCallPart

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""Other names of the roles, as ShareGPT files, Gemma and Llama have them."""
CALLS = ("function_call", "tool_call")
"""Roles whose content is a call (or a list of calls) as JSON."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_THINK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def check_messages(value: Any, name: str, *, foreign: bool = False) -> list[Message]:
    """A list of messages with known roles and text or parts as content. Cells that hold JSON text are decoded.

    Struct columns give every message every key; keys that are None are left out again. The arguments of tool calls may
    be JSON text; they become dicts.

    Args:
        name: what to call the value in errors.
        foreign: take what other programs write: the names of roles in `ALIASES`, thoughts called ``reasoning`` or
            ``thinking``, or at the start of an assistant's text between ``<think>`` and ``</think>``; parts of type
            "reasoning" and "tool_call"; a single text part becomes a text; system messages without text are left out.

    Raises: RowError for what is no list of messages, unknown roles, turns that say nothing, tool calls that can't be
        read, and results that answer no call.
    """
    if isinstance(value, str):
        value = read_json(value, name)
    if not isinstance(value, list) or not value:
        raise RowError(
            "missing_prompt" if name == "prompt" and not value else "bad_messages", f"{name!r} is {shorten(value)}"
        )
    messages = [_message(item, name, foreign) for item in value]
    messages = [
        message for message in messages if not (foreign and message["role"] == "system" and _says_nothing(message))
    ]
    check_results(messages)
    return messages


def _message(item: Any, name: str, foreign: bool) -> Message:
    message = read_json(item, name) if isinstance(item, str) else item
    if not isinstance(message, Mapping):
        raise RowError("bad_messages", f"{name!r} has {shorten(message)}, which is no message")
    given = message.get("role")
    kept: dict[str, Any] = {key: cell for key, cell in message.items() if cell is not None}
    kept["role"] = _role(given, foreign)
    content = message.get("content")
    if foreign and given in CALLS:
        kept["tool_calls"], content = tool_calls(content), None
    if foreign and isinstance(kept.get("function_call"), Mapping) and "tool_calls" not in kept:
        kept["tool_calls"] = [kept.pop("function_call")]  # OpenAI's form before there were tools
    if foreign:
        _name_thoughts(kept)
    if content is not None and not isinstance(content, str):
        content = _foreign_parts(content, kept) if foreign else _parts(content)
    if foreign and isinstance(content, str) and kept["role"] == "assistant":
        content = _take_thoughts(content, kept)
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    elif kept["role"] != "assistant":
        raise RowError("bad_messages", f"a message of role {kept['role']!r} has tool calls")
    else:
        kept["tool_calls"] = tool_calls(kept["tool_calls"])
    if content is None and kept["role"] in ("user", "system", "developer"):
        raise RowError("bad_messages", f"{name!r} has a message without content: {shorten(message)}")
    settled: Message = kept | {"content": "" if content is None else content}  # type: ignore[assignment]
    if settled["role"] in ("user", "assistant") and _says_nothing(settled):
        raise RowError("empty_turn", f"{name!r} has the {settled['role']} message {shorten(message)}")
    return settled


def _role(given: Any, foreign: bool) -> str:
    if given in ROLES:
        return str(given)
    if foreign and isinstance(given, str) and given in ALIASES:
        return ALIASES[given]
    known = (*ROLES, *ALIASES) if foreign else ROLES
    hint = did_you_mean(given, known) if isinstance(given, str) else ""
    raise RowError("unknown_role", f"{shorten(given)}; roles are {', '.join(known)}.{hint}")


def _says_nothing(message: Message) -> bool:
    content = message["content"]
    if message.get("tool_calls") or message.get("reasoning_content"):
        return False
    if isinstance(content, str):
        return not content.strip()
    return all(part.get("type") == "text" and not part["text"].strip() for part in content)


# Contents


def _parts(content: Any) -> list[ContentPart]:
    if isinstance(content, (int, float)):
        raise RowError("mixed_types", f"'content' is {shorten(content)}, neither a text nor a list of parts")
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise RowError("bad_messages", f"the content part {shorten(part)} has no type")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise RowError("bad_messages", f"a text part without text: {shorten(part)}")
    return [{key: cell for key, cell in part.items() if cell is not None} for part in parts]  # type: ignore[misc]


def _foreign_parts(content: Any, message: dict[str, Any]) -> str | list[ContentPart]:
    """Content parts; thoughts and calls among them (LLaMA-Factory's form, texts under "value") go to their fields."""
    if not isinstance(content, (list, Mapping)):
        return _parts(content)  # which says what it is instead
    parts: list[Any] = content if isinstance(content, list) else [content]
    held: list[Any] = []
    thoughts: list[str] = []
    for part in parts:
        if not isinstance(part, Mapping):
            held.append({"type": "text", "text": part} if isinstance(part, str) else part)
            continue
        kind, text = part.get("type"), part.get("text") if part.get("text") is not None else part.get("value")
        if kind in ("reasoning", "thinking") and isinstance(said := part.get("thinking", text), str):
            thoughts.append(said)
        elif kind in CALLS:
            message["tool_calls"] = [*(message.get("tool_calls") or []), *tool_calls(text)]
        elif kind in ("text", "input_text", "output_text"):
            held.append({"type": "text", "text": text})
        else:
            held.append(part)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    checked = _parts(held) if held or not isinstance(content, list) else []
    if not checked:
        return ""
    return checked[0]["text"] if len(checked) == 1 and checked[0]["type"] == "text" else checked


# Thoughts


def split_thoughts(text: str) -> tuple[str | None, str]:
    """(thoughts, answer) of a text that begins with ``<think>...</think>``; (None, the text) of any other.

    Line breaks around both are left out, as the chat templates of thinking models write them themselves. Thoughts that
    are never closed, or that come later, are text like any other.
    """
    match = _THINK.match(text)
    if match is None:
        return None, text
    return match[1].strip("\n"), text[match.end() :].lstrip("\n")


def _take_thoughts(content: str, message: dict[str, Any]) -> str:
    if message.get("reasoning_content"):
        return content
    thoughts, answer = split_thoughts(content)
    if thoughts and thoughts.strip():
        message["reasoning_content"] = thoughts
    return answer


def _name_thoughts(message: dict[str, Any]) -> None:
    """``reasoning`` and ``thinking`` under the name that chat templates know."""
    held = {name: message.pop(name) for name in _THOUGHTS if name in message}
    said = list(dict.fromkeys(value for value in held.values() if value != ""))
    if len(said) > 1 or not all(isinstance(value, str) for value in said):
        raise RowError("bad_messages", f"the message's thoughts are {shorten(held)}")
    if said and said[0].strip():
        message["reasoning_content"] = said[0]


# Tools


def tool_calls(cell: Any) -> list[ToolCallPart]:
    """Tool calls as chat templates take them, arguments as dicts.

    Args:
        cell: a call or a list of calls, or JSON text of either: ``{"name": ..., "arguments": ...}``, or this under
            "function" (the OpenAI form). Arguments: a mapping, or its JSON text.

    Raises: RowError "bad_tool_call".
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise RowError("bad_tool_call", f"{shorten(cell)} is no JSON: {error}") from None
    return [_tool_call(call) for call in (cell if isinstance(cell, list) else [cell])]


def _tool_call(call: Any) -> ToolCallPart:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name.strip():
        raise RowError("bad_tool_call", f"{shorten(call)} has no name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowError("bad_tool_call", f"the arguments of {name!r} are no JSON: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowError("bad_tool_call", f"the arguments of {name!r} are {shorten(arguments)}, no JSON object")
    settled: ToolCallPart = {
        "type": "function",
        "function": {"name": standard_name(name.strip()), "arguments": dict(arguments)},
    }
    if call.get("id"):
        settled["id"] = str(call["id"])
    return settled


def check_results(messages: Sequence[Message]) -> None:
    """Each result must answer a call: right after the model's message, no more of them than calls, ids that match."""
    calls: list[ToolCallPart] = []
    answered = 0
    for number, message in enumerate(messages, 1):
        if message["role"] != "tool":
            calls, answered = message.get("tool_calls", []), 0
            continue
        answered += 1
        ids = [call.get("id") for call in calls]
        name = message.get("tool_call_id")
        if answered > len(calls):
            raise RowError(
                "tool_result", f"message {number} of {len(messages)} is result {answered} of {len(calls)} calls"
            )
        if name is not None and None not in ids and name not in ids:
            raise RowError(
                "tool_result", f"message {number} answers {shorten(name)}; the calls are {', '.join(map(str, ids))}"
            )


def tool_schemas(cell: Any) -> list[dict[str, Any]]:
    """JSON schemas of tools, ``{"type": "function", "function": {...}}`` each; [] for none.

    Args:
        cell: a list of schemas (also the inner mapping alone, or each as JSON text), or JSON text of the list. The
            dialects of common sets become JSON Schema, see `mmreason.tools.schemas.standard_tool`.

    Raises: RowError "bad_tools".
    """
    if isinstance(cell, str):
        if not cell.strip():
            return []
        cell = _loads(cell)
    if cell is None:
        return []
    if not isinstance(cell, (list, tuple)):
        raise RowError("bad_tools", f"'tools' is {shorten(cell)}, no list")
    tools = []
    for tool in cell:
        try:
            tools.append(_standard(tool if isinstance(tool, str) else json.dumps(tool)))
        except (ConfigError, TypeError, ValueError) as error:
            raise RowError("bad_tools", shorten(str(error), 300)) from None
    return [json.loads(tool) for tool in tools]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError("bad_tools", f"'tools' is no JSON: {error}") from None


@functools.lru_cache(maxsize=4096)
def _standard(tool: str) -> str:
    """A schema in standard form; most rows of a set share theirs, and checking one takes a millisecond."""
    return json.dumps(standard_tool(json.loads(tool)))


# Turns


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """(all messages before the model's last turn, that turn), the turn [] where the last word is the user's.

    Raises: RowError where there is nothing before the only turn.
    """
    asked = [i for i, message in enumerate(messages) if message["role"] not in ("assistant", "tool")]
    start = asked[-1] + 1 if asked else 0
    if not start:
        raise RowError("missing_prompt", f"the conversation begins with the model's turn: {shorten(messages[:1])}")
    return list(messages[:start]), list(messages[start:])


def read_json(text: str, name: str) -> Any:
    """The value of a cell that holds JSON text. Raises: RowError "bad_messages"."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError("bad_messages", f"{name!r} holds no JSON: {error}") from None
