"""The test items of an overlap index as token ids, with the windows by which each is found; saved and loaded."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmreason._files import write_whole
from mmreason.data._overlap_rows import EvalItem
from mmreason.data._overlap_whole import WholeItem
from mmreason.data._words import BREAK, is_ideograph, signed_words, words
from mmreason.types import DataError

_FORMAT = "mmreason-overlap-1"
_ARRAYS = ("tokens", "starts", "set_of", "key_starts", "key_items")
_MIN_WORDS = 3  # a question with its choices that has fewer is found everywhere


@dataclass(frozen=True, slots=True)
class IndexedSet:
    """A test set in an index.

    Attributes:
        name: as given.
        rows: rows read.
        sha256: of its questions, choices and ids as read, to tell whether a saved index is still the right one.
        by_ngrams, by_whole: items under each rule.
        copies: rows that say the same as an earlier one (of which only the first is indexed).
        unindexed: rows with too few words to be told from chance: question and choices have fewer than 3.
    """

    name: str
    rows: int
    sha256: str
    by_ngrams: int
    by_whole: int
    copies: int
    unindexed: int


@dataclass(slots=True)
class Corpus:
    """What is saved: the items as token ids, and where their keys stand.

    Attributes:
        vocabulary: word -> id, from 1.
        tokens: the questions one after the other.
        starts: where each item's question starts, and the end of the last.
        ids, set_of: each item's id and the number of its set.
        whole: the items under the whole rule, by number.
        key_starts, key_items: where in `tokens` a key stands and whose it is. A key is an n-gram, or, of an item under
            the whole rule, its question's words, at most the first n.
    """

    n: int
    vocabulary: dict[str, int] = field(default_factory=dict)
    tokens: array[int] = field(default_factory=lambda: array("i"))
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    ids: list[str] = field(default_factory=list)
    set_of: array[int] = field(default_factory=lambda: array("q"))
    whole: dict[int, WholeItem] = field(default_factory=dict)
    key_starts: array[int] = field(default_factory=lambda: array("q"))
    key_items: array[int] = field(default_factory=lambda: array("q"))
    sets: list[IndexedSet] = field(default_factory=list)

    def add_set(self, name: str, items: Iterable[EvalItem]) -> None:
        """Index a set. Its items' n-grams are compared with one another: only those of a single item are keys.

        A question of fewer than n words has none, a Chinese or Japanese character being half a word here: 13 of them
        are a common phrase.
        """
        digest = hashlib.sha256()
        seen: set[tuple[Any, ...]] = set()
        added: dict[int, WholeItem] = {}
        long: set[int] = set()
        counts = Counter[str]()
        for item in items:
            counts["rows"] += 1
            digest.update(json.dumps([item.id, item.question, *item.choices]).encode())
            signed = tuple(token for token in signed_words(item.question) if token != BREAK)
            choices = tuple(tuple(found) for choice in item.choices if (found := words(choice)))
            question = words(item.question)
            if not question or len(question) + sum(map(len, choices)) < _MIN_WORDS:
                counts["unindexed"] += 1
                continue
            if (signed, tuple(sorted(choices))) in seen:
                counts["copies"] += 1
                continue
            seen.add((signed, tuple(sorted(choices))))
            added[len(self.ids)] = WholeItem(signed, choices)
            if len(question) - sum(map(is_ideograph, question)) / 2 >= self.n:
                long.add(len(self.ids))
            self.tokens.extend(self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in question)
            self.starts.append(len(self.tokens))
            self.ids.append(item.id)
            self.set_of.append(len(self.sets))
        identified = self._add_ngrams(added, long)
        for item_number in sorted(added.keys() - identified):
            self.whole[item_number] = added[item_number]
            self.key_starts.append(self.starts[item_number])
            self.key_items.append(item_number)
        self.sets.append(
            IndexedSet(
                name=name,
                rows=counts["rows"],
                sha256=digest.hexdigest(),
                by_ngrams=len(identified),
                by_whole=len(added) - len(identified),
                copies=counts["copies"],
                unindexed=counts["unindexed"],
            )
        )

    def _add_ngrams(self, items: Iterable[int], long: Container[int]) -> set[int]:
        """Add as keys the n-grams of long items that no other item has; the items that have any."""
        owner: dict[tuple[int, ...], int] = {}
        place: dict[tuple[int, ...], int] = {}
        for item in items:
            for start in range(self.starts[item], self.starts[item + 1] - self.n + 1):
                ngram = tuple(self.tokens[start : start + self.n])
                if owner.setdefault(ngram, item) != item:
                    owner[ngram] = -1
                place.setdefault(ngram, start)
        own = {ngram: item for ngram, item in owner.items() if item in long}
        self.key_starts.extend(place[ngram] for ngram in own)
        self.key_items.extend(own.values())
        return set(own.values())

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, atomically."""
        from safetensors.numpy import save

        text = {
            "vocabulary": list(self.vocabulary),
            "ids": self.ids,
            "whole": {str(item): [list(found.signed), list(found.choices)] for item, found in self.whole.items()},
            "sets": [asdict(entry) for entry in self.sets],
        }
        arrays = {name: np.array(getattr(self, name)) for name in _ARRAYS}
        arrays["text"] = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
        about = {"n": self.n, "sha256": _digest(self.n, arrays)}
        try:
            write_whole(path, save(arrays, {_FORMAT: json.dumps(about)}))
        except OSError as error:
            raise DataError(f"the index can't be written to {path}: {error}", path=path) from error

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote. Raises DataError for anything else, damaged files among it."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise DataError(f"{path}: no such index", path=path, reason="missing_path")
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: can't be read as an overlap index: {error}", path=path) from error
        if not about:
            raise DataError(f"{path}: no overlap index of this version; build it again", path=path)
        if _digest(about["n"], arrays) != about["sha256"]:
            raise DataError(f"{path}: the index is damaged (its content hash differs); build it again", path=path)
        text = json.loads(arrays["text"].tobytes())
        return cls(
            n=about["n"],
            vocabulary={word: number for number, word in enumerate(text["vocabulary"], start=1)},
            ids=text["ids"],
            whole={
                int(item): WholeItem(tuple(signed), tuple(tuple(choice) for choice in choices))
                for item, (signed, choices) in text["whole"].items()
            },
            sets=[IndexedSet(**entry) for entry in text["sets"]],
            **{name: array(arrays[name].dtype.char, arrays[name].tobytes()) for name in _ARRAYS},
        )


def _digest(n: int, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    """sha256 over all that an index holds."""
    digest = hashlib.sha256(f"{_FORMAT} {n}".encode())
    for name in sorted(arrays):
        digest.update(f" {name} {arrays[name].dtype} {arrays[name].size} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
