"""Do pictures reach the model, in training and in rollouts, and do the true ones help?

A loss falls without pictures too, so a path on which they are lost is not seen in it. Each path is tried on its own,
with the code that the trainer runs: log-probabilities as the loss takes them, and greedy answers of each engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmreason.data.visual import VisualPrompt
from mmreason.rollout.canary_rows import KINDS, CanaryRows
from mmreason.rollout.types import Engine, Request, Sampling

TRAINING = "training"
"""Name of the scoring path; the others have their engine's."""

ROWS_AT_ONCE = 16
"""Rows whose prompts, with four kinds of pictures each, are in memory together."""

AGAIN = "again"
"""The true pictures a second time: what changes without a reason."""

Logps = Callable[[list[list[int]], list[list[int]], list[VisualPrompt]], Tensor]
"""(prompts, completions, visuals) → (B, C) log-probabilities at temperature 1, in nats; as `completion_logps` gives."""


@dataclass
class PathRecord:
    """What one path gave for one row.

    tokens, logps: of the completion, by kind of picture and for AGAIN.
    expected: what the log-probabilities with the true pictures should be: in the scoring path those among other
        neighbours in the batch, for an engine those of the scoring path.
    """

    tokens: dict[str, list[int]] = field(default_factory=dict)
    logps: dict[str, list[float]] = field(default_factory=dict)
    expected: list[float] = field(default_factory=list)


@dataclass
class RowRecord:
    """A row's records by path."""

    row: int
    paths: dict[str, PathRecord]


def observe(
    rows: CanaryRows,
    logps: Logps,
    engines: Mapping[str, Engine],
    *,
    max_tokens: int,
    batch_size: int,
    completion: Literal["gold", "sampled"] = "gold",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    gather_objects: Callable[[list[Any]], list[Any]] = lambda items: items,
) -> list[RowRecord]:
    """Run every path with every kind of pictures.

    Collective: rows are dealt out to the processes in turn, each of which has the same number (some process takes the
    first row again where they don't divide evenly; that one is not counted).

    Args:
        logps: the trainer's way to log-probabilities. engines: by name, with the weights that `logps` uses.
        max_tokens: of a greedy answer. batch_size: rows of one call of `logps`.
        completion: what `logps` is asked about: gold completions, or samples of the first engine with true pictures.

    Returns: a record for each row, in order, the same on all processes.
    """
    mine = [i * world_size + rank for i in range(-(-len(rows) // world_size))]
    records: list[RowRecord] = []
    for start in range(0, len(mine), ROWS_AT_ONCE):
        part = [i if i < len(rows) else 0 for i in mine[start : start + ROWS_AT_ONCE]]
        prompts: dict[str, list[VisualPrompt]] = {kind: [rows.prompt(i, kind) for i in part] for kind in KINDS}
        prompts[AGAIN] = prompts["true"]
        if completion == "gold":
            fixed = [rows.gold(i) for i in part]
        else:
            fixed = _sampled(next(iter(engines.values())), prompts["true"], max_tokens, seed + start)
        paths = {TRAINING: _observe_scoring(logps, prompts, fixed, batch_size)}
        for name, engine in engines.items():
            paths[name] = _observe_engine(engine, logps, prompts, max_tokens, batch_size)
        records += [RowRecord(i, {name: path[j] for name, path in paths.items()}) for j, i in enumerate(part)]
    counted = [record for record, i in zip(records, mine, strict=True) if i < len(rows)]
    return sorted(gather_objects(counted), key=lambda record: record.row)


def _observe_scoring(
    logps: Logps, prompts: Mapping[str, list[VisualPrompt]], completions: list[list[int]], batch_size: int
) -> list[PathRecord]:
    scored = {kind: _score(logps, visuals, completions, batch_size) for kind, visuals in prompts.items()}
    order = [0, *range(len(completions) - 1, 0, -1)]  # other neighbours, and another place among them
    moved = _score(logps, [prompts["true"][i] for i in order], [completions[i] for i in order], batch_size)
    expected = dict(zip(order, moved, strict=True))
    return [
        PathRecord(dict.fromkeys(scored, ids), {kind: values[i] for kind, values in scored.items()}, expected[i])
        for i, ids in enumerate(completions)
    ]


def _observe_engine(
    engine: Engine, logps: Logps, prompts: Mapping[str, list[VisualPrompt]], max_tokens: int, batch_size: int
) -> list[PathRecord]:
    greedy = Sampling(max_tokens=max_tokens).greedy()
    answers = {
        kind: [group[0] for group in engine.generate(_requests(visuals), greedy, 0)]
        for kind, visuals in prompts.items()
    }
    expected = _score(logps, prompts["true"], [answer.token_ids for answer in answers["true"]], batch_size)
    return [
        PathRecord(
            {kind: given[i].token_ids for kind, given in answers.items()},
            {kind: given[i].logps for kind, given in answers.items()},
            expected[i],
        )
        for i in range(len(expected))
    ]


def _sampled(engine: Engine, visuals: list[VisualPrompt], max_tokens: int, seed: int) -> list[list[int]]:
    groups = engine.generate(_requests(visuals), Sampling(max_tokens=max_tokens), seed)
    return [group[0].token_ids for group in groups]


def _requests(visuals: Sequence[VisualPrompt]) -> list[Request]:
    return [Request(visual.ids, 1, visual) for visual in visuals]


@torch.no_grad()
def _score(
    logps: Logps, visuals: Sequence[VisualPrompt], completions: Sequence[list[int]], batch_size: int
) -> list[list[float]]:
    out: list[list[float]] = []
    for start in range(0, len(visuals), batch_size):
        batch, said = list(visuals[start : start + batch_size]), list(completions[start : start + batch_size])
        values = logps([visual.ids for visual in batch], said, batch).tolist()
        out += [row[: len(ids)] for row, ids in zip(values, said, strict=True)]
    return out
