"""evaluations/*.parquet: the held-out problems and how they were answered before, during and after a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmreason.report.data import AnswerSet, AnswerSheet, Limits
from mmreason.report.values import text, whole, why

_NAME = re.compile(r"step-(\d+)-(.+)$")
_COLUMNS = ("row", "id", "prompt", "completion", "answer", "verdict", "extracted", "length")
_SHEETS = 8  # evaluations of one set that a page can compare: the first, the last, and some between
_SHORT = 300
CORRECT = "correct"


def read_answers(folder: Path, limits: Limits) -> tuple[list[AnswerSet], list[str]]:
    """The answers of each held-out set; problems whose verdict changed between first and last evaluation come first.

    Returns: (sets, what could not be read).
    """
    by_set: dict[str, list[tuple[int, Path]]] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.parquet")):
        match = _NAME.match(path.stem)
        if match is None:
            problems.append(f"evaluations/{path.name}: the name has no step and set (step-000000-held_out), skipped")
        else:
            by_set.setdefault(match[2], []).append((int(match[1]), path))
    sets = []
    for name, files in by_set.items():
        tables: list[tuple[int, list[dict[str, Any]]]] = []
        for step, path in _some(sorted(files)):
            try:
                tables.append((step, _read(path)))
            except Exception as error:  # half-written or no parquet: any of pyarrow's errors, or the system's
                problems.append(f"evaluations/{path.name} can't be read ({why(error)}), skipped")
        if tables:
            sets.append(_align(name, tables, limits))
    characters = limits.answer_characters // max(1, len(sets))
    for found in sets:
        _keep_within(found, characters)
    return sets, problems


def _some(files: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most _SHEETS of them, first and last included, evenly spread."""
    if len(files) <= _SHEETS:
        return list(files)
    return [files[round(i * (len(files) - 1) / (_SHEETS - 1))] for i in range(_SHEETS)]


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [name for name in _COLUMNS if name in file.schema_arrow.names]
        return list(file.read(columns=names, use_threads=False).to_pylist())


def _align(name: str, tables: Sequence[tuple[int, list[dict[str, Any]]]], limits: Limits) -> AnswerSet:
    """One list of problems, and one column per evaluation. Rows meet by `row`, else by `id`, else by position."""
    places: dict[Any, int] = {}
    problems: list[dict[str, Any]] = []
    for _, rows in tables:
        for i, row in enumerate(rows):
            if _key(row, i) not in places:
                places[_key(row, i)] = len(problems)
                problems.append(
                    {
                        "row": whole(row.get("row")),
                        "id": text(row.get("id"), _SHORT),
                        "prompt": text(row.get("prompt"), limits.text_characters),
                        "answer": text(row.get("answer"), limits.text_characters),
                    }
                )
    sheets = []
    for step, rows in tables:
        empty: list[Any] = [None] * len(problems)
        sheet = AnswerSheet(step, list(empty), list(empty), list(empty), list(empty))
        for i, row in enumerate(rows):
            place = places[_key(row, i)]
            sheet.completion[place] = text(row.get("completion"), limits.text_characters)
            sheet.verdict[place] = text(row.get("verdict"), _SHORT)
            sheet.extracted[place] = text(row.get("extracted"), _SHORT)
            sheet.length[place] = whole(row.get("length"))
        sheets.append(sheet)
    return _flips_first(AnswerSet(name, problems, sheets))


def _key(row: dict[str, Any], position: int) -> tuple[str, Any]:
    for name in ("row", "id"):
        if row.get(name) is not None:
            return name, row[name]
    return "position", position


def _flips_first(found: AnswerSet) -> AnswerSet:
    """Wrong then right, right then wrong, the rest."""
    first, last = found.sheets[0].verdict, found.sheets[-1].verdict

    def rank(i: int) -> int:
        before, after = first[i] == CORRECT, last[i] == CORRECT
        return 0 if after and not before else 1 if before and not after else 2

    order = sorted(range(len(found.problems)), key=rank)
    sheets = [
        AnswerSheet(
            s.step,
            [s.completion[i] for i in order],
            [s.verdict[i] for i in order],
            [s.extracted[i] for i in order],
            [s.length[i] for i in order],
        )
        for s in found.sheets
    ]
    return AnswerSet(found.name, [found.problems[i] for i in order], sheets)


def _keep_within(found: AnswerSet, characters: int) -> None:
    """Take the texts away from the problems that come after the page is full; their verdicts stay for the counts."""
    used = 0
    for i, problem in enumerate(found.problems):
        used += sum(len(problem[key] or "") for key in ("prompt", "answer"))
        used += sum(len(sheet.completion[i] or "") for sheet in found.sheets)
        if used > characters and i > 0:
            for late in range(i, len(found.problems)):
                found.problems[late]["prompt"] = found.problems[late]["answer"] = None
                for sheet in found.sheets:
                    sheet.completion[late] = sheet.extracted[late] = None
            found.with_text = i
            return
    found.with_text = len(found.problems)
