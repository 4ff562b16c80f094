"""Units of measure: what may follow a number, and whether two units are the same, convertible or in conflict."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_LENGTH = {
    "mm millimeter millimetre": "1/1000",
    "cm centimeter centimetre": "1/100",
    "dm decimeter decimetre": "1/10",
    "m meter metre": "1",
    "km kilometer kilometre": "1000",
    "in inch inche": "254/10000",
    "ft foot feet": "3048/10000",
    "yd yard": "9144/10000",
    "mi mile": "1609344/1000",
}
_MASS = {"mg milligram": "1/1000", "g gram gm": "1", "kg kilogram kilo": "1000", "oz ounce": "0", "lb pound": "0"}
_TIME = {
    "s sec second": "1",
    "min minute": "60",
    "h hr hour": "3600",
    "day": "86400",
    "week wk": "604800",
    "month": "0",
    "year yr": "0",
}
_VOLUME = {"ml milliliter millilitre": "1/1000", "l liter litre": "1", "gallon gal": "0", "quart": "0", "cup": "0"}
_OTHER = {
    "degree deg": ("angle", "1"),
    "radian rad": ("radians", "1"),
    "dollar usd buck": ("dollar", "1"),
    "cent": ("dollar", "1/100"),
    "euro eur": ("euro", "1"),
    "yuan rmb cny": ("yuan", "1"),
    "rupee rs inr": ("rupee", "1"),
    "mph": ("mph", "1"),
    "kmph kph kmh": ("kmph", "1"),
}
_CJK = {
    "厘米": "cm", "毫米": "mm", "千米": "km", "公里": "km", "米": "m", "千克": "kg", "公斤": "kg", "克": "g",
    "秒": "second", "分钟": "minute", "小时": "hour", "天": "day", "元": "yuan", "度": "degree",
    "平方厘米": "cm^2", "平方米": "m^2",
    "立方厘米": "cm^3", "立方米": "m^3", "升": "l", "毫升": "ml", "美元": "dollar", "周": "week", "年": "year",
}  # fmt: skip


def _table() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for dimension, units in (("length", _LENGTH), ("mass", _MASS), ("time", _TIME), ("volume", _VOLUME)):
        for names, factor in units.items():
            # Factor 0 marks a unit that is not converted: it stands for its own dimension.
            own = dimension if factor != "0" else names.split()[0]
            table.update({name: (own, Fraction(factor) or Fraction(1)) for name in names.split()})
    for names, (dimension, factor) in _OTHER.items():
        table.update({name: (dimension, Fraction(factor)) for name in names.split()})
    return table


_KNOWN = _table()
_SINGLE = frozenset(["m", "s", "g", "h", "l", "L", "J", "N", "W", "V", "K", "C", "F", "A", "M"])
_NOT_UNITS = frozenset(
    [
        "pi",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "theta",
        "alpha",
        "beta",
        "mod",
        "choose",
        "plus",
        "minus",
        "times",
        "or",
        "and",
        "to",
        "over",
        "divided",
        "if",
        "when",
        "not",
        "infinity",
        "inf",
        "frac",
        "cup",
        "cap",
        "in",
        "versus",
        "vs",
        "nor",
        "but",
        "equals",
        "is",
        "are",
        "was",
        "either",
        "maybe",
        "perhaps",
        "possibly",
        "i",
        "e",
        "than",
        "through",
        "until",
        "squareroot",
        "root",
        "factorial",
        "between",
        "unless",
        "otherwise",
        "else",
        "isn't",
        "cannot",
    ]
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textrm|operatorname|textit|mathit|textsf|hbox|rm|textnormal)\s*\{([^{}]*)\}")
_GAP_POWER = re.compile(r"\s+\^")
_POWER = re.compile(r"\^\s*\{?\s*(-?\d)\s*\}?")
_WORDS = re.compile(r"[A-Za-zµΩ\u4e00-\u9fff'$€£¥]+(?:\^-?\d)?")
_SHAPE = re.compile(r"[A-Za-zµΩ\u4e00-\u9fff'$€£¥\s./()\-^\d&]*")
_STRAY_DIGIT = re.compile(r"(?<![\^\-])\d|(?<!\^)-\d")
_CJK_BAD = re.compile(r"[或和到至与]|除以|分之|不是")


@lru_cache(maxsize=4096)
def read_unit(rest: str, attached: bool) -> str | None:
    """Reads what follows a number as a unit.

    Args:
        rest: the cleaned text after the number, at most a few words.
        attached: whether it follows without a space (then single letters may be variables).

    Returns:
        The unit's plain text ("" if there is none), or None where `rest` can't be a unit (an operator, a variable, a
        second number, "or").
    """
    rest = rest.strip()
    if not rest:
        return ""
    if len(rest) > 120:
        return None
    wrapped = rest.startswith("\\")
    rest = _TEXT.sub(r" \1 ", rest.replace(r"^{\circ}", " degree "))
    rest = _POWER.sub(r"^\1", _GAP_POWER.sub("^", rest)).replace("\\cdot", " ").replace("\\", " ").strip(" .,;:()*_\"'")
    if not rest:
        return ""
    if _SHAPE.fullmatch(rest) is None or _STRAY_DIGIT.search(rest) or _CJK_BAD.search(rest):
        return None
    words = _WORDS.findall(rest)
    if not words or len(words) > 10 or any(word.lower() in _NOT_UNITS for word in words):
        return None
    first = words[0].split("^")[0]
    if first.isascii() and not wrapped:
        known = _singular(first) in _KNOWN or first.lower() in ("sq", "cu", "square", "cubic")
        if len(first) == 1 and first not in _SINGLE and not (words[0] == "a" and len(words) > 1):
            return None
        if not known and len(first) > 1 and (attached or len(first) < 3):
            return None
    return " ".join(words)


def _singular(word: str) -> str:
    word = word.lower()
    if word in _KNOWN:
        return word
    return word[:-1] if word.endswith("s") and word[:-1] in _KNOWN else word


@lru_cache(maxsize=1024)
def measure(unit: str) -> tuple[str, Fraction] | None:
    """The dimension and factor of a plain unit ("cm", "cm^2", "square feet", "dollars"), None where it isn't known."""
    unit = unit.strip()
    power = 1
    unit = _CJK.get(unit, unit)
    words = unit.lower().replace(".", " ").split()
    if words and words[0] in ("square", "sq", "squared"):
        power, words = 2, words[1:]
    elif words and words[0] in ("cubic", "cu"):
        power, words = 3, words[1:]
    elif len(words) == 2 and words[1] in ("squared", "cubed"):
        power, words = (2 if words[1] == "squared" else 3), words[:1]
    if len(words) != 1:
        return None
    word, caret, exponent = words[0].partition("^")
    if caret:
        if exponent not in ("2", "3") or power != 1:
            return None
        power = int(exponent)
    symbol = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yuan"}.get(word, word)
    known = _KNOWN.get(_singular(symbol))
    if known is None:
        return None
    dimension, factor = known
    return (dimension, factor) if power == 1 else (f"{dimension}^{power}", factor**power)
