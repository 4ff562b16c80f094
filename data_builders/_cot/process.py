"""Process-reward data without human labels: the value of a step is how often rollouts from it end right.

Math-Shepherd (arXiv:2312.08935), section 3.3: after each step of a solution the teacher completes it N times. Hard
estimate, equation 3: the step is good if any completion is right; soft estimate, equation 4: their share. The last
step, which states the answer, has the answer's own truth as its value.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_builders._cot.asking import UNUSABLE
from data_builders._cot.forms import base_row
from data_builders._cot.rationale import steps_of
from mmreason.answers import verify
from mmreason.clients.types import EndpointError
from mmreason.prompting.prompts import TEXTS, ask, said
from mmreason.prompting.types import Lang, Problem, Sample
from mmreason.types import Example, Message

Estimate = Literal["hard", "soft"]

STATEMENTS: dict[Lang, str] = {"en": "The answer is {answer}.", "zh": "答案是{answer}。"}


@dataclass(frozen=True, slots=True)
class Valued:
    """Steps with their values.

    Attributes:
        steps: the last one states the answer.
        values: share of rollouts from each step that end right; 1 or 0 of the last one.
        counts: rollouts, rollouts_truncated.
    """

    steps: list[str]
    values: list[float]
    counts: Counter[str]

    def labels(self, estimate: Estimate, threshold: float) -> list[bool]:
        """Is each step good? hard: any rollout is right. soft: their share is at least the threshold."""
        if estimate == "hard":
            return [value > 0 for value in self.values]
        return [value >= threshold for value in self.values]


async def value_steps(
    rationale: str, answer: str, is_right: bool, problem: Problem, sample: Sample, *, rollouts: int, language: Lang
) -> Valued | None:
    """Cut a solution into steps and complete it from each of them; None where the server refuses a step's rollouts.

    Raises: EndpointError of a rollout that asking again may cure, once all have ended.
    """
    steps = steps_of(rationale)
    counts: Counter[str] = Counter()
    prefixes = [steps[: i + 1] for i in range(len(steps))]
    asked = (_share(prefix, problem, sample, rollouts, language, counts) for prefix in prefixes)
    values = await asyncio.gather(*asked, return_exceptions=True)
    for value in values:
        if isinstance(value, BaseException):
            raise value
    if None in values:
        return None
    statement = STATEMENTS[language].format(answer=answer)
    shares: list[float] = [*values, float(is_right)]  # type: ignore[list-item]
    return Valued([*steps, statement], shares, counts)


async def _share(
    steps: Sequence[str], problem: Problem, sample: Sample, rollouts: int, language: Lang, counts: Counter[str]
) -> float | None:
    texts = TEXTS[language]
    prompt = ask(texts.complete, problem, texts, steps="\n".join(steps))
    try:
        drawn = await sample(prompt.messages, images=prompt.images, n=rollouts)
    except EndpointError as error:
        if error.kind not in UNUSABLE:
            raise
        return None
    counts["rollouts"] += len(drawn)
    counts["rollouts_truncated"] += sum(completion.finish_reason == "length" for completion in drawn)
    right = await asyncio.to_thread(lambda: [_is_right(said(completion), problem) for completion in drawn])
    return sum(right) / len(drawn)


def _is_right(text: str, problem: Problem) -> bool:
    return verify(text, problem.gold or "", problem.answer_kind, problem.choices).correct


def process_row(
    valued: Valued, example: Example, images: Sequence[bytes], row_id: str, *, estimate: Estimate, threshold: float,
    rollouts: int, is_right: bool, meta: Mapping[str, Any],
) -> Example:  # fmt: skip
    """A row in TRL's stepwise form: `prompt` as text, `completions` (the steps), `labels`; the values are in `meta`.

    An image has its place as "<image>" in the prompt. `label` tells whether the whole solution is right.
    """
    labels = valued.labels(estimate, threshold)
    told = {"steps": valued.steps, "step_labels": labels, "step_values": valued.values}
    row = base_row(example, images, row_id, {**meta, **told, "estimate": estimate, "rollouts": rollouts})
    row["prompt"] = plain_prompt(row["prompt"])
    row["completion"] = "\n".join(valued.steps)
    row["label"] = is_right
    stepwise: dict[str, Any] = {**row, "completions": valued.steps, "labels": labels}
    return stepwise  # type: ignore[return-value]


def plain_prompt(prompt: Sequence[Message] | str) -> str:
    """A prompt of one message as text, with "<image>" in the place of each image."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join("<image>" if part.get("type") == "image" else part.get("text", "") for part in content)
