"""Quotes, further endpoints and the progress shown, beside what test_runner_commands.py runs with a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_builders._preferences.drawn import teacher_names
from data_builders.building.build import Made, Task, Tools
from data_builders.building.runner import execute
from data_builders.building.teachers import Metered, open_tools, teacher_configs
from mmreason.clients.routing import Router
from mmreason.clients.settings import EndpointConfig
from mmreason.clients.types import Request
from mmreason.types import ConfigError
from tests.clients.server import running_server
from tests.data_builders.toy import Scripted, Toy, failure, rows_of, toy

LOCAL: dict[str, Any] = {"base_url": "http://localhost:9/v1", "model": "m"}


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


def test_a_quote_of_a_server_that_is_gone_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = Scripted(errors={"What": [failure("connection")] * 99})
    assert execute(toy(tmp_path, n=60, quote=True), completers=[gone], say=quiet).status == 1
    said = capsys.readouterr().out
    assert "50 failed (connection)" in said and "no task has a reply" in said and "interval" not in said
    half = Scripted(errors={f"What is {i} ": [failure("connection")] for i in range(0, 60, 2)}, cost=1)
    assert execute(toy(tmp_path, n=60, quote=True), completers=[half], say=quiet).status == 0
    said = capsys.readouterr().out
    left = int(said.split("the other ")[1].split()[0])
    made = int(said.split(" of them gave ")[0].split()[-1])
    assert left == 60 - made and f"the other {left} tasks: ${left} (95 % interval ${left} to ${left})" in said


def test_a_quote_of_rounds_that_are_made_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(toy(tmp_path, rounds=True, limit=12), completers=[Scripted()], say=quiet)
    execute(toy(tmp_path, rounds=True, limit=20, quote=True), completers=[Scripted(cost=1)], say=quiet)
    assert "the other 8 tasks: $8" in capsys.readouterr().out


def test_a_bar_on_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    execute(toy(tmp_path, limit=6), completers=[Scripted()], say=quiet)
    execute(toy(tmp_path), completers=[Scripted({"What is 9 ": ""}, cost=0.25)], say=quiet, progress=True)
    shown = capfd.readouterr().err
    assert "20/20" in shown and "95% accepted, $3.5 spent now" in shown and "task/s" in shown


def test_copies_of_a_model_are_one_teacher(tmp_path: Path) -> None:
    def configs(*models: str) -> list[EndpointConfig]:
        return teacher_configs(toy(tmp_path, teacher=[LOCAL | {"model": model} for model in models]).options)

    bench, endpoints = open_tools(configs("m", "m", "n"), {}, None)
    copies, single = (teacher.inner for teacher in bench.teachers if isinstance(teacher, Metered))
    assert isinstance(copies, Router) and copies.policy == "least_busy" and copies.endpoints == tuple(endpoints[:2])
    assert single is endpoints[2]
    (only,) = open_tools(configs("m", "m"), {}, None)[0].teachers
    assert isinstance(only, Metered) and isinstance(only.inner, Router)
    copy = LOCAL | {"base_url": "http://localhost:10/v1"}
    options: Any = toy(tmp_path, teacher=[LOCAL, copy, LOCAL | {"model": "n"}]).options
    assert teacher_names(options, 2) == ["m", "n"]


def test_a_text_that_is_no_path_may_have_slashes(tmp_path: Path) -> None:
    for text in ("Answer a/b" + " and so on" * 500, "~nobody_at_all/x says"):
        execute(toy(tmp_path, out=text[:6], style=text, n=2), completers=[Scripted()], say=quiet)


def test_another_copy_of_a_model_gives_no_other_rows(tmp_path: Path) -> None:
    def servers(*models: str) -> Any:
        return [{"base_url": f"http://localhost:{9 + i}/v1", "model": model} for i, model in enumerate(models)]

    execute(toy(tmp_path, teacher=servers("m")[0]), completers=[Scripted()], say=quiet)
    teacher = Scripted()
    execute(toy(tmp_path, teacher=servers("m", "m")), completers=[teacher], say=quiet)
    assert not teacher.asked
    with pytest.raises(ConfigError, match="another config"):
        execute(toy(tmp_path, teacher=servers("m", "other")), completers=[teacher], say=quiet)


def test_half_a_character_is_not_sent_and_not_booked(tmp_path: Path) -> None:
    settings = LOCAL | {"base_url": "http://localhost:9/v1", "price": {"input": 1, "output": 1}}
    result = execute(toy(tmp_path, n=2, teacher=settings, style="half \ud83d"), say=quiet)
    assert result.status == 0 and result.manifest["counts"]["dropped"] == {"bad_encoding": 2}
    assert {one["requests"] for one in result.manifest["cost"]["ledger"].values()} == {0}


def test_what_was_settled_may_stay_in_the_options(tmp_path: Path) -> None:
    with running_server() as server:
        settings = {"base_url": server.base_url, "model": "m", "price": {"input": 1, "output": 1}}
        result = execute(toy(tmp_path, n=2, teacher=settings, settle_doubtful=0.5), say=quiet)
    assert result.status == 0


def test_pictures_with_a_price_need_their_bound(tmp_path: Path) -> None:
    class Seeing(Toy):
        def sends_images(self) -> bool:
            return True

    settings = LOCAL | {"price": {"input": 1, "output": 1}}
    with pytest.raises(ConfigError, match=r"give --teacher\.image_tokens"):
        execute(Seeing(toy(tmp_path, teacher=settings).options), say=quiet)
    for fine in (settings | {"image_tokens": 900}, LOCAL):
        assert execute(Seeing(toy(tmp_path, teacher=fine, dry_run=True).options), say=quiet).status == 0


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
