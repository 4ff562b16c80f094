"""Measurements of a reward model on held-out rows before, during and after training, in evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from mmreason.trainers.reward_data import RewardRows
from mmreason.trainers.reward_metrics import lines, measured, reliability_table, shown
from mmreason.trainers.state import write_json
from mmreason.types import MMReasonError


class Scoring(Protocol):
    """What `RewardEvaluations` needs of a trainer. state.global_step: optimizer steps done."""

    accelerator: Any
    state: Any

    def scores(self, rows: RewardRows) -> list[list[float]]:
        """Rewards of each row's sequences, or log-odds at its places, under the current weights. Collective."""


class RewardEvaluations:
    """Named measurements of one run on the same held-out sets.

    Args:
        trainer: at the step from which the run goes on: what was measured after that step is forgotten.
        sets: held-out rows by name. Without any, every call does nothing.
    """

    def __init__(self, trainer: Scoring, sets: Mapping[str, RewardRows], output_dir: str) -> None:
        self.trainer, self.sets = trainer, dict(sets)
        self.path = Path(output_dir) / "evaluation.json"
        self.is_main: bool = trainer.accelerator.is_main_process
        self.done: dict[str, dict[str, Any]] = self._read() if self.is_main else {}

    def while_training(self, is_last: bool) -> dict[str, float]:
        """Measure now; the numbers for the step's line of metrics.jsonl. Collective.

        Args: is_last: the training ends with this step.
        """
        step = int(self.trainer.state.global_step)
        name = "before" if step == 0 else "after" if is_last else f"step {step}"
        found = {key: measured(rows, self.trainer.scores(rows)) for key, rows in self.sets.items()}
        if not found:
            return {}
        last = self.done.get("after")
        if last is not None and last["step"] < step:  # the run was finished then, and went on
            self.done[f"step {last['step']}"] = self.done.pop("after")
        self.done[name] = {"step": step, "sets": found}
        if self.is_main:
            self._write()
            for key, parts in found.items():
                tqdm.write(f"{name} (step {step}), {key}: {_short(parts)}")
        return {f"eval/{key}/{part}": value for key, parts in found.items() for part, value in lines(parts).items()
                if value is not None}  # fmt: skip

    def table(self) -> str:
        """All that was measured last, for people."""
        if not self.done:
            return "No held-out rows, so nothing was measured."
        name, entry = max(self.done.items(), key=lambda item: item[1]["step"])
        told: list[str] = []
        for key, parts in entry["sets"].items():
            told.append(f"{key}, {name} (step {entry['step']}):")
            told += [f"  {shown(part, value)}" for part, value in parts.items() if isinstance(value, Mapping)]
            told.append(reliability_table(parts["reliability"]))
        return "\n".join(told)

    def _read(self) -> dict[str, dict[str, Any]]:
        step = int(self.trainer.state.global_step)
        if not self.path.is_file():
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: entry for name, entry in found.items() if entry["step"] <= step and entry["sets"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            tqdm.write(f"{self.path} is damaged: what it held is measured anew where the run still comes by")
            return {}

    def _write(self) -> None:
        ordered = dict(sorted(self.done.items(), key=lambda item: item[1]["step"]))
        try:
            write_json(self.path, ordered)
        except OSError as error:
            raise MMReasonError(f"{self.path} can't be written ({error}); the checkpoints are untouched") from error


_HEADLINES: Sequence[str] = (
    "pair_accuracy", "kendall_tau", "mean_margin", "accuracy", "step_accuracy", "first_error_f1", "roc_auc",
    "calibration_error",
)  # fmt: skip


def _short(parts: Mapping[str, Any]) -> str:
    there = [(name, parts[name]["value"]) for name in _HEADLINES if name in parts]
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in there if value is not None)
