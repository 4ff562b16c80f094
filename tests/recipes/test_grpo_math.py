"""The recipe as a whole: what a run leaves behind, what is measured once, how the script ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmreason.config import run_as_script
from mmreason.types import ConfigError
from tests.recipes.conftest import call_recipe
from tests.recipes.launch import environment, metrics


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    call_recipe(folder, "--max_steps", "2", "--eval_samples", "6", "--eval_num_generations", "3")
    return folder


def test_accuracy_before_and_after(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = evaluated / "evaluation.json"
    found = json.loads(kept.read_text())
    assert [(name, result["step"]) for name, result in found.items()] == [("before", 0), ("after", 2)]
    for result in found.values():
        for key in ("greedy", "greedy_strict", "majority"):
            assert result[key]["n"] == 6 and result[key]["low"] <= result[key]["value"] <= result[key]["high"]
        assert sum(result["verdicts"].values()) == 6 and result["k"] == 3
    # The same command again measures nothing again; one step more measures "after" anew and "before" not.
    stamp = kept.stat().st_mtime_ns
    flags = ("--eval_samples", "6", "--eval_num_generations", "3")
    call_recipe(evaluated, *flags, "--max_steps", "2")
    assert kept.stat().st_mtime_ns == stamp
    assert "after (step 2)" in capsys.readouterr().out
    call_recipe(evaluated, *flags, "--max_steps", "3")
    again = json.loads(kept.read_text())
    assert again["before"] == found["before"] and again["after"]["step"] == 3


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
        assert row["verdict"] in {"correct", "wrong", "unparseable"}
        assert row["rewards/partial_credit_reward"] == row["reward"]
    assert sum(row["reward"] for row in rows) / 16 == pytest.approx(first["reward"])
    assert sum(row["truncated"] for row in rows) / 16 == pytest.approx(first["completions/clipped_ratio"])
    assert first["num_tokens"] == sum(row["completion_length"] for row in rows)


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
