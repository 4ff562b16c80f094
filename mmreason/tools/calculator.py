"""The calculator: one arithmetic expression in, its exact value out. Nothing is evaluated as Python.

    expression  = sum
    sum         = product (("+" | "-") product)*
    product     = signed (("*" | "/" | "//" | "%" | "of") signed)*        `of` multiplies: 15% of 80
    signed      = ("+" | "-")* power
    power       = postfix [("^" | "**") signed]                           -2^2 = -4, 2^3^2 = 2^9, 2^-1 = 0.5
    postfix     = atom ("!" | "%")*
    atom        = number | "pi" | "e" | name "(" expression ("," expression)* ")" | "(" expression ")"

- `%` directly before a number, a name or `(` is the remainder (`7 % 4`), anywhere else percent (`15% * 80`, `5% + 1`).
- `1,234,567` is a number with thousands separators; inside a function's parentheses a comma parts arguments.
- × · ⋅ ÷ − and full-width characters are read as * * * / - and their plain forms.
- Numbers are `fractions.Fraction`. `/` is exact; `//` and `%` round towards minus infinity and `round` rounds half to
  even, all as in Python. What no fraction is (`sqrt(2)`, `pi`) is carried as an enclosure, see `_enclosures.py`.

The result is written as a whole number (`36`), a decimal of at most 20 significant digits (`0.125`), a fraction and its
approximation (`1/3 (about 0.333333333333)`), or only an approximation (`about 1.41421356237`): at most 12 significant
digits, all of them right after rounding.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

from mmreason.answers.normalize import fold
from mmreason.tools import _enclosures as enclosures
from mmreason.tools._enclosures import MAX_DIGITS, Value, exactly
from mmreason.tools.types import ToolError

MAX_CHARS = 2000
"""Characters of an expression."""
MAX_DEPTH = 40
"""Parentheses and powers inside each other."""
SHOWN_DIGITS = 12
"""Significant digits of an approximation."""
_EXACT_DIGITS = 20
_MAX_FRACTION_CHARS = 40

_SIGNS = str.maketrans({"×": "*", "✕": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/"})
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|//|[-+*/%^!(),])|(?P<space>\s+)"
)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d*)?")


def evaluate(expression: str) -> Value:
    """The value of an expression.

    Raises: ToolError: bad_arguments where it can't be read, refused where it is too large, failed where it has no value
        (division by zero, the square root of a negative number).
    """
    if len(expression) > MAX_CHARS:
        raise ToolError("refused", f"the expression has {len(expression)} characters; at most {MAX_CHARS} are read")
    return _Parser(fold(expression).translate(_SIGNS)).parse()


def render(value: Value) -> str:
    """The text of a value, as the module's docstring says.

    Raises: ToolError where no digit of an enclosed value is certain.
    """
    if not value.exact:
        return f"about {_approximate(value.low, value.high)}"
    number = value.low
    if number.denominator == 1:
        return str(number.numerator)
    decimal = terminating(number)
    if decimal is not None:
        return decimal
    fraction = f"{number.numerator}/{number.denominator}"
    about = f"about {_approximate(number, number)}"
    return f"{fraction} ({about})" if len(fraction) <= _MAX_FRACTION_CHARS else about


class Calculator:
    """The calculator as a tool."""

    name = "calculator"
    description = (
        "Computes one arithmetic expression exactly. Operators: + - * / // % ^ ! and percent (15% of 80). Functions: "
        "sqrt, root(x, n), abs, round(x, places), floor, ceil, min, max, gcd, lcm, factorial, comb, perm. "
        "Constants: pi, e. No variables, no units."
    )

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "for example (3 + 4.5) * 2 / 3"}},
            "required": ["expression"],
            "additionalProperties": False,
        }

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """The value as text. The limits on size end every expression within a second."""
        return render(evaluate(arguments["expression"]))


# --------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True, slots=True)
class _Token:
    """kind: number, name, sign or end. column: where it stands, from 1."""

    kind: str
    text: str
    column: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    opened: list[bool] = []  # of each open parenthesis: is it in a function's arguments?
    position = 0
    while position < len(text):
        in_call = bool(opened) and opened[-1]
        match = (None if in_call else _GROUPED.match(text, position)) or _TOKEN.match(text, position)
        if match is None:
            _unreadable(position + 1, f"{text[position]!r} can't be read")
        token = _Token(match.lastgroup or "number", match.group(), position + 1)
        position = match.end()
        if token.kind == "space":
            continue
        if token.text == "(":
            opened.append(in_call or (bool(found) and found[-1].kind == "name" and found[-1].text != "of"))
        elif token.text == ")" and opened:
            opened.pop()
        found.append(token)
    return [*found, _Token("end", "the end", len(text) + 1)]


def _unreadable(column: int, what: str) -> NoReturn:
    raise ToolError("bad_arguments", f"the expression can't be read at column {column}: {what}")


class _Parser:
    """Recursive descent over the grammar of the module's docstring; each method returns the value of what it read."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.index = 0
        self.depth = 0

    def parse(self) -> Value:
        value = self.sum()
        if self.next.kind != "end":
            self.fail()
        return value

    @property
    def next(self) -> _Token:
        return self.tokens[self.index]

    def take(self, *texts: str) -> str | None:
        """Step over the next token if it is one of these."""
        if self.next.kind == "end" or self.next.text not in texts:
            return None
        self.index += 1
        return self.tokens[self.index - 1].text

    def fail(self) -> NoReturn:
        """The error for the token that doesn't fit here."""
        token = self.next
        before = self.tokens[self.index - 1] if self.index else None
        beside = before is not None and (before.kind in ("number", "name") or before.text in (")", "!", "%"))
        if beside and (token.kind in ("number", "name") or token.text == "("):
            _unreadable(token.column, f"an operator is missing before {token.text!r}")
        if token.text == ",":
            _unreadable(token.column, "outside a function a comma only parts thousands, as in 1,234")
        if beside:
            _unreadable(token.column, f"{token.text!r} doesn't belong here")
        _unreadable(token.column, f"expected a number, a function or '(', found {token.text!r}")

    def sum(self) -> Value:
        value = self.product()
        while operator := self.take("+", "-"):
            value = (enclosures.add if operator == "+" else enclosures.subtract)(value, self.product())
        return value

    def product(self) -> Value:
        value = self.signed()
        while operator := self.take(*_PRODUCTS):
            value = _PRODUCTS[operator](value, self.signed())
        return value

    def signed(self) -> Value:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        # All recursion passes here.
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ToolError("refused", f"more than {MAX_DEPTH} parentheses and powers inside each other")
        value = self.power()
        self.depth -= 1
        return enclosures.negate(value) if negative else value

    def power(self) -> Value:
        value = self.postfix()
        return enclosures.power(value, self.signed()) if self.take("^", "**") else value

    def postfix(self) -> Value:
        value = self.atom()
        while True:
            if self.next.text == "%" and not self._starts_operand(self.tokens[self.index + 1]):
                self.index += 1
                value = enclosures.divide(value, exactly(100))
            elif self.take("!"):
                value = enclosures.factorial(_whole(value, "!"))
            else:
                return value

    @staticmethod
    def _starts_operand(token: _Token) -> bool:
        return token.kind == "number" or (token.kind == "name" and token.text != "of") or token.text == "("

    def atom(self) -> Value:
        token = self.next
        if token.kind == "number":
            self.index += 1
            return exactly(_number(token))
        if self.take("("):
            value = self.sum()
            self._close(token)
            return value
        if token.kind != "name" or token.text == "of":
            self.fail()
        self.index += 1
        if token.text in _CONSTANTS:
            return _CONSTANTS[token.text]
        return self._call(token)

    def _close(self, opening: _Token) -> None:
        if not self.take(")"):
            if self.next.kind == "end":
                _unreadable(self.next.column, f"the '(' at column {opening.column} is never closed")
            self.fail()

    def _call(self, name: _Token) -> Value:
        if name.text not in _FUNCTIONS:
            close = difflib.get_close_matches(name.text.lower(), [*_FUNCTIONS, *_CONSTANTS], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_FUNCTIONS)}, pi, e"
            _unreadable(name.column, f"unknown name {name.text!r}; {hint}")
        opening = self.next
        if not self.take("("):
            _unreadable(opening.column, f"{name.text!r} is a function: {name.text}(...)")
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        self._close(opening)
        function, fewest, most = _FUNCTIONS[name.text]
        if not fewest <= len(values) <= most:
            wanted = (
                str(fewest) if fewest == most else f"{fewest} or {most}" if most < MAX_CHARS else f"{fewest} or more"
            )
            _unreadable(
                name.column,
                f"{name.text} takes {wanted} argument{'s' * (wanted != '1')}, not {len(values)} "
                "(inside a function a comma parts arguments: 1234, not 1,234)",
            )
        return function(values)


