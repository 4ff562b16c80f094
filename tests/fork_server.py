"""A process that has imported the training stack once, and forks a process for each command that tests run.

    python tests/fork_server.py FD          # tests/processes.py starts it; FD is its end of a socket

Importing takes most of the seconds of a run of six small steps. A forked process does all else as one that Python
started: the script is read and run as `__main__` with its own arguments, environment, folder and files, in a session of
its own; in the end threads are joined, exit handlers called and streams flushed. What it has more are the modules that
were imported before; what it leaves out is to take the interpreter's objects apart, which takes seconds.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    "torch", "transformers", "datasets", "accelerate", "peft", "deepspeed", "transformers.models.qwen2.modeling_qwen2",
    "mmreason.trainers.policy", "mmreason.trainers.sft", "mmreason.rollout.vllm", "mmreason.rollout.evaluate",
)  # fmt: skip
MAX_REQUEST = 1 << 20


def serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns only in a forked process, with its request."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # else the wake-up pipe would hear nothing
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}  # of each process the pipe that waits for its exit code
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if woken in ready:
            os.read(woken, 4096)
            report(statuses)
        if channel not in ready:
            continue
        message, files, _, _ = socket.recv_fds(channel, MAX_REQUEST, 3)
        if not message:
            raise SystemExit(0)  # the tests have ended
        out, err, status = files
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            selector.close()
            channel.close()
            for descriptor in (woken, wake, status, *statuses.values()):
                os.close(descriptor)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.close(out)
            os.close(err)
            return dict(json.loads(message))
        os.close(out)
        os.close(err)
        statuses[pid] = status
        channel.send(struct.pack("i", pid))


def report(statuses: dict[int, int]) -> None:
    """Write the exit codes of the processes that have ended, each into its pipe."""
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        pipe = statuses.pop(pid)
        os.write(pipe, struct.pack("i", os.waitstatus_to_exitcode(status)))
        os.close(pipe)


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
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    sys.path[0] = str(Path(script).resolve().parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    # A forked process has the thread that forked it and no other; jemalloc, which Arrow brings, starts its own anew.
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    if threading.active_count() > 1 or len([name for name in names if name != "jemalloc_bg_thd"]) > 1:
        raise SystemExit(f"threads run after importing {PRELOADED}: {names}, {threading.enumerate()}")
    gc.collect()
    gc.freeze()  # a collection in a forked process leaves what was there before alone, and its pages shared
    exit_after(serve(socket.socket(fileno=int(sys.argv[1]))))
