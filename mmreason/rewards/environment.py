"""Rewards of episodes: what the environment gave, and whether tools were used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmreason.types import ConfigError


def environment_reward(
    completions: Sequence[Any], environment_reward: Sequence[float | None] | None = None, **kwargs: Any
) -> list[float | None]:
    """The sum of the rewards that the environment gave in its steps; None for an episode in which it gave none.

    Args: completions: N completions. environment_reward: N sums, a column that the rollout adds.

    Raises: ConfigError without an environment.
    """
    if environment_reward is None and len(completions):
        raise ConfigError("the reward 'environment' is of an environment's own steps, and this run has none")
    return list(environment_reward or ())


def tool_use_reward(
    completions: Sequence[Any],
    tool_calls: Sequence[int | None] | None = None,
    tool_errors: Sequence[int | None] | None = None,
    *,
    failure: float = 0.0,
    **kwargs: Any,
) -> list[float | None]:
    """1 where a call of a tool gave a result, `failure` where all calls failed, 0 where there was none. A turn that was
    to be a call and couldn't be read is a call that failed.

    A small weight helps a policy to try tools at all; accuracy has to decide whether they are worth it.

    Args:
        completions: N completions. tool_calls, tool_errors: N counts, columns that the rollout adds.
        failure: of completions whose calls all failed, at most 0.

    Raises: ConfigError without tools, or for a failure above 0.
    """
    if failure > 0:
        raise ConfigError(f"tool use reward: failure={failure} must be at most 0, what no call earns")
    if tool_calls is None or tool_errors is None:
        if len(completions):
            raise ConfigError("the reward 'tool_use' counts calls of tools, and this run has none")
        return []
    rewards: list[float | None] = []
    for calls, errors in zip(tool_calls, tool_errors, strict=True):
        made, failed = calls or 0, errors or 0
        rewards.append(1.0 if made > failed else failure if made else 0.0)
    return rewards
