"""No row of a built set may hold a question of a test set: which sets, from where, and the index over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.building.shards import can_write
from mmreason._files import write_whole
from mmreason.types import ConfigError, DataError, Example

if TYPE_CHECKING:
    from mmreason.data.overlap import Hit, OverlapIndex

BENCHMARKS: dict[str, tuple[str, str]] = {
    "gsm8k": ("openai/gsm8k:main", "test"),
    "math_500": ("HuggingFaceH4/MATH-500", "test"),
    "aime_2024": ("HuggingFaceH4/aime_2024", "train"),
    "svamp": ("ChilleD/SVAMP", "test"),
    "aqua": ("deepmind/aqua_rat:raw", "test"),
    "mmlu": ("cais/mmlu:all", "test"),
    "arc_easy": ("allenai/ai2_arc:ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc:ARC-Challenge", "test"),
    "commonsense_qa": ("tau/commonsense_qa", "validation"),
    "scienceqa": ("derek-thomas/ScienceQA", "test"),
    "humaneval": ("openai/openai_humaneval", "test"),
    "mbpp": ("google-research-datasets/mbpp:full", "test"),
}
"""The test sets that are kept out by default: name -> (hub id, split)."""

MIN_SHARE = 0.9
"""See `mmreason.data.overlap.Hit.share`."""


def named_sets(given: Sequence[str] | None) -> dict[str, tuple[str, str]]:
    """Name -> (path or hub id, split) of what `--decontaminate` says: NAME=PATH#SPLIT, name and split optional.

    Raises: ConfigError: a name twice.
    """
    if given is None:
        return dict(BENCHMARKS)
    sets: dict[str, tuple[str, str]] = {}
    for text in given:
        head, equals, tail = text.partition("=")
        name, place = (head, tail) if equals else (text, text)
        if not equals and text in BENCHMARKS and not Path(text).exists():
            place = "#".join(BENCHMARKS[text])
        source, _, split = place.partition("#")
        if not name.strip() or not source.strip():
            raise ConfigError(f"--decontaminate {text!r}: expected PATH or NAME=PATH, perhaps with #SPLIT behind it")
        if name in sets:
            raise ConfigError(f"--decontaminate: two sets are called {name!r}; give each its own NAME=PATH")
        sets[name] = (source, split or "test")
    return sets


class Decontaminator:
    """Looks for test items in rows. Args: index: None for no test sets."""

    def __init__(self, index: OverlapIndex | None) -> None:
        self._index = index

    @property
    def sets(self) -> list[dict[str, Any]]:
        """The test sets, for the manifest."""
        return [] if self._index is None else [asdict(one) for one in self._index.sets]

    def find(self, rows: Sequence[Example]) -> list[Hit | None]:
        """Of each row the test item that stands in it. Raises: DataError naming a row without any text."""
        if self._index is None or not rows:
            return [None] * len(rows)
        from mmreason.data.overlap import row_text

        texts = []
        for row in rows:
            try:
                texts.append(row_text(row))
            except DataError as error:
                raise DataError(f"row {row.get('id')!r}: {error}", row=str(row.get("id"))) from None
        return self._index.find(texts, min_share=MIN_SHARE)


def load_decontaminator(given: Sequence[str] | None, cache: Path | None) -> Decontaminator:
    """The index over the sets that are asked for.

    Args:
        given: of the option; None for the benchmarks.
        cache: folder in which the index is kept, so that a run that goes on needs no hub; None keeps it nowhere.

    Raises: ConfigError: a set can't be had.
    """
    from mmreason.data.overlap import OverlapIndex

    sets = named_sets(given)
    if not sets:
        return Decontaminator(None)
    wanted = {name: [source, split, _file_digest(source)] for name, (source, split) in sets.items()}
    paths = None if cache is None else (cache / "test_sets.json", cache / "test_sets.safetensors")
    if paths is not None and paths[1].is_file() and _read(paths[0]) == wanted:
        return Decontaminator(OverlapIndex.load(paths[1]))
    rows = {name: _rows(name, *place) for name, place in sets.items()}
    try:
        index = OverlapIndex.build(rows)
    except DataError as error:
        raise ConfigError(f"--decontaminate: {error}") from error
    if cache is not None and paths is not None:
        with can_write(cache.parent):
            paths[0].unlink(missing_ok=True)
            index.save(paths[1])
            write_whole(paths[0], json.dumps(wanted))
    return Decontaminator(index)


def _rows(name: str, source: str, split: str) -> list[Mapping[str, Any]]:
    from mmreason.data.formats.common import RowError
    from mmreason.data.sources import parse_split, resolve

    wanted = parse_split(split)
    try:
        found = []
        for where, row in resolve(source, wanted).rows(wanted):
            if isinstance(row, RowError):
                raise DataError(f"{where}: {row}", path=source, row=where)
            found.append(row)
    except DataError as error:
        raise ConfigError(
            f"the test set {name} ({source}, split {split}), whose questions are kept out of what is built, can't be "
            f"read: {error}\nGive local copies of the sets that matter with --decontaminate NAME=PATH ..., or none "
            "with --decontaminate '[]'"
        ) from error
    return found


def existing(text: str) -> Path | None:
    """The file or folder that a text names; None where it names none, or is no path at all (too long, `~nobody/`)."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _file_digest(source: str) -> str | None:
    """Of a local file's bytes or of a folder's names, sizes and times; None for a hub id."""
    path = existing(source)
    if path is None:
        return None
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    seen = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.rglob("*"))]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