def _number(token: _Token) -> Fraction:
    text = token.text.replace(",", "")
    exponent = text.lower().partition("e")[2]
    if len(text) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        raise ToolError("refused", f"the number at column {token.column} has more than {MAX_DIGITS} digits")
    return Fraction(text)


def _whole(value: Value, name: str) -> int:
    if not value.exact or value.low.denominator != 1:
        raise ToolError("failed", f"{name} needs whole numbers, not {render(value)}")
    return value.low.numerator


def _of_integers(name: str, function: Callable[..., Value]) -> Callable[[list[Value]], Value]:
    return lambda values: function(*(_whole(value, name) for value in values))


def _gcd(*numbers: int) -> Value:
    return exactly(math.gcd(*numbers))


def _lcm(*numbers: int) -> Value:
    total = exactly(1)
    for number in numbers:  # one at a time: each result is checked for its size
        total = exactly(math.lcm(total.low.numerator, number))
    return total


_PRODUCTS: dict[str, Callable[[Value, Value], Value]] = {
    "*": enclosures.multiply,
    "of": enclosures.multiply,
    "/": enclosures.divide,
    "//": enclosures.floor_divide,
    "%": enclosures.modulo,
}
_CONSTANTS = {"pi": enclosures.PI, "π": enclosures.PI, "e": enclosures.E}
_FUNCTIONS: dict[str, tuple[Callable[[list[Value]], Value], int, int]] = {
    "sqrt": (lambda values: enclosures.root(values[0], 2), 1, 1),
    "root": (lambda values: enclosures.root(values[0], _whole(values[1], "the degree of root")), 2, 2),
    "abs": (lambda values: enclosures.absolute(values[0]), 1, 1),
    "round": (lambda values: enclosures.rounded(values[0], _whole(values[1], "round") if values[1:] else 0), 1, 2),
    "floor": (lambda values: enclosures.floor(values[0]), 1, 1),
    "ceil": (lambda values: enclosures.ceil(values[0]), 1, 1),
    "min": (enclosures.smallest, 1, MAX_CHARS),
    "max": (enclosures.largest, 1, MAX_CHARS),
    "gcd": (_of_integers("gcd", _gcd), 1, MAX_CHARS),
    "lcm": (_of_integers("lcm", _lcm), 1, MAX_CHARS),
    "factorial": (_of_integers("factorial", enclosures.factorial), 1, 1),
    "comb": (_of_integers("comb", enclosures.choose), 2, 2),
    "perm": (_of_integers("perm", enclosures.falling), 2, 2),
}
"""Name -> (function of the values, fewest arguments, most arguments)."""


