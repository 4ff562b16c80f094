"""The reward for programs: what counts as the program, the share of tests, what is apart, and every bad parameter."""

from __future__ import annotations

import json
from typing import Any

import pytest

import mmreason.tools.sandbox
from mmreason.rewards import code_reward, compute_rewards, load_rewards
from mmreason.rewards.code import program
from mmreason.tools.sandbox import IsolationError, shared_sandbox
from mmreason.types import ConfigError, DataError


@pytest.fixture
def sandboxed() -> None:
    try:
        shared_sandbox()
    except IsolationError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nDone."


SQUARE = {
    "kind": "asserts",
    "statements": ["assert square(2) == 4", "assert square(3) == 9", "assert square(-1) == 1", "assert square(0) == 0"],
}
RIGHT = "def square(x):\n    return x * x"
DOUBLE = "def square(x):\n    return x * 2"


# ---- the program of a completion


@pytest.mark.parametrize(
    ("text", "code", "is_block"),
    [
        (fenced("x = 1"), "x = 1", True),
        ("```python\nx = 1\n```\nor rather\n```py\nx = 2\n```", "x = 2", True),
        ("```python\nx = 1\n```\n```output\n1\n```\n```json\n{}\n```", "x = 1", True),
        ("```python\nx = 1", "x = 1", True),
        ("x = 1", "x = 1", False),
        ("So:\n```\nx = 1\n```", "x = 1", True),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1", True),
        ('```python title="a.py"\nx = 1\n```', "x = 1", True),
        ("```json\n{}\n```", "```json\n{}\n```", False),
        ("", "", False),
        ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", "x = 2", True),
        ("<think>\n```python\nx = 1\n```\n</think>\nNo program.", "\nNo program.", False),
        ("<think>\n```python\nx = 1\n```\n</think>\n", "x = 1", True),
        ("<think>\n```python\nx = 1\n```\nand so on", "x = 1", True),
    ],
)
def test_the_program(text: str, code: str, is_block: bool) -> None:
    assert program(text) == (code, is_block)


# ---- the reward


def test_share_of_tests(sandboxed: None) -> None:
    answers = [fenced(RIGHT), fenced(DOUBLE), fenced("def square(x):\n    return None"), RIGHT, "I do not know."]
    chats = [[{"role": "assistant", "content": answer}] for answer in answers]
    for completions in (answers, chats):
        assert code_reward(completions, [SQUARE] * 5) == [1.0, 0.5, 0.0, 1.0, 0.0]
    assert code_reward(answers, [SQUARE] * 5, all_or_nothing=True) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert code_reward(answers[:2], [json.dumps(SQUARE)] * 2) == [1.0, 0.5]


def test_kinds_side_by_side(sandboxed: None) -> None:
    stdio = {"kind": "stdio", "cases": [{"stdin": "3", "stdout": "9"}, {"stdin": "4", "stdout": "16"}]}
    function = {"kind": "function", "test": "def check(f):\n    assert f(3) == 9", "entry_point": "square"}
    programs = [fenced(RIGHT), fenced("print(int(input()) * 3)"), fenced(RIGHT), fenced(DOUBLE)]
    assert code_reward(programs, [SQUARE, stdio, function, function]) == [1.0, 0.5, 1.0, 0.0]


def test_compile_errors_and_prose_are_apart(sandboxed: None) -> None:
    answers = [fenced("def square(x:"), "It is x squared, I think.", fenced("1 / 0"), "", fenced(""), "\ud800", "x"]
    apart = code_reward(answers, [SQUARE] * 7, compile_error=-0.5, no_code=-1.0)
    assert apart == [-0.5, -1.0, 0.0, -1.0, -1.0, -1.0, 0.0]
    assert code_reward(answers, [SQUARE] * 7) == [0.0] * 7


def test_rows_without_tests_are_skipped(sandboxed: None) -> None:
    empty: list[Any] = [SQUARE, None, {}, ""]
    assert code_reward([fenced(RIGHT)] * 4, empty) == [1.0, None, None, None]
    meta = [{"tests": SQUARE}, {"tests": None}, {"kind": "number"}, None]
    assert code_reward([fenced(RIGHT)] * 4, meta=meta) == [1.0, None, None, None]
    assert code_reward([fenced(RIGHT)], [None], [{"tests": SQUARE}]) == [None]  # the column wins


