"""MATH-Vision (MATH-V, arXiv 2402.14804): ``question``, ``options``, ``answer``, ``level``, ``subject``, a picture.

The one picture of a row shows all that the marks ``<image1>``, ``<image2>`` ... of its question stand for: it goes
where the first mark is. Where the options are drawn in the picture, ``options`` holds their letters only.
"""

from __future__ import annotations

import re
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
    worked_completion,
)
from mmreason.data.formats.pictures import MARK
from mmreason.types import Example

_NUMBERED = re.compile(r"[ \t]*\n?<image\d+>")
_BARE_LETTER = re.compile(r"\(?([A-Z])[).]?")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "options", "answer", "level", "subject"} <= columns and bool(
        {"image", "decoded_image"} & columns
    )


def parse(row: Row, index: int) -> Example:
    """Gold: the letter where there are options, else the answer as LaTeX."""
    question = _one_mark(text_cell(row, "question", "missing_prompt"))
    answer = text_cell(row, "answer", "missing_answer")
    choices = _choices(row)
    meta = {"kind": "choice" if choices else None, "choices": choices}
    if choices:
        if answer not in [letter_of(i) for i in range(len(choices))]:
            raise RowError("bad_gold", f"'answer' is {shorten(answer)} with {len(choices)} options")
        gold = answer
        if choices != [letter_of(i) for i in range(len(choices))]:
            question += f"\n{lettered(choices)}"
    else:
        from mmreason.answers import gold_answer

        gold = (gold_answer(answer) if "\\boxed" in answer else None) or answer
    example: Example = {
        "prompt": user_message(question),
        "answer": gold,
        "meta": meta | {key: row[key] for key in ("level", "subject") if row.get(key) is not None},
    }
    if isinstance(row.get("solution"), str) and row["solution"].strip():
        example["completion"] = worked_completion(row["solution"], gold)
    if row.get("id") is not None:
        example["id"] = str(row["id"])
    return example


def _one_mark(question: str) -> str:
    first = _NUMBERED.search(question)
    if first is None:
        return question
    mark = re.sub(r"<image\d+>", MARK, first[0])
    return question[: first.start()] + mark + _NUMBERED.sub("", question[first.end() :])


def _choices(row: Row) -> list[str] | None:
    """The options, letters without their brackets where they are letters only; None where there are none."""
    if not row.get("options"):
        return None
    choices = choice_cell(row, "options")
    letters = [match[1] if (match := _BARE_LETTER.fullmatch(choice)) else "" for choice in choices]
    return letters if letters == [letter_of(i) for i in range(len(choices))] else choices


FORMAT = Format("mathvision", parse, detect)
