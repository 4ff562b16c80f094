"""solve and solve_all: order, limits, errors that stay with their problem, what was paid for is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.clients.types import EndpointError
from mmreason.prompting.decompose import SkeletonOfThought
from mmreason.prompting.registry import load_strategy
from mmreason.prompting.session import Session
from mmreason.prompting.single import Direct, ZeroShotCoT
from mmreason.prompting.solve import solve, solve_all, solve_each
from mmreason.prompting.types import Completion, Problem
from mmreason.types import ConfigError, DataError, Message
from tests.prompting.scripted import Scripted, completion, text_of


class Slow:
    """Answers "Number i" with i, after so many passes of the event loop; counts how many are under way."""

    def __init__(self, passes: Sequence[int], failing: frozenset[int] = frozenset()) -> None:
        self.passes, self.failing = passes, failing
        self.under_way = self.most = 0

    async def __call__(self, messages: Sequence[Message], **options: Any) -> list[Completion]:
        number = int(str(messages[-1]["content"]).split()[1])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(self.passes[number]):
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if number in self.failing:
            raise EndpointError("server", f"no answer to {number}")
        return [completion(str(number), text_of(messages))]


def numbered(count: int) -> list[Problem]:
    return [Problem(question=f"Number {i} ?", kind="number", id=f"row{i}") for i in range(count)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 8), st.frozensets(st.integers(0, 29)))
@settings(max_examples=60, deadline=None)
def test_order_and_errors(passes: list[int], concurrency: int, failing: frozenset[int]) -> None:
    model = Slow(passes, failing)
    outcomes = asyncio.run(solve_all(Direct(), numbered(len(passes)), model, concurrency=concurrency))
    for i, outcome in enumerate(outcomes):
        if i in failing:
            assert isinstance(outcome.error, EndpointError) and str(outcome.error) == f"no answer to {i}"
            assert (outcome.answer, outcome.text, outcome.calls, outcome.completions) == (None, "", 1, 0)
        else:
            assert (outcome.answer, outcome.error, outcome.calls) == (str(i), None, 1)
    assert len(outcomes) == len(passes)
    assert model.most <= concurrency and model.under_way == 0


def test_what_was_paid_before_the_error_is_kept() -> None:
    model = Scripted(["some steps", EndpointError("timeout", "too slow")])
    (outcome,) = asyncio.run(solve_all(ZeroShotCoT(), [Problem(question="What?", kind="number")], model))
    assert isinstance(outcome.error, EndpointError)
    assert [(call.step, len(call.completions)) for call in outcome.transcript] == [("steps", 1), ("answer", 0)]
    assert (outcome.calls, outcome.completions, outcome.completion_tokens) == (2, 1, 2)
    assert outcome.prompt_tokens == 9  # user: Q: What? A: Let's think step by step.


def test_solve_raises() -> None:
    with pytest.raises(EndpointError, match="too slow"):
        asyncio.run(solve(Direct(), Problem(question="What?"), Scripted([EndpointError("timeout", "too slow")])))


def test_problems_are_taken_as_places_get_free_and_closing_cancels() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Problem]:
        i = 0
        while True:
            taken.append(i)
            yield Problem(question=f"Number {i} ?", kind="number")
            i += 1

    async def run() -> tuple[list[int], Slow]:
        model = Slow([3] * 1000)
        each = solve_each(Direct(), endless(), model, concurrency=4)
        seen = []
        async for i, outcome in each:
            assert outcome.answer == str(i)
            seen.append(i)
            if len(seen) == 10:
                break
        await each.aclose()  # type: ignore[attr-defined]
        return seen, model

    seen, model = asyncio.run(run())
    assert sorted(seen) == list(range(10)) and len(taken) <= 10 + 4
    assert model.under_way == 0


def test_giving_up_cancels_what_is_under_way() -> None:
    ended: list[str] = []

    async def model(messages: Sequence[Message], **options: Any) -> list[Completion]:
        try:
            await asyncio.Event().wait()  # an answer that never comes
        except asyncio.CancelledError:
            ended.append(str(messages[-1]["content"]).split()[1])
            raise
        return []

    async def run() -> None:
        await asyncio.wait_for(solve_all(Direct(), numbered(5), model, concurrency=3), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert sorted(ended) == ["0", "1", "2"]


@pytest.mark.parametrize("concurrency", [0, -1])
def test_concurrency_is_checked(concurrency: int) -> None:
    with pytest.raises(ConfigError, match="concurrency must be at least 1"):
        asyncio.run(solve_all(Direct(), [], Scripted([]), concurrency=concurrency))


def test_a_sampler_that_gives_too_few_is_an_error() -> None:
    strategy = load_strategy({"name": "self_consistency", "k": 3})
    with pytest.raises(ValueError, match="2 completions where 3 were asked for"):
        asyncio.run(solve(strategy, Problem(question="What?"), Scripted([["1", "2"]])))


def test_truncation_is_counted() -> None:
    model = Scripted([Completion("I was just about to", finish_reason="length")])
    assert asyncio.run(solve(Direct(), Problem(question="What?"), model)).counts == {"truncated": 1}


def test_settings_and_draws_reach_the_sampler() -> None:
    """The draw counts completions, so that two solutions of a problem share none."""
    strategy = load_strategy({"name": "self_consistency", "k": 3, "temperature": 0.9, "max_tokens": 50})
    asked = []
    for draw in (0, 1):
        model = Scripted(lambda prompt, draw: f"The answer is {draw}.")
        outcome = asyncio.run(solve(strategy, replace(Problem(question="What?", kind="number"), draw=draw), model))
        asked.append([c.text for call in outcome.transcript for c in call.completions])
        (call,) = model.asked
        assert (call["n"], call["draw"], call["temperature"], call["max_tokens"]) == (3, 3 * draw, 0.9, 50)
    assert asked == [[f"The answer is {i}." for i in range(3)], [f"The answer is {i}." for i in range(3, 6)]]


def test_points_are_written_out_side_by_side_and_stay_in_order() -> None:
    under_way = most = 0

    async def model(messages: Sequence[Message], **options: Any) -> list[Completion]:
        nonlocal under_way, most
        prompt = text_of(messages)
        if "Write out point" not in prompt:
            return [Completion("1. a\n2. b\n3. c\n4. d")]
        under_way += 1
        most = max(most, under_way)
        number = int(prompt.split("Write out point ")[1].split()[0])
        await asyncio.sleep(0.01 * (5 - number))
        under_way -= 1
        return [Completion(f"text {number}")]

    outcome = asyncio.run(solve(SkeletonOfThought(), Problem(question="Tell me."), model))
    assert outcome.text == "1. text 1\n2. text 2\n3. text 3\n4. text 4" and most == 4
    assert [call.completions[0].text for call in outcome.transcript[1:]] == [f"text {i}" for i in range(1, 5)]


def test_no_call_goes_on_behind_an_error() -> None:
    ended: list[int] = []

    async def model(messages: Sequence[Message], **options: Any) -> list[Completion]:
        prompt = text_of(messages)
        if "Write out point" not in prompt:
            return [Completion("1. a\n2. b\n3. c")]
        number = int(prompt.split("Write out point ")[1].split()[0])
        await asyncio.sleep(0.01 * number)
        ended.append(number)
        if number == 1:
            raise EndpointError("server", "no")
        return [completion("fine", prompt)]

    (outcome,) = asyncio.run(solve_all(SkeletonOfThought(), [Problem(question="Tell me.")], model))
    assert isinstance(outcome.error, EndpointError) and ended == [1, 2, 3]
    assert outcome.completions == 3 and outcome.calls == 4  # the two that were answered are counted


@pytest.mark.parametrize("name", ["few_shot", "reflexion", "rationalize"])
def test_a_problem_that_lacks_what_is_needed_is_named(name: str) -> None:
    model = Scripted(lambda prompt, draw: "The answer is 4.")
    with pytest.raises(DataError, match="row7.*(examples|gold)") as caught:
        asyncio.run(solve(load_strategy(name), Problem(question="What?", id="row7"), model))
    assert caught.value.row == "row7"
    for gold in ("", "\\frac{1"):
        if name == "few_shot":
            continue
        with pytest.raises(DataError, match="row7.*can't be used"):
            problem = Problem(question="What?", id="row7", gold=gold, kind="math")
            asyncio.run(solve(load_strategy(name), problem, model))


def test_session_is_enough_for_a_strategy_of_ones_own() -> None:
    from dataclasses import dataclass

    from mmreason.prompting.prompts import ask
    from mmreason.prompting.single import solution_of
    from mmreason.prompting.strategy import Strategy
    from mmreason.prompting.types import Solution

    @dataclass(frozen=True, kw_only=True)
    class Shout(Strategy):
        async def run(self, problem: Problem, session: Session) -> Solution:
            return solution_of(await session.ask_one(ask("HEY! {question}", problem, self.texts), "shout"), problem)

    model = Scripted(["4"])
    assert asyncio.run(solve(Shout(), Problem(question="What?", kind="number"), model)).answer == "4"
    assert model.asked[0]["messages"] == [{"role": "user", "content": "HEY! What?"}]
