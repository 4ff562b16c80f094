"""Reflexion: try, hear the verdict, say what went wrong, try again with that in mind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mmreason.answers import Verdict, verify
from mmreason.prompting.prompts import Prompt, ask, fill, said, with_shots
from mmreason.prompting.session import Session
from mmreason.prompting.single import solution_of, step_by_step
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.texts import Texts
from mmreason.prompting.types import Attempt, Problem, Solution
from mmreason.types import DataError


@dataclass(frozen=True, slots=True)
class Checked:
    """A verifier's word on an attempt.

    Attributes:
        passed: whether it is good enough to stop.
        message: what the model is told where it isn't.
    """

    passed: bool
    message: str = ""


Verifier = Callable[[Problem, Solution], Checked | Awaitable[Checked]]
"""Judges an attempt by its text and its answer. A coroutine function, or a plain one, which is called in a thread."""


def check_gold(problem: Problem, solution: Solution, texts: Texts) -> Checked:
    """The default: compare with the gold, without telling it.

    Raises: DataError for a problem without a gold, or with one that can't be used.
    """
    row = problem.id or "?"
    if problem.gold is None:
        message = f"problem {row}: Reflexion needs a gold to compare with, or a verifier of your own"
        raise DataError(message, row=problem.id, reason="missing_answer")
    judgement = verify(solution.text, problem.gold, problem.answer_kind, problem.choices)
    if judgement.verdict is Verdict.BAD_GOLD:
        message = f"problem {row}: the gold {problem.gold[:80]!r} can't be used"
        raise DataError(message, row=problem.id, reason="bad_gold")
    if judgement.answer is None:
        return Checked(False, texts.no_answer)
    return Checked(judgement.correct, fill(texts.wrong, answer=judgement.answer))


@dataclass(frozen=True, kw_only=True)
class Reflexion(Strategy):
    """Attempts until the verifier is content, with a reflection on each failure (arXiv:2303.11366, algorithm 1).

    2 * t - 1 calls where attempt t is the last. With the gold as verifier it measures what feedback can bring, and
    collects solutions of hard problems; it is no way to answer questions whose answer nobody knows.

    Attributes:
        max_attempts: attempts, the first included.
        memory: how many of the latest reflections an attempt is shown (the paper's bound is 1 to 3).
        verifier: judges attempts; None compares with the gold.
    """

    max_attempts: int = at_least(1, 3)
    memory: int = at_least(1, 3)
    verifier: Verifier | None = None

    async def run(self, problem: Problem, session: Session) -> Solution:
        attempts: list[Attempt] = []
        lessons: list[str] = []
        while True:
            completion = await session.ask_one(self._prompt(problem, lessons), "attempt")
            solution = solution_of(completion, problem)
            checked = await self._check(problem, solution)
            attempts.append(Attempt(solution.text, solution.answer, accepted=checked.passed, reason=checked.message))
            if checked.passed or len(attempts) == self.max_attempts:
                return Solution(
                    answer=solution.answer,
                    text=solution.text,
                    reasoning=solution.reasoning,
                    attempts=tuple(attempts),
                    accepted=checked.passed,
                )
            prompt = ask(self.texts.reflect, problem, self.texts, attempt=said(completion), verdict=checked.message)
            lessons.append(said(await session.ask_one(prompt, "reflect")))

    def _prompt(self, problem: Problem, lessons: list[str]) -> Prompt:
        if not lessons:
            return step_by_step(problem, self.texts)
        numbered = enumerate(lessons[-self.memory :], 1)
        shown = "\n".join(fill(self.texts.lesson, index=i, lesson=lesson) for i, lesson in numbered)
        return with_shots(problem.shots, self.texts, ask(self.texts.retry, problem, self.texts, lessons=shown))

    async def _check(self, problem: Problem, solution: Solution) -> Checked:
        if self.verifier is None:
            # In a thread, as a symbolic comparison would hold up the other problems.
            return await asyncio.to_thread(check_gold, problem, solution, self.texts)
        if inspect.iscoroutinefunction(self.verifier):
            return await self.verifier(problem, solution)  # type: ignore[no-any-return]
        checked = await asyncio.to_thread(self.verifier, problem, solution)
        return await checked if inspect.isawaitable(checked) else checked
