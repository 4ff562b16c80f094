"""Names -> strategies, for YAML: `react`, or `{name: self_consistency, k: 8, language: zh}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mmreason._values import nearest
from mmreason.prompting.consistency import SelfConsistency
from mmreason.prompting.decompose import LeastToMost, SkeletonOfThought
from mmreason.prompting.rationalize import Rationalize
from mmreason.prompting.react import ReAct
from mmreason.prompting.reflexion import Reflexion
from mmreason.prompting.single import Direct, FewShot, FinalAnswer, PlanAndSolve, Role, ZeroShotCoT
from mmreason.prompting.strategy import Strategy
from mmreason.prompting.structured import JsonAnswer
from mmreason.prompting.tree import TreeOfThoughts
from mmreason.types import ConfigError

STRATEGIES: dict[str, type[Strategy]] = {
    "direct": Direct,
    "role": Role,
    "few_shot": FewShot,
    "zero_shot_cot": ZeroShotCoT,
    "final_answer": FinalAnswer,
    "plan_and_solve": PlanAndSolve,
    "self_consistency": SelfConsistency,
    "least_to_most": LeastToMost,
    "skeleton_of_thought": SkeletonOfThought,
    "tree_of_thoughts": TreeOfThoughts,
    "react": ReAct,
    "reflexion": Reflexion,
    "rationalize": Rationalize,
    "json_answer": JsonAnswer,
}
"""Registry name -> strategy. Its fields are its parameters."""


def load_strategy(spec: str | Mapping[str, Any]) -> Strategy:
    """The strategy of a name, or of a mapping {"name": one of STRATEGIES, **parameters}.

    Raises: ConfigError for an unknown name or parameter (with the nearest match), a value of the wrong type or out of
        range.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"a strategy is a name or a mapping with 'name', not {spec!r}")
    params: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "name"
    }
    name = spec["name"]
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}{nearest(name, STRATEGIES)}")
    known = [each.name for each in fields(STRATEGIES[name])]
    for key in params:
        if key not in known:
            has = ", ".join(known)
            raise ConfigError(f"strategy {name!r} has no parameter {key!r}; it has: {has}{nearest(str(key), known)}")
    return STRATEGIES[name](**params)
