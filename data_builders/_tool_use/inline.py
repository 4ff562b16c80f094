"""Calls in plain text, as Toolformer writes them (arXiv:2302.04761, section 2): `[Calculator(3+4) → 7]`.

A call stands before the words that it shall help to predict, with one space behind it:

    The price rose by 15 of 60, or [Calculator(15 / 60 * 100) → 25] 25%.

Taking a call and its space out again gives the plain text. A result is put on one line and cut at `MAX_RESULT`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.prompting.prompts import fill
from mmreason.tools.formats import notes
from mmreason.tools.schemas import sole_text
from mmreason.tools.types import ToolCall, ToolResult
from mmreason.types import ConfigError, Message

ARROW = "→"
MAX_RESULT = 200
"""Characters of a result in the text."""
_END = re.compile(rf"\)(?:\]|[ \t]*(?:{ARROW}|->)[ \t]*(?P<result>[^\]\n]*)\])")


@dataclass(frozen=True, slots=True)
class Inline:
    """A call in a text.

    Attributes:
        place: in the plain text, before the character at which it stands.
        call: the call.
        result: as the text has it; None where it has none.
    """

    place: int
    call: ToolCall
    result: str | None = None


class InlineForm:
    """Reads and writes calls of some tools.

    Args: schemas: `Toolbox.schemas`; each tool must have one required text argument.
    Raises: ConfigError for a tool that hasn't.
    """

    def __init__(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        self.arguments: dict[str, str] = {}
        self.descriptions: dict[str, str] = {}
        for schema in schemas:
            function = schema["function"]
            argument = sole_text(function["parameters"])
            if argument is None:
                raise ConfigError(
                    f"kind=toolformer: the tool {function['name']!r} must take exactly one text; a call in plain text "
                    "is Name(text)"
                )
            self.arguments[function["name"]] = argument
            self.descriptions[function["name"]] = function["description"]
        names = "|".join(map(re.escape, self.arguments))
        self._start = re.compile(rf"\[(?P<name>{names})\(", re.IGNORECASE)

    def write(self, call: ToolCall, result: str | None = None) -> str:
        """e(c), or e(c, r) where there is a result. Raises: ValueError for a text that would not be read back."""
        text = call.arguments[self.arguments[call.name]] if isinstance(call.arguments, dict) else call.arguments
        written = f"[{shown_name(call.name)}({text})" + (f" {ARROW} {result}]" if result is not None else "]")
        _, found = self.read(f"{written} ")
        if [(one.call.arguments, one.result) for one in found] != [(call.arguments, result)]:
            raise ValueError(f"{written!r} would not be read back")
        return written

    def read(self, text: str) -> tuple[str, list[Inline]]:
        """(plain text, its calls in order)."""
        plain: list[str] = []
        found: list[Inline] = []
        position = length = 0
        while (start := self._start.search(text, position)) is not None:
            end = _END.search(text, start.end())
            if end is None:
                break
            plain.append(text[position : start.start()])
            length += start.start() - position
            name = next(name for name in self.arguments if name.lower() == start["name"].lower())
            call = ToolCall(name, {self.arguments[name]: text[start.end() : end.start()].strip()})
            result = end["result"]
            found.append(Inline(length, call, None if result is None else result.strip()))
            position = end.end() + text.startswith(" ", end.end())
        return "".join([*plain, text[position:]]), found

    def insert(self, plain: str, calls: Sequence[Inline]) -> str:
        """The text with calls and results in it. `read` gives both back. Raises: ValueError as `write`."""
        parts, position = [], 0
        for inline in sorted(calls, key=lambda one: one.place):
            parts += [plain[position : inline.place], self.write(inline.call, inline.result), " "]
            position = inline.place
        return "".join([*parts, plain[position:]])


def shown_name(name: str) -> str:
    return name[:1].upper() + name[1:]


def one_line(result: ToolResult) -> str:
    """A result as it stands in a text: on one line, without a closing bracket, not too long."""
    text = " ".join(result.content.split()).replace("]", ")").replace("[", "(")
    return text if len(text) <= MAX_RESULT else f"{text[: MAX_RESULT - 3].rstrip()}..."


def at_word(text: str, place: int) -> int:
    """The next place from here on at which no space stands, so that a call stands right before what it predicts."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def of_notes(text: str) -> tuple[str, list[Inline]]:
    """(text without GSM8K's notes, a calculator call in the place of each)."""
    plain, found = "", []
    for part in notes.split(text):
        if isinstance(part, ToolCall):
            found.append(Inline(len(plain), part))
        else:
            plain += part
    return plain, [Inline(at_word(plain, one.place), one.call) for one in found]


_ASK = """Add calls of tools to a text. A call is written [Name(input)] and stands right before the words that its \
result helps to predict. Write the text again, word for word, and add calls where they help; change nothing else. \
If no call helps, write the text as it is.

The tools:
{tools}

Input: Of the 1,400 people asked, 400 said yes, which is 28.6%.
Output: Of the 1,400 people asked, 400 said yes, which is [Calculator(400 / 1400 * 100)] 28.6%.

Input: The town lies on the Elbe, a river that flows into the North Sea.
Output: The town lies on the Elbe, a river that flows into [Search(mouth of the Elbe)] the North Sea.

Input: {text}
Output:"""


def request_for(form: InlineForm, text: str) -> list[Message]:
    """What a teacher is asked, so that it proposes calls (after section 2 and appendix A.2 of the paper)."""
    tools = "\n".join(
        f"- {shown_name(name)}(input): {form.descriptions[name]} Input: {argument}"
        for name, argument in form.arguments.items()
    )
    return [{"role": "user", "content": fill(_ASK, tools=tools, text=text)}]
