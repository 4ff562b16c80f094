"""Checkpoints are whole or absent; signals become a request to stop; an output folder belongs to one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.state import (
    CheckpointError,
    Checkpoints,
    RunState,
    find_checkpoint,
    open_output_dir,
    stop_on_signal,
    whole_checkpoints,
)
from mmreason.types import ConfigError


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Checkpoints]:
    parallel = DataParallel(Accelerator(cpu=True))
    return lambda limit=None: Checkpoints(tmp_path, parallel, limit)


def fill(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "model.safetensors").write_text("weights")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_save_then_read(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    state = RunState(step=10, rollouts=3, updates_in_rollout=1, samples=48, tokens=99, seconds=1.5)
    path = make().save(state, fill)
    assert path == tmp_path / "checkpoint-10" and names(tmp_path) == ["checkpoint-10"]
    assert asdict(Checkpoints.read_state(path)) == asdict(state)
    assert make().latest() == path == find_checkpoint(tmp_path, "auto") == find_checkpoint(tmp_path, str(path))


@pytest.mark.parametrize(("limit", "left"), [(None, [2, 9, 10, 11]), (2, [10, 11]), (1, [11]), (0, [11])])
def test_rotation_keeps_the_newest(
    make: Callable[..., Checkpoints], tmp_path: Path, limit: int | None, left: list[int]
) -> None:
    for step in (2, 9, 10, 11):
        make(limit).save(RunState(step=step), fill)
    assert [int(path.name.split("-")[1]) for path in whole_checkpoints(tmp_path)] == left


class SafetensorsLikeError(Exception):
    """Some libraries raise bare Exceptions for a full disk."""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), RuntimeError("enforce fail"), SafetensorsLikeError("io")]
)
def test_a_failed_save_leaves_the_last_one(make: Callable[..., Checkpoints], tmp_path: Path, error: Exception) -> None:
    make().save(RunState(step=1), fill)

    def breaks(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(CheckpointError, match=r"checkpoint-2: .* The last whole one is .*checkpoint-1\."):
        make(1).save(RunState(step=2), breaks)
    assert names(tmp_path) == ["checkpoint-1"]
    assert names(tmp_path / "checkpoint-1") == ["model.safetensors", "run_state.json", "state"]


def test_a_first_save_that_fails_says_so(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1.writing").write_text("in the way")
    with pytest.raises(CheckpointError, match="There is no earlier one"):
        make().save(RunState(step=1), fill)


def test_a_bug_while_saving_keeps_its_type(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        make().save(RunState(step=2), lambda folder: len(3))  # type: ignore[arg-type]
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_save_that_was_killed_is_no_checkpoint(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    code = (
        "import os, sys; from accelerate import Accelerator; from pathlib import Path\n"
        "from mmreason.trainers.distributed import DataParallel\n"
        "from mmreason.trainers.state import Checkpoints, RunState\n"
        "save = Checkpoints(sys.argv[1], DataParallel(Accelerator(cpu=True)), None).save\n"
        "save(RunState(step=1), lambda folder: None)\n"
        "save(RunState(step=2), lambda folder: ((folder / 'half').write_text('x'), os.kill(os.getpid(), 9)))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2.writing"]
    assert make().latest() == tmp_path / "checkpoint-1"
    make().save(RunState(step=2), fill)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert names(tmp_path / "checkpoint-2") == ["model.safetensors", "run_state.json", "state"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": 1, "unknown": 2}'])
def test_unreadable_run_state(tmp_path: Path, text: str | None) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    if text is not None:
        (folder / "run_state.json").write_text(text)
    with pytest.raises(CheckpointError, match="checkpoint-3 is not a checkpoint that can be continued"):
        Checkpoints.read_state(folder)


def test_what_resume_finds(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "auto") is None and find_checkpoint(tmp_path, "never") is None
    make().save(RunState(step=1), lambda folder: None)
    with pytest.raises(CheckpointError, match="save_only_model"):
        find_checkpoint(tmp_path, "auto")
    make().save(RunState(step=2), fill)
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-2"
    with pytest.raises(ConfigError, match="holds checkpoint-2 of an earlier run"):
        find_checkpoint(tmp_path, "never")


def test_going_back_sets_newer_ones_aside(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make().save(RunState(step=step), fill)
    assert [path.name for path in make().abandon_after(1)] == ["checkpoint-2", "checkpoint-3"]
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2.abandoned", "checkpoint-3.abandoned"]
    make(1).save(RunState(step=2), fill)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_output_dir_belongs_to_one_run(tmp_path: Path) -> None:
    folder = str(tmp_path / "a" / "run")
    open_output_dir(folder, {"seed": 1, "data": "x"}, False, True, PolicyConfig(output_dir=folder))
    (tmp_path / "a" / "run" / "checkpoint-5.writing").mkdir()
    open_output_dir(folder, {"data": "x", "seed": 1}, False, True)
    assert names(tmp_path / "a" / "run") == ["config.yaml", "run.json"]
    with pytest.raises(ConfigError, match="seed: 1 there, 2 now"):
        open_output_dir(folder, {"seed": 2, "data": "x"}, False, True)
    (tmp_path / "a" / "run" / "mine.txt").write_text("kept")
    (tmp_path / "a" / "run" / "evaluations").mkdir()
    (tmp_path / "a" / "run" / "report.html").write_text("of the run that was")
    open_output_dir(folder, {"seed": 2}, True, True)
    assert names(tmp_path / "a" / "run") == ["config.yaml", "mine.txt", "run.json"]
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert record["identity"] == {"seed": 2} and record["machine"]["cpus"] == os.cpu_count()
    assert record["versions"]["torch"] == torch.__version__
    assert (tmp_path / "a" / "run" / "mine.txt").read_text() == "kept"
    open_output_dir(str(tmp_path / "other"), {}, False, is_main=False)
    assert not (tmp_path / "other").exists()


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        assert number.name in capsys.readouterr().err
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)  # a scheduler may send it again
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_signal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_caught() -> None:
    found: list[bool] = []

    def body() -> None:
        with stop_on_signal() as asked:
            found.append(asked())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [False]
