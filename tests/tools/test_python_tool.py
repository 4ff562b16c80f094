"""The python tool in the real sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmreason.tools.formats import programs
from mmreason.tools.python import PythonTool
from mmreason.tools.sandbox import IsolationError, Limits, Sandbox
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolResult


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = Sandbox(limits=Limits(memory_mb=256, output_kb=8), workers=1)
    except IsolationError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def run(sandbox: Sandbox, code: str, *, echo: bool = True, timeout_s: float = 5.0) -> ToolResult:
    box = Toolbox([PythonTool(echo=echo, sandbox=sandbox)], timeout_s=timeout_s)
    return box.run(ToolCall("python", {"code": code}))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(3*4)", "12"),
        ("x = 3\nprint(x)\nx * 4", "3\n12"),
        ("'a'", "'a'"),
        ("None", "(no output: print what is to be seen)"),
        ("", "(no output: print what is to be seen)"),
        ("x = 1", "(no output: print what is to be seen)"),
        ("import sys\nprint('warned', file=sys.stderr)\n1", "1\nwarned"),
        ("if __name__ == '__main__':\n    print('main')", "main"),
        ("import sys\nprint(1)\nsys.exit(0)", "1"),
        ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))).__name__", "'A'"),
        ("from __future__ import annotations\ndef f(x: Undefined): ...\nf.__annotations__", "{'x': 'Undefined'}"),
        ("print('é中\\N{GRINNING FACE}')", "é中\N{GRINNING FACE}"),
        ("[name for name in dir() if not name.startswith('__')]", "[]"),
    ],
)
def test_programs(sandbox: Sandbox, code: str, text: str) -> None:
    result = run(sandbox, code)
    assert (result.error, result.content) == (None, text)


def test_without_echo(sandbox: Sandbox) -> None:
    assert run(sandbox, "print(1)\n2", echo=False).content == "1"


def test_calls_keep_nothing(sandbox: Sandbox) -> None:
    assert run(sandbox, "x = 1\nopen('kept', 'w').write('x')").error is None
    assert run(sandbox, "import os\n('x' in globals(), os.listdir('.'))").content == "(False, [])"


def test_tracebacks_show_the_programs_own_lines(sandbox: Sandbox) -> None:
    code = "import json\ndef _run():\n    return json.loads('{')\n_run()"
    assert run(sandbox, code).content == (
        "Error: the program failed with exit status 1\n"
        "Traceback (most recent call last):\n"
        '  File "program.py", line 4, in <module>\n'
        "    _run()\n"
        '  File "program.py", line 3, in _run\n'
        "    return json.loads('{')\n"
        "           ^^^^^^^^^^^^^^^\n"
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("print(7)\n1/0", "failed", "7\nTraceback"),
        ("(", "failed", "SyntaxError: '(' was never closed"),
        ("(" * 3_000, "failed", "too many nested parentheses"),
        ("import sys\nsys.exit(3)", "failed", "exit status 3"),
        ("import sys\nsys.exit('no')", "failed", "no"),
        ("try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise ValueError('b') from e", "failed", "direct cause"),
        ("print(1, flush=True)\nwhile True: pass", "timeout", "the program was not done within 0.5 s\n1"),
        ("import time\ntime.sleep(60)", "timeout", "0.5 s"),
        ("'x' * 10**10", "failed", "more than 256 MiB of memory"),
        ("while True: print('x' * 1000)", "failed", "printed more than 8 KiB"),
        ("import ctypes\nctypes.string_at(0)", "failed", "was killed"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "failed", "Error"),
        ("import numpy", "failed", "ModuleNotFoundError: No module named 'numpy'"),
    ],
)
def test_programs_that_fail(sandbox: Sandbox, code: str, kind: str, says: str) -> None:
    result = run(sandbox, code, timeout_s=0.5)
    assert result.error == kind
    assert says in result.content
    assert str(Path.cwd()) not in result.content and "mmreason" not in result.content
    assert result.seconds < 3


def test_a_warm_call_is_quick(sandbox: Sandbox) -> None:
    times = []
    for _ in range(10):
        start = time.perf_counter()
        assert run(sandbox, "3*4").content == "12"
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2


@pytest.fixture(scope="module")
def mathematics() -> Iterator[Toolbox]:
    """The tool with sympy and numpy."""
    preload = ["sympy", "numpy"]
    try:
        opened = Sandbox(workers=1, preload=preload, limits=Limits(memory_mb=2048))
    except IsolationError as error:
        pytest.skip(str(error))
    with opened:
        yield Toolbox([PythonTool(preload=preload, sandbox=opened)], timeout_s=20)


@pytest.mark.slow
def test_preloaded_packages(mathematics: Toolbox) -> None:
    assert "such as sympy, numpy" in mathematics.schemas[0]["function"]["description"]
    code = (
        "from numpy import ones\nfrom sympy import Symbol, expand\n(expand((Symbol('x') + 2)**2), int(ones(2).sum()))"
    )
    assert mathematics.run(ToolCall("python", {"code": code})).content == "(x**2 + 4*x + 4, 2)"


@pytest.mark.slow
def test_programs_of_tora_print_what_the_set_says(mathematics: Toolbox, shared_data: Path) -> None:
    different, count = [], 0
    for line in (shared_data / "tool_use" / "tora_examples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        blocks = programs.parse(row["messages"][1]["content"])
        for number, block in enumerate(blocks):
            if block.kind == "output":
                call = programs.pending_call(programs.render(blocks[:number]))
                assert isinstance(call, ToolCall)
                count += 1
                if mathematics.run(call).content.strip() != block.text.strip():
                    different.append(row["id"])
    # That program calls f() with an argument that f doesn't take: no run of it prints the set's output.
    assert (count, different) == (25, ["math-train-1527-0"])
