"""Judges that follow a rule, as completers. What they are shown they find by the tags in the prompt."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from mmreason.clients.types import EndpointError, Reply, Request


def prompt_of(request: Request) -> str:
    content = request.messages[-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def shown(request: Request, name: str) -> str:
    """The text between the tags `<name-...>` of the prompt."""
    found = re.search(rf"<{name}-(\w+)>\n(.*)\n</{name}-\1>", prompt_of(request), re.DOTALL)
    assert found, f"no {name} in the prompt"
    return found[2]


class Scripted:
    """Answers with what `rule` makes of a request: a dict (JSON), a text, or an EndpointError.

    Attributes:
        requests: all that came, in order.
        most: the most requests in flight at once.
    """

    def __init__(self, rule: Callable[[Request], dict[str, Any] | str | Reply | EndpointError]) -> None:
        self.rule = rule
        self.requests: list[Request] = []
        self.in_flight = self.most = 0

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.001 * (len(self.requests) % 3))  # so that answers come out of order
        self.in_flight -= 1
        answer = self.rule(request)
        if isinstance(answer, EndpointError):
            raise answer
        if isinstance(answer, Reply):
            return answer
        tokens = {"prompt_tokens": 100, "completion_tokens": 10, "cost": 0.002}
        if isinstance(answer, dict):
            return Reply(text=json.dumps(answer), parsed=answer, **tokens)
        return Reply(text=answer, **tokens)


def prefers_first(request: Request) -> dict[str, Any]:
    return {"explanation": "The first one.", "verdict": "A"}


def prefers_longer(request: Request) -> dict[str, Any]:
    a, b = len(shown(request, "answer-A")), len(shown(request, "answer-B"))
    return {"explanation": "More of it.", "verdict": "A" if a > b else "B" if b > a else "tie"}
