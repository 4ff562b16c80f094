"""Options of reinforcement learning with tools, other environments, and unit tests. Imports no torch."""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers._options import _opt
from mmreason.trainers.arguments import PolicyConfig

_TASKS = "(ours) Arguments of data_builders.tool_tasks where no dataset is named, e.g. {task: search, n: 2000}."


@dataclass
class EnvironmentConfig(PolicyConfig):
    """The loop in which an environment answers the policy's turns."""

    output_dir: str = _opt("outputs/grpo_tools", "Checkpoints, rollouts, metrics and the final model.")
    max_completion_length: int = _opt(512, "Token limit of a whole episode, what the environment says included.")
    tool_tasks: dict[str, Any] | None = _opt(None, _TASKS)

    environment: str | dict[str, Any] | None = _opt(
        None, "(ours) A class: my_module.Game, path/to/file.py:Game, {name: one of those, …}. None: the tools."
    )
    max_turns: int = _opt(8, "(ours) Turns of the policy; an episode that isn't done by then counts as truncated.")
    environment_timeout: float = _opt(30.0, "(ours) Wall seconds of one answer of the environment.")
    on_environment_error: Literal["observe", "mask", "stop"] = _opt(
        "observe",
        "(ours) When an environment fails or hangs: the policy is shown the error; its episode gets no reward and is "
        "left out of the loss; or the run stops.",
    )

    tools: list[str | dict[str, Any]] = _opt(
        ["calculator"], "(ours) calculator, python, sql, search, or typed functions: my_module.look_up; {name: …, …}."
    )
    call_format: Literal["tool_call", "react", "program"] = _opt(
        "tool_call", "(ours) <tool_call> JSON of chat templates, ReAct's Action lines, or fenced python programs."
    )
    tell_of_tools: bool = _opt(
        True, "(ours) Prompts tell of the tools: by the chat template, or for react and program by a system message."
    )
    max_tool_calls: int | None = _opt(None, "(ours) Calls of one completion; more are answered by an error.")
    max_tool_seconds: float | None = _opt(None, "(ours) Wall seconds of all calls of one completion together.")
    tool_timeout: float = _opt(5.0, "(ours) Wall seconds of one call; below environment_timeout.")
    max_tool_chars: int = _opt(4000, "(ours) Characters of a result that the policy is shown.")


@dataclass
class CodeConfig(PolicyConfig):
    """The loop with unit tests as reward."""

    output_dir: str = _opt("outputs/grpo_code", "Checkpoints, rollouts, metrics and the final model.")
    tool_tasks: dict[str, Any] | None = _opt(None, _TASKS)
