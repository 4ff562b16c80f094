"""What the tests of the teacher and augmenting builders share: replies by rule, runs, and a run that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_builders.teacher import TeacherOptions
from mmreason.clients.types import EndpointError, Reply, Request
from tests.clients.server import ROOT, Running

MOMENTS = [0.5, *(pytest.param(share, marks=pytest.mark.soak) for share in (0.05, 0.2, 0.35, 0.65, 0.8, 0.95))]
"""Of an unbroken run's requests, after how many the process is killed."""

Rule = Callable[[str, Request], str | Reply | EndpointError]


class Ruled:
    """A teacher in this process: `rule` makes the reply of the last user message's text and the request."""

    def __init__(self, rule: Rule, model: str = "ruled") -> None:
        self.rule, self.model = rule, model
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        await asyncio.sleep(0.0005 * (len(self.requests) % 5))  # so that replies come out of order
        content = request.messages[-1]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        found = self.rule(text, request)
        if isinstance(found, EndpointError):
            raise found
        return found if isinstance(found, Reply) else Reply(text=found, model=self.model, completion_tokens=1)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of all shards, as plain `datasets` reads them."""
    from datasets import load_dataset

    files = sorted(str(path) for path in folder.glob("*.parquet"))
    return (
        list(load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))) if files else []
    )


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def words(server: Running, **options: Any) -> list[str]:
    """A command's words: the server as teacher, no decontamination unless given."""
    given = {
        "teacher": {"base_url": server.base_url, "model": "test", "api_key_env": None, "backoff_s": 0.01},
        "decontaminate": [],
        "report": False,
    } | options
    return [word for name, value in given.items() for word in (f"--{name}", _word(value))]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def options(tmp_path: Path, source: Path, **given: Any) -> TeacherOptions:
    """Options of a run in this process."""
    defaults: dict[str, Any] = {"out": tmp_path / "out", "decontaminate": [], "report": False}
    return TeacherOptions(source=str(source), **(defaults | given))


def kill_when(command: Sequence[str], ready: Callable[[], bool], timeout_s: float = 120) -> bool:
    """Start `python -m COMMAND`, and kill -9 it as soon as `ready`; False where it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            if ready():
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.01)
        raise AssertionError("the moment never came")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
