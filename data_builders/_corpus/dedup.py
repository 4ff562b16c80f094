"""Blocks that find duplicates, and that balance domains: signatures by task, one step that compares, a filter.

Exact copies (after white space is evened out) and MinHash are datatrove's; SimHash and the shares of domains are ours,
in the same three steps. Signatures and lists are small: documents are read again from the cleaned files for each.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from data_builders._corpus.rules import Drops
from mmreason._files import write_whole
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

HASH = HashConfig(precision=64, hash_fc="sha1")
"""datatrove's xxhash functions take text, which xxhash 4 refuses."""
_MAX_PRIORITY = 65535


def even(doc: Document) -> str:
    """What exact copies share: the text with white space evened out."""
    return " ".join(doc.text.split())


def earlier_first(doc: Document) -> int:
    """Of equal documents that of the earliest task stays, so of the source that is named first."""
    return max(1, _MAX_PRIORITY - int(doc.metadata["task"]))


def exact_config() -> ExactDedupConfig:
    """datatrove's exact deduplication: 64-bit SHA-1 of the evened text."""
    return ExactDedupConfig(content_getter=even, document_priority=earlier_first, hash_config=HASH)


def minhash_config(n_grams: int, buckets: int, rows: int, seed: int) -> MinhashConfig:
    """datatrove's MinHash: `buckets` bands of `rows` hashes over shingles of `n_grams` words."""
    return MinhashConfig(n_grams=n_grams, num_buckets=buckets, hashes_per_bucket=rows, seed=seed + 1, hash_config=HASH)


def found_probability(similarity: float, buckets: int, rows: int) -> float:
    """Of a pair with this Jaccard similarity of its shingles, how likely MinHash finds it: 1 - (1 - s^rows)^buckets."""
    return float(1 - (1 - similarity**rows) ** buckets)


class MinhashSignature(MinhashDedupSignature):  # type: ignore[misc]
    """datatrove's signatures; for several languages with words that need no model: each ideograph is one."""

    def __init__(self, folder: Path, config: MinhashConfig, languages: list[str]) -> None:
        super().__init__(str(folder), config, language=languages[0] if len(languages) == 1 else "en")
        if len(languages) > 1:
            self.word_tokenizer = _PlainWords()


class _PlainWords(WordTokenizer):  # type: ignore[misc]
    def word_tokenize(self, text: str) -> list[str]:
        from mmreason.data._words import words

        return words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


