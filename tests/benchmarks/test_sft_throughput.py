"""The benchmark of supervised throughput: both sides learn from the same tokens; rows, plot and verdict are written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sft_throughput
from benchmarks.common import read_rows
from benchmarks.sft_throughput import PACKED, PICTURES, TRL, WAYS, main, make_rows, measure


def test_rows_are_fixed_and_of_mixed_lengths() -> None:
    rows = make_rows(PICTURES, 60, 0)
    assert rows == make_rows(PICTURES, 60, 0)
    words = [len(row["completion"][0]["content"].split()) for row in rows]
    assert min(words) < 8 and max(words) > 80
    assert {len(row["images"]) for row in rows} == {1, 2}


@pytest.mark.soak  # `make evidence` runs it for real
def test_the_real_ways_learn_from_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own, as they are measured; a tiny model, two steps of TRL's, one of them timed."""
    ways = ((PICTURES, TRL), (PICTURES, PACKED))
    monkeypatch.setattr(sft_throughput, "WAYS", ways)
    rows = measure("quick", 10, 1, 1, 0)
    assert [(row["kind"], row["way"]) for row in rows] == list(ways)
    assert len({row["supervised_tokens"] for row in rows}) == 1
    assert all(row["tokens_per_s"] > 0 and row["peak_mib"] > 100 for row in rows)


def fake(tokens: dict[str, int]) -> Any:
    real = subprocess.run

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        if "--child" not in command:  # git, for the commit
            return real(command, **settings)  # type: ignore[no-any-return]
        kind, way = command[command.index("--child") + 1 :][:2]
        speed = 30.0 if way == PACKED else 10.0
        result = {"tokens": tokens.get(way, 100), "tokens_per_s": speed, "tokens_per_cpu_s": speed, "peak_mib": 500}
        return subprocess.CompletedProcess(command, 0, f"{kind}\n{json.dumps(result)}\n", "")

    return run


def test_rows_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sft_throughput, "RESULTS", tmp_path)
    monkeypatch.setattr(sft_throughput.subprocess, "run", fake({}))
    assert main(["--size", "quick"]) == 0 == main(["--size", "quick"])
    rows = read_rows(tmp_path / "sft_throughput.csv")
    assert [(row["kind"], row["way"]) for row in rows] == list(WAYS)
    assert [row["over_trl"] for row in rows] == ["1.0", "1.0", "3.0", "1.0", "3.0"]
    assert (tmp_path / "sft_throughput.png").stat().st_size > 5000
    assert "pictures, packed: 3.0 × TRL, 2.0 is claimed: as claimed" in capsys.readouterr().out


def test_other_tokens_are_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_throughput.subprocess, "run", fake({PACKED: 99}))
    with pytest.raises(RuntimeError, match="packed: 99 supervised tokens an epoch, TRL has 100"):
        measure("quick", 10, 1, 1, 0)
