"""A tiny composed model that learns to name the colour of a square, in seconds: one that sees, for sure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from mmreason.data.schema import RL_COLUMNS, to_dataset
from mmreason.data.visual import render_visual_prompt
from mmreason.rollout.scoring import completion_logps
from tests.pictures import ask, cell

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (235, 235, 235)}
SIZE = 32


def square(name: str, random: np.random.Generator) -> Image.Image:
    """A shade of the colour: no two squares are the same picture."""
    shade = np.clip(np.array(COLOURS[name]) + random.integers(-20, 21, 3), 0, 255)
    return Image.new("RGB", (SIZE, SIZE), tuple(int(part) for part in shade))


def colour_rows(count: int, seed: int = 0) -> Dataset:
    """Questions about one square each."""
    random = np.random.default_rng(seed)
    names = [str(name) for name in random.choice(list(COLOURS), count)]
    rows = [
        {
            "prompt": ask("colour?", 1),
            "images": [cell(square(name, random))],
            "answer": name,
            "id": f"square{i}",
            "source": "colours",
            "meta": {},
        }
        for i, name in enumerate(names)
    ]
    return to_dataset(rows, (*RL_COLUMNS, "images"))  # type: ignore[arg-type]


def colour_model(folder: Path, *, steps: int, seed: int = 0) -> str:
    """Compose the model, teach it for some steps, and save it; returns the checkpoint's path."""
    from mmreason.models.compose import from_parts
    from mmreason.models.tiny import save_tiny

    tower = {"embed_dim": 64, "depth": 1, "num_heads": 2}
    vision = {
        "source": "timm",
        "name": "vit_tiny_patch16_224",
        "weights": "random",
        "image_size": SIZE,
        "config": tower,
    }
    model, processor = from_parts(vision, {"kind": "mlp"}, save_tiny(folder / "decoder"), seed=seed)
    learn(model, processor, steps, seed)
    path = folder / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def learn(model: Any, processor: Any, steps: int, seed: int) -> None:
    """Maximise log p(colour | square) on 64 squares."""
    random = np.random.default_rng([seed, 7])
    names = [name for name in COLOURS for _ in range(16)]
    visuals = [render_visual_prompt(ask("colour?", 1), [square(name, random)], processor) for name in names]
    said = [[*processor.tokenizer(name)["input_ids"], processor.tokenizer.eos_token_id] for name in names]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        batch = random.choice(len(names), 16, replace=False)
        seen = [visuals[i] for i in batch]
        logps, _ = completion_logps(model, [visual.ids for visual in seen], [said[i] for i in batch], visuals=seen)
        optimizer.zero_grad()
        (-logps.sum() / len(batch)).backward()
        optimizer.step()
    model.eval()
