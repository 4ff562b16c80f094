"""The calculator notes of a rationale (`<<48/2=24>>`): recomputed, then stripped, kept, or turned into tool calls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Literal

from data_builders._tool_use.trace import call_id
from mmreason.answers.numbers import DECIMAL, parse_number
from mmreason.data.formats.gsm8k import CALCULATOR_NOTE
from mmreason.tools.calculator import Calculator
from mmreason.tools.formats import notes
from mmreason.tools.toolbox import Toolbox
from mmreason.types import Message, ToolCallPart

NotesForm = Literal["strip", "keep", "tool_calls"]

_NUMBER = re.compile(rf"(?<![\d.,])-?{DECIMAL}")


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A rationale whose notes have been recomputed.

    Attributes:
        text: with the results of wrong notes corrected, and without notes that can't be read.
        counts: notes, notes_wrong, and, where there are any, notes_rounded, notes_unreadable; {} without notes.
        consistent: False where a wrong result goes on to be used, so that correcting the note alone can't help.
    """

    text: str
    counts: Mapping[str, int] = field(default_factory=dict)
    consistent: bool = True


@lru_cache(maxsize=1024)  # a gold rationale is looked at as it came and as it is cleaned up: mostly the same text
def recompute(text: str) -> Recomputed:
    """Every note against the exact value of its expression; see `mmreason.tools.formats.notes` for the verdicts."""
    found = notes.find(text)
    if not found:
        return Recomputed(CALCULATOR_NOTE.sub("", text))
    verdicts = Counter(note.verdict for note in found)
    counts = {"notes": len(found), "notes_wrong": verdicts["wrong"]} | {
        f"notes_{verdict}": verdicts[verdict] for verdict in ("rounded", "unreadable") if verdicts[verdict]
    }
    consistent = not any(note.verdict == "wrong" and _is_used_later(text, note) for note in found)
    corrected = notes.correct(text) if verdicts["wrong"] else text
    for note in reversed(notes.find(corrected) if verdicts["unreadable"] else ()):
        if note.verdict == "unreadable":
            corrected = corrected[: note.start] + corrected[note.end :]
    return Recomputed(corrected, counts, consistent)


def _is_used_later(text: str, note: notes.Note) -> bool:
    """Does the result of a wrong note stand again behind the number that the note is for?"""
    result, rest = parse_number(note.result), text[note.end :]
    repeated = re.match(DECIMAL, rest)
    rest = rest[repeated.end() :] if repeated else rest
    return any(parse_number(match[0].lstrip("-")) == result for match in _NUMBER.finditer(rest))


def without_notes(text: str) -> str:
    return CALCULATOR_NOTE.sub("", text)


@cache
def calculator() -> Toolbox:
    """The calculator that the calls run on."""
    return Toolbox([Calculator()])


def as_tool_calls(text: str, answer: str) -> list[Message] | None:
    """A rationale with its notes as calls of the calculator, each run now, and the answer as the last message.

    The text before a call is its message's `reasoning_content`; what follows the last result that of the answer. None
    where the text has no notes.
    """
    parts = notes.split(text)
    if all(isinstance(part, str) for part in parts):
        return None
    messages: list[Message] = []
    said = ""
    for part in parts:
        if isinstance(part, str):
            said += part
            continue
        result = calculator().run(part)
        if result.error is not None or not isinstance(part.arguments, dict):
            continue  # no call of a tool that fails is taught
        call: ToolCallPart = {
            "id": call_id(len(messages) // 2 + 1),
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        asked: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        if said.strip():
            asked["reasoning_content"] = said.strip()
        answered: Message = {"role": "tool", "name": part.name, "tool_call_id": call["id"], "content": result.content}
        messages += [asked, answered]
        said = ""
    last: Message = {"role": "assistant", "content": answer}
    if said.strip():
        last["reasoning_content"] = said.strip()
    return [*messages, last]
