"""The texts of a corpus, one after another: text files, tables of any kind that `load_examples` reads, hub sets."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmreason._functions import did_you_mean
from mmreason.data.formats.common import RowError, shorten
from mmreason.data.loader import BadRows
from mmreason.data.reader import read_rows, suffix_of
from mmreason.data.sources import Source, Split, parse_split, resolve
from mmreason.data.supervised import message_texts
from mmreason.types import DataError, OnBadRow

TxtUnit = Literal["file", "paragraph", "line"]
"""What a document of a .txt file is: all of it, what stands between blank lines, or each line."""


class Text(NamedTuple):
    """A document. number: its place in the corpus, which drops don't move; where: file and row, for errors."""

    number: int
    where: str
    text: str


@dataclass
class Corpus:
    """Where texts come from; read as often as wanted, always in the same order.

    Args:
        name: hub id, a file, a folder or a pattern such as `books/*.txt`. A folder with .txt files is read whole (or,
            where some are named after the split, those); any other by split, as `load_examples` does.
        split: with an optional slice of rows.
        column: of the text, in tables. A row without it that has a prompt (and a completion) gives the texts of its
            messages, one on each line.
        txt_unit: what a document of a .txt file is.
        on_bad_row: "error" stops at a row without a text; "drop" counts it in `dropped`.
        streaming: hub sets are read over the network while training goes on, instead of being stored first.
        limit: use only the first so many documents.

    Raises: DataError where there is no such corpus.
    """

    name: str
    split: str = "train"
    column: str = "text"
    txt_unit: TxtUnit = "file"
    on_bad_row: OnBadRow = "error"
    streaming: bool = False
    limit: int | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._split: Split = parse_split(self.split)
        self._files = _text_files(self.name, self._split.name)
        self._source: Source | None = None if self._files else resolve(self.name, self._split)

    def identity(self) -> dict[str, Any]:
        """What the texts depend on: a stored copy of a corpus with the same identity can be used again."""
        files = self._files or (self._source.files if self._source is not None else ())
        told = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        settings = [self.name, self.split, self.column, self.txt_unit, self.on_bad_row, self.limit]
        return {"files": told, "settings": settings}

    def read(self, start: int = 0) -> Iterator[Text]:
        """The documents from place `start` on.

        Raises: DataError naming the row that has no usable text, and where the corpus ends without any.
        """
        self.dropped.clear()
        found = False
        for number, where, row in islice(self._rows(start), None if self.limit is None else self.limit - start):
            try:
                text = row if isinstance(row, str) else self._text_of(row)
                _check(text)
            except RowError as error:
                self._bad(where, row, error)
                continue
            found = True
            yield Text(number, where, text)
        if not found and start == 0:
            raise DataError(f"{self.name} [{self.split}]: no texts", path=self.name, reason="empty")

    def texts(self) -> Iterator[str]:
        """The documents' texts alone. Raises as `read`."""
        return (text.text for text in self.read())

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(where, row) of tables, (where, text) of text files, as they stand. Raises DataError."""
        return ((where, row) for _, where, row in islice(self._rows(0), self.limit))

    def image_roots(self) -> tuple[Path, ...]:
        """The folders outside which no image of the rows may lie."""
        if self._source is not None:
            return self._source.image_roots()
        return tuple(dict.fromkeys(file.parent for file in self._files))

    def _bad(self, where: str, row: Any, error: RowError) -> None:
        if self.on_bad_row == "error":
            bad = BadRows()
            bad.add(where, row if isinstance(row, Mapping) else None, error)
            raise DataError(
                f"{bad.shown[0]}. Put it right, name the text's column with text_column, or drop such rows with "
                "on_bad_row: drop",
                row=where,
                reason=error.reason,
            )
        self.dropped[error.reason] += 1

    def _rows(self, start: int) -> Iterator[tuple[int, str, Any]]:
        """(place, where, text or row) of the split's slice; rows before `start` are not looked at."""
        if self._files:
            rows = _enumerate(text for file in self._files for text in self._file_rows(file))
        elif self.streaming and self._source is not None and self._source.hub is not None:
            yield from _hub_stream(*self._source.hub, self._split, start)
            return
        else:
            assert self._source is not None
            rows = _enumerate((located.where, located.row) for located in self._source.rows(self._split))
        if self._split.needs_length:
            everything = list(rows)
            first, last = self._split.bounds(len(everything))
            rows = iter([(i, *row[1:]) for i, row in enumerate(everything[first:last])])
        elif self._split.start is not None or self._split.stop is not None:
            first = int(self._split.start or 0)
            stop = None if self._split.stop is None else int(self._split.stop)
            rows = ((number - first, where, row) for number, where, row in islice(rows, first, stop))
        yield from islice(rows, start, None)

    def _file_rows(self, file: Path) -> Iterator[tuple[str, Any]]:
        if not _is_txt(file):
            yield from ((located.where, located.row) for located in read_rows(file, self._split.name))
            return
        lines = _lines(file)
        if self.txt_unit == "line":
            yield from ((where, line.strip("\n")) for where, line in lines if line.strip())
            return
        block: list[str] = []
        begun = str(file)
        for where, line in lines:
            if line.strip() or self.txt_unit == "file":
                begun = begun if block else where
                block.append(line)
            elif block:
                yield begun, "".join(block).strip("\n")
                block = []
        if "".join(block).strip():
            yield begun, "".join(block).strip("\n")

    def _text_of(self, row: Mapping[str, Any] | RowError) -> str:
        if isinstance(row, RowError):
            raise row
        if self.column in row:
            value = row[self.column]
            if not isinstance(value, str) or not value.strip():
                raise RowError("missing_text", f"{self.column!r} is {shorten(value)}")
            return value
        if "prompt" not in row:
            hint = did_you_mean(self.column, row)
            raise RowError("missing_text", f"no column {self.column!r}; there are {', '.join(row)}.{hint}")
        parts = [row["prompt"], row.get("completion") or []]
        return "\n".join(text for messages in parts for text in message_texts(messages))


