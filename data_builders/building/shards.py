"""The output folder of a builder: parquet shards, a journal entry for each, and a lock.

    out/train-00000.parquet     rows of the tasks 0 to 999
    out/.build/config.json      what the rows depend on
    out/.build/00000.json       journal entry: counts, drops, costs, the file's SHA-256
    out/.build/lock             held by the process that builds

A shard is moved to its place whole, then its entry is. So an entry without its file is damage, and a file without an
entry is what a kill left behind: it is made again. An entry names its predecessor by hash: where an earlier shard
was made again with other rows, the later ones, whose rows were compared with them, are known to be old.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_builders.building.counts import Counts
from data_builders.building.writing import MANIFEST, file_digest, write_parquet
from mmreason._files import write_whole
from mmreason.types import ConfigError, DataError, Example

BUILD = ".build"
CARD = "README.md"
REPORT = "report.html"
_ENTRY_DIGITS = 5


@dataclass(frozen=True)
class Entry:
    """A shard's journal entry.

    Attributes:
        number: of the shard; its tasks begin at number * tasks_per_shard.
        ids: digest of the ids of its tasks.
        rows_of: kept rows of each of its tasks.
        complete: False where a task failed or was not reached: the shard is to be made again.
        ended: whether the plan ended with this shard.
        file: name, sha256, bytes, rows; None for a shard without rows.
        counts: see `Counts`.
        after: hash of the entry before.
    """

    number: int
    ids: str
    rows_of: list[int]
    complete: bool
    ended: bool
    file: dict[str, Any] | None
    counts: dict[str, Any]
    after: str

    @property
    def hash(self) -> str:
        """What the next entry refers to: everything that later rows may depend on."""
        held = (self.after, self.number, self.ids, self.rows_of, None if self.file is None else self.file["sha256"])
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()


@contextlib.contextmanager
def can_write(folder: Path) -> Iterator[None]:
    """For what is written before a run begins. Raises: ConfigError where the block raises an OSError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: {error.strerror or error}; make room or give permission there, or use another folder"
        ) from error


def digest_ids(ids: Sequence[str]) -> str:
    """One hash of many ids."""
    return hashlib.sha256(json.dumps(list(ids)).encode("utf-8", "surrogatepass")).hexdigest()


