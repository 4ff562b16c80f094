"""Sets with choices, code and tool calls: rows of each form, and their faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmreason.data.formats import FORMATS, RowError, detect_format
from mmreason.data.formats.common import letter_of
from mmreason.data.formats.tool_sets import PYTHON, programs_as_calls

Row = dict[str, Any]

MMLU: Row = {"question": "2+2?", "subject": "maths", "choices": ["3", "4"], "answer": "B"}
CSQA: Row = {
    "id": "x",
    "question": {
        "stem": "2+2?",
        "choices": [{"label": "A", "text": "3"}, {"label": "B", "text": "4"}],
        "concept": "sum",
    },
    "answerKey": "B",
}
ARC: Row = {"id": "x", "question": "2+2?", "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2"}
HELLASWAG: Row = {"ctx": "He sits", "endings": ["down.", "up."], "label": 0, "activity_label": "Sitting"}
TRUTHFUL: Row = {
    "Question": "2+2?",
    "Best Answer": "4",
    "Correct Answers": "4; four; ",
    "Incorrect Answers": "3; 5; 5",
    "Category": "Sums",
}
BIGBENCH: Row = {"input": "Is it?", "target_scores": {"Yes": 0, "No": 1}, "target": "No. It rains. Much."}
FEVER: Row = {"id": 7, "claim": "It rains.", "label": "REFUTES"}
SOLUTION: Row = {"question": "2+2?", "gold": "4", "solution": "2+2=<<2+2=4>>4\nA: 4", "is_correct": True, "model": "m"}
HUMANEVAL: Row = {
    "task_id": "HumanEval/0",
    "prompt": "def f():\n",
    "canonical_solution": "    return 1\n",
    "test": "def check(c): ...",
    "entry_point": "f",
}
ADD = {
    "name": "math.add",
    "description": "Adds.",
    "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}},
}
BFCL: Row = {
    "id": "b",
    "question": [[{"role": "user", "content": "Add."}]],
    "function": [ADD],
    "ground_truth": [{"math.add": {"a": [1, 1.0], "b": ["", 2], "c": [{"d": [[3], [4]], "e": ["", 1]}]}}],
}
APIBENCH: Row = {
    "code": "{'Instruction': Find it's depth., 'Output': {'domain': 'D'}}",
    "api_call": "hub.load('x')",
    "provider": "PyTorch",
    "api_data": {"domain": "D", "api_name": "X"},
}
TORA: Row = {
    "messages": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "So:\n```python\nprint(2+2)\n```\n```output\n4\n```\nIt is 4."},
    ],
    "gt": "4",
    "gt_cot": "Clear.",
    "level": "Level 1",
}
TOOLALPACA: Row = {
    "Name": "Dogs",
    "Instructions": ["Show one."],
    "Golden_Answers": [[{"Action": "getDog", "Action_Input": '{"n": 1}'}]],
    "Function_Description": {
        "getDog": 'Shows a dog.\nParameters: {"n": "Required. Integer. How many."}\nOutput: ...',
        "components": "",
    },
}
ROWS = {
    "choice": MMLU,
    "commonsenseqa": CSQA,
    "hellaswag": HELLASWAG,
    "truthfulqa": TRUTHFUL,
    "bigbench": BIGBENCH,
    "fever": FEVER,
    "gsm8k_solutions": SOLUTION,
    "humaneval": HUMANEVAL,
    "bfcl": BFCL,
    "apibench": APIBENCH,
    "tora": TORA,
    "toolalpaca": TOOLALPACA,
}


def parse(name: str, row: Row) -> Any:
    fmt = FORMATS[name]
    (part,) = fmt.split(row) if fmt.split else [row]
    return fmt.parse(part, 0)


def prompt_of(example: Any) -> str:
    return example["prompt"][-1]["content"]


@pytest.mark.parametrize("name", list(ROWS))
def test_detection(name: str) -> None:
    found = detect_format([ROWS[name]])
    assert found is not None and found.name == name
    assert parse(name, ROWS[name])["completion"]


def test_choice() -> None:
    example = parse("choice", MMLU)
    assert prompt_of(example) == "2+2?\n(A) 3\n(B) 4"
    assert example["completion"] == [{"role": "assistant", "content": "B"}]
    assert example["meta"] == {"kind": "choice", "choices": ["3", "4"], "subject": "maths"}
    assert parse("choice", MMLU | {"answer": 0})["answer"] == "A"


@pytest.mark.parametrize("row", [CSQA, ARC])
def test_labelled_choices(row: Row) -> None:
    example = parse("commonsenseqa", row)
    assert (prompt_of(example), example["answer"], example["id"]) == ("2+2?\n(A) 3\n(B) 4", "B", "x")
    hidden = parse("commonsenseqa", row | {"answerKey": ""})
    assert hidden["answer"] is None and "completion" not in hidden


def test_hellaswag_labels_may_be_texts() -> None:
    assert parse("hellaswag", HELLASWAG)["answer"] == parse("hellaswag", HELLASWAG | {"label": "0"})["answer"] == "A"


def test_truthfulqa_order_depends_on_the_texts_alone() -> None:
    one = parse("truthfulqa", TRUTHFUL)
    other = parse("truthfulqa", TRUTHFUL | {"Incorrect Answers": "5;3"})
    assert one["meta"]["choices"] == other["meta"]["choices"] and sorted(one["meta"]["choices"]) == ["3", "4", "5"]
    assert one["meta"]["choices"]["ABC".index(one["answer"])] == "4"
    assert one["meta"]["correct"] == ["4", "four"]


def test_bigbench() -> None:
    example = parse("bigbench", BIGBENCH)
    assert (example["answer"], example["meta"]["kind"]) == ("no", "yesno")
    assert example["completion"] == [{"role": "assistant", "content": "no", "reasoning_content": "It rains. Much."}]
    three = parse("bigbench", {"input": "q", "target_scores": {"x": 0, "y": 1, "z": 0}})
    assert (three["answer"], three["meta"]["choices"]) == ("B", ["x", "y", "z"])


def test_solutions_carry_their_label() -> None:
    example = parse("gsm8k_solutions", SOLUTION)
    assert (example["label"], example["answer"]) == (True, "4")
    assert example["completion"] == [{"role": "assistant", "content": "2+2=4\nA: 4"}]


def test_humaneval_prompt_and_completion_are_the_program() -> None:
    example = parse("humaneval", HUMANEVAL)
    assert prompt_of(example) + example["completion"][0]["content"] == "def f():\n    return 1\n"
    assert example["meta"]["tests"] == HUMANEVAL["test"] and example["meta"]["entry_point"] == "f"


def test_bfcl_calls_with_the_first_allowed_values() -> None:
    example = parse("bfcl", BFCL)
    (call,) = example["completion"][0]["tool_calls"]
    assert call["function"] == {"name": "math_add", "arguments": {"a": 1, "c": {"d": [3]}}}
    assert example["tools"][0]["function"]["parameters"]["properties"] == {"a": {"type": "number"}}
    assert example["meta"]["ground_truth"] == BFCL["ground_truth"]
    assert "completion" not in parse("bfcl", BFCL | {"ground_truth": None})


def test_apibench() -> None:
    example = parse("apibench", APIBENCH)
    assert (prompt_of(example), example["answer"]) == ("Find it's depth.", "hub.load('x')")
    assert example["meta"]["api_name"] == "X"


def test_tora_programs_are_calls() -> None:
    example = parse("tora", TORA)
    first, result, last = example["completion"]
    assert first["content"] == "So:" and first["tool_calls"][0]["function"] == {
        "name": "python",
        "arguments": {"code": "print(2+2)"},
    }
    assert result == {"role": "tool", "name": "python", "content": "4"} and last["content"] == "It is 4."
    assert example["tools"] == [PYTHON] and example["answer"] == "4"
    assert programs_as_calls("No program.") == [{"role": "assistant", "content": "No program."}]


def test_toolalpaca() -> None:
    example = parse("toolalpaca", TOOLALPACA)
    assert example["completion"][0]["tool_calls"][0]["function"] == {"name": "getDog", "arguments": {"n": 1}}
    (tool,) = example["tools"]
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"n": {"type": "integer", "description": "Required. Integer. How many."}},
        "required": ["n"],
    }


def test_questions_that_are_judged() -> None:
    row = {"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["1", "2"]}
    found = detect_format([row])
    assert found is not None and found.name == "mt_bench"
    example: Any = found.parse(row, 0)
    assert (prompt_of(example), example["id"], example["meta"]["turns"]) == ("a", "81", ["a", "b"])
    assert example["meta"]["reference"] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("choice", {"answer": "C"}, "bad_gold"),
        ("choice", {"answer": 2}, "bad_gold"),
        ("choice", {"answer": None}, "missing_answer"),
        ("choice", {"choices": ["a"]}, "bad_choices"),
        ("commonsenseqa", {"answerKey": "Z"}, "bad_gold"),
        ("commonsenseqa", {"question": {"stem": "q", "choices": ["a", "b"]}}, "bad_choices"),
        ("commonsenseqa", {"question": {"stem": "q", "choices": [{"label": "A", "text": "a"}] * 2}}, "bad_choices"),
        ("hellaswag", {"label": 2}, "bad_gold"),
        ("hellaswag", {"label": ""}, "missing_answer"),
        ("hellaswag", {"endings": ["a", ""]}, "bad_choices"),
        ("truthfulqa", {"Incorrect Answers": "four; 5"}, "bad_choices"),
        ("truthfulqa", {"Incorrect Answers": ""}, "bad_choices"),
        ("truthfulqa", {"Best Answer": None}, "missing_answer"),
        ("bigbench", {"target_scores": {"Yes": 1, "No": 1}}, "bad_gold"),
        ("bigbench", {"target_scores": {"Yes": 1}}, "bad_choices"),
        ("bigbench", {"target_scores": {"Yes": 1, "No": "0"}}, "bad_choices"),
        ("bigbench", {"target": "Yes. It is."}, "bad_gold"),
        ("fever", {"label": "MAYBE"}, "bad_gold"),
        ("gsm8k_solutions", {"is_correct": "yes"}, "bad_label"),
        ("gsm8k_solutions", {"solution": ""}, "missing_completion"),
        ("humaneval", {"canonical_solution": ""}, "missing_completion"),
        ("humaneval", {"test": None}, "missing_prompt"),
        ("bfcl", {"function": []}, "bad_tools"),
        ("bfcl", {"question": [[], []]}, "missing_prompt"),
        ("bfcl", {"ground_truth": [{"math.sub": {}}]}, "bad_tool_call"),
        ("bfcl", {"ground_truth": [["math.add"]]}, "bad_tool_call"),
        ("bfcl", {"ground_truth": []}, "missing_completion"),
        ("apibench", {"code": "x"}, "missing_prompt"),
        ("apibench", {"api_call": ""}, "missing_completion"),
        ("tora", {"gt": None}, "missing_answer"),
        ("tora", {"messages": TORA["messages"][:1]}, "role_order"),
        ("toolalpaca", {"Golden_Answers": []}, "missing_completion"),
        ("toolalpaca", {"Golden_Answers": [["getDog"]]}, "bad_tool_call"),
        ("toolalpaca", {"Golden_Answers": [[{"Action": "getDog", "Action_Input": "{n: 1}"}]]}, "bad_tool_call"),
        ("toolalpaca", {"Golden_Answers": [[{"Action": "getCat", "Action_Input": "{}"}]]}, "bad_tool_call"),
        ("toolalpaca", {"Function_Description": None}, "bad_tools"),
    ],
)
def test_bad_rows(name: str, change: Row, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(name, ROWS[name] | change)
    assert caught.value.reason == reason


def test_an_output_needs_a_program() -> None:
    with pytest.raises(RowError, match="tool_result"):
        programs_as_calls("```output\n4\n```\n")


def test_letters_end_at_z() -> None:
    with pytest.raises(RowError, match="bad_choices"):
        parse("choice", MMLU | {"choices": [str(i) for i in range(27)], "answer": letter_of(0)})


def test_rows_are_left_as_they_were() -> None:
    for name, row in ROWS.items():
        before = json.dumps(row)
        parse(name, row)
        assert json.dumps(row) == before, name
