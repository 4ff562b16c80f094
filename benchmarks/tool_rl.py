"""Does a policy learn to use a tool because it pays, and to write programs that pass their tests? Three seeds of each.

    python benchmarks/tool_rl.py                                 # all runs; a finished one is not run again
    python benchmarks/tool_rl.py --only tools --seeds 1          # one task, one seed
    python benchmarks/tool_rl.py --fresh                         # from the start, whatever is there

The runs are recipes/grpo_tools.py and recipes/grpo_code.py without options but the seed. They lie in outputs/tool_rl/
and continue where they were interrupted. Writes to benchmarks/results/: tool_rl.csv (a row for each run),
tool_rl_curves.csv (their steps) and tool_rl.png. Exit status 1 where a claim fails: the share of sampled answers that
call the calculator rises from below 10 % to 80 % or more, and greedy accuracy with it; the share of tests passed rises
by 10 points or more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows
from benchmarks.runs import COLOURS, end_of, launch, read_evaluations, read_metrics, smooth, verdict
from data_builders import tool_tasks
from mmreason._files import write_whole

OUTPUTS = ROOT / "outputs" / "tool_rl"
WARM_START = ROOT / "recipes" / "warm_start_tools"
PACKAGES = ("torch", "transformers", "accelerate", "trl")
TASKS = {"tools": ("grpo_tools", "tools/used"), "code": ("grpo_code", "rewards/code_reward/mean")}
"""Task -> (its recipe, the metric that is to rise)."""
RARE, COMMON, POINTS = 0.10, 0.80, 10.0
WINDOW = 3  # rollouts that the first and the last share are means of


@dataclass(frozen=True)
class Run:
    """One run."""

    task: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.seed}"

    @property
    def folder(self) -> Path:
        return OUTPUTS / self.name

    @property
    def recipe(self) -> Path:
        return ROOT / "recipes" / f"{TASKS[self.task][0]}.py"

    @property
    def metric(self) -> str:
        return TASKS[self.task][1]


def identity(run: Run, words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(the options that the recipe makes of its flags, a digest of them, of the questions and of the checkpoint)."""
    command = [sys.executable, str(run.recipe), *words, "--print_config"]
    text = subprocess.run(command, cwd=ROOT, env=child_environment(None), capture_output=True, text=True, check=True)
    digest = hashlib.sha256(text.stdout.encode() + str(tool_tasks.VERSION).encode())
    digest.update((WARM_START / "model.safetensors").read_bytes())
    return dict(yaml.safe_load(text.stdout)), digest.hexdigest()


