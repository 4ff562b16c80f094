"""Does the demo with pictures learn to see? The four stages of `make demo-vision` for three seeds, and blank images.

    python benchmarks/demo_vision.py                              # all seeds; a finished stage is not run again
    python benchmarks/demo_vision.py --seeds 2 --fresh            # one of them, from the start

Runs lie in outputs/demo_vision_seeds/ and continue where they were interrupted. Writes to benchmarks/results/:
demo_vision.csv (a row for each seed), demo_vision_curves.csv (their steps) and demo_vision.png. Exit status 1 where a
claim fails: greedy accuracy on held-out pictures rises through GRPO by 10 points or more with 95 % intervals that don't
overlap, and with blank images the trained model is no better than the most frequent answer.
"""

from __future__ import annotations

import argparse
import functools
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
from data_builders import shapes
from mmreason._files import write_whole

OUTPUTS = ROOT / "outputs" / "demo_vision_seeds"
PACKAGES = ("torch", "transformers", "accelerate", "trl", "timm")
HELD_OUT, UNSEEN = "held_out", "unseen_combinations"
POINTS = 10.0  # least gain that is claimed, in points of greedy accuracy
CANARY_ROWS = 300


@dataclass(frozen=True)
class Stage:
    """A stage of the demo: its recipe with its configuration, and the option that takes the last stage's model."""

    name: str
    recipe: str
    file: str = "demo-vision"
    takes: str = "model_name_or_path"

    @property
    def config(self) -> Path:
        return ROOT / "recipes" / "configs" / self.recipe / f"{self.file}.yaml"


STAGES = (
    Stage("text", "pretrain"),
    Stage("align", "pretrain", "align-demo-vision", takes="decoder"),
    Stage("sft", "sft"),
    Stage("grpo", "grpo_math"),
)


def folder_of(seed: int, stage: Stage) -> Path:
    """Where a stage of a seed's run lies."""
    return OUTPUTS / f"seed-{seed}" / stage.name


def model_of(seed: int, stage: Stage) -> Path:
    """The model of a finished stage: `final`, or the last checkpoint, which is a whole model after GRPO."""
    folder = folder_of(seed, stage)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next(path for path in (folder / "final", *reversed(checkpoints)) if (path / "config.json").is_file())


# ---- running


def flags(seed: int, stage: Stage) -> list[str]:
    """A stage's options: its configuration, and what tells the seeds apart."""
    words = ["--config", str(stage.config), "--seed", str(seed)]
    words += ["--output_dir", os.path.relpath(folder_of(seed, stage), ROOT)]
    before = STAGES.index(stage) - 1
    if before >= 0:
        words += [f"--{stage.takes}", os.path.relpath(folder_of(seed, STAGES[before]) / "final", ROOT)]
    return words


def options_of(words: Sequence[str], recipe: str) -> dict[str, Any]:
    """The options that a recipe makes of its flags."""
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words, "--print_config"]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(None), capture_output=True, text=True, check=True)
    return dict(yaml.safe_load(done.stdout))


