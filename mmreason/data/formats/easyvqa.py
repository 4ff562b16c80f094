"""easy-VQA (github.com/vzhou842/easy-VQA), a row per picture: ``image`` with lists of ``questions`` and ``answers``."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, text_cell, user_message
from mmreason.types import Example


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"image", "questions", "answers"} <= columns


def split(row: Row) -> list[Row]:
    """A row for each question of the picture."""
    questions, answers = row.get("questions"), row.get("answers")
    if not isinstance(questions, list) or not questions:
        raise RowError("missing_prompt", f"'questions' is {shorten(questions)}")
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise RowError("missing_answer", f"{len(questions)} questions, 'answers' is {shorten(answers)}")
    return [
        {"image": row.get("image"), "image_id": row.get("image_id"), "question": question, "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]


def parse(row: Row, index: int) -> Example:
    """Gold: yes or no, a shape, or a colour."""
    gold = text_cell(row, "answer", "missing_answer")
    meta = {"kind": "yesno" if gold in ("yes", "no") else "text", "choices": None}
    if row.get("image_id") is not None:
        meta["image_id"] = row["image_id"]
    return {"prompt": user_message(text_cell(row, "question", "missing_prompt")), "answer": gold, "meta": meta}


FORMAT = Format("easyvqa", parse, detect, split=split)
