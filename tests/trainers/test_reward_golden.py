"""The loss on hh-rlhf's pairs runs along the recorded curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.record_reward import FILE, STEPS, observe


@pytest.mark.slow
def test_the_loss_falls_as_recorded(shared_data: Path, tmp_path: Path) -> None:
    """Other CPUs add up in another order, which Adam raises from step to step."""
    recorded = json.loads(FILE.read_text(encoding="utf-8"))["steps"]
    found = observe(shared_data, tmp_path)
    assert [step["step"] for step in found] == [step["step"] for step in recorded]
    for want, got in zip(recorded[:12], found, strict=False):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-2), want["step"]
    assert _end(found) == pytest.approx(_end(recorded), abs=0.1)


def test_the_curve_says_something() -> None:
    steps = json.loads(FILE.read_text(encoding="utf-8"))["steps"]
    assert len(steps) == STEPS
    assert _end(steps) < 0.4 * _end(steps[:5])
    assert sum(step["accuracy"] for step in steps[-5:]) / 5 > 0.9


def _end(steps: list[dict[str, float]]) -> float:
    return sum(step["loss"] for step in steps[-5:]) / 5
