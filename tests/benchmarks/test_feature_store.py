"""The benchmark of the feature store: all ways learn the same, and a way that learns something else is no speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import feature_store
from benchmarks.common import read_rows
from benchmarks.feature_store import FIRST, MEMORY, NO_STORE, WAYS, Alignment, main, measure
from tests.models.parts import TIMM_VIT


def test_other_losses_are_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alignment = Alignment(tmp_path, 6, 2, {**TIMM_VIT}, "xs", 0)
    rows = measure(alignment, tmp_path / "stores", 1)
    assert [row["way"] for row in rows] == list(WAYS)
    by_way = {row["way"]: row for row in rows}
    assert by_way[MEMORY]["over_memory"] == 1 == by_way[NO_STORE]["over_no_store"]
    assert by_way[FIRST]["kib_per_image"] >= 4  # 16 patches of 64 numbers
    assert all(row["first_loss"] == rows[0]["first_loss"] and row["last_loss"] != row["first_loss"] for row in rows)

    measured = feature_store.measure_once

    def wrong(*arguments: object) -> object:
        done, size = measured(*arguments)  # type: ignore[arg-type]
        done[FIRST].losses[-1] += 1e-7
        return done, size

    monkeypatch.setattr(feature_store, "measure_once", wrong)
    with pytest.raises(RuntimeError, match="first epoch: losses"):
        measure(alignment, tmp_path / "other", 1)


def test_rows_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(feature_store, "RESULTS", tmp_path)
    command = ["--images", "2", "--batch", "2", "--repeats", "1", "--decoder", "xs", "--tower", "vit_tiny_patch16_224"]
    assert main(command) == 0 == main(command)
    rows = read_rows(tmp_path / "feature_store.csv")
    assert [row["way"] for row in rows] == list(WAYS) and all(row["commit"] and row["versions"] for row in rows)
    assert (tmp_path / "feature_store.png").stat().st_size > 5000
    assert "features in memory, 0.9 is claimed" in capsys.readouterr().out
