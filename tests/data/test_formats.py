"""Row formats: each on rows of its own form, and the errors each must name."""

from __future__ import annotations

from typing import Any

import pytest

from mmreason.data.formats import FORMATS, RowError, detect_format
from mmreason.data.formats.asdiv import read_answer
from mmreason.data.formats.common import letter_of, number_text, shorten
from mmreason.data.formats.generic import parse_with

GSM8K = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\nSo 1,000+24.\n#### 1,024"}
MATH = {"problem": "What is $x$?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 2", "type": "Algebra"}
SVAMP = {
    "ID": "chal-1",
    "Body": "Each pack costs 76 dollars",
    "Question": "What to pay?",
    "Answer": 51.0,
    "Type": "Sub",
}
AQUA = {"question": "Speed?", "options": ["A)21", "B)21.5"], "rationale": "It is.\nAnswer: B", "correct": "B"}
ASDIV = {"id": "nluds-1", "body": "7 red.", "question": "How many?", "answer": "9 (apples)", "formula": "7+2=9"}
PLAIN = {"prompt": "2+2?", "answer": 4}
CANONICAL = {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4", "meta": {"kind": "number"}, "id": "x"}


def prompt_of(example: Any) -> str:
    return example["prompt"][-1]["content"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", GSM8K),
        ("math", MATH),
        ("math", {"problem": "p", "answer": "1"}),
        ("svamp", SVAMP),
        ("aqua", AQUA),
        ("asdiv", ASDIV),
        ("generic", PLAIN),
        ("generic", {"question": "q", "answer": "plain"}),
        ("generic", {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "1"}}),
        ("canonical", CANONICAL),
    ],
)
def test_detection_by_columns(name: str, row: dict[str, Any]) -> None:
    found = detect_format([row])
    assert found is not None and found.name == name


def test_no_format_for_unknown_columns() -> None:
    assert detect_format([{"text": "a", "label_x": 1}]) is None


def test_gsm8k_strips_calculator_notes_and_separators() -> None:
    example = FORMATS["gsm8k"].parse(GSM8K, 0)
    assert example["answer"] == "1024"
    (message,) = example["completion"]
    assert message == {"role": "assistant", "content": "1024", "reasoning_content": "48/2 = 24 clips.\nSo 1,000+24."}


def test_gsm8k_without_mark_is_a_bad_gold() -> None:
    with pytest.raises(RowError, match="bad_gold.*####"):
        FORMATS["gsm8k"].parse({"question": "q", "answer": "just text"}, 0)


def test_math_gold_from_the_box_of_the_solution() -> None:
    example = FORMATS["math"].parse(MATH, 0)
    assert example["answer"] == "\\frac{1}{2}"
    assert example["completion"][0]["reasoning_content"] == MATH["solution"]
    assert example["meta"]["level"] == "Level 2"


def test_math_null_answer_is_bad_even_with_a_solution() -> None:
    with pytest.raises(RowError, match="bad_gold") as caught:
        FORMATS["math"].parse(MATH | {"answer": None}, 0)
    assert caught.value.reason == "bad_gold"


@pytest.mark.parametrize(
    ("body", "question", "prompt"),
    [
        ("He had 3 left.", "How many?", "He had 3 left. How many?"),
        ("He had 3 left", "How many?", "He had 3 left. How many?"),
        ("Tom came. If he had 4 at the start", "How many?", "Tom came. If he had 4 at the start, how many?"),
        ("If he had 4", "Did Tom win?", "If he had 4, Did Tom win?"),
    ],
)
def test_svamp_joins_body_and_question(body: str, question: str, prompt: str) -> None:
    example = FORMATS["svamp"].parse(SVAMP | {"Body": body, "Question": question}, 0)
    assert prompt_of(example) == prompt
    assert (example["answer"], example["id"]) == ("51", "chal-1")


@pytest.mark.parametrize(("cell", "reason"), [(None, "missing_answer"), (float("nan"), "bad_gold"), (True, "bad_gold")])
def test_svamp_bad_answers(cell: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS["svamp"].parse(SVAMP | {"Answer": cell}, 0)
    assert caught.value.reason == reason


def test_aqua_choices() -> None:
    example = FORMATS["aqua"].parse(AQUA, 0)
    assert prompt_of(example) == "Speed?\n(A) 21\n(B) 21.5"
    assert (example["answer"], example["meta"]) == ("B", {"kind": "choice", "choices": ["21", "21.5"]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": ["A)1", "C)2"]}, "bad_choices"),
        ({"options": "A)1"}, "bad_choices"),
        ({"correct": "C"}, "bad_gold"),
        ({"correct": ""}, "missing_answer"),
        ({"question": " "}, "missing_prompt"),
    ],
)
def test_aqua_bad_rows(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS["aqua"].parse(AQUA | change, 0)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("answer", "solution_type", "expected"),
    [
        ("9 (apples)", None, ("9", "number", "apples")),
        ("14  (seats)", None, ("14", "number", "seats")),
        ("1,200", None, ("1200", "number", None)),
        ("-(1/3)", None, ("-1/3", "number", None)),
        ("25/3", None, ("25/3", "number", None)),
        ("8; 40", None, ("8, 40", "math", None)),
        ("5 (years old); 15 (years old)", None, ("5, 15", "math", "years old")),
        ("8 (ft); 128 (sq. ft)", None, ("8, 128", "math", "ft; sq. ft")),
        ("5:45", "Sum", ("5:45", "text", None)),
        ("5:6", "Ratio", ("5:6", "math", None)),
        ("Yes", None, ("Yes", "yesno", None)),
        ("Mrs. Hilt", None, ("Mrs. Hilt", "text", None)),
        ("6th", None, ("6th", "text", None)),
    ],
)
def test_asdiv_answers(answer: str, solution_type: str | None, expected: tuple[str, str, str | None]) -> None:
    assert read_answer(answer, solution_type) == expected


