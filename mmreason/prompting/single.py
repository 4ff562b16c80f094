"""Strategies of one line of thought: direct, role, few-shot, zero-shot chain of thought, plan-and-solve, two turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmreason.prompting.prompts import (
    Prompt,
    answer_after,
    answer_in,
    answer_trigger,
    ask,
    assistant,
    fill,
    form,
    said,
    user,
    with_shots,
)
from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.texts import Texts
from mmreason.prompting.types import Completion, Problem, Solution
from mmreason.types import DataError, Message


def step_by_step(problem: Problem, texts: Texts) -> Prompt:
    """The problem's worked examples, then the problem, to be solved in one go."""
    return with_shots(problem.shots, texts, ask(texts.solve, problem, texts))


def solution_of(completion: Completion, problem: Problem) -> Solution:
    """A completion that is the whole solution."""
    return Solution(
        answer=answer_in(completion.text, problem), text=completion.text.strip(), reasoning=completion.reasoning
    )


@dataclass(frozen=True, kw_only=True)
class Direct(Strategy):
    """The question, and the answer alone. 1 call."""

    async def run(self, problem: Problem, session: Session) -> Solution:
        prompt = ask(self.texts.direct, problem, self.texts)
        return solution_of(await session.ask_one(prompt, "answer"), problem)


@dataclass(frozen=True, kw_only=True)
class Role(Strategy):
    """The model plays a role, set in the system turn (after role-play prompting, arXiv:2308.07702). 1 call.

    Attributes:
        role: who the model is, as in "You are ..."; None takes a careful teacher.
    """

    role: str | None = None

    async def run(self, problem: Problem, session: Session) -> Solution:
        texts = self.texts
        system: Message = {"role": "system", "content": fill(texts.role, role=self.role or texts.role_name)}
        prompt = ask(texts.solve, problem, texts)
        prompt = Prompt((system, *prompt.messages), prompt.images)
        return solution_of(await session.ask_one(prompt, "answer"), problem)


@dataclass(frozen=True, kw_only=True)
class FewShot(Strategy):
    """The problem's worked examples, then its question (arXiv:2005.14165; with reasoning, arXiv:2201.11903). 1 call.

    Attributes:
        shots: how many of the problem's examples are shown, from the first; None shows all.
    """

    shots: int | None = at_least(1, None)

    async def run(self, problem: Problem, session: Session) -> Solution:
        if len(problem.shots) < (self.shots or 1):
            raise DataError(
                f"problem {problem.id or '?'}: few_shot shows {self.shots or 'at least 1'} worked examples, "
                f"the problem has {len(problem.shots)}; fill Problem.shots",
                row=problem.id,
                reason="no_shots",
            )
        prompt = with_shots(problem.shots[: self.shots], self.texts, ask("{question}", problem, self.texts))
        return solution_of(await session.ask_one(prompt, "answer"), problem)


async def _triggered(problem: Problem, session: Session, texts: Texts, trigger: str, stages: int) -> Solution:
    """Steps after a trigger; with two stages the answer is asked for in a second call that repeats the steps."""
    if stages == 1:
        prompt = ask(texts.triggered_finish, problem, texts, trigger=trigger)
        return solution_of(await session.ask_one(prompt, "answer"), problem)
    thought = await session.ask_one(ask(texts.triggered, problem, texts, trigger=trigger), "steps")
    steps = said(thought)
    asked = answer_trigger(problem, texts)
    prompt = ask(texts.extraction, problem, texts, trigger=trigger, steps=steps, ask=asked)
    reply = (await session.ask_one(prompt, "answer")).text.strip()
    return Solution(
        answer=answer_after(texts.lead, reply, problem), text=f"{steps}\n{asked} {reply}", reasoning=thought.reasoning
    )


@dataclass(frozen=True, kw_only=True)
class ZeroShotCoT(Strategy):
    """ "Let's think step by step." (arXiv:2205.11916).

    Attributes:
        stages: 2 as in the paper: the steps, then "Therefore, the answer is" in a call of its own. 1 asks for both in
            one call.
    """

    stages: Literal[1, 2] = 2

    async def run(self, problem: Problem, session: Session) -> Solution:
        return await _triggered(problem, session, self.texts, self.texts.trigger, self.stages)


@dataclass(frozen=True, kw_only=True)
class PlanAndSolve(Strategy):
    """First a plan, then its steps, in one completion; the answer in a second call (arXiv:2305.04091).

    Attributes:
        plus: the longer trigger, PS+, which also asks for the variables and for care in calculating.
        stages: as in `ZeroShotCoT`.
    """

    plus: bool = False
    stages: Literal[1, 2] = 2

    async def run(self, problem: Problem, session: Session) -> Solution:
        trigger = self.texts.plan_plus if self.plus else self.texts.plan
        return await _triggered(problem, session, self.texts, trigger, self.stages)


@dataclass(frozen=True, kw_only=True)
class FinalAnswer(Strategy):
    """A turn to think, and a second one: "now give the final answer". 2 calls."""

    async def run(self, problem: Problem, session: Session) -> Solution:
        texts = self.texts
        prompt = ask(texts.think, problem, texts)
        thought = await session.ask_one(prompt, "think")
        prompt = prompt.then(assistant(said(thought)), user(fill(texts.final, form=form(problem, texts))))
        reply = (await session.ask_one(prompt, "answer")).text.strip()
        return Solution(
            answer=answer_after(texts.lead, reply, problem),
            text=f"{said(thought)}\n{reply}",
            reasoning=thought.reasoning,
        )
