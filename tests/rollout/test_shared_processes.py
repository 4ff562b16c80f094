"""Shared prompts with checkpointing in two processes under DDP and ZeRO-3, against separate rows in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.parts import HF_SIGLIP, TIMM_VIT, compose, save_decoder
from tests.recipes.launch import ROOT, run
from tests.rollout.shared_processes import losses_alone


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes(accelerate: str, tmp_path: Path) -> None:
    """Each has groups and images of its own; losses and weights are those of separate rows."""
    towers = {"towers": [TIMM_VIT, HF_SIGLIP], "max_tiles": 2}
    model, processor = compose(towers, {"kind": "pixel_shuffle", "factor": 2}, save_decoder(tmp_path / "decoder"))
    checkpoint = tmp_path / "composed"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    words += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml")]
    words += [str(ROOT / "tests" / "rollout" / "shared_processes.py"), str(checkpoint), str(tmp_path)]
    done = run(words, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["processes"] == 2 and report["told"] == [], "prompts were not shared"
    assert report["held"] == (0 if accelerate == "cpu_zero3" else sum(p.numel() for p in model.parameters()))
    assert report["gaps"]["max"] <= 1e-5

    assert report["losses"] == pytest.approx(losses_alone(model.train(), processor), abs=1e-5)
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained").state_dict()
    assert trained.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5)
