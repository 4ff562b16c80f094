"""GSM8K (arXiv 2110.14168): ``question``, and ``answer`` = rationale, then a last line ``#### 72``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, text_cell, user_message, worked_completion
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


FORMAT = Format("gsm8k", parse, detect)
