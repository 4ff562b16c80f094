"""Measurements of a run: what is kept, what is measured again, what a continued run forgets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmreason.rollout.evaluate import Accuracy, Evaluation, GreedyAnswer
from mmreason.trainers.evaluation import Evaluations
from mmreason.trainers.problems import HeldOut
from mmreason.types import MMReasonError

SETS = {"held_out": HeldOut(None, [[1]] * 10), "unseen": HeldOut(None, [[2]] * 4)}


class Run:
    """A trainer that measures what it is told to: `correct` problems of each set, the step's number of tokens."""

    def __init__(self, step: int = 0, is_main: bool = True) -> None:
        self.accelerator = SimpleNamespace(is_main_process=is_main)
        self.state = SimpleNamespace(global_step=step)
        self.correct = 1
        self.measured: list[tuple[int, int, int]] = []  # (step, problems, k)

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        n, step = len(held_out.prompt_ids), self.state.global_step
        self.measured.append((step, n, k))
        share = Accuracy(self.correct, n)
        answers = [GreedyAnswer(i, f"p{i}", "1 + 1", "2\ud800", "2", "correct", "2", 3) for i in range(n)]
        return Evaluation(share, Accuracy(0, n), share if k > 1 else None, k, {"correct": n}, float(step)), answers


def make(run: Run, folder: Path, sets: Mapping[str, HeldOut] = SETS, k: int = 4) -> Evaluations:
    return Evaluations(run, sets, k, str(folder))


def kept(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "evaluation.json").read_text()))


def answers(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evaluations").iterdir())


def whole_run(folder: Path, run: Run) -> Evaluations:
    """Six steps, measured before, every two steps and after, as the recipe does it."""
    evaluations = make(run, folder)
    evaluations.run("before")
    for step in range(run.state.global_step + 1, 7):
        run.state.global_step = step
        if step % 2 == 0:
            evaluations.while_training(is_last=step == 6)
    evaluations.run("after")
    return evaluations


def test_a_run_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run()
    evaluations = whole_run(tmp_path, run)
    # In the middle greedily, around the training with the vote; the last step is measured once, as "after".
    assert run.measured == [(s, n, 4 if s in (0, 6) else 0) for s in (0, 2, 4, 6) for n in (10, 4)]
    found = kept(tmp_path)
    assert [(name, entry["step"]) for name, entry in found.items()] == [
        ("before", 0), ("step 2", 2), ("step 4", 4), ("after", 6)
    ]  # fmt: skip
    assert list(found["step 2"]["sets"]) == ["held_out", "unseen"]
    assert found["step 2"]["sets"]["unseen"] == {
        "greedy": {"correct": 1, "n": 4, "value": 0.25, "low": pytest.approx(0.0456, abs=1e-4),
                   "high": pytest.approx(0.6994, abs=1e-4)},
        "greedy_strict": {"correct": 0, "n": 4, "value": 0.0, "low": 0.0, "high": pytest.approx(0.4899, abs=1e-4)},
        "majority": None, "k": 0, "verdicts": {"correct": 4}, "mean_length": 2.0,
    }  # fmt: skip
    assert found["after"]["sets"]["held_out"]["majority"]["n"] == 10
    assert answers(tmp_path) == [
        f"step-00000{step}-{name}.parquet" for step in (0, 2, 4, 6) for name in ("held_out", "unseen")
    ]
    table = pq.read_table(tmp_path / "evaluations" / "step-000004-unseen.parquet")
    assert table.column_names == ["row", "id", "prompt", "completion", "answer", "verdict", "extracted", "length"]
    assert table.num_rows == 4 and table.to_pylist()[1]["completion"] == "2?"
    assert "step 2, held_out, 10 problems: greedy 0.100" in capsys.readouterr().out

    lines = evaluations.table().splitlines()
    assert len(lines) == 1 + 2 * 4 and lines[0].split() == ["greedy", "greedy,", "strict", "maj@4", "tokens"]
    assert lines[1].startswith("held_out  before (step 0)  0.100 [0.018, 0.404] (1/10)") and lines[1].endswith("0.0")
    assert lines[3].split()[:3] == ["held_out", "step", "4"] and lines[3].split()[-2:] == ["-", "4.0"]
    assert lines[8].startswith("unseen    after (step 6)   0.250")


def test_numbers_for_the_line_of_the_step(tmp_path: Path) -> None:
    run = Run(step=3)
    found = make(run, tmp_path).while_training(is_last=False)
    assert found == {
        "eval/held_out/greedy": 0.1, "eval/held_out/mean_length": 3.0,
        "eval/unseen/greedy": 0.25, "eval/unseen/mean_length": 3.0,
    }  # fmt: skip


def test_a_continued_run_measures_nothing_twice(tmp_path: Path) -> None:
    whole_run(tmp_path, Run())
    first = kept(tmp_path)
    again = Run(step=6)
    whole_run(tmp_path, again)
    assert again.measured == [] and kept(tmp_path) == first
    # From a checkpoint at step 4 on: what came later is forgotten and measured again.
    back = Run(step=4)
    back.correct = 3
    evaluations = make(back, tmp_path)
    assert answers(tmp_path)[-1] == "step-000004-unseen.parquet"
    evaluations.run("before")
    back.state.global_step = 6
    evaluations.while_training(is_last=True)
    evaluations.run("after")
    assert back.measured == [(6, 10, 4), (6, 4, 4)]
    found = kept(tmp_path)
    assert found["step 4"] == first["step 4"] and found["before"] == first["before"]
    assert found["after"]["sets"]["held_out"]["greedy"]["correct"] == 3


def test_a_finished_run_that_goes_on_keeps_its_old_end(tmp_path: Path) -> None:
    whole_run(tmp_path, Run())
    old = kept(tmp_path)["after"]
    run = Run(step=6)
    evaluations = make(run, tmp_path)
    evaluations.run("before")
    run.state.global_step = 8
    evaluations.run("after")
    found = kept(tmp_path)
    assert list(found) == ["before", "step 2", "step 4", "step 6", "after"]
    assert found["step 6"] == old and found["after"]["step"] == 8


def test_a_set_that_is_new_is_measured_where_that_can_still_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"held_out": SETS["held_out"]}
    make(Run(), tmp_path, one).run("before")
    run = Run()
    make(run, tmp_path).run("before")
    assert run.measured == [(0, 4, 4)] and list(kept(tmp_path)["before"]["sets"]) == ["held_out", "unseen"]
    # The same set with other problems, or another vote, is another measurement.
    more = Run()
    make(more, tmp_path, {"held_out": HeldOut(None, [[1]] * 11)}).run("before")
    make(more, tmp_path, {"held_out": HeldOut(None, [[1]] * 11)}, k=5).run("before")
    assert more.measured == [(0, 11, 4), (0, 11, 5)]
    late = Run(step=3)
    make(late, tmp_path, {"new": SETS["unseen"]}).run("before")
    assert late.measured == [] and kept(tmp_path)["before"]["step"] == 0
    assert "new was not measured like this before training (step 0)" in capsys.readouterr().out