# --------------------------------------------------------------------------------------------------------------------
# Writing


def terminating(number: Fraction) -> str | None:
    """The whole decimal expansion of a number, None where it has none or more than 20 significant digits."""
    rest, twos, fives = number.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    digits = abs(number.numerator) * 10**places // number.denominator
    if len(str(digits).rstrip("0")) > _EXACT_DIGITS:
        return None
    return _decimal(number < 0, digits, -places)


def _approximate(low: Fraction, high: Fraction) -> str:
    """The most significant digits, at most SHOWN_DIGITS, on which both ends agree after rounding."""
    for digits in range(SHOWN_DIGITS, 0, -1):
        text = _significant(low, digits)
        if text == _significant(high, digits):
            return text
    raise ToolError("failed", "the result can't be told from 0: the numbers cancel out to the last digit kept")


def _significant(number: Fraction, digits: int) -> str:
    """`number` to a count of significant digits, half to even."""
    if number == 0:
        return "0"
    size = abs(number)
    exponent = len(str(size.numerator)) - len(str(size.denominator))  # of the leading digit, or one more
    if size < Fraction(10) ** exponent:
        exponent -= 1
    last = exponent - digits + 1
    return _decimal(number < 0, round(size / Fraction(10) ** last), last, SHOWN_DIGITS)


def _decimal(negative: bool, digits: int, exponent: int, longest: int = 21) -> str:
    """digits * 10**exponent in plain notation; in scientific below 1e-6 and with more than `longest` places before the
    point, so that no zero stands in for a digit that isn't known."""
    text = str(digits).rstrip("0") or "0"
    exponent += len(str(digits)) - len(text)
    point = len(text) + exponent  # digits before the decimal point
    sign = "-" if negative and text != "0" else ""
    if not -6 < point <= longest:
        mantissa = text[0] + ("." + text[1:] if text[1:] else "")
        return f"{sign}{mantissa}e{point - 1}"
    if exponent >= 0:
        return sign + text + "0" * exponent
    if point > 0:
        return f"{sign}{text[:point]}.{text[point:]}"
    return f"{sign}0.{'0' * -point}{text}"
