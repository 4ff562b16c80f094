"""Exact numbers from answers: integers, decimals, fractions, mixed and scientific notation, percent, bases, units.

Everything is a `fractions.Fraction`; digits and exponents are bounded before any conversion, so no input is slow.

Equality (`same_number`), symmetric in its two sides:

- exact by default;
- a decimal of at least 6 significant digits also equals an *irreducibly* non-terminating fraction if it differs by
  less than one unit of its last digit (0.333333 or 0.666667 or 0.666666 for 1/3, 2/3; 0.667 doesn't equal 2/3);
- two decimals of at least 6 digits after the point also agree to one unit of the shorter one's last digit;
- float noise: a decimal with at least 12 significant digits equals what it differs from by less than 1e-10 relative;
- percent: `5%` equals 5% and 0.05, and also plain 5 ("what percent ...?" is answered both ways);
- a base subscript (40_9) has to agree where both sides carry one; digits are compared, not values;
- units are ignored unless both sides carry a known one: then same-dimension units are converted (50 mm = 5 cm) and
  others (cm against cm², dollars against hours) conflict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mmreason.answers.normalize import clean_math
from mmreason.answers.numerals import CHINESE_RUN, ENGLISH_RUN, chinese_number, english_number
from mmreason.answers.units import measure, read_unit

MAX_DIGITS = 1000
MAX_EXPONENT = 500
_CURRENCY = r"(?:US\$|HK\$|USD|RMB|EUR|Rs\.?|[$€£¥₹₩₽฿￥])"
DECIMAL = r"(?:\d+(?:,\d{2,3})*(?:\.\d*)?|\.\d+)"
_POWER_OF_TEN = r"(?:\^\s*\{\s*([-+]?\d+)\s*\}|\^\s*\(?([-+]?\d+)\)?|\*\*\s*\(?([-+]?\d+)\)?)"


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number as it was written.

    Attributes:
        value: the number before the percent sign is applied.
        percent: whether a percent sign (or word) followed.
        unit: the plain text of its unit, "" if none.
        base: of a subscript such as 40_9; `value` then holds the digits read as decimal.
        places: digits after the decimal point, None when there was no point.
        digits: significant digits as written (0 for fractions).
    """

    value: Fraction
    percent: bool = False
    unit: str = ""
    base: int | None = None
    places: int | None = None
    digits: int = 0


