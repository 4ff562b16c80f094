"""The rollout engines (HF generate, vLLM) as batch engines for strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmreason.prompting.batching import BatchParams, Conversation
from mmreason.prompting.types import Completion
from mmreason.rollout.types import Completion as Tokens
from mmreason.rollout.types import Engine, Request, Sampling
from mmreason.types import ConfigError


class EngineGenerate:
    """A rollout engine with a tokenizer, for `BatchSample`.

    Thoughts between `<think>` tags are parted from the answer. Stop texts are applied to what was written, so tokens
    behind them are counted. A JSON schema doesn't constrain decoding here; who asked for it checks the text.

    Args:
        engine: any engine of `mmreason.rollout`, in one process.
        tokenizer: with a chat template.
        sampling: of every call; its temperature and max_tokens are the defaults of calls that set none.
        seed: with the same calls it gives the same completions: each call of the engine adds 1.
    """

    def __init__(self, engine: Engine, tokenizer: Any, sampling: Sampling, *, seed: int = 0) -> None:
        self.engine, self.tokenizer, self.sampling, self.seed = engine, tokenizer, sampling, seed
        self._calls = 0

    def __call__(
        self, conversations: list[Conversation], params: BatchParams
    ) -> Sequence[Sequence[Completion] | Exception]:
        """Raises: ConfigError for tools and images, which these engines don't take in text form."""
        if params.tools:
            raise ConfigError("a rollout engine parses no tool calls; use the text form: {name: react, form: text}")
        if any(conversation.images for conversation in conversations):
            raise ConfigError("a rollout engine of text prompts takes no images; serve the model and use an endpoint")
        changed: dict[str, Any] = {}
        if params.temperature is not None:
            changed["temperature"] = params.temperature
        if params.max_tokens is not None:
            changed["max_tokens"] = params.max_tokens
        prompts = [
            self.tokenizer.apply_chat_template(
                list(conversation.messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for conversation in conversations
        ]
        requests = [
            Request(prompt, conversation.n) for prompt, conversation in zip(prompts, conversations, strict=True)
        ]
        self._calls += 1
        groups = self.engine.generate(requests, replace(self.sampling, **changed), self.seed + self._calls)
        return [
            [self._completion(tokens, len(prompt), params.stop) for tokens in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _completion(self, tokens: Tokens, prompt_tokens: int, stop: Sequence[str]) -> Completion:
        text = self.tokenizer.decode(tokens.token_ids, skip_special_tokens=True)
        cuts = [at for word in stop if (at := text.find(word)) >= 0]
        text = text[: min(cuts)] if cuts else text
        reasoning = None
        if "</think>" in text:
            thoughts, _, text = text.partition("</think>")
            reasoning = thoughts.strip().removeprefix("<think>").strip()
        return Completion(
            text=text.strip(),
            reasoning=reasoning,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(tokens.token_ids),
            finish_reason="length" if tokens.truncated and not cuts else "stop",
        )
