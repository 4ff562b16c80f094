"""How much of a teacher's lead reaches a smaller student, and by which route? Word problems, for several seeds.

    python benchmarks/distill.py                       # all arms of three seeds; what is finished is not run again
    python benchmarks/distill.py --seeds 1 --arms alone hard soft --steps 200

The teacher is the demo's decoder after GRPO (recipes/grpo_math.py without options). The student is made of the demo's
warm start by `mmreason student`, with two of its three layers. Of the training problems it has answers without steps:
`alone` learns these. `hard` learns the teacher's texts, `soft` its distributions over them, `on_policy` its
distributions over the student's own answers, `step_by_step` the teacher's texts as rationales beside the answers, on
half of the problems. Every arm takes as many steps of as many rows from the same start.

Runs lie in outputs/distill_benchmark/ and continue where they were interrupted. Writes to benchmarks/results/:
distill.csv, distill_pooled.csv and distill.png. Exit status 1 where a claim fails, pooled over the seeds: the teacher
leads the student alone by 15 points or more, hard is ahead of alone, soft or on_policy ahead of hard, the best route
closes 40 % of the gap or more, and step_by_step is not behind alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows
from benchmarks.reft import HELD_OUT
from benchmarks.runs import ensure, plot_arms, read_evaluations, verdict
from mmreason._files import write_whole
from mmreason.rollout.evaluate import wilson_interval

OUTPUTS = ROOT / "outputs" / "distill_benchmark"
ROUTES = ("hard", "soft", "on_policy")
ARMS = ("alone", "step_by_step", *ROUTES)
GAP, CLOSED = 15.0, 0.40
SHARED = [
    "--dataset_test_split", "test", "--prompt_template", "null", "--eval_num_generations", "0",
    "--max_completion_length", "96", "--max_length", "256", "--per_device_train_batch_size", "32",
    "--gradient_checkpointing", "false", "--lr_scheduler_type", "linear", "--warmup_steps", "10",
    "--logging_steps", "10", "--save_steps", "100", "--hf_generation_batch_size", "128", "--bill", "false",
]  # fmt: skip


def problems_of(arguments: argparse.Namespace) -> Path:
    """Training problems with bare answers, and held-out ones; the same for all seeds."""
    from data_builders import word_problems

    return word_problems.cached(
        level="2", n=arguments.train, n_test=arguments.problems, n_unseen=0, style="bare", seed=0
    )


def run(name: str, words: Sequence[str], steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """See `benchmarks.runs.ensure`."""
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    return ensure(OUTPUTS, name, words, OUTPUTS / name, steps, arguments.threads)


def teacher_of(arguments: argparse.Namespace) -> Path:
    """The demo's decoder after GRPO: its last checkpoint is a whole model."""
    import yaml

    config = ROOT / "recipes" / "configs" / "grpo_math" / "embedded.yaml"
    steps = int(yaml.safe_load(config.read_text(encoding="utf-8"))["max_steps"])
    words = ["recipes/grpo_math.py", "--seed", "0", "--eval_samples", str(arguments.problems)]
    run("teacher", words, steps, arguments)
    return OUTPUTS / "teacher" / f"checkpoint-{steps}"


def student_of(arguments: argparse.Namespace) -> Path:
    """Two of the warm start's three layers."""
    folder = OUTPUTS / "student"
    if not folder.is_dir():
        words = ["student", "--from", "recipes/warm_start", "--layers", "2", "--out", str(folder)]
        command = [sys.executable, "-m", "mmreason.cli.main", *words]
        subprocess.run(command, cwd=ROOT, env=child_environment(arguments.threads), check=True)
    return folder


def texts_of(arguments: argparse.Namespace, teacher: Path, student: Path) -> Path:
    """The teacher's greedy answers to the training problems, each beside its problem."""
    out = OUTPUTS / "texts.jsonl"
    if not out.is_file():
        words = distil_flags("hard", 0, 1, arguments, teacher, student)
        run("texts", words, 1, arguments)
        problems = pq.read_table(problems_of(arguments) / "train.parquet").to_pylist()
        rows = []
        for path in sorted((OUTPUTS / "texts" / "texts").glob("*.parquet")):
            for said in pq.read_table(path).to_pylist():
                if not said["truncated"] and said["text"].strip():
                    rows.append(problems[said["row"]] | {"text": said["text"]})
        keep = ("prompt", "answer", "id", "source", "text")
        write_whole(out, "".join(json.dumps({key: _plain(row[key]) for key in keep}) + "\n" for row in rows))
    return out


def _plain(cell: Any) -> Any:
    """Messages are JSON cells in the builders' files."""
    return [json.loads(one) if isinstance(one, str) else one for one in cell] if isinstance(cell, list) else cell


