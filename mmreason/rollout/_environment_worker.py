"""The process side of isolated environments: a fork server, and a child process for each episode.

Run as `python -m mmreason.rollout._environment_worker FD` by `environment_host.py`, where FD is one end of a Unix
socket pair. It is single-threaded and holds no torch, so that a fork takes milliseconds and is always safe. The first
message is a pickle of (sys.path, factory); then each message carries one file descriptor: fork a child that serves that
socket, and answer with its pid. When its socket closes (the trainer ended, however it ended) the children have GRACE_S
to close their environments, then they are killed.

A child reads pickled requests (method, arguments), each after its length in 8 bytes, and writes answers as JSON: what
an environment's own code makes of a model's text is never unpickled by the trainer.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, is_dataclass
from typing import Any

from mmreason.types import MMReasonError

HEADER = struct.Struct("!Q")
CLOSE_LIMIT_S = 10
"""Seconds that an environment's close() may take."""
GRACE_S = 2.0
"""Seconds that the fork server waits for its children at the end."""


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises: ConnectionError where the other side has gone."""
    parts = bytearray()
    while len(parts) < size:
        chunk = connection.recv(min(size - len(parts), 1 << 20))
        if not chunk:
            raise ConnectionError("the other side has ended")
        parts += chunk
    return bytes(parts)


def read_message(connection: socket.socket) -> bytes:
    (size,) = HEADER.unpack(read_exactly(connection, HEADER.size))
    return read_exactly(connection, size)


def write_message(connection: socket.socket, body: bytes) -> None:
    connection.sendall(HEADER.pack(len(body)) + body)


def _serve(connection: socket.socket, factory: Any) -> None:
    """Answer the calls of one environment until the other side closes, and close it then."""
    environment = None
    while True:
        try:
            method, args, kwargs = pickle.loads(read_message(connection))
        except ConnectionError:
            break
        try:
            if environment is None:
                environment = factory.make()
            value = getattr(environment, method)(*args, **kwargs)
            answer = {"value": asdict(value) if is_dataclass(value) and not isinstance(value, type) else value}
            body = json.dumps(answer)
        except MMReasonError as error:
            body = json.dumps({"fatal": str(error)})
        except Exception as error:
            body = json.dumps({"error": f"{type(error).__name__}: {error}"})
        write_message(connection, body.encode())
    if environment is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CLOSE_LIMIT_S)  # ends this process: nobody waits for it any more
        with contextlib.suppress(Exception):
            environment.close()


def _fork(descriptor: int, control: socket.socket, factory: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        with contextlib.suppress(Exception):
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a hang outlives the server
        with socket.socket(fileno=descriptor) as connection, contextlib.suppress(ConnectionError):
            _serve(connection, factory)
    finally:
        os._exit(0)


def _await_children() -> None:
    """Give the children time to close their environments; those that are left are killed when this process ends."""
    end = time.monotonic() + GRACE_S
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < end:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.005)


def main(descriptor: int) -> None:
    """The fork server's loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it closes the socket
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    control = socket.socket(fileno=descriptor)
    try:
        path, pickled = pickle.loads(read_message(control))
        sys.path[:] = path
        factory = pickle.loads(pickled)
    except BaseException as error:
        write_message(control, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    write_message(control, b'{"value": null}')
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            _await_children()
            return
        pid = _fork(descriptors[0], control, factory)
        os.close(descriptors[0])
        write_message(control, str(pid).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
