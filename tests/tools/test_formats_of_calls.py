"""The four forms of tool calls in text: exact round trips, malformed text, and real data."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.tools.calculator import Calculator
from mmreason.tools.formats import notes, openai, programs, react
from mmreason.tools.functions import function_tool
from mmreason.tools.schemas import ArgumentSchema, standard_name, standard_tool
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolError, ToolResult
from mmreason.types import ConfigError, DataError
from tests.timing import allowed

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
tricky = st.sampled_from(
    ["</tool_call>", "\nAction: x", "```", "````\n", "{", "}", "<<1=2>>", "\n", "`", "Observation:", '"', "\\"]
)
texts = st.lists(text | tricky, max_size=4).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(texts, json_values, max_size=3)
names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


def result(content: str, call: ToolCall | None = None, error: Any = None) -> ToolResult:
    return ToolResult(call or ToolCall("calculator", {}), content, error, 0.0)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


# --------------------------------------------------------------------------------------------------------------------
# OpenAI


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(ToolCall, names, arguments, texts), max_size=4), texts)
def test_messages_round_trip(calls: list[ToolCall], content: str) -> None:
    message = openai.render_message(calls, content)
    assert openai.parse_message(json.loads(json.dumps(message))) == calls
    assert message["content"] == content and message["role"] == "assistant"


@settings(max_examples=300, deadline=None)
@given(st.lists(texts.filter(lambda t: "<tool_call>" not in t) | st.builds(ToolCall, names, arguments), max_size=5))
def test_texts_round_trip(parts: list[str | ToolCall]) -> None:
    merged: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    assert list(openai.parse_text(openai.render_text(merged)).parts) == merged


def test_the_message_form() -> None:
    call = ToolCall("calculator", {"expression": "3*4"}, "c1")
    assert openai.render_message([call]) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "calculator", "arguments": '{"expression": "3*4"}'},
            }
        ],
    }
    answer = {"role": "tool", "tool_call_id": "c1", "name": "calculator", "content": "12"}
    assert openai.render_result(Toolbox([Calculator()]).run(call)) == answer
    assert openai.parse_message({"role": "assistant", "content": "hi", "tool_calls": None}) == []


def test_the_message_form_is_what_chat_templates_and_the_sdk_take() -> None:
    from openai.types.chat import ChatCompletionMessage

    call = ToolCall("calculator", {"expression": "3*4"}, "c1")
    message = ChatCompletionMessage.model_validate(openai.render_message([call], "let me see"), strict=True)
    assert openai.parse_message(message.model_dump()) == [call]
    as_template = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
    assert openai.parse_message(as_template) == [ToolCall("f", {"a": 1})]


@pytest.mark.parametrize("raw", ["", "{", "[1]", '{"a": 1, "a": 2}', '{"a": NaN}', "null", "3*4", "[" * 99_999])
def test_broken_arguments_stay_as_they_are(raw: str) -> None:
    message = {"tool_calls": [{"id": "c", "function": {"name": "calculator", "arguments": raw}}]}
    (call,) = openai.parse_message(message)
    assert call == ToolCall("calculator", raw, "c")
    assert Toolbox([Calculator()]).run(call).error == "bad_arguments"
    assert openai.render_message([call])["tool_calls"][0]["function"]["arguments"] == raw


@pytest.mark.parametrize("calls", ["x", [1], [{"function": {}}], [{"function": "f"}], {"name": "f"}])
def test_broken_messages(calls: Any) -> None:
    with pytest.raises(DataError, match="tool_calls"):
        openai.parse_message({"role": "assistant", "tool_calls": calls})


def test_the_text_form() -> None:
    completion = (
        "I need two numbers.\n"
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "3*4"}}\n</tool_call>\n'
        '<tool_call>{"name": "calculator", "arguments": "{\\"expression\\": \\"1\\"}"}</tool_call>'
    )
    parsed = openai.parse_text(completion)
    assert parsed.text == "I need two numbers."
    assert parsed.calls == [ToolCall("calculator", {"expression": "3*4"}), ToolCall("calculator", {"expression": "1"})]
    answers = [Toolbox([Calculator()]).run(call) for call in parsed.calls]
    assert openai.render_response(answers) == (
        "<tool_response>\n12\n</tool_response>\n<tool_response>\n1\n</tool_response>"
    )


@pytest.mark.parametrize(
    ("completion", "calls"),
    [
        ("<tool_call>", [ToolCall("", "")]),
        ("<tool_call>{oops}</tool_call> then", [ToolCall("", "{oops}")]),
        ('<tool_call>{"name": "f", "arguments": {}}', [ToolCall("", '{"name": "f", "arguments": {}}')]),
        ('<tool_call>{"name": "f"} and</tool_call>', [ToolCall("", '{"name": "f"} and')]),
        ('<tool_call>{"arguments": {}}</tool_call>', [ToolCall("", '{"arguments": {}}')]),
        ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', [ToolCall("", '{"name": "f", "parameters": {}}')]),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [ToolCall("", '{"name": "f", "arguments": [1]}')]),
        ('<tool_call>{"name": "f", "arguments": "1"}</tool_call>', [ToolCall("f", "1")]),
        ('<tool_call>{"name": "f"}</tool_call>', [ToolCall("f", {})]),
        ("<tool_call>a<tool_call>b</tool_call>", [ToolCall("", "a"), ToolCall("", "b")]),
        ("no call", []),
    ],
)
def test_broken_texts(completion: str, calls: list[ToolCall]) -> None:
    def f() -> str:
        """Do."""
        return "done"

    assert openai.parse_text(completion).calls == calls
    for call in calls:
        assert Toolbox([function_tool(f)]).run(call).error == (None if call == ToolCall("f", {}) else "bad_arguments")


def test_qwen_template_text_is_read(shared_data: Path) -> None:
    """The real calls of a real set, as the template's text."""
    count = Counter[str]()
    for row in rows(shared_data / "tool_use" / "reason_tool_use_50.jsonl"):
        for message in row["messages"]:
            calls = [json.loads(part["value"]) for part in message["content"] if part["type"] == "tool_call"]
            written = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
            found = openai.parse_text(written).calls
            assert [(call.name, call.arguments) for call in found] == [(c["name"], c["arguments"]) for c in calls]
            count["calls"] += len(calls)
    assert count["calls"] == 68


