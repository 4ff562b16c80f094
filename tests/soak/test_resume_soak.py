"""Twenty kills at random places of a run that ends bit for bit like an unbroken one; vLLM, which may skip no prompt."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.recipes.killing import Moment, assert_killed_run_ends_alike, kill_at
from tests.recipes.launch import SMALL, command, run
from tests.recipes.test_resume import SETTINGS

pytestmark = pytest.mark.soak
KILLS = 20
STEPS = 300
# Where a run of any setting comes by at each step or save: (function, calls of it in a step at most).
PLACES = (
    ("mmreason.rollout.hf:HFEngine._generate_rows", 2),
    ("mmreason.rollout.hf:_TokenRecorder.__call__", 6),
    ("mmreason.trainers.rewarding:compute_rewards", 1),
    ("mmreason.trainers.records:write_rows", 1),
    ("mmreason.trainers.scorer:Scorer.logps", 1),
    ("torch.optim:AdamW.step", 1),
    ("mmreason.trainers.guards:Guards.observe", 1),
    ("mmreason.trainers.records:RunRecords.metrics", 1),
    ("mmreason.trainers.policy:save_policy", 1),
    ("accelerate:Accelerator.save_state", 1),
    ("mmreason.trainers.policy:write_parts", 1),
    ("mmreason.trainers.state:write_json", 2),
    ("mmreason.trainers.state:_fsync_tree", 1),
    ("mmreason.trainers.state:Checkpoints._rotate", 1),
)


@pytest.mark.parametrize("name", ["one_process", "rollout_in_flight", "lora"])
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills(name: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(f"{name} {seed}")
    flags, accelerate, _ = SETTINGS[name]
    # Each process takes at least two steps before it dies, so the run gets on, and never so many that it ends.
    moments = []
    for _ in range(KILLS):
        target, calls = draw.choice(PLACES)
        moments.append(Moment(target, draw.randint(calls + 1, 2 * calls + 1), after=draw.random() < 0.5))
    assert_killed_run_ends_alike(
        lambda folder: command(
            folder, *SMALL, *flags, "--save_steps", "1", "--max_steps", str(STEPS), "--learning_rate", "1e-4",
            accelerate=accelerate,
        ),
        tmp_path,
        *moments,
        timeout=900,
    )  # fmt: skip


def test_with_vllm_no_prompt_is_skipped_and_none_is_asked_twice(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path / "run"
    # 64 prompts, 4 of them in a rollout: 16 rollouts are one epoch.
    words = command(folder, *SMALL, "--use_vllm", "true", "--max_steps", "16")
    for moment in (
        Moment("mmreason.rollout.vllm:VLLMColocateEngine.generate", 4, after=True),
        Moment("torch.optim:AdamW.step", 5),
        Moment("mmreason.trainers.state:_fsync_tree", 2),
    ):
        kill_at(words, folder, moment, timeout=900)
    done = run(words, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    files = sorted((folder / "rollouts").glob("*.parquet"))
    asked = Counter(id for path in files for id in pq.read_table(path)["id"].to_pylist())
    assert len(files) == 16 and len(asked) == 64
    assert set(asked.values()) == {4}  # the group of each prompt, once
