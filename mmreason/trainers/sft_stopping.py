"""Stopping once a held-out loss or accuracy has not got better for a while."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from accelerate.utils import broadcast_object_list

from mmreason.trainers.problems import HELD_OUT
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.types import ConfigError

_SHORT = {None: f"eval/{HELD_OUT}/loss", "loss": f"eval/{HELD_OUT}/loss", "accuracy": f"eval/{HELD_OUT}/greedy"}


class EarlyStopping:
    """Watches one number of the measurements; which steps were best is worked out from metrics.jsonl after a resume.

    Args: options: of the run. step: from which it goes on.
    """

    def __init__(self, options: SFTOptions, step: int) -> None:
        self.patience, self.threshold = options.early_stopping_patience, options.early_stopping_threshold
        self.metric = _SHORT.get(options.metric_for_best_model) or str(options.metric_for_best_model)
        self.best: float | None = None
        self.best_step = self.waited = 0
        if self.patience is not None:
            (seen,) = broadcast_object_list([self._recorded(options.output_dir, step)])
            for step_then, value in seen:
                self._see(step_then, value)

    @property
    def ended(self) -> bool:
        """Whether the run shall end, or has ended, with its last measurement."""
        return self.patience is not None and self.waited >= self.patience

    def see(self, step: int, measured: Mapping[str, float]) -> None:
        """Take in a measurement. Raises: ConfigError where the metric is not among what was measured."""
        if self.patience is None:
            return
        if self.metric not in measured:
            there = ", ".join(sorted(measured)) or "none"
            raise ConfigError(f"metric_for_best_model: {self.metric} isn't measured; there are {there}")
        self._see(step, measured[self.metric])

    def told(self) -> str:
        """Why the run ended, for people."""
        return (
            f"Stopped early: {self.metric} was best at step {self.best_step} ({self.best:.4f}) and has not got better "
            f"in {self.waited} measurements. The checkpoint of that step, if it was kept, is the one to take."
        )

    def _see(self, step: int, value: float) -> None:
        sign = -1.0 if self.metric.endswith("loss") else 1.0
        if self.best is None or sign * (value - self.best) > self.threshold:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1

    def _recorded(self, output_dir: str, step: int) -> list[tuple[int, float]]:
        path = Path(output_dir) / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [(row["step"], row[self.metric]) for row in rows if row["step"] <= step and self.metric in row]
