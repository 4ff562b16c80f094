"""The Linux calls that Python's standard library lacks, through libc."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal

CLONE_THREAD = 0x00010000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4

MACHINE = platform.machine()
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(MACHINE, -1)
_CAPSET = {"x86_64": 126, "aarch64": 91}.get(MACHINE, -1)
_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a libc call. Raises OSError with errno where it is negative."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by number. Raises OSError."""
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(int(_libc.syscall(ctypes.c_long(number), *given)), what)


def prctl(what: str, option: int, *arguments: int) -> int:
    """Raises OSError."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return checked(int(_libc.prctl(ctypes.c_int(option), *padded)), what)


def unshare(flags: int) -> None:
    """New namespaces for this process (CLONE_NEWPID: for its next child)."""
    checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    texts = [value.encode() if value is not None else None for value in (source, target, kind)]
    checked(_libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def make_read_only(target: str, *, device: bool = False) -> None:
    """Make a bind mount and all mounts below it read-only, without set-user-id programs and, but for that of a
    `device`, without devices. A device can still be written to; its mode, owner and times can't be changed."""
    wanted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | (0 if device else _MOUNT_ATTR_NODEV)
    attributes = ctypes.create_string_buffer(wanted.to_bytes(8, "little") + bytes(24), 32)
    try:
        syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, 32)
    except OSError:  # before Linux 5.12, or refused by a container's own filter: the top mount alone
        locked = os.statvfs(target).f_flag & (MS_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)
        flags = MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV)
        mount(None, target, None, MS_REMOUNT | MS_BIND | flags | locked)


def pivot_root(new: str) -> None:
    """Make `new`, a mount point, the root directory, and let go of the old one."""
    os.chdir(new)
    syscall("pivot_root", _PIVOT_ROOT, b".", b".")
    checked(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount the old root")
    os.chdir("/")


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that forked it ends."""
    prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Children of this process's children become its own when their parent ends."""
    prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(value: bool) -> None:
    """Whether /proc/self belongs to this process (it stops so when the user id changes)."""
    prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(value))


def no_new_privileges() -> None:
    """No program that is started gains rights. Also what lets an unprivileged process set a seccomp filter."""
    prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability for good."""
    for capability in range(64):
        try:
            prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one the kernel knows, or not ours to drop from the bounding set
            break
    with contextlib.suppress(OSError):  # a kernel without ambient capabilities
        prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(_CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4), 8)
    nothing = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: two 32-bit words each
    syscall("capset", _CAPSET, header, nothing)
