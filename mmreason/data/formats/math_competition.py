"""MATH (arXiv 2103.03874) and its copies: ``problem`` with ``solution`` and/or ``answer``.

Without an ``answer`` column the gold is the last ``\\boxed{...}`` of the solution.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    number_text,
    shorten,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example

EXTRA = ("subject", "type", "level", "difficulty")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "problem" in columns and bool({"answer", "solution"} & columns) and not {"choices", "options"} & columns


def parse(row: Row, index: int) -> Example:
    """Gold: ``answer`` where the row has that column (null is a bad gold, never guessed), else from the solution."""
    problem = text_cell(row, "problem", "missing_prompt")
    solution = row.get("solution")
    solution = solution.strip() if isinstance(solution, str) else None
    if "answer" in row:
        gold = number_text(row["answer"])
        if not gold:
            raise RowError("bad_gold", f"'answer' is {shorten(row['answer'])}")
    else:
        gold = _gold_of(solution)
    example: Example = {
        "prompt": user_message(problem),
        "answer": gold,
        "meta": {"kind": None, "choices": None} | {key: row[key] for key in EXTRA if row.get(key) is not None},
    }
    if solution:
        example["completion"] = worked_completion(solution, gold)
    if isinstance(row.get("unique_id"), str):
        example["id"] = row["unique_id"]
    return example


def _gold_of(solution: str | None) -> str:
    from mmreason.answers import gold_answer

    if not solution:
        raise RowError("missing_answer", "neither 'answer' nor 'solution'")
    gold = gold_answer(solution)
    if not gold:
        raise RowError("bad_gold", f"no \\boxed{{...}} in the solution ...{shorten(solution[-60:])}")
    return gold


FORMAT = Format("math", parse, detect)
