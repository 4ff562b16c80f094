"""ASDiv (arXiv 2106.15772): ``body``, ``question``, ``answer`` ("9 (apples)"), ``formula``, ``solution_type``.

What its 2,305 answers are, and what becomes of them:

| answer | rows | gold | kind | unit |
|---|---|---|---|---|
| one number, mostly with a unit: "9 (apples)" | 2,084 | "9" | number | "apples" |
| a fraction: "5/2", "-(1/3)" | 9 | "5/2", "-1/3" | number | |
| several values: "8 (ft); 128 (sq. ft)" | 90 | "8, 128" | math | "ft; sq. ft" |
| a ratio: "5:6" (question type Ratio) | 43 | "5:6" | math | |
| a time of day: "10:15", "3:30 p.m." | 18 | as it is | text | |
| yes or no | 5 | as it is | yesno | |
| names, dates, "6th" | 56 | as it is | text | |

Several values are compared as a list in which order doesn't count: the set's own order does not always follow the
question ("the speed of the stream and that of the boat": boat first). The counts are held by the tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, text_cell, user_message, worked_completion
from mmreason.types import Example

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_VALUE = re.compile(rf"({_NUMBER})\s*(?:\(([^()]*)\))?")
_RATIO = re.compile(r"\d+:\d+")
_FRACTION = re.compile(r"(-?)\(?(\d+)/(\d+)\)?")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"body", "question", "answer"} <= columns and bool({"formula", "solution_type", "solution-type"} & columns)


def parse(row: Row, index: int) -> Example:
    """Prompt: body and question. Gold and kind: see the table above; the row's web address goes to ``meta.origin``.

    The formula is the completion's reasoning.
    """
    body = text_cell(row, "body", "missing_prompt")
    question = text_cell(row, "question", "missing_prompt")
    gold, kind, unit = read_answer(text_cell(row, "answer", "missing_answer"), row.get("solution_type"))
    meta = {"kind": kind, "choices": None, "unit": unit, "origin": row.get("source")}
    meta |= {key: row.get(key) for key in ("solution_type", "grade", "formula")}
    example: Example = {
        "prompt": user_message(f"{body} {question}"),
        "completion": worked_completion(row["formula"] if isinstance(row.get("formula"), str) else None, gold),
        "answer": gold,
        "meta": {key: value for key, value in meta.items() if value is not None or key == "choices"},
    }
    if row.get("id"):
        example["id"] = str(row["id"])
    return example


def read_answer(answer: str, solution_type: str | None = None) -> tuple[str, str, str | None]:
    """(gold, kind, unit) of one ASDiv answer. The solution type tells a ratio from a time of day: both read "5:45"."""
    parts = [_VALUE.fullmatch(part.strip()) for part in answer.split(";")]
    values = [part for part in parts if part is not None]
    if len(values) == len(parts):
        units = [part[2].strip() for part in values if part[2]]
        unit = "; ".join(units if len(set(units)) > 1 else units[:1]) or None
        golds = [part[1].replace(",", "") for part in values]
        return ", ".join(golds), "number" if len(golds) == 1 else "math", unit
    fraction = _FRACTION.fullmatch(answer)
    if fraction:
        return f"{fraction[1]}{fraction[2]}/{fraction[3]}", "number", None
    if solution_type == "Ratio" and _RATIO.fullmatch(answer):
        return answer, "math", None
    return answer, "yesno" if answer.lower() in ("yes", "no") else "text", None


FORMAT = Format("asdiv", parse, detect)
