"""The files of the feature store: never anything but what was put in, whatever happens to them, and never too many."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.models import _feature_shards
from mmreason.models._feature_shards import SUFFIX, Shards

GIB = 1 << 30


def tensor_of(key: str, views: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that only this key has."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
    return torch.randn(views, 3, 4, generator=generator).to(dtype)


def files(root: Path) -> list[Path]:
    return sorted(root.glob(f"*/*{SUFFIX}"))


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def age(path: Path, seconds: float) -> None:
    """Say that a shard was last used that long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_put_is_got_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45], dtype=torch.float64).to(dtype)
    tensors = {"odd": odd, "none": torch.empty(0, 3, dtype=dtype), "one": torch.tensor(2.0, dtype=dtype)}
    tensors |= {"strided": tensor_of("strided", dtype=dtype).transpose(0, 1)}
    shards = Shards(tmp_path, "a", GIB)
    for key, tensor in tensors.items():
        shards.put(key, tensor)
    for reader in (shards, shards, Shards(tmp_path, "a", GIB)):
        found = reader.get([*tensors, "missing", "odd"])
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found[key].dtype == dtype and found[key].shape == tensor.shape
            raw = [x.contiguous().view(-1).view(torch.uint8).tolist() for x in (found[key], tensor)]
            assert raw[0] == raw[1], key
        found["odd"].fill_(5.0)  # its own memory: nobody else sees that
        shards.flush()
    assert len(files(tmp_path)) == 1
    assert not Shards(tmp_path, "b", GIB).get(list(tensors))


KEYS = st.sampled_from([f"{i:02x}" for i in range(12)])
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 1), KEYS),
    st.tuples(st.just("get"), st.integers(0, 1), st.lists(KEYS, max_size=5)),
    st.tuples(st.sampled_from(["flush", "reopen"]), st.integers(0, 1), st.none()),
    st.tuples(st.just("delete"), st.integers(0, 30), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([1, 300, 10_000]))
def test_any_order_of_uses_equals_a_dict(steps: list[tuple[str, int, object]], shard_bytes: int) -> None:
    """Two objects on one folder; also where shards vanish, as they do when another process makes room."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        both = [Shards(root, "a", GIB, shard_bytes=shard_bytes) for _ in range(2)]
        own: list[set[str]] = [set(), set()]  # what each has put and must find
        written: set[str] = set()  # what both must find
        deleted = False
        for what, which, argument in steps:
            if what == "put":
                both[which].put(str(argument), tensor_of(str(argument)))
                own[which].add(str(argument))
            elif what == "get":
                keys = [str(key) for key in argument]  # type: ignore[attr-defined]
                found = both[which].get(keys)
                assert all(torch.equal(tensor, tensor_of(key)) for key, tensor in found.items())
                assert found.keys() <= set(keys) & (own[0] | own[1])
                assert deleted or found.keys() >= set(keys) & (own[which] | written)
            elif what == "delete":
                shards = files(root)
                if shards:
                    shards[which % len(shards)].unlink()
                    deleted = True
            else:
                both[which].flush()
                written |= own[which]
                if what == "reopen":
                    both[which].close()
                    both[which] = Shards(root, "a", GIB, shard_bytes=shard_bytes)
        for shards_of_one in both:
            shards_of_one.close()
        if not deleted:
            fresh = Shards(root, "a", GIB)
            assert fresh.get(list(own[0] | own[1])).keys() == own[0] | own[1]
            fresh.close()


def damages(length: int) -> list[tuple[str, int]]:
    """Flipped bytes and cuts all over a file: each of the header's first, then some of the rest."""
    rng = random.Random(1)
    places = sorted({*range(0, 24), *(rng.randrange(length) for _ in range(150)), length - 1})
    return [("flip", place) for place in places] + [("cut", place) for place in places]


