"""The python tool: a program that a model wrote, run in the sandbox. Each call starts afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmreason.tools.types import ErrorKind, ToolError
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from mmreason.tools.sandbox import Sandbox

_KINDS: dict[str, ErrorKind] = {"timeout": "timeout"}
_SUMMARIES = {
    "error": "the program failed with exit status {run.exit_code}",
    "compile_error": "this is no Python",
    "timeout": "the program was not done within {seconds:g} s",
    "memory": "the program needs more than {limits.memory_mb} MiB of memory",
    "output": "the program printed more than {limits.output_kb} KiB",
    "killed": "the program was killed: it crashed, or it wrote too much into its folder",
}
# Runs in the sandbox: model-written code is not even parsed in this process, since deep nesting can crash a parser. The
# traceback shows the model's own lines only, not the libraries' with this machine's paths.
_RUNNER = """\
def _run(source, echo):
    import ast, linecache, sys, traceback
    name = "program.py"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    names = sys.modules["__main__"].__dict__
    del names["_run"]

    def own_lines(shown):
        shown.stack = traceback.StackSummary.from_list([frame for frame in shown.stack if frame.filename == name])
        for other in (shown.__cause__, shown.__context__):
            if other is not None:
                own_lines(other)
        return shown

    try:
        tree = ast.parse(source, name)
        last = tree.body.pop() if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), names)
            if value is not None:
                print(repr(value))
    except (SystemExit, MemoryError):
        raise
    except BaseException as error:
        shown = own_lines(traceback.TracebackException.from_exception(error))
        sys.stdout.flush()
        print("".join(shown.format()), end="", file=sys.stderr)
        sys.exit(1)
"""


class PythonTool:
    """Python programs in the sandbox.

    Args:
        echo: also show the value of a last line that is an expression, as the interactive prompt does.
        preload: modules that programs find imported already, such as sympy or numpy. With any, programs can import all
            packages of this environment, without, only the standard library.
        sandbox: where programs run; None takes this process's shared one.

    Raises: ConfigError for modules that are no list.
    """

    name = "python"

    def __init__(self, echo: bool = True, preload: Sequence[str] = (), sandbox: Sandbox | None = None) -> None:
        if isinstance(preload, str):  # it would be taken letter by letter
            raise ConfigError(f"python: preload is a list of modules: [{preload}]")
        self.echo, self.preload, self._sandbox = echo, tuple(preload), sandbox
        packages = (
            f"the standard library and packages such as {', '.join(preload)}" if preload else "the standard library"
        )
        shown = "what it prints, and the value of its last line" if echo else "what it prints"
        self.description = (
            f"Runs a Python program with {packages}; shows {shown}. No network, no files. "
            "Nothing is kept from earlier calls."
        )
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "the whole program"}},
            "required": ["code"],
            "additionalProperties": False,
        }

    @property
    def workers(self) -> int:
        """Programs that run at a time; more wait."""
        from mmreason.tools.sandbox import default_workers

        return self._sandbox.workers if self._sandbox is not None else default_workers()

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """What the program printed.

        Raises: ToolError: timeout, or failed with the output and the traceback; IsolationError where this machine
            can't enclose a program.
        """
        from mmreason.tools.sandbox import shared_sandbox

        sandbox = self._sandbox or shared_sandbox(self.preload)
        limits = replace(sandbox.limits, wall_s=timeout_s, cpu_s=timeout_s)
        run = sandbox.run(f"{_RUNNER}\n_run({arguments['code']!r}, {self.echo})\n", limits=limits)
        # Out of memory, nothing in the sandbox cleans the traceback.
        printed = _joined(run.stdout, "" if run.status == "memory" else run.stderr)
        if run.status == "ok":
            return printed or "(no output: print what is to be seen)"
        summary = _SUMMARIES[run.status].format(seconds=timeout_s, limits=limits, run=run)
        raise ToolError(_KINDS.get(run.status, "failed"), _joined(summary, printed))


def _joined(*texts: str) -> str:
    return "\n".join(text.rstrip() for text in texts if text.strip())
