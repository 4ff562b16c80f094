"""metrics.jsonl and evaluation.json, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

from mmreason.report.metrics import read_measurements, read_metrics
from mmreason.trainers.reward_metrics import of_rankings


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def test_rows_become_columns_and_rows_of_other_schemas_leave_gaps(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 2.5}', '{"step": 3, "reward": 1, "loss": null}')
    metrics, problems, notes = read_metrics(path)
    assert metrics.steps == [1, 3]
    assert metrics.series == {"loss": [2.5, None], "reward": [None, 1.0]}
    assert (problems, notes) == ([], [])


def test_what_is_no_finite_number_is_a_gap(tmp_path: Path) -> None:
    rows = [
        '{"step": 1, "a": NaN, "b": 1}',
        '{"step": 2, "a": -Infinity, "b": true}',
        '{"step": 3, "a": "7", "b": [2]}',
    ]
    metrics, problems, _ = read_metrics(write(tmp_path / "metrics.jsonl", *rows, '{"step": 4, "a": 5, "c": null}'))
    assert metrics.series == {"a": [None, None, None, 5.0], "b": [1.0, None, None, None]}
    assert problems == []


def test_a_cut_off_last_line_is_left_out_and_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1}', '{"step": 2, "lo', end="")
    metrics, problems, notes = read_metrics(path)
    assert metrics.steps == [1]
    assert problems == []
    assert notes == ["the last line of metrics.jsonl is cut off and was left out"]


def test_a_whole_last_line_without_line_break_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1}', '{"step": 2, "loss": 2}', end="")
    metrics, _, notes = read_metrics(path)
    assert (metrics.steps, notes) == ([1, 2], [])


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", "{", '{"step": 1, "loss": 1}', "[1]", '{"loss": 2}', '{"step": "x"}')
    metrics, problems, notes = read_metrics(path)
    assert metrics.steps == [1]
    assert problems == ["metrics.jsonl: 4 lines are no metrics (line 1, 3, 4, …), skipped"]
    assert notes == []


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xff\xfe\x00\n{"step": 1, "loss": 1}\n')
    metrics, problems, _ = read_metrics(path)
    assert metrics.steps == [1]
    assert problems == ["metrics.jsonl: 1 line is no metrics (line 1), skipped"]


def test_a_step_done_again_counts_once_with_the_later_row(tmp_path: Path) -> None:
    rows = ['{"step": 1, "loss": 1}', '{"step": 2, "loss": 9}', '{"step": 2, "loss": 2}']
    metrics, _, _ = read_metrics(write(tmp_path / "metrics.jsonl", *rows))
    assert (metrics.steps, metrics.series["loss"]) == ([1, 2], [1.0, 2.0])


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl")[1:] == ([], [])
    assert read_measurements(tmp_path / "evaluation.json") == ([], [])


GREEDY = {"correct": 1, "n": 2, "value": 0.5, "low": 0.1, "high": 0.9}


def test_measurements_are_ordered_by_step(tmp_path: Path) -> None:
    entry = {"sets": {"held_out": {"greedy": GREEDY, "majority": None, "k": 4, "verdicts": {"correct": 1}}}}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"after": {"step": 9} | entry, "before": {"step": 0} | entry}), encoding="utf-8")
    found, problems = read_measurements(path)
    assert [(m.name, m.step) for m in found] == [("before", 0), ("after", 9)]
    assert found[0].sets == {"held_out": {"greedy": GREEDY, "k": 4.0, "verdicts": {"correct": 1}}}
    assert problems == []


def test_a_reward_models_measurements_keep_numbers_and_bins(tmp_path: Path) -> None:
    parts = of_rankings([[0, 1], [0, 1], [0, 0, 1]], [[1.0, 0.5], [0.2, 2.0], [0.1, 0.3, -1.0]])
    broken = {"reliability": [[0.5, 0.5], "x", [0.7, None, 3], [0.9, 1.0, 2]], "kendall_tau": {"value": None}}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"after": {"step": 9, "sets": {"held_out": parts, "other": broken}}}), encoding="utf-8")
    (found,), problems = read_measurements(path)
    assert problems == []
    sets = found.sets
    assert sets["held_out"]["reliability"] == parts["reliability"] and len(parts["reliability"]) > 1
    assert sets["held_out"]["pair_accuracy"] == parts["pair_accuracy"]
    assert sets["held_out"]["kendall_tau"]["value"] == parts["kendall_tau"]["value"]
    assert sets["other"] == {"reliability": [[0.9, 1.0, 2]]}


def test_an_entry_of_the_first_version_is_the_set_held_out(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"before": {"step": 0, "greedy": GREEDY, "k": 1}}), encoding="utf-8")
    found, problems = read_measurements(path)
    assert found[0].sets["held_out"]["greedy"] == GREEDY
    assert problems == []


def test_entries_of_another_form_are_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    content = {
        "before": [],
        "x": {"step": "?"},
        "y": {"step": 1, "sets": []},
        "z": {"step": 2, "sets": {"a": {"greedy": 1}}},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    found, problems = read_measurements(path)
    assert [m.name for m in found] == ["z"] and found[0].sets == {"a": {}}
    assert problems == [f"evaluation.json: {name!r} is no measurement, skipped" for name in ("before", "x", "y")]


def test_a_half_written_evaluation_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text('{"before": {"st', encoding="utf-8")
    found, problems = read_measurements(path)
    assert found == []
    assert len(problems) == 1 and problems[0].startswith("evaluation.json can't be read (Unterminated string")
    path.write_text("[]", encoding="utf-8")
    assert read_measurements(path) == ([], ["evaluation.json holds no measurements"])
