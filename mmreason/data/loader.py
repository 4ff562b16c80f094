"""Load question/answer sets as canonical Examples, with every bad row named or counted."""

from __future__ import annotations

import difflib
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason._functions import did_you_mean
from mmreason.data.formats import FORMATS, REASONS, Format, Row, RowError, detect_format
from mmreason.data.formats import generic as generic_format
from mmreason.data.formats.pictures import count_image_parts, place_images
from mmreason.data.images import ImageError, image_cell
from mmreason.data.prompts import DEFAULT_CHAT_TEMPLATE, DEFAULT_PLAIN_TEMPLATE, build_prompt, resolve_template
from mmreason.data.reader import Located
from mmreason.data.schema import RL_COLUMNS, example_features, to_dataset
from mmreason.data.sources import Source, Split, parse_split, resolve
from mmreason.types import ConfigError, DataError, Example, Message, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset

_SNIFFED_ROWS = 100  # rows that format detection looks at
_SHOWN_BAD_ROWS = 5


@dataclass(slots=True)
class BadRows:
    """The rows that could not be used: counts by reason, and the first few in words."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, where: str, row: Row | RowError | None, error: RowError) -> None:
        """Count a bad row; `where` it stands, and the row itself where it could be read (for its own id)."""
        self.counts[error.reason] += 1
        row_id = row.get("id", row.get("ID")) if isinstance(row, Mapping) else None
        if len(self.shown) < _SHOWN_BAD_ROWS:
            self.shown.append(f"{where}: {error}" if row_id is None else f"{where} (id {row_id}): {error}")

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """What `load_examples` gives.

    Attributes:
        dataset: columns prompt, answer, id, source, meta (or those asked for).
        dropped: number of dropped rows by reason code (see mmreason.data.formats.REASONS).
        format: name of the format that read the rows.
        source: what the user gave, with the split.
        rows_read: rows looked at, good and bad.
        bad_rows: the first few dropped rows in words.
    """

    dataset: Dataset
    dropped: dict[str, int]
    format: str
    source: str
    rows_read: int
    bad_rows: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for the log: rows, format, and what was dropped why."""
        line = f"{self.source}: {len(self.dataset)} examples (format {self.format})"
        if self.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            line += f"; dropped {sum(self.dropped.values())} of {self.rows_read} rows: {reasons}"
        return line


def load_examples(
    source: str,
    *,
    split: str = "train",
    format: str = "auto",
    column_map: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    prompt_template: str | None = None,
    chat: bool = True,
    on_bad_row: OnBadRow = "error",
    max_rows: int | None = None,
    seed: int | None = None,
    columns: Sequence[str] = RL_COLUMNS,
    require_answer: bool = True,
    image_root: str | None = None,
    image_urls: bool = False,
) -> LoadedExamples:
    """Load a question/answer set.

    Args:
        source: hub id ("openai/gsm8k", with a config "openai/gsm8k:main"), a file, or a folder of files named by split.
        split: name with an optional slice: "train", "test[:100]", "train[10%:20%]". The name of a single file's split
            plays no part; the slice does.
        format: a key of FORMATS, or "auto" (from the column names).
        column_map: our field -> their column, e.g. {"prompt": "Body", "answer": "reward_model.ground_truth"}; dots
            reach into structs. Fields: prompt, answer, completion, choices, images, id, source. Implies "generic".
        system_prompt: put before each prompt (chat only).
        prompt_template: a key of PROMPT_TEMPLATES or a text with {question}. Default: "boxed" ("base-boxed" where chat
            is False), and none for rows that bring finished prompts (canonical rows, prompts given as messages).
        chat: True gives messages; False the plain text that the template makes (base models).
        on_bad_row: "error" names the first five bad rows and their number; "drop" counts them by reason.
        max_rows: keep that many good rows: the first ones, or, with a seed, a random sample.
        seed: shuffle the rows; the same seed gives the same order.
        columns: columns of the dataset; "completion", "images" and "tools" can be asked for too. Without "images" a row
            with images is a bad row. With them, no image is decoded here (see mmreason.data.images).
        require_answer: False lets rows without an answer pass (their answer is None).
        image_root: the folder from which relative image paths start and outside which no image may lie. Default: the
            folder of the data's files.
        image_urls: fetch images that are given as http(s) URLs, from public addresses only.

    Ids are the row's own, or source/split/index with the index in the whole split: slices and drops don't move them.
    Raises: DataError (missing, empty or unreadable data, bad rows, unknown split), ConfigError (wrong arguments).
    """
    build = _prompt_builder(system_prompt, prompt_template, chat)
    _check_arguments(format, column_map, on_bad_row, max_rows, columns, chat)
    wanted = parse_split(split)
    origin = resolve(source, wanted)
    label = f"{source} [{wanted}]"
    rows, first_rows = _open(origin, wanted, label)
    fmt = _choose_format(format, column_map, first_rows, label)
    images = _Images("images" in columns, (image_root,) if image_root else origin.image_roots(), image_urls)
    reader = _RowReader(origin, fmt, build, require_answer, images)
    examples, bad = _read_all(_questions(rows, fmt), reader, max_rows if seed is None else None)
    count = len(examples) + bad.total
    _report(bad, len(examples), count, label, on_bad_row)
    if seed is not None:
        random.Random(seed).shuffle(examples)
    dataset = to_dataset(examples[:max_rows], columns, plain_prompt=not chat)
    return LoadedExamples(dataset, dict(bad.counts), fmt.name, label, count, tuple(bad.shown))


