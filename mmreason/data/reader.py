"""Read rows of local files with the place of each row, so that an error can say ``file:line``.

jsonl, json (a list, {"data": [...]}, a dict of columns), csv, tsv and parquet, each also as .gz (parquet packs itself).
A txt file is one row with its whole text, a document.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mmreason.data.formats.common import RowError, shorten
from mmreason.types import DataError

_CSV_FIELD_LIMIT = 1 << 26  # long solutions exceed the csv module's 128 KiB


class Located(NamedTuple):
    """One row of a file: where it stands, and its cells, or the error that reading it gave."""

    where: str
    row: Mapping[str, Any] | RowError


def suffix_of(path: Path) -> str | None:
    """The suffix that decides how a file is read (".jsonl" for "a.jsonl.gz"), or None for a file we can't read."""
    name = path.name.lower()
    name = name[:-3] if name.endswith(".gz") else name
    suffix = Path(name).suffix
    return suffix if suffix in READERS and not (suffix == ".parquet" and path.name.lower().endswith(".gz")) else None


def stem_of(path: Path) -> str:
    """File name without the suffixes that say how to read it: "train.jsonl.gz" -> "train"."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).stem


def read_rows(path: Path, split: str = "train") -> Iterator[Located]:
    """Rows of one file in order.

    Args:
        path: an existing file with a suffix of READERS.
        split: which list to take from a json file that holds a dict of splits.

    Raises: DataError where the file as a whole can't be read; a single bad line comes as a Located with a RowError.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(
            f"{path}: can't read this kind of file. Readable: {', '.join(READERS)} (text files also with .gz)",
            path=path,
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)", path=path)
        yield from READERS[suffix](path, split)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read: {_say(error)}", path=path) from error


def _say(error: BaseException) -> str:
    if isinstance(error, gzip.BadGzipFile):
        return f"not a gzip file ({error})"
    if isinstance(error, (EOFError, zlib.error)):
        return f"the gzip data is cut off or damaged ({error})"
    return getattr(error, "strerror", None) or str(error)


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _check_bom(path: Path, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8", path=path)


def _jsonl(path: Path, split: str) -> Iterator[Located]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                _check_bom(path, line)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Located(where, RowError("bad_encoding", f"byte {error.start + 1} of the line: {error.reason}"))
                continue
            except (ValueError, RecursionError) as error:
                yield Located(where, RowError("unreadable_line", f"no JSON: {error}"))
                continue
            if isinstance(row, dict):
                yield Located(where, row)
            else:
                yield Located(where, RowError("unreadable_line", f"{shorten(row)} is no JSON object"))


def _text(path: Path) -> str:
    with _open(path) as file:
        data = file.read()
    _check_bom(path, data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: isn't valid UTF-8 ({error.reason})", path=path, reason="bad_encoding"
        ) from None


def _json(path: Path, split: str) -> Iterator[Located]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON: {error.msg} (column {error.colno})", path=path) from None
    except RecursionError:
        raise DataError(f"{path}: no usable JSON: nested too deeply", path=path) from None
    for number, row in enumerate(_json_rows(path, value, split)):
        where = f"{path} row {number}"
        if isinstance(row, dict):
            yield Located(where, row)
        else:
            yield Located(where, RowError("unreadable_line", f"{shorten(row)} is no JSON object"))


def _json_rows(path: Path, value: Any, split: str) -> list[Any]:
    """The rows of a json file: a list, {"data": [...]}, {"train": [...]}, or a dict of equally long columns."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key in ("data", split):
            held = value.get(key)
            if isinstance(held, list) and all(isinstance(row, dict) for row in held):
                return held
        if value and all(isinstance(column, list) for column in value.values()):
            lengths = {name: len(column) for name, column in value.items()}
            if len(set(lengths.values())) > 1:
                raise DataError(f"{path}: a dict of columns, but their lengths differ: {lengths}", path=path)
            return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    raise DataError(
        f'{path}: the JSON is neither a list of rows, {{"data": [rows]}}, {{"{split}": [rows]}} nor a dict of columns; '
        f"it is {shorten(value)}",
        path=path,
    )


def _csv(path: Path, split: str, delimiter: str = ",") -> Iterator[Located]:
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((cells for cells in reader if cells), None)
        if header is None:
            raise DataError(f"{path}: no header line", path=path)
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{path}:1: the header names {', '.join(twice)} more than once", path=path)
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) == len(header):
                yield Located(where, {name: cell or None for name, cell in zip(header, cells, strict=True)})
            else:
                detail = f"{len(cells)} cells under a header of {len(header)}"
                yield Located(where, RowError("unreadable_line", detail))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no csv: {error}", path=path) from None


def _tsv(path: Path, split: str) -> Iterator[Located]:
    return _csv(path, split, delimiter="\t")


def _txt(path: Path, split: str) -> Iterator[Located]:
    yield Located(str(path), {"text": _text(path)})


def _parquet(path: Path, split: str) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            decoders = {field.name: _json_decoder(field.type) for field in file.schema_arrow}
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    for name, decode in decoders.items():
                        if decode is not None:
                            row[name] = decode(row[name])
                    yield Located(f"{path} row {number}", row)
                    number += 1
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path}: no readable parquet (after {number} rows): {error}", path=path) from error


def _json_decoder(kind: Any) -> Callable[[Any], Any] | None:
    """How to decode a column that holds JSON text (what `datasets.Json` writes): plain, or one level inside a list."""
    import pyarrow as pa

    def loads(cell: Any) -> Any:
        return None if cell is None else json.loads(cell)

    if isinstance(kind, pa.JsonType):
        return loads
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and isinstance(kind.value_type, pa.JsonType):
        return lambda cells: None if cells is None else [loads(cell) for cell in cells]
    return None


READERS: dict[str, Callable[[Path, str], Iterator[Located]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _txt,
}
"""Suffix -> reader. A reader yields Located rows and raises DataError for what concerns the whole file."""
