"""Drawing with whole numbers only, so that every machine draws the same pixels.

Outlines are taken in eighths of a pixel. A pixel has 4 x 4 samples, which lie on odd eighths; the number of samples
inside an outline is its coverage, 0 to 16, and mixes its color with the background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_builders._shapes.glyphs import dot_of, rows_of
from data_builders._shapes.scenes import UNIT, Color, Point

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Coverage = NDArray[np.uint8]

_SAMPLES = 4  # samples of a pixel along each axis
_FULL = _SAMPLES * _SAMPLES


class Canvas:
    """A square picture that is drawn on.

    Attributes:
        pixels: (size, size, 3) uint8, RGB.
    """

    def __init__(self, size: int, background: Color) -> None:
        self.pixels = np.empty((size, size, 3), np.uint8)
        self.pixels[:] = background

    def fill(self, x0: int, y0: int, x1: int, y1: int, color: Color) -> None:
        """A rectangle from pixel (x0, y0) to just before (x1, y1)."""
        self.pixels[y0:y1, x0:x1] = color

    def shape(self, name: str, x: int, y: int, side: int, color: Color) -> None:
        """A shape of SHAPES that fills the square of `side` pixels at (x, y)."""
        self._mix(shape_coverage(name, side), x, y, color)

    def polygon(self, corners: Sequence[Point], color: Color) -> None:
        """A convex polygon, corners in eighths of a pixel, in either direction."""
        x0, y0 = (min(corner[axis] for corner in corners) // UNIT for axis in (0, 1))
        x1, y1 = (-(-max(corner[axis] for corner in corners) // UNIT) for axis in (0, 1))
        u = np.arange(x0 * UNIT + 1, x1 * UNIT, 2, dtype=np.int32)
        v = np.arange(y0 * UNIT + 1, y1 * UNIT, 2, dtype=np.int32)[:, None]
        edges = list(zip(corners, [*corners[1:], corners[0]], strict=True))
        turn = 1 if sum(ax * by - ay * bx for (ax, ay), (bx, by) in edges) > 0 else -1
        inside = np.ones((v.size, u.size), bool)
        for (ax, ay), (bx, by) in edges:
            inside &= turn * ((bx - ax) * (v - ay)) >= turn * ((by - ay) * (u - ax))
        self._mix(_counted(inside), x0, y0, color)

    def text(self, x: int, y: int, text: str, color: Color) -> None:
        """Digits and letters of the fonts, with their upper left corner at (x, y)."""
        dots = _ink(text, len(self.pixels))
        self.pixels[y : y + dots.shape[0], x : x + dots.shape[1]][dots] = color

    def _mix(self, coverage: Coverage, x: int, y: int, color: Color) -> None:
        height, width = coverage.shape
        below = self.pixels[y : y + height, x : x + width]
        part = coverage[..., None].astype(np.int16)
        below[:] = (below * (_FULL - part) + np.array(color, np.int16) * part + _FULL // 2) // _FULL


def _counted(inside: NDArray[np.bool_]) -> Coverage:
    """(4 h, 4 w) samples to (h, w) coverage."""
    height, width = inside.shape
    grid = inside.reshape(height // _SAMPLES, _SAMPLES, width // _SAMPLES, _SAMPLES)
    return grid.sum(axis=(1, 3), dtype=np.uint8)


# ---- shapes that fill a square


# Corners of a star with five points, clockwise from the top, in thousandths of its square.
_STAR = (
    (500, 0), (621, 345), (1000, 382), (713, 618), (809, 1000),
    (500, 790), (191, 1000), (287, 618), (0, 382), (379, 345),
)  # fmt: skip


@functools.lru_cache(maxsize=2048)
def shape_coverage(name: str, side: int) -> Coverage:
    """(side, side) coverage, 0 to 16, of a shape that fills its square."""
    n = side * _SAMPLES
    v, u = np.ogrid[:n, :n]
    u, v = 2 * u + 1 - n, 2 * v + 1 - n  # from -n to n, odd steps: the middle is 0
    if name == "circle":
        inside = u * u + v * v <= n * n
    elif name == "square":
        inside = (abs(u) <= n) & (abs(v) <= n)
    elif name == "triangle":
        inside = 2 * abs(u) <= v + n
    elif name == "diamond":
        inside = abs(u) + abs(v) <= n
    elif name == "cross":
        inside = (3 * abs(u) <= n) | (3 * abs(v) <= n)
    elif name == "star":
        inside = _in_star(u, v, n)
    else:
        raise ValueError(f"no shape {name!r}")
    return _counted(np.broadcast_to(inside, (n, n)))


def _in_star(u: NDArray[np.int64], v: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Even-odd rule: a point is inside where a ray to the right crosses the outline an odd number of times."""
    x, y = (u + n) * 500, (v + n) * 500  # thousandths of the square times n
    inside = np.zeros(np.broadcast_shapes(u.shape, v.shape), bool)
    for (ax, ay), (bx, by) in zip(_STAR, [*_STAR[1:], _STAR[0]], strict=True):
        ax, ay, bx, by = (value * n for value in (ax, ay, bx, by))
        if ay == by:
            continue
        if ay > by:
            ax, ay, bx, by = bx, by, ax, ay
        inside ^= (y >= ay) & (y < by) & ((x - ax) * (by - ay) < (bx - ax) * (y - ay))
    return inside


@functools.lru_cache(maxsize=1024)
def _ink(text: str, size: int) -> NDArray[np.bool_]:
    """(height, width) bool, where the ink of a text is."""
    dots = np.array([[dot == "#" for dot in row] for row in rows_of(text, size)])
    return dots.repeat(dot_of(size), axis=0).repeat(dot_of(size), axis=1)
