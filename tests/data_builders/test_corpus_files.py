"""Raw files of every form give the same documents, in any slices; faults are named."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="the extra `corpus` is not installed")

from data_builders._corpus.files import RawFile, ReadOptions, find_files, inspect_file, read_documents
from data_builders._corpus.steps import make_plan
from mmreason.types import ConfigError, DataError

TEXTS = ["First text.\nWith two lines, é and 你好.", "Second text.", "Third one; it is last."]


def rows() -> list[dict[str, object]]:
    return [{"text": text, "id": number, "url": f"http://x/{number}", "no": 1} for number, text in enumerate(TEXTS)]


def jsonl(path: Path) -> bytes:
    return "\n\n".join(json.dumps(row) for row in rows()).encode()


def txt(path: Path) -> bytes:
    return ("\n\n\n".join(TEXTS) + "\n").encode()


def warc(path: Path, kind: str = "conversion") -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=path.name.endswith(".gz"))
    writer.write_record(writer.create_warcinfo_record("x", {"software": "test"}))
    for number, text in enumerate(TEXTS):
        body = text if kind == "conversion" else f"<html><body><p>{text}</p></body></html>"
        headers = (
            None if kind == "conversion" else StatusAndHeaders("200 OK", [("Content-Type", "text/html")], "HTTP/1.0")
        )
        named = {"WARC-Identified-Payload-Type": "text/plain" if kind == "conversion" else "text/html"}
        writer.write_record(
            writer.create_warc_record(
                f"http://x/{number}", kind, payload=io.BytesIO(body.encode()), http_headers=headers,
                warc_headers_dict=named,
            )
        )  # fmt: skip
    return buffer.getvalue()


def parquet(path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows()), buffer, row_group_size=2)
    return buffer.getvalue()


FORMS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a.jsonl": (jsonl, "file"),
    "a.jsonl.gz": (jsonl, "file"),
    "a.jsonl.zst": (jsonl, "file"),
    "a.parquet": (parquet, "file"),
    "a.txt": (txt, "paragraph"),
    "a.txt.gz": (txt, "paragraph"),
    "a.txt.zst": (txt, "paragraph"),
    "a.warc.wet": (warc, "file"),
    "a.warc.wet.gz": (warc, "file"),
    "a.warc.wet.zst": (warc, "file"),
}


def put(path: Path, data: bytes) -> RawFile:
    import zstandard

    if path.name.endswith(".gz") and ".warc" not in path.name:
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    (file,) = find_files("s", str(path))
    return file


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    make, unit = FORMS[name]
    file = put(tmp_path / name, make(tmp_path / name))
    options = ReadOptions(txt_unit=unit)  # type: ignore[arg-type]
    found = list(read_documents(file, options))
    assert [raw.text for raw in found] == TEXTS
    assert [raw.number for raw in found] == [0, 1, 2] and not any(raw.is_html or raw.fault for raw in found)
    if file.form in ("jsonl", "parquet"):
        assert found[1].meta == {"id": "1", "url": "http://x/1"}
    for first in range(4):
        for count in (1, 2, None):
            stop = None if count is None else first + count
            assert [raw.text for raw in read_documents(file, options, first, count)] == TEXTS[first:stop]
    assert inspect_file(file, options).rows == 3


@pytest.mark.parametrize(("unit", "expected"), [("file", 1), ("paragraph", 3), ("line", 4)])
def test_units_of_text_files(unit: str, expected: int, tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", b"\n" + txt(tmp_path))
    found = list(read_documents(file, ReadOptions(txt_unit=unit)))  # type: ignore[arg-type]
    assert len(found) == expected
    assert " ".join(" ".join(raw.text for raw in found).split()) == " ".join(" ".join(TEXTS).split())


def test_web_pages_are_known_as_such(tmp_path: Path) -> None:
    file = put(tmp_path / "a.warc.gz", warc(tmp_path / "a.warc.gz", "response"))
    found = list(read_documents(file, ReadOptions()))
    assert len(found) == 3 and all(raw.is_html and raw.text.startswith("<html>") for raw in found)
    assert found[2].meta["url"] == "http://x/2"


FAULTS = {
    b'{"text": "\xff\xfe"}': ("bad_encoding", "byte 11"),
    b'{"text": ': ("unreadable_line", "no JSON"),
    b'["text"]': ("unreadable_line", "no JSON object"),
    b'{"txt": "a"}': ("missing_text", "there are txt"),
    b'{"text": "  "}': ("missing_text", "holds no text"),
    b'{"text": 3}': ("missing_text", "holds no text"),
    b'{"text": "a\\u0000b"}': ("null_bytes", "character 1"),
    b'{"text": "\\ud800"}': ("unreadable_line", "no JSON"),
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_bad_line_is_counted_and_shown_with_its_place(line: bytes, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    code, said = FAULTS[line]
    found = inspect_file(file, ReadOptions())
    assert found.rows == 3 and found.faults == {code: 1}
    assert found.shown[0].startswith(f"{file.path}:2: ") and said in found.shown[0]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", "naïve".encode("latin-1"))
    assert inspect_file(file, ReadOptions()).faults == {"bad_encoding": 1}
    with pytest.raises(DataError, match=r"UTF-16.*iconv"):
        inspect_file(put(tmp_path / "b.txt", "text".encode("utf-16")), ReadOptions())


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.warc"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is none of those")
    (file,) = find_files("s", str(path))
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        inspect_file(file, ReadOptions())


def test_a_cut_off_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match="can't be read.*Is it whole"):
        inspect_file(find_files("s", str(path))[0], ReadOptions())


def test_files_of_a_source(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "sub/c.parquet", ".hidden.txt", "_x.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.label for file in find_files("s", str(tmp_path))] == ["a.jsonl", "b.txt", "sub/c.parquet"]
    assert [Path(file.path).name for file in find_files("s", str(tmp_path / "*.txt"))] == ["_x.txt", "b.txt"]
    with pytest.raises(ConfigError, match="can't read this kind.*Readable"):
        find_files("s", str(tmp_path / "notes.md"))
    with pytest.raises(ConfigError, match="Did you mean"):
        find_files("s", str(tmp_path / "b.tx"))


def test_a_plan_covers_each_document_once() -> None:
    files = [RawFile(str(number), "txt", "s", str(number)) for number in range(4)]
    rows = [3, 0, 7, 2]
    for size in (1, 2, 5, 100):
        for limit in (None, 1, 6, 50):
            tasks = make_plan(files, rows, size, limit)[1]
            read = [(file, first + i) for task in tasks for file, first, count in task for i in range(count)]
            everything = [(file, place) for file, count in enumerate(rows) for place in range(count)]
            assert read == everything[:limit]
            sizes = [sum(count for *_, count in task) for task in tasks]
            assert all(one == size for one in sizes[:-1]) and 0 < sizes[-1] <= size
