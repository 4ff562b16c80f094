"""A teacher of pictures for tests: a real HTTP server that answers from what it is shown, in the JSON it is asked for.

It is `tests.clients.server` with other answers. From an annotation it says what the captions say; of a picture it knows
what `replies` has under the SHA-256 of the image's bytes. Every third text (by its hash) names a thing that isn't
there, until it is told so; the text of a picture with "stubborn" in its captions always does.
Run as `python -m tests.data_builders.visual_teacher SCRIPT.json`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.clients.server import ROOT, Running, Script, Server

LIE = {"en": "There is also a violin next to it.", "zh": "旁边还有一把小提琴。"}


class VisualTeacher(Server):
    def answer(self, body: dict[str, Any], prompt: str, fault: str) -> dict[str, Any]:
        asked = [message for message in body["messages"] if message["role"] == "user"]
        first = asked[0]["content"]
        parts = [{"type": "text", "text": first}] if isinstance(first, str) else first
        text = "".join(part.get("text", "") for part in parts)
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        captions = captions_in(text) or [sentence for url in images for sentence in self.known(url)]
        language = "zh" if "中文" in body["messages"][0]["content"] else "en"
        lies = is_liar(text if captions_in(text) else captions[0], len(asked)) or "stubborn" in " ".join(captions)
        schema = body["response_format"]["json_schema"]["schema"]
        said = json.dumps(reply_for(schema, captions, language, lie=lies), ensure_ascii=False)
        tokens = len(said) // 4
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": body.get("model"),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": tokens},
        }  # fmt: skip

    def known(self, url: str) -> list[str]:
        digest = hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest()
        return list(json.loads(self.script.replies[digest]))


def captions_in(text: str) -> list[str]:
    """What stands between "Captions:" and the boxes."""
    for head in ("Captions:", "描述："):
        if head in text:
            return [line for line in text.partition(head)[2].split("\n\n")[0].splitlines() if line]
    return []


def is_liar(text: str, times: int) -> bool:
    """Whether the first answer about this text names what isn't there."""
    return times == 1 and hashlib.sha256(text.encode()).digest()[0] % 3 == 0


def reply_for(schema: Mapping[str, Any], captions: list[str], language: str, *, lie: bool) -> dict[str, Any]:
    """What fits one of the builder's schemas."""
    properties = set(schema["properties"])
    first, last = (captions[0], captions[-1]) if language == "en" else ("图中的东西很清楚。", "画面很清楚。")
    more = f" {LIE[language]}" if lie else ""
    if properties == {"turns"}:
        turns = [
            {"question": "What does the picture show?" if language == "en" else "图片里是什么？", "answer": first},
            {"question": "Anything else?" if language == "en" else "还有什么？", "answer": last + more},
        ]
        return {"turns": turns}
    if properties == {"question", "reasoning", "answer"}:
        question = "What could happen next?" if language == "en" else "接下来会发生什么？"
        return {"question": question, "reasoning": first + more, "answer": last}
    if properties == {"objects"}:
        return {"objects": captions}
    (name,) = properties
    return {name: f"{first} {last}{more}" if name == "description" else first + more}


@contextlib.contextmanager
def visual_teacher(**script: Any) -> Iterator[Running]:
    """A server that runs until the block ends; `replies`: SHA-256 of an image -> JSON list of what it shows."""
    with tempfile.TemporaryDirectory(prefix="teacher-") as name:
        path = Path(name) / "script.json"
        path.write_text(json.dumps(dataclasses.asdict(Script(**script)) | {"folder": name}), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.data_builders.visual_teacher", str(path)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield Running(Path(name), process, int(process.stdout.readline()))
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


async def _serve(script: Script) -> None:
    server = VisualTeacher(script)
    listener = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=2048, limit=1 << 26)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Script(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
