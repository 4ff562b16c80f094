"""The process of a cell. It encloses itself, says so, and then forks a child for each program until its socket closes.

    host ──socket──▶ cell: limits + five descriptors ──fork──▶ child: standard streams, job, report
         ◀────────── how the child ended

The cell sees neither programs nor their output: those go through the pipes between host and child.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
from typing import Any, NoReturn

from mmreason.tools._cell import enclosure, landlock, program, scratch, system

KILL = b"kill"
WATCH_S = 0.05
"""How often a scratch folder without a size of its own is measured."""


def main(descriptor: int, options: dict[str, Any]) -> NoReturn:
    """Enclose, report "ready", serve.

    Args:
        descriptor: this side of the socket.
        options: `isolation`: "namespaces", "bubblewrap" or "landlock"; `packages`: site-packages folders; `preload`:
            modules to import before the first program.
    """
    control = socket.socket(fileno=descriptor)
    try:
        cell = _Cell(control, options)
    except Exception as error:  # whatever it is, the host is to hear of it
        control.send(json.dumps({"refused": f"{type(error).__name__}: {error}"[:2000]}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": True, "forks": cell.nested and cell.overhead is not None}).encode())
    cell.serve()


class _Cell:
    """The walls of this cell, and its loop."""

    def __init__(self, control: socket.socket, options: dict[str, Any]) -> None:
        self.control = control
        self.tier: str = options["isolation"]
        self.packages: list[str] = options["packages"]
        self.path = enclosure.python_path(self.packages)
        folders = enclosure.library_folders(self.packages)
        sys.path[:] = self.path
        for name in options["preload"]:
            importlib.import_module(name)
        self.abi = landlock.version()
        self.nested = True
        self.overhead: int | None = None
        if self.tier == "namespaces":
            enclosure.enter(folders)
            self._become_first()
            # The process that waits outside, the cell, and the helper that makes room for a child.
            self.overhead = 3
        elif self.tier == "bubblewrap":
            self.nested = _may_nest()
            if self.nested:
                enclosure.protect_devices()
            self.overhead = None if options["root"] else 4
            if not self.nested and self.abi == 0:
                raise OSError("no namespaces inside bubblewrap and no Landlock: programs could read each other's files")
        else:
            if self.abi == 0:
                raise OSError("the kernel has no Landlock")
            self.nested = False  # and no overhead: this user's other processes would count with the program's
        self.cleaners: list[int] = []
        system.adopt_orphans()
        self.readable = [path for path in (*folders, *enclosure.DEVICES) if os.path.exists(path)]
        gc.collect()
        gc.freeze()  # children share these pages

    @staticmethod
    def _become_first() -> None:
        """Go on as the first process of the new namespace; the one outside waits and ends with it."""
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        system.die_with_parent()
        if os.getppid() != 0:  # 0: the parent lies outside this namespace and is alive
            os._exit(1)

    def serve(self) -> NoReturn:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self.control, 65536, 8)
            except OSError:
                os._exit(0)
            if not message:
                os._exit(0)
            if message == KILL:  # for a child that had ended by itself
                continue
            outcome = self._run(json.loads(message), descriptors)
            self.control.send(json.dumps(outcome).encode())

    def _run(self, limits: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        folder = None  # of this program alone, where it can't have a mount of its own
        try:
            if self.nested:
                pid = self._fork_nested(limits, descriptors)
            else:
                folder = tempfile.mkdtemp(prefix="mmreason-", dir=_scratch_root(self.tier))
                pid = self._fork(limits, descriptors, folder)
            for descriptor in descriptors:
                os.close(descriptor)
            full = self._wait(pid, limits, folder)
            _, status, usage = os.wait4(pid, 0)
            if folder is not None:
                self._clean(folder)
        except OSError as error:
            return {"failed": str(error)}
        return {
            "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "scratch_full": full,
        }

    def _clean(self, folder: str) -> None:
        """Remove a scratch folder in a process of its own: the next program needn't wait for a million files."""
        for cleaner in list(self.cleaners):
            if os.waitpid(cleaner, os.WNOHANG)[0]:
                self.cleaners.remove(cleaner)
        cleaner = os.fork()
        if cleaner == 0:
            try:
                self.control.close()
                scratch.remove(folder)
            finally:
                os._exit(0)
        self.cleaners.append(cleaner)

    def _fork_nested(self, limits: dict[str, Any], descriptors: list[int]) -> int:
        """A child in namespaces of its own. A helper makes them and ends, which makes the child this process's."""
        reader, writer = os.pipe()
        helper = os.fork()
        if helper == 0:
            try:
                enclosure.seclude(limits["scratch_mb"])
                child = os.fork()
                if child == 0:
                    self._child(limits, descriptors, enclosure.SCRATCH)
                os.write(writer, str(child).encode())
                os._exit(0)
            except OSError as error:
                os.write(writer, f"! {error}".encode())
            finally:
                os._exit(1)
        os.close(writer)
        try:
            answer = os.read(reader, 1000).decode()
        finally:
            os.close(reader)
            os.waitpid(helper, 0)
        if not answer.isdigit():
            raise OSError(answer or "the helper process died")
        return int(answer)

    def _fork(self, limits: dict[str, Any], descriptors: list[int], folder: str) -> int:
        cell = os.getpid()
        child = os.fork()
        if child == 0:
            system.die_with_parent()  # no namespace would end it with a cell that is killed
            if os.getppid() != cell:
                os._exit(1)
            self._child(limits, descriptors, folder)
        return child

    def _child(self, limits: dict[str, Any], descriptors: list[int], folder: str) -> NoReturn:
        """Never returns: whatever goes wrong, the child ends here."""
        try:
            high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, len(descriptors)) for descriptor in descriptors]
            for place, descriptor in enumerate(high):
                os.dup2(descriptor, place)
            os.closerange(len(high), 1 << 16)
            os.setsid()
            os.chdir(folder)
            walls = {
                "readable": self.readable,
                "writable": [folder, os.devnull],
                "landlock": self.abi,
                "alone": self.nested,
                "overhead": self.overhead,
            }
            program.restrict(limits, walls)
            program.run(self.path, folder)
        except BaseException as error:
            message = json.dumps({"walls": f"{type(error).__name__}: {error}"[:500]})
            os.write(program.REPORT, message.encode() + b"\n")
        finally:
            os._exit(70)

    def _wait(self, pid: int, limits: dict[str, Any], folder: str | None) -> bool:
        """Until the child has ended, killed where the host says so; True where it filled its scratch folder."""
        full = False
        watched = os.pidfd_open(pid)
        sources: list[Any] = [self.control, watched]
        try:
            while True:
                ready, _, _ = select.select(sources, [], [], None if folder is None else WATCH_S)
                if self.control in ready:
                    message = self.control.recv(16)
                    _kill(pid)
                    if not message:  # the host is gone
                        os.waitpid(pid, 0)
                        if folder is not None:
                            scratch.remove(folder)
                        os._exit(0)
                if watched in ready:
                    return full
                if folder is not None and scratch.overfull(folder, pid, limits["scratch_mb"] << 20):
                    full = True
                    _kill(pid)
        finally:
            os.close(watched)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _may_nest() -> bool:
    """Whether bubblewrap left this process the right to make namespaces (AppArmor profiles take it away)."""
    child = os.fork()
    if child == 0:
        try:
            enclosure.seclude(1)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _scratch_root(tier: str) -> str | None:
    return enclosure.SCRATCH if tier == "bubblewrap" else None
