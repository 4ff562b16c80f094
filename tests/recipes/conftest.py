"""The GRPO recipe in this process: quicker than a process per command. Accelerate's global state is put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.recipes.launch import SMALL, small_example

Main = Callable[..., None]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its set-up in class attributes; a second run in one process would meet the first one's."""
    yield
    reset_accelerate()


def reset_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def call_recipe(output_dir: Path, *flags: str) -> None:
    """main([...]) with the small example's settings."""
    from recipes.grpo_math import main

    reset_accelerate()
    main([*small_example(), "--output_dir", str(output_dir), *SMALL, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: str) -> tuple[Path, tuple[str, ...]]:
    """(output folder of a finished run with checkpoints at steps 2 and 4, its flags). Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = ("--model_name_or_path", tiny_checkpoint, "--max_steps", "4")
    call_recipe(folder, *flags)
    return folder, flags


@pytest.fixture
def earlier(finished: tuple[Path, tuple[str, ...]], tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A copy of `finished` of the test's own."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", finished[1]
