"""`import mmreason` is light, and imports point the way DESIGN.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "trl", "numpy", "datasets", "accelerate", "peft", "vllm", "sympy", "pyarrow")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "module", ["mmreason", "mmreason.types", "mmreason.config", "mmreason.answers", "mmreason.cli.main"]
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mmreason/types.py", "import mmreason.config"),
        ("mmreason/config.py", "import torch"),
        ("mmreason/losses/__init__.py", "import transformers"),
        ("mmreason/losses/__init__.py", "import mmreason.data"),
        ("mmreason/data/__init__.py", "import mmreason.models"),
        ("mmreason/models/__init__.py", "import mmreason.data"),
        ("mmreason/answers/__init__.py", "import numpy"),
        ("mmreason/rewards/__init__.py", "import mmreason.trainers"),
        ("mmreason/trainers/__init__.py", "import mmreason.cli"),
        ("mmreason/cli/main.py", "import data_builders"),
        ("mmreason/trainers/__init__.py", "import recipes"),
    ],
)
def test_each_contract_can_break(tmp_path: Path, module: str, line: str) -> None:
    for name in ("mmreason", "data_builders", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout
