"""ScienceQA (arXiv:2209.09513): lecture and solution become the reasoning before an answer that is verified."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_builders._visual.rows import picture_bytes
from data_builders.building.build import Drop, Made, SourceNote
from data_builders.building.sources import read_raw
from mmreason.data.formats.common import RowError
from mmreason.data.images import ImageCell, ImageError, image_cell
from mmreason.types import DataError, Example

_SPACES = re.compile(r"[ \t\u00a0]+")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A row, read and checked: its question as an Example, what explains the answer, and its image, not opened yet."""

    where: str
    example: Example
    lecture: str
    solution: str
    image: ImageCell | None


def read_lessons(
    source: str, *, split: str, image_root: Path | None, missing: Literal["error", "drop"]
) -> tuple[list[Lesson], SourceNote, int]:
    """The rows of a ScienceQA file in any form that `mmreason.data.formats.scienceqa` knows.

    Returns: (lessons, the note for the manifest, how many rows were dropped for their image).
    Raises: DataError: a malformed row, an image that is not there or lies outside the root, an id given twice.
    """
    rows, note = read_raw(source, split=split)
    path = Path(source).expanduser()
    root = image_root or (path if path.is_dir() else path.parent if path.is_file() else None)
    lessons: list[Lesson] = []
    lacking: list[str] = []
    seen: Counter[str] = Counter()
    for number, (where, row) in enumerate(rows):
        try:
            lesson = _lesson(where, row, number, root)
        except (RowError, ImageError) as error:
            told = str(error) if isinstance(error, ImageError) else f"{where}: {error}"
            if error.reason != "missing_image":
                raise DataError(told, path=source, row=where, reason=error.reason) from None
            lacking.append(told)
            continue
        row_id = lesson.example["id"]
        seen[row_id] += 1
        if seen[row_id] > 1:
            raise DataError(f"{where}: the id {row_id!r} is given twice; give each row its own", path=source, row=where)
        lessons.append(lesson)
    if lacking and (missing == "error" or not lessons):
        raise DataError(
            f"{lacking[0]} ({len(lacking)} of {len(rows)} rows lack theirs). --image_root names the images' folder; "
            "--missing_images drop leaves such rows out",
            path=source, reason="missing_image",
        )  # fmt: skip
    return lessons, note, len(lacking)


def _lesson(where: str, row: dict[str, Any], number: int, root: Path | None) -> Lesson:
    from mmreason.data.formats import scienceqa
    from mmreason.data.formats.pictures import COLUMNS, as_list, place_images

    example = scienceqa.parse(row, number)
    place_images(example, row)
    example.setdefault("id", f"row-{number}")
    held = example.pop("images", None) or next((as_list(row[name]) for name in COLUMNS if row.get(name)), [])
    cell = image_cell(held[0], root=root, where=f"{where} (id {example['id']})") if held else None
    if "lecture" in row or "solution" in row:
        lecture, solution = (str(row.get(name) or "") for name in ("lecture", "solution"))
    else:  # LLaVA's one text, lecture and solution run together
        lecture, solution = "", _reasoning_of(example)
    return Lesson(where, example, _clean(lecture), _clean(solution), cell)


def _reasoning_of(example: Example) -> str:
    completion = example.get("completion")
    if not isinstance(completion, list) or not completion:
        return ""
    return str(completion[0].get("reasoning_content") or "")


def _clean(text: str) -> str:
    """One space where there are several, no line twice in a row, no blank lines."""
    lines: list[str] = []
    for line in text.splitlines():
        line = _SPACES.sub(" ", line).strip()
        if line and line not in lines[-1:]:
            lines.append(line)
    return "\n".join(lines)


def make_lesson(lesson: Lesson, row_id: str, source: str, *, lecture: bool) -> Made:
    """One row with a verified answer, or why there is none."""
    from mmreason.answers.verify import verify

    example = lesson.example
    choices, gold = example["meta"]["choices"], str(example["answer"])
    texts = [lesson.lecture if lecture else "", lesson.solution]
    reasoning = "\n".join(text for text in dict.fromkeys(texts) if text)
    if not lesson.solution and not (lecture and lesson.lecture):
        return Made(drops=[Drop("no_rationale", f"{lesson.where}: neither lecture nor solution")])
    other = contradiction(lesson.solution, choices, gold)
    if other is not None:
        return Made(drops=[Drop("contradicts_gold", f"{lesson.where}: gold ({gold}), but: {other}")])
    said = next((text for text in _answers(gold, choices) if verify(text, gold, "choice", choices).correct), None)
    if said is None:
        return Made(drops=[Drop("wrong_answer", f"{lesson.where}: gold {gold} of {choices}")])
    row: Example = {
        "prompt": example["prompt"],
        "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": said}],
        "images": [],
        "answer": gold,
        "id": row_id,
        "source": source,
        "meta": {**example["meta"], "task": "scienceqa", "language": "en", "parent": example["id"]},
    }
    if lesson.image is not None:
        try:
            row["images"] = [{"bytes": picture_bytes(lesson.image), "path": None}]
        except ImageError as error:
            return Made(drops=[Drop(str(error.reason), f"{lesson.where}: {error}")])
    return Made(rows=[row], counts={"with_image": int(lesson.image is not None)})


def _answers(gold: str, choices: list[str]) -> tuple[str, str]:
    """How the answer may be said: with the option's words, or, where these would mislead, by its letter alone."""
    words = choices[ord(gold) - ord("A")]
    return f"The answer is ({gold}) {words}" + (
        "" if words.endswith((".", "!", "?")) else "."
    ), f"The answer is ({gold})."


def contradiction(solution: str, choices: list[str], gold: str) -> str | None:
    """The sentence in which a solution concludes with another option than the gold; None where it doesn't.

    Only "the (best) answer is X" and "X is the (correct) answer" are taken for conclusions: solutions often end with
    why the other options are wrong.
    """
    right = choices[ord(gold) - ord("A")].strip(" .").lower()
    for sentence in re.split(r"(?<=[.!?])\s+|\n", solution):
        match = re.search(r"(?:the (?:best |correct |right )?answer is|so,? the answer is):?\s+(.+)", sentence, re.I)
        if match is None:
            continue
        concluded = match[1].strip(" .\"'“”").lower()
        others = [choice for choice in choices if choice.strip(" .").lower() == concluded]
        if others and concluded != right:
            return sentence
    return None
