"""Documents become bins: nothing is lost, every place can be gone on from, held-out ones are never learned."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data.documents import (
    BinSequence,
    Cursor,
    StoredDocuments,
    StreamedDocuments,
    cut,
    hold_out_documents,
    open_documents,
    store_documents,
)
from mmreason.data.objectives import Objective, ObjectiveSettings, ObjectiveTokens, Piece, build_objective
from mmreason.data.texts import Corpus
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import DataError

CLM = Objective(lambda ids, rng: Piece(ids, ids), 16, "packed", overlap=1)


def stored(sizes: list[int], seed: int | None = 0) -> StoredDocuments:
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1)
    return StoredDocuments(np.arange(sum(sizes), dtype=np.uint32), spans, seed)


def read(documents: Any, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """Whole documents, as they stand in an epoch's order; an empty list for a place without one."""
    return [parts[0].tolist() if parts else [] for parts in documents.pieces(epoch, start, 10**9, 0)]


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 200), st.integers(2, 30), st.integers(0, 1))
def test_cut_loses_nothing(length: int, room: int, overlap: int) -> None:
    pieces = cut(np.arange(length), room, overlap)
    assert all(overlap < len(piece) <= room for piece in pieces)
    predicted = [token for piece in pieces for token in piece[overlap:].tolist()]
    assert predicted == list(range(overlap, length))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 6), st.integers(0, 3))
def test_an_epoch_predicts_every_token_once(lengths: list[int], window: int, seed: int) -> None:
    """Every token of every document but its first is a target exactly once in each epoch."""
    if max(lengths) < 2:
        return
    documents = stored(lengths, seed)
    sequence = BinSequence(documents, CLM, 16, window=window, seed=seed)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for cursor, one in sequence.bins(epochs=2):
        assert sum(len(piece.ids) for piece in one) <= 16
        seen[cursor.epoch] += [token for piece in one for token in piece.labels[1:].tolist()]
    firsts = set(documents.spans[:, 0].tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == [t for t in range(sum(lengths)) if t not in firsts]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 4), st.data())
def test_every_place_can_be_gone_on_from(lengths: list[int], window: int, data: Any) -> None:
    if max(lengths) < 2:
        return
    tokens = ObjectiveTokens(end=9999, sentinels=tuple(range(10000, 10100)))
    objective = build_objective("span", tokens, ObjectiveSettings(), max_length=24, encoder_decoder=True, vocab_size=9)
    for kind in (CLM, objective):
        sequence = BinSequence(stored(lengths), kind, 24, window=window, seed=3)
        everything = list(islice(sequence.bins(), 40))
        place = data.draw(st.integers(0, len(everything) - 1))
        again = list(islice(sequence.bins(everything[place][0]), len(everything) - place))
        for (want, left), (got, right) in zip(everything[place:], again, strict=True):
            assert want == got
            assert [p.ids.tolist() for p in left] == [p.ids.tolist() for p in right]
            assert [p.labels.tolist() for p in left] == [p.labels.tolist() for p in right]
        # A checkpoint knows the place behind the last bin, not that of the next one.
        behind = Cursor(**(everything[place][0].to_json() | {"taken": everything[place][0].taken + 1}))
        following = next(iter(sequence.bins(behind)))
        if place + 1 < len(everything):
            assert [p.ids.tolist() for p in following[1]] == [p.ids.tolist() for p in everything[place + 1][1]]


def test_epochs_mask_and_order_anew() -> None:
    tokens = ObjectiveTokens(end=None, mask=7)
    objective = build_objective(
        "mlm", tokens, ObjectiveSettings(), max_length=32, encoder_decoder=False, vocab_size=300
    )
    documents = stored([40, 30, 50, 20, 60, 10])
    rows = [(c.epoch, one[0].labels.tolist()) for c, one in BinSequence(documents, objective, 32).bins(epochs=2)]
    assert [r for e, r in rows if e == 0] != [r for e, r in rows if e == 1]
    assert read(documents, 0) != read(documents, 1)


