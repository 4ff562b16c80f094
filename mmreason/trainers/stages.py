"""Recipes of several stages: the options of an earlier stage, given as a block of the last one's. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from mmreason.config import parse_config
from mmreason.types import ConfigError

SHARED = ("seed", "use_cpu", "bf16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "chat_template_kwargs")
"""Options that an earlier stage takes from the last one, unless its block says otherwise."""
_OWN = ("output_dir", "resume", "overwrite_output_dir", "run_name")


def stage_options(name: str, block: Mapping[str, Any] | None, types: Sequence[type], last: Any) -> tuple[Any, ...]:
    """An earlier stage's options, one object of each of `types`.

    Args: name: of the block. last: the last stage's options, which `SHARED` are taken from.
    Raises: ConfigError naming the block: an unknown key, a value of the wrong type, or a key that is the recipe's own.
    """
    block = dict(block or {})
    for key in _OWN:
        if key in block:
            raise ConfigError(f"{name}: {key} is the recipe's own to set; leave it out of the block")
    known = {field.name for one in types for field in fields(one)}
    values = {key: getattr(last, key) for key in SHARED if key in known} | block
    words = [word for key, value in values.items() for word in (f"--{key}", _flow(value)) if value is not None]
    try:
        made = parse_config(tuple(types), words)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return tuple(made)


def _flow(value: Any) -> str:
    """A value as one word of a command line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("\n").removesuffix("\n...")
