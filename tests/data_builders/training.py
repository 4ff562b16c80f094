"""One real step of training on a built folder: the proof that its rows are what a trainer reads."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

Recipe = Literal["sft", "trl_sft", "dpo", "reward"]


def train_one_step(folder: Path, tmp_path: Path, *, recipe: Recipe = "sft", **flags: Any) -> dict[str, float]:
    """Train a tiny decoder for a step; returns what the step logged, its loss a finite number above 0.

    Args:
        folder: what a builder wrote (split train).
        tmp_path: for the run's output.
        recipe: "sft": recipes/sft.py by its command line, in a process of its own (some 15 s). The others are plain TRL
            in this process, on what `datasets.load_dataset` reads: SFT, DPO, a reward model.
        **flags: of "sft" the recipe's options (`model_name_or_path=tiny_vlm(...)` for rows with images, `max_length`),
            of the others fields of TRL's config.
    """
    return _by_recipe(folder, tmp_path, flags) if recipe == "sft" else _by_trl(folder, tmp_path, recipe, flags)


def _by_recipe(folder: Path, tmp_path: Path, flags: dict[str, Any]) -> dict[str, float]:
    from tests.recipes.launch import metrics, run

    settings = {
        "dataset_name": folder, "dataset_test_split": "null", "extra_test_splits": "null", "eval_steps": "null",
        "eval_samples": 0, "output_dir": tmp_path / "sft", "tiny_size": "xs", "max_length": 2048, "max_steps": 1,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0, "logging_steps": 1,
        "use_cpu": "true",
    } | flags  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = run([sys.executable, "recipes/sft.py", "--config", "recipes/configs/sft/embedded.yaml", *words])
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    (line,) = [line for line in metrics(tmp_path / "sft") if "loss" in line]
    return _checked(line)


def _by_trl(folder: Path, tmp_path: Path, recipe: Recipe, flags: dict[str, Any]) -> dict[str, float]:
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification

    from mmreason.models.tiny import save_tiny, tiny_decoder, tiny_tokenizer

    config, trainer = {
        "trl_sft": (trl.SFTConfig, trl.SFTTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "reward": (trl.RewardConfig, trl.RewardTrainer),
    }[recipe]
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    settings = {
        "output_dir": str(tmp_path / recipe), "max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "bf16": False, "gradient_checkpointing": False,
        "max_length": 2048, "disable_tqdm": True,
    } | flags  # fmt: skip
    tokenizer, model = tiny_tokenizer(), tiny_decoder("xs")
    if recipe == "reward":
        checkpoint = save_tiny(tmp_path / "tiny")
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    step = trainer(model=model, args=config(**settings), train_dataset=rows, processing_class=tokenizer)
    step.train()
    (line,) = [line for line in step.state.log_history if "loss" in line]
    return _checked(line)


def _checked(line: dict[str, Any]) -> dict[str, float]:
    assert math.isfinite(line["loss"]) and line["loss"] > 0, line
    return {name: value for name, value in line.items() if isinstance(value, int | float)}
