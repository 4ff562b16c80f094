"""A builder's command line against a real server: kill -9 and on again, quote, budget, interrupt, exit statuses."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_builders.building.runner import run
from mmreason.clients.ledger import Ledger
from tests.clients.server import ROOT, Running, running_server
from tests.data_builders.toy import Scripted, files_of, main, rows_of, toy, write_questions

N = 240
PRICE = "{input: 1, output: 2}"


def words(server: Running, dataset: Path, out: Path, *more: str) -> list[str]:
    """The command line, in its two spellings."""
    teacher = [f"teacher.base_url={server.base_url}", "--teacher.model", "m", f"teacher.price={PRICE}"]
    options = ["--dataset", str(dataset), f"out={out}", "--decontaminate", "[]", "license=mit", "concurrency=8"]
    return [*options, *teacher, "tasks_per_shard=40", "--teacher.backoff_s", "0.01", "--no_report", *more]


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.data_builders.toy", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server: Running, requests: int, process: subprocess.Popen[str]) -> None:
    """Until the server has seen so many requests."""
    log = server.folder / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < requests:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def committed(ledger: Path) -> set[str]:
    """The questions whose replies a ledger holds."""
    with sqlite3.connect(ledger) as db:
        texts = [json.loads(reply)["text"] for (reply,) in db.execute("SELECT reply FROM replies")]
    return {text.removeprefix("answer to: ") for text in texts}


def kill_and_resume(moments: Sequence[int], tmp_path: Path) -> None:
    """Kill at each moment (requests seen), run to the end, and compare with an unbroken run."""
    dataset = write_questions(tmp_path / "q.jsonl", N, distinct=N - 15)
    with running_server(latency_s=0.004, jitter=0.9) as server:
        assert main(words(server, dataset, tmp_path / "one")) == 0
    with running_server(latency_s=0.01, jitter=0.9, seed=1) as server:
        known: set[str] = set()
        arguments = words(server, dataset, tmp_path / "out")
        for moment in [*moments, None]:
            process, before = start(arguments), len(server.log)
            if moment is not None:
                wait_for(server, moment, process)
                process.kill()
            _, errors = process.communicate()
            assert process.returncode == (0 if moment is None else -signal.SIGKILL), errors
            again = known & {entry.prompt for entry in server.log[before:]}
            assert not again, f"paid twice: {sorted(again)[:3]}"
            known = committed(tmp_path / "out" / "ledger")
            for name, data in files_of(tmp_path / "out").items():
                assert data[-4:] == b"PAR1", f"{name} is not whole"
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "out")]
    for key in ("counts", "files", "told", "sources", "complete"):
        assert manifests[0][key] == manifests[1][key], key
    assert manifests[0]["cost"]["dollars"] == manifests[1]["cost"]["dollars"]
    assert manifests[0]["counts"]["rows"]["kept"] == N - 15 == len(rows_of(tmp_path / "out"))


@pytest.mark.slow
def test_killed_at_three_moments(tmp_path: Path) -> None:
    """In the first shard, behind the second one, and near the end."""
    kill_and_resume((25, 110, 210), tmp_path)


@pytest.mark.soak
def test_killed_twenty_times(tmp_path: Path) -> None:
    kill_and_resume(range(11, 230, 11), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_an_interrupt_lets_what_is_under_way_end(number: int, tmp_path: Path) -> None:
    dataset = write_questions(tmp_path / "q.jsonl", N)
    with running_server(latency_s=0.1) as server:
        process = start(words(server, dataset, tmp_path / "out"))
        wait_for(server, 50, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "under way end first" in errors and "the same command goes on" in errors
        asked = len(server.log)
        with Ledger(tmp_path / "out" / "ledger") as ledger:
            account = ledger.account()
        assert account.paid.requests == asked and account.doubtful.requests == 0
        assert len(rows_of(tmp_path / "out")) == asked, "what was paid for is there"
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert not manifest["complete"] and manifest["stopped"] == "interrupted"
        assert main(words(server, dataset, tmp_path / "out")) == 0
        assert len(server.log) == N and len(rows_of(tmp_path / "out")) == N


def test_what_the_pilot_says_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """±10 %: replies of very different lengths, and one in eight that is charged and of no use before a good one."""
    questions = []
    for i in range(N):
        plan = " {{no_json,ok}}" if i % 8 == 0 else ""
        questions.append({"id": f"q{i}", "question": f"{i} " + "word " * (5 + 13 * i % 90) + plan, "answer": "1"})
    dataset = tmp_path / "q.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in questions))
    with running_server() as server:
        arguments = words(server, dataset, tmp_path / "out", "--schema", "concurrency=16")
        assert main([*arguments, "--quote"]) == 0
        said = capsys.readouterr().out
        assert "pilot: 50 tasks" in said and f"the other {N - 50} tasks" in said
        asked = len(server.log)
        assert asked < 65, "the pilot alone was asked"
        expected = float(said.split(f"the other {N - 50} tasks: $")[1].split()[0])
        low, high = (float(part.strip("$)")) for part in said.split("95 % interval ")[1].split(")")[0].split(" to "))
        with Ledger(tmp_path / "out" / "ledger") as ledger:
            pilot = ledger.account().spent / 1e12
        assert main([*arguments, "--quote"]) == 0 and len(server.log) == asked, "a second quote asks nothing"
        assert not list((tmp_path / "out").glob("*.parquet"))
        assert main(arguments) == 0
        with Ledger(tmp_path / "out" / "ledger") as ledger:
            account = ledger.account()
    rest = account.spent / 1e12 - pilot
    assert account.wasted.requests == N // 8 and account.paid.requests == N
    assert expected == pytest.approx(rest, rel=0.1) and low < rest < high


def test_the_budget_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_questions(tmp_path / "q.jsonl", 60)
    with running_server() as server:
        arguments = words(server, dataset, tmp_path / "out", "--max_tokens", "16")
        assert main([*arguments, "max_budget=0.002"]) == 3
        assert "stopped: the budget of $0.002 has no room" in capsys.readouterr().err
        with Ledger(tmp_path / "out" / "ledger") as ledger:
            assert 0 < ledger.account().spent <= 0.002e12
        asked = len(server.log)
        assert main([*arguments, "max_budget=0.002"]) == 3 and len(server.log) == asked
        assert main([*arguments, "max_budget=1"]) == 0 and len(server.log) == 60
    assert len(rows_of(tmp_path / "out")) == 60


def test_several_teachers_share_the_work(tmp_path: Path) -> None:
    dataset = write_questions(tmp_path / "q.jsonl", 40)
    with running_server(latency_s=0.02) as one, running_server(latency_s=0.02) as two:
        teachers = json.dumps([{"base_url": s.base_url, "model": "m"} for s in (one, two)])
        options = ["--dataset", str(dataset), "--out", str(tmp_path / "out"), "--decontaminate", "[]", "--no_report"]
        assert main([*options, "--teacher", teachers]) == 0
        assert min(len(one.log), len(two.log)) > 5 and len(one.log) + len(two.log) == 40


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_questions(tmp_path / "q.jsonl", 5)
    with running_server() as server:
        assert main(words(server, dataset, tmp_path / "out", "--dry_run")) == 0
        assert not server.log
    said = capsys.readouterr().err
    assert "task q0: " in said and "What is 2 plus 2?" in said and "toy: 5 tasks from 5 source rows" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "gone.jsonl", "out=o", "teacher.base_url=http://x/v1", "teacher.model=m"], "gone.jsonl"),
        (["--dataset", "q.jsonl", "out=o", "stile=x"], "unknown option 'stile' (did you mean style?)"),
        (["--dataset", "q.jsonl", "out=o", "--dry_run", "--quote"], "quote and dry_run exclude each other"),
        (["--dataset", "q.jsonl"], "out has no value"),
    ],
)  # fmt: skip
def test_user_errors(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "q.jsonl", 3)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and any(part in said for part in message.split("|")), said


def test_help_is_quick() -> None:
    from tests.data_builders.commands import output_and_cpu_seconds

    text, seconds = output_and_cpu_seconds([sys.executable, "-m", "tests.data_builders.toy", "--help"])
    assert "--teacher" in text and "Teacher and money:" in text and seconds < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["trl_sft", pytest.param("sft", marks=pytest.mark.soak)])
def test_what_is_built_trains(recipe: Any, tmp_path: Path) -> None:
    from tests.data_builders.training import train_one_step

    run(toy(tmp_path), completers=[Scripted()])
    assert train_one_step(tmp_path / "out", tmp_path, recipe=recipe)["loss"] > 3
