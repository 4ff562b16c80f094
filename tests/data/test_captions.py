"""Pictures with texts: rows of any form become one, bad ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.data.captions import caption_texts, distinct_captions, iter_pictures, load_captions
from mmreason.data.texts import Corpus
from mmreason.types import DataError
from tests.pictures import cell, picture


def write(path: Path, rows: list[dict[str, Any]]) -> Corpus:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return Corpus(str(path))


def test_every_form_of_row(tmp_path: Path) -> None:
    image = cell(picture(8, 8))
    plain = write(tmp_path / "a.parquet", [{"image": image, "text": " a red dot "}])
    rows, dropped = load_captions(plain, prompt="Describe it.")
    assert caption_texts(rows) == ["a red dot"] and not dropped
    assert rows[0]["prompt"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "Describe it."}]
    listed = write(tmp_path / "b.parquet", [{"images": [image], "caption": "a dot"}])
    rows, _ = load_captions(listed)
    assert rows[0]["prompt"][0]["content"] == [{"type": "image"}] and caption_texts(rows) == ["a dot"]
    assert next(iter_pictures(rows, [0])).mode == "RGB"


def test_conversations_about_a_picture(tmp_path: Path) -> None:
    from data_builders.shapes import build

    build(tmp_path, tasks=["describe"], level=1, n=60, n_test=0, n_unseen=0, image_size=32)
    rows, _ = load_captions(Corpus(str(tmp_path)))
    assert len(rows) == 60 and all("picture" in row["prompt"][0]["content"][1]["text"] for row in rows)
    kept = distinct_captions(rows, 20)
    assert len(set(caption_texts(kept))) == len(kept) == 20


BAD = [
    ({"image": None, "text": "a"}, "missing_image"),
    ({"image": {"bytes": b"nothing", "path": None}, "text": "a"}, "bad_image"),
    ({"image": {"bytes": b"", "path": None}, "text": ""}, "missing_text"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_bad_rows_are_named_or_counted(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    good = {"image": cell(picture(8, 8)), "text": "good"}
    corpus = write(tmp_path / "rows.parquet", [good, row])
    if said == "bad_image":
        rows, _ = load_captions(corpus)  # opened when it is read
        with pytest.raises(DataError, match="train/1"):
            list(iter_pictures(rows, [1]))
        return
    with pytest.raises(DataError, match=f"rows.parquet row 1: {said}"):
        load_captions(corpus)
    corpus.on_bad_row = "drop"
    rows, dropped = load_captions(corpus)
    assert caption_texts(rows) == ["good"] and dropped == {said: 1}
