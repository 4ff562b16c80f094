"""Models that a run composes from its options, and pictures as the embedded data, through the recipe's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreason.types import ConfigError
from tests.recipes.conftest import reset_accelerate
from tests.recipes.launch import ROOT, command, metrics, run

CONFIG = ROOT / "recipes" / "configs" / "grpo_math" / "shapes.yaml"
SMALL = (
    "--shapes", "{n: 24, n_test: 8, n_unseen: 0}", "--eval_samples", "4", "--per_device_train_batch_size", "8",
    "--num_generations", "4", "--max_completion_length", "4", "--save_steps", "1",
)  # fmt: skip


def call(folder: Path, *flags: str) -> None:
    from recipes.grpo_math import main

    reset_accelerate()
    main(["--config", str(CONFIG), "--use_cpu", "--output_dir", str(folder), *SMALL, *flags])


def test_it_composes_once_and_goes_on_with_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    call(tmp_path / "run", "--max_steps", "1")
    composed = tmp_path / "run" / "composed" / "model.safetensors"
    written = composed.stat().st_mtime_ns
    call(tmp_path / "run", "--max_steps", "2")
    assert composed.stat().st_mtime_ns == written
    call(tmp_path / "whole", "--max_steps", "2")
    parted, whole = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert [row["step"] for row in parted] == [1, 2]
    for a, b in zip(parted, whole, strict=True):
        assert {k: v for k, v in a.items() if "time" not in k} == {k: v for k, v in b.items() if "time" not in k}
    weights = [tmp_path / name / "checkpoint-2" / "model.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_another_tower_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    call(tmp_path / "run", "--max_steps", "1")
    other = ("--vision", "{source: timm, name: convnext_atto, weights: random, image_size: 64}")
    with pytest.raises(ConfigError, match="parts"):
        call(tmp_path / "run", *other)
    call(tmp_path / "run", *other, "--max_steps", "1", "--overwrite_output_dir")
    config = (tmp_path / "run" / "composed" / "config.json").read_text(encoding="utf-8")
    assert "convnext_atto" in config, "starting over composes anew"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model_name_or_path", "x"), "give a whole model or parts"),
        (("--vision", "null"), "decoder needs vision"),
        (("--decoder", "null"), "vision and projector need decoder"),
        (("--freeze_modules", "vision_towr"), "fits no module"),
    ],
)
def test_options_that_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=said):
        call(tmp_path / "run", *flags)


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes_compose_one_model(tmp_path: Path, accelerate: str) -> None:
    flags = ("--config", str(CONFIG), *SMALL, "--max_steps", "2", "--per_device_train_batch_size", "4")
    done = run(command(tmp_path / "run", *flags, accelerate=accelerate), timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    # float32 sums in another order differ by 1.2e-5 on some processors, other weights or pictures by more than 0.1.
    assert all(row["sampling/sampling_logp_difference/max"] <= 3e-5 for row in rows)
