"""Numbers in words: Chinese numerals (四十二, 三千零五, 百分之五) and short English ones (forty-two)."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2, "○": 0}
_DIGITS |= dict(zip("壹贰叁肆伍陆柒捌玖", range(1, 10), strict=True))
_SMALL = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
CHINESE_CHARS = "".join((*_DIGITS, *_SMALL, *_LARGE))
CHINESE_RUN = re.compile(
    rf"[负負]?(?:百分之|千分之)?[{CHINESE_CHARS}]+(?:点[{CHINESE_CHARS}]+)?(?:分之[{CHINESE_CHARS}]+)?"
)


def _integer(text: str) -> int | None:
    if not text or len(text) > 40:
        return None
    if all(char in _DIGITS for char in text):
        return int("".join(str(_DIGITS[char]) for char in text))
    total = section = digit = 0
    last = 0
    for char in text:
        if char in _DIGITS:
            digit = _DIGITS[char]
            last = 0 if digit == 0 else last
        elif char in _SMALL:
            section += (digit or (1 if section == 0 else 0)) * _SMALL[char]
            digit, last = 0, _SMALL[char]
        else:
            scale = _LARGE[char]
            total = (
                (total + section + digit) * scale if scale > 10**4 or total == 0 else total + (section + digit) * scale
            )
            section, digit, last = 0, 0, scale
    # 三万五 = 35000, 一百二 = 120: a bare last digit counts in the next lower place, unless 零 stood before it.
    if digit and last >= 100:
        digit *= last // 10
    return total + section + digit


def chinese_number(text: str) -> Fraction | None:
    """The value of a Chinese numeral ("百分之五" is 5/100), None where `text` isn't one."""
    sign = 1
    if text[:1] in ("负", "負"):
        sign, text = -1, text[1:]
    for prefix, scale in (("百分之", 100), ("千分之", 1000)):
        if text.startswith(prefix):
            inner = chinese_number(text[3:])
            return None if inner is None else sign * inner / scale
    if "分之" in text:
        low, _, high = text.partition("分之")
        denominator, numerator = _integer(low), _integer(high)
        return None if not denominator or numerator is None else sign * Fraction(numerator, denominator)
    head, dot, tail = text.partition("点")
    whole = _integer(head)
    if whole is None or (dot and (not tail or any(char not in _DIGITS for char in tail))):
        return None
    value = Fraction(whole)
    if dot:
        value += Fraction(int("".join(str(_DIGITS[char]) for char in tail)), 10 ** len(tail))
    return sign * value


_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD = {word: value for value, word in enumerate(_ONES)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ENGLISH = "|".join(sorted((*_WORD, *_SCALE), key=len, reverse=True))
ENGLISH_RUN = re.compile(
    rf"(?:(?:negative|minus)\s+)?(?:{_ENGLISH})(?:(?:\s+and\s+|\s*-\s*|\s+)(?:{_ENGLISH}))*(?![A-Za-z])", re.IGNORECASE
)


def english_number(text: str) -> Fraction | None:
    """The value of an English cardinal ("forty-two", "three hundred and five"), None where `text` isn't one."""
    words = [word for word in re.split(r"[\s-]+", text.lower()) if word != "and"]
    sign = 1
    if words and words[0] in ("negative", "minus"):
        sign, words = -1, words[1:]
    if not words or len(words) > 16 or (len(words) == 1 and words[0] in _SCALE):
        return None
    total = section = 0
    room = 10**12
    for word in words:
        if word in _WORD:
            value = _WORD[word]
            if value >= room:  # "five six" is two numbers
                return None
            section += value
            room = 10 if value >= 20 else 0
        elif word == "hundred":
            section, room = (section or 1) * 100, 100
        elif word in _SCALE:
            total, section, room = total + (section or 1) * _SCALE[word], 0, 1000
        else:
            return None
    return Fraction(sign * (total + section))
