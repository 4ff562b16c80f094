"""Sets of tool calls that come in forms of their own.

- BFCL (gorilla.cs.berkeley.edu): ``question`` (turns of messages), ``function`` (schemas in its dialect),
  ``ground_truth`` (for each call, the values allowed for each argument; "" among them: it may be left out).
- APIBench (Gorilla, arXiv 2305.15334): ``code`` holds instruction and output as text, ``api_call`` the wanted call.
- ToRA (arXiv 2309.17452): ``messages`` with fenced programs and their output, ``gt`` (the gold), ``gt_cot``.
- ToolAlpaca (arXiv 2306.05301): an API per row, ``Instructions``, and the calls that answer each, ``Golden_Answers``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    extras,
    number_text,
    shorten,
    take_name,
    text_cell,
    user_message,
)
from mmreason.data.formats.conversations import check_messages, tool_calls, tool_schemas
from mmreason.tools.formats import programs
from mmreason.tools.schemas import standard_name
from mmreason.types import Example, Message

PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": programs.TOOL,
        "description": "Runs a Python program; shows what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "the whole program"}},
            "required": ["code"],
        },
    },
}
"""The tool that ToRA's programs call: that of mmreason.tools.python, in few words."""
_INSTRUCTION = re.compile(r"\{'Instruction': (['\"]?)(?P<text>.+?)\1, 'Output': \{", re.DOTALL)
_PARAMETERS = re.compile(r"^Parameters: (\{.*\})\s*$", re.MULTILINE)


