"""The calculator against Python's own fractions, mpmath, and hostile input."""

from __future__ import annotations

import math
import operator
import random
import re
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.tools._enclosures import _integer_root
from mmreason.tools.calculator import Calculator, evaluate, render, terminating
from mmreason.tools.types import ToolError
from tests.timing import allowed


def value(expression: str) -> Fraction:
    found = evaluate(expression)
    assert found.exact
    return found.low


def outcome(expression: str) -> str:
    """The text, or the error's kind."""
    try:
        return render(evaluate(expression))
    except ToolError as error:
        return error.kind


# A tree is (text builder, Fraction or None). None: the reference has no value (division by zero, ...).
Tree = Any
_BINARY: dict[str, tuple[int, Callable[[Fraction, Fraction], Any]]] = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, operator.truediv),
    "//": (2, operator.floordiv),
    "mod": (2, operator.mod),
}
_SPELLINGS = {
    "*": ["*", "×", "·", "＊"],
    "/": ["/", "÷", "／"],
    "-": ["-", "−", "－"],
    "+": ["+", "＋"],
    "**": ["**", "^"],
}


@st.composite
def number_texts(draw: st.DrawFn) -> tuple[str, Fraction]:
    whole = draw(st.integers(0, 10**7))
    places = draw(st.sampled_from(["", "", "", ".5", ".25", ".013", ".0"]))
    text = f"{whole:,}" if draw(st.booleans()) else str(whole)
    exponent = draw(st.sampled_from(["", "", "", "e2", "E-3", "e+1"]))
    text = text if not exponent else str(whole)
    found = Fraction(f"{whole}{places}{exponent}")
    text += places + exponent
    if draw(st.booleans()):
        text = text.translate(str.maketrans("0123456789.", "０１２３４５６７８９．"))
    return text, found


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> tuple[str, int, Fraction]:
    """(text, precedence of its outermost operator, value by Python's fractions)."""
    kind = draw(
        st.sampled_from(["number", *_BINARY, "neg", "percent", "power", "call", "parentheses"] if depth else ["number"])
    )
    space = draw(st.sampled_from(["", " ", "  ", "　"]))
    if kind == "number":
        return (lambda pair: (pair[0], 9, pair[1]))(draw(number_texts()))
    text, precedence, left = draw(trees(depth=depth - 1))
    if kind == "neg":
        return f"-{space}{text if precedence >= 3 else f'({text})'}", 3, -left
    if kind == "percent":
        return f"{text if precedence >= 5 else f'({text})'}{space}%", 5, left / 100
    if kind == "parentheses":
        return f"({space}{text})", 9, left
    if kind == "power":
        exponent = draw(st.integers(-3, 4))
        if left == 0 and exponent < 0:
            exponent = -exponent
        sign = draw(st.sampled_from(_SPELLINGS["**"]))
        return f"{text if precedence >= 5 else f'({text})'}{space}{sign}{space}{exponent}", 4, left**exponent
    if kind == "call":
        name, function = draw(
            st.sampled_from([("abs", abs), ("floor", math.floor), ("ceil", math.ceil), ("round", round)])
        )
        return f"{name}({text.replace(',', '').replace('，', '')})", 9, Fraction(function(left))
    other, other_precedence, right = draw(trees(depth=depth - 1))
    level, function = _BINARY[kind]
    if level == 2 and kind != "*" and right == 0:
        other, other_precedence, right = "7", 9, Fraction(7)
    first = text if precedence >= level else f"({text})"
    # A product's right side may be signed, but not another product: a / b * c isn't a / (b * c).
    second = other if other_precedence > level else f"({other})"
    if kind == "mod":  # "%" before a sign would be a percent sign
        second = second if second[0] not in "-−－" else f"({second})"
        return f"{first}{space}%{space}{second}", 2, left % right
    sign = draw(st.sampled_from(_SPELLINGS.get(kind, [kind])))
    return f"{first}{space}{sign}{space}{second}", level, Fraction(function(left, right))


@settings(max_examples=600, deadline=None)
@given(trees())
def test_equals_python_fractions(tree: tuple[str, int, Fraction]) -> None:
    text, _, expected = tree
    assert value(text) == expected, text


