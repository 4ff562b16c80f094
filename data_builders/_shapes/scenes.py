"""What a rendered scene is, and two kinds of it: objects that lie about, and bar charts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from data_builders._shapes.glyphs import text_size
from data_builders._words.templates import distinct

if TYPE_CHECKING:
    from data_builders._shapes.canvas import Canvas

Color = tuple[int, int, int]
Point = tuple[int, int]
UNIT = 8  # corners of polygons are in eighths of a pixel

COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 90, 220),
    "yellow": (245, 205, 20),
    "purple": (150, 60, 190),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
WHITE: Color = (255, 255, 255)
TINTS: tuple[Color, ...] = (WHITE, (236, 240, 245), (250, 244, 228), (234, 244, 234))
INK: Color = (24, 24, 24)
GRID: Color = (200, 200, 200)

SMALLEST = 6  # pixels: the side of the smallest object, so that its color and its shape can be seen
Box = dict[str, object]


class Scene(Protocol):
    """A picture before it is drawn. Everything in it is decided, in whole pixels or eighths of one."""

    @property
    def size(self) -> int:
        """Pixels along each side."""

    @property
    def background(self) -> Color:
        """The color of the ground."""

    def content(self) -> dict[str, object]:
        """What can be seen, and not where exactly: its hash decides on the split."""

    def spec(self) -> dict[str, object]:
        """All that the drawing depends on, JSON values."""

    def boxes(self) -> list[Box]:
        """``{"label", "color", "box"}`` of each object: x0, y0 of its first pixel and x1, y1 just past its last."""

    def draw(self, canvas: Canvas) -> None:
        """Draw it on an empty canvas."""


def between(rng: random.Random, low: int, high: int) -> int:
    """A whole number from low to high, both included, as `random.randint` but much quicker."""
    return low + int(rng.random() * (high - low + 1))


def box(label: str, color: str, x0: int, y0: int, x1: int, y1: int) -> Box:
    """One entry of a scene's boxes."""
    return {"label": label, "color": color, "box": [x0, y0, x1, y1]}


# ---- objects


class Combination(NamedTuple):
    """What an object looks like."""

    color: str
    shape: str


class Thing(NamedTuple):
    """An object: its look, the cell of the grid it lies in, and the square of pixels that it fills."""

    look: Combination
    cell: int
    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Objects:
    """Objects on an empty ground, in reading order. No two touch, none is cut."""

    size: int
    background: Color
    things: tuple[Thing, ...]

    def content(self) -> dict[str, object]:
        return {"kind": "objects", "objects": [[*thing.look, thing.cell] for thing in self.things]}

    def spec(self) -> dict[str, object]:
        objects = [
            {"color": look.color, "shape": look.shape, "x": x, "y": y, "side": side}
            for look, _, x, y, side in self.things
        ]
        return {"kind": "objects", "size": self.size, "background": list(self.background), "objects": objects}

    def boxes(self) -> list[Box]:
        return [box(look.shape, look.color, x, y, x + side, y + side) for look, _, x, y, side in self.things]

    def draw(self, canvas: Canvas) -> None:
        for look, _, x, y, side in self.things:
            canvas.shape(look.shape, x, y, side, COLORS[look.color])


