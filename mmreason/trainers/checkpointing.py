"""A policy's weights and training state in a folder, for every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from mmreason.trainers.state import CheckpointError

_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP)


def save_policy(policy: Any, tokenizer: Any, accelerator: Accelerator, folder: Path, *, only_model: bool) -> None:
    """Write the model in Hugging Face format (an adapter for PEFT) and, unless `only_model`, the state to continue from.

    Collective. Where weights are whole on each process they are stored once, in the Hugging Face files; DeepSpeed and FSDP
    also keep their own shards, which their optimizers belong to.
    """
    unwrapped = accelerator.unwrap_model(policy)
    sharded = accelerator.distributed_type in _SHARDED
    state_dict = accelerator.get_state_dict(policy) if sharded else None
    if accelerator.is_main_process:
        unwrapped.save_pretrained(folder, state_dict=state_dict)
        tokenizer.save_pretrained(folder)
    if only_model:
        return
    hook = None if sharded else accelerator.register_save_state_pre_hook(lambda models, weights, where: weights.clear())
    try:
        accelerator.save_state(str(folder / "state"))
    finally:
        if hook is not None:
            hook.remove()


def load_policy(policy: Any, accelerator: Accelerator, folder: Path) -> None:
    """Put back what `save_policy` wrote. Collective.

    Raises:
        CheckpointError: the checkpoint was written with save_only_model, or by another backend.
    """
    if not (folder / "state").is_dir():
        raise CheckpointError(f"{folder} was saved with save_only_model: it can be loaded as a model, but not continued")
    sharded = accelerator.distributed_type in _SHARDED
    if not sharded:
        _load_whole(accelerator.unwrap_model(policy), folder)
    hook = None if sharded else accelerator.register_load_state_pre_hook(lambda models, where: models.clear())
    try:
        accelerator.load_state(str(folder / "state"))
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} can't be continued with this launch configuration ({error}); use the accelerate config and number of "
            "processes that wrote it, or start over with --overwrite_output_dir"
        ) from error
    finally:
        if hook is not None:
            hook.remove()


def _load_whole(model: Any, folder: Path) -> None:
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    # Through from_pretrained, not the raw files: transformers may store weights under other names than it uses in memory.
    dtype = next(model.parameters()).dtype
    saved = type(model).from_pretrained(folder, dtype=dtype).state_dict()
    with torch.no_grad():
        model.load_state_dict(saved)
