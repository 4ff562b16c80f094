"""ScienceQA (arXiv 2209.09513) as it is passed around.

- The official fields, also of the hub's ``derek-thomas/ScienceQA``: ``question``, ``choices``, ``answer`` (an index),
  ``hint``, ``image``, ``lecture``, ``solution``, ``subject``, ``topic``, ``category``, ``skill``, ``grade``, ``split``.
- LLaVA's conversion, one text: ``prompt`` (the question, "Context: ...", "Options: (A) ... (B) ..."), ``response``
  ("... The answer is A."), ``answer`` (a letter), ``image``, ``caption``.
- Its test set as rows: ``question`` (context, then question), ``choices``, ``answer``, ``answer_idx``, ``caption``.

The prompt is the field's QCM order: question, context, options. Captions stand for a picture that isn't shown, so they
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

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

EXTRA = ("subject", "topic", "category", "skill", "grade", "task", "split")
_OPTION = re.compile(r"\s*\(([A-Z])\)\s+")
_VERDICT = re.compile(r"\s*The answer is ([A-Z])\.\s*$")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    if {"question", "choices", "answer"} <= columns:
        return {"hint", "lecture", "solution"} <= columns or {"answer_idx", "caption"} <= columns
    as_one_text = {"prompt", "response", "answer", "image"} <= columns
    return as_one_text and any("\nOptions: (A)" in str(row.get("prompt")) for row in rows)


def parse(row: Row, index: int) -> Example:
    """Gold: the letter. Completion, where the row has these columns: lecture and solution as the reasoning."""
    if "prompt" in row:
        question, hint, choices = _read_prompt(text_cell(row, "prompt", "missing_prompt"))
    else:
        question, choices = text_cell(row, "question", "missing_prompt"), choice_cell(row)
        hint = row["hint"].strip() if isinstance(row.get("hint"), str) else ""
    if row.get("has_image") and not row.get("image"):
        raise RowError("missing_image", "'has_image' is true, but the row brings none")
    gold = _gold(row, choices)
    lines = [question, f"Context: {hint}" if hint else "", lettered(choices)]
    example: Example = {
        "prompt": user_message("\n".join(line for line in lines if line)),
        "answer": gold,
        "meta": {"kind": "choice", "choices": choices} | {key: row[key] for key in EXTRA if row.get(key)},
    }
    reasoning = _reasoning(row, gold)
    if reasoning is not None:
        example["completion"] = worked_completion(reasoning, gold)
    if row.get("id") is not None:
        example["id"] = str(row["id"])
    if isinstance(row.get("image"), str):
        example["images"] = [_official_path(row)]
    return example


def _read_prompt(text: str) -> tuple[str, str, list[str]]:
    """(question, context or "", choices) of the one-text form."""
    body, mark, options = text.rpartition("\nOptions:")
    question, _, hint = body.partition("\nContext:")
    _, *pieces = _OPTION.split(options)  # letter, text, letter, text ...
    letters, choices = pieces[::2], [choice.strip() for choice in pieces[1::2]]
    if not mark or len(choices) < 2 or not all(choices) or letters != [letter_of(i) for i in range(len(choices))]:
        raise RowError("bad_choices", f"no 'Options: (A) ... (B) ...' at the end of {shorten(text[-60:])}")
    return question.strip(), hint.strip() if hint.strip() != "N/A" else "", choices


def _gold(row: Row, choices: list[str]) -> str:
    cell = row.get("answer")
    if cell is None or cell == "":
        raise RowError("missing_answer", f"'answer' is {shorten(cell)}")
    letters = [letter_of(i) for i in range(len(choices))]
    gold: Any = letters[cell] if type(cell) is int and 0 <= cell < len(choices) else cell
    place = row.get("answer_idx")
    if gold not in letters or (place is not None and letters.index(gold) != place):
        told = "" if place is None else f" and 'answer_idx' {shorten(place)}"
        raise RowError("bad_gold", f"'answer' is {shorten(cell)}{told} with {len(choices)} choices")
    return str(gold)


def _reasoning(row: Row, gold: str) -> str | None:
    """Possibly empty; None where the row has no place for it."""
    if "response" in row:
        text = row["response"] if isinstance(row["response"], str) else ""
        verdict = _VERDICT.search(text)
        if verdict is not None and verdict[1] != gold:
            raise RowError("bad_gold", f"'answer' is {gold}, but 'response' ends with {verdict[0].strip()!r}")
        return _VERDICT.sub("", text).strip()
    texts = [row[name].strip() for name in ("lecture", "solution") if isinstance(row.get(name), str)]
    if not texts:
        return None
    return "\n".join(text for text in texts if text)


def _official_path(row: Row) -> str:
    """The official rows name only the file; it lies in ``images/SPLIT/ID/`` beside them."""
    path = PurePosixPath(row["image"])
    if len(path.parts) == 1 and row.get("split") and row.get("id") is not None:
        return str(PurePosixPath("images", str(row["split"]), str(row["id"]), path))
    return str(row["image"])


FORMAT = Format("scienceqa", parse, detect)
