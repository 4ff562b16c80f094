"""The text of a completion, whichever form the trainer hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def completion_text(completion: str | Sequence[Mapping[str, Any]] | None) -> str:
    """What the model wrote, as one text.

    Args:
        completion: a string, or messages. Only assistant turns count: a tool's output isn't the model's. A message's
            ``reasoning_content`` is put back between <think> tags, so that a parsed and a raw completion read alike.
            Contents may be strings, lists of parts (their texts are joined), or None.
    """
    if completion is None:
        return ""
    if isinstance(completion, str):
        return completion
    turns = [_turn_text(message) for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(turn for turn in turns if turn)


def _turn_text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(str(part.get("text") or "") for part in content)
    reasoning = message.get("reasoning_content")
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """`completion_text` of each."""
    return [completion_text(completion) for completion in completions]
