"""Find known windows of tokens in long arrays of tokens: a hash rules nearly all positions out, tokens decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]
Hashes = NDArray[np.uint64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that each power of it is a bijection of the 64-bit numbers
_SLOTS_PER_KEY = 16  # 1 position in 16 passes the filter by chance, and costs a binary search


def _token_weights(count: int) -> Hashes:
    """A random-looking 64-bit number for each token id: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = np.arange(1, count + 1, dtype=np.uint64) * _MULTIPLIER
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _Level:
    """The keys of one length, sorted by hash.

    filter: (2^k,) bool, at the top k bits of a hash: can a key have it?
    """

    length: int
    hashes: Hashes
    keys: Ints
    filter: NDArray[np.bool_]
    shift: np.uint64


class WindowTable:
    """Keys are windows of a corpus; `lookup` finds all their occurrences in other tokens.

    Args:
        corpus: (tokens,) ids, all >= 1.
        starts, lengths: (keys,) where in the corpus each key stands, in tokens.
        vocabulary: the largest id.
    """

    def __init__(self, corpus: Tokens, starts: Ints, lengths: Ints, vocabulary: int) -> None:
        self._corpus = corpus
        self._starts = starts
        self._weights = _token_weights(vocabulary + 1)
        self._levels: list[_Level] = []
        weights = self._weights[corpus]
        for length in np.unique(lengths).tolist():
            keys = np.flatnonzero(lengths == length)
            hashes = np.zeros(len(keys), dtype=np.uint64)
            for step in range(length):
                hashes = hashes * _MULTIPLIER + weights[starts[keys] + step]
            order = np.argsort(hashes, kind="stable")
            bits = max(8, int(len(keys) * _SLOTS_PER_KEY - 1).bit_length())
            shift = np.uint64(64 - bits)
            known = np.zeros(1 << bits, dtype=np.bool_)
            known[hashes >> shift] = True
            self._levels.append(_Level(length, hashes[order], keys[order], known, shift))

    @property
    def nbytes(self) -> int:
        """Bytes that the table adds to its corpus."""
        levels = sum(level.hashes.nbytes + level.keys.nbytes + level.filter.nbytes for level in self._levels)
        return levels + self._weights.nbytes

    def lookup(self, ids: Tokens) -> tuple[Ints, Ints]:
        """Where keys occur: (positions, keys), both (occurrences,), by length, then position.

        Args: ids: (tokens,) with 0 for a word that the corpus doesn't have, and at the end. No key spans a 0.
        """
        gaps = np.flatnonzero(ids == 0)
        if not len(gaps) or gaps[-1] != len(ids) - 1:
            raise ValueError("the tokens must end with 0")
        known = np.repeat(gaps, np.diff(gaps, prepend=-1)) - np.arange(len(ids))  # tokens from here to the next 0
        weights = self._weights[ids]
        hashes = np.zeros(len(ids), dtype=np.uint64)
        positions = np.arange(len(ids))
        found: list[tuple[Any, Any]] = []
        hashed = 0  # tokens in each hash; a longer level goes on where the last one ended
        for level in self._levels:
            for step in range(hashed, level.length):
                hashes = hashes[: len(ids) - step] * _MULTIPLIER + weights[step:]
            hashed = level.length
            positions = positions[known[positions] >= level.length]
            near = positions[level.filter[hashes[positions] >> level.shift]]
            found.append(self._verify(level, ids, near, hashes[near]))
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate([p for p, _ in found]), np.concatenate([k for _, k in found])

    def _verify(self, level: _Level, ids: Tokens, positions: Ints, hashes: Hashes) -> tuple[Ints, Ints]:
        """The (position, key) pairs whose tokens are equal, of those whose hashes are."""
        first = np.searchsorted(level.hashes, hashes, side="left")
        counts = np.searchsorted(level.hashes, hashes, side="right") - first
        positions = np.repeat(positions, counts)
        offsets = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = level.keys[np.repeat(first, counts) + offsets]
        starts = self._starts[keys]
        equal = np.ones(len(keys), dtype=np.bool_)
        for step in range(level.length):
            equal &= ids[positions + step] == self._corpus[starts + step]
        return positions[equal], keys[equal]
