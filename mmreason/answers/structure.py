"""The outer shape of a mathematical answer: a list, a set, a tuple, an interval, alternatives with ±; compared piece
by piece.

Rules: sets and bare lists are unordered and equal each other; a tuple, point or interval has to have the same
brackets, order and length; a bare list equals a tuple or "[...]" of the same order; `{5}` equals 5; `a \\pm b` is the
list a+b, a-b. A list never equals one of its elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mmreason.answers.numbers import parse_number

MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """One level of an answer: `form` is "scalar", "list" (bare, unordered), "set" or the two brackets such as "(]"."""

    form: str
    items: tuple[str, ...]


_OPEN = frozenset("([{")
_CLOSE = frozenset(")]}")
_TOKEN = re.compile(r"\\[{}]|\\begin\b|\\end\b|\\[a-zA-Z]+|\\.|[()\[\]{}]|,|;|\||\s(?:and|or)\s", re.DOTALL)
_TEXT_JOIN = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|,?\s+(?:and|or)\s+|,?\s*\\(?:land|lor|quad|qquad)(?![A-Za-z])|\s*[、]\s*|或|和"
)
_ELEMENT = re.compile(r"^\s*(?:[A-Za-z](?:_\{?\w\}?)?|\([a-z](?:\s*,\s*[a-z]){1,4}\))\s*(?:\\in|=)\s*")
_NAMED = re.compile(r"^\s*(?:\\(?:mathbf|vec|overrightarrow|mathrm)\{)?([A-Za-z](?:_\{?\w{1,3}\}?)?)\}?\s*=\s*(?=[^=])")


def split_top(text: str) -> list[str] | None:
    """Splits at commas and semicolons outside all brackets; None where brackets don't match."""
    parts: list[str] = []
    depth = start = environments = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _OPEN or token == "\\{":
            depth += 1
        elif token in _CLOSE or token == "\\}":
            depth -= 1
            if depth < 0:
                return None
        elif token == "\\begin":
            environments += 1
        elif token == "\\end":
            environments -= 1
        elif token in (",", ";") and depth == 0 and environments == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    if depth:
        return None
    parts.append(text[start:])
    return [part.strip() for part in parts]


def _wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket of `text` is closed by its last one (brackets of any sort count)."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return False
    depth = 0
    end = len(text) - len(closing)
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _OPEN or token == "\\{":
            depth += 1
        elif token in _CLOSE or token == "\\}":
            depth -= 1
            if depth == 0:
                return match.start() == end
    return False


def shape(text: str) -> Shape:
    """The outer shape of a cleaned answer (see `normalize.clean_math`)."""
    text = text.strip().rstrip(".")
    for _ in range(2):
        match = _ELEMENT.match(text)
        if match is None or text[match.end() : match.end() + 1] == "":
            break
        rest = text[match.end() :].strip()
        if rest[:1] not in ("(", "[", "{") and rest[:2] not in ("\\{", "\\(", "\\["):
            break
        if "\\in" not in match.group() and "," not in rest:
            break
        text = rest
    if _wrapped(text, "\\{", "\\}"):
        return _items("set", text[2:-2])
    for _ in range(4):
        if not _wrapped(text, "{", "}"):
            break
        text = text[1:-1].strip()
    for opening in "([":
        for closing in ")]":
            if _wrapped(text, opening, closing):
                inner = split_top(text[1:-1])
                if inner is not None and 2 <= len(inner) <= MAX_ITEMS:
                    return Shape(opening + closing, tuple(inner))
    return _items("list", text)


def _items(form: str, text: str) -> Shape:
    joined = (
        _TEXT_JOIN.sub(",", text) if ("and" in text or "or" in text or "quad" in text or not text.isascii()) else text
    )
    parts = split_top(joined)
    if parts is None:
        return Shape("scalar", (text,))
    parts = [part for part in parts if part]
    expanded: list[str] = []
    for part in parts:
        expanded.extend(_plus_minus(part))
    if len(expanded) > MAX_ITEMS or (form == "list" and len(expanded) <= 1):
        return Shape("scalar", (text.strip(),))
    if form == "list":
        expanded = _share_name(expanded)
    return Shape(form, tuple(expanded))


def assigned(text: str) -> tuple[str | None, str]:
    """(variable, value) of "x = 2"; (None, text) where the text is no assignment or has further relations."""
    match = _NAMED.match(text)
    if match is None or _RELATION.search(text, match.end()) is not None:
        return None, text
    return match.group(1).replace("{", "").replace("}", ""), text[match.end() :]


_RELATION = re.compile(r"[=<>]|\\(?:le|ge|neq|in|approx|equiv|to)(?![A-Za-z])")


def unassigned(gold: str, answer: str) -> tuple[str, str] | None:
    """Two scalars without their common variable or that of the only side with one; None for "x = 1", "y = 1"."""
    left, right = assigned(gold), assigned(answer)
    if left[0] is not None and right[0] is not None:
        return (left[1], right[1]) if left[0] == right[0] else None
    if left[0] is not None and _RELATION.search(answer) is None:
        return left[1], answer
    if right[0] is not None and _RELATION.search(gold) is None:
        return gold, right[1]
    return gold, answer


