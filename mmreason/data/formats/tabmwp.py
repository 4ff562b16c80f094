"""TabMWP (arXiv 2209.14610): ``question``, ``table`` (text), ``choices``, ``answer``, ``unit``, ``solution`` ...

A row with a picture of its table is asked about the picture; without one the table's text stands before the question.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats import pictures
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
    worked_completion,
)
from mmreason.types import Example

EXTRA = ("table_title", "table", "grade", "ques_type", "ans_type", "split")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "answer", "table", "ques_type"} <= columns


def parse(row: Row, index: int) -> Example:
    """Gold: the letter of the choice, else the number without thousands separators; the question tells its unit."""
    question = text_cell(row, "question", "missing_prompt")
    answer = text_cell(row, "answer", "missing_answer")
    unit = row["unit"].strip() if isinstance(row.get("unit"), str) else ""
    text = f"{question} (Unit: {unit})" if unit else question
    choices = choice_cell(row) if row.get("choices") else None
    if choices is None:
        gold = answer.replace(",", "")
    elif answer in choices:
        gold, text = letter_of(choices.index(answer)), f"{text}\n{lettered(choices)}"
    else:
        raise RowError("bad_choices", f"'answer' is {shorten(answer)}, not one of {shorten(choices)}")
    meta = {"kind": "number" if choices is None else "choice", "choices": choices, "unit": unit or None}
    example: Example = {
        "prompt": user_message(text if pictures.has_image(row) else _table(row) + text),
        "answer": gold,
        "meta": {key: value for key, value in meta.items() if value is not None or key == "choices"}
        | {key: row[key] for key in EXTRA if row.get(key) is not None},
    }
    if isinstance(row.get("solution"), str):
        example["completion"] = worked_completion(row["solution"], gold)
    if row.get("id") is not None:
        example["id"] = str(row["id"])
    return example


def _table(row: Row) -> str:
    table = text_cell(row, "table", "missing_prompt")
    title = row.get("table_title")
    return (f"{title.strip()}\n" if isinstance(title, str) and title.strip() else "") + f"{table}\n\n"


FORMAT = Format("tabmwp", parse, detect)
