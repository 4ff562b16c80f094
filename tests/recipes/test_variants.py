"""Estimators, losses and prompt selection through the recipe: they run, say what they did, and go on exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.conftest import call_recipe
from tests.recipes.launch import SMALL, command, metrics, run

SELECTION = "{min_pass_rate: 0.01, max_pass_rate: 0.9, replay_hard: 0.3, hard_pass_rate: 0.5, curriculum: easy_first}"
DYNAMIC = ("--dynamic_sampling", "true", "--dynamic_sampling_max_rounds", "3", "--prompt_selection", SELECTION)
SPO = ("--advantage_estimator", "spo", "--num_generations", "1", "--prompt_selection", "{priority: true}")
TIMES = ("time/", "num_tokens")


def told(folder: Path) -> list[str]:
    """As text, in which nan equals nan."""
    return [json.dumps({k: v for k, v in row.items() if not k.startswith(TIMES)}) for row in metrics(folder)]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = (folder / f"checkpoint-{step}").glob("*.safetensors")
    return load_file(path)


def assert_same_run(left: Path, right: Path, step: int) -> None:
    expected, found = weights(left, step), weights(right, step)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert told(left) == told(right)
    rollouts = [sorted(folder.glob("rollouts/*.parquet")) for folder in (left, right)]
    assert [p.name for p in rollouts[0]] == [p.name for p in rollouts[1]] != []
    assert all(pq.read_table(a).equals(pq.read_table(b)) for a, b in zip(*rollouts, strict=True))


def asked(folder: Path) -> list[list[str]]:
    """Prompts of each rollout, once for each group."""
    out = []
    for path in sorted(folder.glob("rollouts/*.parquet")):
        table = pq.read_table(path, columns=["group", "prompt"]).to_pylist()
        out.append([prompt for _, prompt in dict.fromkeys((row["group"], row["prompt"]) for row in table)])
    return out


@pytest.mark.parametrize("flags", [DYNAMIC, SPO], ids=["dynamic_sampling", "spo"])
def test_stopped_and_continued_is_unbroken(flags: tuple[str, ...], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = (*flags, "--max_train_samples", "12", "--steps_per_generation", "2")  # some epochs, and a rollout in flight
    call_recipe(whole, *more, "--max_steps", "6", "--save_steps", "6")
    call_recipe(parts, *more, "--max_steps", "3", "--save_steps", "3")
    call_recipe(parts, *more, "--max_steps", "6", "--save_steps", "6")
    assert_same_run(whole, parts, 6)
    rows = metrics(whole)
    assert all(math.isfinite(row["loss"]) for row in rows) and any(row["grad_norm"] > 0 for row in rows)


def test_dynamic_sampling_fills_the_rollout_and_says_what_it_cost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    call_recipe(folder, "--dynamic_sampling", "true", "--max_steps", "4", "--save_steps", "4")
    sampled = 0
    for row in metrics(folder):
        prompts = row["dynamic_sampling/prompts"]
        assert prompts >= 4 and row["dynamic_sampling/rounds"] >= 1
        assert row["frac_reward_zero_std"] == row["dynamic_sampling/missing"] / 4
        sampled += prompts * 4
    assert any(row["dynamic_sampling/rounds"] > 1 for row in metrics(folder)), "no group was replaced: proves nothing"
    state = (folder / "checkpoint-4" / "run_state.json").read_text()
    assert f'"samples": {int(sampled)}' in state, "completions that were left out were sampled, too"
    parts = (folder / "checkpoint-4" / "parts.json").read_text()
    assert f'"drawn": {int(sampled) // 4}' in parts


def test_solved_rows_are_left_out_and_hard_ones_come_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    block = "{min_pass_rate: 0.02, reward: partial_credit, return_after: 0, ema: 1.0}"
    flags = ("--max_train_samples", "8", "--max_steps", "8", "--save_steps", "8")
    call_recipe(folder, "--prompt_selection", block, *flags)
    rows = metrics(folder)
    assert rows[0]["prompts/unseen"] == 4 and rows[1]["prompts/unseen"] == 0
    assert rows[-1]["prompts/active"] < 8 and rows[-1]["prompts/too_hard"] >= 1
    first = {prompt for rollout in asked(folder)[:2] for prompt in rollout}
    last = {prompt for rollout in asked(folder)[-2:] for prompt in rollout}
    assert len(first) == 8 and last < first


VARIANTS: dict[str, tuple[str, ...]] = {
    "rloo": (
        "--advantage_estimator", "rloo", "--importance_sampling_level", "sequence_sum", "--loss_type", "grpo",
        "--beta", "0.05",
    ),
    "reinforce_plus_plus": ("--advantage_estimator", "reinforce_plus_plus", "--num_generations", "1", "--beta", "0.01"),
    "reinforce_plus_plus_baseline": ("--advantage_estimator", "reinforce_plus_plus_baseline"),
    "gspo": ("--importance_sampling_level", "sequence", "--loss_type", "grpo", "--steps_per_generation", "2"),
    "cispo": ("--loss_type", "cispo", "--epsilon_high", "5.0", "--num_iterations", "2"),
    "top_entropy": ("--top_entropy_quantile", "0.2"),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_runs(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    call_recipe(folder, *VARIANTS[name], "--max_steps", "3", "--save_steps", "3")
    rows = metrics(folder)
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows), "no step had a gradient: this would prove nothing"
    assert ("kl" in rows[0]) == ("--beta" in VARIANTS[name])


@pytest.mark.slow
def test_two_processes_share_what_was_kept(tmp_path: Path) -> None:
    """The rows of a rollout are those that dynamic sampling chose, whole groups; stopped and continued is unbroken."""
    flags = (*SMALL, *DYNAMIC, "--per_device_train_batch_size", "8", "--save_steps", "2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, steps in ((whole, "4"), (parts, "2"), (parts, "4")):
        done = run(command(folder, *flags, "--max_steps", steps, accelerate="cpu_ddp2"))
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(whole, parts, 4)
    for path in sorted(whole.glob("rollouts/*.parquet")):
        rows = pq.read_table(path, columns=["group", "prompt"]).to_pylist()
        assert len({(row["group"], row["prompt"]) for row in rows}) == 4 == len(rows) // 4
    assert any(row["dynamic_sampling/rounds"] > 1 for row in metrics(whole))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prompt_selection", "{max_pas_rate: 0.5}"), "unknown key 'max_pas_rate' Did you mean 'max_pass_rate'"),
        (("--prompt_selection", "{reward: acc}"), "prompt_selection: reward: 'acc' is none of this run's rewards"),
        (("--prompt_selection", "{curriculum: easy_first, difficulty: grade}"), "no column 'grade'"),
        (("--dynamic_sampling", "true", "--dynamic_sampling_reward", "acc"), "dynamic_sampling_reward: 'acc' is none"),
        (("--num_generations", "1"), "at least 2 completions"),
        (("--advantage_estimator", "spo", "--spo", "{half_life: -1}"), "half_life=-1 must be above 0"),
    ],
)
def test_bad_options_are_named(flags: tuple[str, ...], words: str, tmp_path: Path) -> None:
    from mmreason.types import ConfigError

    with pytest.raises(ConfigError, match=words):
        call_recipe(tmp_path / "run", *flags, "--max_steps", "1")
