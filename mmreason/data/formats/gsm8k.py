"""GSM8K (arXiv 2110.14168): ``question``, and ``answer`` = rationale, then a last line ``#### 72``.

Also its file of models' solutions: ``question``, ``gold``, ``solution``, ``is_correct``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    extras,
    number_text,
    shorten,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example

# GSM8K's rationales carry notes for a calculator, "48/2 = <<48/2=24>>24". They are stripped from the reference
# completion: a model without that calculator would learn to write noise.
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "answer"} <= columns and any("####" in str(row.get("answer")) for row in rows)


def parse(row: Row, index: int) -> Example:
    """Gold: what follows the last ``####``, without thousands separators. Completion: the rationale without notes."""
    question = text_cell(row, "question", "missing_prompt")
    solution = text_cell(row, "answer", "missing_answer")
    rationale, mark, gold = solution.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise RowError("bad_gold", f"no '#### number' at the end of {shorten(solution[-60:])}")
    return {
        "prompt": user_message(question),
        "completion": worked_completion(CALCULATOR_NOTE.sub("", rationale), gold),
        "answer": gold,
        "meta": {"kind": "number", "choices": None},
    }


def detect_solutions(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "solution", "is_correct"} <= columns


def parse_solutions(row: Row, index: int) -> Example:
    """Completion: the solution as a model wrote it, without notes. Label: is it right? Gold: the problem's."""
    question, solution = text_cell(row, "question", "missing_prompt"), text_cell(row, "solution", "missing_completion")
    if not isinstance(row.get("is_correct"), bool):
        raise RowError("bad_label", f"'is_correct' is {shorten(row.get('is_correct'))}")
    used = {"question", "solution", "is_correct", "gold"}
    return {
        "prompt": user_message(question),
        "completion": worked_completion(None, CALCULATOR_NOTE.sub("", solution)),
        "label": row["is_correct"],
        "answer": number_text(row.get("gold")),
        "meta": {"kind": "number", "choices": None} | extras(row, used),
    }


FORMAT = Format("gsm8k", parse, detect)
SOLUTIONS = Format("gsm8k_solutions", parse_solutions, detect_solutions)
