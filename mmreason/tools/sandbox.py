"""The only place where code that a model wrote runs: in rewards, data builders and evaluation.

    with Sandbox() as sandbox:
        run = sandbox.run("print(6 * 7)")           # Run(status="ok", stdout="42\\n", ...)

A program runs in a process of its own: without network, with an empty scratch folder as the only place it can write,
and with limits on processor time, wall time, memory, output, processes, threads and open files. The machine's files are
not there, but for the Python and shared libraries that it needs to run. `Sandbox.isolation` tells by what means:

- "namespaces": user, mount, process, network and IPC namespaces that this module makes; Landlock and a filter of system
  calls (seccomp) inside.
- "bubblewrap": the same walls around the process, made by `bwrap`, where a policy lets only that make namespaces.
- "landlock": where no namespaces can be made (most containers): Landlock and seccomp alone. No second process, no
  threads, no signals to others.

A machine that offers none of them gets an IsolationError: nothing is ever run without isolation. Linux only.

A few *cells* are kept warm, each an enclosed interpreter that forks a child for a program, so that a run costs
milliseconds and nothing of one run is left for the next. What this can't promise: a hole in the kernel is a hole here
too, and checks run in the process of the program that they check (see `Job.checks`).
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mmreason.tools._sandbox_cells import Cell, CellDiedError, WallsError, choose_isolation
from mmreason.types import ConfigError, MMReasonError

Status = Literal["ok", "error", "compile_error", "timeout", "memory", "output", "killed"]
"""How a program ended: normally with exit status 0; with an exception or another exit status; it was no Python; out of
time; out of memory; it wrote more than it may; a signal, such as after a crash in C code or a full scratch folder."""
Isolation = Literal["auto", "namespaces", "bubblewrap", "landlock"]


class IsolationError(MMReasonError):
    """This machine can't enclose a program. The message says what was tried, why it failed and how to get it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_s: seconds from the start to the end.
        cpu_s: processor seconds of each of its processes, rounded up to whole ones.
        memory_mb: address space of each of its processes, MiB; the interpreter takes some 30.
        output_kb: standard output and error together, KiB; more ends the run.
        processes: processes at a time, its own included; with 1 (the default) it can't fork.
        threads: threads at a time beside the first; 0 where the isolation is "landlock".
        open_files: open descriptors.
        scratch_mb: files in the scratch folder, MiB.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_mb: int = 512
    output_kb: int = 64
    processes: int = 1
    threads: int = 32
    open_files: int = 64
    scratch_mb: int = 32

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value, whole = getattr(self, name), not name.endswith("_s")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ConfigError(f"sandbox limit {name}={value!r} must be a {'whole ' if whole else ''}number")
            if value > 2**31:
                raise ConfigError(f"sandbox limit {name}={value} must be at most 2**31")
        least = {"memory_mb": 64, "open_files": 16, "threads": 0, "wall_s": 0.001, "cpu_s": 0.001}
        for name in self.__slots__:
            low = least.get(name, 1)
            if not getattr(self, name) >= low:
                raise ConfigError(f"sandbox limit {name}={getattr(self, name)} must be at least {low}")


@dataclass(frozen=True, slots=True)
class Job:
    """A program and what is wanted of it.

    Attributes:
        code: Python source, run as `__main__`.
        stdin: what it reads from standard input.
        checks: statements that run one after the other in the program's namespace once it has ended normally. Each is
            a verdict of its own; a program that exits before them, or in one, passes none that follow. They are sent
            only after the program has run. But they share a process with it: a program that searches its own
            interpreter for them, or returns objects that claim to equal everything, can pass wrongly. Compare printed
            output where that matters.
        result: an expression, such as "solution()", evaluated after the checks; `Run.value` is its `str()`.
        limits: None takes the sandbox's.
    """

    code: str
    stdin: str = ""
    checks: tuple[str, ...] = ()
    result: str = ""
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a program.

    Attributes:
        status: how it ended.
        stdout, stderr: what it wrote, up to `output_kb`; undecodable bytes are replaced.
        error: the exception in one line, "" without one.
        checks: for each check None where it passed, else why not.
        value: `str()` of the result wanted, up to `output_kb` kilocharacters; None where there is none.
        exit_code: its exit status; None after a signal.
        signal: the number of the signal that ended it; None otherwise.
        seconds: wall time, with starting and ending the process.
        cpu_s: processor time.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    error: str = ""
    checks: tuple[str | None, ...] = ()
    value: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    cpu_s: float = 0.0


