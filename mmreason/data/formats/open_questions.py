"""Questions without golds that are answered and then judged: MT-Bench's, LLaVA-Bench's and MM-Vet's.

- MT-Bench (arXiv 2306.05685): ``turns`` (two questions), ``category``, ``reference`` in part of the rows.
- LLaVA-Bench (arXiv 2304.08485) and MM-Vet's file for it: ``question_id``, ``image``, ``text``, ``category``.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, extras, shorten, take_name, text_cell, user_message
from mmreason.types import Example


def detect_mt_bench(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question_id", "category", "turns"} <= columns


def parse_mt_bench(row: Row, index: int) -> Example:
    """Prompt: the first question. ``meta.turns``: all of them, ``meta.reference``: their reference answers, if any."""
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise RowError("missing_prompt", f"'turns' is {shorten(turns)}")
    meta = {"kind": None, "choices": None, "turns": turns} | extras(row, {"question_id"})
    if row.get("reference"):
        meta["reference"] = row["reference"]
    example: Example = {"prompt": user_message(turns[0]), "answer": None, "meta": meta}
    take_name(example, row, "question_id")
    return example


def detect_llava_bench(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"question_id", "image", "text"} <= columns


def parse_llava_bench(row: Row, index: int) -> Example:
    """Prompt: the question, with its image."""
    meta = {"kind": None, "choices": None} | extras(row, {"question_id", "text"})
    example: Example = {"prompt": user_message(text_cell(row, "text", "missing_prompt")), "answer": None, "meta": meta}
    take_name(example, row, "question_id")
    return example


MT_BENCH = Format("mt_bench", parse_mt_bench, detect_mt_bench, own_template=True)
LLAVA_BENCH = Format("llava_bench", parse_llava_bench, detect_llava_bench, own_template=True, many_sets=True)
