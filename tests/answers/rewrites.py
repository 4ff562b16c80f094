"""Machine-made equivalent rewritings of MATH-style golds: each keeps the value and changes the spelling."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction

_SIMPLE_FRAC = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}")
_INTEGER = re.compile(r"-?\d{1,9}")
_BARE_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,6})?|-?\\frac\{\d+\}\{\d+\}")


def _terminates(value: Fraction) -> bool:
    denominator = value.denominator
    while denominator % 2 == 0:
        denominator //= 2
    while denominator % 5 == 0:
        denominator //= 5
    return denominator == 1 and value.denominator <= 1000


def _decimal(value: Fraction) -> str:
    return f"{float(value):.10f}".rstrip("0").rstrip(".")


def dfrac(gold: str) -> str:
    return gold.replace("\\frac", "\\dfrac")


def tfrac(gold: str) -> str:
    return gold.replace("\\frac", "\\tfrac")


def slash(gold: str) -> str:
    """A lone fraction as a/b."""
    return re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", gold)


def bare_frac(gold: str) -> str:
    """\\frac{1}{2} as \\frac12."""
    return re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold)


def to_decimal(gold: str) -> str:
    """Exact fractions as decimals, where the fraction isn't a power or a factor before digits."""

    def write(match: re.Match[str]) -> str:
        value = Fraction(int(match.group(1)), int(match.group(2))) if int(match.group(2)) else None
        if value is None or not _terminates(value) or re.search(r"[\d}]\s*$", gold[: match.start()]):
            return match.group()
        if re.match(r"\s*\d", gold[match.end() :]):
            return match.group()
        return _decimal(value)

    return _SIMPLE_FRAC.sub(write, gold)


def to_fraction(gold: str) -> str:
    """A lone decimal as a fraction."""
    if re.fullmatch(r"-?\d+\.\d{1,6}", gold) is None:
        return gold
    value = Fraction(gold)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def trailing_zero(gold: str) -> str:
    return gold + ".0" if _INTEGER.fullmatch(gold) else gold


def thousands(gold: str) -> str:
    return f"{int(gold):,}" if _INTEGER.fullmatch(gold) and abs(int(gold)) >= 1000 else gold


def latex_thousands(gold: str) -> str:
    return thousands(gold).replace(",", "{,}") if _INTEGER.fullmatch(gold) else gold


def tight_thousands(gold: str) -> str:
    return thousands(gold).replace(",", ",\\!") if _INTEGER.fullmatch(gold) else gold


def no_thousands(gold: str) -> str:
    return re.sub(r"(?<=\d)(?:,\\!|\{,\}|,)(?=\d{3}(?!\d))", "", gold) if re.fullmatch(r"[\d,{}\\!]+", gold) else gold


def scientific(gold: str) -> str:
    if _INTEGER.fullmatch(gold) is None or not gold.endswith("000"):
        return gold
    digits = gold.rstrip("0")
    return f"{digits} \\times 10^{{{len(gold) - len(digits)}}}"


def currency(gold: str) -> str:
    return "\\$" + gold if _BARE_NUMBER.fullmatch(gold) and not gold.startswith("-") else gold


def drop_currency(gold: str) -> str:
    return gold.replace("\\$", "")


def text_unit(gold: str) -> str:
    return gold + "\\text{ units}" if _BARE_NUMBER.fullmatch(gold) else gold


def word_unit(gold: str) -> str:
    return gold + " apples" if _BARE_NUMBER.fullmatch(gold) else gold


def drop_unit(gold: str) -> str:
    short = re.sub(r"\s*\\(?:text|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?$", "", gold)
    return short if re.search(r"\d", short) else gold


def degree_mark(gold: str) -> str:
    return gold + "^\\circ" if _INTEGER.fullmatch(gold) else gold


def degree_other(gold: str) -> str:
    return gold.replace("^{\\circ}", "^\\circ") if "{\\circ}" in gold else gold.replace("^\\circ", "^{\\circ}")


def drop_degree(gold: str) -> str:
    return re.sub(r"\^\{?\\circ\}?$", "", gold)


def degree_word(gold: str) -> str:
    return re.sub(r"\^\{?\\circ\}?$", r" \\text{ degrees}", gold)