OLD = {"before": {"step": 0, "greedy": {"correct": 1, "n": 6, "value": 1 / 6, "low": 0.0, "high": 0.6}, "k": 3}}


@pytest.mark.parametrize("text", [json.dumps(OLD), "{", "[]", '{"before": 3}', '{"before": {"sets": {}}}', "\x00"])
def test_a_file_of_an_earlier_version_is_measured_anew(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    run = Run(step=2)
    evaluations = make(run, tmp_path)
    assert "evaluation.json is damaged or of an earlier version" in capsys.readouterr().out
    evaluations.run("before")
    assert run.measured == [(2, 10, 4), (2, 4, 4)]
    assert kept(tmp_path)["before"]["step"] == 2


def test_without_sets_nothing_happens(tmp_path: Path) -> None:
    run = Run()
    evaluations = make(run, tmp_path, {})
    evaluations.run("before")
    assert evaluations.while_training(is_last=False) == {} and run.measured == []
    assert list(tmp_path.iterdir()) == []
    assert evaluations.table() == "No held-out problems, so no accuracy was measured."


def test_other_processes_measure_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(is_main=False)
    make(run, tmp_path).run("before")
    assert len(run.measured) == 2 and list(tmp_path.iterdir()) == []
    # What is there they leave to the main process, which tells them.
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "step-000009-held_out.parquet").write_text("")
    (tmp_path / "evaluation.json").write_text("{")
    make(run, tmp_path)
    assert answers(tmp_path) == ["step-000009-held_out.parquet"] and capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluations").write_text("in the way")
    with pytest.raises(MMReasonError, match=r"step-000000-held_out\.parquet can't be written"):
        make(Run(), tmp_path).run("before")
    (tmp_path / "evaluations").unlink()
    (tmp_path / f".evaluation.json.{os.getpid()}.tmp").mkdir()
    with pytest.raises(MMReasonError, match=r"evaluation\.json can't be written .* checkpoints are untouched"):
        make(Run(), tmp_path).run("before")
