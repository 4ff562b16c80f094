"""Pictures with their texts, for alignment and contrastive pretraining: whatever the rows look like, one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.data.formats.common import RowError, shorten
from mmreason.data.images import ImageError, image_cell
from mmreason.data.loader import BadRows
from mmreason.data.schema import to_dataset
from mmreason.data.supervised import message_texts
from mmreason.data.texts import Corpus
from mmreason.types import ContentPart, DataError, Example

if TYPE_CHECKING:
    from datasets import Dataset

_IMAGE_COLUMNS = ("images", "image")
_TEXT_COLUMNS = ("text", "caption")


def load_captions(
    corpus: Corpus,
    *,
    image_column: str = "images",
    prompt: str | None = None,
    image_root: str | None = None,
    image_urls: bool = False,
) -> tuple[Dataset, dict[str, int]]:
    """Rows of one picture and its text, as conversations in which the text is the answer to the picture.

    A row has a picture (`image_column`, or "image"; alone or in a list) and a text (the corpus' column, or "caption");
    or it is a conversation about one picture, whose completion is the text.

    Args:
        corpus: a table; its on_bad_row, column and limit hold here as well.
        prompt: text beside the picture. None: what a conversation asks, else the picture alone.
        image_root, image_urls: see `mmreason.data.load_examples`.
    Returns: (rows with prompt, completion, images, answer, id, source; number of dropped rows by reason).
    Raises: DataError naming the first rows without a usable picture or text.
    """
    roots: Sequence[Any] = (image_root,) if image_root else corpus.image_roots()
    bad = BadRows()
    examples: list[Example] = []
    for number, (where, row) in enumerate(corpus.rows()):
        try:
            text, images, asked = _parts(row, corpus.column, image_column)
            cell = image_cell(images[0], root=roots, allow_urls=image_urls)
        except ImageError as error:
            bad.add(where, row, RowError(error.reason or "bad_image", error.detail))
            continue
        except RowError as error:
            bad.add(where, row if isinstance(row, Mapping) else None, error)
            continue
        examples.append(_example(text, cell, prompt if prompt is not None else asked, f"{corpus.split}/{number}"))
    if bad.total and corpus.on_bad_row == "error":
        listed = "\n  ".join(bad.shown)
        raise DataError(
            f"{corpus.name}: {bad.total} rows have no picture with a text:\n  {listed}\nPut them right, name the "
            "columns with image_column and text_column, or drop such rows with on_bad_row: drop",
            path=corpus.name,
            reason=next(iter(bad.counts)),
        )
    if not examples:
        raise DataError(f"{corpus.name} [{corpus.split}]: no pictures with texts", path=corpus.name, reason="empty")
    columns = ("prompt", "completion", "images", "answer", "tools", "id", "source", "meta")
    return to_dataset(examples, columns), dict(bad.counts)


def caption_texts(rows: Dataset) -> list[str]:
    """The texts of some rows of `load_captions`."""
    return ["\n".join(message_texts(completion)) for completion in rows["completion"]]


def distinct_captions(rows: Dataset, limit: int) -> Dataset:
    """The first row of each text, at most `limit`: among them a picture has one right text."""
    seen: dict[str, int] = {}
    for number, text in enumerate(caption_texts(rows)):
        seen.setdefault(text, number)
    return rows.select(sorted(seen.values())[:limit])


def _parts(row: Any, text_column: str, image_column: str) -> tuple[str, list[Any], str | None]:
    """(text, pictures, what a conversation asks). Raises RowError."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError("missing_image", "a text file has none")
    found = next((row[name] for name in (image_column, *_IMAGE_COLUMNS) if row.get(name) is not None), None)
    images = list(found) if isinstance(found, list | tuple) else [found]
    if len(images) != 1 or images[0] is None:
        raise RowError("image_count" if found else "missing_image", f"{len(images)} pictures, one is needed")
    asked = None
    text: Any = next((row[name] for name in (text_column, *_TEXT_COLUMNS) if row.get(name) is not None), None)
    if text is None and row.get("completion"):
        text = "\n".join(message_texts(row["completion"]))
        asked = "\n".join(message_texts(row.get("prompt") or []))
    if not isinstance(text, str) or not text.strip():
        raise RowError("missing_text", f"{text_column!r} is {shorten(text)}")
    return text.strip(), images, asked


def _example(text: str, cell: Any, prompt: str | None, row_id: str) -> Example:
    parts: list[ContentPart] = [{"type": "image"}]
    if prompt:
        parts.append({"type": "text", "text": prompt})
    return {
        "prompt": [{"role": "user", "content": parts}],
        "completion": [{"role": "assistant", "content": text}],
        "images": [cell],
        "answer": None,
        "id": row_id,
        "source": "captions",
        "meta": {},
    }


def iter_pictures(rows: Dataset, places: Sequence[int]) -> Iterator[Any]:
    """The pictures of some rows, RGB. Raises DataError naming the row."""
    from mmreason.data.images import load_image

    for row in rows.select(places):
        yield load_image(row["images"][0], where=f"row {row['id']}")
