"""The same samples give TRL's loss and gradient: each loss type, with reference and adapter, in two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mmreason.losses.policy import LOSS_TYPES
from tests.recipes.launch import run
from tests.trainers.trl_parity import CASES, MORE, compare

BOUND = 1e-6
AVERAGES = ("grpo", "dr_grpo", "dapo", "bnpo")
PAIRS = [(name, loss_type) for name in CASES for loss_type in AVERAGES]
PAIRS += [(name, loss_type) for name, (_, losses) in MORE.items() for loss_type in losses]


def loss_bound(loss_type: str) -> float:
    """The terms of two losses are log-probabilities, some nats each, where those of the others are ratios near 1."""
    return 5 * BOUND if loss_type in ("cispo", "vespo") else BOUND


def test_every_loss_is_compared() -> None:
    assert {loss_type for _, loss_type in PAIRS} == set(LOSS_TYPES)


@pytest.mark.parametrize(("name", "loss_type"), PAIRS)
def test_loss_and_gradient_equal_trl(name: str, loss_type: str, tmp_path: Path) -> None:
    found = compare(name, loss_type, 2, tmp_path)
    assert found["scale"] > 1e-3, "the gradient vanishes: this would prove nothing"
    assert found["loss"] <= loss_bound(loss_type) and found["gradient"] <= BOUND, found
    assert found.get("reference", 0.0) <= BOUND, found


@pytest.mark.slow
def test_two_processes_equal_trl(tmp_path: Path, repo_root: Path) -> None:
    names = ["on_policy", "reference_off_policy", "lora_reference_off_policy"]
    cases = [f"{name}/{loss_type}/2" for name in names for loss_type in AVERAGES]
    cases += ["gspo/luspo/2", "cispo/cispo/2", "vespo/vespo/2", "top_entropy/dapo/2"]
    config = repo_root / "recipes" / "accelerate" / "cpu_ddp2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command = [*launch, str(repo_root / "tests" / "trainers" / "trl_parity.py"), str(tmp_path), *cases]
    done = run(command, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"result-{rank}.json").read_text())
        assert len(found) == len(cases)
        for case, values in found.items():
            assert values["loss"] <= loss_bound(case.split("/")[1]) and values["gradient"] <= BOUND, (
                rank,
                case,
                values,
            )
