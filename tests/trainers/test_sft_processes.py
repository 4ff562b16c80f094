"""8 × 1 = 1 × 8 = 2 processes × 4, through real processes: text, pictures and M-RoPE, padded and packed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pictures import save_seeing
from tests.recipes.launch import ROOT, run
from tests.trainers.sft_processes import CASES, ROWS, fresh, steps


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("mmreason", "qwen2_5_vl"):
        save_seeing(kind, folder / kind)
    return folder


@pytest.fixture(scope="module")
def two_processes(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_ddp2.yaml"]
    done = run([*launch, str(ROOT / "tests" / "trainers" / "sft_processes.py"), str(models), str(out)], timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, dict[str, torch.Tensor]] = torch.load(out / "weights.pt", weights_only=True)
    return found


def joined(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_same_weights(name: str, models: Path, two_processes: dict[str, Any], tmp_path: Path) -> None:
    kind, changes = CASES[name]
    eight = joined(steps(kind, models, tmp_path / "8x1", ROWS, 1, **changes))
    one = joined(steps(kind, models, tmp_path / "1x8", 1, ROWS, **changes))
    start = joined({name: p.detach() for name, p in fresh(kind, models)[0].named_parameters()})
    went = (eight - start).norm()
    assert went > 1e-3
    for other in (one, joined(two_processes[name])):
        assert (other - eight).abs().max() <= 1e-6
        assert (other - eight).norm() / went <= 1e-5
