"""Read a builder's sources: as Examples or as raw rows, with a note for the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_builders.building.build import SourceNote
from mmreason.types import DataError, Example

_COLUMNS = ("prompt", "completion", "answer", "tools", "images", "id", "source", "meta")


def read_source(
    source: str | Path, *, split: str = "train", columns: Sequence[str] = _COLUMNS, **options: Any
) -> tuple[list[Example], SourceNote]:
    """A set as Examples, in order. Cells that a row lacks are left out of it.

    Args:
        source: hub id, file or folder.
        columns: fields of the Examples ("chosen" and "rejected", or "text", have to be asked for).
        **options: of `mmreason.data.load_examples`. Questions come bare, without a template around them, and without
            an answer too (`require_answer=True` refuses those), unless the options say otherwise.

    Raises: DataError (missing, empty, unreadable, not UTF-8, missing images), ConfigError (wrong arguments).
    """
    examples, told, _ = read_counted(source, split=split, columns=columns, **options)
    return examples, told


def read_counted(
    source: str | Path, *, split: str = "train", columns: Sequence[str] = _COLUMNS, **options: Any
) -> tuple[list[Example], SourceNote, dict[str, int]]:
    """`read_source`, and with `on_bad_row="drop"` how many rows were left out, by reason."""
    from mmreason.data.loader import load_examples

    settings: dict[str, Any] = {"prompt_template": "{question}", "require_answer": False} | options
    loaded = load_examples(str(source), split=split, columns=columns, **settings)
    # Rows as plain values: images stay as they are stored.
    examples: list[Example] = [_without_none(row) for row in loaded.dataset]
    return examples, note(source, split, len(examples), _digest_rows(examples)), loaded.dropped


def read_raw(source: str | Path, *, split: str = "train") -> tuple[list[tuple[str, dict[str, Any]]], SourceNote]:
    """The rows of a file, folder or hub set as they are, each with its place ("file:line"), for messages.

    Raises: DataError naming the first row that can't be read; ConfigError for a split that is none.
    """
    from mmreason.data.formats.common import RowError
    from mmreason.data.sources import parse_split, resolve

    wanted = parse_split(split)
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, row in resolve(str(source), wanted).rows(wanted):
        if isinstance(row, RowError):
            raise DataError(f"{where}: {row}", path=source, row=where, reason=row.reason)
        rows.append((where, dict(row)))
    if not rows:
        raise DataError(f"{source}: the dataset is empty (no rows)", path=source, reason="empty")
    return rows, note(source, split, len(rows), _digest_rows(row for _, row in rows))


def note(source: str | Path, split: str, rows: int, rows_digest: str) -> SourceNote:
    """What the manifest says of a source. Args: rows_digest: taken where the bytes of a file can't be."""
    path = Path(source).expanduser()
    if path.is_file():
        return SourceNote(str(source), rows, _digest_file(path), license=local_license(path.parent))
    if path.is_dir():
        return SourceNote(f"{source} [{split}]", rows, rows_digest, license=local_license(path))
    hub_id = str(source).partition(":")[0]
    return SourceNote(f"{source} [{split}]", rows, rows_digest, _card_license(hub_id), _hub_revision(hub_id))


def _without_none(row: Mapping[str, Any]) -> Example:
    found: Any = {name: cell for name, cell in row.items() if cell is not None and not (name == "images" and not cell)}
    return found  # type: ignore[no-any-return]


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of the rows' values; of an image its bytes, or the name and size of its file."""
    digest = hashlib.sha256()
    for row in rows:
        if "images" in row:
            row = {**row, "images": [_image_sign(cell) for cell in row["images"] or ()]}
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _image_sign(cell: Any) -> Any:
    path = cell.get("path") if isinstance(cell, Mapping) and cell.get("bytes") is None else None
    if not isinstance(path, str) or not Path(path).is_file():
        return cell
    return [Path(path).name, Path(path).stat().st_size]


def _plain(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def local_license(folder: Path) -> str | None:
    """The licence that a dataset card beside the data names."""
    return _card_license(str(folder / "README.md")) if (folder / "README.md").is_file() else None


def _card_license(card: str) -> str | None:
    """Of a card's file, or of a hub set whose card can be had; None where nothing is said."""
    from huggingface_hub import DatasetCard

    try:
        found = DatasetCard.load(card).data.license
    except Exception:  # no network, no card, no header, a header that is no YAML: all say nothing
        return None
    return ", ".join(map(str, found)) if isinstance(found, list) else found


def _hub_revision(hub_id: str) -> str | None:
    """The commit of the copy that was read: the cache's, else the hub's newest."""
    from huggingface_hub import HfApi, constants

    reference = Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id.replace('/', '--')}" / "refs" / "main"
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    try:
        return HfApi().dataset_info(hub_id).sha
    except Exception:  # a set that only the `datasets` cache has
        return None