def test_damage_is_found_and_cured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ["aa", "bb", "cc"]
    shards = Shards(tmp_path, "a", GIB)
    for key in keys:
        shards.put(key, tensor_of(key))
    shards.close()
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    noticed = 0
    for kind, place in damages(len(whole)):
        damaged = bytearray(whole)
        if kind == "flip":
            damaged[place] ^= 1 << (place % 8)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        caplog.clear()
        reader = Shards(tmp_path, "a", GIB)
        found = reader.get(keys)
        assert all(torch.equal(tensor, tensor_of(key)) for key, tensor in found.items()), (kind, place)
        lost = [key for key in keys if key not in found]
        if lost:
            noticed += 1
            assert "computed again" in caplog.text or kind == "flip"  # a flip in a key's name makes it another key
            for key in keys:
                reader.put(key, tensor_of(key))
            reader.flush()
            again = Shards(tmp_path, "a", GIB)
            assert again.get(keys).keys() == set(keys), (kind, place)
            again.close()
        reader.close()
        for other in files(tmp_path):
            other.unlink()
        path.parent.mkdir(exist_ok=True)
    assert noticed > 150


def test_a_shard_cut_while_it_is_open(tmp_path: Path) -> None:
    """Reading behind the end of a mapped file would kill the process."""
    shards = Shards(tmp_path, "a", GIB)
    for key in ("aa", "bb"):
        shards.put(key, torch.randn(20_000))
    shards.flush()
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - 80_000)
    found = shards.get(["aa", "bb"])
    assert len(found) == 1 and not files(tmp_path)  # the file is thrown away as a whole
    shards.close()


def test_what_others_store_is_seen_at_once(tmp_path: Path) -> None:
    one, other = Shards(tmp_path, "a", GIB), Shards(tmp_path, "a", GIB)
    for i in range(20):
        assert not other.get([str(i)])
        one.put(str(i), tensor_of(str(i)))
        one.flush()
        assert torch.equal(other.get([str(i)])[str(i)], tensor_of(str(i)))


def test_new_ones_wait_for_a_while_only(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "a", GIB, shard_bytes=10_000, flush_seconds=0.2)
    shards.put("aa", tensor_of("aa"))
    assert not files(tmp_path)
    time.sleep(0.3)
    shards.get(["other"])
    assert len(files(tmp_path)) == 1
    shards.put("bb", torch.zeros(2_600))
    assert len(files(tmp_path)) == 2
    shards.put("aa", tensor_of("aa"))  # is there
    shards.close()
    assert len(files(tmp_path)) == 2


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    """Over all towers of the store, and never more than the bound."""
    bound = 40_000
    for i in range(6):
        shards = Shards(tmp_path, f"tower-{i % 2}", bound)
        for j in range(3):
            shards.put(f"{i}-{j}", torch.full((500,), float(i)))
        shards.close()
        assert size(tmp_path) <= bound
    ages = {path: float(number) for number, path in enumerate(files(tmp_path))}
    for path, hours in ages.items():
        age(path, 3600 * (hours + 1))
    shards = Shards(tmp_path, "tower-new", bound)
    for j in range(5):
        shards.put(f"new-{j}", torch.zeros(500))
        shards.flush()
    left = [hours for path, hours in ages.items() if path.exists()]
    assert size(tmp_path) <= bound and sorted(left) == list(range(len(left))) and 0 < len(left) < len(ages)
    assert len(shards.get([f"new-{j}" for j in range(5)])) == 5
    shards.close()


