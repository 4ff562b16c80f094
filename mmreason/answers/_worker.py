"""The process side of the pool: a fork server that loads sympy once, and the workers that it forks.

Run as `python -P -m mmreason.answers._worker FD` by `pool.py`, where FD is one end of a Unix socket pair. The fork
server is a single-threaded process that imports nothing of the trainer (no torch), so that forking it is always safe,
and a replacement for a killed worker is ready in milliseconds. It reads one command a message:

- `F` with one file descriptor: fork a worker that serves that socket; answers with the worker's pid;
- `K pid`: kill that worker and reap it later (only children not yet reaped are killed: a pid is never mistaken).

When its socket closes (the trainer ended, however it ended) it kills all workers and exits. A worker reads lines of
JSON `[operation, gold, answer]` (ASCII, so that any string survives) and writes one line of verdict for each, in
order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space that a worker may add to what the fork server holds."""


def _limit() -> None:
    """Bounds a worker's memory and asks the kernel to end it with the fork server (where that can be asked)."""
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        used = 1 << 30
    with contextlib.suppress(ValueError, OSError):  # some systems refuse the limit: the deadline still holds
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _answer(request: list[Any]) -> str:
    from mmreason.answers import _symbolic

    operation, gold, answer = request
    try:
        if operation == "compare":
            return _symbolic.compare(gold, answer)
        return "correct" if _symbolic.readable(gold) else "bad_gold"
    except (MemoryError, RecursionError):
        return "unparseable"
    except Exception:  # sympy raises all sorts of errors on nonsense; an answer that can't be compared is no answer
        return "unparseable"


def serve(connection: socket.socket) -> None:
    """Answers requests until the other side closes."""
    with connection.makefile("rb") as requests:
        for line in requests:
            connection.sendall(_answer(json.loads(line)).encode() + b"\n")


def _fork(descriptor: int, control: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        control.close()
        _die_with_parent()
        _limit()
        with socket.socket(fileno=descriptor) as connection:
            serve(connection)
        code = 0
    except BaseException:
        code = 1
    finally:
        os._exit(code)


def _kill(pid: int, children: set[int], dying: set[int]) -> None:
    if pid in children:
        children.discard(pid)
        os.kill(pid, signal.SIGKILL)
        dying.add(pid)


def _reap(dying: set[int]) -> None:
    """Collects the killed workers that have ended; freeing much memory takes a while, and nobody waits for it."""
    for pid in list(dying):
        if os.waitpid(pid, os.WNOHANG)[0]:
            dying.discard(pid)


def main(descriptor: int) -> None:
    """The fork server's loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it closes the socket
    from mmreason.answers import _symbolic

    logging.disable(logging.CRITICAL)
    _symbolic.harden()
    _symbolic.warm_up()
    children: set[int] = set()
    dying: set[int] = set()
    control = socket.socket(fileno=descriptor)
    # Whatever was wrong at the start could be read from stderr; from here on nobody reads it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    control.sendall(b"ready\n")
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
            if not message:
                return
            _reap(dying)
            for line in message.decode("ascii").splitlines():
                if line == "F" and descriptors:
                    pid = _fork(descriptors[0], control)
                    os.close(descriptors[0])
                    children.add(pid)
                    control.sendall(f"{pid}\n".encode())
                elif line.startswith("K "):
                    _kill(int(line[2:]), children, dying)
                    control.sendall(b"0\n")
    finally:
        for pid in list(children):
            _kill(pid, children, dying)


if __name__ == "__main__":
    main(int(sys.argv[1]))
