"""Reading an answer out of the span that follows a marker: where it ends, and which number or formula it names."""

from __future__ import annotations

import re

from mmreason.answers.normalize import MAX_ANSWER
from mmreason.answers.numbers import parse_number
from mmreason.answers.numerals import CHINESE_CHARS

_STOP = re.compile(
    r"(?<!Rs)(?<!approx)(?<!Mr)(?<!Mrs)(?<!No)(?<!vs)(?<!sq)(?<!cu)(?<!ft)(?<!\be)\.(?=[\s*\"'$)]|$)|。|！|!(?=\s+[A-Z]|\s*$)|\?(?=\s|$)|\n"
)
_CLAUSE = re.compile(
    r",?\s+(?:because|since|which|where|so\b|while|given\s+that|after\s+|as\s+(?:the|we|it|he|she|they|there)\b)|;(?!\s*[-+$\\(]*\d)|,因为|,所以"
)
_SPACED_OPEN = re.compile(r"^[\s:*_=\"'`>]+")
_ENVIRONMENTS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))


def _first_line(span: str) -> str:
    """The span from its first non-blank character, without markdown emphasis."""
    return _SPACED_OPEN.sub("", span).replace("**", "").replace("__", "")


def sentence(span: str) -> str:
    """The first sentence of a span (a decimal point, "Rs." or a formula between dollars don't end it)."""
    span = _first_line(span)
    position = 0
    while True:
        stop = _STOP.search(span, position)
        if stop is None:
            return span
        dollars = span.count("$", 0, stop.start())
        inside = dollars % 2 == 1 or span.count("\\[", 0, stop.start()) > span.count("\\]", 0, stop.start())
        if not inside:
            return span[: stop.start()]
        closing = span.find("$" if dollars % 2 else "\\]", stop.end())
        if closing < 0:
            return span[: stop.start()]
        position = closing


_TOKEN = re.compile(
    r"""
    (?:(?<![\w)}])[-+]\s?)?(?:(?:\\?[$€£¥₹]|US\$)\s?)?(?:(?<![\w)}])-\s?)?
    (?:
      \d+\s*\\[dtc]?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}
    | \\[dtc]?frac\s*(?:\{\s*-?\d+(?:\.\d+)?\s*\}\s*\{\s*-?\d+(?:\.\d+)?\s*\}|\d\s?\d)
    | \d+\s+\d+\s*/\s*\d+(?![\d.])
    | (?:\d{1,3}(?:(?:,|\{,\}|,\\!)\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d\w])\.\d+)
      (?:[eE][-+]?\d+(?![A-Za-z0-9])|\s*(?:\\times|×|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+))?
      (?:\s*/\s*\d+(?:\.\d+)?)?
    )
    (?:\s*(?:\\?%|percent\b))?
    """,
    re.VERBOSE,
)
_ALTERNATIVE = re.compile(
    r"^[\s\w$%\\{}°'.-]{0,40}?(?:\s*,?\s*\b(?:or|and|to|nor|versus)\b|\s*(?:,|;|/|~|&|或|和|与|到|至|、)|\s+-\s+|-)\s*"
    r"(?!(?:not|instead|rather|than|for|in|with|making|up|down|from|of)\b)"
    r"(?:\\?text\{[^{}]{0,9}\}|[a-z]+\s*=|[a-z]+\s)?\s*[-+$€£\\({]*\s*(?:\d|frac\b|\.\d)"
)
_NEGATED = re.compile(r"\b(?:not|isn't|never|neither)\s+(?:equal\s+to\s+)?[$]?\s*$", re.IGNORECASE)
_CJK_NUMBER = re.compile(rf"[负]?(?:百分之)?[{CHINESE_CHARS}]+")
_OPERANDS = frozenset("0123456789)}]%")
_NAMED = re.compile(r"[A-Za-z_]$")


def read_number(span: str, *, last: bool = False) -> str | None:
    """Reads the one number that a span names.

    Args:
        span: the text after a marker, or (with `last`) the end of a text.
        last: take the last number instead of the first one of the first sentence.

    Returns:
        The number as written; the whole span where it is a list ("5 or 6") or a formula, so that it isn't taken for its
        first number; None where it holds no number.
    """
    if last:
        found = None
        for match in _TOKEN.finditer(span):
            if not _NAMED.search(span[: match.start()][-1:]) or found is None:
                found = match
        if found is None or _NEGATED.search(span[max(0, found.start() - 40) : found.start()]):
            return None
        token = _trim(found.group())
        # "10 - 5" ends with 5, not with -5; "fell to -5" ends with -5.
        return token.lstrip("+- ") if span[: found.start()].rstrip()[-1:] in _OPERANDS else token
    text = _first_line(span)[:MAX_ANSWER]
    head = text.split("\n", 1)[0].strip(" *").rstrip(".。 ")
    if parse_number(head) is not None:
        return head
    head = sentence(text).strip().strip("<>").strip()
    if parse_number(head) is not None:
        return head
    return _in_prose(head)


