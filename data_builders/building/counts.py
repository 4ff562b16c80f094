"""What becomes of tasks and rows, counted: for a shard's journal entry, the manifest and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
"""Drops of each reason that a shard's journal entry quotes."""
SAMPLE_CHARACTERS = 600
HITS = 20
"""Contaminated rows that a shard's journal entry names."""


@dataclass
class Counts:
    """Sums over tasks.

    Attributes:
        tasks: that have come to an end, well or not. accepted: those that gave a row.
        failed: tasks without a reply, by kind of error.
        made, kept: rows before and after all checks.
        dropped: rows, and tasks without any, by reason.
        extra: what the builder counts.
        replies, prompt_tokens, completion_tokens, dollars: of the replies that the tasks used, whenever they were paid.
        hits: contaminated rows by test set.
        samples: a few drops of each reason, as text. hit_samples: a few contaminated rows, each named with its item.
    """

    tasks: int = 0
    accepted: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    made: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    hit_samples: list[str] = field(default_factory=list)

    def drop(self, reason: str, text: str) -> None:
        """Count what is not kept, and quote it if few of its kind are quoted yet."""
        self.dropped[reason] += 1
        quoted = self.samples.setdefault(reason, [])
        if len(quoted) < SAMPLES:
            quoted.append(text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …")

    def to_json(self) -> dict[str, Any]:
        """Plain values, the keys of all counters in order."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Counts:
        """The inverse of `to_json`. Raises: KeyError, TypeError for anything else."""
        counters = ("failed", "dropped", "extra", "hits")
        found: dict[str, Any] = {name: Counter(value) if name in counters else value for name, value in values.items()}
        return cls(**found)


def sum_counts(parts: Iterable[Counts], samples: int = SAMPLES) -> Counts:
    """The sums of all of them, with the first `samples` quotes of each reason."""
    total = Counts()
    for part in parts:
        for name in ("tasks", "accepted", "made", "kept", "replies", "prompt_tokens", "completion_tokens", "dollars"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in ("failed", "dropped", "extra", "hits"):
            getattr(total, name).update(getattr(part, name))
        for reason, texts in part.samples.items():
            held = total.samples.setdefault(reason, [])
            held += texts[: samples - len(held)]
        total.hit_samples += part.hit_samples[: HITS - len(total.hit_samples)]
    return total
