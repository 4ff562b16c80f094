"""Conversations in OpenAI's form: ``messages`` of ``role``, ``content``, ``tool_calls``, ``reasoning_content``.

Contents are texts or lists of parts; arguments of calls may be JSON text. Thoughts may be called ``reasoning`` or
``thinking``, stand between ``<think>`` and ``</think>`` at the start of a text, or be parts of type "reasoning". Rows
may bring a ``label`` (KTO) or ``chosen`` and ``rejected`` answers (DPO) to the conversation. Turns need not alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import Format, Row, RowError, extras, shorten, take_label, take_name
from mmreason.data.formats.conversations import check_messages, check_results, split_turns, tool_schemas
from mmreason.types import Example, Message

USED = frozenset({"messages", "conversations", "tools", "system", "label", "kto_tag", "chosen", "rejected", "prompt"})
PAIR = ("chosen", "rejected")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "messages" in columns and not {"prompt", *PAIR} <= columns


def parse(row: Row, index: int) -> Example:
    """Prompt and completion: see mmreason.data.formats.conversations."""
    return conversation(row, row.get("messages"), "messages", lambda turns, name: turns)


def conversation(row: Row, cell: Any, name: str, unify: Callable[[Any, str], Any]) -> Example:
    """The Example of a row that holds a conversation.

    Args:
        cell: the conversation. name: of its column.
        unify: (turns, name of their column) -> the same as messages; those of ``chosen`` and ``rejected`` pass through
            it, too.
    """
    if not cell:
        raise RowError("missing_prompt", f"{name!r} is {shorten(cell)}")
    messages = with_system(check_messages(unify(cell, name), name, foreign=True), row)
    example: Example = {"meta": {"kind": None, "choices": None} | extras(row, USED)}
    if row.get("chosen") is not None or row.get("rejected") is not None:
        if messages[-1]["role"] == "assistant":
            raise RowError("bad_pair", f"{name!r} ends with the model's turn, before 'chosen' and 'rejected'")
        example |= {"prompt": messages} | pair_of(row, messages, unify)  # type: ignore[operator]
    else:
        prompt, completion = split_turns(messages)
        example["prompt"] = prompt
        if completion:
            example["completion"] = completion
    take_label(example, row)
    tools = tool_schemas(row.get("tools"))
    if tools:
        example["tools"] = tools
    take_name(example, row)
    return example


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages with the text of the column ``system`` before them, where it has one."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise RowError("bad_messages", "the row has two system prompts, in 'system' and in the conversation")
        return messages
    return [{"role": "system", "content": system}, *messages]


def pair_of(row: Row, prompt: Sequence[Message], unify: Callable[[Any, str], Any]) -> Example:
    """``chosen`` and ``rejected`` of a row as answers to the prompt: each a text, a message or a list of messages."""
    sides: dict[str, list[Message]] = {}
    for side in PAIR:
        cell = row.get(side)
        if cell is None or cell == "" or cell == []:
            raise RowError("missing_pair", f"{side!r} is {shorten(cell)}")
        if isinstance(cell, str):
            cell = {"role": "assistant", "content": cell}
        turns = [cell] if isinstance(cell, Mapping) else cell
        answer = check_messages(unify(turns, side), side, foreign=True)
        if answer[0]["role"] != "assistant" or any(message["role"] not in ("assistant", "tool") for message in answer):
            roles = ", ".join(message["role"] for message in answer)
            raise RowError("bad_pair", f"{side!r} is no answer of the model: its roles are {roles}")
        sides[side] = answer
    return checked_pair(prompt, sides["chosen"], sides["rejected"])


def checked_pair(prompt: Sequence[Message], chosen: list[Message], rejected: list[Message]) -> Example:
    """The pair, where the two differ and their tools' results have calls."""
    if chosen == rejected:
        raise RowError("bad_pair", f"both are {shorten(chosen[-1]['content'])}")
    for answer in (chosen, rejected):
        check_results([*prompt, *answer])
    return {"chosen": chosen, "rejected": rejected}


def common_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of two conversations that begin alike; the prompt ends where two answers begin.

    Raises: RowError where they are the same, or part at the user's words.
    """
    if chosen == rejected:
        raise RowError("bad_pair", f"both are {shorten(chosen)}")
    pairs = zip(chosen, rejected, strict=False)
    same = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    rests = chosen[same:], rejected[same:]
    if not all(rest and rest[0]["role"] == "assistant" for rest in rests):
        raise RowError("bad_pair", f"they part at message {same + 1}, which is not an answer of the model in both")
    if not same:
        raise RowError("missing_prompt", "chosen and rejected begin with the model's turn")
    return chosen[:same], *rests


FORMAT = Format(
    "messages",
    parse,
    detect,
    own_template=True,
    many_sets=True,
    mapped=("messages", "tools", "system", "images", "label", "chosen", "rejected", "id", "source"),
)
