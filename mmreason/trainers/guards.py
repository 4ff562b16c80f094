"""Guards watch a run's numbers and warn, or stop the run before it spends more on a policy that is lost.

A step whose loss or gradient is not finite is not taken at all. Everything else is judged after the step, by the
numbers of metrics.jsonl, which are the same on all processes: so all of them decide alike.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from tqdm.auto import tqdm

from mmreason._files import write_whole
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.guard_options import GUARDS, guard_options
from mmreason.trainers.state import Checkpoints
from mmreason.types import MMReasonError

EVENTS = "guards.jsonl"
"""In the output folder: a line for each alarm's begin and end, and for each step that was not taken."""


class GuardError(MMReasonError):
    """A guard whose action is `stop` has stopped the run. guard: its name. step: the optimizer step."""

    def __init__(self, message: str, *, guard: str, step: int) -> None:
        super().__init__(message)
        self.guard, self.step = guard, step


@dataclass
class Watch:
    """One guard's memory: what a checkpoint keeps of it.

    recent: the last `window` values of its metric. spreads: of the reward's standard deviation beside them.
    start: mean of the first full window. best, spread: the highest means of a window so far.
    since: the first step of the alarm that is on, or None.
    """

    recent: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    start: float | None = None
    best: float | None = None
    spread: float = 0.0
    since: int | None = None

    def take(self, value: float, spread: float, window: int) -> float | None:
        """Remember a value; the mean of the last `window`, or None before there are so many."""
        self.recent = [*self.recent, value][-window:]
        self.spreads = [*self.spreads, spread][-window:]
        if len(self.recent) < window:
            return None
        mean = math.fsum(self.recent) / window
        self.start = mean if self.start is None else self.start
        self.best = mean if self.best is None else max(self.best, mean)
        self.spread = max(self.spread, math.fsum(self.spreads) / window)
        return mean

    def bounds(self, options: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """(low, high) in units of the metric, once `take` has given a mean."""
        low, high = options.get("below"), options.get("above")
        if (rise := options.get("rise")) is not None and self.start is not None:
            high = self.start + rise
        if (growth := options.get("growth")) is not None and self.start is not None:
            high = self.start * growth
        if (drop := options.get("drop")) is not None and self.best is not None and self.spread > 0:
            low = self.best - drop * self.spread
        if (off := options.get("off")) is not None:
            low, high = 1.0 - off, 1.0 + off
        return low, high


class Guards:
    """All guards of a run; a `Stateful` part of it, so that a continued run warns where an unbroken one does.

    Args: block: the `guards:` options. output_dir: where guards.jsonl goes.
    """

    def __init__(self, block: Mapping[str, Any] | None, parallel: DataParallel, output_dir: str) -> None:
        self.options = guard_options(block)
        self.parallel = parallel
        self.path = Path(output_dir) / EVENTS
        self.watches = {name: Watch() for name in GUARDS}
        self.skipped, self.in_a_row = 0, 0
        self._was_skipped = self._searches_scale = False
        self._stop: GuardError | None = None

    # ---- the step that is not taken

    def lets_step(self, norm: float, loss: Tensor) -> bool:
        """Whether the optimizer may use this gradient. Collective, once per optimizer step.

        Args: norm: of the gradient, before clipping. loss: this process's, a scalar.
        """
        if self.parallel.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return True  # its engine has stepped by now, see `after_engine_step`
        bad = not (math.isfinite(norm) and bool(torch.isfinite(loss)))
        self._was_skipped = self.options["non_finite"]["action"] != "off" and self.parallel.any(bad)
        return not self._was_skipped

    def after_engine_step(self, policy: Any) -> None:
        """DeepSpeed's engine steps by itself, and refuses a gradient that is not finite by itself: note that it did.

        With float16 it does so on purpose, to find the loss scale, and raises at the smallest one: not ours to stop.
        """
        if self.parallel.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self._was_skipped = not policy.was_step_applied()
            self._searches_scale = bool(policy.fp16_enabled())

    # ---- after the step

    def observe(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Judge a step by its metrics; what is in alarm is told, and kept in guards.jsonl.

        Returns: for the step's line: guards/NAME (1: in alarm), and the bounds as guards/NAME/low and /high.
        """
        out = self._judge_finite(step, metrics)
        for name, kind in GUARDS.items():
            options, value = self.options[name], metrics.get(kind.metric)
            if name == "non_finite" or options["action"] == "off" or value is None or not math.isfinite(value):
                continue
            watch = self.watches[name]
            spread = metrics.get("reward_std", 0.0)
            mean = watch.take(value, spread if math.isfinite(spread) else 0.0, options["window"])
            if mean is None:
                continue
            low, high = watch.bounds(options)
            out |= {f"guards/{name}/{side}": b for side, b in (("low", low), ("high", high)) if b is not None}
            outside = (low is not None and mean < low) or (high is not None and mean > high)
            out[f"guards/{name}"] = float(outside)
            self._tell_change(name, step, mean, low, high, outside)
        return out

    def alarms(self) -> dict[str, int]:
        """Guards that are in alarm, with the step since when."""
        return {name: watch.since for name, watch in self.watches.items() if watch.since is not None}

    def stop_if_asked(self, checkpoints: Checkpoints) -> None:
        """Raise GuardError where a guard that stops is in alarm, naming the checkpoint to go back to. Collective."""
        if not self.parallel.any(self._stop is not None):
            return
        good = checkpoints.latest_good()
        back = (
            f"The last checkpoint without an alarm is {good}: change the options and go on from it with --resume {good}"
            if good is not None
            else "There is no checkpoint without an alarm: change the options and start over with "
            "--overwrite_output_dir"
        )
        error = self._stop or GuardError("a guard of another process stopped the run", guard="unknown", step=0)
        raise GuardError(f"{error}. Nothing was saved. {back}", guard=error.guard, step=error.step)

    def _judge_finite(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        options, watch = self.options["non_finite"], self.watches["non_finite"]
        if options["action"] == "off":
            return {}
        skipped, self._was_skipped = self._was_skipped, False
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            seen = f"loss {metrics.get('loss', math.nan):.4g}, gradient norm {metrics.get('grad_norm', math.nan):.4g}"
            text = f"step {step} was not taken: {GUARDS['non_finite'].what} ({seen}); {self.skipped} such steps so far"
            self._tell({"step": step, "guard": "non_finite", "event": "skipped", "message": text})
            watch.since = step if watch.since is None else watch.since
            if options["action"] == "stop" and self.in_a_row >= options["in_a_row"] and not self._searches_scale:
                advice = _advice("non_finite")
                self._stop = GuardError(f"{text}, {self.in_a_row} in a row. {advice}", guard="non_finite", step=step)
        else:
            watch.since = None
        out = {"guards/non_finite": float(skipped)}
        return out | ({"guards/skipped_steps": float(self.skipped)} if self.skipped else {})

    def _tell_change(
        self, name: str, step: int, mean: float, low: float | None, high: float | None, outside: bool
    ) -> None:
        watch, options = self.watches[name], self.options[name]
        began, ended = outside and watch.since is None, not outside and watch.since is not None
        since = step if watch.since is None else watch.since
        side = f"above {high:.4g}" if high is not None and mean > high else f"below {low or 0.0:.4g}"
        seen = f"{GUARDS[name].what}: {mean:.4g} (mean of the last {options['window']}), {side}, since step {since}"
        if began:
            watch.since = step
            text = f"guard {name}: {seen}. {_advice(name)}"
            event = {"value": mean, "low": low, "high": high, "message": text}
            self._tell({"step": step, "guard": name, "event": "alarm"} | event)
        elif ended:
            watch.since = None
            text = f"guard {name}: within its bounds again ({mean:.4g}); the alarm had begun at step {since}"
            self._tell({"step": step, "guard": name, "event": "over", "value": mean, "message": text})
        if outside and options["action"] == "stop" and self._stop is None:
            self._stop = GuardError(f"step {step}: guard {name}: {seen}. {_advice(name)}", guard=name, step=step)

    def _tell(self, event: Mapping[str, Any]) -> None:
        if not self.parallel.accelerator.is_main_process:
            return
        tqdm.write(f"WARNING: {event['message']}", file=sys.stderr)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False) + "\n")
        except OSError as error:
            raise MMReasonError(f"{self.path} can't be written ({error}); the checkpoints are untouched") from error

    # ---- checkpoints

    def rewind(self, step: int) -> None:
        """Forget the events after a checkpoint: these steps are about to be done again."""
        if self.parallel.accelerator.is_main_process and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # what a kill cut off has no line break
            write_whole(self.path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))

    def state_dict(self) -> dict[str, Any]:
        watches = {name: asdict(watch) for name, watch in self.watches.items()}
        return {"watches": watches, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Guards that an earlier version did not have begin anew."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        for name, kept in state["watches"].items():
            if name in self.watches:
                self.watches[name] = Watch(**kept)
                if self.options[name]["action"] == "off":
                    self.watches[name].since = None


def _advice(name: str) -> str:
    kind = GUARDS[name]
    return f"Usual causes: {kind.causes}. What helps: {kind.helps}. (guards: {name} in docs/guards.md)"
