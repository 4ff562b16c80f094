"""Options of supervised fine-tuning, under the names and with the defaults of TRL's `SFTConfig`.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers.arguments import _opt
from mmreason.types import ConfigError

# Ours, not TRL's; everything else of SFTOptions is passed on to trl.SFTConfig by its name.
OURS = (
    "overwrite_output_dir",
    "resume",
    "tiny_size",
    "eval_steps",
    "chat_template_kwargs",
    "max_completion_length",
    "hf_generation_batch_size",
)


@dataclass
class SFTOptions:
    """Supervised fine-tuning: the loss is taken on the completions only."""

    output_dir: str = _opt("outputs/sft", "Checkpoints, metrics and the final model.")
    run_name: str | None = _opt(None, "Name shown by the trackers. None: the name of output_dir.")
    overwrite_output_dir: bool = _opt(False, "Start over in an output_dir that holds a run: its files are deleted.")
    resume: str = _opt("auto", "(ours) auto: continue the run found in output_dir; never; or the path of a checkpoint.")
    seed: int = _opt(42, "Seed of data order and initialisation.")

    tiny_size: Literal["xs", "s", "m"] = _opt("s", "(ours) Size of the tiny decoder, where no model is named.")

    # batch
    per_device_train_batch_size: int = _opt(8, "Rows per forward/backward on one device.")
    gradient_accumulation_steps: int = _opt(1, "Forward/backward passes per optimizer step.")
    num_train_epochs: float = _opt(3.0, "Passes over the rows, where max_steps is not given.")
    max_steps: int = _opt(-1, "Optimizer steps; -1: from num_train_epochs.")
    max_length: int | None = _opt(
        1024, "Longest row in tokens, prompt and completion. A longer one is a bad row, never cut. None: no limit."
    )
    chat_template_kwargs: dict[str, Any] | None = _opt(None, "(ours) Passed to the chat template.")

    # optimizer
    learning_rate: float = _opt(2e-5, "Peak learning rate.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch_fused", "Optimizer.")
    weight_decay: float = _opt(0.0, "Decoupled weight decay; not on biases and norms.")
    adam_beta1: float = _opt(0.9, "AdamW β1.")
    adam_beta2: float = _opt(0.999, "AdamW β2.")
    adam_epsilon: float = _opt(1e-8, "AdamW ε.")
    max_grad_norm: float = _opt(1.0, "Clip the global gradient norm.")
    lr_scheduler_type: str = _opt("linear", "linear, cosine, constant, constant_with_warmup, polynomial …")
    lr_scheduler_kwargs: dict[str, Any] | None = _opt(None, "More settings of the schedule.")
    warmup_steps: float = _opt(0, "Warm-up steps; below 1: a share of all steps.")

    # precision and memory
    bf16: bool | None = _opt(None, "bfloat16 autocast. None: on where the GPU has it.")
    gradient_checkpointing: bool = _opt(True, "Recompute activations in the backward pass.")
    gradient_checkpointing_kwargs: dict[str, Any] | None = _opt(None, "Passed to gradient_checkpointing_enable.")
    use_cpu: bool = _opt(False, "Stay on the CPU where there is a GPU.")

    # bookkeeping
    logging_steps: int = _opt(10, "Steps between lines of metrics.jsonl, the terminal and the trackers.")
    eval_steps: int | None = _opt(
        None, "Steps between greedy evaluations on the held-out problems while training. None: only after."
    )
    max_completion_length: int = _opt(256, "(ours) Token limit of an answer to a held-out problem.")
    hf_generation_batch_size: int | None = _opt(None, "(ours) Rows per generate call. None: all at once.")
    save_steps: int = _opt(500, "Steps between checkpoints.")
    save_total_limit: int | None = _opt(3, "Checkpoints kept. None: all.")
    report_to: list[str] = _opt([], "Trackers: tensorboard, wandb, mlflow … (needs the package).")

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ConfigError(f"max_steps={self.max_steps} must be positive, or -1 to count epochs")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
