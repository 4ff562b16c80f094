"""Tools as an environment: a turn that calls some is answered by their results, one that calls none is the answer (in
ReAct, one with a final answer)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from mmreason.rollout.environment import Environment, EnvironmentFactory, Observation, Step
from mmreason.tools.formats import openai, programs, react
from mmreason.tools.functions import FunctionTool
from mmreason.tools.schemas import ArgumentSchema
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolError, ToolResult
from mmreason.types import ConfigError, Message

CallFormat = Literal["tool_call", "react", "program"]
"""How a policy writes calls (see mmreason.tools.formats): `<tool_call>` blocks of JSON, several in a turn, answered by
messages of role tool; ReAct's Thought / Action / Action Input, answered by a user's Observation; fenced python
programs, answered by a user's output block."""

_PROGRAM_INSTRUCTIONS = (
    "Solve the problem step by step. Where it helps, write a ```python program that prints what you need, and stop "
    "there; its output will be given to you."
)


class ToolEnvironment(Environment):
    """One sample's calls.

    Args:
        toolbox: shared by all samples; its limits hold for each call.
        call_format: see `CallFormat`.
        max_tool_calls: calls of one sample; those above are answered by an error. None: no limit.
        max_tool_seconds: wall seconds of all calls of one sample together, looked at before each call. None: no limit.
    """

    isolated = False  # the tools bring their own processes and deadlines; `tool_factory` says where they don't

    def __init__(
        self,
        toolbox: Toolbox,
        call_format: CallFormat = "tool_call",
        max_tool_calls: int | None = None,
        max_tool_seconds: float | None = None,
    ) -> None:
        self.toolbox, self.call_format = toolbox, call_format
        self.max_tool_calls, self.max_tool_seconds = max_tool_calls, max_tool_seconds
        self.calls = self.errors = 0
        self.seconds = 0.0
        self.closed = False

    def reset(self, row: Mapping[str, Any], *, seed: int) -> Observation | None:
        self.calls, self.errors, self.seconds = 0, 0, 0.0
        return None

    def close(self) -> None:
        self.closed = True  # a turn of many slow calls that was given up goes on in its thread no further

    def step(self, action: str) -> Step:
        answer = {"tool_call": self._tool_call, "react": self._react, "program": self._program}[self.call_format]
        observation, message = answer(action)
        info = {"tool_calls": self.calls, "tool_errors": self.errors, "tool_seconds": self.seconds}
        return Step(observation, done=not observation, info=info, message=message)

    def _tool_call(self, action: str) -> tuple[list[Message], Message | None]:
        written = openai.parse_text(action)
        results = [self._run(call) for call in written.calls]
        if not results:
            return [], None
        message = openai.render_message(written.calls, written.text)
        for part, call in zip(message["tool_calls"], written.calls, strict=True):
            part["function"]["arguments"] = call.arguments  # as chat templates take them, not as JSON text
        answers = [openai.render_result(result) for result in results]
        return cast(list[Message], [_without_empty_id(answer) for answer in answers]), cast(Message, message)

    def _react(self, action: str) -> tuple[list[Message], Message | None]:
        step = react.parse(action, self.toolbox.schemas)
        if step.final is not None:
            return [], None
        told: ToolResult | ToolError | None = step.error if step.call is None else self._run(step.call)
        if isinstance(told, ToolError):
            self._count_unread()
        return _user("" if told is None else react.render_result(told).strip()), None

    def _program(self, action: str) -> tuple[list[Message], Message | None]:
        # An output that the policy wrote is made up: the program before it is run as if it weren't there.
        call = programs.pending_call(programs.render([b for b in programs.parse(action) if b.kind != "output"]))
        if call is None:
            return [], None
        told = self._run(call) if isinstance(call, ToolCall) else call
        if isinstance(told, ToolError):
            self._count_unread()
        return _user(programs.output(told).source), None

    def _count_unread(self) -> None:
        """A turn that was to be a call and can't be read as one is a call that failed."""
        self.calls += 1
        self.errors += 1

    def _run(self, call: ToolCall) -> ToolResult:
        """Run a call, or refuse it: what a sample may use has an end."""
        self.calls += 1
        refused = None
        if self.closed:
            refused = "this episode is over"
        elif self.max_tool_calls is not None and self.calls > self.max_tool_calls:
            refused = f"no more than {self.max_tool_calls} calls are allowed; answer now"
        elif self.max_tool_seconds is not None and self.seconds >= self.max_tool_seconds:
            refused = f"the calls have used up their {self.max_tool_seconds:g} s; answer now"
        if refused is not None:
            self.errors += 1
            return ToolResult(call, f"Error: {refused}", "refused", 0.0)
        result = self.toolbox.run(call)
        self.seconds += result.seconds
        self.errors += result.error is not None
        return result


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _without_empty_id(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "tool_call_id" or value}