def prefix(gold: str) -> str:
    return gold if re.search(r"[=<>,]|\\le|\\ge|\\in\b|\\text|^x", gold) else "x = " + gold


def left_right(gold: str) -> str:
    if "\\left" in gold:
        return gold.replace("\\left", "").replace("\\right", "")
    if gold.count("(") == 1 and gold.count(")") == 1 and gold.index("(") < gold.index(")"):
        return gold.replace("(", "\\left(").replace(")", "\\right)")
    return gold


def spacing(gold: str) -> str:
    if "\\text" in gold or "\\mbox" in gold or "\\begin" in gold:
        return gold
    return re.sub(r"(?<=[\w})])\s*([+=])\s*", r" \\, \1 \\; ", gold)


def no_spaces(gold: str) -> str:
    return gold if "\\" in gold else gold.replace(" ", "")


def _terms(gold: str) -> list[str] | None:
    """The signed terms of a sum outside all brackets, None where it isn't a plain sum."""
    if re.search(r"[=<>,]|\\le|\\ge|\\pm|\\cup|\\begin|\\text|\\mbox|\\%|\\circ|\\in\b|\\left|\\mathbf|\\approx", gold):
        return None
    terms, depth, current = [], 0, ""
    for char in gold:
        if char in "({[":
            depth += 1
        elif char in ")}]":
            depth -= 1
        if char in "+-" and depth == 0 and current.strip():
            if current.rstrip()[-1] in "^_*/+-":
                return None
            terms.append(current)
            current = ""
        current += char
    terms.append(current)
    return terms if depth == 0 and len(terms) > 1 else None


def reorder_sum(gold: str) -> str:
    terms = _terms(gold)
    if terms is None:
        return gold
    signed = [term.strip() if term.strip()[0] in "+-" else "+" + term.strip() for term in reversed(terms)]
    return "".join(signed).lstrip("+")


def reorder_list(gold: str) -> str:
    """A bare list of numbers in another order."""
    parts = [part.strip() for part in gold.split(",")]
    if len(parts) < 2 or not all(_BARE_NUMBER.fullmatch(part) for part in parts):
        return gold
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", gold):
        return gold
    return ", ".join(reversed(parts))


def unicode_math(gold: str) -> str:
    return re.sub(r"\\pi(?![a-z])\s?", "π", gold).replace("\\infty", "∞").replace("-", "−").replace("\\cup", "∪")


def explicit_times(gold: str) -> str:
    return re.sub(r"(?<=\d)\s*\\(sqrt|pi)", r" \\cdot \\\1", gold)


def percent_word(gold: str) -> str:
    return re.sub(r"\\%$", " percent", gold)


def drop_percent(gold: str) -> str:
    return re.sub(r"\\%$", "", gold)


def dollars(gold: str) -> str:
    return f"${gold}$"


def boxed(gold: str) -> str:
    return f"\\boxed{{{gold}}}"


REWRITES: dict[str, Callable[[str], str]] = {
    rule.__name__: rule
    for rule in (
        dfrac,
        tfrac,
        slash,
        bare_frac,
        to_decimal,
        to_fraction,
        trailing_zero,
        thousands,
        latex_thousands,
        tight_thousands,
        no_thousands,
        scientific,
        currency,
        drop_currency,
        text_unit,
        word_unit,
        drop_unit,
        degree_mark,
        degree_other,
        drop_degree,
        degree_word,
        prefix,
        left_right,
        spacing,
        no_spaces,
        reorder_sum,
        reorder_list,
        unicode_math,
        explicit_times,
        percent_word,
        drop_percent,
        dollars,
        boxed,
    )
}


def rewritings(gold: str) -> list[tuple[str, str]]:
    """All rewritings that change a gold, as (rule, text)."""
    return [(name, text) for name, rule in REWRITES.items() if (text := rule(gold)) != gold]


def mismatched_pairs(golds: list[str], canonical: Callable[[str], str], count: int, seed: int) -> list[tuple[str, str]]:
    """Random pairs of golds whose canonical forms differ."""
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < count:
        left, right = rng.choice(golds), rng.choice(golds)
        if canonical(left) != canonical(right):
            pairs.append((left, right))
    return pairs