def detect_bfcl(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question", "function"} <= columns


def parse_bfcl(row: Row, index: int) -> Example:
    """Completion: the true calls, each argument with the first value allowed. ``meta.ground_truth``: all of them."""
    turns = row.get("question")
    if not isinstance(turns, list) or len(turns) != 1:
        raise RowError("missing_prompt", f"'question' is {shorten(turns)}, not a list of one turn")
    tools = tool_schemas(row.get("function"))
    if not tools:
        raise RowError("bad_tools", f"'function' is {shorten(row.get('function'))}")
    example: Example = {
        "prompt": check_messages(turns[0], "question"),
        "tools": tools,
        "meta": {"kind": None, "choices": None},
    }
    truth = row.get("ground_truth")
    if truth is not None:
        calls = truth if isinstance(truth, list) else []
        example["completion"] = _calls_message([_true_call(call, tools) for call in calls])
        example["meta"]["ground_truth"] = truth
        _check_names(example)
    take_name(example, row)
    return example


def _true_call(call: Any, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not isinstance(call, Mapping) or len(call) != 1:
        raise RowError("bad_tool_call", f"'ground_truth' has {shorten(call)}")
    ((name, allowed),) = call.items()
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    needed = schemas.get(standard_name(str(name)), {}).get("required", ())
    # Some arguments are said to be optional here and required in the schema: those are given.
    settled = {
        key: [value for value in options if value != ""] if key in needed and isinstance(options, list) else options
        for key, options in (allowed.items() if isinstance(allowed, Mapping) else ())
    }
    return {"name": name, "arguments": _first_allowed(settled)}


def _first_allowed(value: Any) -> Any:
    """The first value that may stand there, all the way down; arguments whose first value is "" are left out."""
    if isinstance(value, Mapping):
        held = {
            name: options
            for name, options in value.items()
            if not (isinstance(options, list) and options[:1] in ([], [""]))
        }
        return {
            name: _first_allowed(options[0] if isinstance(options, list) else options) for name, options in held.items()
        }
    return [_first_allowed(item) for item in value] if isinstance(value, list) else value


def _calls_message(calls: list[dict[str, Any]]) -> list[Message]:
    if not calls:
        raise RowError("missing_completion", "there is no true call")
    return [{"role": "assistant", "content": "", "tool_calls": tool_calls(calls)}]


def _check_names(example: Example) -> None:
    """The calls must be of tools that the row has."""
    known = [tool["function"]["name"] for tool in example["tools"] or []]
    for message in example["completion"]:
        assert not isinstance(message, str)
        for call in message["tool_calls"]:
            if call["function"]["name"] not in known:
                raise RowError("bad_tool_call", f"{call['function']['name']!r} is none of the tools {', '.join(known)}")


def detect_apibench(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"code", "api_call", "api_data"} <= columns


def parse_apibench(row: Row, index: int) -> Example:
    """Prompt: the instruction inside ``code``. Completion and gold: the call. ``meta``: provider, domain, api_name."""
    found = _INSTRUCTION.match(text_cell(row, "code", "missing_prompt"))
    if found is None:
        raise RowError("missing_prompt", f"no instruction in {shorten(row['code'])}")
    call = text_cell(row, "api_call", "missing_completion")
    api = row.get("api_data")
    told = {name: api.get(name) for name in ("domain", "api_name", "functionality")} if isinstance(api, Mapping) else {}
    example: Example = {
        "prompt": user_message(found["text"].strip()),
        "completion": [{"role": "assistant", "content": call}],
        "answer": call,
        "meta": {"kind": "text", "choices": None} | extras(row, {"code", "api_call"}) | told,
    }
    return example


def detect_tora(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"messages", "gt", "gt_cot"} <= columns


def parse_tora(row: Row, index: int) -> Example:
    """Completion: text, programs as calls of the tool python, their output as results. Gold: ``gt``."""
    messages = check_messages(row.get("messages"), "messages", foreign=True)
    if [message["role"] for message in messages] != ["user", "assistant"] or not isinstance(
        messages[1]["content"], str
    ):
        raise RowError(
            "role_order", f"roles are {', '.join(message['role'] for message in messages)}, not user, assistant"
        )
    gold = number_text(row.get("gt"))
    if not gold:
        raise RowError("missing_answer", f"'gt' is {shorten(row.get('gt'))}")
    example: Example = {
        "prompt": messages[:1],
        "completion": programs_as_calls(messages[1]["content"]),
        "answer": gold,
        "meta": {"kind": None, "choices": None} | extras(row, {"gt"}),
    }
    if any("tool_calls" in message for message in example["completion"]):
        example["tools"] = [PYTHON]
    take_name(example, row)
    return example


def programs_as_calls(text: str) -> list[Message]:
    """A completion with fenced programs as messages: the text before a program and its call, its output, the rest."""
    messages: list[Message] = []
    said = ""
    for block in programs.parse(text):
        if block.kind == "program":
            call = {"name": programs.TOOL, "arguments": {"code": block.text}}
            messages.append({"role": "assistant", "content": said.strip(), "tool_calls": tool_calls(call)})
            said = ""
        elif block.kind == "output":
            if not messages or messages[-1]["role"] != "assistant":
                raise RowError("tool_result", f"the output {shorten(block.text)} follows no program")
            messages.append({"role": "tool", "name": programs.TOOL, "content": block.text})
        else:
            said += block.source
    if said.strip():
        messages.append({"role": "assistant", "content": said.strip()})
    return messages


def detect_toolalpaca(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"Instructions", "Golden_Answers", "Function_Description"} <= columns


def split_toolalpaca(row: Row) -> list[Row]:
    """A row for each instruction."""
    instructions, answers = row.get("Instructions"), row.get("Golden_Answers")
    if not isinstance(instructions, list) or not instructions:
        raise RowError("missing_prompt", f"'Instructions' is {shorten(instructions)}")
    if not isinstance(answers, list) or len(answers) != len(instructions):
        raise RowError(
            "missing_completion", f"{len(instructions)} instructions, 'Golden_Answers' is {shorten(answers)}"
        )
    return [
        {
            "instruction": instruction,
            "calls": calls,
            "functions": row.get("Function_Description"),
            "api": row.get("Name"),
        }
        for instruction, calls in zip(instructions, answers, strict=True)
    ]


def parse_toolalpaca(row: Row, index: int) -> Example:
    """Completion: all calls of the golden answer in one turn. Tools: the functions as their descriptions tell them."""
    functions = row.get("functions")
    if not isinstance(functions, Mapping):
        raise RowError("bad_tools", f"'Function_Description' is {shorten(functions)}")
    calls = row.get("calls")
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError("bad_tool_call", f"'Golden_Answers' has {shorten(calls)}")
    example: Example = {
        "prompt": user_message(text_cell(row, "instruction", "missing_prompt")),
        "completion": _calls_message(
            [{"name": call.get("Action"), "arguments": call.get("Action_Input")} for call in calls]
        ),
        "tools": tool_schemas([_described(name, text) for name, text in functions.items() if name != "components"]),
        "meta": {"kind": None, "choices": None, "api": row.get("api")},
    }
    _check_names(example)
    return example


def _described(name: str, text: str) -> dict[str, Any]:
    """The schema of a function from ToolAlpaca's words: ``Parameters: {"page": "integer. The page."}``."""
    found = _PARAMETERS.search(text)
    try:
        told = json.loads(found[1]) if found else {}
    except ValueError as error:
        raise RowError("bad_tools", f"the parameters of {name!r} are no JSON: {error}") from None
    properties = {key: _property(str(words)) for key, words in told.items()}
    required = [key for key, words in told.items() if str(words).lower().startswith("required")]
    return {
        "name": name,
        "description": text.split("\nParameters:")[0].strip(),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }


def _property(words: str) -> dict[str, Any]:
    kind = re.search(r"\b(string|integer|number|boolean|array|object)\b", words.lower().split(". One of")[0][:40])
    return ({"type": kind[1]} if kind else {}) | {"description": words}


BFCL = Format("bfcl", parse_bfcl, detect_bfcl, own_template=True)
APIBENCH = Format("apibench", parse_apibench, detect_apibench, own_template=True)
TORA = Format("tora", parse_tora, detect_tora, own_template=True)
TOOLALPACA = Format("toolalpaca", parse_toolalpaca, detect_toolalpaca, own_template=True, split=split_toolalpaca)
