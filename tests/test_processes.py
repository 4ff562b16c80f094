"""A forked process behaves as one that subprocess started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import processes
from tests.recipes.launch import ROOT, environment

pytestmark = pytest.mark.slow  # the server imports the training stack

SCRIPT = """
import atexit, json, os, signal, sys, threading, time
from pathlib import Path

atexit.register(lambda: print("exit handler"))
print(json.dumps([sys.argv[1:], __name__, os.getcwd(), sys.path[0], os.environ["HF_HUB_OFFLINE"], sys.stdin.read()]))
how = sys.argv[1]
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
if how == "text":
    raise SystemExit("said at the end")
if how == "code":
    raise SystemExit(7)
if how == "error":
    raise ValueError("not caught")
if how == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
if how == "interrupt":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("how", ["none", "text", "code", "error", "signal", "interrupt"])
def test_it_ends_as_a_new_python_does(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), how, "--flag", "a b"]
    found = processes.run(words, cwd=tmp_path, env=environment(), timeout=300)
    expected = subprocess.run(
        words, cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_it_is_forked_and_dies_of_a_signal(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, time; print('torch' in sys.modules, flush=True); time.sleep(600)")
    with tempfile.TemporaryFile("w+") as out:
        process = processes.start([sys.executable, str(script)], cwd=ROOT, env=environment(), out=out, err=out)
        assert isinstance(process, processes.Forked) and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert os.getsid(process.pid) == process.pid
        process.kill()
        assert process.wait(60) == -signal.SIGKILL == process.poll()
        out.seek(0)
        assert out.read() == "True\n"


def test_what_libraries_put_into_the_environment_makes_no_difference(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print('torch' in sys.modules, os.environ['VLLM_LOGGING_LEVEL'])")
    env = environment() | {"VLLM_LOGGING_LEVEL": "ERROR", "KMP_INIT_AT_FORK": "FALSE", "RAY_CLIENT_MODE": "0"}
    done = processes.run([sys.executable, str(script)], cwd=ROOT, env=env, timeout=300)
    assert done.stdout == "True ERROR\n"


def test_another_environment_gets_a_python_of_its_own(tmp_path: Path) -> None:
    """Libraries read variables such as HF_HOME while they are imported."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print('torch' in sys.modules, os.environ['HF_HOME'])")
    env = environment() | {"HF_HOME": str(tmp_path)}
    done = processes.run([sys.executable, str(script)], cwd=ROOT, env=env, timeout=300)
    assert done.stdout == f"False {tmp_path}\n"