PromptBuilder = Callable[[list[Message], bool], list[Message] | str]


def _prompt_builder(system_prompt: str | None, prompt_template: str | None, chat: bool) -> PromptBuilder:
    """(messages, are they finished prompts?) -> prompt."""
    if system_prompt and not chat:
        raise ConfigError("system_prompt needs chat: true; for a plain prompt put its text into prompt_template")
    given = resolve_template(prompt_template) if prompt_template is not None else None
    default = resolve_template(DEFAULT_CHAT_TEMPLATE if chat else DEFAULT_PLAIN_TEMPLATE)

    def build(messages: list[Message], finished: bool) -> list[Message] | str:
        template = given if given is not None or finished else default
        try:
            return build_prompt(messages, template=template, system_prompt=system_prompt, chat=chat)
        except ValueError as error:
            raise RowError("bad_messages", str(error)) from None

    return build


def _check_arguments(
    format: str,
    column_map: Mapping[str, str] | None,
    on_bad_row: str,
    max_rows: int | None,
    columns: Sequence[str],
    chat: bool,
) -> None:
    if format != "auto" and format not in FORMATS:
        _unknown("format", format, ["auto", *FORMATS])
    if on_bad_row not in ("error", "drop"):
        _unknown("on_bad_row", on_bad_row, ["error", "drop"])
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, not {max_rows}")
    for name in column_map or {}:
        if name not in generic_format.NAMES:
            _unknown("column_map field", name, list(generic_format.NAMES))
    if column_map and format not in ("auto", "generic"):
        raise ConfigError(f"column_map belongs to format 'generic', not to {format!r}; leave one of the two out")
    try:
        example_features(columns, plain_prompt=not chat)
    except KeyError as error:
        raise ConfigError(f"columns: {error} is no column that load_examples can give") from None


def _unknown(what: str, value: str, known: Sequence[str]) -> None:
    hint = did_you_mean(str(value), known)
    raise ConfigError(f"unknown {what} {value!r}; known: {', '.join(known)}.{hint}")


IndexedRows = Iterator[tuple[int, Located]]


def _open(origin: Source, split: Split, label: str) -> tuple[IndexedRows, list[Row]]:
    """(indexed rows of the slice, the first rows for detection). Raises DataError for a set without rows."""
    indexed: IndexedRows = enumerate(origin.rows(split))
    if split.needs_length:
        everything = list(indexed)
        start, stop = split.bounds(len(everything))
        indexed = iter(everything[start:stop])
    elif split.start is not None or split.stop is not None:
        indexed = islice(indexed, int(split.start or 0), int(split.stop) if split.stop is not None else None)
    head = list(islice(indexed, _SNIFFED_ROWS))
    if not head:
        raise DataError(f"{label}: the dataset is empty (no rows)", path=label, reason="empty")
    first_rows = [located.row for _, located in head if isinstance(located.row, Mapping)]
    return chain(head, indexed), first_rows


def _choose_format(name: str, column_map: Mapping[str, str] | None, rows: Sequence[Row], label: str) -> Format:
    available = sorted({column for row in rows for column in row})
    if column_map:
        for field_name, path in column_map.items():
            if rows and not any(generic_format.has_path(row, path) for row in rows):
                close = difflib.get_close_matches(path, available, n=1, cutoff=0.5)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise DataError(
                    f"{label}: column_map: no column {path!r} for {field_name!r}; "
                    f"there are {', '.join(available)}.{hint}",
                    path=label,
                )
        parse = functools.partial(generic_format.parse_with, dict(column_map))
        return Format("generic", parse, generic_format.detect)
    if name != "auto":
        return FORMATS[name]
    found = detect_format(rows)
    if found is None and rows:
        raise DataError(
            f"{label}: no known format has the columns {', '.join(available)}. Say which columns to use, e.g. "
            "column_map: {prompt: question, answer: answer}",
            path=label,
            reason="unknown_format",
        )
    return found or FORMATS["generic"]  # no readable row at all: the bad rows will say so


