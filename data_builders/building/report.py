"""The report of a built set: what `mmreason.report.build` puts on a page, as plain values."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_builders.building.counts import Counts
from data_builders.building.row_stats import RowStats, parts
from mmreason.types import DataError, Example

_SIDE = 320
"""Pixels of a picture's longer side on the page."""
_PICTURES = 4
_CHARACTERS = 3000


def write_report(path: Path, manifest: Mapping[str, Any], total: Counts, stats: RowStats) -> None:
    """Write the page. Args: total: counts with a few samples of each drop. Raises: OSError."""
    from mmreason._files import write_whole
    from mmreason.report.build import render_build

    write_whole(path, render_build(report_facts(manifest, total, stats)))


def report_facts(manifest: Mapping[str, Any], total: Counts, stats: RowStats) -> dict[str, Any]:
    """The manifest, histograms of lengths in words, distinct n-grams, samples of drops and rows."""
    from mmreason.data.doctor import histogram
    from mmreason.data.quality_set import balance, variety

    sample = stats.sample()
    return {
        "manifest": dict(manifest),
        "lengths": {name: histogram(lengths) for name, lengths in stats.lengths.items()},
        "variety": {
            "rows": len(sample),
            "values": variety(sample),
            "types": balance(sample)["types"] if sample else {},
        },
        "drops": {reason: total.samples.get(reason, []) for reason, _ in total.dropped.most_common()},
        "rows": [_shown(row) for row in stats.shown()],
    }


def _shown(row: Example) -> dict[str, Any]:
    return {
        "id": row.get("id"),
        "parts": {name: text[:_CHARACTERS] for name, text in parts(row).items()},
        "gold": row.get("answer"),
        "meta": json.dumps(row.get("meta") or {}, ensure_ascii=False)[:_CHARACTERS],
        "pictures": [_picture(cell) for cell in (row.get("images") or [])[:_PICTURES]],
    }


def _picture(cell: Any) -> str:
    """A small copy as a data URI; "" where it can't be read."""
    from mmreason.data.images import load_image

    try:
        image = load_image(cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]))
    except (DataError, OSError, KeyError):
        return ""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
