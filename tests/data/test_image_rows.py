"""Rows with images: marks in texts, counts, roots, and what the loader refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mmreason.data import load_examples, split_holdout, to_dataset
from mmreason.data.formats.pictures import count_image_parts
from mmreason.data.holdout import question_key
from mmreason.data.prompts import build_prompt
from mmreason.data.sources import undecoded
from mmreason.types import DataError, Example, Message
from tests.image_rows import ALL, BLUE, IMAGE, RED, jsonl_writer, parsed, png, text, user

ROOT = Path(__file__).parent


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return jsonl_writer(tmp_path)


@pytest.mark.parametrize(
    ("row", "prompt", "images"),
    [
        ({"question": "q", "image": RED}, user(IMAGE, text("q")), [RED]),
        ({"question": "q", "images": [RED, BLUE]}, user(IMAGE, IMAGE, text("q")), [RED, BLUE]),
        (
            {"question": "a <image> b <image>", "images": [RED, BLUE]},
            user(text("a "), IMAGE, text(" b "), IMAGE),
            [RED, BLUE],
        ),
        ({"question": "<image>\n<image>\nq", "images": [RED, BLUE]}, user(IMAGE, IMAGE, text("\nq")), [RED, BLUE]),
        ({"question": "q", "image": None}, [{"role": "user", "content": "q"}], []),
        ({"question": "q", "images": []}, [{"role": "user", "content": "q"}], []),
        ({"question": "q", "image": {"bytes": None, "path": None}}, [{"role": "user", "content": "q"}], []),
        ({"question": "use <image> in HTML"}, [{"role": "user", "content": "use <image> in HTML"}], []),
        ({"question": "q", "images": None, "image": RED}, user(IMAGE, text("q")), [RED]),
        (
            {"question": user(text("see "), IMAGE, text("?")), "images": [RED]},
            user(text("see "), IMAGE, text("?")),
            [RED],
        ),
        (
            {"question": [{"role": "system", "content": "s"}, *user(text("q"))], "image": RED},
            [{"role": "system", "content": "s"}, *user(IMAGE, text("q"))],
            [RED],
        ),
        ({"question": user({"type": "image", "image": RED}, text("q"))}, user(IMAGE, text("q")), [RED]),
        ({"question": user({"type": "image_url", "image_url": {"url": "data:,x"}})}, user(IMAGE), ["data:,x"]),
    ],
)
def test_places(row: dict[str, Any], prompt: list[Message], images: list[Any]) -> None:
    example = parsed("generic", row | {"answer": "1"})
    assert example["prompt"] == prompt
    assert example.get("images", []) == images


def test_marks_of_several_turns() -> None:
    turns = [
        {"role": "user", "content": "<image> this"},
        {"role": "assistant", "content": "An <image> it is."},
        {"role": "user", "content": "and <image>?"},
    ]
    example = parsed("generic", {"prompt": turns, "answer": "1", "images": [RED, BLUE]})
    assert [count_image_parts([message]) for message in example["prompt"]] == [1, 0, 1]
    assert example["prompt"][1]["content"] == "An <image> it is."


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"question": "<image> and <image>", "images": ["r.png"]}, "image_count", "2 places in the prompt, 1 images"),
        ({"question": "<image>", "images": ["r.png", "r.png"]}, "image_count", "1 places in the prompt, 2 images"),
        ({"question": "<image>", "images": None}, "image_count", "1 places in the prompt, 0 images"),
        ({"question": "q", "images": ["r.png", None]}, "missing_image", "image 2 of 2"),
        (
            {"question": user({"type": "image", "path": "r.png"}), "image": "r.png"},
            "image_count",
            "1 images in the messages",
        ),
        ({"prompt": [{"role": "system", "content": "s"}], "image": "r.png"}, "bad_messages", "no user message"),
        ({"question": "q", "image": "../r.png"}, "outside_root", "image 1: ../r.png"),
        ({"question": "q", "image": "/etc/hostname"}, "outside_root", "/etc/hostname"),
        ({"question": "q", "image": "link.png"}, "outside_root", "link.png"),
        ({"question": "q", "image": "s.png"}, "missing_image", "s.png"),
        ({"question": "q", "image": "http://x/a.png"}, "image_url", "http://x/a.png"),
        ({"question": "q", "image": 5}, "bad_image", "5"),
    ],
)
def test_bad_rows_are_named(write: Any, tmp_path: Path, row: dict[str, Any], reason: str, words: str) -> None:
    path = write([row | {"answer": "1", "id": "row-7"}, {"question": "q", "answer": "1"}], "data/train.jsonl")
    (tmp_path / "data/r.png").write_bytes(RED)
    (tmp_path / "data/link.png").symlink_to(ROOT / "conftest.py")
    with pytest.raises(DataError) as caught:
        load_examples(path, columns=ALL)
    assert caught.value.reason == reason
    assert f"{path}:1 (id row-7): {reason}" in str(caught.value) and words in str(caught.value)
    loaded = load_examples(path, columns=ALL, on_bad_row="drop")
    assert loaded.dropped == {reason: 1} and len(loaded.dataset) == 1


def test_images_that_were_not_asked_for(write: Any, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "1", "image": "a.png"}, {"question": "r", "answer": "1", "image": None}]
    loaded = load_examples(write(rows), on_bad_row="drop")
    assert loaded.dropped == {"images_unused": 1} and len(loaded.dataset) == 1
    canonical = {"prompt": [{"role": "user", "content": "q"}], "answer": "1", "meta": {}, "images": ["a.png"]}
    with pytest.raises(DataError, match="images_unused"):
        load_examples(write([canonical]))


def test_roots_of_files_and_folders(write: Any, tmp_path: Path) -> None:
    """Relative paths start at the file, then at the folder that was given; image_root takes the place of both."""
    rows = [
        {"question": str(i), "answer": "1", "image": name} for i, name in enumerate(("by_file.png", "img/by_set.png"))
    ]
    write(rows, "set/data/train.jsonl")
    for name in ("set/data/by_file.png", "set/img/by_set.png", "far/by_file.png", "far/img/by_set.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    one, two = load_examples(str(tmp_path / "set"), columns=ALL).dataset["images"]
    assert one[0]["path"] == str((tmp_path / "set/data/by_file.png").resolve())
    assert two[0]["path"] == str((tmp_path / "set/img/by_set.png").resolve())
    with pytest.raises(DataError, match="missing_image"):  # a file's own folder is all there is
        load_examples(str(tmp_path / "set/data/train.jsonl"), columns=ALL)
    far = load_examples(str(tmp_path / "set"), columns=ALL, image_root=str(tmp_path / "far")).dataset["images"]
    assert [cells[0]["path"] for cells in far] == [str((tmp_path / "far" / row["image"]).resolve()) for row in rows]


def test_nothing_is_decoded_while_loading(write: Any, tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(b"noise")
    loaded = load_examples(write([{"question": "q", "answer": "1", "image": "noise.png"}]), columns=ALL)
    assert loaded.dataset.features["images"] == datasets.List(datasets.Image(decode=False))
    assert loaded.dataset[0]["images"] == [{"bytes": None, "path": str((tmp_path / "noise.png").resolve())}]


def test_column_map_reaches_images(write: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    path = write([{"q": "q", "a": "1", "pics": {"main": "a.png"}}, {"q": "r", "a": "1"}])
    mapped = {"prompt": "q", "answer": "a", "images": "pics.main"}
    one, two = load_examples(path, columns=ALL, column_map=mapped).dataset
    assert len(one["images"]) == 1 and two["images"] == []


# What builders write, what plain `datasets` reads, and back


def built(tmp_path: Path) -> tuple[list[Example], str]:
    examples: list[Example] = [
        {
            "prompt": [{"role": "user", "content": [text("left "), IMAGE, IMAGE, text("or right <image>?")]}],  # type: ignore[typeddict-item]
            "completion": [{"role": "assistant", "content": "left"}],
            "images": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}],
            "answer": "left",
            "id": "s/0",
            "source": "s",
            "meta": {"kind": "text", "choices": None},
        },
        {
            "prompt": [{"role": "user", "content": "no image, only <image>"}],
            "answer": "1",
            "id": "s/1",
            "source": "s",
            "meta": {"kind": "number", "choices": None},
        },
    ]
    path = tmp_path / "train.parquet"
    to_dataset(examples, ALL, decode_images=True).to_parquet(str(path))
    return examples, str(path)


def test_canonical_rows_keep_their_images(tmp_path: Path) -> None:
    examples, path = built(tmp_path)
    loaded = load_examples(path, columns=ALL)
    assert loaded.format == "canonical"
    for example, row in zip(examples, loaded.dataset, strict=True):
        assert row["prompt"] == example["prompt"] and row["images"] == example.get("images", [])
    plain = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert plain.features["images"] == datasets.List(datasets.Image())
    assert [image.getpixel((0, 0)) for image in plain[0]["images"]] == [(255, 0, 0), (0, 0, 255)]


def test_undecoded_gives_the_stored_cells(tmp_path: Path) -> None:
    _, path = built(tmp_path)
    opened = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    single = opened.map(
        lambda row: {"image": row["images"][0] if row["images"] else None},
        features=datasets.Features({**opened.features, "image": datasets.Image()}),
    )
    for row, images in zip(undecoded(single), ([RED, BLUE], []), strict=True):
        assert [cell["bytes"] for cell in row["images"]] == images
        assert (row["image"] or {}).get("bytes") == (images[0] if images else None)


def test_a_large_set_is_built_in_several_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.data.schema._ARRAY_BYTES", 2 * len(RED))
    rows: list[Example] = [{"id": str(i), "images": [{"bytes": RED, "path": None}] * (i % 3)} for i in range(10)]
    dataset = to_dataset(rows, ("id", "images"))
    assert dataset["id"][:] == [str(i) for i in range(10)]
    assert [len(images) for images in dataset["images"]] == [i % 3 for i in range(10)]
    assert dataset.data.column("images").num_chunks > 3


def test_plain_prompts_take_no_images(write: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    with pytest.raises(DataError, match="chat: false"):
        load_examples(write([{"question": "q", "answer": "1", "image": "a.png"}]), columns=ALL, chat=False)


# Templates and hold-out


@pytest.mark.parametrize(
    ("content", "template", "wanted"),
    [
        ([IMAGE, text("q")], "Q: {question} A:", [IMAGE, text("Q: q A:")]),
        ([text("a"), IMAGE, text("b")], "Q: {question} A:", [text("Q: a"), IMAGE, text("b A:")]),
        ([text("a"), IMAGE], "Q: {question} A:", [text("Q: a"), IMAGE, text(" A:")]),
        ([text("a"), IMAGE], "Q: {question}", [text("Q: a"), IMAGE]),
        ([text("a"), IMAGE, text("b")], "{question}; again: {question}.", [text("a"), IMAGE, text("b; again: a b.")]),
        ([IMAGE], "Q: {question}", [IMAGE]),
    ],
)
def test_templates_go_around_text_and_images(content: list[Any], template: str, wanted: list[Any]) -> None:
    messages: list[Message] = [{"role": "user", "content": content}]
    before = json.dumps(messages)
    assert build_prompt(messages, template=template, system_prompt=None, chat=True) == user(*wanted)
    assert json.dumps(messages) == before  # the row's own messages are left alone


def test_same_text_other_image_is_another_question(tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(RED)
    prompt = user(IMAGE, text("What colour?"))
    cells = [
        {"bytes": RED, "path": None},
        {"bytes": BLUE, "path": None},
        {"bytes": None, "path": str(tmp_path / "copy.png")},
    ]
    keys = [question_key(prompt, [cell]) for cell in cells]
    assert keys[0] == keys[2] != keys[1] and question_key(prompt) not in keys
    assert question_key(prompt, cells[:2]) != question_key(prompt, cells[1::-1])
    rows: list[Example] = [{"prompt": prompt, "images": [cell], "id": str(i)} for i, cell in enumerate(cells)]
    for decode in (False, True):
        train, held = split_holdout(to_dataset(rows, ("prompt", "images", "id"), decode_images=decode), 1, seed=0)
        assert (held["id"][:], sorted(train["id"])) == (["1"], ["0", "2"])


def test_holdout_of_questions_that_differ_by_image_only() -> None:
    rows: list[Example] = [
        {"prompt": user(IMAGE, text("How many?")), "images": [{"bytes": png((i, 0, 0)), "path": None}], "id": str(i)}
        for i in range(30)
    ]
    train, held = split_holdout(to_dataset(rows, ("prompt", "images", "id")), 10, seed=0)
    again = split_holdout(to_dataset(rows[::-1], ("prompt", "images", "id")), 10, seed=0)[1]
    assert (len(train), len(held)) == (20, 10) and set(held["id"]) == set(again["id"])
