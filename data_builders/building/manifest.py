"""What is written beside the shards: what the rows depend on, and what became of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from data_builders.building.build import Builder, BuildOptions, SourceNote
from data_builders.building.contamination import MIN_SHARE, existing
from data_builders.building.counts import Counts
from data_builders.building.shards import Entry
from data_builders.building.teachers import one_of_each, replies_follow_from
from data_builders.building.writing import library_versions
from mmreason import __version__
from mmreason._values import plain
from mmreason.clients.keys import redact

UNKNOWN = "unknown"
_SECRET = re.compile(
    r"(?i)^(?:key|token|auth)$|(?:api|access|secret|private|subscription)[_-]?key$|"
    r"(?:auth|access|api|bearer|session)[_-]?token$|secret|passw|authorization|bearer|cookie|credential"
)
MASK = "[masked]"


def masked(value: Any, name: str = "") -> Any:
    """Plain values without what a key-like name holds, and without texts that look like a key."""
    if isinstance(value, list | tuple):
        return [masked(held, name) for held in value]
    if value is not None and _SECRET.search(name) and not isinstance(value, bool):
        return MASK
    if isinstance(value, Mapping):
        return {str(key): masked(held, str(key)) for key, held in value.items()}
    return redact(value) if isinstance(value, str) else value


def config(options: BuildOptions) -> dict[str, Any]:
    """All options as the manifest tells them."""
    return {f.name: masked(plain(getattr(options, f.name))) for f in fields(options)}


def identity(
    builder: Builder[Any], sources: Sequence[SourceNote], test_sets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the rows depend on. A run with another one must not go on in the same folder."""
    options = builder.options
    chosen = {f.name: plain(getattr(options, f.name)) for f in fields(options) if f.metadata.get("rows", True)}
    if isinstance(chosen["teacher"], list):  # another copy of a model gives no other rows
        models = one_of_each(chosen["teacher"])
        chosen["teacher"] = models[0] if len(models) == 1 else models
    return {
        "builder": builder.name,
        "version": builder.version,
        "config": masked(_without_places(chosen)),
        "sources": {str(number): one.sha256 for number, one in enumerate(sources)},
        "columns": list(builder.columns),
        "decontamination": {one["name"]: one["sha256"] for one in test_sets},
    }


def _without_places(value: Any) -> Any:
    """Endpoints reduced to what their replies depend on, and paths to their names: servers and files may move."""
    if isinstance(value, Mapping):
        if "base_url" in value and "model" in value:
            return replies_follow_from(value)
        return {name: _without_places(held) for name, held in value.items()}
    if isinstance(value, str) and "/" in value and existing(value) is not None:
        return Path(value).name
    return [_without_places(held) for held in value] if isinstance(value, list) else value


def with_licenses(sources: Sequence[SourceNote], given: str | None) -> list[SourceNote]:
    """The notes, the user's licence where a source says none."""
    return [replace(one, license=one.license or given) for one in sources]


def source_json(one: SourceNote) -> dict[str, Any]:
    """A note for the manifest."""
    return asdict(one) | {"license": one.license or UNKNOWN}


def _counts(total: Counts, planned: int | None) -> dict[str, Any]:
    failed = total.failed.total()
    return {
        "tasks": {
            "planned": planned,
            "done": total.tasks - failed,
            "failed": failed,
            "accepted": total.accepted,
        },
        "failed": dict(sorted(total.failed.items())),
        "rows": {"made": total.made, "kept": total.kept},
        "dropped": dict(sorted(total.dropped.items())),
        "extra": dict(sorted(total.extra.items())),
    }


def make_manifest(
    builder: Builder[Any],
    sources: Sequence[SourceNote],
    test_sets: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    total: Counts,
    *,
    planned: int | None,
    stopped: str | None,
    ledger: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest.

    Args:
        entries: of all shards. total: their counts.
        planned: tasks of the plan, where known. stopped: why the run ended early.
        ledger: what was spent, over all runs.
    """
    complete = stopped is None and all(entry.complete for entry in entries)
    builder.counts = dict(sorted(total.extra.items()))
    return {
        "builder": f"data_builders.{builder.name}",
        "builder_version": builder.version,
        "mmreason": __version__,
        "split": builder.options.split,
        "complete": complete,
        **({} if stopped is None else {"stopped": stopped}),
        "seed": builder.options.seed,
        "config": config(builder.options),
        "sources": [source_json(one) for one in sources],
        "counts": _counts(total, planned),
        "told": dict(builder.told()),
        "cost": {
            "replies": total.replies,
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": total.completion_tokens,
            "dollars": round(total.dollars, 9),
            **({} if ledger is None else {"ledger": dict(ledger)}),
        },
        "decontamination": {
            "min_share": MIN_SHARE,
            "sets": list(test_sets),
            "hits": dict(sorted(total.hits.items())),
            "rows": total.hit_samples,
        },
        "files": {
            entry.file["name"]: {name: entry.file[name] for name in ("rows", "sha256", "bytes")}
            for entry in entries
            if entry.file is not None
        },
        "versions": library_versions(),
    }
