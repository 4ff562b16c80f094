"""kill -9 and the same command again: the run ends where an unbroken one ends, with the same samples on the way."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.recipes.conftest import call_recipe
from tests.recipes.killing import Moment, assert_killed_run_ends_alike, assert_same_run
from tests.recipes.launch import ROOT, SMALL, command, metrics, run_and_signal

# Measured at steps 2, 4 and 6: before the kill and after it, and the steps around it must not notice.
EVALUATION = ("--eval_samples", "5", "--eval_num_generations", "2", "--eval_steps", "2")
# Windows so short that guards judge within six steps, and bounds so narrow that some of them speak.
GUARDS = ("--guards", "{entropy: {window: 2, rise: 0.001}, reward: {window: 2, drop: 0.01}, signal: {window: 3}}")
NOISY = ("--reward_funcs", str(ROOT / "tests" / "recipes" / "odd_rewards.py") + ":noisy")

# Flags, launch configuration, and the moments of the kills, each in a process that began at the checkpoint of step 2.
SETTINGS: dict[str, tuple[tuple[str, ...], str | None, tuple[Moment, ...]]] = {
    "one_process": (
        (*EVALUATION, *GUARDS, "--hf_generation_batch_size", "8"),
        None,
        (
            # `generate` is called 3 times for the evaluation before, twice a step, once for that of step 2.
            Moment("mmreason.rollout.hf:HFEngine._generate_rows", 12),  # in the middle of the rollout of step 4
            Moment("mmreason.rollout.evaluate:verify_many"),  # in the evaluation of step 4
        ),
    ),
    # Two optimizer steps for each of two uses of a rollout: the checkpoints of steps 2 and 6 hold one in flight.
    "rollout_in_flight": (
        ("--steps_per_generation", "2", "--num_iterations", "2", "--beta", "0.01", *EVALUATION),
        None,
        (
            Moment("torch.optim:AdamW.step", 4, after=True),  # in the update of step 4: the weights have moved
            Moment("mmreason.trainers.state:_fsync_tree"),  # in the write of checkpoint-4
        ),
    ),
    # Dropout in the adapter, and rewards that draw random numbers.
    "lora": (
        ("--use_peft", "--lora_target_modules", "all-linear", "--lora_dropout", "0.2", "--steps_per_generation", "2",
         *NOISY),
        None,
        (Moment("mmreason.trainers.checkpointing:save_training_state", 2),),  # checkpoint-4: the model is there already
    ),
    "ddp": (EVALUATION, "cpu_ddp2", (Moment("torch.optim:AdamW.step", 4),)),
    "zero3": ((), "cpu_zero3", (Moment("accelerate:Accelerator.save_state", 2),)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_run_ends_like_an_unbroken_one(name: str, tmp_path: Path) -> None:
    flags, accelerate, moments = SETTINGS[name]
    _, broken = assert_killed_run_ends_alike(
        lambda folder: command(folder, *SMALL, *flags, accelerate=accelerate), tmp_path, *moments
    )
    evaluation = broken / "evaluation.json"
    measured = list(json.loads(evaluation.read_text())) if evaluation.is_file() else []
    assert measured == (["before", "step 2", "step 4", "after"] if "--eval_steps" in flags else [])
    if "--guards" in flags:
        judged = {name.split("/")[1] for row in metrics(broken) for name in row if name.startswith("guards/")}
        assert {"non_finite", "entropy", "reward", "signal"} <= judged


def test_going_back_to_a_checkpoint_gives_the_same_run_again(tmp_path: Path) -> None:
    """In one process, whose generators have moved on: all that dropout and rewards draw comes from the checkpoint."""
    flags, _, _ = SETTINGS["lora"]
    first, again = tmp_path / "first", tmp_path / "again"
    call_recipe(first, *flags)
    shutil.copytree(first, again)
    call_recipe(again, *flags, "--resume", str(again / "checkpoint-2"))
    assert (again / "checkpoint-6.abandoned").is_dir()
    assert_same_run(first, again)


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = command(tmp_path / "run", *SMALL, "--save_steps", "0", "--max_steps", "500")
    output = run_and_signal(words, tmp_path / "run", step=2, number=signal.SIGINT)
    assert "Run the same command to continue" in output
    steps = [row["step"] for row in metrics(tmp_path / "run")]
    assert (tmp_path / "run" / f"checkpoint-{steps[-1]}" / "run_state.json").is_file()