def _in_prose(text: str) -> str | None:
    """The number of a sentence that says more than the number."""
    clause = _CLAUSE.split(text, maxsplit=1)[0].strip()
    if not clause:
        return None
    if clause != text and parse_number(clause) is not None:
        return clause
    formula = _single_formula(clause)
    if formula is not None and (parse_number(formula) is not None or looks_symbolic(formula)):
        return formula
    _, equals, after = clause.rpartition("=")
    if equals and re.search(r"\d", after):
        clause = after.strip().lstrip("$ ")
        if parse_number(clause) is not None:
            return clause
    match = _TOKEN.search(clause)
    if match is None:
        word = _CJK_NUMBER.search(clause)
        if word is not None and parse_number(clause[word.start() :]) is not None:
            return clause[word.start() :]
        return clause if looks_symbolic(clause) else None
    if _NEGATED.search(clause[: match.start()]):
        return None
    rest = clause[match.end() :]
    if _ALTERNATIVE.match(rest) or re.search(
        r"\b(?:either|between)\s+\S{0,3}$", clause[: match.start()], re.IGNORECASE
    ):
        return clause
    if (
        re.match(r"\s*(?:\\(?:sqrt|pi|cdot|times|div|pm|frac)|\^|\*|\+|-\s?\d|[a-zA-Z]\b\s*[\^+=]|\\?sqrt)", rest)
        or rest[:1] in "_!:("
    ):
        return clause
    if re.search(r"(?:\\[a-zA-Z]+\s*\{?\s*|[\^_{(\[*/+<>])$", clause[: match.start()]):
        return clause
    if rest[:1].isalpha():  # "42m" and "3rd" may be read, "6p" is a product
        word = re.match(r"[^\W\d_]+", rest)
        if word is not None and parse_number(match.group() + word.group()) is None:
            return clause
    return _trim(match.group())


def _trim(token: str) -> str:
    return token.strip().rstrip(",").strip()


_SYMBOLIC = re.compile(
    r"\\(?:sqrt|frac|dfrac|pi|cdot|times|log|ln|sin|cos|tan|binom|infty|pm)|\d\s*[\^!+*]\s*\d|√|π|sqrt\("
)


def looks_symbolic(text: str) -> bool:
    """Whether a short text may be a formula for a number (to be evaluated), not prose."""
    return (
        len(text) <= 400 and _SYMBOLIC.search(text) is not None and re.search(r"[a-z]{4,}\s+[a-z]{3,}\s", text) is None
    )


def _single_formula(text: str) -> str | None:
    """The content of the only `$...$`, `\\(...\\)` or `\\[...\\]` in a clause, None for none or several."""
    for opening, closing in _ENVIRONMENTS:
        start = text.find(opening)
        if start < 0:
            continue
        end = text.find(closing, start + len(opening))
        if end < 0 or text.find(opening, end + len(closing)) >= 0:
            return None
        return text[start + len(opening) : end].strip()
    return None


def read_math(span: str) -> str | None:
    """Reads the formula (or list of formulas) that a span names.

    "$x=1$ and $y=2$" stays one list; "$\\frac12$ because ..." gives the formula; plain text gives its first clause.
    """
    text = _first_line(span)[:MAX_ANSWER].replace("\\$", "")
    head = sentence(text).strip()
    if not head:
        return None
    formula = _formulas(head)
    if formula is not None:
        return formula
    clause = _CLAUSE.split(head, maxsplit=1)[0].strip().strip("<>`").strip()
    if not clause:
        return None
    if parse_number(clause) is not None:
        return clause
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", clause)
    if len(words) >= 3 and re.search(r"\d", clause) and (number := _in_prose(clause)) is not None:
        return number
    return clause


_BETWEEN = re.compile(r"[\s,;]*(?:and|or|和|或|,)?[\s,;]*")


def _formulas(text: str) -> str | None:
    """The formulas of a clause up to the first words that aren't "and"/"or", joined by commas."""
    for opening, closing in _ENVIRONMENTS:
        start = text.find(opening)
        if start < 0:
            continue
        parts: list[str] = []
        position = start
        for _ in range(64):
            end = text.find(closing, position + len(opening))
            if end < 0:
                break
            inner = text[position + len(opening) : end].strip()
            if inner:
                parts.append(inner)
            following = text.find(opening, end + len(closing))
            if following < 0:
                break
            gap = text[end + len(closing) : following]
            if _BETWEEN.fullmatch(gap) is None:
                break
            position = following
        if not parts:
            continue
        lead = text[:start].strip()
        if re.search(r"\d", lead) and parse_number(text.replace("$", "")) is not None:
            return None
        if re.search(r"(?:\d|=)\s*$", lead):
            return text.replace(opening, "").replace(closing, "") if opening == "$" else None
        return ", ".join(parts)
    return None


def read_text(span: str) -> str | None:
    """The first sentence of a span, without quotes and emphasis."""
    head = sentence(span).strip().strip("\"'*_`<>「」").strip()
    return head or None
