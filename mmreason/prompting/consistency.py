"""Self-consistency: many lines of thought, one vote."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mmreason.answers import clusters
from mmreason.prompting.prompts import answer_in
from mmreason.prompting.session import Session
from mmreason.prompting.single import step_by_step
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Attempt, Problem, Solution


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(Strategy):
    """k sampled solutions, and the answer that most of them give (arXiv:2203.11171). 1 call of k completions.

    Equivalent answers count together, and ties go to the earliest, as `mmreason.answers.majority_vote` has it. The text
    is the first solution with that answer.

    Attributes:
        k: solutions.
        temperature: above 0, or all k are the same.
    """

    k: int = at_least(1, 8)
    temperature: float | None = at_least(0, 0.7)

    async def run(self, problem: Problem, session: Session) -> Solution:
        drawn = await session.ask(step_by_step(problem, self.texts), "answer", n=self.k)
        answers = [answer_in(completion.text, problem) for completion in drawn]
        attempts = tuple(
            Attempt(completion.text.strip(), answer) for completion, answer in zip(drawn, answers, strict=True)
        )
        # In a thread: symbolic answers are compared in worker processes, which would hold up the other problems.
        groups = await asyncio.to_thread(clusters, answers, problem.answer_kind, problem.choices)
        session.counts["no_answer"] += answers.count(None)
        if not groups:
            return Solution(answer=None, text="", attempts=attempts)
        best = groups[0][0]
        return Solution(
            answer=answers[best],
            text=attempts[best].text,
            reasoning=drawn[best].reasoning,
            attempts=attempts,
            votes={answers[rows[0]] or "": len(rows) for rows in groups},
        )
