"""Files that are written whole: a reader sees the old file or all of the new one, also after a kill or a full disk."""

from __future__ import annotations

import contextlib
import os
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
