"""Where the loop meets environments: the engine that plays them, and what metrics.jsonl tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine
from mmreason.rollout.types import Engine
from mmreason.trainers.distributed import DataParallel
from mmreason.types import ConfigError

TOOL_COLUMNS = ("tool_calls", "tool_errors", "tool_seconds")
_INFO = "info/"
_OWN_COLUMNS = (*TOOL_COLUMNS, "environment_turns", "environment_reward", "environment_error")


def act_in(
    settings: EnvironmentSettings,
    engine: Engine,
    processor: Any,
    end_token_ids: Sequence[int],
    chat_template_kwargs: Mapping[str, Any] | None,
    parallel: DataParallel,
) -> Engine:
    """The engine with which completions become episodes.

    Raises: ConfigError under tensor parallelism, whose partners would each play the same episode, and differ where an
        environment's answer hangs on time.
    """
    if parallel.partners > 1:
        raise ConfigError("environments don't go with tensor parallelism; shard with ZeRO-3 or FSDP2 instead")

    def most(number: int) -> int:
        return int(parallel.gather(torch.tensor([number], device=parallel.accelerator.device)).max())

    return MultiTurnEngine(
        engine,
        settings,
        processor,
        end_token_ids=end_token_ids,
        chat_template_kwargs=chat_template_kwargs,
        most=most,
        rank=parallel.rank,
    )


def acts(engine: Engine) -> bool:
    """Whether completions of this engine are episodes of an environment."""
    return isinstance(engine, MultiTurnEngine)


def recorded_name(column: str) -> str:
    """What a column of a completion is called in the rollouts' parquet: an environment's info stands as info/NAME."""
    return column if column in _OWN_COLUMNS else f"{_INFO}{column}"


def environment_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the completions of a rollout, of all processes; nothing without an environment.

    Args: rows: a row per completion, with the environment's columns. `tools/…` are TRL's names where TRL has them:
        call_frequency: calls per completion; failure_frequency: errors per call; used: share of completions with a
        call; seconds: per completion. `environment/info/NAME`: mean of the numbers (and of truth values) that the
        environment gave as NAME.
    """
    played = [row for row in rows if row.get("environment_turns") is not None]
    if not played:
        return {}
    n = len(played)
    out = {
        "environment/turns": sum(row["environment_turns"] for row in played) / n,
        "environment/failed": sum(row.get("environment_error") is not None for row in played) / n,
    }
    if "tool_calls" in played[0]:
        calls, errors, seconds = (sum(row.get(name) or 0 for row in played) for name in TOOL_COLUMNS)
        out |= {
            "tools/call_frequency": calls / n,
            "tools/failure_frequency": errors / calls if calls else 0.0,
            "tools/used": sum(bool(row.get("tool_calls")) for row in played) / n,
            "tools/seconds": seconds / n,
        }
    names = {name for row in played for name, value in row.items() if name.startswith(_INFO) and _is_number(value)}
    for name in sorted(names):
        values = [row[name] for row in played if _is_number(row.get(name))]
        out[f"environment/{name}"] = sum(values) / len(values)
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
