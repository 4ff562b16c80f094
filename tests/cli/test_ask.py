"""`mmreason ask` through its real command line, killed and resumed, and given bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmreason.clients.ledger import Ledger
from tests.clients.server import Running, running_server
from tests.timing import allowed

ROOT = Path(__file__).resolve().parents[2]
PICTURE = [{"role": "user", "content": [{"type": "image"}]}]
KEY = "sk-TOPSECRET-0123456789"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mmreason.cli.main", "ask", *words]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(server: Running, out: Path, *more: str) -> list[str]:
    return ["--out", str(out), "--base_url", server.base_url, "--model", "m", *more]


def test_help_is_quick_and_says_what_the_exit_status_means() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < allowed(0.5)
    for word in ("--max_budget", "--quote", "--batch", "3 stopped by the budget"):
        assert word in " ".join(done.stdout.split())


def test_rows_in_replies_out_in_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "text", "answer": "other columns are left alone"},
        {"id": "b", "prompt": [{"role": "user", "content": "messages"}], "max_tokens": 1},
        {"id": "c", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "own system"}]},
        {"prompt": "bad {{400}}"},
    ]
    prompts, out = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "new" / "r.jsonl"
    with running_server() as server:
        words = options(server, out, "--system", "Be brief.", "--samples", "2", "--sampling_seed", "5")
        done = run(str(prompts), *words)
        bodies = {entry.prompt: entry.body for entry in server.log}
        first = out.read_text(encoding="utf-8")
        assert done.returncode == 1, done.stderr  # one row failed
        assert run(str(prompts), *words).returncode == 1
        assert out.read_text(encoding="utf-8") == first  # the same file after a resume
        assert server.times_asked("text") == 2  # two draws, each once
    found = read_rows(out)
    assert [(row["id"], row["sample"]) for row in found] == [
        (name, draw) for name in ("a", "b", "c", "p.jsonl:4") for draw in (0, 1)
    ]
    assert found[0]["text"] == "answer to: text" and found[2]["finish_reason"] == "length"
    assert found[7]["error"]["kind"] == "bad_request" and found[7]["error"]["status"] == 400
    assert bodies["text"]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert bodies["own system"]["messages"][0]["content"] == "s" and bodies["text"]["seed"] in (5, 6)
    assert "bad_request: 2 failed" in done.stderr and "p.jsonl:4: 127.0.0.1" in done.stderr


@pytest.mark.slow
def test_killed_and_resumed_nothing_committed_is_asked_again(tmp_path: Path) -> None:
    """kill -9 three times in the middle of 400 requests, 16 in flight, then once to the end."""
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(400)])
    out, ledger = tmp_path / "r.jsonl", tmp_path / "ledger"
    with running_server(latency_s=0.1, jitter=0.2) as server:
        words = options(server, out, "--ledger", str(ledger), "--concurrency", "16", "--price", "{input: 1, output: 2}")
        words += ["--max_budget", "1"]
        lost = 0
        for _ in range(3):
            before = len(server.log)
            with subprocess.Popen(
                command(str(prompts), *words), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
            ) as process:
                while len(server.log) < before + 80:
                    time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
            assert not out.exists()
            with Ledger(ledger) as book:
                doubtful = book.account().doubtful.requests
            assert 0 < doubtful - lost <= 16
            lost = doubtful
        done = run(str(prompts), *words)
        assert done.returncode == 0, done.stderr
        repeated = sum(times - 1 for times in server.asked().values())
        assert 0 < repeated <= lost  # what was in flight, and nothing else
        assert f"{lost} requests may have been charged without a reply" in done.stderr
        prompt, completion = server.charged_tokens()
        with Ledger(ledger) as book:
            assert round((prompt + 2 * completion) * 1e6) <= book.account().spent
    assert [row["text"] for row in read_rows(out)] == [f"answer to: row {i}" for i in range(400)]


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(300)])
    out = tmp_path / "r.jsonl"
    with running_server() as server:
        words = options(server, out, "--price", "{input: 1, output: 2}", "--max_tokens", "100", "--max_budget")
        done = run(str(prompts), *words, "0.004")
        assert done.returncode == 3 and "budget:" in done.stderr
        answered = [row for row in read_rows(out) if "error" not in row]
        prompt, completion = server.charged_tokens()
        assert 0 < len(answered) < 300 and (prompt + 2 * completion) / 1e6 <= 0.004
        assert run(str(prompts), *words, "1").returncode == 0
        assert max(server.asked().values()) == 1
    assert len(read_rows(out)) == 300


def test_quote_then_batch(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(90)])
    table = tmp_path / "prices.yaml"
    table.write_text("m: {input: 1, output: 2, batch: 0.5}\n")
    out = tmp_path / "r.jsonl"
    with running_server() as server:
        words = options(server, out)
        refused = run(str(prompts), *words, "--quote")
        assert refused.returncode == 2 and "m: {input: 0.15, output: 0.60}" in refused.stderr
        done = run(str(prompts), *words, "--prices", str(table), "--quote")
        assert done.returncode == 0, done.stderr
        assert "pilot: 50 answered" in done.stdout and "the other 40: $" in done.stdout and not out.exists()
        done = run(str(prompts), *words, "--prices", str(table), "--batch", "--poll_s", "0.1")
        assert done.returncode == 0, done.stderr
        assert max(server.asked().values()) == 1 and len(server.log) == 90
    assert len(read_rows(out)) == 90


def test_a_config_file_and_a_settled_bill(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "{{cut,ok}}"}])
    out = tmp_path / "r.jsonl"
    with running_server() as server:
        (tmp_path / "c.yaml").write_text(
            f"base_url: {server.base_url}\nmodel: m\nprice: {{input: 1, output: 2}}\nmax_budget: 1\nbackoff_s: 0.01\n"
        )
        words = [str(prompts), "--config", str(tmp_path / "c.yaml"), "--out", str(out)]
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert "1 requests may have been charged without a reply" in done.stderr
        done = run(*words, "--settle_doubtful", "0")
        assert "1 doubtful requests settled at $0" in done.stderr and "may have been" not in done.stderr


def test_the_key_is_nowhere(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "fine"}, {"prompt": "{{400}}"}, {"prompt": "{{500}}"}])
    with running_server(key=KEY, echo_key=True) as server:
        words = [str(prompts), *options(server, tmp_path / "r.jsonl", "--max_retries", "1", "--backoff_s", "0")]
        done = run(*words, OPENAI_API_KEY=KEY, OPENAI_LOG="debug")
        assert done.returncode == 1 and "[key]" in done.stderr
        refused = run(*words)
        assert refused.returncode == 1 and "no key was sent (set OPENAI_API_KEY)" in refused.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"TOPSECRET" in text for text in [done.stdout.encode(), done.stderr.encode(), *written])


@pytest.mark.parametrize(
    ("rows", "more", "word"),
    [
        ([{"text": "x"}], [], "p.jsonl:1: expected `prompt`"),
        ([{"prompt": "x"}, {"prompt": ["x"]}], [], "p.jsonl:2: expected `prompt`"),
        ([{"prompt": "x", "max_tokens": "many"}], [], "max_tokens must be int, not 'many'"),
        ([{"prompt": "x", "json_schema": {"enum": []}}], [], "p.jsonl:1: no JSON can fit"),
        ([{"prompt": PICTURE, "images": ["../../etc/passwd"]}], [], "outside"),
        ([{"prompt": PICTURE, "images": ["no.png"]}], [], "can't be read"),
        ([{"prompt": PICTURE}], [], 'a request has 1 {"type": "image"} parts and 0 images'),
        ([], [], "the file is empty"),
        ([{"prompt": "x"}], ["--modell", "m"], "did you mean --model"),
        ([{"prompt": "x"}], ["--max_budget", "1"], "price"),
        ([{"prompt": "x"}], ["--quote", "--batch"], "exclude"),
        ([{"prompt": "x"}], ["--samples", "0"], "samples"),
        ([{"prompt": "x"}], ["--base_url", "https://api.example.com/v1"], "export OPENAI_API_KEY="),
        ([{"prompt": "x"}], ["--ledger", "/proc/none/ledger"], "can't be opened"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, rows: list[Any], more: list[str], word: str) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    words = ["--out", str(tmp_path / "r.jsonl"), "--base_url", "http://127.0.0.1:9/v1", "--model", "m", *more]
    done = run(str(prompts), *words)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r.jsonl").exists()
