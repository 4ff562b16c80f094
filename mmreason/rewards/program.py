"""The reward for answers that are computed: a completion's program is run, and what it prints is its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmreason.rewards.accuracy import Meta, partial_credit_reward
from mmreason.rewards.code import program
from mmreason.rewards.text import completion_texts


def program_answers(completions: Sequence[Any], *, timeout_s: float = 5.0, memory_mb: int = 512) -> list[str]:
    """What stands on the last line that each completion's program prints, as a final answer; "" where it fails.

    The program is the last ```python block, else the last block, else the whole text (see `mmreason.rewards.code`).
    Programs run in the sandbox and nowhere else.

    Args:
        completions: N completions, strings or messages.
        timeout_s: seconds, wall and CPU, that a program may take. memory_mb: MiB that it may use.

    Raises: IsolationError on a machine that has no sandbox.
    """
    from mmreason.tools.sandbox import Job, Limits, shared_sandbox

    limits = Limits(wall_s=timeout_s, cpu_s=timeout_s, memory_mb=memory_mb)
    programs = [program(text)[0] for text in completion_texts(completions)]
    runs = shared_sandbox().run_many([Job(code, limits=limits) for code in programs]) if programs else []
    answers = []
    for run in runs:
        lines = run.stdout.strip().splitlines() if run.status == "ok" else []
        answers.append(f"The answer is {lines[-1].strip()}." if lines else "")
    return answers


def program_reward(
    completions: Sequence[Any],
    answer: Sequence[str | None],
    meta: Meta | None = None,
    *,
    parseable: float = 0.1,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    **kwargs: Any,
) -> list[float | None]:
    """`partial_credit` for what the program prints: 1 right, `parseable` wrong but of the gold's kind, 0 else.

    The reward of program-based chains of thought in ReFT (arXiv 2401.08967 sec. 3.2).

    Args:
        parseable: credit of a wrong answer that could be read as the gold's kind (a number for a number).
        timeout_s: seconds that a program may take, and verifying its answer. memory_mb: MiB that it may use.

    Raises: ConfigError unless 0 <= parseable < 1; IsolationError on a machine that has no sandbox.
    """
    printed = program_answers(completions, timeout_s=timeout_s, memory_mb=memory_mb)
    return partial_credit_reward(printed, answer, meta, parseable=parseable, timeout_s=timeout_s)
