"""One raw row -> one finished Example: checked, images counted, gold settled, prompt built, id given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.data.formats import Format, Row, RowError
from mmreason.data.formats.common import shorten
from mmreason.data.formats.pictures import COLUMNS as IMAGE_COLUMNS
from mmreason.data.formats.pictures import count_image_parts, place_images
from mmreason.data.images import ImageError, image_cell
from mmreason.data.sources import Source
from mmreason.types import Example, Message

PromptBuilder = Callable[[list[Message], bool], list[Message] | str]
"""(messages, are they a finished prompt?) -> prompt; raises RowError."""

CompletionBuilder = Callable[[list[Message]], list[Message] | str]
"""messages -> completion; raises RowError."""

MISSING = {
    "prompt": "missing_prompt",
    "completion": "missing_completion",
    "chosen": "missing_pair",
    "rejected": "missing_pair",
    "label": "missing_label",
    "text": "missing_text",
    "answer": "missing_answer",
}
"""Field that a caller can't do without -> the reason of a row that lacks it."""

_KINDS: dict[type, str] = {
    str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list", tuple: "a list",
    dict: "a mapping",
}  # fmt: skip

EITHER = frozenset({"prompt", "question", "completion", "chosen", "rejected", "messages", "conversations", "tools"})
"""Columns in which a text and a list (of messages, of schemas) mean the same."""


