"""HumanEval (arXiv 2107.03374): ``prompt`` (a function's head), ``canonical_solution``, ``test``, ``entry_point``."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, text_cell, user_message, worked_completion
from mmreason.types import Example


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"task_id", "prompt", "canonical_solution", "test", "entry_point"} <= columns


def parse(row: Row, index: int) -> Example:
    """Prompt and completion are kept to the last space: together they are the program. ``meta``: tests, entry_point."""
    for name in ("prompt", "test", "entry_point"):
        text_cell(row, name, "missing_prompt")
    text_cell(row, "canonical_solution", "missing_completion")
    return {
        "prompt": user_message(row["prompt"]),
        "completion": worked_completion(None, row["canonical_solution"]),
        "id": text_cell(row, "task_id", "missing_prompt"),
        "answer": None,
        "meta": {"kind": None, "choices": None, "tests": row["test"], "entry_point": row["entry_point"]},
    }


FORMAT = Format("humaneval", parse, detect, own_template=True)
