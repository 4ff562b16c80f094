"""Where documents come from: every kind of file, the same texts at every reading, bad ones named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmreason.data.texts import Corpus
from mmreason.types import DataError

PROSE = "First line.\nSecond line.\n\nAnother paragraph.\r\nIts end.\n\n\nThe last.\n"


def texts(corpus: Corpus, start: int = 0) -> list[str]:
    return [text.text for text in corpus.read(start)]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(PROSE, encoding="utf-8", newline="")
    return path


def test_a_text_file(book: Path) -> None:
    whole = PROSE.replace("\r", "").strip("\n")
    assert texts(Corpus(str(book))) == [whole]
    assert texts(Corpus(str(book), txt_unit="paragraph")) == whole.replace("\n\n\n", "\n\n").split("\n\n")
    assert texts(Corpus(str(book), txt_unit="line")) == [line for line in whole.split("\n") if line]
    assert [text.where for text in Corpus(str(book), txt_unit="paragraph").read()] == [f"{book}:{n}" for n in (1, 4, 8)]


def test_a_folder_and_a_pattern(tmp_path: Path, book: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("packed")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "notes.md").write_text("no text file")
    assert [t[:6] for t in texts(Corpus(str(tmp_path)))] == ["packed", "First ", "one", "two"]
    assert len(texts(Corpus(f"{tmp_path}/*.txt"))) == 1
    (tmp_path / "train.txt").write_text("for training")
    assert texts(Corpus(str(tmp_path))) == ["for training"]


def test_rows_of_tables_and_builders(tmp_path: Path) -> None:
    from data_builders.word_problems import build

    build(tmp_path / "set", n=5, n_test=2, n_unseen=0, level="1-2")
    found = texts(Corpus(str(tmp_path / "set")))
    assert len(found) == 5 and all(len(text.splitlines()) >= 3 for text in found)
    assert len(texts(Corpus(str(tmp_path / "set"), "test"))) == 2


@pytest.mark.parametrize(("split", "want"), [("train[2:5]", "234"), ("train[:50%]", "01234"), ("train[-2:]", "89")])
def test_slices(split: str, want: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(10)))
    corpus = Corpus(str(path), split)
    assert "".join(texts(corpus)) == want
    for start in range(len(want)):
        assert [(t.number, t.text) for t in corpus.read(start)] == list(enumerate(want))[start:]
    assert "".join(texts(Corpus(str(path), split, limit=2))) == want[:2]


BAD = [
    ('{"text": ""}', "missing_text"),
    ('{"text": 3}', "missing_text"),
    ('{"texts": "a"}', "Did you mean 'texts'"),
    ('{"text": "a\\u0000b"}', "null_bytes"),
    ('{"text": "a\\ud800b"}', "bad_unicode"),
    ("no json", "unreadable_line"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_bad_rows_are_named_or_counted(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n{{"text": "also good"}}\n')
    with pytest.raises(DataError, match=f"rows.jsonl:2.*{said}"):
        texts(Corpus(str(path)))
    corpus = Corpus(str(path), on_bad_row="drop")
    assert [(t.number, t.text) for t in corpus.read()] == [(0, "good"), (2, "also good")]
    assert sum(corpus.dropped.values()) == 1


def test_what_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    with pytest.raises(DataError, match="latin.txt:1: byte 5 .* not UTF-8"):
        texts(Corpus(str(tmp_path / "latin.txt")))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no texts"):
        texts(Corpus(str(tmp_path / "empty.txt")))
    with pytest.raises(DataError, match="Did you mean"):
        Corpus(str(tmp_path / "empti.txt"))
    with pytest.raises(DataError, match="fits this pattern"):
        Corpus(str(tmp_path / "*.parquet"))


def test_real_texts(shared_data: Path) -> None:
    """Every file of the folder, as they are: nine files, of which one has 300 documents."""
    found = list(Corpus(str(shared_data / "text"), column="text").read())
    assert len(found) == 8 + 300
    assert sum(len(text.text) for text in found) > 5_000_000
    names = Corpus(str(shared_data / "text" / "names.txt"), txt_unit="line")
    assert sum(1 for _ in names.read()) == 32033
