"""A rationale as it is learned: cleaned up, without the answer that has its own place, and checked against the gold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from data_builders._cot.notes import without_notes
from mmreason.answers import Verdict, equivalent, extract, verify
from mmreason.answers.normalize import closing_brace
from mmreason.answers.numbers import DECIMAL, parse_number
from mmreason.prompting.types import Problem
from mmreason.tools.calculator import evaluate, terminating
from mmreason.tools.formats import notes
from mmreason.tools.types import ToolError

Standing = Literal["reached", "rescued", "silent", "contradicts"]
"""What a rationale says of the gold: it comes to it; its last sentence has it, among other numbers perhaps, and nothing
that it computes speaks against it; it states no answer; it states another one."""

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")
_SINGLE = re.compile(r"(?<=[.!?])\s+(?=[^\s\d])|(?<=[。！？；])")
_FIGURE = re.compile(r"\s*\[asy\].*?\[/asy\]\s*", re.S)
_BOXED = re.compile(r"\\boxed\s*\{")
_ANSWER_LINE = re.compile(r"\n?\s*####[^\n]*\s*\Z")
_CHOICE_LINE = re.compile(
    r"(?:^|(?<=[\s.;]))(?:so,?\s+|therefore,?\s+|hence,?\s+)?(?:the\s+)?(?:correct\s+)?"
    r"(?:answer|ans|option|choice)(?:\s+(?:is|should be|must be|choice|option))*\s*[:=\-–]*\s*\(?[A-Z]\)?\s*[.!]?\s*\Z",
    re.I,
)
_NUMBER = re.compile(rf"(?<![\d.,])-?{DECIMAL}")
# What stands behind an equals sign and is not the first number of an expression: "= $21600", "x = 7 days", "= 25%".
_RESULT = re.compile(rf"=\s*[$€£¥]?\s*(-?{DECIMAL})(?![.,]?\d|\s*[-+*/^×÷=(]\s*[\d(])")
_SPACED = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")  # thousands: 100 000
_EXPRESSION = re.compile(r"(?=.*\d[ )]*[-+*/])[\d. +\-*/()]+\Z")
_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)")
_MAX_WORDS = 9  # of a sentence that only states the answer
_BARE_WORDS = 2


def cleaned(text: str, problem: Problem) -> str:
    """A rationale without the closing statement of the answer, figures as code, boxes, and needless white space.

    A bare expression, such as SVAMP's equations, becomes one with its value: "( 8.0 - 3.0 )" is "8 - 3 = 5".
    """
    text = _unboxed(_FIGURE.sub("\n", text.replace("\r\n", "\n")))
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
    text = re.sub(r"\n{3,}", "\n\n", text)
    if _EXPRESSION.match(text):
        return _evaluated(text)
    for _ in range(2):  # "... Answer: D\n#### D"
        text = _without_statement(text, problem)
    return text


def standing(text: str, problem: Problem) -> Standing:
    """What a rationale, with the notes and the closing statement it came with, says of the problem's gold.

    A number is reached where it is stated as the answer or is the last result of a note or an equation. Otherwise the
    last sentence must have it, and, if the text computes anything, one of its results must be it.
    """
    assert problem.gold is not None
    kind = problem.answer_kind
    bare = without_notes(text)
    judgement = verify(bare, problem.gold, kind, problem.choices)
    if kind == "number":
        noted, shown = [note.result for note in notes.find(text)], _RESULT.findall(_SPACED.sub("", bare))
        if judgement.strict_correct or any(_is_any(results[-1:], problem) for results in (noted, shown)):
            return "reached"
        # "Thus 6:07 AM is 7 minutes after 6:00 AM.", "He spends $50 because 50 < 52".
        sentences = [sentence for sentence in _SENTENCE.split(bare) if sentence.strip()]
        last = _SPACED.sub("", sentences[-1]) if sentences else ""
        results = noted + shown
        if (judgement.correct or _is_any(_NUMBER.findall(last), problem)) and (
            not results or _is_any(results, problem)
        ):
            return "rescued"
        return "contradicts" if judgement.answer is not None else "silent"
    if judgement.correct:
        return "reached"
    return "silent" if extract(bare, kind, problem.choices).strict is None else "contradicts"


def steps_of(text: str) -> list[str]:
    """The steps of a rationale: its lines, or, where it has but one, its sentences."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) == 1:
        lines = [part.strip() for part in _SINGLE.split(lines[0]) if part.strip()]
    return lines


def _without_statement(text: str, problem: Problem) -> str:
    """Without a last sentence that states the gold and nothing else; the text itself where there is none."""
    shorter = _ANSWER_LINE.sub("", text)
    if shorter != text:
        return shorter
    if problem.answer_kind == "choice":
        shorter = _CHOICE_LINE.sub("", text).rstrip()
        if shorter != text:
            return shorter
    places = [match.end() for match in _SENTENCE.finditer(text)]
    start = next((place for place in reversed(places) if place < len(text)), 0)
    last = text[start:]
    if problem.gold is None or "=" in last:
        return text
    if _is_bare(last.strip().rstrip(".。"), problem):  # the reply to a second question
        return text[:start].rstrip()
    states = extract(last, problem.answer_kind, problem.choices).strict
    if states is None or len(last.split()) > _MAX_WORDS or not _says(states, problem):
        return text
    return text[:start].rstrip()


def _is_bare(text: str, problem: Problem) -> bool:
    """Is it the gold alone: "14", "14 apples", "(B)"? Without symbolic comparison: this is asked of every rationale."""
    gold = problem.gold or ""
    if problem.answer_kind == "choice":
        return text.strip("() ").upper() == gold.strip("() ").upper()
    words = text.split()
    if problem.answer_kind == "number" and 0 < len(words) <= _BARE_WORDS:
        number = parse_number(words[0])
        return number is not None and number == parse_number(gold)
    return text.casefold() == gold.casefold()


def _is_any(numbers: Sequence[str], problem: Problem) -> bool:
    return any(_says(number, problem) for number in numbers)


def _says(answer: str, problem: Problem) -> bool:
    return equivalent(answer, problem.gold or "", problem.answer_kind, problem.choices) is Verdict.CORRECT


def _unboxed(text: str) -> str:
    """`\\boxed{x}` -> `x`: the box marks the answer, which stands elsewhere."""
    while match := _BOXED.search(text):
        end = closing_brace(text, match.end() - 1)
        if end < 0:
            return text
        text = text[: match.start()] + text[match.end() : end] + text[end + 1 :]
    return text


def _evaluated(text: str) -> str:
    expression = _ZEROS.sub("", text).strip()
    outer = expression[1:-1]
    if expression.startswith("(") and expression.endswith(")") and _is_closed(outer):
        expression = outer.strip()
    expression = re.sub(r"\(\s+", "(", re.sub(r"\s+\)", ")", expression))
    try:
        value = evaluate(expression)
    except ToolError:
        return text
    shown = terminating(value.low) if value.exact else None
    return f"{expression} = {shown}" if shown is not None and shown != expression else expression


def _is_closed(text: str) -> bool:
    """Has every parenthesis of the text its partner in it?"""
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0
