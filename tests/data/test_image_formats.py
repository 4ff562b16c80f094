"""Formats of sets with images: the hub's columns, their golds, and bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mmreason.data import load_examples
from mmreason.data.formats import FORMATS, RowError, detect_format
from mmreason.data.images import load_image
from mmreason.types import DataError
from tests.image_rows import ALL, BLUE, IMAGE, RED, jsonl_writer, parsed, said, text, user


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return jsonl_writer(tmp_path)


# The hub's columns, in parquet files as `datasets` writes them


def hub_file(tmp_path: Path, rows: list[dict[str, Any]], **features: Any) -> str:
    """A parquet file with Image columns, as on the hub: {"bytes", "path"} structs."""
    dataset = datasets.Dataset.from_list(rows)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    path = tmp_path / "test.parquet"
    dataset.to_parquet(str(path))
    return str(path)


SCIENCEQA = {
    "image": {"bytes": RED, "path": None},
    "question": "Which is farthest north?",
    "choices": ["Ohio", "Iowa", "Utah"],
    "answer": 2,
    "hint": "Look at the map.",
    "task": "closed choice",
    "grade": "grade2",
    "subject": "social science",
    "topic": "geography",
    "category": "Geography",
    "skill": "Read a map",
    "lecture": "Maps have four directions.",
    "solution": "Utah is farthest north.",
}


def test_hub_scienceqa(tmp_path: Path) -> None:
    path = hub_file(
        tmp_path, [SCIENCEQA, SCIENCEQA | {"image": None, "hint": "", "lecture": ""}], image=datasets.Image()
    )
    one, two = load_examples(path, columns=ALL, prompt_template="none").dataset
    options = "(A) Ohio\n(B) Iowa\n(C) Utah"
    assert one["prompt"] == user(IMAGE, text(f"Which is farthest north?\nContext: Look at the map.\n{options}"))
    assert two["prompt"] == [{"role": "user", "content": f"Which is farthest north?\n{options}"}]
    assert (one["answer"], one["id"], two["images"]) == ("C", "scienceqa/test/0", [])
    assert one["images"] == [{"bytes": RED, "path": None}]
    assert one["completion"] == [
        {
            "role": "assistant",
            "content": "C",
            "reasoning_content": "Maps have four directions.\nUtah is farthest north.",
        }
    ]
    assert two["completion"][0]["reasoning_content"] == "Utah is farthest north."
    assert one["meta"]["skill"] == "Read a map" and one["meta"]["grade"] == "grade2"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 3}, "bad_gold"),
        ({"answer": -1}, "bad_gold"),
        ({"answer": True}, "bad_gold"),
        ({"answer": None}, "missing_answer"),
        ({"answer": "C", "answer_idx": 1}, "bad_gold"),
        ({"choices": ["one"]}, "bad_choices"),
        ({"choices": ["one", ""]}, "bad_choices"),
        ({"question": " "}, "missing_prompt"),
        ({"has_image": True, "image": None}, "missing_image"),
    ],
)
def test_scienceqa_bad_rows(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS["scienceqa"].parse(SCIENCEQA | change, 0)
    assert caught.value.reason == reason


ONE_TEXT = {
    "id": "2",
    "image": "2/image.png",
    "caption": "c",
    "prompt": "Which (A) one?\nTell.\nContext: N/A\nOptions: (A) this (or that) (B) that",
    "response": "Because. The answer is B.",
    "answer": "B",
}


def test_scienceqa_as_one_text() -> None:
    example = parsed("scienceqa", ONE_TEXT)
    assert example["prompt"] == user(IMAGE, text("Which (A) one?\nTell.\n(A) this (or that)\n(B) that"))
    assert example["images"] == ["2/image.png"] and example["meta"]["choices"] == ["this (or that)", "that"]
    assert example["completion"] == [{"role": "assistant", "content": "B", "reasoning_content": "Because."}]
    for change, reason in (
        ({"prompt": "No options."}, "bad_choices"),
        ({"prompt": "q\nOptions: (A) a (C) c"}, "bad_choices"),
        ({"response": "The answer is A."}, "bad_gold"),
    ):
        with pytest.raises(RowError) as caught:
            FORMATS["scienceqa"].parse(ONE_TEXT | change, 0)
        assert caught.value.reason == reason


def test_scienceqa_official_folder(write: Any, tmp_path: Path) -> None:
    row = SCIENCEQA | {"id": 7, "split": "val", "image": "image.png"}
    path = write([row])
    (tmp_path / "images/val/7").mkdir(parents=True)
    (tmp_path / "images/val/7/image.png").write_bytes(BLUE)
    (example,) = load_examples(path, columns=ALL).dataset
    assert example["id"] == "7" and (np.asarray(load_image(example["images"][0])) == [0, 0, 255]).all()


TABMWP = {
    "question": "How much is a pen?",
    "choices": None,
    "answer": "1,200.50",
    "unit": "$",
    "table_title": "Prices",
    "table": "pen | $1,200.50",
    "solution": "Read it.",
    "ques_type": "free_text",
    "ans_type": "decimal_number",
    "grade": 4,
}


def test_tabmwp_with_and_without_its_picture() -> None:
    example = parsed("tabmwp", TABMWP | {"image": RED})
    assert example["prompt"] == user(IMAGE, text("How much is a pen? (Unit: $)"))
    assert (example["answer"], example["meta"]["kind"], example["meta"]["unit"]) == ("1200.50", "number", "$")
    plain = parsed("tabmwp", TABMWP)
    assert said(plain) == "Prices\npen | $1,200.50\n\nHow much is a pen? (Unit: $)" and "images" not in plain
    chosen = parsed(
        "tabmwp", TABMWP | {"choices": ["a", "b"], "answer": "b", "unit": None, "ques_type": "multi_choice"}
    )
    assert (chosen["answer"], said(chosen).split("\n")[-2:]) == ("B", ["(A) a", "(B) b"])
    with pytest.raises(RowError, match="bad_choices"):
        parsed("tabmwp", TABMWP | {"choices": ["a", "b"], "answer": "c"})


def test_hub_chartqa(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": RED, "path": None}, "query": "How many?", "label": ["14"], "human_or_machine": 0},
        {"image": {"bytes": BLUE, "path": None}, "query": "Is it?", "label": ["Yes"], "human_or_machine": 1},
    ]
    loaded = load_examples(hub_file(tmp_path, rows, image=datasets.Image()), columns=ALL, prompt_template="none")
    one, two = loaded.dataset
    assert loaded.format == "chartqa"
    assert (one["prompt"], one["answer"], one["meta"]["kind"]) == (user(IMAGE, text("How many?")), "14", "number")
    assert (two["images"][0]["bytes"], two["meta"]["kind"], two["meta"]["human_or_machine"]) == (BLUE, "yesno", 1)
    for label, reason in (([], "missing_answer"), (["a", "b"], "bad_gold"), ("a", "bad_gold")):
        with pytest.raises(RowError) as caught:
            FORMATS["chartqa"].parse({"query": "q", "label": label}, 0)
        assert caught.value.reason == reason


MATHVISTA = {
    "pid": "3",
    "question": "How long?",
    "image": "images/3.jpg",
    "decoded_image": {"bytes": RED, "path": None},
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "answer": "1.5",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"task": "geometry problem solving", "grade": "high school", "split": "testmini"},
    "query": "Hint: ...",
}


def test_hub_mathvista(tmp_path: Path) -> None:
    chosen = MATHVISTA | {"pid": "4", "choices": ["yes", "no"], "answer": "no", "unit": None, "answer_type": "text"}
    hidden = MATHVISTA | {"pid": "5", "answer": "", "answer_type": "integer"}
    path = hub_file(tmp_path, [MATHVISTA, chosen, hidden], decoded_image=datasets.Image())
    loaded = load_examples(path, columns=ALL, prompt_template="none", require_answer=False)
    one, two, three = loaded.dataset
    assert loaded.format == "mathvista" and one["images"] == [{"bytes": RED, "path": None}]
    assert one["prompt"] == user(IMAGE, text("How long? (Unit: cm) (Decimal places: 1)"))
    assert (one["answer"], one["meta"]["kind"], one["meta"]["task"]) == ("1.5", "number", "geometry problem solving")
    assert (two["answer"], said(two)) == ("B", "[image]How long?\n(A) yes\n(B) no")
    assert three["answer"] is None
    with pytest.raises(DataError, match="1 missing_answer"):
        load_examples(path, columns=ALL)


def test_hub_mathvision(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "question": "Which?\n<image1>\n<image2>",
        "options": ["A", "B", "C"],
        "image": "images/1.jpg",
        "decoded_image": {"bytes": RED, "path": None},
        "answer": "B",
        "solution": None,
        "level": 2,
        "subject": "logic",
    }
    loaded = load_examples(
        hub_file(tmp_path, [row], decoded_image=datasets.Image()), columns=ALL, prompt_template="none"
    )
    (example,) = loaded.dataset
    assert example["prompt"] == user(text("Which?\n"), IMAGE) and example["images"][0]["bytes"] == RED
    assert (example["answer"], example["meta"]["choices"]) == ("B", ["A", "B", "C"])
    with pytest.raises(RowError, match="bad_gold"):
        FORMATS["mathvision"].parse(row | {"answer": "D"}, 0)


def test_hub_geometry3k_copy_is_of_the_math_format(tmp_path: Path) -> None:
    row = {"images": [{"bytes": RED, "path": None}], "problem": "<image>Find x.", "answer": "3"}
    loaded = load_examples(hub_file(tmp_path, [row]), columns=ALL, prompt_template="none")
    (example,) = loaded.dataset
    assert loaded.format == "math" and example["prompt"] == user(IMAGE, text("Find x.")) and example["answer"] == "3"


def test_geometry3k_and_nlvr_bad_rows() -> None:
    geometry = {
        "problem_text": "Find x .",
        "compact_text": "Find x.",
        "choices": ["1", "2"],
        "answer": "b",
        "image": RED,
    }
    example = parsed("geometry3k", geometry)
    assert (said(example), example["answer"]) == ("[image]Find x.\n(A) 1\n(B) 2", "B")
    assert parsed("nlvr", {"sentence": "s", "label": True, "image": RED})["answer"] == "true"
    for name, row in (
        ("geometry3k", geometry | {"answer": "C"}),
        ("nlvr", {"sentence": "s", "label": "maybe"}),
        ("easyvqa", {"question": "q", "answer": None}),
    ):
        with pytest.raises(RowError):
            FORMATS[name].parse(row, 0)
    assert FORMATS["easyvqa"].split is not None
    for row in ({"questions": [], "answers": []}, {"questions": ["q"], "answers": ["a", "b"]}):
        with pytest.raises(RowError):
            FORMATS["easyvqa"].split(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("scienceqa", SCIENCEQA),
        ("scienceqa", ONE_TEXT),
        ("scienceqa", {"question": "q", "choices": [], "answer": "A", "answer_idx": 0, "caption": ""}),
        ("tabmwp", TABMWP),
        ("geometry3k", {"problem_text": "p", "choices": [], "answer": "A"}),
        ("mathvista", MATHVISTA),
        (
            "mathvision",
            {"question": "q", "options": [], "answer": "1", "level": 1, "subject": "s", "decoded_image": None},
        ),
        ("generic", {"question": "q", "options": [], "answer": "1", "level": 1, "subject": "s"}),
        ("chartqa", {"image": RED, "query": "q", "label": ["1"], "human_or_machine": 0}),
        ("generic", {"image": RED, "query": "q", "label": "1"}),
        ("easyvqa", {"image": RED, "questions": [], "answers": []}),
        ("nlvr", {"image": RED, "sentence": "s", "label": "true"}),
        ("generic", {"image": RED, "question": "q", "answer": "1"}),
    ],
)
def test_detection(name: str, row: dict[str, Any]) -> None:
    found = detect_format([row])
    assert found is not None and found.name == name
