"""The options of the augmenting builder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data_builders._teacher.options import SourceOptions
from data_builders.building.build import BuildOptions, option
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

KINDS = ("number_swap", "paraphrase", "back_translation", "distractor", "harder", "easier")
"""Kinds of variants."""
ORIGINAL = "original"
_VARIANTS, _CHECK = "Variants", "Checks"


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(SourceOptions):
    """The options of `data_builders.augment`."""

    kinds: list[str] = field(
        default_factory=lambda: ["number_swap"], metadata=option(f"Of: {', '.join(KINDS)}.", _VARIANTS)
    )
    per_row: int = field(default=1, metadata=option("Variants of each kind for each row.", _VARIANTS))
    keep_parents: bool = field(default=False, metadata=option("Write the source's own rows, too.", _VARIANTS))
    keep_notes: bool = field(default=False, metadata=option("Leave <<…>> in swapped solutions.", _VARIANTS))
    pivot: str = field(default="French", metadata=option("The language that back_translation goes through.", _VARIANTS))
    distractors: Literal["templates", "teacher"] = field(
        default="templates", metadata=option("Who writes the sentence that distracts.", _VARIANTS)
    )
    max_tokens: int = field(default=2048, metadata=option("The most tokens of a reply.", _VARIANTS))
    temperature: float | None = field(default=None, metadata=option("Null leaves it to the server.", _VARIANTS))
    extra: dict[str, Any] = field(default_factory=dict, metadata=option("More of each request's body.", _VARIANTS))
    solve_k: int = field(
        default=3,
        metadata=option("Times that the teacher solves a variant, whose answer must come out; 0: never.", _CHECK),
    )
    min_agreement: float = field(default=0.6, metadata=option("Least share of its answers that agree.", _CHECK))
    solve_swaps: bool = field(
        default=False, metadata=option("Have the teacher solve swapped problems, too, which are proved anyway.", _CHECK)
    )
    max_similarity: float = field(
        default=0.9, metadata=option("Other wordings have a smaller ROUGE-L with the parent and each other.", _CHECK)
    )

    def __post_init__(self) -> None:
        BuildOptions.__post_init__(self)
        for name in self.kinds:
            if name not in KINDS:
                raise ConfigError(f"kinds: no {name!r}; there are {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"kinds: name one or several of {', '.join(KINDS)}, each once")
        if self.per_row < 1 or self.max_tokens < 1:
            raise ConfigError("per_row and max_tokens must be at least 1")
        if self.solve_k < 0:
            raise ConfigError(f"solve_k must be 0 or more, not {self.solve_k}")
        for name in ("min_agreement", "max_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        unproved = sorted({"harder", "easier"} & set(self.kinds))
        if unproved and not self.solve_k:
            raise ConfigError(
                f"{', '.join(unproved)}: nothing but solving proves their answers; solve_k must be above 0"
            )

    @property
    def asks(self) -> bool:
        """Whether anything is asked of a teacher."""
        alone = {"number_swap"} | ({"distractor"} if self.distractors == "templates" else set())
        solves = "number_swap" in self.kinds and self.solve_swaps and self.solve_k > 0
        return bool(set(self.kinds) - alone) or solves or self.teacher is not None
