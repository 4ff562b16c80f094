"""Rows that already are Examples (see mmreason.types.Example): what our builders write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, user_message
from mmreason.data.formats.conversations import check_messages, read_json, tool_schemas
from mmreason.data.formats.trl import checked_steps
from mmreason.types import Example


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    one = {"answer", "completion", "chosen"} & columns
    return ({"prompt", "meta"} <= columns and bool(one)) or {"text", "meta", "id", "source"} <= columns


def parse(row: Row, index: int) -> Example:
    """The row itself, checked: roles and contents of its messages, the types of answer, id, source and meta."""
    prompt = row.get("prompt")
    example: Example = {}
    if isinstance(prompt, str) and prompt.strip():
        example["prompt"] = user_message(prompt.strip())
    elif prompt is not None or row.get("text") is None:
        example["prompt"] = check_messages(prompt, "prompt")
    for side in ("completion", "chosen", "rejected"):
        said = row.get(side)
        if isinstance(said, str):
            if not said.strip():
                raise RowError("empty_turn", f"{side!r} is {shorten(said)}")
            example[side] = [{"role": "assistant", "content": said}]  # type: ignore[literal-required]
        elif said is not None:
            example[side] = check_messages(said, side)  # type: ignore[literal-required]
    for name, kind in (("text", str), ("label", bool)):
        if isinstance(row.get(name), kind):
            example[name] = row[name]  # type: ignore[literal-required]
    if row.get("completions") is not None:
        example["completions"], example["labels"] = checked_steps(row)
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise RowError("bad_gold", f"'answer' is {shorten(answer)}, not a text")
    example["answer"] = answer
    meta = row.get("meta")
    if isinstance(meta, str):
        meta = read_json(meta, "meta")
    if meta is not None and not isinstance(meta, Mapping):
        raise RowError("bad_messages", f"'meta' is {shorten(meta)}, not a mapping")
    example["meta"] = {"kind": None, "choices": None} | dict(meta or {})
    for name in ("id", "source"):
        if row.get(name) is not None:
            example[name] = str(row[name])  # type: ignore[literal-required]
    tools = tool_schemas(row.get("tools"))
    if tools:
        example["tools"] = tools
    if row.get("images"):
        example["images"] = row["images"]
    return example


FORMAT = Format("canonical", parse, detect, own_template=True, many_sets=True, bare_marks=True)
