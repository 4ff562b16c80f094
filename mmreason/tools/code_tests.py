"""Unit tests for model-written programs, run in the sandbox.

A row's tests are a JSON object of one of three kinds (a key that is null counts as absent, since Arrow fills them in):

    {"kind": "stdio", "cases": [{"stdin": "1 2\\n", "stdout": "3\\n"}, ...], "tolerance": 1e-6}
    {"kind": "asserts", "statements": ["assert add(1, 2) == 3", ...], "setup": "import math"}
    {"kind": "function", "test": "def check(candidate): ...", "entry_point": "add"}

stdio (APPS, arXiv:2105.09938): the program runs once per case. Its output must equal the expected one, white space at
line ends and empty lines at the end apart; with a tolerance, numbers may differ by that much, absolutely or relatively.
asserts (MBPP, arXiv:2108.07732): each statement is a test, run in the program's namespace after the program has ended.
function (HumanEval, arXiv:2107.03374): one test, `check(entry_point)`. HumanEval's prompt is the start of the program;
whoever calls joins the two.

A program earns nothing by leaving early, printing what a test runner prints, defining `check`, or giving the builtins
that the tests use (`abs`, `all`) another meaning. What can't be prevented, since asserts and the program share one
process: an object whose `__eq__` is always true passes `assert f(x) == 3`, a library function that the tests use may be
replaced (`math.isclose`), and a program that searches its own process for the machinery that runs the tests may find
it. In the stdio kind the comparison happens in this process, out of the program's reach.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mmreason._functions import did_you_mean
from mmreason.tools.sandbox import Job, Limits, Run, Sandbox, shared_sandbox
from mmreason.types import DataError

Verdict = Literal["pass", "wrong", "error", "compile_error", "timeout", "memory", "output", "killed"]
"""What became of a test: another output or a failed assertion is wrong, any other exception an error; the others are
the sandbox's words. Tests that a program doesn't come to share the verdict of what ended it."""

_SHOWN = 200
"""Characters of a text that a failure quotes."""


@dataclass(frozen=True, slots=True)
class StdioCase:
    """One run of the program: what it reads, and what it must write."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class StdioTests:
    """Tests by standard input and output.

    Attributes:
        cases: one run each.
        tolerance: how far a number of the output may lie from the expected one, absolutely or relative to it, as
            programming contests judge floats; then the output is compared word by word. None compares texts.
    """

    cases: tuple[StdioCase, ...]
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Tests by statements.

    Attributes:
        statements: one test each; passed where the statement raises nothing.
        setup: statements that run before them and after the program; where they fail, so do all tests.
    """

    statements: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True, slots=True)
class FunctionTest:
    """One test: `test` defines `check(candidate)`, which is called with the program's function `entry_point`."""

    test: str
    entry_point: str


CodeTests = StdioTests | AssertTests | FunctionTest


@dataclass(frozen=True, slots=True)
class TestReport:
    """What became of a program.

    Attributes:
        verdicts: one per test, in order.
        failure: the first test that was not passed, in words; None where all were.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    verdicts: tuple[Verdict, ...]
    failure: str | None

    @property
    def passed(self) -> int:
        """Number of tests passed."""
        return self.verdicts.count("pass")

    @property
    def total(self) -> int:
        """Number of tests."""
        return len(self.verdicts)

    @property
    def compile_error(self) -> bool:
        """The program is no Python, so that no test says anything about what it does."""
        return "compile_error" in self.verdicts


# ---- reading tests


def row_tests(meta: Mapping[str, Any] | None) -> Mapping[str, Any] | str | None:
    """The tests in a row's `meta`; None where it has none. HumanEval's stand there as a text and an entry point."""
    tests = (meta or {}).get("tests") or None
    entry_point = (meta or {}).get("entry_point")
    if isinstance(tests, str) and isinstance(entry_point, str):
        return {"kind": "function", "test": tests, "entry_point": entry_point}
    return tests


def parse_tests(value: Mapping[str, Any] | str, row: str | None = None) -> CodeTests:
    """The tests of a row.

    Args:
        value: as described above, or its JSON text.
        row: names the row in errors.

    Raises: DataError for an unknown kind or key, a missing one, no tests at all, and tests that are no Python.
    """
    try:
        cell = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise _bad(row, f"they are no JSON: {error}") from None
    if not isinstance(cell, Mapping):
        raise _bad(row, f"a mapping with 'kind' is needed, not {_shown(cell)}")
    cell = {key: part for key, part in cell.items() if part is not None}
    kind = cell.pop("kind", None)
    if not isinstance(kind, str) or kind not in _PARSERS:
        raise _bad(row, f"unknown kind {kind!r}; known: {', '.join(_PARSERS)}")
    keys, parser = _PARSERS[kind]
    for key in cell:
        if key not in keys:
            hint = did_you_mean(str(key), keys)
            raise _bad(row, f"the kind {kind!r} has no key {key!r}; it has: {', '.join(keys)}.{hint}")
    try:
        return parser(cell)
    except _BadTestsError as error:
        raise _bad(row, str(error)) from None


class _BadTestsError(Exception):
    """What is wrong with a row's tests."""


