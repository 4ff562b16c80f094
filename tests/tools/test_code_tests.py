"""Unit tests of model-written programs: what passes, what doesn't and why, and the ways to pass without the work."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.tools import code_tests
from mmreason.tools.code_tests import AssertTests, FunctionTest, StdioCase, StdioTests, parse_tests, run_tests
from mmreason.tools.sandbox import IsolationError, Job, Limits, Run, Sandbox
from mmreason.types import DataError


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        box = Sandbox(Limits(wall_s=10, cpu_s=10))
    except IsolationError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    with box:
        yield box


def stdio(*cases: tuple[str, str], **more: Any) -> StdioTests:
    tests = parse_tests({"kind": "stdio", "cases": [{"stdin": i, "stdout": o} for i, o in cases], **more})
    assert isinstance(tests, StdioTests)
    return tests


def asserts(*statements: str, setup: str = "") -> AssertTests:
    tests = parse_tests({"kind": "asserts", "statements": list(statements), "setup": setup})
    assert isinstance(tests, AssertTests)
    return tests


SQUARE = """
def check(candidate):
    assert candidate(3) == 9
    assert abs(candidate(0.5) - 0.25) < 1e-9
    assert all(candidate(i) == i * i for i in range(-3, 4))
"""
FUNCTION = FunctionTest(SQUARE, "square")
ASSERTS = asserts("assert square(3) == 9", "assert abs(square(0.5) - 0.25) < 1e-9", "assert square(-4) == 16")
RIGHT = "def square(x):\n    return x * x\n"


def report(sandbox: Sandbox, program: str, tests: Any, limits: Limits | None = None) -> Any:
    (one,) = run_tests([program], [tests], sandbox, limits)
    return one


# ---- what the tests say


def test_right_programs_pass(sandbox: Sandbox) -> None:
    adder = "print(sum(map(int, input().split())))"
    cases = stdio(("1 2\n", "3\n"), ("10 -4", "6"), ("5", "5  \n\n"))
    reports = run_tests([RIGHT, RIGHT, adder], [FUNCTION, ASSERTS, cases], sandbox)
    assert [r.verdicts for r in reports] == [("pass",), ("pass",) * 3, ("pass",) * 3]
    assert [(r.passed, r.total, r.compile_error, r.failure) for r in reports] == [
        (1, 1, False, None), (3, 3, False, None), (3, 3, False, None)
    ]  # fmt: skip


def test_each_statement_and_case_has_its_own_verdict(sandbox: Sandbox) -> None:
    program = "def square(x):\n    if x < 0: raise ValueError('negative')\n    return x * 3\n"
    half = report(sandbox, program, ASSERTS)
    assert half.verdicts == ("pass", "wrong", "error") and half.passed == 1
    assert half.failure == "test 2 of 3: wrong: AssertionError"
    assert report(sandbox, program, asserts("assert square(-1), 'why'")).failure == (
        "test 1 of 1: error: ValueError: negative"
    )
    words = asserts("assert square(1) == 1, 'one stays one'")
    assert report(sandbox, program, words).failure == "test 1 of 1: wrong: AssertionError: one stays one"
    cases = stdio(("1", "1"), ("0", "0"), ("2", "4"), ("x", ""))
    mixed = report(sandbox, "n = int(input())\nprint(1 // n if n < 2 else n * n)", cases)
    assert mixed.verdicts == ("pass", "error", "pass", "error")
    assert mixed.failure == "test 2 of 4: error: ZeroDivisionError: integer division or modulo by zero"
    assert (
        report(sandbox, "print(7)", stdio(("1", "8"))).failure == "test 1 of 1: wrong: for '1' expected '8', got '7\\n'"
    )


def test_what_ends_a_program_is_said(sandbox: Sandbox) -> None:
    limits = Limits(wall_s=0.5, cpu_s=2, memory_mb=128, output_kb=4)
    ends = {
        "while True: pass": "timeout",
        "x = [0] * 10**9": "memory",
        "while True: print('x' * 1000)": "output",
        "def f(:": "compile_error",
        "f = '\ud800'": "compile_error",
        "1 / 0": "error",
        "import ctypes; ctypes.string_at(0)": "killed",
    }
    both = [asserts("assert f(1) == 1", "assert True"), stdio(("", "x"))]
    reports = run_tests([program for program in ends for _ in both], both * len(ends), sandbox, limits)
    for (program, verdict), on_asserts, on_stdio in zip(ends.items(), reports[::2], reports[1::2], strict=True):
        assert on_asserts.verdicts == (verdict, verdict), program
        assert on_stdio.verdicts == (verdict,), program
        assert on_asserts.compile_error == on_stdio.compile_error == (verdict == "compile_error")
    inside = report(sandbox, "def f(x): return [0] * 10**9", asserts("f(1)", "assert True"), limits)
    assert inside.verdicts == ("memory", "pass")


def test_tests_after_one_that_hangs(sandbox: Sandbox) -> None:
    limits = Limits(wall_s=0.6, cpu_s=2)
    hangs = "def square(x):\n    while x == 0.5: pass\n    return x * x\n"
    started = time.monotonic()
    assert report(sandbox, hangs, ASSERTS, limits).verdicts == ("pass", "timeout", "timeout")
    assert time.monotonic() - started < 0.6 + 2


class Counting(Sandbox):
    """A sandbox that remembers how many jobs came at a time."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.counts: list[int] = []

    def run_many(self, jobs: Sequence[Job]) -> list[Run]:
        self.counts.append(len(jobs))
        return super().run_many(jobs)


