"""Conversations made shorter by whole turns, the oldest first. Never through an image, never into the last answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmreason.data.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Cut:
    """What was cut off a conversation: messages, how many of them carried loss, and images that stood in them."""

    messages: int = 0
    supervised: int = 0
    images: int = 0

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.messages + other.messages, self.supervised + other.supervised, self.images + other.images)


NOTHING_CUT = Cut()


def cut_oldest(conversation: Conversation) -> Iterator[tuple[Conversation, Cut]]:
    """The conversation without its oldest turns: one exchange less each time, until the last one alone is left.

    An exchange is what a user says and all that follows up to the next time a user speaks: tool calls and results stay
    with their answer. System messages at the beginning stay, and tools; the images of a cut turn leave with it.
    """
    head = 0
    while head < len(conversation.messages) and conversation.messages[head]["role"] in ("system", "developer"):
        head += 1
    shorter = conversation
    while (stop := _second_exchange(shorter, head)) is not None:
        shorter = shorter.without(head, stop)
        yield (
            shorter,
            Cut(
                messages=len(conversation.messages) - len(shorter.messages),
                supervised=len(conversation.supervised) - len(shorter.supervised),
                images=len(conversation.images) - len(shorter.images),
            ),
        )


def _second_exchange(conversation: Conversation, head: int) -> int | None:
    """Where the second exchange begins; None where there is one only."""
    roles = [message["role"] for message in conversation.messages]
    for i in range(head + 1, len(roles)):
        if roles[i] == "user" and roles[i - 1] != "user":
            return i
    return None
