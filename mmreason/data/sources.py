"""From what a user gives (hub id, file, folder; split with a slice) to rows with their places."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmreason._files import nearest_path
from mmreason.data.reader import READERS, Located, read_rows, stem_of, suffix_of
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT = re.compile(r"(?P<name>[\w][\w.\-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_HUB_ID = re.compile(r"(?P<path>[\w][\w.\-]*(?:/[\w][\w.\-]*)?)(?::(?P<config>[\w.\-]+))?")
_SHARD = re.compile(r"[-_.](\d+)(?:-of-(\d+))?")
ALIASES: tuple[tuple[str, ...], ...] = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing"),
)
"""Names of a split that mean the same when files are looked for."""


@dataclass(frozen=True, slots=True)
class Split:
    """``train``, ``test[:100]``, ``train[10%:20%]``: a name and an optional slice, as in `datasets`."""

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def needs_length(self) -> bool:
        """Do the bounds depend on the number of rows (percent or counted from the end)?"""
        return any(
            bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in (self.start, self.stop)
        )

    def bounds(self, rows: int) -> tuple[int, int]:
        """(first, after last) row of the slice in a set of `rows` rows. Percents are rounded to the nearest row."""

        def place(bound: str | None, default: int) -> int:
            if bound is None:
                return default
            value = round(rows * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
            return min(max(value + rows if value < 0 else value, 0), rows)

        return place(self.start, 0), place(self.stop, rows)

    def __str__(self) -> str:
        sliced = self.start is not None or self.stop is not None
        return self.name + (f"[{self.start or ''}:{self.stop or ''}]" if sliced else "")


def parse_split(text: str) -> Split:
    """ "train[:100]" -> Split. Raises ConfigError, also for "train+test" (give one split, or write one file)."""
    match = _SPLIT.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"split {text!r} is not of the form name, name[:100], name[10:20] or name[:10%]")
    return Split(match["name"], match["start"], match["stop"])


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows come from.

    Attributes:
        name: short name for the ``source`` column of rows that no known format claims.
        split_name: part of generated ids.
        files: local files in order; empty for a hub set.
        hub: (dataset id, config) for a hub set.
        folder: the folder that was given, None for a file or a hub set.
    """

    name: str
    split_name: str
    files: tuple[Path, ...] = ()
    hub: tuple[str, str | None] | None = None
    folder: Path | None = None

    def image_roots(self) -> tuple[Path, ...]:
        """The folders outside which no image of the rows may lie: where the files are, or the hub's caches."""
        if self.hub is not None:
            from datasets import config
            from huggingface_hub import constants

            return Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)
        parents = tuple(dict.fromkeys(file.parent for file in self.files))
        return parents if self.folder is None else (*parents, self.folder)

    def rows(self, split: Split) -> Iterator[Located]:
        """All rows of the split, unsliced."""
        if self.hub is not None:
            return _hub_rows(*self.hub, split.name)
        return itertools.chain.from_iterable(read_rows(path, split.name) for path in self.files)


def resolve(source: str, split: Split) -> Source:
    """Find out what `source` is. Raises DataError for what does not exist, naming the nearest thing that does."""
    if not source.strip():
        raise ConfigError("the dataset's name is empty: give a hub id, a file or a folder")
    path = Path(source).expanduser()
    if path.is_file():
        return Source(stem_of(path), stem_of(path), (path,))
    if path.is_dir():
        return Source(path.resolve().name, split.name, tuple(find_split(path, split.name)), folder=path)
    match = _HUB_ID.fullmatch(source)
    # A name under a folder that exists here is a mistyped path, not worth a minute of asking the hub.
    if match is None or source[0] in ".~" or suffix_of(path) is not None or ("/" in source and path.parent.is_dir()):
        raise DataError(f"{source}: no such file or folder{nearest_path(path)}", path=source, reason="missing_path")
    return Source(match["path"], split.name, hub=(match["path"], match["config"]))


