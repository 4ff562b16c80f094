"""Options of reward models, under the names and with the defaults of TRL's `RewardConfig`.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from mmreason.trainers.arguments import DataArguments, TrainingOptions, _opt
from mmreason.types import ConfigError

# Ours, or TRL's by name but seen to here; everything else of RewardOptions is transformers.TrainingArguments'.
OURS = (
    "overwrite_output_dir",
    "resume",
    "head",
    "ranking_loss",
    "center_rewards_coefficient",
    "use_margin",
    "max_length",
    "truncation",
    "disable_dropout",
    "chat_template_kwargs",
    "eval_steps",
    "max_completion_length",
    "hf_generation_batch_size",
)

_NOT_HERE = ("max_completion_length", "hf_generation_batch_size")
_NO_PROBLEMS = ("shapes", "max_prompt_length", "eval_num_generations", "completion_template")
"""Options of trainings that generate, and of sets of problems, which have no meaning here."""


@dataclass
class RewardData(DataArguments):
    """Training and held-out rows of a reward model; what is only for problems that are solved plays no part."""

    dataset_name: str | None = _opt(
        None, "Hub id (owner/name or owner/name:config), a file or a folder. None: rankings made by the code."
    )
    word_problems: dict[str, Any] | None = _opt(
        None, "(ours) Arguments of data_builders.word_problems, whose solutions, right and wrong, are then ranked."
    )
    prompt_template: str | None = _opt(
        None, "(ours) A named template (none, boxed, …) or a text with {question}. None: prompts as they are."
    )
    eval_samples: int = _opt(
        200, "(ours) Rows of each held-out set, measured before and after training. 0: no measurement."
    )

    def check(self) -> None:
        """Refuse options that say something about problems that are solved. Raises ConfigError."""
        defaults = {f.name: f.default for f in fields(DataArguments)}
        for name in _NO_PROBLEMS:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"{name} has no meaning for a reward model: it solves no problems")


@dataclass
class RewardOptions(TrainingOptions):
    """Reward models: learn what people, verifiers or judges prefer, or which answers and steps are right."""

    output_dir: str = _opt("outputs/reward_model", "Checkpoints, metrics and the final model.")

    # what is learned
    head: Literal["auto", "preference", "outcome", "process"] = _opt(
        "auto",
        "(ours) preference: pairs, rankings; outcome: right answers; process: right steps. auto: by the rows.",
    )
    ranking_loss: Literal["pairs", "plackett_luce"] = _opt(
        "pairs", "(ours) pairs: Bradley-Terry over all pairs of a ranking; plackett_luce: its likelihood as a whole."
    )
    center_rewards_coefficient: float | None = _opt(
        None, "Weight of (r_chosen + r_rejected)², which keeps rewards around 0 (arXiv 2312.09244). TRL advises 0.01."
    )
    use_margin: bool = _opt(True, "(ours) Take a pair's `margin` into the loss where the rows have one, as TRL does.")
    max_length: int | None = _opt(1024, "Longest prompt with its answer in tokens, pictures included. None: no limit.")
    truncation: Literal["error", "drop"] = _opt(
        "error", "(ours) What a longer row is: a bad row, or dropped and counted (TRL drops it)."
    )
    disable_dropout: bool = _opt(True, "Set every dropout of the model to 0.")

    # batch
    dataloader_num_workers: int = _opt(0, "Processes beside each training process that prepare pictures ahead.")

    # optimizer
    learning_rate: float = _opt(1e-4, "Peak learning rate.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch_fused", "Optimizer.")

    # evaluation
    eval_steps: int | None = _opt(
        None, "Steps between measurements on the held-out rows while training. None: only before and after."
    )

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        self.check_training()
        if self.save_steps < 1:
            raise ConfigError(f"save_steps={self.save_steps} must be at least 1")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
        defaults = {f.name: f.default for f in fields(TrainingOptions)}
        for name in _NOT_HERE:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"{name} has no meaning for a reward model: nothing is generated")
        weight = self.center_rewards_coefficient
        if weight is not None and not 0 <= weight < math.inf:
            raise ConfigError(f"center_rewards_coefficient={weight} must be at least 0, or none")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length} must be at least 1, or none")
