"""An endpoint against a real HTTP server that misbehaves as servers do."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.ledger import Ledger
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.types import ConfigError
from tests.clients.server import Running, running_server

T = TypeVar("T")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


def ask_for(text: str, **fields: Any) -> Request:
    return Request(messages=[{"role": "user", "content": text}], **fields)


def with_endpoint(
    server: Running, run: Callable[[Endpoint], Awaitable[T]], ledger: Ledger | None = None, **settings: Any
) -> T:
    """Run with an endpoint for this server; retries come quickly, time-outs only where a test asks for them."""
    defaults = {"timeout_s": 60.0, "backoff_s": 0.01, "price": {"input": 1.0, "output": 2.0}}
    config = EndpointConfig(base_url=server.base_url, model="m", **(defaults | settings))  # type: ignore[arg-type]

    async def inside() -> T:
        async with Endpoint(config, ledger=ledger) as endpoint:
            return await run(endpoint)

    return asyncio.run(inside())


def ask(server: Running, text: str, ledger: Ledger | None = None, **fields: Any) -> Reply:
    settings = {name: fields.pop(name) for name in list(fields) if name in EndpointConfig.__dataclass_fields__}
    return with_endpoint(server, lambda endpoint: endpoint.complete(ask_for(text, **fields)), ledger, **settings)


def patience(plan: str) -> float:
    """Seconds to wait for each reply: few only where the server hangs, since on a busy machine any may be late."""
    return 1.0 if "hang" in plan else 60.0


def failure(server: Running, text: str, ledger: Ledger | None = None, **fields: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        ask(server, text, ledger, **fields)
    return caught.value


# --------------------------------------------------------------------------------------------------------------------
# Faults that pass


@pytest.mark.parametrize(
    ("plan", "times"),
    [
        ("500,502,503,ok", 4),
        ("429,429,ok", 3),
        ("close,cut,ok", 3),
        ("hang,ok", 2),
        ("invalid_json,no_choices,error200,ok", 4),
    ],
)
def test_what_passes_is_tried_again(server: Running, plan: str, times: int) -> None:
    prompt = f"passes {{{{{plan}}}}}"
    assert ask(server, prompt, timeout_s=patience(plan)).text == f"answer to: {prompt}"
    assert server.times_asked(prompt) == times


@pytest.mark.parametrize(("plan", "least"), [("429:1,ok", 1.0), ("429:date,ok", 0.9), ("503:1,ok", 1.0)])
def test_retry_after_is_obeyed_by_all_requests(server: Running, plan: str, least: float) -> None:
    """Both forms of the header; a second request that is begun meanwhile waits too."""

    async def run(endpoint: Endpoint) -> float:
        start = time.monotonic()
        first = asyncio.create_task(endpoint.complete(ask_for(f"first {{{{{plan}}}}}")))
        await asyncio.sleep(0.3)
        await endpoint.complete(ask_for(f"bystander of {plan}"))
        seconds = time.monotonic() - start
        await first
        return seconds

    assert with_endpoint(server, run) >= least


def test_retries_are_bounded_in_number(server: Running) -> None:
    error = failure(server, "never {{500}}", max_retries=3)
    assert (error.kind, error.status) == ("server", 500)
    assert "after 4 tries" in str(error)
    assert server.times_asked("never {{500}}") == 4


def test_retries_are_bounded_in_time(server: Running) -> None:
    start = time.monotonic()
    error = failure(server, "much later {{429:3600}}", retry_s=2.0)
    assert time.monotonic() - start < 1.5
    assert error.kind == "rate_limit" and "asked for 3600 s more" in str(error)
    assert server.times_asked("much later {{429:3600}}") == 1


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("400", "bad_request", 400),
        ("401", "auth", 401),
        ("filter400", "refused", 400),
        ("filter", "refused", None),
        ("refusal", "refused", None),
        ("quota", "rate_limit", 429),
    ],
)
def test_what_does_not_pass_is_not_tried_again(server: Running, fault: str, kind: str, status: int | None) -> None:
    prompt = f"once {{{{{fault}}}}}"
    error = failure(server, prompt)
    assert (error.kind, error.status) == (kind, status)
    assert server.times_asked(prompt) == 1
    assert server.base_url.split("/")[2] in str(error)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("hang", "timeout"), ("cut", "connection"), ("close", "connection"), ("invalid_json", "bad_reply")],
)
def test_what_never_gets_better_has_its_kind(server: Running, fault: str, kind: str) -> None:
    assert failure(server, f"always {{{{{fault}}}}}", max_retries=1, timeout_s=patience(fault)).kind == kind


def test_nobody_listens() -> None:
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", max_retries=1, backoff_s=0.01)

    async def run() -> None:
        async with Endpoint(config) as endpoint:
            await endpoint.complete(ask_for("hello"))

    with pytest.raises(EndpointError, match="no connection") as caught:
        asyncio.run(run())
    assert caught.value.kind == "connection"


# --------------------------------------------------------------------------------------------------------------------
# Structured output, log-probabilities, tools, images, thoughts


def test_json_is_parsed_and_asked_again_where_it_does_not_fit(server: Running) -> None:
    reply = ask(server, "json {{wrong_schema,no_json,ok}}", json_schema=SCHEMA)
    assert reply.parsed == {"a": 1}
    assert server.times_asked("json {{wrong_schema,no_json,ok}}") == 3


def test_json_is_not_asked_again_for_ever(server: Running, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        error = failure(server, "bad json {{wrong_schema}}", ledger, json_schema=SCHEMA, schema_retries=3)
        assert error.kind == "schema" and "'a' is a required property" in str(error)
        assert server.times_asked("bad json {{wrong_schema}}") == 4
        assert ledger.account().wasted.requests == 4  # paid for all the same


def test_json_cut_off_says_so(server: Running) -> None:
    error = failure(server, "cut json", json_schema=SCHEMA, max_tokens=1)
    assert error.kind == "schema" and "cut off at max_tokens=1" in str(error)


def test_a_schema_that_nothing_fits_is_refused_before_it_is_sent(server: Running) -> None:
    before = len(server.log)
    for schema in ({"type": "no such"}, {"enum": []}, {"$ref": "#/nowhere"}):
        with pytest.raises(ConfigError, match="json_schema"):
            ask(server, "never sent", json_schema=schema)
    assert len(server.log) == before


def test_logprobs_come_with_the_reply(server: Running) -> None:
    reply = ask(server, "how likely?", top_logprobs=3)
    assert reply.logprobs is not None
    assert "".join(token.token for token in reply.logprobs) == reply.text
    assert all(len(token.top) == 3 and token.top[0][1] == token.logprob for token in reply.logprobs)


@pytest.mark.parametrize(
    "lie", ["missing", "positive", "mass", "text", "few", "many", "count", "differs"]
)  # fmt: skip
def test_an_endpoint_that_lies_about_logprobs_is_caught(server: Running, lie: str) -> None:
    error = failure(server, f"{{{{lp_{lie}}}}} likely?", top_logprobs=3)
    assert error.kind == "logprobs"
    assert server.times_asked(f"{{{{lp_{lie}}}}} likely?") == 1  # it would lie again


def test_tools_and_extra_fields_are_sent(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
    reply = ask(server, "use a tool", tools=[tool], extra={"reasoning_effort": "low"}, extra_body={"top_k": 5})
    assert reply.tool_calls[0]["function"]["name"] == "calculator" and reply.text == ""
    body = server.log[-1].body
    assert body["tools"] == [tool] and body["reasoning_effort"] == "low" and body["top_k"] == 5
    assert "sample" not in body and "id" not in body


def test_thoughts_are_parted_from_the_answer() -> None:
    with running_server(reasoning="Seven eights are 56.") as thinking:
        reply = ask(thinking, "7 * 8?")
    assert reply.reasoning == "Seven eights are 56." and "56" not in reply.text


def png(width: int = 2) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    raw = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")


def test_images_are_sent_as_data_urls_in_order(server: Running) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    request = Request(messages=[{"role": "user", "content": parts}], images=[png(), b"\xff\xd8\xff jpeg"])
    with_endpoint(server, lambda endpoint: endpoint.complete(request), price=None)
    sent = server.log[-1].body["messages"][0]["content"]
    assert sent[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert sent[1] == {"type": "text", "text": "and"}
    assert sent[2]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


@pytest.mark.parametrize(
    ("images", "settings", "word"),
    [
        ([], {}, "1 .* parts and 0 images"),
        ([png(), png()], {}, "1 .* parts and 2 images"),
        ([b"GIF89a"], {}, "PNG or JPEG"),
        ([png()], {"price": {"input": 1, "output": 1}}, "image_tokens"),
    ],
)
def test_images_that_can_not_be_sent(server: Running, images: list[bytes], settings: dict[str, Any], word: str) -> None:
    request = Request(messages=[{"role": "user", "content": [{"type": "image"}]}], images=images)
    with pytest.raises(ConfigError, match=word):
        with_endpoint(server, lambda endpoint: endpoint.complete(request), **({"price": None} | settings))


@pytest.mark.parametrize("name", ["n", "stream", "max_tokens", "messages"])
def test_extra_can_not_undo_the_requests_own_fields(server: Running, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ask(server, "never sent", extra={name: 2})


# --------------------------------------------------------------------------------------------------------------------
# Ledger and money


def test_what_is_committed_is_never_asked_again(server: Running, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        first = ask(server, "only once", ledger)
        again = ask(server, "only once", ledger)
        other = ask(server, "only once", ledger, sample=1)
        ask(server, "only once", ledger, revision="new weights")
    assert not first.from_ledger and again.from_ledger and again.text == first.text and not other.from_ledger
    assert server.times_asked("only once") == 3


def test_everything_that_decides_the_answer_is_in_the_key(server: Running) -> None:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    changes: list[dict[str, Any]] = [
        {}, {"messages": [{"role": "user", "content": "y"}]}, {"max_tokens": 5}, {"temperature": 0.0}, {"top_p": 0.5},
        {"stop": ["a"]}, {"seed": 1}, {"sample": 1}, {"json_schema": SCHEMA}, {"top_logprobs": 2}, {"tools": [{}]},
        {"extra": {"a": 1}},
    ]  # fmt: skip
    endpoint = Endpoint(EndpointConfig(base_url=server.base_url, model="m"))
    keys = [endpoint.key(Request(**(base | change))) for change in changes]
    assert len(set(keys)) == len(keys)
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    assert endpoint.key(Request(messages=picture, images=[png(2)])) != endpoint.key(
        Request(messages=picture, images=[png(3)])
    )
    same = [
        Endpoint(EndpointConfig(base_url="http://elsewhere.local/v1", model="m", concurrency=3)).key(Request(**base)),
        endpoint.key(Request(**base, id="row 7")),
    ]
    assert set(same) == {keys[0]}
    assert endpoint.key(Request(**base, temperature=1)) == endpoint.key(Request(**base, temperature=1.0))


def test_identical_requests_in_flight_share_one_call(tmp_path: Path) -> None:
    async def run(endpoint: Endpoint) -> list[Reply]:
        return list(await asyncio.gather(*(endpoint.complete(ask_for("the same")) for _ in range(20))))

    with running_server(latency_s=0.2) as slow, Ledger(tmp_path / "ledger") as ledger:
        replies = with_endpoint(slow, run, ledger)
        assert slow.times_asked("the same") == 1
    assert len({reply.text for reply in replies}) == 1
    assert sum(not reply.from_ledger for reply in replies) == 1


def test_costs_are_the_servers_counts_at_the_price(server: Running, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        reply = ask(server, "what does it cost?", ledger)
        asked = server.log[-1].charged
        assert (reply.prompt_tokens, reply.completion_tokens) == asked
        assert reply.cost == pytest.approx((asked[0] * 1.0 + asked[1] * 2.0) / 1e6, rel=1e-12)
        assert ledger.account().spent == round(reply.cost * 1e12)


def test_a_reply_without_counts_costs_its_upper_bound(server: Running, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        reply = ask(server, "{{no_usage}}", ledger, max_tokens=100)
    assert reply.cost is not None and reply.cost >= (len("{{no_usage}}") + 2 * 100) / 1e6


@pytest.mark.parametrize(
    ("plan", "wasted", "doubtful"),
    [
        ("429,503,400", 0, 0),  # certainly free
        ("cut,400", 0, 1),
        ("hang,500,400", 0, 2),
        ("no_choices,400", 1, 0),
        ("filter", 1, 0),
        ("invalid_json,400", 0, 1),
    ],
)
def test_every_try_is_booked(server: Running, tmp_path: Path, plan: str, wasted: int, doubtful: int) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        failure(server, f"booked {{{{{plan}}}}}", ledger, timeout_s=patience(plan))
        account = ledger.account()
    assert (account.paid.requests, account.in_flight.requests) == (0, 0)
    assert (account.wasted.requests, account.doubtful.requests) == (wasted, doubtful)


def test_a_cancelled_request_is_in_doubt(tmp_path: Path) -> None:
    async def run(endpoint: Endpoint) -> None:
        task = asyncio.create_task(endpoint.complete(ask_for("not waited for")))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with running_server(latency_s=5) as slow, Ledger(tmp_path / "ledger") as ledger:
        with_endpoint(slow, run, ledger, timeout_s=60)
        assert ledger.account().doubtful.requests == 1 and ledger.account().in_flight.requests == 0


def test_a_budget_needs_a_price(server: Running, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", max_budget=1) as ledger, pytest.raises(ConfigError, match=r"price: \{input:"):
        ask(server, "never sent", ledger, price=None)


# --------------------------------------------------------------------------------------------------------------------
# Limits


def test_no_more_in_flight_than_allowed() -> None:
    async def run(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete(ask_for(f"{i}")) for i in range(12)))

    with running_server(latency_s=0.2) as slow:
        with_endpoint(slow, run, concurrency=3)
        times = sorted(entry.time for entry in slow.log)
    assert all(later - earlier >= 0.19 for earlier, later in zip(times, times[3:], strict=False))
    assert times[2] - times[0] < 0.19  # and no fewer


def test_requests_per_minute_hold_at_the_server(server: Running) -> None:
    async def run(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete(ask_for(f"paced {i}")) for i in range(30)))

    start = time.time()  # and not the first arrival: on a busy machine that one may be late
    with_endpoint(server, run, requests_per_minute=600)
    last = max(entry.time for entry in server.log if entry.prompt.startswith("paced"))
    assert last - start >= (30 - 10) / 10 * 0.99  # ten at once, then ten a second; 1 % for two clocks


def test_the_circuit_opens_probes_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    """The server is down and comes back: rows wait instead of failing, and it isn't hammered meanwhile."""

    async def run(endpoint: Endpoint) -> list[Reply]:
        return list(await asyncio.gather(*(endpoint.complete(ask_for(f"{i}")) for i in range(40))))

    with running_server(down_s=2.0) as flaky:
        replies = with_endpoint(flaky, run, circuit_failures=5, circuit_s=0.2, concurrency=8, max_retries=2)
        failed = sum(entry.fault == "500" for entry in flaky.log)
    assert len(replies) == 40
    assert failed <= 5 + 8 + 5  # until it opened, what was in flight then, probes
    assert "the circuit is open" in caplog.text and "the circuit is closed" in caplog.text


def test_a_server_that_stays_down_fails_rows_instead_of_holding_them(server: Running) -> None:
    async def run(endpoint: Endpoint) -> list[Any]:
        tasks = [endpoint.complete(ask_for(f"down {i} {{{{500}}}}")) for i in range(30)]
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    start = time.monotonic()
    found = with_endpoint(server, run, circuit_failures=3, circuit_s=0.5, retry_s=2.0, concurrency=4)
    assert time.monotonic() - start < 8
    assert {error.kind for error in found} <= {"circuit_open", "server"}
    assert sum(entry.prompt.startswith("down ") for entry in server.log) < 30


def test_one_endpoint_in_several_event_loops(server: Running) -> None:
    endpoint = Endpoint(EndpointConfig(base_url=server.base_url, model="m", concurrency=2))

    async def run(name: str) -> None:
        await asyncio.gather(*(endpoint.complete(ask_for(f"{name} {i}")) for i in range(5)))
        await endpoint.aclose()

    asyncio.run(run("one"))
    asyncio.run(run("two"))
    assert server.times_asked("two 4") == 1
