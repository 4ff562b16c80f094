"""The loader with every form: fields that are asked for, column maps, and cells that no file should hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.data import load_examples
from mmreason.types import ConfigError, DataError
from tests.image_rows import RED, jsonl_writer, png

Row = dict[str, Any]
CHAT = ("prompt", "completion", "tools", "images", "id", "source", "meta")
PAIR = ("prompt", "chosen", "rejected", "id", "source", "meta")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return jsonl_writer(tmp_path)


def talk(question: str, answer: Any = "Yes.", **rest: Any) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} | rest


def counts(path: str, **arguments: Any) -> dict[str, int]:
    return load_examples(path, on_bad_row="drop", **({"columns": CHAT} | arguments)).dropped


# Fields


def test_supervised_rows(write: Any) -> None:
    loaded = load_examples(write([talk("a"), talk("b", score=1.5)], "mine.jsonl"), columns=CHAT)
    assert loaded.format == "messages"
    assert loaded.dataset[1] == {
        "prompt": [{"role": "user", "content": "b"}],  # no template is put around a conversation
        "completion": [{"role": "assistant", "content": "Yes."}],
        "tools": None,
        "images": [],
        "id": "mine/1",
        "source": "mine",
        "meta": {"kind": None, "choices": None, "score": 1.5},
    }


def test_pairs_and_labels(write: Any) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "source": "s"}]
    (row,) = load_examples(write(rows), columns=PAIR, require=("chosen", "rejected")).dataset
    assert row["chosen"] == [{"role": "assistant", "content": "b"}] and row["source"] == "s"
    labelled = load_examples(write([talk("a", label=True), talk("b", label=False)]), columns=("prompt", "label"))
    assert labelled.dataset["label"][:] == [True, False]


def test_documents(write: Any, tmp_path: Path) -> None:
    text = "  One.\n\nTwo.\n"
    (row,) = load_examples(write([{"text": text, "url": "http://x"}]), columns=("text", "meta")).dataset
    assert row["text"] == text and row["meta"]["url"] == "http://x"
    (tmp_path / "book.txt").write_text(text)
    loaded = load_examples(str(tmp_path / "book.txt"), columns=("text", "id"))
    assert loaded.dataset[:] == {"text": [text], "id": ["book/0"]}
    (tmp_path / "train.txt").write_text("x")
    (tmp_path / "train.jsonl").unlink()
    assert load_examples(str(tmp_path), columns=("text",)).dataset["text"][:] == ["x"]  # book.txt is no split


@pytest.mark.parametrize(
    ("row", "arguments", "reason"),
    [
        ({"text": "a"}, {}, "missing_prompt"),
        ({"messages": [{"role": "user", "content": "a"}]}, {"require": ("completion",)}, "missing_completion"),
        (talk("a"), {"require": ("label",)}, "missing_label"),
        (talk("a"), {"columns": PAIR, "require": ("chosen",)}, "missing_pair"),
        (talk("a"), {"columns": ("text",), "require": ("text",)}, "missing_text"),
        (talk("a"), {"columns": ("prompt", "answer")}, "missing_answer"),
        (talk("a", tools=[{"name": "f"}]), {"columns": ("prompt", "completion")}, "tools_unused"),
    ],
)
def test_fields_that_a_row_lacks(write: Any, row: Row, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        load_examples(write([row]), **({"columns": CHAT} | arguments))
    assert caught.value.reason == reason


# Column maps


@pytest.mark.parametrize(
    ("row", "column_map", "form", "wanted"),
    [
        ({"talk": talk("a")["messages"]}, {"messages": "talk"}, "messages", "Yes."),
        (
            {"x": {"y": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}},
            {"conversations": "x.y"},
            "sharegpt",
            "b",
        ),
        ({"q": "a", "a": "b"}, {"instruction": "q", "output": "a"}, "alpaca", "b"),
        ({"q": "a", "a": "b", "ok": True}, {"prompt": "q", "completion": "a", "label": "ok"}, "unpaired", "b"),
        ({"q": "a", "a": "b"}, {"prompt": "q", "completion": "a"}, "generic", "b"),
    ],
)
def test_column_maps_of_forms(write: Any, row: Row, column_map: dict[str, str], form: str, wanted: str) -> None:
    loaded = load_examples(write([row]), columns=CHAT, column_map=column_map, prompt_template="none")
    assert loaded.format == form
    assert loaded.dataset[0]["completion"] == [{"role": "assistant", "content": wanted}]
    assert loaded.dataset[0]["prompt"][-1]["content"] == "a"


def test_column_map_of_a_named_form(write: Any) -> None:
    path = write([{"q": "a", "good": "b", "bad": "c", "tag": "t"}])
    mapped = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    loaded = load_examples(path, columns=PAIR, column_map=mapped, format="preference")
    assert loaded.dataset[0]["rejected"] == [{"role": "assistant", "content": "c"}]
    assert loaded.dataset[0]["meta"] == {"kind": None, "choices": None, "tag": "t"}
    texts = load_examples(path, columns=("text",), column_map={"text": "q"})
    assert texts.format == "text" and texts.dataset["text"][:] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "preference", "column_map": {"choosen": "b"}}, "unknown column_map field 'choosen'.*'chosen'"),
        ({"format": "hellaswag", "column_map": {"prompt": "b"}}, "belongs to format 'generic' .*'sharegpt'"),
        ({"require": ("completoin",)}, "unknown required field 'completoin'.*'completion'"),
    ],
)
def test_wrong_arguments(write: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_examples(write([talk("a")]), **arguments)


# Cells


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (talk("a\x00b"), "null_bytes"),
        (talk("a", "Yes\x00"), "null_bytes"),
        (talk("a", "\ud800"), "bad_unicode"),
        (talk("a", score=float("nan")), "nan_value"),
        (talk("a", score=float("inf")), "nan_value"),
        (talk("a", score="high"), "mixed_types"),
        (talk("a") | {"messages": 5}, "mixed_types"),
        (talk("a", 5), "mixed_types"),
        (talk("a", id="one"), "duplicate_id"),
        (talk("<image>a"), "image_count"),
        (talk("a", images=["a.png", "a.png"], image="a.png"), "two_image_columns"),
        (talk("a", images="a.png"), "image_not_list"),
        (talk("<image><image>a", images=["a.png"]), "image_count"),
        (talk("a", images=["b.png"]), "missing_image"),
        (talk("a", [{"type": "image"}], images=[]), "image_count"),
        (talk("a", tools="[{"), "bad_tools"),
    ],
)
def test_bad_cells(write: Any, tmp_path: Path, bad: Row, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    good = [
        talk(f"<image>{i}", id=name, score=i / 2, images=["a.png"]) for i, name in enumerate(["one", "two", "three"])
    ]
    path = write([*good, bad])
    assert counts(path) == {reason: 1}
    with pytest.raises(DataError, match=rf"train\.jsonl:4.*{reason}"):
        load_examples(path, columns=CHAT)


def test_the_odd_row_is_the_bad_one_wherever_it_stands(write: Any) -> None:
    rows = [talk(str(i), score=i) for i in range(5)]
    path = write([talk("a", score="high"), *rows])
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: mixed_types.*'score' is a text here, 'high', elsewhere a number"
    ):
        load_examples(path, columns=CHAT)


def test_cells_that_may_differ(write: Any) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    rows = [talk("a", tools=[tool], score=1), talk("b", tools="[]", score=0.5), talk("c", score=None)]
    rows.append(talk("d") | {"messages": '[{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]'})
    assert len(load_examples(write(rows), columns=CHAT).dataset) == 4


def test_pairs_have_images_in_the_prompt_only(tmp_path: Path, write: Any) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    good = {"prompt": "<image>a", "chosen": "b", "rejected": "c", "images": ["a.png"]}
    bad = good | {"chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "prompt": "a"}
    path = write([good, bad])
    assert counts(path, columns=(*PAIR, "images")) == {"image_count": 1}
