"""How much of a server's latency is hidden? `mmreason.clients` and the plain openai SDK against one slow local server.

    python benchmarks/endpoint.py

A server in a process of its own answers each request after 1 s ± 20 %. With c requests in flight no client can pass c
requests a second; "share" is what part of that was reached, with the tail of the last requests. The peer is the openai
SDK with `asyncio.gather` and a semaphore, without retries, ledger or checks. Also: what the ledger costs per request.
Writes one line per measurement to benchmarks/results/endpoint.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, provenance, save_rows
from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.ledger import Ledger, Reservation
from mmreason.clients.run import complete_all
from mmreason.clients.types import Reply, Request
from tests.clients.server import running_server

MODEL = "slow"


def prompts(name: str, count: int) -> list[str]:
    return [f"{name}: what is {i} + {i}?" for i in range(count)]


async def ours(base_url: str, texts: Sequence[str], concurrency: int, ledger: Path | None) -> None:
    """All requests through an Endpoint, with a ledger where one is named."""
    requests = [Request(messages=[{"role": "user", "content": text}], temperature=0.0) for text in texts]
    config = EndpointConfig(
        base_url=base_url, model=MODEL, concurrency=concurrency, price={"input": 1.0, "output": 2.0}
    )
    book = Ledger(ledger, max_budget=1000.0) if ledger else None
    async with Endpoint(config, ledger=book) as endpoint:
        async for outcome in complete_all(endpoint, requests, in_flight=2 * concurrency):
            assert outcome.reply is not None, outcome.error
    if book is not None:
        book.close()


async def plain_sdk(base_url: str, texts: Sequence[str], concurrency: int) -> None:
    """The same by the openai SDK, `asyncio.gather` and a semaphore."""
    from openai import AsyncOpenAI

    slots = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(api_key="EMPTY", base_url=base_url, max_retries=0) as client:

        async def ask(text: str) -> None:
            async with slots:
                done = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": text}], temperature=0.0, max_tokens=1024
                )
                assert done.choices[0].message.content

        await asyncio.gather(*map(ask, texts))


def seconds_of(run: Callable[[], Awaitable[None]]) -> float:
    async def timed() -> float:
        start = time.perf_counter()
        await run()
        return time.perf_counter() - start

    return asyncio.run(timed())


def measure_server(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests a second of each client, as a share of concurrency / latency."""
    count, width = arguments.requests, arguments.concurrency
    rows: list[dict[str, Any]] = []
    with (
        running_server(latency_s=arguments.latency, jitter=0.2, seed=arguments.seed) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        book = Path(folder) / "ledger"
        url = server.base_url
        runs: dict[str, Callable[[str], Awaitable[None]]] = {
            "openai SDK, gather + semaphore": lambda name: plain_sdk(url, prompts(name, count), width),
            "mmreason, no ledger": lambda name: ours(url, prompts(name, count), width, None),
            "mmreason, ledger and budget": lambda name: ours(url, prompts(name, count), width, book),
        }
        asyncio.run(plain_sdk(url, prompts("warm", 1), width))  # imports outside the clock
        for name, run in runs.items():
            before = len(server.log)
            seconds = seconds_of(lambda run=run, name=name: run(name))  # type: ignore[misc]
            asked = len(server.log) - before
            assert asked == count, f"{asked} requests for {count} rows"
            share = count / seconds / (width / arguments.latency)
            print(f"{name:<34} {count / seconds:7.1f} requests/s, share {share:.3f}")
            rows += [
                {"name": name, "value": round(count / seconds, 2), "unit": "requests/s"},
                {"name": f"{name}: share of concurrency / latency", "value": round(share, 4), "unit": "ratio"},
            ]
        again = seconds_of(lambda: ours(url, prompts("mmreason, ledger and budget", count), width, book))
        assert len(server.log) == before + count, "a committed reply was asked again"
        rows.append({"name": "resume: replies from the ledger", "value": round(count / again, 1), "unit": "requests/s"})
    return rows


def measure_ledger(count: int) -> dict[str, Any]:
    """Milliseconds to reserve and commit one request, on this machine's disk."""
    reply = Reply(text="x" * 2000, prompt_tokens=200, completion_tokens=500)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger", max_budget=1000.0) as ledger:
        start = time.perf_counter()
        for i in range(count):
            reserved = ledger.reserve(f"{i:064x}", endpoint="x", amount=10**6)
            assert isinstance(reserved, Reservation)
            ledger.commit(reserved, reply, 10**5)
        each = (time.perf_counter() - start) / count * 1000
    return {"name": "ledger: reserve and commit", "value": round(each, 4), "unit": "ms"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=1920, help="requests of each client (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="in flight (default %(default)s)")
    parser.add_argument("--latency", type=float, default=1.0, help="the server's, seconds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    logging.basicConfig()
    rows = [*measure_server(arguments), measure_ledger(2000)]
    for row in rows:
        print(f"{row['name']:<64} {row['value']:>10} {row['unit']}")
    if not arguments.no_save:
        setting = {
            "concurrency": arguments.concurrency,
            "latency_s": arguments.latency,
            "requests": arguments.requests,
        }
        under = provenance(arguments.seed, ("openai", "httpx2"))
        path = RESULTS / "endpoint.csv"
        save_rows(path, [row | setting | under for row in rows], ("name", "concurrency", "latency_s", "requests"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
