"""Setting up Accelerate, DeepSpeed and the optimizer, and talking between data-parallel processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    set_seed,
)
from torch import Tensor, nn
from trl.models.utils import prepare_deepspeed, prepare_fsdp

from mmreason.models.value import CRITIC
from mmreason.rollout.parallel import data_rank, tensor_parallel_size
from mmreason.trainers.arguments import PolicyConfig
from mmreason.types import ConfigError


def build_accelerator(args: PolicyConfig) -> Accelerator:
    """Make the Accelerator, resolve the batch options for its processes, and seed all generators.

    Call it before the model is loaded: under ZeRO-3 its plugin makes `from_pretrained` shard while loading.
    """
    bf16 = args.bf16 = resolve_bf16(args.bf16, args.use_cpu)
    # Accelerate guesses the backend from the accelerator; without one, torchrun-style launches have to be told: `cpu`
    # for plain data parallelism, `gloo` for DeepSpeed (where `cpu=True` would switch DeepSpeed off).
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    under_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        cpu=on_cpu and not under_deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and under_deepspeed else None,
        log_with=[t for t in args.report_to if t != "none"] or None,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
    )
    if tensor_parallel_size(accelerator) > 1 and not args.save_only_model:
        raise ConfigError(
            "tensor parallelism: the optimizer state of split tensors can't be saved yet; add --save_only_model true "
            "(such a run can't be resumed), or shard with ZeRO-3 or FSDP2 instead"
        )
    args.resolve(data_parallel_size(accelerator))
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        settings = {
            # No dataloader is prepared that DeepSpeed could read these from.
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            # Accelerate fills it in for the policy; a reference is prepared before that.
            "train_batch_size": args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * accelerator.num_processes,
            "gradient_clipping": args.max_grad_norm,
            # The optimizer is torch's; with offload it runs on CPU tensors, which DeepSpeed only allows when told so.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        # Accelerate keeps two copies of the configuration and reads some keys from one, some from the other.
        plugin.deepspeed_config.update(settings)
        plugin.hf_ds_config.config.update(settings)
    set_seed(args.seed)
    return accelerator


def resolve_bf16(bf16: bool | None, use_cpu: bool) -> bool:
    """The `bf16` option; None means wherever the GPU has it."""
    if bf16 is None:
        return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return bf16


def is_spread(accelerator: Accelerator) -> bool:
    """Whether a model's weights are spread over processes, or handled by DeepSpeed."""
    return accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def data_parallel_size(accelerator: Accelerator) -> int:
    """Processes that see different data: all of them, unless tensor parallelism makes some share a model."""
    return accelerator.num_processes // tensor_parallel_size(accelerator)


_LIVING: list[Any] = []


def keep_until_exit(accelerator: Accelerator, trainer: Any) -> None:
    """Keep what works with other processes on the CPU until this process ends.

    When torch takes a DDP model apart, it waits for a thread of gloo while it holds the lock of the interpreter, and
    that thread may wait for the lock to let go of its last tensor: the run would hang after all its work is done.
    `run_as_script` ends such processes with all in place.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        _LIVING.append(trainer)


class DataParallel:
    """Collectives over processes that hold different data. Tensor-parallel partners hold the same and count once."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.partners = tensor_parallel_size(accelerator)
        self.size = data_parallel_size(accelerator)
        self.rank = data_rank(accelerator)

    def gather(self, rows: Tensor) -> Tensor:
        """(n, …) on each process → (size × n, …) in rank order on all."""
        if self.size == 1:
            return rows
        every: Tensor = self.accelerator.gather(rows.contiguous())
        if self.partners > 1:
            every = every.view(self.accelerator.num_processes, *rows.shape)[:: self.partners].flatten(0, 1)
        return every

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over processes."""
        return self.gather(values.unsqueeze(0)).sum(0) if self.size > 1 else values

    def gather_ragged(self, values: Tensor) -> Tensor:
        """(K,) on each process, K its own → those of all, in rank order, on all."""
        if self.size == 1:
            return values
        counts = self.gather(torch.tensor([len(values)], device=values.device)).tolist()
        padded = values.new_zeros(max(counts))
        padded[: len(values)] = values
        every = self.gather(padded.unsqueeze(0))
        return torch.cat([row[:count] for row, count in zip(every, counts, strict=True)])

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """Concatenation of every process's list in rank order."""
        if self.size == 1:
            return items
        every = gather_object([items])
        return [item for part in every[:: self.partners] for item in part]

    def share(self, items: list[Any]) -> list[Any]:
        """What the first tensor-parallel partner holds, on all partners: they must train on the very same samples."""
        if self.partners == 1:
            return items
        every = gather_object([items])
        return list(every[self.rank * self.partners])

    def any(self, flag: bool) -> bool:
        """True on all processes when it is true on one."""
        if self.accelerator.num_processes == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.gather(value).max().item() > 0)


