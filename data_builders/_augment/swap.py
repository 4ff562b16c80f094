"""Number swap: a word problem with other numbers, its solution and answer recomputed exactly.

The solution's calculator notes `<<48/2=24>>` (GSM8K, arXiv 2110.14168) tell how its numbers hang together. Each number
in it is traced to where it can come from: a number of the question, the result of an earlier note, or a constant that
the words bring along ("twice", "week", 20 %). New numbers are drawn for the question, the notes recomputed in order as
fractions, and everything rewritten. A problem is refused rather than guessed at: where a number can be traced to
nothing, or two possible origins come to different values, where a note or an equation is wrong, or where a result is
implausible (see `plausible`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_builders._augment.numbers import (
    NUMBER,
    WORD,
    WORDS,
    Token,
    another,
    constants_of,
    plausible,
    tokens_of,
    value_of,
    written,
)
from mmreason.tools.calculator import evaluate, terminating
from mmreason.tools.formats import notes
from mmreason.tools.types import ToolError

TRIES = 120
_EQUATION = re.compile(r"(?P<left>[\d.,+\-*/x×() $%]*\d[\d.,+\-*/x×() $%]*)=\s*\$?\s*(?P<right>\d[\d,]*(?:\.\d+)?)")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b", re.I)

Origin = tuple[str, Fraction | int]
"""("question", value), ("note", its number) or ("constant", value)."""


class NoSwapError(Exception):
    """Why a problem's numbers can't be changed; `reason` is a code for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Swap:
    """A problem with other numbers.

    Attributes:
        question, rationale: rewritten; the rationale with its notes, without the line of the answer.
        answer: the recomputed gold.
        changed: old value -> new value of the question's numbers, as texts.
    """

    question: str
    rationale: str
    answer: str
    changed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Place:
    """A number of the rationale and where it can come from."""

    token: Token
    origins: tuple[Origin, ...]
    rewritable: bool = True


@dataclass(frozen=True, slots=True)
class _Step:
    """A note: its brackets, the numbers of its expression (in the rationale), its result."""

    note: notes.Note
    places: tuple[_Place, ...]
    value: Fraction