def test_asdiv_unit_and_origin_go_to_meta() -> None:
    example = FORMATS["asdiv"].parse(ASDIV | {"source": "http://x"}, 0)
    assert "source" not in example
    assert example["meta"]["unit"] == "apples" and example["meta"]["origin"] == "http://x"


@pytest.mark.parametrize(
    ("row", "gold", "kind"),
    [
        ({"question": "q", "answer": 4}, "4", "number"),
        ({"question": "q", "answer": 4.0}, "4", "number"),
        ({"question": "q", "answer": True}, "yes", "yesno"),
        ({"question": "q", "answer": ["7"]}, "7", None),
        ({"question": "q", "answer": "It is so.\n#### 12"}, "12", None),
        ({"question": "q", "solution": "Thus $\\boxed{3}$."}, "3", None),
        ({"question": "q", "answer": " x + 1 "}, "x + 1", None),
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, "B", "choice"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "A"}, "A", "choice"),
        ({"prompt": "q", "reward_model": {"ground_truth": "5"}}, "5", None),
    ],
)
def test_generic_golds(row: dict[str, Any], gold: str, kind: str | None) -> None:
    example = FORMATS["generic"].parse(row, 0)
    assert (example["answer"], example["meta"]["kind"]) == (gold, kind)


def test_generic_prefers_question_and_joins_instruction_with_input() -> None:
    assert prompt_of(FORMATS["generic"].parse({"prompt": "p", "question": "q", "answer": "1"}, 0)) == "q"
    joined = FORMATS["generic"].parse({"instruction": "Add.", "input": "1 and 2", "answer": "3"}, 0)
    assert prompt_of(joined) == "Add.\n\n1 and 2"


def test_generic_keeps_the_worked_solution_as_completion() -> None:
    example = FORMATS["generic"].parse({"question": "q", "answer": "Six times two.\n#### 12"}, 0)
    assert example["completion"][0] == {
        "role": "assistant",
        "content": "12",
        "reasoning_content": "Six times two.\n#### 12",
    }


def test_column_map_with_dotted_paths_and_dotted_names() -> None:
    row = {"Body": "q", "a.b": "9", "a": {"b": "8", "c": "7"}}
    assert parse_with({"prompt": "Body", "answer": "a.b"}, row, 0)["answer"] == "9"
    assert parse_with({"prompt": "Body", "answer": "a.c"}, row, 0)["answer"] == "7"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "1"}, "missing_prompt"),
        ({"question": None, "answer": "1"}, "missing_prompt"),
        ({"question": "q", "answer": {"a": 1}}, "bad_gold"),
        ({"question": "q", "answer": float("inf")}, "bad_gold"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "bad_gold"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "bad_choices"),
        ({"prompt": [{"role": "robot", "content": "q"}], "answer": "1"}, "unknown_role"),
    ],
)
def test_generic_bad_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS["generic"].parse(row, 0)
    assert caught.value.reason == reason


def test_canonical_round_trip_and_struct_columns() -> None:
    row = CANONICAL | {
        "prompt": [{"role": "user", "content": "q", "reasoning_content": None, "tool_calls": None}],
        "completion": [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}],
        "source": "s",
    }
    example = FORMATS["canonical"].parse(row, 0)
    assert example["prompt"] == [{"role": "user", "content": "q"}]
    assert example["completion"] == row["completion"]
    assert example["meta"] == {"kind": "number", "choices": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": []}, "missing_prompt"),
        ({"prompt": None}, "missing_prompt"),
        ({"prompt": [{"role": "user"}]}, "bad_messages"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_messages"),
        ({"answer": 4}, "bad_gold"),
        ({"meta": "{"}, "bad_messages"),
    ],
)
def test_canonical_bad_rows(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS["canonical"].parse(CANONICAL | change, 0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize(
    "row", [{}, {"question": 3, "answer": 4}, {"prompt": {}, "problem": [], "Body": 1, "body": b"x"}]
)
def test_every_format_refuses_nonsense_with_a_reason(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        FORMATS[name].parse(row, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (51.0, "51"),
        ("51.0", "51"),
        ("-3.00", "-3"),
        (0.5, "0.5"),
        ("0.50", "0.50"),
        (7, "7"),
        (1e20, "100000000000000000000"),
        (float("nan"), None),
        (None, None),
        (False, None),
        ([1], None),
        (" ", None),
        ("3.0 cm", "3.0 cm"),
    ],
)
def test_number_text(value: Any, text: str | None) -> None:
    assert number_text(value) == text


def test_helpers() -> None:
    assert letter_of(0) == "A" and letter_of(25) == "Z"
    with pytest.raises(RowError):
        letter_of(26)
    assert len(shorten("x" * 500)) == 80
    shorten("\ud800").encode("utf-8")
    with pytest.raises(ValueError, match="unknown reason"):
        RowError("no_such_reason")
