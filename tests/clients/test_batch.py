"""The Batch API: taken into the ledger, partial failures and all, and never submitted twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmreason.clients.batch import BatchRun
from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.ledger import Ledger
from mmreason.clients.run import Outcome
from mmreason.clients.types import EndpointError, Request
from mmreason.types import ConfigError
from tests.clients.server import Running, running_server

ROOT = Path(__file__).resolve().parents[2]
PRICE = {"input": 1.0, "output": 2.0, "batch": 0.5}


def rows(texts: Sequence[str], **fields: Any) -> list[Request]:
    return [Request(messages=[{"role": "user", "content": text}], **fields) for text in texts]


def run_batches(server: Running, ledger: Ledger, requests: Sequence[Request], size: int = 50) -> list[Outcome]:
    async def inside() -> list[Outcome]:
        config = EndpointConfig(base_url=server.base_url, model="m", price=PRICE)
        async with Endpoint(config, ledger=ledger) as endpoint:
            return await BatchRun(endpoint, requests, max_requests=size, poll_s=0.05).run()

    return asyncio.run(asyncio.wait_for(inside(), 60))


def submissions(server: Running) -> int:
    return server.events.count("POST /v1/batches")


def test_results_partial_failures_and_expiry(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(120)]
    texts[3] += " {{batch_error}}"
    texts[60] += " {{batch_expired,ok}}"
    texts[61] += " {{wrong_schema,ok}}"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with running_server() as server, Ledger(tmp_path / "ledger") as ledger:
        outcomes = run_batches(server, ledger, rows(texts, json_schema=schema))
        assert [outcome.index for outcome in outcomes] == list(range(120))
        assert submissions(server) == 3
        failed = {outcome.index: outcome.error.kind for outcome in outcomes if outcome.error}
        assert failed == {3: "bad_request", 60: "timeout", 61: "schema"}
        account = ledger.account()
        assert (account.paid.requests, account.wasted.requests, account.in_flight.requests) == (117, 1, 0)
        prompt, completion = server.charged_tokens()
        assert account.spent == round((prompt + 2 * completion) / 2 * 1e6)  # half the price
        again = run_batches(server, ledger, rows(texts, json_schema=schema))
        assert {outcome.index for outcome in again if outcome.error} == {3}
        assert max(server.asked().values()) == 2 and submissions(server) == 4
        assert sum(outcome.reply is not None and outcome.reply.from_ledger for outcome in again) == 117
        assert ledger.batches(server.base_url) == []


KILLED = """
import asyncio, sys
from mmreason.clients.batch import BatchRun
from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.ledger import Ledger
from mmreason.clients.types import Request
url, path, where = sys.argv[1:]
endpoint = Endpoint(EndpointConfig(base_url=url, model="m"), ledger=Ledger(path))
requests = [Request(messages=[{"role": "user", "content": f"row {i}"}]) for i in range(30)]
run = BatchRun(endpoint, requests, poll_s=0.05)
if where == "before the id is kept":
    def submitted(name, server_id):
        print("now", flush=True)
        import time; time.sleep(600)
    run.ledger.submitted = submitted
elif where == "before it is submitted":
    async def submit(name, data):
        print("now", flush=True)
        await asyncio.sleep(600)
    run._submit = submit
asyncio.run(run.run(lambda done: print("now", flush=True)))
"""


@pytest.mark.parametrize("where", ["while it waits", "before the id is kept", "before it is submitted"])
def test_a_killed_run_finds_its_batch_again(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.clients.batch._LOOK_S", 0.05)
    path = tmp_path / "ledger"
    with running_server(batch_s=1.5) as server:
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, server.base_url, str(path), where],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "now\n"
            process.kill()
        with Ledger(path) as ledger:
            assert ledger.account().in_flight.requests == 30  # a batch outlives its process: nothing is in doubt
            outcomes = run_batches(server, ledger, rows([f"row {i}" for i in range(30)]))
            assert ledger.account().doubtful.requests == 0
        assert all(outcome.reply for outcome in outcomes)
        assert submissions(server) == 1 and set(server.asked().values()) == {1}


def test_two_commands_at_once_submit_once(tmp_path: Path) -> None:
    async def both(server: Running) -> None:
        config = EndpointConfig(base_url=server.base_url, model="m")
        requests = rows([f"row {i}" for i in range(30)])
        with Ledger(tmp_path / "ledger") as one, Ledger(tmp_path / "ledger") as other:
            runs = [BatchRun(Endpoint(config, ledger=ledger), requests, poll_s=0.05).run() for ledger in (one, other)]
            for outcomes in await asyncio.wait_for(asyncio.gather(*runs), 60):
                assert all(outcome.reply for outcome in outcomes)

    with running_server(batch_s=0.5) as server:
        asyncio.run(both(server))
        assert submissions(server) == 1


def test_an_online_request_does_not_double_one_of_a_batch(tmp_path: Path) -> None:
    async def inside(server: Running, ledger: Ledger) -> None:
        async with Endpoint(EndpointConfig(base_url=server.base_url, model="m"), ledger=ledger) as endpoint:
            (request,) = rows(["row 0"])
            batch = asyncio.create_task(BatchRun(endpoint, [request], poll_s=0.05).run())
            while not ledger.account().in_flight.requests:
                await asyncio.sleep(0.01)
            with pytest.raises(EndpointError, match="under way"):
                await endpoint.complete(request)
            await batch
            assert (await endpoint.complete(request)).from_ledger

    with running_server(batch_s=0.5) as server, Ledger(tmp_path / "ledger") as ledger:
        asyncio.run(inside(server, ledger))
        assert server.times_asked("row 0") == 1


def test_a_budget_submits_what_fits(tmp_path: Path) -> None:
    answered = []
    with running_server() as server, Ledger(tmp_path / "ledger", max_budget=0.01) as ledger:
        for _ in range(2):  # the same command goes on with what the first one's replies left of the budget
            outcomes = run_batches(server, ledger, rows([f"row {i}" for i in range(400)]))
            failed = [outcome.error.kind for outcome in outcomes if outcome.error]
            assert set(failed) == {"budget"}
            answered.append(400 - len(failed))
        assert 0 < answered[0] < answered[1] < 400 and submissions(server) == 2
        prompt, completion = server.charged_tokens()
        assert (prompt + 2 * completion) / 2 / 1e6 <= 0.01


def test_a_server_without_batches_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.clients.batch._RETRIES", 1)
    start = time.monotonic()
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m")

    async def inside(ledger: Ledger | None) -> None:
        async with Endpoint(config, ledger=ledger) as endpoint:
            await BatchRun(endpoint, rows(["x"])).run()

    with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(EndpointError, match="no connection"):
            asyncio.run(inside(ledger))
        assert ledger.account().in_flight.requests == 0  # nothing was submitted
    with pytest.raises(ConfigError, match="needs a ledger"):
        asyncio.run(inside(None))
    assert time.monotonic() - start < 30
