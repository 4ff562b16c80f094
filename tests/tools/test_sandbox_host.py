"""The sandbox and a host in trouble or under attack: what a program says of itself, forks, limits, leftovers."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmreason.tools import _sandbox_cells as cells
from mmreason.tools._cell import scratch, seccomp
from mmreason.tools._sandbox_reports import Reports, WallsError
from mmreason.tools.sandbox import IsolationError, Job, Limits, Run, Sandbox
from mmreason.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=cells.TIERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    reason = cells.probe(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(Limits(wall_s=20, cpu_s=20), workers=1, isolation=request.param) as made:
        yield made


def children(parent: int) -> set[int]:
    """The processes that a process has started and that haven't ended."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = entry.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state not in "ZX":
            found.add(int(entry.parent.name))
    return found


# -- what a process says of itself -------------------------------------------------------------------------------------


def reports(job: Job | None = None) -> Reports:
    made = Reports(job or Job("x = 1", checks=("pass", "pass"), result="x"), Limits(output_kb=1))
    answers = made.take(b'{"walls": "up"}\n')
    assert answers is not None and answers[0]["code"] == "x = 1"
    return made


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def test_reports_count_with_the_token_of_their_turn() -> None:
    made = reports()
    ran, later = made.tokens["ran"], made.tokens["checks"]
    assert (
        made.take(line(status="ok") + line(status="ok", token=later) + line(token=later, check=0, failure=None)) == []
    )
    answers = made.take(line(status="ok", error="", token=ran))
    assert answers is not None and answers[0]["token"] == later and answers[0]["checks"] == ("pass", "pass")
    made.take(line(token=ran, check=0, failure=None) + line(token=later, check=1, failure="no")[:-1])
    assert made.checks == ["not run", "not run"]
    made.take(b"\n" + line(token=later, value="1"))
    assert made.checks == ["not run", "no"] and made.value == "1"


@pytest.mark.parametrize("failure", [False, 0, [], {}, [[]], "", "\ud800", "x" * 5000])
def test_only_text_that_can_be_encoded_comes_out_of_reports(failure: object) -> None:
    made = reports()
    made.take(line(status="ok", token=made.tokens["ran"]))
    made.take(line(token=made.tokens["checks"], check=0, failure=failure))
    made.take(line(token=made.tokens["checks"], check=True, failure=None))
    made.take(line(token=made.tokens["checks"], value=failure))
    assert made.checks[1] == "not run"
    for found in (made.checks[0], made.value):
        assert isinstance(found, str) and len(found) <= 1024
        found.encode()


def test_reports_are_bounded() -> None:
    assert reports().take(b"\n" * 1000) is None
    assert reports().take(b"x" * 1_000_000) is None
    made = reports()
    assert made.take(b"[" * 50_000 + b"\n" + b'{"a":' * 9_000 + b"\n") == []
    many = Job("x = 1", checks=("pass",) * 1000, result="x")
    made = reports(many)
    made.take(line(status="ok", token=made.tokens["ran"]))
    token = made.tokens["checks"]
    for number in range(1000):
        assert made.take(line(token=token, check=number, failure="\U0001f600" * 300)) == []
    assert made.take(line(token=token, value="\U0001f600" * 1024)) == []
    assert made.value == "\U0001f600" * 1024


def test_a_program_that_could_not_be_enclosed_is_not_sent() -> None:
    with pytest.raises(WallsError, match="no walls"):
        Reports(Job("x"), Limits()).take(line(walls="no walls"))


def test_a_long_value_after_long_output(sandbox: Sandbox) -> None:
    run = sandbox.run("print('x' * 65_000)\nx = '\U0001f600' * 100_000", result="x")
    assert run.status == "ok" and run.value == "\U0001f600" * 65_536


def test_what_comes_back_can_be_written_down(sandbox: Sandbox) -> None:
    run = sandbox.run("x = '\\ud800'\ndef f(): raise ValueError(x)", checks=["f()"], result="x")
    assert run.value == "?" and run.checks == ("ValueError: ?",)


