"""Pictures with what is known of them: captions, boxes, and the file. See `read_pictures` for the forms of rows."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_builders.building.build import SourceNote
from data_builders.building.sources import read_raw
from mmreason.data.images import ImageCell, ImageError, image_cell, load_image
from mmreason.types import DataError

CAPTIONS = ("captions", "caption", "sentences")
BOXES = ("instances", "boxes", "objects", "annotations")
CATEGORY = ("category", "label", "name", "category_name")
BOX = ("bbox", "box")
IDS = ("id", "image_id", "question_id")


@dataclass(frozen=True, slots=True)
class Box:
    """An object of an annotation: its category, and where it lies (as its row has it; empty where it doesn't say)."""

    category: str
    place: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A row: the picture and its annotation.

    Attributes:
        where: the row's place, "file:line".
        image: the picture as it is stored (see `mmreason.data.images`); nothing is read yet.
    """

    id: str
    where: str
    image: ImageCell
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def is_annotated(self) -> bool:
        return bool(self.captions or self.boxes)

    def told(self) -> dict[str, Any]:
        """The annotation, for a row's meta."""
        return {
            "image_id": self.id,
            "captions": list(self.captions),
            "boxes": [{"category": box.category, "box": list(box.place)} for box in self.boxes],
        }


def read_pictures(
    source: str, *, split: str, image_root: Path | None, missing: Literal["error", "drop"]
) -> tuple[list[Picture], SourceNote, int]:
    """Rows with an image: ``image`` (a path, bytes, a dict of them), ``captions`` (a list, or one ``caption``), boxes
    (``instances``: [{"category": "dog", "bbox": [x0, y0, x1, y1]}]), ``id``.

    Args:
        source: file, folder or hub id.
        image_root: where relative paths start, and outside which no image may lie; None: the source's folder.
        missing: rows whose image is not there are an error, or dropped.

    Returns: (pictures, the note for the manifest, how many rows were dropped).
    Raises: DataError: a row that is malformed, an id given twice, an image that is not there or lies outside the root.
    """
    rows, note = read_raw(source, split=split)
    path = Path(source).expanduser()
    root = image_root or (path if path.is_dir() else path.parent if path.is_file() else None)
    pictures: list[Picture] = []
    lacking: list[ImageError] = []
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        try:
            picture = _picture(where, row, number, root)
        except ImageError as error:
            if error.reason != "missing_image":
                raise
            lacking.append(error)
            continue
        if picture.id in places:
            raise DataError(
                f"{where}: the id {picture.id!r} is that of {places[picture.id]} too; give each row its own",
                path=source, row=where, reason="duplicate_id",
            )  # fmt: skip
        places[picture.id] = where
        pictures.append(picture)
    if lacking and (missing == "error" or not pictures):
        more = f" ({len(lacking)} of {len(rows)} rows lack theirs)" if len(lacking) > 1 else ""
        raise DataError(
            f"{lacking[0]}{more}. --image_root names the images' folder; --missing_images drop leaves such rows out",
            path=source, row=lacking[0].row, reason="missing_image",
        )  # fmt: skip
    return pictures, note, len(lacking)


def _picture(where: str, row: Mapping[str, Any], number: int, root: Path | None) -> Picture:
    row_id = next((str(row[name]) for name in IDS if row.get(name) not in (None, "")), f"row-{number}")
    held = row.get("image", row.get("images"))
    if isinstance(held, list):
        if len(held) > 1:
            raise _bad(where, f"has {len(held)} images; one is taken")
        held = held[0] if held else None
    cell = image_cell(held, root=root, where=f"{where} (id {row_id})")
    return Picture(row_id, where, cell, _captions(where, row), _boxes(where, row))


def _captions(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    cell = next((row[name] for name in CAPTIONS if row.get(name)), ())
    texts = [cell] if isinstance(cell, str) else cell
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise _bad(where, f"captions must be texts, not {str(cell)[:80]!r}")
    return tuple(text.strip() for text in texts if text.strip())


def _boxes(where: str, row: Mapping[str, Any]) -> tuple[Box, ...]:
    cell = next((row[name] for name in BOXES if row.get(name)), ())
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise _bad(where, f"the boxes are no JSON: {cell[:80]!r}") from None
    if not isinstance(cell, Sequence):
        raise _bad(where, f"boxes must be a list, not {str(cell)[:80]!r}")
    return tuple(_box(where, entry) for entry in cell)


def _box(where: str, entry: Any) -> Box:
    if isinstance(entry, str):
        return Box(entry)
    name = next((entry[key] for key in CATEGORY if entry.get(key)), None) if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise _bad(where, f'a box is {str(entry)[:80]!r}; it must be {{"category": "dog", "bbox": [x0, y0, x1, y1]}}')
    place = next((entry[key] for key in BOX if entry.get(key) is not None), ())
    if not isinstance(place, Sequence) or not all(isinstance(value, int | float) for value in place):
        raise _bad(where, f"the place of a box is {str(place)[:80]!r}, not four numbers")
    return Box(name, tuple(float(value) for value in place))


def _bad(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}", row=where, reason="bad_annotation")


def images_note(cells: Sequence[ImageCell | None], root: str, license: str | None) -> SourceNote | None:
    """The images that lie in files, for the manifest, or None; the digest is of their names and sizes, to be quick."""
    paths = [Path(cell["path"]) for cell in cells if cell is not None and cell["path"] is not None]
    if not paths:
        return None
    told = "".join(f"{path.name} {path.stat().st_size}\n" for path in paths)
    return SourceNote(f"{root} [{len(paths)} images]", 0, hashlib.sha256(told.encode()).hexdigest(), license)


def picture_bytes(cell: ImageCell) -> bytes:
    """The picture as PNG or JPEG, as endpoints take it; others are encoded anew as PNG. It has been decoded once.

    Raises: ImageError where it is damaged or gone.
    """
    image = load_image(cell)
    held = cell["bytes"]
    if held is None:
        held = Path(str(cell["path"])).read_bytes()
    if held.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return held
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
