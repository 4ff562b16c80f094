"""The host's side of a cell: which isolation the machine offers, starting a cell, and one program's way through it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmreason.tools._sandbox_reports import Reports, WallsError

if TYPE_CHECKING:
    from mmreason.tools.sandbox import Job, Limits

Tier = Literal["namespaces", "bubblewrap", "landlock"]
TIERS: tuple[Tier, ...] = ("namespaces", "bubblewrap", "landlock")
"""From the strongest to the weakest."""

START_LIMIT_S = 120.0
"""Seconds that a cell may take to start; importing preloaded modules is the most of it."""
GRACE_S = 1.0
"""Seconds that a cell may take to report a child that was killed."""
_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, {root!r}); from mmreason.tools._cell.main import main; main({fd}, {options!r})"
_HOW = (
    "To get isolation: allow unprivileged user namespaces (sysctl user.max_user_namespaces; on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0, or install bubblewrap), or use Linux 5.13 or newer with Landlock "
    "enabled (lsm=landlock,… on the kernel's command line); Docker's default seccomp profile allows Landlock."
)


class CellDiedError(Exception):
    """The cell ended, or no longer answers, while it had a program."""


def choose_isolation(wanted: str) -> Tier:
    """The tier that is used: the one that is wanted, or with "auto" the first that works.

    Raises:
        OSError: it doesn't work, or none does; the message says why for each.
    """
    if wanted not in ("auto", *TIERS):
        raise OSError(f"isolation={wanted!r} is not one of auto, {', '.join(TIERS)}")
    reasons = []
    for tier in TIERS if wanted == "auto" else (wanted,):
        reason = probe(tier)  # type: ignore[arg-type]
        if reason is None:
            return tier  # type: ignore[return-value]
        reasons.append(f"{tier}: {reason}")
    raise OSError(f"code that a model wrote can't be run here ({'; '.join(reasons)}), and is never run openly. {_HOW}")


@functools.cache
def probe(tier: Tier) -> str | None:
    """None where a cell of this tier starts and runs a program, else why not. Asked once in a process."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if tier == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    from mmreason.tools.sandbox import Job, Limits

    try:
        cell = Cell(tier, ())
    except OSError as error:
        return str(error)
    try:
        outcome = cell.run(Job("print(6 * 7)"), Limits(wall_s=30, cpu_s=30))
    except (CellDiedError, OSError) as error:
        return str(error)
    finally:
        cell.close()
    return (
        None if outcome["stdout"] == "42\n" else f"a first program ended with {outcome['error'] or outcome['status']}"
    )


class Cell:
    """One warm interpreter behind its walls. Used by one thread at a time.

    Attributes:
        forks: whether a program can have more than one process: they are counted, and end with it.
        idle: whether it has no program.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, tier: Tier, preload: Sequence[str]) -> None:
        if not sys.executable:
            raise OSError("Python doesn't know its own program (sys.executable is empty)")
        self.idle = True
        self.conversation: _Conversation | None = None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        known = [path for path in (*site.getsitepackages(), *sys.path) if path.startswith("/")]  # "": a cwd may be gone
        found = [os.path.realpath(path) for path in known]  # inside there are no links
        packages = [path for path in found if path.endswith(("site-packages", "dist-packages")) and Path(path).is_dir()]
        shown = list(dict.fromkeys(packages)) if preload else []
        options = {
            "isolation": tier,
            "preload": list(preload),
            "packages": shown,
            "root": os.geteuid() == 0,
        }
        code = _START.format(root=_ROOT, fd=theirs.fileno(), options=options)
        command = [os.path.realpath(sys.executable), "-s", "-S", "-P", "-c", code]
        if tier == "bubblewrap":
            command = [*_bubblewrap(shown), *command]
        # Nothing of the host's environment, which holds keys, goes in. The hash seed makes sets' order repeatable.
        environment = {
            "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
            cwd="/",
        )
        theirs.close()
        self._meet()

    def _meet(self) -> None:
        """Wait for the cell's first word."""
        self.control.settimeout(START_LIMIT_S)
        try:
            answer = json.loads(self.control.recv(4096) or b"{}")
        except OSError as error:
            answer = {"refused": f"no answer within {START_LIMIT_S:.0f} s ({error})"}
        if not answer.get("ready"):
            self.control.close()
            self._end()
            said = self.process.stderr.read().decode(errors="replace").strip()[-500:] if self.process.stderr else ""
            raise OSError(answer.get("refused") or said or "it ended without a word")
        if self.process.stderr is not None:  # nothing is written to it from here on
            self.process.stderr.close()
        self.forks: bool = answer["forks"]

    def run(self, job: Job, limits: Limits) -> dict[str, Any]:
        """One program; returns the fields of a `Run`. Raises CellDiedError."""
        self.idle = False
        self.conversation = _Conversation(self.control, job, limits)
        outcome = self.conversation.hold()
        self.conversation, self.idle = None, True
        return outcome

    def close(self) -> None:
        """End the cell and what runs in it."""
        self.control.close()
        self._end()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def forget(self) -> None:
        """In a forked child: the cell is the parent's. With any of these open here it would outlive the parent."""
        self.control.close()
        if self.conversation is not None:
            self.conversation.forget()

    def _end(self) -> None:
        """The cell ends by itself when its socket closes; kill it where it doesn't."""
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # its session: bwrap, and the process inside
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _bubblewrap(packages: Sequence[str]) -> list[str]:
    """The command in front of the interpreter."""
    from mmreason.tools._cell.enclosure import DEVICES, INSIDE_ID, SCRATCH

    program = os.path.realpath(sys.executable)
    loader = [path for path in ("/lib", "/lib64") if Path(path).is_dir()]  # links to /usr/lib on most distributions
    shown = dict.fromkeys([*_folders(), *packages, _ROOT + "/mmreason", str(Path(program).parent), *loader])
    words = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    words += ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--cap-add", "ALL"]
    for path in shown:
        words += ["--ro-bind", path, path]
    for path in DEVICES:
        words += ["--dev-bind", path, path]
    return [*words, "--size", str(256 << 20), "--tmpfs", SCRATCH, "--"]