def test_a_program_that_never_ends_costs_its_limit_once(sandbox: Sandbox) -> None:
    cases = stdio(*((str(i), str(i)) for i in range(40)))
    programs = ["while True: pass", "print(input())", "print(", "n = int(input())\nwhile n == 4: pass\nprint(n)"]
    with Counting(limits=Limits(wall_s=0.4, cpu_s=2)) as box:
        forever, right, broken, fifth = run_tests(programs, [cases] * 4, box)
    assert forever.verdicts == ("timeout",) * 40 and right.passed == 40 and broken.verdicts == ("compile_error",) * 40
    # Cases 0, 1-2 and 3-6 have run, then no more: case 4 has run out of time.
    assert fifth.verdicts == ("pass",) * 4 + ("timeout",) + ("pass",) * 2 + ("timeout",) * 33
    assert fifth.failure == "test 5 of 40: timeout: more than 0.4 s"
    assert box.counts == [4, 4, 8, 8, 16, 9]


def test_setup_runs_after_the_program_and_before_the_tests(sandbox: Sandbox) -> None:
    program = "class Node:\n    def __init__(self, v): self.v = v\ndef value(n): return n.v"
    tests = asserts(
        "assert value(root) == 4", "assert math.isclose(value(root), 4)", setup="import math\nroot = Node(4)"
    )
    assert report(sandbox, program, tests).verdicts == ("pass", "pass")
    failed = report(sandbox, "def value(n): return 4", tests)
    assert (
        failed.verdicts == ("error", "error")
        and failed.failure == "test 1 of 2: error: NameError: name 'Node' is not defined"
    )


def test_programs_may_leave_by_exit_once_they_have_answered(sandbox: Sandbox) -> None:
    ways = ["import sys; sys.exit()", "exit(0)", "raise SystemExit", "import os, sys; sys.stdout.flush(); os._exit(0)"]
    reports = run_tests([f"print(5)\n{way}" for way in ways], [stdio(("", "5"))] * 4, sandbox)
    assert [r.verdicts for r in reports] == [("pass",)] * 4
    assert report(sandbox, "print(5)\nraise SystemExit(1)", stdio(("", "5"))).verdicts == ("error",)


def test_long_expected_outputs_have_room(sandbox: Sandbox) -> None:
    cases = stdio(("", "x" * 200_000), ("", "x"))
    assert report(sandbox, "print('x' * 200_000)", cases).verdicts == ("pass", "output")


def test_programs_with_names_of_builtins(sandbox: Sandbox) -> None:
    """What is tested may have a builtin's name; builtins that tests use keep their meaning."""
    own = "def sum(a, b):\n    return a * b\n"
    assert report(sandbox, own, asserts("assert sum(2, 5) == 10", "assert sum(0, 1) == 0")).passed == 2
    assert (
        report(sandbox, own, FunctionTest("def check(f):\n    assert f(2, 5) == 10 == len('x' * 10)", "sum")).passed
        == 1
    )
    helper = "def max(a, b):\n    return a if a > b else b\ndef top(a, b, c):\n    return max(a, max(b, c))\n"
    assert report(sandbox, helper, asserts("assert max(top(1, 3, 2), 0) == 3")).passed == 1


def test_as_many_tests_as_programs(sandbox: Sandbox) -> None:
    assert run_tests([], [], sandbox) == []
    with pytest.raises(ValueError, match="1 programs, but 2 tests"):
        run_tests([""], [ASSERTS] * 2, sandbox)


