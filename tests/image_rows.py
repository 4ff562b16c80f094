"""What the tests of images and of rows with images share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmreason.data.images import ImageError, load_image

ALL = ("prompt", "completion", "images", "answer", "id", "source", "meta")
IMAGE: dict[str, Any] = {"type": "image"}


def encode(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(colour: Any) -> bytes:
    """A small picture of one colour."""
    return encode(PIL.Image.new("RGB", (6, 5), colour))


RED, BLUE = png("red"), png("blue")


def pixels(image: PIL.Image.Image) -> Any:
    assert image.mode == "RGB"
    return np.asarray(image)


def fails(value: Any, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(value, **options)
    return caught.value


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def user(*content: Any) -> list[Any]:
    """A prompt of one user message."""
    return [{"role": "user", "content": list(content)}]


def parsed(name: str, row: dict[str, Any]) -> Any:
    """The row as its format and its images make it."""
    from mmreason.data.formats import FORMATS
    from mmreason.data.formats.pictures import place_images

    example = FORMATS[name].parse(row, 0)
    place_images(example, row)
    return example


def said(example: Any) -> str:
    """The text of the last message, "[image]" for its images."""
    content = example["prompt"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "[image]") for part in content)


def jsonl_writer(folder: Path) -> Callable[..., str]:
    """(rows, name) -> path of a jsonl file in the folder."""

    def write(rows: list[Any], name: str = "train.jsonl") -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
