"""Questions with choices, as MMLU, CMMLU and their kin have them, and as ARC and CommonsenseQA do.

- ``question``, ``choices`` (texts), ``answer`` (a letter, or the place of the choice: 0 is A), ``subject``.
- ``question`` (a text, or ``{"stem", "choices"}``), ``choices`` (``{"text": [...], "label": [...]}`` or ``[{"text",
  "label"}]``), ``answerKey`` (a label). Labels may be numbers (ARC): the letters are those of their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    choice_cell,
    extras,
    letter_of,
    lettered,
    shorten,
    take_name,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example


def choice_example(question: str, choices: Sequence[str], gold: str, meta: Mapping[str, Any]) -> Example:
    """A question above its lettered choices; the completion is the letter.

    Args: gold: a letter. meta: further cells.
    """
    return {
        "prompt": user_message(f"{question}\n{lettered(choices)}"),
        "completion": worked_completion(None, gold),
        "answer": gold,
        "meta": {"kind": "choice", "choices": list(choices)} | dict(meta),
    }


def gold_letter(cell: Any, name: str, count: int) -> str:
    """The letter of a gold that is a letter or a place (0 is A). Raises: RowError."""
    letters = [letter_of(i) for i in range(count)]
    if cell is None or cell == "":
        raise RowError("missing_answer", f"{name!r} is {shorten(cell)}")
    if type(cell) is int and 0 <= cell < count:
        return letters[cell]
    if isinstance(cell, str) and cell.strip() in letters:
        return cell.strip()
    raise RowError("bad_gold", f"{name!r} is {shorten(cell)} with {count} choices")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "choices", "answer", "subject"} <= columns


def parse(row: Row, index: int) -> Example:
    """Gold: the letter."""
    question, choices = text_cell(row, "question", "missing_prompt"), choice_cell(row)
    gold = gold_letter(row.get("answer"), "answer", len(choices))
    example = choice_example(question, choices, gold, extras(row, {"question", "answer"}))
    take_name(example, row)
    return example


def detect_labelled(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "answerKey"} <= columns


def parse_labelled(row: Row, index: int) -> Example:
    """Gold: the letter of the choice that has the label ``answerKey``; that of a test row without one is None."""
    question = row.get("question")
    inner = question if isinstance(question, Mapping) else {"stem": question, "choices": row.get("choices")}
    labels, choices = _labelled(inner.get("choices"))
    key = row.get("answerKey")
    if key not in (*labels, None, ""):
        raise RowError("bad_gold", f"'answerKey' is {shorten(key)}; labels are {', '.join(map(str, labels))}")
    stem = text_cell(inner, "stem", "missing_prompt")
    extra = extras(row, {"question", "answerKey"}) | extras(inner, {"stem"})
    gold = letter_of(labels.index(key)) if key in labels else ""
    example = choice_example(stem, choices, gold, extra)
    if not gold:
        del example["completion"]
        example["answer"] = None
    take_name(example, row)
    return example


def _labelled(cell: Any) -> tuple[list[Any], list[str]]:
    """(labels, texts) of choices."""
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list) and isinstance(cell.get("label"), list):
        cell = [{"label": label, "text": text} for label, text in zip(cell["label"], cell["text"], strict=False)]
    if not isinstance(cell, list) or not all(isinstance(item, Mapping) and "label" in item for item in cell):
        raise RowError("bad_choices", f"'choices' is {shorten(cell)}")
    labels = [item["label"] for item in cell]
    if len(set(map(str, labels))) < len(labels):
        raise RowError("bad_choices", f"a label is there twice: {shorten(labels)}")
    return labels, choice_cell({"choices": [item.get("text") for item in cell]})


FORMAT = Format("choice", parse, detect, many_sets=True)
LABELLED = Format("commonsenseqa", parse_labelled, detect_labelled, many_sets=True)
