"""Documents in which pictures stand between texts, as rows that a vision-language model learns from (clm).

A document's pictures stay where they are; what is learned is its text, given all that stands before. A long document is
cut between its words, never through a picture; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmreason.data.formats.common import RowError, shorten
from mmreason.data.images import ImageError, image_cell, load_image
from mmreason.data.loader import BadRows
from mmreason.data.schema import to_dataset
from mmreason.data.supervised import SupervisedRow, SupervisedRows
from mmreason.data.supervised_rendering import RowText
from mmreason.data.texts import Corpus
from mmreason.data.visual import can_see, process_text
from mmreason.types import ConfigError, DataError

MARK = "<image>"
"""Where a picture stands in a document that is one text (MMC4's and LLaVA's form)."""
_MARGIN = 8  # tokens: a text that is cut may be read as a few more
_SHORTEST = 4  # tokens of text that are worth a row of their own behind a picture


class Part(NamedTuple):
    """A text, or a picture by its place among the document's."""

    text: str = ""
    picture: int | None = None


def document_parts(row: Mapping[str, Any], text_column: str, image_column: str) -> tuple[list[Part], list[Any]]:
    """(parts in reading order, pictures) of a row.

    Two forms: lists of equal length `texts` and `images`, of which one is None at each place (OBELICS, arXiv
    2306.16527); or a text with `<image>` at each place of a list of pictures.

    Raises: RowError: neither form, or other places than pictures.
    """
    texts, images = row.get("texts"), row.get(image_column) or []
    if isinstance(texts, list):
        if len(texts) != len(images) or any((a is None) == (b is None) for a, b in zip(texts, images, strict=True)):
            raise RowError("image_count", "texts and images: at each place one of the two, the other empty")
        pictures = [image for image in images if image is not None]
        order = iter(range(len(pictures)))
        parts = [Part(text=text) if text is not None else Part(picture=next(order)) for text in texts]
        return parts, pictures
    text = row.get(text_column)
    if not isinstance(text, str) or not text.strip():
        raise RowError("missing_text", f"{text_column!r} is {shorten(text)}")
    images = list(images) if isinstance(images, list | tuple) else [images]
    between = text.split(MARK)
    if len(between) - 1 != len(images):
        raise RowError("image_count", f"{len(between) - 1} places ({MARK}), {len(images)} pictures")
    parts = []
    for number, piece in enumerate(between):
        parts += [Part(picture=number - 1)] if number else []
        parts += [Part(text=piece)] if piece else []
    return parts, images


def picture_text(processor: Any) -> str:
    """What the model's own chat template writes for a picture: its placeholder, with what stands around it.

    Raises: ConfigError: a processor without pictures, or a template that places none.
    """
    if not can_see(processor):
        raise ConfigError(f"{type(processor).__name__} takes no pictures: documents with some need a model that sees")
    picture, text = {"type": "image"}, {"type": "text", "text": "X"}

    def rendered(*parts: Any) -> str:
        return str(processor.apply_chat_template([{"role": "user", "content": list(parts)}], tokenize=False))

    with_picture, without = rendered(picture, text), rendered(text)
    extra = len(with_picture) - len(without)
    start = next((i for i, (a, b) in enumerate(zip(with_picture, without, strict=False)) if a != b), len(without))
    for begin in range(start, -1, -1):  # the difference may be found some places late: its text repeats what follows
        if extra > 0 and with_picture[:begin] + with_picture[begin + extra :] == without:
            found = with_picture[begin : begin + extra]
            if found.startswith(("<", "[")) and processor.image_token in found:
                return found
    if processor.image_token not in with_picture:
        raise ConfigError(f"the chat template of {type(processor).__name__} places no pictures")
    return str(processor.image_token)