class NumberSwap:
    """A problem, traced once; `draw` gives it other numbers.

    Args:
        question: the words of the problem.
        rationale: its solution with notes; a last line `#### answer` is left out.
        answer: the gold, a number.

    Raises: NoSwapError: no_notes, wrong_note, unbound_number, answer_not_computed, nothing_to_swap.
    """

    def __init__(self, question: str, rationale: str, answer: str) -> None:
        self.question, self.rationale = question, rationale.rpartition("####")[0].rstrip() or rationale
        self._asked = tokens_of(question)
        self._constants = constants_of(question, self.rationale)
        found = notes.find(self.rationale)
        if not found:
            raise NoSwapError("no_notes")
        for note in found:
            if note.verdict != "right" or note.value is None:
                raise NoSwapError("wrong_note", f"<<{note.expression}={note.result}>> is {note.verdict}")
        self._values = [note.value for note in found if note.value is not None]
        self._steps = [self._step(number, note) for number, note in enumerate(found)]
        self._prose = self._trace_prose(found)
        gold = _number(answer)
        ends = [number for number, value in enumerate(self._values) if value == gold]
        if not ends or gold in {token.value for token in self._asked}:
            raise NoSwapError("answer_not_computed", f"{answer!r} is not what the notes come to")
        self._end, self._gold = ends[-1], self._values[ends[-1]]
        self._swappable = self._find_swappable()
        self._equations = _equations(self.rationale)

    def draw(self, rng: random.Random) -> Swap:
        """The problem with other numbers. Raises: NoSwapError no_plausible_numbers where no try comes to any."""
        for attempt in range(TRIES):
            chosen = self._swappable
            if attempt >= TRIES // 4 and len(chosen) > 1:  # fewer at once come through more easily
                chosen = rng.sample(chosen, rng.randint(1, len(chosen) - 1))
            mapping = {token.value: another(token, rng) for token in chosen}
            swap = self._apply(mapping)
            if swap is not None:
                return swap
        raise NoSwapError("no_plausible_numbers", f"{TRIES} tries")

    # ---- tracing

    def _step(self, number: int, note: notes.Note) -> _Step:
        start = note.start + self.rationale[note.start : note.end].index(note.expression)
        places = tuple(
            _Place(token, self._origins(token, number))
            for match in NUMBER.finditer(note.expression)
            for token in [_at(match, start)]
        )
        assert note.value is not None
        return _Step(note, places, note.value)

    def _trace_prose(self, found: Sequence[notes.Note]) -> list[_Place]:
        """The numbers outside the notes. One right behind a note is its result; others may come from later notes."""
        places = []
        behind = {note.end: number for number, note in enumerate(found)}
        for match in re.finditer(rf"{NUMBER.pattern}|{WORD.pattern}", self.rationale, re.I):
            start = match.start()
            if any(note.start <= start < note.end for note in found):
                continue
            if match[0].lower() in WORDS:
                token = Token(start, match.end(), match[0], Fraction(WORDS[match[0].lower()]))
                places.append(_Place(token, self._word_origins(token), rewritable=False))
                continue
            token = _at(match, 0)
            plain = _ORDINAL.match(self.rationale, match.end()) is None  # "22nd" would have to become "23rd"
            if start in behind:
                if token.value != self._values[behind[start]]:
                    raise NoSwapError("wrong_note", f"{token.text} behind a note of {self._values[behind[start]]}")
                places.append(_Place(token, (("note", behind[start]),), plain))
                continue
            earlier = sum(note.end <= start for note in found)
            places.append(_Place(token, self._origins(token, earlier, later=True), plain))
        return places

    def _origins(self, token: Token, earlier: int, *, later: bool = False) -> tuple[Origin, ...]:
        origins: list[Origin] = [("note", i) for i in range(earlier) if self._values[i] == token.value]
        if any(asked.value == token.value for asked in self._asked):
            origins.append(("question", token.value))
        if token.value in self._constants:
            origins.append(("constant", token.value))
        if not origins and later:
            origins = [("note", i) for i in range(earlier, len(self._values)) if self._values[i] == token.value]
        if not origins:
            raise NoSwapError("unbound_number", f"where does {token.text} come from?")
        return tuple(origins)

    def _word_origins(self, token: Token) -> tuple[Origin, ...]:
        """A number written as a word can't be rewritten, so whatever it may stand for must keep its value."""
        return tuple(("note", i) for i, value in enumerate(self._values) if value == token.value)

    def _find_swappable(self) -> list[Token]:
        """One token for each value that may change: used in a note, nowhere fixed, and neither constant nor result."""
        used = {place.token.value for step in self._steps for place in step.places}
        fixed = {token.value for token in self._asked if token.fixed} | self._constants | set(self._values)
        caps: dict[Fraction, Token] = {}
        for token in self._asked:
            if token.value in used and token.value not in fixed:
                held = caps.get(token.value)
                if held is None or (token.cap is not None and (held.cap is None or token.cap < held.cap)):
                    caps[token.value] = token
        if not caps:
            raise NoSwapError("nothing_to_swap")
        return list(caps.values())

    # ---- rewriting

    def _apply(self, mapping: Mapping[Fraction, Fraction]) -> Swap | None:
        """The problem under new values, None where they don't work out."""
        mapping = {old: new for old, new in mapping.items() if old != new}
        if not mapping or len({*mapping.values()}) < len(mapping):
            return None
        edits: list[tuple[int, int, str]] = []
        results: list[Fraction] = []
        for step in self._steps:
            changes = _rewritten(step.places, mapping, results)
            if changes is None:
                return None
            value = _value(_edited(self.rationale, changes, step.note))
            if value is None or not plausible(step.value, value):
                return None
            results.append(value)
            edits += changes
            if value != step.value:
                edits.append(_result_edit(self.rationale, step.note, value))
        if results[self._end] == self._gold:
            return None  # a problem with the same answer teaches little
        changes = _rewritten(self._prose, mapping, results)
        if changes is None:
            return None
        rationale = _replace(self.rationale, [*edits, *changes])
        asked = [
            (token.start, token.end, written(mapping[token.value], token))
            for token in self._asked
            if token.value in mapping
        ]
        question = _replace(self.question, asked)
        answer = terminating(results[self._end])
        if answer is None or not self._holds(question, rationale):
            return None
        changed = {str(terminating(old)): str(terminating(new)) for old, new in mapping.items()}
        return Swap(question, rationale, answer, changed)

    def _holds(self, question: str, rationale: str) -> bool:
        """Read the result again: every note right, the same equations, as many numbers in the question as before."""
        if any(note.verdict != "right" for note in notes.find(rationale)):
            return False
        held = _equations(rationale)
        if len(held) != len(self._equations) or any(
            was and not now for was, now in zip(self._equations, held, strict=True)
        ):
            return False
        return [token.fixed for token in tokens_of(question)] == [token.fixed for token in self._asked]


