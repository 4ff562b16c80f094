"""The benchmark of the sandbox: its programs print what it says, its rows are whole, wrong outputs are no speed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import sandbox
from benchmarks.common import read_rows
from benchmarks.sandbox import PEER, latencies, main, programs, rate, run_peer
from mmreason.tools.sandbox import IsolationError, Sandbox


def test_programs_print_what_is_said() -> None:
    made = programs(3, random.Random(1))
    assert len({code for code, _ in made}) == 3
    assert [run_peer(code) for code, _ in made] == [printed for _, printed in made]
    assert programs(3, random.Random(1)) == made


def test_wrong_outputs_are_no_speed() -> None:
    def lazy(codes: Sequence[str]) -> list[str]:
        return ["0\n"] * len(codes)

    made = programs(2, random.Random(1))
    for measured in (latencies, rate):
        with pytest.raises(RuntimeError, match="a program printed"):
            measured(lazy, made)


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        with Sandbox() as box:
            strongest = box.isolation
    except IsolationError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    monkeypatch.setattr(sandbox, "RESULTS", tmp_path)
    assert main(["--runs", "4", "--repeats", "2"]) == 0
    peer, first, *_ = read_rows(tmp_path / "sandbox.csv")
    assert (peer["isolation"], peer["start_s"], peer["rate_over_peer"]) == (PEER, "", "1.0")
    assert first["isolation"] == strongest and (first["workers"], first["runs"]) == ("2", "8")
    assert 0 < float(first["median_ms"]) <= float(first["p95_ms"]) and float(first["runs_per_s"]) > 0
    assert float(first["start_s"]) > 0 and first["machine"] and first["commit"]
    assert "runs/s on 2 workers" in capsys.readouterr().out


def test_a_machine_without_isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(wanted: str) -> None:
        raise OSError("nothing here")

    monkeypatch.setattr("mmreason.tools.sandbox.choose_isolation", refuse)
    monkeypatch.setattr(sandbox, "RESULTS", tmp_path)
    assert main(["--runs", "2", "--repeats", "1"]) == 1
    assert not list(tmp_path.iterdir())
