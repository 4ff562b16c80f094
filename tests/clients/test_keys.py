"""Keys come from the environment and go to the server, and nowhere else."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.keys import is_local, redact
from mmreason.clients.ledger import Ledger
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.types import ConfigError
from tests.clients.server import Running, running_server

KEY = "sk-Zq9/x+TOPSECRET0123456789abcdef=="


def ask(server: Running, text: str, ledger: Ledger) -> Reply:
    config = EndpointConfig(base_url=server.base_url, model="m", max_retries=1, backoff_s=0.01)

    async def inside() -> Reply:
        async with Endpoint(config, ledger=ledger) as endpoint:
            return await endpoint.complete(Request(messages=[{"role": "user", "content": text}]))

    return asyncio.run(inside())


def test_no_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="export MY_KEY="):
        Endpoint(EndpointConfig(base_url="https://api.example.com/v1", model="m", api_key_env="MY_KEY"))
    Endpoint(EndpointConfig(base_url="http://10.0.0.3:8000/v1", model="m", api_key_env="MY_KEY"))
    Endpoint(EndpointConfig(base_url="https://api.example.com/v1", model="m", api_key_env=None))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"api_key_env": KEY}, "must be the name of an environment variable"),
        ({"base_url": f"https://user:{KEY.replace('/', '')}@example.com/v1"}, "user name"),
        ({"base_url": f"https://example.com/v1?key={KEY}"}, "query"),
        ({"base_url": "example.com"}, "address such as"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        EndpointConfig(**({"base_url": "http://localhost/v1", "model": "m"} | settings))
    assert "TOPSECRET" not in str(caught.value)


def test_a_key_does_not_travel_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match="use https") as caught:
        Endpoint(EndpointConfig(base_url="http://api.example.com/v1", model="m"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://192.168.1.4/v1", True),
        ("http://node17:8000/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://localhost.example.com/v1", False),
    ],
)
def test_what_is_local(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_the_key_is_in_nothing_that_is_written_or_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all loggers at DEBUG, a server whose errors repeat the Authorization header, and tracebacks with locals."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with running_server(key=KEY, echo_key=True) as echoing, Ledger(tmp_path / "ledger") as ledger:
            assert ask(echoing, "right key", ledger).text
            for fault in ("500", "400", "401", "429", "filter400", "quota", "error200", "cut", "invalid_json"):
                with pytest.raises(EndpointError) as caught:
                    ask(echoing, f"{fault} {{{{{fault}}}}}", ledger)
                error = caught.value
                written.write("".join(traceback.format_exception(error)) + repr(error.__dict__))
                assert error.__cause__ is None and error.__context__ is None  # the SDK's error holds the headers
            config = EndpointConfig(base_url=echoing.base_url, model="m")
            written.write(repr(config) + repr(Endpoint(config)))
            assert any(entry.fault == "500" for entry in echoing.log)
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    captured = capsys.readouterr()
    assert "[key]" in written.getvalue()  # the server did repeat it
    places = [written.getvalue(), captured.out, captured.err]
    places += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    for form in (KEY, KEY[3:], "TOPSECRET"):
        assert not any(form in place for place in places)


def test_redaction_knows_the_forms_of_a_key() -> None:
    text = f"Bearer {KEY} and {quote(KEY, safe='')} and sk-other-key-123 and plain"
    assert redact(text, KEY) == "[key] and [key] and [key] and plain"