def _questions(rows: IndexedRows, fmt: Format) -> Iterator[tuple[int, str, Located]]:
    """(index, its text for ids, row) of each question: a row of several questions (easy-VQA) becomes as many rows."""
    for index, located in rows:
        if fmt.split is None or isinstance(located.row, RowError):
            yield index, str(index), located
            continue
        try:
            parts = fmt.split(located.row)
        except RowError as error:
            yield index, str(index), Located(located.where, error)
            continue
        for number, part in enumerate(parts):
            yield index, f"{index}/{number}", Located(f"{located.where} question {number}", part)


def _read_all(
    questions: Iterator[tuple[int, str, Located]], reader: _RowReader, enough: int | None
) -> tuple[list[Example], BadRows]:
    """(the good rows, at most `enough` of them; the bad ones met on the way)."""
    examples: list[Example] = []
    bad = BadRows()
    for index, key, (where, row) in questions:
        try:
            examples.append(reader.read(row, index, key))
        except RowError as error:
            bad.add(where, row, error)
        if len(examples) == enough:
            break
    return examples, bad


@dataclass(frozen=True, slots=True)
class _Images:
    """What is done with the images of rows: were they asked for, where may they lie, are URLs fetched?"""

    wanted: bool
    roots: Sequence[str | Path]
    urls: bool

    def settle(self, example: Example) -> None:
        """Check the number of images and bring each into its stored form. Raises: RowError."""
        places, images = count_image_parts(example["prompt"]), example.get("images") or []
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


class _RowReader:
    """Turns raw rows into finished Examples: parse, check the gold, build the prompt, give an id."""

    def __init__(
        self, origin: Source, fmt: Format, build: PromptBuilder, require_answer: bool, images: _Images
    ) -> None:
        self.origin, self.format, self.build = origin, fmt, build
        self.require_answer, self.images = require_answer, images
        named_by_format = fmt.name not in ("generic", "canonical")
        self.source = fmt.name if named_by_format else origin.name
        # A file's own name serves as both where no format names the source; said once is enough.
        self.prefix = "/".join(dict.fromkeys((self.source, origin.split_name)))
        self.seen: set[str] = set()

    def read(self, row: Row | RowError, index: int, key: str) -> Example:
        if isinstance(row, RowError):
            raise row
        example = self.format.parse(row, index)
        place_images(example, row, finished=self.format.own_template)
        _check_unicode(example)
        self._settle_answer(example)
        self.images.settle(example)
        finished = self.format.own_template or isinstance(row.get("prompt"), list)
        example["prompt"] = self.build(example["prompt"], finished)  # type: ignore[arg-type]
        example.setdefault("source", self.source)
        example.setdefault("id", f"{self.prefix}/{key}")
        if example["id"] in self.seen:
            raise RowError("duplicate_id", example["id"])
        self.seen.add(example["id"])
        return example

    def _settle_answer(self, example: Example) -> None:
        """Check the gold and fix its kind, so that reward and evaluation read it alike."""
        from mmreason.answers import check_gold, infer_kind

        gold, meta = example.get("answer"), example["meta"]
        if gold is None or not gold.strip():
            if self.require_answer:
                raise RowError("missing_answer")
            example["answer"] = None
            return
        problem = check_gold(gold, meta.get("kind"), meta.get("choices"))
        if problem:
            raise RowError("bad_gold", problem)
        meta["kind"] = meta.get("kind") or infer_kind(gold, meta.get("choices"))


def _check_unicode(value: Any) -> None:
    """Arrow stores UTF-8; a lone surrogate (JSON's "\\ud800") would fail there without naming its row."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError("bad_unicode", f"character {error.start + 1} of a text of {len(value)}") from None
    elif isinstance(value, Mapping):
        for key, cell in value.items():
            _check_unicode(key)
            _check_unicode(cell)
    elif isinstance(value, (list, tuple)):
        for cell in value:
            _check_unicode(cell)


def _report(bad: BadRows, good: int, count: int, label: str, on_bad_row: OnBadRow) -> None:
    """Raise DataError for bad rows that were not to be dropped, and for a set of which nothing is left."""
    if not bad.total:
        return
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(bad.counts.items()))
    listed = "\n  ".join(bad.shown)
    if on_bad_row == "error":
        more = f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
        raise DataError(
            f"{label}: {bad.total} of {count} rows can't be used ({reasons}):\n  {listed}{more}\n"
            "Mend them, or drop them with on_bad_row: drop (dropped rows are counted)",
            path=label,
            row=bad.shown[0].split(": ", 1)[0],
            reason=next(iter(bad.counts)),
        )
    if not good:
        raise DataError(
            f"{label}: no row is left, all {count} were dropped ({reasons}):\n  {listed}", path=label, reason="empty"
        )


__all__ = ["REASONS", "BadRows", "LoadedExamples", "load_examples"]
