"""A teacher for the builders of rationales: an in-process completer that answers by what a request asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmreason.clients.types import EndpointError, Reply, Request

Answer = Callable[[str, int], str]
"""(last user text, number of the draw) -> the reply's text; "cut: TEXT" is one that was cut off at the limit, "lost"
a reply that the provider refused, "down" a server that doesn't answer."""


def last_text(request: Request) -> str:
    """The text of the last user message."""
    content = request.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


@dataclass
class Scripted:
    """asked: all requests, in order."""

    answer: Answer
    reasoning: str | None = None
    asked: list[Request] = field(default_factory=list)

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        text = self.answer(last_text(request), request.sample)
        if text in ("lost", "down"):
            raise EndpointError("refused" if text == "lost" else "server", f"the server: {text}")
        cut = text.startswith("cut: ")
        return Reply(
            text=text.removeprefix("cut: "), reasoning=self.reasoning, model="scripted", endpoint="scripted",
            finish_reason="length" if cut else "stop", prompt_tokens=10, completion_tokens=20,
        )  # fmt: skip

    @property
    def texts(self) -> list[str]:
        return [last_text(request) for request in self.asked]


def by_draw(*replies: str) -> Answer:
    """The draws of any request get these replies in turn."""
    return lambda _text, draw: replies[draw % len(replies)]


def in_order(replies: Sequence[tuple[str, str]], otherwise: str = "I don't know.") -> Answer:
    """The reply of the first fragment that the request holds."""
    return lambda text, _draw: next((reply for fragment, reply in replies if fragment in text), otherwise)
