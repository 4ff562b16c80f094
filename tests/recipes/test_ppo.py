"""recipes/ppo.py and recipes/reft.py through their real command lines: every YAML, kills in each stage, processes."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason.config import parse_config
from mmreason.rewards import load_rewards
from mmreason.types import ConfigError
from tests.recipes.killing import Moment, assert_killed_run_ends_alike, assert_same_run, assert_same_weights
from tests.recipes.launch import ROOT, SMALL, metrics, run, small_example

CONFIGS = [path for name in ("ppo", "reft") for path in sorted((ROOT / "recipes" / "configs" / name).glob("*.yaml"))]
# A rollout of 16 feeds two updates, twice: checkpoints of odd steps hold one in flight.
PPO = [
    *SMALL, "--num_generations", "1", "--per_device_train_batch_size", "8", "--steps_per_generation", "2",
    "--num_iterations", "2", "--adap_kl_ctrl", "true", "--target", "0.01", "--use_score_scaling", "true",
]  # fmt: skip
SFT = "{max_steps: 4, per_device_train_batch_size: 8, save_steps: 2, max_completion_length: 6, learning_rate: 1e-3}"
REFT = [*PPO, "--sft", SFT, "--eval_samples", "6", "--eval_num_generations", "2"]


def words(recipe: str, output_dir: Path, *flags: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        config = ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml"
        start += ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*start, str(ROOT / "recipes" / recipe), *small_example(), "--output_dir", str(output_dir), *flags]


def options_of(path: Path) -> tuple[tuple[type, ...], Any]:
    import importlib

    classes = importlib.import_module(f"recipes.{path.parent.name}").OPTIONS
    return classes, parse_config(classes, ["--config", str(path)])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_yaml_opens_with_its_command_and_fits(path: Path) -> None:
    recipe = f"recipes/{path.parent.name}.py"
    command = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert command[:2] == ["accelerate", "launch"] and recipe in command
    assert all((ROOT / word).is_file() for word in command if word.startswith("recipes/"))
    if path.stem != "embedded":
        assert command[-2:] == ["--config", str(path.relative_to(ROOT))]
    classes, (_, _, rewards, args) = options_of(path)
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= {f.name for cls in classes for f in fields(cls)}
    args.resolve(1)
    if path.parent.name == "reft":
        stage = args.warm_up()
        assert stage.output_dir == f"{args.output_dir}/sft" and stage.seed == args.seed
        rewards.reward_funcs = args.default_rewards()
    load_rewards(rewards.reward_funcs)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"learning_rat": 1}, "sft: .*learning_rat"),
        ({"output_dir": "x"}, "sft: output_dir is the recipe's own"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"per_device_train_batch_size": "many"}, "sft: .*per_device_train_batch_size"),
    ],
)
def test_a_bad_warm_up_is_refused_before_anything_runs(block: dict[str, Any], message: str) -> None:
    from mmreason.trainers.reft_arguments import ReFTConfig

    with pytest.raises(ConfigError, match=message):
        ReFTConfig(sft=block).warm_up()


def test_the_rewards_of_reft() -> None:
    """1 right, 0.1 readable but wrong, 0 else; for words and for programs."""
    from mmreason.trainers.reft_arguments import ReFTConfig

    (natural,) = load_rewards(ReFTConfig().default_rewards())
    texts = ["2 + 3 = 5\nThe answer is 5.", "The answer is 6.", "I can't say."]
    assert natural(completions=texts, answer=["5"] * 3) == [1.0, 0.1, 0.0]


@pytest.mark.slow
def test_a_killed_ppo_run_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """Killed in an update with a rollout in flight, and in the checkpoint's write."""
    unbroken, _ = assert_killed_run_ends_alike(
        lambda folder: words("ppo.py", folder, *PPO),
        tmp_path,
        Moment("mmreason.trainers.critic:policy_loss", call=4),
        "checkpoint-4.writing",
    )
    lines = metrics(unbroken)
    assert len({line["objective/kl_coef"] for line in lines if "objective/kl_coef" in line}) > 1
    assert (unbroken / "checkpoint-6" / "critic.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_reft_run_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """Killed in the warm-up and in the second stage."""

    def compare(unbroken: Path, broken: Path) -> None:
        assert_same_run(unbroken / "ppo", broken / "ppo")
        assert_same_weights(unbroken / "sft", broken / "sft")
        assert json.loads((unbroken / "ppo/rerank.json").read_text()) == json.loads(
            (broken / "ppo/rerank.json").read_text()
        )

    unbroken, _ = assert_killed_run_ends_alike(
        lambda folder: words("reft.py", folder, *REFT),
        tmp_path,
        Moment("transformers:Trainer.training_step", call=4),
        Moment("mmreason.trainers.critic:policy_loss", call=4),
        compare=compare,
    )
    found = json.loads((unbroken / "ppo" / "rerank.json").read_text())["held_out"]
    assert found["k"] == 2 and found["pass_at_k"]["n"] == 6
    assert found["reranked"]["correct"] <= found["pass_at_k"]["correct"] <= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "accelerate", "flags"),
    [
        ("ppo.py", "cpu_zero3", [*PPO, "--value_model", "separate", "--value_warmup_steps", "2"]),
        ("reft.py", "cpu_ddp2", REFT),
    ],
)
def test_several_processes(recipe: str, accelerate: str, flags: list[str], tmp_path: Path) -> None:
    """Both stages in one process group; a separate critic whose weights are sharded, resumed from its shards."""
    from safetensors.torch import load_file

    folder = tmp_path / "run"
    command = words(recipe, folder, *flags, "--max_steps", "4", accelerate=accelerate)
    done = run(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    last = folder / ("ppo/checkpoint-4" if recipe == "reft.py" else "checkpoint-4")
    critic = load_file(last / "critic.safetensors")
    assert any(tensor.any() for name, tensor in critic.items() if "head" in name), "the critic learned nothing"
    if recipe == "ppo.py":
        assert any("layers" in name for name in critic)
        again = run([*command, "--max_steps", "5"])
        assert again.returncode == 0 and "Continuing from" in again.stdout, again.stdout[-1000:] + again.stderr[-3000:]
