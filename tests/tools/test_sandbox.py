"""The sandbox: what a program may do and gets back, how it ends, what the host can rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmreason.tools import _sandbox_cells as cells
from mmreason.tools.sandbox import IsolationError, Job, Limits, Run, Sandbox, shared_sandbox, shutdown
from mmreason.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=cells.TIERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    reason = cells.probe(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(Limits(wall_s=20, cpu_s=20), workers=2, isolation=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def best() -> Iterator[Sandbox]:
    with Sandbox(Limits(wall_s=20, cpu_s=20), workers=2) as made:
        yield made


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> set[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(
                    int(entry.name)
                )
            except OSError:
                continue
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


# -- what a program gets and gives -------------------------------------------------------------------------------------


def test_output_and_input(sandbox: Sandbox) -> None:
    run = sandbox.run("import sys\nprint(input(), sys.stdin.read())\nprint('é', file=sys.stderr)", stdin="a\nb\nc")
    assert (run.status, run.stdout, run.stderr, run.exit_code, run.signal) == ("ok", "a b\nc\n", "é\n", 0, None)
    assert 0 < run.cpu_s < 5 and 0 < run.seconds < 5


def test_an_exception_has_the_programs_own_traceback(sandbox: Sandbox) -> None:
    run = sandbox.run("def f(x):\n    return 1 / x\nf(0)\n")
    assert run.status == "error" and run.error == "ZeroDivisionError: division by zero" and run.exit_code == 1
    lines = run.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and '"<program>", line 3' in lines[1]
    assert "    return 1 / x" in lines and "mmreason" not in run.stderr


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("raise SystemExit", "ok", 0),
        ("exit(0)", "ok", 0),
        ("import sys; sys.exit(3)", "error", 3),
        ("import sys; sys.exit('no')", "error", 1),
        ("import os; os._exit(7)", "error", 7),
        ("x = (", "compile_error", 1),
        ("\ud800", "compile_error", 1),
        ("import nothing_of_this_name", "error", 1),
        ("import mmreason", "error", 1),
        ("import numpy", "error", 1),
    ],
)
def test_ends(sandbox: Sandbox, code: str, status: str, exit_code: int) -> None:
    run = sandbox.run(code)
    assert (run.status, run.exit_code) == (status, exit_code), run


def test_a_program_is_main_and_may_use_files_and_the_standard_library(sandbox: Sandbox) -> None:
    run = sandbox.run(
        """
        import decimal, json, math, os, random, re, sqlite3, statistics, tempfile, dataclasses, asyncio, fractions
        if __name__ == "__main__":
            with open("numbers.json", "w") as file: json.dump([1, 2], file)
            with tempfile.TemporaryFile() as file: file.write(b"x")
            async def add(a, b): return a + b
            print(sum(json.load(open("numbers.json"))), asyncio.run(add(1, 2)), os.listdir("."))
        """.replace("\n        ", "\n")
    )
    assert (run.status, run.stdout) == ("ok", "3 3 ['numbers.json']\n"), run


def test_threads_and_exit_handlers_finish(best: Sandbox) -> None:
    if best.isolation == "landlock":
        pytest.skip("no threads with this isolation")
    run = best.run("""
