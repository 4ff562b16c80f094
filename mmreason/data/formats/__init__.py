"""Raw row -> Example, one small pure function per way in which rows come."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats import (
    alpaca,
    aqua,
    asdiv,
    canonical,
    chartqa,
    choice,
    code,
    commonsense,
    documents,
    easyvqa,
    generic,
    geometry3k,
    gsm8k,
    hh_rlhf,
    math_competition,
    mathvision,
    mathvista,
    messages,
    nlvr,
    open_questions,
    scienceqa,
    sharegpt,
    svamp,
    tabmwp,
    tool_sets,
    trl,
)
from mmreason.data.formats.common import REASONS, Format, Row, RowError

_IN_ORDER: tuple[Format, ...] = (
    canonical.FORMAT,
    # Single sets, known by columns that no other has
    asdiv.FORMAT,
    svamp.FORMAT,
    aqua.FORMAT,
    scienceqa.FORMAT,
    tabmwp.FORMAT,
    geometry3k.FORMAT,
    mathvista.FORMAT,
    mathvision.FORMAT,
    chartqa.FORMAT,
    easyvqa.FORMAT,
    nlvr.FORMAT,
    code.FORMAT,
    tool_sets.BFCL,
    tool_sets.APIBENCH,
    tool_sets.TORA,
    tool_sets.TOOLALPACA,
    open_questions.MT_BENCH,
    open_questions.LLAVA_BENCH,
    commonsense.HELLASWAG,
    commonsense.TRUTHFULQA,
    commonsense.BIGBENCH,
    commonsense.FEVER,
    gsm8k.SOLUTIONS,
    gsm8k.FORMAT,
    hh_rlhf.FORMAT,
    # Forms in which many sets come
    choice.LABELLED,
    choice.FORMAT,
    sharegpt.LLAVA,
    sharegpt.FORMAT,
    messages.FORMAT,
    trl.STEPWISE,
    alpaca.SEED,
    alpaca.FORMAT,
    trl.PREFERENCE,
    trl.UNPAIRED,
    trl.COMPLETION,
    math_competition.FORMAT,
    generic.FORMAT,
    trl.PROMPT,
    documents.FORMAT,
)
FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in _IN_ORDER}
"""Name -> format, in the order in which detection asks them: the most particular first."""


def detect_format(rows: Sequence[Row]) -> Format | None:
    """The first format that takes these first rows of a set for its own; None where none does."""
    columns = frozenset(name for row in rows for name in row)
    return next((fmt for fmt in FORMATS.values() if fmt.detect(columns, rows)), None)


__all__ = ["FORMATS", "REASONS", "Format", "Row", "RowError", "detect_format"]
