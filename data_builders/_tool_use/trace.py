"""A trace: what a model said, what it called and what came back. Written as training rows, read back, and run again.

Forms of a row:

    tool_calls  messages with `tool_calls`, answered by messages of role "tool"
    react       Thought / Action / Action Input in a turn, "Observation: ..." in the next (arXiv:2210.03629)
    fenced      ToRA's programs and their output in one text (arXiv:2309.17452)

In the text forms what the tools said stands in the conversation as well, and must carry no loss. So by default each
turn of the model is a row of its own, its earlier turns in the prompt (`Writing.rows`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from mmreason.prompting.prompts import TEXTS, fill
from mmreason.prompting.types import Lang
from mmreason.tools.formats import programs, react
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolResult
from mmreason.types import DataError, Example, Message

Form = Literal["tool_calls", "react", "fenced"]
Rows = Literal["turns", "trace"]
Thoughts = Literal["reasoning", "content"]
OBSERVATION = "Observation:"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the model that calls tools.

    Attributes:
        thought: what it says before the calls.
        calls: in order. results: one each; () where there is nothing that could run them (schemas alone).
        planted: the kind of a mistake that was put in; "" for a turn as it came.
    """

    thought: str
    calls: tuple[ToolCall, ...]
    results: tuple[ToolResult, ...] = ()
    planted: str = ""

    @property
    def failed(self) -> bool:
        """Whether a call of it ended in an error."""
        return any(result.error is not None for result in self.results)


@dataclass(frozen=True, slots=True)
class Trace:
    """Turns that call tools, and the answer.

    Attributes:
        thought: the last turn's, before the answer.
        final: the last turn's text, which states the answer; "" where the trace ends in its calls.
        answer: the answer alone.
    """

    turns: tuple[Turn, ...]
    thought: str = ""
    final: str = ""
    answer: str = ""

    @property
    def calls(self) -> list[ToolCall]:
        return [call for turn in self.turns for call in turn.calls]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How traces become rows.

    Attributes:
        form: see the module.
        rows: "turns": a row for each turn of the model, of the text forms; "trace": one row for all.
        thoughts: of the tool_calls form: `reasoning_content`, or the content before the calls.
        learn_errors: turns that failed carry loss, too.
        language: of the sentence that states an answer.
    """

    form: Form = "tool_calls"
    rows: Rows = "turns"
    thoughts: Thoughts = "reasoning"
    learn_errors: bool = False
    language: Lang = "en"


def stated(answer: str, language: Lang = "en") -> str:
    """The sentence that states an answer, as the strategies' worked examples have it."""
    return fill(TEXTS[language].bare_shot, answer=answer)


async def run_turn(toolbox: Toolbox, turn: Turn) -> Turn:
    """The turn with its calls run, in threads and one after the other."""
    results = [await asyncio.to_thread(toolbox.run, call) for call in turn.calls]
    return replace(turn, results=tuple(results))


def rows_of(trace: Trace, base: Example, writing: Writing) -> list[Example]:
    """The training rows of a trace.

    Args:
        base: the row's prompt (instructions included) and all its other columns; `id` gets a number where a trace
            becomes several rows.

    A turn that failed is in the prompt and not in a completion, unless `learn_errors`: what it teaches is the way back.

    Raises: ValueError for a thought that the form can't hold, such as one with the label "Action:" in it.
    """
    if writing.form == "tool_calls":
        return [_called(trace, base, writing)]
    said = _spoken(trace, writing)
    if writing.rows == "trace":
        return [_whole(said, base, writing)]
    rows = []
    for number, (text, _, failed) in enumerate(said):
        if not failed or writing.learn_errors:
            begun = _conversation(said[:number], writing.form)
            rows.append(_row(base, begun, [{"role": "assistant", "content": text}]))
    return [row | {"id": f"{base['id']}#{number}"} for number, row in enumerate(rows, 1)]  # type: ignore[misc]


