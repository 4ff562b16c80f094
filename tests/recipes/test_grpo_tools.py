"""recipes/grpo_tools.py and grpo_code.py by their command lines: configurations, first updates, kill and resume."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mmreason.config import parse_config
from mmreason.rewards import load_rewards
from mmreason.types import ConfigError, DataError
from tests.recipes.launch import ROOT, metrics, run

FOLDER = ROOT / "recipes" / "configs"
CONFIGS = sorted(path for name in ("grpo_tools", "grpo_code") for path in (FOLDER / name).glob("*.yaml"))
SMALL = (
    "--tool_tasks", "{n: 64, n_test: 16}", "--eval_samples", "4", "--per_device_train_batch_size", "8",
    "--num_generations", "4", "--max_steps", "4", "--save_steps", "2", "--max_completion_length", "24",
)  # fmt: skip


def options(name: str) -> tuple[type[Any], ...]:
    from recipes import grpo_code, grpo_tools

    return {"grpo_tools": grpo_tools, "grpo_code": grpo_code}[name].OPTIONS  # type: ignore[return-value]


def command(recipe: str, folder: Path, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--output_dir", str(folder), *flags]


def test_the_set_of_configs() -> None:
    names = [f"{path.parent.name}/{path.stem}" for path in CONFIGS]
    assert names == [
        "grpo_code/embedded", "grpo_code/qwen2.5-coder-1.5b", "grpo_tools/embedded", "grpo_tools/python",
        "grpo_tools/search",
    ]  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_configs_open_with_their_command_and_are_read(path: Path) -> None:
    recipe = path.parent.name
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[:2] == ["accelerate", "launch"] and f"recipes/{recipe}.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    if path.stem != "embedded":
        assert words[words.index("--config") + 1] == f"recipes/configs/{recipe}/{path.name}"
    classes = options(recipe)
    known = {field.name for cls in classes for field in fields(cls)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known
    _, _, rewards, args = parse_config(classes, ["--config", str(path)])
    args.resolve(1)
    loaded = load_rewards(rewards.reward_funcs)
    assert rewards.reward_weights is None or len(rewards.reward_weights) == len(loaded)
    assert args.output_dir.startswith("outputs/") and args.max_steps > 0


def test_what_cannot_work_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    from recipes.grpo_tools import main

    for flags, said in (
        (["--tools", "calculater"], "unknown tool 'calculater'.*calculator"),
        (["--environment", str(tmp_path / "none.py:Game")], "does not exist"),
        (["--max_turns", "0"], "max_turns=0"),
        (["--call_format", "program"], "must have python among them"),
        (["--tool_tasks", "{tsk: search}"], "tool_tasks takes"),
    ):
        with pytest.raises(ConfigError, match=said):
            main([*flags, "--output_dir", str(tmp_path / "out")])
        assert not list(tmp_path.glob("out/checkpoint-*"))


def test_rows_without_tests_are_named() -> None:
    from mmreason.data.schema import to_dataset
    from mmreason.rewards.code import check_tests

    good: Any = {"id": "a", "prompt": "x", "meta": {"tests": {"kind": "asserts", "statements": ["assert f(1) == 2"]}}}
    check_tests(to_dataset([good], plain_prompt=True))
    with pytest.raises(DataError, match="row b: its meta has no tests"):
        check_tests(to_dataset([good, {**good, "id": "b", "meta": {}}], plain_prompt=True))
    with pytest.raises(DataError, match="row c"):
        check_tests(to_dataset([{**good, "id": "c", "meta": {"tests": {"kind": "none"}}}], plain_prompt=True))


def test_humaneval_is_judged_by_its_own_tests(shared_data: Path) -> None:
    """Reference solutions pass; one that isn't Python and one that returns nothing don't."""
    from mmreason.data import load_examples
    from mmreason.rewards.code import check_tests, judge_programs

    rows = load_examples(
        str(shared_data / "code" / "humaneval.jsonl"),
        max_rows=12,
        columns=("prompt", "completion", "id", "meta"),
        require_answer=False,
    ).dataset
    check_tests(rows)
    texts = [f"```python\n{r['prompt'][-1]['content']}{r['completion'][-1]['content']}\n```" for r in rows]
    metas = list(rows["meta"])
    assert {str(j.verdict) for j in judge_programs(texts, metas)} == {"correct"}
    broken = ["```python\ndef f(:\n```", f"```python\n{rows[1]['prompt'][-1]['content']}    return None\n```"]
    assert [str(j.verdict) for j in judge_programs(broken, metas[:2])] == ["unparseable", "wrong"]


@pytest.mark.slow
def test_a_killed_run_with_tools_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """Killed between the turns of a rollout, and in an update."""
    from tests.recipes.killing import Moment, assert_killed_run_ends_alike

    assert_killed_run_ends_alike(
        lambda folder: command("grpo_tools", folder, *SMALL, "--max_turns", "2"),
        tmp_path,
        Moment("mmreason.rollout.multi_turn:MultiTurnEngine._step", call=4),
        Moment("mmreason.trainers.policy:policy_loss", call=2),
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo_tools", "grpo_code"])
def test_the_demo_runs(recipe: str, tmp_path: Path) -> None:
    """From the shipped starts. That of programs is right in some samples of a group and wrong in others; that of tools
    knows them, and seldom calls one (benchmarks/tool_warm_start.py makes it).
    """
    flags = [*SMALL[:2], "--eval_samples", "4", "--max_steps", "2", "--per_device_train_batch_size", "64"]
    if recipe == "grpo_code":
        flags[1] = "{task: program, n: 64, n_test: 16}"
    done = run(command(recipe, tmp_path / "run", *flags))
    assert done.returncode == 0, done.stderr[-3000:]
    told = metrics(tmp_path / "run")
    assert len(told) == 2
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "rollout-000001.parquet").to_pylist()
    if recipe == "grpo_code":
        assert any(row["grad_norm"] > 0 for row in told) and len({row["reward"] for row in rows}) > 1
    else:
        assert sum(row["tool_calls"] > 0 for row in rows) < len(rows) / 2
        assert {"tools/call_frequency", "tools/used", "environment/turns"} <= set(told[0])
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(evaluation) == ["before", "after"]
