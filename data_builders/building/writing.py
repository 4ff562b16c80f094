"""Write a built set: a parquet file per split and a manifest, each whole or not at all. Shared by the builders."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason._files import write_whole
from mmreason.types import Example

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "manifest.json"
COLUMNS = ("prompt", "completion", "answer", "id", "source", "meta")


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """The examples as a dataset with the columns prompt, completion, answer, id, source, meta, and images if any.

    Images are embedded, and `datasets` alone reads them as PIL images.
    """
    from mmreason.data.schema import to_dataset

    if any("images" in example for example in examples):
        return to_dataset(examples, (*COLUMNS, "images"), decode_images=True)
    return to_dataset(examples, COLUMNS)


def write_set(
    out: Path,
    parts: Mapping[str, Sequence[Example]],
    *,
    builder: str,
    version: int,
    arguments: Mapping[str, object],
    told: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Write SPLIT.parquet for each part and manifest.json into `out`; returns the manifest.

    Each file is written beside its place and then moved there, so a broken run leaves no half file; the manifest is
    written last. Files that only an earlier build of the same builder had are removed: their rows may be in the new
    train split. `told` is what else the manifest tells of the set. Raises: OSError (no permission, disk full).
    """
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, object]] = {}
    for split, examples in parts.items():
        path = out / f"{split}.parquet"
        write_parquet(as_dataset(examples), path)
        files[path.name] = {"rows": len(examples), "sha256": file_digest(path), "bytes": path.stat().st_size}
    earlier = read_manifest(out)
    if earlier is not None and earlier.get("builder") == builder:
        for name in set(earlier.get("files", ())) - set(files):
            (out / name).unlink(missing_ok=True)
    manifest: dict[str, object] = {
        "builder": builder,
        "builder_version": version,
        "arguments": dict(arguments),
        "files": files,
        **(told or {}),
        "versions": library_versions(),
    }
    write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as the manifest records it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_parquet(dataset: Dataset, path: Path) -> None:
    """Write a dataset as one file, whole or not at all. Raises: OSError (no permission, disk full)."""
    import datasets

    # Into memory first: pyarrow's writer aborts the whole process when the disk under its file is full.
    buffer = io.BytesIO()
    bars_were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # a bar for a blink is noise
    try:
        dataset.to_parquet(buffer)
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
    write_whole(path, buffer.getbuffer())


def library_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a file."""
    from importlib.metadata import version

    return {"python": sys.version.split()[0]} | {name: version(name) for name in ("datasets", "pyarrow")}
