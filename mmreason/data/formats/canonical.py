"""Rows that already are Examples (see mmreason.types.Example): what our builders write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import Format, Row, RowError, shorten, user_message
from mmreason.types import Example, Message

ROLES = ("system", "developer", "user", "assistant", "tool")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"prompt", "answer", "meta"} <= columns or {"prompt", "completion", "meta"} <= columns


def parse(row: Row, index: int) -> Example:
    """The row itself, checked: roles and contents of its messages, the types of answer, id, source and meta."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        example: Example = {"prompt": user_message(prompt.strip())}
    else:
        example = {"prompt": check_messages(prompt, "prompt")}
    completion = row.get("completion")
    if isinstance(completion, str):
        example["completion"] = [{"role": "assistant", "content": completion}]
    elif completion is not None:
        example["completion"] = check_messages(completion, "completion")
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise RowError("bad_gold", f"'answer' is {shorten(answer)}, not a text")
    example["answer"] = answer
    meta = row.get("meta")
    if isinstance(meta, str):
        meta = _json(meta, "meta")
    if meta is not None and not isinstance(meta, Mapping):
        raise RowError("bad_messages", f"'meta' is {shorten(meta)}, not a mapping")
    example["meta"] = {"kind": None, "choices": None} | dict(meta or {})
    for name in ("id", "source"):
        if row.get(name) is not None:
            example[name] = str(row[name])  # type: ignore[literal-required]
    for name in ("tools", "images"):
        if row.get(name):
            example[name] = row[name]  # type: ignore[literal-required]
    return example


def check_messages(value: Any, name: str) -> list[Message]:
    """A list of messages with known roles and text or parts as content. Cells that hold JSON text are decoded.

    Struct columns give every message every key; keys that are None are left out again.
    """
    if isinstance(value, str):
        value = _json(value, name)
    if not isinstance(value, list) or not value:
        raise RowError(
            "missing_prompt" if name == "prompt" and not value else "bad_messages", f"{name!r} is {shorten(value)}"
        )
    messages: list[Message] = []
    for item in value:
        message = _json(item, name) if isinstance(item, str) else item
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise RowError("bad_messages", f"{name!r} has {shorten(message)}; roles are {', '.join(ROLES)}")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = _parts(content, name)
        if content is None and not (message.get("tool_calls") or message.get("reasoning_content")):
            raise RowError("bad_messages", f"{name!r} has a message without content: {shorten(message)}")
        kept = {key: cell for key, cell in message.items() if cell is not None}
        messages.append(kept | {"content": "" if content is None else content})  # type: ignore[arg-type]
    return messages


def _parts(content: Any, name: str) -> list[dict[str, Any]]:
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise RowError("bad_messages", f"{name!r} has the content part {shorten(part)}")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise RowError("bad_messages", f"{name!r} has a text part without text: {shorten(part)}")
    return [{key: cell for key, cell in part.items() if cell is not None} for part in parts]


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError("bad_messages", f"{name!r} holds no JSON: {error}") from None


FORMAT = Format("canonical", parse, detect, own_template=True)