@settings(max_examples=300, deadline=None)
@given(st.fractions(), st.integers(1, 6))
def test_roots_are_exact_or_enclosed(number: Fraction, degree: int) -> None:
    number = abs(number)
    found = evaluate(f"root({number.numerator}/{number.denominator}, {degree})")
    assert found.low**degree <= number <= found.high**degree
    assert found.exact == (found.low**degree == number)
    if not found.exact:
        assert (found.high - found.low) * 2**250 < found.high
    assert value(f"root(({number.numerator}/{number.denominator})^{degree}, {degree})") == number


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**400), st.integers(1, 100))
def test_integer_roots(number: int, degree: int) -> None:
    root = _integer_root(number, degree)
    assert root**degree <= number < (root + 1) ** degree


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 10**6), st.integers(2, 10**6), st.integers(1, 400), st.integers(1, 9))
def test_approximations_agree_with_mpmath(a: int, b: int, n: int, q: int) -> None:
    expression = f"(sqrt({a}) - {b}/7) * pi + (1 + {b}/1000000)^{n} - {a}^({n % 20}/{q})"
    with mpmath.workdps(200):
        expected = (mpmath.sqrt(a) - mpmath.mpf(b) / 7) * mpmath.pi + (1 + mpmath.mpf(b) / 10**6) ** n
        expected -= mpmath.mpf(a) ** (mpmath.mpf(n % 20) / q)
        shown = render(evaluate(expression)).removeprefix("about ")
        assert mpmath.almosteq(mpmath.mpf(shown), expected, rel_eps=mpmath.mpf("5.1e-12"))


