"""Self-play: which written problems are kept, and that none of the parent's test split comes back."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_builders._self_play.texts import written_problem
from data_builders.building.runner import run
from data_builders.self_play import SelfPlay, SelfPlayOptions, main
from mmreason.data.reader import read_rows
from mmreason.types import ConfigError, DataError
from tests.clients.server import running_server
from tests.data_builders.cot_teacher import Answer, Scripted
from tests.data_builders.teaching import manifest_of, rows_in, words, write_rows

PARENT = [
    {"question": f"A farmer plants {n} rows of {n + 3} trees and sells {n} of them. How many trees are left?", "answer":
     f"{n}*{n + 3} = {n * (n + 3)}, minus {n} is {n * (n + 2)}\n#### {n * (n + 2)}"}
    for n in range(2, 5)
]  # fmt: skip
TEST = [
    {"question": "Wendy bakes twelve muffins and eats five of them at once. How many muffins does Wendy have now?",
     "answer": "12-5 = 7\n#### 7"},
    {"question": "How many legs have six ants?", "answer": "6*6 = 36\n#### 36"},
]  # fmt: skip
NEW = "Olga swims 20 lanes on Monday and twice as many on Friday. How many lanes does Olga swim in all?"


def parent(tmp_path: Path) -> Path:
    write_rows(tmp_path / "test.jsonl", TEST)
    return write_rows(tmp_path / "train.jsonl", PARENT)


def played(
    tmp_path: Path, answer: Answer, **options: Any
) -> tuple[list[dict[str, Any]], Mapping[str, Any], Mapping[str, Any], Scripted]:
    """(rows, dropped, manifest, teacher)."""
    teacher = Scripted(answer)
    given: dict[str, Any] = {
        "n": 1,
        "k": 4,
        "decontaminate": [],
        "source": str(parent(tmp_path)),
        "report": False,
    } | options
    builder = SelfPlay(SelfPlayOptions(out=tmp_path / "out", **given))
    manifest = run(builder, completers=[teacher], say=lambda _: None)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [dict(row) for path in files for _, row in read_rows(path)]  # type: ignore[arg-type]
    return rows, manifest["counts"]["dropped"], manifest, teacher


def solving(problem: str, *solutions: str) -> Answer:
    return lambda text, draw: problem if "Write one new problem" in text else solutions[draw % len(solutions)]


TWICE = "2 * 20 = 40 and 20 + 40 = 60.\nThe answer is 60."
THRICE = "20 * 3 = 60.\nThe answer is 60."
WRONG = "20 + 2 = 22.\nThe answer is 22."


def test_an_agreed_answer_of_medium_pass_rate_is_kept(tmp_path: Path) -> None:
    rows, dropped, manifest, teacher = played(tmp_path, solving(f"Problem: {NEW}", TWICE, WRONG, THRICE, TWICE))
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": NEW}]] * 2
    assert [row["completion"][0]["reasoning_content"] for row in rows] == [
        "2 * 20 = 40 and 20 + 40 = 60.",
        "20 * 3 = 60.",
    ]
    assert {row["answer"] for row in rows} == {"60"} == {row["completion"][0]["content"] for row in rows}
    meta = rows[0]["meta"]
    assert (meta["pass_rate"], meta["agreement"], meta["votes"]) == (0.75, 0.75, {"60": 3, "22": 1})
    assert len(meta["parents"]) == 3 and meta["teacher"] == "scripted" and rows[0]["source"] == "self_play"
    assert all(row["question"] in teacher.texts[0] for row in PARENT)
    assert dropped == {} and manifest["told"]["problems"] == 1 and manifest["told"]["pass_rates"] == {"0.7-0.8": 1}


@pytest.mark.parametrize(
    ("solutions", "reason"),
    [
        ((TWICE, TWICE, TWICE, THRICE), "too_easy"),
        ((TWICE, WRONG, "It is 5.\nThe answer is 5.", "The answer is 9."), "no_agreement"),
        ((TWICE, "no idea", "cut: 20 + 40 = 60", "lost"), "too_hard"),
        (("no idea",), "no_agreement"),
    ],
)
def test_others_are_not(tmp_path: Path, solutions: tuple[str, ...], reason: str) -> None:
    rows, dropped, _, _ = played(tmp_path, solving(NEW, *solutions), low=0.3)
    assert rows == [] and dropped == {reason: 1}


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (TEST[0]["question"], "in_parents_test"),
        (TEST[1]["question"], "in_parents_test"),
        (TEST[0]["question"].upper().replace("?", " ??"), "in_parents_test"),
        (TEST[0]["question"].replace("five", "four"), "in_parents_test"),
        (PARENT[1]["question"], "like_parent"),
        (PARENT[1]["question"].replace("3", "9"), "like_parent"),
        ("Sure!", "no_problem"),
        (f"cut: {NEW}", "truncated_problem"),
    ],
)
def test_what_is_no_new_problem_is_solved_by_nobody(tmp_path: Path, problem: str, reason: str) -> None:
    rows, dropped, _, teacher = played(tmp_path, solving(problem, TWICE, WRONG, TWICE, TWICE))
    assert rows == [] and dropped == {reason: 1} and len(teacher.asked) == 1


def test_a_problem_like_an_earlier_one_is_dropped(tmp_path: Path) -> None:
    rows, dropped, manifest, _ = played(tmp_path, solving(NEW, TWICE, WRONG, THRICE, TWICE), n=3, tasks_per_shard=2)
    assert len(rows) == 2 and dropped == {"like_earlier": 4} and manifest["told"]["problems"] == 1


def test_no_problem_of_gsm8ks_test_split_comes_back(shared_data: Path, tmp_path: Path) -> None:
    """A teacher that writes test problems, as they are or with other names and spacing, among new ones."""
    folder = shared_data / "gsm8k"
    tests = [json.loads(line)["question"] for line in (folder / "test.jsonl").open(encoding="utf-8")]
    rng = random.Random(0)

    def problem(draw: int) -> str:
        text = tests[draw * 13 % len(tests)]
        words_ = text.split()
        return [text, "New problem:\n" + text.lower(), " ".join(words_).replace(",", ""), NEW.replace("20", str(draw))][
            draw % 4
        ]

    def answer(text: str, draw: int) -> str:
        if "Write one new problem" in text:
            return problem(draw)
        return rng.choice([f"{TWICE}", WRONG, TWICE])

    rows, dropped, manifest, _ = played(
        tmp_path,
        answer,
        source=str(folder / "train.jsonl"),
        source_split="train[:200]",
        n=60,
        k=3,
        agree=0.5,
        high=1.0,
        novelty=1.0,
    )
    assert dropped["in_parents_test"] == 45 and manifest["told"]["parents_test_kept_out"] is True
    assert rows and {row["prompt"][0]["content"].startswith("Olga swims") for row in rows} == {True}


def test_settings_and_sets_that_can_not_serve(tmp_path: Path) -> None:
    data = parent(tmp_path)
    with pytest.raises(ConfigError, match="low 0.9 is above high 0.5"):
        played(tmp_path, solving(NEW, TWICE), low=0.9, high=0.5)
    (tmp_path / "test.jsonl").unlink()
    builder = SelfPlay(SelfPlayOptions(out=tmp_path / "out", source=str(data)))
    with pytest.raises(ConfigError, match="--test none"):
        builder.sources()
    assert len(SelfPlay(SelfPlayOptions(out=tmp_path / "out", source=str(data), test="none")).sources()) == 1
    lettered = write_rows(tmp_path / "c.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 0, "subject": "x"}])
    with pytest.raises(DataError, match="open questions"):
        SelfPlay(SelfPlayOptions(out=tmp_path / "out", source=str(lettered), test="none")).sources()


def test_headings_and_solutions_are_taken_off() -> None:
    assert written_problem(f"**Problem 4:**\n{NEW}\n\nSolution: 20 + 40 = 60") == NEW
    assert written_problem(f"题目1：{NEW}\n答案：60") == NEW
    assert written_problem("Problems are many. How many are 2 and 3?") == "Problems are many. How many are 2 and 3?"


def test_by_its_command_line(tmp_path: Path) -> None:
    replies = {"Write one new problem": NEW, "Olga swims": TWICE}
    with running_server(replies=replies) as server:
        command = words(server, source=parent(tmp_path), out=tmp_path / "out", n=2, k=2, high=1.0)
        assert main(command) == 0 == main(command)
        assert len(server.log) == 2 + 2 * 2 - 2  # two problems, alike: the solutions of the second are the first's
    assert len(rows_in(tmp_path / "out")) == 1 and manifest_of(tmp_path / "out")["counts"]["dropped"] == {
        "like_earlier": 1
    }
