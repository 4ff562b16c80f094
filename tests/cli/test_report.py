"""`mmreason report`: arguments, what it says, errors in one line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmreason.cli.main import main
from tests.report.synthetic_run import make_run

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmreason.cli.main", "report", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_a_report_is_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "demo", steps=2)
    assert main(["report", str(tmp_path / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'demo'}: 2 steps of metrics; 24 completions in 2 rollouts; 3 evaluations"
    assert lines[1].startswith(f"wrote {tmp_path / 'demo' / 'report.html'} (0.")
    assert (tmp_path / "demo" / "report.html").is_file()


def test_several_runs_and_another_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, steps=2)
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file() and not (tmp_path / "one" / "report.html").exists()


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"mmreason: error: {tmp_path} is no run: a run's output_dir holds metrics.jsonl")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_watch_wants_seconds(tmp_path: Path, seconds: str) -> None:
    done = run(str(tmp_path), f"--watch={seconds}")
    assert done.returncode == 2
    assert f"argument --watch: '{seconds}' is no number of seconds (a RUN goes before --watch)" in done.stderr


def test_open_asks_the_browser(tmp_path: Path) -> None:
    make_run(tmp_path / "demo", steps=2)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    done = run(str(tmp_path / "demo"), "--open", BROWSER=f"{browser} %s")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "demo" / "report.html").as_uri()