# ---- comparing outputs


def reference(text: str) -> list[str]:
    """Lines without the white space at their ends and without the empty ones at the end, one character at a time."""
    lines = [""]
    for character in text:
        if character == "\n":
            lines.append("")
        else:
            lines[-1] += character
    for number, line in enumerate(lines):
        while line and line[-1].isspace():
            line = line[:-1]
        lines[number] = line
    while lines and not lines[-1]:
        lines.pop()
    return lines


@given(*[st.text("ab1 \t\r\n\f\u2028", max_size=12)] * 2)
def test_white_space_at_ends_does_not_count(left: str, right: str) -> None:
    assert code_tests.same_output(left, right) == (reference(left) == reference(right))
    assert code_tests.same_output(left + " \n\n", left)


@pytest.mark.parametrize(
    ("given_text", "expected", "tolerance", "equal"),
    [
        ("0.3333333", "0.333333", None, False),
        ("0.3333333", "0.333333", 1e-6, True),
        ("0.33334", "0.333333", 1e-6, False),
        ("1000001", "1000000", 1e-6, True),  # relative above 1
        ("1 2\n3", "1 2 3", 1e-6, True),  # words, so that lines don't count
        ("1 2 3", "1 2", 1e-6, False),
        ("yes 1.0", "yes 1", 1e-6, True),
        ("Yes 1.0", "yes 1", 1e-6, False),
        ("nan", "nan", 1e-6, True),
        ("nan", "1", 1e-6, False),
        ("inf", "1e400", 1e-6, False),
        ("1e400", "1e399", 1e-6, False),
        ("1_0", "10", 1e-6, False),
        ("-.5e0", "-0.5", 0.0, True),
        ("9" * 5000, "1", 1e-6, False),
    ],
)
def test_tolerance(given_text: str, expected: str, tolerance: float | None, equal: bool) -> None:
    assert code_tests.same_output(given_text, expected, tolerance) == equal


def test_tolerance_of_a_row(sandbox: Sandbox) -> None:
    cases = stdio(("", "0.333333"), tolerance=1e-5)
    assert report(sandbox, "print(1 / 3)", cases).passed == 1
    assert report(sandbox, "print(1 / 3)", stdio(("", "0.333333"))).passed == 0


# ---- reading tests


