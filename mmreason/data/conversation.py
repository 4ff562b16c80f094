"""An Example's messages, checked, with what of them is to be learned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmreason._functions import did_you_mean
from mmreason.data.formats.pictures import count_image_parts
from mmreason.types import DataError, Message

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages from the first to the completion's last.

    Attributes:
        messages: each with a `content`.
        supervised: places of the assistant's messages that carry loss, ascending.
        given: text at the beginning of message `opened` that the prompt brings: an answer that was begun.
        opened: the message that continues it; None: the completion's turn begins with itself.
        tools: JSON schemas.
        images: numbers of the Example's images that stand in the messages, in order.
    """

    messages: list[Message]
    supervised: list[int]
    given: str = ""
    opened: int | None = None
    tools: list[dict[str, Any]] | None = None
    images: tuple[int, ...] = ()

    def without(self, first: int, stop: int) -> Conversation:
        """The same without the messages from `first` up to `stop`."""
        count = stop - first
        moved = [k if k < first else k - count for k in self.supervised if not first <= k < stop]
        opened = self.opened if self.opened is None or self.opened < first else self.opened - count
        a, b = count_image_parts(self.messages[:first]), count_image_parts(self.messages[:stop])
        return replace(
            self,
            messages=self.messages[:first] + self.messages[stop:],
            supervised=moved,
            opened=opened,
            images=self.images[:a] + self.images[b:],
        )

    def until(self, stop: int, supervised: Sequence[int]) -> Conversation:
        """The same up to `stop`, with loss on the given messages."""
        opened = self.opened if self.opened is not None and self.opened < stop else None
        images = self.images[: count_image_parts(self.messages[:stop])]
        return replace(self, messages=self.messages[:stop], supervised=list(supervised), opened=opened, images=images)


def read_conversation(example: Mapping[str, Any], turns: Literal["last", "all"]) -> Conversation:
    """Check the messages of an Example and join prompt and completion.

    A prompt that ends in an assistant's message is an answer that was begun: the completion's first message continues
    it, and only what it adds carries loss.

    Raises: DataError: no completion, unknown roles, contents that are neither text nor parts, empty assistant turns,
        texts that no tokenizer or Arrow file takes.
    """
    prompt, completion = example.get("prompt"), example.get("completion")
    if not completion:
        raise DataError("there is nothing to learn: the completion is empty", reason="missing_completion")
    if not prompt:
        raise DataError("the prompt has no messages", reason="missing_prompt")
    before = [_checked(message, f"message {i}") for i, message in enumerate(_list(prompt, "prompt"), 1)]
    answer = [
        _checked(message, f"completion message {i}") for i, message in enumerate(_list(completion, "completion"), 1)
    ]
    _check_completion(answer)
    given, opened = "", None
    if before[-1]["role"] == "assistant":
        opened = len(before) - 1
        given, answer[0] = _continued(before.pop(), answer[0])
    messages = before + answer
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and is_silent(message):
            raise DataError(f"message {number} is an assistant's, and says nothing", reason="empty_turn")
    first = len(before) if turns == "last" else 0
    supervised = [k for k in range(first, len(messages)) if messages[k]["role"] == "assistant"]
    images = tuple(range(count_image_parts(messages)))
    return Conversation(messages, supervised, given, opened, _tools(example.get("tools")), images)


def is_silent(message: Message) -> bool:
    """Whether a message has neither text nor thoughts, tool calls or images."""
    return not (
        text_of(message).strip()
        or (message.get("reasoning_content") or "").strip()
        or message.get("tool_calls")
        or has_image_part(message)
    )


def text_of(message: Message) -> str:
    """The texts of a message's content, joined."""
    return "".join(text_parts(message))


def text_parts(message: Message) -> list[str]:
    """The texts of a message's content: one where it is a text, else those of its text parts."""
    content = message["content"]
    return [content] if isinstance(content, str) else [str(part["text"]) for part in content if "text" in part]


def has_image_part(message: Message) -> bool:
    """Whether an image stands in a message."""
    return not isinstance(message["content"], str) and any(part.get("type") == "image" for part in message["content"])


