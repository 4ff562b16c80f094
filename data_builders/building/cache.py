"""Built sets that are kept between runs: whole or rebuilt, also with several processes at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data_builders.building.writing import MANIFEST, file_digest, read_manifest
from mmreason.types import MMReasonError


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/mmreason/data``; ``~/.cache`` stands in where the variable is unset or not absolute.

    Raises: MMReasonError where the user has no home folder.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():
        try:
            home = Path.home() / ".cache"
        except RuntimeError as error:
            raise MMReasonError(
                "this user has no home folder for the cache: set XDG_CACHE_HOME to a folder (absolute path)"
            ) from error
    return home / "mmreason" / "data"


def keep(
    name: str,
    arguments: Mapping[str, object],
    version: int,
    build: Callable[[Path], object],
    say: Callable[[str], None],
) -> Path:
    """The folder of a set in the cache, built now if it is not there whole and of this version.

    Args:
        name: the builder's short name.
        arguments: what the set depends on, JSON values; their hash is part of the folder's name.
        version: the builder's version, as `build` writes it into the manifest.
        build: writes the set and its manifest into the folder it is given. It works in a folder beside the kept one,
            which then takes its place in one move.
        say: told in a line why something is built.

    Raises: MMReasonError where the folder can't be read or written (permissions, disk full), and what `build` raises.
    """
    key = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{key}"
    try:
        if _fault(folder, arguments, version) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, say):
            fault = _fault(folder, arguments, version)  # another process may have built it meanwhile
            if fault is not None:
                say(f"{folder}: {fault}")
                _rebuild(folder, build)
    except OSError as error:
        raise MMReasonError(
            f"the built data can't be kept in {folder}: {error.strerror or error}. Make room or give permission there, "
            "or set XDG_CACHE_HOME to another folder"
        ) from error
    return folder


def _rebuild(folder: Path, build: Callable[[Path], object]) -> None:
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    _remove(new)  # left there by a build that was killed
    _remove(old)
    try:
        build(new)
        if folder.exists() or folder.is_symlink():
            folder.rename(old)  # a folder can't replace one that is not empty
        new.rename(folder)
    finally:
        _remove(new)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fault(folder: Path, arguments: Mapping[str, object], version: int) -> str | None:
    """Why a kept folder can't be used, None where it can."""
    if not folder.exists():
        return "building the data, it is not in the cache yet"
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        return f"building the data again, {MANIFEST} is missing or broken"
    if manifest.get("builder_version") != version:
        kept = manifest.get("builder_version")
        return f"building the data again, it is from version {kept} of the builder and this is version {version}"
    files = manifest.get("files")
    if manifest.get("arguments") != arguments or not isinstance(files, dict) or not files:
        return f"building the data again, {MANIFEST} is of something else"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"building the data again, {name} is missing"
        if path.stat().st_size != entry.get("bytes") or file_digest(path) != entry.get("sha256"):
            return f"building the data again, {name} is not what {MANIFEST} says (half-written or changed)"
    return None


@contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock. The system lets go of it when a process ends, however it ends."""
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: waiting for another process that builds it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