def test_nothing_is_started_for_rows_without_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a sandbox was asked for")

    monkeypatch.setattr("mmreason.tools.code_tests.shared_sandbox", refuse)
    assert code_reward(["x"], [None]) == [None]
    (reward,) = load_rewards([{"name": "code", "timeout_s": 2, "compile_error": -0.1}])
    assert reward.__name__ == "code_reward" and reward(completions=[], tests=[]) == []


def test_limits(sandboxed: None) -> None:
    allocates = fenced(f"{RIGHT}\nx = bytearray(200 * 2**20)")
    assert code_reward([allocates] * 2, [SQUARE] * 2, memory_mb=128) == [0.0, 0.0]
    assert code_reward([allocates], [SQUARE], memory_mb=512) == [1.0]
    sleeps = fenced(f"import time\n{RIGHT}\ntime.sleep(0.8)")
    assert code_reward([sleeps], [SQUARE], timeout_s=0.2) == [0.0]
    assert code_reward([sleeps], [SQUARE], timeout_s=20) == [1.0]


def test_through_the_scoring_of_a_step(sandboxed: None) -> None:
    """Failures stand beside the samples; a column of a parameter's name doesn't become the parameter."""
    batch = compute_rewards(
        load_rewards([{"name": "code", "all_or_nothing": False}]),
        None,
        prompts=[""] * 3,
        completions=[fenced(RIGHT), fenced(DOUBLE), fenced("x")],
        completion_ids=[[1]] * 3,
        columns={"tests": [SQUARE, SQUARE, None], "id": ["a", "b", "c"], "all_or_nothing": [True] * 3},
    )
    assert batch.per_func[:2, 0].tolist() == [1.0, 0.5] and batch.skipped.tolist() == [False, False, True]
    assert batch.extra == {"code_failure": [None, "test 2 of 4: wrong: AssertionError", None]}


def test_what_cannot_be_stored_is_replaced(sandboxed: None) -> None:
    """A lone surrogate in an error's text would break the file of the step's samples."""
    logged: dict[str, Any] = {}
    code_reward([fenced("raise ValueError(chr(0xd800))")], [SQUARE], log_extra=logged.__setitem__)
    assert logged["code_failure"][0].encode() == b"test 1 of 4: error: ValueError: ?"


# ---- mistakes


def test_bad_tests_name_the_row() -> None:
    with pytest.raises(DataError, match="code tests of row mbpp-3 can't be used: unknown kind 'assert'"):
        code_reward(["x", "x"], [None, {"kind": "assert"}], id=["mbpp-2", "mbpp-3"])
    with pytest.raises(DataError, match="code tests of row 1 can't be used"):
        code_reward(["x", "x"], [None, {"kind": "assert"}])


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="needs tests: a column 'tests', or 'tests' in the rows' meta"):
        code_reward(["x"])
    with pytest.raises(ValueError, match="2 completions and 1 tests don't match"):
        code_reward(["x", "x"], [SQUARE])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"compile_error": 0.1}, "compile_error=0.1 must be finite and at most 0"),
        ({"no_code": float("-inf")}, "no_code=-inf must be finite"),
        ({"no_code": float("nan")}, "no_code=nan must be finite"),
        ({"no_code": "x"}, "can't take the parameters"),
        ({"timeout_s": 0}, "wall_s=0 must be at least"),
        ({"memory_mb": 1}, "memory_mb=1 must be at least"),
        ({"memory_mb": "1G"}, "can't take the parameters"),
        ({"timeout": 3}, "no parameter 'timeout'.*Did you mean 'timeout_s'"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rewards([{"name": "code", **parameters}])


def test_a_machine_without_a_sandbox_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no namespaces, no Landlock")

    mmreason.tools.sandbox.shutdown()
    monkeypatch.setattr("mmreason.tools.sandbox.choose_isolation", refuse)
    with pytest.raises(IsolationError, match="no namespaces, no Landlock"):
        code_reward([fenced(RIGHT)], [SQUARE])
