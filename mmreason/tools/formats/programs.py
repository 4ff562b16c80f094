"""Fenced programs and their output: Program of Thoughts (arXiv:2211.12588) and ToRA (arXiv:2309.17452).

    ```python
    print(3 * 4)
    ```
    ```output
    12
    ```

A model writes text and programs; the host runs the last program and appends its output. A fence is a line of three or
more backticks, closed by a line of at least as many (CommonMark 0.31, section 4.5), so that an output which itself has
fences in it is wrapped in longer ones. Blocks in other languages are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmreason.tools.types import ToolCall, ToolError, ToolResult

STOP = ("```output",)
"""Where a completion must end: outputs are written by the host, never by the model."""
TOOL = "python"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_PROGRAMS = ("python", "python3", "py")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a completion.

    Attributes:
        kind: text (with blocks of other languages), program, or output.
        text: what it says, without fences.
        source: all of it as it stands in the completion.
        closed: False for a program or output whose closing fence is missing.
    """

    kind: Literal["text", "program", "output"]
    text: str
    source: str
    closed: bool = True


def parse(text: str, *, unlabelled: bool = False) -> list[Block]:
    """The blocks of a completion in order; `render` gives exactly the text back.

    Args:
        text: the completion.
        unlabelled: take blocks without any language for programs, too.
    """
    programs = (*_PROGRAMS, "") if unlabelled else _PROGRAMS
    blocks: list[Block] = []
    lines = _LINE.findall(text)
    held, number = 0, 0  # lines[held:number] are text that is not in a block yet
    while number < len(lines):
        fence = _fence(lines[number])
        if fence is None:
            number += 1
            continue
        ticks, info = fence
        end = _closing(lines, number + 1, ticks)
        language = info.partition(" ")[0].lower()  # CommonMark: the first word; ```python title="a.py"
        if language in (*programs, "output"):
            if held < number:
                blocks.append(_text(lines[held:number]))
            closed = end < len(lines)
            body = "".join(lines[number + 1 : end])
            kind: Literal["program", "output"] = "output" if language == "output" else "program"
            # The line end before a closing fence belongs to the fence.
            body = body.removesuffix("\n") if closed else body
            blocks.append(Block(kind, body, "".join(lines[number : end + 1]), closed))
            held = end + 1
        number = end + 1
    return [*blocks, _text(lines[held:])] if held < len(lines) else blocks


def render(blocks: Sequence[Block]) -> str:
    """The text of a completion."""
    return "".join(block.source for block in blocks)


def pending_call(text: str) -> ToolCall | ToolError | None:
    """The call of the last program, where no output follows it.

    Returns: None where there is no program or its output is there; a ToolError, for the model, where its closing fence
        is missing.
    """
    last = next((block for block in reversed(parse(text)) if block.kind != "text"), None)
    if last is None or last.kind == "output":
        return None
    if not last.closed:
        return ToolError("bad_arguments", "the program has no closing ``` and was not run")
    return ToolCall(TOOL, {"code": last.text})


def program(code: str) -> Block:
    """A program as a block of its own lines."""
    return _fenced("program", "python", code)


def output(result: ToolResult | ToolError) -> Block:
    """What follows a program: its output, or the error, in an output block."""
    return _fenced("output", "output", result.content if isinstance(result, ToolResult) else f"Error: {result}")


def _fenced(kind: Literal["program", "output"], language: str, text: str) -> Block:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Block(kind, text, f"{ticks}{language}\n{text}\n{ticks}\n")


def _text(lines: Sequence[str]) -> Block:
    joined = "".join(lines)
    return Block("text", joined, joined)


def _fence(line: str) -> tuple[int, str] | None:
    """(number of backticks, what follows them) of a line that is a fence."""
    unindented = line.lstrip(" ")
    ticks = len(unindented) - len(unindented.lstrip("`"))
    info = unindented[ticks:].strip()
    return None if ticks < 3 or "`" in info or len(line) - len(unindented) > 3 else (ticks, info)


def _closing(lines: Sequence[str], start: int, ticks: int) -> int:
    """The number of the line that closes a fence; len(lines) where none does."""
    for number in range(start, len(lines)):
        fence = _fence(lines[number])
        if fence is not None and not fence[1] and fence[0] >= ticks:
            return number
    return len(lines)
