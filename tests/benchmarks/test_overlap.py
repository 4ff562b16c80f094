"""The benchmark of the overlap index: its rows are whole, and a folder that isn't there is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import overlap
from benchmarks.common import read_rows
from benchmarks.overlap import main, plain_ngrams


def test_the_peer_takes_plain_ngrams() -> None:
    words = [f"w{i}" for i in range(14)]
    assert plain_ngrams("A, b. " + " ".join(words[:12])) == [
        "a b " + " ".join(words[:11]), "b " + " ".join(words[:12])
    ]  # fmt: skip
    assert plain_ngrams("too short") == []


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(overlap, "RESULTS", tmp_path)
    assert main(["--rows", "2000", "--duplicates", "300", "--repeats", "1"]) == 0
    rows = {(row["name"], row["unit"]): row for row in read_rows(tmp_path / "overlap.csv")}
    ours, peer = rows["look-up, index", "rows/s"], rows["look-up, plain set of strings", "rows/s"]
    assert float(ours["value"]) > 0 and float(peer["value"]) > 0 and ours["strings"] == "generated" and ours["commit"]
    assert rows["index build", "s"]["items"] == "5000"
    assert {"duplicates, exact", "duplicates, minhash", "duplicates, simhash"} <= {name for name, _ in rows}
    assert "written to" in capsys.readouterr().out


def test_no_such_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "/nowhere/at/all"])
    assert "--data: no such folder: /nowhere/at/all" in capsys.readouterr().err
