"""Asking a judge and reading its answer. What can't be read is said to be unreadable; nothing is guessed.

A judge may quote what it judges, so a rating counts only where the judge was told to put it: in the field of the JSON,
or in the last lines of its text. Two different ratings on lines of their own are contradictory, whichever comes last.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from mmreason.clients.judge_types import Call, Usage
from mmreason.clients.types import Completer, EndpointError, Reply, Request

T = TypeVar("T")
V = TypeVar("V")

_FIELD = re.compile(r"(?P<label>[^\[\]:：]+)[:：]\s*\[\[(?P<value>[^\[\]]*)\]\]")
_MARKUP = " \t*_`#>-.。"


class UnreadableError(Exception):
    """A judge's answer without a readable verdict; `reason` is a code for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def ask(completer: Completer, request: Request, read: Callable[[Reply], tuple[V, str]]) -> Call[V]:
    """One call, whatever becomes of it.

    Args:
        completer: the judge.
        request: what to ask.
        read: from the reply to the verdict and the explanation; raises UnreadableError.
    """
    try:
        reply = await completer.complete(request)
    except EndpointError as error:
        # The server did answer, but not with what the schema asks for: that is the judge's failing, not the line's.
        status = "unreadable" if error.kind == "schema" else "error"
        return Call(status=status, reason=error.kind, detail=str(error), usage=Usage(failed=1))  # type: ignore[arg-type]
    usage = Usage(
        calls=1,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cost=reply.cost or 0.0,
        unpriced=int(reply.cost is None),
        from_ledger=int(reply.from_ledger),
    )
    try:
        if reply.finish_reason == "length":
            raise UnreadableError("cut_off")
        value, explanation = read(reply)
    except UnreadableError as error:
        return Call(status="unreadable", text=reply.text, reason=error.reason, usage=usage)
    return Call(status="ok", value=value, explanation=explanation, text=reply.text, usage=usage)


async def in_order(work: Callable[[T], Awaitable[V]], items: Sequence[T], concurrency: int) -> list[V]:
    """`work` on every item, at most `concurrency` at a time; results in the order of the items.

    What `work` raises stops the rest and comes out as it is.
    """
    results: dict[int, V] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for i, item in waiting:  # shared by all workers: each takes the next
            results[i] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # a user's error is to be met as such, not in a group
    return [results[i] for i in range(len(items))]


def json_object(reply: Reply) -> dict[str, Any]:
    """The object of a structured answer. Raises: UnreadableError."""
    if not isinstance(reply.parsed, dict):
        raise UnreadableError("no_json")
    return reply.parsed


def json_explanation(value: dict[str, Any]) -> str:
    return str(value.get("explanation") or "")


def last_fields(text: str, labels: Sequence[str]) -> tuple[dict[str, str], str]:
    """The values of the lines `label: [[value]]` that end a text, and what stands before them.

    Args:
        text: a judge's answer; thoughts up to `</think>` are dropped.
        labels: the lines asked for, each once, in any order; upper and lower case are the same.

    Raises: UnreadableError: "no_verdict" if a line is missing or something follows them, "contradictory" if a label
        stands on several lines with different values.
    """
    wanted = {label.casefold(): label for label in labels}
    lines = text.rpartition("</think>")[2].strip().splitlines()
    found: dict[str, set[str]] = {label: set() for label in labels}
    ending: set[str] = set()
    start = len(lines)
    at_end = True
    for i in range(len(lines) - 1, -1, -1):
        match = _FIELD.fullmatch(lines[i].strip(_MARKUP))
        label = wanted.get(match["label"].strip().strip(_MARKUP).casefold()) if match else None
        if match and label:
            found[label].add(match["value"].strip().casefold())
            if at_end:
                ending.add(label)
                start = i
        elif lines[i].strip(_MARKUP):
            at_end = False
    if any(len(values) > 1 for values in found.values()):
        raise UnreadableError("contradictory")
    if ending != set(labels):
        raise UnreadableError("no_verdict")
    return {label: values.pop() for label, values in found.items()}, "\n".join(lines[:start]).strip()
