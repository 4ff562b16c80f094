"""Golden runs: the first steps of the GRPO recipe as they were when they were found right.

    python -m tests.golden.record                  # all of them; look at the difference before keeping it
    python -m tests.golden.record grpo_math_lora

Each file holds the flags of a real command line, and per step the numbers and the sampled tokens that it gave. A change
of the algorithm that is meant shows up here and is recorded anew with it; one that isn't meant is caught by
tests/recipes/test_golden.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.recipes.launch import SMALL, command, metrics, run

FOLDER = Path(__file__).parent
STEPS = 10
NUMBERS = ("loss", "grad_norm", "reward", "completions/mean_length", "entropy", "kl", "learning_rate")
COMMON = (*SMALL, "--max_steps", str(STEPS), "--save_steps", "0")
CASES: dict[str, tuple[str, ...]] = {
    # On-policy DAPO: the loss is 0 but for rounding (advantages of a group add up to 0), the gradient is not.
    "grpo_math": COMMON,
    # Two optimizer steps per rollout, each rollout used twice: ratio and clip count, the loss is not 0.
    "grpo_math_off_policy": (
        *COMMON, "--steps_per_generation", "2", "--num_iterations", "2", "--loss_type", "grpo",
        "--epsilon", "0.05", "--epsilon_high", "0.08", "--optim", "sgd", "--learning_rate", "0.2",
    ),
    "grpo_math_lora": (
        *COMMON, "--use_peft", "--lora_target_modules", "all-linear", "--lora_dropout", "0", "--loss_type", "dr_grpo",
        "--beta", "0.05", "--scale_rewards", "none", "--learning_rate", "1e-2", "--gradient_accumulation_steps", "2",
    ),
}  # fmt: skip


def observe(name: str, folder: Path) -> dict[str, Any]:
    """Run a case's command line in `folder` and return what a golden file holds."""
    done = run(command(folder, *CASES[name]))
    if done.returncode != 0:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    rollouts = sorted((folder / "rollouts").glob("*.parquet"))
    return {
        "command": ["recipes/grpo_math.py", *CASES[name]],
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
        "steps": [
            {"step": row["step"]} | {key: row[key] for key in NUMBERS if row.get(key) is not None}
            for row in metrics(folder)
        ],
        "completions": [pq.read_table(path)["completion_ids"].to_pylist() for path in rollouts],
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """One line per step and per rollout, so that a difference can be read."""
    lines = [f" {json.dumps(key)}: {json.dumps(found[key])}," for key in ("command", "versions")]
    for key in ("steps", "completions"):
        body = ",\n".join(f"  {json.dumps(entry, separators=(',', ':'))}" for entry in found[key])
        lines.append(f' "{key}": [\n{body}\n ]' + ("," if key == "steps" else ""))
    path.write_text("{\n" + "\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as temporary:
            write(FOLDER / f"{case}.json", observe(case, Path(temporary) / "run"))
        print(f"{case}: recorded")
