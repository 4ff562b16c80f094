"""Rewards that look at the completion's tokens: length and repetition. Lengths are numbers of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmreason.rewards.accuracy import Meta, is_skipped, judge
from mmreason.types import ConfigError


def cosine_length_reward(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    answer: Sequence[str | None],
    meta: Meta | None = None,
    *,
    max_length: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    exceed_value: float | None = None,
    timeout_s: float = 5.0,
    **kwargs: Any,
) -> list[float | None]:
    """Correctness scaled by length (arXiv 2502.03373, section 4.1 and appendix C.1).

    CosFn(t, T, a, b) = b + (a - b) / 2 * (1 + cos(pi t / T)) runs from a at t = 0 to b at t = T. Right completions run
    from max_value_correct down to min_value_correct (short is better), wrong ones from min_value_wrong up to
    max_value_wrong (a short wrong answer is worse: think longer). None where the gold can't be used.

    Args:
        max_length: T, tokens. Longer completions stay at the far end.
        min_value_wrong, max_value_wrong: reward of a wrong completion of length 0 and of max_length.
        min_value_correct, max_value_correct: reward of a right completion of max_length and of length 0.
        exceed_value: the paper's r_e, for every completion of max_length tokens or more; None: not used (TRL's form).
        timeout_s: seconds that verifying one answer may take.

    Raises: ConfigError for max_length < 1 or a minimum above its maximum.
    """
    if max_length < 1:
        raise ConfigError(f"cosine length reward: max_length must be at least 1, not {max_length}")
    if min_value_wrong > max_value_wrong or min_value_correct > max_value_correct:
        raise ConfigError("cosine length reward: a min_value is above its max_value")
    rewards: list[float | None] = []
    judgements = judge(completions, answer, meta, timeout_s=timeout_s)
    for judgement, ids in zip(judgements, completion_ids, strict=True):
        if judgement is None or is_skipped(judgement):
            rewards.append(None)
        elif exceed_value is not None and len(ids) >= max_length:
            rewards.append(exceed_value)
        else:
            near = max_value_correct if judgement.correct else min_value_wrong
            far = min_value_correct if judgement.correct else max_value_wrong
            progress = min(len(ids) / max_length, 1.0)
            rewards.append(far + 0.5 * (near - far) * (1.0 + math.cos(math.pi * progress)))
    return rewards


def soft_overlong_reward(
    completion_ids: Sequence[Sequence[int]], *, max_length: int, soft_punish_cache: int, **kwargs: Any
) -> list[float | None]:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): 0, then a line down to -1, then -1.

    Args:
        max_length: L_max, tokens: from here on the punishment is -1.
        soft_punish_cache: L_cache, tokens before max_length over which the punishment grows; 0 punishes only beyond it.

    Raises: ConfigError unless 0 <= soft_punish_cache <= max_length.
    """
    if not 0 <= soft_punish_cache <= max_length:
        raise ConfigError(
            f"soft overlong reward: soft_punish_cache {soft_punish_cache} must be between 0 and max_length {max_length}"
        )
    free = max_length - soft_punish_cache
    rewards: list[float | None] = []
    for ids in completion_ids:
        if len(ids) <= free:
            rewards.append(0.0)
        elif len(ids) <= max_length:
            rewards.append((free - len(ids)) / soft_punish_cache)
        else:
            rewards.append(-1.0)
    return rewards


def repetition_reward(
    completion_ids: Sequence[Sequence[int]], *, ngram_size: int = 3, max_penalty: float = -1.0, **kwargs: Any
) -> list[float | None]:
    """max_penalty times the share of repeated token n-grams (after arXiv 2502.03373, appendix C.2); 0 below n tokens.

    Args:
        ngram_size: n, tokens.
        max_penalty: what a completion of nothing but repetition comes close to; not above 0.

    Raises: ConfigError for ngram_size < 1 or max_penalty > 0.
    """
    if ngram_size < 1 or max_penalty > 0:
        raise ConfigError(f"repetition reward: ngram_size {ngram_size} must be >= 1 and max_penalty {max_penalty} <= 0")
    rewards: list[float | None] = []
    for ids in completion_ids:
        total = len(ids) - ngram_size + 1
        different = len({tuple(ids[start : start + ngram_size]) for start in range(total)})
        rewards.append(max_penalty * (1 - different / total) if total > different else 0.0)
    return rewards