import atexit, threading, time
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("main")
""")
    assert run.stdout == "main\nthread\nlast\n"


def test_checks_are_verdicts_of_their_own(sandbox: Sandbox) -> None:
    run = sandbox.run(
        "def f(x):\n    return x + 1",
        checks=[
            "assert f(1) == 2",
            "assert f(1) == 3, 'not three'",
            "f()",
            "x = = 1",
            "raise SystemExit",
            "y = f(1)",
            "assert y == 2",
        ],
        result="f(41)",
    )
    missing = "TypeError: f() missing 1 required positional argument: 'x'"
    assert run.checks[:3] == (None, "AssertionError: not three", missing)
    assert str(run.checks[3]).startswith("SyntaxError") and run.checks[4:] == ("SystemExit", None, None)
    assert (run.status, run.value) == ("ok", "42")


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(0)", "import os; os._exit(0)", "while True: pass", "x ="])
def test_no_check_passes_where_the_program_did_not_end_normally(best: Sandbox, code: str) -> None:
    run = best.run(code, checks=["pass", "pass"], result="1", limits=Limits(wall_s=0.5))
    assert None not in run.checks and len(run.checks) == 2 and run.value is None


def test_checks_before_an_exit_in_a_check_keep_their_verdicts(best: Sandbox) -> None:
    run = best.run("import os", checks=["pass", "os._exit(0)", "pass"])
    assert run.checks == (None, *["the program left before its checks were over"] * 2)


def test_a_result_that_fails_is_an_error(best: Sandbox) -> None:
    run = best.run("x = 1", result="x / 0")
    assert (run.status, run.error, run.value) == ("error", "ZeroDivisionError: division by zero", None)
    run = best.run("class A:\n    def __str__(self): raise ValueError('no')", result="A()")
    assert (run.status, run.error) == ("error", "ValueError: no")
    assert best.run("x = 'a' * 10**6", result="x").value == "a" * (64 << 10)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_time(sandbox: Sandbox) -> None:
    run = sandbox.run("print('so far', flush=True)\nwhile True: pass", limits=Limits(wall_s=0.5))
    assert (run.status, run.stdout, run.error) == ("timeout", "so far\n", "more than 0.5 s") and run.seconds < 2.5
    run = sandbox.run("while True: pass", limits=Limits(cpu_s=1, wall_s=20))
    assert run.status == "timeout" and run.error == "more than 1 s of processor time" and run.seconds < 10


def test_memory_output_and_files(sandbox: Sandbox) -> None:
    assert sandbox.run("x = bytearray(200 * 2**20)", limits=Limits(memory_mb=128)).status == "memory"
    assert sandbox.run("x = bytearray(200 * 2**20)", limits=Limits(memory_mb=512)).status == "ok"
    run = sandbox.run("print('x' * 5000)", limits=Limits(output_kb=4))
    assert (run.status, run.stdout) == ("output", "x" * 4096)
    write = "with open('file', 'wb') as file:\n    for _ in range(3): file.write(bytes(2**20))"
    assert sandbox.run(write, limits=Limits(scratch_mb=4)).status == "ok"
    run = sandbox.run(write, limits=Limits(scratch_mb=2))
    assert run.status in ("error", "killed") and "ok" not in run.error
    run = sandbox.run("files = [open('f', 'w') for _ in range(100)]", limits=Limits(open_files=32))
    assert run.error.startswith("OSError: [Errno 24]")


def test_processes_where_they_can_be_held(sandbox: Sandbox) -> None:
    fork = (
        "import os\npid = os.fork()\nif pid == 0:\n    print('child', flush=True)\n    os._exit(0)\nos.waitpid(pid, 0)"
    )
    assert sandbox.run(fork).error.startswith(("PermissionError", "BlockingIOError"))
    sandbox.warm()
    if sandbox._free[0].forks:
        assert sandbox.run(fork, limits=Limits(processes=2)).stdout == "child\n"
    else:
        with pytest.raises(ConfigError, match="set processes=1"):
            sandbox.run(fork, limits=Limits(processes=2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall_s", 0),
        ("memory_mb", 1),
        ("processes", 0),
        ("output_kb", 0),
        ("cpu_s", float("nan")),
        ("wall_s", float("inf")),
        ("memory_mb", 512.5),
        ("threads", True),
    ],
)
def test_limits_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        Limits(**{name: value})  # type: ignore[arg-type]


# -- what the host can rely on -----------------------------------------------------------------------------------------


def test_many_at_once_in_order(sandbox: Sandbox) -> None:
    jobs = [Job(f"print({number})", limits=Limits(wall_s=30)) for number in range(60)]
    assert [run.stdout for run in sandbox.run_many(jobs)] == [f"{number}\n" for number in range(60)]


def test_many_threads_share_one_sandbox(best: Sandbox) -> None:
    found: dict[int, Run] = {}

    def work(number: int) -> None:
        found[number] = best.run(f"print({number} ** 2)")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: run.stdout for number, run in found.items()} == {n: f"{n * n}\n" for n in range(12)}


def test_long_inputs_go_both_ways(best: Sandbox) -> None:
    text = "x" * 3_000_000
    run = best.run(f"import sys\ntext = {text!r}\nprint(len(text), len(sys.stdin.read()))", stdin=text)
    assert run.stdout == "3000000 3000000\n"
    assert best.run("print('not read')", stdin=text).stdout == "not read\n"


def test_a_cell_that_dies_is_replaced() -> None:
    with Sandbox(workers=1) as sandbox:
        assert sandbox.run("print(1)").stdout == "1\n"
        process = sandbox._free[0].process
        process.kill()
        process.wait()
        assert sandbox.run("print(2)").stdout == "2\n"
        assert sandbox._free[0].process.pid != process.pid


def test_a_cell_that_dies_with_its_program_runs_it_once_more_then_gives_up() -> None:
    with Sandbox(Limits(wall_s=20), workers=1) as sandbox:
        sandbox.warm()
        found: list[Run] = []
        thread = threading.Thread(
            target=lambda: found.append(sandbox.run("import time; time.sleep(15)", checks=["pass"]))
        )
        thread.start()
        for _ in range(2):
            deadline = time.monotonic() + 10
            before = children(os.getpid())
            while time.monotonic() < deadline and not (
                targets := [pid for pid in before if b"_cell.main" in cmdline(pid)]
            ):
                time.sleep(0.05)
                before = children(os.getpid())
            time.sleep(0.3)
            for pid in targets:
                with contextlib.suppress(ProcessLookupError):  # the one inside ends with the one outside
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
        thread.join(10)
        assert found and found[0].status == "killed" and found[0].checks[0] is not None
        assert sandbox.run("print(3)").stdout == "3\n"


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_cell_knows_nothing_of_the_hosts_environment(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-host")
    with Sandbox(workers=1, isolation=sandbox.isolation) as fresh:
        assert "sk-of-the-host" not in fresh.run("import os; print(dict(os.environ))").stdout
        process = fresh._free[0].process
        read = 0
        for pid in {process.pid, *children(process.pid)}:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that cleans up may just have ended
                assert b"sk-of-the-host" not in Path(f"/proc/{pid}/environ").read_bytes()
                read += 1
        assert read


def test_nothing_is_left_of_a_closed_sandbox(sandbox: Sandbox) -> None:
    fresh = Sandbox(workers=2, isolation=sandbox.isolation)
    fresh.warm()
    pids = {cell.process.pid for cell in fresh._free}
    pids |= {child for pid in pids for child in children(pid)}
    fresh.close()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) >= 2 and not any(alive(pid) for pid in pids)
    with pytest.raises(ConfigError, match="closed"):
        fresh.run("1")


def test_a_host_that_is_killed_leaves_nothing_behind(sandbox: Sandbox) -> None:
    script = f"""
        from mmreason.tools.sandbox import Limits, Sandbox
        import threading, time
        sandbox = Sandbox(Limits(wall_s=100, cpu_s=100), workers=1, isolation={sandbox.isolation!r})
        sandbox.warm()
        threading.Thread(target=sandbox.run, args=("while True: pass",)).start()
        time.sleep(0.5)
        print("running", flush=True)
        time.sleep(100)
        """
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None and host.stdout.readline() == "running\n"
    pids = children(host.pid)
    assert len(pids) >= 2
    host.kill()
    host.wait()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def test_a_forked_child_has_a_sandbox_of_its_own() -> None:
    shared = shared_sandbox()
    assert shared.run("print(1)").stdout == "1\n" and shared_sandbox() is shared
    pid = os.fork()
    if pid == 0:
        fine = shared_sandbox() is not shared and shared_sandbox().run("print(2)").stdout == "2\n"
        shutdown()
        os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert shared.run("print(3)").stdout == "3\n"


def test_preloaded_modules_are_there_at_once() -> None:
    with Sandbox(Limits(memory_mb=2048, wall_s=30, cpu_s=30), workers=1, preload=["sympy", "numpy"]) as sandbox:
        sandbox.warm()
        run = sandbox.run("import sympy, numpy\nprint(sympy.factor('x**2 - 1'), numpy.arange(3).sum())")
        assert run.stdout == "(x - 1)*(x + 1) 3\n", run
        assert run.seconds < 2
        assert sandbox.run("import pandas").status == "ok", "packages of this environment can be imported too"
    with pytest.raises(IsolationError, match="no_such_module"):
        Sandbox(preload=["no_such_module"]).run("1")


def test_the_order_of_a_set_is_the_same_in_every_cell() -> None:
    code = "print(set('some words in an order of their own'.split()))"
    outputs = set()
    for _ in range(3):
        with Sandbox(workers=1) as sandbox:
            outputs.add(sandbox.run(code).stdout)
    assert len(outputs) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_no_isolation_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "probe", lambda tier: f"there is no {tier}")
    with pytest.raises(IsolationError) as caught:
        Sandbox()
    words = str(caught.value)
    assert "never run openly" in words and "max_user_namespaces" in words and "Landlock" in words
    assert all(f"{tier}: there is no {tier}" in words for tier in cells.TIERS)


def test_the_strongest_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "probe", lambda tier: None if tier != "namespaces" else "not allowed")
    assert Sandbox().isolation == "bubblewrap"


def test_names_and_numbers_that_are_wrong() -> None:
    with pytest.raises(IsolationError, match="'docker' is not one of auto, namespaces"):
        Sandbox(isolation="docker")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one worker"):
        Sandbox(workers=0)
