"""Alpaca's form: ``instruction``, ``input``, ``output``; also ``system``, ``history`` (LLaMA-Factory), and seed tasks.

Instruction and input make the user's message, an empty line between them. ``history`` is a list of earlier turns, pairs
of what was asked and answered. Instead of ``output`` rows may have ``chosen`` and ``rejected`` (DPO). ``label`` is
KTO's. Marks ``<think>...</think>`` at the start of an output are its thoughts. The seed tasks of self-instruct (arXiv
2212.10560) hold several ``instances`` of input and output for one instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    extras,
    number_text,
    shorten,
    take_label,
    take_name,
    text_cell,
)
from mmreason.data.formats.conversations import check_messages, tool_schemas
from mmreason.data.formats.messages import PAIR, pair_of, with_system
from mmreason.types import Example, Message

_USED = frozenset(
    {"instruction", "input", "output", "system", "history", "tools", "label", "kto_tag", "answer", "instances", *PAIR}
)


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "instruction" in columns and ("output" in columns or set(PAIR) <= columns)


def parse(row: Row, index: int) -> Example:
    """Prompt: system, history, then instruction and input. Completion: the output."""
    asked = text_cell(row, "instruction", "missing_prompt")
    given = row.get("input")
    if isinstance(given, str) and given.strip():
        asked += "\n\n" + given.strip()
    prompt = [
        *with_system(_history(row.get("history")), row),
        *check_messages([{"role": "user", "content": asked}], "prompt"),
    ]
    example: Example = {"prompt": prompt, "meta": {"kind": None, "choices": None} | extras(row, _USED)}
    if any(row.get(side) for side in PAIR):
        example |= pair_of(row, prompt, lambda turns, name: turns)
    else:
        text_cell(row, "output", "missing_completion")
        output = {"role": "assistant", "content": row["output"]}
        example["completion"] = check_messages([output], "output", foreign=True)
    if row.get("answer") is not None:
        example["answer"] = number_text(row["answer"])
    take_label(example, row)
    tools = tool_schemas(row.get("tools"))
    if tools:
        example["tools"] = tools
    take_name(example, row)
    return example


def _history(cell: Any) -> list[Message]:
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise RowError("bad_messages", f"'history' is {shorten(cell)}, no list of pairs")
    turns: list[dict[str, Any]] = []
    for pair in cell:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError("bad_messages", f"'history' has {shorten(pair)}, no pair of what was asked and answered")
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    return check_messages(turns, "history", foreign=True) if turns else []


def detect_seed(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"instruction", "instances"} <= columns


def split_seed(row: Row) -> list[Row]:
    """A row for each instance of the task."""
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances or not all(isinstance(item, Mapping) for item in instances):
        raise RowError("missing_completion", f"'instances' is {shorten(instances)}")
    task = {name: row[name] for name in row if name != "instances"}
    if len(instances) == 1:
        return [task | instances[0]]
    return [task | item | {"id": f"{row['id']}/{i}" if row.get("id") else None} for i, item in enumerate(instances)]


FORMAT = Format(
    "alpaca",
    parse,
    detect,
    own_template=True,
    many_sets=True,
    mapped=(
        "instruction",
        "input",
        "output",
        "system",
        "history",
        "tools",
        "images",
        "label",
        *PAIR,
        "answer",
        "id",
        "source",
    ),
)
SEED = Format("self_instruct", parse, detect_seed, own_template=True, split=split_seed)