_PLAIN = re.compile(r"([-+]?)(\d{1,18})(?:\.(\d{1,18}))?")
_BODY = re.compile(
    rf"""
    (?P<sign>[-+]?)\s*(?:(?P<money>{_CURRENCY})\s*(?P<sign2>[-+]?)\s*)?
    (?:
      (?P<mw>\d+)\s*\\frac\s*\{{\s*(?P<mn>\d+)\s*\}}\s*\{{\s*(?P<md>\d+)\s*\}}
    | (?P<sw>\d+)(?:\s+and\s+|\s+)(?P<sn>\d+)\s*/\s*(?P<sd>\d+)(?![\d.])
    | \\frac\s*\{{\s*(?P<fs>[-+]?)\s*(?P<fn>{DECIMAL})\s*\}}\s*\{{\s*(?P<fs2>[-+]?)\s*(?P<fd>{DECIMAL})\s*\}}
    | (?P<an>{DECIMAL})\s*/\s*(?P<ad>{DECIMAL})
    | (?P<spaced>\d{{1,3}}(?:\s\d{{3}})+)(?![\d,.])
    | (?P<dec>{DECIMAL})
      (?:[eE](?P<e>[-+]?\d+)(?![A-Za-z0-9])|\s*(?:\\times|\\cdot|\*|x)\s*10\s*{_POWER_OF_TEN})?
    )
    (?P<gap>\s*)(?P<rest>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent(?:age)?(?:\s+points?)?\b|per\s?cent\b|pct\b)", re.IGNORECASE)
_PERCENT_TEXT = re.compile(r"\s*\\text\s*\{\s*(?:percent|%|per cent)\s*\}")
_SCALE = re.compile(r"\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion|百万|千万|万|亿)(?![A-Za-z])\}?")
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "百万": 10**6,
    "千万": 10**7,
    "万": 10**4,
    "亿": 10**8,
}
_BASE = re.compile(r"_\s*(?:\{\s*(?:\\text\s*\{)?\s*(\w{1,9})\s*\}?\s*\}|(\d{1,2})(?!\d))\s*")
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_DOLLARS = re.compile(r"(?:US|HK|AU|CA|NT|C|A)\s?\\?\$(?=\s?-?\d)")
_ABOUT = re.compile(
    r"^\s*(?:\\approx(?![A-Za-z])|~|approximately|approx\.?|about|roughly|exactly|only)\s*", re.IGNORECASE
)
_GROUPS = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}")
_ASSIGNED = re.compile(
    r"(?:\\text\s*\{[^{}]*\}|\\(?:angle|theta|alpha|beta|lambda|phi|triangle)\b|"
    r"[A-Za-z][A-Za-z' ]{0,30}|[a-zA-Z]_?\{?\w?\}?(?:\([a-z\d]{1,3}\))?)"
    r"\s*[A-Z]{0,4}\s*(?:=|\\approx|\\equiv|:)\s*(?=[^=])"
)


def _decimal(text: str) -> tuple[Fraction, int | None, int] | None:
    """(value, digits after the point, significant digits) of "1,234.50", None where its commas don't group."""
    if len(text) > MAX_DIGITS:
        return None
    whole, dot, fraction = text.partition(".")
    if "," in whole:
        if _GROUPS.fullmatch(whole) is None:
            return None
        whole = whole.replace(",", "")
    digits = whole + fraction
    if not digits:
        return None
    value = Fraction(int(digits), 10 ** len(fraction))
    return value, (len(fraction) if dot else None), len(digits.lstrip("0"))


def _ratio(top: str, bottom: str) -> Number | None:
    if len(top) > MAX_DIGITS or len(bottom) > MAX_DIGITS:
        return None
    numerator, denominator = _decimal(top), _decimal(bottom)
    if numerator is None or denominator is None or denominator[0] == 0:
        return None
    return Number(numerator[0] / denominator[0])


def _mixed(whole: str, top: str, bottom: str) -> Number | None:
    part = _ratio(top, bottom)
    if part is None or len(whole) > MAX_DIGITS:
        return None
    return Number(int(whole) + part.value)


def _value(match: re.Match[str]) -> Number | None:
    """The number in a match of `_BODY`, without sign, percent, unit."""
    group = match.groupdict()
    if group["mw"] is not None:
        return _mixed(group["mw"], group["mn"], group["md"])
    if group["sw"] is not None:
        return _mixed(group["sw"], group["sn"], group["sd"])
    if group["fn"] is not None:
        number = _ratio(group["fn"], group["fd"])
        flip = (group["fs"] == "-") != (group["fs2"] == "-")
        return replace(number, value=-number.value) if number is not None and flip else number
    if group["an"] is not None:
        return _ratio(group["an"], group["ad"])
    if group["spaced"] is not None:
        joined = group["spaced"].replace(" ", "")
        return (
            Number(Fraction(int(joined)), digits=len(joined)) if joined.isdigit() and len(joined) < MAX_DIGITS else None
        )
    read = _decimal(group["dec"])
    if read is None:
        return None
    value, places, digits = read
    exponent = group["e"] or match.group(_E1) or match.group(_E1 + 1) or match.group(_E1 + 2)
    if exponent is None:
        return Number(value, places=places, digits=digits)
    if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    power = int(exponent)
    return Number(value * Fraction(10) ** power, places=max(0, (places or 0) - power) or None, digits=digits)


_E1 = _BODY.groupindex["e"] + 1


def _suffix(number: Number, rest: str, attached: bool) -> Number | None:
    """Applies what follows the digits: base, scale word, percent, unit. None where it isn't any of them."""
    if not rest:
        return number
    if (match := _BASE.match(rest)) is not None:
        word = match.group(1) or match.group(2)
        base = int(word) if word.isdecimal() and len(word) < 3 else _BASE_WORDS.get(word.lower())
        if base is None or rest[match.end() :].strip():
            return None
        return replace(number, base=base)
    if (match := _SCALE.match(rest)) is not None:
        number = replace(number, value=number.value * _SCALES[match.group(1)], places=None)
        return _suffix(number, rest[match.end() :].lstrip(), False)
    if (match := _PERCENT.match(rest) or _PERCENT_TEXT.match(rest)) is not None:
        unit = read_unit(rest[match.end() :], False)
        return None if unit is None else replace(number, percent=True)
    unit = read_unit(rest, attached)
    return None if unit is None else replace(number, unit=unit or number.unit)


def _read(text: str) -> Number | None:
    match = _BODY.fullmatch(text)
    if match is None:
        return None
    number = _value(match)
    if number is None:
        return None
    if (match["sign"] == "-") != (match["sign2"] == "-"):
        number = replace(number, value=-number.value)
    money = match["money"]
    if money:
        unit = {"$": "$", "US$": "$", "USD": "$", "€": "€", "EUR": "€", "£": "£", "¥": "¥", "RMB": "¥"}.get(money, "")
        number = replace(number, unit=unit)
    rest = match["rest"]
    if money and rest and rest.split()[0].lower().rstrip(".") in ("dollars", "dollar", "usd"):
        rest = ""
    return _suffix(number, rest, not match["gap"])


def _words(text: str) -> Number | None:
    """A number written in words."""
    if not text.isascii() and (match := CHINESE_RUN.match(text)) is not None:
        value = chinese_number(match.group())
        unit = read_unit(text[match.end() :], False) if len(text) - match.end() <= 8 else None
        if value is None or unit is None:
            return None
        percent = match.group().lstrip("负負").startswith("百分之")
        return Number(value * 100 if percent else value, percent=percent, unit=unit)
    if (match := ENGLISH_RUN.match(text)) is not None:
        value = english_number(match.group())
        return None if value is None else _suffix(Number(value), text[match.end() :].strip(), False)
    return None


def parse_number(text: str) -> Number | None:
    """Reads a whole answer as one exact number.

    Args:
        text: an answer such as "$1,080.00", "3 1/2", "-\\frac{1}{2}", "1.5 \\times 10^3", "12 cm^2", "x = 2", "四十二".

    Returns:
        The number, or None where the text is anything else (an expression, a list, prose, too many digits).
    """
    match = _PLAIN.fullmatch(text)
    if match is not None:
        sign, whole, fraction = match.groups()
        if fraction is None:
            return Number(Fraction(int(sign + whole)), digits=len(whole.lstrip("0")))
        digits = whole + fraction
        value = Fraction(int(sign + digits), 10 ** len(fraction))
        return Number(value, places=len(fraction), digits=len(digits.lstrip("0")))
    if len(text) > 2 * MAX_DIGITS:
        return None
    return _parse_cached(text)


@lru_cache(maxsize=8192)
def _parse_cached(text: str) -> Number | None:
    text = clean_math(_DOLLARS.sub("", text))
    for _ in range(3):
        text = _ABOUT.sub("", text)
        match = _ASSIGNED.match(text)
        if match is None:
            break
        text = text[match.end() :]
    text = text.strip()
    if text.startswith("(") and text.endswith(")") and "," not in text and text.count("(") == 1:
        text = text[1:-1].strip()
    return _read(text) or _words(text)


def _terminating(value: Fraction) -> bool:
    """Whether `value` has a finite decimal expansion (bounded work: denominators over 2^1000 count as not)."""
    denominator = value.denominator
    for prime in (2, 5):
        for _ in range(MAX_DIGITS):
            if denominator % prime:
                break
            denominator //= prime
    return denominator == 1


def _close(left: Number, right: Number, a: Fraction, b: Fraction) -> bool:
    """Equality of the values `a`, `b` of two numbers under the rounding rules of the module docstring."""
    if a == b:
        return True
    difference = abs(a - b)
    for side, other, value in ((left, right, b), (right, left, a)):
        if side.places is None:
            continue
        if side.digits >= 12 and value != 0 and difference * 10**10 < abs(value):
            return True
        if side.digits >= 6 and difference * 10**side.places < 1 and other.places is None and not _terminating(value):
            return True
        if side.places >= 6 and (other.places or 0) >= side.places and difference * 10**side.places < 1:
            return min(side.digits, other.digits) >= 6
    return False


def same_number(gold: Number, answer: Number) -> bool:
    """Whether two numbers are equal under the rules in the module docstring."""
    if gold.base is not None and answer.base is not None and gold.base != answer.base:
        return False
    a, b = gold.value, answer.value
    if gold.unit and answer.unit and gold.unit != answer.unit:
        left, right = measure(gold.unit), measure(answer.unit)
        if left is not None and right is not None:
            if left[0] != right[0]:
                return False
            if left[1] != right[1]:
                return a * left[1] == b * right[1]
    if _close(gold, answer, a, b):
        return True
    if gold.percent and not answer.percent:
        return a == b * 100
    if answer.percent and not gold.percent:
        return a * 100 == b
    return False
