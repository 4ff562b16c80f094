"""The canonical example and the few types that every part shares. Standard library only, so importing it costs nothing.

Shape legend, used in docstrings all over the package:
    B   sequences in a batch              T   tokens of a whole sequence (T = P + C)
    P   prompt tokens                     C   completion tokens
    G   generations per prompt            V   vocabulary size
    N   completions in a batch of rewards R   reward functions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

IGNORE_INDEX = -100
"""Label of a position that carries no loss (what torch's and transformers' cross entropy skip)."""


class ContentPart(TypedDict, total=False):
    """One part of a message's content: ``{"type": "image"}`` or ``{"type": "text", "text": ...}``."""

    type: str
    text: str


class ToolFunction(TypedDict):
    """What a model calls, and with what: ``arguments`` is a dict, as chat templates take it, never JSON text."""

    name: str
    arguments: dict[str, Any]


class ToolCallPart(TypedDict):
    """One entry of a message's ``tool_calls``, in the OpenAI form; ``id`` only where the data give one."""

    type: str
    function: ToolFunction
    id: NotRequired[str]


class Message(TypedDict):
    """One turn of a conversation.

    ``reasoning_content`` is the field chat templates know for the thoughts of a turn. A model's ``tool_calls`` are
    answered by messages of role "tool", whose ``tool_call_id`` and ``name`` say which call they answer, where given.
    """

    role: str
    content: str | list[ContentPart]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallPart]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class Example(TypedDict, total=False):
    """One row of a training or evaluation set, in TRL's conversational form plus our columns.

    Attributes:
        prompt: messages up to the model's last turn, earlier turns of the model among them; or the plain text of a base
            model's prompt.
        completion: the reference answer; its thoughts are ``reasoning_content``, the final answer is ``content``. One
            message, or several where the turn calls tools: call, result, answer.
        chosen, rejected: the two sides of a preference pair, each a completion.
        label: is the completion a wanted one? (KTO, verifiers)
        completions, labels: the steps of an answer, and whether each is right (TRL's stepwise form).
        text: a document to be learned as it stands (pretraining); such a row has no prompt.
        images: the images in the order of the prompt's ``{"type": "image"}`` parts, each ``{"bytes": ...,
            "path": ...}`` with one of the two (the storage form of `datasets.Image`).
        answer: the gold answer as a string; None where the row has none.
        tools: JSON schemas of callable tools.
        id: unique in its dataset and the same at every load.
        source: the name of the set the row came from.
        meta: anything else. Keys in use: ``kind`` (answer kind), ``choices`` (list of str, or None), ``unit``.
    """

    prompt: list[Message] | str
    completion: list[Message] | str
    chosen: list[Message] | str
    rejected: list[Message] | str
    label: bool
    completions: list[str]
    labels: list[bool]
    text: str
    images: list[Any]
    answer: str | None
    tools: list[dict[str, Any]] | None
    id: str
    source: str
    meta: dict[str, Any]


OnBadRow = Literal["error", "drop"]


class MMReasonError(Exception):
    """Base of the errors that a user caused and can cure.

    Its ``str()`` names the file, row, flag or reward and says what to do; commands print it without a traceback.
    """


class ConfigError(MMReasonError):
    """A wrong setting: unknown key, name or reward, wrong type, settings that exclude each other."""


class DataError(MMReasonError):
    """Data that can't be read or used.

    Args:
        message: the whole message as the user shall see it.
        path: file, folder or hub id it is about.
        row: id of the row, or ``file:line``.
        reason: short code of the reason (``"missing_answer"``, ``"bad_gold"`` ...), the key of drop counts.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, row: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.path = str(path) if path is not None else None
        self.row = row
        self.reason = reason
