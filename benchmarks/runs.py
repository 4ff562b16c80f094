"""Runs of recipes as benchmarks start and read them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, child_environment

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
"""Of curves; told apart by colour-blind readers (Okabe, Ito)."""


def launch(command: Sequence[str], folder: Path, steps: int, *, log: Path, name: str, threads: int | None) -> int:
    """Run a command to its end, its output in a log, with a bar of its optimizer steps; returns the exit status.

    Args:
        folder: its output folder, where metrics.jsonl grows by a line each step or so.
        name: of the bar. threads: see `child_environment`.
    """
    metrics = folder / "metrics.jsonl"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(threads), stdout=file, stderr=subprocess.STDOUT
        )
        try:
            with tqdm(total=steps, desc=name, unit="step") as bar:
                while process.poll() is None:
                    time.sleep(1)
                    bar.update(_last_step(metrics) - bar.n)
        finally:
            process.wait()  # after Ctrl-C, which it has got too: it saves a checkpoint
    return process.returncode


def _last_step(metrics: Path) -> int:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:  # the line is being written
        return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def end_of(log: Path) -> str:
    """The last lines of a log, for an error."""
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    return f"the end of {log}:\n{tail}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """A run's evaluation.json."""
    return dict(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """The mean of each value and its neighbours: single rollouts are noisy."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def verdict(broken: Sequence[str], written: Path) -> int:
    """Say which claims the runs don't hold and where their numbers are; returns the exit status."""
    for line in broken:
        print(f"NOT SHOWN  {line}", file=sys.stderr)
    print(f"written to {written}")
    return 1 if broken else 0
