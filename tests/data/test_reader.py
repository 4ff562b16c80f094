"""Reading files: every kind gives the same rows, every fault is named with its line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmreason.data.formats import RowError
from mmreason.data.reader import read_rows, stem_of, suffix_of
from mmreason.types import DataError

ROWS = [{"question": f'Frage {i}: "ä,\n{{}}"', "answer": str(i)} for i in range(5)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write rows in the form that the file's name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif name.endswith("columns.json"):
        text = json.dumps({key: [row[key] for row in rows] for key in rows[0]})
    elif name.endswith("data.json"):
        text = json.dumps({"version": 1, "data": rows})
    elif name.endswith("splits.json"):
        text = json.dumps({"train": rows, "test": []})
    elif name.endswith(".json"):
        text = json.dumps(rows, indent=1)
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        text = path.read_text(encoding="utf-8") if not path.name.endswith(".gz") else path.open(newline="").read()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


KINDS = ["a.jsonl", "a.ndjson", "a.json", "columns.json", "data.json", "splits.json", "a.csv", "a.tsv", "a.parquet"]


@pytest.mark.parametrize("name", KINDS + [f"{kind}.gz" for kind in KINDS if kind != "a.parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    located = list(read_rows(write(tmp_path / name)))
    assert [dict(item.row) for item in located] == ROWS  # type: ignore[arg-type]
    assert all(str(tmp_path / name) in item.where for item in located)


def test_places_are_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [item.where for item in read_rows(path)] == [f"{path}:1", f"{path}:3"]
    quoted = tmp_path / "a.csv"
    quoted.write_text('q,a\n"two\nlines",1\nx,2\n')
    assert [item.where for item in read_rows(quoted)] == [f"{quoted}:2", f"{quoted}:4"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "unreadable_line"),
        (b"[1, 2]", "unreadable_line"),
        (b"\xff\xfe\xfa", "bad_encoding"),
        (b'{"a": "\xe4"}', "bad_encoding"),
        (b"[" * 100_000, "unreadable_line"),
    ],
)
def test_bad_line_is_one_bad_row(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = list(read_rows(path))
    assert (first.row, last.row) == ({"a": 0}, {"a": 2})
    assert bad.where == f"{path}:2" and isinstance(bad.row, RowError) and bad.row.reason == reason


def test_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\n')
    assert [item.row for item in read_rows(path)] == [{"a": 1}]
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl.gz", b"no gzip at all", "gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cut off"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', r"a\.json:3: no JSON"),
        ("a.json", b'{"a": 1}', "neither a list of rows"),
        ("a.json", b'{"a": [1, 2], "b": [1]}', "lengths differ"),
        ("a.json", b'["\xe4"]', "UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "more than once"),
        ("a.csv", b'a,b\n"1,2\n', "no csv"),
        ("a.parquet", b"PAR1 not really PAR1", "no readable parquet"),
        ("a.bin", b"text", "can't read this kind"),
        ("a.parquet.gz", b"x", "can't read this kind"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


def test_csv_with_missing_and_surplus_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\nx,1\ny\nz,1,2\nw,\n")
    rows = [item.row for item in read_rows(path)]
    assert rows[0] == {"q": "x", "a": "1"} and rows[3] == {"q": "w", "a": None}
    assert all(isinstance(row, RowError) and row.reason == "unreadable_line" for row in rows[1:3])


def test_csv_takes_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\n" + "x" * 1_000_000 + ",1\n")
    (row,) = list(read_rows(path))
    assert len(row.row["q"]) == 1_000_000  # type: ignore[index]


def test_names() -> None:
    assert suffix_of(Path("x/a.JSONL.GZ")) == ".jsonl" and suffix_of(Path("a.bin")) is None
    assert stem_of(Path("train-00000-of-00001.parquet")) == "train-00000-of-00001" and stem_of(Path("a.csv.gz")) == "a"
