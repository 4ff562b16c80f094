"""Hostile completions, made by code from a seed: each has tried to hang or crash some verifier."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

GOLDS = ("42", "\\frac{1}{2}", "\\sqrt{2}+\\pi", "(x+1)^{3}", "\\{1,2,3\\}", "(-\\infty,2]", "B", "yes", "\\text{Leon}")


def _nested_braces(r: random.Random) -> str:
    n = r.choice((100, 3000, 20000))
    return "\\boxed" + "{" * n + "42" + "}" * r.choice((n, n - 1, 0))


def _tower(r: random.Random) -> str:
    base = str(r.randint(2, 99))
    n = r.randint(3, 12)
    return "\\boxed{" + "^{".join([base] * n) + "}" * (n - 1) + "}"


def _flat_tower(r: random.Random) -> str:
    return "The answer is $" + "^".join(str(r.randint(2, 9)) for _ in range(r.randint(3, 400))) + "$"


def _digits(r: random.Random) -> str:
    n = r.choice((5_000, 100_000, 1_000_000))
    return r.choice(("#### %s", "\\boxed{%s}", "The answer is %s.", "%s")) % (str(r.randint(1, 9)) * n)


def _digits_divided(r: random.Random) -> str:
    return f"\\boxed{{\\frac{{{'9' * r.choice((900, 3000))}}}{{{'7' * r.choice((900, 3000))}}}}}"


def _deep_frac(r: random.Random) -> str:
    n = r.choice((20, 200, 2000))
    return "\\boxed{" + "\\frac{1+" * n + "x" + "}{2}" * n + "}"


def _open_frac(r: random.Random) -> str:
    return "\\boxed{" + "\\frac{" * r.choice((50, 5000)) + "1"


def _deep_sqrt(r: random.Random) -> str:
    n = r.choice((50, 600))
    return "\\boxed{" + "\\sqrt{2+" * n + "2" + "}" * n + "}"


def _parentheses(r: random.Random) -> str:
    n = r.choice((200, 4000, 100000))
    return "\\boxed{" + "(" * n + "x" + ")" * n + "}"


def _factorial(r: random.Random) -> str:
    return r.choice(
        ("\\boxed{%d!}", "\\boxed{(%d!)!}", "\\boxed{\\binom{%d}{12345}}", "\\boxed{%d!!!!!!}")
    ) % r.randint(999, 99999999)


def _matrix(r: random.Random) -> str:
    n = r.choice((10, 30, 200))
    rows = "\\\\".join("&".join(f"x_{{{i}{j}}}" for j in range(n)) for i in range(n))
    power = r.choice(("", "^{-1}", "^{99}"))
    return "\\boxed{\\begin{pmatrix}" + rows + "\\end{pmatrix}" + power + "}"


def _exponent(r: random.Random) -> str:
    return r.choice(
        ("#### 1e%d", "\\boxed{1e%d}", "\\boxed{10^{%d}}", "\\boxed{2 \\times 10^{-%d}}", "1e-%d")
    ) % r.choice((999, 99999999, 10**30))


def _code(r: random.Random) -> str:
    payload = r.choice(
        (
            "__import__('os').system('touch /tmp/mmreason_was_here')",
            "().__class__.__bases__[0].__subclasses__()",
            'exec("import os; os.abort()")',
            "lambda: open('/etc/passwd').read()",
            "sympify('__import__(\"os\").abort()')",
        )
    )
    return r.choice(("\\boxed{%s}", "$%s$", "The answer is %s", "<answer>%s</answer>", "#### %s")) % payload


def _bytes(r: random.Random) -> str:
    alphabet = "\x00\x01\x7f\ud800\udfff\u202e\u200f\ufeff\u0000０１²½٤π√{}\\$&#_^~%"
    return "\\boxed{" + "".join(r.choice(alphabet) for _ in range(r.choice((10, 400, 20000)))) + r.choice(("}", ""))


def _noise(r: random.Random) -> str:
    parts = re.split(
        " ",
        r"\frac { } \sqrt ^ _ ( ) [ ] \left \right x 7 + - \int \sum \lim = < \cup \begin{matrix} \end{matrix} & \\ | "
        r"! \sin \infty , ; \pm \log \text{a}",
    )
    return "\\boxed{" + "".join(r.choice(parts) for _ in range(r.choice((20, 200, 2000)))) + "}"


def _blanks(r: random.Random) -> str:
    word = r.choice(("answer", "the answer is", "A:", "####", "\\boxed{", "Answer:**"))
    blank = r.choice((" ", "\n", "*", "_", ", ", "$", "(", '"'))
    return word + blank * r.choice((1000, 200_000)) + r.choice(("", "42"))


def _repeated(r: random.Random) -> str:
    units = re.split(
        r"\|",
        "the answer is |\\boxed{1}|<answer>|</answer>|<answer>5</answer>|A: |answer|#### 1\n|$1$ and |1,|1/|-|5 or |"
        "A) x B) y |</think>|<think>|答案是|一|x=|\\text{|ans |option A |1 ",
    )
    return r.choice(units) * r.choice((300, 50_000))


def _sum(r: random.Random) -> str:
    n = r.choice((50, 900))
    return "\\boxed{" + "+".join(f"\\sqrt{{{r.randint(2, 10**6)}}}" for _ in range(n)) + "}"


def _product(r: random.Random) -> str:
    return "\\boxed{(x+1)^{" + str(r.choice((50, 5000, 10**9))) + "}" + f"(x-{r.randint(1, 9)})^{{77}}" + "}"


def _calculus(r: random.Random) -> str:
    return "\\boxed{" + r.choice(
        (
            "\\int_0^\\infty e^{-x^{x^{x}}} dx",
            "\\sum_{n=1}^{10^{20}} \\frac{1}{n^{n}}",
            "\\prod_{n=1}^{99999999} n",
            "\\lim_{x \\to 0} \\frac{\\sin(\\tan(\\sin(x))) - \\tan(\\sin(\\tan(x)))}{x^7}",
            "\\log_{2}(2^{10^{10^{10}}})",
            "\\gcd(10^{99999}, 3^{99999})",
            "7^{10^{9}} \\mod 13",
            "\\sin(10^{10^{10}})",
            "\\lfloor 10^{10^{9}} / 3 \\rfloor",
        )
    ) + "}"  # fmt: skip


def _guesses(r: random.Random) -> str:
    return r.choice((" ", ", ", " or ", "\n")).join(f"\\boxed{{{i}}}" for i in range(r.choice((60, 3000))))


MAKERS: tuple[Callable[[random.Random], str], ...] = ( _nested_braces, _tower, _flat_tower, _digits, _digits_divided,
_deep_frac, _open_frac, _deep_sqrt, _parentheses, _factorial, _matrix, _exponent, _code, _bytes, _noise, _blanks,
_repeated, _sum, _product, _calculus, _guesses, )  # fmt: skip


def hostile(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """`count` pairs (completion, gold) from `seed`."""
    r = random.Random(seed)
    for _ in range(count):
        yield r.choice(MAKERS)(r), r.choice(GOLDS)
