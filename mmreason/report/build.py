"""A built set → one HTML file without a script. It takes plain values and knows no other package."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mmreason import __version__
from mmreason.report.doctor import _printable
from mmreason.report.page import _asset, _hash


def render_build(facts: Mapping[str, Any]) -> str:
    """The page as text. What rows and models say is escaped, and no script may run on it.

    Args: facts: manifest, lengths, variety, drops and rows, see `report_facts` of data_builders.building.report.
    """
    from jinja2 import Environment, StrictUndefined

    style = _asset("style.css") + _asset("doctor.css") + _asset("build.css")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("build.html.j2"))
    return template.render(
        facts=_printable(facts),
        summary=_printable(summary(facts["manifest"])),
        style=style,
        style_hash=_hash(style),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def summary(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What became of the tasks and the money, name -> value, as a person reads it."""
    counts, cost = manifest["counts"], manifest["cost"]
    tasks, rows = counts["tasks"], counts["rows"]
    done = tasks["done"] + tasks["failed"]
    found = {"tasks": f"{done:,}" + ("" if tasks["planned"] is None else f" of {tasks['planned']:,} planned")}
    if done:
        found["tasks with a row"] = f"{tasks['accepted']:,} ({tasks['accepted'] / done:.1%})"
    if counts["failed"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts["failed"].items())
        found["failed tasks"] = f"{tasks['failed']:,}: {kinds}"
    found["rows"] = f"{rows['kept']:,} kept of {rows['made']:,} made"
    if cost["replies"]:
        found["replies"] = f"{cost['replies']:,}"
        found["tokens"] = f"{cost['prompt_tokens']:,} in, {cost['completion_tokens']:,} out"
        found["cost of the replies"] = f"${cost['dollars']:,.4g}"
        if rows["kept"]:
            found["cost of a row"] = f"${cost['dollars'] / rows['kept']:,.3g}"
    for name, entry in cost.get("ledger", {}).items():
        if entry["requests"]:
            found[f"ledger, {name}"] = f"{entry['requests']:,} requests, ${entry['dollars']:,.4g}"
    return found | {name: f"{count:,}" for name, count in counts["extra"].items()}