# --------------------------------------------------------------------------------------------------------------------
# ReAct

SCHEMAS = Toolbox([Calculator()]).schemas
plain = texts.map(str.strip).filter(lambda t: not react._LABEL.search(t))


@settings(max_examples=300, deadline=None)
@given(plain, st.builds(ToolCall, names, arguments) | plain)
def test_steps_round_trip(thought: str, ending: ToolCall | str) -> None:
    if isinstance(ending, str):
        step = react.Step(thought, final=ending)
    else:
        step = react.Step(thought, call=ending)
    assert react.parse(react.render(step), SCHEMAS) == step


@pytest.mark.parametrize(
    ("completion", "call"),
    [
        ('Action: calculator\nAction Input: {"expression": "3*4"}', {"expression": "3*4"}),
        ("Action: calculator\nAction Input: 3*4", {"expression": "3*4"}),
        ("Action 1: calculator\nAction Input 1: 3*4\nObservation 1: 99", {"expression": "3*4"}),
        ("**Action:** calculator\n**Action Input:** 3*4", {"expression": "3*4"}),
        ("**Action**: `calculator`\n**Action Input**: 3*4", {"expression": "3*4"}),
        ("action：calculator\naction input：3*4", {"expression": "3*4"}),
        ("行动：calculator\n行动输入：3*4", {"expression": "3*4"}),
        ("Action: calculator[3*4]", {"expression": "3*4"}),
        ('Action: calculator\nAction Input:\n```json\n{"expression": "3*4"}\n```', {"expression": "3*4"}),
        ("Action: calculator\nAction Input:\n```\n3*\n4\n```", {"expression": "3*\n4"}),
        ('Action: calculator\nAction Input: {"expression": "3*4"', '{"expression": "3*4"'),
        ("Action: unknown\nAction Input: 3*4", "3*4"),
        ("Action: unknown[3*4]", "3*4"),
    ],
)
def test_spellings_of_an_action(completion: str, call: Any) -> None:
    name = "unknown" if "unknown" in completion else "calculator"
    for before in ("", "Thought: hm\n", "hm\n", "Thought 3: hm\n", "思考：hm\n"):
        step = react.parse(before + completion, SCHEMAS)
        assert (step.thought, step.call) == ("hm" if before else "", ToolCall(name, call))


