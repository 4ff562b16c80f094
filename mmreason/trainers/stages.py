"""Recipes of several stages: an earlier stage's options, a block of the last one's; and which stages are done.

Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mmreason._files import write_whole
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


DONE = "stage.json"
"""In a stage's folder: what it was made from, written once its model lies there whole."""


def stage_is_done(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a stage with this identity has ended here.

    Args: identity: the stage's run identity. overwrite: start over; what is there counts no more.
    Raises: ConfigError: the stage that has ended here is another one.
    """
    record = folder / DONE
    if overwrite:
        record.unlink(missing_ok=True)
    if not record.is_file():
        return False
    before, now = json.loads(record.read_text(encoding="utf-8")), json.loads(json.dumps(identity))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        differences = ", ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        raise ConfigError(
            f"{folder} holds a finished stage of another run ({differences}). Choose another --output_dir, or start "
            "over with --overwrite_output_dir"
        )
    return True


def mark_done(folder: Path, identity: Mapping[str, Any]) -> None:
    """Tell later runs that this stage has ended. Atomic; called by one process."""
    write_whole(folder / DONE, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")


def check_last(args: Any, model_args: Any, first_is_tuned: bool) -> None:
    """Refuse what the last stage would refuse, before the first one begins.

    Args: args: the last stage's options, a PPOConfig. first_is_tuned: the stages begin with SFT.
    Raises: ConfigError.
    """
    deepcopy(args).resolve(int(os.environ.get("WORLD_SIZE", "1")))
    if args.use_vllm:
        from mmreason.rollout.vllm import require_vllm

        require_vllm()
    if first_is_tuned and (model_args.adapter is not None or model_args.use_peft):
        raise ConfigError(
            "adapter: the first stage would leave an adapter, which the next one can't begin with. Train it with "
            "recipes/sft.py, merge it into its model (mmreason adapters merge), and give the result as "
            "model_name_or_path"
        )


def _flow(value: Any) -> str:
    """A value as one word of a command line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("\n").removesuffix("\n...")
