"""The ways in which chat templates take what a message says, and the pieces of a turn that are looked for in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.data.conversation import text_parts, tool_leaves
from mmreason.data.loss_spans import Kind
from mmreason.types import Message

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way of handing messages to a template. The last message is the turn that is rendered.

    Attributes:
        apply: messages → messages as the template takes them.
        applies: whether that changes anything.
        word: what the model's own template must hold for it to make sense.
        own_only: for the model's own template; TRL's training variants do without.
    """

    name: str
    apply: Callable[[Sequence[Message]], list[Message]]
    applies: Callable[[Sequence[Message]], bool]
    own_only: bool = False
    word: str = ""


def _thinking(messages: Sequence[Message]) -> list[Message]:
    return [
        {**message, "thinking": message["reasoning_content"]} if message.get("reasoning_content") else message  # type: ignore[typeddict-unknown-key]
        for message in messages
    ]


def _arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    def written(call: Any) -> Any:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": text}}

    return [{**m, "tool_calls": [written(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages]


def _without_content(messages: Sequence[Message]) -> list[Message]:
    bare: list[Any] = [
        {**m, "content": None} if m.get("tool_calls") and not m["content"] else m for m in _arguments_as_text(messages)
    ]
    return bare


def _thought_in_content(messages: Sequence[Message]) -> list[Message]:
    last: dict[str, Any] = dict(messages[-1])
    thought = last.pop("reasoning_content").strip("\n")
    last["content"] = f"<think>\n{thought}\n</think>\n\n{last['content']}"
    return [*messages[:-1], last]  # type: ignore[list-item]


def _calls(messages: Sequence[Message]) -> bool:
    return any(message.get("tool_calls") for message in messages)


def _thinks(messages: Sequence[Message]) -> bool:
    return any((message.get("reasoning_content") or "").strip() for message in messages)


DIALECTS = (
    Dialect("as they are", list, lambda messages: True),
    Dialect("thoughts as thinking", _thinking, _thinks),  # gpt-oss, LFM2.5
    Dialect("arguments as JSON text", _arguments_as_text, _calls, own_only=True),  # DeepSeek-V3
    Dialect("calls without content", _without_content, _calls, own_only=True),  # DeepSeek-R1
    Dialect(  # DeepSeek-R1, whose templates know thoughts in the content only
        "thought in the content",
        _thought_in_content,
        lambda messages: _thinks(messages[-1:]) and isinstance(messages[-1]["content"], str),
        word="</think>",
    ),
)
"""In the order in which they are tried."""


def split_thoughts(messages: Sequence[Message]) -> list[Message]:
    """Assistant messages whose content is <think>…</think>… with the thought as reasoning_content."""
    split: list[Message] = []
    for message in messages:
        content = message["content"]
        found = _THOUGHT.fullmatch(content) if isinstance(content, str) and message["role"] == "assistant" else None
        if found is None or message.get("reasoning_content"):
            split.append(message)
        else:
            thought, answer = (text.strip("\n") for text in found.groups())
            split.append({**message, "reasoning_content": thought, "content": answer})
    return split


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that a turn says: a text, or all its tool calls.

    Attributes:
        kind: what it is to the loss. field: where it stands in the message, for errors.
        text: as the row has it. leaves: names and values of tool calls, instead.
    """

    kind: Kind
    field: str
    text: str = ""
    leaves: tuple[Any, ...] = ()

    def texts(self) -> list[str]:
        """All texts of the piece."""
        return [leaf for leaf in self.leaves if isinstance(leaf, str)] or [self.text]

    def marks(self, number: int) -> tuple[str, str]:
        """What stands for the piece's beginning and end in a probe, as the turn's piece of that number."""
        if self.kind == "tool_call":
            return mark("Call"), mark("Value")
        return mark(f"Piece{number}"), mark(f"Piece{number}")

    def ends(self, text: str, begin: int, stop: int) -> Iterator[int]:
        """Where the piece may end that begins at `begin` and is all there, white space at its ends aside."""
        if self.kind == "tool_call":
            if all(has_text(text[begin:stop], leaf) for leaf in self.leaves):
                yield stop
            return
        said = self.text
        breaks = (said.strip("\n"), said.lstrip("\n"), said.rstrip("\n"))
        for variant in sorted({said, *breaks, said.lstrip(), said.rstrip(), said.strip()}, key=len)[::-1]:
            if text.startswith(variant, begin):
                yield begin + len(variant)


def has_text(text: str, said: Any) -> bool:
    """Whether a text has a value in one of the ways in which templates write it: plain, as JSON or as Python."""
    if not isinstance(said, str):
        return any(form.lower() in text.lower() for form in (str(said), json.dumps(said)))
    plain = said.strip()
    escaped = (json.dumps(plain, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return any(form in text for form in (plain, *escaped, repr(plain)[1:-1]))


def pieces_of(message: Message) -> list[Piece]:
    """What a turn says, in the order in which templates write it."""
    pieces: list[Piece] = []
    thought = message.get("reasoning_content") or ""
    if thought.strip():
        pieces.append(Piece("reasoning", "reasoning_content", thought))
    pieces += [Piece("answer", "content", text) for text in text_parts(message) if text.strip()]
    if message.get("tool_calls"):
        pieces.append(Piece("tool_call", "tool_calls", leaves=tuple(tool_leaves(message))))
    return pieces


def mark(name: str) -> str:
    """A word that no template writes by itself."""
    return f"Q{name}zq"


def generic(messages: Sequence[Message]) -> list[Message]:
    """A conversation of the same structure, in which every text is a letter."""
    return [_generic(message) for message in messages]


def _generic(message: Mapping[str, Any]) -> Message:
    plain: dict[str, Any] = dict(message)
    for key, value in message.items():
        if key == "tool_calls":
            plain[key] = [_generic_call(call) for call in value]
        elif key == "content" and isinstance(value, list):
            plain[key] = [{**part, "text": _letter(part["text"])} if "text" in part else part for part in value]
        elif isinstance(value, str) and key != "role":
            plain[key] = "f" if key == "name" else _letter(value)
    return plain  # type: ignore[return-value]


def _letter(text: str) -> str:
    return "x" if text.strip() else ""


def _generic_call(call: Mapping[str, Any], name: str = "f", value: str = "v") -> dict[str, Any]:
    plain: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": {"a": value}}}
    return plain | ({"id": "x"} if "id" in call else {})


def marked(message: Message) -> Message:
    """A message of `generic` with marks in place of its pieces (see `Piece.marks`)."""
    probe: dict[str, Any] = dict(message)
    number = 0
    if probe.get("reasoning_content"):
        probe["reasoning_content"] = mark("Piece0")
        number = 1
    if isinstance(probe["content"], str):
        probe["content"] = mark(f"Piece{number}") if probe["content"] else ""
    else:
        parts = []
        for part in probe["content"]:
            if part.get("text"):
                part = {**part, "text": mark(f"Piece{number}")}
                number += 1
            parts.append(part)
        probe["content"] = parts
    if probe.get("tool_calls"):
        first, *others = probe["tool_calls"]
        calls = [_generic_call(first, name=mark("Call"), value="v" if others else mark("Value")), *others]
        if others:
            calls[-1] = _generic_call(others[-1], value=mark("Value"))
        probe["tool_calls"] = calls
    return probe  # type: ignore[return-value]
