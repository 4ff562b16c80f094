"""Guards and failing rewards through the recipe's command line, with one process and with several."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mmreason.rewards import RewardError
from tests.recipes.conftest import call_recipe
from tests.recipes.launch import RECIPE, ROOT, SMALL, command, metrics, run

REWARDS = ROOT / "tests" / "recipes" / "odd_rewards.py"


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_all_processes_leave_out_the_step_that_is_not_finite(accelerate: str, tmp_path: Path) -> None:
    """The loss is NaN on one of two. Under DeepSpeed its engine refuses the gradient, and the guard must notice."""
    flags = ("--max_steps", "5", "--save_steps", "1", "--save_total_limit", "9")
    words = command(tmp_path / "run", *SMALL, *flags, accelerate=accelerate)
    script = words.index(str(RECIPE))
    words[script:script] = [str(ROOT / "tests" / "recipes" / "nan_at.py"), "3"]
    done = run(words)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(tmp_path / "run")
    assert [row["guards/non_finite"] for row in rows] == [0, 0, 1, 0, 0]
    assert rows[2]["grad_norm"] is None and all(math.isfinite(row["grad_norm"]) for row in rows if row is not rows[2])
    assert done.stderr.count("step 3 was not taken") == 1  # said by the main process only
    weights = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 6)]
    assert all(torch.isfinite(tensor).all() for one in weights for tensor in one.values())
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(weights)]
    assert same == [False, True, False, False]
    assert json.loads((tmp_path / "run" / "checkpoint-3" / "alarms.json").read_text()) == {"non_finite": 3}


def test_masked_rows_get_no_reward_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--reward_funcs", f"{REWARDS}:failing", "--on_reward_error", "mask", "--max_steps", "2")
    call_recipe(tmp_path / "run", *flags)
    for row, path in zip(metrics(tmp_path / "run"), sorted((tmp_path / "run" / "rollouts").iterdir()), strict=True):
        table = pq.read_table(path)
        odd = [sum(ids) % 2 == 1 for ids in table["completion_ids"].to_pylist()]
        assert 0 < sum(odd) < len(odd) and row["rewards/failing/errors"] == sum(odd)
        assert [math.isnan(value) for value in table["reward"].to_pylist()] == odd
        assert all(a == 0 for a, lost in zip(table["advantage"].to_pylist(), odd, strict=True) if lost)
    assert "WARNING: reward 'failing' failed on" in capsys.readouterr().err


def test_stop_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="reward 'failing' failed on row .*: RuntimeError: odd"):
        call_recipe(tmp_path / "run", "--reward_funcs", f"{REWARDS}:failing", "--max_steps", "2")