def test_a_long_document_is_spread_over_the_epoch() -> None:
    """Its pieces don't follow each other: a book among notes would be all that many steps see."""
    documents = stored([4000, *[16] * 250])
    bins = [one for _, one in BinSequence(documents, CLM, 16, window=16).bins(epochs=1)]
    of_book = [one[0].ids[0] < 4000 for one in bins]
    thirds = [sum(of_book[i : i + len(bins) // 3]) / (len(bins) // 3) for i in (0, len(bins) // 3, 2 * len(bins) // 3)]
    assert all(0.4 < share < 0.65 for share in thirds)


def test_little_is_left_empty() -> None:
    rng = np.random.default_rng(0)
    documents = stored(rng.integers(2, 200, size=800).tolist())
    objective = Objective(lambda ids, rng: Piece(ids, ids), 128, "packed", overlap=1)
    bins = [one for _, one in BinSequence(documents, objective, 128, window=256).bins(epochs=1)]
    filled = sum(len(piece.ids) for one in bins for piece in one) / (128 * len(bins))
    assert filled > 0.98


# ---- stores and streams


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"document number {i} " * (1 + i % 5)}) + "\n" for i in range(60)))
    return Corpus(str(path))


def test_a_store_is_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    store_documents(corpus, tokenizer, tmp_path / "store")
    documents = open_documents(tmp_path / "store")
    found = [tokenizer.decode(ids, skip_special_tokens=True) for ids in read(documents)]
    assert found == list(corpus.texts())
    assert all(ids[-1] == tokenizer.eos_token_id for ids in read(documents))
    before = (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns
    store_documents(corpus, tokenizer, tmp_path / "store")  # the same: it stays
    assert (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns == before
    store_documents(Corpus(corpus.name, limit=3), tokenizer, tmp_path / "store")
    assert len(open_documents(tmp_path / "store")) == 3


def test_a_stream_is_the_store(corpus: Corpus, tmp_path: Path) -> None:
    """The same documents are held out, and the others come in the corpus' order, from any place on."""
    tokenizer = tiny_tokenizer()
    store_documents(corpus, tokenizer, tmp_path / "store")
    learned, held = hold_out_documents(open_documents(tmp_path / "store"), 20, seed=1)
    assert held is not None and 4 <= len(held) <= 22 and len(held) + len(learned) == 60
    for documents, out in ((learned, False), (held, True)):
        stream = StreamedDocuments(corpus, tokenizer, 20, 1, held_out=out)
        assert [ids for ids in read(stream) if ids] == read(documents)
        assert read(stream, 0, 7) == read(stream)[7:]
    sequence = BinSequence(StreamedDocuments(corpus, tokenizer, 20, 1), CLM, 16, window=2)
    everything = list(islice(sequence.bins(), 800))
    assert {cursor.epoch for cursor, _ in everything} >= {0, 1}
    again = list(islice(sequence.bins(everything[40][0]), 760))
    assert [c for c, _ in again] == [c for c, _ in everything[40:]]


def test_dropped_rows_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"row {i}"}) if i % 3 else '{"text": ""}' for i in range(20)]
    path.write_text("\n".join(lines))
    stream = StreamedDocuments(Corpus(str(path), on_bad_row="drop"), tiny_tokenizer())
    whole = read(stream)
    for start in range(19):
        assert read(stream, 0, start) == whole[start:]


def test_the_end_of_a_few_long_documents_is_held_out() -> None:
    documents = stored([100, 300, 1])
    learned, held = hold_out_documents(documents, 5, seed=0)
    assert held is not None
    assert held.spans.tolist() == [[95, 100], [385, 400], [401, 401]]
    assert learned.spans.tolist() == [[0, 95], [100, 385], [400, 401]]
    assert hold_out_documents(documents, 0, seed=0) == (documents, None)


def test_a_corpus_without_anything_to_learn() -> None:
    with pytest.raises(DataError, match="no document that can be learned"):
        next(BinSequence(stored([1, 1, 1]), CLM, 16).bins())
