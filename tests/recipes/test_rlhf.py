"""recipes/rlhf.py: its YAMLs, its three stages through the real command line, kills in each of them."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mmreason.config import parse_config
from mmreason.data import load_examples
from mmreason.rewards.model import reward_model_reward
from mmreason.trainers.rlhf_arguments import RLHFConfig, RLHFRewards
from mmreason.trainers.stages import mark_done, stage_is_done
from mmreason.types import ConfigError
from recipes.rlhf import OPTIONS, main, with_reward_model
from tests.recipes.killing import Moment, assert_killed_run_ends_alike, assert_same_run
from tests.recipes.launch import ROOT, SMALL, metrics, small_example

CONFIGS = sorted((ROOT / "recipes" / "configs" / "rlhf").glob("*.yaml"))
SFT = "{max_steps: 2, logging_steps: 1, per_device_train_batch_size: 8, save_steps: 1, max_completion_length: 6}"
RM = (
    "{word_problems: {level: 1, n: 48, n_test: 16, n_unseen: 0}, dataset_test_split: test, eval_samples: 8, "
    "max_steps: 3, logging_steps: 1, per_device_train_batch_size: 8, save_steps: 1, max_length: 512, "
    "learning_rate: 1e-3}"
)
FLAGS = [
    *SMALL, "--num_generations", "1", "--per_device_train_batch_size", "8", "--num_iterations", "1", "--max_steps", "3",
    "--save_steps", "1", "--sft", SFT, "--reward_model", RM,
]  # fmt: skip


def words(output_dir: Path, *flags: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "recipes" / "rlhf.py"), *small_example(), "--output_dir", str(output_dir), *FLAGS,
        *flags,
    ]  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_yaml_opens_with_its_command_and_fits(path: Path) -> None:
    command = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert command[:2] == ["accelerate", "launch"] and "recipes/rlhf.py" in command
    assert all((ROOT / word).is_file() for word in command if word.startswith("recipes/"))
    if path.stem != "embedded":
        assert command[-2:] == ["--config", str(path.relative_to(ROOT))]
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= {f.name for cls in OPTIONS for f in fields(cls)}
    _, _, _, args = parse_config(OPTIONS, ["--config", str(path)])
    args.resolve(1)
    stage = args.sft_options()
    assert (stage is None) == (path.stem == "hh-rlhf")
    data, options = args.reward_options()
    assert options.output_dir == f"{args.output_dir}/reward_model" and options.seed == args.seed
    assert data.dataset_name is None or data.dataset_name == "Anthropic/hh-rlhf"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sft": {"learning_rat": 1}}, "sft: .*learning_rat"),
        ({"reward_model": {"head": "best"}}, "reward_model: .*head"),
        ({"reward_model": {"output_dir": "x"}}, "reward_model: output_dir is the recipe's own"),
        ({"reward_model": {"shapes": {"level": 1}}}, "shapes has no meaning"),
        ({"reward_model": {"path": "rm", "max_steps": 3}}, "not both"),
    ],
)
def test_bad_stages_are_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    args = RLHFConfig(**options)
    with pytest.raises(ConfigError, match=message):
        args.sft_options()
        args.reward_path()
        args.reward_options()


def test_a_missing_reward_model_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    flags = ["--sft", SFT, "--reward_model", f"{{path: {tmp_path / 'none'}}}", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match="no folder with a reward model"):
        main([*small_example(), *SMALL, "--num_generations", "1", *flags])
    assert not (tmp_path / "run" / "sft").exists()


def test_what_the_last_stage_refuses_is_refused_before_the_first(tmp_path: Path) -> None:
    start = [*small_example(), *FLAGS, "--output_dir", str(tmp_path / "run")]
    for flags, message in (
        (("--gamma", "2"), "gamma=2"),
        (("--use_peft", "true"), "first stage would leave an adapter"),
        (("--reward_funcs", "format", "--reward_weights", "1.0"), "whose weight is the last"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([*start, *flags])
    assert not (tmp_path / "run").exists()


def test_a_finished_stage_belongs_to_its_options(tmp_path: Path) -> None:
    identity = {"model_name_or_path": "a", "block": {"max_steps": 2}}
    assert not stage_is_done(tmp_path, identity, overwrite=False)
    (tmp_path / "final").mkdir()  # begun, and not marked: a kill came before the end
    assert not stage_is_done(tmp_path, identity, overwrite=False)
    mark_done(tmp_path, identity)
    assert stage_is_done(tmp_path, identity, overwrite=False)
    with pytest.raises(ConfigError, match=r"block: \{'max_steps': 2\} there, \{'max_steps': 5\} now"):
        stage_is_done(tmp_path, identity | {"block": {"max_steps": 5}}, overwrite=False)
    assert not stage_is_done(tmp_path, identity, overwrite=True)
    assert not stage_is_done(tmp_path, identity, overwrite=False)


def test_the_reward_model_stands_behind_the_other_rewards() -> None:
    named = with_reward_model(RLHFRewards(reward_funcs=["format"]), "rm/final").reward_funcs
    assert named == ["format", {"name": "reward_model", "path": "rm/final"}]
    assert with_reward_model(RLHFRewards(reward_funcs=["format"]), None).reward_funcs == ["format"]


def each_stage_alike(unbroken: Path, broken: Path) -> None:
    for stage in ("sft", "reward_model", "ppo"):
        assert metrics(unbroken / stage), stage
        assert_same_run(unbroken / stage, broken / stage)


@pytest.mark.slow
def test_killed_in_two_stages_it_ends_like_an_unbroken_run(tmp_path: Path) -> None:
    """And the last stage is rewarded by what the second one learned."""
    unbroken, _ = assert_killed_run_ends_alike(
        words,
        tmp_path,
        Moment("transformers:Trainer.training_step", call=4),  # two steps of SFT, then the second of the reward model
        Moment("mmreason.trainers.critic:policy_loss", call=2),
        compare=each_stage_alike,
    )
    sums = load_examples(small_example()[small_example().index("--dataset_name") + 1], split="train").dataset
    prompts = {row["id"]: row["prompt"] for row in sums}
    rows = pq.read_table(unbroken / "ppo" / "rollouts" / "rollout-000001.parquet").to_pylist()
    said = reward_model_reward(
        [[{"role": "assistant", "content": row["completion"]}] for row in rows],
        [prompts[row["id"]] for row in rows],
        path=str(unbroken / "reward_model" / "final"),
    )
    assert sum(value is not None for value in said) > 0
    for row, value in zip(rows, said, strict=True):
        own = row["rewards/reward_model_reward"]  # small.yaml has a reward beside it
        assert (own is None or own != own) if value is None else own == pytest.approx(value, abs=1e-5)
        if value is not None:
            assert row["reward"] == pytest.approx(value + row["rewards/partial_credit_reward"], abs=1e-5)
