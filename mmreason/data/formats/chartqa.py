"""ChartQA (arXiv 2203.10244), the hub's ``HuggingFaceM4/ChartQA``: ``image``, ``query``, ``label`` (a list of one)."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, text_cell, user_message
from mmreason.types import Example


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    lists = any(isinstance(row.get("label"), list) for row in rows)
    return {"image", "query", "label"} <= columns and (lists or "human_or_machine" in columns)


def parse(row: Row, index: int) -> Example:
    """Gold: the label as it stands; its kind is inferred (numbers, yes/no, words)."""
    query, label = text_cell(row, "query", "missing_prompt"), row.get("label")
    if not label:
        raise RowError("missing_answer", f"'label' is {shorten(label)}")
    if not isinstance(label, list) or len(label) != 1 or not isinstance(label[0], str):
        raise RowError("bad_gold", f"'label' is {shorten(label)}, not a list of one text")
    meta = {"kind": None, "choices": None}
    if row.get("human_or_machine") is not None:
        meta["human_or_machine"] = row["human_or_machine"]
    return {"prompt": user_message(query), "answer": label[0].strip(), "meta": meta}


FORMAT = Format("chartqa", parse, detect)
