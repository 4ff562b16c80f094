"""Tool use on rows with pictures: the teacher sees them, the rows hold them, and a replay reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_builders.building.runner import run
from data_builders.tool_use import ToolUse, ToolUseOptions, main
from mmreason.clients.types import Request
from mmreason.data import load_examples
from tests.data_builders.teaching import Ruled, rows_in, write_rows
from tests.pictures import cell, picture

NOTED = "3*4 = <<3*4=12>>12"
QUESTION = "How many pens are there?"


def solves(text: str, request: Request) -> str:
    if "Observation:" in text:
        return "Thought: That is it.\nFinal Answer: 12"
    return 'Thought: multiply\nAction: calculator\nAction Input: {"expression": "3*4"}'


@pytest.mark.parametrize("kind", ["notes", "solve"])
def test_pictures_come_along(tmp_path: Path, kind: Any) -> None:
    pictures = [cell(picture(8, 8, seed))["bytes"] for seed in range(2)]
    for seed, image in enumerate(pictures):
        (tmp_path / f"{seed}.png").write_bytes(image)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    said = [{"role": "assistant", "content": "12", "reasoning_content": NOTED}]
    rows = [{"prompt": asked, "completion": said, "answer": "12", "images": [f"{seed}.png"]} for seed in range(2)]
    source = write_rows(tmp_path / "q.jsonl", rows)
    teacher = Ruled(solves)
    given: dict[str, Any] = {"decontaminate": [], "report": False, "format": "prompt_completion", "rows": "trace"}
    builder = ToolUse(ToolUseOptions(source=str(source), out=tmp_path / "out", kind=kind, **given))
    run(builder, completers=[teacher] if kind == "solve" else None, say=lambda _: None)
    built = rows_in(tmp_path / "out")
    assert len(built) == 2, "the same words about two pictures are two rows"
    loaded = load_examples(str(tmp_path / "out"), columns=("prompt", "completion", "tools", "images", "answer", "id"))
    for row, image in zip(loaded.dataset, pictures, strict=True):
        assert [bytes(held["bytes"]) for held in row["images"]] == [image]
        assert [part["type"] for part in row["prompt"][-1]["content"]] == ["image", "text"]
    assert builder.sends_images() == (kind == "solve")
    assert {bytes(request.images[0]) for request in teacher.requests} == (set(pictures) if kind == "solve" else set())
    assert main(["replay", str(tmp_path / "out")]) == 0