def find_split(folder: Path, name: str) -> list[Path]:
    """Files of one split in a folder: ``train.jsonl``, ``train-00000-of-00003.parquet`` ..., also under ``data/``.

    A folder with a single data file that carries no split's name holds "train". Raises DataError.
    """
    places = [folder, folder / "data", folder / name]
    listing = {place: _data_files(place, name) for place in places if place.is_dir()}
    for place, files in listing.items():
        found = files if place == folder / name else [file for file in files if _is_split(file, name)]
        if found:
            return _one_kind(found, name)
    top = listing[folder]
    if len(top) == 1 and name == "train" and not any(_is_split(top[0], other) for group in ALIASES for other in group):
        return top
    kinds = f"{', '.join(READERS)}; .gz"
    looked = f"{name}.* or {name}-00000-of-0000N.* ({kinds}) in {', '.join(str(place) for place in places)}"
    there = sorted(file.name for files in listing.values() for file in files)
    close = difflib.get_close_matches(name, sorted({stem_of(Path(file)) for file in there}), n=1, cutoff=0.6)
    hint = f" Did you mean split {close[0]!r}?" if close else ""
    held = f"It holds {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}." if there else "It holds no data files."
    raise DataError(
        f"{folder}: no split {name!r}: looked for {looked}. {held}{hint}", path=folder, reason="missing_split"
    )


def _data_files(folder: Path, split: str) -> list[Path]:
    """Readable files. Text files are documents only where their name says so: others are READMEs and licences."""
    files = (entry for entry in folder.iterdir() if entry.is_file() and suffix_of(entry) and entry.name[0] not in "._")
    return sorted(file for file in files if suffix_of(file) != ".txt" or _is_split(file, split))


def _is_split(path: Path, name: str) -> bool:
    names = next((group for group in ALIASES if name in group), (name,))
    stem = stem_of(path)
    return any(
        stem == candidate or (stem.startswith(candidate) and _SHARD.fullmatch(stem[len(candidate) :]))
        for candidate in names
    )


def _one_kind(files: list[Path], name: str) -> list[Path]:
    """Shards of one split, complete and of one kind, or a DataError."""
    folder = files[0].parent
    stems = [stem_of(file) for file in files]
    if len(set(stems)) < len(stems) or len({suffix_of(file) for file in files}) > 1:
        listed = ", ".join(file.name for file in files)
        raise DataError(
            f"{folder}: split {name!r} is there more than once: {listed}. Name the file to use", path=folder
        )
    shards = [match for match in (re.search(r"-(\d+)-of-(\d+)$", stem) for stem in stems) if match]
    if shards:
        missing = set(range(int(shards[0][2]))) - {int(shard[1]) for shard in shards}
        if missing:
            gaps = ", ".join(f"{number:05d}" for number in sorted(missing)[:5])
            raise DataError(f"{folder}: split {name!r} lacks shard {gaps} of {int(shards[0][2])}", path=folder)
    return files


def _hub_rows(path: str, config: str | None, split: str) -> Iterator[Located]:
    """Rows of a hub set through `datasets`; every way in which that fails becomes a DataError naming the set."""
    import datasets

    label = path + (f":{config}" if config else "")
    try:
        dataset = datasets.load_dataset(path, config, split=split)
    except ValueError as error:
        text = str(error).splitlines()[0]
        if "split" in text.lower():
            raise DataError(f"{label}: no split {split!r}: {text}", path=label, reason="missing_split") from error
        raise DataError(f"{label}: {text} (a config is given as {path}:NAME)", path=label) from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        close = difflib.get_close_matches(path, [entry.name for entry in Path().iterdir()], n=1, cutoff=0.6)
        hint = f". Did you mean the local {close[0]}?" if close else ""
        raise DataError(
            f"{label}: neither a local file or folder nor loadable from the hub: {text}{hint}",
            path=label,
            reason="missing_path",
        ) from error
    for number, row in enumerate(undecoded(dataset)):
        yield Located(f"{label}[{split}] row {number}", row)


def undecoded(dataset: Dataset) -> Dataset:
    """The dataset with its image columns as they are stored, so that reading a row decodes no image."""
    from datasets import Image, List

    for name, feature in dataset.features.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image) and feature.feature.decode:
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset
