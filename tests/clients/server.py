"""A chat-completions server for tests: real HTTP in a process of its own, with scripted latency and faults.

    with running_server(latency_s=1.0, jitter=0.2) as server:
        config = EndpointConfig(base_url=server.base_url, model="test")
        ...
        assert server.times_asked("What is 7 * 8?") == 1

What a request gets is written in its last user message: `{{500,429:1,ok}}` means HTTP 500 the first time this content
is asked, 429 with `Retry-After: 1` the second time, an answer from then on. Without such a plan, `faults` gives each
fault's probability, drawn from the seed, the content and how often it was asked. The answer is `replies[fragment]` of
the first fragment that the message contains, else "answer to: " and the message.

Every request is logged before anything else happens to it, so that the log tells what a provider would have seen and
charged. Standard library only; run as `python -m tests.clients.server SCRIPT.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

FAULTS = (
    "429", "429:SECONDS", "429:date", "500", "502", "503", "503:SECONDS", "400", "401", "filter400", "quota", "hang",
    "cut", "close", "invalid_json", "no_choices", "wrong_schema", "no_json", "filter", "refusal", "no_usage",
    "error200", "lp_missing", "lp_positive", "lp_mass", "lp_text", "lp_few", "lp_many", "lp_count", "lp_differs",
    "batch_error", "batch_expired",
)  # fmt: skip
"""What a plan may hold; SECONDS is a number. "ok" is an answer."""

_PLAN = re.compile(r"\{\{(.*?)\}\}")


@dataclass
class Script:
    """How the server behaves. latency_s and jitter: uniform in latency_s * (1 ± jitter).

    down_s: seconds after the first request in which all get HTTP 500.
    key: what requests must carry; None takes all. faults: probability of each. batch_s: seconds a batch takes.
    echo_key: errors repeat the Authorization header, as some servers do.
    """

    latency_s: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    down_s: float = 0.0
    key: str | None = None
    echo_key: bool = False
    faults: Mapping[str, float] = field(default_factory=dict)
    replies: Mapping[str, str] = field(default_factory=dict)
    reasoning: str | None = None
    batch_s: float = 0.2
    hang_s: float = 3600.0
    folder: str = ""


@dataclass(frozen=True)
class Entry:
    """A logged request. prompt: its last user message. fault: "ok" or what it got. charged: tokens in and out."""

    time: float
    model: str
    prompt: str
    content: str
    fault: str
    charged: tuple[int, int]
    body: dict[str, Any]


class Running:
    """A server that runs: where it is, and what it was asked."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], port: int) -> None:
        self.folder, self.process, self.port = folder, process, port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    @property
    def log(self) -> list[Entry]:
        path = self.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Entry(**{**json.loads(line), "charged": tuple(json.loads(line)["charged"])}) for line in lines]

    @property
    def events(self) -> list[str]:
        """Other calls, such as "POST /v1/batches"."""
        path = self.folder / "events.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def asked(self) -> Counter[str]:
        """How often each last user message was asked."""
        return Counter(entry.prompt for entry in self.log)

    def times_asked(self, prompt: str) -> int:
        return self.asked()[prompt]

    def charged_tokens(self) -> tuple[int, int]:
        """(prompt, completion) tokens that this server would put on the bill."""
        return sum(entry.charged[0] for entry in self.log), sum(entry.charged[1] for entry in self.log)


@contextlib.contextmanager
def running_server(**script: Any) -> Iterator[Running]:
    """A server with this `Script`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="server-") as name:
        folder = Path(name)
        path = folder / "script.json"
        path.write_text(json.dumps(dataclasses.asdict(Script(**script)) | {"folder": name}), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.server", str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Running(folder, process, port)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


# --------------------------------------------------------------------------------------------------------------------
# The server's process


class CutError(Exception):
    """Close the connection; the argument is what is sent before."""


@dataclass
class Response:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def _json(status: int, value: Any, **headers: str) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Server:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.folder = Path(script.folder)
        self.times: Counter[str] = Counter()
        self.down_until: float | None = None
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        self.events = (self.folder / "events.txt").open("a", encoding="utf-8")

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                try:
                    response = await self.respond(method, path, headers, body)
                except CutError as cut:
                    writer.write(cut.args[0])
                    await writer.drain()
                    break
                lines = [f"HTTP/1.1 {response.status} X", f"Content-Length: {len(response.body)}"]
                lines += [f"{name}: {value}" for name, value in response.headers.items()]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + response.body)
                await writer.drain()

    async def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        said = headers.get("authorization", "")
        if self.script.key is not None and said != f"Bearer {self.script.key}":
            return self.error(401, "invalid key", said)
        path, _, query = path.partition("?")
        if (method, path) == ("POST", "/v1/chat/completions"):
            return await self.completion(json.loads(body), said)
        self.events.write(f"{method} {path}\n")
        self.events.flush()
        return self.batch_api(method, path.removeprefix("/v1"), query, headers, body)

    def error(self, status: int, message: str, said: str = "", code: str | None = None, **headers: str) -> Response:
        if self.script.echo_key:
            message += f" (Authorization: {said})"
        return _json(status, {"error": {"message": message, "type": "x", "code": code}}, **headers)

    async def completion(self, body: dict[str, Any], said: str) -> Response:
        content, prompt = _content(body)
        self.times[content] += 1
        fault = self.fault(prompt, content)
        found = self.answer(body, prompt, fault)
        free = re.match(r"429|503|400|401|filter400|quota|close", fault)
        usage = found.get("usage") or {"prompt_tokens": 0, "completion_tokens": 0}
        charged = (0, 0) if free else (usage["prompt_tokens"], usage["completion_tokens"])
        self.write(Entry(time.time(), str(body.get("model")), prompt, content, fault, charged, _slim(body)))
        rng = random.Random(f"{self.script.seed} {content} {self.times[content]}")
        await asyncio.sleep(self.script.latency_s * (1 + self.script.jitter * rng.uniform(-1, 1)))
        name, _, value = fault.partition(":")
        if name in ("429", "503"):
            when = email.utils.formatdate(time.time() + 2, usegmt=True) if value == "date" else value
            return self.error(int(name), "slow down", said, **({"Retry-After": when} if value else {}))
        if name in ("500", "502", "400", "401"):
            return self.error(int(name), "something is wrong", said)
        if name == "filter400":
            return self.error(400, "filtered", said, code="content_filter")
        if name == "quota":
            return self.error(429, "you are out of money", said, code="insufficient_quota")
        if name == "hang":
            await asyncio.sleep(self.script.hang_s)
        data = json.dumps(found).encode()
        if name == "cut":
            raise CutError(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[: len(data) // 2])
        if name == "close":
            raise CutError(b"")
        if name == "invalid_json":
            return Response(200, data[: len(data) // 2], {"Content-Type": "application/json"})
        if name == "error200":
            return _json(200, {"error": {"message": f"overloaded {said if self.script.echo_key else ''}"}})
        return _json(200, found)

    def write(self, entry: Entry) -> None:
        self.log.write(json.dumps(dataclasses.asdict(entry)) + "\n")
        self.log.flush()

    def fault(self, prompt: str, content: str) -> str:
        if self.down_until is None:
            self.down_until = time.monotonic() + self.script.down_s
        if time.monotonic() < self.down_until:
            return "500"
        plan = _PLAN.search(prompt)
        if plan:
            steps = plan[1].split(",")
            return steps[min(self.times[content], len(steps)) - 1].strip()
        rng = random.Random(f"fault {self.script.seed} {content} {self.times[content]}")
        names = [*self.script.faults, "ok"]
        weights = [*self.script.faults.values(), 1 - sum(self.script.faults.values())]
        return rng.choices(names, weights)[0]

    def answer(self, body: dict[str, Any], prompt: str, fault: str) -> dict[str, Any]:
        text = next((reply for part, reply in self.script.replies.items() if part in prompt), f"answer to: {prompt}")
        form = body.get("response_format")
        if form is not None:
            text = json.dumps(_fitting(form["json_schema"]["schema"]))
        text = {"wrong_schema": '{"unasked": true}', "no_json": "Here you are: {"}.get(fault, text)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or math.inf
        tokens = re.findall(r".{1,4}", text, re.S)
        is_cut = len(tokens) > limit
        tokens = tokens[: int(limit)] if is_cut else tokens
        text = "".join(tokens)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if is_cut else "stop",
        }
        if self.script.reasoning is not None:
            choice["message"]["reasoning_content"] = self.script.reasoning
        if body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            choice["message"] |= {"content": None, "tool_calls": [_call(name)]}
            choice["finish_reason"] = "tool_calls"
        if body.get("logprobs"):
            choice["logprobs"] = _logprobs(tokens, body.get("top_logprobs", 0), fault)
        if fault == "filter":
            choice |= {"finish_reason": "content_filter"}
        if fault == "refusal":
            choice["message"] |= {"content": None, "refusal": "I can't help with that"}
        found: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body.get("model"),
            "choices": [] if fault == "no_choices" else [choice],
            "usage": {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": len(tokens)},
        }  # fmt: skip
        if fault == "no_usage":
            del found["usage"]
        return found

    # ----------------------------------------------------------------------------------------------------------------
    # The Batch API

    def batch_api(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Response:
        parts = path.strip("/").split("/")
        if (method, path) == ("POST", "/files"):
            name = f"file-{len(self.files)}"
            self.files[name] = _multipart_file(headers["content-type"], body)
            return _json(200, {"id": name, "object": "file", "bytes": len(self.files[name]), "purpose": "batch"})
        if method == "GET" and parts[0] == "files" and parts[-1] == "content":
            return Response(200, self.files[parts[1]])
        if (method, path) == ("POST", "/batches"):
            return self.create_batch(json.loads(body))
        if method == "GET" and parts[0] == "batches":
            for batch in self.batches.values():
                self.advance(batch)
            if len(parts) == 1:
                listed = list(reversed(self.batches.values()))
                return _json(200, {"object": "list", "data": [_shown(batch) for batch in listed], "has_more": False})
            return _json(200, _shown(self.batches[parts[1]]))
        return self.error(404, f"no {method} {path}")

    def create_batch(self, wanted: dict[str, Any]) -> Response:
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": wanted["endpoint"], "completion_window": "24h",
            "input_file_id": wanted["input_file_id"], "metadata": wanted.get("metadata"), "status": "in_progress",
            "created_at": int(time.time()), "_due": time.time() + self.script.batch_s,
        }  # fmt: skip
        return _json(200, _shown(self.batches[name]))

    def advance(self, batch: dict[str, Any]) -> None:
        if batch["status"] != "in_progress" or time.time() < batch["_due"]:
            return
        good, bad = [], []
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        status = "completed"
        for line in lines:
            content, prompt = _content(line["body"])
            self.times[content] += 1
            fault = self.fault(prompt, content)
            found = self.answer(line["body"], prompt, fault)
            charged = (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"])
            row: dict[str, Any] = {"id": "r", "custom_id": line["custom_id"], "response": None, "error": None}
            if fault == "batch_expired":
                status, charged = "expired", (0, 0)
                bad.append(row | {"error": {"code": "batch_expired", "message": "not in time"}})
            elif fault == "batch_error":
                charged = (0, 0)
                error = {"error": {"message": "no such model", "code": None}}
                bad.append(row | {"response": {"status_code": 400, "body": error}})
            else:
                good.append(row | {"response": {"status_code": 200, "body": found}})
            self.write(Entry(time.time(), line["body"]["model"], prompt, content, fault, charged, _slim(line["body"])))
        for key, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[key] = f"file-{len(self.files)}"
                self.files[batch[key]] = "\n".join(map(json.dumps, rows)).encode()
        batch["status"] = status


def _shown(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if not key.startswith("_")}


def _multipart_file(kind: str, body: bytes) -> bytes:
    boundary = re.search(r'boundary="?([^";]+)', kind)
    assert boundary is not None
    for part in body.split(b"--" + boundary[1].encode()):
        head, _, data = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return data.removesuffix(b"\r\n")
    raise AssertionError("no file in the form")


def _content(body: Mapping[str, Any]) -> tuple[str, str]:
    """(hash of what is asked, last user message)."""
    wanted = json.dumps(body, sort_keys=True)
    last = next((m["content"] for m in reversed(body["messages"]) if m["role"] == "user"), "")
    if not isinstance(last, str):
        last = "".join(part.get("text", "") for part in last)
    return hashlib.sha256(wanted.encode()).hexdigest()[:16], last


def _slim(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the bulk of its images."""
    return dict(json.loads(re.sub(r"(data:image/\w+;base64,[^\"]{0,16})[^\"]*", r"\1", json.dumps(body))))


