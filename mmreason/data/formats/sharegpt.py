"""ShareGPT's form: ``conversations`` of turns ``from``/``value`` (or ``role``/``content``); LLaVA's has images.

Roles: human, gpt, system, function_call (its value is a call as JSON, or a list of calls), observation (a tool's
result), and the names that OpenAI's form has. After an optional system turn, turns of the user's side (human,
observation) and of the model's (gpt, function_call) must alternate, beginning with the user's, as FastChat and
LLaMA-Factory demand it; only the results of several calls may follow each other. Thoughts between ``<think>`` and
``</think>`` at the start of a turn become ``reasoning_content``. Rows may have ``tools`` (a list, or its JSON text),
``system``, ``label``, ``chosen`` and ``rejected``. A mark ``<image>`` stands for an image; rows of a set with images
must have as many of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import Format, Row, RowError, shorten
from mmreason.data.formats.conversations import ALIASES, ROLES, read_json
from mmreason.data.formats.messages import PAIR, conversation
from mmreason.types import Example

IMAGES = frozenset({"image", "images"})
_MODEL = ("gpt", "assistant", "model", "function_call", "tool_call")
_MAPPED = ("conversations", "tools", "system", "images", "label", *PAIR, "id", "source")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "conversations" in columns and not IMAGES & columns


def detect_llava(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "conversations" in columns and bool(IMAGES & columns)


def parse(row: Row, index: int) -> Example:
    """Prompt: all before the model's last turn. Completion: that turn, with its calls and their results."""
    return conversation(row, row.get("conversations"), "conversations", _unify)


def parse_llava(row: Row, index: int) -> Example:
    """As `parse`; rows without an image may have no mark."""
    example = parse(row, index)
    if not IMAGES & row.keys():
        example["images"] = []
    return example


def _unify(turns: Any, name: str) -> Any:
    """Turns as messages, in the order that the form demands."""
    turns = read_json(turns, name) if isinstance(turns, str) else turns
    if not isinstance(turns, list):
        return turns
    messages = [_message(turn, name) for turn in turns]
    if name not in PAIR:
        _check_order(messages)
    return messages


def _message(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowError("bad_messages", f"{name!r} has the turn {shorten(turn)}")
    role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if "from" in turn and content is not None and not isinstance(content, str):
        raise RowError("mixed_types", f"'value' of a turn of {shorten(role)} is {shorten(content)}, no text")
    rest = {key: cell for key, cell in turn.items() if key not in ("from", "value", "role", "content")}
    return {"role": role, "content": content} | rest


def _check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    known = [message["role"] in ROLES or message["role"] in ALIASES for message in messages]
    if not all(known):
        return  # the unknown role is the fault to name
    roles = [str(message["role"]) for message in messages]
    before = "system"
    for number, role in enumerate(roles, 1):
        system = ALIASES.get(role, role) in ("system", "developer")
        result = ALIASES.get(role, role) == "tool"
        if system and number == 1:
            continue
        users_turn = before == "system" or before in _MODEL
        another_result = result and ALIASES.get(before, before) == "tool"
        if system or ((role in _MODEL) == users_turn and not another_result):
            raise RowError("role_order", f"turn {number} of {len(roles)} is {role!r} after {before!r}")
        before = role


FORMAT = Format("sharegpt", parse, detect, own_template=True, many_sets=True, mapped=_MAPPED)
LLAVA = Format("llava", parse_llava, detect_llava, own_template=True, many_sets=True, mapped=_MAPPED)
