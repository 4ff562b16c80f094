"""Raw files of a corpus, read document by document: JSON lines, parquet, WARC, text; gzip or zstandard around them."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from mmreason.data.texts import TxtUnit
from mmreason.types import ConfigError, DataError

Form = Literal["jsonl", "parquet", "warc", "txt"]
_SUFFIXES: Mapping[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".warc": "warc",
    ".wet": "warc",
    ".txt": "txt",
}
_PACKED = (".gz", ".zst")
SUFFIXES = ", ".join(_SUFFIXES)


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file. Attributes: source: the name of the source that it belongs to; label: its path inside that source."""

    path: str
    form: Form
    source: str
    label: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How documents are read. Attributes: kept: fields of a row that go into the meta of its document."""

    text_key: str = "text"
    id_key: str = "id"
    kept: tuple[str, ...] = ("url", "date")
    txt_unit: TxtUnit = "file"


@dataclass(slots=True)
class Raw:
    """A document as it stands in its file, or what is wrong with it.

    Attributes:
        number: its place in the file, from 0.
        is_html: it is a web page, whose text has still to be taken out of it.
        fault: code of why it can't be used, with a sentence for people; None for a good one.
    """

    number: int
    where: str
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    is_html: bool = False
    fault: tuple[str, str] | None = None


@dataclass(slots=True)
class Inspected:
    """What a file holds. Attributes: rows: documents, usable or not. faults: code -> how many; shown: some of them."""

    rows: int
    sha256: str
    faults: Counter[str]
    shown: list[str]


def form_of(path: Path) -> Form | None:
    """By its name; None for a file that is no raw text."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return _SUFFIXES.get(Path(name).suffix)


def find_files(name: str, place: str) -> list[RawFile]:
    """The files of a source: of a file, a pattern, or a folder with all in it, in the order of their names.

    Raises: ConfigError: there are none, or one is of another form.
    """
    path = Path(place).expanduser()
    if any(mark in place for mark in "*?["):
        root = Path(path.anchor or ".")
        matching = sorted(root.glob(str(path.relative_to(path.anchor))))
        found = [file for file in matching if file.is_file() and not file.name.startswith(".")]
        base = root
    elif path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.is_file())
        found = [file for file in inside if form_of(file) and not file.name.startswith((".", "_"))]
        base = path
    else:
        found, base = [path], path.parent
    for file in found:
        if not file.exists():
            from mmreason._files import nearest_path

            raise ConfigError(f"--source {place}: no such file or folder{nearest_path(file)}")
        if form_of(file) is None:
            raise ConfigError(f"{file}: can't read this kind of file. Readable: {SUFFIXES}, each also with .gz or .zst")
    if not found:
        raise ConfigError(f"--source {place}: holds no file with one of these endings: {SUFFIXES} (also .gz, .zst)")
    return [RawFile(str(file.absolute()), form_of(file) or "txt", name, str(file.relative_to(base))) for file in found]


def inspect_file(file: RawFile, options: ReadOptions) -> Inspected:
    """Read a whole file, as it will be read later, and digest it. Raises: DataError where it can't be read."""
    with Path(file.path).open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    rows, faults, shown = 0, Counter[str](), list[str]()
    for raw in read_documents(file, options):
        rows += 1
        if raw.fault is not None:
            faults[raw.fault[0]] += 1
            if len(shown) < 3:
                shown.append(f"{raw.where}: {raw.fault[1]}")
    return Inspected(rows, digest, faults, shown)


def read_documents(file: RawFile, options: ReadOptions, first: int = 0, count: int | None = None) -> Iterator[Raw]:
    """The documents from place `first` on; those before it are skipped, as cheaply as the form allows.

    Raises: DataError where the file as a whole can't be read; a bad document comes with its `fault`.
    """
    read = {"jsonl": _jsonl, "parquet": _parquet, "warc": _warc, "txt": _txt}[file.form]
    found = read(file, options, first)
    try:
        yield from islice(found, count)
    except (OSError, EOFError, zlib.error) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file.path}: can't be read: {text}. Is it whole?", path=file.path) from error


