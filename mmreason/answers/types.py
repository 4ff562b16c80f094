"""The few types that the answer code shares: kinds, verdicts, what was extracted, how it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

Kind = Literal["number", "math", "choice", "yesno", "text"]
"""What sort of thing a gold answer is; it decides how a completion is read and compared."""

KINDS: tuple[str, ...] = get_args(Kind)

Choices = Sequence[str] | None
"""The options of a multiple-choice question in their order (with or without their own "A)" labels)."""


class Verdict(StrEnum):
    """The outcome of comparing an answer with a gold. Only CORRECT is ever rewarded."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"  # no answer was found, or what was found can't be read as an answer
    TIMEOUT = "timeout"  # the symbolic comparison ran past its deadline or its process died
    BAD_GOLD = "bad_gold"  # the gold itself is unusable


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was taken from a completion as its answer.

    Attributes:
        answer: the flexible answer, a span of the (width-folded) text; None when nothing was found.
        marker: how it was found: "tag", "boxed", "hash", "phrase", "label" (explicit markers) or "choice",
            "yesno", "math", "last_number", "whole" (fallbacks); None when nothing was found.
        strict: the answer that an explicit marker gave, None if only a fallback found one.
    """

    answer: str | None
    marker: str | None
    strict: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A completion's verdict, flexible and strict (explicit marker only), with what was compared."""

    verdict: Verdict
    strict_verdict: Verdict
    answer: str | None
    marker: str | None
    kind: Kind

    @property
    def correct(self) -> bool:
        """Whether the flexibly extracted answer equals the gold."""
        return self.verdict is Verdict.CORRECT

    @property
    def strict_correct(self) -> bool:
        """Whether an explicitly marked answer equals the gold."""
        return self.strict_verdict is Verdict.CORRECT
