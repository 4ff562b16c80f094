"""What the manifest tells of preferences: how far the raters agree, and whether a judge leans to one place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from data_builders._preferences.rank import AGREEMENT
from mmreason.clients.agreement import Agreement, agreement
from mmreason.clients.judge import PositionBias
from mmreason.clients.votes import Votes, human_agreement


def agreements(counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The figures of each table of ratings in the counts (see `AGREEMENT`), by the raters' names.

    Each also has the table itself, and for comparisons the figures of the items that both sides decided: a verifier
    that calls two answers right says nothing of which is better.
    """
    tables: dict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
    for key, count in counts.items():
        if key.startswith(f"{AGREEMENT}:"):
            names, values = key.removeprefix(f"{AGREEMENT}:").rsplit(":", 1)
            tables[names][tuple(values.split("|"))] = count
    found: dict[str, dict[str, Any]] = {}
    for names, table in sorted(tables.items()):
        found[names] = _figures(table) | {"table": {"|".join(values): n for values, n in sorted(table.items())}}
        decided = {values: n for values, n in table.items() if "tie" not in values}
        if len(decided) < len(table) and decided:
            found[names]["without_ties"] = _figures(decided)
    return found


def _figures(table: Mapping[tuple[str, ...], int]) -> dict[str, Any]:
    rows = [[None if value == "-" else value for value in values] for values, n in table.items() for _ in range(n)]
    numbers = all(value is None or value.lstrip("-").isdecimal() for row in rows for value in row)
    if numbers:
        return agreement_json(agreement([[None if v is None else int(v) for v in row] for row in rows], "interval"))
    return agreement_json(agreement(rows))


def agreement_json(found: Agreement) -> dict[str, Any]:
    """An agreement as plain JSON: None for what is not defined."""
    values = asdict(found)
    for name in ("percent_interval", "kappa_interval", "alpha_interval"):
        values[name] = [_plain(values[name]["low"]), _plain(values[name]["high"])]
    return {name: _plain(value) for name, value in values.items()}


def votes_json(votes: Votes) -> dict[str, Any]:
    """What is told of people's votes."""
    return {
        "votes": len(votes.votes),
        "people": len(votes.annotators),
        "skipped": votes.skipped,
        "agreement": agreement_json(human_agreement(votes)) if votes.votes else None,
    }


def position_biases(counts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Judge -> what exchanging the answers did."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("consistent", "first", "second", "mixed"), 0))
    for key, count in counts.items():
        if key.startswith("position:"):
            name, shift = key.removeprefix("position:").rsplit(":", 1)
            found[name][shift] += count
    return {name: {**shifts, "rate": _plain(PositionBias(**shifts).rate)} for name, shifts in sorted(found.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
