"""MathVista (arXiv 2310.02255): ``question``, ``choices``, ``answer``, ``answer_type``, ``precision``, ``unit`` ...

The prompt is made from ``question``; the set's own ``query`` carries hints for one way of evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

_KINDS = {"integer": "number", "float": "number", "list": "math", "text": None}
EXTRA = ("task", "category", "context", "grade", "skills", "subfield", "source")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "answer", "question_type", "answer_type", "precision"} <= columns


def parse(row: Row, index: int) -> Example:
    """Gold: the letter of the choice, else the answer; unit and number of decimals are told in the question."""
    text = text_cell(row, "question", "missing_prompt")
    unit = row["unit"].strip() if isinstance(row.get("unit"), str) else ""
    precision = row.get("precision")
    if unit:
        text += f" (Unit: {unit})"
    if row.get("answer_type") == "float" and isinstance(precision, (int, float)) and precision >= 1:
        text += f" (Decimal places: {int(precision)})"
    choices = choice_cell(row) if row.get("choices") else None
    if choices is not None:
        text += f"\n{lettered(choices)}"
    gold = _gold(row, choices)
    kind = "choice" if choices is not None else _KINDS.get(str(row.get("answer_type")))
    details = row.get("metadata")
    example: Example = {
        "prompt": user_message(text),
        "answer": gold,
        "meta": {"kind": kind if gold is not None else None, "choices": choices}
        | ({"unit": unit} if unit else {})
        | ({key: details[key] for key in EXTRA if details.get(key)} if isinstance(details, Mapping) else {}),
    }
    if row.get("pid") is not None:
        example["id"] = str(row["pid"])
    return example


def _gold(row: Row, choices: list[str] | None) -> str | None:
    """None where the row has no answer: those of the test split are kept back."""
    if not row.get("answer"):
        return None
    answer = text_cell(row, "answer", "missing_answer")
    if choices is None:
        return answer
    if answer not in choices:
        raise RowError("bad_choices", f"'answer' is {shorten(answer)}, not one of {shorten(choices)}")
    return letter_of(choices.index(answer))


FORMAT = Format("mathvista", parse, detect)
