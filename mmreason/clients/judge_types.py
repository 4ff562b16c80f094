"""What a judge is given and what it gives back. Standard library only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from mmreason.types import ConfigError, DataError, Message

Verdict = Literal["A", "B", "tie"]
Status = Literal["ok", "unreadable", "error"]
Language = Literal["en", "zh"]
V = TypeVar("V")

_NAME = re.compile(r"[^\W\d][\w-]*")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that an answer is rated on, in whole numbers.

    Attributes:
        name: a word; the key of the score.
        description: what a good and a bad answer are, in the language of the prompt.
        low, high: the ends of the scale; `high` is best.
    """

    name: str
    description: str
    low: int = 1
    high: int = 10

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"criterion {self.name!r}: a name is one word of letters, digits, _ and -")
        if not self.low < self.high <= self.low + 100:
            raise ConfigError(f"criterion {self.name}: scale {self.low} to {self.high} (at most 100 steps up)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricItem:
    """One answer to rate.

    Attributes:
        id: unique among the items.
        question: what was asked: text, or the conversation up to the answer.
        answer: what is rated.
        reference: a right answer, if there is one.
        images: PNG or JPEG bytes that the question is about.
    """

    id: str
    question: str | Sequence[Message]
    answer: str
    reference: str | None = None
    images: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        check_texts(self.id, question=self.question, answer=self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairItem:
    """Two answers to compare; otherwise as `RubricItem`."""

    id: str
    question: str | Sequence[Message]
    answer_a: str
    answer_b: str
    reference: str | None = None
    images: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        check_texts(self.id, question=self.question, answer_a=self.answer_a, answer_b=self.answer_b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the answers took. Calls that failed for good report no tokens; the endpoint's ledger knows what they cost.

    Attributes:
        calls: answered calls.
        failed: calls without an answer.
        prompt_tokens, completion_tokens: as the servers counted.
        cost: US dollars of the answered calls, also those paid for in an earlier run.
        unpriced: answered calls without a price, so that `cost` is too low.
        from_ledger: answered calls that an earlier run paid for.
    """

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    from_ledger: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            failed=self.failed + other.failed,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=self.cost + other.cost,
            unpriced=self.unpriced + other.unpriced,
            from_ledger=self.from_ledger + other.from_ledger,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[V]):
    """One request to a judge.

    Attributes:
        status: "ok"; "unreadable": an answer without a readable verdict; "error": no answer.
        value: the verdict; None unless ok.
        explanation: the judge's reasons.
        text: the judge's whole answer.
        reason: why it isn't ok, as a code for counting: the endpoint's error kind, or what couldn't be read.
        detail: the endpoint's message.
        usage: of this call.
    """

    status: Status
    value: V | None = None
    explanation: str = ""
    text: str = ""
    reason: str = ""
    detail: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """How a judge is asked.

    Attributes:
        language: of the prompts.
        answer_form: "json" asks for structured output, "text" for lines such as `Rating: [[7]]`.
        concurrency: requests in flight.
        max_tokens: of a judge's answer; a reasoning judge needs thousands.
        temperature: None leaves it to the server, as some reasoning models demand.
        ignore_length: tell the judge that length is no merit.
        extra: further fields of the request's body, such as `reasoning_effort`.
    """

    language: Language = "en"
    answer_form: Literal["json", "text"] = "json"
    concurrency: int = 16
    max_tokens: int = 1024
    temperature: float | None = 0.0
    ignore_length: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.language not in ("en", "zh"):
            raise ConfigError(f"judge: language {self.language!r}; there are prompts for en and zh")
        if self.answer_form not in ("json", "text"):
            raise ConfigError(f"judge: answer_form {self.answer_form!r}; there are json and text")
        if self.concurrency < 1 or self.max_tokens < 1:
            raise ConfigError("judge: concurrency and max_tokens must be at least 1")


def check_texts(item: str, **fields: object) -> None:
    """Raises: DataError for a field that is no text (a question may be messages), before anything is paid for it."""
    for name, value in fields.items():
        if not isinstance(value, str) and not (name in ("question", "prompt") and isinstance(value, Sequence)):
            raise DataError(f"item {item}: {name} is {value!r:.80}, not a text", row=str(item), reason="no_text")


def total_usage(calls: Sequence[Call[Any]]) -> Usage:
    return sum((call.usage for call in calls), Usage())


def count_reasons(calls: Sequence[Call[Any]], status: Status) -> dict[str, int]:
    """How often each reason stands behind the calls of a status, most frequent first."""
    return dict(Counter(call.reason for call in calls if call.status == status).most_common())


def check_ids(ids: Sequence[str], what: str) -> None:
    """Raises: ConfigError naming an id that is no text or stands twice."""
    other = next((id_ for id_ in ids if not isinstance(id_, str)), None)
    if other is not None:
        raise ConfigError(f"{what}: the id {other!r} is no text; write str(id)")
    twice = next((id_ for id_, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{what}: {twice!r} stands twice; each needs a name of its own")
