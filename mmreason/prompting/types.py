"""What a strategy is given (a problem and a `sample` callable) and what it comes to. Light: no package from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mmreason.answers import Kind, infer_kind
from mmreason.types import ContentPart, DataError, Example, Message

Lang = Literal["en", "zh"]
"""The language of a strategy's prompts."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn of the model.

    Attributes:
        text: the answer, without the thoughts where the sampler parts them.
        reasoning: the thoughts, where the sampler parts them.
        prompt_tokens: tokens of the prompt; each of n completions of one prompt counts them, as n requests would.
        completion_tokens: tokens that the model wrote, thoughts included.
        finish_reason: "stop", "length" (cut at the limit), "tool_calls", ...
        tool_calls: in the OpenAI form.
        parsed: the JSON value, where a schema was asked for and the sampler has read it.
    """

    text: str
    reasoning: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    tool_calls: tuple[dict[str, Any], ...] = ()
    parsed: Any = None


class Sample(Protocol):
    """A model as the strategies see it. See `from_completer.py` and `batching.py` for ready ones."""

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
        """Sample n completions of a conversation.

        Args:
            messages: the conversation; `{"type": "image"}` parts take `images` in order.
            n: completions wanted; exactly so many are returned.
            draw: which draw of this conversation the first one is; the others follow. A sampler that remembers its
                answers (an endpoint with a ledger) keeps one for each draw.
            temperature, max_tokens: None leaves them to the sampler.
            stop: texts at which a completion ends; they are not part of it.
            json_schema: the text shall be JSON that fits it.
            tools: OpenAI tool schemas.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A worked example for few-shot prompts.

    Attributes:
        question: text, or parts in which `{"type": "image"}` stands for an image.
        answer: its answer, as a completion would give it.
        reasoning: the steps to it; "" shows the answer alone.
        images: for the question's image parts; where a question of plain text has some, they come before it.
        choices: the options of a multiple-choice question.
    """

    question: str | Sequence[ContentPart]
    answer: str
    reasoning: str = ""
    images: Sequence[Any] = ()
    choices: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be solved.

    Attributes:
        question, images, choices: as in `Shot`.
        kind: the kind of the answer; None infers it from choices and gold, as the verifier does.
        gold: the reference answer. Rationalisation shows it to the model; Reflexion's default check compares with it.
        shots: worked examples, in the order in which they are shown.
        draw: which of several solutions of the same problem this is, so that a sampler that remembers its answers
            doesn't give the first one again.
        id: the caller's row; named in errors.
    """

    question: str | Sequence[ContentPart]
    images: Sequence[Any] = ()
    choices: Sequence[str] | None = None
    kind: Kind | None = None
    gold: str | None = None
    shots: Sequence[Shot] = ()
    draw: int = 0
    id: str = ""

    @property
    def answer_kind(self) -> Kind | None:
        """The kind by which prompts ask and completions are read; None where nothing tells it."""
        if self.kind is not None or (self.gold is None and not self.choices):
            return self.kind
        return infer_kind(self.gold or "", self.choices)

    @property
    def text(self) -> str:
        """The words of the question, without its images."""
        if isinstance(self.question, str):
            return self.question
        return "".join(part.get("text", "") for part in self.question)

    @classmethod
    def from_example(cls, example: Example, *, shots: Sequence[Shot] = ()) -> Problem:
        """The problem of a data set's row.

        Args:
            example: its prompt is a text or one user message; `images`, `answer`, `id` and meta's `kind` and `choices`
                are taken over.

        Raises: DataError for a prompt of several messages: the strategies write the conversation themselves.
        """
        prompt, meta, row = example["prompt"], example.get("meta") or {}, example.get("id", "")
        if not isinstance(prompt, str):
            if len(prompt) != 1 or prompt[0]["role"] != "user":
                roles = ", ".join(message["role"] for message in prompt) or "none"
                raise DataError(
                    f"row {row or '?'}: a strategy needs a prompt of one user message, this one has: {roles}",
                    row=row,
                    reason="bad_prompt",
                )
            prompt = prompt[0]["content"]  # type: ignore[assignment]
        return cls(
            question=prompt,  # type: ignore[arg-type]
            images=tuple(example.get("images") or ()),
            choices=meta.get("choices"),
            kind=meta.get("kind"),
            gold=example.get("answer"),
            shots=shots,
            id=row,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `sample`.

    Attributes:
        step: what the strategy asked for: "answer", "plan", "value" ...
        messages: the conversation as sent.
        completions: what came back; empty where the call failed.
    """

    step: str
    messages: tuple[Message, ...]
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One of several texts that a strategy had to choose from.

    Attributes:
        text: the whole of it.
        answer: extracted; None where there is none.
        value: the tree's value of it; None elsewhere.
        accepted: what the check said; None where nothing was checked.
        reason: why it wasn't accepted.
    """

    text: str
    answer: str | None
    value: float | None = None
    accepted: bool | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a strategy comes to.

    Attributes:
        answer: as `mmreason.answers.extract` finds it; None where there is none.
        text: the steps and the answer as one text.
        reasoning: the thoughts of the completion that gave the answer, where the sampler parts them.
        attempts: the texts that were chosen from, where the strategy has several.
        votes: answer -> how many attempts gave it or an equivalent one, most first (self-consistency).
        accepted: whether the check passed (Reflexion, rationalisation, JSON); None where nothing was checked.
        parsed: the JSON value (JSON-constrained output).
    """

    answer: str | None
    text: str
    reasoning: str | None = None
    attempts: tuple[Attempt, ...] = ()
    votes: Mapping[str, int] = field(default_factory=dict)
    accepted: bool | None = None
    parsed: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Solution):
    """A solution and what it took.

    Attributes:
        transcript: every call with its messages and completions, in the order in which the calls were made.
        calls: calls of `sample`.
        completions: completions drawn; more than `calls` where a call draws several.
        prompt_tokens, completion_tokens: summed over the completions.
        counts: what went wrong on the way, by reason ("truncated", "unreadable_value", "tool_error" ...).
        error: why there is no solution; the calls made until then are in the transcript and in the counts.
    """

    transcript: tuple[Call, ...] = ()
    calls: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    error: Exception | None = None
