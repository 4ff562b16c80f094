"""Held-out answers: aligned over the evaluations, changed verdicts first, within the page's size."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmreason.report.answers import read_answers
from mmreason.report.data import Limits
from tests.report.synthetic_run import edit_rollout


def sheet(folder: Path, name: str, verdicts: list[str], **columns: list[Any]) -> None:
    n = len(verdicts)
    rows = {
        "row": list(range(n)),
        "id": [f"p{i}" for i in range(n)],
        "prompt": [f"question {i}" for i in range(n)],
        "completion": [f"{name} says {i}" for i in range(n)],
        "answer": [str(i) for i in range(n)],
        "verdict": verdicts,
    } | columns
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in rows.items() if v}), folder / f"{name}.parquet")


def test_problems_that_flipped_come_first(tmp_path: Path) -> None:
    sheet(tmp_path, "step-000000-held_out", ["correct", "wrong", "correct", "wrong", "unparseable"])
    sheet(tmp_path, "step-000009-held_out", ["correct", "wrong", "wrong", "correct", "correct"])
    (found,), problems = read_answers(tmp_path, Limits())
    assert problems == []
    assert [p["row"] for p in found.problems] == [3, 4, 2, 0, 1]
    assert [s.step for s in found.sheets] == [0, 9]
    assert found.sheets[0].verdict == ["wrong", "unparseable", "correct", "correct", "wrong"]
    assert found.sheets[1].completion[0] == "step-000009-held_out says 3"
    assert found.with_text == 5


def test_a_problem_that_one_evaluation_lacks_leaves_a_gap(tmp_path: Path) -> None:
    sheet(tmp_path, "step-000000-s", ["wrong", "wrong"])
    sheet(tmp_path, "step-000003-s", ["wrong", "wrong", "correct"])
    (found,), _ = read_answers(tmp_path, Limits())
    at = [p["row"] for p in found.problems].index(2)
    assert (found.sheets[0].verdict[at], found.sheets[1].verdict[at]) == (None, "correct")


def test_rows_meet_by_id_where_there_is_no_row(tmp_path: Path) -> None:
    sheet(tmp_path, "step-000000-s", ["wrong", "correct"], row=[], id=["a", "b"])
    sheet(tmp_path, "step-000003-s", ["correct", "wrong"], row=[], id=["b", "a"])
    (found,), _ = read_answers(tmp_path, Limits())
    assert dict(zip([p["id"] for p in found.problems], found.sheets[1].verdict, strict=True)) == {
        "a": "wrong",
        "b": "correct",
    }


def test_texts_end_where_the_page_is_full_but_verdicts_stay(run: Path) -> None:
    found, _ = read_answers(run / "evaluations", Limits(answer_characters=3000))
    assert [s.name for s in found] == ["held_out", "unseen_templates"]
    for one in found:
        assert 0 < one.with_text < 20
        used = sum(len(p["prompt"] or "") + len(p["answer"] or "") for p in one.problems)
        used += sum(len(text or "") for s in one.sheets for text in s.completion)
        assert used <= 1500
        assert all(s.completion[one.with_text] is None and s.extracted[-1] is None for s in one.sheets)
        assert all(verdict is not None for s in one.sheets for verdict in s.verdict)


def test_of_many_evaluations_first_last_and_some_between(tmp_path: Path) -> None:
    for step in range(0, 100, 5):
        sheet(tmp_path, f"step-{step:06d}-s", ["wrong"])
    (found,), _ = read_answers(tmp_path, Limits())
    steps = [s.step for s in found.sheets]
    assert (len(steps), steps[0], steps[-1]) == (8, 0, 95)
    assert max(b - a for a, b in pairwise(steps)) <= 15


def test_damaged_and_unknown_files_are_named(run: Path) -> None:
    folder = run / "evaluations"
    (folder / "step-000012-held_out.parquet").write_bytes(b"PAR1 cut")
    (folder / "notes.parquet").write_bytes(b"")
    found, problems = read_answers(folder, Limits())
    assert [s.step for s in found[0].sheets] == [0, 6]
    assert len(problems) == 2
    assert any(p.startswith("evaluations/notes.parquet: the name has no step and set") for p in problems)
    assert any(p.startswith("evaluations/step-000012-held_out.parquet can't be read (") for p in problems)


def test_missing_columns(run: Path) -> None:
    for path in (run / "evaluations").glob("*.parquet"):
        edit_rollout(path, verdict=None, extracted=None, length=None, answer=None)
    found, problems = read_answers(run / "evaluations", Limits())
    assert problems == []
    assert set(found[0].sheets[0].verdict) == {None} and found[0].problems[0]["answer"] is None
    assert found[0].sheets[0].completion[0]


def test_no_folder(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "evaluations", Limits()) == ([], [])