def rows_file(arm: str, texts: Path) -> Path:
    """The rows of an arm: the texts as completions; or, of half of the problems, as the reasoning before the answer."""
    out = OUTPUTS / ("rationales.jsonl" if arm == "step_by_step" else "completions.jsonl")
    if not out.is_file():
        rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
        if arm == "step_by_step":
            rows = rows[: len(rows) // 2]
        lines = []
        for row in rows:
            text = row.pop("text")
            turn = {"role": "assistant", "content": text}
            if arm == "step_by_step":
                turn = {"role": "assistant", "content": row["answer"], "reasoning_content": text}
            lines.append(json.dumps(row | {"completion": [turn]}) + "\n")
        write_whole(out, "".join(lines))
    return out


def distil_flags(
    mode: str, seed: int, steps: int, arguments: argparse.Namespace, teacher: Path | None, student: Path
) -> list[str]:
    """recipes/distill.py as every arm has it, but for its rows."""
    words = ["recipes/distill.py", "--config", "recipes/configs/distill/embedded.yaml", *SHARED, "--mode", mode]
    words += ["--model_name_or_path", str(student), "--teacher_samples", "1", "--teacher_temperature", "0"]
    words += ["--teacher_model_name_or_path", "null" if teacher is None else str(teacher), "--seed", str(seed)]
    words += ["--max_steps", str(steps), "--learning_rate", str(arguments.learning_rate), "--extra_test_splits", "null"]
    return [*words, "--dataset_name", str(problems_of(arguments)), "--eval_samples", str(arguments.problems)]


def run_arm(arm: str, seed: int, arguments: argparse.Namespace, parts: Mapping[str, Path]) -> dict[str, Any]:
    """The row of distill.csv."""
    mode = {"alone": "hard", "hard": "hard"}.get(arm, arm)
    teacher = parts["teacher"] if mode in ("soft", "on_policy") else None
    words = distil_flags(mode, seed, arguments.steps, arguments, teacher, parts["student"])
    if arm != "alone":
        # held-out problems stay those of the set; only what is learned from is another file
        folder = OUTPUTS / f"set-{arm}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows_file(arm, parts["texts"])
        write_whole(folder / "train.jsonl", rows.read_bytes())
        write_whole(folder / "test.jsonl", held_out_rows(arguments))
        words[words.index("--dataset_name") + 1] = str(folder)
    name = f"seed-{seed}-{arm}"
    record = run(name, words, arguments.steps, arguments)
    measured = read_evaluations(OUTPUTS / name)["after"]["sets"][HELD_OUT]
    row: dict[str, Any] = {"run": name, "arm": arm, "steps": arguments.steps}
    row |= {key: measured["greedy"][key] for key in ("correct", "n", "value", "low", "high")}
    row |= {"mean_length": measured["mean_length"], "wall_seconds": round(record["seconds"], 1), "seed": seed}
    return row | {key: record[key] for key in ("machine", "versions", "commit", "date")}


def held_out_rows(arguments: argparse.Namespace) -> bytes:
    rows = pq.read_table(problems_of(arguments) / "test.parquet").to_pylist()
    keep = ("prompt", "completion", "answer", "id", "source")
    return "".join(json.dumps({key: _plain(row[key]) for key in keep}) + "\n" for row in rows).encode()


# ---- what the runs have shown


def pooled_rows(rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each arm over all seeds: accuracy with its interval, and the share of the gap to the teacher that it closes."""
    pooled: list[dict[str, Any]] = []
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            correct, n = sum(int(row["correct"]) for row in mine), sum(int(row["n"]) for row in mine)
            low, high = wilson_interval(correct, n)
            pooled.append({"arm": arm, "seeds": len(mine), "n": n, "value": correct / n, "low": low, "high": high})
    base = {row["arm"]: row for row in pooled}.get("alone")
    for row in pooled:
        if base is not None:
            gap = teacher["value"] - base["value"]
            for name in ("value", "low", "high"):
                row[f"closed_{name}"] = round((row[name] - base["value"]) / gap, 3) if gap else None
    return pooled


def broken_claims(pooled: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any]) -> list[str]:
    """What the runs don't hold of what is claimed, in words."""
    value = {row["arm"]: row["value"] for row in pooled}
    broken = []
    if "alone" in value and 100 * (teacher["value"] - value["alone"]) < GAP:
        broken.append(f"the teacher leads by {100 * (teacher['value'] - value['alone']):.1f} points, not {GAP:.0f}")
    orders = (("alone", "hard"), ("alone", "step_by_step"))
    broken += [f"{b} is behind {a}" for a, b in orders if a in value and b in value and value[b] < value[a]]
    best = max((value[arm] for arm in ("soft", "on_policy") if arm in value), default=None)
    if best is not None and "hard" in value and best <= value["hard"]:
        broken.append("neither soft nor on_policy is ahead of hard")
    closed = max((row.get("closed_value") or 0.0 for row in pooled), default=0.0)
    if closed < CLOSED:
        broken.append(f"the best route closes {closed:.0%} of the gap, not {CLOSED:.0%}")
    return broken


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each arm")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--train", type=int, default=4000, help="training problems")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    parser.add_argument("--threads", type=int, help="OpenMP threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    parts = {"teacher": teacher_of(arguments), "student": student_of(arguments)}
    parts["texts"] = texts_of(arguments, parts["teacher"], parts["student"])
    teacher = read_evaluations(OUTPUTS / "teacher")["after"]["sets"][HELD_OUT]["greedy"]
    print(f"teacher: greedy {teacher['value']:.3f}")
    rows = []
    for seed in arguments.seeds:
        for arm in [one for one in ARMS if one in arguments.arms]:
            rows.append(run_arm(arm, seed, arguments, parts))
            save_rows(RESULTS / "distill.csv", rows, ("run",))  # what is measured is kept even if a later run fails
            print(f"{rows[-1]['run']:24} greedy {rows[-1]['value']:.3f}   {rows[-1]['wall_seconds']:.0f} s", flush=True)
    pooled = pooled_rows(rows, teacher)
    origin = provenance(0, ("torch", "transformers", "trl"))
    save_rows(
        RESULTS / "distill_pooled.csv", [row | {"teacher": teacher["value"]} | origin for row in pooled], ("arm",)
    )
    for row in pooled:
        shown = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"{row['arm']:14} {shown}  closes {row.get('closed_value')} of the gap")
    title = "student's greedy accuracy on held-out problems (95 % interval)"
    line = ("teacher", teacher["value"])
    plot_arms(read_rows(RESULTS / "distill.csv"), ARMS, title, RESULTS / "distill.png", line=line)
    return verdict(broken_claims(pooled, teacher), RESULTS / "distill.csv")


if __name__ == "__main__":
    sys.exit(main())
