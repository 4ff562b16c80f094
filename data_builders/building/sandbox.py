"""Programs of a teacher run in the sandbox: is there one?"""

from __future__ import annotations


def try_sandbox() -> None:
    """Run a program, before anything is paid. Raises: IsolationError where this machine can't enclose one."""
    from mmreason.tools.sandbox import shared_sandbox

    shared_sandbox().run("print(1)")
