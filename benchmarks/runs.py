"""Runs of recipes as benchmarks start and read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, child_environment, provenance
from mmreason._files import write_whole

PACKAGES = ("torch", "transformers", "accelerate", "trl")
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


def ensure(
    outputs: Path, name: str, words: Sequence[str], folder: Path, steps: int, threads: int | None
) -> dict[str, Any]:
    """Run a command, go on with it, or find it finished. Returns its record: seconds, commit …

    Args: outputs: where records and logs lie. folder: of the run; one that is called "ppo" is a stage of its parent.
    """
    path = outputs / f"{name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if record.get("words") not in (None, list(words)):
        raise SystemExit(f"{path} is of another command; delete it and {folder} to run {name} anew")
    if record.get("finished"):
        print(f"{name}: finished before, at commit {record['commit']}")
        return dict(record)
    if not record:
        record = {"words": list(words), "finished": False, "seconds": 0.0} | provenance(0, PACKAGES)
    write_whole(path, json.dumps(record))
    log = outputs / f"{name}.log"
    where = ["--output_dir", os.path.relpath(folder.parent if folder.name == "ppo" else folder, ROOT)]
    started = time.perf_counter()
    try:
        status = launch([sys.executable, *words, *where], folder, steps, log=log, name=name, threads=threads)
        record["finished"] = status == 0 and read_evaluations(folder).get("after", {}).get("step") == steps
    finally:
        record["seconds"] += time.perf_counter() - started
        write_whole(path, json.dumps(record))
    if not record["finished"]:
        raise SystemExit(f"{name} ended before it was done; {end_of(log)}")
    return record


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """The mean of each value and its neighbours: single rollouts are noisy."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def plot_arms(
    rows: Sequence[Mapping[str, str]],
    arms: Sequence[str],
    title: str,
    path: Path,
    *,
    line: tuple[str, float] | None = None,
) -> None:
    """Greedy accuracy of each arm: a point for each seed, with its 95 % interval. line: a name and its level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    seeds = sorted({int(row["seed"]) for row in rows})
    for number, (seed, colour) in enumerate(zip(seeds, COLOURS, strict=False)):
        mine = [row for row in rows if int(row["seed"]) == seed]
        at = [arms.index(row["arm"]) + 0.12 * (number - (len(seeds) - 1) / 2) for row in mine]
        value = [float(row["value"]) for row in mine]
        below = [v - float(row["low"]) for v, row in zip(value, mine, strict=True)]
        above = [float(row["high"]) - v for v, row in zip(value, mine, strict=True)]
        axes.errorbar(at, value, (below, above), fmt="o", ms=4, color=colour, lw=1.2, label=f"seed {seed}")
    if line is not None:
        axes.axhline(line[1], color="0.4", lw=1, ls="--")
        axes.text(len(arms) - 0.6, line[1], line[0], va="bottom", ha="right", color="0.4", fontsize=8)
    axes.set_xticks(range(len(arms)), [arm.replace("_", "\n", 1) for arm in arms])
    axes.set(title=title)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def verdict(broken: Sequence[str], written: Path) -> int:
    """Say which claims the runs don't hold and where their numbers are; returns the exit status."""
    for line in broken:
        print(f"NOT SHOWN  {line}", file=sys.stderr)
    print(f"written to {written}")
    return 1 if broken else 0
