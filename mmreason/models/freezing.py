"""Leaving parts of a model as they are while the rest is trained."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError


def freeze_modules(model: Any, patterns: Sequence[str]) -> int:
    """Take the parameters under some modules out of training; returns how many numbers still learn.

    Args:
        model: any model, with adapters or without.
        patterns: a module's name, or its last parts, with `*` and `?` as in file names: `vision_tower` is that module
            wherever it lies, `language_model.model.layers.?` the first ten layers, `*.norm` every module of that name.

    Raises:
        ConfigError: a pattern that fits no module, or nothing left to train.
    """
    for pattern in patterns:
        for name in modules_named(model, pattern, "freeze_modules"):
            model.get_submodule(name).requires_grad_(False)
    # A parameter that ZeRO-3 has split is empty here, and keeps its size under another name.
    left = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    if not left:
        raise ConfigError(f"freeze_modules={list(patterns)}: nothing is left to train")
    return left


def modules_named(model: Any, pattern: str, option: str) -> list[str]:
    """Full names of the modules that a pattern fits, as `freeze_modules` reads it.

    Args: option: the name of the setting that said so, for errors.
    Raises: ConfigError: it fits none.
    """
    modules = [name for name, _ in model.named_modules() if name]
    fits = re.compile(r"(?:.*\.)?" + fnmatch.translate(pattern))
    found = [name for name in modules if fits.match(name)]
    if not found:
        hint = did_you_mean(pattern, {name.rsplit(".", 1)[-1] for name in modules})
        raise ConfigError(f"{option}: {pattern!r} fits no module of {type(model).__name__}.{hint}")
    return found
