"""How a picture becomes views: one square, or a thumbnail and tiles laid out by the picture's aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tile_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the tiles that a picture is cut into; (1, 1): none, the thumbnail alone shows it.

    Of all layouts with at most `max_tiles` tiles the one whose aspect ratio is nearest to the picture's, as in
    InternVL 1.5 (arXiv 2404.16821, section 3.3); between equally near ones the larger, where the picture has pixels for
    it (more than half of the larger layout's area).

    Args:
        width, height: of the picture, pixels. size: side of a view, pixels.
    """
    best, best_gap = (1, 1), abs(width / height - 1)
    for count in range(2, max_tiles + 1):
        for columns in range(1, count + 1):
            if count % columns:
                continue
            rows = count // columns
            gap = abs(width / height - columns / rows)
            if gap < best_gap or (gap == best_gap and width * height > 0.5 * size * size * count):
                best, best_gap = (columns, rows), gap
    return best


def count_views(width: int, height: int, size: int, max_tiles: int) -> int:
    """Views of a picture: its thumbnail, and its tiles where it is cut."""
    columns, rows = tile_grid(width, height, size, max_tiles)
    return 1 if columns * rows == 1 else 1 + columns * rows


def make_views(image: Any, size: int, max_tiles: int, resize: str, resample: int, fill: Sequence[int]) -> list[Any]:
    """The views of an RGB picture as square pictures of `size` pixels: thumbnail, then tiles row by row.

    Args:
        image: PIL image. resize: stretch, pad or crop (tiles are always stretched to fill their layout).
        resample: PIL's number of the filter. fill: (r, g, b) of what padding shows.
    """
    views = [_square(image, size, resize, resample, fill)]
    columns, rows = tile_grid(image.width, image.height, size, max_tiles)
    if columns * rows > 1:
        large = image.resize((columns * size, rows * size), resample)
        views += [
            large.crop((c * size, r * size, (c + 1) * size, (r + 1) * size))
            for r in range(rows)
            for c in range(columns)
        ]
    return views


def _square(image: Any, size: int, resize: str, resample: int, fill: Sequence[int]) -> Any:
    width, height = image.size
    if resize == "stretch" or width == height:
        return image.resize((size, size), resample)
    if resize == "crop":
        side, left, top = min(width, height), max(0, width - height) // 2, max(0, height - width) // 2
        return image.resize((size, size), resample, box=(left, top, left + side, top + side))
    from PIL import Image

    # Scaled before it is padded: the square around a very long picture may be larger than memory.
    scale = size / max(width, height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (size, size), tuple(fill))
    square.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return square
