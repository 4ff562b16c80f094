"""SVAMP (arXiv 2103.07191): ``Body``, ``Question``, ``Answer`` (a float), ``Equation``, ``Type``, ``ID``."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    number_text,
    shorten,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example

_QUESTION_WORDS = ("How ", "What ", "Which ", "Who ", "By ", "In ", "After ")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"Body", "Question", "Answer"} <= columns


def parse(row: Row, index: int) -> Example:
    """Prompt: body and question, a full stop between them where the body has none (358 of the 1,000 bodies).

    A body that runs into its question is a clause ("If there is a discount"); a comma keeps it one sentence. The
    equation is the completion's reasoning.
    """
    body = text_cell(row, "Body", "missing_prompt")
    question = text_cell(row, "Question", "missing_prompt")
    gold = number_text(row.get("Answer"))
    if row.get("Answer") is None:
        raise RowError("missing_answer", "'Answer' is None")
    if gold is None:
        raise RowError("bad_gold", f"'Answer' is {shorten(row.get('Answer'))}")
    joint = " " if body[-1] in ".!?," else ". "
    if joint == ". " and _is_clause(body):
        joint, question = ", ", question[0].lower() + question[1:] if question.startswith(_QUESTION_WORDS) else question
    equation = row.get("Equation")
    example: Example = {
        "prompt": user_message(body + joint + question),
        "completion": worked_completion(equation if isinstance(equation, str) else None, gold),
        "answer": gold,
        "meta": {"kind": "number", "choices": None}
        | {key.lower(): row[key] for key in ("Type", "Equation") if row.get(key) is not None},
    }
    if row.get("ID"):
        example["id"] = str(row["ID"])
    return example


def _is_clause(body: str) -> bool:
    """Does the last sentence of the body begin with a subordinating word?"""
    last = body.replace("!", ".").replace("?", ".").split(". ")[-1].strip()
    return last.split(" ", 1)[0].lower() in {"if", "when", "after", "since", "as", "while", "once"}


FORMAT = Format("svamp", parse, detect)
