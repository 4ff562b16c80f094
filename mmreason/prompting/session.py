"""What a strategy asks through: every call is written down and counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from mmreason.prompting.prompts import Prompt
from mmreason.prompting.types import Call, Completion, Outcome, Problem, Sample, Solution


class Session:
    """What a strategy works with on one problem: it asks here, and every call is written down.

    Args:
        problem: the problem.
        sample: the model.
        temperature, max_tokens: of calls that don't set their own.

    Attributes:
        counts: what went wrong on the way, by reason.
    """

    def __init__(
        self, problem: Problem, sample: Sample, *, temperature: float | None = None, max_tokens: int | None = None
    ) -> None:
        self.problem = problem
        self.counts: Counter[str] = Counter()
        self._sample, self._temperature, self._max_tokens = sample, temperature, max_tokens
        self._calls: list[Call] = []

    async def ask(
        self,
        prompt: Prompt,
        step: str,
        *,
        n: int = 1,
        temperature: float | None = None,
        stop: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Completion]:
        """n completions. The call's place in the transcript is that of its beginning, also among concurrent ones."""
        place = len(self._calls)
        self._calls.append(Call(step, prompt.messages))
        completions = await self._sample(
            prompt.messages,
            images=prompt.images,
            n=n,
            draw=self.problem.draw * n,
            temperature=self._temperature if temperature is None else temperature,
            max_tokens=self._max_tokens,
            stop=stop,
            json_schema=json_schema,
            tools=tools,
        )
        self._calls[place] = Call(step, prompt.messages, tuple(completions))
        if len(completions) != n:
            raise ValueError(f"the sampler gave {len(completions)} completions where {n} were asked for")
        self.counts["truncated"] += sum(completion.finish_reason == "length" for completion in completions)
        return completions

    async def ask_one(self, prompt: Prompt, step: str, **options: Any) -> Completion:
        """One completion; the options are those of `ask`."""
        (completion,) = await self.ask(prompt, step, **options)
        return completion

    async def ask_each(self, prompts: Sequence[Prompt], step: str, **options: Any) -> list[list[Completion]]:
        """Several calls side by side, in order; the options are those of `ask`.

        Raises: what the first failing call raised, once all of them have ended: none goes on behind the caller's back.
        """
        asked = [self.ask(prompt, step, **options) for prompt in prompts]
        done = await asyncio.gather(*asked, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return done  # type: ignore[return-value]

    def outcome(self, solution: Solution, error: Exception | None = None) -> Outcome:
        """The solution with what it took."""
        drawn = [completion for call in self._calls for completion in call.completions]
        return Outcome(
            **{field.name: getattr(solution, field.name) for field in fields(Solution)},
            transcript=tuple(self._calls),
            calls=len(self._calls),
            completions=len(drawn),
            prompt_tokens=sum(completion.prompt_tokens for completion in drawn),
            completion_tokens=sum(completion.completion_tokens for completion in drawn),
            counts={reason: count for reason, count in self.counts.items() if count},
            error=error,
        )