def _check(text: str) -> None:
    if not text.strip():
        raise RowError("missing_text", "empty")
    if "\0" in text:
        raise RowError("null_bytes", f"at character {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("bad_unicode", f"a lone surrogate at character {error.start}") from None


def _enumerate(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    return ((number, where, row) for number, (where, row) in enumerate(rows))


def _is_txt(path: Path) -> bool:
    return path.name.lower().endswith((".txt", ".txt.gz"))


def _text_files(name: str, split: str) -> tuple[Path, ...]:
    """The files that a text file, a pattern or a folder with text files stands for; none for anything else."""
    path = Path(name).expanduser()
    if any(mark in name for mark in "*?["):
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        files = tuple(file for file in found if _is_txt(file) or suffix_of(file) is not None)
        if not files:
            raise DataError(f"{name}: no text or data file fits this pattern", path=name, reason="missing_path")
        return files
    if path.is_file() and _is_txt(path):
        return (path,)
    if not path.is_dir():
        return ()
    inside = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] not in "._")
    if not any(_is_txt(file) for file in inside):
        return ()
    named = [file for file in inside if _is_txt(file) and file.name.startswith(f"{split}.")]
    return tuple(named or [file for file in inside if _is_txt(file) or suffix_of(file) is not None])


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of a text file in UTF-8; line ends become \\n. Raises DataError."""
    try:
        with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file}:{number}: byte {error.start + 1} of the line is not UTF-8 ({error.reason}). Convert "
                        "the file, e.g. with iconv -t UTF-8",
                        path=file,
                        row=f"{file}:{number}",
                        reason="bad_encoding",
                    ) from None
                yield f"{file}:{number}", text.replace("\r\n", "\n")
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: can't be read: {error}", path=file) from error


def _hub_stream(path: str, config: str | None, split: Split, start: int) -> Iterator[tuple[int, str, Any]]:
    """Rows of a hub set as they come over the network, from `start` on. Raises DataError."""
    import datasets

    label = path + (f":{config}" if config else "")
    if split.needs_length:
        raise DataError(f"{label}: a stream has no length: give split {split.name} without percents", path=label)
    first, last = int(split.start or 0) + start, None if split.stop is None else int(split.stop)
    try:
        rows = datasets.load_dataset(path, config, split=split.name, streaming=True).skip(first)
        for number, row in enumerate(rows, start=first):
            if last is not None and number >= last:
                return
            yield number - int(split.start or 0), f"{label}[{split.name}] row {number}", row
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{label}: can't be streamed from the hub: {text}", path=label, reason="missing_path"
        ) from error
