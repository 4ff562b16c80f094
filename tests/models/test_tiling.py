"""Layouts of tiles against a search of all of them, and views against PIL's own resize."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.models.tiling import count_views, make_views, tile_grid
from tests.pictures import picture

sides = st.integers(1, 3000)


def best_layouts(width: int, height: int, max_tiles: int) -> set[tuple[int, int]]:
    """All layouts whose aspect ratio is nearest, in exact numbers."""
    layouts = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    gaps = {layout: abs(Fraction(width, height) - Fraction(*layout)) for layout in layouts}
    return {layout for layout, gap in gaps.items() if gap == min(gaps.values())}


@given(width=sides, height=sides, size=st.sampled_from([16, 224, 448]), max_tiles=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_the_nearest_aspect_ratio_wins(width: int, height: int, size: int, max_tiles: int) -> None:
    columns, rows = tile_grid(width, height, size, max_tiles)
    best = best_layouts(width, height, max_tiles)
    assert (columns, rows) in best
    # Of equally near ones the largest that the picture has pixels for; the smallest needs none.
    smallest = min(c * r for c, r in best)
    filled = [c * r for c, r in best if 2 * width * height > size * size * c * r]
    assert columns * rows == max([smallest, *filled])
    assert count_views(width, height, size, max_tiles) == (1 if columns * rows == 1 else columns * rows + 1)


@given(width=sides, height=sides)
@settings(max_examples=30, deadline=None)
def test_one_tile_is_none(width: int, height: int) -> None:
    assert tile_grid(width, height, 64, 1) == (1, 1) and count_views(width, height, 64, 1) == 1


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((1, 1), (1, 1)), ((1, 1000), (1, 6)), ((1000, 1), (6, 1)), ((600, 200), (3, 1)), ((448, 448), (2, 2))],
)
def test_layouts_worked_out_by_hand(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    assert tile_grid(*shape, 224, 6) == grid


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (64, 64), (1, 1000), (1, 1), (7, 5)])
def test_views(shape: tuple[int, int], resize: str) -> None:
    image, size = picture(*shape), 16
    views = make_views(image, size, 4, resize, Image.Resampling.BICUBIC, (1, 2, 3))
    assert len(views) == count_views(*shape, size, 4)
    assert all(view.size == (size, size) and view.mode == "RGB" for view in views)
    columns, rows = tile_grid(*shape, size, 4)
    if columns * rows > 1:
        whole = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
        tiles = [np.array(view) for view in views[1:]]
        joined = np.vstack([np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)])
        assert np.array_equal(joined, np.array(whole))


def test_the_thumbnail_of_each_way_to_resize() -> None:
    """A white picture with a black square on the right, in nearest-neighbour pixels that can be told by hand."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (20, 0, 40, 20))

    def thumbnail(resize: str) -> np.ndarray:
        return np.array(make_views(image, 20, 1, resize, Image.Resampling.NEAREST, (9, 9, 9))[0])[:, :, 0]

    assert (thumbnail("stretch")[:, :10] == 255).all() and (thumbnail("stretch")[:, 10:] == 0).all()
    assert (thumbnail("crop")[:, :10] == 255).all() and (thumbnail("crop")[:, 10:] == 0).all()
    padded = thumbnail("pad")
    assert (padded[:5] == 9).all() and (padded[15:] == 9).all()
    assert (padded[5:15, :10] == 255).all() and (padded[5:15, 10:] == 0).all()


def test_a_crop_keeps_the_middle() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    for view in (image, image.rotate(90, expand=True)):
        assert np.array(make_views(view, 20, 1, "crop", 3, (0, 0, 0))[0]).tolist() == [[[0, 0, 255]] * 20] * 20


def test_a_very_long_picture_takes_no_square_of_its_length() -> None:
    """Padded to 30,000 × 30,000 pixels first, it would take 2.7 GB."""
    image = Image.new("RGB", (30_000, 2), (255, 255, 255))
    (view,) = make_views(image, 16, 1, "pad", 3, (9, 9, 9))
    pixels = np.asarray(view)
    assert pixels.shape == (16, 16, 3) and (pixels[7:9] == 255).any() and (pixels[0] == 9).all()
