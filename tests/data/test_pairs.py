"""Preference pairs, labels, steps and prompts: TRL's types and hh-rlhf's transcripts, with TRL as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data.formats import FORMATS, RowError, detect_format
from mmreason.data.formats.hh_rlhf import read_transcript
from mmreason.data.formats.messages import common_prompt

Row = dict[str, Any]


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def model(content: str) -> Row:
    return {"role": "assistant", "content": content}


def parse(name: str, row: Row) -> Any:
    return FORMATS[name].parse(row, 0)


def refused(name: str, row: Row) -> str:
    with pytest.raises(RowError) as caught:
        parse(name, row)
    return caught.value.reason


SKY: Row = {"prompt": "The sky is", "completion": " blue."}
TALK: Row = {"prompt": [user("What colour is the sky?")], "completion": [model("Blue.")]}
STEPS: Row = {"prompt": "Which is larger?", "completions": ["9.11 > 9.8.", "So 9.11."], "labels": [True, False]}

# The examples of TRL's own page on dataset types.
TYPES: list[tuple[str, Row]] = [
    ("text", {"text": "The sky is blue."}),
    ("messages", {"messages": [user("What colour?"), model("Blue.")]}),
    ("prompt_only", {"prompt": "The sky is"}),
    ("prompt_only", {"prompt": [user("What colour?")]}),
    ("prompt_completion", SKY),
    ("prompt_completion", TALK),
    ("preference", {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
    ("preference", {"prompt": [user("a")], "chosen": [model("b")], "rejected": [model("c")]}),
    ("preference", {"chosen": "The sky is blue.", "rejected": "The sky is green."}),
    ("preference", {"chosen": [user("a"), model("b")], "rejected": [user("a"), model("c")]}),
    ("unpaired", SKY | {"label": True}),
    ("unpaired", TALK | {"label": False}),
    ("stepwise", STEPS),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
]


@pytest.mark.parametrize(("name", "row"), TYPES)
def test_types_are_found_and_read(name: str, row: Row) -> None:
    found = detect_format([row])
    assert found is not None and found.name == name
    example: Any = found.parse(row, 0)
    assert ("text" in example) == (name == "text")
    assert ("completion" in example) == (name in ("messages", "prompt_completion", "unpaired", "stepwise"))
    assert ("chosen" in example) == ("rejected" in example) == (name in ("preference", "hh_rlhf"))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("generic", {"prompt": "q", "completion": "Six times two.", "answer": "12"}),
        ("prompt_completion", TALK | {"answer": "blue"}),
        ("canonical", TALK | {"meta": {}}),
        ("canonical", {"prompt": [user("a")], "chosen": [model("b")], "rejected": [model("c")], "meta": {}}),
    ],
)
def test_detection_beside_other_forms(name: str, row: Row) -> None:
    found = detect_format([row])
    assert found is not None and found.name == name


def test_plain_text_is_kept_to_the_last_space() -> None:
    example = parse("prompt_completion", SKY | {"tools": None, "hint": "h"})
    assert example == {
        "prompt": [user("The sky is")],
        "completion": [model(" blue.")],
        "meta": {"kind": None, "choices": None, "hint": "h"},
    }


def test_a_completion_of_many_turns_ends_in_the_last() -> None:
    example = parse("prompt_completion", {"prompt": [user("a")], "completion": [model("b"), user("c"), model("d")]})
    assert example["prompt"] == [user("a"), model("b"), user("c")] and example["completion"] == [model("d")]


def test_a_prefilled_answer_stays_in_the_prompt() -> None:
    example = parse("prompt_completion", {"prompt": [user("a"), model("Let me")], "completion": [model(" see.")]})
    assert example["prompt"] == [user("a"), model("Let me")]


def test_implicit_prompts() -> None:
    plain = parse("preference", {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert plain["prompt"] == [user("The sky is")]  # not "The sky is bl"
    assert (plain["chosen"], plain["rejected"]) == ([model("blue.")], [model("black.")])
    row = {
        "chosen": [user("a"), model("b"), user("c"), model("d")],
        "rejected": [user("a"), model("b"), user("c"), model("e")],
    }
    assert parse("preference", row)["prompt"] == row["chosen"][:3]


def test_pairs_whose_sides_repeat_the_prompt() -> None:
    row = {"prompt": "a", "chosen": [user("a"), model("b")], "rejected": [user("a"), model("c")], "score_chosen": 8.5}
    example = parse("preference", row)
    assert (example["prompt"], example["chosen"], example["rejected"]) == ([user("a")], [model("b")], [model("c")])
    assert example["meta"]["score_chosen"] == 8.5


def test_question_and_system_columns() -> None:
    example = parse("preference", {"system": "s", "question": "a", "chosen": "b", "rejected": "c"})
    assert example["prompt"] == [{"role": "system", "content": "s"}, user("a")]


def test_steps() -> None:
    example = parse("stepwise", STEPS)
    assert example["completion"] == [model("9.11 > 9.8.\nSo 9.11.")]
    assert (example["meta"]["steps"], example["meta"]["step_labels"]) == (STEPS["completions"], [True, False])


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("prompt_completion", SKY | {"prompt": ""}, "missing_prompt"),
        ("prompt_completion", SKY | {"completion": " "}, "missing_completion"),
        ("prompt_completion", TALK | {"completion": [model("")]}, "empty_turn"),
        ("prompt_completion", TALK | {"completion": [{"role": "robot", "content": "b"}]}, "unknown_role"),
        ("prompt_completion", TALK | {"completion": [model("b"), user("c")]}, "missing_completion"),
        ("prompt_completion", TALK | {"completion": [{"role": "tool", "content": "b"}]}, "tool_result"),
        ("prompt_completion", TALK | {"completion": 5}, "bad_messages"),
        ("unpaired", SKY | {"label": None}, "missing_label"),
        ("unpaired", SKY | {"label": "yes"}, "bad_label"),
        ("unpaired", SKY | {"label": 1}, "bad_label"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": None}, "missing_pair"),
        ("preference", {"prompt": "a", "chosen": "", "rejected": "b"}, "missing_pair"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "bad_pair"),
        ("preference", {"prompt": "a", "chosen": [user("b")], "rejected": [model("c")]}, "bad_pair"),
        ("preference", {"chosen": [user("a"), model("b")], "rejected": [user("c"), model("b")]}, "bad_pair"),
        ("preference", {"chosen": [user("a"), model("b")], "rejected": [user("a")]}, "bad_pair"),
        ("preference", {"chosen": [model("a")], "rejected": [model("b")]}, "missing_prompt"),
        ("preference", {"chosen": "blue", "rejected": "green"}, "missing_prompt"),
        ("preference", {"chosen": "The sky", "rejected": "The sky is"}, "bad_pair"),
        ("preference", {"chosen": "The sky", "rejected": [user("a")]}, "bad_pair"),
        ("stepwise", STEPS | {"completions": []}, "missing_completion"),
        ("stepwise", STEPS | {"completions": ["a", ""]}, "empty_turn"),
        ("stepwise", STEPS | {"labels": [True]}, "bad_label"),
        ("stepwise", STEPS | {"labels": [1, 0]}, "bad_label"),
        ("prompt_only", {"prompt": None}, "missing_prompt"),
        ("text", {"text": " "}, "missing_text"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": None}, "missing_pair"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "b"}, "bad_messages"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"}, "empty_turn"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "role_order"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"}, "bad_pair"),
    ],
)
def test_bad_rows(name: str, row: Row, reason: str) -> None:
    assert refused(name, row) == reason


def test_transcripts_may_speak_of_humans() -> None:
    turns = read_transcript("\n\nHuman: Are you\nHuman: or what?\n\nAssistant:  No.\n\nI am Assistant: the one.")
    assert turns == [user("Are you\nHuman: or what?"), model("No.\n\nI am Assistant: the one.")]


# TRL as the reference

texts = st.text("ab ", min_size=1).filter(str.strip)


@settings(deadline=None)  # the first example imports TRL
@given(st.lists(texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2), texts, texts)
def test_implicit_prompts_as_trl_finds_them(turns: list[str], chosen: str, rejected: str) -> None:
    from trl.data_utils import extract_prompt

    prompt = [(user, model)[i % 2](turn) for i, turn in enumerate(turns)]
    sides: Any = ([*prompt, model(chosen)], [*prompt, model(rejected)])
    if chosen == rejected:
        with pytest.raises(RowError):
            common_prompt(*sides)
        return
    wanted = extract_prompt({"chosen": sides[0], "rejected": sides[1]})
    assert common_prompt(*sides) == (wanted["prompt"], wanted["chosen"], wanted["rejected"])


def test_hh_rlhf_as_trl_splits_it(shared_data: Path) -> None:
    """Each good row: TRL's split of the raw texts, up to the letters that both answers happen to begin with."""
    from trl.data_utils import extract_prompt

    lines = (shared_data / "preference/hh_harmless_1k.jsonl").read_text(encoding="utf-8").splitlines()
    compared = 0
    for row in map(json.loads, lines):
        try:
            example = parse("hh_rlhf", row)
        except RowError:
            continue
        theirs = extract_prompt(row)
        for side in ("chosen", "rejected"):
            spoken = theirs["prompt"] + theirs[side]
            cut = spoken.rindex("\n\nAssistant:")
            assert spoken == row[side] and cut <= len(theirs["prompt"])
            assert example[side] == [model(spoken[cut + len("\n\nAssistant:") :].strip())]
            rebuilt = "".join(
                f"\n\n{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}"
                for turn in example["prompt"]
            )
            assert rebuilt.split() == spoken[:cut].split()
        compared += 1
    assert compared == 995