def test_forms_of_tests() -> None:
    full = {"kind": "asserts", "statements": ["assert f()"], "setup": None, "cases": None, "test": None}
    assert parse_tests(full) == AssertTests(("assert f()",)) == parse_tests(json.dumps(full))
    assert parse_tests({"kind": "stdio", "cases": [{"stdout": "1"}]}) == StdioTests((StdioCase("", "1"),))
    assert parse_tests({"kind": "function", "test": SQUARE, "entry_point": "square"}) == FUNCTION


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{", "they are no JSON"),
        ("[]", "a mapping with 'kind' is needed, not []"),
        (3, "a mapping with 'kind' is needed, not 3"),
        ({}, "unknown kind None; known: stdio, asserts, function"),
        ({"kind": ["stdio"]}, "unknown kind"),
        ({"kind": "stdin"}, "unknown kind 'stdin'"),
        ({"kind": "stdio", "case": []}, "no key 'case'; it has: cases, tolerance. Did you mean 'cases'"),
        ({"kind": "stdio"}, "'cases' is None, not a list with at least one test"),
        ({"kind": "stdio", "cases": []}, "not a list with at least one test"),
        ({"kind": "stdio", "cases": ["1"]}, "case 1 is '1', not"),
        ({"kind": "stdio", "cases": [{"stdin": "1"}]}, "case 1 is"),
        (
            {"kind": "stdio", "cases": [{"stdin": "1", "stdout": "1"}, {"stdin": 1, "stdout": "1"}]},
            "of case 2 must be texts",
        ),
        ({"kind": "stdio", "cases": [{"stdout": "1"}], "tolerance": -1}, "'tolerance' is -1"),
        ({"kind": "stdio", "cases": [{"stdout": "1"}], "tolerance": "x"}, "'tolerance' is 'x'"),
        ({"kind": "asserts", "statements": "assert 1"}, "'statements' is 'assert 1', not a list"),
        ({"kind": "asserts", "statements": ["assert 1", "assert f("]}, "statement 2 is no Python code (SyntaxError"),
        ({"kind": "asserts", "statements": [1]}, "statement 1 is 1, not Python code"),
        ({"kind": "asserts", "statements": ["-" * 100_000 + "1"]}, "statement 1 is no Python code"),
        ({"kind": "asserts", "statements": ["1"], "setup": "import"}, "'setup' is no Python code"),
        ({"kind": "function", "test": "def test(f): pass", "entry_point": "f"}, "defines no function check"),
        ({"kind": "function", "test": SQUARE}, "'entry_point' is None"),
        ({"kind": "function", "test": SQUARE, "entry_point": "f()"}, "'entry_point' is 'f()'"),
        ({"kind": "function", "entry_point": "f"}, "'test' is None, not Python code"),
    ],
)
def test_bad_tests_name_their_row(cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        parse_tests(cell, "mbpp-7")
    assert str(caught.value).startswith("the code tests of row mbpp-7 can't be used: ")
    assert (caught.value.row, caught.value.reason) == ("mbpp-7", "bad_tests")
    assert len(str(caught.value)) < 700


# ---- passing without the work

CHEATS = {
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit": "raise SystemExit",
    "prints passed": "print('passed')\nprint('OK')\nprint('3 passed in 0.01s')",
    "own check": "def check(candidate): pass\ndef square(x): return 0",
    "own AssertionError": "AssertionError = type('E', (BaseException,), {})\ndef square(x): return 0",
    "builtin AssertionError": (
        "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\ndef square(x): return 0"
    ),
    "own abs and all": "def abs(x): return 0\ndef all(x): return True\ndef square(x): return 9",
    "builtin abs and all": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.all = lambda x: True\ndef square(x): return 9"
    ),
    "own __builtins__": (
        "import builtins\n__builtins__ = {**vars(builtins), 'abs': lambda x: 0, 'all': lambda x: True}\n"
        "def square(x): return 9"
    ),
    "builtin exec": "import builtins\nbuiltins.exec = lambda *a, **k: None\ndef square(x): return 0",
    "builtin compile": (
        "import builtins\nreal = compile\nbuiltins.compile = lambda *a, **k: real('', 'x', 'exec')\n"
        "def square(x): return 0"
    ),
    "builtin exec, from inside a test": (
        "import builtins\ndef square(x):\n    builtins.exec = lambda *a, **k: None\n    return 9"
    ),
    "import hook": "import builtins\nbuiltins.__import__ = lambda *a, **k: None\ndef square(x): return 0",
    "excepthook": "import sys\nsys.excepthook = lambda *a: None\ndef square(x): return 0",
    "atexit": "import atexit, os\natexit.register(lambda: (print('passed'), os._exit(0)))\ndef square(x): return 0",
    "os._exit in the function": "import os\ndef square(x): os._exit(0)",
    "sys.exit in the function": "import sys\ndef square(x): sys.exit(0)",
    "a thread that leaves": (
        "import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()\n"
        "def square(x): time.sleep(0.5)"
    ),
    "no function": "def square(x): return x * x\ndel square",
    "deletes itself": "def square(x):\n    globals().pop('square', None)\n    return 0",
    "no __main__": "import sys\nsys.modules['__main__'] = None\ndef square(x): return 0",
    "catches all": "def square(x):\n    try: raise AssertionError\n    except BaseException: return None",
    "an error that can't be printed": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef square(x): raise E"
    ),
    "endless in the first test": "def square(x):\n    while True: pass",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_nothing_is_passed_without_the_work(sandbox: Sandbox, cheat: str) -> None:
    tests = [FUNCTION, asserts("assert abs(square(7) - 49) < 1e-9", "assert all([square(5) == 25])")]
    limits = Limits(wall_s=1.5, cpu_s=3)
    for one in run_tests([CHEATS[cheat]] * 2, tests, sandbox, limits):
        assert one.passed == 0, (cheat, one)
    output = report(sandbox, CHEATS[cheat], stdio(("3", "9")), limits)
    assert output.passed == 0


def test_the_limit_of_one_process(sandbox: Sandbox) -> None:
    """The documented hole: asserts ask the program's own objects. Comparing printed output does not."""
    yes = "class Yes:\n    def __eq__(self, other): return True\n    def __str__(self): return 'yes'\n"
    assert report(sandbox, f"{yes}def square(x): return Yes()", asserts("assert square(3) == 9")).passed == 1
    assert report(sandbox, f"{yes}print(Yes())", stdio(("3", "9"))).passed == 0
