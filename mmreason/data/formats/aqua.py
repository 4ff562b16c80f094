"""AQuA-RAT (arXiv 1705.04146): ``question``, ``options`` ("A)21", ...), ``rationale``, ``correct`` (a letter)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    letter_of,
    lettered,
    shorten,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example

_LABEL = re.compile(r"^\s*\(?([A-Z])\s*[).:]\s*", re.IGNORECASE)


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "options", "correct"} <= columns


def parse(row: Row, index: int) -> Example:
    """Prompt: the question and its lettered choices. Gold: the letter; ``meta.choices``: the texts without letters."""
    question = text_cell(row, "question", "missing_prompt")
    options = row.get("options")
    if not isinstance(options, list) or len(options) < 2:
        raise RowError("bad_choices", f"'options' is {shorten(options)}")
    choices = []
    for position, option in enumerate(options):
        label = _LABEL.match(option) if isinstance(option, str) else None
        if label is None or label[1].upper() != letter_of(position):
            raise RowError(
                "bad_choices", f"option {position + 1} is {shorten(option)}, not '{letter_of(position)})...'"
            )
        choices.append(option[label.end() :].strip())
    gold = text_cell(row, "correct", "missing_answer").upper()
    if gold not in {letter_of(i) for i in range(len(choices))}:
        raise RowError("bad_gold", f"'correct' is {shorten(row['correct'])} with {len(choices)} options")
    example: Example = {
        "prompt": user_message(f"{question}\n{lettered(choices)}"),
        "answer": gold,
        "meta": {"kind": "choice", "choices": choices},
    }
    if isinstance(row.get("rationale"), str):
        example["completion"] = worked_completion(row["rationale"], gold)
    return example


FORMAT = Format("aqua", parse, detect)
