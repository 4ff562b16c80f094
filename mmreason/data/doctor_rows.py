"""Read a set as the loader does, but past every fault: all good rows, and each bad one by its id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from mmreason.data._rows import MISSING, CellTypes, ImageRules, RowReader
from mmreason.data.doctor_faults import Fault
from mmreason.data.formats import Format, RowError
from mmreason.data.formats.pictures import COLUMNS as IMAGE_COLUMNS
from mmreason.data.images import ImageError, load_image
from mmreason.data.loader import (
    check_format,
    choose_format,
    completion_builder,
    open_rows,
    prompt_builder,
    questions_of,
)
from mmreason.data.reader import Located
from mmreason.data.sources import parse_split, resolve
from mmreason.types import DataError, Example

Stage = Literal["auto", "sft", "rl", "preference", "kto", "pretrain"]
REQUIRED: dict[str, tuple[str, ...]] = {
    "sft": ("prompt", "completion"),
    "rl": ("prompt", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "pretrain": ("text",),
}
"""Stage -> fields without which a row is of no use."""
FIELDS = (
    "prompt", "completion", "chosen", "rejected", "label", "text", "answer", "tools", "images", "id", "source", "meta",
)  # fmt: skip
_LOOKED_AT = 100  # first rows that show what rows of the set have
_USUAL = 0.5  # a field that more of them have is expected of all


@dataclass(slots=True)
class ReadRows:
    """What was read.

    Attributes:
        examples: the good rows, in order. wheres: the file and line of each.
        faults: of the bad rows, in order.
        rows: good and bad ones.
        format, label, stage, required: how they were read ("prompts": nothing but a prompt); what every row needs.
    """

    label: str
    format: str
    stage: str
    required: tuple[str, ...]
    examples: list[Example] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    rows: int = 0


def read_everything(
    source: str,
    *,
    split: str = "train",
    format: str = "auto",
    column_map: Mapping[str, str] | None = None,
    prompt_template: str | None = "none",
    completion_template: str | None = None,
    system_prompt: str | None = None,
    stage: Stage = "auto",
    image_root: str | None = None,
    image_urls: bool = False,
    max_rows: int | None = None,
) -> ReadRows:
    """The rows of a set, every image opened.

    Args:
        stage: what the rows are for; it decides which fields each must have. "auto": by what most of the first hundred
            have; the fields that those have are then expected of all.
        max_rows: look at so many, good or bad. Others: see `mmreason.data.load_examples`.

    Raises: DataError for what concerns the whole set (missing, empty, no known format); ConfigError.
    """
    check_format(format, column_map)
    wanted = parse_split(split)
    origin = resolve(source, wanted)
    label = f"{source} [{wanted}]"
    rows, first_rows = open_rows(origin, wanted, label)
    fmt = choose_format(format, column_map, first_rows, label)
    roots = (image_root,) if image_root else origin.image_roots()
    expected = any(name in row for row in first_rows for name in IMAGE_COLUMNS)
    questions = islice(questions_of(rows, fmt), max_rows)
    head = list(islice(questions, _LOOKED_AT))
    found, required = _needs(stage, fmt, [located for _, _, located in head])
    reader = RowReader(
        origin,
        fmt,
        prompt_builder(system_prompt, prompt_template, True),
        completion_builder(completion_template, True),
        columns=FIELDS,
        required=required,
        images=ImageRules(True, roots, image_urls, expected),
        types=CellTypes(first_rows),
    )
    read = ReadRows(label, fmt.name, found, required)
    for index, key, located in (*head, *questions):
        read.rows += 1
        try:
            example = reader.read(located.row, index, key)
            _open_images(example)
        except RowError as error:
            row_id = _own_id(located.row) or f"{reader.prefix}/{key}"
            read.faults.append(Fault(error.reason, row_id, located.where, error.detail or str(error)))
        else:
            read.examples.append(example)
            read.wheres.append(located.where)
    return read


def _own_id(row: Any) -> str | None:
    found = row.get("id", row.get("ID")) if isinstance(row, Mapping) else None
    return None if found is None else str(found)


def _open_images(example: Example) -> None:
    """Decode each image once. Raises: RowError."""
    for number, cell in enumerate(example.get("images") or [], 1):
        try:
            load_image(cell)
        except ImageError as error:
            raise RowError(error.reason or "bad_image", f"image {number}: {error.detail}") from error


def _needs(stage: Stage, fmt: Format, head: Sequence[Located]) -> tuple[str, tuple[str, ...]]:
    """(stage, the fields that every row must have)."""
    if stage != "auto":
        return stage, REQUIRED[stage]
    seen: Counter[str] = Counter()
    parsed = list(_parsed(fmt, head))
    for example in parsed:
        seen.update(name for name in MISSING if example.get(name) not in (None, "", []))
    usual = {name for name, count in seen.items() if count > _USUAL * len(parsed)}
    if "chosen" in usual:
        return "preference", REQUIRED["preference"]
    if "label" in usual:
        return "kto", REQUIRED["kto"]
    if "text" in usual:
        return "pretrain", REQUIRED["pretrain"]
    found = "sft" if "completion" in usual else "rl" if "answer" in usual else "prompts"
    return found, tuple(name for name in MISSING if name in usual | {"prompt"})


def _parsed(fmt: Format, head: Sequence[Located]) -> Iterator[Example]:
    for index, located in enumerate(head):
        if isinstance(located.row, Mapping):
            try:
                yield fmt.parse(located.row, index)
            except (RowError, DataError):
                continue
