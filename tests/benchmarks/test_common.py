"""Results files: what was not measured stays, what was measured is replaced, and each row says under what."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import child_environment, commit, machine, provenance, provenance_columns, read_rows, save_rows


def test_rows_of_other_parts_stay(tmp_path: Path) -> None:
    path = tmp_path / "results" / "speed.csv"
    save_rows(path, [{"what": "a", "n": 1, "seconds": 1.5}, {"what": "b", "n": 1, "seconds": 2.5}], ("what", "n"))
    save_rows(path, [{"what": "b", "n": 1, "ratio": 0.5}, {"what": "b", "n": 2, "ratio": None}], ("what", "n"))
    assert read_rows(path) == [
        {"what": "a", "n": "1", "seconds": "1.5", "ratio": ""},
        {"what": "b", "n": "1", "seconds": "", "ratio": "0.5"},
        {"what": "b", "n": "2", "seconds": "", "ratio": ""},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["speed.csv"]
    assert read_rows(tmp_path / "none.csv") == []


def test_several_rows_of_one_part(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    save_rows(path, [{"run": "a", "step": i} for i in range(3)] + [{"run": "b", "step": 0}], ("run",))
    save_rows(path, [{"run": "a", "step": 7}], ("run",))
    assert [(row["run"], row["step"]) for row in read_rows(path)] == [("b", "0"), ("a", "7")]


def test_the_columns_of_the_circumstances_come_last(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    save_rows(path, [provenance(3, ("torch", "no-such-package")) | {"seconds": 1}], ("seconds",))
    save_rows(path, [{"seconds": 2, "later": "x"}], ("seconds",))
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == ["seconds", "later", *provenance_columns()]
    row = read_rows(path)[0]
    assert row["seed"] == "3" and "torch=" in row["versions"] and "no-such" not in row["versions"]
    assert row["machine"] == machine() and "CPUs" in row["machine"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    save_rows(path, [{"what": "a"}], ("what",))

    (tmp_path / f".speed.csv.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        save_rows(path, [{"what": "b"}], ("what",))
    assert read_rows(path) == [{"what": "a"}]


def test_the_commit_says_whether_the_code_is_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *user, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(common, "ROOT", tmp_path)
    assert commit() == "unknown"
    (tmp_path / "mmreason").mkdir()
    (tmp_path / "mmreason" / "a.py").write_text("a = 1\n")
    (tmp_path / "README.md").write_text("a\n")
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    clean = commit()
    assert 7 <= len(clean) <= 12 and clean.isalnum()
    (tmp_path / "README.md").write_text("b\n")
    assert commit() == clean
    (tmp_path / "mmreason" / "a.py").write_text("a = 2\n")
    assert commit() == f"{clean}+changes"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child_environment(None)["OMP_NUM_THREADS"] == "7"
    chosen = child_environment(2)
    assert chosen["OMP_NUM_THREADS"] == chosen["MKL_NUM_THREADS"] == "2"
