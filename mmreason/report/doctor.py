"""What the doctor found → one HTML file without a script. It takes plain values and knows no other package."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmreason import __version__
from mmreason._files import write_whole
from mmreason.report.page import _asset, _hash
from mmreason.types import MMReasonError

SHOWN_ROWS = 200
"""Rows of each kind of fault on the page."""


def write_doctor_report(facts: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page.

    Args: facts: what `Diagnosis.to_json()` of mmreason.data.doctor gives. Raises: MMReasonError where it can't be.
    """
    path = Path(out)
    try:
        write_whole(path, render_doctor(facts))
    except OSError as error:
        raise MMReasonError(
            f"the report {path} can't be written ({error.strerror or error}); choose another file with --out"
        ) from error
    return path


def render_doctor(facts: Mapping[str, Any]) -> str:
    """The page as text. What rows hold is escaped, and no script may run on it."""
    from jinja2 import Environment, StrictUndefined

    style = _asset("style.css") + _asset("doctor.css")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("doctor.html.j2"))
    return template.render(
        facts=_printable(facts),
        sections=_printable(sections(facts)),
        style=style,
        style_hash=_hash(style),
        shown=SHOWN_ROWS,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _printable(value: Any) -> Any:
    """Lone surrogates, which no file can hold, as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _printable(cell) for name, cell in value.items()}
    return [_printable(cell) for cell in value] if isinstance(value, list | tuple) else value


def sections(facts: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Section -> name -> value, as a person reads them; for the page and the terminal."""
    found: dict[str, dict[str, str]] = {
        name: {}
        for name in (
            "tokens", "limits", "truncation", "padding", "memory", "scores", "types", "variety", "length_bias", "judge"
        )
    }  # fmt: skip
    tokens = facts.get("tokens")
    if tokens:
        found["tokens"] = {"tokens": f"{tokens['tokens']:,}", "longest row": f"{tokens['longest']:,}"}
        if tokens["supervised"]:
            share = tokens["supervised"] / max(1, tokens["tokens"])
            found["tokens"]["with loss"] = f"{tokens['supervised']:,} ({share:.0%})"
        if tokens["several"]:
            found["tokens"]["conversations that become several rows"] = f"{tokens['several']:,}"
        found["limits"] = {f"{one['limit']:,} tokens": f"{one['rows']:,} rows longer" for one in facts["limits"]}
    if facts.get("truncation"):
        found["truncation"] = _truncation(facts["truncation"])
    if facts.get("padding"):
        padding = facts["padding"]
        found["padding"] = {
            f"{name}, {padding['rows']} rows" if name != "packed" else f"packed into {padding['capacity']:,}": (
                f"{count:,} tokens an epoch, {padding['share'][name]:.1%} of them empty"
            )
            for name, count in padding["tokens"].items()
        }
    if facts.get("memory"):
        found["memory"] = {name: _bytes(size) for name, size in facts["memory"].items()}
    found |= _quality(facts.get("quality"))
    if facts.get("judge"):
        found["judge"] = {name: f"{mean:.2f}" for name, mean in facts["judge"]["means"].items()}
        for name in ("unreadable", "errors"):
            if facts["judge"][name]:
                found["judge"][name] = ", ".join(f"{count} {why}" for why, count in facts["judge"][name].items())
    return found


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _truncation(cut: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"rows over {cut['limit']:,} tokens": f"{cut['rows']:,}, with {cut['tokens']:,} tokens behind the limit",
        "would lose part of the answer": f"{cut['answers']:,} rows",
        "fit once their oldest turns are cut": f"{cut['mended']:,} rows, {cut['turns']:,} messages cut",
    }


def _quality(quality: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    if not quality:
        return {}
    types = quality["balance"]["types"]
    return {
        "scores": {name: f"{one['mean']:.3f} over {one['rows']:,} rows" for name, one in quality["means"].items()},
        "types": {name: f"{count:,}" for name, count in types.items()}
        | {"evenness": f"{quality['balance']['evenness']:.2f} (0: one type, 1: equal shares)"},
        "variety": {name: f"{value:.3f}" for name, value in quality["variety"].items()},
        "length_bias": {name: f"{value:.3f}" for name, value in quality["length_bias"].items()},
    }
