"""Traces without a teacher: from programs, from calculator notes, from recorded calls, from schemas with true calls.

Nothing of the past is taken over unseen: programs and notes are run, a recorded result must come out again, a call
must fit its tool's schema.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from data_builders._tool_use.rows import Workshop
from data_builders._tool_use.trace import Trace, Turn, run_turn, stated
from data_builders.building.build import Drop, Made
from mmreason.answers import extract
from mmreason.data.formats.tool_sets import programs_as_calls
from mmreason.prompting.types import Lang
from mmreason.tools.formats import notes, programs
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall
from mmreason.types import ConfigError, Example, Message

_INTRO: dict[Lang, tuple[str, ...]] = {
    "en": ("I write a program for this.", "This can be computed by a program.", "I compute it step by step in Python."),
    "zh": ("我写一个程序来计算。", "这可以用程序来算。", "用 Python 一步步计算。"),
}
_CODE = re.compile(r"^(?:def \w+\(|import \w|from [\w.]+ import |print\(|\w+ = )", re.MULTILINE)
_SOLUTION = re.compile(r"^def (solution|solve|answer)\(\)", re.MULTILINE)
_WHOLE = re.compile(r"(-?\d+)\.0+")
_MARK = re.compile(r"\n?[ \t]*####.*\Z", re.DOTALL)


async def from_program(shop: Workshop, task: str, example: Example) -> Made:
    """A trace from a row whose completion is a program, has fenced programs, or has recorded calls of our tools."""
    messages = cast(list[Message], example["completion"])
    if not any(message.get("tool_calls") for message in messages):
        text = solution_text(example)
        if not any(block.kind == "program" for block in programs.parse(text)):
            return await _from_code(shop, task, example, text)
        messages = programs_as_calls(text)
    return await _from_record(shop, task, example, messages)


def solution_text(example: Example) -> str:
    """The worked solution of a row: the thoughts where it has some, else the content."""
    last = cast(list[Message], example["completion"])[-1]
    return last.get("reasoning_content") or str(last["content"])


def unmarked_solution(example: Example) -> str:
    """The worked solution without GSM8K's line of the answer ("#### 72")."""
    return _MARK.sub("", solution_text(example)).strip()


async def _from_code(shop: Workshop, task: str, example: Example, code: str) -> Made:
    if _CODE.search(code) is None:
        return Made(drops=[Drop("no_program", code[:500])])
    named = _SOLUTION.search(code)
    if named is not None and "print(" not in code:
        code = f"{code.rstrip()}\n\nprint({named[1]}())"
    intro = random.Random(f"{shop.seed} {task} intro").choice(_INTRO[shop.writing.language])
    turn = await run_turn(shop.toolbox, Turn(intro, (ToolCall(programs.TOOL, {"code": code}),)))
    if turn.failed:
        return Made(drops=[Drop("program_failed", f"{code}\n{turn.results[0].content}")])
    printed = turn.results[0].content.strip().rpartition("\n")[2].strip()
    whole = _WHOLE.fullmatch(printed)
    answer = whole[1] if whole else printed
    trace = Trace((turn,), final=stated(answer, shop.writing.language), answer=answer)
    return await shop.finish(task, example, trace)


async def _from_record(shop: Workshop, task: str, example: Example, messages: Sequence[Message]) -> Made:
    """The recorded turns run again; a result that is another now makes what follows it untrue."""
    turns: list[Turn] = []
    recorded: list[list[str]] = []
    final: Message | None = None
    for message in messages:
        if message["role"] == "tool":
            recorded[-1].append(str(message["content"]))
        elif message.get("tool_calls"):
            calls = tuple(ToolCall(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"])
            thought = "\n".join(filter(None, (message.get("reasoning_content"), str(message["content"]).strip())))
            turns.append(Turn(thought, calls))
            recorded.append([])
        else:
            final = message
    if not turns or final is None or not str(final["content"]).strip():
        return Made(drops=[Drop("no_answer" if turns else "no_call", str(messages)[:500])])
    done = [await run_turn(shop.toolbox, turn) for turn in turns]
    for turn, contents in zip(done, recorded, strict=True):
        for result, content in zip(turn.results, contents, strict=False):
            if result.content.strip() != content.strip():
                text = f"{result.call.arguments}\nrecorded: {content}\nnow: {result.content}"
                return Made(drops=[Drop("other_result", text)])
    meta = example.get("meta") or {}
    text = str(final["content"]).strip()
    answer = extract(text, meta.get("kind"), meta.get("choices")).answer or text
    trace = Trace(tuple(done), thought=final.get("reasoning_content", ""), final=text, answer=answer)
    return await shop.finish(task, example, trace)


async def from_notes(shop: Workshop, task: str, example: Example) -> Made:
    """A trace from a solution with GSM8K's calculator notes: each note becomes a call, run by the calculator."""
    text = unmarked_solution(example)
    for note in notes.find(text):
        if note.verdict in ("wrong", "unreadable"):  # what follows was written for the note's own result
            return Made(drops=[Drop(f"{note.verdict}_note", f"{text[note.start : note.end]} in: {text}")])
    parts = notes.split(text)
    turns: list[Turn] = []
    said = ""
    for part in parts:
        if isinstance(part, ToolCall):
            turns.append(await run_turn(shop.toolbox, Turn(said.strip(), (part,))))
            said = ""
        else:
            said += part
    if not turns:
        return Made(drops=[Drop("no_call", text)])
    answer = example.get("answer") or ""
    final = f"{said.strip()}\n{stated(answer, shop.writing.language)}".strip()
    return await shop.finish(task, example, Trace(tuple(turns), final=final, answer=answer))


async def from_schema(shop: Workshop, task: str, example: Example) -> Made:
    """A row whose completion is the true calls: each is held against the schema of its tool. Nothing is run."""
    messages = [m for m in cast(list[Message], example.get("completion") or []) if m["role"] == "assistant"]
    calls = [call for message in messages[:1] for call in message.get("tool_calls", ())]
    if not calls:
        return Made(drops=[Drop("no_call", str(example["prompt"])[:500])])
    try:
        toolbox = schema_toolbox(example.get("tools") or [])
    except ConfigError as error:
        return Made(drops=[Drop("bad_tools", str(error))])
    turn = Turn("", tuple(ToolCall(c["function"]["name"], dict(c["function"]["arguments"])) for c in calls))
    for call in turn.calls:
        result = toolbox.run(call)
        if result.error is not None:
            return Made(drops=[Drop("bad_call", f"{call.name} {call.arguments}: {result.content}")])
    made = await replace(shop, toolbox=toolbox).finish(
        task, example, Trace((turn,)), {"ground_truth": (example.get("meta") or {}).get("ground_truth")}, check=False
    )
    return replace(made, counts={**made.counts, "parallel_calls": int(len(calls) > 1)})


class _Described:
    """A tool of which there is a schema only: it takes every call that fits."""

    def __init__(self, name: str, description: str, parameters: dict[str, Any]) -> None:
        self.name, self.description, self.parameters = name, description, parameters

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        return ""


def schema_toolbox(schemas: Sequence[Mapping[str, Any]]) -> Toolbox:
    """A toolbox of schemas alone: names and arguments are checked as by any other, nothing is run.

    Raises: ConfigError as `Toolbox`.
    """
    functions = [schema["function"] for schema in schemas]
    return Toolbox([_Described(f["name"], f.get("description", ""), f["parameters"]) for f in functions])
