"""Texts, prompts and what is read back: the same fields in both languages, nothing filled twice, nothing guessed."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from mmreason.answers import extract
from mmreason.prompting.prompts import (
    TEXTS,
    Prompt,
    answer_after,
    answer_trigger,
    ask,
    assistant,
    fill,
    user,
    with_shots,
)
from mmreason.prompting.reading import items, verdict
from mmreason.prompting.texts import Texts
from mmreason.prompting.types import Problem, Shot
from mmreason.types import DataError

EN, ZH = TEXTS["en"], TEXTS["zh"]
FIELDS = [each.name for each in dataclasses.fields(Texts)]


def placeholders(value: Any) -> Any:
    if isinstance(value, str):
        return set(re.findall(r"\{\w+\}", value))
    return (
        {key: placeholders(text) for key, text in value.items()}
        if isinstance(next(iter(value.values())), str)
        else None
    )


@pytest.mark.parametrize("name", FIELDS)
def test_both_languages_have_the_same_placeholders(name: str) -> None:
    english, chinese = getattr(EN, name), getattr(ZH, name)
    assert placeholders(english) == placeholders(chinese)
    if name == "value_words":
        assert list(english.values()) == list(chinese.values()) == [20.0, 1.0, 0.001]


@pytest.mark.parametrize("name", FIELDS)
def test_documented_placeholders_are_the_ones_used(name: str) -> None:
    value = getattr(EN, name)
    if not isinstance(value, str) or not placeholders(value):
        return
    doc = " ".join((Texts.__doc__ or "").split())
    described = re.search(rf"\b{name}: (.*?)(?= \w+: |$)", doc)
    if described is None:  # named together with its neighbour ("plan, plan_plus: the triggers of ...")
        raise AssertionError(f"Texts.__doc__ says nothing of {name}")
    named = set(re.findall(r"\{\w+\}", described[1]))
    assert placeholders(value) - named <= {"{question}", "{trigger}", "{steps}"}, (name, named)


def test_every_kind_has_its_words() -> None:
    for texts in TEXTS.values():
        assert set(texts.forms) == set(texts.answer_triggers) == {"number", "math", "choice", "yesno", "text", None}


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("number", "42"), ("choice", "B"), ("yesno", "yes"), ("math", "x^2+1"), ("text", "the nucleus")],
)
def test_an_answer_in_the_wanted_form_is_read_strictly(kind: Any, answer: str) -> None:
    """What the prompts ask the model to end with is what the verifier reads as an explicit answer."""
    for texts in TEXTS.values():
        words = {"yes": "是"}.get(answer, answer) if texts is ZH else answer
        text = "steps first\n" + fill(texts.bare_shot, answer=words)
        found = extract(text, kind, ["a", "b", "c"] if kind == "choice" else None).strict
        assert found == {"是": "yes"}.get(words, words)


def test_values_are_filled_once() -> None:
    assert fill("{a} {b} {c} \\frac{1}{2}", a="{b}", b="{a}") == "{b} {a} {c} \\frac{1}{2}"
    prompt = ask("{question} {x}", Problem(question="{x} \\text{x} {question} {finish}"), EN, x="{question}")
    assert prompt.messages[0]["content"] == "{x} \\text{x} {question} {finish} {question}"


def test_images_of_a_plain_question_come_first() -> None:
    prompt = ask("Look. {question} Well?", Problem(question="What is it?", images=(b"1", b"2")), EN)
    assert prompt == Prompt(
        (
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "image"},
                    {"type": "text", "text": "Look. What is it? Well?"},
                ],
            },
        ),
        (b"1", b"2"),
    )


def test_image_parts_stay_where_they_are() -> None:
    question = [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}, {"type": "text", "text": "?"}]
    problem = Problem(question=question, images=(b"1", b"2"), choices=("left", "right"), kind="choice")  # type: ignore[arg-type]
    (message,) = ask("A: {question}\nB", problem, EN).messages
    assert message["content"] == [
        {"type": "text", "text": "A: "},
        {"type": "image"},
        {"type": "text", "text": " or "},
        {"type": "image"},
        {"type": "text", "text": "?\nOptions:\nA) left\nB) right\nB"},
    ]
    assert question[1] == {"type": "text", "text": " or "}  # the caller's own parts are not written to


def test_parts_without_an_image_are_a_plain_text() -> None:
    problem = Problem(question=[{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])
    assert ask("{question}!", problem, EN).messages == ({"role": "user", "content": "one two!"},)


@pytest.mark.parametrize("images", [(), (b"1", b"2")])
def test_images_and_parts_must_match(images: tuple[bytes, ...]) -> None:
    question = [{"type": "text", "text": "What is "}, {"type": "image"}]
    with pytest.raises(DataError, match=rf"row3.*1 image parts, but {len(images)} images") as caught:
        ask("{question}", Problem(question=question, images=images, id="row3"), EN)  # type: ignore[arg-type]
    assert (caught.value.row, caught.value.reason) == ("row3", "image_count")


def test_shots_bring_their_images_in_order() -> None:
    shots = (Shot(question="a", answer="1", images=(b"a",)), Shot(question="b", answer="2", reasoning="so"))
    prompt = with_shots(shots, EN, ask("{question}", Problem(question="c", images=(b"c",)), EN))
    assert prompt.images == (b"a", b"c")
    assert [message["role"] for message in prompt.messages] == ["user", "assistant"] * 2 + ["user"]
    assert prompt.messages[1] == assistant("The answer is 1.") and prompt.messages[2] == user("b")
    assert prompt.messages[3] == assistant("so\nThe answer is 2.")


def test_labels_of_options_are_not_doubled() -> None:
    problem = Problem(question="Which?", choices=("A) one", "B) two"))
    assert ask("{question}", problem, EN).messages[0]["content"] == "Which?\nOptions:\nA) one\nB) two"


def test_more_options_than_letters_are_refused() -> None:
    with pytest.raises(DataError, match="row3: 27 options, but only 26 letters"):
        ask("{question}", Problem(question="Which?", choices=[str(i) for i in range(27)], id="row3"), EN)


def test_answer_triggers_name_the_options_that_there_are() -> None:
    """As published for AQuA-RAT's five options in arXiv:2205.11916."""
    five = Problem(question="Which?", choices=("1", "2", "3", "4", "5"))
    assert answer_trigger(five, EN) == "Therefore, among A through E, the answer is"
    assert answer_trigger(five, ZH) == "因此，在A到E中，答案是"
    assert answer_trigger(Problem(question="Which? A) 1 B) 2", kind="choice"), EN) == "Therefore, the answer is"
    assert answer_trigger(Problem(question="Is it?", kind="yesno"), EN) == "Therefore, the answer (Yes or No) is"