@settings(max_examples=300, deadline=None)
@given(st.fractions(), st.integers(-400, 400))
def test_rendered_decimals_are_the_number(number: Fraction, exponent: int) -> None:
    number = Fraction(number.numerator, 2**7) * Fraction(10) ** exponent
    text = terminating(number)
    if text is not None:
        assert Fraction(text) == number
        assert len(re.sub(r"e.*|[-.]", "", text).strip("0")) <= 20
    shown = render(evaluate(f"({number.numerator})/({number.denominator})"))
    about = re.search(r"about ([-\de.+]+)", shown)
    if about is None:
        assert Fraction(shown) == number
    else:
        assert abs(Fraction(about[1]) - number) <= abs(number) * Fraction(5, 10**12)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("3*4", "12"),
        ("1/8", "0.125"),
        ("-1/8", "-0.125"),
        ("1/3", "1/3 (about 0.333333333333)"),
        ("2/3", "2/3 (about 0.666666666667)"),
        ("22/7 - pi", "about 0.00126448926735"),
        ("sqrt(2)", "about 1.41421356237"),
        ("sqrt(49/4)", "3.5"),
        ("root(-8, 3)", "-2"),
        ("8^(1/3)", "2"),
        ("1.05^20", "about 2.65329770514"),
        ("1.0041667^360", "about 4.4677977048"),  # 360 * 8 decimal places: more than 2000 digits
        ("10^20", "1" + "0" * 20),
        ("10^20/7", "100000000000000000000/7 (about 1.42857142857e19)"),
        ("999999999999.9 * sqrt(1.0001)", "about 1.00004999875e12"),
        ("1e-7", "1e-7"),
        ("0.000001", "0.000001"),
        ("15% of 80", "12"),
        ("50% * 30%", "0.15"),
        ("5% + 1", "1.05"),
        ("7 % 4", "3"),
        ("-7 % 4", "1"),
        ("7.5 % 2", "1.5"),
        ("7 % (4)", "3"),
        ("50%^2", "0.25"),
        ("-2^2", "-4"),
        ("2^3^2", "512"),
        ("2^-1", "0.5"),
        ("2*-3", "-6"),
        ("--3", "3"),
        ("3!", "6"),
        ("2^3!", "64"),
        ("0^0", "1"),
        ("-7//2", "-4"),
        ("1,234,567.5 * 2", "2469135"),
        ("max(1,234)", "234"),
        ("max((1), 2, 3/2)", "2"),
        ("gcd(12,180)", "12"),
        ("lcm(4, 6, 10)", "60"),
        ("comb(10,3)", "120"),
        ("comb(3,10)", "0"),
        ("perm(5,2)", "20"),
        ("round(2.5)", "2"),
        ("round(2.675, 2)", "2.68"),  # exact: not the float 2.67499...
        ("round(1234, -2)", "1200"),
        ("floor(-0.5)", "-1"),
        ("ceil(sqrt(2))", "2"),
        ("２＋３×４", "14"),
        ("（1＋2）÷3", "1"),
        ("e", "about 2.71828182846"),
    ],
)
def test_results(expression: str, text: str) -> None:
    assert outcome(expression) == text


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("", "bad_arguments"),
        ("3 4", "bad_arguments"),
        ("2(3)", "bad_arguments"),
        ("(1", "bad_arguments"),
        ("1)", "bad_arguments"),
        ("1,23", "bad_arguments"),
        ("1,2345", "bad_arguments"),
        ("3*4=", "bad_arguments"),
        ("$5", "bad_arguments"),
        ("0x10", "bad_arguments"),
        ("3e", "bad_arguments"),
        ("foo(3)", "bad_arguments"),
        ("sqrt", "bad_arguments"),
        ("sqrt(1,024)", "bad_arguments"),
        ("max()", "bad_arguments"),
        ("__import__('os')", "bad_arguments"),
        ("(1).__class__", "bad_arguments"),
        ("lambda: 1", "bad_arguments"),
        ("5 of", "bad_arguments"),
        ("1/0", "failed"),
        ("1 % 0", "failed"),
        ("0^-1", "failed"),
        ("sqrt(-1)", "failed"),
        ("(-8)^(1/3)", "failed"),
        ("2^pi", "failed"),
        ("2.5!", "failed"),
        ("(-1)!", "failed"),
        ("comb(-1, 2)", "failed"),
        ("1/(sqrt(2)-sqrt(2))", "failed"),
        ("sqrt(2)-sqrt(2)", "failed"),
        ("floor(sqrt(2)^2)", "failed"),
        ("9**9**9", "refused"),
        ("9^9^9^9", "refused"),
        ("0.1^99999", "refused"),
        ("1.5^999999999", "refused"),
        ("sqrt(2)^999999999", "refused"),
        ("1e99999999999", "refused"),
        ("9" * 1999 + "*9999", "refused"),
        ("factorial(10^9)", "refused"),
        ("10^1000!", "refused"),
        ("comb(10^500, 10^400)", "refused"),
        ("perm(10^9, 10^8)", "refused"),
        ("round(1.5, 10^9)", "refused"),
        ("2^0.333", "refused"),
        ("lcm(10^1000, 10^1000+1)", "refused"),
        ("(" * 60 + "1" + ")" * 60, "refused"),
        ("2^" * 60 + "1", "refused"),
        ("1+" * 1500 + "1", "refused"),
    ],
)
def test_errors(expression: str, kind: str) -> None:
    start = time.perf_counter()
    assert outcome(expression) == kind
    assert time.perf_counter() - start < allowed(2)


def test_no_expression_is_slow() -> None:
    """The costly operations, repeated to the limit of 2,000 characters."""
    parts = [
        "comb(6000,3000)+",
        "sqrt(2^6000+1)+",
        "7^2300/3^",
        "1/(10^990+7)*",
        "(sqrt(2)+1)^2000+",
        "root(3^4000,99)+",
    ]
    for part in parts:
        start = time.perf_counter()
        outcome(part * (1990 // len(part)) + "1")
        assert time.perf_counter() - start < allowed(3), part


def test_no_text_raises_anything_else() -> None:
    rng = random.Random(0)
    pieces = [
        *"0123456789.,()+-*/%^!eE \n",
        "sqrt",
        "max",
        "of",
        "pi",
        "×",
        "，",
        "９",
        "1,000",
        "**",
        "//",
        "²",
        "\ud800",
    ]
    for _ in range(5000):
        outcome("".join(rng.choices(pieces, k=rng.randint(1, 12))))


def test_errors_say_where() -> None:
    with pytest.raises(ToolError, match="column 3: an operator is missing before '4'"):
        evaluate("3 4")
    with pytest.raises(ToolError, match="the '\\(' at column 1 is never closed"):
        evaluate("(1 + 2")
    with pytest.raises(ToolError, match="did you mean 'sqrt'"):
        evaluate("sqr(4)")


def test_tool() -> None:
    assert Calculator().call({"expression": "3*4"}, timeout_s=1) == "12"