class ShardStore:
    """The shards of one split in a folder.

    Args:
        columns: of the parquet files.
    """

    def __init__(self, folder: Path, split: str, tasks_per_shard: int, columns: Sequence[str]) -> None:
        self.folder, self.split, self.size, self.columns = folder, split, tasks_per_shard, tuple(columns)
        self.journal = folder / BUILD
        self.entries: list[Entry] = []

    # ----------------------------------------------------------------------------------------------------------------
    # Whose folder is it?

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone; the system lets go of the lock however the process ends.

        Raises: ConfigError: another process builds there, or no folder can be.
        """
        with can_write(self.folder):
            self.journal.mkdir(parents=True, exist_ok=True)
            file = (self.journal / "lock").open("ab+", buffering=0)  # so that closing has nothing left to write
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConfigError(
                    f"--out {self.folder}: another process{file.read().decode()} builds there; wait for it, or use "
                    "another folder (several processes may share one --ledger)"
                ) from None
            with can_write(self.folder):
                for name in (f"{self.split}-", MANIFEST, CARD, REPORT):  # left there by a run that was killed
                    for left in self.folder.glob(f".{glob.escape(name)}*.tmp"):
                        left.unlink(missing_ok=True)
                for left in self.journal.glob(".*.tmp"):
                    left.unlink(missing_ok=True)
                file.truncate(0)
                file.write(f" ({os.getpid()})".encode())
            yield

    def check(self, identity: Mapping[str, Any]) -> None:
        """Is what the folder holds of the same making?

        Args: identity: what the rows depend on, as plain values.
        Raises: ConfigError naming what differs, or for files of something else.
        """
        path = self.journal / "config.json"
        if not path.is_file():
            foreign = [name for name in (MANIFEST, CARD) if (self.folder / name).exists()]
            foreign += sorted(file.name for file in self.folder.glob("*.parquet"))
            if foreign:
                raise ConfigError(
                    f"--out {self.folder} holds files of something else ({', '.join(foreign[:4])}): use another "
                    "folder, or delete them"
                )
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read ({error}): use another --out, or delete {self.folder}") from None
        differing = differences(held, json.loads(json.dumps(identity)))
        if differing and any(self.journal.glob("[0-9]*.json")):
            raise ConfigError(
                f"another config's manifest in the output folder {self.folder}: use another --out, or delete it. "
                f"It differs in {'; '.join(differing)}"
            )

    def record(self, identity: Mapping[str, Any]) -> None:
        """Write down what the rows depend on. Raises: OSError."""
        write_whole(self.journal / "config.json", json.dumps(identity, indent=1) + "\n")

    # ----------------------------------------------------------------------------------------------------------------
    # The journal

    def load(self, limit: int | None) -> list[Entry]:
        """The entries of the shards that need not be made again, from the first on; `entries` has all of them.

        Raises: ConfigError: a limit below what is there. DataError: a damaged entry or file.
        """
        paths = sorted(self.journal.glob("[0-9]*.json"))
        self.entries = [self._read_entry(path) for path in paths]
        done = sum(len(entry.rows_of) for entry in self.entries)
        if limit is not None and limit < done:
            raise ConfigError(f"--limit {limit}: {self.folder} holds {done} tasks already; use another --out for fewer")
        finished, after = list[Entry](), ""
        for number, entry in enumerate(self.entries):
            tasks = number * self.size + len(entry.rows_of)
            whole = len(entry.rows_of) == self.size or entry.ended or tasks == limit
            if entry.number != number or entry.after != after or not entry.complete or not whole:
                break
            finished.append(entry)
            after = entry.hash
        return finished

    def _read_entry(self, path: Path) -> Entry:
        try:
            entry = Entry(**json.loads(path.read_text(encoding="utf-8")))
            Counts.of_json(entry.counts)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: the journal entry is damaged ({error}); delete it to have the shard made again",
                            path=path) from None  # fmt: skip
        return entry

    def read(self, entry: Entry) -> list[list[Example]]:
        """The kept rows of each task of a finished shard.

        Raises: DataError: the file is missing, or not the one that was written.
        """
        rows = iter(self._rows(entry.file) if entry.file is not None else ())
        return [[next(rows) for _ in range(count)] for count in entry.rows_of]

    def _rows(self, file: Mapping[str, Any]) -> Iterator[Example]:
        from mmreason.data.reader import read_rows

        path = self.folder / file["name"]
        if not path.is_file() or file_digest(path) != file["sha256"]:
            number = path.stem.rpartition("-")[2]
            raise DataError(
                f"{path}: {'changed or damaged' if path.exists() else 'missing'}; put it back, or delete "
                f"{self.journal / number}.json to have it made again (replies in the ledger are not asked again)",
                path=path,
            )
        for _, row in read_rows(path):
            yield normalise(dict(row), self.columns)  # type: ignore[arg-type]

    def write(
        self, ids: Sequence[str], rows: Sequence[Sequence[Example]], counts: Counts, after: str,
        number: int, *, complete: bool, ended: bool,
    ) -> Entry:  # fmt: skip
        """Write a shard and its entry. rows: of each task. after: hash of the entry before. Raises: OSError."""
        flat = [row for part in rows for row in part]
        path = self.folder / f"{self.split}-{number:0{_ENTRY_DIGITS}d}.parquet"
        file = None
        if flat:
            write_parquet(self.dataset(flat), path)
            file = {
                "name": path.name, "rows": len(flat), "sha256": file_digest(path), "bytes": path.stat().st_size
            }  # fmt: skip
        else:
            path.unlink(missing_ok=True)
        entry = Entry(number, digest_ids(ids), list(map(len, rows)), complete, ended, file, counts.to_json(), after)
        write_whole(self._entry_path(number), json.dumps(asdict(entry)) + "\n")
        self.entries[number : number + 1] = [entry]
        return entry

    def dataset(self, rows: Sequence[Example]) -> Any:
        """The rows as a dataset whose images plain `datasets` reads as pictures."""
        from mmreason.data.schema import to_dataset

        plain = any(isinstance(row.get("prompt"), str) for row in rows)  # TRL's stepwise rows
        return to_dataset(rows, self.columns, plain_prompt=plain, decode_images=True)

    def prune(self, shards: int) -> None:
        """Remove what lies behind the last of so many shards: left by an earlier, longer run."""
        for entry in self.entries[shards:]:
            self._entry_path(entry.number).unlink(missing_ok=True)
            if entry.file is not None:
                (self.folder / entry.file["name"]).unlink(missing_ok=True)
        del self.entries[shards:]

    def _entry_path(self, number: int) -> Path:
        return self.journal / f"{number:0{_ENTRY_DIGITS}d}.json"


def normalise(row: Mapping[str, Any], columns: Sequence[str]) -> Example:
    """A row as its file will give it back: without what is None, lists for tuples, text for other keys.

    Raises: DataError: a value that JSON has no form for. UnicodeEncodeError: a text that UTF-8 has no form for.
    """
    kept = {name: value for name, value in row.items() if value is not None and not (name == "images" and not value)}
    images = kept.pop("images", None)
    try:
        text = json.dumps(kept, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"row {row.get('id')!r} holds what can't be written: {error}", row=str(row.get("id"))) from None
    plain: dict[str, Any] = json.loads(text.encode("utf-8"))
    if images is not None:
        plain["images"] = [dict(cell) for cell in images]
    return {name: plain[name] for name in columns if name in plain}  # type: ignore[return-value]


def differences(held: Any, now: Any, name: str = "") -> list[str]:
    """Where two settings differ, as "teacher.model ('a' there, 'b' here)"."""
    if isinstance(held, dict) and isinstance(now, dict):
        return [
            text
            for key in dict.fromkeys([*held, *now])
            for text in differences(held.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if held == now else [f"{name} ({_short(held)} there, {_short(now)} here)"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
