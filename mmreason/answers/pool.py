"""A pool of killable worker processes for symbolic comparisons: a hard wall deadline per answer, safe from threads
and forks.

The trainer's process holds no sympy. It starts one fork server (`_worker.py`) by `subprocess`, and that forks the
workers; each has its own socket. A request past its deadline gets its worker killed (SIGKILL) and replaced, and only
that request's verdict is TIMEOUT; so is that of a request whose worker died twice (out of memory, crash). Several
requests are in flight at each worker, so that it never waits for the trainer.

Every process has its own pool, made at the first use; after a fork the child forgets its parent's pool. Unix only.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmreason.answers.types import Verdict

WINDOW = 8
"""Requests in flight at one worker."""
START_LIMIT_S = 120.0
"""Seconds that the fork server may take to import sympy and math-verify."""
MAX_REQUEST = 20_000
"""Characters of a gold or an answer that a worker is given."""


class PoolError(RuntimeError):
    """The worker processes can't be started (math-verify missing or broken, no processes left)."""


def default_workers() -> int:
    """Workers of this process: the usable cores divided by the trainer processes on this machine, 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)
    return max(1, min(8, cores // max(1, local)))


class _ForkServer:
    """The client of the process that forks workers. Calls are serialised by the pool's lock."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-P", "-m", "mmreason.answers._worker", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.socket = ours
        ours.settimeout(START_LIMIT_S)
        try:
            ready = self._line()
        except OSError:
            ready = ""
        if ready != "ready":
            self.close()
            raise PoolError(
                "the answer-checking workers can't start; is math-verify installed? "
                f"`{' '.join(command[:4])}` said: {self.error[-800:] or 'nothing'}"
            )
        # Nothing reads the server's stderr from here on: it prints nothing, and workers inherit a pipe that may fill.
        if self.process.stderr is not None:
            self.process.stderr.close()
        ours.settimeout(10.0)

    error = ""

    def _line(self) -> str:
        data = b""
        while not data.endswith(b"\n"):
            chunk = self.socket.recv(64)
            if not chunk:
                raise ConnectionError("the fork server ended")
            data += chunk
        return data.decode("ascii").strip()

    def fork(self) -> tuple[int, socket.socket]:
        """Starts a worker; returns its pid and our end of its socket."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self.socket, [b"F\n"], [theirs.fileno()])
            pid = int(self._line())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return pid, ours

    def kill(self, pid: int) -> None:
        """Kills a worker; the server reaps it."""
        self.socket.sendall(f"K {pid}\n".encode())
        self._line()

    def close(self) -> None:
        """Ends the server, and with it all workers."""
        self.socket.close()
        try:
            _, said = self.process.communicate(timeout=2)
            self.error = said.decode(errors="replace") if said else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        except ValueError:  # stderr was closed after the start
            self.process.wait(2)


@dataclass(slots=True)
class _Task:
    index: int
    payload: bytes
    tries: int = 0
    spent: float = 0.0  # seconds used by an earlier try


@dataclass(slots=True, eq=False)
class _Worker:
    pid: int
    socket: socket.socket
    flying: deque[_Task] = field(default_factory=deque)
    since: float = 0.0  # when the first task in flight began
    buffer: bytes = b""


def _ended(connection: socket.socket) -> bool:
    """Whether the other side of an idle worker's socket is gone."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Pool:
    """Worker processes that compare answers. `run` may be called from any number of threads.

    Args:
        workers: the number of processes; None takes `default_workers()`.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers if workers is not None else default_workers()
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        self._lock = threading.Lock()
        self._free_changed = threading.Condition(self._lock)
        self._server: _ForkServer | None = None
        self._free: list[_Worker] = []
        self._count = 0
        self._waiting = 0
        self._all: set[_Worker] = set()
        self._closed = False

    # -- workers -------------------------------------------------------------------------------------------------------

    def _start(self) -> _Worker:
        """Forks a worker (the lock is held); restarts the fork server where it has died."""
        for attempt in range(2):
            if self._server is None:
                self._server = _ForkServer()
            try:
                pid, connection = self._server.fork()
            except (OSError, ValueError) as error:
                self._server.close()
                self._server = None
                if attempt:
                    raise PoolError(f"no worker process could be started: {error}") from error
                continue
            connection.setblocking(False)
            worker = _Worker(pid, connection)
            self._all.add(worker)
            return worker
        raise AssertionError("unreachable")

    def _discard(self, worker: _Worker) -> None:
        """Kills a worker (the lock is held)."""
        self._all.discard(worker)
        worker.socket.close()
        if self._server is not None:
            try:
                self._server.kill(worker.pid)
            except OSError:
                self._server.close()
                self._server = None

    def _lease(self, most: int, *, wait: bool) -> list[_Worker]:
        """Takes up to `most` free or new workers; with `wait` at least one."""
        with self._lock:
            self._waiting += 1
            try:
                while wait and not self._free and self._count >= self.workers and not self._closed:
                    self._free_changed.wait()
            finally:
                self._waiting -= 1
            if self._closed:
                raise PoolError("the pool is closed")
            taken: list[_Worker] = []
            while len(taken) < most:
                if self._free:
                    worker = self._free.pop()
                    if _ended(worker.socket):  # killed from outside while it had nothing to do
                        self._discard(worker)
                        self._count -= 1
                        continue
                    taken.append(worker)
                elif self._count < self.workers:
                    self._count += 1
                    try:
                        taken.append(self._start())
                    except BaseException:
                        self._count -= 1
                        self._free.extend(taken)
                        self._free_changed.notify_all()
                        raise
                else:
                    break
            return taken

    def _release(self, worker: _Worker) -> None:
        with self._lock:
            if self._closed:
                self._discard(worker)
                return
            self._free.append(worker)
            self._free_changed.notify()

    def _lose(self, worker: _Worker) -> None:
        """Kills a leased worker; its place becomes free for a new one."""
        with self._lock:
            self._discard(worker)
            self._count -= 1
            self._free_changed.notify()

    def pids(self) -> list[int]:
        """The process ids of the live workers."""
        with self._lock:
            return [worker.pid for worker in self._all]

    def close(self) -> None:
        """Ends all workers; running calls fail with PoolError."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                with contextlib.suppress(OSError):
                    worker.socket.shutdown(socket.SHUT_RDWR)
            self._free.clear()
            if self._server is not None:
                self._server.close()
                self._server = None
            self._free_changed.notify_all()

    def forget(self) -> None:
        """In a forked child: closes the inherited sockets without touching the parent's workers."""
        for worker in list(self._all):
            worker.socket.close()
        if self._server is not None:
            self._server.socket.close()
        self._all, self._free, self._server = set(), [], None

    # -- work ----------------------------------------------------------------------------------------------------------

    def run(self, requests: Sequence[tuple[str, str, str]], timeout_s: float) -> list[Verdict]:
        """Answers requests `(operation, gold, answer)` with operation "compare" or "readable".

        Args:
            requests: what to compare.
            timeout_s: wall seconds that each request may take once its worker turns to it.

        Returns:
            A verdict for each, in order.

        Raises:
            PoolError: workers can't be started.
        """
        verdicts = [Verdict.UNPARSEABLE] * len(requests)
        tasks = deque(
            _Task(index, json.dumps(request).encode() + b"\n")
            for index, request in enumerate(requests)
            if len(request[1]) + len(request[2]) <= MAX_REQUEST
        )
        if tasks:
            _Run(self, tasks, verdicts, timeout_s).finish()
        return verdicts