class Sandbox:
    """Runs programs, each enclosed, several at a time. May be used from any number of threads.

    Args:
        limits: what each program may use, where its job doesn't say.
        workers: programs at a time; None takes the usable cores, shared among the local training processes.
        preload: modules that are imported once in each cell, such as "sympy" or "numpy": programs then don't wait for
            them. With any, programs can import every package of this environment; without, the standard library only.
        isolation: "auto" takes the strongest the machine offers; a name insists on that one.

    Raises:
        IsolationError: the machine doesn't offer it.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        workers: int | None = None,
        preload: Sequence[str] = (),
        isolation: Isolation = "auto",
    ) -> None:
        self.limits = limits or Limits()
        self.workers = default_workers() if workers is None else workers
        if self.workers < 1:
            raise ConfigError(f"a sandbox needs at least one worker, not {self.workers}")
        self.preload = tuple(preload)
        try:
            self.isolation = choose_isolation(isolation)
        except OSError as error:
            raise IsolationError(str(error)) from error
        self._free: list[Cell] = []
        self._busy: set[Cell] = set()
        self._count = 0
        """Cells that are free, busy or being started."""
        self._changed = threading.Condition()
        self._closed = False
        _sandboxes.add(self)

    def run(
        self,
        code: str,
        *,
        stdin: str = "",
        checks: Sequence[str] = (),
        result: str = "",
        limits: Limits | None = None,
    ) -> Run:
        """Run one program; see `Job` for the arguments. What the program does never raises here.

        Raises:
            IsolationError: no cell can be started, or it can't enclose the program.
            ConfigError: more than one process where the isolation can't hold them.
        """
        return self._run(Job(code, stdin, tuple(checks), result, limits))

    def run_many(self, jobs: Sequence[Job]) -> list[Run]:
        """Run programs on all workers at once; the runs are in the order of the jobs. Raises: as `run`."""
        if len(jobs) < 2 or self.workers == 1:
            return [self._run(job) for job in jobs]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox") as pool:
            return list(pool.map(self._run, jobs))

    def _run(self, job: Job) -> Run:
        limits = job.limits or self.limits
        for attempt in range(2):
            cell = self._lease()
            try:
                if limits.processes > 1 and not cell.forks:
                    raise ConfigError(
                        f"processes={limits.processes} needs a process namespace and a count of processes for each "
                        f"program, which the isolation {self.isolation!r} doesn't have here: set processes=1"
                    )
                run = Run(**cell.run(job, limits))
            except CellDiedError as error:
                self._lose(cell)
                if attempt:
                    return Run("killed", error=str(error), checks=(str(error),) * len(job.checks))
                continue
            except WallsError as error:  # a machine that is short of processes or memory may have them in a moment
                self._lose(cell)
                if attempt:
                    raise IsolationError(str(error)) from error
                continue
            except OSError as error:
                self._lose(cell)
                raise IsolationError(f"the sandbox could not talk to its process: {error}") from error
            except BaseException:
                self._release(cell) if cell.idle else self._lose(cell)
                raise
            self._release(cell)
            return run
        raise AssertionError("unreachable")

    def _lease(self) -> Cell:
        """A free cell, or a new one while there are fewer than `workers`, or the next that comes free."""
        with self._changed:
            while True:
                if self._closed:
                    raise ConfigError("this sandbox is closed")
                while self._free:
                    cell = self._free.pop()
                    if cell.process.poll() is None:
                        self._busy.add(cell)
                        return cell
                    cell.close()  # killed from outside while it had nothing to do
                    self._count -= 1
                if self._count < self.workers:
                    self._count += 1
                    break
                self._changed.wait()
        return self._start()

    def _start(self) -> Cell:
        """A new cell, which has been counted."""
        try:
            cell = Cell(self.isolation, self.preload)
        except BaseException as error:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            if isinstance(error, OSError):
                raise IsolationError(f"no sandbox process could be started: {error}") from error
            raise
        with self._changed:
            self._busy.add(cell)
        return cell

    def _release(self, cell: Cell) -> None:
        with self._changed:
            self._busy.discard(cell)
            if self._closed:
                cell.close()
                return
            self._free.append(cell)
            self._changed.notify()

    def _lose(self, cell: Cell) -> None:
        try:
            cell.close()
        finally:
            with self._changed:
                self._busy.discard(cell)
                self._count -= 1
                self._changed.notify()

    def warm(self) -> None:
        """Start all cells now, rather than at their first use. Raises: IsolationError."""
        while True:
            with self._changed:
                if self._closed:
                    raise ConfigError("this sandbox is closed")
                if self._count >= self.workers:
                    return
                self._count += 1
            self._release(self._start())

    def close(self) -> None:
        """End all cells; programs that run are killed with theirs when they come free."""
        with self._changed:
            self._closed = True
            while self._free:
                self._free.pop().close()
            self._changed.notify_all()

    def forget(self) -> None:
        """In a forked child: let go of the parent's cells without ending them."""
        self._changed = threading.Condition()
        for cell in (*self._free, *self._busy):
            cell.forget()
        self._free, self._busy, self._count = [], set(), 0

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_workers() -> int:
    """The usable cores divided by the training processes of this machine, 1 to 16."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))))


_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_shared: dict[tuple[str, ...], Sandbox] = {}
_shared_lock = threading.Lock()


def shared_sandbox(preload: Sequence[str] = ()) -> Sandbox:
    """This process's sandbox with these modules preloaded, made at the first call. Raises: IsolationError."""
    key = tuple(preload)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = Sandbox(preload=key)
        return _shared[key]


def shutdown() -> None:
    """End the shared sandboxes; they are made anew when next asked for."""
    with _shared_lock:
        for sandbox in _shared.values():
            sandbox.close()
        _shared.clear()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for sandbox in list(_sandboxes):  # parent and child would hear each other's programs end
        sandbox.forget()
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(shutdown)
