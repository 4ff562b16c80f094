"""The Batch API: many requests in a file, answered within a day, usually at a lower price.

A batch is written into the ledger before it is submitted, with a reservation for each request, under a name that goes
into the batch's metadata; the server's id follows once it is known. A killed run finds its batches again by the id, or
by the name among the server's batches, so that none is submitted twice. `custom_id` is the request's key in the ledger.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mmreason.clients.endpoint import Endpoint, Failure, Job
from mmreason.clients.ledger import Batch, Ledger, Reservation
from mmreason.clients.prices import to_dollars
from mmreason.clients.run import Outcome
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.clients.wire import ReplyError, Usage, parse_found
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

MAX_REQUESTS = 50_000
"""Requests in a batch at most, and MAX_BYTES in its file: the limits of the OpenAI API."""
MAX_BYTES = 190_000_000
NAME_FIELD = "mmreason_batch"
_ENDED = ("completed", "failed", "expired", "cancelled")
_RETRIES = 5  # of calls that may be repeated
_LOOKS, _LOOK_S = 3, 2.0  # for a batch whose submission may or may not have reached the server

log = logging.getLogger("mmreason.clients")


class BatchRun:
    """Requests on their way through an endpoint's Batch API.

    Args:
        endpoint: with a ledger.
        requests: all of them; those that are answered are not asked.
        max_requests: in one batch.
        poll_s: seconds between two looks at the server.

    Raises:
        ConfigError: no ledger, or a request that can't be sent.
    """

    def __init__(
        self, endpoint: Endpoint, requests: Sequence[Request], *, max_requests: int = MAX_REQUESTS, poll_s: float = 30.0
    ) -> None:
        if endpoint.ledger is None:
            raise ConfigError("the Batch API needs a ledger: batches outlive the command that submits them")
        if not 1 <= max_requests <= MAX_REQUESTS:
            raise ConfigError(f"a batch has from 1 to {MAX_REQUESTS} requests, not {max_requests}")
        self.endpoint = endpoint
        self.ledger: Ledger = endpoint.ledger
        self.requests = requests
        self.poll_s = poll_s
        self._max_requests = max_requests
        self._base_url = endpoint.config.base_url
        self._jobs = [endpoint.job(request, batch=True) for request in requests]
        self._by_key = {job.key: job for job in self._jobs}
        self._errors: dict[str, EndpointError] = {}
        self._new: set[str] = set()
        self._is_cut = False

    async def run(self, on_look: Callable[[int], None] | None = None) -> list[Outcome]:
        """Submit, wait, take the results; an outcome for each request, in their order.

        Args: on_look: told after each look how many requests have an outcome.

        Raises:
            EndpointError: the server takes no batches, or can't be reached.
        """
        while True:
            for batch in self.ledger.batches(self._base_url):
                await self._look_at(batch)
            submitted = await self._submit_next()
            if on_look is not None:
                on_look(sum(not self._is_open(job.key) for job in self._by_key.values()))
            if not submitted and not self._by_key.keys() & self._under_way():
                break
            if not submitted:
                await asyncio.sleep(self.poll_s)
        return [self._outcome(index, job) for index, job in enumerate(self._jobs)]

    # ----------------------------------------------------------------------------------------------------------------
    # Submitting

    def _is_open(self, key: str) -> bool:
        return key not in self._errors and self.ledger.find(key) is None

    def _under_way(self) -> set[str]:
        """The keys that any batch at this server has in flight."""
        batches = self.ledger.batches(self._base_url)
        return {key for batch in batches for key in self.ledger.batch_reservations(batch.name)}

    async def _submit_next(self) -> bool:
        """Submit one batch of what is neither answered nor under way; False where nothing is left.

        A batch that the budget cuts short is the last one: what its replies leave of the budget would be enough for a
        smaller one, and so on, each of them taking up to a day.
        """
        if self._is_cut:
            return False
        chosen: list[tuple[Job, bytes]] = []
        size, under_way = 0, self._under_way()
        for job in self._by_key.values():
            if job.key in under_way or not self._is_open(job.key):
                continue
            line = self._line(job)
            size += len(line)
            if chosen and (len(chosen) == self._max_requests or size > MAX_BYTES):
                break
            chosen.append((job, line))
        name = uuid.uuid4().hex
        wanted = [(job.key, job.amount) for job, _ in chosen]
        reserved = {r.key for r in self.ledger.open_batch(name, self._base_url, self.endpoint.name, wanted)}
        self._is_cut = len(reserved) < len(wanted) and self.ledger.budget is not None
        if not reserved:
            return False
        await self._submit(name, b"".join(line for job, line in chosen if job.key in reserved))
        return True

    def _line(self, job: Job) -> bytes:
        line = {"custom_id": job.key, "method": "POST", "url": "/v1/chat/completions", "body": job.body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    async def _submit(self, name: str, data: bytes) -> None:
        try:
            file = await self._call(lambda: self._patient.files.create(file=(f"{name}.jsonl", data), purpose="batch"))
        except EndpointError:
            self._abandon(name)  # no batch was made of it
            raise
        # Without retries: a second try could make a second batch.
        created = await self._call(
            lambda: self.endpoint.client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={NAME_FIELD: name},
            ),
            made=name,
        )
        self.ledger.submitted(name, created.id)

    def _abandon(self, name: str) -> None:
        for reservation in self.ledger.batch_reservations(name).values():
            self.ledger.release(reservation)
        self.ledger.close_batch(name)

    # ----------------------------------------------------------------------------------------------------------------
    # Looking and taking

    async def _look_at(self, batch: Batch) -> None:
        reserved = self.ledger.batch_reservations(batch.name)
        if not self._by_key.keys() & reserved.keys():
            return  # of another command
        if batch.server_id is None:
            found = await self._find(batch.name) if batch.is_orphan else None
            if batch.is_orphan and found is None:
                log.warning("the batch %s never reached the server; its requests are submitted again", batch.name)
                self._abandon(batch.name)
            elif found is not None:
                self.ledger.submitted(batch.name, found)
            return
        server_id = batch.server_id
        state = await self._call(lambda: self._patient.batches.retrieve(server_id))
        if state.status not in _ENDED:
            return
        rows: dict[str, Mapping[str, Any]] = {}
        for file_id in (state.output_file_id, state.error_file_id):
            if file_id:
                rows |= await self._rows(file_id)
        why = "; ".join(str(error.message) for error in (state.errors.data or ())) if state.errors else ""
        for key, reservation in reserved.items():
            job = self._by_key.get(key)
            if job is not None:  # the others are taken by the command that has their requests
                self._take(job, reservation, rows.get(key), f"batch {server_id} {state.status} {why}".strip())
        self.ledger.close_batch(batch.name)

    async def _find(self, name: str) -> str | None:
        """The server's id of a batch by the name in its metadata."""
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_LOOK_S)
            page = await self._call(lambda: self._patient.batches.list(limit=100))
            async for batch in page:
                if (batch.metadata or {}).get(NAME_FIELD) == name:
                    return str(batch.id)
        return None

    async def _rows(self, file_id: str) -> dict[str, Mapping[str, Any]]:
        """Result lines by custom_id; a line that can't be read is as good as missing."""
        content = await self._call(lambda: self._patient.files.content(file_id))
        rows = {}
        for line in content.content.splitlines():
            try:
                row = json.loads(line)
                rows[str(row["custom_id"])] = row
            except (ValueError, KeyError, TypeError):
                log.warning("%s: a line of the results in %s can't be read", self.endpoint.name, file_id)
        return rows

    def _take(self, job: Job, reservation: Reservation, row: Mapping[str, Any] | None, where: str) -> None:
        """Book one result."""
        outcome = self._read(job, row, where)
        if isinstance(outcome, Reply):
            usage = Usage(outcome.prompt_tokens, outcome.completion_tokens, outcome.cached_tokens)
            cost = self.endpoint.cost(usage, reservation.amount, batch=True)
            dollars = None if cost is None else to_dollars(cost)
            self.ledger.commit(reservation, replace(outcome, endpoint=self.endpoint.name, cost=dollars), cost)
            self._new.add(job.key)
            return
        self._errors[job.key] = self.endpoint.error(outcome)
        if isinstance(outcome.charge, Usage):
            self.ledger.waste(reservation, self.endpoint.cost(outcome.charge, reservation.amount, batch=True))
        elif outcome.charge == "perhaps":
            self.ledger.doubt(reservation)
        else:
            self.ledger.release(reservation)

    def _read(self, job: Job, row: Mapping[str, Any] | None, where: str) -> Reply | Failure:
        if row is None:
            refused = "failed" in where
            return Failure("bad_request" if refused else "timeout", f"{where}: no result for this request")
        response, error = row.get("response"), row.get("error")
        if isinstance(response, Mapping) and response.get("status_code") == 200:
            try:
                return parse_found(response.get("body"), job.request)
            except ReplyError as broken:
                found = broken
            return self.endpoint.failure(found)
        said = error if error else response
        code = error.get("code") if isinstance(error, Mapping) else None
        words = self.endpoint.quoted(json.dumps(said))
        return Failure("timeout" if code == "batch_expired" else "bad_request", f"{where}: {words}")

    # ----------------------------------------------------------------------------------------------------------------

    def _outcome(self, index: int, job: Job) -> Outcome:
        reply = self.ledger.find(job.key)
        if reply is not None:
            return Outcome(index, job.request, reply=replace(reply, from_ledger=job.key not in self._new))
        error = self._errors.get(job.key)
        if error is None:
            error = EndpointError("budget", f"{self.endpoint.name}: the budget has no room for this request")
        return Outcome(index, job.request, error=error)

    @property
    def _patient(self) -> AsyncOpenAI:
        """The SDK's client with its own retries, for calls that may be repeated."""
        return self.endpoint.client.with_options(max_retries=_RETRIES)

    async def _call(self, call: Callable[[], Awaitable[T]], made: str | None = None) -> T:
        """A call of the SDK, with its errors as EndpointError. made: the batch that it may make though it fails."""
        import openai

        failed: Exception
        try:
            return await call()
        except openai.OpenAIError as error:
            failed = error
        failure = self.endpoint.failure(failed)
        if made is not None and failure.charge == "none":
            self._abandon(made)
        raise self.endpoint.error(failure)
