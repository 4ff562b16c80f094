"""Documents to be learned as they stand: ``text``, beside columns that tell where it is from; also ``.txt`` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import Format, Row, RowError, extras, shorten, take_name
from mmreason.types import Example

_TOLD = frozenset(
    {
        *("id", "url", "title", "source", "meta", "metadata", "timestamp", "date", "added", "created", "dump"),
        *("file_path", "language", "language_score", "token_count", "int_score", "subset"),
    }
)
"""What C4, FineWeb, Dolma and Wikipedia tell of a document. With other columns a text is more: it is labelled."""


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "text" in columns and columns - {"text"} <= _TOLD


def parse(row: Row, index: int) -> Example:
    """The text, not changed in any way; there is no prompt."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise RowError("missing_text", f"'text' is {shorten(text)}")
    told: Mapping[str, Any] = next(
        (row[name] for name in ("meta", "metadata") if isinstance(row.get(name), Mapping)), {}
    )
    meta = {"kind": None, "choices": None} | dict(told) | extras(row, {"text"})
    example: Example = {"text": text, "meta": meta}
    take_name(example, row)
    return example


FORMAT = Format("text", parse, detect, own_template=True, many_sets=True, mapped=("text", "id", "source"))