def ensure(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the stages of a seed, go on with them, or find them finished; returns the record (seconds by stage …)."""
    path = OUTPUTS / f"seed-{seed}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    digest = hashlib.sha256(str(shapes.VERSION).encode())
    options = {stage.name: options_of(flags(seed, stage), stage.recipe) for stage in STAGES}
    digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    if arguments.fresh or record.get("digest") != digest.hexdigest():
        record = {"digest": digest.hexdigest(), "finished": [], "seconds": {}} | provenance(seed, PACKAGES)
    for stage in STAGES:
        if stage.name not in record["finished"]:
            run_stage(seed, stage, options[stage.name]["max_steps"], record, path, arguments.threads)
    return record


def run_stage(seed: int, stage: Stage, steps: int, record: dict[str, Any], path: Path, threads: int | None) -> None:
    """One stage to its end. `record`, kept in `path`, is told before, so that a run that is killed can be continued."""
    words = flags(seed, stage)
    if stage.name not in record["seconds"]:
        record["seconds"][stage.name] = 0.0
        words.append("--overwrite_output_dir")
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "cpu.yaml")]
    command = [sys.executable, *launcher, str(ROOT / "recipes" / f"{stage.recipe}.py"), *words]
    folder, log, name = folder_of(seed, stage), OUTPUTS / f"seed-{seed}-{stage.name}.log", f"seed {seed}, {stage.name}"
    started = time.perf_counter()
    try:
        status = launch(command, folder, steps, log=log, name=name, threads=threads)
    finally:
        record["seconds"][stage.name] += time.perf_counter() - started
        write_whole(path, json.dumps(record))
    if status != 0 or read_metrics(folder)[-1]["step"] < steps:
        raise SystemExit(f"{name} ended with exit status {status} before it was done; {end_of(log)}")
    record["finished"].append(stage.name)
    write_whole(path, json.dumps(record))


def without_pictures(seed: int) -> dict[str, dict[str, Any]]:
    """Greedy accuracy of the trained model on held-out problems with true, blank, shuffled and noisy pictures."""
    out = OUTPUTS / f"seed-{seed}-canary.json"
    model = model_of(seed, STAGES[-1])
    weights = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(model.glob("*.safetensors")))).hexdigest()
    if out.is_file():
        kept = json.loads(out.read_text(encoding="utf-8"))
        if kept["weights"] == weights:
            return dict(kept["accuracy"])
    made = shapes.cached(**options_of(flags(seed, STAGES[-1]), STAGES[-1].recipe)["shapes"], say=print)
    words = ["canary", "--model", str(model), "--dataset", str(made), "--split", "test", "--prompt_template", "none"]
    words += ["--samples", str(CANARY_ROWS), "--batch_size", "50", "--out", str(out), "--use_cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "mmreason.cli.main", *words],
        cwd=ROOT,
        env=child_environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"seed {seed}: pictures do not reach the trained model:\n{done.stdout}\n{done.stderr[-2000:]}")
    rollout = next(path for path in json.loads(out.read_text(encoding="utf-8"))["paths"] if path["accuracy"])
    write_whole(out, json.dumps({"weights": weights, "accuracy": rollout["accuracy"]}))
    return dict(rollout["accuracy"])


@functools.cache
def most_frequent(seed: int) -> float:
    """The share of the most frequent answer among the held-out problems: what a model that sees nothing can get."""
    made = shapes.cached(**options_of(flags(seed, STAGES[-1]), STAGES[-1].recipe)["shapes"], say=print)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    return float(manifest["majority"]["test"]["all"]["share"])


# ---- what the runs have shown


def result_row(seed: int, record: dict[str, Any], accuracy: dict[str, dict[str, Any]], chance: float) -> dict[str, Any]:
    """The row of demo_vision.csv."""
    folder = folder_of(seed, STAGES[-1])
    found = read_evaluations(folder)
    row: dict[str, Any] = {"run": f"seed-{seed}"}
    for stage in STAGES:
        row[f"{stage.name}_steps"] = read_metrics(folder_of(seed, stage))[-1]["step"]
    row["caption_loss"] = round(held_out_losses(seed, STAGES[1])[-1], 4)
    for name, short in ((HELD_OUT, "greedy"), (UNSEEN, "unseen")):
        row[f"{short}_n"] = found["before"]["sets"][name]["greedy"]["n"]
        for moment in ("before", "after"):
            share = found[moment]["sets"][name]["greedy"]
            for key, column in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[f"{short}_{moment}{column}"] = share[key]
    for moment in ("before", "after"):
        row[f"mean_length_{moment}"] = found[moment]["sets"][HELD_OUT]["mean_length"]
    row["gain_points"] = round(100 * (row["greedy_after"] - row["greedy_before"]), 2)
    row["intervals_overlap"] = "yes" if row["greedy_after_low"] <= row["greedy_before_high"] else "no"
    for kind in ("true", "blank", "shuffled"):
        row[f"{kind}_accuracy"] = accuracy[kind]["value"]
    row |= {"blank_low": accuracy["blank"]["low"], "blank_high": accuracy["blank"]["high"], "chance": chance}
    for stage in STAGES:
        row[f"{stage.name}_seconds"] = round(record["seconds"][stage.name], 1)
    row["wall_seconds"] = round(sum(record["seconds"].values()), 1)
    return row | {name: record[name] for name in ("seed", "machine", "versions", "commit", "date")}


def held_out_losses(seed: int, stage: Stage) -> list[float]:
    """A stage's losses on held-out rows, in nats per token."""
    return [line["eval/loss"] for line in read_metrics(folder_of(seed, stage)) if "eval/loss" in line]


def curve_rows(seed: int) -> list[dict[str, Any]]:
    """Rows of demo_vision_curves.csv: the losses of the first stages, GRPO's reward and accuracies, by step."""
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        steps: dict[int, dict[str, Any]] = {}
        for line in read_metrics(folder_of(seed, stage)):
            told = {"loss": line.get("loss") if stage.name != "grpo" else None, "held_out_loss": line.get("eval/loss")}
            told |= {"reward": line.get("reward"), "mean_length": line.get("completions/mean_length")}
            kept = {name: value for name, value in told.items() if value is not None}
            steps.setdefault(line["step"], {}).update(kept)
        if stage.name == "grpo":
            for entry in read_evaluations(folder_of(seed, stage)).values():
                for name, short in ((HELD_OUT, "greedy"), (UNSEEN, "unseen")):
                    if name in entry["sets"]:
                        share = entry["sets"][name]["greedy"]
                        named = {"": share["value"], "_low": share["low"], "_high": share["high"]}
                        found = {f"{short}{end}": value for end, value in named.items()}
                        steps.setdefault(entry["step"], {}).update(found)
        rows += [
            {"run": f"seed-{seed}", "stage": stage.name, "step": step} | steps[step]
            for step in sorted(steps)
            if steps[step]
        ]
    return rows


def broken_claims(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows don't hold of what is claimed, in words."""
    broken = []
    for row in rows:
        share = f"{row['run']}: greedy accuracy {row['greedy_before']:.3f} → {row['greedy_after']:.3f}"
        on = f"on {row['greedy_n']} held-out pictures"
        if row["gain_points"] < POINTS:
            broken.append(f"{share} {on}: {row['gain_points']:+.1f} points, at least {POINTS:.0f} are claimed")
        if row["intervals_overlap"] == "yes":
            low, high = row["greedy_after_low"], row["greedy_before_high"]
            broken.append(f"{share} {on}: the intervals overlap (up to {high:.3f} before, from {low:.3f} after)")
        if row["blank_low"] > row["chance"]:
            blank = f"{row['blank_accuracy']:.3f} (from {row['blank_low']:.3f})"
            broken.append(
                f"{row['run']}: {blank} with blank images, above the most frequent answer's {row['chance']:.3f}"
            )
    return broken


# ---- picture


def plot(curves: Sequence[dict[str, str]], rows: Sequence[dict[str, str]], path: Path) -> None:
    """Losses of the first three stages and accuracy through GRPO, from the rows of the two CSV files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 1, 0.7, 1.4))
    for row, colour in zip(rows, COLOURS, strict=False):
        mine = [line for line in curves if line["run"] == row["run"]]
        for axis, stage in zip(axes, ("text", "align", "sft"), strict=False):
            lines = [line for line in mine if line["stage"] == stage and line["loss"]]
            axis.plot(
                [int(line["step"]) for line in lines], [float(line["loss"]) for line in lines], color=colour, lw=1
            )
        lines = [line for line in mine if line["stage"] == "grpo" and line["reward"]]
        at = [int(line["step"]) for line in lines]
        axes[3].plot(at, smooth([float(line["reward"]) for line in lines]), color=colour, lw=1, alpha=0.55)
        lines = [line for line in mine if line["stage"] == "grpo" and line["greedy"]]
        share = [float(line["greedy"]) for line in lines]
        below = [value - float(line["greedy_low"]) for value, line in zip(share, lines, strict=True)]
        above = [float(line["greedy_high"]) - value for value, line in zip(share, lines, strict=True)]
        steps = [int(line["step"]) for line in lines]
        axes[3].errorbar(steps, share, (below, above), fmt="o", ms=4, color=colour, lw=1.2)
        axes[3].plot(steps[-1:], [float(row["blank_accuracy"])], "s", ms=5, mfc="none", color=colour)
    axes[3].axhline(float(rows[0]["chance"]), color="0.35", lw=1.2, ls="--")
    titles = ("pretraining: texts", "alignment: captions", "SFT: answers", "GRPO: accuracy")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="step", title=title)
        axis.grid(axis="y", color="0.9", lw=0.8)
        axis.set_axisbelow(True)
    axes[0].set(ylabel="loss, nats per token")
    for axis in axes[:3]:
        axis.set(ylim=(0, 1.5))
    axes[3].set(ylim=(0, 1))
    handles = [
        Line2D([], [], color=colour, lw=3, label=row["run"].replace("-", " "))
        for row, colour in zip(rows, COLOURS, strict=False)
    ]
    handles += [
        Line2D([], [], color="0.35", marker="o", ms=4, ls="", label="greedy, held-out (95 % interval)"),
        Line2D([], [], color="0.35", lw=1, alpha=0.55, label="sampled, training"),
        Line2D([], [], color="0.35", marker="s", mfc="none", ms=5, ls="", label="greedy, blank images"),
        Line2D([], [], color="0.35", lw=1.2, ls="--", label="most frequent answer"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, help="OpenMP threads (default: as `make demo-vision` runs)")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    rows = []
    for seed in arguments.seeds:
        record = ensure(seed, arguments)
        rows.append(result_row(seed, record, without_pictures(seed), most_frequent(seed)))
        # After each seed: what is measured is kept even if a later one fails.
        save_rows(RESULTS / "demo_vision.csv", rows[-1:], ("run",))
        save_rows(RESULTS / "demo_vision_curves.csv", curve_rows(seed), ("run",))
    plot(
        read_rows(RESULTS / "demo_vision_curves.csv"),
        read_rows(RESULTS / "demo_vision.csv"),
        RESULTS / "demo_vision.png",
    )
    for row in rows:
        print(
            f"{row['run']:8} greedy {row['greedy_before']:.3f} → {row['greedy_after']:.3f} ({row['gain_points']:+.1f} "
            f"points)   blank {row['blank_accuracy']:.3f} (chance {row['chance']:.3f})   unseen combinations "
            f"{row['unseen_before']:.3f} → {row['unseen_after']:.3f}   {row['wall_seconds']:.0f} s"
        )
    return verdict(broken_claims(rows), RESULTS / "demo_vision.csv")


if __name__ == "__main__":
    sys.exit(main())
