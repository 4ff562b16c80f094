"""The asking side of tests/fork_server.py: what it is sent, and what it sends back.

    python tests/fork_client.py SCRIPT [ARGUMENTS …]       # run SCRIPT by the server that $MMREASON_FORK_SERVER names

As a program it takes the place of a Python that a launcher starts: it passes on its arguments, environment, folder,
output and the signals that it gets, and ends as the forked process does. If it is killed, the server kills that one.

It imports next to nothing, since it is there to be quick.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ADDRESS = "MMREASON_FORK_SERVER"
"""The variable with the path of the server's socket."""
NUMBER = struct.Struct("i")


def request(
    address: str, words: Sequence[str], cwd: str, env: Mapping[str, str], out: int, err: int
) -> tuple[socket.socket, int]:
    """Have a process forked.

    Args: words: after the interpreter. out, err: descriptors for what the process says.
    Returns: the connection, from which `ended` reads the exit code, and the process's number.
    Raises: ConnectionError: the server is gone.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    message = json.dumps({"words": list(words), "cwd": cwd, "env": dict(env)}).encode()
    socket.send_fds(connection, [message], [out, err])
    answer = connection.recv(NUMBER.size)
    if not answer:
        raise ConnectionError("the fork server closed the connection")
    return connection, NUMBER.unpack(answer)[0]


def ended(connection: socket.socket) -> int:
    """Wait for the process's end: its exit code, or minus the signal that ended it."""
    code = connection.recv(NUMBER.size)
    return NUMBER.unpack(code)[0] if code else -signal.SIGKILL


def main() -> None:
    connection, pid = request(os.environ[ADDRESS], sys.argv[1:], str(Path.cwd()), os.environ, 1, 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda received, _: os.kill(pid, received))
    code = ended(connection)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
