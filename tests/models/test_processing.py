"""Pictures and texts to inputs: places for every view's tokens, padding, engines' counts, files that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from mmreason.models.processing import MMReasonImageProcessor, MMReasonProcessor
from mmreason.models.tiling import count_views
from mmreason.models.tiny import tiny_tokenizer
from tests.pictures import picture

SIZES = [(64, 64), (120, 40), (40, 120), (1, 1), (1, 1000), (300, 299)]
TOKENS_PER_VIEW = 3


def processor(max_tiles: int = 1, towers: int = 1, **options: Any) -> MMReasonProcessor:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    images = MMReasonImageProcessor(32, [0.5] * 3 * towers, [0.25] * 3 * towers, max_tiles=max_tiles, **options)
    return MMReasonProcessor(images, tokenizer, TOKENS_PER_VIEW, "<|image|>", tokenizer.chat_template)


@pytest.mark.parametrize("max_tiles", [1, 4])
def test_every_view_has_its_tokens(max_tiles: int) -> None:
    """Rows with none, one and three pictures, nested and flat; counts are those that an engine is told."""
    made = processor(max_tiles)
    token, images = made.image_token, [[picture(*SIZES[1])], [], [picture(*size) for size in SIZES[2:5]]]
    texts = [f"{token}a", "no picture", f"b{token}{token} c {token}"]
    batch = made(text=texts, images=images, padding=True, return_tensors="pt")
    views = [count_views(*image.size, 32, max_tiles) for row in images for image in row]
    assert batch["num_tiles"].tolist() == views and batch["pixel_values"].shape == (sum(views), 3, 32, 32)
    per_row = [views[0], 0, sum(views[1:])]
    assert (batch["input_ids"] == made.image_token_id).sum(1).tolist() == [n * TOKENS_PER_VIEW for n in per_row]
    for same in ([image for row in images for image in row], [row for row in images if row]):
        again = made(text=texts, images=same, padding=True, return_tensors="pt")
        assert all(torch.equal(batch[name], again[name]) for name in batch)
    told = made._get_num_multimodal_tokens([(h, w) for w, h in (image.size for row in images for image in row)])
    assert told.num_image_patches == views and told.num_image_tokens == [n * TOKENS_PER_VIEW for n in views]


def test_text_alone() -> None:
    made = processor()
    batch = made(text=["one", "two words"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert made.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["one", "two words"]


def test_padding_on_either_side() -> None:
    made = processor()
    texts = [made.image_token, "a longer text"]
    for side in ("left", "right"):
        made.tokenizer.padding_side = side
        batch = made(text=texts, images=[[picture(9, 9)], []], padding=True, return_tensors="pt")
        assert batch["attention_mask"][0].tolist() == sorted(
            batch["attention_mask"][0].tolist(), reverse=side == "right"
        )
        assert (batch["input_ids"][0] == made.image_token_id).sum() == TOKENS_PER_VIEW


@pytest.mark.parametrize(
    ("texts", "images", "told"),
    [
        (["{}{}{}"], [[8, 8]], r"places for \[3\] pictures, given are \[2\]"),
        (["{}{}{}"], [8, 8, 8, 8], r"\[3\] pictures, given are \[4\]"),
        (["{}{}", "{}"], [[8], [8, 8]], r"\[2, 1\] pictures, given are \[1, 2\]"),
        (["{}{}", "{}"], [[8, 8, 8]], r"\[2, 1\] pictures, given are \[3\]"),
        (["none"], [[8]], r"\[0\] pictures, given are \[1\]"),
    ],
)
def test_pictures_and_places_that_differ(texts: list[str], images: Any, told: str) -> None:
    made = processor()
    pictures = [[picture(n, n) for n in row] if isinstance(row, list) else picture(row, row) for row in images]
    with pytest.raises(ValueError, match=told):
        made(text=[text.replace("{}", made.image_token) for text in texts], images=pictures, return_tensors="pt")


@pytest.mark.parametrize("images", [None, [], [[]]])
def test_engines_may_tokenize_places_without_pictures(images: Any) -> None:
    """One token for each: vLLM puts the rest in itself."""
    made = processor()
    batch = made(text=[made.image_token * 2], images=images)
    assert batch["input_ids"] == [[made.image_token_id] * 2] and "pixel_values" not in batch


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels(size: tuple[int, int], resize: str) -> None:
    """Thin and tiny pictures too, within what normalised bytes can be; a grey one is exactly grey whatever the way."""
    made = processor(max_tiles=4, resize=resize).image_processor
    pixels = made(picture(*size))["pixel_values"]
    assert torch.isfinite(pixels).all() and pixels.min() >= -2 and pixels.max() <= 2
    grey = made(Image.new("RGB", size, (128, 128, 128)))["pixel_values"]
    torch.testing.assert_close(grey, torch.full_like(grey, (128 / 255 - 0.5) / 0.25))


def test_forms_of_a_picture() -> None:
    """PIL, bytes as an array or a tensor, channels first or last, numbers to 255 or to 1."""
    made = processor().image_processor
    image = picture(40, 24)
    array = np.array(image)
    wanted = made(image)["pixel_values"]
    forms = [array, array.transpose(2, 0, 1), torch.from_numpy(array), [image], [[image]]]
    forms.append(array.astype(np.float32) / 255)
    for form in forms:
        assert torch.equal(made(form)["pixel_values"], wanted)
    with_alpha = image.copy()
    with_alpha.putalpha(255)
    assert torch.equal(made(with_alpha)["pixel_values"], wanted)


def test_files_come_back(tmp_path: Path) -> None:
    made = processor(max_tiles=3, towers=2, resize="pad", resample=2)
    made.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MMReasonProcessor and type(loaded.image_processor) is MMReasonImageProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MMReasonImageProcessor
    text, images = [made.image_token + "x"], [picture(70, 30)]
    first, second = (p(text=text, images=images, return_tensors="pt") for p in (made, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first) and first["pixel_values"].shape[1] == 6
    loaded.save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "third")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "third" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    """As images of a data set come: whoever uses the processor alone sees the same pixels."""
    made = processor()
    clear = made.image_processor([Image.new(mode, (9, 9), (0,) * len(mode))])["pixel_values"]
    white = made.image_processor([Image.new("RGB", (9, 9), "white")])["pixel_values"]
    assert torch.equal(clear, white)
