"""Live environments as the rollout holds them: in a process of their own, or in threads of this one.

Every call has a deadline, and several calls run at once. What goes wrong with one environment is a `Failure` in its own
place; the others' results stand.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from mmreason.rollout._environment_worker import read_message, write_message
from mmreason.rollout.environment import Environment, EnvironmentFactory, EnvironmentFailure, Step, as_messages
from mmreason.types import DataError, Message, MMReasonError

_log = logging.getLogger(__name__)
AT_ONCE = 32
"""Calls that run at the same time."""
START_LIMIT_S = 120.0
"""Seconds that importing the environment's module may take."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an environment gave no answer. dead: its state is lost, so it can't be asked again."""

    message: str
    dead: bool


class Handle(Protocol):
    """A live environment."""

    def call(self, method: str, *args: Any, limit_s: float, **kwargs: Any) -> Any:
        """What the method returns, or a Failure. Raises: MMReasonError that the environment raised."""

    def close(self) -> None:
        """End it."""


Call = tuple[Handle, str, tuple[Any, ...], dict[str, Any]]
"""An environment, the method to call, and its arguments."""


class Host:
    """Starts environments, and calls many of them at once.

    Args: factory: of the environments. limit_s: wall seconds of one call, the making of an instance included.
    """

    def __init__(self, factory: EnvironmentFactory, limit_s: float) -> None:
        self.factory, self.limit_s = factory, limit_s
        self._server: _ForkServer | None = None

    def start(self) -> Handle:
        """A new environment. Raises: EnvironmentFailure where this machine has no process or open file left for it."""
        if not self.factory.isolated:
            return _InThread(self.factory.make())
        try:
            return self._start_process()
        except OSError as error:
            # Every live episode holds a socket, and many machines allow a process 1024 open files, though it may ask
            # for more.
            if error.errno == errno.EMFILE and _raise_file_limit():
                with contextlib.suppress(OSError):
                    return self._start_process()
            raise EnvironmentFailure(
                f"environment {self.factory.name}: no further process can be started for it ({error}). Each episode of "
                "a rollout has one, and an open file here: allow more (ulimit -n, ulimit -u), play fewer episodes at "
                "once (per_device_train_batch_size, eval_samples), or set isolated = False in the class"
            ) from error

    def _start_process(self) -> Handle:
        if self._server is None or self._server.ended:
            self._server = _ForkServer(self.factory)
        return _InProcess(self._server)

    def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Results in order, `Failure`s among them. Raises: MMReasonError of the first environment that raised one."""

        def one(call: Call) -> Any:
            handle, method, args, kwargs = call
            return handle.call(method, *args, limit_s=self.limit_s, **kwargs)

        if not calls:
            return []
        at_once = min(AT_ONCE, self.factory.at_once or AT_ONCE, len(calls))
        with ThreadPoolExecutor(at_once, thread_name_prefix="environment") as pool:
            return list(pool.map(one, calls))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _raise_file_limit() -> bool:
    """Allow this process as many open files as it may ask for; whether that is more than before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return True
    return False


class _InThread:
    """An environment in this process. A call past its deadline is given up; its thread can't be stopped."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def call(self, method: str, *args: Any, limit_s: float, **kwargs: Any) -> Any:
        outcome: list[tuple[Any, BaseException | None]] = []

        def target() -> None:
            try:
                outcome.append((getattr(self.environment, method)(*args, **kwargs), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=target, name="environment-call", daemon=True)
        thread.start()
        thread.join(limit_s)
        if not outcome:
            return Failure(f"{method} was not done within {limit_s:g} s", dead=True)
        value, error = outcome[0]
        if isinstance(error, MMReasonError):
            raise error
        if error is not None:
            _log.debug("environment failed", exc_info=error)
            return Failure(f"{method} raised {type(error).__name__}: {error}", dead=False)
        return value

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.environment.close()


class _ForkServer:
    """The client of `_environment_worker.py`."""

    def __init__(self, factory: EnvironmentFactory) -> None:
        try:
            body = pickle.dumps((sys.path, pickle.dumps(factory)))
        except Exception as error:
            raise EnvironmentFailure(
                f"environment {factory.name}: it can't be sent to a process of its own ({error}); let a module or file "
                "name the class, or set isolated = False in it"
            ) from error
        ours, theirs = socket.socketpair()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmreason.rollout._environment_worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.socket, self.lock = ours, threading.Lock()
        ours.settimeout(START_LIMIT_S)
        try:
            write_message(ours, body)
            answer = json.loads(read_message(ours))
        except (OSError, ValueError) as error:
            answer = {"error": f"its process ended ({error})"}
        if "error" in answer:
            self.close()
            raise EnvironmentFailure(f"environment {factory.name} can't be started: {answer['error']}")
        atexit.register(self.close)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def fork(self) -> tuple[int, socket.socket]:
        """(pid, our end of its socket) of a new child."""
        ours, theirs = socket.socketpair()
        try:
            with self.lock, theirs:
                socket.send_fds(self.socket, [b"F"], [theirs.fileno()])
                return int(read_message(self.socket)), ours
        except OSError:
            ours.close()
            raise

    def close(self) -> None:
        """End the server, and with it all children."""
        self.socket.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        atexit.unregister(self.close)


class _InProcess:
    """An environment in a process of its own, killed when a call is past its deadline."""

    def __init__(self, server: _ForkServer) -> None:
        self.pid, self.socket = server.fork()

    def call(self, method: str, *args: Any, limit_s: float, **kwargs: Any) -> Any:
        self.socket.settimeout(limit_s)
        try:
            write_message(self.socket, pickle.dumps((method, args, kwargs)))
            answer = json.loads(read_message(self.socket))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.socket.close()
            return Failure(f"{method} was not done within {limit_s:g} s and its process was killed", dead=True)
        except (OSError, ValueError) as error:
            self.socket.close()
            return Failure(f"its process died in {method} ({error})", dead=True)
        if "fatal" in answer:
            raise EnvironmentFailure(answer["fatal"])
        if "error" in answer:
            return Failure(f"{method} raised {answer['error']}", dead=False)
        value = answer["value"]
        return Step(**value) if method == "step" and isinstance(value, dict) else value

    def close(self) -> None:
        self.socket.close()


def openings(factory: EnvironmentFactory, rows: Sequence[Mapping[str, Any]], limit_s: float) -> list[list[Message]]:
    """What `reset` returns for each row, as messages.

    Raises: DataError naming the row where it fails.
    """
    host = Host(factory, limit_s)
    found: list[list[Message]] = []
    try:
        for start in range(0, len(rows), AT_ONCE):
            part = [rows[i] for i in range(start, min(start + AT_ONCE, len(rows)))]
            handles = [host.start() for _ in part]
            calls: list[Call] = [
                (handle, "reset", (row,), {"seed": 0}) for handle, row in zip(handles, part, strict=True)
            ]
            for row, result in zip(part, host.call_all(calls), strict=True):
                if isinstance(result, Failure):
                    raise DataError(
                        f"row {row['id']}: environment {factory.name}: {result.message}", row=row["id"], reason="reset"
                    )
                found.append(as_messages(result))
            for handle in handles:
                handle.close()
    finally:
        host.close()
    return found
