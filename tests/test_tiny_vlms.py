"""The tiny vision-language checkpoints are fit to test with: pictures matter, text varies, tokens match features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_vlms import TINY_VLMS, tiny_vlm


@pytest.mark.parametrize("kind", TINY_VLMS)
def test_pictures_matter(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny_vlm(kind, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.float32

    random = np.random.default_rng(0)
    sizes = [(56, 56), (70, 40), (30, 90)]
    noise = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    plain = [Image.new("RGB", size, (200, 30, 10)) for size in sizes]
    for count in (1, 3):
        content = [{"type": "image"}] * count + [{"type": "text", "text": "How many?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = [
            processor(text=[text], images=[images[:count]], return_tensors="pt", add_special_tokens=False)
            for images in (noise, plain)
        ]
        assert inputs[0]["input_ids"].tolist() == inputs[1]["input_ids"].tolist()
        with torch.no_grad():
            first, second = (model(**each).logits[0, -1].log_softmax(-1) for each in inputs)
            written = model.generate(**inputs[0], max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, -12:]
        assert (first - second).abs().max() > 0.5
        assert len(set(written.tolist())) >= 5, written.tolist()
