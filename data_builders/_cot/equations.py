"""The equations of a rationale in a canonical form: what tells two ways of solving a problem apart.

Read are calculator notes (`<<48/2=24>>`) and equations in the text, also of LaTeX and with units between the numbers:
"16 canes / 4 canes = 4". Two equations are the same where they differ only in the order of terms and factors, in
parentheses without meaning, and in how the numbers are written: "3 x (2 + 4) = $18" and "(4 + 2.0) * 3 = 18".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from mmreason.answers.normalize import canonical, fold
from mmreason.data._words import words
from mmreason.tools.calculator import evaluate
from mmreason.tools.formats import notes
from mmreason.tools.types import ToolError

_MAX_CHARS = 400  # of an equation; longer runs of digits and signs are no steps of a person
_MAX_DEPTH = 30
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "[": "(", "]": ")"})
_LATEX = (
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:left|right|quad|[,;!: ])|\\?\$|\{,\}"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=[\d)%])\s*[xX]\s*(?=[\d(.])"), "*"),
    (re.compile(r"(?<=[\d%])\s+of\s+(?=[\d(.])"), "*"),
    # Units: "16 canes / 4 canes/cavity = 4". A single letter may be a variable.
    (re.compile(r"(?<=\d)[ -]+[A-Za-z]{2,}(?:/[A-Za-z]{2,})?(?: [A-Za-z]{2,})?\s*(?=[-+*/=)])"), " "),
)
_LISTED = re.compile(r"^[^\S\n]*(?:[-*+•]|\(?\d{1,2}[.)])\s+", re.M)
_RUN = re.compile(r"[\d.+\-*/^()%= ]*\d[\d.+\-*/^()%= ]*=[\d.+\-*/^()%= ]*")
_TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+(?:\.\d+)?|\.\d+)%?)|(?P<sign>\*\*|[-+*/^()]))")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.S)
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_WORDS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,} +[A-Za-z]{2,}")  # between two amounts of dollars
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation of numbers.

    Attributes:
        key: its canonical form.
        holds: whether it is true, a rounded result included; None where it can't be told (a mixed number, a variable
            beside it).
    """

    key: str
    holds: bool | None


def equations(text: str) -> list[Equation]:
    """The equations of numbers in a text, in order; those with an operator only, so "x = 5" is none."""
    found: list[Equation] = []
    position = 0
    for note in notes.find(text):
        # The number that follows a note repeats its result.
        found += _in_text(text[position : note.start])
        position = note.end
        if note.value is not None:
            key = canonical_expression(note.expression)
            stated = _value(note.result) if note.result else None
            if key is not None and stated is not None:
                found.append(_checked(key, note.value, stated, note.verdict))
    return found + _in_text(text[position:])


def path_key(rationale: str) -> frozenset[str]:
    """What a rationale does, as a set: its equations of numbers and the formulas of its mathematics.

    A rationale without any (a question of science, of common sense) is the set of its sentences.
    """
    found = {equation.key for equation in equations(rationale)}
    for match in _MATH.finditer(rationale):
        formula = next(group for group in match.groups() if group is not None)
        if "=" in formula and _VARIABLE.search(formula) and not _WORDS.search(formula):
            found.add(canonical(formula))
    if not found:
        found = {" ".join(words(sentence)) for sentence in _SENTENCE.split(rationale)} - {""}
    return frozenset(found)


def canonical_expression(text: str) -> str | None:
    """An expression of numbers in canonical form; None for what can't be read or is a single number."""
    tokens = _tokens(_plain(text))
    if tokens is None:
        return None
    try:
        node = _Reader(tokens).read()
    except ValueError:
        return None
    return None if isinstance(node, Fraction) else _written(node)


# --------------------------------------------------------------------------------------------------------------------
# Finding


