"""Every YAML of the recipe: read, resolved for the processes that its first line starts, and run."""

from __future__ import annotations

import math
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason.config import parse_config
from mmreason.data.prompts import resolve_template
from mmreason.rewards import load_rewards
from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments
from tests.recipes.launch import ROOT, command, metrics, run
from tests.tiny_vlms import tiny_vlm

FOLDER = ROOT / "recipes" / "configs" / "grpo_math"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
CLASSES = (ModelArguments, DataArguments, RewardArguments, PolicyConfig)


def read(path: Path) -> tuple[ModelArguments, DataArguments, RewardArguments, PolicyConfig]:
    model, data, rewards, args = parse_config(CLASSES, ["--config", str(path)])
    return model, data, rewards, args


def header(path: Path) -> tuple[list[str], int]:
    """(words of the command in the first line, the number of processes that it starts)."""
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    processes = 1
    if "--config_file" in words:
        launch = yaml.safe_load((ROOT / words[words.index("--config_file") + 1]).read_text(encoding="utf-8"))
        processes = launch["num_processes"] // launch.get("parallelism_config", {}).get("parallelism_config_tp_size", 1)
    return words, processes


def test_the_set_of_configs() -> None:
    names = ["cpu", "dapo-1.5b", "demo-vision", "embedded", "gspo-1.5b", "qwen2.5-0.5b", "qwen2.5-1.5b-lora"]
    names += ["qwen2.5-7b-zero3-multinode", "qwen2.5-vl-3b-geometry", "r1-zero-1.5b", "shapes"]
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_the_command_that_runs_it(path: Path) -> None:
    words, _ = header(path)
    assert words[:2] == ["accelerate", "launch"] and "recipes/grpo_math.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    if path.stem == "embedded":
        assert words == ["accelerate", "launch", "recipes/grpo_math.py"]
    else:
        assert words[words.index("--config") + 1] == f"recipes/configs/grpo_math/{path.name}"
        assert "--config_file" in words


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_fits_the_processes_it_is_started_with(path: Path) -> None:
    model, data, rewards, args = read(path)
    _, processes = header(path)
    args.resolve(processes)
    loaded = load_rewards(rewards.reward_funcs)
    assert rewards.reward_weights is None or len(rewards.reward_weights) == len(loaded)
    if data.prompt_template is not None:
        resolve_template(data.prompt_template)
    assert processes % args.vllm_tensor_parallel_size == 0
    assert args.output_dir.startswith("outputs/")
    # With dropout the trainer would score another policy than the engine sampled from.
    assert not model.use_peft or not args.use_vllm or model.lora_dropout == 0
    assert args.max_steps > 0 and args.save_steps > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_key_is_one_of_the_options(path: Path) -> None:
    known = {field.name for cls in CLASSES for field in fields(cls)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


# ---- run


def exactness(folder: Path, steps: int) -> None:
    """Engine and trainer compute the same policy, at every step: after every weight sync."""
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        gap = row["sampling/sampling_logp_difference/max"]
        assert 0 <= gap <= 1e-5, (row["step"], gap)
        assert abs(row["sampling/importance_sampling_ratio/mean"] - 1) <= 1e-4, row["step"]
        assert math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
    assert any(row["grad_norm"] > 0 for row in rows), "no step had a gradient: this would prove nothing"


CPU = ("--config", str(FOLDER / "cpu.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accelerate", "flags", "steps"),
    [
        ("cpu", (), 20),
        ("cpu", ("--use_vllm", "false"), 5),
        ("cpu_ddp2", ("--use_vllm", "false"), 5),
        ("cpu_zero3", ("--use_vllm", "false"), 5),
    ],
    ids=["vllm_colocate", "hf", "hf_ddp", "hf_zero3"],
)
def test_cpu_yaml_on_real_gsm8k(
    tmp_path: Path, shared_data: Path, tiny_checkpoint: str, accelerate: str, flags: tuple[str, ...], steps: int
) -> None:
    """With a random decoder: its log-probabilities are small, so that float32 leaves room for a bound this narrow."""
    if "false" not in flags:
        pytest.importorskip("vllm", reason="vLLM is not installed")
    small = () if steps == 20 else ("--eval_samples", "0", "--max_completion_length", "24")
    gsm8k = ("--dataset_name", str(shared_data / "gsm8k"), "--max_steps", str(steps))
    gsm8k += ("--model_name_or_path", tiny_checkpoint)
    folder = tmp_path / "run"
    done = run(command(folder, *CPU, *gsm8k, *flags, *small, accelerate=accelerate), timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "7473 examples (format gsm8k)" in done.stdout
    exactness(folder, steps)
    # Every step after the first samples with weights that moved, so the engine got them.
    assert {row["learning_rate"] > 0 for row in metrics(folder)} == {True}
    if steps == 20:
        assert "before (step 0)" in done.stdout and "after (step 20)" in done.stdout
        assert "/32)" in done.stdout and "maj@4" in done.stdout


# What a machine without a GPU can't do; everything else is as the YAML has it, but small.
ON_CPU = [
    "--use_vllm", "false", "--use_cpu", "--bf16", "false", "--dtype", "float32", "--attn_implementation", "sdpa",
    "--max_completion_length", "8", "--max_prompt_length", "1536", "--max_steps", "1", "--max_train_samples", "64",
    "--eval_samples", "4", "--hf_generation_batch_size", "64",
]  # fmt: skip
GPU_CONFIGS = [path for path in CONFIGS if path.stem not in ("cpu", "demo-vision", "embedded", "shapes")]


def stand_ins(path: Path, data: DataArguments, shared: Path, tiny: str, folder: Path) -> tuple[str, Path]:
    """(model, data set) of the kind that a YAML names, but tiny, or here."""
    if "-vl-" in path.stem:
        return str(tiny_vlm("qwen2_5_vl", folder / "model")), shared / "images" / "geometry3k_10.parquet"
    return tiny, shared / ("math/math500.jsonl" if data.dataset_format == "math" else "gsm8k")


@pytest.mark.slow
@pytest.mark.parametrize("path", GPU_CONFIGS, ids=lambda p: p.stem)
def test_its_other_settings_run_on_the_cpu(path: Path, tmp_path: Path, shared_data: Path, tiny_checkpoint: str) -> None:
    from recipes.grpo_math import main

    _, data, rewards, args = read(path)
    model, rows = stand_ins(path, data, shared_data, tiny_checkpoint, tmp_path)
    small: dict[str, Any] = {
        "model_name_or_path": model,
        "dataset_name": rows,
        "output_dir": tmp_path / "run",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": args.num_generations // 2,
    }
    if args.steps_per_generation is not None:
        # As many rollouts to an optimizer step as the YAML has.
        small["steps_per_generation"] = 2 * args.steps_per_generation // args.gradient_accumulation_steps
    main(["--config", str(path), *ON_CPU, *(word for key, value in small.items() for word in (f"--{key}", str(value)))])
    (row,) = metrics(tmp_path / "run")
    names = [getattr(func, "__name__", "") for func in load_rewards(rewards.reward_funcs)]
    assert {f"rewards/{name}/mean" for name in names} <= set(row)
    assert row["sampling/sampling_logp_difference/max"] <= 1e-5
    assert (tmp_path / "run" / "checkpoint-1" / "run_state.json").is_file()
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*")), "report_to: [tensorboard] wrote nothing"
