"""The numbers of a word problem: which may be changed, which values come with words, and what new ones may be."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from mmreason.tools.calculator import terminating

NUMBER = re.compile(r"\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+")
_PERCENT = re.compile(r"\s*(?:%|percent|per cent)", re.I)
_FRACTION = re.compile(r"(?:(\d+)(?:\s+|-|\s+and\s+))?(\d+)\s*/\s*(\d+)(?!\d|\s*/)")
_CLOCK = re.compile(r"\s*(?:a\.?m\b|p\.?m\b|o'?clock)", re.I)
_LABEL = re.compile(r"(?:\b(?:page|chapter|room|number|grade|level|route|day|week|month|year|step|no\.?)|#)\s*$", re.I)
_OPERATOR_BEFORE = re.compile(r"(?:[/:^*×+=<>~]|\d\s*-|(?<![\w$)])-)\s*$")
_OPERATOR_AFTER = re.compile(r"\s*(?:[/:^*×+=<>]|-\s*\$?\d)|[A-Za-z_]|\.\d")
_GIVEN_BY_NATURE = re.compile(
    r"[\s-]*(?:arms?|hands?|legs?|eyes?|ears?|feet|paws?|wings?|fingers?|toes?|noses?|heads?|tails?|wheels?|tires?|sides?|"
    r"corners?|seasons?|suits?)\b",
    re.I,
)
_CAPS = (("day", 7), ("hour", 24), ("month", 12), ("minute", 60), ("second", 60), ("week", 52))

_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
WORDS = {word: value for value, word in enumerate(_TO_TWENTY.split())} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.I)

_TRIGGERS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"\b(?:{pattern})", re.I), tuple(values.split()))
    for pattern, values in (
        ("twice|doubl|half|halv|pair|both|couple|round trip|each way|back and forth|bi-?weekly|bi-?monthly", "2 1/2"),
        ("half|halv", "3/2"),
        ("tripl|thrice|third|tricycle|triangle", "3 1/3 2/3"),
        ("quarter|fourth|quadrupl|gallon|quart", "4 1/4 3/4 25"),
        ("square|rectang|perimeter|diameter|radius|sides?\\b|area", "2 4"),
        ("triangle|angle", "2 3 90 180 360"),
        ("fifth", "5 1/5 2/5 3/5 4/5"),
        ("sixth", "6 1/6 5/6"),
        ("eighth", "8 1/8 3/8 5/8 7/8"),
        ("tenth|decade|dime", "10 1/10"),
        ("weekday|work ?week|school week|working days|nickel", "5"),
        ("weekend", "2"),
        ("week|fortnight", "7 14"),
        ("dozen|month|annual|year|foot|feet|inch", "12"),
        ("year|annual", "52 365 366"),
        ("month", "4 28 29 30 31"),
        ("hour|minute|second|half", "60 3600 30"),
        ("day|daily|night", "24"),
        ("yard", "3 36"),
        ("percent|per cent|cent|dollar|centimet|meter|metre|centur|discount|quarter|dime|nickel|penn", "100"),
        ("kilo|km|kg|gram|liter|litre|meter|metre|millilit|ml|mm|thousand", "1000"),
        ("ton\\b|tons\\b", "1000 2000"),
        ("ounce|oz|pound|lb", "16"),
        ("mile", "5280"),
        ("hundred", "100"),
        ("million", "1000000"),
        ("average|mean|midpoint", "2"),
    )
)
"""Words that bring numbers along which no text states."""


@dataclass(frozen=True, slots=True)
class Token:
    """A number as it stands in a text. fixed: its place forbids another one there. cap: the most it can mean."""

    start: int
    end: int
    text: str
    value: Fraction
    fixed: bool = False
    cap: int | None = None

    @property
    def places(self) -> int:
        """Digits after the point."""
        return len(self.text.partition(".")[2])


def value_of(text: str) -> Fraction:
    """The value of what `NUMBER` matches."""
    return Fraction(text.replace(",", ""))


def tokens_of(text: str) -> list[Token]:
    """The numbers of a text; `fixed` where they are percentages, fractions, times, years, labels, parts of words, or
    count what no story may change (a dog's 4 legs)."""
    fractions = [(match.start(), match.end()) for match in _FRACTION.finditer(text)]
    return [_token(text, match, fractions) for match in NUMBER.finditer(text)]


def _token(text: str, match: re.Match[str], fractions: list[tuple[int, int]]) -> Token:
    start, end = match.span()
    before, after, value = text[:start], text[end:], value_of(match[0])
    fixed = (
        value < 2
        or (1900 <= value <= 2100 and value.denominator == 1 and "," not in match[0] and not before.endswith("$"))
        or bool(re.search(r"[\w.]$", before))
        or any(low <= start < high for low, high in fractions)
        or any(pattern.match(after) for pattern in (_PERCENT, _CLOCK, _OPERATOR_AFTER, _GIVEN_BY_NATURE))
        or any(pattern.search(before[-16:]) for pattern in (_LABEL, _OPERATOR_BEFORE))
    )
    unit = re.match(r"[\s-]*([a-z]+)", after)
    cap = next((most for name, most in _CAPS if unit and unit[1].rstrip("s") == name and value <= most), None)
    return Token(start, end, match[0], value, fixed, cap)


def constants_of(question: str, rationale: str) -> frozenset[Fraction]:
    """Values that a solution may use though no changeable number states them.

    They come with words ("twice", "week"), with percentages and fractions of the question, and with numbers written as
    words. A number of the question with such a value is never changed: it could be meant or not.
    """
    both = f"{question}\n{rationale}"
    found = {Fraction(1)}
    for pattern, values in _TRIGGERS:
        if pattern.search(both):
            found |= set(map(Fraction, values))
    if "$" in both or "%" in both or "¢" in both:
        found.add(Fraction(100))
    found |= {Fraction(WORDS[match[0].lower()]) for match in WORD.finditer(both)}
    for token in tokens_of(question):
        if _PERCENT.match(question[token.end :]):
            for percent in (token.value, 100 - token.value, 100 + token.value):
                found |= {percent, percent / 100}
        elif token.fixed:
            found.add(token.value)
    for match in _FRACTION.finditer(question):
        found |= set(_of_fraction(match))
    return frozenset(found)


def _of_fraction(match: re.Match[str]) -> Iterator[Fraction]:
    whole, top, bottom = int(match[1] or 0), int(match[2]), int(match[3])
    yield from map(Fraction, (whole, top, bottom, bottom - top, bottom + top))
    if bottom:
        part = Fraction(top, bottom)
        yield from (part, 1 - part, 1 + part, whole + part)


def plausible(old: Fraction, new: Fraction) -> bool:
    """Does a new value fit where the old one stood? Whole stays whole, positive positive, and one stays one (grammar).

    Part of one (0.25) stays below one, more than one above; decimals keep to at most two places, or as many as before.
    """
    if old.denominator == 1 and new.denominator != 1:
        return False
    if (old > 0) != (new > 0) or (old == 0) != (new == 0) or (old == 1) != (new == 1):
        return False
    if (abs(old) > 1) != (abs(new) > 1):
        return False
    return new.denominator == 1 or decimal_places(new) <= max(2, decimal_places(old))


def decimal_places(value: Fraction) -> int:
    """Digits after the point of a decimal; 99 where it has no end."""
    text = terminating(value)
    return 99 if text is None or "e" in text else len(text.partition(".")[2])


def another(token: Token, rng: random.Random) -> Fraction:
    """A new value like a number's: as round, with as many decimals, from half of it to its double, at least 2."""
    unit = Fraction(1, 10**token.places)
    steps = int(token.value / unit)
    step = next(
        size for size in (10_000, 1000, 100, 50, 10, 5, 1) if size == 1 or (steps % size == 0 and steps // size >= 3)
    )
    low, high = max(2 / unit, Fraction(steps, 2)), Fraction(max(2 * steps, int(10 / unit) if token.value < 6 else 0))
    if token.cap is not None:
        high = min(high, token.cap / unit)
    first, last = -(-low // step), high // step
    choices = [number for number in range(int(first), int(last) + 1) if number * step != steps]
    return rng.choice(choices) * step * unit if choices else token.value


def written(value: Fraction, like: Token) -> str:
    """A value in the form of the number that it replaces: its thousands separators, its decimals where they suffice."""
    if value == like.value:
        return like.text
    scale = 10**like.places
    if like.places and value >= 0 and (value * scale).denominator == 1:
        units = int(value * scale)
        text = f"{units // scale}.{units % scale:0{like.places}d}"
    else:
        text = terminating(value) or str(value)
    if "," in like.text:
        whole, point, rest = text.partition(".")
        text = f"{int(whole):,}{point}{rest}"
    return text
