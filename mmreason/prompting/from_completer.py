"""A sampler over an endpoint, or over anything else that completes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmreason.clients.types import Completer, Reply, Request
from mmreason.prompting.types import Completion
from mmreason.types import DataError, Message


@dataclass(frozen=True, kw_only=True)
class CompleterSample:
    """Samples by asking a completer: n completions are n requests side by side.

    Their `Request.sample` runs from `draw`, so that a ledger keeps each draw and a second run pays for none.

    Attributes:
        completer: an endpoint, a router, or anything else with `complete`.
        max_tokens: of calls that don't set it.
        temperature: of calls that don't set it; None leaves it to the server.
        top_p, seed, extra: of every request, see `Request`.
    """

    completer: Completer
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    async def __call__(
        self,
        messages: Sequence[Message],
        *,
        images: Sequence[Any] = (),
        n: int = 1,
        draw: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Completion]:
        """See `Sample`.

        Raises:
            EndpointError: of the first request that failed, once all have ended, so that none is paid for unseen.
            DataError: for an image that isn't PNG or JPEG bytes.
        """
        for i, image in enumerate(images):
            if not isinstance(image, bytes):
                raise DataError(
                    f"image {i} is a {type(image).__name__}; an endpoint takes the bytes of a PNG or JPEG file",
                    reason="bad_image",
                )
        requests = [
            Request(
                messages=messages,
                images=images,
                max_tokens=self.max_tokens if max_tokens is None else max_tokens,
                temperature=self.temperature if temperature is None else temperature,
                top_p=self.top_p,
                stop=stop,
                seed=self.seed,
                sample=draw + i,
                json_schema=json_schema,
                tools=tools,
                extra=self.extra,
            )
            for i in range(n)
        ]
        asked = [self.completer.complete(request) for request in requests]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        return [_completion(reply) for reply in replies]


def _completion(reply: Reply | BaseException) -> Completion:
    if isinstance(reply, BaseException):
        raise reply
    return Completion(
        text=reply.text,
        reasoning=reply.reasoning,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        finish_reason=reply.finish_reason,
        tool_calls=reply.tool_calls,
        parsed=reply.parsed,
    )
