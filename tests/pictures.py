"""Small pictures and prompts with places for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny_vlms import TINY_VLMS, tiny_vlm


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: pictures of different seeds have nothing in common."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cell(image: Image.Image) -> dict[str, Any]:
    """A picture as a dataset stores it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def ask(text: str, images: int = 0) -> list[Any]:
    """A user's message with places for pictures before the text; a plain string without."""
    content: Any = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}] if images else text
    return [{"role": "user", "content": content}]


def varied_reward(completions: list[Any], images: list[Any], **_: Any) -> list[float]:
    """Different for almost any two texts, and for rows with more pictures; needs the column `images`."""
    assert all(image["bytes"] for row in images for image in row)
    return [sum(map(ord, turn[0]["content"])) % 7 + len(row) for turn, row in zip(completions, images, strict=True)]


SEEING = (*TINY_VLMS, "mmreason")
"""Kinds of models that see: existing vision-language models, and one that is composed here (two towers, tiles)."""


def save_seeing(kind: str, folder: Path) -> str:
    """Write a tiny random checkpoint of a kind of SEEING, with its processor; returns its path."""
    if kind in TINY_VLMS:
        return tiny_vlm(kind, folder)
    from tests.models.parts import HF_SIGLIP, TIMM_VIT, compose, save_decoder

    towers = {"towers": [TIMM_VIT, HF_SIGLIP], "max_tiles": 3}
    projector = {"kind": "pixel_shuffle", "factor": 2}
    model, processor = compose(towers, projector, save_decoder(folder / "decoder"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