class _Run:
    """One call of `Pool.run`: its tasks, the workers it has leased and the loop that feeds them."""

    def __init__(self, pool: Pool, tasks: deque[_Task], verdicts: list[Verdict], timeout_s: float) -> None:
        self.pool, self.tasks, self.verdicts, self.timeout_s = pool, tasks, verdicts, timeout_s
        self.left = len(tasks)
        self.selector = selectors.DefaultSelector()
        self.leased: set[_Worker] = set()

    def finish(self) -> None:
        """Runs until every task has its verdict."""
        try:
            while self.left:
                self._staff()
                self._poll()
        finally:
            for worker in list(self.leased):
                self._drop(worker, keep=not worker.flying)
            self.selector.close()

    def _staff(self) -> None:
        """Leases workers while there is work that nobody does, and gives it to them."""
        wanted = min(self.pool.workers - len(self.leased), (len(self.tasks) + WINDOW - 1) // WINDOW)
        if wanted > 0 and (not self.leased or self.pool._waiting == 0):
            for worker in self.pool._lease(wanted, wait=not self.leased):
                self.leased.add(worker)
                self.selector.register(worker.socket, selectors.EVENT_READ, worker)
        for worker in list(self.leased):
            self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        """Tops up a worker's tasks; gives it back where there is nothing for it or another thread waits."""
        share = max(1, min(WINDOW, len(self.tasks) // max(1, len(self.leased))))
        if not (self.pool._waiting and worker.flying):
            while self.tasks and len(worker.flying) < share:
                task = self.tasks.popleft()
                if not worker.flying:
                    worker.since = time.monotonic() - task.spent
                worker.flying.append(task)
                if not self._send(worker, task.payload):
                    self._crashed(worker)
                    return
        if not worker.flying:
            self._drop(worker, keep=True)

    @staticmethod
    def _send(worker: _Worker, payload: bytes) -> bool:
        """Sends one request; False where the worker is gone. A full socket means it is stuck: it is waited for."""
        worker.socket.settimeout(5.0)
        try:
            worker.socket.sendall(payload)
            return True
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                worker.socket.setblocking(False)

    def _poll(self) -> None:
        """Waits for verdicts up to the nearest deadline; kills whoever is past it."""
        if not self.leased:
            return
        now = time.monotonic()
        nearest = min(worker.since for worker in self.leased) + self.timeout_s
        for key, _ in self.selector.select(max(0.0, min(nearest - now, 1.0))):
            self._receive(key.data)
        now = time.monotonic()
        for worker in list(self.leased):
            if worker.flying and now - worker.since >= self.timeout_s:
                self._receive(worker)
                if worker in self.leased and worker.flying and time.monotonic() - worker.since >= self.timeout_s:
                    self._settle(worker.flying.popleft(), Verdict.TIMEOUT)
                    self._requeue(worker)

    def _receive(self, worker: _Worker) -> None:
        try:
            data = worker.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._crashed(worker)
            return
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            self._settle(worker.flying.popleft(), Verdict(line.decode("ascii")))
            worker.since = time.monotonic()
        if not worker.flying or len(worker.flying) <= WINDOW // 2:
            self._feed(worker)

    def _settle(self, task: _Task, verdict: Verdict) -> None:
        self.verdicts[task.index] = verdict
        self.left -= 1

    def _crashed(self, worker: _Worker) -> None:
        """A worker died: its first task gets one more try in what is left of its time, the others are not to blame."""
        if worker.flying:
            first = worker.flying[0]
            first.tries += 1
            first.spent = time.monotonic() - worker.since
            if first.tries > 1 or first.spent >= self.timeout_s:
                self._settle(worker.flying.popleft(), Verdict.TIMEOUT)
        self._requeue(worker)

    def _requeue(self, worker: _Worker) -> None:
        self.tasks.extendleft(reversed(worker.flying))
        worker.flying.clear()
        self._drop(worker, keep=False)

    def _drop(self, worker: _Worker, *, keep: bool) -> None:
        self.leased.discard(worker)
        self.selector.unregister(worker.socket)
        if keep:
            self.pool._release(worker)
        else:
            self.pool._lose(worker)


_pool: Pool | None = None
_pool_lock = threading.Lock()


def shared_pool(workers: int | None = None) -> Pool:
    """This process's pool, made at the first call; asking for another number of workers replaces it."""
    global _pool
    with _pool_lock:
        if _pool is None or (workers is not None and workers > _pool.workers):
            replaced, _pool = _pool, Pool(workers)
            if replaced is not None:
                replaced.close()
        return _pool


def shutdown() -> None:
    """Ends this process's pool (it is made anew when next needed)."""
    global _pool
    with _pool_lock:
        if _pool is not None:
            _pool.close()
            _pool = None


def _after_fork() -> None:
    global _pool, _pool_lock
    _pool_lock = threading.Lock()
    if _pool is not None:
        _pool.forget()
        _pool = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(shutdown)
