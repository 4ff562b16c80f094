"""The reward for programs: the share of a row's unit tests that the completion's program passes, in the sandbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmreason.answers.types import Judgement, Verdict
from mmreason.rewards.text import completion_texts
from mmreason.types import ConfigError, DataError

Tests = Sequence[Mapping[str, Any] | str | None]
Meta = Sequence[Mapping[str, Any] | None]


def code_reward(
    completions: Sequence[Any],
    tests: Tests | None = None,
    meta: Meta | None = None,
    *,
    all_or_nothing: bool = False,
    compile_error: float = 0.0,
    no_code: float = 0.0,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    **kwargs: Any,
) -> list[float | None]:
    """The share of the row's tests that the completion's last ```python block passes; None where the row has no tests.

    Without any such block the last one without a language counts, without that the whole text. Of a completion with
    `</think>` only what follows counts, if anything does. Programs run in the sandbox and nowhere else.

    Args:
        completions: N completions, strings or messages.
        tests: N tests in a form that `mmreason.tools.code_tests.parse_tests` reads, or None.
        meta: N dicts; their ``tests`` are read where there is no column of that name.
        all_or_nothing: 1 where all tests are passed, else 0.
        compile_error: the reward of a block that is no Python, at most 0.
        no_code: the reward of a completion that has no block and is no Python itself, and of empty ones.
        timeout_s: seconds, wall and CPU, that a program may take: for each stdio case, or with all its asserts.
        memory_mb: MiB that it may use.

    Raises: ConfigError for parameters that can't be and where the data has neither ``tests`` nor ``meta``; DataError
        for a row's tests that can't be used; IsolationError on a machine that has no sandbox.
    """
    from mmreason.tools.code_tests import parse_tests, run_tests
    from mmreason.tools.sandbox import Limits

    for name, value in (("compile_error", compile_error), ("no_code", no_code)):
        if not -math.inf < value <= 0:
            raise ConfigError(f"code reward: {name}={value} must be finite and at most 0, what failing all tests earns")
    limits = Limits(wall_s=timeout_s, cpu_s=timeout_s, memory_mb=memory_mb)
    texts = completion_texts(completions)
    cells = _cells(tests, meta, len(texts))
    ids = kwargs.get("id") or range(len(texts))
    rows = [i for i, cell in enumerate(cells) if cell is not None]
    found = [program(texts[i]) for i in rows]
    parsed = [parse_tests(cells[i], str(ids[i])) for i in rows]  # type: ignore[arg-type]
    reports = run_tests([code for code, _ in found], parsed, limits=limits) if rows else []
    rewards: list[float | None] = [None] * len(texts)
    failures: list[str | None] = [None] * len(texts)
    for i, (code, fenced), report in zip(rows, found, reports, strict=True):
        share = report.passed / report.total
        if not code.strip() or (report.compile_error and not fenced):
            share = no_code
        elif report.compile_error:
            share = compile_error
        elif all_or_nothing:
            share = float(report.passed == report.total)
        rewards[i], failures[i] = share, report.failure
    _log(kwargs, failures)
    return rewards


def judge_programs(completions: Sequence[str], meta: Meta, *, timeout_s: float = 5.0) -> list[Judgement]:
    """Whether programs pass all tests of their rows, as verdicts beside those of answers.

    Args: completions: N texts. meta: N dicts with tests. timeout_s: as in `code_reward`.
    """
    shares = code_reward(completions, None, meta, compile_error=-1.0, no_code=-1.0, timeout_s=timeout_s)
    judged = []
    for text, share in zip(completions, shares, strict=True):
        verdict = Verdict.UNPARSEABLE if share == -1.0 else Verdict.CORRECT if share == 1.0 else Verdict.WRONG
        verdict = Verdict.BAD_GOLD if share is None else verdict
        judged.append(Judgement(verdict, verdict, program(text)[0], "program", "text"))
    return judged


def check_tests(rows: Any) -> None:
    """Read the tests of all rows. Raises: DataError naming the row whose `meta` has none, or none that can be read."""
    from mmreason.tools.code_tests import parse_tests, row_tests

    for row in rows.select_columns(["id", "meta"]):
        tests = row_tests(row["meta"])
        if tests is None:
            raise DataError(f"row {row['id']}: its meta has no tests", row=row["id"], reason="missing_tests")
        parse_tests(tests, row["id"])


def program(text: str) -> tuple[str, bool]:
    """The program of a completion: its last ```python block, else its last ``` block, else the whole text.

    Returns: the program, and whether it is a block. One whose closing fence is missing counts, since the tests judge
        it as well, and generation may have stopped there.
    """
    from mmreason.tools.formats.programs import parse

    thoughts, _, final = text.rpartition("</think>")
    text = final if final.strip() else thoughts
    blocks = [block.text for block in parse(text) if block.kind == "program"]
    blocks = blocks or [block.text for block in parse(text, unlabelled=True) if block.kind == "program"]
    return (blocks[-1], True) if blocks else (text, False)


def _cells(tests: Tests | None, meta: Meta | None, n: int) -> list[Mapping[str, Any] | str | None]:
    """The rows' tests as they stand in the data; empty ones are none."""
    from mmreason.tools.code_tests import row_tests

    if n and tests is None and meta is None:
        raise ConfigError("the code reward needs tests: a column 'tests', or 'tests' in the rows' meta")
    cells = [row_tests(entry) for entry in meta or ()] if tests is None else list(tests)
    if len(cells) != n:
        raise ValueError(f"{n} completions and {len(cells)} tests don't match")
    return [cell or None for cell in cells]


def _log(kwargs: Mapping[str, Any], failures: list[str | None]) -> None:
    """Why programs failed, beside the samples."""
    log_extra: Callable[[str, list[str | None]], None] | None = kwargs.get("log_extra")
    if log_extra is not None:
        log_extra("code_failure", failures)