def swap_numbers(question: str, rationale: str, answer: str, rng: random.Random) -> Swap:
    """`NumberSwap(...).draw(rng)`. Raises: NoSwapError."""
    return NumberSwap(question, rationale, answer).draw(rng)


def _at(match: re.Match[str], offset: int) -> Token:
    return Token(match.start() + offset, match.end() + offset, match[0], value_of(match[0]))


def _number(text: str) -> Fraction | None:
    plain = text.strip().lstrip("$").replace(",", "")
    return Fraction(plain) if re.fullmatch(r"-?\d+(?:\.\d+)?", plain) else None


def _value(expression: str) -> Fraction | None:
    try:
        value = evaluate(expression)
    except ToolError:
        return None
    return value.low if value.exact else None


def _rewritten(
    places: Sequence[_Place], mapping: Mapping[Fraction, Fraction], results: Sequence[Fraction]
) -> list[tuple[int, int, str]] | None:
    """The edits of numbers whose value changes; None where origins disagree or a number can't be rewritten."""
    edits = []
    for place in places:
        values = {_new(origin, mapping, results) for origin in place.origins} or {place.token.value}
        if len(values) > 1:
            return None
        value = values.pop()
        if value == place.token.value:
            continue
        if not place.rewritable or terminating(value) is None:
            return None
        edits.append((place.token.start, place.token.end, written(value, place.token)))
    return edits


def _new(origin: Origin, mapping: Mapping[Fraction, Fraction], results: Sequence[Fraction]) -> Fraction:
    kind, key = origin
    if kind == "note":
        return results[int(key)]
    value = Fraction(key)
    return mapping.get(value, value) if kind == "question" else value


def _edited(text: str, edits: Sequence[tuple[int, int, str]], note: notes.Note) -> str:
    """A note's expression after edits that are given in places of the whole text."""
    start = note.start + text[note.start : note.end].index(note.expression)
    shifted = [(low - start, high - start, new) for low, high, new in edits]
    return _replace(note.expression, shifted)


def _result_edit(text: str, note: notes.Note, value: Fraction) -> tuple[int, int, str]:
    at = text.rindex("=", note.start, note.end) + 1
    return at, note.end - 2, terminating(value) or str(value)


def _replace(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _equations(rationale: str) -> list[bool]:
    """Of each equation that a reader sees, whether it holds (False: wrong, or not to be read as one)."""
    seen = re.sub(r"<<[^<>]*>>", "", rationale)
    held = []
    for match in _EQUATION.finditer(seen):
        left = _value(re.sub(r"[$\s]", "", match["left"]).replace("x", "*").strip(".,"))
        held.append(left is not None and left == value_of(match["right"]))
    return held
