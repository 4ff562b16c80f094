"""A real vLLM server with a tiny model on the CPU: replies, top-k log-probabilities, structured output."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mmreason.clients.endpoint import Endpoint, EndpointConfig
from mmreason.clients.ledger import Ledger
from mmreason.clients.run import Outcome, complete_all
from mmreason.clients.types import Reply, Request

pytestmark = pytest.mark.slow
START_S = 300.0
QUESTION = [{"role": "user", "content": "What is 1 + 2?"}]


@pytest.fixture(scope="module")
def base_url(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address. It is started as a module: the `vllm` command wants the GPU package's metadata."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_checkpoint, "--served-model-name",
        "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--generation-config", "vllm",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    said = tmp_path_factory.mktemp("vllm") / "log.txt"
    with said.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", said)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the engine is a process of its own
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, said: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, said.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no server after {START_S:.0f} s: {said.read_text()[-3000:]}")


def ask(base_url: str, requests: Sequence[Request], ledger: Ledger) -> list[Reply]:
    async def inside() -> list[Outcome]:
        config = EndpointConfig(base_url=base_url, model="tiny", price={"input": 0, "output": 0})
        async with Endpoint(config, ledger=ledger) as endpoint:
            return [outcome async for outcome in complete_all(endpoint, requests, ordered=True)]

    replies = []
    for outcome in asyncio.run(inside()):
        assert outcome.reply is not None, outcome.error
        replies.append(outcome.reply)
    return replies


def test_sampled_replies_with_logprobs_pass_and_are_kept(base_url: str, tmp_path: Path) -> None:
    """A random model writes random bytes: parts of characters, special tokens, everything that tokens can be."""
    requests = [
        Request(messages=QUESTION, max_tokens=60, temperature=1.0, seed=seed, top_logprobs=5) for seed in range(40)
    ]
    with Ledger(tmp_path / "ledger", max_budget=0.0) as ledger:
        replies = ask(base_url, requests, ledger)
        again = ask(base_url, requests, ledger)
    assert len({reply.text for reply in replies}) == 40
    for reply, kept in zip(replies, again, strict=True):
        assert reply.logprobs is not None and abs(len(reply.logprobs) - reply.completion_tokens) <= 1
        assert kept.from_ledger and (kept.text, kept.logprobs) == (reply.text, reply.logprobs)


def test_greedy_logprobs_equal_transformers(base_url: str, tiny_checkpoint: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request = Request(messages=QUESTION, max_tokens=16, temperature=0.0, top_logprobs=5)
    with Ledger(tmp_path / "ledger") as ledger:
        (reply,) = ask(base_url, [request], ledger)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = prompt["input_ids"]
    assert reply.prompt_tokens == ids.shape[1] and reply.logprobs is not None and len(reply.logprobs) == 16
    for token in reply.logprobs:
        with torch.no_grad():
            logprobs = model(ids).logits[0, -1].log_softmax(-1)
        top = logprobs.topk(5)
        assert token.logprob == pytest.approx(top.values[0].item(), abs=1e-3)
        assert [value for _, value in token.top] == pytest.approx(top.values.tolist(), abs=1e-3)
        ids = torch.cat([ids, top.indices[:1][None]], dim=1)


def test_structured_output_fits_its_schema(base_url: str, tmp_path: Path) -> None:
    """The server's grammar holds even a random model to the schema; what is cut off is asked again."""
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    requests = [
        Request(messages=QUESTION, max_tokens=200, temperature=1.0, sample=sample, json_schema=schema)
        for sample in range(10)
    ]
    with Ledger(tmp_path / "ledger") as ledger:
        replies = ask(base_url, requests, ledger)
    assert {reply.parsed["answer"] for reply in replies} <= {"yes", "no"}
