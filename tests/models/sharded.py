"""Trains a composed model in two processes, one with pictures and one without in the same step, for test_sharded.py.

    accelerate launch … tests/models/sharded.py CHECKPOINT OUT

Writes OUT/report.json: the first step's gradients' sums and the losses; OUT/trained: the model after three steps.
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
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.ddp import run_in_several
from tests.pictures import ask, picture

STEPS, LEARNING_RATE = 3, 0.1


def batches(processor: Any) -> list[list[dict[str, Any]]]:
    """Of each step, one for each process: pictures in none, in one, in the other."""
    with_pictures, without = [("How many?", 2), ("Which?", 1)], [("Text alone, longer", 0), ("More", 0)]
    return [
        [_batch(processor, rows) for rows in step]
        for step in ((with_pictures, without), (without, without), (without, with_pictures))
    ]


def _batch(processor: Any, rows: list[tuple[str, int]]) -> dict[str, Any]:
    texts = [processor.apply_chat_template(ask(text, n), tokenize=False) for text, n in rows]
    images = [[picture(40, 30 + k, seed=k) for k in range(n)] for _, n in rows]
    given = {"images": images} if any(images) else {}
    batch = dict(processor(text=texts, padding=True, return_tensors="pt", **given))
    # As many labels in every batch, so that the mean over processes is the mean over all.
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -4:] = batch["input_ids"][:, -4:]
    return batch | {"labels": labels}


def losses_alone(model: Any, processor: Any) -> tuple[list[float], dict[str, float]]:
    """The same in one process: (mean losses, norms of the first step's gradients)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses, norms = [], {}
    for step, pair in enumerate(batches(processor)):
        found = [model(**batch).loss for batch in pair]
        loss = sum(found[1:], found[0]) / len(found)
        loss.backward()
        if step == 0:
            norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def main(checkpoint: str, out: Path) -> None:
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(cpu=not sharded, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    if sharded:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0}
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    whole = sum(parameter.numel() for parameter in model.parameters())
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    losses: list[float] = []
    norms: dict[str, float] = {}
    for step, pair in enumerate(batches(processor)):
        loss = model(**pair[accelerator.process_index]).loss
        accelerator.backward(loss)
        if step == 0 and not sharded:
            named = accelerator.unwrap_model(model).named_parameters()
            norms = {name: float(p.grad.norm()) for name, p in named if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.gather(loss.detach().reshape(1)).mean()))
    accelerator.unwrap_model(model).save_pretrained(
        out / "trained",
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
    )
    if accelerator.is_main_process:
        report = {"losses": losses, "norms": norms, "held": whole, "processes": accelerator.num_processes}
        (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
    accelerator.end_training()


if __name__ == "__main__":
    run_in_several(lambda: main(sys.argv[1], Path(sys.argv[2])))
