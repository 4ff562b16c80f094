"""NLVR (Suhr et al. 2017, aclanthology.org/P17-2034): ``image``, ``sentence``, ``label`` ("true" or "false")."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, text_cell, user_message
from mmreason.types import Example


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"image", "sentence", "label"} <= columns


def parse(row: Row, index: int) -> Example:
    """Gold: true or false, of kind "yesno"."""
    sentence = text_cell(row, "sentence", "missing_prompt")
    label = row.get("label")
    gold = str(label).lower() if isinstance(label, bool) else text_cell(row, "label", "missing_answer").lower()
    if gold not in ("true", "false"):
        raise RowError("bad_gold", f"'label' is {shorten(label)}, neither true nor false")
    example: Example = {
        "prompt": user_message(f"{sentence}\nIs this statement about the image true or false?"),
        "answer": gold,
        "meta": {"kind": "yesno", "choices": None},
    }
    name = row.get("id", row.get("identifier"))
    if name is not None:
        example["id"] = str(name)
    return example


FORMAT = Format("nlvr", parse, detect)
