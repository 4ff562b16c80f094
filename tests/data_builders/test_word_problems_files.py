"""Built sets of word problems on the disk: the folder, the command, the cache and what may go wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_builders import word_problems
from data_builders.building.cache import cache_root
from data_builders.building.writing import COLUMNS
from data_builders.word_problems import SPLITS, VERSION, as_dataset, build, cached, generate, main
from mmreason.data import load_examples
from mmreason.types import ConfigError, MMReasonError
from tests.data_builders.commands import output_and_cpu_seconds

SIZES = {"n": 40, "n_test": 10, "n_unseen": 12}
COMMAND = [sys.executable, "-m", "data_builders.word_problems"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmreason" / "data"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a folder


def test_files_manifest_and_reload(tmp_path: Path) -> None:
    options = {**SIZES, "seed": 7, "level": 3, "language": "both", "style": "mixed", "bare_share": 0.4}
    manifest = build(tmp_path / "a", **options)
    assert manifest == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["builder_version"] == VERSION and manifest["arguments"] == {**options, "level": "3"}
    files: dict[str, Any] = manifest["files"]  # type: ignore[assignment]
    assert list(files) == [f"{split}.parquet" for split in SPLITS]
    for name, entry in files.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == entry["sha256"]
        assert (tmp_path / "a" / name).stat().st_size == entry["bytes"]
    build(tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for split, rows in zip(SPLITS, SIZES.values(), strict=True):
        loaded = load_examples(str(tmp_path / "a"), split=split, columns=COLUMNS)
        assert loaded.format == "canonical" and not loaded.dropped
        expected = generate(rows, 7, level=3, split=split, language="both", style="mixed", bare_share=0.4)
        assert loaded.dataset.to_list() == expected == as_dataset(expected).to_list()


def test_plain_datasets_reads_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    build(tmp_path / "set", **SIZES)
    files = {split: str(tmp_path / "set" / f"{split}.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
    assert {split: len(rows) for split, rows in loaded.items()} == dict(zip(SPLITS, SIZES.values(), strict=True))
    assert loaded["unseen_templates"].to_list() == generate(12, 0, split="unseen_templates")


def test_splits_that_are_not_wanted_leave_no_file(tmp_path: Path) -> None:
    build(tmp_path, **SIZES)
    (tmp_path / "mine.parquet").write_bytes(b"the user's own")
    build(tmp_path, n=20, n_test=0, n_unseen=0, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "mine.parquet", "train.parquet"]


def test_files_of_another_builder_stay(tmp_path: Path) -> None:
    from data_builders import arithmetic

    arithmetic.build(tmp_path, n=10, n_test=5, seed=0, level=2)
    build(tmp_path, n=20, n_test=0, n_unseen=0)
    assert (tmp_path / "test.parquet").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levle": 2}, "unknown option 'levle' .did you mean 'level'..; known: n, n_test, n_unseen, seed, level"),
        ({"n": "40"}, "n must be a whole number, not '40'"),
        ({"n": True}, "n must be a whole number, not True"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"n_test": -1}, "n_test must be at least 0, not -1"),
        ({"n_unseen": -2}, "n_unseen must be at least 0, not -2"),
        ({"level": 7}, "unknown level '7'; known"),
        ({"style": "bares"}, "did you mean 'bare'"),
        ({"language": None}, "unknown language None"),
        ({"bare_share": "0.5"}, "bare_share must be a number"),
    ],
)
def test_named_errors_come_before_anything_is_written(
    home: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path / "set", **options)
    with pytest.raises(ConfigError, match=message):
        cached(**options)
    assert not (tmp_path / "set").exists() and not home.exists()


# ---- the command


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n", "30", "--n_test", "5", "--n_unseen", "0", "--level", "mix", "--language", "zh", "--style", "bare"]
    assert main(["--out", str(tmp_path / "set"), *flags, "--seed", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: entry["rows"] for name, entry in printed.items()} == {"train.parquet": 30, "test.parquet": 5}
    loaded = load_examples(str(tmp_path / "set"), columns=COLUMNS).dataset.to_list()
    assert loaded == generate(30, 3, level="mix", language="zh", style="bare")


def test_named_errors_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["--out", str(tmp_path / "file"), "--n", "5"]) == 2
    assert main(["--out", str(tmp_path / "new"), "--level", "mixx"]) == 2
    err = capsys.readouterr().err
    assert "File exists" in err and "did you mean 'mix'" in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_command_and_quick_help(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "o"), "--n", "20"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["train.parquet"]["rows"] == 20 and done.stderr == ""
    text, seconds = output_and_cpu_seconds([*COMMAND, "--help"])
    assert "--level" in text and seconds < 0.5
    code = "import sys, data_builders.word_problems; print('datasets' in sys.modules, 'torch' in sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.split() == ["False", "False"]


# ---- the cache


def test_built_once_and_found_again(home: Path) -> None:
    said: list[str] = []
    folder = cached(**SIZES, level=2, say=said.append)
    assert folder.parent == home and folder.name.startswith("word_problems-")
    assert len(said) == 1 and "building the data, it is not in the cache yet" in said[0] and str(folder) in said[0]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cached(**SIZES, level="2", say=said.append) == folder  # the same level, said in another way
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before and len(said) == 1
    assert cached(**{**SIZES, "n": 41}, say=said.append) != folder and len(said) == 2
    assert cached(**SIZES, bare_share=0.5, say=said.append) != folder
    build(home / "again", **SIZES)
    assert contents(folder) == contents(home / "again")


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_root() == tmp_path / ".cache" / "mmreason" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "mmreason" / "data"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(MMReasonError, match="XDG_CACHE_HOME"):
        cache_root()


def _cut(folder: Path) -> None:
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "test.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "test.parquet").write_bytes(data)


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


def _file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_edit(lambda m: m.update(builder_version=0)), f"from version 0 of the builder and this is version {VERSION}"),
        (_edit(lambda m: m.pop("builder_version")), "from version None of the builder"),
        (_edit(lambda m: m["arguments"].update(seed=9)), "manifest.json is of something else"),
        (_edit(lambda m: m.update(files={})), "manifest.json is of something else"),
        (_cut, "train.parquet is not what manifest.json says"),
        (_flip, "test.parquet is not what manifest.json says"),
        (lambda folder: (folder / "unseen_templates.parquet").unlink(), "unseen_templates.parquet is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or broken"),
        (lambda folder: (folder / "manifest.json").write_text('{"half'), "manifest.json is missing or broken"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is missing or broken"),
        (_file_in_its_place, "manifest.json is missing or broken"),
    ],
)
def test_what_can_not_be_used_is_built_again(home: Path, damage: Callable[[Path], object], reason: str) -> None:
    folder = cached(**SIZES, say=lambda line: None)
    whole = contents(folder)
    damage(folder)
    said: list[str] = []
    assert cached(**SIZES, say=said.append) == folder
    assert contents(folder) == whole
    assert len(said) == 1 and said[0].startswith(f"{folder}: building the data again, ") and reason in said[0]
    assert [path.name for path in home.iterdir() if path.name.endswith((".new", ".old"))] == []


def test_another_version_of_the_builder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached(**SIZES, say=lambda line: None)
    monkeypatch.setattr(word_problems, "VERSION", VERSION + 1)
    said: list[str] = []
    assert cached(**SIZES, say=said.append) == folder
    assert f"from version {VERSION} of the builder and this is version {VERSION + 1}" in said[0]
    assert json.loads((folder / "manifest.json").read_text())["builder_version"] == VERSION + 1


def test_a_failed_build_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_problems, "_TRIES_PER_ROW", 0)
    with pytest.raises(ConfigError, match="gave only 0 different"):
        cached(**SIZES, say=lambda line: None)
    assert all(path.name.endswith(".lock") for path in home.iterdir())


def test_no_place_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MMReasonError, match=rf"{tmp_path}/file/mmreason/data/word_problems-.*set XDG_CACHE_HOME"):
        cached(**SIZES, say=lambda line: None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
    with pytest.raises(MMReasonError, match=r"closed/.*Permission denied.*XDG_CACHE_HOME"):
        cached(**SIZES, say=lambda line: None)


CACHED = """
import sys
from data_builders.word_problems import cached
from mmreason.types import MMReasonError
{before}
try:
    print(cached(n={n}, n_test=10, n_unseen=12, say=lambda line: print("SAID", line, flush=True)))
