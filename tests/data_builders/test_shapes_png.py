"""The PNG writer against Pillow's reader, and the pictures' bytes as ever."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_builders._shapes.png import encode


def decoded(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        image.verify()  # the checksums of the chunks
    image = Image.open(io.BytesIO(file))
    assert image.format == "PNG" and image.mode == "RGB"
    return np.array(image)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(1, 9),
    colors=st.integers(1, 300),
)
def test_pillow_reads_what_was_written(height: int, width: int, seed: int, block: int, colors: int) -> None:
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colors, 3), dtype=np.uint8)
    small = palette[rng.integers(0, colors, (-(-height // block), -(-width // block)))]
    pixels = np.ascontiguousarray(small.repeat(block, 0).repeat(block, 1)[:height, :width])
    assert np.array_equal(decoded(encode(pixels)), pixels)


@pytest.mark.parametrize("width", [*range(80, 92), 171, 172, 173, 448, 700, 1000, 2731])
def test_long_copies_and_far_rows(width: int) -> None:
    """Each code of a length, up to several of the longest, and of the distance to the row above."""
    pixels = np.full((5, width, 3), 200, np.uint8)
    pixels[2, width // 3] = (1, 2, 3)
    pixels[3:, -1] = (143, 144, 255)  # on both sides of the border between 8 and 9 bits
    assert np.array_equal(decoded(encode(pixels)), pixels)


def test_flat_pictures_are_small() -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[10:30, 10:30] = (214, 40, 40)
    assert len(encode(pixels)) < 500 < 64 * 64 * 3
