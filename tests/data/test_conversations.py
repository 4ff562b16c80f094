"""Conversations: ShareGPT, OpenAI messages, LLaVA, Alpaca; what each row becomes, and every fault that has a name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.formats import FORMATS, RowError, detect_format
from mmreason.data.formats.conversations import split_thoughts, split_turns, tool_calls, tool_schemas
from tests.image_rows import IMAGE, parsed, text

Row = dict[str, Any]


def human(value: Any) -> Row:
    return {"from": "human", "value": value}


def gpt(value: Any) -> Row:
    return {"from": "gpt", "value": value}


def said(role: str, content: Any, **rest: Any) -> Row:
    return {"role": role, "content": content} | rest


def call(name: str, **arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def shared(*turns: Row, **rest: Any) -> Row:
    return {"conversations": list(turns)} | rest


def chat(*messages: Row, **rest: Any) -> Row:
    return {"messages": list(messages)} | rest


def parse(name: str, row: Row) -> Any:
    return FORMATS[name].parse(row, 0)


def refused(name: str, row: Row) -> RowError:
    with pytest.raises(RowError) as caught:
        parse(name, row)
    return caught.value


WEATHER = {"name": "weather", "description": "Tells.", "parameters": {"type": "object", "properties": {}}}
STANDARD = {"type": "function", "function": WEATHER}
CALL_TEXT = '{"name": "weather", "arguments": {"city": "Bonn"}}'


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("sharegpt", shared(human("a"), gpt("b"))),
        ("llava", shared(human("<image>a"), gpt("b"), image="a.jpg")),
        ("messages", chat(said("user", "a"), said("assistant", "b"))),
        ("messages", chat(said("user", "a"), said("assistant", "b"), images=["a.jpg"])),
        ("alpaca", {"instruction": "a", "input": "", "output": "b"}),
        ("alpaca", {"instruction": "a", "chosen": "b", "rejected": "c"}),
        ("self_instruct", {"instruction": "a", "instances": []}),
        ("preference", chat(prompt="a", chosen=[], rejected=[])),  # UltraFeedback has messages beside its pair
    ],
)
def test_detection(name: str, row: Row) -> None:
    found = detect_format([row])
    assert found is not None and found.name == name


def test_sharegpt_keeps_earlier_turns_in_the_prompt() -> None:
    row = shared({"from": "system", "value": "s"}, human("a"), gpt(" b\n"), human("c"), gpt("d"), id=7, score=0.5)
    assert parse("sharegpt", row) == {
        "prompt": [said("system", "s"), said("user", "a"), said("assistant", " b\n"), said("user", "c")],
        "completion": [said("assistant", "d")],
        "id": "7",
        "meta": {"kind": None, "choices": None, "score": 0.5},
    }


def test_a_turn_with_tools_is_one_completion() -> None:
    turns = (
        human("Weather?"),
        {"from": "function_call", "value": CALL_TEXT},
        {"from": "observation", "value": "rain"},
        gpt("It rains."),
    )
    example = parse("sharegpt", shared(*turns, tools=json.dumps([WEATHER])))
    assert example["prompt"] == [said("user", "Weather?")]
    assert example["completion"] == [
        said("assistant", "", tool_calls=[call("weather", city="Bonn")]),
        said("tool", "rain"),
        said("assistant", "It rains."),
    ]
    assert example["tools"] == [STANDARD]
    longer = parse("sharegpt", shared(*turns, human("Thanks"), gpt("Welcome"), tools=[STANDARD]))
    assert len(longer["prompt"]) == 5 and longer["completion"] == [said("assistant", "Welcome")]


def test_several_calls_and_their_results() -> None:
    calls = {"from": "function_call", "value": json.dumps([json.loads(CALL_TEXT)] * 2)}
    result = {"from": "observation", "value": "rain"}
    first, *results = parse("sharegpt", shared(human("a"), calls, result, result))["completion"]
    assert len(first["tool_calls"]) == len(results) == 2
    assert refused("sharegpt", shared(human("a"), calls, result, result, result)).reason == "tool_result"


def test_openai_messages() -> None:
    made = said("assistant", None, tool_calls=[{"id": "c1", "type": "function", "function": json.loads(CALL_TEXT)}])
    made["tool_calls"][0]["function"]["arguments"] = '{"city": "Bonn"}'
    row = chat(
        said("user", [{"type": "text", "text": "a"}]),
        made | {"reasoning": "Look it up."},
        said("tool", "rain", tool_call_id="c1", name="weather"),
        said("assistant", "It rains.", thinking="So.", tool_calls=None),
    )
    example = parse("messages", row)
    assert example["prompt"] == [said("user", "a")]
    assert example["completion"] == [
        said(
            "assistant", "", tool_calls=[call("weather", city="Bonn") | {"id": "c1"}], reasoning_content="Look it up."
        ),
        said("tool", "rain", tool_call_id="c1", name="weather"),
        said("assistant", "It rains.", reasoning_content="So."),
    ]


def test_functions_before_there_were_tools() -> None:
    old = said("assistant", None, function_call={"name": "weather", "arguments": "{}"})
    example = parse("messages", chat(said("user", "a"), old, said("function", "rain", name="weather")))
    assert example["completion"][0] == said("assistant", "", tool_calls=[call("weather")])
    assert example["completion"][1] == said("tool", "rain", name="weather")


def test_parts_of_thoughts_and_calls() -> None:
    parts = [
        {"type": "reasoning", "value": "Hm."},
        {"type": "text", "value": "Wait."},
        {"type": "tool_call", "value": CALL_TEXT},
    ]
    (message,) = parse("messages", chat(said("user", "a"), said("assistant", parts)))["completion"]
    wanted = said("assistant", "Wait.", reasoning_content="Hm.", tool_calls=[call("weather", city="Bonn")])
    assert message == wanted


def test_a_conversation_that_ends_with_the_user_has_no_completion() -> None:
    assert "completion" not in parse("messages", chat(said("user", "a")))
    assert "completion" not in parse("sharegpt", shared(human("a"), gpt("b"), human("c")))


def test_label_and_other_labels() -> None:
    assert parse("messages", chat(said("user", "a"), said("assistant", "b"), label=False))["label"] is False
    example = parse("messages", chat(said("user", "a"), said("assistant", "b"), label="sports"))
    assert "label" not in example and example["meta"]["label"] == "sports"


def test_system_column() -> None:
    turns = (human("a"), gpt("b"))
    assert parse("sharegpt", shared(*turns, system="s"))["prompt"][0] == said("system", "s")
    assert len(parse("sharegpt", shared({"from": "system", "value": " "}, *turns, system=""))["prompt"]) == 1
    both = shared({"from": "system", "value": "t"}, *turns, system="s")
    assert refused("sharegpt", both).detail.startswith("the row has two system prompts")


# Thoughts


@pytest.mark.parametrize(
    ("content", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("  <think>a</think> b", "a", " b"),
        ("<think>\n\n</think>\n\nYes.", None, "Yes."),
        ("<think>one</think>two</think>three", "one", "two</think>three"),
        ("<think>never closed", None, "<think>never closed"),
        ("First <think>later</think>", None, "First <think>later</think>"),
        ("no start</think>answer", None, "no start</think>answer"),
    ],
)
@pytest.mark.parametrize("name", ["sharegpt", "messages", "alpaca"])
def test_thoughts_in_the_text(name: str, content: str, thoughts: str | None, answer: str) -> None:
    rows = {
        "sharegpt": shared(human("a"), gpt(content)),
        "messages": chat(said("user", "a"), said("assistant", content)),
        "alpaca": {"instruction": "a", "output": content},
    }
    (message,) = parse(name, rows[name])["completion"]
    assert (message.get("reasoning_content"), message["content"]) == (thoughts, answer)


def test_thoughts_are_not_split_where_a_field_holds_them() -> None:
    message = said("assistant", "<think>a</think>b", reasoning_content="c")
    (kept,) = parse("messages", chat(said("user", "a"), message))["completion"]
    assert kept == message


def test_thoughts_of_users_and_of_finished_rows_are_text() -> None:
    marked = "<think>a</think>b"
    assert parse("messages", chat(said("user", marked), said("assistant", "c")))["prompt"] == [said("user", marked)]
    row = {"prompt": [said("user", "q")], "completion": [said("assistant", marked)], "meta": {}}
    assert parse("canonical", row)["completion"] == [said("assistant", marked)]


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"))


@given(thoughts=lines, answer=lines)
def test_split_thoughts(thoughts: str, answer: str) -> None:
    assert split_thoughts(answer) == (None, answer)
    found, rest = split_thoughts(f"<think>\n{thoughts}\n</think>\n\n{answer}")
    assert (found, rest) == (thoughts.strip("\n"), answer.lstrip("\n"))


# Turns


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text("ab", min_size=1)), min_size=1), st.booleans()
)
def test_nothing_of_a_conversation_is_lost(turns: list[tuple[str, str]], system: bool) -> None:
    messages = [said("system", "s")] * system + [said("user", "first")] + [said(*turn) for turn in turns]
    prompt, completion = split_turns(messages)  # type: ignore[arg-type]
    assert [*prompt, *completion] == messages
    assert {message["role"] for message in completion} <= {"assistant"} and prompt[-1]["role"] == "user"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "missing_prompt"),
        ([gpt("b")], "role_order"),
        ([human("a"), human("b")], "role_order"),
        ([human("a"), gpt("b"), gpt("c")], "role_order"),
        ([human("a"), gpt("b"), {"from": "system", "value": "s"}], "role_order"),
        ([human("a"), {"from": "observation", "value": "x"}, gpt("b")], "role_order"),
        ([{"from": "observation", "value": "x"}, gpt("b")], "tool_result"),
        ([human("a"), gpt("b"), {"from": "observation", "value": "x"}], "tool_result"),
        ([human("a"), {"from": "robot", "value": "b"}], "unknown_role"),
        ([human("a"), {"value": "b"}], "unknown_role"),
        ([human("a"), gpt(" ")], "empty_turn"),
        ([human(""), gpt("b")], "empty_turn"),
        ([human("a"), gpt(None)], "empty_turn"),
        ([human("a"), gpt("<think>\n</think>")], "empty_turn"),
        ([human("a"), gpt(5)], "mixed_types"),
        ([human(["a"]), gpt("b")], "mixed_types"),
        ([human("a"), {"from": "function_call", "value": "weather()"}], "bad_tool_call"),
        ([human("a"), {"from": "function_call", "value": '{"arguments": {}}'}], "bad_tool_call"),
        ([human("a"), {"from": "function_call", "value": '{"name": "f", "arguments": [1]}'}], "bad_tool_call"),
        (["a"], "bad_messages"),
        ("[{", "bad_messages"),
    ],
)
def test_bad_turns(turns: Any, reason: str) -> None:
    assert refused("sharegpt", {"conversations": turns}).reason == reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "missing_prompt"),
        ([said("assistant", "a")], "missing_prompt"),
        ([said("user", "a"), said("asistant", "b")], "unknown_role"),
        ([said("user", "a"), said("assistant", "")], "empty_turn"),
        ([said("user", "a"), said("assistant", None)], "empty_turn"),
        ([said("user", "a"), said("assistant", [{"type": "text", "text": ""}])], "empty_turn"),
        ([said("user", None), said("assistant", "b")], "bad_messages"),
        ([said("user", 3), said("assistant", "b")], "mixed_types"),
        ([said("user", [{"text": "a"}]), said("assistant", "b")], "bad_messages"),
        ([said("user", "a"), said("assistant", "", tool_calls=[{"function": {"arguments": "{}"}}])], "bad_tool_call"),
        ([said("user", "a"), said("assistant", "", tool_calls=[call("f") | {"function": 1}])], "bad_tool_call"),
        (
            [said("user", "a"), said("assistant", "", tool_calls=[{"name": "f", "arguments": "{'x': 1}"}])],
            "bad_tool_call",
        ),
        ([said("user", "a"), said("tool", "b")], "tool_result"),
        ([said("user", "a", tool_calls=[call("f")])], "bad_messages"),
        ([said("user", "a"), said("assistant", "b", reasoning="c", thinking="d")], "bad_messages"),
        (
            [
                said("user", "a"),
                said("assistant", "", tool_calls=[call("f") | {"id": "1"}]),
                said("tool", "x", tool_call_id="2"),
            ],
            "tool_result",
        ),
    ],
)
def test_bad_messages(messages: Any, reason: str) -> None:
    assert refused("messages", {"messages": messages}).reason == reason


def test_unknown_roles_get_the_nearest() -> None:
    error = refused("messages", chat(said("user", "a"), said("asistant", "b")))
    assert "Did you mean 'assistant'?" in str(error)


def test_messages_need_not_alternate() -> None:
    example = parse(
        "messages", chat(said("user", "a"), said("user", "b"), said("assistant", "c"), said("assistant", "d"))
    )
    assert [len(example["prompt"]), len(example["completion"])] == [2, 2]


# Tools


def test_tool_calls_become_dicts() -> None:
    assert tool_calls('{"name": "math.add", "arguments": ""}') == [call("math_add")]
    assert tool_calls({"name": "f", "arguments": None}) == [call("f")]


def test_tool_schemas_of_all_kinds() -> None:
    for cell in ([WEATHER], [STANDARD], json.dumps([WEATHER]), [json.dumps(WEATHER)]):
        assert tool_schemas(cell) == [STANDARD]
    assert tool_schemas(None) == tool_schemas("") == tool_schemas("[]") == []
    one, two = tool_schemas([WEATHER]), tool_schemas([WEATHER])
    one[0]["function"]["name"] = "changed"
    assert two == [STANDARD]  # rows don't share their schemas


@pytest.mark.parametrize(
    "cell", ["{", "7", {"name": "f"}, [{"description": "no name"}], [{"name": "f", "parameters": 1}]]
)
def test_bad_tools(cell: Any) -> None:
    assert refused("sharegpt", shared(human("a"), gpt("b"), tools=cell)).reason == "bad_tools"


# Images


def test_llava_marks() -> None:
    row = shared(human("<image>\nWhat?"), gpt("A <image> tag."), human("And?"), gpt("b"), image="a.jpg")
    example = parsed("llava", row)
    assert example["prompt"][0] == said("user", [IMAGE, text("\nWhat?")])
    assert example["prompt"][1] == said("assistant", "A <image> tag.")
    assert example["images"] == ["a.jpg"]


def test_llava_rows_without_an_image_may_have_no_mark() -> None:
    assert parsed("llava", shared(human("a"), gpt("b")))["prompt"] == [said("user", "a")]
    marked = parsed("llava", shared(human("<image>a"), gpt("b")))
    assert marked["prompt"] == [said("user", [IMAGE, text("a")])] and "images" not in marked  # the count tells


def test_images_of_tool_results_have_their_places_in_the_completion() -> None:
    row = chat(
        said("user", "<image>Zoom in."),
        said("assistant", "", tool_calls=[call("zoom")]),
        said("tool", "<image>"),
        said("assistant", "A cat."),
        images=["a.jpg", "b.jpg"],
    )
    example = parsed("messages", row)
    assert example["prompt"][0]["content"][0] == IMAGE and example["completion"][1]["content"] == [IMAGE]
    assert example["images"] == ["a.jpg", "b.jpg"]


def test_images_inside_messages() -> None:
    inside = {"type": "image_url", "image_url": {"url": "data:,x"}}
    example = parsed("messages", chat(said("user", [inside, text("What?")]), said("assistant", "b")))
    assert example["prompt"] == [said("user", [IMAGE, text("What?")])] and example["images"] == ["data:,x"]


# Alpaca


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "  3\n", "system": "s", "history": [["a", "b"]]}
    assert parse("alpaca", row | {"answer": 3.0, "tag": "x"}) == {
        "prompt": [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "Add.\n\n1 and 2")],
        "completion": [said("assistant", "  3\n")],
        "answer": "3",
        "meta": {"kind": None, "choices": None, "tag": "x"},
    }


def test_alpaca_pairs() -> None:
    example = parse("alpaca", {"instruction": "a", "chosen": "b", "rejected": "c"})
    assert (example["chosen"], example["rejected"]) == ([said("assistant", "b")], [said("assistant", "c")])
    assert refused("alpaca", {"instruction": "a", "chosen": "b", "rejected": ""}).reason == "missing_pair"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": " "}, "missing_prompt"),
        ({"output": ""}, "missing_completion"),
        ({"output": None}, "missing_completion"),
        ({"history": "a"}, "bad_messages"),
        ({"history": [["a"]]}, "bad_messages"),
        ({"history": [["a", ""]]}, "empty_turn"),
    ],
)
def test_bad_alpaca(change: Row, reason: str) -> None:
    assert refused("alpaca", {"instruction": "a", "input": "", "output": "b"} | change).reason == reason


def test_seed_tasks_are_a_row_for_each_instance() -> None:
    instances = [{"input": "1", "output": "2"}, {"input": "", "output": "3"}]
    rows = FORMATS["self_instruct"].split({"id": "t", "instruction": "a", "instances": instances})  # type: ignore[misc]
    assert [(parse("self_instruct", dict(row))["id"], row["output"]) for row in rows] == [("t/0", "2"), ("t/1", "3")]
