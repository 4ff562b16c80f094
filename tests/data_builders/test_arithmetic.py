"""The arithmetic builder: right answers, seeds, disjoint splits, the command line, whole files or none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders import arithmetic
from data_builders.arithmetic import build, generate, main, split_of
from mmreason.data import load_examples
from mmreason.rewards import accuracy_reward
from mmreason.types import ConfigError
from tests.data_builders.commands import output_and_cpu_seconds


def value_of(question: str) -> int:
    """An independent reading of the question's text."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if "gives" in question:
        return numbers[0] + numbers[1] - numbers[2]
    if "boxes" in question:
        return numbers[0] * numbers[1] + (numbers[2] if "more" in question else -numbers[2])
    return numbers[0] - numbers[1] if "-" in question else sum(numbers)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from([1, 2, 3]), split=st.sampled_from(["train", "test"]))
def test_answers_are_right_and_steps_hold(seed: int, level: int, split: arithmetic.Split) -> None:
    for example in generate(8, seed, level, split):
        question, answer = example["prompt"][0]["content"], example["answer"]  # type: ignore[index]
        assert int(answer or "") == value_of(question) >= 0  # type: ignore[arg-type]
        message = example["completion"][0]
        steps = message["reasoning_content"].splitlines()  # type: ignore[index, typeddict-item]
        for step in steps:
            a, sign, b, c = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c)
        assert steps[-1].endswith(f"= {answer}") and message["content"] == answer  # type: ignore[index]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_seeds_and_disjoint_splits(level: int) -> None:
    train, test = generate(400, 0, level), generate(60, 0, level, "test")
    assert train == generate(400, 0, level) and train != generate(400, 1, level)
    assert generate(100, 0, level) == train[:100]

    def operands(examples: list[arithmetic.Example]) -> set[tuple[int, ...]]:
        return {tuple(sorted(example["meta"]["operands"])) for example in examples}

    assert not operands(train) & operands(test)
    for examples in (train, test):
        assert len({e["prompt"][0]["content"] for e in examples}) == len(examples)  # type: ignore[index]
        assert len({e["id"] for e in examples}) == len(examples)


def test_operand_order_does_not_matter_for_the_split() -> None:
    sides = {split_of(pair) for pair in ((3, 5), (5, 3))}
    assert len(sides) == 1
    assert 0.05 < sum(split_of((a, b)) == "test" for a in range(60) for b in range(a + 1)) / 1830 < 0.15


def test_references_are_rewarded() -> None:
    examples = generate(50, 3, 3)
    completions = [example["completion"] for example in examples]
    assert accuracy_reward(completions, [e["answer"] for e in examples], [e["meta"] for e in examples]) == [1.0] * 50


@pytest.mark.parametrize(
    ("n", "level", "message"), [(0, 1, "n must"), (5, 9, "unknown level 9"), (10**5, 1, "gave only")]
)
def test_what_can_not_be_made(n: int, level: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_TRIES_PER_ROW", 2)  # give up soon; level 1 has fewer than 10^5 questions
    with pytest.raises(ConfigError, match=message):
        generate(n, 0, level)


def test_files_manifest_and_reload(tmp_path: Path) -> None:
    manifest = build(tmp_path / "a", n=30, n_test=5, seed=7, level=2)
    assert manifest == json.loads((tmp_path / "a" / "manifest.json").read_text())
    files = manifest["files"]
    assert set(files) == {"train.parquet", "test.parquet"}  # type: ignore[call-overload]
    for name, entry in files.items():  # type: ignore[attr-defined]
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == entry["sha256"]
    again = build(tmp_path / "b", n=30, n_test=5, seed=7, level=2)
    assert again == manifest
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["manifest.json", "test.parquet", "train.parquet"]
    columns = ("prompt", "completion", "answer", "id", "source", "meta")
    loaded = load_examples(str(tmp_path / "a"), columns=columns)
    assert loaded.format == "canonical" and loaded.dataset.to_list() == generate(30, 7, 2)
    assert len(load_examples(str(tmp_path / "a"), split="test").dataset) == 5


def test_a_broken_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, n=10, n_test=0, seed=0, level=1)
    before = (tmp_path / "train.parquet").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["--out", str(tmp_path), "--n", "20"]) == 2
    assert (tmp_path / "train.parquet").read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_named_errors_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["--out", str(tmp_path / "file"), "--n", "5"]) == 2
    assert main(["--out", str(tmp_path / "new"), "--n", "0"]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and "n must be at least 1" in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_command_and_quick_help(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_builders.arithmetic"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "o"), "--n", "20"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["train.parquet"]["rows"] == 20 and done.stderr == ""
    text, seconds = output_and_cpu_seconds([*command, "--help"])
    assert "--level" in text and seconds < 0.5
    code = "import sys, data_builders.arithmetic; print('datasets' in sys.modules, 'torch' in sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.split() == ["False", "False"]