def _call(name: str) -> dict[str, Any]:
    return {"id": "call-0", "type": "function", "function": {"name": name, "arguments": '{"expression": "7 * 8"}'}}


def _fitting(schema: Mapping[str, Any]) -> Any:
    """A value for the simple schemas that tests use."""
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _fitting(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_fitting(schema.get("items", {"type": "null"}))] * schema.get("minItems", 1)
    return {"string": "text", "integer": schema.get("minimum", 1), "number": 0.5, "boolean": True, "null": None}[kind]


def _logprobs(tokens: list[str], k: int, fault: str) -> dict[str, Any] | None:
    if fault == "lp_missing":
        return None
    content = []
    for token in tokens:
        names = [token, *(f"other{i}" for i in range(k + 1))]
        chances = [0.5, *(0.5 / 2 ** (i + 1) for i in range(k + 1))]
        width = {"lp_few": k - 1, "lp_many": k + 1}.get(fault, k)
        if fault == "lp_mass":
            chances = [0.5] * len(chances)
        top = [_entry(name, math.log(p)) for name, p in zip(names[:width], chances, strict=False)]
        logprob = {"lp_positive": 0.7, "lp_differs": -3.0}.get(fault, math.log(0.5))
        content.append({**_entry("lie" if fault == "lp_text" else token, logprob), "top_logprobs": top})
    return {"content": content[: len(content) // 2] if fault == "lp_count" else content}


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


async def _serve(script: Script) -> None:
    server = Server(script)
    listener = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=2048, limit=1 << 26)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Script(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
