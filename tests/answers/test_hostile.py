"""Hostile strings: no hang, no crash, every verdict inside its deadline + 1 s, nothing evaluated."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmreason.answers import Verdict, check_gold, equivalent, verify, verify_many
from tests.answers.hostile import GOLDS, MAKERS, hostile

DEADLINE_S = 0.5
CANARY = Path("/tmp/mmreason_was_here")


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """Starts the pool: importing sympy once isn't part of a deadline."""
    assert verify("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", timeout_s=60).correct


@pytest.mark.slow
def test_300_hostile_strings() -> None:
    CANARY.unlink(missing_ok=True)
    seen = set()
    for completion, gold in hostile(300, seed=2024):
        start = time.monotonic()
        judgement = verify(completion, gold, timeout_s=DEADLINE_S)
        took = time.monotonic() - start
        assert took < DEADLINE_S + 1.0, (completion[:80], gold, took)
        seen.add(judgement.verdict)
        if judgement.correct:  # a hostile string may hold the right answer, but then it has to stand there
            assert gold in completion
    assert {Verdict.TIMEOUT, Verdict.WRONG, Verdict.UNPARSEABLE} <= seen
    assert not CANARY.exists()


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.strip("_"))
def test_each_sort_many_at_once(maker: Callable[[random.Random], str]) -> None:
    r = random.Random(7)
    completions = [maker(r) for _ in range(4)]
    start = time.monotonic()
    judgements = verify_many(completions, [GOLDS[2]] * 4, timeout_s=DEADLINE_S)
    assert time.monotonic() - start < 4 * DEADLINE_S + 1.0
    assert not any(judgement.correct for judgement in judgements)


@pytest.mark.slow
def test_hostile_golds_get_a_reason_or_a_verdict() -> None:
    for text, _ in hostile(40, seed=5):
        start = time.monotonic()
        check_gold(text, timeout_s=DEADLINE_S)
        equivalent("42", text, timeout_s=DEADLINE_S)
        assert time.monotonic() - start < 2 * (DEADLINE_S + 1.0), text[:80]


@pytest.mark.parametrize(
    "payload",
    [
        "__import__('os').system('touch /tmp/mmreason_was_here')",
        "().__class__",
        "exec('x')",
        "\\operatorname{__import__}('os')",
        "\\text{__import__('os').system('touch /tmp/mmreason_was_here')}",
    ],
)
def test_nothing_is_evaluated(payload: str) -> None:
    CANARY.unlink(missing_ok=True)
    for text in (payload, f"\\boxed{{{payload}}}", f"${payload}$", f"The answer is {payload}"):
        for gold in ("42", "\\sqrt{2}", "\\text{Leon}"):
            assert not verify(text, gold, timeout_s=2.0).correct
    assert not CANARY.exists()


def test_only_number_tokens_reach_the_parser_that_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    """sympy's `parse_expr` (and so `sympify` of a string) evaluates Python: nothing but digits may come to it."""
    import sympy.parsing.sympy_parser

    from mmreason.answers import _symbolic

    _symbolic.warm_up()  # sympy sympifies its own unit names once, at import
    original = sympy.parsing.sympy_parser.parse_expr
    seen: list[str] = []

    def record(text: str, *arguments: object, **options: object) -> object:
        seen.append(text)
        return original(text, *arguments, **options)

    monkeypatch.setattr(sympy.parsing.sympy_parser, "parse_expr", record)
    for text in (
        "9**9",
        "1+1.5",
        "(2",
        "__import__('os')",
        "2*x+3",
        "sqrt(2)",
        "\\text{os.abort()}",
        "x=eval(1)",
        "f(x)=exec(y)",
    ):
        for gold in ("\\sqrt{2}", "x+1", "(1,2)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"):
            _symbolic.compare(gold, text)
    assert seen
    assert all(set(text) <= set("0123456789.") for text in seen), seen


def test_workers_refuse_to_evaluate() -> None:
    code = (
        "from mmreason.answers import _symbolic; _symbolic.harden(); import sympy; assert sympy.Number('12') == 12; "
        "assert sympy.sympify('x') == sympy.Symbol('x')\n"
        "for text in ('print(1)', '__import__', '().x', 'open'  '(1)'):\n"
        "    try: sympy.sympify(text)\n"
        "    except (ValueError, sympy.SympifyError): continue\n"
        "    raise SystemExit(text)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
