"""Documents → rows of training: token streams that are stored or read as they come, cut, corrupted, packed; resumable.

    documents ──cut──▶ pieces ──objective──▶ rows ──best fit──▶ bins (a sequence of rows that don't see each other)

This goes window by window: some pieces at a time, so that a corpus of any size is packed well and nothing but a window
is held. What a window gives is a pure function of the seed, the epoch and the place it begins at. So a run that goes on
needs three numbers (`Cursor`), and every process can work out the whole sequence and take its part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmreason._files import write_whole
from mmreason.data.mixture import mixed_seed
from mmreason.data.objectives import Objective, Piece
from mmreason.data.packing import best_fit
from mmreason.data.texts import Corpus, Text
from mmreason.types import ConfigError, DataError

Ids = NDArray[np.int64]
Bin = list[Piece]
"""What stands in one sequence."""

_TEXTS_AT_ONCE = 256  # tokenized together: the tokenizer then uses all cores
_FEW_DOCUMENTS = 20  # from fewer, the end of each is held out instead of some of them


class Documents(Protocol):
    """Token ids of a corpus, cut into pieces, in a fixed order for each epoch."""

    def pieces(self, epoch: int, start: int, room: int, overlap: int) -> Iterator[list[Ids]]:
        """The pieces (see `cut`) that stand at each place of an epoch's order, from place `start` on."""
        ...


# --------------------------------------------------------------------------------------------------------------------
# Tokens


def encode_texts(texts: Iterator[Text], tokenizer: Any) -> Iterator[tuple[Text, Ids]]:
    """Each text's ids, between the tokenizer's own begin-of-sequence token, if it has one, and its end token."""
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encoded(group: list[Text]) -> Iterator[tuple[Text, Ids]]:
        found = tokenizer([text.text for text in group], add_special_tokens=False, verbose=False)["input_ids"]
        for text, ids in zip(group, found, strict=True):
            yield text, np.array([*first, *ids, *last], dtype=np.int64)

    group: list[Text] = []
    for text in texts:
        group.append(text)
        if len(group) == _TEXTS_AT_ONCE:
            yield from encoded(group)
            group = []
    yield from encoded(group) if group else ()


def is_held_out(number: int, percentage: float, seed: int) -> bool:
    """Is this document of a corpus one of those that are kept for the evaluation?"""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:6], "big") < percentage / 100 * 2**48


