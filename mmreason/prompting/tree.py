"""Tree of thoughts, breadth first: propose next steps, value them, keep the best."""

from __future__ import annotations

from dataclasses import dataclass

from mmreason.answers import extract
from mmreason.prompting.prompts import Prompt, answer_in, ask
from mmreason.prompting.reading import items, verdict
from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Attempt, Problem, Solution

State = tuple[str, ...]
"""The steps so far."""


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts(Strategy):
    """Breadth-first search over steps (arXiv:2305.10601, algorithm 1).

    On each level every state of the beam proposes next steps in one call; each new state is valued by `evaluations`
    completions of one call; the `beam` best remain, ties in the order of proposal. A state whose last step states the
    answer is kept as it is and stays in the competition. From the best state at the end the answer is read, or asked
    for in a last call. At most 1 + depth * beam * (1 + proposals) calls.

    Attributes:
        depth: levels.
        beam: states kept on each level (b).
        proposals: next steps taken from each state; more are cut ("list_cut").
        evaluations: completions of each value call. The value is the sum over them; unreadable ones add nothing and are
            counted ("unreadable_value").
        temperature: above 0, or evaluations of a state are all the same.
    """

    depth: int = at_least(1, 3)
    beam: int = at_least(1, 5)
    proposals: int = at_least(1, 5)
    evaluations: int = at_least(1, 3)
    temperature: float | None = at_least(0, 0.7)

    async def run(self, problem: Problem, session: Session) -> Solution:
        beam: list[tuple[State, float]] = [((), 0.0)]
        for _ in range(self.depth):
            done = {state: value for state, value in beam if _is_done(state, problem)}
            children = await self._propose([state for state, _ in beam if state not in done], problem, session)
            if not any(children.values()):
                break
            # A state that is done stands where its children would.
            level = [new for state, _ in beam for new in children.get(state, [state])]
            values = done | await self._value([state for state in level if state not in done], problem, session)
            # The sort is stable, so ties keep their order.
            beam = sorted(((state, values[state]) for state in level), key=lambda entry: -entry[1])[: self.beam]
        return await self._conclude(beam, problem, session)

    async def _propose(self, states: list[State], problem: Problem, session: Session) -> dict[State, list[State]]:
        """The new states from each state, without repetitions."""
        prompts = [self._prompt(self.texts.propose, state, problem, limit=self.proposals) for state in states]
        children: dict[State, list[State]] = {}
        for state, (reply,) in zip(states, await session.ask_each(prompts, "propose"), strict=True):
            steps = items(reply.text)
            session.counts["unreadable_list"] += not steps
            session.counts["list_cut"] += len(steps) > self.proposals
            children[state] = [(*state, step) for step in dict.fromkeys(steps[: self.proposals])]
        return children

    async def _value(self, states: list[State], problem: Problem, session: Session) -> dict[State, float]:
        prompts = [self._prompt(self.texts.value, state, problem) for state in states]
        values: dict[State, float] = {}
        replies = await session.ask_each(prompts, "value", n=self.evaluations)
        for state, evaluations in zip(states, replies, strict=True):
            read = [verdict(evaluation.text, self.texts.value_words) for evaluation in evaluations]
            session.counts["unreadable_value"] += read.count(None)
            values[state] = sum(value for value in read if value is not None)
        return values

    async def _conclude(self, beam: list[tuple[State, float]], problem: Problem, session: Session) -> Solution:
        attempts = tuple(
            Attempt(_text(state), answer_in(state[-1], problem) if _is_done(state, problem) else None, value)
            for state, value in beam
            if state
        )
        best = beam[0][0]
        text, answer, reasoning = _text(best), None, None
        if _is_done(best, problem):
            answer = answer_in(best[-1], problem)
        else:
            last = await session.ask_one(self._prompt(self.texts.complete, best, problem), "answer")
            text, reasoning = f"{text}\n{last.text.strip()}".strip(), last.reasoning
            answer = answer_in(last.text, problem)
        return Solution(answer=answer, text=text, reasoning=reasoning, attempts=attempts)

    def _prompt(self, template: str, state: State, problem: Problem, **values: object) -> Prompt:
        return ask(template, problem, self.texts, steps=_text(state) or self.texts.no_steps, **values)


def _text(state: State) -> str:
    return "\n".join(state)


def _is_done(state: State, problem: Problem) -> bool:
    """Does the last step state the answer behind an explicit marker?"""
    return bool(state) and extract(state[-1], problem.answer_kind, problem.choices).strict is not None
