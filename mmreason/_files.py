"""Files written whole: a reader sees the old one or all of the new one, also after a kill; and the paths meant."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place once the block is through, and leaves nothing where it isn't.

    Its folder is made if missing; the data is on the disk before the name is.

    Raises: OSError: it can't be written; an earlier file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes | bytearray | memoryview | str) -> None:
    """Write a file, see `whole_file`; text as UTF-8."""
    with whole_file(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder that takes `path`'s place once the block is through, and leaves nothing where it isn't.

    Args: replace: a folder that is there already is removed once the new one is complete.

    Raises: OSError: it can't be written, or there is something of that name and `replace` isn't set.
    """
    writing, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        yield writing
        if replace and path.exists():
            path.rename(old)
        try:
            writing.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(writing, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def nearest_path(path: Path) -> str:
    """' Did you mean ...?' with the existing entry that looks most like the first missing part of `path`."""
    parent = path
    while not parent.exists() and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    if not parent.is_dir():
        return ""
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:  # a folder that may not be listed can't help; the missing path is still named
        return ""
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    if close:
        return f". Did you mean {parent / close[0]}?"
    return f". {parent} exists, and holds: {', '.join(sorted(names)[:8]) or 'nothing'}"
