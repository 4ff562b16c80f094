"""Checkpoints that are whole or absent, and the state a run continues from."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mmreason.trainers.distributed import DataParallel
from mmreason.types import ConfigError, MMReasonError

_NAME = re.compile(r"checkpoint-(\d+)$")


class CheckpointError(MMReasonError):
    """A checkpoint could not be written or read; the message names the last whole one."""


@dataclass
class RunState:
    """Where a run stands. Data order and sampling seeds are functions of these numbers, so nothing else is needed.

    step: optimizer steps done. rollouts: rollouts drawn. updates_in_rollout: optimizer steps already taken from the last one.
    samples, tokens: completions and completion tokens sampled over all processes. seconds: time spent training.
    """

    step: int = 0
    rollouts: int = 0
    updates_in_rollout: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def global_step(self) -> int:
        """The name under which reward functions written for TRL read the step from `trainer_state`."""
        return self.step


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Checkpoints:
    """`checkpoint-<step>` folders in an output folder.

    Written next to their final name and renamed when every process is done, so a killed or full-disk save leaves the earlier
    ones untouched. `limit` newest are kept.
    """

    def __init__(self, output_dir: str | os.PathLike[str], parallel: DataParallel, limit: int | None):
        self.folder, self.parallel, self.limit = Path(output_dir), parallel, limit
        self.accelerator = parallel.accelerator

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [p for p in self.folder.glob("checkpoint-*") if _NAME.search(p.name) and (p / "run_state.json").is_file()]
        return sorted(found, key=lambda p: int(p.name.split("-")[1]))

    def latest(self) -> Path | None:
        found = self.all()
        return found[-1] if found else None

    def save(self, state: RunState, write: Callable[[Path], None]) -> Path:
        """Let `write(folder)` fill a new checkpoint on every process, then publish it.

        Raises:
            CheckpointError: any process failed (disk full, no permission); nothing half-written stays.
        """
        final = self.folder / f"checkpoint-{state.step}"
        temporary = self.folder / f"checkpoint-{state.step}.writing"
        error: OSError | RuntimeError | None = None
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            write(temporary)
            if self.accelerator.is_main_process:
                write_json(temporary / "run_state.json", asdict(state))
        except (OSError, RuntimeError) as caught:
            # torch and safetensors report a full disk as a RuntimeError or SafetensorError
            error = caught
        except Exception as caught:
            if type(caught).__name__ != "SafetensorError":
                raise
            error = RuntimeError(str(caught))
        if not self.parallel.any(error is not None) and self.accelerator.is_main_process:
            try:
                _fsync_tree(temporary)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
            except OSError as caught:
                error = caught
        if self.parallel.any(error is not None):
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            last = self.latest()
            raise CheckpointError(
                f"{final}: the checkpoint could not be written ({error or 'another process failed'}). "
                + (f"The last whole one is {last}. " if last else "There is no earlier one. ")
                + "Free some space or choose another --output_dir, then run the same command to continue."
            ) from error
        if self.accelerator.is_main_process:
            self._rotate()
        return final

    def _rotate(self) -> None:
        if self.limit is not None:
            for old in self.all()[: -max(self.limit, 1)]:
                shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def read_state(checkpoint: Path) -> RunState:
        try:
            return RunState(**json.loads((checkpoint / "run_state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint that can be continued ({error}); name another with --resume, or start over "
                "with --overwrite_output_dir"
            ) from error


def open_output_dir(output_dir: str, identity: dict[str, Any], overwrite: bool, is_main: bool) -> None:
    """Claim an output folder for this run before anything expensive starts.

    Args:
        identity: what makes two runs the same (model, data, seed, batch). A folder that holds a run with another identity is
            refused, unless `overwrite`, which deletes that run's files.

    Raises:
        ConfigError: the folder can't be written, or holds another run (what differs is listed).
    """
    if not is_main:
        return
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"output_dir {folder} can't be written ({error}); choose another with --output_dir") from error
    record = folder / "run.json"
    if overwrite:
        for path in [*folder.glob("checkpoint-*"), folder / "rollouts", folder / "final", folder / "logs"]:
            shutil.rmtree(path, ignore_errors=True)
        for name in ("run.json", "metrics.jsonl", "evaluation.json"):
            (folder / name).unlink(missing_ok=True)
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8")).get("identity", {})
        now = json.loads(json.dumps(identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            differences = ", ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
            raise ConfigError(
                f"output_dir {folder} holds another run ({differences}). Choose another --output_dir, or start over with "
                "--overwrite_output_dir"
            )
    elif any(_NAME.search(p.name) for p in folder.glob("checkpoint-*")):
        raise ConfigError(
            f"output_dir {folder} holds checkpoints that this command did not write. Choose another --output_dir, or start "
            "over with --overwrite_output_dir"
        )
    write_json(record, {"identity": identity})


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C, SIGTERM or SIGUSR1 (Slurm's warning) into a request to stop after the current step.

    Yields a function that tells whether a stop was asked for. A second Ctrl-C interrupts at once.
    """
    asked = False

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        print(
            f"\n{signal.Signals(signum).name}: finishing this step, then saving (Ctrl-C again stops at once)",
            file=sys.stderr,
            flush=True,
        )

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        with contextlib.suppress(ValueError):  # only the main thread may set handlers; elsewhere the run is not stoppable
            before[number] = signal.signal(number, handler)
    try:
        yield lambda: asked
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
