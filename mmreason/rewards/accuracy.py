"""Rewards for a right answer. All of them ask `judge`, the one door to mmreason.answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mmreason.rewards.text import completion_texts
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from mmreason.answers import Judgement

_LOCK = threading.Lock()
_LAST: dict[str, tuple[tuple[Any, ...], list[Judgement | None]]] = {}

Meta = Sequence[Mapping[str, Any] | None]


def judge(
    completions: Sequence[Any], answer: Sequence[str | None], meta: Meta | None = None, *, timeout_s: float = 5.0
) -> list[Judgement | None]:
    """Verify each completion against its gold; None where the row has no gold.

    Args:
        completions: N completions, strings or messages.
        answer: N golds.
        meta: N dicts; ``kind`` and ``choices`` are read.
        timeout_s: seconds that one answer may take.

    The last batch's judgements are kept, so that accuracy, partial credit and length rewards of one step verify once.
    """
    from mmreason.answers import verify_many

    texts = completion_texts(completions)
    metas = [entry or {} for entry in meta] if meta is not None else [{} for _ in texts]
    if not len(texts) == len(answer) == len(metas):
        raise ValueError(f"{len(texts)} completions, {len(answer)} answers and {len(metas)} meta entries don't match")
    kinds = [entry.get("kind") for entry in metas]
    choices = [entry.get("choices") for entry in metas]
    key = (tuple(texts), tuple(answer), tuple(kinds), tuple(tuple(c) if c else None for c in choices), timeout_s)
    with _LOCK:
        held = _LAST.get("batch")
    if held is not None and held[0] == key:
        return list(held[1])
    rows = [i for i, gold in enumerate(answer) if gold is not None]
    found = verify_many(
        [texts[i] for i in rows],
        [str(answer[i]) for i in rows],
        [kinds[i] for i in rows],
        [choices[i] for i in rows],
        timeout_s=timeout_s,
    )
    judgements: list[Judgement | None] = [None] * len(texts)
    for i, judgement in zip(rows, found, strict=True):
        judgements[i] = judgement
    with _LOCK:
        _LAST["batch"] = (key, judgements)
    return list(judgements)


def is_skipped(judgement: Judgement | None) -> bool:
    """No gold, or a gold that can't be used: neither rewarded nor punished."""
    return judgement is None or judgement.verdict == "bad_gold"


def accuracy_reward(
    completions: Sequence[Any],
    answer: Sequence[str | None],
    meta: Meta | None = None,
    *,
    timeout_s: float = 5.0,
    **kwargs: Any,
) -> list[float | None]:
    """1 for a right answer, 0 for a wrong, unreadable or timed-out one, None (skip) where the gold can't be used.

    Args:
        timeout_s: seconds that verifying one answer may take.
    """
    judgements = judge(completions, answer, meta, timeout_s=timeout_s)
    return [None if is_skipped(j) else float(j.correct) for j in judgements]  # type: ignore[union-attr]


def strict_accuracy_reward(
    completions: Sequence[Any],
    answer: Sequence[str | None],
    meta: Meta | None = None,
    *,
    timeout_s: float = 5.0,
    **kwargs: Any,
) -> list[float | None]:
    """As `accuracy_reward`, but the answer must stand behind an explicit marker (box, tag, ####, "the answer is").

    Args:
        timeout_s: seconds that verifying one answer may take.
    """
    judgements = judge(completions, answer, meta, timeout_s=timeout_s)
    return [None if is_skipped(j) else float(j.strict_correct) for j in judgements]  # type: ignore[union-attr]


def partial_credit_reward(
    completions: Sequence[Any],
    answer: Sequence[str | None],
    meta: Meta | None = None,
    *,
    parseable: float = 0.1,
    closeness: float = 0.0,
    strict: bool = False,
    timeout_s: float = 5.0,
    **kwargs: Any,
) -> list[float | None]:
    """1 for a right answer; a little for a wrong one of the right kind; 0 else; None where the gold can't be used.

    Args:
        parseable: credit of a wrong answer that could be read as the gold's kind (a number for a number).
        closeness: further credit of a wrong number: closeness * max(0, 1 - |answer - gold| / max(|gold|, 1)).
        strict: count only answers behind an explicit marker. Without it any number in the text earns `parseable`.
        timeout_s: seconds that verifying one answer may take.

    Raises: ConfigError unless 0 <= parseable, closeness and parseable + closeness < 1 (a wrong answer must earn less).
    """
    if min(parseable, closeness) < 0 or not parseable + closeness < 1:
        raise ConfigError(f"partial credit needs parseable + closeness < 1, both >= 0; got {parseable} and {closeness}")
    rewards: list[float | None] = []
    golds = [gold if gold is not None else "" for gold in answer]
    for judgement, gold in zip(judge(completions, answer, meta, timeout_s=timeout_s), golds, strict=True):
        if judgement is None or is_skipped(judgement):
            rewards.append(None)
            continue
        verdict = judgement.strict_verdict if strict else judgement.verdict
        credit = {"correct": 1.0, "wrong": parseable}.get(str(verdict), 0.0)
        if verdict == "wrong" and closeness:
            credit += closeness * _closeness(judgement.answer, gold)
        rewards.append(credit)
    return rewards


def _closeness(answer: str | None, gold: str) -> float:
    """1 at the gold, falling linearly to 0 at a distance of max(|gold|, 1); 0 where either is no number."""
    from mmreason.answers.numbers import parse_number

    a, g = parse_number(answer or ""), parse_number(gold)
    if a is None or g is None:
        return 0.0
    distance = abs(a.value - g.value) / max(abs(g.value), Fraction(1))
    return float(1 - distance) if distance < 1 else 0.0
