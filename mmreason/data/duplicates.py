"""Find texts that say the same, or nearly: exact, by MinHash or by SimHash, behind one function.

    groups = find_duplicates(texts, "minhash", threshold=0.8)
    kept = [texts[i] for i in keep_first(len(texts), groups)]

All methods compare words: NFKC, folded case, without punctuation and mark-up, with the operators of formulas, each
Chinese or Japanese character a word. Texts without any word are compared as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import combinations, pairwise
from math import comb
from sys import intern
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from mmreason.data._words import BREAK, signed_words
from mmreason.data.formats.common import shorten
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Numbers = NDArray[np.intp]

Method = Literal["exact", "minhash", "simhash"]
Tokens = tuple[str, ...]

_MISSED = 0.01  # of the pairs at the threshold, the share that MinHash's buckets may miss


def find_duplicates(
    texts: Sequence[str],
    method: Method = "exact",
    *,
    threshold: float | None = None,
    distance: int | None = None,
    shingle: int = 5,
    num_perm: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> list[tuple[int, ...]]:
    """Groups of texts that are duplicates of one another, directly or through others of the group.

    Args:
        texts: with n texts in all.
        method:
            "exact": equal words.
            "minhash": the sets of shingles have a Jaccard similarity |A ∩ B| / |A ∪ B| >= threshold (Broder 1997).
                Candidates come from the bands of datasketch's MinHash LSH, which miss a pair at the threshold with a
                probability below 1 % and a more similar one more rarely; each is verified on the shingles themselves.
            "simhash": the 64-bit fingerprints (Charikar 2002) differ in at most `distance` bits (Manku et al. 2007);
                all such pairs are found. Prints are near where the shingles' counts point the same way: for long texts
                with a few edits. A short text with one word changed is often further off.
        threshold: of "minhash", above 0 to 1 (default 0.8).
        distance: of "simhash", 0 to 16 (default 3).
        shingle: words in a shingle; a shorter text is one shingle.
        num_perm: of "minhash": hash functions in a signature; small thresholds need many.
        seed: of "minhash". The same seed gives the same groups.
        progress: show a bar.

    Returns: groups of two and more indices into `texts`, each in ascending order, ordered by their first.
    Raises: ConfigError for a wrong setting, or one of another method; DataError naming a text that is none.
    """
    _check(method, threshold, distance, shingle, num_perm)
    if isinstance(texts, str):
        raise DataError("a single text is given where a list of texts is wanted")
    wrong = next((number for number, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"text {wrong}: {shorten(texts[wrong])} is no text; row_text(row) makes one of a row")
    shown = tqdm(texts, desc="reading words", unit=" texts", disable=not progress)
    tokens = [tuple(intern(token) for token in signed_words(text) if token != BREAK) for text in shown]
    groups = _Groups(len(texts))
    first_of: dict[tuple[bool, Tokens | str], int] = {}
    for number, (text, found) in enumerate(zip(texts, tokens, strict=True)):
        groups.join(first_of.setdefault((bool(found), found or text), number), number)
    distinct = [number for (worded, _), number in first_of.items() if worded]
    if method == "minhash":
        _join_minhash(groups, tokens, distinct, 0.8 if threshold is None else threshold, shingle, num_perm, seed)
    elif method == "simhash":
        _join_simhash(groups, tokens, distinct, 3 if distance is None else distance, shingle)
    return groups.of_two_and_more()


def keep_first(n: int, groups: Iterable[Sequence[int]]) -> list[int]:
    """The indices of n texts without all but the first of each group, in ascending order."""
    dropped = {number for group in groups for number in sorted(group)[1:]}
    return [number for number in range(n) if number not in dropped]


def shingles(tokens: Sequence[str], size: int) -> frozenset[Tokens]:
    """The runs of `size` tokens; a shorter text is one shingle."""
    return frozenset(tuple(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1)))


class _Groups:
    """Union-find with the smallest member as the root (path halving)."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self._parent[b] = a

    def of_two_and_more(self) -> list[tuple[int, ...]]:
        members: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parent)):
            members[self.root(number)].append(number)
        return [tuple(found) for found in members.values() if len(found) > 1]


def _join_minhash(
    groups: _Groups,
    tokens: Sequence[Tokens],
    numbers: Sequence[int],
    threshold: float,
    shingle: int,
    num_perm: int,
    seed: int,
) -> None:
    import numpy as np
    from datasketch import MinHash

    sets = ([" ".join(one).encode("utf-8", "replace") for one in shingles(tokens[i], shingle)] for i in numbers)
    sketches = MinHash.generator(sets, num_perm=num_perm, seed=seed)
    signatures = np.zeros((len(numbers), num_perm), dtype=np.uint64)
    for row, sketch in enumerate(sketches):
        signatures[row] = sketch.hashvalues
    ids: dict[Tokens, int] = {}
    known: dict[int, frozenset[int]] = {}

    def shingle_ids(number: int) -> frozenset[int]:
        if number not in known:
            known[number] = frozenset(ids.setdefault(one, len(ids)) for one in shingles(tokens[number], shingle))
        return known[number]

    rows = band_rows(threshold, num_perm)
    bands: list[Hashes] = []
    for start in range(0, num_perm - rows + 1, rows):
        keys = np.zeros(len(numbers), dtype=np.uint64)
        for column in range(start, start + rows):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column]
        for left, right in _equal_pairs(keys):
            new = np.ones(len(left), dtype=np.bool_)
            for earlier in bands:  # what met in an earlier band has been compared
                new &= earlier[left] != earlier[right]
            for i, j in zip(left[new].tolist(), right[new].tolist(), strict=True):
                a, b = numbers[i], numbers[j]
                if groups.root(a) == groups.root(b):
                    continue
                one, other = shingle_ids(a), shingle_ids(b)
                shared = len(one & other)
                if shared / (len(one) + len(other) - shared) >= threshold:
                    groups.join(a, b)
        bands.append(keys)


