"""What a run with an adapter needs to go on and `adapter_model.safetensors` does not hold.

PEFT saves an adapter for use: of prefix and P-tuning the tokens alone, without the network that makes them, and of
AdaLoRA nothing of its importance estimates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmreason._adapters import KINDS, kind_of

FILE = "adapter_training.safetensors"


def _needs_state(model: Any) -> bool:
    if "rank_tracker" in vars(model):
        return True
    kinds = [kind_of(config.to_dict()) for config in getattr(model, "peft_config", {}).values()]
    return any(kind in KINDS and KINDS[kind].has_encoder for kind in kinds)


def save_training_state(model: Any, folder: Path) -> None:
    """Write FILE for an adapter that needs it: its weights as they are trained, and what steers them.

    Args: model: the unwrapped model.
    """
    if not _needs_state(model):
        return
    tensors = {f"weights.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if "rank_tracker" in vars(model):
        tensors |= {f"ranks.{name}": t for name, t in model.rank_tracker.state().items()}
    save_file({name: t.contiguous().cpu().clone() for name, t in tensors.items()}, folder / FILE)


@torch.no_grad()
def load_training_state(model: Any, folder: Path) -> bool:
    """Put back what `save_training_state` wrote; whether there was anything. Then nothing else is to be loaded.

    Raises: KeyError, RuntimeError: the file is of another adapter.
    """
    if not _needs_state(model) or not (folder / FILE).is_file():
        return False
    tensors = load_file(folder / FILE)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.copy_(tensors[f"weights.{name}"])
    if "rank_tracker" in vars(model):
        ranks = {name.removeprefix("ranks."): t for name, t in tensors.items() if name.startswith("ranks.")}
        model.rank_tracker.load_state(ranks)
    return True
