"""What is asked of an endpoint and what comes back. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mmreason.types import Message, MMReasonError

ErrorKind = Literal[
    "auth", "bad_request", "rate_limit", "server", "timeout", "connection", "circuit_open",
    "bad_reply", "schema", "logprobs", "refused", "budget",
]  # fmt: skip
"""Why a request has no reply. bad_reply: no completion in what the server sent (cut off, no JSON, no choice). schema:
the text isn't JSON that fits the schema asked for. logprobs: asked for and missing, or impossible. refused: the
provider's content filter. budget: sending it could have gone over the budget."""


class EndpointError(MMReasonError):
    """A request that has no reply, after all retries.

    Args:
        kind: why.
        message: names the endpoint and says what to do; never a key, never a whole prompt.
        status: the HTTP status, where there was one.
    """

    def __init__(self, kind: ErrorKind, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion that is wanted. All fields but `id` belong to what the ledger keys it by.

    Attributes:
        messages: the conversation; `{"type": "image"}` parts take `images` in order.
        images: PNG or JPEG bytes, one for each image part.
        max_tokens: the most tokens of the completion (what a budget counts on).
        temperature, top_p, stop, seed: as in the OpenAI API; None leaves it to the server.
        sample: which of several draws of the same request this is; not sent.
        json_schema: the text must be JSON that fits this schema.
        top_logprobs: k, the log-probabilities of the k likeliest tokens at each place; None asks for none.
        tools: OpenAI tool schemas.
        extra: further fields of the request's body, such as `reasoning_effort`.
        id: the caller's row; for reports only.
    """

    messages: Sequence[Message | Mapping[str, Any]]
    images: Sequence[bytes] = ()
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    sample: int = 0
    json_schema: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of a completion.

    Attributes:
        token: its text as the server wrote it.
        logprob: nats.
        top: the likeliest tokens at this place and their log-probabilities, likeliest first.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One completion.

    Attributes:
        text: the answer ("" where there are only tool calls).
        reasoning: the thoughts, where the server parts them from the answer (`reasoning_content` or `reasoning`).
        tool_calls: in the OpenAI form, as sent.
        finish_reason: "stop", "length", "tool_calls", ...
        prompt_tokens, completion_tokens, cached_tokens: as the server counted; cached_tokens is part of prompt_tokens.
        logprobs: a token each; None where none were asked for.
        parsed: the JSON value where a schema was asked for.
        model: the name the server gave.
        endpoint: the configured name of the endpoint that answered.
        cost: US dollars; None without a price.
        from_ledger: whether it was asked and paid for earlier.
        seconds: wall time of the answered try; 0 from the ledger.
    """

    text: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    parsed: Any = None
    model: str = ""
    endpoint: str = ""
    cost: float | None = None
    from_ledger: bool = False
    seconds: float = 0.0


class Completer(Protocol):
    """An endpoint, several behind a router, or anything else that answers requests."""

    async def complete(self, request: Request) -> Reply:
        """Raises: EndpointError."""
        ...
