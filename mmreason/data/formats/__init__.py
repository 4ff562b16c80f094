"""Raw row -> Example, one small pure function per way in which rows come."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats import (
    aqua,
    asdiv,
    canonical,
    chartqa,
    easyvqa,
    generic,
    geometry3k,
    gsm8k,
    math_competition,
    mathvision,
    mathvista,
    nlvr,
    scienceqa,
    svamp,
    tabmwp,
)
from mmreason.data.formats.common import REASONS, Format, Row, RowError

FORMATS: dict[str, Format] = {
    "canonical": canonical.FORMAT,
    "asdiv": asdiv.FORMAT,
    "svamp": svamp.FORMAT,
    "aqua": aqua.FORMAT,
    "scienceqa": scienceqa.FORMAT,
    "tabmwp": tabmwp.FORMAT,
    "geometry3k": geometry3k.FORMAT,
    "mathvista": mathvista.FORMAT,
    "mathvision": mathvision.FORMAT,
    "chartqa": chartqa.FORMAT,
    "easyvqa": easyvqa.FORMAT,
    "nlvr": nlvr.FORMAT,
    "gsm8k": gsm8k.FORMAT,
    "math": math_competition.FORMAT,
    "generic": generic.FORMAT,
}
"""Name -> format, in the order in which detection asks them: the most particular first."""


def detect_format(rows: Sequence[Row]) -> Format | None:
    """The first format that takes these first rows of a set for its own; None where none does."""
    columns = frozenset(name for row in rows for name in row)
    return next((fmt for fmt in FORMATS.values() if fmt.detect(columns, rows)), None)


__all__ = ["FORMATS", "REASONS", "Format", "Row", "RowError", "detect_format"]