def prepare_interleaved(
    corpus: Corpus,
    processor: Any,
    max_length: int,
    *,
    image_column: str = "images",
    image_root: str | None = None,
    image_urls: bool = False,
    wanted: Callable[[int], bool] = lambda number: True,
) -> tuple[SupervisedRows, dict[str, int]]:
    """Every document of a table cut into rows and tried once: (rows, number of dropped documents by reason).

    All text tokens and the end of the document carry loss, the pictures' tokens none.

    Args: wanted: which documents to take, by their number in the table.
    Raises: DataError naming the first documents whose pictures can't be used; ConfigError as `picture_text`.
    """
    roots: Sequence[Any] = (image_root,) if image_root else corpus.image_roots()
    bad = BadRows()
    documents: list[tuple[str, list[Part], list[Any]]] = []
    for number, (where, row) in enumerate(corpus.rows()):
        if not wanted(number):
            continue
        try:
            if not isinstance(row, Mapping):
                raise row if isinstance(row, RowError) else RowError("missing_image", "a text file has none")
            parts, pictures = document_parts(row, corpus.column, image_column)
            cells = [image_cell(picture, root=roots, allow_urls=image_urls) for picture in pictures]
        except (RowError, ImageError) as error:
            bad.add(where, None, _as_row_error(error))
            continue
        documents.append((where, parts, cells))
    cutter = _Cutter(processor, max_length)
    dataset = to_dataset([{"images": cells, "id": where} for where, _, cells in documents], ("images", "id"))
    rows = SupervisedRows(dataset, processor)
    for number, (where, parts, cells) in enumerate(documents):
        try:
            for text, row in cutter.rows(parts, cells, where):
                rows.add(number, text, row)
        except (RowError, DataError) as error:
            bad.add(where, None, _as_row_error(error))
    if bad.total and corpus.on_bad_row == "error":
        listed = "\n  ".join(bad.shown)
        raise DataError(
            f"{corpus.name}: {bad.total} documents can't be learned from:\n  {listed}\nPut them right, or drop "
            "them with on_bad_row: drop",
            path=corpus.name,
            reason=next(iter(bad.counts)),
        )
    return rows.close(), dict(bad.counts)


def _as_row_error(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    return RowError(getattr(error, "reason", None) or "bad_image", getattr(error, "detail", "") or str(error))


class _Cutter:
    """Cuts documents into rows of at most `max_length` tokens."""

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length
        self.tokenizer = processor.tokenizer
        self.placeholder = picture_text(processor)
        around = self.tokenizer(self.placeholder, add_special_tokens=False)["input_ids"]
        self.unlearned = {processor.image_token_id, *around}
        self.end = "" if self.tokenizer.eos_token is None else self.tokenizer.eos_token

    def rows(self, parts: Sequence[Part], cells: Sequence[Any], where: str) -> Iterator[tuple[Any, SupervisedRow]]:
        """(what `SupervisedRows.add` keeps, row) for each piece of a document. Raises: RowError, DataError."""
        for number, (text, used) in enumerate(self._pieces(parts, cells)):
            pictures = [load_image(cells[i], where=f"image {i + 1}") for i in used]
            visual = process_text(text, pictures, self.processor) if pictures else None
            ids = visual.ids if visual is not None else self._ids(text)
            if len(ids) > self.max_length:
                raise RowError("too_long", f"a piece of {len(ids)} tokens, max_length is {self.max_length}")
            weights = [0.0 if token in self.unlearned else 1.0 for token in ids]
            row = SupervisedRow(ids, weights, f"{where}/{number}", "documents", visual)
            yield RowText(text, [], tuple(used)), row

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pieces(self, parts: Sequence[Part], cells: Sequence[Any]) -> Iterator[tuple[str, list[int]]]:
        """(text with placeholders, places of its pictures) of each piece. Raises: RowError."""
        text, taken = "", 0
        used: list[int] = []
        for part in [*parts, Part(text=self.end)]:
            if part.picture is not None:
                size = self._size(cells[part.picture])
                if taken and taken + size + _SHORTEST > self.max_length - _MARGIN:
                    yield text, used
                    text, used, taken = "", [], 0
                text, taken = text + self.placeholder, taken + size
                used.append(part.picture)
                continue
            rest = part.text
            if self.processor.image_token in rest:
                raise RowError("image_count", f"a text holds the placeholder {self.processor.image_token} itself")
            while rest:
                head, rest, size = self._head(rest, self.max_length - _MARGIN - taken)
                text, taken = text + head, taken + size
                if rest:
                    yield text, used
                    text, used, taken = "", [], 0
        if taken:
            yield text, used

    def _size(self, cell: Any) -> int:
        """Tokens of a picture. Raises: RowError where no row has room for it."""
        size = len(process_text(self.placeholder, [load_image(cell)], self.processor).ids)
        if size + _SHORTEST > self.max_length - _MARGIN:
            raise RowError("too_long", f"a picture of {size} tokens, max_length is {self.max_length}")
        return size

    def _head(self, text: str, room: int) -> tuple[str, str, int]:
        """(as much of a text as fits, the rest, tokens)."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        if len(offsets) <= max(room, 0):
            return text, "", len(offsets)
        if room <= 0:
            return "", text, 0
        place = offsets[room][0]
        return text[:place], text[place:], room
