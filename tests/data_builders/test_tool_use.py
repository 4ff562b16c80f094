"""Traces written and read back, mistakes planted, gold programs, notes and calls, and a teacher in this process."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_builders._tool_use.errors import MISTAKES, plant
from data_builders._tool_use.replay import replay
from data_builders._tool_use.trace import Trace, Turn, Writing, recorded_calls, rows_of, run_turn
from data_builders.building.runner import run
from data_builders.tool_use import ToolUse, ToolUseOptions, main
from mmreason.clients.types import Reply, Request
from mmreason.tools.registry import load_tools
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall
from mmreason.types import ConfigError, DataError, Example
from tests.data_builders.teaching import Ruled, manifest_of, rows_in, write_rows

BASE: Example = {
    "prompt": [{"role": "user", "content": "3*4+1?"}], "answer": "13", "id": "q", "source": "s",
    "meta": {"kind": "number", "choices": None, "form": "tool_calls"},
}  # fmt: skip


def box(*tools: Any) -> Toolbox:
    return Toolbox(load_tools(tools or ["calculator"]))


def two_steps(failed: bool = False) -> Trace:
    toolbox = box()
    calls = [("I multiply.", "3*4"), ("I add.", "12+1")]
    turns = [Turn(thought, (ToolCall("calculator", {"expression": text}),)) for thought, text in calls]
    if failed:
        turns.insert(0, Turn("First.", (ToolCall("calculator", {"expression": "3*"}),)))
    done = asyncio.run(_each(toolbox, turns))
    return Trace(done, "I know it.", "The answer is 13.", "13")


async def _each(toolbox: Toolbox, turns: list[Turn]) -> tuple[Turn, ...]:
    return tuple([await run_turn(toolbox, turn) for turn in turns])


def as_form(row_form: str) -> Example:
    return {**BASE, "meta": {**BASE["meta"], "form": row_form}}


def build(tmp_path: Path, source: Path, completer: Any = None, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """(rows, manifest) of a run in this process."""
    given = {"out": tmp_path / "out", "decontaminate": [], "report": False} | options
    builder = ToolUse(ToolUseOptions(source=str(source), **given))
    run(builder, completers=None if completer is None else [completer], say=lambda text: None)
    return rows_in(given["out"]), manifest_of(given["out"])


# Forms


def test_tool_calls_form_is_as_chat_templates_take_it() -> None:
    (row,) = rows_of(two_steps(), BASE, Writing())
    roles = [message["role"] for message in row["completion"]]
    assert roles == ["assistant", "tool", "assistant", "tool", "assistant"]
    first, result, *_, last = row["completion"]
    assert first["tool_calls"][0]["function"] == {"name": "calculator", "arguments": {"expression": "3*4"}}
    assert first["reasoning_content"] == "I multiply." and result["content"] == "12"
    assert result["tool_call_id"] == first["tool_calls"][0]["id"]
    assert (last["reasoning_content"], last["content"]) == ("I know it.", "The answer is 13.")
    assert row["prompt"] == BASE["prompt"]


def test_what_failed_stands_in_the_prompt() -> None:
    """Nobody shall learn to write the wrong call: loss begins behind it."""
    (row,) = rows_of(two_steps(failed=True), BASE, Writing())
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "tool"]
    assert row["prompt"][2]["content"].startswith("Error: the expression can't be read")
    assert row["completion"][0]["tool_calls"][0]["function"]["arguments"] == {"expression": "3*4"}
    (learned,) = rows_of(two_steps(failed=True), BASE, Writing(learn_errors=True))
    assert len(learned["prompt"]) == 1 and len(learned["completion"]) == 7


def test_react_rows_are_turns_that_lead_to_each_other() -> None:
    rows = rows_of(two_steps(failed=True), as_form("react"), Writing(form="react"))
    assert [row["id"] for row in rows] == ["q#1", "q#2", "q#3"], "the failed turn is no row"
    assert rows[0]["prompt"][1]["content"] == 'Thought: First.\nAction: calculator\nAction Input: {"expression": "3*"}'
    assert rows[0]["prompt"][2]["content"].startswith("Observation: Error: ")
    assert rows[2]["completion"] == [{"role": "assistant", "content": "Thought: I know it.\nFinal Answer: 13"}]
    for earlier, later in pairwise(rows):
        assert later["prompt"][: len(earlier["prompt"])] == earlier["prompt"]
        assert later["prompt"][len(earlier["prompt"])] == earlier["completion"][0]
    (whole,) = rows_of(two_steps(), as_form("react"), Writing(form="react", rows="trace"))
    assert [message["role"] for message in whole["prompt"]] == ["user", "assistant", "user", "assistant", "user"]


def test_fenced_rows_continue_one_text() -> None:
    toolbox = box("python")
    turns = asyncio.run(_each(toolbox, [Turn("I compute.", (ToolCall("python", {"code": "print(13)"}),))]))
    trace = Trace(turns, final="The answer is 13.", answer="13")
    first, last = rows_of(trace, as_form("fenced"), Writing(form="fenced"))
    assert first["completion"][0]["content"] == "I compute.\n```python\nprint(13)\n```\n"
    begun = "I compute.\n```python\nprint(13)\n```\n```output\n13\n```\n"
    assert last["prompt"][-1] == {"role": "assistant", "content": begun}
    (whole,) = rows_of(trace, as_form("fenced"), Writing(form="fenced", rows="trace"))
    assert whole["completion"][0]["content"] == f"{begun}The answer is 13."


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("form", ["tool_calls", "react"])
def test_rows_are_read_back_and_a_changed_result_is_seen(form: Any, failed: bool) -> None:
    trace = two_steps(failed)
    row = rows_of(trace, as_form(form), Writing(form=form))[-1]
    read = recorded_calls(row)
    assert [one.call.arguments for one in read] == [call.arguments for call in trace.calls]
    assert [one.content for one in read] == [r.content.strip() for turn in trace.turns for r in turn.results]
    assert replay(row, box()) == []
    spoiled = json.loads(json.dumps(row).replace('12"', '14"').replace("Observation: 12", "Observation: 14"))
    (told,) = replay(spoiled, box())
    assert "'14'" in told and "'12'" in told


def test_calls_are_read_by_place_where_several_stand_in_a_turn() -> None:
    calls = tuple(ToolCall("calculator", {"expression": text}) for text in ("1+1", "2+2"))
    trace = Trace(asyncio.run(_each(box(), [Turn("Both.", calls)])), final="4", answer="4")
    (row,) = rows_of(trace, BASE, Writing())
    assert [one.content for one in recorded_calls(row)] == ["2", "4"]
    rows = rows_of(trace, as_form("react"), Writing(form="react"))
    assert len(rows) == 3, "ReAct has one call in a turn"


# Mistakes


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_mistake_brings_the_tools_own_error(kind: str) -> None:
    toolbox = box("python", "calculator", {"name": "sql", "tables": {"t": [{"a": 1}]}})
    rights = [
        ToolCall("calculator", {"expression": "3*4"}),
        ToolCall("python", {"code": "def solution():\n    eggs = 3\n    return eggs * 4\n\nprint(solution())"}),
        ToolCall("sql", {"query": "SELECT a FROM t WHERE a > 0"}),
    ]
    planted = 0
    for right in rights:
        trace = Trace(asyncio.run(_each(toolbox, [Turn("I try.", (right,))])), final="x", answer="x")
        assert not trace.turns[0].failed
        for seed in range(3):
            spoiled = asyncio.run(plant(trace, toolbox, random.Random(seed), [kind]))
            assert spoiled is not None
            wrong, again = spoiled.turns
            assert wrong.planted == kind and wrong.failed and wrong.calls[0] != right
            assert wrong.results[0] == replace(toolbox.run(wrong.calls[0]), seconds=wrong.results[0].seconds)
            assert (wrong.thought, again.calls, again.failed) == ("I try.", (right,), False)
            assert again.thought and again.thought != "I try."
            planted += 1
    assert planted == 9


def test_a_mistake_that_does_no_harm_is_not_planted() -> None:
    def add(a: Any) -> str:
        """Adds."""
        return str(a)

    toolbox = box(add)  # takes a value of any type
    trace = Trace(asyncio.run(_each(toolbox, [Turn("", (ToolCall("add", {"a": 1}),))])))
    assert asyncio.run(plant(trace, toolbox, random.Random(0), ["wrong_type"])) is None


def test_the_share_of_errors_is_what_is_asked_for(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {k}+{k}?", "answer": f"{k}+{k} = <<{k}+{k}={2 * k}>>{2 * k}\n#### {2 * k}"}
        for k in range(200)
    ]
    source = write_rows(tmp_path / "q.jsonl", rows)
    built, manifest = build(tmp_path, source, kind="notes", errors=0.3, mistakes=["syntax", "unknown_tool"])
    wrong = [row for row in built if row["meta"]["errors"]]
    assert len(built) == 200 and 40 <= len(wrong) <= 80
    assert {kind for row in wrong for kind in row["meta"]["errors"]} == {"syntax", "unknown_tool"}
    counted = manifest["counts"]["extra"]
    assert counted["planted_syntax"] + counted["planted_unknown_tool"] == len(wrong)
    again, _ = build(
        tmp_path, source, kind="notes", errors=0.3, mistakes=["syntax", "unknown_tool"], out=tmp_path / "b"
    )
    assert again == built
    assert not any(row["meta"]["errors"] for row in build(tmp_path, source, kind="notes", out=tmp_path / "c")[0])


# Without a teacher, on real rows


def test_gold_programs_are_run_and_the_wrong_ones_dropped(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "sft_cot" / "svamp_python_cot.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(line) for line in lines[:12]]
    chosen[3]["answer_value"] = "123456"  # a gold that its program doesn't give
    chosen[5]["answer_cot"] = chosen[5]["answer_cot"].replace("return result", "return reslt")
    chosen[7]["answer_cot"] = "There is no program here."
    chosen[8]["answer_cot"] = "def solution():\n    return hex(id(object()))"
    source = write_rows(tmp_path / "programs.jsonl", chosen)
    rows, manifest = build(tmp_path, source, kind="programs", form="fenced", rows="trace")
    assert manifest["counts"]["dropped"] == {
        "wrong_answer": 2, "program_failed": 1, "no_program": 1
    }, manifest["counts"]["dropped"]  # fmt: skip
    assert len(rows) == 8 and all(replay(row) == [] for row in rows)
    text = rows[0]["completion"][0]["content"]
    assert text.index("```python") < text.index("```output\n203") < text.index("The answer is 203.")


def test_recorded_programs_must_give_what_they_gave(shared_data: Path, tmp_path: Path) -> None:
    tools = [{"name": "python", "preload": ["sympy"]}]
    source = shared_data / "tool_use" / "tora_examples.jsonl"
    rows, manifest = build(tmp_path, source, kind="programs", tools=tools, timeout_s=30.0, limit=8)
    assert rows and manifest["counts"]["dropped"].get("other_result") == 1, "one records an output that can't be"
    assert all(replay(row) == [] for row in rows)


def test_notes_become_calls_and_wrong_ones_drop_their_row(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    rows = [json.loads(line) for line in lines]
    rows[0]["answer"] = rows[0]["answer"].replace("<<48/2=24>>24", "<<48/2=25>>25")
    source = write_rows(tmp_path / "gsm8k.jsonl", rows)
    built, manifest = build(tmp_path, source, kind="notes")
    assert manifest["counts"]["dropped"]["wrong_note"] == 1
    assert len(built) + sum(manifest["counts"]["dropped"].values()) == 40
    for row in built:
        assert replay(row) == [] and "<<" not in json.dumps(row["completion"])
    row = next(row for row in built if row["meta"]["parent"].endswith("/1"))
    assert [one.call.arguments["expression"] for one in recorded_calls(row)] == ["12/60", "0.2*50"]


def test_true_calls_fit_their_schemas(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "tool_use" / "bfcl_simple_python.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    rows = [json.loads(line) for line in lines]
    rows[0]["ground_truth"] = [{"calculate_triangle_area": {"base": ["ten"], "height": [5]}}]
    rows[1]["ground_truth"] = [{"math.factorial": {"number": [5]}}, {"math.factorial": {"number": [6]}}]
    source = write_rows(tmp_path / "bfcl.jsonl", rows)
    built, manifest = build(tmp_path, source, kind="calls", errors=0.5)
    assert manifest["counts"]["dropped"] == {"bad_call": 1}
    assert len(built) == 29 and all(replay(row) == [] for row in built)
    parallel = next(row for row in built if row["id"] == "simple_python_1")
    assert [call["function"]["arguments"] for call in parallel["completion"][0]["tool_calls"]] == [
        {"number": 5},
        {"number": 6},
    ]
    wrong = next(row for row in built if row["meta"]["errors"])
    assert wrong["prompt"][-1]["content"].startswith("Error: ")
    spoiled = json.loads(json.dumps(parallel).replace('"number": 6', '"number": "6"'))
    assert "must be of type integer" in replay(spoiled)[0]


# With a teacher


def acts(name: str, **arguments: Any) -> str:
    return f"Thought: I need {name}.\nAction: {name}\nAction Input: {json.dumps(arguments)}"


def test_a_teachers_trace_is_verified_run_again_and_counted(tmp_path: Path) -> None:
    questions = {
        "What is 6*7?": [acts("calculator", expression="6*7"), "Thought: Done.\nFinal Answer: {seen}"],
        "What is 6*8?": [acts("calculator", expression="6*8"), "Final Answer: 49"],
        "What is 6*9?": [acts("calculater", expression="9"), acts("calculator", expression="6*9"), "Final Answer: 54"],
        "What is 1+0?": ["Thought: Easy.\nFinal Answer: 1"],
        "What is 2+0?": ["I write what I want."],
        "What is 3+0?": [acts("calculator", expression="3+0")] * 9,
    }  # fmt: skip
    golds = ["42", "48", "54", "1", "2", "3"]
    source = write_rows(
        tmp_path / "q.jsonl", [{"question": q, "answer": a} for q, a in zip(questions, golds, strict=True)]
    )

    def rule(text: str, request: Request) -> str:
        asked = next(m["content"] for m in request.messages if m["role"] == "user")
        turn = sum(message["role"] == "assistant" for message in request.messages)
        replies = questions[str(asked)]
        return replies[min(turn, len(replies) - 1)].replace("{seen}", text.removeprefix("Observation: "))

    rows, manifest = build(tmp_path, source, Ruled(rule, "teacher-1"), max_turns=3)
    assert [row["id"].rpartition("/")[2] for row in rows] == ["0", "2"]
    dropped = manifest["counts"]["dropped"]
    assert dropped == {"wrong_answer": 1, "no_call": 1, "turn_limit": 2}, dropped
    assert rows[0]["completion"][-1] == {
        "role": "assistant",
        "reasoning_content": "Done.",
        "content": "The answer is 42.",
    }
    assert rows[0]["meta"]["teacher"] == "teacher-1"
    assert rows[1]["meta"]["errors"] == ["own"] and "there is no tool 'calculater'" in rows[1]["prompt"][-1]["content"]
    assert all(replay(row) == [] for row in rows)


def test_native_calls_several_at_once(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"question": "What is 2*3 + 4*5?", "answer": "26"}])

    def rule(text: str, request: Request) -> Reply | str:
        if any(message["role"] == "tool" for message in request.messages):
            return "6 + 20 = 26. The answer is 26."
        calls = [
            {"id": f"c{text}", "type": "function", "function": {"name": "calculator", "arguments": arguments}}
            for text in ("2*3", "4*5")
            for arguments in [json.dumps({"expression": text})]
        ]
        return Reply(text="", reasoning="Both products first.", tool_calls=tuple(calls), finish_reason="tool_calls")

    (row,), _ = build(tmp_path, source, Ruled(rule), teacher_form="native")
    first, *results, last = row["completion"]
    assert first["reasoning_content"] == "Both products first." and len(first["tool_calls"]) == 2
    assert [message["content"] for message in results] == ["6", "20"]
    assert last["content"] == "6 + 20 = 26. The answer is 26." and replay(row) == []
    (*_, end), _ = build(tmp_path, source, Ruled(rule), teacher_form="native", form="react", out=tmp_path / "react")
    assert end["completion"][0]["content"].endswith("\nFinal Answer: 26")


def test_programs_of_a_teacher_with_a_failure_on_the_way(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"question": "What is 6*7?", "answer": "42"}])

    def rule(text: str, request: Request) -> str:
        if "```output\n42" in text:
            return "So the answer is 42."
        code = "print(6 * sevn)" if "```output" not in text else "print(6 * 7)"
        return f"I compute.\n```python\n{code}\n```\n```output\n1\n```\nmade up"

    rows, _ = build(tmp_path, source, Ruled(rule), kind="programs", programs_from="teacher", form="fenced")
    assert len(rows) == 2 and rows[0]["meta"]["errors"] == ["own"]
    begun = rows[0]["prompt"][-1]["content"]
    assert "NameError" in begun and "made up" not in begun
    assert rows[1]["completion"][0]["content"] == "So the answer is 42."
    assert all(replay(row) == [] for row in rows)


def test_what_a_search_must_show(tmp_path: Path) -> None:
    corpus = write_rows(
        tmp_path / "wiki.jsonl", [{"id": "a", "text": "Ada lived in Rome."}, {"id": "b", "text": "Rome is in Italy."}]
    )
    rows = [{"question": "In which country did Ada live?", "answer": "Italy"}]
    source = write_rows(tmp_path / "q.jsonl", rows)
    tools = [{"name": "search", "corpus": str(corpus), "k": 1}]

    def hops(count: int) -> Ruled:
        def rule(text: str, request: Request) -> str:
            turn = sum(message["role"] == "assistant" for message in request.messages)
            return (
                [acts("search", query="Ada"), acts("search", query="Italy Rome")][turn]
                if turn < count
                else "Final Answer: Italy"
            )

        return Ruled(rule)

    one, manifest = build(tmp_path, source, hops(1), tools=tools, min_calls=2, out=tmp_path / "1")
    assert not one and manifest["counts"]["dropped"] == {"too_few_calls": 1}
    one, manifest = build(tmp_path, source, hops(1), tools=tools, grounded=True, out=tmp_path / "2")
    assert not one and manifest["counts"]["dropped"] == {"ungrounded": 1}
    (two,), manifest = build(tmp_path, source, hops(2), tools=tools, min_calls=2, grounded=True, out=tmp_path / "3")
    assert replay(two) == []
    assert [one["name"] for one in manifest["sources"]] == [str(source), str(corpus)]
    corpus.write_text(corpus.read_text().replace("Italy.", "Latium."), encoding="utf-8")
    assert replay(two, Toolbox(load_tools(tools))), "another corpus is seen"


# What can't be built


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "calls", "form": "react"}, "form=react doesn't go with kind=calls"),
        ({"kind": "solve", "form": "fenced"}, "form=fenced doesn't go with kind=solve"),
        ({"kind": "toolformer"}, "--scorer"),
        ({"kind": "notes", "errors": 1.5}, "errors is a share"),
        ({"kind": "solve", "documents": True}, "documents is for kind=toolformer"),
        ({"kind": "calls", "tools": ["calculator"]}, "takes the tools of its rows"),
        ({"kind": "solve", "samples": 0}, "samples must be at least 1"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        ToolUseOptions(source="x", out=tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kind": "notes", "mistakes": ["syntx"]}, ConfigError, "Did you mean 'syntax'"),
        ({"kind": "notes", "mistakes": ["bad_json"]}, ConfigError, "can't show bad_json"),
        (
            {"kind": "programs", "form": "fenced", "mistakes": ["wrong_type"]},
            ConfigError,
            "can't show wrong_type, only syntax, bad_name",
        ),
        ({"kind": "solve", "tools": ["calculatr"]}, ConfigError, "calculator"),
        ({"kind": "solve", "tools": [{"name": "search", "corpus": "nowhere.jsonl"}]}, DataError, "nowhere.jsonl"),
        ({"kind": "calls"}, DataError, "has no tools"),
        (
            {"kind": "toolformer", "scorer": "nowhere", "column_map": {"completion": "answer"}},
            ConfigError,
            "scorer 'nowhere'",
        ),
    ],
)
def test_what_is_wrong_shows_before_anybody_is_asked(
    options: dict[str, Any], error: Any, says: str, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"question": "What?", "answer": "1 = <<1=1>>1\n#### 1"}])
    teacher = Ruled(lambda text, request: "Final Answer: 1")
    with pytest.raises(error, match=says):
        build(tmp_path, source, teacher, **options)
    assert not teacher.requests


def test_replay_command_tells_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"question": "3*4?", "answer": "3*4 = <<3*4=12>>12\n#### 12"}])
    build(tmp_path, source, kind="notes")
    assert main(["replay", str(tmp_path / "out")]) == 0
    assert "1 rows run again, 0 differ" in capsys.readouterr().out
    assert main(["replay", str(tmp_path)]) == 2
    assert "no train-*.parquet" in capsys.readouterr().err
