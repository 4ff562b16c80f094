"""Training and held-out problems from a run's options: splits, names, what is dropped, prompts tokenized once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.data import render_prompt
from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.arguments import DataArguments
from mmreason.trainers.problems import HELD_OUT, check_problems, hold_out, load_split, set_name
from mmreason.types import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 training rows, 6 of a test split, 5 of another."""
    for split, count, start in (("train", 20, 0), ("test", 6, 100), ("unseen", 5, 200)):
        rows = [{"prompt": f"{start + i} + 1 =", "answer": str(start + i + 1)} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def load(data: DataArguments) -> tuple[Any, dict[str, Any], list[str]]:
    said: list[str] = []
    train = load_split(data, data.dataset_train_split, data.max_train_samples, said.append)
    train, held_out = hold_out(data, train, 0, said.append)
    return train, held_out, said


def questions(rows: Any) -> set[str]:
    return {prompt[0]["content"] for prompt in rows["prompt"]}


def test_named_splits(folder: Path) -> None:
    options = {"dataset_test_split": "test", "extra_test_splits": ["unseen", "test[:2]"], "eval_samples": 4}
    data = DataArguments(dataset_name=str(folder), prompt_template=None, **options)
    train, held_out, said = load(data)
    assert len(train) == 20 and list(held_out) == [HELD_OUT, "unseen", "test_2"]
    assert held_out[HELD_OUT]["answer"][:] == ["101", "102", "103", "104"]
    assert held_out["unseen"]["answer"][:] == ["201", "202", "203", "204"] and len(held_out["test_2"]) == 2
    assert len(said) == 4 and "[unseen]" in said[2]


def test_a_held_out_part_of_the_training_split(folder: Path) -> None:
    train, held_out, _ = load(DataArguments(dataset_name=str(folder), eval_samples=7, extra_test_splits=["unseen"]))
    assert len(train) == 13 and len(held_out[HELD_OUT]) == 7 and len(held_out["unseen"]) == 5
    assert not questions(train) & questions(held_out[HELD_OUT])
    # Never more than half, and a single row is left to train on.
    train, held_out, _ = load(DataArguments(dataset_name=str(folder), max_train_samples=9))
    assert len(train) == 5 and len(held_out[HELD_OUT]) == 4
    train, held_out, _ = load(DataArguments(dataset_name=str(folder), max_train_samples=1))
    assert len(train) == 1 and held_out == {}


def test_no_evaluation(folder: Path) -> None:
    train, held_out, said = load(
        DataArguments(dataset_name=str(folder), eval_samples=0, dataset_test_split="test", extra_test_splits=["unseen"])
    )
    assert len(train) == 20 and held_out == {} and len(said) == 1


@pytest.mark.parametrize("extra", [["unseen", "unseen"], ["held_out"], ["test[:2]", "test[2:]"]])
def test_two_sets_of_one_name(folder: Path, extra: list[str]) -> None:
    data = DataArguments(dataset_name=str(folder), extra_test_splits=extra)
    (folder / "held_out.jsonl").write_bytes((folder / "unseen.jsonl").read_bytes())
    with pytest.raises(ConfigError, match="two held-out sets have the name"):
        load(data)


def test_a_split_that_is_not_there(folder: Path) -> None:
    with pytest.raises(DataError, match="Did you mean split 'unseen'"):
        load(DataArguments(dataset_name=str(folder), extra_test_splits=["unsen"]))


@pytest.mark.parametrize(
    ("split", "name"), [("unseen_templates", "unseen_templates"), ("test[10%:20%]", "test_10_20"), ("a/b", "a_b")]
)
def test_names_that_files_can_have(split: str, name: str) -> None:
    assert set_name(split) == name


def test_prompts_are_tokenized_and_checked(folder: Path) -> None:
    tokenizer, said = tiny_tokenizer(), []
    long = {"id": "long", "prompt": "9" * 600, "answer": "9"}
    with (folder / "unseen.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    data = DataArguments(dataset_name=str(folder), dataset_test_split="test", extra_test_splits=["unseen"])
    train, held_out, _ = load(data)
    with pytest.raises(DataError, match="row long: "):
        check_problems(train, held_out, tokenizer, data, None, said.append)
    data.on_bad_row = "drop"
    rows, prompt_ids, sets = check_problems(train, held_out, tokenizer, data, None, said.append)
    assert prompt_ids == [render_prompt(prompt, tokenizer) for prompt in rows["prompt"]]
    assert {name: len(held.prompt_ids) for name, held in sets.items()} == {HELD_OUT: 6, "unseen": 5}
    for held in sets.values():
        assert held.prompt_ids == [render_prompt(prompt, tokenizer) for prompt in held.dataset["prompt"]]
    dropped = "dropped of the unseen problems: 1 prompt_too_long"
    assert said == [dropped, "held out: 6 held_out, 5 unseen", "20 training problems"]