def _bad(row: str | None, problem: str) -> DataError:
    where = "" if row is None else f" of row {row}"
    return DataError(f"the code tests{where} can't be used: {problem}", row=row, reason="bad_tests")


def _stdio(cell: Mapping[str, Any]) -> StdioTests:
    cases = []
    for number, case in enumerate(_list(cell, "cases"), 1):
        if not isinstance(case, Mapping) or not {"stdout"} <= case.keys() <= {"stdin", "stdout"}:
            raise _BadTestsError(f"case {number} is {_shown(case)}, not {{'stdin': text, 'stdout': text}}")
        stdin, stdout = case.get("stdin") or "", case["stdout"]
        if not isinstance(stdin, str) or not isinstance(stdout, str):
            raise _BadTestsError(f"stdin and stdout of case {number} must be texts, not {_shown(case)}")
        cases.append(StdioCase(stdin, stdout))
    tolerance = cell.get("tolerance")
    if tolerance is not None:
        number_given = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not number_given or not 0 <= tolerance < math.inf:
            raise _BadTestsError(f"'tolerance' is {_shown(tolerance)}, not a number of at least 0")
    return StdioTests(tuple(cases), tolerance)


def _asserts(cell: Mapping[str, Any]) -> AssertTests:
    statements = _list(cell, "statements")
    for number, statement in enumerate(statements, 1):
        _python(statement, f"statement {number}")
    setup = cell.get("setup", "")
    _python(setup, "'setup'")
    return AssertTests(tuple(statements), setup)


def _function(cell: Mapping[str, Any]) -> FunctionTest:
    test, entry_point = cell.get("test"), cell.get("entry_point")
    if "check" not in _python(test, "'test'").functions:
        raise _BadTestsError("'test' defines no function check(candidate)")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise _BadTestsError(f"'entry_point' is {_shown(entry_point)}, not the name of a function")
    return FunctionTest(str(test), entry_point)


_PARSERS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], CodeTests]]] = {
    "stdio": (("cases", "tolerance"), _stdio),
    "asserts": (("statements", "setup"), _asserts),
    "function": (("test", "entry_point"), _function),
}
"""Kind -> its keys and what reads them."""


def _list(cell: Mapping[str, Any], key: str) -> list[Any]:
    items = cell.get(key)
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise _BadTestsError(f"{key!r} is {_shown(items)}, not a list with at least one test")
    return list(items)


@dataclass(frozen=True, slots=True)
class _Source:
    """What a piece of test code is: why it is no Python, the functions at its top level, names it reads and binds."""

    problem: str | None = None
    functions: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    bound: frozenset[str] = frozenset()


def _python(code: object, name: str) -> _Source:
    if not isinstance(code, str):
        raise _BadTestsError(f"{name} is {_shown(code)}, not Python code")
    source = _source(code)
    if source.problem is not None:
        raise _BadTestsError(f"{name} is no Python code ({source.problem}): {_shown(code)}")
    return source


@functools.lru_cache(maxsize=4096)  # a group's completions share their row's tests, and epochs repeat them
def _source(code: str) -> _Source:
    try:
        with warnings.catch_warnings():  # "\d" in a test is the data set's matter
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        return _Source(f"{type(error).__name__}: {error}")
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    functions = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return _Source(None, frozenset(functions), frozenset(read), frozenset(bound))


# ---- running them


def run_tests(
    programs: Sequence[str],
    tests: Sequence[CodeTests],
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
) -> list[TestReport]:
    """Test N programs.

    Args:
        programs: N programs, whole.
        tests: N tests, see `parse_tests`.
        sandbox: where to run; None takes this process's.
        limits: of one run: of each stdio case, or of the program with all its statements. None takes the sandbox's.

    Stdio cases run in waves of 1, 2, 4 ...; after a wave in which a program ran out of time it gets no further one, so
    that a program that never ends costs its time limit once and not once per case.

    Raises: ValueError unless there are as many tests as programs; what the sandbox raises, such as IsolationError.
    """
    if len(programs) != len(tests):
        raise ValueError(f"{len(programs)} programs, but {len(tests)} tests")
    box = shared_sandbox() if sandbox is None else sandbox
    jobs = [_jobs(*pair, limits or box.limits) for pair in zip(programs, tests, strict=True)]
    runs: list[list[Run]] = [[] for _ in jobs]
    going, wave = list(range(len(jobs))), 1
    while going:
        batch = [(i, job) for i in going for job in jobs[i][len(runs[i]) : len(runs[i]) + wave]]
        for (i, _), run in zip(batch, box.run_many([job for _, job in batch]), strict=True):
            runs[i].append(run)
        going = [i for i in going if len(runs[i]) < len(jobs[i]) and not any(map(_is_hopeless, runs[i]))]
        wave *= 2
    return [_report(*pair) for pair in zip(tests, runs, strict=True)]