class CellTypes:
    """What type each column's cells have, from a set's first rows: one row of another type would break its Arrow table.

    Columns of images are free: paths, bytes and structs may come in one file. Those of `EITHER` hold texts and lists.
    """

    def __init__(self, first_rows: Iterable[Row]) -> None:
        seen: dict[str, Counter[str]] = {}
        for row in first_rows:
            for name, cell in row.items():
                if type(cell) in _KINDS:
                    seen.setdefault(name, Counter())[_KINDS[type(cell)]] += 1
        self._known = {name: kinds.most_common(1)[0][0] for name, kinds in seen.items()}

    def check(self, row: Row) -> None:
        """Raise RowError for a cell of another type than most of its column, and for a number that is none."""
        for name, cell in row.items():
            kind = _KINDS.get(type(cell))
            if kind is None or name in IMAGE_COLUMNS:
                continue
            known = self._known.setdefault(name, kind)
            if known != kind and not (name in EITHER and {known, kind} == {"a text", "a list"}):
                raise RowError("mixed_types", f"{name!r} is {kind} here, {shorten(cell)}, elsewhere {known}")
            if kind == "a number" and not math.isfinite(cell):
                raise RowError("nan_value", f"{name!r} is {cell}")


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What is done with the images of rows.

    Attributes:
        wanted: were they asked for? Else a row with images is a bad row.
        roots: where they may lie.
        urls: are URLs fetched?
        expected: the set has a column of images.
    """

    wanted: bool
    roots: Sequence[str | Path]
    urls: bool
    expected: bool = False

    def settle(self, example: Example, turns: Collection[str]) -> None:
        """Check the number of images and bring each into its stored form.

        Args: turns: the fields that will be kept, whose places count.

        Raises: RowError.
        """
        places = count_image_parts(example.get("prompt", []))
        if "completion" in turns and "completion" in example:
            places += count_image_parts(example["completion"])
        images = example.get("images") or []
        if not self.wanted:
            if places or images:
                raise RowError("images_unused")
            return
        if places != len(images):
            raise RowError("image_count", f"{places} places in the prompt, {len(images)} images in the row")
        cells = []
        for number, image in enumerate(images, 1):
            try:
                cells.append(image_cell(image, root=self.roots, allow_urls=self.urls))
            except ImageError as error:
                raise RowError(error.reason or "bad_image", f"image {number}: {error.detail}") from error
        example["images"] = cells


class RowReader:
    """Turns raw rows into finished Examples.

    Args:
        origin: where the rows are from.
        fmt: how they are read.
        build: puts template and system prompt to a prompt. answer: writes reference answers down.
        columns: the fields that will be kept.
        required: fields that a row must have, of `MISSING`.
        images: what is done with images.
        types: of the columns.
    """

    def __init__(
        self,
        origin: Source,
        fmt: Format,
        build: PromptBuilder,
        answer: CompletionBuilder,
        columns: Collection[str],
        required: Collection[str],
        images: ImageRules,
        types: CellTypes,
    ) -> None:
        self.format, self.build, self.answer, self.images, self.types = fmt, build, answer, images, types
        self.columns, self.required = frozenset(columns), [name for name in MISSING if name in required]
        self.source = origin.name if fmt.many_sets else fmt.name
        # A file's own name serves as both where no format names the source; said once is enough.
        self.prefix = "/".join(dict.fromkeys((self.source, origin.split_name)))
        self.seen: set[str] = set()

    def read(self, row: Row | RowError, index: int, key: str) -> Example:
        """The finished Example of a row. Args: key: the end of the id of a row without one. Raises: RowError."""
        if isinstance(row, RowError):
            raise row
        self.types.check(row)
        example = self.format.parse(row, index)
        if "prompt" in example:
            place_images(example, row, finished=self.format.bare_marks, expected=self.images.expected)
        check_values(example)
        self._settle_answer(example)
        self.images.settle(example, self.columns)
        self._check_fields(example)
        if "prompt" in example:
            finished = self.format.own_template or isinstance(row.get("prompt"), list)
            example["prompt"] = self.build(example["prompt"], finished)  # type: ignore[arg-type]
        for name in self.columns & {"completion", "chosen", "rejected"} & example.keys():
            example[name] = self.answer(example[name])  # type: ignore[literal-required]
        example.setdefault("source", self.source)
        example.setdefault("id", f"{self.prefix}/{key}")
        if example["id"] in self.seen:
            raise RowError("duplicate_id", example["id"])
        self.seen.add(example["id"])
        return example

    def _check_fields(self, example: Example) -> None:
        for name in self.required:
            cell = example.get(name)
            if cell is None or cell == [] or cell == "":
                raise RowError(MISSING[name])
        if "prompt" in self.columns and "tools" not in self.columns and example.get("tools"):
            raise RowError("tools_unused")

    def _settle_answer(self, example: Example) -> None:
        """Check the gold and fix its kind, so that reward and evaluation read it alike."""
        from mmreason.answers import check_gold, infer_kind

        gold, meta = example.get("answer"), example["meta"]
        if gold is None or not gold.strip():
            example["answer"] = None
            return
        problem = check_gold(gold, meta.get("kind"), meta.get("choices"))
        if problem:
            raise RowError("bad_gold", problem)
        meta["kind"] = meta.get("kind") or infer_kind(gold, meta.get("choices"))


def check_values(value: Any) -> None:
    """What no file can hold, anywhere in an Example: lone surrogates (JSON's "\\ud800"), null bytes, NaN.

    Arrow stores UTF-8 and would fail at a lone surrogate without naming its row; null bytes end texts in many a
    program, and tokenizers read them as noise.

    Raises: RowError.
    """
    kind = type(value)
    if kind is str:
        if "\x00" in value:
            raise RowError("null_bytes", f"character {value.index(chr(0)) + 1} of a text of {len(value)}")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise RowError("bad_unicode", f"character {error.start + 1} of a text of {len(value)}") from None
    elif kind is dict:
        for key, cell in value.items():
            check_values(key)
            if cell is not None:
                check_values(cell)
    elif kind is list:
        for cell in value:
            check_values(cell)
    elif kind is float:
        if not math.isfinite(value):
            raise RowError("nan_value", f"a number is {value}")
    elif isinstance(value, Mapping):
        check_values(dict(value))
    elif isinstance(value, (str, list, tuple)):
        check_values(str(value) if isinstance(value, str) else list(value))