def test_a_signal_without_a_name() -> None:
    if cells.probe("landlock") is not None:
        pytest.skip("no Landlock")
    with Sandbox(workers=1, isolation="landlock") as sandbox:  # no first process of a namespace, which would ignore it
        run = sandbox.run("import os\nos.kill(os.getpid(), 40)")
    assert (run.status, run.signal, run.error) == ("killed", 40, "signal 40")


def test_a_forked_process_that_comes_to_the_end_reports_nothing(sandbox: Sandbox) -> None:
    sandbox.warm()
    if not sandbox._free[0].forks:
        pytest.skip("no program may fork with this isolation")
    code = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: 1 / 0"
    run = sandbox.run(code, checks=["assert pid"], limits=Limits(processes=2))
    assert (run.status, run.checks, run.error) == ("ok", (None,), "") and "ZeroDivisionError" in run.stderr


def test_the_null_device_can_be_written_to(sandbox: Sandbox) -> None:
    assert sandbox.run("import os\nprint(open(os.devnull, 'w').write('away'))").stdout == "4\n"


# -- a scratch folder without a size -----------------------------------------------------------------------------------


def test_nothing_is_left_on_the_machine_of_a_hostile_scratch_folder() -> None:
    if cells.probe("landlock") is not None:
        pytest.skip("no Landlock")
    deep = "for _ in range(1500):\n    os.mkdir('d' * 100, 0o300)\n    os.chdir('d' * 100)"
    with Sandbox(workers=1, isolation="landlock") as sandbox:
        run = sandbox.run(f"import os\nprint(os.getcwd(), flush=True)\n{deep}")
        assert run.status in ("ok", "killed")
        assert sandbox.run("print(open('file', 'w').write('x'))").stdout == "1\n"
    folder = Path(run.stdout.strip())
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert folder.name.startswith("mmreason-") and not folder.exists()


def test_what_can_hide_in_a_folder_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert not scratch.overfull(str(tmp_path), process.pid, 200_000)
        assert scratch.overfull(str(tmp_path), process.pid, 50_000)
        with (tmp_path / "ahead").open("wb") as file:
            keep_size = 1
            if ctypes.CDLL(None).fallocate(file.fileno(), keep_size, ctypes.c_long(0), ctypes.c_long(2**20)) == 0:
                assert scratch.overfull(str(tmp_path), process.pid, 500_000), "space beyond the end of a file"
    finally:
        process.kill()
        process.wait()
    assert scratch.overfull(str(tmp_path), os.getpid(), 0), "what a process has written"


# -- the filter, where Landlock is too old to help ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("openat", (0, 0, os.O_TRUNC), errno.EPERM),
        ("openat", (0, 0, os.O_TRUNC | 3), errno.EPERM),
        ("openat", (0, 0, os.O_TRUNC | os.O_CLOEXEC), errno.EPERM),
        ("openat", (0, 0, os.O_TRUNC | os.O_WRONLY | os.O_CREAT), 0),
        ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), 0),
        ("open", (0, os.O_TRUNC), errno.EPERM),
        ("openat2", (), errno.ENOSYS),
        ("fallocate", (), errno.EOPNOTSUPP),
        ("fcntl", (0, 8), errno.EPERM),
        ("fcntl", (0, 10), errno.EPERM),
        ("fcntl", (0, 15), errno.EPERM),
        ("fcntl", (0, 1030), 0),
        ("ioctl", (0, 0x8901), errno.ENOTTY),
        ("ioctl", (0, 0x5401), 0),
        ("prctl", (4,), errno.EPERM),
        ("prctl", (15,), 0),
        ("msgrcv", (), errno.EPERM),
    ],
)
def test_the_filter_of_a_program_that_shares_namespaces(name: str, arguments: tuple[int, ...], error: int) -> None:
    (rule,) = [rule for rule in seccomp.rules(1, 77) if rule.name == name]
    fits = all(arguments[place] & mask in values for place, mask, values in rule.tests)
    allowed = bool(rule.tests) and fits != rule.inverted
    assert (0 if allowed else rule.error) == error


