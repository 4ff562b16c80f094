"""What stands around transformers' training loop: checkpoints to go on from, metrics.jsonl, stopping on a signal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState

from mmreason.trainers.arguments import TrainingOptions
from mmreason.trainers.distributed import DataParallel, keep_until_exit
from mmreason.trainers.records import RunRecords
from mmreason.trainers.state import CheckpointError, stop_on_signal
from mmreason.types import ConfigError


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints of such a run, oldest first. transformers writes trainer_state.json last."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if steps_done(p) is not None), key=lambda p: int(p.name.split("-")[1]))


def steps_done(checkpoint: Path) -> int | None:
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        return None


def unwritten_checkpoint(output_dir: str | Path, step: int, error: Exception) -> CheckpointError:
    """The error of a checkpoint that could not be written, and how to go on."""
    mine = whole_checkpoints(output_dir)
    return CheckpointError(
        f"{output_dir}/checkpoint-{step}: the checkpoint could not be written ({error}). "
        + (f"The last whole one is {mine[-1]}. " if mine else "There is no earlier one. ")
        + "Free some space or choose another --output_dir, then run the same command to continue."
    )


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
    if steps_done(Path(resume)) is None:
        there = f"; {output_dir} holds {', '.join(p.name for p in mine)}" if mine else ""
        raise ConfigError(f"--resume {resume}: no whole checkpoint; 'auto' takes the newest in output_dir{there}")
    return Path(resume)


class HFLoop(Trainer):
    """A transformers Trainer that goes on where it was stopped, and records what it measures.

    Call `begin` once the Trainer is made.

    Attributes:
        while_training: called every `eval_steps` steps with whether this is the last; what it returns is recorded.
        measures_at_ends: also called before the first step and after the last one.
        latest: what it returned last.
        finished: nothing is left to do; the same in all processes.
        not_metrics: what transformers logs that does not go to metrics.jsonl.
    """

    not_metrics: tuple[str, ...] = ("epoch", "num_input_tokens_seen")  # counted anew after a resume
    measures_at_ends = True
    options: Any
    state: TrainerState
    latest: Mapping[str, float] | None = None
    finished = False
    while_training: Callable[[bool], Mapping[str, float]] | None = None

    def begin(self, options: TrainingOptions, checkpoint: Path | None) -> None:
        self.options, self.checkpoint = options, checkpoint
        self.state.global_step = 0 if checkpoint is None else steps_done(checkpoint) or 0
        self.parallel = DataParallel(self.accelerator)
        keep_until_exit(self.accelerator, self)
        self.records = RunRecords(options.output_dir, self.accelerator.is_main_process)

    def fit(self) -> bool:
        """Train to the end; a signal ends it after the current step, saved.

        Returns: whether nothing is left to do.
        """
        self.records.rewind(self.state.global_step, 0)
        if self.checkpoint is not None:
            state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
            if self.has_ended() or self.is_finished(state):  # transformers itself would take one more step
                self._load_from_checkpoint(str(self.checkpoint))
                self.state = state
                self.finished = True
                return True
        with stop_on_signal() as asked:
            self.add_callback(_Around(self, asked))
            self.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        self.finished = self.has_ended() or int(self.state.global_step) >= int(self.state.max_steps)
        return self.finished

    def is_finished(self, state: TrainerState) -> bool:
        """Whether a checkpoint with this state is that of the last step."""
        return int(state.global_step) >= int(self.args.max_steps)

    def has_ended(self) -> bool:
        """Whether the run ends before its last step. The same in all processes."""
        return False

    def save_final(self, folder: Path, processor: Any) -> None:
        """The model as later stages load it, with its tokenizer or processor. Collective."""
        self.save_model(str(folder))
        if self.accelerator.is_main_process:
            processor.save_pretrained(folder)

    def before_training(self) -> None:
        """Called once the model is wrapped, before the first step. Collective."""

    def after_step(self, step: int, measured: Mapping[str, float]) -> None:
        """Called after each step, with what was measured there, if anything was. Collective."""

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


class _Around(TrainerCallback):
    """metrics.jsonl, measurements while training, and the stop after a signal."""

    def __init__(self, trainer: HFLoop, asked_to_stop: Callable[[], bool]) -> None:
        self.trainer, self.asked_to_stop = trainer, asked_to_stop

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.before_training()
        if state.global_step == 0 and self.trainer.measures_at_ends:
            self._measure(0, last=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:  # that is the summary after the last step
            values = {k: float(v) for k, v in logs.items() if k not in self.trainer.not_metrics}
            self.trainer.records.metrics(state.global_step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        interval, last = trainer.options.eval_steps, step >= state.max_steps
        due = (interval and step % interval == 0) or (last and trainer.measures_at_ends)
        trainer.after_step(step, self._measure(step, last=last) if due else {})
        if trainer.has_ended() or trainer.parallel.any(self.asked_to_stop()):
            control.should_save = control.should_training_stop = True

    def _measure(self, step: int, *, last: bool) -> Mapping[str, float]:
        if self.trainer.while_training is None:
            return {}
        found = self.trainer.latest = dict(self.trainer.while_training(last))
        if found:
            self.trainer.records.metrics(step, found)
        return found
