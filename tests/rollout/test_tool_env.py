"""Tools as an environment: what is run, what is answered, and where it ends."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from data_builders import tool_tasks
from mmreason.answers import verify_many
from mmreason.models.tiny import tiny_tokenizer
from mmreason.rewards import environment_reward, load_rewards, tool_use_reward
from mmreason.rewards.text import completion_text
from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine
from mmreason.rollout.tool_env import tool_factory
from mmreason.rollout.types import Completion, Request, Sampling
from mmreason.types import ConfigError
from tests.rollout import worlds

TOKENIZER = tiny_tokenizer()


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def play(factory: Any, turns: list[str], tokens: int = 2000, plain: bool = False, **limits: Any) -> Completion:
    """One episode in which the policy says these turns, the last one for ever."""
    said = iter(turns)
    engine = worlds.Scripted(TOKENIZER, lambda ids, n: next(said, turns[-1]))
    wrapped = MultiTurnEngine(
        engine, EnvironmentSettings(factory, **limits), TOKENIZER, end_token_ids=[TOKENIZER.eos_token_id]
    )
    example: dict[str, Any] = {"id": "r", "prompt": "?" if plain else [{"role": "user", "content": "?"}]}
    if plain:
        ids = TOKENIZER("?")["input_ids"]
    else:
        ids = TOKENIZER.apply_chat_template(example["prompt"], add_generation_prompt=True, return_dict=False)
    try:
        ((completion,),) = wrapped.generate([Request(list(ids), 1, example=example)], Sampling(tokens), 0)
    finally:
        wrapped.close()
    return completion


def contents(completion: Completion, role: str) -> list[str]:
    return [str(m["content"]) for m in completion.messages or [] if m["role"] == role]


def test_calls_are_answered_until_there_are_none() -> None:
    turns = [
        "Two at once." + call("calculator", expression="347*52") + call("calculator", expression="2+2"),
        "The answer is 18044.",
    ]
    completion = play(tool_factory(["calculator"]), turns)
    assert contents(completion, "tool") == ["18044", "4"] and not completion.truncated
    assert contents(completion, "assistant") == ["Two at once.", "The answer is 18044."]
    first = (completion.messages or [])[0]
    arguments = [called["function"]["arguments"] for called in first["tool_calls"]]
    assert arguments == [{"expression": "347*52"}, {"expression": "2+2"}]
    counted = {name: completion.columns[name] for name in ("tool_calls", "tool_errors", "environment_turns")}
    assert counted == {"tool_calls": 2, "tool_errors": 0, "environment_turns": 2}
    # The verifier reads the policy's turns only: a result is no answer.
    assert "18044" in completion_text(completion.messages) and "347*52" not in completion_text(completion.messages)
    unanswered = play(tool_factory(["calculator"]), [turns[0]], max_turns=1)
    assert unanswered.truncated and completion_text(unanswered.messages) == "Two at once."


def test_react_and_programs() -> None:
    react = tool_factory(["calculator"], call_format="react")
    completion = play(react, ["Thought: hm\nAction: calculator[3*4]", "Nonsense", "Final Answer: 12"])
    seen = contents(completion, "user")
    assert seen[0] == "Observation: 12" and seen[1].startswith("Observation: Error: a turn ends in one")
    assert completion.columns["tool_calls"] == 2 and completion.columns["tool_errors"] == 1
    unread = play(react, ["Nonsense", "Final Answer: 12"])
    counts = {name: [unread.columns[name]] for name in ("tool_calls", "tool_errors")}
    assert tool_use_reward(["a"], **counts, failure=-0.5) == [-0.5], "a call that can't be read is one that failed"
    assert "Action Input" in react.instructions and "calculator" in react.instructions

    program = tool_factory(["python"], call_format="program", timeout_s=10.0)
    completion = play(program, ["```python\nprint(6 * 7)\n```", "So 42."])
    assert contents(completion, "user") == ["```output\n42\n```\n"]
    with pytest.raises(ConfigError, match="must have python among them"):
        tool_factory(["calculator"], call_format="program")


@pytest.mark.parametrize(
    ("call_format", "tool", "kept", "made_up", "told"),
    [
        ("program", "python", "```python\nprint(6 * 7)\n```", "\n```output\n99\n```\nSo 99.", "```output\n42\n```\n"),
        ("react", "calculator", "Action: calculator[3*4]", "\nObservation: 99\nFinal Answer: 99", "Observation: 12"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_results_that_the_policy_makes_up(
    call_format: Any, tool: str, kept: str, made_up: str, told: str, plain: bool
) -> None:
    """The turn is cut before them, token for token, and goes on with the real one as if it had ended there itself."""
    factory = tool_factory([tool], call_format=call_format, timeout_s=10.0)
    made, ended = (play(factory, [first, "Final Answer: 42"], plain=plain) for first in (kept + made_up, kept))
    assert made.messages == ended.messages and contents(made, "user") == [told]
    n = len(TOKENIZER(kept, add_special_tokens=False)["input_ids"])
    assert ended.token_ids[n] == TOKENIZER.eos_token_id and made.sampled and ended.sampled
    if plain:  # no end token: nothing stands between a text and what follows it
        assert made.token_ids == ended.token_ids[:n] + ended.token_ids[n + 1 :]
    else:  # the end token is there, but the policy didn't sample it
        assert made.token_ids == ended.token_ids
        assert [i for i, pair in enumerate(zip(made.sampled, ended.sampled, strict=True)) if len(set(pair)) > 1] == [n]
    assert all((logp == -0.5) == mine for logp, mine in zip(made.logps, made.sampled, strict=True))
    assert made.sampled[:n] == [True] * n and not made.sampled[n] and not made.truncated


def test_an_output_block_in_other_spelling_is_not_believed() -> None:
    program = tool_factory(["python"], call_format="program", timeout_s=10.0)
    turn = "```python\nprint(6 * 7)\n```\n``` output\n99\n```\nSo 99."
    assert contents(play(program, [turn, "So 42."]), "user") == ["```output\n42\n```\n"]


def test_tokens_that_reach_into_a_stop_are_kept() -> None:
    """With merges: the text is cut where the stop begins, the tokens behind the one in which it begins."""
    merging = tiny_tokenizer(["x```output\n" * 20], 300)
    engine = worlds.Scripted(merging, lambda ids, n: "")
    settings = EnvironmentSettings(tool_factory(["python"], call_format="program"))
    wrapped = MultiTurnEngine(engine, settings, merging, end_token_ids=[merging.eos_token_id])
    for text, before in (("ab x```output\n4", "ab x"), ("ab \n```output", "ab"), ("```output", "")):
        ids = merging(text, add_special_tokens=False)["input_ids"]
        stopped = wrapped._until_stop(ids, text)
        assert stopped is not None and stopped[1] == before
        kept = stopped[0]
        assert kept >= 1 and merging.decode(ids[:kept]).startswith(before)
        assert kept == 1 or not merging.decode(ids[: kept - 1]).startswith(before), "one token fewer would lose text"
    assert wrapped._until_stop(merging("no stop")["input_ids"], "no stop") is None


def test_programs_do_not_wait_for_one_another() -> None:
    """Waiting for the sandbox would count against the deadline of rows that did nothing wrong."""
    from mmreason.rollout.environment_host import Host
    from mmreason.tools.python import PythonTool
    from mmreason.tools.sandbox import Sandbox, default_workers

    assert tool_factory(["calculator"]).at_once is None
    factory = tool_factory(["calculator", "python"], timeout_s=1.0)
    assert factory.at_once == default_workers()
    with pytest.raises(ConfigError, match="tool_timeout=30 must be below environment_timeout=30"):
        EnvironmentSettings(tool_factory(["calculator"], timeout_s=30.0))
    # Hanging programs on one worker: together they take longer than an answer may, each alone doesn't.
    with Sandbox(workers=1) as sandbox:
        host = Host(tool_factory([PythonTool(sandbox=sandbox)], timeout_s=1.0), 2.5)
        actions = [*[call("python", code="while True: pass")] * 4, call("python", code="6*7")]
        results = host.call_all([(host.start(), "step", (action,), {}) for action in actions])
    assert [getattr(result, "info", {}).get("tool_errors") for result in results] == [1, 1, 1, 1, 0]


def test_mistakes_are_answered_in_words() -> None:
    turns = [call("calculator", expr="1"), call("calc", expression="1"), "<tool_call>{broken</tool_call>", "Done."]
    completion = play(tool_factory(["calculator"]), turns)
    told = contents(completion, "tool")
    assert len(told) == 3 and all(text.startswith("Error:") for text in told)
    assert completion.columns["tool_errors"] == 3


def test_calls_and_seconds_have_an_end() -> None:
    counted = tool_factory(["calculator"], max_tool_calls=2)
    completion = play(counted, [call("calculator", expression="1+1") * 3, call("calculator", expression="2+2"), "4"])
    assert contents(completion, "tool")[:2] == ["2", "2"]
    assert all("no more than 2 calls" in text for text in contents(completion, "tool")[2:])
    timed = tool_factory(["python"], max_tool_seconds=0.05)
    slow = call("python", code="import time; time.sleep(0.1); print(1)")
    completion = play(timed, [slow, slow, "done"])
    assert contents(completion, "tool")[0].strip() == "1" and "used up their 0.05 s" in contents(completion, "tool")[1]
    for limits in ({"max_tool_calls": -1}, {"max_tool_seconds": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(limits))}={next(iter(limits.values()))}"):
            tool_factory(["calculator"], **limits)  # type: ignore[arg-type]


def test_a_hanging_function_costs_its_own_row() -> None:
    """A user's function can't be stopped in a thread, so it gets a process; the other samples never notice."""
    factory = tool_factory(["calculator", "tests.rollout.worlds.sleepy"], timeout_s=1.5)
    assert factory.isolated

    def say(ids: list[int], number: int) -> str:
        if "18044" in TOKENIZER.decode(ids) or "Error" in TOKENIZER.decode(ids):
            return "The answer is 18044."
        return call("sleepy", seconds=30.0) * 2 if number == 0 else call("calculator", expression="347*52")

    engine = worlds.Scripted(TOKENIZER, say)
    settings = EnvironmentSettings(factory, limit_s=2.0)
    wrapped = MultiTurnEngine(engine, settings, TOKENIZER, end_token_ids=[TOKENIZER.eos_token_id])
    example = {"id": "r", "prompt": [{"role": "user", "content": "?"}]}
    ids = list(TOKENIZER.apply_chat_template(example["prompt"], add_generation_prompt=True, return_dict=False))
    started = time.perf_counter()
    (group,) = wrapped.generate([Request(ids, 4, example=example)], Sampling(400), 0)
    wrapped.close()
    assert time.perf_counter() - started < 25
    assert "process was killed" in group[0].columns["environment_error"]
    assert contents(group[0], "assistant")[-1] == "The answer is 18044.", "the last word is the policy's"
    for completion in group[1:]:
        assert contents(completion, "tool") == ["18044"] and "environment_error" not in completion.columns


def test_two_look_ups_answer_what_one_cannot() -> None:
    """Generated questions over their own corpus, by a policy that reads the first result to write the second query."""
    passages, chains = tool_tasks.facts(3)
    rows = tool_tasks.generate(20, 3, task="search")
    factory = tool_factory([{"name": "search", "corpus": passages, "k": 1}])

    def say(ids: list[int], number: int) -> str:
        seen = TOKENIZER.decode(ids)
        if "stands in the town of" in seen:
            return f"The answer is {seen.rsplit('town of ', 1)[1].split('.')[0]}."
        if "works at the" in seen:
            return call("search", query=seen.rsplit("works at the ", 1)[1].split(".")[0] + " stands town")
        return call("search", query=seen.split("does ")[1].split(" work")[0] + " works")

    engine = worlds.Scripted(TOKENIZER, say)
    settings = EnvironmentSettings(factory, max_turns=4)
    wrapped = MultiTurnEngine(engine, settings, TOKENIZER, end_token_ids=[TOKENIZER.eos_token_id])
    requests = []
    for r in rows:
        ids = TOKENIZER.apply_chat_template(r["prompt"], add_generation_prompt=True, return_dict=False)
        requests.append(Request(list(ids), 1, example=r))
    drawn = [group[0] for group in wrapped.generate(requests, Sampling(1000), 0)]
    n = len(rows)
    texts = [completion_text(c.messages) for c in drawn]
    judged = verify_many(texts, [str(r["answer"]) for r in rows], ["text"] * n, [None] * n)
    assert all(j.correct for j in judged)
    assert {c.columns["tool_calls"] for c in drawn} == {2}
    towns = {person: town for person, _, town in chains}
    for r in rows:
        person = r["prompt"][0]["content"].split("does ")[1].split(" work")[0]  # type: ignore[index]
        mentions = [p["text"] for p in passages if person in p["text"]]
        assert mentions and not any(towns[person] in text for text in mentions), "one passage would answer it alone"


def test_rewards_of_episodes() -> None:
    assert environment_reward(["a", "b"], environment_reward=[1.5, None]) == [1.5, None]
    given = tool_use_reward(["a"] * 4, tool_calls=[2, 1, 0, None], tool_errors=[1, 1, 0, None], failure=-0.5)
    assert given == [1.0, -0.5, 0.0, 0.0]
    environment, tools = load_rewards(["environment", {"name": "tool_use", "failure": -0.1}])
    for reward, said in ((environment, "this run has none"), (tools, "counts calls of tools")):
        with pytest.raises(ConfigError, match=said):
            reward(completions=["a"])
    with pytest.raises(ConfigError, match="at most 0"):
        load_rewards([{"name": "tool_use", "failure": 0.5}])