# -- the host ----------------------------------------------------------------------------------------------------------


def test_a_sandbox_in_a_forked_child_has_cells_of_its_own(sandbox: Sandbox) -> None:
    found: list[Run] = []
    code = "import sys, time\ntime.sleep(0.5)\nprint(len(sys.stdin.read()))"
    thread = threading.Thread(target=lambda: found.append(sandbox.run(code, stdin="x" * 200_000)))
    thread.start()
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        fine = all(sandbox.run(f"print({number})").stdout == f"{number}\n" for number in range(5))
        sandbox.close()
        time.sleep(2)  # with the parent's pipes it would keep the program waiting for its input's end
        os._exit(0 if fine else 1)
    started = time.monotonic()
    thread.join()
    assert found[0].stdout == "200000\n" and time.monotonic() - started < 1.9
    assert sandbox.run("print('mine')").stdout == "mine\n"
    assert os.waitpid(child, 0)[1] == 0


def test_warming_may_happen_twice_at_once_and_fail() -> None:
    with Sandbox(workers=2) as sandbox:
        threads = [threading.Thread(target=sandbox.warm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads) and len(sandbox._free) == 2
    with pytest.raises(ConfigError, match="closed"):
        sandbox.warm()


def test_a_host_without_descriptors_gets_an_error_and_recovers() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Sandbox(workers=1) as sandbox:
        sandbox.warm()
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            with pytest.raises(OSError, match="Too many"):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            with pytest.raises(IsolationError, match="Too many open files"):
                sandbox.run("print(1)")
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert sandbox.run("print(2)").stdout == "2\n"


@pytest.mark.parametrize(
    "trouble",
    [
        "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))",
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))",
        "os.mkdir(folder := os.path.join(sys.argv[1], 'gone')); os.chdir(folder); os.rmdir(folder)",
        "os.environ['HOME'] = '/root/none'; os.environ['TMPDIR'] = '/none'",
    ],
)
def test_hosts_with_little(sandbox: Sandbox, trouble: str, tmp_path: Path) -> None:
    code = f"""
import os, resource, sys
sys.path[:0] = ["", {str(ROOT)!r}]
from mmreason.tools.sandbox import Sandbox
{trouble}
with Sandbox(workers=1, isolation={sandbox.isolation!r}) as sandbox:
    print(sandbox.run("print(6 * 7)").stdout)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.strip() == "42", done.stderr[-2000:]


def test_an_interpreter_that_does_not_know_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(OSError, match=r"sys\.executable is empty"):
        cells.Cell("namespaces", ())


def test_a_program_ends_with_a_cell_that_is_killed() -> None:
    if cells.probe("landlock") is not None:
        pytest.skip("no Landlock")
    with Sandbox(Limits(wall_s=30), workers=1, isolation="landlock") as sandbox:
        found: list[Run] = []
        thread = threading.Thread(target=lambda: found.append(sandbox.run("import time; time.sleep(20)")))
        thread.start()
        for _ in range(2):  # it is run once more
            deadline = time.monotonic() + 10
            running: set[int] = set()
            while not running and time.monotonic() < deadline:
                time.sleep(0.1)
                cell = next(iter(sandbox._busy), None)
                running = children(cell.process.pid) if cell is not None else set()
            (program,) = running
            folder = Path(f"/proc/{program}/cwd").readlink()
            assert cell is not None
            os.kill(cell.process.pid, signal.SIGKILL)
            while Path(f"/proc/{program}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not Path(f"/proc/{program}").exists()
            if folder.name.startswith("mmreason-"):
                shutil.rmtree(folder)  # nobody was left to do it
        thread.join(10)
        assert found[0].status == "killed"
