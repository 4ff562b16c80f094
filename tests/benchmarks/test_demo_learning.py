"""The benchmark of the demo: what it runs, what it reads from runs, which claims it lets pass, what it draws."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_learning
from benchmarks.common import read_rows
from benchmarks.demo_learning import Run, broken_claims, curve_rows, flags, identity, main, plan, plot, result_row
from tests.recipes.launch import SMALL, small_example

RECORD = {"seconds": 61.24, "seed": 1, "machine": "m", "versions": "v", "commit": "c", "date": "d"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and results of tests stay out of the checkout."""
    monkeypatch.setattr(demo_learning, "OUTPUTS", tmp_path / "runs")
    monkeypatch.setattr(demo_learning, "RESULTS", tmp_path / "results")
    return tmp_path


def share(correct: int, n: int, low: float, high: float) -> dict[str, Any]:
    return {"greedy": {"correct": correct, "n": n, "value": correct / n, "low": low, "high": high}, "mean_length": 9.0}


def write_run(folder: Path, after: dict[str, Any] | None = None, reward: float = 0.5, seconds: float = 1.0) -> None:
    """A run of three steps, two with samples, measured on two sets before and after."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "reward": reward,
            "completions/mean_length": 8.0 + step,
            "sampling/sampling_logp_difference/max": step * 1e-6,
            "time/step": seconds,
        }
        for step in (1, 2)
    ]
    lines.append({"step": 3, "time/step": seconds})  # another update with the second rollout
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {"held_out": share(250, 500, 0.456, 0.544), "unseen_templates": share(20, 50, 0.276, 0.538)}
    later = {"held_out": after or share(300, 500, 0.556, 0.642), "unseen_templates": share(30, 50, 0.462, 0.724)}
    entries = {"before": {"step": 0, "sets": before}, "after": {"step": 2, "sets": later}}
    (folder / "evaluation.json").write_text(json.dumps(entries))


def test_the_command_has_no_options_but_what_tells_runs_apart() -> None:
    runs = plan([1, 2, 3])
    assert [run.name for run in runs] == ["seed-1", "seed-2", "seed-3", "seed-1-again", "seed-1-vllm"]
    folder = os.path.relpath(runs[1].folder, demo_learning.ROOT)
    assert flags(runs[1], None) == ["--seed", "2", "--output_dir", folder]
    assert flags(runs[4], 7)[4:] == ["--use_vllm", "true", "--vllm_mode", "colocate", "--max_steps", "7"]
    assert (runs[3].seed, runs[3].twin, runs[3].engine) == (1, "seed-1", "hf")


def test_identity_follows_options_and_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("seed-1", 1)
    monkeypatch.setattr(demo_learning, "WARM_START", tmp_path / "warm")
    options, digest = identity(flags(run, 3))
    assert options["seed"] == 1 and options["max_steps"] == 3
    assert identity(flags(run, 3))[1] == digest != identity(flags(run, 4))[1]
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "model.safetensors").write_bytes(b"weights")
    assert identity(flags(run, 3))[1] != digest


def test_a_row(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "seed-1")
    row = result_row(Run("seed-1", 1), RECORD)
    assert row["greedy_before"] == 0.5 and row["greedy_after"] == 0.6 and row["gain_points"] == 10.0
    assert (row["unseen_n"], row["unseen_before"], row["unseen_after_high"]) == (50, 0.4, 0.724)
    assert row["intervals_overlap"] == "no" and row["same_curve"] is None and row["wall_seconds"] == 61.2
    assert list(row)[-5:] == ["seed", "machine", "versions", "commit", "date"]
    assert broken_claims([row]) == []


def test_the_same_curve_but_for_times(tmp_path: Path) -> None:
    again = Run("seed-1-again", 1, twin="seed-1")
    write_run(tmp_path / "runs" / "seed-1")
    write_run(tmp_path / "runs" / "seed-1-again", seconds=2.0)
    assert result_row(again, RECORD)["same_curve"] == "yes"
    shutil.rmtree(again.folder)
    write_run(again.folder, reward=0.5 + 1e-12)
    row = result_row(again, RECORD)
    assert row["same_curve"] == "no"
    assert broken_claims([row]) == ["seed-1-again: the same seed gave other numbers than the first time"]
    shutil.rmtree(again.folder)
    write_run(again.folder, after=share(301, 500, 0.556, 0.642))
    assert result_row(again, RECORD)["same_curve"] == "no"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (share(299, 500, 0.554, 0.64), ["0.500 → 0.598 on 500 held-out problems: +9.8 points, at least 10"]),
        (share(300, 500, 0.54, 0.66), ["intervals overlap (up to 0.544 before, from 0.540 after)"]),
        (share(240, 500, 0.437, 0.524), ["-2.0 points", "intervals overlap"]),
    ],
)
def test_claims_that_do_not_hold(tmp_path: Path, after: dict[str, Any], words: list[str]) -> None:
    write_run(tmp_path / "runs" / "seed-1", after=after)
    broken = broken_claims([result_row(Run("seed-1", 1), RECORD)])
    assert len(broken) == len(words) and all(word in line for word, line in zip(words, broken, strict=True))


def test_curves_and_picture(tmp_path: Path) -> None:
    rows = []
    for seed in (1, 2):
        write_run(tmp_path / "runs" / f"seed-{seed}")
        rows += curve_rows(Run(f"seed-{seed}", seed))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert rows[0]["greedy"] == 0.5 and "reward" not in rows[0] and rows[1] == {
        "run": "seed-1", "engine": "hf", "step": 1, "reward": 0.5, "mean_length": 9.0
    }  # fmt: skip
    assert rows[2]["unseen"] == 0.6 and rows[2]["greedy_high"] == 0.642 and rows[2]["mean_length"] == 10.0
    texts = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    plot(texts, [1, 2], tmp_path / "curve.png")
    from matplotlib.image import imread

    height, width, _ = imread(tmp_path / "curve.png").shape
    assert (width, height) == (1600, 680)
    assert imread(tmp_path / "curve.png")[:, :, :3].std() > 0.05, "an empty picture"


def test_a_run_that_is_not_planned() -> None:
    with pytest.raises(SystemExit):
        main(["--only", "seed-9"])


@pytest.mark.soak  # `make evidence` runs it for real
def test_runs_are_real_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of a small model through `accelerate launch` teach it nothing: the claims fail, and it says so."""
    small = [*small_example(), *SMALL, "--eval_samples", "4", "--max_steps", "2"]
    monkeypatch.setattr(demo_learning, "flags", lambda run, steps: [*small, *flags(run, steps)])
    words = ["--seeds", "1", "--only", "seed-1", "seed-1-again", "--threads", "1"]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "NOT SHOWN  seed-1: greedy accuracy" in captured.err and "at least 10 are claimed" in captured.err
    rows = read_rows(tmp_path / "results" / "demo_learning.csv")
    assert [(row["run"], row["same_curve"], row["steps"]) for row in rows] == [
        ("seed-1", "", "2"), ("seed-1-again", "yes", "2")
    ]  # fmt: skip
    assert all(float(row["wall_seconds"]) > 1 and row["commit"] for row in rows)
    curves = read_rows(tmp_path / "results" / "demo_learning_curves.csv")
    assert [row["step"] for row in curves] == ["0", "1", "2"] * 2
    assert (tmp_path / "results" / "demo_learning.png").is_file()

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert main(words) == 1
    assert "seed-1: finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")} == stamps

    monkeypatch.setattr(demo_learning, "flags", lambda run, steps: [*small, *flags(run, steps), "--temperature", "0"])
    with pytest.raises(SystemExit, match=r"(?s)seed-1 ended with exit status 1 .*temperature=0.0 must be above 0"):
        main(words)
