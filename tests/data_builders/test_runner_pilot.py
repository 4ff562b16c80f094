"""Quotes, further endpoints and the progress shown, beside what test_runner_commands.py runs with a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_builders.building.build import Made, Task, Tools
from data_builders.building.runner import execute
from mmreason.clients.types import Request
from mmreason.types import ConfigError
from tests.clients.server import running_server
from tests.data_builders.toy import Scripted, Toy, failure, rows_of, toy


def quiet(_: str) -> None:
    """Hears nothing."""


def test_a_quote_of_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = Scripted(cost=0.5)
    assert execute(toy(tmp_path, rounds=True, limit=104, quote=True), completers=[teacher], say=quiet).status == 0
    said = capsys.readouterr().out
    assert teacher.asked.total() == 4, "one round: the next depends on its rows"
    assert "pilot: 4 tasks" in said and "the other 100 tasks: $50 (95 % interval $50 to $50)" in said
    execute(toy(tmp_path, rounds=True, quote=True), completers=[teacher], say=quiet)
    assert "the plan is open; 50 more tasks like these cost $25" in capsys.readouterr().out


def test_a_quote_counts_what_fails_and_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = Scripted(
        {"What is 3 ": ""}, {"What is 4 ": [failure("timeout")], "What is 5 ": [failure("budget")]}, cost=1
    )
    assert execute(toy(tmp_path, n=12, quote=True), completers=[teacher], say=quiet).status == 3
    said = capsys.readouterr().out
    assert "12 tasks, 9 of them gave 9 rows" in said and "1 failed (timeout)" in said and "$1.111 for a row" in said
    execute(toy(tmp_path, n=12), completers=[Scripted()], say=quiet)
    execute(toy(tmp_path, n=12, quote=True), completers=[Scripted()], say=quiet)
    assert capsys.readouterr().out == "no task is left to be made\n"


def test_a_bar_on_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    execute(toy(tmp_path, limit=6), completers=[Scripted()], say=quiet)
    execute(toy(tmp_path), completers=[Scripted({"What is 9 ": ""}, cost=0.25)], say=quiet, progress=True)
    shown = capfd.readouterr().err
    assert "20/20" in shown and "95% accepted, $3.5 spent now" in shown and "task/s" in shown


class Judged(Toy):
    """Asks a judge on the same ledger."""

    judge: Mapping[str, Any] = {}

    def other_endpoints(self) -> Sequence[Mapping[str, Any]]:
        return [self.judge]

    async def make(self, task: Task, tools: Tools) -> Made:
        made = await super().make(task, tools)
        await tools.endpoint(self.judge).complete(Request(messages=[{"role": "user", "content": f"Judge {task.id}"}]))
        return made


def test_a_judge_on_the_same_ledger(tmp_path: Path) -> None:
    with running_server() as teacher, running_server() as judge:
        kind = type("Own", (Judged,), {"judge": {"base_url": judge.base_url, "model": "j"}})
        settings = {"base_url": teacher.base_url, "model": "m", "price": {"input": 1, "output": 1}}
        for _ in range(2):
            result = execute(kind(toy(tmp_path, teacher=settings).options), say=quiet)
        assert result.status == 0 and result.manifest["cost"]["replies"] == 40
        assert len(teacher.log) == len(judge.log) == 20 == len(rows_of(tmp_path / "out"))
        assert result.manifest["cost"]["ledger"]["paid"]["requests"] == 40
        with pytest.raises(ConfigError, match="a budget needs the price of j"):
            execute(kind(toy(tmp_path, teacher=settings, max_budget=1.0).options), say=quiet)
