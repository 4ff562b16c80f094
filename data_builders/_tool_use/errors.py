"""Wrong calls on purpose: what a model may get wrong, so that it learns the way back from the real error message.

A planted mistake is the first call of a trace with one thing wrong in it. It is run like any other call, and kept only
if it fails: the message that follows it in the row is the tool's own. Then comes the right call.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_builders._tool_use.trace import Trace, Turn
from mmreason._functions import did_you_mean
from mmreason.prompting.types import Lang
from mmreason.tools.schemas import sole_text
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall
from mmreason.types import ConfigError

Spoil = Callable[[ToolCall, Mapping[str, Any], random.Random], ToolCall | None]
"""(the right call, its tool's schema, random numbers) -> the wrong call; None where this mistake can't be made."""


def _unknown_tool(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    """The name with a letter left out, or another word in front."""
    at = rng.randrange(1, max(2, len(call.name)))
    names = [call.name[:at] + call.name[at + 1 :], f"run_{call.name}", f"{call.name}_tool"]
    return replace(call, name=rng.choice([name for name in names if name and len(name) <= 64]))


def _missing_argument(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    needed = [name for name in schema.get("required", ()) if name in call.arguments]
    if not needed or not isinstance(call.arguments, dict):
        return None
    gone = rng.choice(needed)
    return replace(call, arguments={name: value for name, value in call.arguments.items() if name != gone})


def _misspelt_argument(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    if not isinstance(call.arguments, dict) or not call.arguments:
        return None
    old = rng.choice(list(call.arguments))
    choices = [f"{old}s", f"input_{old}", old[:-1] if len(old) > 3 else f"{old}_value"]
    new = rng.choice([name for name in choices if name not in schema.get("properties", {})] or [f"{old}__"])
    return replace(call, arguments={new if name == old else name: value for name, value in call.arguments.items()})


def _wrong_type(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    if not isinstance(call.arguments, dict) or not call.arguments:
        return None
    name = rng.choice(list(call.arguments))
    value = call.arguments[name]
    wrong: Any = [value] if isinstance(value, (str, dict)) else str(value).lower()
    return replace(call, arguments=call.arguments | {name: wrong})


def _bad_json(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    """The arguments as a text that is no JSON: without the last brace, or with Python's quotes."""
    if not isinstance(call.arguments, dict):
        return None
    written = json.dumps(call.arguments, ensure_ascii=False)
    return replace(call, arguments=rng.choice([written[:-1], repr(call.arguments).replace("\n", " ")]))


def _syntax(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    return _with_text(call, schema, rng, _SYNTAX)


def _bad_name(call: ToolCall, schema: Mapping[str, Any], rng: random.Random) -> ToolCall | None:
    return _with_text(call, schema, rng, _NAMES)


MISTAKES: dict[str, Spoil] = {
    "unknown_tool": _unknown_tool,
    "missing_argument": _missing_argument,
    "misspelt_argument": _misspelt_argument,
    "wrong_type": _wrong_type,
    "bad_json": _bad_json,
    "syntax": _syntax,
    "bad_name": _bad_name,
}
"""Name -> what goes wrong. syntax, bad_name: within the program, expression or query. bad_json: react form only."""

_RETRIES: dict[Lang, dict[str, tuple[str, ...]]] = {
    "en": {
        "unknown_tool": ("There is no such tool; the name must be {name}.", "I wrote the tool's name wrong: {name}."),
        "missing_argument": ("The call lacked an argument. I give all of them.", "An argument was missing; once more."),
        "misspelt_argument": ("I named an argument wrong. With the right name:", "That argument is called otherwise."),
        "wrong_type": ("An argument had the wrong type. Again, with the right one:", "The type was wrong; I mend it."),
        "bad_json": ("The arguments were no JSON. I write them as one object.", "That could not be read; once more."),
        "syntax": ("There was a slip in what I wrote. Corrected:", "It could not be read as I wrote it; I correct it."),
        "bad_name": ("I used a name that isn't there. Corrected:", "A name was wrong in it; I correct that."),
    },
    "zh": {
        "unknown_tool": ("没有这个工具，应该是 {name}。", "工具名写错了，改为 {name}。"),
        "missing_argument": ("少了一个参数，补上再试。", "刚才漏了参数，重新调用。"),
        "misspelt_argument": ("参数名写错了，改正后再试。", "这个参数不叫这个名字，改正。"),
        "wrong_type": ("参数类型不对，改正后再试。", "类型错了，重新调用。"),
        "bad_json": ("参数不是合法的 JSON,重新写。", "刚才的参数无法读取，再写一次。"),
        "syntax": ("写法有误，改正如下。", "刚才的内容无法解析，改正后再试。"),
        "bad_name": ("用了不存在的名字，改正如下。", "其中一个名字错了，改正后再试。"),
    },
}


def mistakes_of(form: str) -> list[str]:
    """The mistakes that a form can show: arguments are text in ReAct alone, a fenced program has neither name nor
    arguments."""
    if form == "fenced":
        return ["syntax", "bad_name"]
    return [name for name in MISTAKES if name != "bad_json" or form == "react"]


def check_mistakes(names: Sequence[str], form: str) -> None:
    """Raises: ConfigError for an unknown mistake, and one that the form can't show."""
    for name in names:
        if name not in MISTAKES:
            known = ", ".join(MISTAKES)
            raise ConfigError(f"mistakes: {name!r} isn't known; known: {known}.{did_you_mean(name, MISTAKES)}")
        if name not in mistakes_of(form):
            raise ConfigError(f"mistakes: form={form} can't show {name}, only {', '.join(mistakes_of(form))}")


async def plant(
    trace: Trace, toolbox: Toolbox, rng: random.Random, kinds: Sequence[str], language: Lang = "en"
) -> Trace | None:
    """The trace with a wrong first call in front of the right one; None where no mistake of these kinds fails.

    The thought of the first turn now leads to the wrong call, the right one follows a short thought about the error.
    """
    first = trace.turns[0]
    schemas = {schema["function"]["name"]: schema["function"]["parameters"] for schema in toolbox.schemas}
    for kind in rng.sample(list(kinds), len(kinds)):
        wrong = MISTAKES[kind](first.calls[0], schemas[first.calls[0].name], rng)
        if wrong is None or wrong == first.calls[0]:
            continue
        result = await asyncio.to_thread(toolbox.run, wrong)
        if result.error is None:
            continue
        thought = rng.choice(_RETRIES[language][kind]).format(name=first.calls[0].name)
        turns = (Turn(first.thought, (wrong,), (result,), kind), replace(first, thought=thought), *trace.turns[1:])
        return replace(trace, turns=turns)
    return None


# --------------------------------------------------------------------------------------------------------------------
# Mistakes in a program, an expression or a query


def _with_text(
    call: ToolCall, schema: Mapping[str, Any], rng: random.Random, table: Mapping[str, Callable[..., str | None]]
) -> ToolCall | None:
    argument = sole_text(schema)
    if call.name not in table or argument is None or not isinstance(call.arguments, dict):
        return None
    new = table[call.name](str(call.arguments[argument]), rng)
    return None if new is None else replace(call, arguments=call.arguments | {argument: new})


def _broken_expression(text: str, rng: random.Random) -> str | None:
    return rng.choice([f"{text} =", f"({text}", f"{text} +"])


def _broken_program(text: str, rng: random.Random) -> str | None:
    """A colon or a closing parenthesis left out."""
    places = [match.start() for match in re.finditer(r":(?=[ \t]*(?:\n|\Z))|\)(?=[ \t]*(?:\n|\Z))", text)]
    if not places:
        return None
    at = rng.choice(places)
    return text[:at] + text[at + 1 :]


def _broken_query(text: str, rng: random.Random) -> str | None:
    words = list(re.finditer(r"(?i)\b(?:select|from|where|group by|order by)\b", text))
    if not words:
        return None
    at = rng.choice(words)
    return text[: at.start()] + at[0][:-1] + text[at.end() :]


def _unbound_expression(text: str, rng: random.Random) -> str | None:
    numbers = list(re.finditer(r"\d+(?:\.\d+)?", text))
    if not numbers:
        return None
    at = rng.choice(numbers)
    return text[: at.start()] + rng.choice("xyn") + text[at.end() :]


def _unbound_program(text: str, rng: random.Random) -> str | None:
    """A variable of the program misspelt where it is last used."""
    bound = re.findall(r"(?m)^[ \t]*([a-z]\w{2,})[ \t]*=[^=]", text)
    uses = [name for name in dict.fromkeys(bound) if len(re.findall(rf"\b{name}\b", text)) > 1]
    if not uses:
        return None
    name = rng.choice(uses)
    at = list(re.finditer(rf"\b{name}\b", text))[-1]
    return text[: at.start()] + name[:-1] + text[at.end() :]


def _unknown_column(text: str, rng: random.Random) -> str | None:
    names = list(
        re.finditer(r"(?i)(?:\bselect\s+(?:distinct\s+)?|\bfrom\s+|\bwhere\s+|\bby\s+)([a-z_]\w*)(?!\w*\()", text)
    )
    if not names:
        return None
    at = rng.choice(names)
    return text[: at.end(1)] + "_x" + text[at.end(1) :]


_SYNTAX: dict[str, Callable[[str, random.Random], str | None]] = {
    "calculator": _broken_expression,
    "python": _broken_program,
    "sql": _broken_query,
}
_NAMES: dict[str, Callable[[str, random.Random], str | None]] = {
    "calculator": _unbound_expression,
    "python": _unbound_program,
    "sql": _unknown_column,
}
