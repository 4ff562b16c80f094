"""A policy's weights and training state in a folder, for every backend."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, load
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmreason.models.peft_state import load_training_state, save_training_state
from mmreason.models.value import CRITIC, split_state, without_critic
from mmreason.rollout.parallel import tensor_parallel_size
from mmreason.trainers.state import CheckpointError

_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    pickle.UnpicklingError,
    SafetensorError,
    AssertionError,
)
_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP)
CRITIC_FILE = "critic.safetensors"
"""In a checkpoint: the critic's weights, beside the policy's."""


def save_policy(policy: Any, tokenizer: Any, accelerator: Accelerator, folder: Path, *, only_model: bool) -> None:
    """Write the model in Hugging Face format (an adapter for PEFT) and, unless `only_model`, what continuing needs.

    Collective. Where weights are whole on each process they are stored once, in the Hugging Face files; DeepSpeed and
    FSDP also keep their own shards, which their optimizers belong to. A critic has a file of its own.
    """
    unwrapped = accelerator.unwrap_model(policy)
    sharded = accelerator.distributed_type in _SHARDED
    # DeepSpeed gives it to the main process only.
    state_dict, of_critic = split_state(accelerator.get_state_dict(policy) or {}) if sharded else (None, {})
    split = tensor_parallel_size(accelerator) > 1
    if split:  # transformers' own save_pretrained aborts here on gloo, so the tensors are put together first
        state_dict = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in unwrapped.state_dict().items()}
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            with without_critic(unwrapped) as critic:
                if split and state_dict is not None:
                    save_torch_state_dict(state_dict, folder)
                    unwrapped.config.save_pretrained(folder)
                    unwrapped.generation_config.save_pretrained(folder)
                else:
                    unwrapped.save_pretrained(folder, state_dict=state_dict)
            if critic is not None:
                tensors = of_critic or critic.state_dict()
                save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / CRITIC_FILE)
            tokenizer.save_pretrained(folder)
        except Exception as caught:  # raised below, once every process knows
            error = caught
    # What follows is collective, too: a process that went into it alone would wait there for ever.
    failed = torch.tensor([float(error is not None)], device=accelerator.device)
    if error is not None or accelerator.gather(failed).max() > 0:
        raise error or RuntimeError("the main process could not write the model")
    if only_model:
        return
    if accelerator.is_main_process and not sharded:
        save_training_state(unwrapped, folder)
    hook = None if sharded else accelerator.register_save_state_pre_hook(lambda models, weights, where: weights.clear())
    try:
        accelerator.save_state(str(folder / "state"))
    finally:
        if hook is not None:
            hook.remove()


def load_policy(policy: Any, accelerator: Accelerator, folder: Path) -> None:
    """Put back what `save_policy` wrote. Collective.

    Raises:
        CheckpointError: a file is damaged or missing, the model differs, or another backend wrote it.
    """
    sharded = accelerator.distributed_type in _SHARDED
    unwrapped = accelerator.unwrap_model(policy)
    if CRITIC in unwrapped._modules and not (folder / CRITIC_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {CRITIC_FILE}: it was saved without a value head, so PPO can't go on from it. Name "
            "another checkpoint with --resume, or begin anew with its weights: --model_name_or_path and another "
            "--output_dir"
        )
    # Accelerate goes on without random states that it can't read; the run would then no longer be the same.
    random_states = folder / "state" / f"random_states_{accelerator.process_index}.pkl"
    hook = None if sharded else accelerator.register_load_state_pre_hook(lambda models, where: models.clear())
    try:
        if not sharded:
            with without_critic(unwrapped) as critic:
                _load_whole(unwrapped, folder)
            if critic is not None:
                critic.load_state_dict(load_file(folder / CRITIC_FILE))
        load(random_states)
        accelerator.load_state(str(folder / "state"))
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{folder} can't be continued ({_first_line(error)}). It is damaged, or was written by another launch "
            "configuration or number of processes, or for another model: use those, name an earlier checkpoint with "
            "--resume, or start over with --overwrite_output_dir"
        ) from error
    finally:
        if hook is not None:
            hook.remove()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _load_whole(model: Any, folder: Path) -> None:
    if load_training_state(model, folder):
        return
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    # Through from_pretrained, not the raw files: transformers may store weights under other names than in memory.
    dtype = next(model.parameters()).dtype
    saved = type(model).from_pretrained(folder, dtype=dtype).state_dict()
    with torch.no_grad():
        model.load_state_dict(saved)
