"""Held-out accuracy around a training run, kept in evaluation.json so that a continued run doesn't measure it twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmreason.rollout.evaluate import Accuracy
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.state import write_json
from mmreason.types import MMReasonError


class Evaluations:
    """Named measurements of one run's policy on the same held-out problems.

    Args:
        dataset: held-out rows with `answer` and `meta`, or None: then every call does nothing.
        prompt_ids: their tokenized prompts. k: samples of the majority vote.
    """

    def __init__(
        self, trainer: PolicyTrainer, dataset: Any, prompt_ids: Sequence[list[int]], k: int, output_dir: str
    ) -> None:
        self.trainer, self.dataset, self.prompt_ids, self.k = trainer, dataset, prompt_ids, k
        self.path = Path(output_dir) / "evaluation.json"
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.done = json.loads(self.path.read_text(encoding="utf-8"))

    def run(self, name: str) -> None:
        """Measure now, unless this run has this measurement already (collective)."""
        kept = self.done.get(name)
        step = self.trainer.state.step
        if self.dataset is None or (kept is not None and (name == "before" or kept["step"] == step)):
            return
        result = self.trainer.evaluate(self.dataset, self.prompt_ids, self.k)
        self.done[name] = {"step": step} | result.to_json()
        if self.trainer.accelerator.is_main_process:
            try:
                write_json(self.path, self.done)
            except OSError as error:
                raise MMReasonError(f"{self.path} can't be written ({error}); the checkpoints are untouched") from error
        self.trainer.accelerator.print(
            f"{name} training (step {step}), {len(self.prompt_ids)} held-out problems:\n{result.table()}"
        )

    def table(self) -> str:
        """Before and after next to each other, with 95 % Wilson intervals."""
        if not self.done:
            return "No held-out problems, so no accuracy was measured."
        rows = [("", "greedy", "greedy, strict", f"maj@{self.k}")]
        for name, result in self.done.items():
            cells = [
                "-" if result[key] is None else str(Accuracy(result[key]["correct"], result[key]["n"]))
                for key in ("greedy", "greedy_strict", "majority")
            ]
            rows.append((f"{name} (step {result['step']})", cells[0], cells[1], cells[2]))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
