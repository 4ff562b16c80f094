"""Options of supervised fine-tuning, under the names and with the defaults of TRL's `SFTConfig`.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmreason.trainers.arguments import TrainingOptions, _opt
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
class SFTOptions(TrainingOptions):
    """Supervised fine-tuning: the loss is taken on the completions only."""

    output_dir: str = _opt("outputs/sft", "Checkpoints, metrics and the final model.")
    tiny_size: Literal["xs", "s", "m"] = _opt("s", "(ours) Size of the tiny decoder, where no model is named.")
    max_length: int | None = _opt(
        1024, "Longest row in tokens, prompt and completion. A longer one is a bad row, never cut. None: no limit."
    )
    max_completion_length: int = _opt(256, "(ours) Token limit of an answer to a held-out problem.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch_fused", "Optimizer.")
    eval_steps: int | None = _opt(
        None, "Steps between greedy evaluations on the held-out problems while training. None: only after."
    )

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        self.check_training()
        if self.save_steps < 1:
            raise ConfigError(f"save_steps={self.save_steps} must be at least 1")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