def _share_name(items: list[str]) -> list[str]:
    """Drops the variable of "x = 1, x = 2" and "x = 1, 2" (one name), keeps those of "x = 1, y = 2"."""
    names = {match.group(1) for item in items if (match := _NAMED.match(item)) is not None}
    return [_NAMED.sub("", item) for item in items] if len(names) == 1 else items


def _plus_minus(text: str) -> list[str]:
    if text.count("\\pm") != 1:
        return [text]
    left, right = text.split("\\pm")
    if split_top(left) is None or split_top(right) is None:  # inside brackets: left to the symbolic comparison
        return [text]
    name = _NAMED.match(left)
    left = left[name.end() :] if name is not None else left
    return [f"{left}+{right}" if left.strip() else right.strip(), f"{left}-{right}"]


_RATIO = re.compile(r"\s*\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+\s*")
_CLOCK = re.compile(r"\s*(\d{1,2}:\d\d(?::\d\d)?)\s*(?:([ap])\.?\s?m\.?)?\s*", re.IGNORECASE)


def same_ratio(gold: str, answer: str) -> bool | None:
    """Equality of ratios ("4:3" equals "8:6" and 4/3) and times of day ("3:45 p.m."); None where neither side is one.

    Two digits after the colon may be minutes: such a gold is matched exactly, never in proportion.
    """
    left, right = (_CLOCK.fullmatch(text.replace("\\text{", " ").replace("}", "")) for text in (gold, answer))
    if left is not None:
        if right is not None:
            same_half = not left[2] or not right[2] or left[2].lower() == right[2].lower()
            return left[1].lstrip("0") == right[1].lstrip("0") and same_half
        return False
    if _RATIO.fullmatch(gold) is None and _RATIO.fullmatch(answer) is None:
        return None
    a, b = _terms(gold), _terms(answer)
    if a is None or b is None or len(a) != len(b) or not a[0] or not b[0]:
        return False
    return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _terms(text: str) -> list[Fraction] | None:
    """The terms of "4:3" or of the fraction 4/3."""
    if _RATIO.fullmatch(text) and len(text) < 200:
        return [Fraction(part.strip()) for part in text.split(":")]
    number = parse_number(text)
    if number is None or number.value.denominator == 1 or number.places is not None:
        return None
    return [Fraction(number.value.numerator), Fraction(number.value.denominator)]


Equal = Callable[[str, str], bool | None]
"""Compares two scalars (gold, answer): True, False, or None where it can't tell."""


def same_shape(gold: str, answer: str, equal: Equal) -> bool | None:
    """Compares two cleaned answers piece by piece.

    Args:
        gold: the gold, cleaned.
        answer: the answer, cleaned.
        equal: compares two scalars.

    Returns:
        Whether they are equal; None where `equal` couldn't tell or where both are scalars it knows nothing about.
    """
    return _same(shape(gold), shape(answer), equal, 0)


def _same(gold: Shape, answer: Shape, equal: Equal, depth: int) -> bool | None:
    if depth > 8:
        return None
    if gold.form == answer.form == "scalar":
        pair = unassigned(gold.items[0], answer.items[0])
        if pair is None:
            return False
        ratio = same_ratio(*pair)
        return equal(*pair) if ratio is None else ratio
    forms = {gold.form, answer.form}
    if "scalar" in forms:
        side, other = (gold, answer) if gold.form == "scalar" else (answer, gold)
        # A name may stand before a list ("x = 1, 2"), relations may be written as intervals: those aren't settled here.
        if other.form == "set" and len(other.items) == 1:
            pair = (side.items[0], other.items[0])
            return equal(*(pair if side is gold else pair[::-1]))
        return (
            None
            if re.search(
                r"\\cup|\\le|\\ge|[<>]|\\begin|\\in\b|\\mathbb|\\setminus|\\cap|\\infty|\\emptyset", side.items[0]
            )
            else False
        )
    if forms <= {"list", "set"}:
        return _unordered(gold.items, answer.items, equal, depth)
    if gold.form != answer.form and "list" not in forms:
        return False
    if "list" in forms and not forms & {"()", "[]"}:
        return False
    if gold.form == "[]" and answer.form == "list" and len(gold.items) == 2:
        return False  # a closed interval isn't its two ends
    if len(gold.items) != len(answer.items):
        return False
    verdict: bool | None = True
    for left, right in zip(gold.items, answer.items, strict=True):
        same = _same(shape(left), shape(right), equal, depth + 1)
        if same is False:
            return False
        verdict = None if same is None else verdict
    return verdict


def _unordered(gold: tuple[str, ...], answer: tuple[str, ...], equal: Equal, depth: int) -> bool | None:
    """Multiset equality; duplicates on both sides have to match too."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    unsure = False
    for item in gold:
        doubtful = False
        for position, other in enumerate(left):
            same = _same(shape(item), shape(other), equal, depth + 1)
            if same:
                del left[position]
                break
            doubtful |= same is None
        else:
            if not doubtful:
                return False
            unsure = True
    return None if unsure else True
