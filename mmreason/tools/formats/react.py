"""ReAct (arXiv:2210.03629): thoughts, actions and observations in turn, in plain text.

    Thought: I need the product.
    Action: calculator
    Action Input: {"expression": "3*4"}
    Observation: 12
    Thought: I know the answer.
    Final Answer: 12

The paper's own spelling is read too: numbered labels (`Thought 1:`, `Action 2:`), `Action: search[Colorado orogeny]`,
and `finish[answer]` as the final answer. Labels stand at the start of a line, in any case, in bold (`**Action:**`) or
not, with a full-width colon or not; 思考, 行动, 行动输入, 观察 and 最终答案 are labels as well.

A step is what a model writes in one turn, up to `STOP`. The input of an action is a JSON object, or the bare text of a
tool that takes one text (`schemas.sole_text`); a code
fence around it is taken off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.tools._objects import read_object
from mmreason.tools.schemas import sole_text
from mmreason.tools.types import ToolCall, ToolError, ToolResult

STOP = ("\nObservation", "\n观察")
"""Where a completion must end: observations are written by the host, never by the model."""
INSTRUCTIONS = """Answer the question with the help of tools. Write in this form:

Thought: what you think about what to do
Action: the name of one tool
Action Input: its arguments as a JSON object
Observation: the result (it will be given to you)
... (Thought, Action, Action Input, Observation as often as needed)
Thought: I know the answer
Final Answer: the answer"""

_LABELS = {
    "thought": "thought", "思考": "thought", "action": "action", "行动": "action", "action input": "input",
    "行动输入": "input", "observation": "observation", "观察": "observation", "final answer": "final",
    "最终答案": "final",
}  # fmt: skip
_LABEL = re.compile(
    r"^[ \t]*(?P<bold>\**)"
    r"(?P<label>action input|final answer|thought|action|observation|思考|行动输入|行动|观察|最终答案)"
    r"(?:[ \t]*\d+)?(?:(?P=bold)[ \t]*[:：]|[ \t]*[:：](?P=bold))[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_BRACKETS = re.compile(r"(?P<name>[\w-]+)\[(?P<text>.*)\]", re.DOTALL)
_FENCED = re.compile(r"```\w*\n(?P<body>.*)\n```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """What a model wrote in one turn.

    Attributes:
        thought: its thought, "" where there is none.
        call: the action; None where there is a final answer or an error.
        final: the final answer; None where there is none yet.
        error: why there is neither, for the model; None where there is one of them.
    """

    thought: str
    call: ToolCall | None = None
    final: str | None = None
    error: ToolError | None = None


def parse(text: str, schemas: Sequence[Mapping[str, Any]] = ()) -> Step:
    """The step that a completion is.

    Args:
        text: the completion; what follows an `Observation:` label is not read, since a model that goes on there makes
            observations up.
        schemas: `Toolbox.schemas`; they say which tools take a bare text as input.
    """
    found = _sections(text)
    before = next((i for i, (label, _) in enumerate(found) if label == "observation"), len(found))
    found = found[:before]
    thought = "\n".join(content for label, content in found if label == "thought")
    actions = [(i, content) for i, (label, content) in enumerate(found) if label == "action"]
    finals = [content for label, content in found if label == "final"]
    if len(actions) + len(finals) != 1:
        what = "neither an action nor a final answer" if not actions and not finals else "more than one of them"
        message = f"a turn ends in one `Action:` with its `Action Input:`, or in one `Final Answer:`; there is {what}"
        return Step(thought, error=ToolError("bad_arguments", message))
    if finals:
        return Step(thought, final=finals[0])
    place, action = actions[0]
    given = found[place + 1][1] if place + 1 < len(found) and found[place + 1][0] == "input" else None
    return _action(thought, action, given, schemas)


def render(step: Step) -> str:
    """The text of a step. `parse` gives it back (with arguments as a JSON object).

    Raises: ValueError for a step with neither call nor final answer, and for a text that would be read as a label.
    """
    lines = [f"Thought: {_plain(step.thought)}"] if step.thought else []
    if step.final is not None:
        lines.append(f"Final Answer: {_plain(step.final)}")
    elif step.call is not None:
        arguments = step.call.arguments
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        lines += [f"Action: {step.call.name}", f"Action Input: {_plain(written)}"]
    else:
        raise ValueError("a step without action and final answer has no text of its own")
    return "\n".join(lines)


def render_result(result: ToolResult | ToolError) -> str:
    """The observation that follows a step, with line ends around it; for a step's `error` too."""
    content = result.content if isinstance(result, ToolResult) else f"Error: {result}"
    return f"\nObservation: {content}\n"


def _sections(text: str) -> list[tuple[str, str]]:
    """(label, content) in order; text before the first label is a thought."""
    matches = list(_LABEL.finditer(text))
    found = []
    start = text[: matches[0].start()] if matches else text
    if start.strip():
        found.append(("thought", start.strip()))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    for match, end in zip(matches, ends, strict=False):
        content = text[match.end() : end]
        found.append((_LABELS[match["label"].lower()], content.strip()))
    return found


def _action(thought: str, action: str, given: str | None, schemas: Sequence[Mapping[str, Any]]) -> Step:
    """The step of an action and its input."""
    brackets = _BRACKETS.fullmatch(action)
    if brackets is not None and given is None:
        name, text = brackets["name"], brackets["text"]
        if name.lower() == "finish":
            return Step(thought, final=text)
        return Step(thought, call=ToolCall(name, _bare(name, text, schemas)))
    name = action.strip("`*\"' ")
    if not name or "\n" in name or given is None:
        message = "an action is written as `Action: tool` and, on the next line, `Action Input: {...}`"
        return Step(thought, error=ToolError("bad_arguments", message))
    if (fenced := _FENCED.fullmatch(given)) is not None:
        given = fenced["body"]
    if not given.startswith("{"):
        return Step(thought, call=ToolCall(name, _bare(name, given, schemas)))
    try:
        return Step(thought, call=ToolCall(name, read_object(given)))
    except ValueError:
        return Step(thought, call=ToolCall(name, given))


def _bare(name: str, text: str, schemas: Sequence[Mapping[str, Any]]) -> dict[str, Any] | str:
    """A bare text as the one argument of a tool that takes one text; the text itself for any other tool."""
    for schema in schemas:
        function = schema["function"]
        if function["name"] == name:
            argument = sole_text(function["parameters"])
            return text if argument is None else {argument: text}
    return text


def _plain(text: str) -> str:
    if _LABEL.search(text) or text != text.strip():
        raise ValueError(f"{text[:80]!r} would not be read back: it has a label in it, or space around it")
    return text
