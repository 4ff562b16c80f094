"""Vote, tree and Reflexion against slow, literal versions written from the papers, on random models."""

from __future__ import annotations

import asyncio
import re
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.prompting.consistency import SelfConsistency
from mmreason.prompting.reflexion import Checked, Reflexion
from mmreason.prompting.solve import solve
from mmreason.prompting.tree import TreeOfThoughts
from mmreason.prompting.types import Problem, Solution
from tests.prompting.scripted import Scripted, pick

SEEDS = st.integers(0, 10**9)

# --------------------------------------------------------------------------------------------------------------------
# The vote

SAID = ["12", "12.0", "24/2", "13", "13.0", "-3", "0.5", "1/2", "50%", None]
VALUE = {said: None if said is None else Fraction(said.removesuffix("%")) for said in SAID} | {"50%": Fraction(1, 2)}


def literal_vote(said: list[str | None]) -> str | None:
    """arXiv:2203.11171, equation in section 2: the answer that most samples agree on; the earliest among equals."""
    best, most = None, 0
    for answer in said:
        votes = sum(VALUE[other] == VALUE[answer] for other in said)
        if answer is not None and votes > most:
            best, most = answer, votes
    return best


@given(st.lists(st.sampled_from(SAID), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_vote(said: list[str | None]) -> None:
    model = Scripted([[f"Step {i}.\nThe answer is {a}." if a else "Nothing." for i, a in enumerate(said)]])
    problem = Problem(question="?", kind="number")
    outcome = asyncio.run(solve(SelfConsistency(k=len(said)), problem, model))
    winner = literal_vote(said)
    assert outcome.answer == winner
    if winner is None:
        assert (outcome.text, outcome.votes) == ("", {})
    else:
        first = next(i for i, answer in enumerate(said) if VALUE[answer] == VALUE[winner])
        assert outcome.text.startswith(f"Step {first}.\n")
        assert outcome.votes[winner] == sum(VALUE[answer] == VALUE[winner] for answer in said)
        assert sum(outcome.votes.values()) == len(said) - said.count(None)
    assert outcome.counts.get("no_answer", 0) == said.count(None)
    assert (outcome.calls, outcome.completions) == (1, len(said))


# --------------------------------------------------------------------------------------------------------------------
# The tree

WORDS = ["sure", "likely", "impossible", "who knows"]
WORTH = {"sure": 20.0, "likely": 1.0, "impossible": 0.001, "who knows": 0.0}
STEPS = ["add", "halve", "turn", "look closer", "stop: the answer is 7", "so the answer is 8"]


class RandomTree:
    """A model whose proposals, verdicts and answers are random functions of the steps so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def proposals(self, steps: tuple[str, ...]) -> list[str]:
        return [pick(STEPS, self.seed, "step", steps, i) for i in range(pick(range(5), self.seed, "count", steps))]

    def word(self, steps: tuple[str, ...], draw: int) -> str:
        return str(pick(WORDS, self.seed, "value", steps, draw))

    def conclusion(self, steps: tuple[str, ...]) -> str:
        return f"Done.\nThe answer is {pick(range(100), self.seed, 'end', steps)}."

    def reply(self, prompt: str, draw: int) -> str:
        """As the model of a strategy: the steps are read back from the prompt."""
        found = re.search(r"Steps so far:\n(.*)\n\n(\w+)", prompt, re.S)
        assert found is not None
        steps = () if found[1] == "(none yet)" else tuple(found[1].split("\n"))
        if found[2] == "Propose":
            listed = self.proposals(steps)
            return "\n".join(f"{i}. {step}" for i, step in enumerate(listed, 1)) or "I have no idea."
        return f"Let me see.\n{self.word(steps, draw)}" if found[2] == "Can" else self.conclusion(steps)


def literal_tree(model: RandomTree, depth: int, beam: int, proposals: int, evaluations: int) -> dict[str, Any]:
    """arXiv:2305.10601, algorithm 1 (breadth first), with finished states kept as they are."""
    calls = 0
    kept: list[dict[str, Any]] = [{"steps": (), "value": 0.0}]
    for _ in range(depth):
        candidates: list[dict[str, Any]] = []
        grown = 0
        for state in kept:
            if state["steps"] and "the answer is" in state["steps"][-1]:
                candidates.append(state)
                continue
            calls += 1
            tried: list[str] = []
            for step in model.proposals(state["steps"])[:proposals]:
                if step not in tried:
                    tried.append(step)
                    grown += 1
                    candidates.append({"steps": (*state["steps"], step), "value": None})
        if grown == 0:
            break
        for state in candidates:
            if state["value"] is None:
                calls += 1
                state["value"] = 0.0
                for draw in range(evaluations):
                    state["value"] += WORTH[model.word(state["steps"], draw)]
        kept = []
        while candidates and len(kept) < beam:
            best = candidates[0]
            for state in candidates:
                if state["value"] > best["value"]:
                    best = state
            candidates.remove(best)
            kept.append(best)
    steps = kept[0]["steps"]
    if steps and "the answer is" in steps[-1]:
        answer, text = steps[-1].split()[-1], "\n".join(steps)
    else:
        calls += 1
        answer = model.conclusion(steps).split()[-1].rstrip(".")
        text = "\n".join([*steps, model.conclusion(steps)])
    return {"answer": answer, "text": text, "kept": kept, "calls": calls}


@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_tree(seed: int, depth: int, beam: int, proposals: int, evaluations: int) -> None:
    model = RandomTree(seed)
    strategy = TreeOfThoughts(depth=depth, beam=beam, proposals=proposals, evaluations=evaluations)
    outcome = asyncio.run(solve(strategy, Problem(question="?", kind="number"), Scripted(model.reply)))
    wanted = literal_tree(model, depth, beam, proposals, evaluations)
    assert (outcome.answer, outcome.text, outcome.calls) == (wanted["answer"], wanted["text"], wanted["calls"])
    kept = [("\n".join(state["steps"]), state["value"]) for state in wanted["kept"] if state["steps"]]
    assert [(attempt.text, attempt.value) for attempt in outcome.attempts] == kept
    assert outcome.calls <= 1 + depth * beam * (1 + proposals)


# --------------------------------------------------------------------------------------------------------------------
# Reflexion


class RandomLearner:
    """A model whose attempts are random functions of what it was told to mind."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attempt(self, lessons: tuple[str, ...]) -> str:
        return f"I try.\nThe answer is {pick(range(4), self.seed, 'try', lessons)}."

    def reflection(self, attempt: str, verdict: str) -> str:
        return f"lesson {pick(range(1000), self.seed, 'reflect', attempt, verdict)}"

    def reply(self, prompt: str, draw: int) -> str:
        if found := re.search(r"An attempt at this:\n(.*)\n\nThe verdict on it: (.*?)\n\n", prompt, re.S):
            return self.reflection(found[1], found[2])
        return self.attempt(tuple(re.findall(r"^\d\. (lesson \d+)$", prompt, re.M)))


def literal_reflexion(model: RandomLearner, gold: int, attempts: int, memory: int) -> dict[str, Any]:
    """arXiv:2303.11366, algorithm 1: actor, evaluator, self-reflection, a memory of the last reflections."""
    mem: list[str] = []
    tried: list[str] = []
    calls = 0
    for trial in range(attempts):
        shown = mem[-memory:]
        text = model.attempt(tuple(shown))
        calls += 1
        tried.append(text)
        answer = int(text.rstrip(".").split()[-1])
        if answer == gold:
            return {"answer": str(answer), "tried": tried, "passed": True, "calls": calls}
        if trial + 1 < attempts:
            mem.append(model.reflection(text, f"The answer {answer} is wrong."))
            calls += 1
    return {"answer": str(answer), "tried": tried, "passed": False, "calls": calls}


@given(SEEDS, st.integers(0, 3), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["gold", "plain", "async"]))
@settings(max_examples=150, deadline=None)
def test_reflexion(seed: int, gold: int, attempts: int, memory: int, check: str) -> None:
    """With the gold, and with the same check as a function of the user's, which sees the answer."""
    model = RandomLearner(seed)

    def plain(problem: Problem, solution: Solution) -> Checked:
        return Checked(solution.answer == str(gold), f"The answer {solution.answer} is wrong.")

    async def later(problem: Problem, solution: Solution) -> Checked:
        await asyncio.sleep(0)
        return plain(problem, solution)

    verifier = {"gold": None, "plain": plain, "async": later}[check]
    problem = Problem(question="?", kind="number", gold=str(gold) if verifier is None else None)
    strategy = Reflexion(max_attempts=attempts, memory=memory, verifier=verifier)
    outcome = asyncio.run(solve(strategy, problem, Scripted(model.reply)))
    wanted = literal_reflexion(model, gold, attempts, memory)
    assert (outcome.answer, outcome.accepted, outcome.calls) == (wanted["answer"], wanted["passed"], wanted["calls"])
    assert [attempt.text for attempt in outcome.attempts] == wanted["tried"]
    failed = [False] * (len(wanted["tried"]) - 1)
    assert [attempt.accepted for attempt in outcome.attempts] == [*failed, wanted["passed"]]
    assert outcome.text == wanted["tried"][-1]
