"""The benchmark of the demo with pictures: its stages, what it reads from them, which claims it lets pass."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_vision
from benchmarks.common import read_rows
from benchmarks.demo_vision import STAGES, broken_claims, curve_rows, flags, folder_of, main, plot, result_row
from tests.recipes.launch import ROOT

RECORD = {
    "seconds": {"text": 100.0, "align": 300.04, "sft": 60.0, "grpo": 200.0},
    "seed": 1, "machine": "m", "versions": "v", "commit": "c", "date": "d",
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and results of tests stay out of the checkout."""
    monkeypatch.setattr(demo_vision, "OUTPUTS", tmp_path / "runs")
    monkeypatch.setattr(demo_vision, "RESULTS", tmp_path / "results")


def share(value: float, width: float = 0.05) -> dict[str, Any]:
    return {"n": 300, "value": value, "low": value - width, "high": value + width}


def write_runs(seed: int, after: dict[str, Any] | None = None) -> None:
    for stage in STAGES:
        folder_of(seed, stage).mkdir(parents=True)
        lines: list[dict[str, Any]] = [{"step": 10, "loss": 0.9}, {"step": 20, "loss": 0.1}]
        if stage.name == "align":
            lines.append({"step": 20, "eval/loss": 0.12345})
        if stage.name == "grpo":
            lines = [{"step": step, "reward": 0.5, "completions/mean_length": 9.0} for step in (1, 2)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder_of(seed, stage) / "metrics.jsonl").write_text(text, encoding="utf-8")

    def sets(value: dict[str, Any]) -> dict[str, Any]:
        measured = {"greedy": value, "mean_length": 8.0}
        return {"sets": {"held_out": measured, "unseen_combinations": {"greedy": share(0.3), "mean_length": 8.0}}}

    entries = {"before": {"step": 0} | sets(share(0.6)), "after": {"step": 2} | sets(after or share(0.75))}
    (folder_of(seed, STAGES[-1]) / "evaluation.json").write_text(json.dumps(entries), encoding="utf-8")


def row_of(seed: int, blank: float = 0.2) -> dict[str, Any]:
    accuracy = {"true": share(0.75), "blank": share(blank), "shuffled": share(0.25)}
    return result_row(seed, RECORD, accuracy, chance=0.21)


def test_each_stage_takes_up_the_one_before() -> None:
    words = [flags(2, stage) for stage in STAGES]
    assert all("--seed" in one and one[one.index("--seed") + 1] == "2" for one in words)
    assert not {"--model_name_or_path", "--decoder"} & set(words[0])
    for before, stage, one in zip(STAGES, STAGES[1:], words[1:], strict=False):
        named = ROOT / one[one.index(f"--{stage.takes}") + 1]
        assert named.resolve() == (folder_of(2, before) / "final").resolve()