def band_rows(threshold: float, num_perm: int) -> int:
    """Hash values to a band, as many as find a pair at the threshold with a probability of 99 %.

    num_perm values in bands of r find a pair of similarity s with 1 - (1 - s^r)^(num_perm // r); the more to a band,
    the fewer candidates to verify. Raises: ConfigError where even r = 1 finds fewer.
    """
    fitting = [rows for rows in range(1, num_perm + 1) if (1 - threshold**rows) ** (num_perm // rows) <= _MISSED]
    if not fitting:
        raise ConfigError(f"num_perm={num_perm} is too small to find pairs at threshold={threshold}; raise either")
    return max(fitting)


def _join_simhash(
    groups: _Groups, tokens: Sequence[Tokens], numbers: Sequence[int], distance: int, shingle: int
) -> None:
    import numpy as np

    prints = np.array([simhash(tokens[number], shingle) for number in numbers], dtype=np.uint64)
    prints, first, same = np.unique(prints, return_index=True, return_inverse=True)
    for number, print_ in zip(numbers, same.tolist(), strict=True):
        groups.join(number, numbers[first[print_]])
    for left, right in near_pairs(prints, distance):
        for i, j in zip(first[left].tolist(), first[right].tolist(), strict=True):
            groups.join(numbers[i], numbers[j])


def near_pairs(prints: Hashes, distance: int) -> Iterator[tuple[Numbers, Numbers]]:
    """The positions of all pairs of fingerprints that differ in at most `distance` bits, (pairs,) and (pairs,) at a
    time; a pair may come more than once. Args: prints: (N,)."""
    import numpy as np

    for mask in block_masks(distance, len(prints)):
        for left, right in _equal_pairs(prints & np.uint64(mask)):
            near = np.bitwise_count(prints[left] ^ prints[right]) <= distance
            yield left[near], right[near]


def simhash(tokens: Sequence[str], shingle: int) -> int:
    """The 64-bit fingerprint: each bit the majority of that bit in the hashes of all shingles, repeated ones again."""
    import numpy as np

    runs = [tokens[i : i + shingle] for i in range(max(1, len(tokens) - shingle + 1))]
    hashes = b"".join(blake2b(" ".join(run).encode("utf-8", "replace"), digest_size=8).digest() for run in runs)
    votes = np.unpackbits(np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 8), axis=1).sum(axis=0, dtype=np.int64)
    return int.from_bytes(np.packbits(2 * votes > len(runs)).tobytes(), "big")


def block_masks(distance: int, n: int) -> list[int]:
    """Masks of which any two of n prints within `distance` bits agree under at least one.

    The 64 bits are cut into m > distance blocks. Bits that differ lie in at most `distance` blocks, and there is a mask
    without any that many. More blocks give more masks to sort under, and fewer pairs that agree by chance; the cheapest
    m for n prints is taken.
    """

    def cost(blocks: int) -> float:
        pairs = n * n / 2 / 2 ** (64 * (blocks - distance) / blocks)
        return comb(blocks, distance) * (20 * n + pairs)

    m = min(range(distance + 1, distance + 5), key=cost)
    bounds = [64 * i // m for i in range(m + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    return [sum(kept) for kept in combinations(blocks, m - distance)]


def _equal_pairs(keys: Hashes) -> Iterator[tuple[Numbers, Numbers]]:
    """All pairs of positions with equal keys, (pairs,) and (pairs,) at a time."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.arange(len(keys))
    for step in range(1, len(keys)):
        at = at[: np.searchsorted(at, len(keys) - step)]
        at = at[ordered[at] == ordered[at + step]]
        if not len(at):
            return
        yield order[at], order[at + step]


def _check(method: str, threshold: float | None, distance: int | None, shingle: int, num_perm: int) -> None:
    if method not in ("exact", "minhash", "simhash"):
        raise ConfigError(f"method={method!r} is none of exact, minhash, simhash")
    for name, value, owner in (("threshold", threshold, "minhash"), ("distance", distance, "simhash")):
        if value is not None and method != owner:
            raise ConfigError(f"{name}={value} is a setting of method {owner!r}, not of {method!r}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold} must be above 0 and at most 1")
    if distance is not None and not 0 <= distance <= 16:
        raise ConfigError(f"distance={distance} must be from 0 to 16 bits: beyond, unrelated texts come near")
    if shingle < 1:
        raise ConfigError(f"shingle={shingle} must be at least 1 word")
    if num_perm < 1:
        raise ConfigError(f"num_perm={num_perm} must be at least 1")
