"""What guards said, and when: read, put into the page, and drawn into the charts of what they watch."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from mmreason.report import write_report
from mmreason.report.metrics import read_events
from mmreason.report.run import fingerprint, read_run
from mmreason.trainers.guard_options import GUARDS
from tests.report.test_page import core

SAID = "guard entropy: entropy, nats per token: 0.004 <b>low</b>"


def guarded(run: Path) -> Path:
    """The run with an alarm of the entropy guard from step 5 to step 8, and what was said about it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        alarm = 5 <= row["step"] <= 8
        row |= {"entropy": 0.004 if alarm else 0.5, "guards/entropy": float(alarm)}
        row |= {"guards/entropy/low": 0.01, "guards/entropy/high": 1.5, "guards/non_finite": 0.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    event = {"step": 5, "guard": "entropy", "event": "alarm", "value": 0.004, "low": 0.01, "high": 1.5, "message": SAID}
    (run / "guards.jsonl").write_text(json.dumps(event) + "\n")
    return run


def test_events_and_bounds_reach_the_page(run: Path) -> None:
    (data,) = core(write_report([guarded(run)]).read_text(encoding="utf-8"))["runs"]
    assert data["events"] == [{"step": 5, "guard": "entropy", "message": SAID}]
    assert data["series"]["guards/entropy"][3:9] == [0, 1, 1, 1, 1, 0]
    assert set(data["series"]["guards/entropy/low"]) == {0.01}


def test_a_run_without_guards_has_no_events(run: Path) -> None:
    assert read_run(run).events == [] and read_events(run / "guards.jsonl") == ([], [])


def test_a_line_under_way_is_left_out_and_a_bad_one_named(tmp_path: Path) -> None:
    path = tmp_path / "guards.jsonl"
    path.write_text('{"step": 3, "guard": "kl", "message": "x"}\n[]\n{"step": 4, "gua')
    found, problems = read_events(path)
    assert found == [{"step": 3, "guard": "kl", "message": "x"}]
    assert problems == ["guards.jsonl: 1 lines are no events (line 2 first), skipped"]


def test_a_new_event_is_something_new_to_show(run: Path) -> None:
    before = fingerprint(run)
    guarded(run)
    assert any(name.endswith("guards.jsonl") for name, *_ in fingerprint(run) - before)


def test_the_page_knows_every_guard() -> None:
    script = (files("mmreason.report") / "assets" / "curves.js").read_text(encoding="utf-8")
    block = script.split("const GUARDED = {")[1].split("};")[0]
    pairs = dict(line.strip().rstrip(",").replace('"', "").rsplit(": ", 1) for line in block.strip().splitlines())
    assert pairs == {kind.metric: name for name, kind in GUARDS.items()}


@pytest.mark.slow
def test_alarms_and_bounds_are_drawn(run: Path, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(write_report([guarded(run)])).all_unpacked()
    chart = tab.page.query_selector('[data-chart="entropy"]')
    (band,) = chart.query_selector_all("rect.alarm")
    plot = chart.query_selector("svg").bounding_box()["width"]
    assert 0.2 < band.bounding_box()["width"] / plot < 0.45  # 4 of 11 steps
    assert len(chart.query_selector_all("path.bound")) == 1  # the upper one lies above the chart
    assert "guard entropy in alarm" in chart.inner_text()
    assert SAID in tab.page.query_selector("#guards").inner_text()  # as text, not as markup
    assert not tab.page.query_selector('[data-chart="guards/entropy"]')
