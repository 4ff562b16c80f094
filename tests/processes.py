"""Start a Python command in a process of its own, by a fork of one that has the training stack imported already.

`start` and `run` do what `subprocess.Popen` and `subprocess.run` do. Where the environment is not the one that the fork
server was started with, or the command is not `python SCRIPT …` or `python -m MODULE …`, it is a new Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SERVER = Path(__file__).with_name("fork_server.py")
START_S = 300
"""Seconds that the server may take for its imports."""


class Forked:
    """A process that the fork server made, with what tests use of subprocess.Popen."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status = status
        self.returncode: int | None = None

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
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            code = os.read(self._status, 4)
            os.close(self._status)
            # Nothing in the pipe: the server itself is gone.
            self.returncode = struct.unpack("i", code)[0] if code else -signal.SIGKILL
        return self.returncode


class ForkServer:
    """The server's process and our end of its socket."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the server
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=self.env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        theirs.close()
        self._socket.settimeout(START_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        atexit.register(self.close)

    def start(self, words: Sequence[str], cwd: Path, out: int, err: int) -> Forked:
        """Args: words: after the interpreter. out, err: descriptors for what the process says."""
        status, theirs = os.pipe()
        request = {"words": list(words), "cwd": str(cwd), "env": self.env}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [out, err, theirs])
        os.close(theirs)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = self._socket.recv(4)
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"the fork server has ended:\n{self._log.read().decode(errors='replace')[-3000:]}")
        return Forked(struct.unpack("i", answer)[0], status)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _server(env: tuple[tuple[str, str], ...]) -> ForkServer:
    return ForkServer(dict(env))


_first_environment: list[dict[str, str]] = []


def start(words: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: IO[Any], err: IO[Any]) -> Any:
    """A process in a session of its own: `Forked` or subprocess.Popen, which have poll, wait, kill, pid, returncode."""
    plain = {name: value for name, value in env.items() if name != "PYTEST_CURRENT_TEST"}
    if not _first_environment:
        _first_environment.append(plain)
    module = words[2] if words[1] == "-m" else ""
    ours = words[1].endswith(".py") or module.startswith(("mmreason.", "data_builders."))
    forks = words[0] == sys.executable and ours
    if forks and plain == _first_environment[0]:
        return _server(tuple(plain.items())).start(words[1:], cwd, out.fileno(), err.fileno())
    return subprocess.Popen(
        words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )


def run(words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run it to its end and return what it said. Raises: subprocess.TimeoutExpired, after killing it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(words, cwd=cwd, env=env, out=out, err=err)
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
        return subprocess.CompletedProcess(list(words), code, *said)