def test_the_target_and_the_benchmark_run_the_same_configurations() -> None:
    """`make demo-vision` runs each stage's YAML, and each YAML takes up what the one before has written."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile[makefile.index("demo-vision: setup") :].split("\n\n")[0]
    assert [line.split("--config ")[1].split()[0] for line in recipe.splitlines()[1:]] == [
        os.path.relpath(stage.config, ROOT) for stage in STAGES
    ]
    options = [demo_vision.options_of(["--config", str(stage.config)], stage.recipe) for stage in STAGES]
    for (before, after), stage in zip(itertools.pairwise(options), STAGES[1:], strict=True):
        assert after[stage.takes] == f"{before['output_dir']}/final"
    assert {one["shapes"]["image_size"] for one in options} == {options[1]["vision"]["image_size"]}


def test_a_row() -> None:
    write_runs(1)
    row = row_of(1)
    assert (row["greedy_before"], row["greedy_after"], row["gain_points"]) == (0.6, 0.75, 15.0)
    assert (row["caption_loss"], row["align_steps"], row["grpo_steps"]) == (0.1235, 20, 2)
    assert (row["blank_accuracy"], row["blank_low"], row["wall_seconds"]) == (0.2, 0.15000000000000002, 660.0)
    assert list(row)[-5:] == ["seed", "machine", "versions", "commit", "date"]
    assert broken_claims([row]) == []


@pytest.mark.parametrize(
    ("after", "blank", "words"),
    [
        (share(0.69), 0.2, ["+9.0 points, at least 10", "intervals overlap"]),
        (share(0.71, 0.08), 0.2, ["intervals overlap (up to 0.650 before, from 0.630 after)"]),
        (share(0.75), 0.27, ["0.270 (from 0.220) with blank images, above the most frequent answer's 0.210"]),
    ],
)
def test_claims_that_do_not_hold(after: dict[str, Any], blank: float, words: list[str]) -> None:
    write_runs(1, after)
    broken = broken_claims([row_of(1, blank)])
    assert len(broken) == len(words) and all(word in line for word, line in zip(words, broken, strict=True))


def test_curves_and_picture(tmp_path: Path) -> None:
    curves: list[dict[str, Any]] = []
    for seed in (1, 2):
        write_runs(seed)
        curves += curve_rows(seed)
    mine = [row for row in curves if row["run"] == "seed-1"]
    assert [(row["stage"], row["step"]) for row in mine] == [
        *((stage, step) for stage in ("text", "align", "sft") for step in (10, 20)),
        *(("grpo", step) for step in (0, 1, 2)),
    ]
    assert mine[3]["held_out_loss"] == 0.12345 and mine[-1]["greedy"] == 0.75 and "loss" not in mine[-1]
    columns = sorted({name for row in curves for name in row})
    texts = [{name: str(row.get(name, "")) for name in columns} for row in curves]
    plot(texts, [{key: str(value) for key, value in row_of(seed).items()} for seed in (1, 2)], tmp_path / "curve.png")
    from matplotlib.image import imread

    picture = imread(tmp_path / "curve.png")
    assert picture.shape[:2] == (680, 2200) and picture[:, :, :3].std() > 0.05, "an empty picture"


@pytest.mark.soak  # `make evidence` runs it for real
def test_four_real_stages_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of each stage through `accelerate launch` teach nothing: the claims fail, and it says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_vision, "CANARY_ROWS", 8)
    small = "tasks: [count], style: mixed, level: 1, n: 24, n_test: 8, n_unseen: 8, image_size: 32"
    each = ["--max_steps", "2", "--shapes", f"{{{small}}}", "--per_device_train_batch_size", "8"]
    each += ["--logging_steps", "1", "--eval_samples", "4"]
    more = {"text": ["--tiny_size", "xs"], "align": ["--eval_steps", "2"], "sft": ["--max_completion_length", "4"]}
    more["grpo"] = ["--max_completion_length", "4", "--num_generations", "4", "--eval_steps", "2"]
    monkeypatch.setattr(demo_vision, "flags", lambda seed, stage: [*flags(seed, stage), *each, *more[stage.name]])
    assert main(["--seeds", "1", "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "NOT SHOWN  seed-1: greedy accuracy" in captured.err and "at least 10 are claimed" in captured.err
    (row,) = read_rows(tmp_path / "results" / "demo_vision.csv")
    assert [row[f"{stage.name}_steps"] for stage in STAGES] == ["2"] * 4
    assert 0 <= float(row["blank_accuracy"]) <= 1 and 0.2 <= float(row["chance"]) <= 1
    stages = [line["stage"] for line in read_rows(tmp_path / "results" / "demo_vision_curves.csv")]
    assert list(dict.fromkeys(stages)) == ["text", "align", "sft", "grpo"]
    assert (tmp_path / "results" / "demo_vision.png").is_file()

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert len(stamps) == 4 and main(["--seeds", "1", "--threads", "1"]) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")} == stamps