@dataclass(frozen=True)
class StoredDocuments:
    """A tokenized corpus on the disk, read through a memory map that all processes of a machine share.

    Attributes:
        ids: (tokens,) uint32. spans: (N, 2) begin and end of each document. seed: of the order; None: as they stand.
    """

    ids: NDArray[np.uint32]
    spans: NDArray[np.int64]
    seed: int | None = None

    @property
    def tokens(self) -> int:
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())

    def __len__(self) -> int:
        return len(self.spans)

    def pieces(self, epoch: int, start: int, room: int, overlap: int) -> Iterator[list[Ids]]:
        """One piece at each place: those of a long document lie anywhere in the order, not next to each other."""
        sizes = self.spans[:, 1] - self.spans[:, 0]
        counts = np.where(sizes > overlap, np.maximum(1, -(-(sizes - overlap) // (room - overlap))), 0)
        owners = np.repeat(np.arange(len(sizes)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = self.spans[owners, 0] + within * (room - overlap)
        ends = np.minimum(begins + room, self.spans[owners, 1])
        order = np.arange(len(owners))
        if self.seed is not None:
            order = np.random.default_rng(mixed_seed(self.seed, epoch)).permutation(order)
        for number in order[start:].tolist():
            yield [self.ids[begins[number] : ends[number]].astype(np.int64)]


def store_documents(corpus: Corpus, tokenizer: Any, folder: Path) -> None:
    """Tokenize a corpus into a folder, unless it holds the very same already. For one process.

    Raises: DataError as `Corpus.read`; OSError where the disk is full.
    """
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    note = json.dumps({"corpus": corpus.identity(), "tokenizer": vocabulary}, sort_keys=True)
    record = folder / "corpus.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["note"] == note:
        corpus.dropped.update(json.loads(record.read_text(encoding="utf-8"))["dropped"])
        return
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    lengths: list[int] = []
    with (folder / "tokens.bin").open("wb") as file:
        for _, ids in encode_texts(corpus.read(), tokenizer):
            file.write(ids.astype("<u4").tobytes())
            lengths.append(len(ids))
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    # Written last: without it the folder is not whole.
    write_whole(record, json.dumps({"note": note, "dropped": dict(corpus.dropped)}))


def open_documents(folder: Path, seed: int | None = None) -> StoredDocuments:
    """What `store_documents` has written."""
    ends = np.cumsum(np.load(folder / "lengths.npy"))
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int64)
    return StoredDocuments(np.memmap(folder / "tokens.bin", dtype="<u4", mode="r"), spans, seed)


def hold_out_documents(
    documents: StoredDocuments, percentage: float, seed: int
) -> tuple[StoredDocuments, StoredDocuments | None]:
    """(documents to learn from, held-out ones): a share of the documents; of a few long ones, the end of each.

    Returns: None for the second where the percentage is 0.
    """
    if percentage <= 0:
        return documents, None
    spans = documents.spans
    if len(spans) < _FEW_DOCUMENTS:
        sizes = spans[:, 1] - spans[:, 0]
        cuts = spans[:, 1] - np.minimum(sizes - 1, np.ceil(sizes * percentage / 100).astype(np.int64))
        learned = np.stack([spans[:, 0], cuts], axis=1)
        held = np.stack([cuts, spans[:, 1]], axis=1)
    else:
        out = np.array([is_held_out(number, percentage, seed) for number in range(len(spans))])
        out[0] |= not out.any()
        learned, held = spans[~out], spans[out]
    return StoredDocuments(documents.ids, learned, documents.seed), StoredDocuments(documents.ids, held)


@dataclass(frozen=True)
class StreamedDocuments:
    """A corpus that is read and tokenized while training goes on, in its own order, pass after pass.

    Args: percentage, seed: of the documents that are held out. held_out: give those instead of the others.
    """

    corpus: Corpus
    tokenizer: Any
    percentage: float = 0.0
    seed: int = 0
    held_out: bool = False

    def pieces(self, epoch: int, start: int, room: int, overlap: int) -> Iterator[list[Ids]]:
        """A document at each place; of one that is held out or was dropped there is nothing."""
        place = start
        for text, ids in encode_texts(self.corpus.read(start), self.tokenizer):
            for _ in range(text.number - place):
                yield []
            place = text.number + 1
            wanted = is_held_out(text.number, self.percentage, self.seed) == self.held_out
            yield cut(ids, room, overlap) if wanted else []


# --------------------------------------------------------------------------------------------------------------------
# Rows


def cut(document: Ids, room: int, overlap: int) -> list[Ids]:
    """A document in pieces of at most `room` tokens; each shares `overlap` tokens with the one before it.

    With an overlap of 1 each token but the first is predicted in exactly one piece. Nothing is lost.
    """
    if len(document) <= room:
        return [document] if len(document) > overlap else []
    step = room - overlap
    return [document[start : start + room] for start in range(0, len(document) - overlap, step)]


@dataclass(frozen=True)
class Cursor:
    """A place in the sequence of bins: so many of the window are taken that begins at a place of an epoch's order."""

    epoch: int = 0
    start: int = 0
    taken: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class BinSequence:
    """The bins that a run learns from, an endless sequence from any cursor on.

    Args:
        documents: of the corpus. objective: what becomes of their pieces.
        capacity: tokens of a bin, for an objective whose rows can be packed. Others have a bin to themselves.
        pack: False gives each row a bin of its own.
        window: bins of a window, about: a window ends with the piece, of a stream with the document, that fills it.
        seed: of masks and of the order of a window's bins.
    """

    def __init__(
        self,
        documents: Documents,
        objective: Objective,
        capacity: int,
        *,
        pack: bool = True,
        window: int = 256,
        seed: int = 0,
    ) -> None:
        if window < 1:
            raise ConfigError(f"packing_window={window} must be at least 1")
        self.documents, self.objective, self.capacity = documents, objective, capacity
        self.pack, self.window, self.seed = pack and objective.layout == "packed", window, seed

    def bins(self, cursor: Cursor = Cursor(), epochs: int | None = None) -> Iterator[tuple[Cursor, Bin]]:
        """(where the sequence stands before a bin, the bin), up to the end of so many epochs.

        Raises: DataError where an epoch has no bins at all.
        """
        epoch, start, taken = cursor.epoch, cursor.start, cursor.taken
        while epochs is None or epoch < epochs:
            found = start > 0 or taken > 0
            for begun, window in self._windows(epoch, start):
                for number in range(taken, len(window)):
                    found = True
                    yield Cursor(epoch, begun, number), window[number]
                taken = 0
            if not found:
                raise DataError("the corpus has no document that can be learned from", reason="empty")
            epoch, start = epoch + 1, 0

    def _windows(self, epoch: int, start: int) -> Iterator[tuple[int, list[Bin]]]:
        """(its first place, bins) of the windows of an epoch, from a window's first place on."""
        pieces: list[Ids] = []
        size = 0
        begun = place = start
        for parts in self.documents.pieces(epoch, start, self.objective.room, self.objective.overlap):
            place += 1
            pieces += parts
            size += sum(map(len, parts))
            if size >= self.window * self.capacity:
                yield begun, self._pack(pieces, epoch, begun)
                pieces, size, begun = [], 0, place
        if pieces:
            yield begun, self._pack(pieces, epoch, begun)

    def _pack(self, pieces: Sequence[Ids], epoch: int, begun: int) -> list[Bin]:
        rng = np.random.default_rng([self.seed, epoch, begun])
        rows = [self.objective.make(piece, rng) for piece in pieces]
        if self.pack:
            packed = best_fit([len(row.ids) for row in rows], self.capacity)
        else:
            packed = [[number] for number in range(len(rows))]
        return [[rows[number] for number in packed[place]] for place in rng.permutation(len(packed))]
