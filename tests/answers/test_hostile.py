"""Hostile strings: no hang, no crash, every verdict inside its deadline + 1 s, nothing evaluated."""

from __future__ import annotations

import time
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


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.strip("_"))
def test_each_sort_many_at_once(maker) -> None:  # type: ignore[no-untyped-def]
    import random

    r = random.Random(7)
    completions = [maker(r) for _ in range(4)]
    start = time.monotonic()
    judgements = verify_many(completions, [GOLDS[2]] * 4, timeout_s=DEADLINE_S)
    assert time.monotonic() - start < 4 * DEADLINE_S + 1.0
    assert not any(judgement.correct for judgement in judgements)


def test_hostile_golds_get_a_reason_or_a_verdict() -> None:
    for text, _ in hostile(60, seed=5):
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
        "print(42)",
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


def test_no_parser_that_evaluates_is_reached() -> None:
    """The worker hands strings to latex2sympy's grammar only; `parse_expr` and `sympify` of strings would evaluate Python."""
    import math_verify.parser
    import sympy

    from mmreason.answers import _symbolic

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a string was evaluated")

    original = math_verify.parser.parse_expr
    math_verify.parser.parse_expr = refuse  # type: ignore[assignment]
    old_sympify = sympy.core.sympify.converter.get(str)
    try:
        for text in ("9**9", "1+1", "(2", "__import__('os')", "2*x+3", "sqrt(2)", "1/2+1/3"):
            _symbolic.compare("\\sqrt{2}", text)
    finally:
        math_verify.parser.parse_expr = original
    assert old_sympify is None