def _open(path: str) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.lower().endswith(".zst"):
        import zstandard

        try:
            return zstandard.open(path, "rb")  # type: ignore[no-any-return]
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    return Path(path).open("rb")


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) without a byte order mark."""
    with _open(path) as handle:
        for number, line in enumerate(_whole_lines(handle, path), start=1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path}: is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8", path=path)
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line


def _whole_lines(handle: IO[bytes], path: str) -> Iterator[bytes]:
    if not path.lower().endswith(".zst"):
        yield from handle
        return
    import io

    import zstandard

    try:
        yield from io.BufferedReader(handle)  # type: ignore[type-var]
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error


# --------------------------------------------------------------------------------------------------------------------
# Forms


def _jsonl(file: RawFile, options: ReadOptions, first: int) -> Iterator[Raw]:
    import orjson

    place = -1
    for number, line in _lines(file.path):
        if not line.strip():
            continue
        place += 1
        if place < first:
            continue
        raw = Raw(place, f"{file.path}:{number}")
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raw.fault = _bad_json(line, str(error))
        else:
            _fill(raw, row, options)
        yield raw


def _bad_json(line: bytes, error: str) -> tuple[str, str]:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        return "bad_encoding", f"byte {bad.start + 1} of the line is not UTF-8 ({bad.reason})"
    return "unreadable_line", f"no JSON: {error}"


def _fill(raw: Raw, row: Any, options: ReadOptions) -> None:
    """Text and meta of a row."""
    if not isinstance(row, Mapping):
        raw.fault = ("unreadable_line", "no JSON object")
        return
    text = row.get(options.text_key)
    if options.text_key not in row:
        raw.fault = ("missing_text", f"no field {options.text_key!r}; there are {', '.join(map(str, row))}")
    elif not isinstance(text, str) or not text.strip():
        raw.fault = ("missing_text", f"{options.text_key!r} holds no text")
    elif "\0" in text:
        raw.fault = ("null_bytes", f"a NUL at character {text.index(chr(0))}")
    else:
        raw.text = text
        raw.meta = {key: row[key] for key in options.kept if row.get(key) is not None}
        if row.get(options.id_key) is not None:
            raw.meta["id"] = str(row[options.id_key])


def _parquet(file: RawFile, options: ReadOptions, first: int) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if options.text_key not in names:
                raise DataError(
                    f"{file.path}: no column {options.text_key!r}; there are {', '.join(names)}. Name the text's with "
                    "--text_key",
                    path=file.path,
                    reason="missing_text",
                )
            columns = [name for name in (options.text_key, options.id_key, *options.kept) if name in names]
            groups, start = _row_groups(table, first)
            number = start
            for batch in table.iter_batches(1024, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    if number >= first:
                        raw = Raw(number, f"{file.path} row {number}")
                        _fill(raw, row, options)
                        yield raw
                    number += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file.path}: can't be read as parquet: {error}", path=file.path) from error


def _row_groups(table: Any, first: int) -> tuple[list[int], int]:
    """(row groups from that of row `first` on, the first one's first row)."""
    start = 0
    for number in range(table.num_row_groups):
        rows = table.metadata.row_group(number).num_rows
        if start + rows > first:
            return list(range(number, table.num_row_groups)), start
        start += rows
    return [], start


def _txt(file: RawFile, options: ReadOptions, first: int) -> Iterator[Raw]:
    number = -1
    for where, block in _blocks(file.path, options.txt_unit):
        number += 1
        if number < first:
            continue
        raw = Raw(number, where)
        try:
            raw.text = block.decode("utf-8").replace("\r\n", "\n").strip("\n")
            if "\0" in raw.text:
                raw.fault = ("null_bytes", f"a NUL at character {raw.text.index(chr(0))}")
        except UnicodeDecodeError as error:
            line = block[: error.start].count(b"\n")
            raw.fault = (
                "bad_encoding",
                f"byte {error.start + 1} is not UTF-8 ({error.reason}, {line} lines on). Convert it, e.g. with iconv",
            )
        yield raw


def _blocks(path: str, unit: TxtUnit) -> Iterator[tuple[str, bytes]]:
    """(where it begins, bytes) of what is a document; blank ones are none."""
    held: list[bytes] = []
    begun = 1
    for number, line in _lines(path):
        blank = not line.strip()
        if (unit == "line" or (unit == "paragraph" and blank)) and held:
            yield f"{path}:{begun}", b"".join(held)
            held = []
        if not blank or (unit == "file" and held):
            begun = begun if held else number
            held.append(line)
    if held:
        yield f"{path}:{begun}", b"".join(held)


def _warc(file: RawFile, options: ReadOptions, first: int) -> Iterator[Raw]:
    from datatrove.pipeline.readers.warc import process_record
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with _open(file.path) as handle:
        if handle.read(5) != b"WARC/":  # warcio would take it for an old ARC file
            raise DataError(f"{file.path}: is no WARC file: it doesn't begin with WARC/", path=file.path)
    number = -1
    try:
        # gzip members are records: warcio takes them apart itself
        with Path(file.path).open("rb") if file.path.lower().endswith(".gz") else _open(file.path) as handle:
            for record in ArchiveIterator(handle):
                if record.rec_type not in ("response", "conversion"):
                    continue
                number += 1
                if number < first:
                    continue
                raw = Raw(number, f"{file.path} record {number}", is_html=record.rec_type == "response")
                found = process_record(record)
                if found is None or not str(found["text"]).strip():
                    raw.fault = ("no_page", "not a web page, or one whose characters can't be told")
                else:
                    raw.text = found["text"].replace("\0", "")
                    raw.meta = {key: found[key] for key in options.kept if found.get(key) is not None}
                    raw.meta["id"] = str(found["id"])
                yield raw
    except ArchiveLoadFailed as error:
        raise DataError(f"{file.path}: is no WARC file: {error}", path=file.path) from error
