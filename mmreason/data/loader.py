"""Load question/answer sets as canonical Examples, with every bad row named or counted."""

from __future__ import annotations

import difflib
import functools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from mmreason._functions import did_you_mean
from mmreason.data._rows import MISSING, CellTypes, CompletionBuilder, ImageRules, PromptBuilder, RowReader
from mmreason.data.formats import FORMATS, REASONS, Format, Row, RowError, detect_format
from mmreason.data.formats import generic as generic_format
from mmreason.data.formats.pictures import COLUMNS as IMAGE_COLUMNS
from mmreason.data.prompts import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_PLAIN_TEMPLATE,
    build_completion,
    build_prompt,
    resolve_completion_template,
    resolve_template,
)
from mmreason.data.reader import Located
from mmreason.data.schema import RL_COLUMNS, example_features, to_dataset
from mmreason.data.sources import Source, Split, parse_split, resolve
from mmreason.types import ConfigError, DataError, Example, Message, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset

_SNIFFED_ROWS = 100  # rows that format detection looks at
_SHOWN_BAD_ROWS = 5
_FORM_OF = {
    "conversations": "sharegpt",
    "messages": "messages",
    "completions": "stepwise",
    "labels": "stepwise",
    "instruction": "alpaca",
    "output": "alpaca",
    "history": "alpaca",
    "chosen": "preference",
    "rejected": "preference",
    "label": "unpaired",
    "text": "text",
}
"""Field of a column map -> the form that it is of, where no format is named; the first that the map has decides."""


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
        dataset: the columns that were asked for.
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
    completion_template: str | None = None,
    chat: bool = True,
    on_bad_row: OnBadRow = "error",
    max_rows: int | None = None,
    seed: int | None = None,
    columns: Sequence[str] = RL_COLUMNS,
    require_answer: bool = True,
    require: Sequence[str] = (),
    image_root: str | None = None,
    image_urls: bool = False,
) -> LoadedExamples:
    """Load a set of questions with answers, conversations, preference pairs or documents.

    Args:
        source: hub id ("openai/gsm8k", with a config "openai/gsm8k:main"), a file, or a folder of files named by split.
        split: name with an optional slice: "train", "test[:100]", "train[10%:20%]". Of a single file the slice counts.
        format: a key of FORMATS, or "auto" (from the column names).
        column_map: our field -> their column, e.g. {"prompt": "Body", "answer": "reward_model.ground_truth"}; dots
            reach into structs. Fields: `Format.mapped` of the format, or of the one that they belong to.
        system_prompt: put before each prompt (chat only).
        prompt_template: a key of PROMPT_TEMPLATES or a text with {question}. Default: none for finished prompts
            (canonical rows, messages), else "boxed" ("base-boxed" where chat is False).
        completion_template: a key of COMPLETION_TEMPLATES or a text with {reasoning} and {answer}. None: kept apart.
        chat: True gives messages; False the plain texts that the templates make (base models).
        on_bad_row: "error" names the first five bad rows and their number; "drop" counts them by reason.
        max_rows: good rows that are kept: the first ones, or, with a seed (of the rows' shuffling), a random sample.
        columns: columns of the dataset: fields of an Example. Without "images" a row with images is a bad row, without
            "tools" one with tools. No image is decoded here (see mmreason.data.images).
        require_answer: False lets rows without an answer pass (their answer is None), where "answer" is asked for.
        require: further fields that a row must have: completion, chosen, rejected, label, text.
        image_root: where relative image paths start, and outside which no image may lie. Default: the data's folder.
        image_urls: fetch images from http(s) URLs, public addresses only.

    Ids are the row's own, or source/split/index with the index in the whole split: slices and drops don't move them.
    Raises: DataError (missing, empty or unreadable data, bad rows, unknown split), ConfigError (wrong arguments).
    """
    build, answer = prompt_builder(system_prompt, prompt_template, chat), completion_builder(completion_template, chat)
    check_format(format, column_map)
    _check_arguments(on_bad_row, max_rows, columns, require, chat)
    wanted = parse_split(split)
    origin, label = resolve(source, wanted), f"{source} [{wanted}]"
    rows, first_rows = open_rows(origin, wanted, label)
    fmt = choose_format(format, column_map, first_rows, label)
    images, types = _image_rules(columns, image_root, image_urls, origin, first_rows), CellTypes(first_rows)
    required = _required(columns, require, require_answer)
    reader = RowReader(origin, fmt, build, answer, columns, required, images, types)
    examples, bad = _read_all(questions_of(rows, fmt), reader, max_rows if seed is None else None)
    _report(bad, len(examples), label, on_bad_row)
    if seed is not None:
        random.Random(seed).shuffle(examples)
    dataset = to_dataset(examples[:max_rows], columns, plain_prompt=not chat)
    return LoadedExamples(dataset, dict(bad.counts), fmt.name, label, len(examples) + bad.total, tuple(bad.shown))


