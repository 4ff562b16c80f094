"""What a report is made of: a run's metrics, measurements, answers and a sample of its rollouts."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one page carries. Statistics use every completion; only the texts are sampled.

    Attributes:
        completions, tokens: of the rollout browser.
        tokens_per_completion: a longer completion is cut there.
        answer_characters: of the held-out answers, all evaluations together.
        text_characters: of one prompt, completion or logged value.
        points: of one curve; a longer one is averaged over neighbouring steps.
    """

    completions: int = 10_000
    tokens: int = 700_000
    tokens_per_completion: int = 4_096
    answer_characters: int = 3_000_000
    text_characters: int = 20_000
    points: int = 1_500

    def divided(self, runs: int) -> Limits:
        """Each run's part of a page that several runs share."""
        return Limits(
            max(1, self.completions // runs),
            max(1, self.tokens // runs),
            self.tokens_per_completion,
            max(1, self.answer_characters // runs),
            self.text_characters,
            self.points,
        )


@dataclass(slots=True)
class Metrics:
    """metrics.jsonl by column: `series[name][i]` belongs to `steps[i]`; None where there is no finite number."""

    steps: list[int] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One entry of evaluation.json.

    sets: name of the held-out set → {"greedy": {"correct", "n", "value", "low", "high"}, …, "verdicts", "mean_length"};
        of a reward model {"pair_accuracy": …, …, "reliability": [[predicted, came true, cases], …]}.
    """

    name: str
    step: int
    sets: dict[str, dict[str, Any]]


@dataclass(slots=True)
class AnswerSheet:
    """One evaluation's greedy answers, aligned with the problems of its set; None where a problem wasn't answered."""

    step: int
    completion: list[str | None]
    verdict: list[str | None]
    extracted: list[str | None]
    length: list[int | None]


@dataclass(slots=True)
class AnswerSet:
    """The problems of one held-out set and how they were answered over the run.

    problems: {"row", "id", "prompt", "answer"} each. with_text: so many problems have their texts; the others keep
    their verdicts only.
    """

    name: str
    problems: list[dict[str, Any]]
    sheets: list[AnswerSheet]
    with_text: int = 0


@dataclass(slots=True)
class Completion:
    """One sampled completion. tokens: text of each token; logps: nats, of the sampling policy; None: not recorded."""

    reward: float | None
    advantage: float | list[float | None] | None
    verdict: str | None
    length: int
    truncated: bool
    text: str
    tokens: list[str] | None
    logps: list[float | None] | None
    extra: dict[str, str | float | bool]


@dataclass(slots=True)
class Group:
    """The completions of one prompt in one rollout. step: the first update that learned from it."""

    step: int
    rollout: int
    group: int
    id: str | None
    prompt: str
    answer: str | None
    completions: list[Completion]


@dataclass(slots=True)
class RolloutStep:
    """Statistics of one rollout file, over all of its completions. rewards: NaN where there is none."""

    step: int
    rollout: int
    rewards: array[float]
    verdicts: Counter[str]
    mean_length: float | None
    truncated: float | None

    @property
    def mean_reward(self) -> float | None:
        scored = [reward for reward in self.rewards if not math.isnan(reward)]
        return sum(scored) / len(scored) if scored else None


@dataclass(slots=True)
class Rollouts:
    """What rollouts/ holds: statistics of everything, and the groups that the page shows."""

    steps: list[RolloutStep]
    groups: list[Group]
    total_groups: int
    total_completions: int
    has_tokens: bool

    @property
    def shown(self) -> int:
        return sum(len(group.completions) for group in self.groups)


@dataclass(slots=True)
class RunData:
    """Everything a report says about one run.

    Attributes:
        path: as the caller gave it. name: what the page calls it.
        settings: config.yaml; record: run.json; both with secrets masked.
        rollouts: None for a run that samples nothing (SFT) or hasn't yet.
        problems: what could not be read, one sentence each, naming the file.
        notes: what is normal for an unfinished run, such as a last line that is still being written.
        events: what its guards said, {"step", "guard", "message"} each.
        bill: of a distillation, each model's {"name", "parameters", "disk_bytes", "latency_s", "tokens_per_s",
            "accuracy", …}: teachers, then the student before and after.
    """

    path: Path
    name: str
    metrics: Metrics
    measurements: list[Measurement]
    answers: list[AnswerSet]
    rollouts: Rollouts | None
    settings: dict[str, Any]
    record: dict[str, Any]
    problems: list[str]
    notes: list[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    bill: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        known = [m.step for m in self.measurements] + self.metrics.steps[-1:]
        if self.rollouts is not None:
            known += [step.step for step in self.rollouts.steps[-1:]]
        return max(known, default=0)

    @property
    def seconds(self) -> float | None:
        """Training time, the sum of `time/step`; None where it isn't recorded."""
        known = [value for value in self.metrics.series.get("time/step", []) if value is not None]
        return sum(known) if known else None

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last step and was measured after it."""
        after = [m.step for m in self.measurements if m.name == "after"]
        wanted = self.settings.get("max_steps")
        last = max([*self.metrics.steps[-1:], wanted if isinstance(wanted, int) else 0], default=0)
        return bool(after) and max(after) >= last
