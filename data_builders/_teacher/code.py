"""Is a program right? A reply's code put together with what its row gives, and run against the row's tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmreason.types import DataError, Example

if TYPE_CHECKING:
    from mmreason.tools.code_tests import CodeTests, TestReport

_CODE_LINE = re.compile(r"^(?:from\s+\w|import\s+\w|def\s|class\s|async\s+def\s|@|#)", re.M)


def tests_of(example: Mapping[str, Any]) -> CodeTests | None:
    """The tests of a row, None where it has none: `meta["tests"]`, HumanEval's with `meta["entry_point"]` beside them.

    Raises: DataError for tests that can't be used.
    """
    from mmreason.tools.code_tests import parse_tests

    meta, row = example.get("meta") or {}, str(example.get("id", "?"))
    tests, entry = meta.get("tests"), meta.get("entry_point")
    if not tests:
        return None
    if isinstance(tests, str) and isinstance(entry, str) and not tests.lstrip().startswith("{"):
        return parse_tests({"kind": "function", "test": tests, "entry_point": entry}, row)
    return parse_tests(tests, row)


def whole_program(asked: str, reply: str, tests: CodeTests) -> str:
    """The program of a reply.

    HumanEval gives the start of a function. A reply that defines the function gets what stands before it (imports and
    helpers); any other reply goes on where the start ends.
    """
    from mmreason.rewards.code import program
    from mmreason.tools.code_tests import FunctionTest

    code, _ = program(reply)
    if not isinstance(tests, FunctionTest):
        return code
    head = function_head(asked)
    if head is None:
        return code
    definition = re.compile(rf"^(?:async\s+)?def\s+{re.escape(tests.entry_point)}\b", re.M)
    if definition.search(code):
        start = definition.search(head)
        return f"{head[: start.start()] if start else ''}\n{code}"
    return head + code if head.endswith("\n") else f"{head}\n{code}"


def function_head(asked: str) -> str | None:
    """The unfinished program of a prompt: from its first line of code on, as far as it is the start of one."""
    found = _CODE_LINE.search(asked)
    if found is None:
        return None
    lines = asked[found.start() :].splitlines(keepends=True)
    for stop in range(len(lines), 0, -1):
        head = "".join(lines[:stop])
        try:
            ast.parse(head.rstrip() + "\n    pass\n")
        except (SyntaxError, ValueError):
            continue
        return head
    return None


def run_row(example: Example, asked: str, reply: str, *, timeout_s: float) -> TestReport:
    """Run a reply's program against its row's tests, in the sandbox. Blocks.

    Raises: DataError for a row without tests; IsolationError on a machine without a sandbox.
    """
    from mmreason.tools.code_tests import run_tests
    from mmreason.tools.sandbox import Limits

    tests = tests_of(example)
    if tests is None:
        raise DataError(f"row {example.get('id')}: there are no tests", row=str(example.get("id")), reason="bad_tests")
    limits = Limits(wall_s=timeout_s, cpu_s=timeout_s)
    return run_tests([whole_program(asked, reply, tests)], [tests], limits=limits)[0]
