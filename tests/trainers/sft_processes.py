"""The same SGD steps with any number of processes: text and pictures, padded and packed. Run under `accelerate launch`.

python tests/trainers/sft_processes.py MODELS OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

ROWS = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text padded": ("text", {}),
    "text padding-free": ("text", {"padding_free": True}),
    "text packed": ("text", {"packing": True, "max_length": 48}),
    "pictures packed": ("mmreason", {"packing": True, "max_length": 200}),
    "M-RoPE packed": ("qwen2_5_vl", {"packing": True, "max_length": 200}),
}
"""Name → (model, options). Each takes two steps; a step is 8 rows, or 8 bins."""


def fresh(kind: str, models: Path) -> tuple[Any, Any, list[Any]]:
    """(model, processor or None for the tiny tokenizer, rows)."""
    from mmreason.models.loading import load_policy_model, load_processor
    from mmreason.models.tiny import tiny_decoder
    from mmreason.trainers.arguments import ModelArguments
    from tests.trainers.sft_rows import picture_rows, random_rows

    if kind == "text":
        return tiny_decoder(seed=4), None, random_rows(2 * ROWS, seed=2)
    args = ModelArguments(model_name_or_path=str(models / kind))
    processor = load_processor(args)
    return load_policy_model(args), processor, picture_rows(processor, [0, 1, 2, 0, 1, 0, 3, 1] * 2)


def steps(kind: str, models: Path, out: Path, size: int, accumulation: int, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights after two steps."""
    from tests.trainers.sft_rows import trained

    model, processor, rows = fresh(kind, models)
    trainer = trained(
        out, model, rows, processor=processor, max_steps=2, learning_rate=0.01, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation, **changes,
    )  # fmt: skip
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def main() -> None:
    from accelerate import PartialState

    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for name, (kind, changes) in CASES.items():
        world = PartialState().num_processes if PartialState._shared_state else 2
        found[name] = steps(kind, models, out / name, ROWS // world, 1, **changes)
    if PartialState().is_main_process:
        torch.save(found, out / "weights.pt")


if __name__ == "__main__":
    from tests.ddp import run_in_several

    run_in_several(main)
