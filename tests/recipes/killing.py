"""kill -9 at a named place in the code, the same command again, and the comparison with an unbroken run.

    def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
        assert_killed_run_ends_alike(
            lambda folder: command(folder, "--save_steps", "2"),
            tmp_path,
            Moment("mmreason.trainers.policy:policy_loss", call=3),   # in the update of step 3
            "checkpoint-4.writing",                                   # as soon as this is in the output folder
        )

The run is killed at the first moment, started again, killed at the second, … and in the end left to finish.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from tests import processes
from tests.recipes.launch import ROOT, _signal_tree, environment, metrics, run

HALT = ROOT / "tests" / "recipes" / "halt_at.py"
DIFFERENT = ("time/",)
"""Metrics that no two runs have in common."""


@dataclass(frozen=True)
class Moment:
    """The `call`-th time that a process calls `target`, "module:function" or "module:Class.method".

    Calls are counted from the start of each process, so those of a continued run begin at 1 again. Of a function that
    the calling module imported by name, give the calling module. after: once the function's body is through.
    """

    target: str
    call: int = 1
    after: bool = False


def kill_at(words: Sequence[str], output_dir: Path, moment: Moment | str, timeout: float = 600) -> str:
    """Start the command, kill it and all that it started at the moment, and return what it had said.

    Args:
        words: from `tests.recipes.launch.command`, or any that runs a script of recipes/, with or without
            `accelerate launch`. moment: a call, or the glob of a path in output_dir that kills by appearing.

    Raises: AssertionError: the command ended before, or `timeout` seconds were not enough.
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    mark, log = output_dir.with_name(f"{output_dir.name}.halted"), output_dir.with_name(f"{output_dir.name}.log")
    mark.unlink(missing_ok=True)
    words = list(words)
    if isinstance(moment, Moment):
        script = next(i for i, word in enumerate(words) if Path(word).suffix == ".py" and Path(word).is_file())
        when = "after" if moment.after else "before"
        words[script:script] = [str(HALT), moment.target, str(moment.call), when, str(mark)]

    def reached() -> bool:
        return mark.exists() if isinstance(moment, Moment) else any(output_dir.glob(moment))

    assert not reached(), f"{moment} is there before the run has begun"
    with log.open("w") as file:
        process = processes.start(words, cwd=ROOT, env=environment(), out=file, err=file)
        deadline = time.monotonic() + timeout
        try:
            while process.poll() is None and not reached() and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            ended, late = process.poll() is not None, time.monotonic() >= deadline
            if not ended:
                _signal_tree(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text(errors="replace")
    assert not ended, f"the run ended (code {process.returncode}) before {moment}:\n{said[-3000:]}"
    assert not late, f"{moment} was not reached in {timeout} s:\n{said[-3000:]}"
    return said


def assert_killed_run_ends_alike(
    make: Callable[[Path], Sequence[str]],
    tmp_path: Path,
    *moments: Moment | str,
    unbroken: Path | None = None,
    says: str | None = "Continuing from",
    compare: Callable[[Path, Path], None] | None = None,
    timeout: float = 600,
) -> tuple[Path, Path]:
    """Run `make(output_dir)` once unbroken, once killed at each moment in turn, and compare what they leave.

    Args:
        unbroken: the output folder of such a run, where there is one already.
        says: what a continued run prints; one that began anew would end alike, too. None: not looked for.
        compare: of (unbroken, broken), instead of `assert_same_run`.

    Returns: (unbroken, broken): the output folders.
    """
    if unbroken is None:
        unbroken = tmp_path / "unbroken"
        done = run(list(make(unbroken)), timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
    broken = tmp_path / "broken"
    for moment in moments:
        kill_at(make(broken), broken, moment, timeout)
    again = run(list(make(broken)), timeout=timeout)
    assert again.returncode == 0, again.stderr[-3000:]
    assert says is None or says in again.stdout, again.stdout[-3000:]
    (compare or assert_same_run)(unbroken, broken)
    return unbroken, broken


def assert_same_run(expected: Path, found: Path) -> None:
    """Bit-equal final weights, and the same metrics, rollouts and evaluations on the way."""
    assert_same_weights(expected, found)
    assert_same_metrics(expected, found)
    for pattern in ("rollouts/*.parquet", "evaluations/*.parquet"):
        files = [sorted(folder.glob(pattern)) for folder in (expected, found)]
        assert [p.name for p in files[0]] == [p.name for p in files[1]]
        for left, right in zip(*files, strict=True):
            assert pq.read_table(left).equals(pq.read_table(right)), f"{right.name} differs"
    for name in ("evaluation.json", "guards.jsonl"):
        assert _text(expected / name) == _text(found / name), f"{name} differs"


def assert_same_weights(expected: Path, found: Path) -> None:
    """Bit for bit, of the newest checkpoint and of `final/`, where that is."""
    left, right = _weights(expected), _weights(found)
    assert left and [p.relative_to(expected) for p in left] == [p.relative_to(found) for p in right]
    for a, b in zip(left, right, strict=True):
        want, got = load_file(a), load_file(b)
        assert want.keys() == got.keys()
        differ = [name for name in want if not torch.equal(want[name], got[name])]
        assert not differ, f"{b}: {len(differ)} of {len(want)} tensors differ, {differ[:3]}"


def assert_same_metrics(expected: Path, found: Path, different: Iterable[str] = DIFFERENT) -> None:
    """Line for line, but for names that begin like one of `different`."""
    left, right = metrics(expected), metrics(found)
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for want, got in zip(left, right, strict=True):
        assert _without(want, different) == _without(got, different), f"step {want['step']}"


def _weights(folder: Path) -> list[Path]:
    numbered = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    folders = [*sorted(numbered, key=lambda p: int(p.name.split("-")[1]))[-1:], folder / "final"]
    return [path for part in folders for path in sorted(part.glob("*.safetensors"))]


def _without(row: dict[str, Any], different: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(tuple(different))}


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
