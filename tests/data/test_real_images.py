"""Every row and every image of the real files, with golds worked out anew. Skipped without the data."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from mmreason.answers import check_gold
from mmreason.data import load_examples
from mmreason.data.formats import FORMATS
from mmreason.data.formats.pictures import count_image_parts
from mmreason.data.images import load_image
from tests.image_rows import ALL, IMAGE, said, text, user


@pytest.mark.parametrize(
    ("name", "format", "kinds", "dropped"),
    [
        ("images/scienceqa_test_400.parquet", "scienceqa", {"choice": 400}, {}),
        ("images/tabmwp_dev_500.parquet", "tabmwp", {"number": 372, "choice": 128}, {}),
        ("images/geometry3k_10.parquet", "geometry3k", {"choice": 10}, {}),
        ("images/mathv_120.parquet", "mathvision", {"number": 67, "choice": 53}, {}),
        ("images/nlvr_dev_989.parquet", "nlvr", {"yesno": 989}, {}),
        ("images/easyvqa_test_500.parquet", "easyvqa", {"yesno": 1805 + 1790, "text": 4823 - 3595}, {}),
        ("scienceqa/minitrain_1000_cot.jsonl", "scienceqa", {"choice": 530}, {"missing_image": 470}),
        ("scienceqa/problems_150_full_fields.jsonl", "scienceqa", {"choice": 83}, {"missing_image": 67}),
        ("scienceqa/test_text.jsonl", "scienceqa", {"choice": 2124}, {"missing_image": 1807}),
    ],
)
def test_whole_file(shared_data: Path, name: str, format: str, kinds: dict[str, int], dropped: dict[str, int]) -> None:
    loaded = load_examples(str(shared_data / name), columns=ALL, on_bad_row="drop")
    assert (loaded.format, loaded.dropped) == (format, dropped)
    assert Counter(meta["kind"] for meta in loaded.dataset["meta"]) == kinds
    assert len(set(loaded.dataset["id"])) == sum(kinds.values())
    for row in loaded.dataset:
        assert count_image_parts(row["prompt"]) == len(row["images"])
        assert check_gold(row["answer"], row["meta"]["kind"], row["meta"]["choices"]) is None


def raw(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["scienceqa_test_400", "tabmwp_dev_500", "geometry3k_10", "mathv_120", "nlvr_dev_989"])
def test_each_image_opens_as_pillow_opens_it(shared_data: Path, name: str) -> None:
    path = shared_data / "images" / f"{name}.parquet"
    loaded = load_examples(str(path), columns=("images",)).dataset
    for row, images in zip(raw(path), loaded["images"], strict=True):
        (cell,) = images
        with PIL.Image.open(io.BytesIO(row["image"]["bytes"])) as opened:
            if not opened.has_transparency_data:
                assert (np.asarray(load_image(cell)) == np.asarray(opened.convert("RGB"))).all()
            assert load_image(cell).size == opened.size


def test_scienceqa_golds_and_prompts(shared_data: Path) -> None:
    path = shared_data / "images/scienceqa_test_400.parquet"
    dataset = load_examples(str(path), columns=ALL, prompt_template="none").dataset
    for row, example in zip(raw(path), dataset, strict=True):
        assert example["answer"] == "ABCDE"[row["answer_idx"]] and example["meta"]["choices"] == row["choices"]
        options = "".join(f"\n({'ABCDE'[i]}) {choice}" for i, choice in enumerate(row["choices"]))
        assert example["prompt"] == user(IMAGE, text(row["question"] + options))


def test_scienceqa_three_dresses_give_one_question(shared_data: Path) -> None:
    """Where two of the files hold the same problem, its prompt, gold and reasoning are the same."""

    def rows(name: str) -> dict[str, Any]:
        found = [row for row in raw(shared_data / "scienceqa" / f"{name}.jsonl") if not row.get("has_image")]
        return {row["id"]: FORMATS["scienceqa"].parse(row, 0) for row in found}

    def reasoning(row: Any) -> str:
        return "".join(row["completion"][0].get("reasoning_content", "").split())

    official, one_text, test = rows("problems_150_full_fields"), rows("minitrain_1000_cot"), rows("test_text")
    assert len(official.keys() & one_text.keys()) >= 3 and len(official.keys() & test.keys()) >= 20
    for name in official.keys() & one_text.keys():
        for column in ("prompt", "answer"):
            assert official[name][column] == one_text[name][column]
        assert reasoning(official[name]) == reasoning(one_text[name])
    for name in official.keys() & test.keys():
        assert official[name]["answer"] == test[name]["answer"]
        if "\nContext:" not in said(official[name]):  # the test rows have the context first
            assert official[name]["prompt"] == test[name]["prompt"]


def test_scienceqa_reasoning_is_lecture_and_solution(shared_data: Path) -> None:
    path = shared_data / "scienceqa/problems_150_full_fields.jsonl"
    dataset = load_examples(str(path), columns=ALL, on_bad_row="drop").dataset
    rows = {row["id"]: row for row in raw(path)}
    for example in dataset:
        row = rows[example["id"]]
        wanted = "\n".join(part.strip() for part in (row["lecture"], row["solution"]) if part.strip())
        (message,) = example["completion"]
        assert message["content"] == example["answer"] == "ABCDE"[row["answer"]]
        assert message.get("reasoning_content", "") == wanted
        assert example["meta"]["subject"] == row["subject"] and example["meta"]["split"] == row["split"]
        lines = said(example).split("\n")
        assert not row["hint"] or f"Context: {row['hint'].strip()}".split("\n")[0] in lines


def test_tabmwp_golds_and_units(shared_data: Path) -> None:
    path = shared_data / "images/tabmwp_dev_500.parquet"
    for row, example in zip(raw(path), load_examples(str(path), columns=ALL).dataset, strict=True):
        if row["choices"]:
            assert row["choices"]["ABCDEF".index(example["answer"])] == row["answer"]
        else:
            assert example["answer"] == row["answer"].replace(",", "")
        assert example["meta"].get("unit") == row["unit"]
        assert not row["unit"] or f"(Unit: {row['unit']})" in said(example)
        assert row["table"] not in said(example)  # it is in the picture


def test_mathvision_golds_and_places(shared_data: Path) -> None:
    path = shared_data / "images/mathv_120.parquet"
    for row, example in zip(raw(path), load_examples(str(path), columns=ALL).dataset, strict=True):
        boxed = re.search(r"\\boxed\{(.*)\}", row["answer"])
        assert example["answer"] == (boxed[1] if boxed else row["answer"])
        before = re.split(r"<image\d>", row["question"])[0]
        content = example["prompt"][0]["content"]
        assert content[1 if before.strip() else 0] == IMAGE
        assert not before.strip() or content[0]["text"].split() == before.split()
        assert "<image" not in said(example) and "\n(A) A\n" not in said(example) and "(A) (A)" not in said(example)


def test_easyvqa_gives_each_question_its_picture(shared_data: Path) -> None:
    path = shared_data / "images/easyvqa_test_500.parquet"
    loaded = load_examples(str(path), columns=ALL, split="train[:20]", prompt_template="none")
    wanted = [
        (question, answer, row["image"]["bytes"], f"easyvqa/easyvqa_test_500/{i}/{j}")
        for i, row in enumerate(raw(path)[:20])
        for j, (question, answer) in enumerate(zip(row["questions"], row["answers"], strict=True))
    ]
    found = [
        (row["prompt"][0]["content"][1]["text"], row["answer"], row["images"][0]["bytes"], row["id"])
        for row in loaded.dataset
    ]
    assert found == wanted and loaded.rows_read == len(wanted)
