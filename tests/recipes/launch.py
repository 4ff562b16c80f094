"""Run a recipe the way a user does: its real command line, in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests import processes

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "grpo_math.py"
EMBEDDED = ROOT / "recipes" / "configs" / "grpo_math" / "embedded.yaml"
SMALL_CONFIG = ROOT / "tests" / "recipes" / "small.yaml"
# Six small steps on generated sums; each completion is a handful of tokens.
SMALL = [
    "--eval_samples", "0", "--max_train_samples", "64",
    "--per_device_train_batch_size", "16", "--num_generations", "4", "--max_completion_length", "6", "--max_steps", "6",
    "--learning_rate", "1e-3", "--gradient_checkpointing", "false", "--save_steps", "2", "--logging_steps", "1",
]  # fmt: skip


@functools.cache
def small_example() -> tuple[str, ...]:
    """Flags of a run that doesn't depend on what the recipe shows by default: small.yaml, a random decoder, sums."""
    from data_builders.arithmetic import build
    from mmreason.models.tiny import save_tiny

    folder = Path(tempfile.mkdtemp(prefix="mmreason-small-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = save_tiny(folder / "model", seed=42)
    build(folder / "sums", n=256, n_test=64, seed=42, level=1)
    data = ("--dataset_name", str(folder / "sums"), "--dataset_test_split", "test")
    return ("--config", str(SMALL_CONFIG), "--model_name_or_path", model, *data)


def command(output_dir: Path, *flags: str, accelerate: str | None = None) -> list[str]:
    """`python recipes/grpo_math.py …`, or `accelerate launch --config_file recipes/accelerate/<accelerate>.yaml …`.

    Without a --config of its own it is the small example.
    """
    flags = flags if "--config" in flags else (*small_example(), *flags)
    start = [sys.executable]
    if accelerate is not None:
        words = accelerate.split()
        config = words[0] if words[0].endswith(".yaml") else str(ROOT / "recipes" / "accelerate" / f"{words[0]}.yaml")
        start += ["-m", "accelerate.commands.launch", "--config_file", config, *words[1:]]
    return [*start, str(RECIPE), "--output_dir", str(output_dir), *flags]


def environment() -> dict[str, str]:
    # One thread: for models this small a second one costs more than it brings, and sums are taken in one order.
    return os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "30", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def run(words: Sequence[str], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return processes.run(words, cwd=ROOT, env=environment(), timeout=timeout)


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _signal_tree(pid: int, number: int) -> None:
    """To the process and all it started: a launcher puts its workers into sessions of their own."""
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def run_and_signal(words: Sequence[str], output_dir: Path, step: int, number: int, timeout: float = 600) -> str:
    """Start the command, send the signal to all its processes once `step` is done, return the output when it ended."""
    with tempfile.TemporaryFile("w+") as said:
        process = processes.start(words, cwd=ROOT, env=environment(), out=said, err=said)
        deadline = time.monotonic() + timeout
        while process.poll() is None and not any(row["step"] >= step for row in metrics(output_dir)):
            if time.monotonic() > deadline:
                _signal_tree(process.pid, signal.SIGKILL)
                raise TimeoutError(f"step {step} was not reached in {timeout} s")
            time.sleep(0.02)
        if process.poll() is None:
            _signal_tree(process.pid, number)
        process.wait(timeout=timeout)
        said.seek(0)
        return said.read()
