"""The README: its commands run or parse, the files it names exist, its lists are complete, its example works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.recipes.launch import ROOT, environment, metrics

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(m[1], m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M)]
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, body in BLOCKS
    if kind == "bash"
    for line in body.splitlines()
    if line.strip() and not line.startswith("#")
]
LAUNCHES = [command for command in COMMANDS if command.startswith("accelerate launch")]
TOP = [path.name for path in ROOT.iterdir() if path.is_dir()]


def test_there_are_commands() -> None:
    assert len(LAUNCHES) >= 4 and "make test" in COMMANDS and "accelerate launch recipes/grpo_math.py" in LAUNCHES


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("accelerate launch")])
def test_other_commands(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.M), f"the Makefile has no target {words[1]}"
    elif words[0] == "sbatch":
        assert (ROOT / words[1]).is_file()
        subprocess.run(["bash", "-n", str(ROOT / words[1])], check=True)
    else:
        assert command == "source .venv/bin/activate", "say here how this command is checked"


@pytest.mark.parametrize("command", LAUNCHES)
def test_launches_parse(command: str) -> None:
    """By accelerate's own parser and by the recipe's, which refuse what they don't know."""
    from accelerate.commands.launch import launch_command_parser

    from mmreason.config import parse_config
    from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments

    launch = launch_command_parser().parse_args(shlex.split(command)[2:])
    assert launch.training_script == "recipes/grpo_math.py"
    assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in launch.training_script_args]
    parse_config((ModelArguments, DataArguments, RewardArguments, PolicyConfig), arguments)


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    """`accelerate launch recipes/grpo_math.py`, two steps of it, on a machine where accelerate was never configured."""
    small = ["--max_steps", "2", "--eval_samples", "8", "--output_dir", str(tmp_path / "run")]
    words = [sys.executable, "-m", "accelerate.commands.launch", "recipes/grpo_math.py", *small]
    done = subprocess.run(
        words, cwd=ROOT, env=environment() | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for said in ("No model was named", "No dataset was named", "before (step 0)", "after (step 2)", "maj@4"):
        assert said in done.stdout
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
    for name in ("config.yaml", "metrics.jsonl", "evaluation.json", "rollouts/rollout-000002.parquet", "checkpoint-2"):
        assert (tmp_path / "run" / name).exists()


SCRIPTS = sorted(path for folder in ("recipes", "data_builders") for path in (ROOT / folder).glob("[!_]*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_help_in_half_a_second(path: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(path), "--help"], env=environment(), capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5, seconds


def test_paths_exist() -> None:
    named = {word for code in re.findall(r"`([^`\n]+)`", TEXT) for word in code.split() if "/" in word}
    named |= {word for command in COMMANDS for word in command.split() if word.endswith((".py", ".yaml", ".sbatch"))}
    ours = {name for name in named if name.split("/")[0] in TOP}
    assert len(ours) >= 5
    missing = [name for name in sorted(ours) if not (ROOT / name).exists()]
    assert not missing, missing
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_tree_is_the_one_on_disk() -> None:
    (tree,) = (body for _, body in BLOCKS if body.startswith("mmreason/"))
    folder, listed = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            listed.add(name)
        elif re.match(r"  \S+\s{2,}", line):
            listed.add(f"{folder}{name}")
    assert all((ROOT / name).exists() for name in listed), listed
    packages = {f"mmreason/{path.parent.name}/" for path in (ROOT / "mmreason").glob("*/__init__.py")}
    assert packages <= listed, f"the README's tree lacks {sorted(packages - listed)}"


def test_the_table_of_launch_files_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+\.yaml)` \|", TEXT, re.M)
    assert sorted(rows) == sorted(path.name for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"))


def test_the_list_of_rewards_is_complete() -> None:
    from mmreason.rewards.registry import REWARDS

    (sentence,) = re.findall(r"^Built in: (.*?);", TEXT, re.S | re.M)
    assert re.findall(r"`(\w+)`", sentence) == list(REWARDS)


def test_the_reward_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreason.rewards import load_rewards
    from mmreason.rewards.run import compute_rewards

    (code,) = (body for kind, body in BLOCKS if kind == "python")
    (settings,) = (yaml.safe_load(body) for kind, body in BLOCKS if kind == "yaml")
    (tmp_path / "my_rewards.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    texts = ["so it is 4", "x" * 300 + " 5"]
    batch = compute_rewards(
        load_rewards(settings["reward_funcs"]), settings["reward_weights"], prompts=["a", "b"],
        completions=[[{"role": "assistant", "content": text}] for text in texts], completion_ids=[[1], [2]],
        columns={"answer": ["4", "4"]},
    )  # fmt: skip
    assert batch.total.tolist() == pytest.approx([1.2, 0.2 * (2 - 302 / 200)])
