"""Hard negatives: a gold rationale in which one step goes wrong, with all that follows recomputed.

The corrupted text is right in all but that step, as a careless solver's would be: the wrong result goes on into the
steps after it and into the final answer, which is verified to be wrong. A rationale in which that can't be done for
certain (a step that can't be read, a number of which it isn't clear what it counts) gives no negative.

- slip: a result that doesn't follow: 1 or 10 off, a digit doubled or dropped, two digits exchanged.
- operator: another operation, computed rightly: 48 + 24 instead of 48 / 2.
- operand: another number of the question in the place of an operand, computed rightly.
- choice: another option than the gold (multiple choice; the rationale is left out).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_builders._preferences.options import CorruptionKind
from mmreason.answers import Kind, Verdict, equivalent
from mmreason.tools.calculator import evaluate, terminating
from mmreason.tools.types import ToolError

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"  # without the full stop of its sentence
_NUMBER = re.compile(rf"(?<![\w.]){_DECIMAL}(?!\d)")
_OPERAND = rf"[$€£]?\s*{_DECIMAL}\s*%?"
_OPERATOR = r"[-+*/×x÷−–]"
_EXPRESSION = rf"\(*\s*{_OPERAND}(?:[\s)]*{_OPERATOR}[\s(]*{_OPERAND})+[\s)]*"
_EQUATION = re.compile(
    rf"(?<![\w.)])(?P<expression>{_EXPRESSION})=\s*(?P<money>[$€£]?\s*)(?P<result>-?{_DECIMAL})(?!\d)"
)
_SIGN = re.compile(rf"(?<=[\d)%\s]){_OPERATOR}(?=[\s(\d$€£.])")
_CHAIN = re.compile(rf"[\s%)]*(?:{_OPERATOR}\s*[$€£(]*\d|=)")
_PLAIN = str.maketrans("x−–", "*--")
_PLACES = 2
_FACTOR = 10
"""A wrong result is at most so many times as large or small as the right one: an absurd number is no hard negative."""
_EXCHANGES = {"+": "-*", "-": "+", "−": "+", "–": "+", "*": "+/", "×": "+÷", "x": "+/", "/": "*-", "÷": "×-"}


@dataclass(frozen=True, slots=True)
class Corruption:
    """A wrong solution.

    Attributes:
        reasoning: the corrupted rationale; "" for kind "choice".
        answer: the wrong answer.
        kind: what was done.
        step: which equation was corrupted, from 0; -1 for kind "choice".
        before, after: the step as it was and as it is.
    """

    reasoning: str
    answer: str
    kind: CorruptionKind
    step: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Equation:
    """`expression = result` in a text: where it stands, and both values."""

    start: int
    end: int
    expression: str
    result_start: int
    result: str
    value: Fraction
    is_right: bool


class _UnreadableError(Exception):
    """The text can't be corrupted for certain; the argument is the reason's code."""


def equations_of(text: str) -> list[Equation] | None:
    """The equations of a rationale in order; None where one of its "=" belongs to none that can be read."""
    found = []
    for match in _EQUATION.finditer(text):
        value = _value(match["expression"])
        if value is None or _CHAIN.match(text, match.end()):
            return None
        stated = _stated(match["result"])
        shown = (match.start(), match.end(), match["expression"], match.start("result"), match["result"])
        found.append(Equation(*shown, value, value == stated))
    return found if text.count("=") == len(found) else None


def corruptions(
    question: str, reasoning: str, answer: str, *, seed: str, kinds: Sequence[CorruptionKind] = ("slip", "operator")
) -> list[Corruption] | str:
    """All wrong versions of a rationale in an order that the seed decides, or why there are none.

    Args:
        question: its numbers must keep their meaning, so that a step with such a result is left alone.
        reasoning: with equations `6 * 7 = 42`, all of them right, the last of which gives the answer.
        answer: the gold, a number.
        kinds: what may be done.

    Returns:
        the corruptions; or "no_steps", "unreadable_step", "wrong_step", "answer_not_from_steps", "not_corruptible".
    """
    equations = equations_of(reasoning)
    if equations is None:
        return "unreadable_step"
    if not equations:
        return "no_steps"
    if not all(equation.is_right for equation in equations):
        return "wrong_step"
    if equivalent(equations[-1].result, answer, "number") is not Verdict.CORRECT:
        return "answer_not_from_steps"
    rng = random.Random(f"corrupt {seed}")
    plans = [(step, kind) for step in range(len(equations)) for kind in kinds if kind != "choice"]
    rng.shuffle(plans)
    found: list[Corruption] = []
    for step, kind in plans:
        for expression, result in _wrong_steps(equations[step], kind, question, rng):
            try:
                made = _rewrite(question, reasoning, equations, step, kind, expression, result)
            except _UnreadableError:
                continue
            if equivalent(made.answer, answer, "number") is Verdict.WRONG and _holds(made, kind):
                found.append(made)
                break
    return found or "not_corruptible"


def other_choices(answer: str, choices: Sequence[str], *, seed: str, kind: Kind = "choice") -> list[Corruption]:
    """The options that are not the gold, in an order that the seed decides."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    wrong = [letter for letter in letters if equivalent(letter, answer, kind, choices) is Verdict.WRONG]
    random.Random(f"corrupt {seed}").shuffle(wrong)
    return [Corruption("", letter, "choice", -1, answer, letter) for letter in wrong]


