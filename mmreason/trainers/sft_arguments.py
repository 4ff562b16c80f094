"""Options of supervised fine-tuning, under the names and with the defaults of TRL's `SFTConfig`.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers.arguments import TrainingOptions, _opt
from mmreason.types import ConfigError

# Ours, or TRL's by name but seen to here; everything else of SFTOptions is passed on to trl.SFTConfig by its name.
OURS = (
    "overwrite_output_dir",
    "resume",
    "tiny_size",
    "datasets",
    "replay",
    "mixture_temperature",
    "mixture_stop",
    "curriculum",
    "loss_on",
    "truncation",
    "packing",
    "padding_free",
    "packing_window",
    "layer_lr_decay",
    "module_learning_rates",
    "unfreeze_at",
    "feature_store",
    "feature_store_gib",
    "eval_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "metric_for_best_model",
    "chat_template_kwargs",
    "max_completion_length",
    "hf_generation_batch_size",
)


@dataclass
class SFTOptions(TrainingOptions):
    """Supervised fine-tuning: the loss is taken on what the model shall say."""

    output_dir: str = _opt("outputs/sft", "Checkpoints, metrics and the final model.")
    tiny_size: Literal["xs", "s", "m"] = _opt("s", "(ours) Size of the tiny decoder, where no model is named.")

    # which rows, and what of them is learned
    datasets: list[dict[str, Any]] | None = _opt(
        None, "(ours) Several sets in place of dataset_name: [{name: …, weight: 2}, …]; see docs/sft.md."
    )
    replay: dict[str, Any] | None = _opt(
        None, "(ours) Pretraining text against forgetting: {name: …, share: 0.1}, beside datasets."
    )
    mixture_temperature: float = _opt(1.0, "(ours) Sets without weights are drawn by size^(1/T); larger is more even.")
    mixture_stop: Literal["all_exhausted", "first_exhausted"] = _opt(
        "all_exhausted", "(ours) An epoch of a mixture ends once every set was passed over, or the first."
    )
    curriculum: dict[str, Any] | None = _opt(
        None, "(ours) Easy rows first: {by: length, pacing: root|linear|step, start: 0.1, epochs: 1}."
    )
    loss_on: str | dict[str, Any] | None = _opt(
        None, "(ours) last, all, or weights: {reasoning: 0.5, answer: 1.0, json: 2.0, turns: all}. None: last."
    )
    max_length: int | None = _opt(
        1024, "Longest row in tokens, pictures included; with packing also a bin's size. None: no limit."
    )
    truncation: Literal["error", "drop", "cut_oldest_turns"] = _opt(
        "error", "(ours) What a longer row is: a bad row, dropped and counted, or cut at its oldest turns."
    )
    max_completion_length: int = _opt(256, "(ours) Token limit of an answer to a held-out problem.")

    # batch
    packing: bool = _opt(
        False, "Put several rows into one sequence of max_length (text and pictures); they don't see each other."
    )
    padding_free: bool = _opt(False, "Put the rows of a micro-batch into one sequence instead of padding them.")
    packing_window: int | None = _opt(
        None, "(ours) Rows that are packed together. None: an epoch's; 1024 with a mixture or a curriculum."
    )
    dataloader_num_workers: int = _opt(0, "Processes beside each training process that prepare pictures ahead.")

    # optimizer
    router_aux_loss_coef: float | None = _opt(
        None, "Weight of a mixture of experts' load-balancing loss. None: the model's own; 0: off."
    )
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch_fused", "Optimizer.")
    layer_lr_decay: float = _opt(
        1.0, "(ours) Learning rate of a layer over that of the layer above it, decoder and tower each; 1: all alike."
    )
    module_learning_rates: dict[str, float] | None = _opt(
        None, "(ours) Peak learning rates of modules, by name or pattern: {projector: 1e-3, vision_tower: 2e-6}."
    )
    unfreeze_at: dict[str, int] | None = _opt(
        None, "(ours) Modules that wait until a step, by name or pattern: {vision_tower: 500}."
    )
    neftune_noise_alpha: float | None = _opt(None, "NEFTune: noise on the embeddings (arXiv 2310.05914).")
    use_liger_kernel: bool = _opt(False, "Liger's fused layers; needs a GPU and the package liger-kernel.")

    # images
    feature_store: str | None = _opt(
        None, "(ours) Folder where a frozen vision tower's features are kept, so that each image is encoded once."
    )
    feature_store_gib: float = _opt(32.0, "(ours) Bound of its size on disk.")

    # evaluation
    eval_steps: int | None = _opt(
        None, "Steps between measurements on the held-out rows while training. None: only after."
    )
    early_stopping_patience: int | None = _opt(
        None, "Stop once the metric has not got better in so many measurements. None: never. Needs eval_steps."
    )
    early_stopping_threshold: float = _opt(0.0, "How much better counts as better.")
    metric_for_best_model: str | None = _opt(
        None, "What early stopping goes by: loss or accuracy of the main held-out set, or a name of metrics.jsonl."
    )

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        self.check_training()
        if self.save_steps < 1:
            raise ConfigError(f"save_steps={self.save_steps} must be at least 1")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
        self._check_packing()
        self._check_learning_rates()
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise ConfigError(f"early_stopping_patience={self.early_stopping_patience} must be at least 1")
            if self.eval_steps is None:
                raise ConfigError("early_stopping_patience needs eval_steps: the steps between two measurements")
        if self.replay is not None and self.datasets is None:
            raise ConfigError("replay needs datasets: the sets that it is mixed with")
        if not self.feature_store_gib > 0:
            raise ConfigError(f"feature_store_gib={self.feature_store_gib} must be above 0")
        if self.use_liger_kernel:
            _check_liger(self.use_cpu)

    def _check_packing(self) -> None:
        if self.packing and self.max_length is None:
            raise ConfigError("packing needs max_length: the tokens of one packed sequence")
        if self.packing_window is not None and (not self.packing or self.packing_window < 1):
            raise ConfigError(f"packing_window={self.packing_window} must be at least 1, and needs packing: true")
        if self.neftune_noise_alpha is not None and (self.packing or self.padding_free):
            raise ConfigError(
                "neftune_noise_alpha: the noise goes by a row's length, which packed rows hide; leave it out, or train "
                "with packing: false and padding_free: false"
            )

    def _check_learning_rates(self) -> None:
        if not 0 < self.layer_lr_decay <= 1:
            raise ConfigError(f"layer_lr_decay={self.layer_lr_decay} must be above 0 and at most 1")
        for pattern, rate in (self.module_learning_rates or {}).items():
            if not isinstance(rate, int | float) or isinstance(rate, bool) or rate < 0:
                raise ConfigError(f"module_learning_rates: {pattern}: {rate!r} must be a number of at least 0")
        for pattern, step in (self.unfreeze_at or {}).items():
            if not isinstance(step, int) or isinstance(step, bool) or step < 1:
                raise ConfigError(f"unfreeze_at: {pattern}: {step!r} must be a step of at least 1")


def _check_liger(use_cpu: bool) -> None:
    from importlib.util import find_spec

    if find_spec("liger_kernel") is None:
        raise ConfigError("use_liger_kernel: the package liger-kernel isn't installed: pip install liger-kernel")
    import torch

    if use_cpu or not torch.cuda.is_available():
        raise ConfigError("use_liger_kernel: its kernels need a GPU; leave it out on the CPU")
