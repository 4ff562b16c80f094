"""Questions that need a tool: their answers, their tests, and what a novice makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_builders import tool_tasks
from data_builders.tool_tasks import TOLD, build, facts, generate, main, split_of
from mmreason.rewards.code import judge_programs
from mmreason.types import ConfigError


def content(message: object) -> str:
    return str(message["content"])  # type: ignore[index]


def test_answers_are_right() -> None:
    """Python's own arithmetic, not the calculator that made the rows."""
    for row in generate(200, 1, task="calculator"):
        call, result, final = row["completion"]
        expression = call["tool_calls"][0]["function"]["arguments"]["expression"]  # type: ignore[index]
        assert set(expression) <= set("0123456789+-*")
        value = str(eval(expression))  # noqa: S307  digits and signs only
        assert value == row["answer"] == content(result) and value in content(final)
        numbers = [word.strip(".") for word in content(row["prompt"][0]).split() if word.strip(".").isdigit()]
        assert all(number in expression for number in numbers)


def test_expert_programs_pass_and_novices_mostly_fail() -> None:
    for style, low, high in (("expert", 1.0, 1.0), ("novice", 0.25, 0.65)):
        rows = generate(60, 2, task="program", style=style)
        texts = [content(row["completion"][-1]) for row in rows]
        right = [str(j.verdict) == "correct" for j in judge_programs(texts, [row["meta"] for row in rows])]
        assert low <= sum(right) / len(right) <= high, (style, sum(right))


def test_a_novice_calls_where_it_is_told_to_and_seldom_else() -> None:
    rows = generate(600, 3, task="calculator", style="novice")
    told = [row for row in rows if content(row["prompt"][0]).endswith(TOLD)]
    others = [row for row in rows if row not in told]
    assert all(len(row["completion"]) == 3 for row in told) and 200 < len(told) < 400
    assert 0 < sum(len(row["completion"]) == 3 for row in others) / len(others) < 0.12


def test_splits_share_no_question_and_seeds_decide() -> None:
    for task in ("calculator", "program"):
        train = [content(row["prompt"][0]) for row in generate(150, 4, task=task)]
        test = [content(row["prompt"][0]) for row in generate(150, 4, task=task, split="test")]
        assert not set(train) & set(test) and len(set(train)) == 150
        assert {split_of(text) for text in test} == {"test"}
    assert generate(20, 5, task="calculator+program") == generate(40, 5, task="calculator+program")[:20]
    assert generate(20, 5, task="calculator") != generate(20, 6, task="calculator")
    assert facts(1) == facts(1) != facts(2)


def test_files_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "set", task="search", n=20, n_test=5, seed=1)
    assert pq.read_table(tmp_path / "set" / "train.parquet").num_rows == 20
    passages = [json.loads(line) for line in (tmp_path / "set" / "corpus.jsonl").read_text().splitlines()]
    assert passages == facts(1)[0]
    assert main(["--out", str(tmp_path / "cli"), "--task", "program", "--n", "10", "--n_test", "0"]) == 0
    assert main(["--out", str(tmp_path / "none"), "--task", "progam"]) == 2
    assert "unknown task 'progam'" in capsys.readouterr().err
    for arguments, said in (
        ({"n": 0, "task": "program"}, "n must be at least 1"),
        ({"n": 5, "task": "program", "style": "master"}, "unknown style"),
        ({"n": 5000, "task": "search"}, "gave only"),
    ):
        with pytest.raises(ConfigError, match=said):
            generate(seed=0, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tool_tasks takes"):
        tool_tasks.cached(say=lambda text: None, tasks="program")
