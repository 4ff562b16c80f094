"""Run a script until it makes a certain call, and hold it there for the kill: what tests/recipes/killing.py starts.

    python tests/recipes/halt_at.py MODULE:NAME CALL before|after MARK SCRIPT [ARGUMENTS …]

The CALL-th time that this process calls the function, MARK is written and nothing goes on: before the function's body
or after it. NAME is looked up in MODULE, `function` or `Class.method`; of a function that was imported into another
module, name the module that calls it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import runpy
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


def wait_for_the_kill(mark: Path) -> NoReturn:
    mark.touch()
    while True:
        time.sleep(60)


def hold(target: str, call: int, after: bool, mark: Path) -> None:
    """Replace the function by one that waits at its `call`-th call."""
    module, _, qualified = target.partition(":")
    owner: Any = importlib.import_module(module)
    *holders, name = qualified.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    found = inspect.getattr_static(owner, name)
    function = found.__func__ if isinstance(found, staticmethod) else found
    calls = 0

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        here = calls == call
        if here and not after:
            wait_for_the_kill(mark)
        value = function(*args, **kwargs)
        if here:
            wait_for_the_kill(mark)
        return value

    setattr(owner, name, staticmethod(counted) if isinstance(found, staticmethod) else counted)


if __name__ == "__main__":
    target, call, when, mark, script, *arguments = sys.argv[1:]
    hold(target, int(call), when == "after", Path(mark))
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # as if Python had been given the script itself
    runpy.run_path(script, run_name="__main__")