def test_what_is_in_use_stays_when_the_store_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An epoch over more than fits finds a part of it again; the oldest thrown out, it would find nothing."""
    shards = Shards(tmp_path, "a", 40_000)
    keys = [f"{i:03d}" for i in range(40)]
    for epoch in range(3):
        for key in keys:
            if not shards.get([key]):
                shards.put(key, torch.zeros(500))
        shards.flush()
        assert size(tmp_path) <= 40_000
        assert len(shards.get(keys)) >= 15, epoch
    assert caplog.text.count("is full") == 1 and "0.0000373 GiB" in caplog.text.replace("3.73e-05", "0.0000373")
    shards.close()
    big = Shards(tmp_path / "other", "a", 1000)
    big.put("big", torch.zeros(500))
    big.close()
    assert not files(tmp_path / "other")


def test_reading_counts_as_use(tmp_path: Path) -> None:
    for key in ("old", "read"):
        shards = Shards(tmp_path, "a", 10_000)
        shards.put(key, torch.zeros(1000))
        shards.close()
    for path in files(tmp_path):
        age(path, 3600)
    shards = Shards(tmp_path, "a", 10_000)
    assert shards.get(["read"])
    shards.put("new", torch.zeros(1000))
    shards.flush()
    assert shards.get(["old", "read", "new"]).keys() == {"read", "new"}
    shards.close()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    model = tmp_path / "checkpoint" / "model.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"x" * 5000)
    age(model, 10**6)
    left = tmp_path / "a" / f".0{SUFFIX}.123.tmp"  # of a process that was killed while it wrote
    left.parent.mkdir()
    left.write_bytes(b"x" * 5000)
    shards = Shards(tmp_path, "a", 4000)
    shards.put("aa", torch.zeros(100))
    shards.close()
    assert model.stat().st_size == 5000 and not left.exists() and len(files(tmp_path)) == 1


def test_a_store_that_cannot_be_written_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(tmp_path, "a", GIB)
    shards.put("aa", tensor_of("aa"))
    shards.close()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()  # nothing can be locked
    shards = Shards(tmp_path, "a", GIB)
    for key in ("bb", "cc"):
        shards.put(key, tensor_of(key))
        shards.flush()
    assert shards.get(["aa", "bb", "cc"]).keys() == {"aa"}
    assert caplog.text.count("no more features are stored") == 1
    shards.close()


def test_a_lock_that_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped with the lock in its hand stops nobody else."""
    monkeypatch.setattr(_feature_shards, "_LOCK_SECONDS", 0.2)
    shards = Shards(tmp_path, "a", GIB)
    with (tmp_path / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shards.put("aa", tensor_of("aa"))
        shards.flush()
    assert "was locked by another process" in caplog.text and not files(tmp_path)
    shards.close()


def test_a_store_that_is_deleted_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import shutil

    caplog.set_level(logging.WARNING)
    shards = Shards(tmp_path / "store", "a", GIB)
    shards.put("aa", tensor_of("aa"))
    shards.flush()
    shutil.rmtree(tmp_path / "store")
    assert not shards.get(["aa", "bb"])
    shards.put("bb", tensor_of("bb"))
    shards.close()
    assert "no more features are stored" in caplog.text


# ---- processes


def fill(root: Path, seed: int, rounds: int) -> None:
    """What a training process does: look, and store what isn't there. Fails where anything wrong is read."""
    shards, rng = Shards(root, "a", GIB, shard_bytes=20_000), random.Random(seed)
    for _ in range(rounds):
        keys = [f"key {rng.randrange(400)}" for _ in range(8)]
        found = shards.get(keys)
        for key in keys:
            if key in found:
                assert torch.equal(found[key], tensor_of(key, 40)), key
            else:
                shards.put(key, tensor_of(key, 40))
    shards.close()


def started(*arguments: object) -> Any:
    process = multiprocessing.get_context("fork").Process(target=fill, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_processes_fill_it_at_once(tmp_path: Path) -> None:
    """None reads anything wrong; in the end every key is there, once."""
    processes = [started(tmp_path, seed, 300) for seed in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shards = Shards(tmp_path, "a", GIB)
    keys = [f"key {i}" for i in range(400)]
    found = shards.get(keys)
    assert len(found) > 390 and all(torch.equal(found[key], tensor_of(key, 40)) for key in found)
    assert sum(len(held) for held in shards._shards.values()) == len(found)
    assert not list(tmp_path.rglob("*.tmp"))
    shards.close()


@pytest.mark.slow
def test_killed_while_writing(tmp_path: Path) -> None:
    """kill -9 at any moment: what can be read is right, the rest is stored again, and nothing is left over."""
    rng, inside = random.Random(0), 0
    for seed in range(20):
        process = started(tmp_path, seed, 10**6)
        deadline = time.monotonic() + 0.1 * rng.random()
        # Every other one inside a shard, the rest where there are whole ones.
        while time.monotonic() < deadline or not (list(tmp_path.rglob("*.tmp")) if seed % 2 else files(tmp_path)):
            assert time.monotonic() < deadline + 60
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        inside += bool(list(tmp_path.rglob("*.tmp")))
        for other in files(tmp_path)[1::2]:  # so that there is something to write next time
            other.unlink()
    assert inside, "no process was killed between the first and the last byte of a shard"
    shards = Shards(tmp_path, "a", GIB)
    keys = [f"key {i}" for i in range(400)]
    found = shards.get(keys)
    assert 0 < len(found) < 400 and all(torch.equal(found[key], tensor_of(key, 40)) for key in found)
    for key in keys:
        shards.put(key, tensor_of(key, 40))
    shards.flush()
    assert len(shards.get(keys)) == 400 and not list(tmp_path.rglob("*.tmp"))
    shards.close()
