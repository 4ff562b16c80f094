"""Corrupted rationales: every number of the text is recomputed here by Python's own arithmetic."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders._preferences.corrupt import corruptions, equations_of, near_values, other_choices, restated
from data_builders._preferences.select import is_near, likeness
from mmreason.answers import verify
from mmreason.data import load_examples

EGGS = "Ana's 3 hens lay 8 eggs each. She sells them at $2. How much does she get?"
STEPS = "The hens lay 3 * 8 = 24 eggs.\nThe 24 eggs bring 24*2 = $48."


def python_steps(text: str) -> list[tuple[Fraction, Fraction]]:
    """(value of the left side, right side) of each equation, by Python's own parser and fractions."""
    found = []
    for line in re.findall(r"([\d.,$%()\s*/x×÷+−–-]+)=\s*[$€£]?\s*(-?[\d.,]*\d)", text):
        left = re.sub(r"[,$€£\s]", "", re.split(r"[,.:]\s|\n", line[0])[-1]).translate(str.maketrans("x×÷−–", "**/--"))
        left = re.sub(r"([\d.]+)%", r"(\1/100)", left).strip(".")
        left = re.sub(r"\d*\.?\d+", lambda number: f"Fraction('{number[0]}')", left)
        found.append((Fraction(eval(left, {"Fraction": Fraction})), Fraction(line[1].replace(",", ""))))  # noqa: S307
    return found


def test_a_slip_goes_on_into_the_steps_and_the_answer() -> None:
    found = corruptions(EGGS, STEPS, "48", seed="a", kinds=["slip"])
    assert not isinstance(found, str)
    first = next(one for one in found if one.step == 0)
    wrong = int(first.after.rpartition("= ")[2])
    assert first.before == "3 * 8 = 24" and wrong != 24
    assert first.reasoning == f"The hens lay 3 * 8 = {wrong} eggs.\nThe {wrong} eggs bring {wrong}*2 = ${2 * wrong}."
    assert first.answer == str(2 * wrong)
    # The same seed gives the same texts, another one others.
    assert corruptions(EGGS, STEPS, "48", seed="a", kinds=["slip"]) == found
    assert any(corruptions(EGGS, STEPS, "48", seed=str(i), kinds=["slip"]) != found for i in range(5))


def test_another_operator_and_another_operand_are_computed_rightly() -> None:
    for kind in ("operator", "operand"):
        found = corruptions(EGGS, STEPS, "48", seed="a", kinds=[kind])  # type: ignore[list-item]
        assert not isinstance(found, str)
        for one in found:
            assert all(left == right for left, right in python_steps(one.reasoning))
            assert one.answer != "48" and one.reasoning.endswith(f"${one.answer}.")


@pytest.mark.parametrize(
    ("reasoning", "answer", "why"),
    [
        ("He has some.", "4", "no_steps"),
        ("3 + 4 = 8", "8", "wrong_step"),
        ("3 + 4 = 7 = 7", "7", "unreadable_step"),
        ("x + 4 = 7", "7", "unreadable_step"),
        ("3 apples + 4 apples = 7 apples", "7", "unreadable_step"),
        ("3 + 4 = 7", "9", "answer_not_from_steps"),
        # 5 eggs are both asked about and a result: whether a later 5 is the one or the other, nobody can tell.
        ("2 + 3 = 5. Then 5 * 5 = 25.", "25", "not_corruptible"),
    ],
)
def test_what_cannot_be_corrupted_for_certain_says_why(reasoning: str, answer: str, why: str) -> None:
    question = "He has 2, 3 and 5 and 25 eggs."
    assert corruptions(question, reasoning, answer, seed="a", kinds=["slip", "operator", "operand"]) == why


def test_a_number_of_the_question_keeps_its_meaning() -> None:
    """The first result is also a number of the question, so only the second step may go wrong."""
    found = corruptions("4 boxes of 6, 24 in each truck?", "4 * 6 = 24. 24 + 24 = 48.", "48", seed="a", kinds=["slip"])
    assert not isinstance(found, str) and {one.step for one in found} == {1}


def test_every_corruption_of_real_rationales_is_wrong_in_one_step_alone(shared_data: Path) -> None:
    loaded = load_examples(
        str(shared_data / "gsm8k" / "train.jsonl"), split="train[:120]", prompt_template="none",
        columns=("prompt", "completion", "answer", "id"),
    )  # fmt: skip
    made = 0
    for row in loaded.dataset:
        question, message = row["prompt"][0]["content"], row["completion"][0]
        found = corruptions(
            question, message["reasoning_content"], row["answer"], seed=row["id"], kinds=["slip", "operator", "operand"]
        )
        for one in found if not isinstance(found, str) else ():
            made += 1
            assert not verify(one.answer, row["answer"], "number").correct
            wrong = [i for i, (left, right) in enumerate(python_steps(one.reasoning)) if left != right]
            assert wrong == ([one.step] if one.kind == "slip" else []), one
            assert python_steps(one.reasoning)[-1][1] == Fraction(one.answer)
            assert one.reasoning != message["reasoning_content"]
            # The words are the gold's: only numbers and one operator differ.
            texts = (one.reasoning, message["reasoning_content"])
            assert len({re.sub(r"[^A-Za-z]|(?<=[ \d])x(?=[ \d])", "", text) for text in texts}) == 1
    assert made > 200


def test_equations_are_read_with_their_values() -> None:
    found = equations_of("So (2 + 3) * 4 = $20. Half is 50% * 20 = 10, 1,000/8=125 and 7 − 2 = 4")
    assert found is not None
    assert [(one.result, one.value, one.is_right) for one in found] == [
        ("20", 20, True), ("10", 10, True), ("125", 125, True), ("4", 5, False),
    ]  # fmt: skip
    assert equations_of("2 + = 3") is None


@given(st.integers(-(10**6), 10**6))
def test_near_values_are_other_numbers_and_is_near_knows_them(value: int) -> None:
    found = near_values(Fraction(value))
    assert value + 1 in found and value not in found and len(set(found)) == len(found)
    assert all(is_near(str(value), str(other)) for other in found)
    assert not is_near(str(value), str(value)) and not is_near(str(value), str(value * 3 + 50021))


def test_choices_other_than_the_gold() -> None:
    found = other_choices("B", ["red", "green", "blue", "green"], seed="s")
    # D says the same as the gold, so it is no wrong answer.
    assert sorted(one.answer for one in found) == ["A", "C"] and all(one.kind == "choice" for one in found)


def test_likeness_counts_words_lengths_and_near_answers() -> None:
    same = likeness("He has 3 + 4 = 7", "He has 3 + 4 = 8", "7", "8")
    far = likeness("He has 3 + 4 = 7", "I do not know, but it could be ninety or so, who can say", "7", "90")
    assert same.near_answer and same.length == 1.0 and same.total > 0.8 > 0.3 > far.total
    assert likeness("a b c", "a b d", None, None).overlap == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "gold", "wrong", "wanted"),
    [
        ("16", "16", "20", "20"),
        ("So she has $1,600 left.", "1600", "2000", "So she has $2,000 left."),
        ("It is -5 degrees.", "-5", "-15", "It is -15 degrees."),
        ("16 eggs, that is 16.", "16", "20", None),
        ("sixteen", "16", "20", None),
        ("The answer is (B).", "B", "C", "The answer is (C)."),
        ("B", "(B)", "A", "A"),
        ("A or B? B", "B", "C", None),
    ],
)
def test_the_wrong_answer_is_told_in_the_golds_words(text: str, gold: str, wrong: str, wanted: str | None) -> None:
    assert restated(text, gold, wrong) == wanted