def _jobs(program: str, tests: CodeTests, limits: Limits) -> list[Job]:
    if isinstance(tests, StdioTests):
        return [Job(program, case.stdin, limits=_room(limits, case.stdout)) for case in tests.cases]
    if isinstance(tests, FunctionTest):
        statements: tuple[str, ...] = ("", f"{tests.test}\n\ncheck({tests.entry_point})\n")
        tested = frozenset((tests.entry_point,))
    else:
        statements, tested = (tests.setup, *tests.statements), frozenset()
    return [Job(program, checks=(_restored_builtins(statements, tested), *statements), limits=limits)]


_BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_"))


def _restored_builtins(statements: Sequence[str], tested: frozenset[str]) -> str:
    """A statement that gives the builtins which the tests use back their meaning, where the program took it.

    A program with its own `abs` would else decide what `abs(f(x) - 1) < 1e-6` says. Where tests call nothing but
    builtins, what they test has such a name itself (MBPP has tasks to write a function `sum`), and stays.
    """
    sources = [_source(statement) for statement in statements]
    bound = frozenset().union(*(source.bound for source in sources))
    read = frozenset().union(*(source.read for source in sources)) - bound
    tested = tested or read - _BUILTINS
    names = sorted((read & _BUILTINS) - tested) if tested else []
    return "".join(f"{name} = None\ndel {name}\n" for name in names)


def _room(limits: Limits, expected: str) -> Limits:
    """The limits, with room for twice the expected output."""
    kilobytes = len(expected.encode(errors="replace")) // 512 + 1
    return limits if kilobytes <= limits.output_kb else replace(limits, output_kb=kilobytes)


def _is_hopeless(run: Run) -> bool:
    return run.status in ("timeout", "compile_error")


def _report(tests: CodeTests, runs: Sequence[Run]) -> TestReport:
    if isinstance(tests, StdioTests):
        judged = [_stdio_verdict(case, run, tests.tolerance) for case, run in zip(tests.cases, runs, strict=False)]
        if len(runs) < len(tests.cases):
            judged += [_ended(next(filter(_is_hopeless, runs)))] * (len(tests.cases) - len(runs))
    else:
        count = 1 if isinstance(tests, FunctionTest) else len(tests.statements)
        _, setup, *judged = [_check_verdict(runs[0], number) for number in range(count + 2)]
        if setup[0] != "pass":
            judged = [setup] * count
    verdicts = tuple(verdict for verdict, _ in judged)
    for number, (verdict, why) in enumerate(judged, 1):
        if verdict != "pass":
            return TestReport(verdicts, f"test {number} of {len(judged)}: {verdict}: {why}")
    return TestReport(verdicts, None)


def _stdio_verdict(case: StdioCase, run: Run, tolerance: float | None) -> tuple[Verdict, str]:
    if run.status != "ok":
        return _ended(run)
    if same_output(run.stdout, case.stdout, tolerance):
        return "pass", ""
    return "wrong", f"for {_shown(case.stdin)} expected {_shown(case.stdout)}, got {_shown(run.stdout)}"


def _check_verdict(run: Run, number: int) -> tuple[Verdict, str]:
    why = run.checks[number]
    if why is None:
        return "pass", ""
    if run.status != "ok" and why in (run.error, run.status):  # not reached
        return _ended(run)
    verdict: Verdict = "error"
    if why.startswith("AssertionError"):
        verdict = "wrong"
    elif why.startswith("MemoryError"):
        verdict = "memory"
    return verdict, _shortened(why)


def _ended(run: Run) -> tuple[Verdict, str]:
    """The verdict on a test of a program that did not end as it should."""
    verdict: Verdict = "error" if run.status == "ok" else run.status
    return verdict, _shortened(run.error)


def same_output(given: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs are equal: white space at line ends and empty lines at the end don't count.

    Args:
        tolerance: compare word by word instead; words that are numbers may differ by this much, absolutely or relative
            to the expected one.
    """
    if tolerance is None:
        return _stripped(given) == _stripped(expected)
    left, right = given.split(), expected.split()
    return len(left) == len(right) and all(a == b or _close(a, b, tolerance) for a, b in zip(left, right, strict=True))


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


_NUMBER = re.compile(r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?", re.ASCII)


def _close(given: str, expected: str, tolerance: float) -> bool:
    if _NUMBER.fullmatch(given) is None or _NUMBER.fullmatch(expected) is None:
        return False
    a, b = float(given), float(expected)
    return abs(a - b) <= tolerance * max(1.0, abs(b)) < math.inf


def _shown(value: object) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    text = " ".join(text.encode(errors="replace").decode().split())  # a lone surrogate can't be stored
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
