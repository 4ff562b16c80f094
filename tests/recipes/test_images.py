"""The main job on real pictures: twenty GRPO steps, our composed model and a Qwen2.5-VL, both engines."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.engine_parity import PICTURE_FLAGS, PICTURES, seeing_model
from tests.recipes.launch import ROOT, command, metrics, run

STEPS = 20


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_twenty_steps(name: str, tmp_path: Path, shared_data: Path) -> None:
    """Engine and trainer compute the same policy after every weight sync, the trained tower included."""
    kind, rows, flags = PICTURES[name]
    if "false" not in flags:
        pytest.importorskip("vllm", reason="vLLM is not installed")
    (file,) = (shared_data / "images").glob(f"{rows}*.parquet")
    config = ROOT / "recipes" / "configs" / "grpo_math" / "cpu.yaml"
    words = ["--config", str(config), "--model_name_or_path", seeing_model(kind, tmp_path), "--dataset_name", str(file)]
    words += [*PICTURE_FLAGS, *flags, "--max_steps", str(STEPS), "--eval_samples", "4", "--max_completion_length", "24"]
    folder = tmp_path / "run"
    done = run(command(folder, *words, accelerate="cpu"), timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"format {rows}" in done.stdout
    steps = metrics(folder)
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    for row in steps:
        assert 0 <= row["sampling/sampling_logp_difference/max"] <= 1e-4, row
        assert abs(row["sampling/importance_sampling_ratio/mean"] - 1) <= 1e-4, row
        assert math.isfinite(row["loss"])
    assert sum(row["grad_norm"] > 0 for row in steps) >= 15, "weights that don't move would prove nothing"
