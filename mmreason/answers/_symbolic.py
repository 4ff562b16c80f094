"""Symbolic comparison with math-verify. Imported by worker processes only: it loads sympy.

Golds and answers go through latex2sympy's ANTLR grammar alone, which builds sympy nodes without evaluating names;
math-verify's plain-expression reader (`parse_expr`, which evaluates Python) isn't used. The one way left to
`parse_expr` is `sympy.Number` of the grammar's number tokens; `harden` replaces it by a reader that takes numbers and
refuses all else that could be a call. math-verify's own timeouts (SIGALRM) are off; the pool kills from outside.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from math_verify import grader, parser
from sympy.parsing import sympy_parser

from mmreason.answers.normalize import balanced, canonical, clean_math
from mmreason.answers.numbers import parse_number, same_number
from mmreason.answers.structure import same_shape, shape, unassigned

# Units are taken off by our own code: math-verify's list also strips single letters ("2 + 3 t" loses its t).
_CONFIG = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textrm|textbf)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\s*\d\s*\}|\d))?")
_DEGREES = re.compile(r"\^\{\\circ\}\s*[CF]?")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_ANGLE = re.compile(r"(\d+(?:\.\d+)?)\s*\^\{\\circ\}")
_TRAILING_UNIT = re.compile(
    r"(?<=[\d}\s)])\s*(?:cm|mm|km|inches|feet|units?|meters?|degrees?|dollars?|square\s+\w+|sq\.?\s*\w+)(?:\^\{?\d\}?)?\s*$"
)
_DIGITS = 50
_Places = tuple[int, int] | None


def _prepare(text: str) -> str:
    """What latex2sympy reads: without units, degree marks, percent signs and word-like text."""
    text = text.replace(r"\operatorname", "")
    if _TRIGONOMETRY.search(text):
        text = _ANGLE.sub(r"(\1\\pi/180)", text)
    text = _DEGREES.sub("", text)
    bare = _TEXT.sub(" ", text).strip()
    text = bare if bare else text
    text = _TRAILING_UNIT.sub("", text)
    return text.replace("**", "^").replace("\\div", "/").strip()


_INTEGER = re.compile(r"[0-9]{1,4000}")
_FLOAT = re.compile(r"[0-9]*\.[0-9]+|[0-9]+\.")
_HARMLESS = re.compile(r"(?!.*__)[A-Za-z0-9_ .+*/-]{1,100}")


def harden() -> None:
    """Replaces sympy's evaluating `parse_expr` in this process by a reader of numbers (and of names, for sympy)."""
    evaluate = sympy_parser.parse_expr

    def parse_plain(text: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(text, str):
            return evaluate(text, *arguments, **options)
        if _INTEGER.fullmatch(text):
            return sympy.Integer(int(text))
        if _FLOAT.fullmatch(text):
            return sympy.Float(text)
        if _HARMLESS.fullmatch(text) is None:
            raise ValueError(f"refused to evaluate {text[:40]!r}")
        return evaluate(text, *arguments, **options)

    sympy_parser.parse_expr = parse_plain
    parser.parse_expr = parse_plain


@lru_cache(maxsize=1024)
def parse(text: str) -> Any:
    """The sympy object of one cleaned scalar or expression, None where latex2sympy can't read it."""
    prepared = _prepare(text)
    if not prepared or not balanced(prepared):
        return None
    try:
        return parser.parse_latex_cached(normalize_latex(prepared, _CONFIG))
    except RecursionError:
        return None
    except Exception:  # latex2sympy raises bare Exception for whatever its grammar doesn't know
        return None


def _exact(expression: Any) -> Any:
    """The expression with its decimals as the fractions that were written, i as the imaginary unit, all symbols real.

    latex2sympy reads 0.08 as a binary float, and `i` as a symbol whose assumptions depend on what stands before it.
    """
    try:
        swap: dict[Any, Any] = {value: sympy.Rational(str(value)) for value in expression.atoms(sympy.Float)}
        for symbol in expression.atoms(sympy.Symbol):
            swap[symbol] = sympy.I if symbol.name == "i" else sympy.Symbol(symbol.name, real=True)
        return expression.xreplace(swap) if swap else expression
    except (AttributeError, TypeError, ValueError):  # e.g. a mutable matrix: it keeps its floats
        return expression


def _value(expression: Any) -> Any:
    """A complex or real value to `_DIGITS` digits, None where the expression has symbols or no number value."""
    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = sympy.N(expression, _DIGITS)
    return value if value.is_number and value.is_finite else None


def _numeric(gold: Any, answer: Any, decimals: tuple[_Places, _Places]) -> bool | None:
    """Numeric equality of two constants (rounding as in `numbers.py`), None where one of them isn't a constant.

    Args:
        gold, answer: exact expressions.
        decimals: for a side that was written as a decimal, its places after the point and its significant digits.
    """
    left, right = _value(gold), _value(answer)
    if left is None or right is None:
        return None
    difference = abs(left - right)
    scale = max(abs(left), abs(right))
    if scale == 0 or difference <= scale * sympy.Float(10) ** (5 - _DIGITS):
        return True
    if (decimals[0] is None) == (decimals[1] is None):
        return False
    places, digits = decimals[0] or decimals[1] or (0, 0)
    if digits >= 12 and difference <= scale * sympy.Float("1e-10"):
        return True
    return bool(digits >= 6 and difference < sympy.Float(10) ** -places)


def _places(text: str) -> _Places:
    """(places after the point, significant digits) of a text that is one decimal, else None."""
    number = parse_number(text)
    return None if number is None or number.places is None else (number.places, number.digits)


_PROBES = (sympy.Rational(7, 5), sympy.Rational(19, 7), sympy.Rational(31, 11), sympy.Rational(43, 13))


def _differs(gold: Any, answer: Any) -> bool:
    """Whether two expressions in the same symbols clearly differ at a probe point (quick refusal of wrong answers)."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols or len(symbols) > 6 or gold.free_symbols != answer.free_symbols:
        return False
    point = {symbol: _PROBES[i % 4] + sympy.Rational(i, 17) for i, symbol in enumerate(symbols)}
    try:
        left = sympy.N(gold.subs(point).doit(), 20)
        right = sympy.N(answer.subs(point).doit(), 20)
        if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
            return False
        return bool(abs(left - right) > sympy.Float("1e-9") * (1 + abs(left)))
    except Exception:  # not every node can be substituted or evaluated: then math-verify decides
        return False


def scalar_equal(gold: str, answer: str) -> bool | None:
    """Compares two scalars: exactly as numbers, as strings, then symbolically. None where one can't be read."""
    left, right = parse_number(gold), parse_number(answer)
    if left is not None and right is not None:
        return same_number(left, right)
    if canonical(gold) == canonical(answer):
        return True
    a, b = parse(gold), parse(answer)
    if a is None or b is None:
        return None
    return _equal(a, b, (_places(gold), _places(answer)))


def _equal(gold: Any, answer: Any, places: tuple[_Places, _Places] = (None, None)) -> bool:
    gold, answer = _exact(gold), _exact(answer)
    numeric = _numeric(gold, answer, places)
    if numeric is not None:
        return numeric
    if _differs(gold, answer):
        return False
    return bool(grader.verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def compare(gold: str, answer: str) -> str:
    """Compares two answers.

    Returns:
        "correct", "wrong", "unparseable" (the answer can't be read) or "bad_gold" (the gold can't).
    """
    gold, answer = clean_math(gold), clean_math(answer)
    same = same_shape(gold, answer, scalar_equal)
    if same is not None:
        return "correct" if same else "wrong"
    pair = unassigned(gold, answer)
    if pair is None:
        return "wrong"
    a, b = parse(pair[0]), parse(pair[1])
    if isinstance(a, sympy.Set) and (solutions := _solutions(pair[1])) is not None:
        b = solutions
    if a is not None and b is not None:
        return "correct" if _equal(a, b) else "wrong"
    if a is None and not readable(gold):
        return "bad_gold"
    return "unparseable" if b is None else "wrong"


def _solutions(text: str) -> Any:
    """The set that "x <= 2 or x >= 5" describes, None where the text isn't a list of inequalities."""
    outer = shape(text)
    if outer.form != "list":
        return None
    relations = [_exact(parse(item)) for item in outer.items]
    if not all(isinstance(relation, sympy.core.relational.Relational) for relation in relations):
        return None
    try:
        return sympy.Union(*(relation.as_set() for relation in relations))
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None


def readable(gold: str) -> bool:
    """Whether a gold can be compared: it parses whole or piece by piece, or it is words (compared as words)."""
    gold = clean_math(gold)
    if parse_number(gold) is not None or parse(gold) is not None:
        return True
    words = _TEXT.sub(" ", gold)
    if "\\" not in words and not re.search(r"[{}^_]", words):
        return True
    return same_shape(gold, gold, lambda left, right: parse(left) is not None or "\\" not in left or None) is True


def warm_up() -> None:
    """Fills the grammar's and sympy's caches once, before workers are forked."""
    pairs = (
        (r"\frac{\sqrt{3}}{2}+x^{2}", r"x^2+\frac{1}{2}\sqrt{3}"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
        (r"(-\infty,2]\cup[5,\infty)", r"(-\infty, 2) \cup (5, \infty)"),
        (r"\begin{pmatrix}1&2\\3&x\end{pmatrix}", r"\begin{pmatrix}1&2\\3&y\end{pmatrix}"),
        (r"2x+3y=7", r"y=3"),
        (r"x<3", r"x>4"),
        (r"\sin(x)\cos(x)e^{x}\log_2 5", r"|x|+\binom{5}{2}+5!+i"),
        (r"(x+1)^2", r"x^2+2x+1"),
    )
    for gold, answer in pairs:
        compare(gold, answer)
