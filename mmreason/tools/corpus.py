"""Passages to search: read from files, and cut into the words that the search counts."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.types import ConfigError, DataError

Corpus = str | Path | Sequence[str | Mapping[str, Any]]
"""A jsonl (json, csv, parquet) file, a txt file, a folder of txt files, or the passages themselves."""

PASSAGE_WORDS = 200
"""Words up to which paragraphs of a txt file are joined to one passage."""

# Scripts that are written without spaces: their words can't be told apart by a pattern.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
_PARAGRAPH_END = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that a search finds. id: unique in its corpus."""

    id: str
    text: str


def read_corpus(corpus: Corpus, *, text: str = "text", id: str = "id") -> list[Passage]:
    """The passages of a corpus in order.

    Args:
        corpus: see `Corpus`. A row of a file is a passage, its text may have a "title" of its own, which goes before
            it. Txt files are parted at empty lines, short paragraphs joined up to 200 words; a folder is read with its
            subfolders, sorted by path.
        text, id: names of a row's fields. Without an id a row's place in its file (from 1) is its id; a txt file's
            passages are called "folder/name.txt#1".

    Raises: ConfigError for what is no corpus; DataError for a file that can't be read or isn't UTF-8 (naming file and
        line), a row without a text, an id that stands there twice, and a corpus without any passage.
    """
    if not isinstance(corpus, (Path, Iterable)):
        raise ConfigError(f"search: a corpus is a file, a folder or a list of passages, not {corpus!r:.80}")
    if isinstance(corpus, (str, Path)):
        path = Path(corpus)
        if path.is_dir():
            files = sorted(path.rglob("*.txt"))
            passages = [passage for file in files for passage in _of_text(file, file.relative_to(path).as_posix())]
        elif not path.is_file():
            raise DataError(f"search: there is no file or folder {path}", path=path)
        elif path.suffix.lower() == ".txt":
            passages = list(_of_text(path, path.name))
        else:
            passages = [_passage(where, number, row, text, id) for number, (where, row) in enumerate(_rows(path), 1)]
    else:
        path = None
        rows = ({text: row} if isinstance(row, str) else row for row in corpus)
        passages = [_passage(f"passage {number}", number, row, text, id) for number, row in enumerate(rows, 1)]
    if not passages:
        raise DataError(f"search: no passage in {path or 'the corpus'}", path=path, reason="empty")
    seen: dict[str, int] = {}
    for number, passage in enumerate(passages, 1):
        if passage.id in seen:
            raise DataError(
                f"search: passages {seen[passage.id]} and {number} of {path or 'the corpus'} have the id "
                f"{passage.id!r} (one without an id has its number)",
                path=path,
                reason="duplicate_id",
            )
        seen[passage.id] = number
    return passages


def content_key(passages: Sequence[Passage]) -> str:
    """A hash of ids and texts in their order."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps([passage.id, passage.text]).encode())
    return digest.hexdigest()


def words(text: str) -> list[str]:
    """The words of a text in any language, in order; full-width forms, ligatures and case are folded (NFKC).

    A run of letters, marks and digits is a word. Of scripts that are written without spaces (Chinese, Japanese kana,
    Thai, Lao, Khmer, Burmese) each character and each pair of neighbours is one, so that 北京大学 gives
    北, 京, 大, 学, 北京, 京大, 大学. No stop words, no stemming.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text)
    found: list[str] = []
    for run, unspaced in _patterns().findall(text):
        if run:
            found.append(run)
        else:
            found += list(unspaced)
            found += [unspaced[i : i + 2] for i in range(len(unspaced) - 1)]
    return found


@functools.lru_cache(maxsize=1)
def _patterns() -> re.Pattern[str]:
    # \w has no combining marks, without which Hindi or Arabic words with vowel signs would fall apart.
    marks = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in ("Mn", "Mc")]
    letters = rf"(?:(?![{_UNSPACED}_])[\w{''.join(marks)}])+"
    return re.compile(rf"({letters})|([{_UNSPACED}]+)")


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from mmreason.data.formats.common import RowError
    from mmreason.data.reader import read_rows

    for where, row in read_rows(path):
        if isinstance(row, RowError):
            cure = "; convert it: iconv -f OLD -t UTF-8" if row.reason == "bad_encoding" else ""
            raise DataError(f"search: {where}: {row}{cure}", path=path, row=where, reason=row.reason)
        yield where, row


def _passage(where: str, number: int, row: Mapping[str, Any], text: str, id: str) -> Passage:
    value = row.get(text) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        has = f"; it has {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
        raise DataError(f"search: {where} has no text under {text!r}{has}", row=where, reason="missing_text")
    title = row.get("title")
    if text != "title" and isinstance(title, str) and title.strip():
        value = f"{title.strip()}\n{value}"
    name = row.get(id)
    return Passage(str(number if name is None else name), value.strip())


def _of_text(path: Path, name: str) -> Iterator[Passage]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"search: {path}:{line}: byte {error.start} of the file isn't UTF-8 ({error.reason}); "
            "convert it: iconv -f OLD -t UTF-8",
            path=path,
            row=f"{path}:{line}",
            reason="bad_encoding",
        ) from None
    held: list[str] = []
    count, number = 0, 0
    for paragraph in [*_PARAGRAPH_END.split(text.replace("\r\n", "\n")), ""]:
        size = len(words(paragraph))
        if held and (not paragraph or count + size > PASSAGE_WORDS):
            number += 1
            yield Passage(f"{name}#{number}", "\n\n".join(held))
            held, count = [], 0
        if paragraph.strip():
            held.append(paragraph.strip())
            count += size
