"""The sources of a corpus: their files, what an inspection of each found, and what the manifest says of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders._corpus.files import Inspected, RawFile, find_files, inspect_file
from data_builders._corpus.pipeline import Places, Stage
from data_builders.building.build import SourceNote
from data_builders.building.sources import local_license
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from data_builders.corpus import CorpusOptions

INSPECT = "inspect"


def named_files(given: Sequence[str]) -> dict[str, list[RawFile]]:
    """Source name -> its files, of `[NAME=]PATH` words.

    Raises: ConfigError: a name twice, a file in two sources, no files.
    """
    found: dict[str, list[RawFile]] = {}
    owners: dict[str, str] = {}
    for word in given:
        head, equals, tail = word.partition("=")
        name, place = (head, tail) if equals and not Path(word).exists() else (_name(word), word)
        if not name or not place:
            raise ConfigError(f"--source {word!r}: expected PATH or NAME=PATH")
        if name in found:
            raise ConfigError(f"--source: two sources are called {name!r}; give each its own NAME=PATH")
        found[name] = find_files(name, place)
        for file in found[name]:
            if file.path in owners:
                raise ConfigError(f"--source: {file.path} belongs to both {owners[file.path]!r} and {name!r}")
            owners[file.path] = name
    return found


def _name(place: str) -> str:
    name = Path(place).name
    for ending in (".gz", ".zst"):
        name = name.removesuffix(ending)
    return Path(name).stem if Path(place).suffix else name


def inspect_files(
    files: Sequence[RawFile], options: CorpusOptions, places: Places | None, run: Callable[[Stage], None]
) -> list[Inspected]:
    """What each file holds: read through by datatrove, a file a task, unless it is known from an earlier run.

    Args: places: None reads here and keeps nothing.
    Raises: DataError: documents that can't be used, under on_bad_row=error.
    """
    if places is None:
        found = [inspect_file(file, options.reading()) for file in files]
    else:
        folder = places.work(INSPECT)
        _forget_changed(files, options, places)
        from data_builders._corpus.steps import Inspect

        run(Stage(INSPECT, len(files), lambda: [Inspect(list(files), options.reading(), folder)]))
        held = [json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8")) for rank in range(len(files))]
        found = [Inspected(one["rows"], one["sha256"], Counter(one["faults"]), one["shown"]) for one in held]
    faulty = [one for one in found if one.faults]
    if faulty and options.on_bad_row == "error":
        first = "\n  ".join(faulty[0].shown)
        count = sum(one.faults.total() for one in faulty)
        raise DataError(
            f"{count} documents in {len(faulty)} files can't be used, the first ones:\n  {first}\nPut them right, name "
            "the text's field with --text_key, or leave such documents out with --on_bad_row drop",
            reason=next(iter(faulty[0].faults)),
        )
    if not sum(one.rows for one in found):
        raise DataError(f"{', '.join(options.source)}: no documents", reason="empty")
    return found


def _forget_changed(files: Sequence[RawFile], options: CorpusOptions, places: Places) -> None:
    """Files whose size or time has changed since they were inspected are inspected again."""
    told = [[file.path, Path(file.path).stat().st_size, Path(file.path).stat().st_mtime_ns] for file in files]
    record = places.work(INSPECT) / "files.json"
    text = json.dumps([told, repr(options.reading())])
    if record.is_file() and record.read_text(encoding="utf-8") == text:
        return
    for mark in (places.stage(INSPECT) / "completions").glob("*"):
        mark.unlink()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(text, encoding="utf-8")


def has_pages(files: Sequence[RawFile]) -> bool:
    """Whether there may be web pages among the documents: only WARC files hold them as such."""
    return any(file.form == "warc" for file in files)


def make_notes(sources: dict[str, list[RawFile]], given: Sequence[str], found: Sequence[Inspected]) -> list[SourceNote]:
    """A note for each source: of one file its digest, of more the digest of theirs.

    Args: given: the words that name the sources. found: of all files, in order.
    """
    notes = []
    rest = iter(found)
    for word, files in zip(given, sources.values(), strict=True):
        parts = [next(rest) for _ in files]
        digest = parts[0].sha256
        if len(parts) > 1:
            digest = hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest()
        rows = sum(part.rows for part in parts)
        notes.append(SourceNote(word, rows, digest, license=local_license(Path(files[0].path).parent)))
    return notes
