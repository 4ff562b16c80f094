"""The registry and its errors, and what single strategies promise beyond their transcripts."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import Any

import pytest
import yaml

from mmreason.clients.types import EndpointError
from mmreason.prompting.rationalize import leak_in
from mmreason.prompting.registry import STRATEGIES, load_strategy
from mmreason.prompting.solve import solve
from mmreason.prompting.structured import DEFAULT_SCHEMA, JsonAnswer
from mmreason.prompting.types import Completion, Outcome, Problem
from mmreason.types import ConfigError
from tests.prompting.scripted import Scripted

BUS = Problem(question="How many buses do 130 people need, 40 in each?", gold="4", id="bus")


def run(spec: Any, script: Any, problem: Problem = BUS) -> Outcome:
    return asyncio.run(solve(load_strategy(spec), problem, Scripted(script)))


# --------------------------------------------------------------------------------------------------------------------
# The registry


def test_yaml() -> None:
    strategy = load_strategy(yaml.safe_load("{name: self_consistency, k: 8, language: zh, temperature: 1}"))
    assert dataclasses.asdict(strategy) == {"language": "zh", "temperature": 1, "max_tokens": None, "k": 8}
    assert load_strategy("direct") == STRATEGIES["direct"]()


@pytest.mark.parametrize("name", STRATEGIES)
def test_they_are_frozen_and_documented(name: str) -> None:
    strategy = load_strategy(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.language = "zh"  # type: ignore[misc]
    doc = type(strategy).__doc__ or ""
    for each in dataclasses.fields(strategy):
        assert each.name in ("language", "temperature", "max_tokens") or each.name in doc, each.name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("self_consistancy", "unknown strategy 'self_consistancy'.*did you mean self_consistency"),
        ("zzz", "unknown strategy 'zzz'; known: direct, role"),
        ({"k": 3}, "a mapping with 'name'"),
        (None, "a mapping with 'name'"),
        ({"name": "self_consistency", "n": 3}, "no parameter 'n'; it has: language, temperature, max_tokens, k"),
        ({"name": "tree_of_thoughts", "beams": 3}, "no parameter 'beams'.*did you mean beam"),
        ({"name": "self_consistency", "k": "8"}, "SelfConsistency, k: expected whole number, got '8'"),
        ({"name": "self_consistency", "k": True}, "expected whole number, got True"),
        ({"name": "self_consistency", "k": 0}, "k: must be at least 1, got 0"),
        ({"name": "direct", "temperature": -0.1}, "temperature: must be at least 0, got -0.1"),
        ({"name": "direct", "max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"name": "direct", "temperature": float("nan")}, "temperature: must be at least 0, got nan"),
        ({"name": "direct", "language": "zhs"}, "language: expected {en,zh}, got 'zhs' \\(did you mean zh\\?\\)"),
        ({"name": "zero_shot_cot", "stages": 3}, "stages: expected \\{1,2\\}, got 3"),
        ({"name": "zero_shot_cot", "stages": True}, "stages: expected \\{1,2\\}, got True"),
        ({"name": "react", "tools": "calculator"}, "tools: expected list, got 'calculator'"),
        ({"name": "react", "tools": ["calculater"]}, "unknown tool 'calculater'"),
        ({"name": "react", "tools": []}, "at least one tool"),
        ({"name": "react", "timeout_s": 0}, "timeout_s must be above 0"),
        ({"name": "reflexion", "verifier": "my_check"}, "verifier: expected function or null, got 'my_check'"),
        ({"name": "json_answer", "schema": ["answer"]}, "schema: expected mapping or null"),
        ({"name": "json_answer", "schema": {"type": "objekt"}}, "not a valid JSON schema"),
        ({"name": "json_answer", "answer_field": "result"}, "require the answer field 'result'"),
        ({"name": "json_answer", "schema": {"type": "array"}}, "of type object"),
    ],
)
def test_mistakes_are_named(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_strategy(spec)


# --------------------------------------------------------------------------------------------------------------------
# Rationalisation


@pytest.mark.parametrize(
    "text",
    [
        "As the hint suggests, divide.\nThe answer is 4.",
        "The given answer is 4, and 130 / 40 is 3.25.\nThe answer is 4.",
        "130 / 40 = 3.25, which matches the correct answer.\nThe answer is 4.",
        "Since the answer is already known to be 4, we check it.\nThe answer is 4.",
        "We are told that the answer is 4. So let us divide.\nThe answer is 4.",
        "130 / 40 = 3.25. This agrees with the provided solution.\nThe answer is 4.",
        "The answer is 4. Because 130 / 40 is 3.25.",
        "Answer: 4\n130 / 40 is 3.25.",
        "根据提示，130除以40。\n答案是4。",
        "已知答案为4，所以要向上取整。\n答案是4。",
        "得3.25，向上取整后与标准答案一致。\n答案是4。",
        "题目已经告诉我们答案。\n答案是4。",
    ],
)
def test_leaks(text: str) -> None:
    outcome = run({"name": "rationalize", "k": 1}, [[text]])
    assert leak_in(text, BUS) is not None
    assert (outcome.accepted, outcome.text, outcome.answer) == (False, "", None)
    assert outcome.counts == {"hint_leak": 1} and outcome.attempts[0].reason.startswith("hint_leak: ")


@pytest.mark.parametrize(
    "text",
    [
        "130 / 40 = 3.25, so 3 buses are full and 10 people are left.\nThe answer is 4.",
        "We know that 40 fit in each. We are given 130 people.\nThe answer is 4.",
        "The answer is 4.",
        "Is the answer 3? No, 10 would be left. So one more.\nThe answer is 4.",
        "已知有130人，每辆坐40人，得3.25，要4辆。\n答案是4。",
        "得3.25，向上取整，给出答案。\n答案是4。",
        "So the answer is given by rounding 3.25 up. We are given the result 130.\nThe answer is 4.",
        "Mix the given solution: 3.25 matches the answer choice D, of the given answer choices.\nThe answer is 4.",
    ],
)
def test_no_leaks(text: str) -> None:
    outcome = run({"name": "rationalize", "k": 1}, [[text]])
    assert (outcome.accepted, outcome.text, outcome.answer) == (True, text, "4")


def test_a_phrase_of_the_question_is_no_leak() -> None:
    problem = Problem(question="Tom buys a hint for 4 coins. How many coins?", gold="4")
    assert leak_in("The hint costs 4 coins.\nThe answer is 4.", problem) is None
    assert leak_in("The hints cost 4 coins.\nThe answer is 4.", problem) == "hints"


def test_thoughts_that_leak_are_left_out() -> None:
    text = "130 / 40 is 3.25.\nThe answer is 4."
    leaking, clean = Completion(text, reasoning="The given answer is 4."), Completion(text, reasoning="3.25, so 4.")
    assert run({"name": "rationalize", "k": 1}, [[leaking]]).reasoning is None
    assert run({"name": "rationalize", "k": 1}, [[leaking]]).counts == {"reasoning_leak": 1}
    assert run({"name": "rationalize", "k": 1}, [[clean]]).reasoning == "3.25, so 4."


def test_no_call_is_paid_without_a_usable_gold() -> None:
    model = Scripted([])
    with pytest.raises(Exception, match="can't be used"):
        asyncio.run(solve(load_strategy("rationalize"), Problem(question="?", gold="", kind="number"), model))
    assert model.asked == []


# --------------------------------------------------------------------------------------------------------------------
# JSON


def test_schema_reaches_sampler_and_prompt() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    model = Scripted(['{"n": 4}'])
    strategy = JsonAnswer(schema=schema, answer_field="n")
    outcome = asyncio.run(solve(strategy, BUS, model))
    assert (outcome.answer, outcome.parsed, outcome.accepted) == ("4", {"n": 4}, True)
    assert model.asked[0]["json_schema"] == schema and json.dumps(schema) in model.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON",
        "",
        '{"answer": "4"}',
        '{"reasoning": "r", "answer": 4}',
        "[1]",
        '{"reasoning": "r", "answer": "4"',
        "NaN",
        '{"reasoning": "r", "answer": "4", "answer": "5"}',
    ],
)
def test_unreadable_replies_are_counted_never_guessed(bad: str) -> None:
    outcome = run({"name": "json_answer", "retries": 2}, [bad, bad, bad])
    assert (outcome.answer, outcome.parsed, outcome.accepted) == (None, None, False)
    assert outcome.counts == {"unreadable_json": 3} and outcome.calls == 3


def test_a_degenerate_reply_is_read_quickly() -> None:
    start = time.perf_counter()
    outcome = run("json_answer", ["```json" + "\n" * 50_000 + "x"] * 2)
    assert outcome.counts["unreadable_json"] == 2 and time.perf_counter() - start < 1


def test_a_value_that_the_sampler_has_read_is_taken() -> None:
    value = {"reasoning": "r", "answer": "4"}
    assert run("json_answer", [Completion(json.dumps(value), parsed=value)]).parsed == value


def test_an_endpoint_that_gave_up_on_the_schema() -> None:
    outcome = run("json_answer", [EndpointError("schema", "it never fitted")])
    assert (outcome.answer, outcome.accepted, outcome.counts) == (None, False, {"unreadable_json": 1})
    with pytest.raises(EndpointError, match="no money"):
        run("json_answer", [EndpointError("budget", "no money")])


def test_the_default_schema_reads_thoughts_first() -> None:
    assert list(DEFAULT_SCHEMA["properties"]) == ["reasoning", "answer"]


# --------------------------------------------------------------------------------------------------------------------
# Others


def test_thoughts_stand_in_for_a_text_that_is_missing() -> None:
    """A reasoning model cut off in its thoughts: the second turn still sees them."""
    script = [Completion("", reasoning="130 / 40 is 3.25", finish_reason="length"), "4"]
    outcome = run("final_answer", script)
    assert outcome.transcript[1].messages[1] == {"role": "assistant", "content": "130 / 40 is 3.25"}
    assert (outcome.answer, outcome.reasoning, outcome.counts) == ("4", "130 / 40 is 3.25", {"truncated": 1})


def test_equal_values_keep_the_order_of_proposal() -> None:
    script = ["1. c\n2. a\n3. b\n4. a", ["sure"], ["sure"], ["sure"], "The answer is 4."]
    outcome = run({"name": "tree_of_thoughts", "depth": 1, "beam": 2, "evaluations": 1, "proposals": 4}, script)
    assert [attempt.text for attempt in outcome.attempts] == ["c", "a"] and outcome.text == "c\nThe answer is 4."


def test_a_tree_without_any_proposal_still_answers() -> None:
    outcome = run("tree_of_thoughts", ["I can't.", "The answer is 4."])
    assert (outcome.answer, outcome.attempts, outcome.counts) == ("4", (), {"unreadable_list": 1})


def test_the_gold_is_shown_by_rationalisation_only() -> None:
    problem = Problem(question="How many?", gold="31415", shots=())
    for name in STRATEGIES:
        if name in ("few_shot", "rationalize"):
            continue
        model = Scripted(lambda prompt, draw: "1. Nothing comes to mind.")
        asyncio.run(solve(load_strategy(name), problem, model))
        assert "31415" not in repr([asked["messages"] for asked in model.asked]), name
