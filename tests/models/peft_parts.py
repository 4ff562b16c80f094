"""Adapters of every kind in a size for tiny models, and a few steps of training for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmreason._adapters import KINDS
from mmreason.models.peft_adalora import follow_ranks
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments

BLOCKS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "rslora": {"r": 4},
    "dora": {"r": 4},
    "adalora": {"r": 2, "init_r": 4, "orthogonal": 0.1},
    "ia3": {},
    "oft": {"block_size": 8},
    "vera": {"r": 8},
    "bottleneck": {"r": 8},
    "prefix": {"tokens": 4},
    "p_tuning_v2": {"tokens": 4},
    "prompt": {"tokens": 4},
    "p_tuning": {"tokens": 4},
}
"""Kind → its block. QLoRA, which needs a checkpoint and bitsandbytes, has tests of its own."""
PLACED = [kind for kind in BLOCKS if KINDS[kind].placed]
IDS = torch.arange(48).view(4, 12)


def arguments(kind: str, **more: Any) -> ModelArguments:
    return ModelArguments(adapter={"kind": kind, **BLOCKS[kind], **more})


def decoder(seed: int = 0, **settings: Any) -> Any:
    return tiny_decoder(seed=seed, **settings)


def text_loss(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def train(
    model: Any, loss_of: Callable[[Any], torch.Tensor] = text_loss, steps: int = 8, lr: float = 1e-2
) -> list[float]:
    """The losses before each step of AdamW on what learns, and after the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses: list[float] = []
    follow_ranks(model, optimizer, steps, lambda: len(losses) - 1)
    model.train()
    for _ in range(steps):
        loss = loss_of(model)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return [*losses, loss_of(model).item()]


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any] | None = None) -> torch.Tensor:
    return model.eval()(**(inputs or {"input_ids": IDS})).logits


def moved(model: Any, before: Any) -> list[str]:
    """Parameters and buffers of the base that are no longer what they were in the bare model."""
    now = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    return [name for name, tensor in before.state_dict().items() if not torch.equal(tensor, now[name])]