def restated(text: str, gold: str, wrong: str) -> str | None:
    """A text that states the gold answer, stating the wrong one: "So she has 16 eggs." -> "So she has 20 eggs.".

    Returns: None where the gold isn't found in it, as a number or a choice's letter, once.
    """
    if re.fullmatch(r"[A-Z]", wrong):
        letters = list(re.finditer(rf"(?<![\w'’]){re.escape(gold.strip('() .'))}(?![\w'’])", text))
        places = [match.span() for match in letters]
        new = wrong
    else:
        if not _NUMBER.fullmatch(gold.strip().lstrip("-")):
            return wrong if text.strip() == gold.strip() else None
        value = abs(_stated(gold.strip().lstrip("-")))
        numbers = [match for match in _NUMBER.finditer(text) if _stated(match[0]) == value]
        places = [match.span() for match in numbers]
        new = _written(abs(_stated(wrong)), numbers[0][0]) if numbers else ""
    if len(places) != 1:
        return None
    ((start, end),) = places
    return text[:start] + new + text[end:]


# --------------------------------------------------------------------------------------------------------------------
# One step goes wrong


def _wrong_steps(
    equation: Equation, kind: CorruptionKind, question: str, rng: random.Random
) -> Iterator[tuple[str, Fraction]]:
    """(expression, result) of what may stand in the place of a step."""
    if kind == "slip":
        results = [value for value in near_values(equation.value) if _is_likely(value, equation.value)]
        rng.shuffle(results)
        yield from ((equation.expression, value) for value in results)
        return
    changed = list(_other_operators(equation) if kind == "operator" else _other_operands(equation, question))
    rng.shuffle(changed)
    for expression in changed:
        value = _value(expression)
        if value is not None and value != equation.value and _is_likely(value, equation.value):
            yield expression, value


def near_values(value: Fraction) -> list[Fraction]:
    """What a careless solver might write for a number: 1 or 10 off, digits exchanged, a digit doubled or dropped."""
    found = [value + step for step in (-1, 1, -10, 10)]
    if value.denominator == 1:
        digits = str(abs(value.numerator))
        texts = [digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1)]
        texts += [digits[: i + 1] + digits[i:] for i in range(len(digits))] if len(digits) < 4 else []
        texts += [digits[:i] + digits[i + 1 :] for i in range(len(digits))] if len(digits) > 1 else []
        sign = -1 if value < 0 else 1
        found += [Fraction(sign * int(text)) for text in texts if text[0] != "0"]
    return [other for other in dict.fromkeys(found) if other != value]


def _other_operators(equation: Equation) -> Iterator[str]:
    for match in _SIGN.finditer(equation.expression):
        for other in _EXCHANGES[match[0]]:
            yield equation.expression[: match.start()] + other + equation.expression[match.end() :]


def _other_operands(equation: Equation, question: str) -> Iterator[str]:
    numbers = [match[0] for match in _NUMBER.finditer(question)]
    for match in _NUMBER.finditer(equation.expression):
        for other in dict.fromkeys(numbers):
            if _stated(other) != _stated(match[0]):
                yield equation.expression[: match.start()] + other + equation.expression[match.end() :]


