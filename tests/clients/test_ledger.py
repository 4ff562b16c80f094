"""The ledger: nothing asked twice, nothing above the budget, whoever is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from mmreason.clients.ledger import Ledger, Reservation
from mmreason.clients.types import EndpointError, Reply, TokenLogprob
from mmreason.types import ConfigError, DataError
from tests.timing import allowed

ROOT = Path(__file__).resolve().parents[2]
PICO = 10**12


def reserve(ledger: Ledger, key: str, amount: int | None = 0) -> Reservation:
    found = ledger.reserve(key, endpoint="e", amount=amount)
    assert isinstance(found, Reservation), found
    return found


def reply(text: str = "yes", **fields: object) -> Reply:
    return Reply(text=text, endpoint="e", **fields)  # type: ignore[arg-type]


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    given = reply(
        "naïve \ud83d 答案",  # a lone surrogate, as a careless server sends it
        reasoning="because",
        tool_calls=({"id": "1", "function": {"name": "f", "arguments": "{}"}},),
        finish_reason="tool_calls",
        prompt_tokens=3,
        completion_tokens=5,
        cached_tokens=2,
        logprobs=(TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.25))), TokenLogprob("b", -1e-9)),
        parsed={"a": [1, None, "x"]},
        model="m",
        cost=0.25,
        seconds=3.0,
    )
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.commit(reserve(ledger, "k", PICO), given, PICO // 4)
    with Ledger(tmp_path / "ledger") as ledger:
        found = ledger.find("k")
        assert ledger.find("other") is None
        assert ledger.reserve("k", endpoint="e", amount=PICO) == found
    import dataclasses

    assert found == dataclasses.replace(given, from_ledger=True, seconds=0.0)


def test_the_account_follows_each_way_a_request_can_end(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        for end, key in ((ledger.release, "a"), (ledger.doubt, "b")):
            end(reserve(ledger, key, 100))
        ledger.waste(reserve(ledger, "c", 100), 30)
        ledger.commit(reserve(ledger, "d", 100), reply(), 20)
        reserve(ledger, "e", 7)
        account = ledger.account()
    assert [(e.requests, e.amount) for e in (account.paid, account.wasted, account.in_flight, account.doubtful)] == [
        (1, 20), (1, 30), (1, 7), (1, 100),
    ]  # fmt: skip
    assert account.spent == 150


def test_the_same_request_in_flight_is_not_sent_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger, Ledger(tmp_path / "ledger") as other:
        first = reserve(ledger, "k")
        assert ledger.reserve("k", endpoint="e", amount=0) == "elsewhere"
        assert other.reserve("k", endpoint="e", amount=0) == "elsewhere"
        ledger.commit(first, reply(), 0)
        found = other.reserve("k", endpoint="e", amount=0)
        assert isinstance(found, Reply) and found.from_ledger


def test_a_full_budget_waits_for_flights_and_then_refuses(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", max_budget=1.0) as ledger:
        first = reserve(ledger, "a", PICO * 6 // 10)
        assert ledger.reserve("b", endpoint="e", amount=PICO // 2) == "no_room"
        ledger.commit(first, reply(), PICO * 4 // 10)  # cheaper than feared
        second = reserve(ledger, "b", PICO // 2)
        ledger.doubt(second)
        with pytest.raises(
            EndpointError, match=r"budget of \$1.00 has no room: \$0.9 are spent \(\$0.5 of them"
        ) as caught:
            ledger.reserve("c", endpoint="e", amount=PICO // 5)
        assert caught.value.kind == "budget"
        assert isinstance(ledger.reserve("c", endpoint="e", amount=PICO // 10), Reservation)  # to the last cent


def test_doubtful_requests_count_until_the_bill_is_in(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", max_budget=1.0) as ledger:
        ledger.doubt(reserve(ledger, "a", PICO))
        with pytest.raises(EndpointError):
            ledger.reserve("b", endpoint="e", amount=1)
        for wrong in (-1.0, 1.5):
            with pytest.raises(ConfigError, match=r"between \$0 and \$1.00"):
                ledger.settle_doubtful(wrong)
        assert ledger.settle_doubtful(0.25) == 1
        assert ledger.account().spent == PICO // 4
        assert isinstance(ledger.reserve("b", endpoint="e", amount=PICO * 3 // 4), Reservation)


def test_closing_puts_open_requests_in_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        reserve(ledger, "a", PICO)
    assert "1 requests were in flight when their process ended; at most $1.00 may have been charged" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger"]


KILLED = """
import sys, time
from mmreason.clients.ledger import Ledger
from mmreason.clients.types import Reply
ledger = Ledger(sys.argv[1], max_budget=1.0)
kept = ledger.reserve("kept", endpoint="e", amount=5)
ledger.commit(kept, Reply(text="yes", endpoint="e"), 4)
for key in ("a", "b"):
    ledger.reserve(key, endpoint="e", amount=10)
