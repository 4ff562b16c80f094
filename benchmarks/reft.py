"""Does ReFT beat more SFT? On 1,500 fixed word problems, for several seeds, against both ways of spending the same.

    python benchmarks/reft.py                          # all arms of three seeds; what is finished is not run again
    python benchmarks/reft.py --seeds 1 --arms reft sft_updates --steps 60
    python benchmarks/reft.py --threads 2

Each seed has one warm-up, from which its arms go on: `reft`; `sft_updates`, SFT for as many optimizer steps of as many
rows; `sft_time`, SFT until the seconds are spent that ReFT took; and two ablations, `reft_no_partial` and `reft_no_kl`.
Runs lie in outputs/reft_benchmark/ and continue where they were interrupted. Writes to benchmarks/results/: reft.csv (a
row for each arm of a seed), reft_pooled.csv (each comparison, over the seeds that have both arms) and reft.png.

Arms of a seed answer the same held-out problems, so the difference is tested pairwise (McNemar's exact test on the
problems that one arm alone answers right). Exit status 1 where a claim fails: ReFT is ahead of both by 3 points or
more, pooled over the seeds, with p < 0.05.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common import RESULTS, ROOT, read_rows, save_rows
from benchmarks.runs import ensure, plot_arms, read_evaluations, read_metrics, verdict
from mmreason._files import write_whole

OUTPUTS = ROOT / "outputs" / "reft_benchmark"
PEERS = ("sft_updates", "sft_time")
ABLATIONS = ("reft_no_partial", "reft_no_kl")
ARMS = ("reft", *PEERS, *ABLATIONS)
POINTS, ALPHA = 3.0, 0.05
HELD_OUT = "held_out"


# ---- running


def reft_flags(seed: int, arm: str, steps: int, problems: int) -> list[str]:
    """ReFT as recipes/configs/reft/embedded.yaml has it, or without a part. Its warm-up is the seed's own."""
    words = ["recipes/reft.py", "--config", "recipes/configs/reft/embedded.yaml", "--seed", str(seed)]
    words += ["--max_steps", str(steps), "--eval_samples", str(problems), "--eval_num_generations", "4"]
    words += ["--word_problems", f"{{level: 2, language: en, n: 1500, n_test: {problems}, n_unseen: 0, seed: 0}}"]
    without = {"reft_no_partial": ["--partial_reward", "0.0"], "reft_no_kl": ["--kl_coef", "0.0"]}
    return words + without.get(arm, [])


def sft_flags(folder: Path, seed: int, steps: int, options: Mapping[str, Any], problems: int) -> list[str]:
    """SFT that goes on from the seed's warm-up, with as many rows in a step as ReFT's update has completions.

    The learning rate begins where the warm-up's did and falls to 0 again, as for a run of this length.
    """
    words = ["recipes/sft.py", "--model_name_or_path", str(folder / "sft" / "final"), "--seed", str(seed)]
    words += ["--word_problems", f"{{level: 2, language: en, n: 1500, n_test: {problems}, n_unseen: 0, seed: 0}}"]
    words += ["--dataset_test_split", "test", "--prompt_template", "null", "--eval_samples", str(problems)]
    words += ["--max_steps", str(steps), "--per_device_train_batch_size", "64", "--gradient_checkpointing", "false"]
    words += ["--learning_rate", str(options["sft"]["learning_rate"]), "--lr_scheduler_type", "linear"]
    return [*words, "--max_completion_length", "64", "--logging_steps", "10", "--save_steps", "50"]


def training_seconds(folder: Path, measured: str) -> float:
    """Seconds that the steps of a run took, without loading, measuring and saving."""
    return sum(float(line[measured]) for line in read_metrics(folder) if line.get(measured) is not None)


