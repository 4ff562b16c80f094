"""Trains a composed model with shared prompts in two processes, for test_shared_processes.py.

    accelerate launch … tests/rollout/shared_processes.py CHECKPOINT OUT

Each process scores groups of its own, with images of its own. Writes OUT/report.json: losses, and what was verified;
OUT/trained: the model after three steps.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmreason.models  # noqa: F401
from mmreason.data.visual import VisualPrompt, render_visual_prompt
from mmreason.rollout.shared import SharedScoring
from tests.ddp import run_in_several
from tests.pictures import ask, cell, picture

STEPS, LEARNING_RATE, G = 3, 0.05, 3
IMAGES = [[1, 2], [2, 1]]
"""Of the prompts of each process."""


def batch(processor: Any, process: int, step: int) -> dict[str, Any]:
    """Prompts, completions of unequal lengths, and groups."""
    prompts: list[list[int]] = []
    visuals: list[VisualPrompt] = []
    for i, count in enumerate(IMAGES[process]):
        cells = [cell(picture(40, 30 + 9 * n, seed=100 * process + 10 * i + n)) for n in range(count)]
        visual = render_visual_prompt(ask(f"Question {process} {i} {step}?", count), cells, processor)
        prompts += [visual.ids] * G
        visuals += [visual] * G
    completions = [[70 + row, *range(75, 75 + (row + step) % 4)] for row in range(len(prompts))]
    groups = [row // G for row in range(len(prompts))]
    return {"prompts": prompts, "completions": completions, "groups": groups, "visuals": visuals}


def loss_of(scoring: SharedScoring, model: Any, given: dict[str, Any]) -> Tensor:
    """Each token has a weight of its own."""
    logps, _ = scoring.score(model, **given)
    weights = torch.linspace(-1, 1, logps.numel()).view(logps.shape)
    return (logps * weights).sum() / len(given["prompts"])


def losses_alone(model: Any, processor: Any) -> list[float]:
    """The same with separate rows, in one process."""
    scoring = SharedScoring(enabled=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(STEPS):
        loss = sum(loss_of(scoring, model, batch(processor, process, step)) for process in (0, 1)) / 2
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(checkpoint: str, out: Path) -> None:
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(cpu=not sharded, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    if sharded:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0}
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    held = sum(parameter.numel() for parameter in model.parameters())
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    told: list[str] = []
    scoring = SharedScoring(tell=told.append)
    losses = []
    for step in range(STEPS):
        loss = loss_of(scoring, model, batch(processor, accelerator.process_index, step))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.gather(loss.detach().reshape(1)).mean()))
    gaps = scoring.gaps(model, **batch(processor, accelerator.process_index, 0))
    accelerator.unwrap_model(model).save_pretrained(
        out / "trained",
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
    )
    if accelerator.is_main_process:
        report = {"losses": losses, "held": held, "processes": accelerator.num_processes, "gaps": gaps, "told": told}
        (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
    accelerator.end_training()


if __name__ == "__main__":
    run_in_several(lambda: main(sys.argv[1], Path(sys.argv[2])))
