"""Running pip and checks for `setup.py`: into a log, with signs of progress, one set-up at a time. Stdlib only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STARTED = time.monotonic()
# Descriptor of the lock, which children inherit: if this script is killed, the pip that it leaves behind still holds
# it, and the next set-up doesn't clear the folder under its hands.
HELD: list[int] = []


class SetupError(Exception):
    """Set-up can't go on; the text says why and what to do."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def child_environment() -> dict[str, str]:
    """The environment for pip and for checks: nothing from outside may reach into the virtual environment."""
    drop = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "VIRTUAL_ENV")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    return env | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PYTHONNOUSERSITE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(command: list[str], log: Path, *, show: bool = False, **variables: str) -> tuple[int, str]:
    """Run to the end, all output into `log`; (exit status, output).

    Args:
        command: program and arguments.
        log: file to append to.
        show: print pip's lines that tell of progress.
        variables: environment variables to set.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=child_environment() | variables,
            cwd="/",  # a module that lies in the checkout must not be taken for an installed one
            start_new_session=True,
            pass_fds=HELD,
        )
        lines: list[str] = []
        done = threading.Event()
        if show:
            threading.Thread(target=_heartbeat, args=(done,), daemon=True).start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                if show and (text := _progress(line)):
                    say("  " + text)
            return process.wait(), "".join(lines)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()
            raise
        finally:
            done.set()


def _progress(line: str) -> str:
    """pip's line as it is worth showing: what is looked for, downloads of 10 MB or more, installing."""
    text = line.strip()
    if text.startswith("Collecting "):
        return text.split(" (from")[0]
    size = re.search(r"\(([\d.]+) ([MG])B\)", text)
    if text.startswith("Downloading ") and size and (size[2] == "G" or float(size[1]) >= 10):
        return text
    if text.startswith("Installing collected packages"):
        return f"installing {text.count(',') + 1} packages"
    return text if text.startswith(("Building wheel", "ERROR")) else ""


def _heartbeat(done: threading.Event, every_s: float = 20.0) -> None:
    while not done.wait(every_s):
        say("  … still at it")


def pip(python: Path, arguments: list[str], log: Path, what: str, *, show: bool = True) -> None:
    """Raises SetupError with the end of pip's log."""
    status, output = run([str(python), "-m", "pip", "--no-color", *arguments], log, show=show)
    if status != 0:
        tail = "".join(output.splitlines(keepends=True)[-25:])
        raise SetupError(f"{what} failed (pip exit status {status}). The end of {log}:\n\n{tail}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one set-up at a time per environment; the lock goes with its processes, so none is ever left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is building this environment; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        HELD.append(file.fileno())
        try:
            yield
        finally:
            HELD.remove(file.fileno())
