"""What stands around transformers' training loop: checkpoints to go on from, metrics.jsonl, stopping on a signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState

from mmreason.trainers.arguments import TrainingOptions
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.records import RunRecords
from mmreason.trainers.sft import unwritten_checkpoint
from mmreason.trainers.state import stop_on_signal

_NOT_METRICS = ("epoch", "num_input_tokens_seen")  # counted anew after a resume


class HFLoop(Trainer):
    """A transformers Trainer that goes on where it was stopped, and records what it measures.

    Call `begin` once the Trainer is made. `args.max_steps` is known by then: data have no length here.

    Attributes:
        while_training: called before the first step, every `eval_steps` steps and after the last one; what it returns
            is recorded.
        latest: what it returned last.
    """

    options: Any
    state: TrainerState
    latest: Mapping[str, float] | None = None
    while_training: Callable[..., Mapping[str, float]] | None = None

    def begin(self, options: TrainingOptions, checkpoint: Path | None) -> None:
        self.options, self.checkpoint = options, checkpoint
        self.state.global_step = 0 if checkpoint is None else _state_of(checkpoint).global_step
        self.parallel = DataParallel(self.accelerator)
        self.records = RunRecords(options.output_dir, self.accelerator.is_main_process)

    def fit(self) -> bool:
        """Train to the end; a signal ends it after the current step, saved.

        Returns: whether all steps are done.
        """
        self.records.rewind(self.state.global_step, 0)
        if self.checkpoint is not None and self.state.global_step >= self.args.max_steps:
            # transformers itself would take one more step.
            self._load_from_checkpoint(str(self.checkpoint))
            self.state = _state_of(self.checkpoint)
            return True
        with stop_on_signal() as asked:
            self.add_callback(_Around(self, asked))
            self.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        return int(self.state.global_step) >= int(self.args.max_steps)

    def save_final(self, folder: Path, processor: Any) -> None:
        """The model as later stages load it, with its tokenizer or processor. Collective."""
        self.save_model(str(folder))
        if self.accelerator.is_main_process:
            processor.save_pretrained(folder)

    def before_training(self) -> None:
        """Called once the model is wrapped, before the first step. Collective."""

    def more_metrics(self) -> dict[str, float]:
        """Numbers for a line of metrics.jsonl beside those that transformers logs. Collective."""
        return {}

    def before_checkpoint(self, folder: Path) -> None:
        """Write into a checkpoint's folder what going on needs beside transformers' own files."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | (self.more_metrics() if "loss" in logs else {}), start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            if self.accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                self.before_checkpoint(folder)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise unwritten_checkpoint(str(self.args.output_dir), self.state.global_step, error) from error


def _state_of(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


class _Around(TrainerCallback):
    """metrics.jsonl, measurements while training, and the stop after a signal."""

    def __init__(self, trainer: HFLoop, asked_to_stop: Callable[[], bool]) -> None:
        self.trainer, self.asked_to_stop = trainer, asked_to_stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:  # that is the summary after the last step
            values = {k: float(v) for k, v in logs.items() if k not in _NOT_METRICS}
            self.trainer.records.metrics(state.global_step, values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.before_training()
        if state.global_step == 0:
            self._measure(0)

    def _measure(self, step: int) -> None:
        if self.trainer.while_training is not None:
            found = self.trainer.latest = dict(self.trainer.while_training())
            if found:
                self.trainer.records.metrics(step, found)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        interval, last = self.trainer.options.eval_steps, state.global_step >= state.max_steps
        if last or (interval and state.global_step % interval == 0):
            self._measure(state.global_step)
        if self.trainer.parallel.any(self.asked_to_stop()):
            control.should_save = control.should_training_stop = True
