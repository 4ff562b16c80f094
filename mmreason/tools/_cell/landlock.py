"""Landlock: this process and its children see only the files they are given (Linux 5.13 and later)."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence

from mmreason.tools._cell.system import syscall

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BASE = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    try:
        return syscall("landlock_create_ruleset", _CREATE, None, 0, _VERSION)
    except OSError:
        return 0


def restrict(readable: Sequence[str], writable: Sequence[str], abi: int) -> None:
    """Refuse every file but those below `readable` and `writable`, TCP, and signals and abstract sockets to outside.

    Args:
        readable: files and folders that may be read.
        writable: files and folders that may be read and written; device files are never made.
        abi: `version()`: what the kernel can't refuse is left to the other walls.

    Raises:
        OSError: the kernel refuses.
    """
    handled = _BASE | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    network = 0b11 if abi >= 4 else 0  # bind and connect of TCP
    scoped = 0b11 if abi >= 6 else 0  # abstract unix sockets, signals
    words = (handled, network, scoped)[: 1 if abi < 4 else 2 if abi < 6 else 3]
    attributes = ctypes.create_string_buffer(b"".join(word.to_bytes(8, "little") for word in words), 8 * len(words))
    ruleset = syscall("landlock_create_ruleset", _CREATE, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, (_READ_FILE | _READ_DIR) & handled)
        for path in writable:
            _allow(ruleset, path, handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV))
        syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + beneath.to_bytes(4, "little"), 12)
        syscall("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(beneath)
