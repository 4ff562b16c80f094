"""The forms in which a verified rationale becomes rows.

| form | rows of a rationale |
|---|---|
| `reasoning` | one: the rationale as `reasoning_content`, the answer as `content` |
| `label_rationale` | two (2305.02301): "[label] " and the question, the answer; "[rationale] " and it, the rationale |
| `two_turn` | two stages (2302.00923): the rationale as a turn; then, with it in view, the answer as a second turn |
| `process` | one: steps, each with its label and its value, in TRL's stepwise form; see `_cot/process.py` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from data_builders._cot import notes as cot_notes
from data_builders._cot.asking import Origin
from data_builders._cot.notes import NotesForm
from mmreason.answers import verify
from mmreason.data.two_tasks import PREFIXES, prefixed
from mmreason.prompting.prompts import TEXTS, ask, fill, form
from mmreason.prompting.types import Lang, Problem
from mmreason.types import Example, Message

Form = Literal["reasoning", "label_rationale", "two_turn", "process"]
FORMS: tuple[str, ...] = get_args(Form)


@dataclass(frozen=True, slots=True)
class Path:
    """A verified way to the answer of a problem.

    Attributes:
        rationale: cleaned up; its notes, if any, are recomputed.
        answer: what the completion states, equivalent to the gold.
        messages: turns with tools that stand for the rationale, the answer last. tools: schemas of what they call.
        origin: who wrote it.
    """

    rationale: str
    answer: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin = "teacher"


def base_row(example: Example, images: Sequence[bytes], row_id: str, meta: Mapping[str, Any]) -> Example:
    """Prompt, images (inside the row: it needs no files), gold, names: what rows of all forms have of their parent."""
    row: Example = {
        "prompt": example["prompt"],
        "answer": example.get("answer"),
        "id": row_id,
        "source": f"{example.get('source') or 'data'}-cot",
        "meta": {**(example.get("meta") or {}), **meta, "parent": example.get("id", "")},
    }
    if images:
        row["images"] = [{"bytes": image, "path": None} for image in images]
    return row


def rows_of(
    path: Path, example: Example, problem: Problem, row_id: str, *, form: Form, notes: NotesForm, language: Lang,
    meta: Mapping[str, Any],
) -> list[Example]:  # fmt: skip
    """The rows of one path in forms `reasoning`, `label_rationale`, `two_turn`.

    Args: row_id: of the path; rows of a part of it have the part's name behind it.
    """
    row = base_row(example, problem.images, row_id, meta)
    rationale = path.rationale if notes == "keep" else cot_notes.without_notes(path.rationale)
    if form == "label_rationale":
        return [
            _part(row, task, prompt=prefixed(row["prompt"], PREFIXES[language][task]), said=said)
            for task, said in (("label", path.answer), ("rationale", rationale))
        ]
    if form == "two_turn":
        asked = _turns(row, problem, language)
        return [
            _part(row, "rationale", prompt=asked[:1], said=rationale),
            _part(
                row, "label", prompt=[asked[0], {"role": "assistant", "content": rationale}, asked[1]], said=path.answer
            ),
        ]
    messages, schemas = list(path.messages), list(path.tools)
    if not messages and notes == "tool_calls":
        messages, schemas = cot_notes.as_tool_calls(path.rationale, path.answer) or [], cot_notes.calculator().schemas
    if any(message.get("tool_calls") for message in messages):
        row["tools"] = schemas
    row["completion"] = messages or [{"role": "assistant", "content": path.answer, "reasoning_content": rationale}]
    return [row]


def is_verified(row: Example) -> bool:
    """Does what the row's completion states agree with its gold? Rows that state none (rationales) hold none."""
    if row.get("answer") is None:
        return True
    completion = row["completion"]
    said = completion if isinstance(completion, str) else completion[-1]["content"]
    meta = row["meta"]
    return verify(str(said), row["answer"] or "", meta.get("kind"), meta.get("choices")).correct


def _turns(row: Example, problem: Problem, language: Lang) -> list[Message]:
    """The two questions of strategy `final_answer`, so that what is learned is what that strategy asks."""
    texts = TEXTS[language]
    (first,) = ask(texts.think, problem, texts).messages
    return [first, {"role": "user", "content": fill(texts.final, form=form(problem, texts))}]


def _part(row: Example, task: str, *, prompt: list[Message], said: str) -> Example:
    part: Example = {**row, "prompt": prompt, "completion": [{"role": "assistant", "content": said}]}
    part["id"] = f"{row['id']}/{task}"
    part["meta"] = {**row["meta"], "task": task}
    if task == "rationale":
        part["answer"] = None  # this row's completion states none
    return part