def _plain(text: str) -> str:
    text = fold(text).translate(_SIGNS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _in_text(text: str) -> list[Equation]:
    text = _LISTED.sub("", _plain(text))
    found: list[Equation] = []
    for match in _RUN.finditer(text):
        if len(match[0]) > _MAX_CHARS:
            continue
        before, after = text[: match.start()][-1:], text[match.end() :]
        sides = match[0].split("=")
        beside = re.match(r"\s?[A-Za-z]\b", after) is not None  # "= 6y": a variable goes on with the last side
        for number, (left, right) in enumerate(pairwise(sides)):
            if number == 0 and before.isascii() and before.isalpha() and re.match(r"\s*[-+*/^]|\S", left):
                continue  # "x + 5 = 7", "x5 + 3 = 7"
            if number == len(sides) - 2 and beside:
                continue
            equation = _equation(left, right)
            if equation is not None:
                found.append(equation)
    return found


def _equation(left: str, right: str) -> Equation | None:
    told, value = _cut(left, last=True), _cut(right, last=False)
    if told is None or value is None:
        return None
    key = canonical_expression(told[0])
    if key is None:
        return None
    note = notes.find(f"<<{told[0]}={value[0]}>>")[0]
    if note.value is None:
        return None
    verdict, stated = note.verdict, _value(value[0])
    if stated is None:
        return None
    if verdict == "unreadable":  # the right side is an expression
        verdict = "right" if note.value == stated else "wrong"
    return _checked(key, note.value, stated, verdict, told[1] or value[1])


def _checked(key: str, value: Fraction, stated: Fraction, verdict: notes.Verdict, doubtful: bool = False) -> Equation:
    """However a result is rounded, the equation is the same."""
    holds = verdict in ("right", "rounded")
    return Equation(f"{key}={value if holds else stated}", None if doubtful else holds)


def _value(text: str) -> Fraction | None:
    try:
        value = evaluate(text)
    except ToolError:
        return None
    return value.low if value.exact else None


def _cut(side: str, *, last: bool) -> tuple[str, bool] | None:
    """(the expression next to the `=`, whether a number beside it was cut off): numbers of the sentence before and
    behind belong to no equation."""
    tokens = _tokens(side.strip().rstrip("."))
    if tokens is None:
        return None
    start, end = 0, len(tokens)
    for i in range(1, len(tokens)):
        if _ends(tokens[i - 1]) and _begins(tokens[i]):
            if last:
                start = i
            else:
                end = i
                break
    was_cut, tokens = (start, end) != (0, len(tokens)), tokens[start:end]
    while tokens and tokens[-1] in _OPERATORS:
        tokens = tokens[:-1]
    # A parenthesis around the whole remark: "(3 + 2 = 5)".
    while tokens.count("(") > tokens.count(")") and tokens[0] == "(":
        tokens = tokens[1:]
    while tokens.count(")") > tokens.count("(") and tokens[-1] == ")":
        tokens = tokens[:-1]
    return (" ".join(tokens), was_cut) if tokens else None


_OPERATORS = ("+", "-", "*", "/", "^", "**")


def _ends(token: str) -> bool:
    return token not in _OPERATORS and token != "("


def _begins(token: str) -> bool:
    return token not in _OPERATORS and token != ")"


def _tokens(text: str) -> list[str] | None:
    found: list[str] = []
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        found.append(match["number"] or match["sign"])
        position = match.end()
    return found or None


# --------------------------------------------------------------------------------------------------------------------
# The canonical form

Node = Fraction | tuple[str, tuple[tuple[int, "Node"], ...]]
"""A number, or an operator with its operands: "+" with their signs, "*" with exponents 1 and -1, "^" base and power."""


class _Reader:
    """Recursive descent. Raises: ValueError where the tokens are no expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.index, self.depth = tokens, 0, 0

    def read(self) -> Node:
        node = self.sum()
        if self.index < len(self.tokens):
            raise ValueError(self.tokens[self.index])
        return node

    def take(self, *signs: str) -> str | None:
        if self.index < len(self.tokens) and self.tokens[self.index] in signs:
            self.index += 1
            return self.tokens[self.index - 1]
        return None

    def sum(self) -> Node:
        terms = [(1, self.product())]
        while sign := self.take("+", "-"):
            terms.append((1 if sign == "+" else -1, self.product()))
        return _joined("+", terms)

    def product(self) -> Node:
        factors = [(1, self.signed())]
        while sign := self.take("*", "/"):
            factors.append((1 if sign == "*" else -1, self.signed()))
        return _joined("*", factors)

    def signed(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("too deep")
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        node = self.atom()
        if self.take("^", "**"):
            node = ("^", ((1, node), (1, self.signed())))
        self.depth -= 1
        if not negative:
            return node
        return -node if isinstance(node, Fraction) else ("+", ((-1, node),))

    def atom(self) -> Node:
        if self.take("("):
            node = self.sum()
            if not self.take(")"):
                raise ValueError("unclosed")
            return node
        if self.index >= len(self.tokens) or self.tokens[self.index][0] not in "0123456789.":
            raise ValueError("no number")
        self.index += 1
        text = self.tokens[self.index - 1]
        return Fraction(text.rstrip("%")) / (100 if text.endswith("%") else 1)


def _joined(operator: str, operands: list[tuple[int, Node]]) -> Node:
    """A sum of sums is one sum, a product of products one product; the operands are put in order."""
    if len(operands) == 1 and operands[0][0] == 1:
        return operands[0][1]
    flat: list[tuple[int, Node]] = []
    for sign, node in operands:
        if not isinstance(node, Fraction) and node[0] == operator:
            flat += [(sign * inner, part) for inner, part in node[1]]
        else:
            flat.append((sign, node))
    return operator, tuple(sorted(flat, key=lambda entry: (-entry[0], _written(entry[1]))))


def _written(node: Node) -> str:
    if isinstance(node, Fraction):
        return str(node) if node >= 0 and node.denominator == 1 else f"({node})"
    operator, operands = node
    if operator == "^":
        return f"({_written(operands[0][1])}^{_written(operands[1][1])})"
    minus = {"+": "-", "*": "/"}[operator]
    return "(" + "".join(f"{operator if sign == 1 else minus}{_written(part)}" for sign, part in operands) + ")"