def lay_objects(rng: random.Random, size: int, background: Color, grid: int, looks: Sequence[Combination]) -> Objects:
    """Put an object of each look into a cell of its own of a grid x grid plan, at least two pixels from all others."""
    cell = size // grid
    largest = cell - 2
    smallest = max(SMALLEST, largest * 6 // 10)
    margin = (size - grid * cell) // 2
    cells = sorted(distinct(rng, range(grid * grid), len(looks)))
    things = []
    for place, look in zip(cells, distinct(rng, looks, len(looks)), strict=True):
        side = between(rng, smallest, largest)
        row, column = divmod(place, grid)
        x = margin + column * cell + 1 + between(rng, 0, largest - side)
        y = margin + row * cell + 1 + between(rng, 0, largest - side)
        things.append(Thing(look, place, x, y, side))
    return Objects(size, background, tuple(things))


# ---- bar charts


class Bar(NamedTuple):
    """A bar: its color, its letter (empty where bars are told apart by color), and its height in lines of the grid."""

    color: str
    letter: str
    height: int


@dataclass(frozen=True)
class Bars:
    """A bar chart. Bars end on lines of the grid, which are `unit` apart; as many as find room are numbered."""

    size: int
    background: Color
    bars: tuple[Bar, ...]
    unit: int
    lines: int

    def content(self) -> dict[str, object]:
        return {"kind": "bars", "bars": [list(bar) for bar in self.bars], "unit": self.unit, "lines": self.lines}

    def spec(self) -> dict[str, object]:
        bars = [{"color": bar.color, "letter": bar.letter, "value": bar.height * self.unit} for bar in self.bars]
        values = {"bars": bars, "unit": self.unit, "lines": self.lines}
        return {"kind": "bars", "size": self.size, "background": list(self.background), **values}

    def boxes(self) -> list[Box]:
        return [
            box(
                f"bar {bar.letter}".strip(), bar.color, x, self._base - bar.height * self._spacing, x + wide, self._base
            )
            for bar, (x, wide) in zip(self.bars, self._columns(), strict=True)
        ]

    def draw(self, canvas: Canvas) -> None:
        left, base, spacing, thick = self._left, self._base, self._spacing, self._thick
        for line in range(1, self.lines + 1):
            canvas.fill(left, base - line * spacing, self.size - 1, base - line * spacing + thick, GRID)
        for label in self._labels():
            canvas.text(label.x, label.y, label.text, INK)
        for bar, (x, wide) in zip(self.bars, self._columns(), strict=True):
            canvas.fill(x, base - bar.height * spacing, x + wide, base, COLORS[bar.color])
        canvas.fill(left - thick, base - self.lines * spacing, left, base, INK)
        canvas.fill(left - thick, base, self.size - 1, base + thick, INK)

    def _labels(self) -> list[Label]:
        """Numbers at the lines, as many as there is room for, and letters below the bars."""
        height = text_size("0", self.size)[1]
        step = -(-(height + 2) // self._spacing)
        labels = []
        for line in range(step, self.lines + 1, step):
            text = str(line * self.unit)
            x = self._left - 2 * self._thick - text_size(text, self.size)[0]
            labels.append(Label(text, x, self._base - line * self._spacing + self._thick // 2 - height // 2))
        for bar, (x, wide) in zip(self.bars, self._columns(), strict=True):
            if bar.letter:
                x += (wide - text_size(bar.letter, self.size)[0]) // 2
                labels.append(Label(bar.letter, x, self._base + 2 * self._thick))
        return labels

    @property
    def _thick(self) -> int:
        """Pixels that a line is thick."""
        return max(1, self.size // 128)

    @property
    def _left(self) -> int:
        """The first pixel right of the axis."""
        return text_size(str(self.lines * self.unit), self.size)[0] + 3 * self._thick

    @property
    def _base(self) -> int:
        """The row of the base line: bars stand on it."""
        letters = text_size("A", self.size)[1] + self._thick if self.bars[0].letter else 0
        return self.size - letters - 2 * self._thick

    @property
    def _spacing(self) -> int:
        """Pixels from line to line."""
        return (self._base - text_size("0", self.size)[1] // 2 - 1) // self.lines

    def _columns(self) -> list[tuple[int, int]]:
        """(first pixel, width) of each bar."""
        slot = (self.size - 1 - self._left) // len(self.bars)
        wide = max(slot * 6 // 10, min(3, slot - 1))
        return [(self._left + i * slot + (slot - wide + 1) // 2, wide) for i in range(len(self.bars))]


# ---- text in pictures


class Label(NamedTuple):
    """A text in a picture and its upper left corner."""

    text: str
    x: int
    y: int

    def box(self, size: int) -> Box:
        """Its entry in the boxes of a scene of `size` pixels."""
        width, height = text_size(self.text, size)
        return box(self.text, "black", self.x, self.y, self.x + width, self.y + height)
