"""Tensors by key in files that several processes read and fill at once: what the feature store is made of.

A shard is a safetensors file that never changes once it has its name. Processes collect what is new in memory and write
it as one shard; readers map a tensor's part of it and check its CRC-32, so a damaged shard is found and thrown away.

Writers take turns by `flock` on one file of the store: only so is the bound on disk kept between processes, and what a
killed writer left can be told from what a living one writes (the system lets go of a lock when its process ends,
however it ends). Readers take no lock: a shard appears under its name whole, by an atomic rename.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import math
import mmap
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmreason._files import write_whole

log = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20
"""New tensors that are collected in memory before they are written, at most."""

FLUSH_SECONDS = 30.0
"""How long they wait there, at most, before others can read them."""

SUFFIX = ".features.safetensors"
_LOCK_SECONDS = 60.0  # longer waits mean a stopped process or a file system whose locks don't work
_TOUCH_SECONDS = 60.0
_SETTLED_NS = 2_000_000_000  # coarser than the clock of any file system that is in use
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class DamagedShardError(Exception):
    """A shard doesn't hold what was written into it."""


class Place(NamedTuple):
    """Where a tensor lies: its shard's name, its first byte in that file, what it is, and its checksum."""

    shard: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """The tensors of one folder of a store, by key.

    Args:
        root: the store; its bound covers the shards of all its folders.
        name: this folder's name.
        max_bytes: of all shards of the store. Where a new one would not fit, those go that no process has used since
            this object was made, the longest unused first. If none of them is left, the new one is not written: epochs
            over more than fits then find a part each time, where throwing out the oldest would always find nothing.
        shard_bytes, flush_seconds: see the constants.

    Storing is a service, not a duty: if nothing can be written (a full disk, no permission, no locks), that is logged
    once, and reading goes on. One thread uses an object at a time; a forked child may read.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        max_bytes: int,
        *,
        shard_bytes: int = SHARD_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.root, self.folder, self.max_bytes = root, root / name, max_bytes
        self.shard_bytes, self.flush_seconds = min(shard_bytes, max(max_bytes // 16, 1)), flush_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened, self._process = time.time(), os.getpid()
        self._places: dict[str, Place] = {}
        self._shards: dict[str, list[str]] = {}
        self._refused: set[str] = set()
        self._touched: dict[str, float] = {}
        self._folder_stamp: int | None = None
        self._new: dict[str, Tensor] = {}
        self._new_bytes, self._new_since = 0, 0.0
        self._told: set[str] = set()
        self._writes = True
        atexit.register(self.flush)

    def close(self) -> None:
        """Write what is left. The object may not be used any more."""
        self.flush()
        atexit.unregister(self.flush)

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors that are there, in memory of their own. Never anything but what was put under the key."""
        self._flush_if_due()
        if any(key not in self._new and key not in self._places for key in keys):
            with contextlib.suppress(OSError):
                self._refresh()
        found: dict[str, Tensor] = {}
        for key in dict.fromkeys(keys):
            tensor = self._new[key].clone() if key in self._new else self._read(key)
            if tensor is not None:
                found[key] = tensor
        return found

    def put(self, key: str, tensor: Tensor) -> None:
        """Store a floating-point tensor under a key that stands for its value. The first one put there stays."""
        if not self._writes or key in self._new or key in self._places:
            return
        if not self._new:
            self._new_since = time.monotonic()
        self._new[key] = tensor.detach().to("cpu", copy=True).contiguous()
        self._new_bytes += tensor.nbytes
        self._flush_if_due()

    def flush(self) -> None:
        """Write what is new, so that others can read it."""
        new, self._new, self._new_bytes = self._new, {}, 0
        if not new or os.getpid() != self._process:
            return
        try:
            with _locked(self.root / ".lock"):
                self._refresh()
                self._write({key: tensor for key, tensor in new.items() if key not in self._places})
        except OSError as error:
            self._writes = False
            self._tell("write", f"{self.root}: no more features are stored ({error}); they are computed each time")

    # ---- reading

    def _read(self, key: str) -> Tensor | None:
        place = self._places.get(key)
        if place is None:
            return None
        try:
            tensor = _mapped(self.folder / place.shard, place)
            if _checksum(key, tensor) != place.checksum:
                raise DamagedShardError("a checksum is wrong")
        except (DamagedShardError, OSError) as error:
            self._give_up(place.shard, error)
            return None
        now = time.time()
        if now - self._touched.get(place.shard, 0.0) > _TOUCH_SECONDS:
            self._touched[place.shard] = now
            _touch(self.folder / place.shard)
        return tensor

    def _refresh(self) -> None:
        """Learn what other processes have stored and thrown away."""
        stamp, now = self.folder.stat().st_mtime_ns, time.time_ns()
        if stamp == self._folder_stamp:
            return
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)}
        for name in self._shards.keys() - names:
            self._forget(name)
        for name in sorted(names - self._shards.keys() - self._refused):
            self._take_in(name)
        # A folder may change again without its time changing, if that is soon enough.
        self._folder_stamp = stamp if now - stamp > _SETTLED_NS else None

    def _take_in(self, name: str) -> None:
        try:
            places = _read_header(self.folder / name)
        except (DamagedShardError, OSError) as error:
            self._give_up(name, error)
            return
        self._shards[name] = list(places)
        for key, place in places.items():
            self._places.setdefault(key, place)

    def _forget(self, name: str) -> None:
        for key in self._shards.pop(name, ()):
            place = self._places.get(key)
            if place is not None and place.shard == name:
                del self._places[key]

    def _give_up(self, name: str, error: DamagedShardError | OSError) -> None:
        """Read a shard no more; what is damaged is deleted, what can't be read (no permission, say) is not."""
        self._forget(name)
        if isinstance(error, FileNotFoundError):  # another process made room
            return
        self._refused.add(name)
        log.warning("%s can't be used (%s): its features are computed again", self.folder / name, error)
        if isinstance(error, DamagedShardError):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    # ---- writing

    def _flush_if_due(self) -> None:
        waited = time.monotonic() - self._new_since
        if self._new and (self._new_bytes >= self.shard_bytes or waited >= self.flush_seconds):
            self.flush()

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        data = save(dict(tensors), {key: str(_checksum(key, tensor)) for key, tensor in tensors.items()})
        if not self._make_room(len(data)):
            gib = self.max_bytes / 2**30
            self._tell("full", f"{self.root} is full ({gib:.3g} GiB): features of more images are computed each time")
            return
        name = uuid.uuid4().hex + SUFFIX
        write_whole(self.folder / name, data)
        _touch(self.folder / name)
        self._take_in(name)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes are within the bound, now that shards nobody uses have gone. Under the lock."""
        for left in self.root.glob(f"*/.*{SUFFIX}.*.tmp"):  # nobody else writes: it is of a process that was killed
            left.unlink(missing_ok=True)
        shards: list[tuple[float, int, Path]] = []
        for path in self.root.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                shards.append((status.st_mtime, status.st_size, path))
        used = sum(shard[1] for shard in shards)
        for last_use, freed, path in sorted(shards):
            if used + size <= self.max_bytes or last_use >= self._opened:
                break
            path.unlink(missing_ok=True)
            if path.parent == self.folder:
                self._forget(path.name)
            used -= freed
        return used + size <= self.max_bytes

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(text)


def _read_header(path: Path) -> dict[str, Place]:
    """Where each tensor of a shard lies. Raises DamagedShardError, OSError."""
    try:
        with safe_open(path, framework="pt"):  # the library checks sizes and offsets; it doesn't tell them
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        checksums = header.pop("__metadata__")
        return {
            key: Place(
                path.name,
                8 + length + int(entry["data_offsets"][0]),
                _DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                int(checksums[key]),
            )
            for key, entry in header.items()
        }
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedShardError(str(error)) from error


def _mapped(path: Path, place: Place) -> Tensor:
    """A copy of a tensor, made from a mapping that lives no longer than that: a shard may go at any time."""
    tensor = torch.empty(place.shape, dtype=place.dtype)
    if not place.nbytes:
        return tensor
    first = place.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        # Touching what lies behind the end of a file would kill the process.
        if os.fstat(file.fileno()).st_size < place.start + place.nbytes:
            raise DamagedShardError("it is cut off")
        last = place.start + place.nbytes
        with (
            mmap.mmap(file.fileno(), last - first, access=mmap.ACCESS_READ, offset=first) as data,
            memoryview(data) as view,
        ):
            _bytes(tensor)[:] = view[place.start - first :]
    return tensor


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def _checksum(key: str, tensor: Tensor) -> int:
    about = f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode()
    return zlib.crc32(_bytes(tensor), zlib.crc32(about)) if tensor.numel() else zlib.crc32(about)


def _touch(path: Path) -> None:
    """Say that a shard is in use."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(),) * 2)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a store's lock. Raises OSError where there are no locks, or another process keeps it too long."""
    with path.open("a") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} was locked by another process for {_LOCK_SECONDS:.0f} s") from None
                time.sleep(0.01)
        yield