@pytest.mark.parametrize(
    ("completion", "final"),
    [
        ("Thought: I know.\nFinal Answer: 12", "12"),
        ("Final Answer: 12\nand more", "12\nand more"),
        ("Thought 2: so\nAction 2: Finish[12]", "12"),
        ("最终答案：12", "12"),
        ("**Final Answer:** 12", "12"),
    ],
)
def test_spellings_of_the_answer(completion: str, final: str) -> None:
    assert react.parse(completion, SCHEMAS).final == final


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I think it is 12.",
        "Thought: only a thought",
        "Action: calculator",
        "Action: calculator and more words\nwith a line",
        "Action: calculator\nAction Input: 1\nFinal Answer: 2",
        "Action: a\nAction Input: 1\nAction: b\nAction Input: 2",
        "Observation: 12\nFinal Answer: 12",
        "Action Input: 3",
    ],
)
def test_turns_without_a_step(completion: str) -> None:
    step = react.parse(completion, SCHEMAS)
    assert step.call is None and step.final is None
    assert step.error is not None and step.error.kind == "bad_arguments"
    assert react.render_result(step.error).startswith("\nObservation: Error: ")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(texts | st.sampled_from(["\nAction: ", "\nAction Input: ", "\nFinal Answer: ", "\nThought: "])).map(
        "".join
    )
)
def test_every_turn_is_one_of_three(completion: str) -> None:
    step = react.parse(completion, SCHEMAS)
    assert [step.call, step.final, step.error].count(None) == 2


def test_an_episode() -> None:
    box = Toolbox([Calculator()])
    first = react.parse("Thought: multiply\nAction: calculator\nAction Input: 3*4", box.schemas)
    assert first.call is not None
    assert react.render(first) + react.render_result(box.run(first.call)) == (
        'Thought: multiply\nAction: calculator\nAction Input: {"expression": "3*4"}\nObservation: 12\n'
    )
    with pytest.raises(ValueError, match="would not be read back"):
        react.render(react.Step("a\nFinal Answer: b", final="c"))


# --------------------------------------------------------------------------------------------------------------------
# Notes


@pytest.mark.parametrize(
    ("note", "verdict"),
    [
        ("<<3*4=12>>", "right"),
        ("<<3*4=13>>", "wrong"),
        ("<<1/4=.25>>", "right"),
        ("<<1/3=1/3>>", "right"),
        ("<<50%*30=15>>", "right"),
        ("<<1/4=25%>>", "right"),
        ("<<1000*4=4,000>>", "right"),
        ("<<20/3=6.67>>", "rounded"),
        ("<<20/3=6.66>>", "rounded"),
        ("<<20/3=6.68>>", "wrong"),
        ("<<1/3=33.3%>>", "rounded"),
        ("<<1/3*5=1.6666666666666665>>", "rounded"),
        ("<<20/3=7>>", "wrong"),
        ("<<19.5*(1/4)=5>>", "wrong"),
        ("<<3*4>>", "unreadable"),
        ("<<3*x=12>>", "unreadable"),
        ("<<5*2/5=2.0=2.0>>", "unreadable"),
        ("<<1/0=0>>", "unreadable"),
        ("<<9**9**9=1>>", "unreadable"),
        ("<<2=two>>", "unreadable"),
        ("<<>>", "unreadable"),
    ],
)
def test_verdicts(note: str, verdict: str) -> None:
    (found,) = notes.find(f"so {note}7 eggs")
    assert found.verdict == verdict
    assert f"so {note}7 eggs"[found.start : found.end] == note


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 999), st.sampled_from("+-*/"), st.integers(1, 999), st.integers(-9, 9), texts, texts)
def test_notes_against_fractions(a: int, sign: str, b: int, off: int, before: str, after: str) -> None:
    expected = {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b), "/": Fraction(a, b)}[sign] + off
    before, after = (re.sub("[<>]", "", part) for part in (before, after))
    (found,) = notes.find(f"{before}<<{a}{sign}{b}={expected}>>{after}")
    assert found.verdict == ("right" if off == 0 else "wrong")
    assert found.value == expected - off
    assert (found.start, found.expression, found.result) == (len(before), f"{a}{sign}{b}", str(expected))


def test_correct() -> None:
    wrong = "3*4=<<3*4=13>>13 eggs, <<2*500=1001>>1,001 cents, <<1/3=0.3>>0.3, <<2/3=0.7>>, <<2/3=0.1>>0.10, <<x=1>>1"
    right = "3*4=<<3*4=12>>12 eggs, <<2*500=1000>>1000 cents, <<1/3=0.3>>0.3, <<2/3=0.7>>, <<2/3=0.67>>0.67, <<x=1>>1"
    assert notes.correct(wrong) == right
    assert notes.correct(right) == right
    assert notes.correct("<<3*4=13>>14") == "<<3*4=12>>14"  # another number: not the note's
    assert notes.correct("<<3*4=13>>130") == "<<3*4=12>>130"


