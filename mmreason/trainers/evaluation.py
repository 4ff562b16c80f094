"""Accuracy on held-out sets before, during and after a training run.

evaluation.json holds the numbers, so that a continued run measures nothing twice; evaluations/ the greedy answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from mmreason.rollout.evaluate import Accuracy, Evaluation, GreedyAnswer, evaluate
from mmreason.rollout.types import Engine, Sampling
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.records import write_rows
from mmreason.trainers.reporting import decode
from mmreason.trainers.state import write_json
from mmreason.types import MMReasonError


def measure(
    engine: Engine,
    held_out: HeldOut,
    tokenizer: Any,
    sampling: Sampling,
    parallel: DataParallel,
    *,
    k: int,
    seed: int,
    read: Callable[[list[str]], list[str]] | None = None,
) -> tuple[Evaluation, list[GreedyAnswer]]:
    """Let all processes answer a held-out set. The engine has the weights that are to be measured. Collective.

    Args: read: completions → the texts that their answers stand in; None: themselves.
    """
    pictures = [name for name in ("images",) if name in held_out.dataset.column_names]
    return evaluate(
        engine,
        held_out.prompt_ids,
        list(held_out.dataset.remove_columns(pictures)),
        lambda ids: decode(tokenizer, ids),
        sampling,
        k=k,
        seed=seed,
        visuals=held_out.visuals,
        rank=parallel.rank,
        world_size=parallel.size,
        gather_objects=parallel.gather_objects,
        read=read,
    )


class Measurable(Protocol):
    """What `Evaluations` needs of a trainer. state.global_step: optimizer steps done."""

    accelerator: Any
    state: Any

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Accuracies (maj@k where k > 1) and greedy answers of the current weights. Collective."""


class Evaluations:
    """Named measurements of one run's policy on the same held-out sets.

    Args:
        trainer: at the step from which the run goes on: what was measured after that step is forgotten.
        sets: held-out sets by name; without any, every call does nothing.
        k: samples of the majority vote before and after training; during training only greedy answers are measured.
    """

    def __init__(self, trainer: Measurable, sets: Mapping[str, HeldOut], k: int, output_dir: str) -> None:
        self.trainer, self.sets, self.k = trainer, dict(sets), k
        self.path = Path(output_dir) / "evaluation.json"
        self.answers = Path(output_dir) / "evaluations"
        self.is_main: bool = trainer.accelerator.is_main_process
        # What is measured is collective, so all processes have to agree about what is there already.
        found = self._read() if self.is_main else {}
        (self.done,) = broadcast_object_list([found])

    def run(self, name: str) -> None:
        """Measure now, except for what this run has under this name and step already. Collective.

        Args: name: "before", "after" or "step <step>".
        """
        step = self.trainer.state.global_step
        last = self.done.get("after")
        if self.sets and last is not None and last["step"] < step:  # the run was finished then, and went on
            self.done[f"step {last['step']}"] = self.done.pop("after")
        kept = self.done.get(name, {"step": step, "sets": {}})
        k = self.k if name in ("before", "after") else 0
        missing = [key for key, held_out in self.sets.items() if not _is_of(kept["sets"].get(key), held_out, k)]
        if kept["step"] != step:  # "before", of a run that is continued
            for key in missing:
                self._say(f"{key} was not measured like this before training (step {kept['step']}); that has gone by")
            return
        for key in missing:
            result, answers = self.trainer.measure(self.sets[key], k)
            kept["sets"][key] = result.to_json()
            if self.is_main:
                write_rows(self.answers / f"step-{step:06d}-{key}.parquet", [asdict(answer) for answer in answers])
            title = f"{_title(name, step)}, {key}, {len(answers)} problems"
            short = f"greedy {result.greedy}, {result.mean_length:.1f} tokens"
            self._say(f"{title}: {short}" if k == 0 else f"{title}:\n{result.table()}")
        if missing:
            self.done[name] = kept
            self._write()

    def while_training(self, is_last: bool) -> dict[str, float]:
        """Measure between two steps; the numbers for that step's line of metrics.jsonl. Collective.

        Args: is_last: the training ends with this step, so this is its measurement "after", with the majority vote.
        """
        name = "after" if is_last else f"step {self.trainer.state.global_step}"
        self.run(name)
        out: dict[str, float] = {}
        for key in self.sets:
            measured = self.done[name]["sets"][key]
            out[f"eval/{key}/greedy"] = measured["greedy"]["value"]
            out[f"eval/{key}/mean_length"] = measured["mean_length"]
        return out

    def table(self) -> str:
        """A row for each set and moment: accuracies with 95 % Wilson intervals, mean number of tokens."""
        if not self.done:
            return "No held-out problems, so no accuracy was measured."
        parts = {"greedy": "greedy", "greedy_strict": "greedy, strict"}
        if self.k > 1:
            parts["majority"] = f"maj@{self.k}"
        rows = [("", "", *parts.values(), "tokens")]
        for key in dict.fromkeys(key for entry in self.done.values() for key in entry["sets"]):
            for name, entry in _in_order(self.done).items():
                if (measured := entry["sets"].get(key)) is not None:
                    cells = [_shown(measured[part]) for part in parts]
                    rows.append((key, _title(name, entry["step"]), *cells, f"{measured['mean_length']:.1f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _read(self) -> dict[str, Any]:
        """What the file holds up to the trainer's step; later answers are removed."""
        step = self.trainer.state.global_step
        for path in self.answers.glob("step-*.parquet"):
            if int(path.name.split("-")[1]) > step:
                path.unlink()
        if not self.path.is_file():
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: entry for name, entry in found.items() if _checked_step(entry) <= step}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._say(f"{self.path} is damaged or of an earlier version of mmreason: accuracy is measured anew")
            return {}

    def _write(self) -> None:
        if self.is_main:
            try:
                write_json(self.path, _in_order(self.done))
            except OSError as error:
                raise MMReasonError(f"{self.path} can't be written ({error}); the checkpoints are untouched") from error

    def _say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text)  # above a progress bar, if there is one


def _is_of(measured: dict[str, Any] | None, held_out: HeldOut, k: int) -> bool:
    """Whether a measurement is one of this many problems and votes."""
    return measured is not None and measured["greedy"]["n"] == len(held_out.prompt_ids) and measured["k"] == k


def _checked_step(entry: dict[str, Any]) -> int:
    """The step of an entry of evaluation.json. Raises KeyError or TypeError for one that lacks what is read."""
    for measured in entry["sets"].values():
        for part in ("greedy", "greedy_strict", "majority"):
            _shown(measured[part])
        _ = measured["greedy"]["value"], measured["k"], measured["mean_length"]
    return int(entry["step"])


def _shown(part: dict[str, Any] | None) -> str:
    return "-" if part is None else str(Accuracy(part["correct"], part["n"]))


def _in_order(done: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By step; "before" first, also where a run was measured only once it had gone on."""
    return dict(sorted(done.items(), key=lambda item: (item[1]["step"], item[0] != "before")))


def _title(name: str, step: int) -> str:
    return f"{name} (step {step})" if name in ("before", "after") else name
