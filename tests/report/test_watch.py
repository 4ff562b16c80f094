"""`mmreason report RUN --watch`: follows a run, says what it does, and ends cleanly."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmreason.report import watch_report
from mmreason.types import DataError
from tests.report.synthetic_run import make_run

ROOT = Path(__file__).resolve().parents[2]


def unfinish(run: Path) -> None:
    """As the run was before its last step was measured."""
    path = run / "evaluation.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({name: entry for name, entry in entries.items() if name != "after"}))


def data_of(path: Path) -> dict:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return dict(json.loads(found[1]))


class Watcher:
    """The command in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", "mmreason.cli.main", "report", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.lines: list[str] = []
        # As a terminal starts it: a shell's background jobs, of which the tests may be one, ignore Ctrl-C.
        listens = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=listens
        )

    def wait_for(self, text: str) -> str:
        """Read on until a line has `text`; the test's own time limit ends the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return line.rstrip()
        raise AssertionError(f"{text!r} was never said: {self.lines}")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.lines += self.process.communicate(timeout=60)[0].splitlines()
        return self.process.returncode


@pytest.fixture
def watcher(run: Path) -> Iterator[Watcher]:
    unfinish(run)
    found = Watcher(str(run), "--watch", "0.2")
    yield found
    found.process.kill()
    found.process.wait()


@pytest.mark.slow
def test_watching_follows_a_run_and_ends_on_ctrl_c(watcher: Watcher, run: Path) -> None:
    assert watcher.wait_for("watching") == "watching demo: a new report within 0.2 s of any change; Ctrl-C ends it"
    watcher.wait_for("wrote")
    assert (data_of(run / "report.html")["reload"], data_of(run / "report.html")["runs"][0]["last_step"]) == (0.2, 12)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward": 0.5}\n')
    assert "demo at step 13: wrote" in watcher.wait_for("step 13")
    assert data_of(run / "report.html")["runs"][0]["steps"][-1] == 13

    (run / "rollouts" / "rollout-000013.parquet").write_bytes(b"half")
    assert "rollouts/rollout-000013.parquet can't be read" in watcher.wait_for("rollout-000013")

    assert watcher.interrupt() == 0
    assert watcher.lines[-1] == f"stopped; {run / 'report.html'} is the last report"
    assert not any("Traceback" in line for line in watcher.lines)
    assert data_of(run / "report.html")["reload"] is None
    assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_watching_outlives_a_folder_that_is_started_over(watcher: Watcher, run: Path) -> None:
    watcher.wait_for("wrote")
    shutil.rmtree(run)
    assert "is no run" in watcher.wait_for("trying again")
    time.sleep(0.5)
    make_run(run, steps=3)
    watcher.wait_for("at step 3")
    watcher.wait_for("the run is finished")
    assert watcher.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_watching_ends_when_the_run_is_finished(watcher: Watcher, run: Path) -> None:
    watcher.wait_for("wrote")
    make_run(run)
    assert watcher.wait_for("finished") == f"the run is finished; {run / 'report.html'} is the last report"
    assert watcher.process.wait(timeout=60) == 0
    assert data_of(run / "report.html")["reload"] is None


def test_nothing_is_rebuilt_while_nothing_changes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinish(run)
    said: list[str] = []
    looks = iter(range(3))

    def sleep(seconds: float) -> None:
        assert seconds == 7
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("mmreason.report.watch.time.sleep", sleep)
    watch_report([run], seconds=7, say=said.append)
    assert sum("wrote" in line for line in said) == 1


def test_a_finished_run_is_written_once(run: Path) -> None:
    said: list[str] = []
    opened: list[Path] = []
    assert watch_report([run], say=said.append, started=opened.append) == run / "report.html"
    assert opened == [run / "report.html"]
    assert said[-1].startswith("the run is finished; ")


def test_the_first_report_must_succeed(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        watch_report([tmp_path / "nothing"], say=lambda line: None)
