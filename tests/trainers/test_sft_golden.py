"""Losses on real rows, GSM8K's and ScienceQA's solutions, TabMWP's with pictures, run along the recorded curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.record_sft import CASES, FOLDER, STEPS, observe


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def recorded(name: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["steps"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls_as_recorded(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Other CPUs add up in another order, which Adam raises from step to step."""
    for want, got in zip(recorded(name), observe(name, shared_data, tmp_path), strict=True):
        assert got["step"] == want["step"]
        assert got["loss"] == pytest.approx(want["loss"], rel=2e-3), want["step"]


@pytest.mark.parametrize("name", CASES)
def test_the_curves_say_something(name: str) -> None:
    steps = recorded(name)
    assert len(steps) == STEPS
    assert steps[-1]["loss"] < 0.85 * steps[0]["loss"]