def _image_rules(
    columns: Sequence[str], root: str | None, urls: bool, origin: Source, rows: Sequence[Row]
) -> ImageRules:
    """Rows of a set with an image column in some row must have as many images as places."""
    expected = any(name in row for row in rows for name in IMAGE_COLUMNS)
    return ImageRules("images" in columns, (root,) if root else origin.image_roots(), urls, expected)


def _required(columns: Sequence[str], require: Sequence[str], require_answer: bool) -> set[str]:
    """The fields without which a row is a bad one. Where documents may come too, a prompt is none of them."""
    asked = {"prompt"} if "prompt" in columns and "text" not in columns else set()
    return asked | ({"answer"} if require_answer and "answer" in columns else set()) | set(require)


def completion_builder(template: str | None, chat: bool) -> CompletionBuilder:
    """messages -> completion, as `completion_template` says. Raises: ConfigError."""
    text = None if template is None else resolve_completion_template(template)

    def build(messages: list[Message]) -> list[Message] | str:
        try:
            return build_completion(messages, template=text, chat=chat)
        except ValueError as error:
            raise RowError("bad_messages", str(error)) from None

    return build


def prompt_builder(system_prompt: str | None, prompt_template: str | None, chat: bool) -> PromptBuilder:
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


def check_format(format: str, column_map: Mapping[str, str] | None) -> None:
    """Raises: ConfigError: no such format, a field that it doesn't have, or a column map that it has no use for."""
    if format != "auto" and format not in FORMATS:
        _unknown("format", format, ["auto", *FORMATS])
    fmt = FORMATS.get(format)
    if column_map and fmt is not None and not fmt.mapped:
        takers = ", ".join(repr(each.name) for each in FORMATS.values() if each.mapped and each.name != "generic")
        raise ConfigError(
            f"column_map belongs to format 'generic' (or to {takers}), not to {format!r}; leave one of the two out"
        )
    fields = (
        list(fmt.mapped) if fmt is not None else sorted({name for each in FORMATS.values() for name in each.mapped})
    )
    for name in column_map or {}:
        if name not in fields:
            _unknown("column_map field", name, fields)


def _check_arguments(
    on_bad_row: str, max_rows: int | None, columns: Sequence[str], require: Sequence[str], chat: bool
) -> None:
    if on_bad_row not in ("error", "drop"):
        _unknown("on_bad_row", on_bad_row, ["error", "drop"])
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, not {max_rows}")
    for name in require:
        if name not in MISSING:
            _unknown("required field", name, list(MISSING))
    try:
        example_features(columns, plain_prompt=not chat)
    except KeyError as error:
        raise ConfigError(f"columns: {error} is no column that load_examples can give") from None


def _unknown(what: str, value: str, known: Sequence[str]) -> None:
    hint = did_you_mean(str(value), known)
    raise ConfigError(f"unknown {what} {value!r}; known: {', '.join(known)}.{hint}")


IndexedRows = Iterator[tuple[int, Located]]


def open_rows(origin: Source, split: Split, label: str) -> tuple[IndexedRows, list[Row]]:
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


def choose_format(name: str, column_map: Mapping[str, str] | None, rows: Sequence[Row], label: str) -> Format:
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
        return _mapped(name, column_map)
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


def _mapped(name: str, column_map: Mapping[str, str]) -> Format:
    """The format that reads rows whose columns have other names."""
    form = next((form for field_name, form in _FORM_OF.items() if field_name in column_map), "generic")
    fmt = FORMATS[form if name == "auto" else name]
    if fmt.name == "generic":
        return replace(fmt, parse=functools.partial(generic_format.parse_with, dict(column_map)))

    def renamed(row: Row) -> Row:
        found = {field_name: generic_format.lookup(row, path) for field_name, path in column_map.items()}
        kept = {name: cell for name, cell in row.items() if name not in column_map.values()}
        return kept | {name: cell for name, cell in found.items() if cell is not generic_format.ABSENT}

    return replace(fmt, parse=lambda row, index: fmt.parse(renamed(row), index))


def questions_of(rows: IndexedRows, fmt: Format) -> Iterator[tuple[int, str, Located]]:
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
    questions: Iterator[tuple[int, str, Located]], reader: RowReader, enough: int | None
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


def _report(bad: BadRows, good: int, label: str, on_bad_row: OnBadRow) -> None:
    """Raise DataError for bad rows that were not to be dropped, and for a set of which nothing is left."""
    if not bad.total:
        return
    count = good + bad.total
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
