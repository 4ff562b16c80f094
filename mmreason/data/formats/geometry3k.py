"""Geometry3K (arXiv 2105.04165): ``problem_text``, ``choices``, ``answer`` (a letter), a diagram.

``compact_text`` and ``compact_choices`` are the same texts without the spaces between tokens ("A B = 30").
The hub's copies with ``problem`` and ``answer`` are rows of format "math".
"""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    choice_cell,
    letter_of,
    lettered,
    shorten,
    text_cell,
    user_message,
)
from mmreason.types import Example

EXTRA = ("logic_form", "problem_type_graph", "problem_type_goal", "precise_value")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"problem_text", "choices", "answer"} <= columns


def parse(row: Row, index: int) -> Example:
    """Prompt: the problem and its lettered choices. Gold: the letter."""
    question = text_cell(row, "compact_text" if row.get("compact_text") else "problem_text", "missing_prompt")
    choices = choice_cell(row, "compact_choices" if row.get("compact_choices") else "choices")
    gold = text_cell(row, "answer", "missing_answer").upper()
    if gold not in [letter_of(i) for i in range(len(choices))]:
        raise RowError("bad_gold", f"'answer' is {shorten(row['answer'])} with {len(choices)} choices")
    example: Example = {
        "prompt": user_message(f"{question}\n{lettered(choices)}"),
        "answer": gold,
        "meta": {"kind": "choice", "choices": choices} | {key: row[key] for key in EXTRA if row.get(key) is not None},
    }
    if row.get("id") is not None:
        example["id"] = str(row["id"])
    return example


FORMAT = Format("geometry3k", parse, detect)
