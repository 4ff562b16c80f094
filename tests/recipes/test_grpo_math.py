"""The recipe as a whole: what a run leaves behind, what is measured once, how the script ends."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmreason.config import run_as_script
from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers import distributed
from mmreason.types import ConfigError
from tests.recipes.conftest import call_recipe
from tests.recipes.launch import environment, metrics

EVALUATION = ("--eval_samples", "6", "--eval_num_generations", "3", "--eval_steps", "1")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    call_recipe(folder, "--max_steps", "2", *EVALUATION)
    return folder


def test_accuracy_before_during_and_after(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = evaluated / "evaluation.json"
    found = json.loads(kept.read_text())
    assert [(name, entry["step"]) for name, entry in found.items()] == [("before", 0), ("step 1", 1), ("after", 2)]
    lines = metrics(evaluated)
    for name, entry in found.items():
        (measured,) = entry["sets"].values()
        for key in ("greedy", "greedy_strict"):
            assert measured[key]["n"] == 6 and measured[key]["low"] <= measured[key]["value"] <= measured[key]["high"]
        assert sum(measured["verdicts"].values()) == 6
        assert (measured["majority"], measured["k"]) == (None, 0) if name == "step 1" else measured["k"] == 3
        if entry["step"]:
            line = lines[entry["step"] - 1]
            assert line["eval/held_out/greedy"] == measured["greedy"]["value"]
            assert line["eval/held_out/mean_length"] == measured["mean_length"]
        rows = pq.read_table(evaluated / "evaluations" / f"step-{entry['step']:06d}-held_out.parquet").to_pylist()
        assert [row["row"] for row in rows] == list(range(6))
        assert Counter(row["verdict"] for row in rows) == measured["verdicts"]
        assert sum(row["length"] for row in rows) / 6 == pytest.approx(measured["mean_length"])
        assert all(row["answer"] and row["prompt"] for row in rows)
    # The same command again measures nothing again; one step more measures "after" anew and "before" not.
    stamp = kept.stat().st_mtime_ns
    call_recipe(evaluated, *EVALUATION, "--max_steps", "2")
    assert kept.stat().st_mtime_ns == stamp
    assert "after (step 2)" in capsys.readouterr().out
    call_recipe(evaluated, *EVALUATION, "--max_steps", "3")
    again = json.loads(kept.read_text())
    assert again["before"] == found["before"] and again["after"]["step"] == 3 and again["step 2"] == found["after"]


def test_several_held_out_sets(tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is measured on its own, in the table, in evaluation.json and in the trackers."""
    for split, count in (("train", 16), ("test", 3), ("other", 5)):
        rows = [{"prompt": f"{split} {i} + 1 =", "answer": str(i + 1)} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--dataset_name", str(tmp_path), "--dataset_test_split", "test", "--extra_test_splits", "other")
    run = ("--eval_samples", "4", "--max_steps", "3", "--eval_steps", "2", "--logging_steps", "50")
    trackers = ("--report_to", "tensorboard", "--model_name_or_path", tiny_checkpoint)
    call_recipe(tmp_path / "run", *data, *run, *trackers)
    said = capsys.readouterr().out
    assert "held out: 3 held_out, 4 other\n16 training problems" in said and re.search(
        r"^other +after \(step 3\) .*/4\)", said, re.M
    )
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for entry in found.values():
        assert {name: measured["greedy"]["n"] for name, measured in entry["sets"].items()} == {
            "held_out": 3,
            "other": 4,
        }
    names = {f"step-00000{step}-{name}.parquet" for step in (0, 2, 3) for name in ("held_out", "other")}
    assert {path.name for path in (tmp_path / "run" / "evaluations").iterdir()} == names
    assert [[key for key in line if key.startswith("eval/other")] for line in metrics(tmp_path / "run")] == [
        [], ["eval/other/greedy", "eval/other/mean_length"], []
    ]  # fmt: skip
    # A step with an evaluation reaches the trackers even where logging_steps would leave it out.
    events = EventAccumulator(str(next((tmp_path / "run" / "logs").rglob("events.out.tfevents.*")).parent)).Reload()
    assert [event.step for event in events.Scalars("eval/other/greedy")] == [2]


def test_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    """Not the random numbers (dropout draws some in each update), not the optimizer, not a rollout in flight."""
    lora = ("--use_peft", "--lora_target_modules", "all-linear", "--lora_dropout", "0.2")
    flags = ("--max_steps", "4", "--num_iterations", "2", *lora)
    call_recipe(tmp_path / "without", *flags)
    call_recipe(tmp_path / "with", *flags, *EVALUATION)
    for left, right in zip(metrics(tmp_path / "without"), metrics(tmp_path / "with"), strict=True):
        same = {key for key in left if not key.startswith("time/")}
        assert {key: left[key] for key in same} == {key: right[key] for key in same}


def test_a_run_that_was_killed_before_its_first_checkpoint(evaluated: Path, tmp_path: Path) -> None:
    """It starts over, and its metrics too."""
    folder = shutil.copytree(evaluated, tmp_path / "run")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    call_recipe(folder, *EVALUATION, "--max_steps", "1")
    assert [row["step"] for row in metrics(folder)] == [1]
    assert list(json.loads((folder / "evaluation.json").read_text())) == ["before", "after"]


def test_samples_are_kept(evaluated: Path) -> None:
    rows = pq.read_table(evaluated / "rollouts" / "rollout-000001.parquet").to_pylist()
    first = metrics(evaluated)[0]
    assert len(rows) == 16 and [row["group"] for row in rows] == [i // 4 for i in range(16)]
    for group in range(4):
        members = rows[4 * group : 4 * group + 4]
        assert len({row["prompt"] for row in members}) == len({row["id"] for row in members}) == 1
        assert sum(row["advantage"] for row in members) == pytest.approx(0, abs=1e-5)
    for row in rows:
        assert row["completion_length"] == len(row["completion_ids"]) == len(row["sampling_logps"])
        assert len(row["completion_tokens"]) == row["completion_length"]
        assert "".join(row["completion_tokens"]) == tiny_tokenizer().decode(row["completion_ids"])
        assert row["verdict"] in {"correct", "wrong", "unparseable"}
        assert row["rewards/partial_credit_reward"] == row["reward"]
    assert sum(row["reward"] for row in rows) / 16 == pytest.approx(first["reward"])
    assert sum(row["truncated"] for row in rows) / 16 == pytest.approx(first["completions/clipped_ratio"])
    assert first["num_tokens"] == sum(row["completion_length"] for row in rows)


def test_a_report_is_the_last_thing_said(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "run")
    (folder / "report.html").unlink()
    call_recipe(folder, *EVALUATION, "--max_steps", "1")
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {folder / 'report.html'}"
    assert "eval/held_out/greedy" in (folder / "report.html").read_text(encoding="utf-8")
    # A report that fails is said; the run is none the worse.
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    call_recipe(folder, *EVALUATION, "--max_steps", "1")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("The report could not be written (") and said.endswith(
        f"mmreason report {folder} tries again."
    )


def test_no_held_out_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_recipe(tmp_path / "run", "--max_steps", "1")
    assert "No held-out problems, so no accuracy was measured." in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluation.json").exists()


def stop(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("rank", "said"), [(None, "error: no good"), ("0", "error: no good"), ("3", "error (process 3): no good")]
)
def test_a_users_error_has_no_traceback(rank: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        run_as_script(lambda: stop(ConfigError("no good")))
    assert caught.value.code == said


def test_other_ends_of_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_as_script(lambda: stop(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_as_script(lambda: stop(ZeroDivisionError()))
    run_as_script(lambda: None)


ABORTS = """
import atexit, os, sys
from mmreason.config import run_as_script

class Tensor:
    abort = os.abort

    def __del__(self):
        self.abort()

kept = Tensor()
atexit.register(print, "exit function")
run_as_script(lambda: print("work done"))
"""


@pytest.mark.parametrize(("processes", "device", "kept"), [(1, "cpu", False), (2, "cpu", True), (2, "cuda", False)])
def test_trainers_of_several_processes_live_until_the_end(
    processes: int, device: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch may hang when it takes a DDP model apart, so nothing does before `run_as_script` ends the process."""
    monkeypatch.setattr(distributed, "_LIVING", [])
    trainer = SimpleNamespace(policy=torch.nn.Linear(1, 1))
    policy = weakref.ref(trainer.policy)
    accelerator = SimpleNamespace(num_processes=processes, device=torch.device(device))
    distributed.keep_until_exit(accelerator, trainer)  # type: ignore[arg-type]
    del trainer
    gc.collect()
    assert (policy() is not None) == kept


@pytest.mark.parametrize("processes", [1, 2])
def test_several_processes_leave_without_finalising(processes: int) -> None:
    """Where one process tears Python down as usual (and this object then aborts it), one of several does not."""
    done = subprocess.run(
        [sys.executable, "-u", "-c", ABORTS],
        env=environment() | {"WORLD_SIZE": str(processes)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "work done\nexit function\n"
    assert done.returncode == (0 if processes > 1 else -signal.SIGABRT)
