"""The runner: order, resume, rounds, failures, floors and folders, with a teacher in this process."""

from __future__ import annotations

import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_builders.building import shards as _shards
from data_builders.building import taking as _taking
from data_builders.building.build import Drop, Made, Task, Tools
from data_builders.building.runner import execute, run
from mmreason.types import ConfigError, DataError, Example, MMReasonError
from tests.data_builders.toy import (
    Rounds,
    Scripted,
    Toy,
    ToyOptions,
    failure,
    files_of,
    rows_of,
    toy,
    write_questions,
)


def quiet(_: str) -> None:
    """Hears nothing."""


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    teacher = Scripted({"What is 3 ": "", "What is 7 ": "same", "What is 9 ": "same"}, cost=0.25)
    manifest = run(toy(tmp_path), completers=[teacher], say=quiet)
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"toy/q{i}" for i in range(20) if i not in (3, 9)]
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "What is 0 plus 0?"}],
        "completion": [
            {"role": "assistant", "reasoning_content": "I think.", "content": "answer to: What is 0 plus 0?"}
        ],
        "answer": "0", "id": "toy/q0", "source": "toy", "meta": {"kind": "number", "pair": [1, 2]},
    }  # fmt: skip
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["builder"] == "data_builders.toy" and manifest["told"] == {"texts": 18}
    assert manifest["counts"]["tasks"] == {"planned": 20, "done": 20, "failed": 0, "accepted": 18}
    assert manifest["counts"]["rows"] == {"made": 19, "kept": 18}
    assert manifest["counts"]["dropped"] == {"duplicate": 1, "empty": 1}
    characters = sum(len(row["completion"][0]["content"]) for row in rows) + len("same")
    assert manifest["counts"]["extra"] == {"characters": characters, "empties": 1}
    assert manifest["cost"]["replies"] == 20 and manifest["cost"]["dollars"] == 5.0
    assert [entry["rows"] for entry in manifest["files"].values()] == [5, 5, 6, 2]
    (source,) = manifest["sources"]
    assert source["rows"] == 20 and source["license"] == "mit" and source["name"].endswith("questions20.jsonl")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *manifest["files"], "manifest.json", "README.md", "report.html", ".build"
    }  # fmt: skip


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 16),
    size=st.integers(1, 9),
    concurrency=st.integers(1, 12),
    seed=st.integers(0, 3),
    empty=st.sets(st.integers(0, 16), max_size=4),
)
def test_order_and_concurrency_change_no_row(n: int, size: int, concurrency: int, seed: int, empty: set[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_questions(folder / "q.jsonl", n, distinct=max(1, n - n // 4))
        answers = {f"What is {i} ": "" for i in empty}
        builder = toy(folder, dataset=dataset, tasks_per_shard=size, concurrency=concurrency, report=False)
        teacher = Scripted(answers, latency_s=0.002, seed=seed)
        try:
            run(builder, completers=[teacher], say=quiet)
        except DataError:
            raise AssertionError("a run without faults failed") from None
        distinct = max(1, n - n // 4)
        kept = [i for i in range(min(n, distinct)) if i not in empty]
        assert [row["id"] for row in rows_of(folder / "out")] == [f"toy/q{i}" for i in kept]
        assert teacher.most_at_once <= concurrency
        shards = {i // size for i in kept}
        assert sorted(files_of(folder / "out")) == [f"train-{k:05d}.parquet" for k in sorted(shards)]
        assert len(list((folder / "out" / ".build").glob("0*.json"))) == -(-n // size)


def test_many_tasks_are_under_way_across_shards(tmp_path: Path) -> None:
    teacher = Scripted(latency_s=0.05)
    run(toy(tmp_path, n=40, tasks_per_shard=3, concurrency=16), completers=[teacher], say=quiet)
    assert teacher.most_at_once == 16


class CrashError(RuntimeError):
    """Ends a run in the middle, as a defect of a builder would."""


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("moment", [1, 7, 12, 19])
def test_a_crash_and_a_new_run_give_the_rows_of_an_unbroken_one(rounds: bool, moment: int, tmp_path: Path) -> None:
    limit = {"limit": 20} if rounds else {}
    unbroken = run(toy(tmp_path, out="one", rounds=rounds, **limit), completers=[Scripted()], say=quiet)

    class Crashing(Scripted):
        async def complete(self, request: Any) -> Any:
            if self.asked.total() == moment:
                raise CrashError
            return await super().complete(request)

    with pytest.raises(CrashError):
        run(toy(tmp_path, rounds=rounds, concurrency=3, **limit), completers=[Crashing(latency_s=0.003)], say=quiet)
    broken = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not broken["complete"] and "CrashError" in broken["stopped"]
    teacher = Scripted(latency_s=0.003)
    manifest = run(toy(tmp_path, rounds=rounds, concurrency=5, **limit), completers=[teacher], say=quiet)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert manifest["counts"] == unbroken["counts"] and manifest["told"] == unbroken["told"]
    assert manifest["files"] == unbroken["files"] and manifest["cost"] == unbroken["cost"]
    assert teacher.asked.total() <= 20 - (moment - 3) // 6 * 6, "finished shards are not made again"


def test_rounds_see_all_rows_of_the_rounds_before(tmp_path: Path) -> None:
    """With 4 tasks a round, the question of task i is made from the rows of tasks 0 to i // 4 * 4 - 1."""
    files = []
    for concurrency in (1, 2, 7):
        builder = toy(tmp_path, out=str(concurrency), rounds=True, limit=22, concurrency=concurrency)
        teacher = Scripted(latency_s=0.004, seed=concurrency)
        manifest = run(builder, completers=[teacher], say=quiet)
        files.append(files_of(tmp_path / str(concurrency)))
        assert teacher.most_at_once <= min(4, concurrency)
        kept = [int(row["id"].rpartition("/")[2]) for row in rows_of(tmp_path / str(concurrency))]
        for row in rows_of(tmp_path / str(concurrency)):
            number = int(row["id"].rpartition("/")[2])
            seen = int(row["prompt"][0]["content"].split(" of ")[1].split(":")[0])
            assert seen == sum(other < number // 4 * 4 for other in kept)
        assert manifest["counts"]["tasks"]["done"] == 22
    assert files[0] == files[1] == files[2]


def test_failed_tasks_are_asked_again_and_later_rows_follow(tmp_path: Path) -> None:
    """Question 2 fails at first. Its answer is that of question 13, whose row must go once question 2 has its own."""
    answers = {"What is 2 ": "same", "What is 13 ": "same"}
    run(toy(tmp_path, out="one"), completers=[Scripted(answers)], say=quiet)
    said: list[str] = []
    result = execute(
        toy(tmp_path), completers=[Scripted(answers, {"What is 2 ": [failure("timeout")]})], say=said.append
    )
    assert result.status == 1 and not result.manifest["complete"]
    assert result.manifest["counts"]["failed"] == {"timeout": 1}
    assert "toy/q13" in {row["id"] for row in rows_of(tmp_path / "out")}
    assert any("the same command goes on" in line for line in said)
    again = execute(toy(tmp_path), completers=[Scripted(answers)], say=quiet)
    assert again.status == 0 and again.manifest["complete"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    third = Scripted(answers)
    assert execute(toy(tmp_path), completers=[third], say=quiet).status == 0 and not third.asked


def test_a_shard_with_failures_does_not_cost_the_finished_ones_before_it(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted(errors={"What is 14 ": [failure()]})], say=quiet)
    teacher = Scripted()
    run(toy(tmp_path), completers=[teacher], say=quiet)
    assert sorted(teacher.asked) == sorted(f"What is {i} plus {i}?" for i in range(12, 20))


def test_an_outage_in_a_second_run_loses_no_row(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted(errors={"What is 2 ": [failure()]})], say=quiet)
    before = files_of(tmp_path / "out")
    dead = Scripted(errors={"What": [failure("budget")] * 99})
    result = execute(toy(tmp_path, concurrency=1), completers=[dead], say=quiet)
    assert result.status == 3 and dead.asked.total() == 1
    assert files_of(tmp_path / "out") == before, "its own shard, too: more of its tasks were done there"
    run(toy(tmp_path), completers=[Scripted()], say=quiet)
    assert len(rows_of(tmp_path / "out")) == 20


def test_where_rounds_depend_on_it_a_failed_task_stays_failed(tmp_path: Path) -> None:
    teacher = Scripted(errors={"3 of ": [failure("schema")]})
    first = execute(toy(tmp_path, rounds=True, limit=12), completers=[teacher], say=quiet)
    assert first.status == 1 and first.manifest["counts"]["failed"] == {"schema": 1}
    again = Scripted()
    second = execute(toy(tmp_path, rounds=True, limit=12), completers=[again], say=quiet)
    assert not again.asked and second.manifest["counts"] == first.manifest["counts"]


@pytest.mark.parametrize("kind", ["server", "timeout", "connection", "circuit_open", "rate_limit"])
def test_where_rounds_depend_on_it_an_outage_ends_the_run(kind: str, tmp_path: Path) -> None:
    """The second round has no reply: no third one is begun, and the rows are those of a run without the outage."""
    run(toy(tmp_path, out="one", rounds=True, limit=20), completers=[Scripted()], say=quiet)
    down = Scripted(errors={" of 4": [failure(kind)] * 4})
    result = execute(toy(tmp_path, rounds=True, limit=20), completers=[down], say=quiet)
    assert result.status == 1 and down.asked.total() == 8
    assert "later tasks depend on one that failed" in result.manifest["stopped"]
    assert execute(toy(tmp_path, rounds=True, limit=20), completers=[Scripted()], say=quiet).status == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_an_interrupt_leaves_a_fuller_shard_alone(tmp_path: Path) -> None:
    """The last shard, two tasks of it, is made again since the limit grows: stopped in its first task, it stays."""
    run(toy(tmp_path, limit=8), completers=[Scripted()], say=quiet)
    before = files_of(tmp_path / "out")
    broke = Scripted(errors={"What is 7 ": [failure("budget")]})
    assert execute(toy(tmp_path, concurrency=1), completers=[broke], say=quiet).status == 3
    assert files_of(tmp_path / "out") == before
    dead = Scripted(errors={"What is 6 ": [failure("budget")]})
    assert execute(toy(tmp_path, concurrency=1), completers=[dead], say=quiet).status == 3
    assert files_of(tmp_path / "out") == before and len(rows_of(tmp_path / "out")) == 8


def test_what_the_content_filter_refuses_is_dropped_for_good(tmp_path: Path) -> None:
    result = execute(toy(tmp_path), completers=[Scripted(errors={"What is 2 ": [failure("refused")]})], say=quiet)
    assert result.status == 0 and result.manifest["counts"]["dropped"] == {"refused": 1}


@pytest.mark.parametrize(("error", "status"), [(failure("budget"), 3), (failure("auth", 401), 1), (failure("auth"), 1)])
def test_what_every_request_would_meet_ends_the_run(error: Exception, status: int, tmp_path: Path) -> None:
    teacher = Scripted(errors={"What is 13 ": [error]})
    result = execute(toy(tmp_path, concurrency=2), completers=[teacher], say=quiet)
    assert result.status == status and teacher.asked.total() <= 15
    assert str(error) in result.manifest["stopped"] and result.manifest["files"]["train-00001.parquet"]["rows"] == 6
    assert len(rows_of(tmp_path / "out")) >= 13, "the rows of the shard under way are there, too"
    assert "Not complete" in (tmp_path / "out" / "README.md").read_text()
    run(toy(tmp_path, out="one"), completers=[Scripted()], say=quiet)
    again = execute(toy(tmp_path), completers=[Scripted()], say=quiet)
    assert again.status == 0 and files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_a_dead_server_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_taking, "MANY_FAILURES", 5)
    teacher = Scripted(errors={"What": [failure("connection")] * 99})
    result = execute(toy(tmp_path, n=50, concurrency=2), completers=[teacher], say=quiet)
    assert result.status == 1 and "5 tasks in a row" in result.manifest["stopped"] and teacher.asked.total() < 10


def test_the_accept_floor_stops_and_shows_samples(tmp_path: Path) -> None:
    said: list[str] = []
    teacher = Scripted({f"What is {i} ": "" for i in range(4, 200)})
    builder = toy(tmp_path, n=200, min_accept_rate=0.5, min_accept_after=10, concurrency=2)
    result = execute(builder, completers=[teacher], say=said.append)
    assert result.status == 4 and teacher.asked.total() < 20
    assert "4 of 10 tasks gave a row, 40%, and min_accept_rate is 50%" in result.manifest["stopped"]
    assert "  q4: nothing came for q4" in said
    lower = toy(tmp_path, n=200, min_accept_rate=0.01, min_accept_after=10)
    assert execute(lower, completers=[teacher], say=quiet).status == 0


def test_the_accept_floor_is_of_tasks_with_a_reply(tmp_path: Path) -> None:
    """A server that is gone is no bad builder; nor are the tasks that it failed, when their shards are read again."""
    down = Scripted(errors={f"What is {i} ": [failure("connection")] for i in range(2, 20)})
    for teacher, status in ((down, 1), (Scripted(), 0)):
        builder = toy(tmp_path, min_accept_rate=0.9, min_accept_after=2)
        assert execute(builder, completers=[teacher], say=quiet).status == status


def test_half_a_character_drops_its_task(tmp_path: Path) -> None:
    async def make(self: Toy, task: Task, tools: Tools) -> Made:
        if task.id == "q3":
            "\ud83d".encode()  # as an endpoint does that is asked so
        return await Toy.make(self, task, tools)

    manifest = run(changed(tmp_path, make=make), completers=[Scripted()], say=quiet)
    assert manifest["complete"] and manifest["counts"]["dropped"] == {"bad_encoding": 1}
    assert manifest["counts"]["rows"]["kept"] == 19


@pytest.mark.parametrize("name", ["config.json", "lock", "test_sets.json"])
def test_a_full_disk_before_the_first_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.parent.name == ".build" and name in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    tests = write_questions(tmp_path / "tests.jsonl", 3)
    with pytest.raises(ConfigError, match="--out .*No space left on device; make room"):
        run(toy(tmp_path, decontaminate=[f"t={tests}#train"]), completers=[Scripted()], say=quiet)


def test_a_full_disk_stops_cleanly_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _shards.write_parquet

    def full(dataset: Any, path: Path) -> None:
        if path.name == "train-00001.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(dataset, path)

    monkeypatch.setattr(_shards, "write_parquet", full)
    teacher = Scripted(latency_s=0.002)
    with pytest.raises(MMReasonError, match="No space left on device.*Make room.*goes on"):
        run(toy(tmp_path, concurrency=4), completers=[teacher], say=quiet)
    assert teacher.most_at_once and [row["id"] for row in rows_of(tmp_path / "out")] == [f"toy/q{i}" for i in range(6)]
    monkeypatch.setattr(_shards, "write_parquet", written)
    second = Scripted()
    assert run(toy(tmp_path), completers=[second], say=quiet)["complete"]
    assert len(rows_of(tmp_path / "out")) == 20 and second.asked.total() == 14


# --------------------------------------------------------------------------------------------------------------------
# Whose folder is it?


def test_another_config_is_refused_before_anyone_is_asked(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted()], say=quiet)
    before = files_of(tmp_path / "out")
    teacher = Scripted()
    with pytest.raises(ConfigError, match='another config\'s manifest.*another --out.*config.style.."plain" there'):
        run(toy(tmp_path, style="curt"), completers=[teacher], say=quiet)
    write_questions(tmp_path / "questions20.jsonl", 21)
    with pytest.raises(ConfigError, match=r"another config's manifest.*sources\.0"):
        run(toy(tmp_path, dataset=tmp_path / "questions20.jsonl"), completers=[teacher], say=quiet)
    assert not teacher.asked and files_of(tmp_path / "out") == before


def test_what_changes_no_row_may_change(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted()], say=quiet)
    moved = tmp_path / "elsewhere" / "questions20.jsonl"
    moved.parent.mkdir()
    (tmp_path / "questions20.jsonl").rename(moved)
    teacher = Scripted()
    run(toy(tmp_path, dataset=moved, concurrency=3, report=False), completers=[teacher], say=quiet)
    assert not teacher.asked


@pytest.mark.parametrize("name", ["manifest.json", "README.md", "train-00000.parquet"])
def test_files_of_something_else_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds files of something else .{name}"):
        run(toy(tmp_path), completers=[Scripted()], say=quiet)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    first = toy(tmp_path)
    store = _shards.ShardStore(first.options.out, "train", 6, first.columns)
    with store.locked(), pytest.raises(ConfigError, match=r"another process \(\d+\) builds there"):
        run(toy(tmp_path), completers=[Scripted()], say=quiet)
    assert run(toy(tmp_path), completers=[Scripted()], say=quiet)["complete"]


def test_the_limit_grows_and_never_shrinks(tmp_path: Path) -> None:
    small = run(toy(tmp_path, limit=8), completers=[Scripted()], say=quiet)
    assert small["complete"] and len(rows_of(tmp_path / "out")) == 8
    teacher = Scripted()
    run(toy(tmp_path, limit=8), completers=[teacher], say=quiet)
    assert not teacher.asked
    run(toy(tmp_path), completers=[teacher], say=quiet)
    assert sorted(teacher.asked) == sorted(f"What is {i} plus {i}?" for i in range(6, 20)), "the first shard was whole"
    run(toy(tmp_path, out="one"), completers=[Scripted()], say=quiet)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    with pytest.raises(ConfigError, match="--limit 8.*holds 20 tasks already"):
        run(toy(tmp_path, limit=8), completers=[teacher], say=quiet)


@pytest.mark.parametrize("rounds", [False, True])
def test_the_limit_of_rounds_grows_too(rounds: bool, tmp_path: Path) -> None:
    for limit in (7, 12, 19):
        run(toy(tmp_path, rounds=rounds, limit=limit), completers=[Scripted()], say=quiet)
    run(toy(tmp_path, out="one", rounds=rounds, limit=19), completers=[Scripted()], say=quiet)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


@pytest.mark.parametrize("damage", ["changed", "missing", "journal"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted()], say=quiet)
    shard, entry = tmp_path / "out" / "train-00001.parquet", tmp_path / "out" / ".build" / "00001.json"
    whole = files_of(tmp_path / "out")
    if damage == "changed":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif damage == "missing":
        shard.unlink()
    else:
        entry.write_text("{")
    with pytest.raises(DataError, match="00001.*delete .*made again") as caught:
        run(toy(tmp_path), completers=[Scripted()], say=quiet)
    assert str(entry) in str(caught.value)
    entry.unlink()
    teacher = Scripted()
    run(toy(tmp_path), completers=[teacher], say=quiet)
    assert files_of(tmp_path / "out") == whole and teacher.asked["What is 6 plus 6?"] == 1
    assert "What is 0 plus 0?" not in teacher.asked


def test_what_a_kill_between_file_and_journal_leaves_is_made_again(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted()], say=quiet)
    whole = files_of(tmp_path / "out")
    for number in (2, 3):
        (tmp_path / "out" / ".build" / f"0000{number}.json").unlink()
    (tmp_path / "out" / "train-00002.parquet").write_bytes(b"another")
    for left in (".train-00003.parquet.77.tmp", ".manifest.json.77.tmp", ".README.md.7.tmp", ".report.html.7.tmp"):
        (tmp_path / "out" / left).write_bytes(b"half")
    (tmp_path / "out" / ".mine.tmp").write_bytes(b"mine")
    teacher = Scripted()
    run(toy(tmp_path), completers=[teacher], say=quiet)
    assert files_of(tmp_path / "out") == whole and teacher.asked.total() == 8
    assert [path.name for path in (tmp_path / "out").glob(".*.tmp")] == [".mine.tmp"]


# --------------------------------------------------------------------------------------------------------------------
# What a builder must not do


def changed(tmp_path: Path, **methods: Any) -> Toy:
    """A toy with other methods."""
    kind = type("Changed", (Toy,), methods)
    made = toy(tmp_path)
    return kind(made.options)  # type: ignore[no-any-return]


def test_bad_plans(tmp_path: Path) -> None:
    teacher = Scripted()
    with pytest.raises(DataError, match="two tasks have the id 'a'"):
        run(changed(tmp_path, plan=lambda self: iter([Task("a", 1), Task("a", 2)])), completers=[teacher], say=quiet)
    with pytest.raises(DataError, match="there is nothing to do"):
        run(changed(tmp_path, plan=lambda self: iter(())), completers=[teacher], say=quiet)
    assert not teacher.asked


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "chosen": "x"}, "the column 'chosen', which is none of its columns"),
        ({"answer": "x"}, r"no id \(a text\)"),
        ({"id": "a", "meta": {"when": object()}}, "row 'a' holds what can't be written"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    async def make(self: Toy, task: Task, tools: Tools) -> Made:
        return Made([row])  # type: ignore[list-item]

    with pytest.raises(DataError, match=message):
        run(changed(tmp_path, make=make), completers=[Scripted()], say=quiet)


def test_an_id_comes_once(tmp_path: Path) -> None:
    def row(self: Toy, task: Task, text: str) -> Example:
        return Toy.row(self, task, text) | {"id": f"half/{int(task.id[1:]) // 2}"}  # type: ignore[return-value]

    for _ in range(2):
        manifest = run(changed(tmp_path, row=row), completers=[Scripted()], say=quiet)
        assert manifest["counts"]["dropped"] == {"duplicate_id": 10} and manifest["counts"]["rows"]["kept"] == 10


def test_a_keep_that_remembers_dropped_rows_is_found(tmp_path: Path) -> None:
    def keep(self: Toy, row: Example) -> Drop | None:
        self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
        return Drop("even") if self.calls % 2 == 0 else None  # type: ignore[attr-defined]

    run(changed(tmp_path, keep=keep), completers=[Scripted()], say=quiet)
    with pytest.raises(DataError, match="was kept, and is now dropped"):
        run(changed(tmp_path, keep=keep), completers=[Scripted()], say=quiet)


def test_a_plan_that_cannot_be_repeated_is_found(tmp_path: Path) -> None:
    run(toy(tmp_path), completers=[Scripted()], say=quiet)

    def plan(self: Toy) -> Any:
        return (Task(f"x{i}", example) for i, example in enumerate(self.examples))

    with pytest.raises(DataError, match="shard 0 was made of other tasks"):
        run(changed(tmp_path, plan=plan), completers=[Scripted()], say=quiet)


def test_rounds_need_no_limit_where_the_plan_ends(tmp_path: Path) -> None:
    class Ending(Rounds):
        def plan(self) -> Any:
            for number, task in enumerate(super().plan()):
                if number == 10:
                    return
                yield task

    options = toy(tmp_path, rounds=True).options
    for asked in (10, 0):
        teacher = Scripted()
        assert run(Ending(options), completers=[teacher], say=quiet)["complete"]
        assert teacher.asked.total() == asked


def test_option_values_are_checked() -> None:
    for name, value in (("limit", 0), ("concurrency", 0), ("tasks_per_shard", 0), ("min_accept_rate", 1.5)):
        with pytest.raises(ConfigError, match=name):
            ToyOptions(out=Path("x"), dataset=Path("y"), **{name: value})  # type: ignore[arg-type]
