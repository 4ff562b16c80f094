"""The benchmark of shared prompts: its limit is what is really computed, and its trainers take the same step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import grpo_vlm
from benchmarks.grpo_vlm import CASES, Case, Data, flops, limit, load, main, save_parts, time_case, time_rows

SMALL = Case(220, 6, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo_vlm, "LAYERS", 1)
        patch.setattr(grpo_vlm, "VOCABULARY", 2000)
        return save_parts(tmp_path_factory.mktemp("parts"), 0)


def test_operations_are_those_that_torch_counts(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products of one forward pass over separate rows; attention by hand, where nothing is counted twice."""
    monkeypatch.setattr(grpo_vlm, "LAYERS", 1)
    monkeypatch.setattr(grpo_vlm, "VOCABULARY", 2000)
    from transformers import AutoProcessor

    model, data = load(checkpoint), Data(SMALL, AutoProcessor.from_pretrained(checkpoint), 0)
    ids = torch.tensor([data.prompt_ids[row] + data.completions[i] for i, row in enumerate(data.rows)])
    pixels = torch.cat([data.visuals[row].inputs["pixel_values"] for row in data.rows])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, pixel_values=pixels, logits_to_keep=SMALL.completion)
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if "mm" in str(op) or "conv" in str(op))
    parts = flops(SMALL, shared=False)
    view = grpo_vlm.PATCHES + 1
    tower_attention = grpo_vlm.TOWER_DEPTH * 4 * grpo_vlm.TOWER_WIDTH * view**2
    wanted = (parts["decoder"] + parts["head"]) / 4 + parts["tower"] / 2 + parts["projector"] / 4
    wanted -= SMALL.g * tower_attention
    assert products == pytest.approx(wanted, rel=0.01)
    pairs = sum(range(1, 227)) * SMALL.g
    assert parts["attention"] == 4 * 4 * grpo_vlm.WIDTH * pairs


def test_limits() -> None:
    assert {name: round(limit(case), 2) for name, case in CASES.items()} == {"short": 3.22, "long": 2.04, "wide": 4.25}
    one = Case(220, 32, 1)
    assert 1 < limit(one) < 1.2  # the last token, and the second encoding


def test_same_steps_and_rows(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_vlm, "LAYERS", 1)
    monkeypatch.setattr(grpo_vlm, "VOCABULARY", 2000)
    taken = time_case(checkpoint, SMALL, 1, 0, False, tmp_path)
    rows = time_rows("short", "step", SMALL, taken, None)
    assert [row["trainer"] for row in rows] == ["ours", "rows", "trl"] and rows[0]["over_ours"] == 1
    assert all(row["seconds"] > 0 and row["limit"] == round(limit(SMALL), 3) for row in rows)
    growth = [
        {**row, "what": "growth", "case": case, "g": 2, "images": 1, "peak_mib": 5} for row in rows
        for case in ("G=2", "images=1")
    ]  # fmt: skip
    grpo_vlm.plot([*rows, *growth], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert "times that" in grpo_vlm.said([{**row, "peak_mib": 5} for row in rows])

    step = grpo_vlm.Ours.step
    monkeypatch.setattr(grpo_vlm.Ours, "step", lambda self: {**step(self), "loss": 5.0 if self.share else 4.0})
    with pytest.raises(RuntimeError, match="loss differs: .* they don't take the same step"):
        time_case(checkpoint, SMALL, 1, 0, False, tmp_path / "again")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--peak-tflops" in capsys.readouterr().out