# --------------------------------------------------------------------------------------------------------------------
# All that follows


def _rewrite(
    question: str,
    text: str,
    equations: Sequence[Equation],
    step: int,
    kind: CorruptionKind,
    expression: str,
    result: Fraction,
) -> Corruption:
    """The text with the step changed and the rest recomputed. Raises: _UnreadableError."""
    asked = {_stated(match[0]) for match in _NUMBER.finditer(question)}
    changed: dict[Fraction, Fraction] = {}
    equation = equations[step]
    parts = [text[: equation.start], _equation(text, equation, expression, result)]
    _change(changed, equation, result, text, asked, equations, step)
    position = equation.end
    last = result
    for number, later in enumerate(equations[step + 1 :], start=step + 1):
        parts.append(_substituted(text[position : later.start], changed))
        position = later.end
        new_expression = _substituted(later.expression, changed)
        value = later.value if new_expression == later.expression else _value(new_expression)
        if value is None or not _is_likely(value, later.value, factor=_FACTOR**2):
            raise _UnreadableError("odd_value")
        parts.append(_equation(text, later, new_expression, value))
        if value != later.value:
            _change(changed, later, value, text, asked, equations, number)
        last = value
    parts.append(_substituted(text[position:], changed))
    shown = f"{expression.strip()} = {_written(result, equation.result)}"
    before = f"{equation.expression.strip()} = {equation.result}"
    return Corruption("".join(parts), _written(last, ""), kind, step, before, shown)


def _change(
    changed: dict[Fraction, Fraction],
    equation: Equation,
    new: Fraction,
    text: str,
    asked: set[Fraction],
    equations: Sequence[Equation],
    step: int,
) -> None:
    """Note that a result has another value from here on.

    Raises: _UnreadableError where the same number also means something else, so that it isn't clear which one a later
        step takes.
    """
    earlier = {_stated(match[0]) for match in _NUMBER.finditer(text, 0, equation.start)}
    others = {other.value for number, other in enumerate(equations) if number != step}
    if equation.value in asked | earlier | others or equation.value in changed:
        raise _UnreadableError("ambiguous")
    changed[equation.value] = new


def _equation(text: str, equation: Equation, expression: str, result: Fraction) -> str:
    between = text[equation.start + len(equation.expression) : equation.result_start]
    return expression + between + (equation.result if result == equation.value else _written(result, equation.result))


def _substituted(text: str, changed: dict[Fraction, Fraction]) -> str:
    def new(match: re.Match[str]) -> str:
        value = changed.get(_stated(match[0]))
        return match[0] if value is None else _written(value, match[0])

    return _NUMBER.sub(new, text)


def _holds(made: Corruption, kind: CorruptionKind) -> bool:
    """Whether the text, read anew, has the one wrong step that was meant (a slip) or none."""
    equations = equations_of(made.reasoning)
    if not equations or _stated(equations[-1].result) != _stated(made.answer):
        return False
    wrong = [number for number, equation in enumerate(equations) if not equation.is_right]
    return wrong == ([made.step] if kind == "slip" else [])


def _value(expression: str) -> Fraction | None:
    """The exact value of an expression as it stands in a text; None where it has none."""
    try:
        value = evaluate(re.sub(r"[$€£]", "", expression).translate(_PLAIN))
    except ToolError:
        return None
    return value.low if value.exact else None


def _stated(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _is_likely(value: Fraction, right: Fraction, factor: int = _FACTOR) -> bool:
    """Whether a value might stand there: of the same sign, whole where the right one is, and not far from it."""
    if value * right <= 0 or (value * 10**_PLACES).denominator != 1 or value.denominator > 1 == right.denominator:
        return False
    return right / factor <= value <= right * factor if right > 0 else right * factor <= value <= right / factor


def _written(value: Fraction, like: str) -> str:
    """A number as text, with thousands separators and two decimals where `like` has them."""
    text = terminating(value) or str(value)
    whole, point, decimals = text.partition(".")
    if "," in like:
        whole = f"{int(whole):,}"
    if re.search(r"\.\d\d$", like):
        point, decimals = ".", decimals.ljust(2, "0")
    return whole + point + decimals
