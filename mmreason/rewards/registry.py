"""Names -> reward functions, for YAML: registry names, dotted paths, files, each with parameters where wanted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmreason._functions import did_you_mean, find_object
from mmreason.rewards.accuracy import accuracy_reward, partial_credit_reward, strict_accuracy_reward
from mmreason.rewards.code import code_reward
from mmreason.rewards.environment import environment_reward, tool_use_reward
from mmreason.rewards.format import format_reward, tag_count_reward
from mmreason.rewards.length import cosine_length_reward, repetition_reward, soft_overlong_reward
from mmreason.rewards.model import reward_model_reward
from mmreason.rewards.program import program_reward
from mmreason.types import ConfigError

RewardFunc = Callable[..., Any]
"""func(prompts=, completions=, completion_ids=, trainer_state=, **columns) -> N floats or None; may be a coroutine."""

REWARDS: dict[str, RewardFunc] = {
    "accuracy": accuracy_reward,
    "strict_accuracy": strict_accuracy_reward,
    "partial_credit": partial_credit_reward,
    "format": format_reward,
    "tag_count": tag_count_reward,
    "cosine_length": cosine_length_reward,
    "soft_overlong": soft_overlong_reward,
    "repetition": repetition_reward,
    "code": code_reward,
    "program": program_reward,
    "reward_model": reward_model_reward,
    "environment": environment_reward,
    "tool_use": tool_use_reward,
}
"""Registry name -> reward. A reward's keyword-only arguments are its parameters."""


class BoundReward:
    """A reward with its parameters fixed. They win over dataset columns of the same name.

    Attributes:
        __name__: name in metrics.
        func: the reward function.
        params: its parameters.
    """

    def __init__(self, func: RewardFunc, params: Mapping[str, Any], name: str) -> None:
        self.func, self.params, self.__name__ = func, dict(params), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **{**kwargs, **self.params})

    def __repr__(self) -> str:
        return f"BoundReward({self.__name__}, {self.params})"


def load_rewards(names: Sequence[str | Mapping[str, Any] | RewardFunc]) -> list[RewardFunc]:
    """Rewards in the given order, each with a stable ``__name__`` of its own.

    Args:
        names: each a key of REWARDS, a dotted path "my_pkg.rewards.my_reward", a file "path/to/file.py:my_reward", a
            function, or a mapping {"name": one of those, "as": metric name, **parameters}.

    Raises: ConfigError for an unknown name (with the nearest match), an unknown, missing or wrong parameter, a file or
        module that can't be loaded, two rewards of one name.
    """
    if isinstance(names, (str, Mapping)) or callable(names):
        names = [names]
    loaded = [_load(entry) for entry in names]
    metric_names = [reward.__name__ for reward in loaded]
    twice = sorted({name for name in metric_names if metric_names.count(name) > 1})
    if twice:
        raise ConfigError(f"two rewards are called {twice[0]!r}; give one another name: {{name: ..., as: other_name}}")
    return loaded


def _load(entry: str | Mapping[str, Any] | RewardFunc) -> RewardFunc:
    params: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        params = dict(entry)
        if "name" not in params:
            raise ConfigError(f"the reward entry {dict(entry)!r} has no 'name'")
        entry = params.pop("name")
    alias = params.pop("as", None)
    label = entry if isinstance(entry, str) else getattr(entry, "__name__", type(entry).__name__)
    func = REWARDS[entry] if isinstance(entry, str) and entry in REWARDS else _find(entry)
    if inspect.isclass(func):
        func, params = _construct(func, params, label), {}
    known = _parameters(func)
    for name in params:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(f"reward {label!r} has no parameter {name!r}; it has: {has}.{did_you_mean(name, known)}")
    name = str(alias or getattr(func, "__name__", type(func).__name__))
    if any(func is builtin for builtin in REWARDS.values()):
        # Fixed even where they are defaults: a dataset column called "style" must not become a parameter.
        missing = [key for key, default in known.items() if default is inspect.Parameter.empty and key not in params]
        if missing:
            raise ConfigError(f"reward {label!r} needs {', '.join(missing)}: {{name: {label}, {missing[0]}: ...}}")
        defaults = {key: default for key, default in known.items() if default is not inspect.Parameter.empty}
        bound = BoundReward(func, {**defaults, **params}, name)
        _try_parameters(bound, label)
        return bound
    return BoundReward(func, params, name) if params or getattr(func, "__name__", None) != name else func


def _parameters(func: RewardFunc) -> dict[str, Any]:
    """Parameter -> default. Of our own rewards the keyword-only ones; of a user's whatever it names."""
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # a builtin without a signature takes no parameters from YAML
        return {}
    ours = any(func is builtin for builtin in REWARDS.values())
    kinds = (
        (inspect.Parameter.KEYWORD_ONLY,)
        if ours
        else (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    )
    given_by_trainer = () if ours else ("prompts", "completions", "completion_ids", "trainer_state")
    return {
        key: parameter.default
        for key, parameter in signature.parameters.items()
        if parameter.kind in kinds and key not in given_by_trainer
    }


def _try_parameters(reward: BoundReward, label: str) -> None:
    """Call one of our rewards on an empty batch: wrong parameter values show now, not after the first rollout."""
    try:
        reward(completions=[], completion_ids=[], answer=[], meta=[])
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"reward {label!r} can't take the parameters {reward.params}: {error}") from error


def _construct(cls: type, params: Mapping[str, Any], label: str) -> RewardFunc:
    try:
        reward = cls(**params)
    except TypeError as error:
        raise ConfigError(f"reward class {label!r} can't be made with {dict(params)}: {error}") from error
    if not callable(reward):
        raise ConfigError(f"reward class {label!r} has no __call__")
    if not getattr(reward, "__name__", None):
        return BoundReward(reward, {}, cls.__name__)
    return reward


def _find(entry: Any) -> RewardFunc:
    """A function given itself, by dotted path, or by file."""
    if callable(entry):
        return entry
    if not isinstance(entry, str) or not entry.strip():
        raise ConfigError(f"a reward is a name, a mapping with 'name', or a function, not {entry!r}")
    found = find_object(entry, "reward", REWARDS)
    if not callable(found):
        raise ConfigError(f"reward {entry!r} is no function but {found!r:.100}")
    return found
