"""Namespaces and a root directory in which there is nothing but what Python needs to run.

Two stages. The cell goes through `enter` once: own user, mount, network, IPC, host name and process namespaces, a new
root made of read-only views of the library folders, no /proc, no /etc, no /home. Each program then gets `seclude`: a
process namespace and a scratch folder of its own, which end with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mmreason.tools._cell import system
from mmreason.tools._cell.system import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)

SCRATCH = "/scratch"
INSIDE_ID = 1000
"""User and group id of programs, as they see them."""
NOBODY = 65534
"""What root becomes before it makes the user namespace: the kernel doesn't count root's processes."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MOUNT_POINTS = ("/tmp", "/run", "/mnt", "/var", "/opt", "/home")


def library_folders(packages: Sequence[str]) -> list[str]:
    """The folders that a program may read: Python's own, those of the shared libraries, and `packages`.

    Args:
        packages: site-packages folders, for preloaded modules.
    """
    found = {os.path.realpath(os.path.dirname(os.__file__)), *map(os.path.realpath, packages)}
    found |= {os.path.realpath(path) for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.isdir(path)}
    if os.path.exists("/proc/self/maps"):  # not inside bubblewrap, which has shown only what was found outside
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # libpython and what it needs
            libraries = {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line and ".so" in line}
        found |= {os.path.realpath(os.path.dirname(path)) for path in libraries}
    outermost = [path for path in found if not any(path.startswith(other + "/") for other in found)]
    return sorted(path for path in outermost if os.path.isdir(path))


def enter(folders: Sequence[str]) -> None:
    """Enclose this process: namespaces and root. Its next child is the first of the new process namespace.

    Args:
        folders: `library_folders`.

    Raises:
        OSError: the kernel, a container's filter or a policy doesn't allow it.
    """
    sources = {path: path for path in folders}
    base = next((path for path in _MOUNT_POINTS if os.path.isdir(path) and not os.path.islink(path)), None)
    if base is None:
        raise OSError(2, f"none of {', '.join(_MOUNT_POINTS)} is there to mount on")
    if os.geteuid() == 0:
        sources, base = _stage(folders, base)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        system.set_dumpable(True)  # else /proc/self/uid_map is root's
    user, group = os.geteuid(), os.getegid()
    system.unshare(
        system.CLONE_NEWUSER | system.CLONE_NEWNS | system.CLONE_NEWNET | system.CLONE_NEWIPC | system.CLONE_NEWUTS
        | system.CLONE_NEWPID
    )  # fmt: skip
    for name, line in (
        ("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {user} 1"), ("gid_map", f"{INSIDE_ID} {group} 1")
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w") as control:
            control.write(line)
    system.mount(None, "/", None, MS_REC | MS_PRIVATE)
    _make_root(sources, base)


def _stage(folders: Sequence[str], base: str) -> tuple[dict[str, str], str]:
    """As root: views of the folders at a place that the user `nobody` can reach (Python may lie below /root).

    Returns: (folder -> where its view is, folder to mount the new root on).
    """
    system.unshare(system.CLONE_NEWNS)
    system.mount(None, "/", None, MS_REC | MS_PRIVATE)
    held = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in folders}
    system.mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k")
    views = {}
    for number, (path, descriptor) in enumerate(held.items()):
        view = f"{base}/{number}"
        os.mkdir(view, 0o755)
        system.mount(f"/proc/self/fd/{descriptor}", view, None, MS_BIND | MS_REC)
        os.close(descriptor)
        views[path] = view
    root = f"{base}/root"
    os.mkdir(root, 0o755)
    return views, root


def _make_root(sources: dict[str, str], base: str) -> None:
    """A root of a small tmpfs with read-only views of the sources at their own paths, and step into it."""
    # Opened before the tmpfs hides what may lie below its mount point.
    held = {path: os.open(source, os.O_PATH) for path, source in sources.items()}
    held |= {path: os.open(path, os.O_PATH) for path in DEVICES}
    links = {path: os.readlink(path) for path in ("/lib", "/lib64", "/usr/lib64") if os.path.islink(path)}
    system.mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=256k")
    for path, descriptor in held.items():
        target = base + path
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if path in DEVICES:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
        else:
            os.makedirs(target, 0o755, exist_ok=True)
        system.mount(f"/proc/self/fd/{descriptor}", target, None, MS_BIND | MS_REC)
        os.close(descriptor)
        system.make_read_only(target, device=path in DEVICES)
    for path, target in links.items():
        if not os.path.lexists(base + path):
            os.makedirs(os.path.dirname(base + path), 0o755, exist_ok=True)
            os.symlink(target, base + path)
    os.mkdir(base + SCRATCH, 0o755)
    if not os.path.lexists(base + "/tmp"):  # it is there where libraries lie below it
        os.symlink(SCRATCH, base + "/tmp")
    system.pivot_root(base)
    system.mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def protect_devices() -> None:
    """In bubblewrap, which mounts them writable: where root started it they are a program's own. Raises OSError."""
    system.unshare(system.CLONE_NEWNS)
    for path in DEVICES:
        system.make_read_only(path, device=True)


def seclude(scratch_mb: int) -> None:
    """A process namespace for the next child, and an empty scratch folder that ends with it. Raises OSError."""
    system.unshare(system.CLONE_NEWNS | system.CLONE_NEWPID)
    files = 64 * max(1, scratch_mb)
    data = f"size={scratch_mb}m,nr_inodes={files},mode=0700"
    system.mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
    os.chdir(SCRATCH)


def python_path(packages: Sequence[str]) -> list[str]:
    """`sys.path` of a program: the standard library and `packages`, nothing of the project."""
    library = os.path.dirname(os.__file__)
    return [library, *(path for path in sys.path if path.endswith("lib-dynload")), *packages]