def test_calls_of_notes() -> None:
    box = Toolbox([Calculator()])
    solution = "3*4=<<3*4=12>>12 and 12/5=<<12/5=2.4>>2.4"
    parts = notes.split(solution)
    assert parts[1] == ToolCall("calculator", {"expression": "3*4"})
    assert notes.join([part if isinstance(part, str) else box.run(part) for part in parts]) == solution
    with pytest.raises(ValueError, match="without a result"):
        notes.join([box.run(ToolCall("calculator", {"expression": "1/0"}))])


def test_open_notes() -> None:
    box = Toolbox([Calculator()])
    written = "He has 3*4 = <<3*4="
    call = notes.open_call(written)
    assert call == ToolCall("calculator", {"expression": "3*4"})
    assert call is not None and written + notes.render_result(box.run(call)) == "He has 3*4 = <<3*4=12>>12"
    assert notes.open_call("<<3*4=12>> and =") is None and notes.open_call("3*4=") is None
    failed = box.run(ToolCall("calculator", {"expression": "1/0"}))
    assert notes.render_result(failed) == ">>[Error: division by zero]"


@pytest.mark.parametrize(("name", "rows_", "count"), [("train", 7473, 23716), ("test", 1319, 4282)])
def test_all_notes_of_gsm8k_are_right(shared_data: Path, name: str, rows_: int, count: int) -> None:
    solutions = [row["answer"] for row in rows(shared_data / "gsm8k" / f"{name}.jsonl")]
    verdicts = Counter(note.verdict for solution in solutions for note in notes.find(solution))
    assert len(solutions) == rows_
    assert verdicts == {"right": count}
    assert all(notes.correct(solution) == solution for solution in solutions)


def test_notes_that_models_wrote(shared_data: Path) -> None:
    """GPT-3's solutions: the calculator ran in floats while they were sampled, where it could read the expression."""
    solutions = [row["solution"] for row in rows(shared_data / "gsm8k" / "model_solutions_labeled.jsonl")]
    found = [note for solution in solutions for note in notes.find(solution)]
    verdicts = Counter(note.verdict for note in found)
    assert sum(verdicts.values()) == 11305 and verdicts["right"] == 11073
    for note in found:
        if note.verdict in ("right", "rounded"):  # an independent reading: Python's floats
            assert float(note.result.replace(",", "")) == pytest.approx(float(note.value or 0), rel=0.02)


# --------------------------------------------------------------------------------------------------------------------
# Programs


@settings(max_examples=300, deadline=None)
@given(
    texts
    | st.lists(
        st.sampled_from(["```python\n", "```\n", "```output\n", "x\n", "~~~\n", "````py\n", "````\n", "  ```\r\n"])
    ).map("".join)
)
def test_blocks_are_the_text(completion: str) -> None:
    blocks = programs.parse(completion)
    assert programs.render(blocks) == completion
    assert all(block.source for block in blocks)
    assert not any(a.kind == b.kind == "text" for a, b in itertools.pairwise(blocks))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["program", "output"]), texts), max_size=4))
def test_programs_round_trip(pieces: list[tuple[str, str]]) -> None:
    blocks = [programs.program(body) if kind == "program" else programs.output(result(body)) for kind, body in pieces]
    assert programs.parse(programs.render(blocks)) == blocks


def test_pending_calls() -> None:
    turn = "Let me compute.\n```python\nprint(3*4)\n```\n"
    assert programs.pending_call(turn) == ToolCall("python", {"code": "print(3*4)"})
    answered = turn + programs.render([programs.output(result("12"))])
    assert answered.endswith("```output\n12\n```\n")
    assert programs.pending_call(answered) is None
    assert programs.pending_call(answered + turn) == ToolCall("python", {"code": "print(3*4)"})
    assert programs.pending_call("no program\n```json\n{}\n```\n") is None
    assert programs.pending_call('```Python title="a.py"\n1\n```') == ToolCall("python", {"code": "1"})
    assert programs.pending_call("```\n1\n```") is None
    cut_off = programs.pending_call("```python\nprint(3*")
    assert isinstance(cut_off, ToolError) and cut_off.kind == "bad_arguments"
    assert programs.output(cut_off).text.startswith("Error: the program has no closing ```")


def test_tora_examples(shared_data: Path) -> None:
    kinds = Counter[str]()
    for row in rows(shared_data / "tool_use" / "tora_examples.jsonl"):
        completion = row["messages"][1]["content"]
        blocks = programs.parse(completion)
        assert programs.render(blocks) == completion
        kinds.update(block.kind for block in blocks)
        for before, block in itertools.pairwise(blocks):
            if block.kind == "output":
                assert before.kind == "program" and before.closed
                turn = completion[: completion.index("```output")]
                assert programs.pending_call(turn) == ToolCall("python", {"code": before.text})
                assert programs.output(result(block.text)).source == block.source
        for block in blocks:
            if block.kind == "program":
                assert "print(" in block.text and "```" not in block.text
    assert (kinds["program"], kinds["output"]) == (25, 25)


