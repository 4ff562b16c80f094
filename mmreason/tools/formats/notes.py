"""The calculator notes of GSM8K (arXiv:2110.14168, appendix C): `<<3*4=12>>`, an expression and its result.

In text they stand right before the result that the reader sees: "3*4 = <<3*4=12>>12 eggs". Notes are recomputed exactly
by the calculator, corrected, and turned into calls of it. While a model writes, its text is held at the `=` of an open
note and the calculator's result put in, as in the paper (`open_call`, `render_result`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mmreason.answers.numbers import DECIMAL
from mmreason.tools.calculator import evaluate, terminating
from mmreason.tools.types import ToolCall, ToolError, ToolResult

Verdict = Literal["right", "rounded", "wrong", "unreadable"]
"""right: the result is the expression's exact value. rounded: a decimal less than one unit of its last place away from
it, or one of at least 12 significant digits, such as 1.6666666666666665, less than 1e-10 relative away (float noise, as
in `mmreason.answers.numbers`). wrong: any other number. unreadable: an expression or a result that can't be read, or an
expression without an exact value."""

TOOL = "calculator"
_NOTE = re.compile(r"<<(?P<body>[^<>\n]*)>>")
_OPEN = re.compile(r"<<(?P<expression>[^<>=\n]+)=\s*\Z")
_RESULT = re.compile(rf"[-+]?{DECIMAL}(?:\s*/\s*\d+)?%?")
_PLACES = 2
_FLOAT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Note:
    """A note in a text.

    Attributes:
        start, end: text[start:end] is the note with its brackets.
        expression, result: left and right of its last `=`; result is "" where it has none.
        verdict: see `Verdict`.
        value: the exact value of the expression; None where it can't be read or has none.
    """

    start: int
    end: int
    expression: str
    result: str
    verdict: Verdict
    value: Fraction | None


def find(text: str) -> list[Note]:
    """The notes of a text in order, each recomputed."""
    return [_note(match) for match in _NOTE.finditer(text)]


def correct(text: str) -> str:
    """The text with the results of wrong notes recomputed, also where the same number follows the note.

    A value that is no decimal of at most 20 digits is rounded to the places that were written, at least 2. Numbers
    further on that came from a wrong result stay as they are: whether a corrected text is worth keeping is for its user
    to check.
    """
    parts, position = [], 0
    for note in find(text):
        parts.append(text[position : note.start])
        position = note.end
        if note.verdict != "wrong" or note.value is None:
            parts.append(text[note.start : note.end])
            continue
        places = max(_PLACES, _places(note.result))
        new = terminating(note.value) or terminating(round(note.value, places))
        if new is None:
            parts.append(text[note.start : note.end])
            continue
        parts.append(f"<<{note.expression}={new}>>")
        repeated = re.compile(DECIMAL).match(text, note.end)
        if repeated is not None and _number(repeated[0]) == _number(note.result):
            parts.append(new)
            position = repeated.end()
    return "".join([*parts, text[position:]])


def split(text: str) -> list[str | ToolCall]:
    """Text and a calculator call in place of each note, as they alternate. The calls' results are not taken over."""
    parts: list[str | ToolCall] = []
    position = 0
    for note in find(text):
        if note.start > position:
            parts.append(text[position : note.start])
        parts.append(ToolCall(TOOL, {"expression": note.expression}))
        position = note.end
    return [*parts, text[position:]] if position < len(text) else parts


def join(parts: Sequence[str | ToolResult]) -> str:
    """The inverse of `split`, with the calls' results: each becomes a note. Raises: ValueError for a failed call."""
    rendered = []
    for part in parts:
        if isinstance(part, str):
            rendered.append(part)
        elif part.error is not None or not isinstance(part.call.arguments, dict):
            raise ValueError(f"a call without a result is no note: {part.content}")
        else:
            rendered.append(f"<<{part.call.arguments['expression']}={part.content}>>")
    return "".join(rendered)


def open_call(text: str) -> ToolCall | None:
    """The call that a text waits for: it ends in the `=` of a note, "... <<3*4=". None where it doesn't."""
    match = _OPEN.search(text)
    return None if match is None else ToolCall(TOOL, {"expression": match["expression"].strip()})


def render_result(result: ToolResult) -> str:
    """What follows an open note: the result, the note's end, and the result for the reader, "12>>12".

    An error closes the note without a result and is shown behind it: ">>[Error: ...]".
    """
    return f"{result.content}>>{result.content}" if result.error is None else f">>[{result.content}]"


def _note(match: re.Match[str]) -> Note:
    expression, equals, result = (part.strip() for part in match["body"].rpartition("="))
    if not equals:
        expression, result = result, ""
    verdict: Verdict = "unreadable"
    value, stated = None, _number(result)
    try:
        enclosed = evaluate(expression)
        value = enclosed.low if enclosed.exact else None
    except ToolError:
        pass
    if value is not None and stated is not None:
        verdict = _judge(value, stated, result)
    return Note(match.start(), match.end(), expression, result, verdict, value)


def _judge(value: Fraction, stated: Fraction, result: str) -> Verdict:
    if value == stated:
        return "right"
    difference, places = abs(value - stated), _places(result)
    close = difference * 10**places < 1
    noise = len(re.sub(r"\D", "", result).lstrip("0")) >= _FLOAT_DIGITS and difference * 10**10 < abs(value)
    return "rounded" if places and (close or noise) else "wrong"


def _places(result: str) -> int:
    """Digits after the decimal point, counted in the value: 12.5% has 3."""
    digits = result.rstrip("%").partition(".")[2]
    return len(digits) + 2 * result.endswith("%")


def _number(text: str) -> Fraction | None:
    """A result as it is written: a whole number, decimal or fraction, with thousands separators or a percent sign."""
    if _RESULT.fullmatch(text) is None:
        return None
    try:
        value = evaluate(text)
    except ToolError:
        return None
    return value.low
