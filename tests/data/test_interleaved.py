"""Documents with pictures: cut between words, never through a picture; nothing is lost; text alone is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.data.interleaved import Part, document_parts, picture_text, prepare_interleaved
from mmreason.data.texts import Corpus
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import ConfigError, DataError
from tests.pictures import cell, picture
from tests.tiny_vlms import tiny_vlm

STORY = "The first thing that one sees here is a picture of something, and then more of it. " * 3


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_vlm(request.param, tmp_path_factory.mktemp("model")))


def write(folder: Path, rows: list[dict[str, Any]]) -> Corpus:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return Corpus(str(folder))


def images(count: int) -> list[dict[str, Any]]:
    return [cell(picture(56, 56, seed)) for seed in range(count)]


def test_both_forms() -> None:
    lists = {"texts": ["a", None, "b", None], "images": [None, 1, None, 2]}
    marked = {"text": "a<image>b<image>", "images": [1, 2]}
    want = [Part("a"), Part(picture=0), Part("b"), Part(picture=1)]
    assert document_parts(lists, "text", "images") == (want, [1, 2])
    assert document_parts(marked, "text", "images") == (want, [1, 2])
    assert document_parts({"text": "only words"}, "text", "images") == ([Part("only words")], [])


def test_a_long_document_is_cut_and_nothing_is_lost(processor: Any, tmp_path: Path) -> None:
    parts = [STORY, None, STORY, None, None, STORY]
    pictures = iter(images(3))
    row = {"texts": parts, "images": [None if part is not None else next(pictures) for part in parts]}
    rows, _ = prepare_interleaved(write(tmp_path, [row]), processor, 120)
    assert len(rows) > 3 and max(rows.lengths) <= 120 and sum(rows.image_counts) == 3
    mark, learned = processor.image_token_id, []
    for i in range(len(rows)):
        one = rows[i]
        held = 0 if one.visual is None else len(one.visual.images)
        assert held == rows.image_counts[i]
        assert (mark in one.ids) == (held > 0)
        assert all(weight == 0.0 for token, weight in zip(one.ids, one.weights, strict=True) if token == mark)
        learned += [token for token, weight in zip(one.ids, one.weights, strict=True) if weight]
    assert processor.tokenizer.decode(learned) == STORY * 3 + processor.tokenizer.eos_token


def test_only_some_documents(processor: Any, tmp_path: Path) -> None:
    corpus = write(tmp_path, [{"text": f"<image> number {i}", "images": images(1)} for i in range(6)])
    rows, _ = prepare_interleaved(corpus, processor, 120, wanted=lambda number: number % 2 == 1)
    assert len(rows) == 3 and "row 1/" in rows.row_ids[0]


BAD = [
    ({"text": "<image> and <image>", "images": 1}, "2 places"),
    ({"text": " ", "images": 0}, "missing_text"),
    ({"text": "<image>", "images": 1, "big": True}, "a picture of"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_bad_documents_are_named_or_counted(processor: Any, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    good = {"text": "fine words and more of them", "images": []}
    bad = {"text": row["text"], "images": images(row["images"])}
    corpus, length = write(tmp_path, [good, bad]), 12 if "big" in row else 100
    with pytest.raises(DataError, match=f"train.parquet row 1.*{said}"):
        prepare_interleaved(corpus, processor, length)
    corpus.on_bad_row = "drop"
    rows, dropped = prepare_interleaved(corpus, processor, 100 if length == 100 else 15)
    assert sum(dropped.values()) == 1 and len(rows) >= 1


def test_a_text_can_not_smuggle_a_placeholder_in(processor: Any, tmp_path: Path) -> None:
    corpus = write(tmp_path, [{"texts": [f"look: {processor.image_token}"], "images": [None]}])
    with pytest.raises(DataError, match="image_count|holds the placeholder"):
        prepare_interleaved(corpus, processor, 100)


def test_what_stands_around_a_picture(processor: Any) -> None:
    found = picture_text(processor)
    assert processor.image_token in found
    if "Qwen" in type(processor).__name__:
        assert found == "<|vision_start|><|image_pad|><|vision_end|>"
    with pytest.raises(ConfigError, match="takes no pictures"):
        picture_text(tiny_tokenizer())