def run_arm(seed: int, arm: str, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """(the folder whose last evaluation is the arm's, its record)."""
    import yaml

    whole = OUTPUTS / f"seed-{seed}"
    options = yaml.safe_load((ROOT / "recipes" / "configs" / "reft" / "embedded.yaml").read_text(encoding="utf-8"))
    name, steps = f"seed-{seed}-{arm}", arguments.steps
    if arm == "reft":
        words = reft_flags(seed, arm, steps, arguments.problems)
        return whole / "ppo", ensure(OUTPUTS, name, words, whole / "ppo", steps, arguments.threads)
    if arm in ABLATIONS:
        other = OUTPUTS / name
        if not (other / "sft").exists():  # the same warm-up
            other.mkdir(parents=True, exist_ok=True)
            (other / "sft").symlink_to(whole / "sft", target_is_directory=True)
        words = reft_flags(seed, arm, steps, arguments.problems)
        return other / "ppo", ensure(OUTPUTS, name, words, other / "ppo", steps, arguments.threads)
    if arm == "sft_time":
        spent = training_seconds(whole / "ppo", "time/step")
        step_seconds = json.loads((OUTPUTS / f"seed-{seed}-sft_updates.json").read_text(encoding="utf-8"))["per_step"]
        steps = max(steps, round(spent / step_seconds))
    words = sft_flags(whole, seed, steps, options, arguments.problems)
    record = ensure(OUTPUTS, name, words, OUTPUTS / name, steps, arguments.threads)
    if arm == "sft_updates":
        state = json.loads((OUTPUTS / name / f"checkpoint-{steps}" / "trainer_state.json").read_text(encoding="utf-8"))
        runtime = next(line["train_runtime"] for line in reversed(state["log_history"]) if "train_runtime" in line)
        record["per_step"] = record.get("per_step") or runtime / steps
        write_whole(OUTPUTS / f"{name}.json", json.dumps(record))
    return OUTPUTS / name, record


# ---- what the runs have shown


def verdicts(folder: Path) -> dict[int, bool]:
    """Held-out problem -> whether the last greedy answer is right."""
    path = sorted((folder / "evaluations").glob(f"step-*-{HELD_OUT}.parquet"))[-1]
    return {row["row"]: row["verdict"] == "correct" for row in pq.read_table(path).to_pylist()}


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p of so unequal a split of the problems that one alone answers right (McNemar 1947)."""
    n, least = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(least + 1)) / 2**n) if n else 1.0


def result_row(seed: int, arm: str, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of reft.csv."""
    after = read_evaluations(folder)["after"]
    measured = after["sets"][HELD_OUT]
    greedy = measured["greedy"]
    row: dict[str, Any] = {"run": f"seed-{seed}-{arm}", "arm": arm, "steps": after["step"]}
    row |= {name: greedy[name] for name in ("correct", "n", "value", "low", "high")}
    row |= {"vote@4": (measured["majority"] or {}).get("value"), "mean_length": measured["mean_length"]}
    rerank = folder / "rerank.json"
    found = json.loads(rerank.read_text(encoding="utf-8"))[HELD_OUT] if rerank.is_file() else {}
    row["rerank@4"] = found.get("reranked", {}).get("value")
    row["wall_seconds"] = round(record["seconds"], 1)
    return row | {"seed": seed} | {name: record[name] for name in ("machine", "versions", "commit", "date")}


def compare(right: Mapping[tuple[int, str], Mapping[int, bool]], peer: str) -> dict[str, Any] | None:
    """ReFT against another arm, over the seeds that have both: points ahead, and p."""
    seeds = sorted(seed for seed, arm in right if arm == peer and (seed, "reft") in right)
    pairs = [(right[seed, "reft"][i], right[seed, peer][i]) for seed in seeds for i in sorted(right[seed, peer])]
    if not pairs:
        return None
    wins, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    points = 100 * (wins - losses) / len(pairs)
    return {
        "against": peer, "seeds": len(seeds), "problems": len(pairs), "reft_only": wins, "other_only": losses,
        "points": round(points, 2), "p": float(f"{mcnemar(wins, losses):.3g}"),
    }  # fmt: skip


def broken_claims(pooled: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    """What the comparisons don't hold of what is claimed, in words."""
    broken = []
    for row in pooled:
        if row["against"] in PEERS and (row["points"] < POINTS or row["p"] >= ALPHA):
            broken.append(
                f"ReFT against {row['against']}: {row['points']:+.1f} points, p = {row['p']:.2g}, over {row['seeds']} "
                f"seed(s); at least {POINTS:.0f} points with p < {ALPHA} are claimed"
            )
        if row["against"] in PEERS and row["seeds"] < seeds:
            broken.append(f"ReFT against {row['against']}: only {row['seeds']} of {seeds} seeds are there")
    return broken


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps after the warm-up")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    parser.add_argument("--threads", type=int, help="OpenMP threads")
    arguments = parser.parse_args(argv)
    arguments.arms = [arm for arm in ARMS if arm == "reft" or arm in arguments.arms]  # the others begin at its warm-up
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    rows, right = [], {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            folder, record = run_arm(seed, arm, arguments)
            rows.append(result_row(seed, arm, folder, record))
            right[seed, arm] = verdicts(folder)
            # After each run: what is measured is kept even if a later run fails.
            save_rows(RESULTS / "reft.csv", rows, ("run",))
            print(f"{rows[-1]['run']:28} greedy {rows[-1]['value']:.3f}   {rows[-1]['wall_seconds']:.0f} s")
    pooled = [row for arm in arguments.arms if arm != "reft" and (row := compare(right, arm)) is not None]
    origin = {name: rows[-1][name] for name in ("machine", "versions", "commit", "date")}
    if pooled:
        save_rows(RESULTS / "reft_pooled.csv", [row | origin for row in pooled], ("against",))
    for row in pooled:
        shown = f"{row['points']:+.1f} points, p = {row['p']:.2g}, {row['problems']} problems"
        print(f"against {row['against']:16} {shown}")
    title = "greedy accuracy on held-out problems (95 % interval)"
    plot_arms(read_rows(RESULTS / "reft.csv"), ARMS, title, RESULTS / "reft.png")
    return verdict(broken_claims(pooled, len(arguments.seeds)), RESULTS / "reft.csv")


if __name__ == "__main__":
    sys.exit(main())
