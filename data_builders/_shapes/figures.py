"""Figures with labels: a triangle, angles on a line, a rectangle. Drawn true to their numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_builders._shapes.glyphs import degree_sign, dot_of, text_size
from data_builders._shapes.scenes import COLORS, INK, SMALLEST, UNIT, Box, Color, Label, Point, between, box

if TYPE_CHECKING:
    from data_builders._shapes.canvas import Canvas

MISSING = "?"
_MARGIN = 2  # pixels left free at the edges
_ONE = 1 << 16
# Sines of whole degrees. None but 0, 1/2 and 1 is near a tie, so the last bit of the C library's sin is no matter.
_SINES = tuple(round(math.sin(math.radians(degree)) * _ONE) for degree in range(361))


def _sin(degrees: int) -> int:
    return _SINES[degrees]


def _cos(degrees: int) -> int:
    return _SINES[degrees + 90]


@dataclass(frozen=True)
class Figure:
    """A figure in one color with labels.

    Attributes:
        kind: "triangle", "line" (angles on a straight line) or "rectangle".
        numbers: the angles in degrees, from the left corner on (triangle: left, right, the third; line: from the right
            end on), or the width and the height of the rectangle.
        missing: the index of the number that the labels don't tell, -1 where they tell all.
        parts: what is drawn, convex polygons with corners in eighths of a pixel.
        labels: the texts, one for each number, in their order.
    """

    size: int
    background: Color
    kind: str
    color: str
    numbers: tuple[int, ...]
    missing: int
    parts: tuple[tuple[Point, ...], ...]
    labels: tuple[Label, ...]

    def content(self) -> dict[str, object]:
        return {"kind": self.kind, "color": self.color, "numbers": list(self.numbers), "missing": self.missing}

    def spec(self) -> dict[str, object]:
        corners = [[list(corner) for corner in part] for part in self.parts]
        drawn = {"parts": corners, "labels": [list(label) for label in self.labels]}
        return self.content() | {"size": self.size, "background": list(self.background)} | drawn

    def boxes(self) -> list[Box]:
        corners = [corner for part in self.parts for corner in part]
        x0, y0 = (min(corner[axis] for corner in corners) // UNIT for axis in (0, 1))
        x1, y1 = (-(-max(corner[axis] for corner in corners) // UNIT) for axis in (0, 1))
        return [box(self.kind, self.color, x0, y0, x1, y1), *(label.box(self.size) for label in self.labels)]

    def draw(self, canvas: Canvas) -> None:
        for part in self.parts:
            canvas.polygon(part, COLORS[self.color])
        for label in self.labels:
            canvas.text(label.x, label.y, label.text, INK)


def _texts(size: int, numbers: Sequence[int], missing: int, sign: str = "") -> list[str]:
    """What stands at each number."""
    return [MISSING if i == missing else f"{number}{sign}" for i, number in enumerate(numbers)]


def lay_triangle(
    rng: random.Random, size: int, background: Color, color: str, angles: tuple[int, int, int], missing: int
) -> Figure | None:
    """A triangle with a level side, its corners labelled with their angles; None where it or its labels find no room.

    By the law of sines its sides are as the sines of the angles across from them.
    """
    left, right, top = angles
    base, x_top, y_top = _sin(top) * _ONE, _sin(right) * _cos(left), _sin(right) * _sin(left)
    first, wide = min(0, x_top), max(base, x_top) - min(0, x_top)
    texts = _texts(size, angles, missing, degree_sign(size))
    label_height = text_size(MISSING, size)[1]
    above = label_height + 2 * _MARGIN
    room_x, room_y = (size - 2 * _MARGIN) * UNIT, (size - 2 * above) * UNIT
    share = between(rng, 75, 100)
    part, whole = (room_x, wide) if room_x * y_top < room_y * wide else (room_y, y_top)
    part = part * share // 100
    points = ((0, 0), (base, 0), (x_top, y_top))
    corners = [((x - first) * part // whole, (y_top - y) * part // whole) for x, y in points]
    width, height = wide * part // whole, y_top * part // whole
    if min(width, height, corners[1][0] - corners[0][0]) < SMALLEST * UNIT:
        return None
    x0 = _MARGIN * UNIT + between(rng, 0, room_x - width)
    y0 = above * UNIT + between(rng, 0, room_y - height)
    upside_down = rng.random() < 0.5
    corners = [(x0 + x, y0 + (height - y if upside_down else y)) for x, y in corners]
    labels = []
    for index, (text, (x, y)) in enumerate(zip(texts, corners, strict=True)):
        text_width, _ = text_size(text, size)
        at = min(max(x // UNIT - text_width // 2, 1), size - 1 - text_width)
        over = (index == 2) != upside_down
        labels.append(Label(text, at, y // UNIT - label_height - 1 if over else -(-y // UNIT) + 1))
    if labels[0].x + text_size(texts[0], size)[0] + 5 * dot_of(size) > labels[1].x:
        return None
    return Figure(size, background, "triangle", color, angles, missing, (tuple(corners),), tuple(labels))


def lay_line(
    rng: random.Random, size: int, background: Color, color: str, angles: tuple[int, ...], missing: int
) -> Figure | None:
    """Rays from a point of a straight line, labels between them; None where a label finds no room.

    The angles count from the right end of the line on and add up to 180 degrees.
    """
    thick = max(1, size // 56)
    reach = size * between(rng, 40, 46) // 100
    x = between(rng, reach + 1, size - reach - 1)
    y = between(rng, reach + 1, size - thick - 1)
    ends = [sum(angles[:i]) for i in range(len(angles) + 1)]
    line = _bar(x - reach, y, x + reach, y + thick)
    foot = x * UNIT + thick % 2 * UNIT // 2  # so that an upright ray fills whole pixels
    rays = [_ray(foot, y * UNIT, end, reach * UNIT, thick * UNIT) for end in ends[1:-1]]
    labels = []
    for text, low, high in zip(_texts(size, angles, missing, degree_sign(size)), ends[:-1], ends[1:], strict=True):
        label = _between_rays(size, text, (x, y), low, high, reach, 1 + thick)
        if label is None:
            return None
        labels.append(label)
    return Figure(size, background, "line", color, angles, missing, (line, *rays), tuple(labels))


def _bar(x0: int, y0: int, x1: int, y1: int) -> tuple[Point, ...]:
    """The corners of a rectangle of whole pixels."""
    x0, y0, x1, y1 = (value * UNIT for value in (x0, y0, x1, y1))
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ray(x: int, y: int, degrees: int, length: int, thick: int) -> tuple[Point, ...]:
    """The corners of a thick line from (x, y), all in eighths of a pixel."""
    along = _cos(degrees) * length // _ONE, -_sin(degrees) * length // _ONE
    aside = _sin(degrees) * thick // (2 * _ONE), _cos(degrees) * thick // (2 * _ONE)
    near = ((x + aside[0], y + aside[1]), (x - aside[0], y - aside[1]))
    return (*near, *((px + along[0], py + along[1]) for px, py in reversed(near)))


def _between_rays(size: int, text: str, point: Point, low: int, high: int, reach: int, gap: int) -> Label | None:
    """The text in the middle between two rays, as near to the point as it clears both by `gap` pixels."""
    width, height = text_size(text, size)
    middle = low + high  # in half degrees
    ux, uy = (_cos(middle // 2) + _cos(-(-middle // 2))) // 2, (_sin(middle // 2) + _sin(-(-middle // 2))) // 2
    for distance in range(max(width, height) // 2, reach):
        x = point[0] + (ux * distance - width * _ONE // 2) // _ONE
        y = point[1] - (uy * distance + height * _ONE // 2) // _ONE
        outer = [(cx, cy) for cx in (x - gap, x + width + gap) for cy in (y - gap, y + height + gap)]
        clear = all(
            _cos(low) * (point[1] - cy) - _sin(low) * (cx - point[0]) > 0
            and _cos(high) * (point[1] - cy) - _sin(high) * (cx - point[0]) < 0
            for cx, cy in outer
        )
        if clear and x >= 1 and y >= 1 and x + width < size and y + height < size:
            return Label(text, x, y)
    return None


def lay_rectangle(
    rng: random.Random, size: int, background: Color, color: str, sides: tuple[int, int], missing: int
) -> Figure | None:
    """A rectangle with its width above and its height to its left; None where it would be too small to see.

    A unit of length is the same whole number of pixels in both directions.
    """
    texts = _texts(size, sides, missing)
    (above_width, label_height), (left_width, _) = (text_size(text, size) for text in texts)
    first_x, first_y = left_width + 2 * _MARGIN, label_height + 2 * _MARGIN
    wide, high = sides
    largest = min((size - _MARGIN - first_x) // wide, (size - _MARGIN - first_y) // high)
    smallest = max(-(-largest * 6 // 10), -(-SMALLEST // min(sides)), -(-above_width // wide))
    if smallest > largest:
        return None
    unit = between(rng, smallest, largest)
    x = between(rng, first_x, size - _MARGIN - wide * unit)
    y = between(rng, first_y, size - _MARGIN - high * unit)
    labels = (
        Label(texts[0], x + (wide * unit - above_width) // 2, y - label_height - _MARGIN),
        Label(texts[1], x - left_width - _MARGIN, y + (high * unit - label_height) // 2),
    )
    return Figure(
        size, background, "rectangle", color, sides, missing, (_bar(x, y, x + wide * unit, y + high * unit),), labels
    )