def prepare_for_images(model: Any, accelerator: Accelerator, counts: Sequence[int]) -> None:
    """Let processes whose micro-batches have no images wait for those whose have some, before the model is prepared.

    Args: counts: images of each row of a set.

    Raises:
        ConfigError: weights are sharded and only some rows of a set have images: processes would wait for each other
            for ever, because all of them have to put a layer together when one uses it. Under DeepSpeed, composed
            models see to that themselves.
    """
    if accelerator.num_processes == 1:
        return
    if accelerator.distributed_type == DistributedType.DEEPSPEED and getattr(model, "all_run_the_tower", False):
        return
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        with_images = sum(count > 0 for count in counts)
        if 0 < with_images < len(counts):
            raise ConfigError(
                f"{with_images} of {len(counts)} rows have images: with DeepSpeed or FSDP, processes with and "
                "without images would wait for each other for ever; train on rows of one kind, or with plain data "
                "parallelism (recipes/accelerate/ddp.yaml)"
            )
    elif hasattr(model.config, "vision_config"):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def configure_model(model: Any, args: PolicyConfig) -> None:
    """Dropout off and gradient checkpointing on, as the options say; before the model is prepared."""
    if args.disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
        if hasattr(model, "peft_config"):
            # The embedding's output must ask for gradients, or a checkpointed block has nothing to flow back to.
            model.enable_input_require_grads()


def build_optimizer(model: nn.Module, args: PolicyConfig) -> torch.optim.Optimizer:
    """Decay on matrices only: biases and norm weights (vectors) are left alone, as in transformers' Trainer.

    A critic's parameters stand in groups of their own, whose `part` says so.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    policy = [p for name, p in named if not name.startswith(f"{CRITIC}.")]
    critic = [p for name, p in named if name.startswith(f"{CRITIC}.")]
    if not policy:
        raise ConfigError("the model has no trainable parameter: check the PEFT settings")
    groups = _decay_groups(policy, args.weight_decay)
    groups += [group | {"part": CRITIC} for group in _decay_groups(critic, args.weight_decay)]
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate)
    return torch.optim.AdamW(
        groups,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=args.optim == "adamw_torch_fused",
    )


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    # Under ZeRO-3 `ds_shape` is the real shape, `shape` that of an empty shard.
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def lr_schedule(args: PolicyConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate as a function of the optimizer step (0-based): nothing to save, nothing to restore wrongly."""
    from transformers import get_scheduler

    # Floors such as min_lr and lr_end are absolute: transformers divides them by this optimizer's learning rate.
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate or 1.0)
    warmup = args.warmup_steps
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            dummy,
            num_warmup_steps=int(total_steps * warmup) if 0 < warmup < 1 else int(warmup),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except ValueError as error:
        raise ConfigError(f"lr_scheduler_type={args.lr_scheduler_type!r}: {error}") from error
    if not hasattr(schedule, "lr_lambdas"):
        raise ConfigError(
            f"lr_scheduler_type={args.lr_scheduler_type!r} depends on more than the step; use linear or cosine"
        )
    factor = schedule.lr_lambdas[0]
    return lambda step: args.learning_rate * factor(step)


def prepare_reference(model: Any, accelerator: Accelerator) -> Any:
    """Put a frozen model on the device as the backend wants it (sharded under ZeRO-3 and FSDP2)."""
    model.requires_grad_(False)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(model, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)