def test_kind_is_inferred_as_the_verifier_does() -> None:
    assert Problem(question="?").answer_kind is None
    assert Problem(question="?", gold="12").answer_kind == "number"
    assert Problem(question="?", choices=("a", "b")).answer_kind == "choice"
    assert Problem(question="?", gold="12", kind="text").answer_kind == "text"


@pytest.mark.parametrize(
    ("reply", "kind", "answer"),
    [
        ("42.", "number", "42"),
        ("42 because 6 * 7 are 42 and 3 is no factor", "number", "42"),  # the first, as in the paper
        ("Well, 6 * 7 = 42, so \\boxed{42}", "number", "42"),
        ("(C) the liver", "choice", "C"),
        ("C", "choice", "C"),
        ("No, it isn't.", "yesno", "no"),
        ("$x^2$", "math", "x^2"),
        ("I don't know", "number", None),
    ],
)
def test_answer_after(reply: str, kind: Any, answer: str | None) -> None:
    problem = Problem(question="?", kind=kind, choices=("a", "b", "the liver") if kind == "choice" else None)
    found = answer_after("The answer is", reply, problem)
    assert found == answer or (found or "").strip(".$") == answer


class TestExamples:
    def test_a_row(self) -> None:
        parts = [{"type": "image"}, {"type": "text", "text": "Which?"}]
        row: Any = {
            "prompt": [{"role": "user", "content": parts}],
            "images": [b"1"],
            "answer": "B",
            "id": "7",
            "meta": {"kind": "choice", "choices": ["x", "y"]},
        }
        problem = Problem.from_example(row)
        assert (problem.question, problem.images, problem.gold, problem.id) == (parts, (b"1",), "B", "7")
        assert (problem.kind, problem.choices) == ("choice", ["x", "y"])
        assert Problem.from_example({"prompt": "What?"}) == Problem(question="What?")

    @pytest.mark.parametrize("roles", [[], ["system", "user"], ["user", "assistant", "user"], ["assistant"]])
    def test_a_conversation_is_refused(self, roles: list[str]) -> None:
        row: Any = {"prompt": [{"role": role, "content": "x"} for role in roles], "id": "7"}
        with pytest.raises(DataError, match="row 7: a strategy needs a prompt of one user message"):
            Problem.from_example(row)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1. one\n2. two", ["one", "two"]),
        ("Sure!\n 1) one\n(2) two\n\n3、三\n4．四\n5.五", ["one", "two", "三", "四", "五"]),
        ("- one\n* two\n• three", ["one", "two", "three"]),
        ("**1.** one\n2. **two**\n> 3. three", ["one", "two", "three"]),
        ("3.5 kg of rice\n10:30 is the time\n1984 was a year\n-5 degrees", []),
        ("1.\n2. ", []),
        ("no list", []),
        ("", []),
    ],
)
def test_items(text: str, found: list[str]) -> None:
    assert items(text) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sure", 20.0),
        ("All fits.\n**Sure.**\n", 20.0),
        ("Verdict: likely", 1.0),
        ("impossible", 0.001),
        ("It is not sure", None),
        ("sure or likely", None),
        ("unlikely", None),
        ("sure\nbut then again", None),
        ("", None),
    ],
)
def test_verdict(text: str, value: float | None) -> None:
    assert verdict(text, EN.value_words) == value


@pytest.mark.parametrize(
    ("text", "value"), [("肯定。", 20.0), ("判断：可能", 1.0), ("不可能", 0.001), ("不肯定", None), ("也许", None)]
)
def test_chinese_verdict(text: str, value: float | None) -> None:
    assert verdict(text, ZH.value_words) == value
