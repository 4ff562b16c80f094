"""Every format over every row of the real files; counts are those of the sets' own pages. Skipped without the data."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from mmreason.data import load_examples, split_holdout
from mmreason.data.holdout import question_key
from tests.timing import allowed

ALL = ("prompt", "completion", "answer", "id", "source", "meta")


@pytest.mark.parametrize(
    ("name", "split", "format", "rows", "kinds"),
    [
        ("gsm8k", "train", "gsm8k", 7473, {"number": 7473}),
        ("gsm8k", "test", "gsm8k", 1319, {"number": 1319}),
        ("mwp/svamp.jsonl", "train", "svamp", 1000, {"number": 1000}),
        ("mwp/aqua_dev.jsonl", "train", "aqua", 254, {"choice": 254}),
        ("mwp/asdiv.jsonl", "train", "asdiv", 2305, {"number": 2093, "math": 133, "text": 74, "yesno": 5}),
        ("sft_cot/svamp_nl_cot.jsonl", "train", "generic", 3076, {"number": 3076}),
        ("sft_cot/svamp_python_cot.jsonl", "train", "generic", 3043, {"number": 3043}),
    ],
)
def test_whole_file(shared_data: Path, name: str, split: str, format: str, rows: int, kinds: dict[str, int]) -> None:
    loaded = load_examples(str(shared_data / name), split=split, columns=ALL)  # "error": not one bad row
    assert (loaded.format, len(loaded.dataset)) == (format, rows)
    assert Counter(meta["kind"] for meta in loaded.dataset["meta"]) == kinds
    assert len(set(loaded.dataset["id"])) == rows


def test_gsm8k_golds_and_completions(shared_data: Path) -> None:
    dataset = load_examples(str(shared_data / "gsm8k"), columns=ALL).dataset
    for answer, (message,) in zip(dataset["answer"], dataset["completion"], strict=True):
        assert answer.lstrip("-").replace(".", "", 1).isdigit()
        assert message["content"] == answer
        assert "<<" not in message["reasoning_content"] and "####" not in message["reasoning_content"]


def test_gsm8k_train_loads_in_three_seconds(shared_data: Path) -> None:
    load_examples(str(shared_data / "gsm8k"), max_rows=1)  # imports are not what is measured
    start = time.perf_counter()
    load_examples(str(shared_data / "gsm8k"))
    assert time.perf_counter() - start < allowed(3.0)


def test_math500(shared_data: Path) -> None:
    loaded = load_examples(str(shared_data / "math/math500.jsonl"), columns=ALL)
    assert (loaded.format, len(loaded.dataset)) == ("math", 500)
    assert loaded.dataset["id"][0] == "test/precalculus/807.json"
    assert all(len(message) == 1 for message in loaded.dataset["completion"])


def test_math500_golds_from_the_solutions(shared_data: Path, tmp_path: Path) -> None:
    """Without the answer column the gold is read from the solution's box: the same golds but for spacing."""
    import json

    rows = [json.loads(line) for line in (shared_data / "math/math500.jsonl").read_text(encoding="utf-8").splitlines()]
    without = tmp_path / "without.jsonl"
    without.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "answer"}) + "\n" for row in rows))
    golds = load_examples(str(without)).dataset["answer"][:]

    def squeeze(text: str) -> str:
        return "".join(text.split()).replace("\\!", "").replace(",\\", "")

    differ = [
        (row["answer"], gold) for row, gold in zip(rows, golds, strict=True) if squeeze(row["answer"]) != squeeze(gold)
    ]
    assert len(differ) <= 5, differ


def test_math_train_null_answers_are_bad_golds(shared_data: Path) -> None:
    loaded = load_examples(str(shared_data / "math/train_answers.jsonl"), on_bad_row="drop")
    assert set(loaded.dropped) == {"bad_gold"} and 2 <= loaded.dropped["bad_gold"] <= 4
    assert sum("'answer' is None" in line for line in loaded.bad_rows) == 2
    assert len(loaded.dataset) + loaded.dropped["bad_gold"] == 4000


def test_asdiv_kinds_of_answers(shared_data: Path) -> None:
    """The table in the docstring of mmreason/data/formats/asdiv.py."""
    dataset = load_examples(str(shared_data / "mwp/asdiv.jsonl")).dataset
    counts: Counter[str] = Counter()
    for answer, meta in zip(dataset["answer"], dataset["meta"], strict=True):
        kind = meta["kind"]
        if kind == "number":
            counts["fraction" if "/" in answer else "number"] += 1
        elif kind == "math":
            counts["ratio" if ":" in answer else "values"] += 1
        elif kind == "text":
            counts["time" if answer[0].isdigit() and ":" in answer else "words"] += 1
        else:
            counts[kind] += 1
    assert counts == {"number": 2084, "fraction": 9, "values": 90, "ratio": 43, "time": 18, "yesno": 5, "words": 56}
    assert sum("unit" in meta for meta in dataset["meta"]) > 2000


def test_aqua_golds_are_among_the_choices(shared_data: Path) -> None:
    dataset = load_examples(str(shared_data / "mwp/aqua_dev.jsonl")).dataset
    for row in dataset:
        assert len(row["meta"]["choices"]) == 5 and row["answer"] in "ABCDE"
        assert "\n(E) " in row["prompt"][0]["content"]


def test_gsm8k_holdout(shared_data: Path) -> None:
    train, held = split_holdout(load_examples(str(shared_data / "gsm8k")).dataset, 500, seed=0)
    assert (len(train), len(held)) == (6973, 500)
    assert not {question_key(p) for p in train["prompt"]} & {question_key(p) for p in held["prompt"]}
