"""The chain-of-thought builder, with a teacher in the process: what is kept, in which form, and what is dropped why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_builders._cot.forms import is_verified
from data_builders._cot.rationale import cleaned, standing, steps_of
from data_builders.building.runner import run
from data_builders.cot import Cot, CotOptions
from mmreason.answers import verify
from mmreason.data import load_examples
from mmreason.data.reader import read_rows
from mmreason.prompting.registry import STRATEGIES
from mmreason.prompting.types import Problem
from mmreason.types import ConfigError, DataError
from tests.data_builders.cot_teacher import Answer, Scripted, by_draw, in_order
from tests.pictures import cell, picture

QUESTION = "Ann has 3 bags of 4 apples and 2 more. How many apples has she?"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def apples(
    tmp_path: Path, answer: str = "Bags: 3*4 = <<3*4=12>>12.\nAll: 12+2 = <<12+2=14>>14 apples.\n#### 14"
) -> str:
    return write_rows(tmp_path / "train.jsonl", [{"question": QUESTION, "answer": answer}])


def built(
    tmp_path: Path, data: str, answer: Answer | None = None, *, reasoning: str | None = None, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], Scripted]:
    """(rows, manifest, teacher)."""
    teacher = Scripted(answer or by_draw("I don't know."), reasoning)
    out = tmp_path / "out"
    builder = Cot(CotOptions(out=out, source=[data], decontaminate=[], **options))
    manifest = run(builder, completers=[teacher], say=lambda _: None)
    rows = [dict(row) for path in sorted(out.glob("*.parquet")) for _, row in read_rows(path)]  # type: ignore[arg-type]
    return rows, manifest, teacher


def dropped(manifest: Mapping[str, Any]) -> dict[str, int]:
    return dict(manifest["counts"]["dropped"])


RIGHT = "First 3 * 4 = 12 apples.\nThen 12 + 2 = 14 apples.\nThe answer is 14."
OTHER = "4 + 4 + 4 = 12, and 12 + 2 = 14.\nThe answer is 14."
SAME = "There are 4 x 3 = 12 in bags.\nShe has 2 + 12 = 14.\nThe answer is 14."
WRONG = "3 + 4 + 2 = 9.\nThe answer is 9."


def test_right_and_distinct_solutions_are_kept(tmp_path: Path) -> None:
    replies = by_draw(RIGHT, WRONG, SAME, OTHER, "cut: 3 * 4 = 12, 12 + 2 = 14", "no idea", "lost")
    rows, manifest, teacher = built(tmp_path, apples(tmp_path), replies, k=7)
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": "14", "reasoning_content": text}]
        for text in ("First 3 * 4 = 12 apples.\nThen 12 + 2 = 14 apples.", "4 + 4 + 4 = 12, and 12 + 2 = 14.")
    ]
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": QUESTION}]] * 2
    assert {row["id"] for row in rows} == {"train/train/0/0", "train/train/0/1"} or len(
        {row["id"] for row in rows}
    ) == 2
    assert rows[0]["answer"] == "14" and rows[0]["source"] == "gsm8k-cot"
    assert rows[0]["meta"]["teacher"] == "scripted" and rows[0]["meta"]["strategy"] == "zero_shot_cot"
    assert rows[0]["meta"]["parent"] and rows[0]["meta"]["kind"] == "number"
    assert dropped(manifest) == {
        "wrong_answer": 1, "same_path": 1, "truncated": 1, "no_answer": 1, "endpoint_refused": 1
    }  # fmt: skip
    assert {request.sample for request in teacher.asked} == set(range(7))
    assert {request.temperature for request in teacher.asked} == {0.7}


def test_at_most_so_many_paths(tmp_path: Path) -> None:
    third = "12 + 2 = 14 as 3 * 4 = 12 and 14 - 2 = 12.\nThe answer is 14."
    rows, manifest, _ = built(tmp_path, apples(tmp_path), by_draw(RIGHT, third, OTHER), k=3, max_paths=2)
    assert len(rows) == 2 and dropped(manifest) == {"not_chosen": 1}
    kept = " ".join(row["completion"][0]["reasoning_content"] for row in rows)
    assert "14 - 2" in kept and "4 + 4 + 4" in kept  # RIGHT lies between the two


def test_gold_mode_asks_nobody(tmp_path: Path) -> None:
    rows, manifest, teacher = built(tmp_path, apples(tmp_path), mode="gold")
    assert rows[0]["completion"][0]["reasoning_content"] == "Bags: 3*4 = 12.\nAll: 12+2 = 14 apples."
    assert teacher.asked == [] and manifest["counts"]["extra"] == {"notes": 2, "notes_wrong": 0, "verified": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("3*4 = <<3*4=12>>12.\n12-2 = <<12-2=10>>10 apples.\n#### 14", "answer_not_reached"),
        ("3*4 = <<3*4=13>>13.\n13+1 = <<13+1=14>>14 apples.\n#### 14", "wrong_note"),
        ("14 apples.\n#### 14", "no_rationale"),
        ("2+3 = <<2+3=5>>5. The total is 5, not 14.\n#### 14", "answer_not_reached"),
        ("3+4 = <<3+4=7>>7. So she pays 7 dollars for 14 pens.\n#### 14", "answer_not_reached"),
        ("2+3 = 5. So she has 14 apples.\n#### 14", "answer_not_reached"),
    ],
)
def test_gold_that_does_not_hold_is_dropped(tmp_path: Path, answer: str, reason: str) -> None:
    rows, manifest, _ = built(tmp_path, apples(tmp_path, answer), mode="gold")
    assert rows == [] and dropped(manifest) == {reason: 1}


def test_gold_that_only_its_last_sentence_names_is_counted(tmp_path: Path) -> None:
    """Among other numbers, and one of the results; or where nothing is computed at all."""
    told = "7*2 = <<7*2=14>>14 and 4*13 = <<4*13=52>>52.\nShe takes 14 because 14 < 52.\n#### 14"
    for number, answer in enumerate((told, "Twelve and two more are 14 apples, all from 3 bags.\n#### 14")):
        rows, manifest, _ = built(tmp_path / str(number), apples(tmp_path, answer), mode="gold")
        assert len(rows) == 1 and manifest["counts"]["extra"]["gold_rescued"] == 1


def test_a_gold_rationale_with_another_letter_is_dropped(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["A)3", "B)4"], "rationale": "2+2 = 4. Answer B", "correct": "A"}
    rows, manifest, _ = built(tmp_path, write_rows(tmp_path / "train.jsonl", [row]), mode="gold")
    assert rows == [] and dropped(manifest) == {"answer_not_reached": 1}


def test_gold_and_teacher_together(tmp_path: Path) -> None:
    rows, manifest, _ = built(tmp_path, apples(tmp_path), by_draw(RIGHT, OTHER), mode="both", k=2, notes="keep")
    assert [row["meta"]["from"] for row in rows] == ["gold", "teacher"] and dropped(manifest) == {"same_path": 1}
    assert "<<3*4=12>>" in rows[0]["completion"][0]["reasoning_content"]


def test_notes_as_tool_calls(tmp_path: Path) -> None:
    rows, _, _ = built(tmp_path, apples(tmp_path), mode="gold", notes="tool_calls")
    roles = [message["role"] for message in rows[0]["completion"]]
    assert roles == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert rows[0]["tools"][0]["function"]["name"] == "calculator"
    loaded = load_examples(str(tmp_path / "out"), columns=("prompt", "completion", "tools", "answer", "id"))
    assert loaded.dataset[0]["completion"] == rows[0]["completion"]


def test_label_and_rationale_are_two_tasks(tmp_path: Path) -> None:
    rows, _, _ = built(tmp_path, apples(tmp_path), mode="gold", form="label_rationale")
    assert [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows] == [
        (f"[label] {QUESTION}", "14"),
        (f"[rationale] {QUESTION}", "Bags: 3*4 = 12.\nAll: 12+2 = 14 apples."),
    ]
    assert [row["answer"] for row in rows] == ["14", None]
    assert [row["meta"]["task"] for row in rows] == ["label", "rationale"]


@pytest.mark.parametrize(("language", "words"), [("en", "Now give the final answer"), ("zh", "现在只给出最终答案")])
def test_two_turns(tmp_path: Path, language: Any, words: str) -> None:
    rows, _, _ = built(tmp_path, apples(tmp_path), mode="gold", form="two_turn", language=language)
    rationale, label = rows
    assert len(rationale["prompt"]) == 1 and len(label["prompt"]) == 3
    assert label["prompt"][:1] == rationale["prompt"]
    assert label["prompt"][1] == rationale["completion"][0]
    assert words in label["prompt"][2]["content"] and label["completion"][0]["content"] == "14"


def test_chinese(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", [{"question": "三袋各四个苹果，另有两个，一共几个？", "answer": "14"}])
    replies = by_draw("袋中有3×4=12个。\n一共12+2=14个。\n答案是14。", "4×3=12，2+12=14。\n答案是14。")
    rows, manifest, teacher = built(tmp_path, data, replies, k=2, language="zh")
    assert rows[0]["completion"][0]["reasoning_content"] == "袋中有3×4=12个。\n一共12+2=14个。"
    assert dropped(manifest) == {"same_path": 1} and "一步一步" in teacher.texts[0]


def test_process_steps_have_the_value_of_their_rollouts(tmp_path: Path) -> None:
    def answer(text: str, draw: int) -> str:
        if "Steps so far" not in text:
            return RIGHT if draw == 0 else "First 3 * 4 = 12 apples.\nThen 12 - 2 = 10 apples.\nThe answer is 10."
        if "12 - 2" in text:
            return "The answer is 10."
        return "The answer is 14." if draw < (1 if "12 + 2" not in text else 4) else "The answer is 11."

    rows, manifest, _ = built(tmp_path, apples(tmp_path), answer, k=2, form="process", rollouts=4)
    right, wrong = rows
    assert right["prompt"] == QUESTION and right["label"] is True and wrong["label"] is False
    assert right["completions"] == ["First 3 * 4 = 12 apples.", "Then 12 + 2 = 14 apples.", "The answer is 14."]
    assert right["meta"]["step_values"] == [0.25, 1.0, 1.0] and right["labels"] == [True, True, True]
    assert wrong["meta"]["step_values"] == [0.25, 0.0, 0.0] and wrong["labels"] == [True, False, False]
    assert manifest["counts"]["extra"]["rollouts"] == 16
    soft, _, _ = built(tmp_path / "s", apples(tmp_path), answer, k=2, form="process", rollouts=4, estimate="soft")
    assert [row["labels"] for row in soft] == [[False, True, True], [False, False, False]]
    loaded = load_examples(
        str(tmp_path / "out"), format="stepwise", columns=("prompt", "completion", "meta", "id"), require_answer=False
    )
    assert loaded.dataset[0]["meta"]["steps"] == right["completions"]


CALL = 'Thought: multiply\nAction: calculator\nAction Input: {"expression": "3*4+2"}'
IN_ONE = "3 * 4 = 12, 12 + 2 = 14. The answer is 14."
REPLIES: dict[str, list[tuple[str, str]]] = {
    "direct": [("Reply with the answer alone", "14")],
    "least_to_most": [
        ("simpler questions have to", "1. How many?"),
        ("First:", "3 * 4 = 12"),
        ("whole problem", RIGHT),
    ],
    "skeleton_of_thought": [("only the skeleton", "1. bags"), ("Write out point", IN_ONE)],
    "tree_of_thoughts": [("Propose up to", f"1. {IN_ONE}"), ("lead to the right", "sure")],
    "react": [("Observation", "Thought: 3*4+2 = 14 it is.\nFinal Answer: 14"), ("apples has she", CALL)],
    "reflexion": [("", RIGHT)],
    "json_answer": [("", json.dumps({"reasoning": "3 * 4 = 12, 12 + 2 = 14", "answer": "14"}))],
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_rows(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"shots": 1} if name == "few_shot" else {}
    data = write_rows(
        tmp_path / "train.jsonl",
        [
            {"question": QUESTION, "answer": "3*4+2 = 14\n#### 14"},
            {"question": "How much is 1+1?", "answer": "1+1 = 2\n#### 2"},
        ],
    )
    replies = in_order(REPLIES.get(name, [("Now give the final", "14"), ("Therefore", "14."), ("", RIGHT)]), RIGHT)
    thoughts = "3 * 4 = 12 and 12 + 2 = 14" if name == "direct" else None
    rows, manifest, _ = built(tmp_path, data, replies, reasoning=thoughts, strategy=name, k=1, limit=1, **options)
    assert len(rows) == 1, dropped(manifest)
    message = rows[0]["completion"][-1]
    assert message["content"] == "14" and "3 * 4" in message["reasoning_content"].replace("3*4", "3 * 4")
    assert "answer is" not in message["reasoning_content"].lower() or name in ("skeleton_of_thought",)
    assert rows[0]["meta"]["strategy"] == name


def test_rationalisation_where_no_solution_is_right(tmp_path: Path) -> None:
    replies = in_order([("right answer is 14", RIGHT)], WRONG)
    rows, manifest, _ = built(tmp_path, apples(tmp_path), replies, k=2, rationalize=1)
    assert len(rows) == 1 and manifest["counts"]["extra"]["explained"] == 1
    assert (rows[0]["meta"]["from"], rows[0]["meta"]["strategy"]) == ("rationalized", "rationalize")
    honest, _, _ = built(tmp_path / "honest", apples(tmp_path), by_draw(WRONG, RIGHT), k=2, rationalize=1)
    assert (honest[0]["meta"]["from"], honest[0]["meta"]["strategy"]) == ("teacher", "zero_shot_cot")
    told = in_order([("right answer is 14", "As the given answer is 14, 12 + 2 = 14.\nThe answer is 14.")], WRONG)
    rows, manifest, _ = built(tmp_path / "leak", apples(tmp_path), told, k=1, rationalize=1)
    assert rows == [] and dropped(manifest)["hint_leak"] == 1


def test_pictures_and_choices_reach_the_teacher(tmp_path: Path) -> None:
    image = cell(picture(8, 8))["bytes"]
    (tmp_path / "a.png").write_bytes(image)
    row = {
        "question": "What colour is it?", "choices": ["red", "green"], "answer": 1, "hint": "Look.", "image": "a.png",
        "lecture": "Colours differ.", "solution": "It is green.", "id": "7",
    }  # fmt: skip
    data = write_rows(tmp_path / "train.jsonl", [row])
    replies = by_draw("The picture is green.\nThe answer is B.")
    rows, _, teacher = built(tmp_path, data, replies, k=1)
    assert [bytes(image) for image in teacher.asked[0].images] == [image]
    assert teacher.texts[0].count("green") == 1 and "B) green" in teacher.texts[0]
    assert rows[0]["images"][0]["bytes"] == image and rows[0]["completion"][0]["content"] == "B"
    assert rows[0]["prompt"][0]["content"][0] == {"type": "image"}
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="missing_image"):
        built(tmp_path / "again", data, replies, k=1)


def test_a_failing_server_fails_the_task(tmp_path: Path) -> None:
    rows, manifest, _ = built(tmp_path, apples(tmp_path), by_draw(RIGHT, "down"), k=2)
    assert rows == [] and manifest["counts"]["tasks"]["failed"] == 1


def test_false_equations_are_dropped_on_request(tmp_path: Path) -> None:
    text = by_draw("3 * 4 = 13, and so 12 + 2 = 14.\nThe answer is 14.")
    assert len(built(tmp_path, apples(tmp_path), text, k=1)[0]) == 1
    rows, manifest, _ = built(tmp_path / "x", apples(tmp_path), text, k=1, false_equations="drop")
    assert rows == [] and dropped(manifest) == {"false_equation": 1}


@pytest.mark.parametrize(
    ("text", "problem", "expected"),
    [
        ("2+2 = 4\nSo the answer is 4.", Problem(question="q", gold="4"), "2+2 = 4"),
        ("2+2 = 4\n#### 4", Problem(question="q", gold="4"), "2+2 = 4"),
        ("2+2 = 4\nThe answer is 5.", Problem(question="q", gold="4"), "2+2 = 4\nThe answer is 5."),
        ("x = 250 m. Answer D", Problem(question="q", gold="D", choices=list("vwxyz")), "x = 250 m."),
        ("Thus $\\boxed{\\frac{1}{2}}$ of it.", Problem(question="q", gold="1/2"), "Thus $\\frac{1}{2}$ of it."),
        ("( ( 8.0 - 3.0 ) / 2.0 )", Problem(question="q", gold="2.5"), "(8 - 3) / 2 = 2.5"),
        ("Look:\n[asy]\ndraw();\n[/asy]\n\n\n\nSo  it is.", Problem(question="q", gold="4"), "Look:\nSo  it is."),
        ("所以3+4=7。\n答案是7。", Problem(question="q", gold="7"), "所以3+4=7。"),
    ],
)
def test_cleaning(text: str, problem: Problem, expected: str) -> None:
    assert cleaned(text, problem) == expected


def test_standing_of_a_rationale() -> None:
    number = Problem(question="q", gold="7")
    assert standing("Thus 6:07 AM is 7 minutes after 6:00 AM.", number) == "rescued"
    assert standing("So x = 7 days, of 30 in all.", number) == standing("The answer is 7.", number) == "reached"
    assert standing("6/2 = 3 + 4 = 7, of 30.", number) == "reached"
    assert standing("It is 3 + 3 = 7 - 1 in 7 days.", number) == "rescued", "7 begins an expression, it is no result"
    assert standing("3+3 = 6, in 7 days.", number) == "contradicts"
    assert standing("It is 3+3 = <<3+3=6>>6.", number) == "contradicts"
    assert standing("Nothing.", number) == "silent"
    letter = Problem(question="q", gold="B", choices=["x", "y"])
    assert standing("So y it is. Answer A", letter) == "contradicts"
    assert standing("Magnets attract iron filings strongly.", letter) == "silent"
    assert steps_of("One is 1.5 m. Two more. 那么三。四！") == ["One is 1.5 m.", "Two more.", "那么三。", "四！"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"strategy": "zero_shot_cott"}, "zero_shot_cot"),
        ({"strategy": "few_shot"}, "--shots"),
        ({"form": "process", "notes": "tool_calls"}, "steps of text"),
        ({"form": "process", "notes": "keep"}, "steps of text"),
        ({"form": "process", "rationalize": 2}, "rationalize needs another form"),
        ({"form": "process", "max_paths": 2}, "max_paths needs another form"),
        ({"form": "process", "false_equations": "drop"}, "false_equations needs another form"),
        ({"mode": "gold", "rationalize": 2}, "rationalize asks a teacher"),
        ({"soft_threshold": 0.0}, "soft_threshold"),
    ],
)
def test_wrong_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cot(CotOptions(out=tmp_path / "out", source=[apples(tmp_path)], **options))


def test_sets_that_can_not_serve(tmp_path: Path) -> None:
    bare = write_rows(tmp_path / "bare.jsonl", [{"prompt": "Why?"}])
    with pytest.raises(DataError, match="no row has an answer"):
        built(tmp_path, bare)
    plain = write_rows(tmp_path / "plain.jsonl", [{"question": "1+1?", "answer": "2"}])
    with pytest.raises(DataError, match="no row has a rationale"):
        built(tmp_path, plain, mode="gold")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        built(tmp_path, str(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é?", "answer": "#### 2"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        built(tmp_path, str(tmp_path / "latin.jsonl"))


def test_all_gold_rationales_of_gsm8k(shared_data: Path, tmp_path: Path) -> None:
    """7,473 rows: no wrong note, 67 rationales that don't come to their own answer, all others verified."""
    rows, manifest, _ = built(tmp_path, str(shared_data / "gsm8k" / "train.jsonl"), mode="gold")
    assert manifest["counts"]["extra"] == {"notes": 23716, "notes_wrong": 0, "gold_rescued": 10, "verified": 7406}
    assert dropped(manifest) == {"answer_not_reached": 67} and len(rows) == 7406
    for row in rows:
        assert verify(row["completion"][0]["content"], row["answer"], "number").correct and is_verified(row)  # type: ignore[arg-type]
        assert "<<" not in row["completion"][0]["reasoning_content"]
