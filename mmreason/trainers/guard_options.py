"""The `guards:` block: what each guard watches, its bounds, and what it does. Imports no torch: `--help` stays fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

ACTIONS = ("warn", "stop", "off")


@dataclass(frozen=True)
class GuardKind:
    """A guard: the metric it watches, its default options, and what a person reads when it speaks.

    metric: name in metrics.jsonl. what: the metric in words. defaults: `action`, bounds, and `window`, the number of
    observations whose mean is held against the bounds. causes, helps: the usual reason and the options that help.
    """

    metric: str
    what: str
    defaults: Mapping[str, Any]
    causes: str
    helps: str


GUARDS: dict[str, GuardKind] = {
    "non_finite": GuardKind(
        "grad_norm",
        "loss or gradient is not finite",
        {"action": "stop", "in_a_row": 5},
        "a learning rate that is too high, float16 weights, an importance ratio that overflows, or a damaged row",
        "a lower learning_rate, bf16 in place of float16, delta or a smaller max_grad_norm",
    ),
    "kl": GuardKind(
        "kl",
        "KL to the reference, nats per token",
        {"action": "warn", "above": 1.0, "window": 5},
        "a learning rate that is too high, or a reward that pays for text the reference would never write",
        "a larger beta, a lower learning_rate, fewer num_iterations",
    ),
    "entropy": GuardKind(
        "entropy",
        "entropy, nats per token",
        {"action": "warn", "below": 0.01, "rise": 1.0, "window": 10},
        "(low) the policy says the same again and again, so groups have nothing to compare; (high) it falls apart into "
        "noise",
        "(low) epsilon_high: 0.28, a larger temperature or beta; (high) a lower learning_rate, a larger beta",
    ),
    "reward": GuardKind(
        "reward",
        "mean reward",
        {"action": "warn", "drop": 0.5, "window": 20},
        "updates that are too large, after which the policy has unlearned what it knew",
        "a lower learning_rate, a larger beta, fewer num_iterations, and the checkpoint from before the fall",
    ),
    "length": GuardKind(
        "completions/mean_length",
        "mean completion length, tokens",
        {"action": "warn", "growth": 5.0, "window": 10},
        "a reward or a loss that favours long answers",
        "loss_type: dr_grpo or dapo, the reward soft_overlong, and a look at rollouts/",
    ),
    "clipped": GuardKind(
        "completions/clipped_ratio",
        "share of completions cut at max_completion_length",
        {"action": "warn", "above": 0.5, "window": 10},
        "a limit that is too short for the task, or a policy that no longer ends its answers",
        "a larger max_completion_length, mask_truncated_completions: true, the reward soft_overlong",
    ),
    "signal": GuardKind(
        "frac_reward_zero_std",
        "share of groups in which all completions got the same reward",
        {"action": "warn", "above": 0.95, "window": 10},
        "problems that are all too hard or all too easy, or a reward that can't tell answers apart",
        "other problems, a larger num_generations, a reward with steps such as partial_credit",
    ),
    "sampling": GuardKind(
        "sampling/importance_sampling_ratio/mean",
        "importance ratio of the trainer to the engine",
        {"action": "warn", "off": 0.1, "window": 5},
        "an engine that samples from other weights, in another dtype, or with settings that scoring doesn't know "
        "(top_p, top_k, repetition_penalty)",
        "top_p: 1, top_k: 0, repetition_penalty: 1, dtype: float32, vllm_importance_sampling_correction: true",
    ),
}
"""Guards by name, in the order of the table in docs/guards.md."""


def guard_options(block: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Every guard's options, defaults filled in.

    Args: block: guard → its options, or only its action; the key `action` stands for all guards that are not named.

    Raises: ConfigError: naming the key, and the nearest known one.
    """
    given = dict(block or {})
    common = _action("guards.action", given.pop("action")) if "action" in given else None
    for name in given:
        if name not in GUARDS:
            raise ConfigError(
                f"guards: there is no guard {name!r}; there are {', '.join(GUARDS)}.{did_you_mean(name, GUARDS)}"
            )
    options = {}
    for name, kind in GUARDS.items():
        mine = dict(kind.defaults) | ({} if common is None else {"action": common})
        changes = given.get(name, {})
        if not isinstance(changes, Mapping):
            changes = {"action": changes}
        for key, value in changes.items():
            if key not in mine:
                known = ", ".join(mine)
                raise ConfigError(f"guards.{name} has no option {key!r}; it has {known}.{did_you_mean(key, mine)}")
            where = f"guards.{name}.{key}"
            mine[key] = _action(where, value) if key == "action" else _number(where, key, value)
        options[name] = mine
    return options


def _action(where: str, value: Any) -> str:
    action = "off" if value is False else value  # YAML reads a bare `off` as false
    if action not in ACTIONS:
        raise ConfigError(f"{where}={value!r} must be warn, stop or off")
    return str(action)


def _number(where: str, key: str, value: Any) -> float | int | None:
    whole = key in ("window", "in_a_row")
    if value is None and not whole:  # no such bound
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{where}={value!r} must be a number" + ("" if whole else ", or null for no such bound"))
    if whole and (value != int(value) or value < 1):
        raise ConfigError(f"{where}={value} must be a whole number of at least 1")
    if value < 0 or (key in ("growth", "drop") and value == 0):
        raise ConfigError(f"{where}={value} must be above 0")
    return int(value) if whole else float(value)