def tool_factory(
    entries: Sequence[Any],
    *,
    call_format: CallFormat = "tool_call",
    timeout_s: float = 5.0,
    max_chars: int = 4000,
    max_tool_calls: int | None = None,
    max_tool_seconds: float | None = None,
    tell: bool = True,
) -> EnvironmentFactory:
    """Environments in which a policy has tools.

    Args:
        entries: as `mmreason.tools.registry.load_tools` takes them. The built-in tools end a call that takes too long
            by themselves, and are shared by all samples of this process. A function of a user's can't be ended, so with
            one among them each sample's tools run in a process of its own.
        timeout_s, max_chars: of one call, see `Toolbox`.
        call_format, max_tool_calls, max_tool_seconds: see `ToolEnvironment`.
        tell: prompts tell of the tools (see `prepare_prompts`); False leaves that to the data.

    Raises: ConfigError for unknown tools and limits out of their range; what a tool raises at its start.
    """
    from mmreason.tools.python import PythonTool
    from mmreason.tools.registry import load_tools

    if max_tool_calls is not None and max_tool_calls < 0:
        raise ConfigError(f"max_tool_calls={max_tool_calls} must be at least 0, or null for no limit")
    if max_tool_seconds is not None and not max_tool_seconds > 0:
        raise ConfigError(f"max_tool_seconds={max_tool_seconds} must be above 0, or null for no limit")
    tools = load_tools(entries)
    toolbox = Toolbox(tools, timeout_s=timeout_s, max_chars=max_chars)
    limits = (call_format, max_tool_calls, max_tool_seconds)
    # More programs at once would wait for one another, and that counts against the deadlines of all.
    workers = [tool.workers for tool in tools if isinstance(tool, PythonTool)]
    if call_format == "program" and programs.TOOL not in toolbox.names:
        raise ConfigError("call_format: program runs programs, so tools must have python among them")
    if any(isinstance(tool, FunctionTool) for tool in tools):
        make: Callable[[], Environment] = _Remote(tuple(entries), timeout_s, max_chars, limits)
    else:
        make = functools.partial(ToolEnvironment, toolbox, *limits)
    return EnvironmentFactory(
        make,
        "tools",
        isolated=isinstance(make, _Remote),
        tools=tuple(toolbox.schemas) if tell and call_format == "tool_call" else (),
        instructions=_instructions(toolbox, call_format) if tell else "",
        at_once=min(workers, default=None),
        call_limit_s=timeout_s,
        stops={"tool_call": (), "react": react.STOP, "program": programs.STOP}[call_format],
    )


class _Remote:
    """Makes tool environments where it is sent; the toolbox is made there once and inherited by all forks."""

    def __init__(self, entries: tuple[Any, ...], timeout_s: float, max_chars: int, limits: tuple[Any, ...]) -> None:
        self.arguments = (entries, timeout_s, max_chars, limits)
        self.toolbox: Toolbox | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        return self.arguments

    def __setstate__(self, arguments: tuple[Any, ...]) -> None:
        from mmreason.tools.registry import load_tools

        self.arguments = arguments
        entries, timeout_s, max_chars, _ = arguments
        # Past its deadline a call would go on in its thread: the process's deadline, which is longer, ends it.
        self.toolbox = Toolbox(load_tools(entries), timeout_s=timeout_s, max_chars=max_chars)

    def __call__(self) -> ToolEnvironment:
        assert self.toolbox is not None
        return ToolEnvironment(self.toolbox, *self.arguments[3])


def _instructions(toolbox: Toolbox, call_format: CallFormat) -> str:
    """What a system message tells where no chat template does."""
    if call_format == "react":
        functions = [schema["function"] for schema in toolbox.schemas]
        lines = [
            f"- {f['name']}: {f['description']} Arguments: {ArgumentSchema(f['name'], f['parameters']).signature()}"
            for f in functions
        ]
        return f"{react.INSTRUCTIONS}\n\nTools:\n" + "\n".join(lines)
    return _PROGRAM_INSTRUCTIONS if call_format == "program" else ""