@functools.cache
def _folders() -> tuple[str, ...]:
    """The library folders of a bare interpreter: this process may have loaded much that a program doesn't need."""
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from mmreason.tools._cell import enclosure as e; "
    command = [sys.executable, "-s", "-S", "-P", "-c", code + "print(*e.library_folders([]), sep='\\n')"]
    return tuple(subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.splitlines())


class _Conversation:
    """One program: feeds it, reads what it writes up to the limit, hears how it ended, kills it when its time is up."""

    def __init__(self, control: socket.socket, job: Job, limits: Limits) -> None:
        self.control, self.job, self.limits = control, job, limits
        self.room = limits.output_kb << 10
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.reports = Reports(job, limits)
        self.ended: dict[str, Any] | None = None
        self.killed = ""
        self.selector = selectors.DefaultSelector()
        self.open: dict[str, int] = {}
        self.sending = {"stdin": memoryview(job.stdin.encode(errors="replace")), "job": memoryview(b"")}

    def hold(self) -> dict[str, Any]:
        """Raises CellDiedError."""
        started = time.monotonic()
        try:
            self._begin()
            self._listen(started + self.limits.wall_s)
        finally:
            for name in list(self.open):
                self._close(name)
            self.selector.close()
        return self._outcome(time.monotonic() - started)

    def forget(self) -> None:
        """In a forked child: close the pipes, and leave the selector alone, which is the parent's too."""
        for descriptor in self.open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.open = {}

    def _begin(self) -> None:
        """Five pipes; the cell gets the program's ends."""
        theirs: list[int] = []
        try:
            for name in ("stdin", "stdout", "stderr", "job", "report"):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                given, kept = (reader, writer) if name in self.sending else (writer, reader)
                theirs.append(given)
                self.open[name] = kept
                os.set_blocking(kept, False)
            self.control.settimeout(GRACE_S)
            try:
                socket.send_fds(self.control, [json.dumps(asdict(self.limits)).encode()], theirs)
            except OSError as error:
                raise CellDiedError(f"the sandbox process is gone: {error}") from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.control.setblocking(False)
        self.selector.register(self.control, selectors.EVENT_READ, "control")
        for name in ("stdout", "stderr", "report"):
            self.selector.register(self.open[name], selectors.EVENT_READ, name)
        self.selector.register(self.open["stdin"], selectors.EVENT_WRITE, "stdin")

    def _listen(self, deadline: float) -> None:
        """Until the cell has reported the end and all pipes are drained."""
        last = deadline
        while self.ended is None or {"stdout", "stderr", "report"} & self.open.keys():
            if self.ended is not None:  # whatever still holds a pipe open is dead: take what is there
                events = self.selector.select(0)
                if not events:
                    return
            else:
                events = self.selector.select(max(0.0, min(last - time.monotonic(), 1.0)))
            for key, _ in events:
                self._serve(key.data)
            if self.ended is None and time.monotonic() >= last:
                if self.killed and last > deadline:
                    raise CellDiedError("the sandbox process doesn't answer")
                last = self._kill("timeout")

    def _kill(self, why: str) -> float:
        """Have the child killed; returns until when the cell must have said that it is dead."""
        self.killed = self.killed or why
        with contextlib.suppress(OSError):
            self.control.send(b"kill")
        return time.monotonic() + GRACE_S

    def _serve(self, name: str) -> None:
        if name == "control":
            try:
                data = self.control.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise CellDiedError("the sandbox process died")
            self.ended = json.loads(data)
            if "failed" in self.ended:
                kind = CellDiedError if self.reports.enclosed else WallsError
                raise kind(f"the program could not be started: {self.ended['failed']}")
        elif name in self.sending:
            self._send(name)
        else:
            self._read(name)

    def _send(self, name: str) -> None:
        data = self.sending[name]
        try:
            sent = os.write(self.open[name], data[:65536]) if data else 0
        except BlockingIOError:
            return
        except OSError:  # the program closed it, or is gone
            self._close(name)
            return
        self.sending[name] = data[sent:]
        if not self.sending[name]:
            if name == "stdin":
                self._close(name)
            else:
                self.selector.unregister(self.open[name])

    def _read(self, name: str) -> None:
        try:
            data = os.read(self.open[name], 65536)
        except BlockingIOError:
            return
        if not data:
            self._close(name)
        elif name == "report":
            answers = self.reports.take(data)
            if answers is None:
                if not self.killed:
                    self._kill("output")
                return
            for answer in answers:
                self._give(answer)
        else:
            self.output[name] += data[: max(0, self.room)]
            self.room -= len(data)
            if self.room < 0 and not self.killed:
                self._kill("output")

    def _give(self, message: dict[str, Any]) -> None:
        """The next line for the child."""
        if "job" in self.open:
            self.sending["job"] = memoryview(bytes(self.sending["job"]) + json.dumps(message).encode() + b"\n")
            with contextlib.suppress(KeyError):  # still on its way with the last one
                self.selector.register(self.open["job"], selectors.EVENT_WRITE, "job")

    def _close(self, name: str) -> None:
        descriptor = self.open.pop(name)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(descriptor)
        os.close(descriptor)

    def _outcome(self, seconds: float) -> dict[str, Any]:
        ended = self.ended or {}
        if not self.reports.enclosed and not self.killed:
            raise CellDiedError(f"the program's process ended before it was enclosed ({ended})")
        status, error = self._status(ended)
        reason = {"ok": "the program left before its checks were over"}.get(status, error or status)
        checks = tuple(reason if verdict == "not run" else verdict for verdict in self.reports.checks)
        return {
            "status": status,
            "stdout": self.output["stdout"].decode(errors="replace"),
            "stderr": self.output["stderr"].decode(errors="replace"),
            "error": error,
            "checks": checks,
            "value": self.reports.value,
            "exit_code": ended.get("exit"),
            "signal": ended.get("signal"),
            "seconds": seconds,
            "cpu_s": ended.get("cpu_s", 0.0),
        }

    def _status(self, ended: dict[str, Any]) -> tuple[str, str]:
        """(status, error): first what was done to the program, then how it ended, then what it says of itself."""
        if self.killed == "timeout":
            return "timeout", f"more than {self.limits.wall_s:g} s"
        if self.killed == "output":
            return "output", f"more than {self.limits.output_kb} KiB of output"
        number = ended.get("signal")
        if number is not None:
            if number == signal.SIGKILL and ended.get("cpu_s", 0.0) >= self.limits.cpu_s * 0.9:
                return "timeout", f"more than {self.limits.cpu_s:g} s of processor time"
            if ended.get("scratch_full"):
                return "killed", f"more than {self.limits.scratch_mb} MiB in the scratch folder"
            names = {known.value: known.name for known in signal.Signals}  # most real-time signals have none
            return "killed", f"signal {names.get(number, number)}"
        told = self.reports.told or {}
        if told.get("status") in ("error", "memory", "compile_error"):
            return told["status"], told["error"]
        if ended.get("exit"):
            return "error", f"exit status {ended['exit']}"
        return "ok", ""