class Firsts:
    """Groups of places joined pair by pair, each known by its first: union-find whose roots are the least places."""

    def __init__(self) -> None:
        self._before: dict[Any, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        """All places of groups, in order."""
        return iter(sorted(self._before))

    def first(self, place: Any) -> Any:
        """The first of a place's group; the place itself where nothing was joined to it."""
        before = self._before
        while (up := before.get(place, place)) != place:
            before[place] = before[up]
            place = up
        return place

    def join(self, one: Any, two: Any) -> None:
        """Make one group of two places' groups."""
        low, high = sorted((self.first(one), self.first(two)))
        self._before.setdefault(low, low)
        self._before[high] = low


class MinhashCluster(MinhashDedupCluster):  # type: ignore[misc]
    """datatrove's third step, which keeps the document of a cluster that it has met in most pairs; ours keeps the first
    of the earliest task, so of the source that is named first."""

    def run(self, data: DocumentsPipeline = None, _: int = 0, world_size: int = 1) -> None:
        groups = Firsts()
        with self.track_time():
            for name in self.input_folder.list_files(glob_pattern="*.dups"):
                with self.input_folder.open(name, "rb") as file:
                    for task, doc, other_task, other in read_tuples_from_file(file, "4I", lines_to_buffer=1024):
                        groups.join((task, doc), (other_task, other))
            with self.output_folder.get_output_file_manager(mode="wb") as out:
                for place in groups:
                    self.stat_update("duplicates")
                    if groups.first(place) != place:
                        out.write(f"{place[0]:06d}.remove", struct.pack("<I", place[1]))
                        self.stat_update("to_remove")


class ExactFilter(ExactDedupFilter):  # type: ignore[misc]
    """datatrove's filter, under the name of its reason."""

    name = "exact_duplicate"


class MinhashFilter(MinhashDedupFilter):  # type: ignore[misc]
    """datatrove's filter, under the name of its reason."""

    name = "minhash_duplicate"


class SimhashFilter(MinhashDedupFilter):  # type: ignore[misc]
    """datatrove's filter, which reads lists of places, under the name of its reason."""

    name = "simhash_duplicate"


# --------------------------------------------------------------------------------------------------------------------
# SimHash


class SimhashSignature(PipelineStep):  # type: ignore[misc]
    """64-bit fingerprints (Charikar 2002) of a task's documents, one file of (N,) uint64."""

    type = "🫂 - DEDUP"
    name = "SimHash stage 1"

    def __init__(self, folder: Path, shingle: int) -> None:
        super().__init__()
        self._folder, self._shingle = folder, shingle

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        from mmreason.data._words import words
        from mmreason.data.duplicates import simhash

        prints = []
        for doc in data:
            with self.track_time():
                self.stat_update("total")
                prints.append(simhash(words(doc.text), self._shingle))
        _save(self._folder / f"{rank:05d}.npy", np.array(prints, dtype=np.uint64))


class SimhashFind(PipelineStep):  # type: ignore[misc]
    """All fingerprints that differ in at most `distance` bits from one another's, directly or through others; of each
    such group all but the first are listed. One task; needs 50 bytes for each document."""

    type = "🫂 - DEDUP"
    name = "SimHash stage 2"

    def __init__(self, folder: Path, out: Path, distance: int) -> None:
        super().__init__()
        self._folder, self._out, self._distance = folder, out, distance

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        files = sorted(self._folder.glob("*.npy"))
        parts = [np.load(file) for file in files]
        with self.track_time():
            removed = later_ones(np.concatenate(parts or [np.zeros(0, np.uint64)]), self._distance)
        self.stat_update("to_remove", value=len(removed))
        starts = np.cumsum([0, *map(len, parts)])
        for number, file in enumerate(files):
            inside = removed[(removed >= starts[number]) & (removed < starts[number + 1])] - starts[number]
            target = self._out / f"{int(file.stem):06d}.remove"
            write_whole(target, struct.pack(f"<{len(inside)}I", *inside.tolist()))


def later_ones(prints: np.ndarray, distance: int) -> np.ndarray:
    """(D,) places, in order, of all prints of a group but its first. Args: prints: (N,) uint64."""
    from mmreason.data.duplicates import near_pairs

    unique, first, same = np.unique(prints, return_index=True, return_inverse=True)
    groups = Firsts()
    for left, right in near_pairs(unique, distance):
        for a, b in zip(first[left].tolist(), first[right].tolist(), strict=True):
            groups.join(a, b)
    keepers = np.array([groups.first(place) for place in first.tolist()], dtype=np.intp)
    places = np.arange(len(prints))
    return places[keepers[same] != places]


def _save(path: Path, array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_whole(path, buffer.getbuffer())


# --------------------------------------------------------------------------------------------------------------------
# Shares of domains


class BalanceSignature(PipelineStep):  # type: ignore[misc]
    """For each domain the sizes of a task's documents, with a number drawn for each from its id."""

    type = "⚖️ - BALANCE"
    name = "Domains stage 1"

    def __init__(self, folder: Path, by: str, seed: int) -> None:
        super().__init__()
        self._folder, self._by, self._seed = folder, by, seed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        held: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for doc in data:
            size = 1 if self._by == "documents" else len(doc.text)
            held[doc.metadata["domain"]].append((draw(doc.id, self._seed), size))
        write_whole(self._folder / f"{rank:05d}.json", json.dumps(held))


class BalanceFind(PipelineStep):  # type: ignore[misc]
    """For each domain the highest number up to which documents stay: see `thresholds`."""

    type = "⚖️ - BALANCE"
    name = "Domains stage 2"

    def __init__(self, folder: Path, out: Path, weights: Mapping[str, float], caps: Mapping[str, int]) -> None:
        super().__init__()
        self._folder, self._out, self._weights, self._caps = folder, out, dict(weights), dict(caps)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        held: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for file in sorted(self._folder.glob("*.json")):
            for domain, drawn in json.loads(file.read_text(encoding="utf-8")).items():
                held[domain] += map(tuple, drawn)
        write_whole(self._out, json.dumps(thresholds(held, self._weights, self._caps)))


def thresholds(
    held: Mapping[str, list[tuple[int, int]]], weights: Mapping[str, float], caps: Mapping[str, int]
) -> dict[str, int]:
    """Domain -> the highest number drawn that stays; domains of which all stay are left out.

    The weighted domains get sizes in the ratio of their weights, as large as the scarcest allows; a cap is a size. The
    documents with the smallest numbers stay, as many as fit: a fair sample that no order of reading changes.

    Args: held: (number, size) of a domain's documents.
    Raises: ConfigError: a weighted domain has no documents, so that nothing of the others could stay.
    """
    for domain in weights:
        if not held.get(domain):
            raise ConfigError(
                f"domain_weights.{domain}: no document that is left is of this domain.{did_you_mean(domain, held)} "
                f"There are: {', '.join(sorted(held)[:20])}"
            )
    sizes = {domain: sum(size for _, size in drawn) for domain, drawn in held.items()}
    wanted: dict[str, float] = {}
    if weights:
        total = min(sizes[domain] / weight for domain, weight in weights.items())
        wanted = {domain: total * weight for domain, weight in weights.items()}
    for domain, cap in caps.items():
        wanted[domain] = min(cap, wanted.get(domain, cap))
    found = {}
    for domain, target in wanted.items():
        if sizes.get(domain, 0) <= target * (1 + 1e-9):
            continue
        last, filled = -1, 0.0
        for number, size in sorted(held[domain]):
            filled += size
            if filled > target * (1 + 1e-9):
                break
            last = number
        found[domain] = last
    return found


def draw(name: str, seed: int) -> int:
    """A number below 2^53 from a document's id."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "big") >> 11


class BalanceFilter(BaseFilter):  # type: ignore[misc]
    """Drops documents above their domain's threshold."""

    name = "Domain shares"

    def __init__(self, path: Path, seed: int, drops: Drops) -> None:
        super().__init__(drops)
        self._path, self._seed = path, seed
        self._last: dict[str, Any] | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self._last is None:
            self._last = json.loads(self._path.read_text(encoding="utf-8"))
        last = self._last.get(doc.metadata["domain"])
        return True if last is None or draw(doc.id, self._seed) <= last else (False, "over_share")


def drop_names() -> Iterator[str]:
    """The names of filters that give no reason: the name is one."""
    yield from (cls.name for cls in (ExactFilter, MinhashFilter, SimhashFilter))
