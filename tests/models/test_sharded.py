"""Two processes under DDP and ZeRO-3, in steps where some have pictures and some don't, against one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.parts import HF_CLIP, TIMM_VIT, compose, save_decoder
from tests.models.sharded import losses_alone
from tests.recipes.launch import ROOT, run


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_steps_with_pictures_in_some_processes(accelerate: str, tmp_path: Path) -> None:
    """No process waits for another; losses, gradients and weights are those of one process with both batches."""
    vision: Any = [TIMM_VIT, HF_CLIP | {"feature_layer": -2}]
    model, processor = compose(
        vision, {"kind": "qformer", "queries": 3, "heads": 2}, save_decoder(tmp_path / "decoder")
    )
    checkpoint = tmp_path / "composed"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    config = ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml"
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "--main_process_port",
        "0",
    ]
    words += [str(ROOT / "tests" / "models" / "sharded.py"), str(checkpoint), str(tmp_path)]
    done = run(words, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["processes"] == 2
    assert report["held"] == (0 if accelerate == "cpu_zero3" else sum(p.numel() for p in model.parameters()))

    losses, norms = losses_alone(model.train(), processor)
    assert report["losses"] == pytest.approx(losses, abs=1e-5) and losses[0] != pytest.approx(losses[2], abs=1e-3)
    if accelerate == "cpu_ddp2":
        assert report["norms"].keys() == norms.keys() == dict(model.named_parameters()).keys()
        assert report["norms"] == pytest.approx(norms, abs=1e-5)
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained")
    assert trained.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-5)
