"""A process that has imported the training stack once, and forks a process for each command that tests run.

    python tests/fork_server.py ADDRESS LIFELINE

tests/processes.py starts it. ADDRESS is the socket to listen at; when the pipe LIFELINE is closed, the server ends.

Importing takes most of the seconds of a run of six small steps. A forked process does all else as one that Python
started: the script is read and run as `__main__` with its own arguments, environment, folder and files, in a session of
its own; in the end threads are joined, exit handlers called and streams flushed. What it has more are the modules that
were imported before; what it leaves out is to take the interpreter's objects apart, which takes seconds.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fork_client import NUMBER

PRELOADED = (
    "torch", "transformers", "datasets", "accelerate", "peft", "deepspeed", "transformers.models.qwen2.modeling_qwen2",
    "mmreason.trainers.policy", "mmreason.trainers.sft", "mmreason.rollout.vllm", "mmreason.rollout.evaluate",
)  # fmt: skip
MAX_REQUEST = 1 << 20


class Server:
    """Forks for what a connection asks, tells it the process's number and exit code, and kills it when it goes."""

    def __init__(self, address: str, lifeline: int) -> None:
        self.lifeline = lifeline
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(address)
        self.listener.listen(64)
        self.processes: dict[int, socket.socket] = {}
        self.woken, self.wake = os.pipe()
        for end in (self.woken, self.wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # else the wake-up pipe would hear nothing
        signal.set_wakeup_fd(self.wake)
        self.selector = selectors.DefaultSelector()
        for waited_for in (self.listener, self.lifeline, self.woken):
            self.selector.register(waited_for, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any]:
        """Returns only in a forked process, with its request."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == self.lifeline:
                    raise SystemExit(0)  # the tests have ended
                if key.fileobj == self.woken:
                    os.read(self.woken, 4096)
                    self.report()
                elif key.fileobj is self.listener:
                    self.selector.register(self.listener.accept()[0], selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                    request = self.hear(key.fileobj)
                    if request is not None:
                        return request

    def hear(self, connection: socket.socket) -> dict[str, Any] | None:
        """Fork for a request; a connection that ends, ends its process. Returns the request in the forked process."""
        message, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, 2)
        if not message:
            for pid, asked in list(self.processes.items()):
                if asked is connection:
                    os.kill(pid, signal.SIGKILL)  # it is waited for in `report`
            self.selector.unregister(connection)
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self.leave()
            for number, descriptor in enumerate(files, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return dict(json.loads(message))
        for descriptor in files:
            os.close(descriptor)
        self.processes[pid] = connection
        tell(connection, pid)
        return None

    def leave(self) -> None:
        """A forked process has none of the server's files and signals."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        os.close(self.wake)
        self.selector.close()

    def report(self) -> None:
        """Tell those who wait the exit codes of the processes that have ended."""
        while self.processes:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            tell(self.processes.pop(pid), os.waitstatus_to_exitcode(status))


def tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked may be dead, and its connection closed
        connection.send(NUMBER.pack(number))


def exit_after(request: dict[str, Any]) -> NoReturn:
    """Run the request and end this process with its exit code."""
    code = 0
    try:
        run(request)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == -signal.SIGINT:  # Python ends itself by the signal that interrupted it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def run(request: dict[str, Any]) -> None:
    """Run the request's words, `SCRIPT …` or `-m MODULE …`, as Python would."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    sys.modules["numpy"].random.seed()
    script, *arguments = request["words"]
    if script == "-m":
        module, *arguments = arguments
        sys.path[0] = request["cwd"]
        sys.argv = [module, *arguments]
        runpy._run_module_as_main(module)  # what `python -m` calls
        return
    sys.path[0] = str(Path(script).resolve().parent)
    sys.argv = [script, *arguments]
    # Not runpy.run_path, which takes the script's variables apart when it ends.
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins)
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)  # noqa: S102


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    # A forked process has the thread that forked it and no other; jemalloc, which Arrow brings, starts its own anew.
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    if threading.active_count() > 1 or len([name for name in names if name != "jemalloc_bg_thd"]) > 1:
        raise SystemExit(f"threads run after importing {PRELOADED}: {names}, {threading.enumerate()}")
    gc.collect()
    gc.freeze()  # a collection in a forked process leaves what was there before alone, and its pages shared
    exit_after(Server(sys.argv[1], int(sys.argv[2])).serve())
