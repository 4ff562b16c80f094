"""Sets of common sense and of true beliefs that bring their choices each in a form of its own.

- HellaSwag (arXiv 1905.07830): ``ctx``, ``endings``, ``label`` (a place, as a number or a text).
- TruthfulQA (arXiv 2109.07958), its table: ``Question``, ``Best Answer``, ``Correct Answers``, ``Incorrect Answers``,
  the last two separated by "; ". As in its task MC1, the choices are the best answer and the incorrect ones; they stand
  in an order that depends on the texts alone, so that the gold has no favourite letter.
- BIG-bench's multiple choice (arXiv 2206.04615), StrategyQA among them: ``input``, ``target_scores`` (choice -> 1 or
  0), ``target`` ("Yes. Because ..."), whose explanation becomes the reasoning.
- FEVER (arXiv 1803.05355): ``claim``, ``label``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from mmreason.data.formats.choice import choice_example, gold_letter
from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    choice_cell,
    extras,
    letter_of,
    shorten,
    take_name,
    text_cell,
    user_message,
    worked_completion,
)
from mmreason.types import Example

VERDICTS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")


def detect_hellaswag(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"ctx", "endings", "label"} <= columns


def parse_hellaswag(row: Row, index: int) -> Example:
    """Prompt: the context, to be continued by one of the lettered endings. Gold: the letter."""
    context, endings = text_cell(row, "ctx", "missing_prompt"), choice_cell(row, "endings")
    label = row.get("label")
    place = int(label) if isinstance(label, str) and label.isdecimal() else label
    gold = gold_letter(place if type(place) is int else None, "label", len(endings))
    extra = extras(row, {"ctx", "ctx_a", "ctx_b", "label"})
    return choice_example(f"Which ending continues the text?\n{context}", endings, gold, extra)


def detect_truthfulqa(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"Question", "Best Answer", "Incorrect Answers"} <= columns


def parse_truthfulqa(row: Row, index: int) -> Example:
    """Gold: the letter of the best answer. ``meta``: all answers that are correct, category, type."""
    question, best = text_cell(row, "Question", "missing_prompt"), text_cell(row, "Best Answer", "missing_answer")
    correct, wrong = _answers(row, "Correct Answers"), _answers(row, "Incorrect Answers")
    both = [text for text in wrong if text in (best, *correct)]
    if both:
        raise RowError("bad_choices", f"{shorten(both[0])} is among the correct and the incorrect answers")
    if not wrong:
        raise RowError("bad_choices", "there is no incorrect answer")
    choices = sorted(
        [best, *wrong], key=lambda text: hashlib.sha256(f"{question}\n{text}".encode("utf-8", "replace")).digest()
    )
    meta = {"correct": correct, "category": row.get("Category"), "type": row.get("Type"), "origin": row.get("Source")}
    gold = letter_of(choices.index(best))
    return choice_example(question, choices, gold, {key: cell for key, cell in meta.items() if cell})


def _answers(row: Row, name: str) -> list[str]:
    """The answers in a cell, each once."""
    text = row.get(name)
    parts = text.split(";") if isinstance(text, str) else []
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def detect_bigbench(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"input", "target_scores"} <= columns


def parse_bigbench(row: Row, index: int) -> Example:
    """Gold: the choice with the highest score; yes or no where these are the choices, else its letter."""
    question, scores = text_cell(row, "input", "missing_prompt"), row.get("target_scores")
    held = {name: score for name, score in scores.items() if score is not None} if isinstance(scores, Mapping) else {}
    if len(held) < 2 or not all(isinstance(score, (int, float)) for score in held.values()):
        raise RowError("bad_choices", f"'target_scores' is {shorten(scores)}")
    best = [name for name, score in held.items() if score == max(held.values())]
    if len(best) != 1:
        raise RowError("bad_gold", f"no single best choice in {shorten(held)}")
    told = row["target"].strip() if isinstance(row.get("target"), str) else ""
    extra = extras(row, {"input", "target"})
    if {name.lower() for name in held} == {"yes", "no"}:
        gold = best[0].lower()
        verdict, _, reasons = told.partition(".")
        if told and verdict.strip().lower() != gold:
            raise RowError("bad_gold", f"the best choice is {best[0]!r}, but 'target' begins with {shorten(told[:40])}")
        example: Example = {
            "prompt": user_message(question),
            "completion": worked_completion(reasons, gold),
            "answer": gold,
            "meta": {"kind": "yesno", "choices": None} | extra,
        }
    else:
        example = choice_example(question, list(held), letter_of(list(held).index(best[0])), extra)
    take_name(example, row)
    return example


def detect_fever(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"claim", "label"} <= columns


def parse_fever(row: Row, index: int) -> Example:
    """Gold: the letter of the verdict, in the order of `VERDICTS`."""
    claim, label = text_cell(row, "claim", "missing_prompt"), text_cell(row, "label", "missing_answer")
    if label not in VERDICTS:
        raise RowError("bad_gold", f"'label' is {shorten(label)}, not one of {', '.join(VERDICTS)}")
    question = f"What does the evidence say about this claim?\n{claim}"
    example = choice_example(question, VERDICTS, letter_of(VERDICTS.index(label)), extras(row, {"claim", "label"}))
    take_name(example, row)
    return example


HELLASWAG = Format("hellaswag", parse_hellaswag, detect_hellaswag)
TRUTHFULQA = Format("truthfulqa", parse_truthfulqa, detect_truthfulqa)
BIGBENCH = Format("bigbench", parse_bigbench, detect_bigbench, many_sets=True)
FEVER = Format("fever", parse_fever, detect_fever)
