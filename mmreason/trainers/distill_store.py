"""A teacher's likeliest tokens for every supervised token of a set of rows, in checksummed files.

    FOLDER/manifest.json      what they were made of, and the SHA-256 of each file
    FOLDER/000000.npz         rows 0 to PART_ROWS - 1: starts, ids, logps, label_logps (zip, deflate)

Probabilities are over the whole vocabulary at the run's temperature, so that what the k tokens leave is exact. A kill
costs the part that was being computed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mmreason._files import write_whole
from mmreason.types import ConfigError, DataError

PART_ROWS = 256
"""Rows of one file."""
MANIFEST = "manifest.json"
_FORM = "mmreason-top-k-1"
_WHAT = {
    "teacher": "of another teacher",
    "tokenizer": "with another tokenizer",
    "data": "for other rows",
    "k": "with another top_k",
    "temperature": "at another temperature",
}


@dataclass(frozen=True)
class RowLogps:
    """Of one row's n supervised tokens: ids (n, k) int32, logps (n, k) and label_logps (n,) float32, nats."""

    ids: np.ndarray[Any, Any]
    logps: np.ndarray[Any, Any]
    label_logps: np.ndarray[Any, Any]


class TeacherStore:
    """Args:
    folder: of this teacher's files.
    key: "teacher", "tokenizer", "data", "k", "temperature": what the numbers depend on.
    rows: how many there are.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any], rows: int) -> None:
        self.folder, self.key, self.count = Path(folder), json.loads(json.dumps(dict(key))), rows
        self._parts: dict[int, list[RowLogps]] = {}

    @property
    def parts(self) -> list[range]:
        """The rows of each file."""
        return [range(start, min(start + PART_ROWS, self.count)) for start in range(0, self.count, PART_ROWS)]

    def check(self) -> None:
        """Raises: ConfigError where what lies there was made of something else, saying of what."""
        known = self._manifest()
        if known is None:
            return
        for name, told in _WHAT.items():
            there, now = known["key"].get(name), self.key.get(name)
            if there != now and (name != "teacher" or now is not None):  # read without its teacher
                raise ConfigError(
                    f"{self.folder}: these log-probabilities were made {told} ({_short(there)} there, {_short(now)} "
                    "now). Name another folder with teacher_store, or delete this one to have them made anew"
                )

    def missing(self) -> list[range]:
        """Parts without a whole file."""
        known = self._manifest() or {"files": {}}
        return [part for part in self.parts if not self._is_whole(part, known["files"])]

    def write(self, part: range, rows: Sequence[RowLogps]) -> None:
        """Keep a part; what was written before stays whole whenever this is killed. By one process."""
        buffer = io.BytesIO()
        starts = np.cumsum([0, *(len(row.label_logps) for row in rows)])
        np.savez_compressed(
            buffer,
            starts=starts.astype(np.int64),
            ids=np.concatenate([row.ids for row in rows]).astype(np.int32),
            logps=np.concatenate([row.logps for row in rows]).astype(np.float32),
            label_logps=np.concatenate([row.label_logps for row in rows]).astype(np.float32),
        )
        content = buffer.getvalue()
        write_whole(self._path(part), content)
        known = self._manifest() or {"form": _FORM, "key": self.key, "files": {}}
        known["files"][self._path(part).name] = hashlib.sha256(content).hexdigest()
        write_whole(self.folder / MANIFEST, json.dumps(known, indent=1))

    def __getitem__(self, row: int) -> RowLogps:
        """Raises: DataError where the file is missing or damaged, naming it."""
        number = row // PART_ROWS
        if number not in self._parts:
            self._parts[number] = self._read(self.parts[number])
        return self._parts[number][row - number * PART_ROWS]

    def _read(self, part: range) -> list[RowLogps]:
        path = self._path(part)
        known = self._manifest() or {"files": {}}
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != known["files"].get(path.name):
                raise ValueError("its checksum is not the manifest's")
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                starts, ids, logps, labels = (found[name] for name in ("starts", "ids", "logps", "label_logps"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: the teacher's log-probabilities can't be read ({error}). Delete the file and run the same "
                "command to have them made again",
                reason="logprobs",
            ) from error
        spans = [slice(start, end) for start, end in pairwise(starts)]
        return [RowLogps(ids[span], logps[span], labels[span]) for span in spans]

    def fill(
        self, compute: Callable[[range], Sequence[RowLogps]] | None, *, is_main: bool, broadcast: Callable[[Any], Any]
    ) -> None:
        """Have every part. Collective.

        Args: compute: a part's rows, on all processes; None where the teacher isn't at hand.
            broadcast: the main process's value for all.
        Raises: ConfigError: parts are missing and there is no teacher, or see `check`.
        """
        from tqdm.auto import tqdm

        if is_main:
            self.check()
        missing: list[range] = broadcast(self.missing() if is_main else [])
        if missing and compute is None:
            raise ConfigError(
                f"{self.folder}: the teacher's log-probabilities of {len(missing)} of {len(self.parts)} parts are "
                "missing; name the teacher that they are to be made with"
            )
        for part in tqdm(missing, desc="teacher's log-probs", unit="part", disable=not is_main or not missing):
            assert compute is not None
            rows = compute(part)
            if is_main:
                self.write(part, rows)
        broadcast(None)  # nobody reads before all is written

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["form"] != _FORM:
                raise ValueError(f"form {found['form']}, not {_FORM}")
            return {"form": _FORM, "key": dict(found["key"]), "files": dict(found["files"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: these are not this run's log-probabilities ({error}). Name another folder with "
                "teacher_store, or delete this one to have them made anew"
            ) from error

    def _is_whole(self, part: range, files: Mapping[str, str]) -> bool:
        path = self._path(part)
        return path.is_file() and files.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()

    def _path(self, part: range) -> Path:
        return self.folder / f"{part.start // PART_ROWS:06d}.npz"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:12]


def rows_digest(rows: Any) -> str:
    """SHA-256 of the tokens and weights of supervised rows; pictures count by the tokens that they take."""
    found = hashlib.sha256()
    for index in range(len(rows)):
        row = rows.without_images(index)
        found.update(array("q", [len(row.ids), *row.ids]).tobytes())
        found.update(array("f", row.weights).tobytes())
    return found.hexdigest()
