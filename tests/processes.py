"""Start a Python command in a process of its own, by a fork of one that has the training stack imported already.

`start` and `run` do what `subprocess.Popen` and `subprocess.run` do. `python SCRIPT …`, `python -m MODULE …` of ours
and `accelerate launch` with its processes are forked by tests/fork_server.py; any other command is a new process, and
so is one whose libraries would read other variables while they are imported than a server's did. With a GPU none is
forked: CUDA forbids it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.fork_client import ADDRESS, ended, request

CLIENT = Path(__file__).with_name("fork_client.py")
SERVER = Path(__file__).with_name("fork_server.py")
LAUNCH = ["-m", "accelerate.commands.launch"]
START_S = 600
"""Seconds that the server may take for its imports."""
AGAIN = 3
"""An environment that is asked for so often gets a server of its own."""


class Forked:
    """A process that the fork server made, with what tests use of subprocess.Popen."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """The exit code, minus a signal's number where one ended it; None while it runs."""
        return self._read(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = ended(self._connection)
            self._connection.close()
        return self.returncode


class ForkServer:
    """The server's process. address: of its socket."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mmreason-fork-"))
        self.address = str(self.folder / "socket")
        theirs, self._lifeline = os.pipe()
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), self.address, str(theirs)],
                pass_fds=[theirs], env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(theirs)
        atexit.register(self.close)
        deadline = time.monotonic() + START_S
        while not Path(self.address).exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"the fork server didn't start:\n{said[-3000:]}")
            time.sleep(0.05)

    def close(self) -> None:
        os.close(self._lifeline)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# What libraries read while they are imported. A forked process gets all its variables, but these it would get too late.
# Not a list of those that may differ: a test process that imports Ray or vLLM finds new ones in its own environment.
_READ_BY_IMPORTS = ("HF_", "HOME", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TQDM_", "TRANSFORMERS_", "TRL_",
                     "XDG_")  # fmt: skip
_servers: dict[frozenset[tuple[str, str]], ForkServer] = {}
"""By the variables that libraries read while they are imported."""
_asked: Counter[frozenset[tuple[str, str]]] = Counter()


def start(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: IO[Any], err: IO[Any], often: bool = False
) -> Any:
    """A process in a session of its own: `Forked` or subprocess.Popen, which have poll, wait, kill, pid, returncode.

    Args: often: this environment is worth a server of its own at once, if it is not that of the first process.
    """
    words, env = list(words), dict(env)
    python = words[0] == sys.executable and not Path("/dev/nvidiactl").exists()
    if python and (words[1].endswith(".py") or words[1:3] == LAUNCH or (words[1] == "-m" and _is_ours(words[2]))):
        known = frozenset((name, value) for name, value in env.items() if name.startswith(_READ_BY_IMPORTS))
        _asked[known] += 1
        if known not in _servers and (not _servers or often or _asked[known] == AGAIN):
            _servers[known] = ForkServer(env)
        if known in _servers:
            server = _servers[known]
            if words[1:3] == LAUNCH:
                script = next(i for i, word in enumerate(words) if word.endswith(".py") and (cwd / word).is_file())
                words.insert(script, str(CLIENT))
                env[ADDRESS] = server.address
            return Forked(*request(server.address, words[1:], str(cwd), env, out.fileno(), err.fileno()))
    return subprocess.Popen(
        words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )


def _is_ours(module: str) -> bool:
    return module.startswith(("mmreason.", "data_builders."))


def run(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float, often: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run it to its end and return what it said. Raises: subprocess.TimeoutExpired, after killing it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(words, cwd=cwd, env=env, out=out, err=err, often=often)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(words, code, *said)