# --------------------------------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize(
    "hostile",
    [
        "<tool_call>" * 20_000,
        '<tool_call>{"a":"' * 3_000,
        "<tool_call>" + " " * 200_000,
        "<tool_call>" + "[" * 100_000,
        "<tool_call>" + '{"a":' * 50_000,
        "Action: x[" * 20_000,
        "Action: " + "a" * 100_000 + "[",
        "Thought" + " " * 100_000,
        ("*" * 1000 + "\n") * 200,
        "Action: x\nAction Input: ```" + "\n" * 100_000,
        "<<" * 50_000,
        "<<1=" * 50_000,
        "<<1=" + "1," * 50_000 + ">>",
        "<<" + "(" * 50_000 + "=1>>",
        "```python\n" * 20_000,
        "```" + " " * 100_000 + "x`",
        "```" + "`" * 100_000 + "\n",
        "````python\n```\n" * 5_000,
    ],
    ids=lambda text: text[:12].strip(),
)
def test_hostile_texts_are_read_quickly(hostile: str) -> None:
    start = time.perf_counter()
    openai.parse_text(hostile)
    react.parse(hostile, SCHEMAS)
    notes.correct(hostile)
    notes.open_call(hostile)
    programs.pending_call(hostile)
    assert time.perf_counter() - start < allowed(3)


# --------------------------------------------------------------------------------------------------------------------
# Schemas of real sets


def first_allowed(value: Any) -> Any:
    """BFCL lists the values that are allowed for each argument; "" among them: it may be left out."""
    if isinstance(value, list):
        value = next((item for item in value if item != ""), None)
    if isinstance(value, dict):
        found = {key: first_allowed(inner) for key, inner in value.items()}
        return {key: inner for key, inner in found.items() if inner is not None}
    if isinstance(value, list):
        return [first_allowed(item) if isinstance(item, dict) else item for item in value]
    return value


@pytest.mark.parametrize(
    ("name", "schemas", "refused"),
    [
        ("bfcl_multiple", 557, {}),
        ("bfcl_simple_python", 400, {"simple_python_307": ["'venue' must be of type string, but is true"]}),
    ],
)
def test_bfcl(shared_data: Path, name: str, schemas: int, refused: dict[str, list[str]]) -> None:
    found = {}
    count = 0
    for row in rows(shared_data / "tool_use" / f"{name}.jsonl"):
        functions = {}
        for function in row["function"]:
            with pytest.raises(ConfigError):
                ArgumentSchema(function["name"], function["parameters"])
            tool = standard_tool(function)["function"]
            functions[tool["name"]] = ArgumentSchema(tool["name"], tool["parameters"])
            count += 1
        (call,) = row["ground_truth"]
        for called, golds in call.items():
            values = {key: value for key, value in first_allowed(golds).items() if value is not None}
            problems = functions[standard_name(called)].problems(values)
            if problems:
                found[row["id"]] = problems
    assert count == schemas
    assert found == refused


def test_glaive(shared_data: Path) -> None:
    count = Counter[str]()
    for row in rows(shared_data / "tool_use" / "glaive_toolcall_en_demo.jsonl"):
        tools = [standard_tool(tool)["function"] for tool in json.loads(row["tools"])]
        schemas = {tool["name"]: ArgumentSchema(tool["name"], tool["parameters"]) for tool in tools}
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                (call,) = openai.parse_text(f"<tool_call>\n{turn['value']}\n</tool_call>").calls
                problems = schemas[call.name].problems(call.arguments)
                count["wrong" if problems else "right"] += 1
                assert problems in ([], ["'calories_per_item' must be of type number, but is [150, 350, 800]"])
    assert count == {"right": 210, "wrong": 1}


def test_xlam_dialect(shared_data: Path) -> None:
    count = Counter[str]()
    for row in rows(shared_data / "tool_use" / "reason_tool_use_50.jsonl"):
        tools = [standard_tool(tool)["function"] for tool in json.loads(row["tools"])]
        schemas = {tool["name"]: ArgumentSchema(tool["name"], tool["parameters"]) for tool in tools}
        count["schemas"] += len(schemas)
        for message in row["messages"]:
            for part in message["content"]:
                if part["type"] == "tool_call":
                    call = json.loads(part["value"])
                    count["wrong" if schemas[call["name"]].problems(call["arguments"]) else "right"] += 1
    assert count == {"schemas": 121, "right": 68}
