"""A scratch folder without a size of its own: what lies in it is measured, and removed when its program has ended.

The program may try that neither works: folders that can't be read or are too deep for a path, files without a name.
"""

from __future__ import annotations

import contextlib
import os

WRITES = 16
"""How many times what its folder may hold a program may write in all. Files that it has opened and removed, or has only
mapped, can't be seen, but that they were written can."""


def overfull(folder: str, pid: int, most: int) -> bool:
    """Whether a program has more in its folder, or wrote much more, than `most` bytes.

    What can't be measured counts as too much: no program in good faith takes its own right to read a folder, or nests
    folders deeper than a path can name.
    """
    return _written(pid) > most * WRITES or _larger(folder, most)


def _larger(folder: str, most: int) -> bool:
    """Whether what lies below a folder, with 4 kB for each entry, is more than `most` bytes."""
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # it changes while it is read
                        status = entry.stat(follow_symlinks=False)
                        most -= 4096 + max(status.st_size, status.st_blocks * 512)
                    if most < 0:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return True
    return False


def _written(pid: int) -> int:
    """Bytes that a process has written, to files and pipes, by calls or through memory; 0 where nothing tells."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            counts = dict(line.split(b": ") for line in file)
    except OSError:  # no /proc in bubblewrap, whose folder has a size; no such count in this kernel; it has just ended
        return 0
    return max(int(counts.get(b"wchar", 0)), int(counts.get(b"write_bytes", 0)))


def remove(folder: str) -> None:
    """Remove a folder whatever lies in it; moves this process's working directory.

    One step down at a time: neither the length of a path nor the depth of a recursion nor the number of open files
    limits how deep it may be. Nobody else changes it any more.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)
        levels = [_empty()]
        names: list[str] = []
        while levels:
            if levels[-1]:
                names.append(levels[-1].pop())
                os.chmod(names[-1], 0o700)
                os.chdir(names[-1])
                levels.append(_empty())
            else:
                levels.pop()
                os.chdir("..")
                if names:
                    with contextlib.suppress(OSError):
                        os.rmdir(names.pop())
        os.rmdir(folder)


def _empty() -> list[str]:
    """Remove what can be removed from the working directory; the folders that are left."""
    left = []
    with os.scandir(".") as entries:
        for entry in list(entries):
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name)
                    continue
                try:
                    os.rmdir(entry.name)
                except OSError:
                    left.append(entry.name)
    return left
