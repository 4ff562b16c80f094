"""What runs in the child of one program: the last walls, the program, its checks, its report."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import json
import linecache
import math
import os
import resource
import site
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from mmreason.tools._cell import landlock, seccomp, system

NAME = "<program>"
JOB, REPORT = 3, 4
"""Descriptors of a child beside standard input, output and error."""
_LIVE, _PRISTINE = builtins.__dict__, dict(builtins.__dict__)
_write, _dumps, _compile, _exec, _eval = os.write, json.dumps, compile, exec, eval


def restrict(limits: dict[str, Any], walls: dict[str, Any]) -> None:
    """Limits of resources, then no capabilities, then Landlock and the filter of system calls.

    Args:
        limits: the fields of `Limits`.
        walls: `readable`, `writable`: paths for Landlock; `landlock`: its version, 0 for none; `alone`: whether the
            child has a process namespace of its own; `overhead`: processes of the cell that count with the child's,
            None where the kernel doesn't count this user's.
    """
    bound = {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: limits["scratch_mb"] << 20,
        resource.RLIMIT_CORE: 1,  # 0 would still start a core_pattern program outside, as root, for every crash
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    if walls["overhead"] is not None:
        bound[resource.RLIMIT_NPROC] = walls["overhead"] + limits["processes"] + limits["threads"]
    # The kernel never delivers SIGXCPU to the first process of a namespace; the hard limit's SIGKILL it does.
    bound[resource.RLIMIT_CPU] = max(1, math.ceil(limits["cpu_s"]))
    for kind, value in bound.items():
        hard = resource.getrlimit(kind)[1]  # the host may have less itself
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
    system.drop_capabilities()
    system.no_new_privileges()
    if walls["landlock"]:
        landlock.restrict(walls["readable"], walls["writable"], walls["landlock"])
    rules = seccomp.rules(limits["processes"], None if walls["alone"] else os.getpid())
    if walls["overhead"] is None:  # nothing counts threads, so there are none
        rules = [rule for rule in rules if rule.name != "clone"] + [seccomp.Rule("clone", errno.EAGAIN)]
    seccomp.install(seccomp.program(rules))


class _Wire:
    """The two pipes to the host: a job comes in, reports go out, JSON lines both."""

    def __init__(self) -> None:
        self.input = open(JOB, encoding="utf-8", closefd=False)  # noqa: SIM115  (the process's own, to its end)

    def receive(self) -> dict[str, Any]:
        line = self.input.readline()
        if not line:
            os._exit(0)
        value: dict[str, Any] = json.loads(line)
        return value

    @staticmethod
    def send(**fields: Any) -> None:
        data = _dumps(fields).encode() + b"\n"
        while data:
            data = data[_write(REPORT, data) :]


def run(path: list[str], scratch: str) -> NoReturn:
    """Receive a program, run it, run its checks, and leave. The walls are up.

    Args:
        path: `sys.path` of the program.
        scratch: its folder, the working directory.
    """
    wire = _Wire()
    wire.send(walls="up")
    job = wire.receive()
    module = _clean_interpreter(path, scratch)
    process = os.getpid()
    status = _run_program(str(job["code"]), module)
    if os.getpid() != process:  # a process that the program forked has come to the program's end
        _leave(status["exit"])
    _flush()
    wire.send(token=job["token"], **status)
    if job["more"] and status["status"] == "ok":
        more = wire.receive()  # sent only now, so that the program has never seen its checks
        _run_checks(wire, more, module)
    _leave(status["exit"])


def _clean_interpreter(path: list[str], scratch: str) -> types.ModuleType:
    """An interpreter as a script finds it: `__main__` empty, nothing of the project importable."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mmreason"]:
        del sys.modules[name]
    sys.path[:] = [scratch, *path]
    sys.argv[:] = ["program.py"]
    os.environ.clear()
    os.environ.update(HOME=scratch, TMPDIR=scratch, LANG="C.UTF-8", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    tempfile.tempdir = None  # the cell has found its own
    site.setquit()  # exit() and quit(), which programs use though they are meant for the prompt
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module


def _run_program(code: str, module: types.ModuleType) -> dict[str, Any]:
    """{"status", "error", "exit"} of running the code as `__main__`."""
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)  # for the lines in tracebacks
    try:
        compiled = compile(code, NAME, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        _print_error(error)
        return {"status": "compile_error", "error": describe(error), "exit": 1}
    try:
        exec(compiled, module.__dict__)  # noqa: S102  (the sandbox is where it may)
    except SystemExit as error:
        # As the interpreter does it: None is success, a number the status, anything else a message and status 1.
        if error.code is None or isinstance(error.code, int):
            return {"status": "exit", "error": "", "exit": int(error.code or 0) & 0xFF}
        print(error.code, file=sys.stderr)
        return {"status": "exit", "error": "", "exit": 1}
    except BaseException as error:
        _print_error(error)
        kind = "memory" if isinstance(error, MemoryError) else "error"
        return {"status": kind, "error": describe(error), "exit": 1}
    return {"status": "ok", "error": "", "exit": 0}


def _restore_builtins(module: types.ModuleType) -> None:
    """What the program did to the builtins doesn't decide its checks."""
    _LIVE.update(_PRISTINE)
    module.__dict__["__builtins__"] = builtins


def _run_checks(wire: _Wire, more: dict[str, Any], module: types.ModuleType) -> None:
    """Each check by itself in the program's namespace, then the expression whose value is wanted."""
    token = more["token"]
    for number, check in enumerate(more["checks"]):
        failure: str | None = None
        _restore_builtins(module)  # again: functions that the last check called may have changed them
        try:
            _exec(_compile(check, f"<check {number + 1}>", "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            failure = describe(error)
        wire.send(token=token, check=number, failure=failure)
    if more["result"]:
        _restore_builtins(module)
        try:
            value = _plain(_eval(_compile(more["result"], "<result>", "eval"), module.__dict__))
            wire.send(token=token, value=value[: more["most"]])
        except BaseException as error:
            _print_error(error)
            kind = "memory" if isinstance(error, MemoryError) else "error"
            wire.send(token=token, status=kind, error=describe(error))
    _flush()


def describe(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`, in at most 300 characters; also for errors that can't be printed."""
    name = _name(type(error))
    try:
        words = _plain(error)
    except BaseException:
        words = ""
    return f"{name}: {words}"[:300].rstrip(": ")


def _plain(value: object) -> str:
    """`str(value)`, and no class of strings with methods of its own."""
    return str.__str__(str(value))


# A metaclass can have a `__name__` of its own; this is type's.
_name: Callable[[type], str] = type.__dict__["__name__"].__get__


def _print_error(error: BaseException) -> None:
    """The traceback without the lines of this module."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
    except BaseException:
        print(describe(error), file=sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # closed or replaced by the program
            stream.flush()


def _leave(status: int) -> NoReturn:
    """Let threads and exit handlers finish as at the end of a script, then end."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:
        _print_error(error)
    _flush()
    os._exit(status)
