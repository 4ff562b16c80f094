"""Word problems with programs: every one prints its answer, in the sandbox as in the reward."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import load_dataset

from data_builders.word_problems import generate
from data_builders.word_programs import as_program, main, program_of
from mmreason.rewards import program_reward
from mmreason.types import ConfigError


@pytest.mark.parametrize("level", ["1-2", "mix"])
def test_each_program_prints_its_answer(level: str) -> None:
    rows = [as_program(row) for row in generate(60, 3, level=level)]
    rewards = program_reward([row["completion"] for row in rows], [row["answer"] for row in rows])
    assert rewards == [1.0] * len(rows)


def test_a_result_is_taken_up_by_its_name() -> None:
    assert program_of("38 + 18 = 56\n56 - 5 = 51") == "a = 38 + 18\nb = a - 5\nprint(b)"
    with pytest.raises(ConfigError, match="no step of the form"):
        program_of("five plus six is eleven")


def test_the_command_writes_the_problems_of_word_problems(tmp_path: Path) -> None:
    sizes = ["--n", "20", "--n_test", "5", "--n_unseen", "0"]
    assert main(["--out", str(tmp_path), *sizes, "--level", "2", "--seed", "4"]) == 0
    rows = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train")
    plain = generate(20, 4, level=2)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in plain]
    assert [row["answer"] for row in rows] == [row["answer"] for row in plain]
    assert not (tmp_path / "unseen_templates.parquet").exists()
    assert main(["--out", str(tmp_path), "--level", "9"]) == 2
