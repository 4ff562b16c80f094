"""Decontamination: find test questions in training data, so that a benchmark measures what it says.

An index over test sets answers for each training row which test item stands in it:

- An item is known by its own n-grams of n = 13 words, those that no other item of its set has (a shared passage or
  instruction identifies none). A row hits where those that it has cover `min_share` of the words of them all. 13 words
  are GPT-3's rule (arXiv 2005.14165, appendix C), which takes a single n-gram for a hit; the share keeps shared phrases
  out.
- An item without n-grams of its own, mostly one of fewer than 13 words, must be found as a whole: its question, and its
  choices listed beside it, or, without choices, as a sentence of its own.

Words are compared after NFKC, case folding and without punctuation and mark-up; each Chinese or Japanese character is a
word. Hashes only rule out: every hit is verified on the words themselves.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat, tee
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from mmreason.data._overlap_corpus import Corpus, IndexedSet
from mmreason.data._overlap_rows import EvalItem, eval_item, row_text
from mmreason.data._overlap_table import Ints, WindowTable
from mmreason.data._overlap_whole import SignedRow
from mmreason.data._words import words
from mmreason.data.formats.common import Row, RowError, shorten
from mmreason.data.sources import parse_split, resolve
from mmreason.types import ConfigError, DataError

__all__ = [
    "Decontaminated",
    "Dropped",
    "EvalItem",
    "Hit",
    "IndexedSet",
    "OverlapIndex",
    "decontaminate",
    "eval_item",
    "row_text",
    "scan",
]

_CHUNK_WORDS = 1 << 18  # looked up at once: about 10 MB of arrays

R = TypeVar("R", bound=Row | str)


@dataclass(frozen=True, slots=True)
class Hit:
    """A test item that stands in a text.

    Attributes:
        dataset: name of its set in the index.
        item: its id in the set.
        rule: "ngram": by its own n-grams; "whole": question and choices.
        share: of the words in the item's own n-grams, how many stand in those that the text has, above 0 to 1; 1 under
            "whole".
        text: the words of the first of its n-grams that was found, or of the question.
    """

    dataset: str
    item: str
    rule: Literal["ngram", "whole"]
    share: float
    text: str

    @property
    def reason(self) -> str:
        """One line for a log or a manifest."""
        found = "the whole question" if self.rule == "whole" else f"{self.share:.0%} of its words"
        return f"{self.dataset} {self.item}: {found}, {self.text!r}"


class OverlapIndex:
    """Test sets, ready to be looked for in any number of texts. Built with `build`, or read with `load`.

    Memory: about 80 bytes for each word of the test questions (25 MB for 8,864 questions), and 10 MB for the texts that
    are being looked at, unless one is longer than a quarter of a million words.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._key_items = np.array(corpus.key_items, dtype=np.int64)
        self._key_starts = np.array(corpus.key_starts, dtype=np.int64)
        starts = np.array(corpus.starts, dtype=np.int64)
        self._lengths = np.minimum(starts[self._key_items + 1] - self._key_starts, corpus.n)
        order = np.lexsort((self._key_starts, self._key_items))
        added = _new_words(self._key_items[order], self._key_starts[order], corpus.n)
        self._all_words = np.bincount(self._key_items[order], added, minlength=len(corpus.ids))
        self._is_whole = np.zeros(len(corpus.ids), dtype=np.bool_)
        self._is_whole[list(corpus.whole)] = True
        tokens = np.array(corpus.tokens, dtype=np.int32)
        self._table = WindowTable(tokens, self._key_starts, self._lengths, len(corpus.vocabulary))
        self._spelling = ["", *corpus.vocabulary]

    @classmethod
    def build(
        cls, sets: Mapping[str, Iterable[Any] | str | Path], *, n: int = 13, split: str = "test", progress: bool = False
    ) -> OverlapIndex:
        """Index test sets.

        Args:
            sets: name -> rows (texts, `EvalItem`s, Examples or raw rows), or a file, folder or hub id to read.
            n: words in an n-gram.
            split: which split to take where a set is a folder or hub id.

        Raises: DataError for a set that can't be read, is empty, or has a row without a question; ConfigError for an
            n below 2, no sets, or a slice of a split.
        """
        if n < 2:
            raise ConfigError(f"n={n}: an n-gram needs at least 2 words; 13 is usual")
        if not sets:
            raise ConfigError("no test sets given: {name: rows or path}")
        corpus = Corpus(n)
        for name, rows in sets.items():
            corpus.add_set(name, _bar(_items(name, rows, split), f"indexing {name}", progress))
            if corpus.sets[-1].rows == 0:
                raise DataError(f"{name}: the test set has no rows")
        return cls(corpus)

    @classmethod
    def load(cls, path: str | Path) -> OverlapIndex:
        """Read an index that `save` wrote. Raises DataError for a missing or damaged file or another version's."""
        return cls(Corpus.load(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write the index as one safetensors file, atomically. The same sets give the same bytes."""
        self._corpus.save(Path(path))

    @property
    def n(self) -> int:
        """Words in an n-gram."""
        return self._corpus.n

    @property
    def sets(self) -> tuple[IndexedSet, ...]:
        """The sets with their counts and content hashes."""
        return tuple(self._corpus.sets)

    def find(self, texts: Iterable[str], *, min_share: float = 0.9, progress: bool = False) -> list[Hit | None]:
        """For each text the test item that most of stands in it, or None. See `find_all`."""
        return [hits[0] if hits else None for hits in self.find_all(texts, min_share=min_share, progress=progress)]

    def find_all(
        self, texts: Iterable[str], *, min_share: float = 0.9, progress: bool = False
    ) -> Iterator[tuple[Hit, ...]]:
        """For each text all test items that stand in it, the largest share first, then in the order of the index.

        Args:
            texts: read as they are needed, some thousands ahead.
            min_share: the least `Hit.share`, above 0 to 1. 1 misses copies in which a word was changed; small shares
                take variants of a problem and shared phrases for it.

        Raises: ConfigError for another min_share; DataError for a text that is none.
        """
        if isinstance(texts, str):
            raise DataError("a single text is given where a list of texts is wanted: [text]")
        if not 0 < min_share <= 1:
            raise ConfigError(f"min_share={min_share} must be above 0 and at most 1")
        chunks = self._chunks(_bar(texts, "looking for test items", progress))
        return chain.from_iterable(self._find_chunk(chunk, min_share) for chunk in chunks)

    def _chunks(self, texts: Iterable[str]) -> Iterator[_Chunk]:
        """Texts as token ids, a quarter of a million words at a time; 0 for a word of no test item."""
        get = self._corpus.vocabulary.get
        chunk = _Chunk([], array("i"), array("q", [0]))
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {number}: {shorten(text)} is no text; row_text(row) makes one of a row")
            chunk.ids.extend(map(get, words(text), repeat(0)))
            chunk.ids.append(0)
            chunk.texts.append(text)
            chunk.bounds.append(len(chunk.ids))
            if len(chunk.ids) >= _CHUNK_WORDS:
                yield chunk
                chunk = _Chunk([], array("i"), array("q", [0]))
        if chunk.texts:
            yield chunk

    def _find_chunk(self, chunk: _Chunk, min_share: float) -> Iterator[tuple[Hit, ...]]:
        positions, keys = self._table.lookup(np.array(chunk.ids, dtype=np.int32))
        bounds = np.array(chunk.bounds)
        rows = np.searchsorted(bounds, positions, side="right") - 1
        whole = self._is_whole[self._key_items[keys]]
        hits: dict[int, dict[int, Hit]] = defaultdict(dict)
        for row, item, share, key in self._shares(rows[~whole], keys[~whole], min_share):
            hits[row][item] = self._hit(item, "ngram", share, key)
        signed: SignedRow | None = None
        signed_row = -1
        order = np.lexsort((positions[whole], keys[whole], rows[whole]))
        places = (positions - bounds[rows])[whole][order]
        for row, key, place in zip(
            rows[whole][order].tolist(), keys[whole][order].tolist(), places.tolist(), strict=True
        ):
            item = int(self._key_items[key])
            if item in hits[row]:
                continue
            if signed is None or row != signed_row:
                signed, signed_row = SignedRow(chunk.texts[row]), row
            if signed.holds(self._corpus.whole[item], place):
                hits[row][item] = self._hit(item, "whole", 1.0, key)
        for row in range(len(chunk.texts)):
            found = hits.get(row, {})
            yield tuple(found[item] for item in sorted(found, key=lambda item: (-found[item].share, item)))

    def _shares(self, rows: Ints, keys: Ints, min_share: float) -> Iterator[tuple[int, int, float, int]]:
        """(row, item, share, first key) of the items of which a row has enough. rows, keys: (occurrences,)."""
        pairs = rows * len(self._all_words) + self._key_items[keys]
        order = np.lexsort((self._key_starts[keys], pairs))
        pairs, keys = pairs[order], keys[order]
        found, first = np.unique(pairs, return_index=True)
        covered = np.add.reduceat(_new_words(pairs, self._key_starts[keys], self.n), first) if len(first) else first
        rows, items = np.divmod(found, len(self._all_words))
        shares = covered / self._all_words[items]
        for i in np.flatnonzero(shares >= min_share).tolist():
            yield int(rows[i]), int(items[i]), float(shares[i]), int(keys[first[i]])

    def _hit(self, item: int, rule: Literal["ngram", "whole"], share: float, key: int) -> Hit:
        corpus = self._corpus
        start, end = (
            corpus.starts[item : item + 2]
            if rule == "whole"
            else (corpus.key_starts[key], corpus.key_starts[key] + self.n)
        )
        text = " ".join(self._spelling[token] for token in corpus.tokens[start:end])
        return Hit(corpus.sets[corpus.set_of[item]].name, corpus.ids[item], rule, share, text)


def _new_words(owners: Ints, starts: Ints, n: int) -> Ints:
    """How many words each n-gram adds to those before it of the same owner. Sorted by owner, then by start."""
    added = np.full(len(starts), n)
    again = owners[1:] == owners[:-1]
    added[1:][again] = np.minimum(n, np.diff(starts)[again])
    return added


class _Chunk(NamedTuple):
    """Texts to look at together: their token ids, each text's followed by a 0, and where each text's start."""

    texts: list[str]
    ids: array[int]
    bounds: array[int]


class Dropped(NamedTuple, Generic[R]):
    """A training row that is left out, and why."""

    row: R
    hit: Hit


class Decontaminated(NamedTuple, Generic[R]):
    """What `decontaminate` gives: rows without test items and rows with one, each in the order of the input."""

    kept: list[R]
    dropped: list[Dropped[R]]

    def counts(self) -> dict[str, int]:
        """Dropped rows by the name of the test set."""
        return dict(sorted(Counter(dropped.hit.dataset for dropped in self.dropped).items()))


def scan(
    rows: Iterable[R], index: OverlapIndex, *, min_share: float = 0.9, progress: bool = False
) -> Iterator[tuple[R, Hit | None]]:
    """Each row with the test item that most of stands in it, or None. Rows are read some thousands ahead, not all.

    Args:
        rows: texts, Examples or raw rows; `row_text` says what of a row is looked at.
        min_share, progress: as in `OverlapIndex.find_all`.

    Raises: ConfigError for another min_share; DataError naming the row that is none.
    """
    if isinstance(rows, str):
        raise DataError("a single text is given where a list of rows is wanted: [text]")
    ahead, behind = tee(rows)
    found = index.find_all(_texts(ahead), min_share=min_share, progress=progress)
    for row, hits in zip(behind, found, strict=True):
        yield row, hits[0] if hits else None


def _texts(rows: Iterable[R]) -> Iterator[str]:
    for number, row in enumerate(rows):
        try:
            yield row_text(row)
        except DataError as error:
            raise DataError(f"row {number}: {error}", row=str(number), reason=error.reason) from None


def decontaminate(
    rows: Iterable[R], index: OverlapIndex, *, min_share: float = 0.9, progress: bool = False
) -> Decontaminated[R]:
    """Part training rows into those without and those with a test item. Use `scan` for more rows than fit in memory.

    Args: as in `scan`.
    """
    result = Decontaminated[R]([], [])
    for row, hit in scan(rows, index, min_share=min_share, progress=progress):
        if hit is None:
            result.kept.append(row)
        else:
            result.dropped.append(Dropped(row, hit))
    return result


def _items(name: str, rows: Iterable[Any] | str | Path, split: str) -> Iterator[EvalItem]:
    """The items of a set, read from where it is said to be."""
    if not isinstance(rows, str | Path):
        for number, row in enumerate(rows):
            yield eval_item(row, f"{name} row {number}", number)
        return
    wanted = parse_split(split)
    if str(wanted) != wanted.name:
        raise ConfigError(f"split {split!r}: a test set is indexed whole; name the split without a slice")
    for number, (where, row) in enumerate(resolve(str(rows), wanted).rows(wanted)):
        if isinstance(row, RowError):
            raise DataError(f"{where}: {row}", path=rows, row=where, reason=row.reason)
        yield eval_item(row, where, number)


def _bar(rows: Iterable[Any], what: str, progress: bool) -> Iterable[Any]:
    return tqdm(rows, desc=what, unit=" rows", disable=not progress)
