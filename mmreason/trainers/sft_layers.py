"""Learning rates by layer and module, and modules that wait before they learn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mmreason.models.freezing import modules_named
from mmreason.types import ConfigError

_LAYER = re.compile(
    r"^(.*?\b(?:layers|layer|blocks|resblocks|h|encoder_layers))\.(\d+)\.\w+\."
)  # no bare linear layers
_BELOW = ("embed", "wte", "wpe", "patch", "pos_embed", "cls_token", "conv1", "class_embedding")


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """What each trainable parameter's learning rate is multiplied by: decay^(layers above it in its stack).

    The discriminative fine-tuning of ULMFiT (arXiv 1801.06146, section 3.2), counted as BEiT does (arXiv 2106.08254):
    the last layer has 1, the first decay^(L-1), embeddings below it decay^L. Norms and heads behind a stack, and
    modules without layers (projectors), have 1. Tower and decoder each have a stack of their own.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := _LAYER.match(name):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    return {name: decay ** _layers_above(name, depths) for name in names}


def _layers_above(name: str, depths: Mapping[str, int]) -> int:
    if found := _LAYER.match(name):
        return depths[found[1]] - 1 - int(found[2])
    # An embedding is below the stack that shares the longest beginning of its name.
    if any(word in name for word in _BELOW):
        near = [stack for stack in depths if name.startswith(stack.rpartition(".")[0])]
        return depths[max(near, key=len)] if near else 0
    return 0


def module_factors(model: nn.Module, rates: Mapping[str, float], learning_rate: float) -> dict[str, float]:
    """The same from absolute peak learning rates of modules, by name or pattern (see `freeze_modules`).

    Parameters under several of them have the rate of the last. Raises: ConfigError: a pattern that fits no module, or
    `learning_rate` 0, which nothing can be a multiple of.
    """
    if rates and not learning_rate > 0:
        raise ConfigError("module_learning_rates need learning_rate above 0: the schedule is a share of it")
    out: dict[str, float] = {}
    for pattern, rate in rates.items():
        for name in parameters_under(model, pattern, "module_learning_rates"):
            out[name] = rate / learning_rate
    return out


def parameters_under(model: nn.Module, pattern: str, option: str) -> list[str]:
    """Names of the parameters under the modules that a pattern fits. Raises: ConfigError where it fits none."""
    prefixes = tuple(f"{name}." for name in modules_named(model, pattern, option))
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def split_groups(optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]) -> None:
    """Split an optimizer's groups so that each has one learning rate, the highest first (which is the one in the logs).

    Args: factors: by parameter name; 1 where it is not named. Before the optimizer has a state or a schedule.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: dict[tuple[float, int], dict[str, Any]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            factor = factors.get(names[id(parameter)], 1.0)
            made = groups.setdefault((-factor, number), group | {"params": [], "lr": group["lr"] * factor})
            made["params"].append(parameter)
    optimizer.param_groups[:] = [groups[key] for key in sorted(groups)]


class Unfreezing:
    """Modules that begin to learn at a step, and cost no gradient before (gradual unfreezing, arXiv 1801.06146).

    The optimizer knows their parameters from the start, but steps over those without a gradient: they keep a fresh
    state until their step. Which are frozen is a function of the step, so a run that is continued needs nothing more.

    Args: steps: by module name or pattern; the parameters under it learn once so many steps are done.
    Raises: ConfigError: a pattern that fits no module, or one under which nothing is trained.
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, int]) -> None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._waiting: dict[str, tuple[nn.Parameter, int]] = {}
        for pattern, step in steps.items():
            found = [name for name in parameters_under(model, pattern, "unfreeze_at") if name in trained]
            if not found:
                raise ConfigError(f"unfreeze_at: {pattern!r} has no parameter that is trained at all")
            self._waiting |= {name: (trained[name], step) for name in found}
        if len(self._waiting) == len(trained):
            raise ConfigError("unfreeze_at: nothing is left that learns from the first step on")

    def set(self, steps_done: int) -> None:
        """Freeze and unfreeze for the step that comes after so many."""
        for parameter, step in self._waiting.values():
            parameter.requires_grad_(steps_done >= step)

    def frozen(self) -> Iterable[str]:
        """Names of the parameters that wait at the moment."""
        return [name for name, (parameter, _) in self._waiting.items() if not parameter.requires_grad]
