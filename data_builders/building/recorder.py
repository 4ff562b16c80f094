"""Which models have answered a builder's requests: what rows tell of their teacher."""

from __future__ import annotations

from mmreason.clients.types import Completer, Reply, Request


class Recorder:
    """A completer that notes which models answered."""

    def __init__(self, inner: Completer) -> None:
        self.inner = inner
        self.models: set[str] = set()

    async def complete(self, request: Request) -> Reply:
        reply = await self.inner.complete(request)
        self.models.add(reply.model or reply.endpoint)
        return reply

    @property
    def names(self) -> str:
        """The models as a row's meta has them."""
        return ", ".join(sorted(self.models))
