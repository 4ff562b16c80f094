"""Supervised fine-tuning: TRL's SFTTrainer on rows that are tokenized already, with this project's records around it.

TRL takes the step (loss on the completion's tokens, normalised over all accumulated micro-batches). What is added:
metrics.jsonl, greedy accuracy on held-out problems, errors that name the checkpoint, stopping on a signal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState
from trl import SFTConfig
from trl import SFTTrainer as TRLSFTTrainer

from mmreason.data.order import SortedWithinSteps
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, GreedyAnswer
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.types import Sampling
from mmreason.trainers.distributed import DataParallel, resolve_bf16
from mmreason.trainers.evaluation import measure
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.records import RunRecords
from mmreason.trainers.sft_arguments import OURS, SFTOptions
from mmreason.trainers.state import CheckpointError, stop_on_signal
from mmreason.types import ConfigError

_NOT_METRICS = ("num_tokens",)  # TRL begins to count anew after a resume


def trl_config(options: SFTOptions) -> SFTConfig:
    """The options as TRL's configuration; under `accelerate launch` this also opens the process group."""
    settings = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in OURS} | {
        "report_to": options.report_to or "none",
        "bf16": resolve_bf16(options.bf16, options.use_cpu),
        "use_cpu": options.use_cpu or not torch.accelerator.is_available(),
    }
    return SFTConfig(
        **settings,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps",
        eval_strategy="no",
        remove_unused_columns=True,
    )


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints of an SFT run, oldest first. transformers writes trainer_state.json last."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if _steps_done(p) is not None), key=lambda p: int(p.name.split("-")[1]))


def _steps_done(checkpoint: Path) -> int | None:
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        return None


def find_checkpoint(output_dir: str, resume: str) -> Path | None:
    """The checkpoint that `--resume` (auto, never or a path) means; None to begin at step 0.

    Raises: ConfigError: "never" where there are checkpoints, or a path that is no whole checkpoint.
    """
    mine = whole_checkpoints(output_dir)
    if resume == "never" and mine:
        raise ConfigError(
            f"--resume never, but output_dir {output_dir} holds {mine[-1].name} of an earlier run. Choose another "
            "--output_dir, or start over with --overwrite_output_dir"
        )
    if resume in ("auto", "never"):
        return mine[-1] if mine else None
    if _steps_done(Path(resume)) is None:
        there = f"; {output_dir} holds {', '.join(p.name for p in mine)}" if mine else ""
        raise ConfigError(f"--resume {resume}: no whole checkpoint; 'auto' takes the newest in output_dir{there}")
    return Path(resume)


class SFTTrainer(TRLSFTTrainer):
    """Fine-tunes `model` on rows of `input_ids`, `labels` and `length` (see mmreason.data.supervised).

    Args:
        model: the policy, possibly with a PEFT adapter. config: `trl_config(options)`.
        tokenizer: or processor; the evaluation decodes with it. checkpoint: to go on from.

    Attributes:
        while_training: called every `eval_steps` steps, with whether this is the last; what it returns is recorded.
    """

    def __init__(
        self,
        model: Any,
        options: SFTOptions,
        config: SFTConfig,
        rows: Any,
        tokenizer: Any,
        checkpoint: Path | None = None,
    ) -> None:
        self.row_lengths = list(rows["length"])  # TRL keeps only the columns that the model takes
        super().__init__(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        self.options, self.checkpoint = options, checkpoint
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.state.global_step = 0 if checkpoint is None else _steps_done(checkpoint) or 0
        self.parallel = DataParallel(self.accelerator)
        self.records = RunRecords(options.output_dir, self.accelerator.is_main_process)
        self.while_training: Callable[[bool], Mapping[str, float]] | None = None

    def fit(self) -> bool:
        """Train to the end; a signal ends it after the current step, saved.

        Returns: whether all steps are done.
        """
        checkpoint = self.checkpoint
        self.records.rewind(self.state.global_step, 0)
        if checkpoint is not None and self._is_finished(checkpoint):
            return True
        with stop_on_signal() as asked:
            self.add_callback(_Around(self, asked))
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return int(self.state.global_step) >= int(self.state.max_steps)

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedWithinSteps:
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SortedWithinSteps(self.row_lengths, rows, self.args.seed)

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether nothing is left to do after a checkpoint; then its weights and state are taken over.

        transformers itself would take one more step.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.max_steps > 0:
            finished = state.global_step >= self.args.max_steps
        else:
            finished = (state.epoch or 0.0) >= self.args.num_train_epochs
        if finished:
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
        return finished

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            mine = whole_checkpoints(self.options.output_dir)
            raise CheckpointError(
                f"{self.options.output_dir}/checkpoint-{self.state.global_step}: the checkpoint could not be written "
                f"({error}). "
                + (f"The last whole one is {mine[-1]}. " if mine else "There is no earlier one. ")
                + "Free some space or choose another --output_dir, then run the same command to continue."
            ) from error

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current model on a held-out set (collective)."""
        options = self.options
        engine = HFEngine(
            self.model_wrapped,
            self.accelerator,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_ids=end_token_ids(self.model, self.tokenizer),
            banned_token_ids=placeholder_token_ids(self.model),
            batch_size=options.hf_generation_batch_size,
            gradient_checkpointing_kwargs=options.gradient_checkpointing_kwargs,
        )
        sampling = Sampling(max_tokens=options.max_completion_length)
        return measure(engine, held_out, self.tokenizer, sampling, self.parallel, k=k, seed=options.seed)


class _Around(TrainerCallback):
    """metrics.jsonl, evaluations while training, and the stop after a signal."""

    def __init__(self, trainer: SFTTrainer, asked_to_stop: Callable[[], bool]) -> None:
        self.trainer, self.asked_to_stop = trainer, asked_to_stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:  # that is the summary after the last step
            values = {k: float(v) for k, v in logs.items() if k not in _NOT_METRICS}
            self.trainer.records.metrics(state.global_step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        interval, last = self.trainer.options.eval_steps, state.global_step >= state.max_steps
        if self.trainer.while_training and interval and state.global_step % interval == 0:
            self.trainer.records.metrics(state.global_step, dict(self.trainer.while_training(last)))
        if self.trainer.parallel.any(self.asked_to_stop()):
            control.should_save = control.should_training_stop = True
