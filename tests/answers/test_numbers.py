"""Exact numbers: notations, refusals, the equality rules of the module docstring."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.answers import Verdict, equivalent, verify
from mmreason.answers.numbers import parse_number, same_number
from mmreason.answers.numerals import chinese_number, english_number
from mmreason.answers.units import measure, read_unit
from tests.timing import allowed

VALUES = [
    ("42", "42"),
    ("-42", "-42"),
    ("−42", "-42"),
    ("－４２", "-42"),
    ("+7", "7"),
    ("٤٢", "42"),
    ("1,080", "1080"),
    ("1,00,000", "100000"),
    ("1{,}008", "1008"),
    ("4,\\!989", "4989"),
    ("12\\,345", "12345"),
    ("$1,080.50", "1080.5"),
    ("\\$5", "5"),
    ("-\\$5", "-5"),
    ("$-5", "-5"),
    ("US$ 12", "12"),
    ("Rs. 40", "40"),
    ("€3.5", "3.5"),
    ("40元", "40"),
    (".5", "0.5"),
    ("12.", "12"),
    ("007", "7"),
    ("1/2", "1/2"),
    ("-1/2", "-1/2"),
    ("\\frac12", "1/2"),
    ("\\dfrac{1}{2}", "1/2"),
    ("\\frac{-1}{2}", "-1/2"),
    ("-\\frac{-1}{2}", "1/2"),
    ("\\frac{1.5}{2}", "3/4"),
    ("3 1/2", "7/2"),
    ("-3 1/2", "-7/2"),
    ("3\\frac{1}{2}", "7/2"),
    ("3½", "7/2"),
    ("½", "1/2"),
    ("1.5e3", "1500"),
    ("1.5E-3", "0.0015"),
    ("1.5 \\times 10^3", "1500"),
    ("1.5×10^{3}", "1500"),
    ("1.5 × 10³", "1500"),
    ("1.5 \\cdot 10^{-3}", "0.0015"),
    ("2 million", "2000000"),
    ("3.5万", "35000"),
    ("x = 2", "2"),
    ("\\text{Area} = 5\\text{ sq. units}", "5"),
    ("y \\approx 3.5", "3.5"),
    ("\\angle ABC = 50^\\circ", "50"),
    ("\\left(\\frac{3}{4}\\right)", "3/4"),
    ("$\\boxed{42}$", "42"),
    ("**42**", "42"),
    ("四十二", "42"),
    ("三千零五", "3005"),
    ("负三", "-3"),
    ("二分之一", "1/2"),
    ("三点一四", "3.14"),
    ("forty-two", "42"),
    ("three hundred and five", "305"),
    ("42 apples", "42"),
    ("42个苹果", "42"),
    ("5 cm", "5"),
    ("5 m/s", "5"),
    ("12\\text{ cm}^2", "12"),
    ("12 cm²", "12"),
    ("90°", "90"),
]

NOT_NUMBERS = [
    "", "x", "5x", "6p", "5!", "5 or 6", "5, 6", "1,2", "12,34", "5-6", "5 to 6", "5 and 6", "1/0", "3:45", "2^3",
    "\\frac{1}{0}", "\\sqrt{4}", "5\\pi", "1e999999999", "10^5", "1.2.3", "--5", "5 + 1", "(1,2)", "{1,2}", "[1,2]",
    "five six", "3 hours and 5 minutes", "5或6", "不是5", "__import__('os')", "1" * 5000, "\x00", "nan", "inf", "0x10",
    "1_000", "5 pi", "5 sqrt 2",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_value(text: str, value: str) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == Fraction(value)


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_not_a_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("十", 10),
        ("十五", 15),
        ("二十", 20),
        ("一百二", 120),
        ("一百零二", 102),
        ("三万五", 35000),
        ("一亿", 10**8),
        ("两千", 2000),
    ],
)
def test_chinese_numerals(text: str, value: int) -> None:
    assert chinese_number(text) == value


def test_number_words_that_are_several_numbers() -> None:
    assert english_number("five six") is None
    assert english_number("twenty ten") is None
    assert english_number("hundred") is None
    assert english_number("nine hundred ninety-nine thousand nine hundred ninety nine") == 999_999


def test_huge_digits_and_exponents_are_refused_quickly() -> None:
    start = time.perf_counter()
    for text in (
        "9" * 1_000_000,
        "1e" + "9" * 1000,
        "1" * 900 + "/" + "3" * 900,
        "1,111" * 10_000,
        "1.5 \\times 10^{999999999}",
    ):
        parse_number(text)
    assert time.perf_counter() - start < allowed(0.5)


def same(left: str, right: str) -> bool:
    a, b = parse_number(left), parse_number(right)
    assert a is not None and b is not None
    assert same_number(a, b) == same_number(b, a)
    return same_number(a, b)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("2/3", "0.666667", True),
        ("2/3", "0.666666", True),
        ("2/3", "0.667", False),
        ("0.333333", "0.33333333", True),
        ("0.333333", "0.3334", False),
        ("29", "28.999999999999996", True),
        ("29", "29.0001", False),
        ("1000000", "1000001", False),
        ("161371.43", "161371.44", False),
        ("5%", "5", True),
        ("5%", "0.05", True),
        ("5%", "5%", True),
        ("5%", "0.5", False),
        ("500%", "0.05", False),
        ("40_9", "40_{9}", True),
        ("40_9", "40", True),
        ("40_9", "40_8", False),
        ("40_9", "36", False),
        ("5 cm", "50 mm", True),
        ("5 cm", "5", True),
        ("5 cm", "5 m", False),
        ("5 cm", "5 cm^2", False),
        ("5 cm^2", "500 mm^2", True),
        ("2 hours", "120 minutes", True),
        ("2 hours", "2 dollars", False),
        ("5 apples", "5 pears", True),
        ("90^\\circ", "90 degrees", True),
        ("50 cents", "0.5 dollars", True),
    ],
)
def test_equality_rules(left: str, right: str, equal: bool) -> None:
    assert same(left, right) is equal


@pytest.mark.parametrize(
    ("rest", "unit"),
    [("", ""), ("cm", "cm"), ("square feet", "square feet"), ("x", None), ("or six", None), ("+ 1", None)],
)
def test_units(rest: str, unit: str | None) -> None:
    assert read_unit(rest, attached=True) == unit


def test_measures() -> None:
    assert measure("sq cm") == measure("cm^2")
    assert measure("feet") != measure("inches")
    assert measure("apples") is None


def _notations(value: Fraction) -> list[str]:
    sign = "-" if value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    found = [
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\dfrac{{{sign}{top}}}{{{bottom}}}",
        f"x = {sign}{top}/{bottom}",
    ]
    if bottom == 1:
        found += [
            f"{sign}{top}",
            f"{sign}{top:,}",
            f"${sign}{top}$",
            f"{sign}{top}.0",
            f"{sign}{top} apples",
            f"{sign}{top:,}".replace(",", "{,}"),
        ]
        found += [f"{sign}{top}".translate(str.maketrans("0123456789-", "０１２３４５６７８９−"))]
    whole, rest = divmod(top, bottom)
    if whole and rest:
        found += [f"{sign}{whole} {rest}/{bottom}", f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}"]
    plain = bottom
    for prime in (2, 5):
        while plain % prime == 0:
            plain //= prime
    if plain == 1 and bottom <= 10**4:
        scaled = value * 10**6
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):07d}"
            found.append(f"{sign}{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip("."))
            found.append(f"{sign}{digits[:-6]}.{digits[-6:]}e0")
    return found


_FRACTIONS = st.builds(Fraction, st.integers(-10_000_000, 10_000_000), st.integers(1, 500))


@settings(max_examples=150, deadline=None)
@given(_FRACTIONS, st.data())
def test_any_notation_equals_any_other(value: Fraction, data: st.DataObject) -> None:
    notations = _notations(value)
    gold, answer = data.draw(st.sampled_from(notations)), data.draw(st.sampled_from(notations))
    assert equivalent(answer, gold, "number") is Verdict.CORRECT
    assert verify(f"So \\boxed{{{answer}}}.", gold).strict_correct
    assert verify(f"The answer is {answer}", gold).correct


@settings(max_examples=300, deadline=None)
@given(_FRACTIONS, _FRACTIONS, st.data())
def test_different_values_never_verify(left: Fraction, right: Fraction, data: st.DataObject) -> None:
    if left == right:
        return
    gold, answer = data.draw(st.sampled_from(_notations(left))), data.draw(st.sampled_from(_notations(right)))
    # Decimals of 6 and more digits may stand for a fraction that they round: that rule is tested above.
    if "." in gold + answer and abs(left - right) < Fraction(1, 10**5):
        return
    assert equivalent(answer, gold, "number") is not Verdict.CORRECT
    assert not verify(f"So \\boxed{{{answer}}}.", gold).correct