except MMReasonError as error:
    print("NAMED", error)
"""


def process(before: str = "", n: int = 40) -> subprocess.Popen[str]:
    code = CACHED.format(before=before, n=n)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_several_processes_at_once(home: Path) -> None:
    together = [process(n=3000) for _ in range(4)]
    outputs = [p.communicate(timeout=120) for p in together]
    assert [p.returncode for p in together] == [0] * 4, outputs
    said = [line for out, _ in outputs for line in out.splitlines() if "building" in line]
    folders = {out.splitlines()[-1] for out, _ in outputs}
    assert len(said) == 1 and len(folders) == 1
    assert len(load_examples(folders.pop()).dataset) == 3000
    assert len(list(home.iterdir())) == 2  # the set and its lock


@pytest.mark.slow
def test_one_waits_while_another_builds(home: Path, tmp_path: Path) -> None:
    hold = (
        "import pathlib, time; from data_builders import word_problems as w; old = w._build\n"
        "def held(*arguments):\n    print('held', flush=True)\n"
        f"    while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.02)\n"
        "    return old(*arguments)\n"
        "w._build = held"
    )
    builder = process(hold)
    assert builder.stdout is not None
    assert "not in the cache yet" in builder.stdout.readline() and builder.stdout.readline() == "held\n"
    other = process()
    assert other.stdout is not None
    assert "waiting for another process" in other.stdout.readline()
    (tmp_path / "go").touch()
    built, found = builder.communicate(timeout=120)[0], other.communicate(timeout=120)[0]
    assert built == found and "SAID" not in found  # one folder, built once


@pytest.mark.slow
def test_killed_while_building(home: Path) -> None:
    kill = (
        "import os, signal; from data_builders.building import writing as w\n"
        "def killed(path, data):\n    path.with_name('half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.write_whole = killed"
    )
    dead = process(kill)
    dead.communicate(timeout=120)
    assert dead.returncode == -signal.SIGKILL
    assert any((path / "half").exists() for path in home.iterdir())  # it died in the middle
    said: list[str] = []
    folder = cached(**SIZES, say=said.append)
    assert len(load_examples(str(folder)).dataset) == 40 and "not in the cache yet" in said[0]
    assert sorted(contents(folder)) == ["manifest.json", *sorted(f"{split}.parquet" for split in SPLITS)]
    assert len(list(home.iterdir())) == 2


@pytest.mark.slow
def test_files_that_may_not_grow(home: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))"
    out, err = process(limit, n=4000).communicate(timeout=120)
    assert f"NAMED the built data can't be kept in {home}/word_problems-" in out and "File too large" in out, (out, err)
    assert all(path.name.endswith(".lock") for path in home.iterdir())
    assert "Traceback" not in err
    out, err = process(n=4000).communicate(timeout=120)
    assert len(load_examples(out.splitlines()[-1]).dataset) == 4000


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """On a file system of its own with 64 KiB, in a mount namespace that ends with the process."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")
    script = tmp_path / "run.py"
    script.write_text(CACHED.format(before="", n=8000))
    (tmp_path / "disk").mkdir()
    steps = 'mount -t tmpfs -o size=64k none "$1" && XDG_CACHE_HOME="$1" "$2" "$3"; echo left; find "$1" -size +0'
    command = ["unshare", "-Urm", "sh", "-c", steps, "sh", str(tmp_path / "disk"), sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(word_problems.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if "mount:" in done.stderr:
        pytest.skip(f"no mount in a namespace: {done.stderr.strip()}")
    said, left = done.stdout.split("left\n")
    assert "No space left on device" in said and str(tmp_path / "disk") in said and "XDG_CACHE_HOME" in said, done
    assert "Traceback" not in done.stderr and "parquet" not in left
