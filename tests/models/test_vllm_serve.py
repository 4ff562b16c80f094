"""A composed checkpoint behind vLLM's OpenAI server, over HTTP: a picture in the chat, LoRA adapters by name."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.clients.test_endpoint_vllm import wait_until_ready
from tests.pictures import picture

pytestmark = pytest.mark.slow
TOKENS = 12
ADAPTERS = {
    "decoder": r"language_model\..*\.(q_proj|v_proj|gate_proj|down_proj)",
    "connector": r"(language_model\..*\.(k_proj|o_proj)|projector\.layers\.[02])",
}
"""Name → the modules that it changes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and the adapters beside it."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from tests.models.vllm_composed import save

    folder = tmp_path_factory.mktemp("served")
    checkpoint = save("open_clip", folder)
    for seed, (name, modules) in enumerate(ADAPTERS.items()):
        save_adapter(checkpoint, folder / name, modules, seed)
    return folder


def save_adapter(checkpoint: str, folder: Path, modules: str, seed: int) -> None:
    """A LoRA adapter that changes the text, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=modules))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[OpenAI]:
    """The server is started as a module: the `vllm` command wants the GPU package's metadata."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "open_clip"),
        "--served-model-name", "base", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
        "--generation-config", "vllm", "--limit-mm-per-prompt", '{"image": 3}', "--host", "127.0.0.1",
        "--port", str(port),
        "--enable-lora", "--enable-tower-connector-lora", "--max-loras", "2", "--max-lora-rank", "8",
        "--lora-modules", *(f"{name}={folder / name}" for name in ADAPTERS),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    said = folder / "log.txt"
    with said.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", said)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the engine is a process of its own
        process.wait()


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PROMPTS: dict[str, list[Any]] = {
    "no picture": ["How many?"],
    "a picture": [picture(40, 40, 1), "What is this?"],
    "pictures between texts": ["Is", picture(96, 32, 2), "more than", picture(50, 50, 3), "?"],
}
"""What a user's turn is made of."""


def generated(model: Any, processor: Any, parts: list[Any]) -> list[int]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [part for part in parts if not isinstance(part, str)]
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False)
    out = model.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=False, suppress_tokens=[processor.image_token_id]
    )  # fmt: skip
    ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def asked(client: OpenAI, name: str, parts: list[Any]) -> Any:
    content: list[Any] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    reply = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": content}],
        max_tokens=TOKENS,
        temperature=0.0,
        extra_body={"return_token_ids": True},
    )
    return reply.choices[0]


@pytest.mark.parametrize("name", ["base", *ADAPTERS])
def test_the_answer_is_that_of_transformers(client: OpenAI, folder: Path, name: str) -> None:
    """Without an adapter and with each; the adapters change the answers."""
    from peft import PeftModel

    processor = AutoProcessor.from_pretrained(folder / "open_clip")
    model = AutoModelForImageTextToText.from_pretrained(folder / "open_clip", dtype=torch.float32).eval()
    bare = {what: generated(model, processor, parts) for what, parts in PROMPTS.items()}
    if name != "base":
        model = PeftModel.from_pretrained(model, folder / name).eval()
    for what, parts in PROMPTS.items():
        wanted = generated(model, processor, parts)
        choice = asked(client, name, parts)
        assert choice.token_ids == wanted, (what, json.dumps(choice.model_dump(), default=str)[:500])
        text = processor.tokenizer.decode(wanted, skip_special_tokens=True)
        assert choice.message.content.rstrip("\ufffd") == text.rstrip("\ufffd")  # vLLM keeps half a character back
        assert (wanted == bare[what]) == (name == "base"), what
