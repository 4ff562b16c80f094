"""load_examples on small files: ids, prompts, bad rows, and every error that a user can cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mmreason.data import PROMPT_TEMPLATES, load_examples, to_dataset
from mmreason.data.prompts import build_prompt, fill
from mmreason.types import ConfigError, DataError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(rows: list[Any], name: str = "train.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return _write


ROWS = [{"question": f"What is {i}+1?", "answer": f"Add.\n#### {i + 1}"} for i in range(10)]


def test_columns_ids_and_prompt(write: Any) -> None:
    loaded = load_examples(write(ROWS))
    assert loaded.dataset.column_names == ["prompt", "answer", "id", "source", "meta"]
    assert loaded.dataset[3] == {
        "prompt": [{"role": "user", "content": fill(PROMPT_TEMPLATES["boxed"], "What is 3+1?")}],
        "answer": "4",
        "id": "gsm8k/train/3",
        "source": "gsm8k",
        "meta": {"kind": "number", "choices": None},
    }
    assert (loaded.dropped, loaded.rows_read, loaded.format) == ({}, 10, "gsm8k")
    assert loaded.summary().endswith("10 examples (format gsm8k)")


def test_ids_do_not_move_with_slices_and_drops(write: Any) -> None:
    path = write([ROWS[0], "{broken", *ROWS[1:]])
    everything = load_examples(path, on_bad_row="drop")
    part = load_examples(path, on_bad_row="drop", split="train[3:5]")
    assert part.dataset["id"][:] == ["gsm8k/train/3", "gsm8k/train/4"]
    assert everything.dataset["id"][2:4] == part.dataset["id"][:]
    assert load_examples(path, split="train[-2:]").dataset["id"][:] == ["gsm8k/train/9", "gsm8k/train/10"]


def test_max_rows_and_seed(write: Any) -> None:
    path = write(ROWS)
    assert load_examples(path, max_rows=3).dataset["answer"][:] == ["1", "2", "3"]
    one, two, other = (load_examples(path, max_rows=5, seed=seed).dataset["answer"][:] for seed in (1, 1, 2))
    assert one == two and len(one) == 5 and one != other and one != ["1", "2", "3", "4", "5"]
    assert sorted(load_examples(path, seed=3).dataset["answer"][:], key=int) == [str(i + 1) for i in range(10)]


def test_system_prompt_and_own_template(write: Any) -> None:
    path = write([{"question": "Is {x} or \\frac{1}{2}, {question}?", "answer": "1"}])
    loaded = load_examples(path, system_prompt="Be {brief}.", prompt_template="Q: {question} in \\boxed{}")
    assert loaded.dataset[0]["prompt"] == [
        {"role": "system", "content": "Be {brief}."},
        {"role": "user", "content": "Q: Is {x} or \\frac{1}{2}, {question}? in \\boxed{}"},
    ]


def test_plain_prompts(write: Any) -> None:
    loaded = load_examples(write(ROWS), chat=False, prompt_template="r1-zero")
    prompt = loaded.dataset[0]["prompt"]
    assert isinstance(prompt, str) and prompt.endswith("User: What is 0+1?\nAssistant:")
    assert load_examples(write(ROWS), chat=False).dataset[0]["prompt"].startswith("Question: What is 0+1?")


def test_finished_prompts_get_no_default_template(write: Any) -> None:
    messages = [{"role": "user", "content": "2+2? Box it."}]
    rows = [{"prompt": messages, "reward_model": {"ground_truth": "4"}, "data_source": "dapo"}]
    assert load_examples(write(rows)).dataset[0]["prompt"] == messages
    assert load_examples(write(rows)).dataset[0]["source"] == "dapo"
    asked = load_examples(write(rows), prompt_template="none {question}").dataset[0]["prompt"]
    assert asked == [{"role": "user", "content": "none 2+2? Box it."}]


def test_canonical_parquet_round_trip(write: Any, tmp_path: Path) -> None:
    first = load_examples(write(ROWS), columns=("prompt", "completion", "answer", "id", "source", "meta"))
    first.dataset.to_parquet(tmp_path / "again.parquet")
    again = load_examples(
        str(tmp_path / "again.parquet"), columns=("prompt", "completion", "answer", "id", "source", "meta")
    )
    assert again.format == "canonical"
    assert again.dataset[:] == first.dataset[:]
    assert again.dataset.features == first.dataset.features


def test_sets_of_any_format_concatenate(write: Any) -> None:
    one = load_examples(write(ROWS)).dataset
    parts = [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]
    two = load_examples(write([{"prompt": parts, "answer": "4", "meta": {"deep": {"er": [1]}}}], "b.jsonl")).dataset
    both = datasets.concatenate_datasets([one, two])
    assert both[10]["prompt"] == parts and both[10]["meta"]["deep"] == {"er": [1]} and both[0] == one[0]


def test_column_map(write: Any) -> None:
    rows = [{"Body": "2+2?", "gold": {"value": 4}, "nr": 7}]
    loaded = load_examples(write(rows), column_map={"prompt": "Body", "answer": "gold.value", "id": "nr"})
    assert loaded.dataset[0]["answer"] == "4" and loaded.dataset[0]["id"] == "7"


BAD = [
    ROWS[0],
    {"question": "no answer", "answer": None},
    {"question": "", "answer": "x #### 1"},
    "{broken",
    {"id": "seven", "question": "no mark", "answer": "forty-two"},
    {"question": "\ud800", "answer": "#### 1"},
    {"question": "empty gold", "answer": "#### "},
]


def test_bad_rows_error_names_five_and_the_total(write: Any) -> None:
    path = write(BAD)
    with pytest.raises(DataError) as caught:
        load_examples(path)
    text = str(caught.value)
    assert (
        "6 of 7 rows can't be used (2 bad_gold, 1 bad_unicode, 1 missing_answer, 1 missing_prompt, 1 unreadable_line)"
        in text
    )
    assert f"{path}:2: missing_answer" in text and f"{path}:5 (id seven): bad_gold" in text and "and 1 more" in text
    assert caught.value.row == f"{path}:2" and caught.value.reason == "missing_answer" and "on_bad_row: drop" in text


def test_bad_rows_dropped_and_counted(write: Any) -> None:
    loaded = load_examples(write(BAD), on_bad_row="drop")
    assert loaded.dropped == {
        "bad_gold": 2,
        "bad_unicode": 1,
        "missing_answer": 1,
        "missing_prompt": 1,
        "unreadable_line": 1,
    }
    assert len(loaded.dataset) == 1 and "dropped 6 of 7 rows: 2 bad_gold" in loaded.summary()


def test_gold_is_checked_against_the_choices(write: Any) -> None:
    rows = [
        {"question": "q", "choices": ["x", "y"], "answer": "B"},
        {"question": "q", "choices": ["x", "y"], "answer": "D"},
    ]
    assert load_examples(write(rows), on_bad_row="drop").dropped == {"bad_gold": 1}


def test_duplicate_ids(write: Any) -> None:
    rows = [{"id": i, "question": "q", "answer": 1} for i in (1, 2, 1)]
    with pytest.raises(DataError, match=r"train.jsonl:3 \(id 1\): duplicate_id"):
        load_examples(write(rows))
    assert load_examples(write(rows), on_bad_row="drop").dataset["id"][:] == ["1", "2"]


def test_rows_without_answer_can_be_allowed(write: Any) -> None:
    loaded = load_examples(write([{"question": "q", "answer": None}]), require_answer=False)
    assert loaded.dataset[0]["answer"] is None


def test_images_are_not_lost_silently(write: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(DataError, match="images_unused"):
        load_examples(write([{"prompt": parts, "answer": "4", "meta": {}}]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "gsm9k"}, "unknown format 'gsm9k'.*Did you mean 'gsm8k'"),
        ({"on_bad_row": "dorp"}, "Did you mean 'drop'"),
        ({"max_rows": 0}, "max_rows"),
        ({"column_map": {"promt": "a"}}, "unknown column_map field 'promt'.*Did you mean 'prompt'"),
        ({"column_map": {"prompt": "question"}, "format": "gsm8k"}, "column_map belongs to format 'generic'"),
        ({"prompt_template": "boxd"}, "Did you mean 'boxed'"),
        ({"prompt_template": "Just think."}, r"nor a text with \{question\}"),
        ({"system_prompt": "x", "chat": False}, "system_prompt needs chat: true"),
        ({"columns": ("prompt", "anwser")}, "'anwser' is no column"),
        ({"split": "train["}, "split"),
    ],
)
def test_wrong_arguments(write: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_examples(write(ROWS), **arguments)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([""], {}, "the dataset is empty"),
        ([{"text": "a", "score": 1}], {}, r"no known format has the columns score, text.*column_map"),
        (ROWS, {"column_map": {"prompt": "qestion"}}, "no column 'qestion' for 'prompt'.*Did you mean 'question'"),
        (ROWS, {"split": "train[100:]"}, "the dataset is empty"),
        (["{", "["], {"on_bad_row": "drop"}, "no row is left, all 2 were dropped"),
        (["{", "["], {}, "2 of 2 rows can't be used"),
    ],
)
def test_unusable_data(write: Any, rows: list[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(write(rows), **arguments)


def test_conversation_can_not_become_plain_text(write: Any) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match="chat: false needs a prompt of one text message"):
        load_examples(write([{"prompt": turns, "answer": "1", "meta": {}}]), chat=False)


def test_template_goes_around_the_last_user_text() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "q"}]
    messages: Any = [{"role": "system", "content": "old"}, {"role": "user", "content": parts}]
    built = build_prompt(messages, template="<{question}>", system_prompt="new", chat=True)
    assert built == [
        {"role": "system", "content": "new"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<q>"}]},
    ]
    assert parts[1]["text"] == "q"  # the input is left as it was


def test_every_template_holds_the_question_once() -> None:
    for name, template in PROMPT_TEMPLATES.items():
        assert template.count("{question}") == 1, name


def test_messages_keep_exactly_their_keys() -> None:
    dataset = to_dataset([{"prompt": [{"role": "user", "content": "q"}]}, {"prompt": []}], ("prompt", "answer"))
    assert dataset[0] == {"prompt": [{"role": "user", "content": "q"}], "answer": None}
