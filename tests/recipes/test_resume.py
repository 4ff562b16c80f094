"""kill -9 and the same command again: the run ends where an unbroken one ends, with the same samples on the way."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.launch import SMALL, command, metrics, run, run_and_signal

TIMES = ("time/", "num_tokens")
# Measured at steps 2, 4 and 6: before the kill and after it, and the steps around it must not notice.
EVALUATION = ("--eval_samples", "5", "--eval_num_generations", "2", "--eval_steps", "2")
SETTINGS = {
    "one_process": (EVALUATION, None),
    # Two optimizer steps for each of two uses of a rollout: the checkpoints of steps 2 and 6 hold one in flight.
    "rollout_in_flight": (
        ("--steps_per_generation", "2", "--num_iterations", "2", "--beta", "0.01", *EVALUATION),
        None,
    ),
    "lora": (("--use_peft", "--lora_target_modules", "all-linear", "--steps_per_generation", "2"), None),
    "ddp": (EVALUATION, "cpu_ddp2"),
    "zero3": ((), "cpu_zero3"),
}


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "checkpoint-6").glob("*.safetensors")
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_run_ends_like_an_unbroken_one(name: str, tmp_path: Path) -> None:
    flags, accelerate = SETTINGS[name]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    done = run(command(unbroken, *SMALL, *flags, accelerate=accelerate))
    assert done.returncode == 0, done.stderr[-3000:]
    words = command(broken, *SMALL, *flags, accelerate=accelerate)
    run_and_signal(words, broken, step=3, number=signal.SIGKILL)
    assert len(metrics(broken)) < 6, "the run ended before it could be killed"
    again = run(words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Continuing from" in again.stdout

    expected, found = final_weights(unbroken), final_weights(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for want, got in zip(metrics(unbroken), metrics(broken), strict=True):
        assert {k: v for k, v in want.items() if not k.startswith(TIMES)} == {
            k: v for k, v in got.items() if not k.startswith(TIMES)
        }
    for pattern in ("rollouts/*.parquet", "evaluations/*.parquet"):
        samples = [sorted(folder.glob(pattern)) for folder in (unbroken, broken)]
        assert [p.name for p in samples[0]] == [p.name for p in samples[1]]
        for left, right in zip(*samples, strict=True):
            assert pq.read_table(left).equals(pq.read_table(right))
    assert evaluations(unbroken) == evaluations(broken)
    expected_moments = ["before", "step 2", "step 4", "after"] if "--eval_steps" in flags else []
    assert list(evaluations(broken)) == expected_moments


def evaluations(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = command(tmp_path / "run", *SMALL, "--save_steps", "0", "--max_steps", "500")
    output = run_and_signal(words, tmp_path / "run", step=2, number=signal.SIGINT)
    assert "Run the same command to continue" in output
    steps = [row["step"] for row in metrics(tmp_path / "run")]
    assert (tmp_path / "run" / f"checkpoint-{steps[-1]}" / "run_state.json").is_file()