def _row(base: Example, begun: Sequence[Message], completion: Sequence[Message]) -> Example:
    prompt = cast(list[Message], base["prompt"])
    return cast(Example, {**base, "prompt": [*prompt, *begun], "completion": list(completion)})


def _learned_from(turns: Sequence[Turn], writing: Writing) -> int:
    """The first turn behind the last one that failed."""
    if writing.learn_errors:
        return 0
    return max((number for number, turn in enumerate(turns, 1) if turn.failed), default=0)


# --------------------------------------------------------------------------------------------------------------------
# tool_calls


def call_id(number: int) -> str:
    """The id of a row's call, counted from 1. Mistral's templates want nine letters and digits."""
    return f"call{number:05d}"


def _called(trace: Trace, base: Example, writing: Writing) -> Example:
    groups: list[list[Message]] = []
    number = 0
    for turn in trace.turns:
        ids = [call_id(number + k) for k in range(1, len(turn.calls) + 1)]
        number += len(ids)
        said: dict[str, Any] = {"role": "assistant", **_thoughtful(turn.thought, "", writing)}
        said["tool_calls"] = [
            {"id": name, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for name, call in zip(ids, turn.calls, strict=True)
        ]
        answered = [
            {"role": "tool", "tool_call_id": name, "name": result.call.name, "content": result.content}
            for name, result in zip(ids, turn.results, strict=False)
        ]
        groups.append(cast(list[Message], [said, *answered]))
    start = _learned_from(trace.turns, writing)
    last = [{"role": "assistant", **_thoughtful(trace.thought, trace.final, writing)}] if trace.final else []
    completion = [message for group in groups[start:] for message in group] + cast(list[Message], last)
    return _row(base, [message for group in groups[:start] for message in group], completion)


def _thoughtful(thought: str, content: str, writing: Writing) -> dict[str, str]:
    if not thought.strip():
        return {"content": content}
    if writing.thoughts == "reasoning":
        return {"reasoning_content": thought, "content": content}
    return {"content": f"{thought}\n{content}" if content else thought}


def _arguments(call: ToolCall) -> dict[str, Any]:
    if isinstance(call.arguments, str):
        raise ValueError("a call whose arguments are no JSON object has no tool_calls form")
    return call.arguments


# --------------------------------------------------------------------------------------------------------------------
# The text forms

_Spoken = tuple[str, str, bool]
"""(what the model says in a turn, what the tools say to it, did it fail)"""


def _spoken(trace: Trace, writing: Writing) -> list[_Spoken]:
    said: list[_Spoken] = []
    for turn in trace.turns:
        for k, (call, result) in enumerate(zip(turn.calls, turn.results, strict=True)):
            thought = turn.thought if k == 0 else ""  # these forms have one call in a turn
            failed = result.error is not None
            if writing.form == "react":
                said.append((react.render(react.Step(thought, call)), react.render_result(result).strip(), failed))
            else:
                said.append((_with_program(thought, call), programs.output(result).source, failed))
    if trace.final:
        if writing.form == "react":
            thought = trace.thought or (trace.final if trace.final != trace.answer else "")
            said.append((react.render(react.Step(thought.strip(), final=trace.answer)), "", False))
        else:
            said.append(("\n".join(filter(None, (trace.thought, trace.final))), "", False))
    return said


def _with_program(thought: str, call: ToolCall) -> str:
    if call.name != programs.TOOL or not isinstance(call.arguments, dict):
        raise ValueError(f"the fenced form has programs only, no call of {call.name}")
    text = f"{thought}\n" if thought else ""
    return text + programs.program(call.arguments["code"]).source


def _conversation(said: Sequence[_Spoken], form: Form) -> list[Message]:
    """Earlier turns as a prompt has them: for ReAct a message each, for programs one answer that was begun."""
    if form == "fenced":
        text = "".join(f"{_ended(spoken)}{output}" for spoken, output, _ in said)
        return [{"role": "assistant", "content": text}] if text else []
    messages: list[Message] = []
    for spoken, output, _ in said:
        messages += [{"role": "assistant", "content": spoken}, {"role": "user", "content": output}]
    return messages


def _whole(said: Sequence[_Spoken], base: Example, writing: Writing) -> Example:
    if writing.form == "fenced":
        start = 0 if writing.learn_errors else max((n for n, turn in enumerate(said, 1) if turn[2]), default=0)
        text = "".join(f"{_ended(spoken)}{output}" for spoken, output, _ in said[start:])
        return _row(base, _conversation(said[:start], "fenced"), [{"role": "assistant", "content": text.rstrip("\n")}])
    return _row(base, _conversation(said[:-1], "react"), [{"role": "assistant", "content": said[-1][0]}])


def _ended(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


# --------------------------------------------------------------------------------------------------------------------
# Read back


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call of a row, and what the row says came back; None where the row ends before."""

    call: ToolCall
    content: str | None


def recorded_calls(row: Example) -> list[Recorded]:
    """The calls of a row in order, read from its messages: `rows_of` backwards.

    Raises: DataError for a row whose results answer no call.
    """
    form = (row.get("meta") or {}).get("form", "tool_calls")
    messages = [*cast(list[Message], row["prompt"]), *cast(list[Message], row["completion"])]
    if form == "react":
        return _acted(messages, row.get("tools") or [])
    return _fenced(messages) if form == "fenced" else _answered(messages, row.get("id", "?"))


def _answered(messages: Sequence[Message], name: str) -> list[Recorded]:
    found: list[Recorded] = []
    waiting: list[int] = []
    for message in messages:
        if message["role"] == "tool":
            if not waiting:
                raise DataError(f"row {name}: a result that answers no call", row=name, reason="tool_result")
            place = waiting.pop(0)
            found[place] = replace(found[place], content=str(message["content"]))
            continue
        waiting = []
        for call in message.get("tool_calls") or ():
            waiting.append(len(found))
            function = call["function"]
            found.append(Recorded(ToolCall(function["name"], dict(function["arguments"])), None))
    return found


def _acted(messages: Sequence[Message], schemas: Sequence[dict[str, Any]]) -> list[Recorded]:
    found: list[Recorded] = []
    for number, message in enumerate(messages):
        text = str(message["content"])
        if message["role"] != "assistant" or (call := react.parse(text, schemas).call) is None:
            continue
        following = messages[number + 1] if number + 1 < len(messages) else None
        is_answered = following is not None and str(following["content"]).startswith(OBSERVATION)
        content = str(following["content"]).removeprefix(OBSERVATION).strip() if following and is_answered else None
        found.append(Recorded(call, content))
    return found


def _fenced(messages: Sequence[Message]) -> list[Recorded]:
    found: list[Recorded] = []
    for message in messages:
        for block in programs.parse(str(message["content"])) if message["role"] == "assistant" else ():
            if block.kind == "program":
                found.append(Recorded(ToolCall(programs.TOOL, {"code": block.text}), None))
            elif block.kind == "output" and found:
                found[-1] = replace(found[-1], content=block.text)
    return found


def differences(calls: Sequence[Recorded], toolbox: Toolbox) -> list[str]:
    """Run the calls again: one sentence for each that now gives something else than is recorded.

    A call without a recorded result must succeed: it is what the model learns to do.
    """
    found = []
    for number, recorded in enumerate(calls, 1):
        result = toolbox.run(recorded.call)
        arguments = recorded.call.arguments
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        what = f"call {number}, {recorded.call.name} {shown:.200}"
        if recorded.content is None:
            if result.error is not None:
                found.append(f"{what}: it fails now: {result.content:.200}")
        elif recorded.content.strip() != result.content.strip():
            found.append(f"{what}: recorded {recorded.content[:200]!r}, now {result.content[:200]!r}")
    return found
