"""Models that answer from a script, and problems to ask them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmreason.prompting.types import Completion
from mmreason.types import Message

Reply = str | Completion | Exception


def text_of(messages: Sequence[Message]) -> str:
    """All words of a conversation; an image is [image]."""
    lines = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text", "[image]") for part in content)
        lines.append(f"{message['role']}: {content}")
    return "\n".join(lines)


def completion(reply: Reply, prompt: str) -> Completion:
    """A reply as a completion with a token per word."""
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, Completion):
        return reply
    return Completion(reply, prompt_tokens=len(prompt.split()), completion_tokens=len(reply.split()))


@dataclass
class Scripted:
    """Answers with the next reply of a list, or with what a function of (text of the messages, draw) gives.

    asked: every call, as keyword arguments with the messages.
    """

    script: Sequence[Reply | list[Reply]] | Callable[[str, int], Reply]
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, messages: Sequence[Message], **options: Any) -> list[Completion]:
        place = len(self.asked)
        self.asked.append({"messages": list(messages), **options})
        prompt, n, draw = text_of(messages), options.get("n", 1), options.get("draw", 0)
        if callable(self.script):
            replies = [self.script(prompt, draw + i) for i in range(n)]
        else:
            given = self.script[place]
            replies = given if isinstance(given, list) else [given]
        return [completion(reply, prompt) for reply in replies]


def pick(options: Sequence[Any], *key: object) -> Any:
    """One of the options, always the same one for a key, and any one for another."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


def words(script: Mapping[str, str]) -> Callable[[str, int], str]:
    """A model that looks for the first of some words in the prompt, and gives its reply."""

    def reply(prompt: str, draw: int) -> str:
        return next(text for word, text in script.items() if word in prompt)

    return reply