print("ready", flush=True)
time.sleep(600)
"""


def test_kill_9_keeps_what_is_committed_and_doubts_what_was_in_flight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with Ledger(path) as ledger:
            assert ledger.account().in_flight.requests == 2  # it lives: nothing is in doubt
            assert ledger.reserve("a", endpoint="e", amount=10) == "elsewhere"
            process.send_signal(signal.SIGKILL)
            process.wait()
            found = ledger.find("kept")
            assert found is not None and found.text == "yes"
            again = reserve(ledger, "a", 10)  # noticed without opening anew
            assert "2 requests were in flight when their process ended" in caplog.text
            assert ledger.account().doubtful.amount == 20
            ledger.commit(again, reply(), 1)
    with Ledger(path) as ledger:
        account = ledger.account()
        assert (account.doubtful.requests, account.doubtful.amount, account.spent) == (2, 20, 25)


WORKER = """
import pathlib, random, sys, time
from mmreason.clients.ledger import Ledger, Reservation
from mmreason.clients.types import EndpointError, Reply
path, asked, budget = sys.argv[1:]
ledger = Ledger(path, max_budget=float(budget))
pathlib.Path(asked + ".ready").touch()
while not pathlib.Path(path + ".go").exists():
    time.sleep(0.001)
with open(asked, "a") as log:
    for i in random.sample(range(150), 150):
        key = f"{i}"
        while True:
            try:
                found = ledger.reserve(key, endpoint="e", amount=3_000_000)
            except EndpointError as error:
                assert error.kind == "budget"
                break
            if isinstance(found, Reservation):
                log.write(key + "\\n")
                log.flush()
                time.sleep(0.003)
                ledger.commit(found, Reply(text=key, endpoint="e"), 2_000_000)
                break
            if isinstance(found, Reply):
                break
            time.sleep(0.002)