def tool_leaves(message: Message) -> Iterator[Any]:
    """Names, argument names and values of a message's tool calls, one by one."""
    for call in message.get("tool_calls") or ():
        yield call["function"]["name"]
        yield from _leaves(call["function"]["arguments"])


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, cell in value.items():
            yield key
            yield from _leaves(cell)
    elif isinstance(value, (list, tuple)):
        for cell in value:
            yield from _leaves(cell)
    else:
        yield value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"the {name} is {type(value).__name__}, not a list of messages", reason="bad_messages")
    return list(value)


def _checked(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f'{where} is no message: {{"role": …, "content": …}} is due', reason="bad_messages")
    role = message["role"]
    if role not in ROLES:
        hint = did_you_mean(role.lower(), ROLES)
        raise DataError(
            f"{where} has the unknown role {role!r}; known: {', '.join(ROLES)}.{hint}", reason="unknown_role"
        )
    content = message.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        if not isinstance(content, (list, tuple)) or not all(_is_part(part) for part in content):
            raise DataError(
                f'{where}: its content is neither a text nor a list of parts ({{"type": "text", "text": …}}, '
                '{"type": "image"})',
                reason="bad_messages",
            )
        content = list(content)
    checked: dict[str, Any] = {key: value for key, value in message.items() if value is not None} | {"content": content}
    if "tool_calls" in checked:
        checked["tool_calls"] = _tool_calls(checked["tool_calls"], where)
        if not checked["tool_calls"]:
            del checked["tool_calls"]
    if not isinstance(checked.get("reasoning_content", ""), str):
        raise DataError(f"{where}: its reasoning_content is no text", reason="bad_messages")
    check_text(checked, where)
    return checked  # type: ignore[return-value]


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)):
        raise DataError(f"{where}: its tool_calls are no list", reason="bad_messages")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(
                f'{where}: a tool call is not {{"function": {{"name": …, "arguments": …}}}}', reason="bad_tool_call"
            )
    return [
        {**call, "type": "function", "function": {**call["function"], "arguments": _arguments(call["function"], where)}}
        for call in calls
    ]


def _arguments(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call's arguments as a dict, which is what chat templates take; OpenAI's API has them as JSON text."""
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise DataError(f"{where}: the arguments of {function['name']!r} are no JSON object", reason="bad_tool_call")
    return dict(arguments)


def check_text(value: Any, where: str) -> None:
    """Raise DataError where a text in `value`, at any depth, has a null byte or a lone surrogate."""
    if isinstance(value, str):
        if "\x00" in value:
            raise DataError(
                f"{where}: character {value.index(chr(0)) + 1} of a text of {len(value)} is a null byte",
                reason="null_bytes",
            )
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: character {error.start + 1} of a text of {len(value)} is a lone surrogate",
                reason="bad_unicode",
            ) from None
    elif isinstance(value, Mapping):
        for cell in (*value.keys(), *value.values()):
            check_text(cell, where)
    elif isinstance(value, (list, tuple)):
        for cell in value:
            check_text(cell, where)


def _check_completion(answer: Sequence[Message]) -> None:
    roles = [message["role"] for message in answer]
    if roles[0] != "assistant" or roles[-1] != "assistant" or set(roles) - {"assistant", "tool"}:
        raise DataError(
            f"the completion (roles {', '.join(roles)}) is no assistant's turn: it begins and ends with the assistant, "
            "and has nothing but tool results between",
            reason="bad_messages",
        )
    if any(has_image_part(message) for message in answer if message["role"] == "assistant"):
        raise DataError("an image stands in the assistant's own turn; models here don't draw", reason="bad_messages")


def _continued(begun: Message, rest: Message) -> tuple[str, Message]:
    """(what is given, the whole message) of an answer that the prompt begins and the completion continues."""
    given = text_of(begun)
    if begun.get("reasoning_content") or begun.get("tool_calls") or rest.get("reasoning_content") or not given.strip():
        raise DataError(
            "the prompt ends in an assistant's message that the completion can't continue: only an answer that was "
            "begun can be, without reasoning_content or tool_calls",
            reason="bad_messages",
        )
    return given, {**rest, "content": given + text_of(rest)}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("tools are no list of JSON schemas", reason="bad_tools")
    check_text(tools, "tools")
    return [dict(tool) for tool in tools] or None
