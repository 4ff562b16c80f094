"""What every sampling engine takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mmreason.data.visual import VisualPrompt
from mmreason.types import Message


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature=0` is greedy decoding; `top_k=0` and `top_p=1` leave the distribution whole.

    own_generators: draw from generators of the engine's own, since another thread draws from the process's.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)
    own_generators: bool = False

    def greedy(self) -> Sampling:
        """The same limits, taking the most likely token each time."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0, min_p=None)


@dataclass(frozen=True)
class Request:
    """n samples of one prompt.

    prompt_ids: the tokenized prompt, special tokens included and image placeholders expanded.
    visual: its pictures, where it has some; then prompt_ids equals visual.ids.
    example: its row, where an environment is to answer.
    """

    prompt_ids: list[int]
    n: int
    visual: VisualPrompt | None = None
    example: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """token_ids ends with the end-of-sequence token unless it was cut at the length limit (`truncated`).

    logps: the engine's own log-probability of each token (nats, at the sampling temperature), as long as token_ids.

    An environment's turns stand among the policy's. Then `sampled` says of each token whether the policy sampled it
    (logps are 0 where it did not), `messages` holds the turns, and `columns` what rewards get beside the row's own.
    failed: why the environment gave nothing that could be learned from: no reward, and left out of the loss.
    """

    token_ids: list[int]
    logps: list[float]
    truncated: bool
    sampled: list[bool] | None = None
    messages: list[Message] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None


class Engine(Protocol):
    """A sampler that shares the trainer's weights."""

    name: str

    def sync(self) -> None:
        """Give the engine the policy's current weights. Collective: every process calls it."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """n completions for each request, in order. Collective: every process calls it, with its own requests.

        The same weights, requests and seed give the same completions.
        """

    def close(self) -> None:
        """Free the engine's memory."""