def ensure(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it, go on with it, or find it finished; returns its record (seconds, and under what it ran)."""
    words = ["--seed", str(run.seed), "--output_dir", os.path.relpath(run.folder, ROOT)]
    words += ["--max_steps", str(arguments.steps)] if arguments.steps else []
    options, digest = identity(run, words)
    path, log, steps = OUTPUTS / f"{run.name}.json", OUTPUTS / f"{run.name}.log", options["max_steps"]
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if arguments.fresh or record.get("digest") != digest or not run.folder.is_dir():
        record = {"digest": digest, "finished": False, "seconds": 0.0} | provenance(run.seed, PACKAGES)
        words.append("--overwrite_output_dir")
    elif record["finished"]:
        print(f"{run.name}: finished before, at commit {record['commit']}")
        return dict(record)
    write_whole(path, json.dumps(record))  # now, so that a run that is killed can be continued
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "cpu.yaml")]
    started = time.perf_counter()
    try:
        command = [sys.executable, *launcher, str(run.recipe), *words]
        status = launch(command, run.folder, steps, log=log, name=run.name, threads=arguments.threads)
    finally:
        record["seconds"] += time.perf_counter() - started
        done = run.folder / "evaluation.json"
        record["finished"] = done.is_file() and read_evaluations(run.folder).get("after", {}).get("step") == steps
        write_whole(path, json.dumps(record))
    if status != 0 or not record["finished"]:
        raise SystemExit(f"{run.name} ended with exit status {status} before it was done; {end_of(log)}")
    return dict(record)


def result_row(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """The row of tool_rl.csv."""
    found = read_evaluations(run.folder)
    curve = [line[run.metric] for line in read_metrics(run.folder) if line.get(run.metric) is not None]
    row: dict[str, Any] = {"run": run.name, "task": run.task, "steps": found["after"]["step"], "metric": run.metric}
    row |= {"first": _mean(curve[:1]), "last": _mean(curve[-WINDOW:])}
    for moment in ("before", "after"):
        share = found[moment]["sets"]["held_out"]["greedy"]
        row |= {f"greedy_{moment}{'' if key == 'value' else '_' + key}": share[key] for key in ("value", "low", "high")}
    row["greedy_n"] = found["after"]["sets"]["held_out"]["greedy"]["n"]
    row["wall_seconds"] = round(record["seconds"], 1)
    return row | {name: record[name] for name in ("seed", "machine", "versions", "commit", "date")}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def curve_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of tool_rl_curves.csv: one for each step, and step 0 with what was measured before."""
    steps: dict[int, dict[str, Any]] = {0: {}}
    for line in read_metrics(run.folder):
        steps[line["step"]] = {"share": line.get(run.metric), "reward": line.get("reward")}
    for entry in read_evaluations(run.folder).values():
        steps.setdefault(entry["step"], {})["greedy"] = entry["sets"]["held_out"]["greedy"]["value"]
    return [{"run": run.name, "task": run.task, "step": step} | steps[step] for step in sorted(steps)]


def broken_claims(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows don't hold of what is claimed, in words."""
    broken = []
    for row in rows:
        first, last = float(row["first"]), float(row["last"])
        told = f"{row['run']}: {row['metric']} {first:.3f} → {last:.3f}"
        if row["task"] == "tools" and not (first < RARE and last >= COMMON):
            broken.append(f"{told}, below {RARE:.2f} and at least {COMMON:.2f} are claimed")
        if row["task"] == "tools" and float(row["greedy_after_low"]) <= float(row["greedy_before_high"]):
            broken.append(f"{told}: greedy accuracy {row['greedy_before']} → {row['greedy_after']}, intervals overlap")
        if row["task"] == "code" and 100 * (last - first) < POINTS:
            broken.append(f"{told}: at least {POINTS:.0f} points are claimed")
    return broken


def plot(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Both tasks' shares and greedy accuracies over the steps of each seed's run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    titles = {"tools": "answers that call the calculator", "code": "reward: share of tests passed"}
    for axis, (task, title) in zip(axes, titles.items(), strict=True):
        names = list(dict.fromkeys(row["run"] for row in rows if row["task"] == task))
        for name, colour in zip(names, COLOURS, strict=False):
            mine = [row for row in rows if row["run"] == name]
            shown = [(int(row["step"]), float(row["share"])) for row in mine if row.get("share")]
            axis.plot([x for x, _ in shown], smooth([y for _, y in shown], 3), color=colour, lw=1.2, label=name)
            greedy = [(int(row["step"]), float(row["greedy"])) for row in mine if row.get("greedy")]
            axis.plot([x for x, _ in greedy], [y for _, y in greedy], "o--", color=colour, lw=0.8, ms=4)
        axis.set(xlabel="step", title=title, ylim=(-0.02, 1.02))
        axis.grid(axis="y", color="0.9", lw=0.8)
        if names:
            axis.legend(frameon=False, title="dots: greedy, held out", title_fontsize=8)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=tuple(TASKS), help="one task instead of both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="optimizer steps (default: as the recipe has it)")
    parser.add_argument("--threads", type=int, help="OpenMP threads of a run (default: its own choice)")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    arguments = parser.parse_args(argv)
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in [arguments.only] if arguments.only else list(TASKS):
        for seed in arguments.seeds:
            run = Run(task, seed)
            rows.append(result_row(run, ensure(run, arguments)))
            save_rows(RESULTS / "tool_rl.csv", rows[-1:], ("run",))
            save_rows(RESULTS / "tool_rl_curves.csv", curve_rows(run), ("run", "step"))
            plot(read_rows(RESULTS / "tool_rl_curves.csv"), RESULTS / "tool_rl.png")
    return verdict(broken_claims(rows), RESULTS / "tool_rl.csv")


if __name__ == "__main__":
    sys.exit(main())