ledger.close()
"""


@pytest.mark.parametrize("budget", ["1", "0.0002"])
def test_processes_share_a_ledger(tmp_path: Path, budget: str) -> None:
    """Three processes want the same 150 requests: each is asked once, and all of them together keep to the budget."""
    logs = [tmp_path / f"asked{i}" for i in range(3)]
    running = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "ledger"), str(log), budget], cwd=ROOT)
        for log in logs
    ]
    while not all(log.with_name(f"{log.name}.ready").exists() for log in logs):
        assert all(process.poll() is None for process in running), "one has ended before it began"
        time.sleep(0.01)
    (tmp_path / "ledger.go").touch()
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    asked = [key for log in logs for key in log.read_text().split()]
    assert len(asked) == len(set(asked))
    assert sum(bool(log.read_text()) for log in logs) >= 2  # they did meet
    with Ledger(tmp_path / "ledger") as ledger:
        account = ledger.account()
    assert account.paid.requests == len(asked) and account.in_flight.requests == 0
    if budget == "1":
        assert len(asked) == 150
    else:
        assert 0.9 * 0.0002 * PICO < account.spent <= 0.0002 * PICO


def test_many_open_the_same_new_file_at_once(tmp_path: Path) -> None:
    """SQLite itself refuses some of them, without waiting."""
    for number in range(60):
        barrier, refused = threading.Barrier(8), list[Exception]()

        def open_it(path: Path, barrier: threading.Barrier = barrier, refused: list[Exception] = refused) -> None:
            barrier.wait()
            try:
                Ledger(path).close()
            except Exception as error:
                refused.append(error)

        threads = [threading.Thread(target=open_it, args=(tmp_path / str(number),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not refused


class Money(RuleBasedStateMachine):
    """Any order of events: never above the budget, and the account is the sum of what happened."""

    reservations = Bundle("reservations")
    budget = 1000

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger"
        self.ledger = self.open()
        self.spent: dict[str, int] = {"paid": 0, "wasted": 0, "doubtful": 0}
        self.flights: dict[int, int] = {}
        self.count = 0

    def open(self) -> Ledger:
        return Ledger(self.path, max_budget=float(Decimal(self.budget) / PICO))

    @rule(target=reservations, amount=st.integers(0, 400))
    def reserve(self, amount: int) -> Reservation | None:
        self.count += 1
        gone, flying = sum(self.spent.values()), sum(self.flights.values())
        try:
            found = self.ledger.reserve(f"key {self.count}", endpoint="e", amount=amount)
        except EndpointError as error:
            assert error.kind == "budget" and gone + amount > self.budget
            return None
        if found == "no_room":
            assert gone + amount <= self.budget < gone + flying + amount
            return None
        assert isinstance(found, Reservation) and gone + flying + amount <= self.budget
        self.flights[found.id] = amount
        return found

    @rule(
        reservation=consumes(reservations), how=st.sampled_from(["commit", "waste", "release", "doubt"]), data=st.data()
    )
    def end(self, reservation: Reservation | None, how: str, data: st.DataObject) -> None:
        if reservation is None or reservation.id not in self.flights:
            return
        bound = self.flights.pop(reservation.id)
        cost = data.draw(st.integers(0, bound))
        if how == "commit":
            self.ledger.commit(reservation, reply(), cost)
            self.spent["paid"] += cost
        elif how == "waste":
            self.ledger.waste(reservation, cost)
            self.spent["wasted"] += cost
        elif how == "doubt":
            self.ledger.doubt(reservation)
            self.spent["doubtful"] += bound
        else:
            self.ledger.release(reservation)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.open()
        self.spent["doubtful"] += sum(self.flights.values())
        self.flights.clear()

    @precondition(lambda self: self.spent["doubtful"])
    @rule(data=st.data())
    def bill(self, data: st.DataObject) -> None:
        charged = data.draw(st.integers(0, self.spent["doubtful"]))
        self.ledger.settle_doubtful(float(Decimal(charged) / PICO))
        self.spent["wasted"] += charged
        self.spent["doubtful"] = 0

    @invariant()
    def the_account_is_right(self) -> None:
        account = self.ledger.account()
        assert {name: getattr(account, name).amount for name in self.spent} == self.spent
        assert account.in_flight.amount == sum(self.flights.values())
        assert account.spent + account.in_flight.amount <= self.budget
        sums = self.ledger._db.execute(
            "SELECT (SELECT coalesce(sum(cost), 0) FROM replies) + (SELECT coalesce(sum(amount), 0) FROM attempts)"
        ).fetchone()
        assert sums == (account.spent + account.in_flight.amount,)

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


Money.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestMoney = Money.TestCase


class TestFiles:
    def test_rubbish(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        path.write_bytes(os.urandom(5000))
        with pytest.raises(DataError, match="damaged or no ledger"):
            Ledger(path)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be opened"):
            Ledger(tmp_path)

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE replies (x)")
        with pytest.raises(DataError, match="of another program"):
            Ledger(path)
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)  # left as it was

    def test_a_newer_version(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        Ledger(path).close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        with pytest.raises(DataError, match="newer mmreason .ledger version 99"):
            Ledger(path)

    def test_damage_inside(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        with Ledger(path) as ledger:
            for i in range(200):
                ledger.commit(reserve(ledger, f"{i}"), reply("x" * 500), 0)
        raw = bytearray(path.read_bytes())
        raw[4096:] = os.urandom(len(raw) - 4096)
        path.write_bytes(raw)
        with pytest.raises(DataError, match="damaged"), Ledger(path) as ledger:
            for i in range(200):
                ledger.find(f"{i}")

    def test_an_empty_file_becomes_a_ledger(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "ledger"
        with Ledger(path) as ledger:
            assert ledger.account().spent == 0

    def test_a_budget_below_zero(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="from 0 up"):
            Ledger(tmp_path / "ledger", max_budget=-1)

    def test_a_budget_without_a_price(self, tmp_path: Path) -> None:
        with Ledger(tmp_path / "ledger", max_budget=1) as ledger, pytest.raises(ConfigError, match="price"):
            ledger.reserve("k", endpoint="e", amount=None)

    def test_a_forked_child_must_open_its_own(self, tmp_path: Path) -> None:
        with Ledger(tmp_path / "ledger") as ledger:
            child = os.fork()
            if child == 0:
                try:
                    ledger.find("k")
                except RuntimeError:
                    os._exit(7)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 7
            assert ledger.find("k") is None


def test_reserve_and_commit_take_little(tmp_path: Path) -> None:
    """They run in the event loop: 64 requests a second must not feel them. A generous bound for a busy machine."""
    with Ledger(tmp_path / "ledger", max_budget=1.0) as ledger:
        start = time.perf_counter()
        for i in range(300):
            ledger.commit(reserve(ledger, f"{i}", 10), reply("x" * 2000), 1)
        assert (time.perf_counter() - start) / 300 < allowed(0.005)
