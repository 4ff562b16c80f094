"""Bar, line and pie charts with questions that a program answers. Drawn with whole numbers only, as all our scenes."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np

from data_builders._shapes.canvas import Canvas
from data_builders._shapes.glyphs import text_size
from data_builders._shapes.scenes import (
    COLORS,
    GRID,
    INK,
    TINTS,
    UNIT,
    Bar,
    Bars,
    Box,
    Color,
    Label,
    Point,
    between,
    box,
)
from data_builders._visual.proofs import Proved, Step
from data_builders._words.templates import distinct, one

_UNITS = (1, 2, 5, 10)
_ONE = 1 << 16
_SINES = tuple(round(math.sin(math.radians(degree)) * _ONE) for degree in range(451))


# ---- scenes


@dataclass(frozen=True)
class Lines(Bars):
    """A line chart on the plan of a bar chart: a point over the middle of each letter, joined from left to right."""

    def content(self) -> dict[str, object]:
        return super().content() | {"kind": "lines"}

    def spec(self) -> dict[str, object]:
        spec = super().spec()
        return spec | {"kind": "lines", "points": spec.pop("bars")}

    def boxes(self) -> list[Box]:
        half = self._mark // 2
        return [
            box(f"point {bar.letter}", bar.color, x - half, y - half, x - half + self._mark, y - half + self._mark)
            for bar, (x, y) in zip(self.bars, self.points(), strict=True)
        ]

    def points(self) -> list[Point]:
        """The pixel of each point's middle."""
        return [
            (x + wide // 2, self._base - bar.height * self._spacing)
            for bar, (x, wide) in zip(self.bars, self._columns(), strict=True)
        ]

    @property
    def _mark(self) -> int:
        """Pixels that a point is wide; odd, so that its middle is a pixel."""
        return max(5, self.size // 24) | 1

    def draw(self, canvas: Canvas) -> None:
        left, base, spacing, thick = self._left, self._base, self._spacing, self._thick
        for line in range(1, self.lines + 1):
            canvas.fill(left, base - line * spacing, self.size - 1, base - line * spacing + thick, GRID)
        for label in self._labels():
            canvas.text(label.x, label.y, label.text, INK)
        points, color = self.points(), COLORS[self.bars[0].color]
        for start, end in itertools.pairwise(points):
            canvas.polygon(_stroke(start, end, 2 * thick), color)
        canvas.fill(left - thick, base - self.lines * spacing, left, base, INK)
        canvas.fill(left - thick, base, self.size - 1, base + thick, INK)
        half = self._mark // 2
        for x, y in points:
            canvas.shape("square", x - half, y - half, self._mark, color)


def _stroke(start: Point, end: Point, thick: int) -> tuple[Point, ...]:
    """The corners of a line between the middles of two pixels, in eighths."""
    (ax, ay), (bx, by) = ((x * UNIT + UNIT // 2, y * UNIT + UNIT // 2) for x, y in (start, end))
    dx, dy = bx - ax, by - ay
    length = math.isqrt(dx * dx + dy * dy)
    nx, ny = -dy * thick * UNIT // (2 * length), dx * thick * UNIT // (2 * length)
    return ((ax + nx, ay + ny), (bx + nx, by + ny), (bx - nx, by - ny), (ax - nx, ay - ny))


@dataclass(frozen=True)
class Pie:
    """A pie chart: shares in percent, multiples of 5, clockwise from the top, each with its number in it."""

    size: int
    background: Color
    slices: tuple[tuple[str, int], ...]

    def content(self) -> dict[str, object]:
        return {"kind": "pie", "slices": [list(part) for part in self.slices]}

    def spec(self) -> dict[str, object]:
        slices = [{"color": color, "percent": percent} for color, percent in self.slices]
        return {"kind": "pie", "size": self.size, "background": list(self.background), "slices": slices}

    def boxes(self) -> list[Box]:
        low = (self.size - self._side) // 2
        return [
            box("pie", "", low, low, low + self._side, low + self._side),
            *(label.box(self.size) for label in self._labels()),
        ]

    @property
    def _side(self) -> int:
        """Pixels that the pie is wide."""
        return self.size * 9 // 10

    def draw(self, canvas: Canvas) -> None:
        low, start = (self.size - self._side) // 2, 0
        for color, percent in self.slices:
            # From here on to the full turn: the next slice is drawn over it, so no ground shows through between them.
            _mix(canvas, _sector(self._side, start), low, COLORS[color])
            start += percent * 18 // 5
        for label in self._labels():
            canvas.text(label.x, label.y, label.text, INK)

    def _labels(self) -> list[Label]:
        labels, start = [], 0
        for _, percent in self.slices:
            middle = start + percent * 9 // 5
            wide, high = text_size(str(percent), self.size)
            reach = self._side * 33 // 100
            x = self.size // 2 + reach * _SINES[middle] // _ONE - wide // 2
            y = self.size // 2 - reach * _SINES[middle + 90] // _ONE - high // 2
            labels.append(Label(str(percent), x, y))
            start += percent * 18 // 5
        return labels


def _sector(side: int, start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(side, side) coverage, 0 to 16, of the part of a disc from `start` degrees, clockwise from the top, on."""
    n = side * 4
    v, u = np.ogrid[:n, :n]
    x, y = (2 * u + 1 - n).astype(np.int64), (n - 2 * v - 1).astype(np.int64)
    inside = x * x + y * y <= n * n
    if start:
        across = x * _SINES[start + 90] - y * _SINES[start]  # above 0: clockwise of the ray, up to half a turn
        right = x >= 0
        inside &= (right & (across >= 0)) | ~right if start <= 180 else ~right & (across >= 0)
    grid = inside.reshape(side, 4, side, 4)
    return grid.sum(axis=(1, 3), dtype=np.uint8)


def _mix(canvas: Canvas, coverage: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], at: int, color: Color) -> None:
    side = len(coverage)
    below = canvas.pixels[at : at + side, at : at + side]
    part = coverage[..., None].astype(np.int16)
    below[:] = (below * (16 - part) + np.array(color, np.int16) * part + 8) // 16


# ---- questions


def ask_chart(rng: random.Random, size: int) -> Proved | None:
    """A question about a chart; None where the draw gives none."""
    kind = one(rng, ("bars", "lines", "pie"))
    return _ask_pie(rng, size) if kind == "pie" else _ask_axes(rng, size, kind)


def _ask_axes(rng: random.Random, size: int, kind: str) -> Proved | None:
    count, lines, unit = between(rng, 3, 5), between(rng, 6, 9), one(rng, _UNITS)
    heights = [between(rng, 1, lines) for _ in range(count)]
    ground = one(rng, TINTS)
    if kind == "bars":
        colors = distinct(rng, tuple(COLORS), count)
        scene: Bars = Bars(
            size, ground, tuple(Bar(c, "", h) for c, h in zip(colors, heights, strict=True)), unit, lines
        )
        names = list(colors)
    else:
        color = one(rng, tuple(COLORS))
        scene = Lines(
            size, ground, tuple(Bar(color, n, h) for n, h in zip("ABCDE", heights, strict=False)), unit, lines
        )
        names = list("ABCDE"[:count])
    values = {name: height * unit for name, height in zip(names, heights, strict=True)}
    asks = ["value", "sum", "difference", "total", "range", "mean"] + (["scaled"] if kind == "bars" else [])
    return _asked(rng, scene, values, kind, one(rng, asks))


def _asked(rng: random.Random, scene: Bars, values: dict[str, int], kind: str, ask: str) -> Proved | None:
    a, b = distinct(rng, tuple(values), 2)
    if ask == "difference" and values[a] < values[b]:
        a, b = b, a
    x, y, numbers = values[a], values[b], list(values.values())
    all_names, total = " + ".join(values), sum(numbers)
    added = Step(" + ".join(map(str, numbers)), total)
    name = f"{kind}_{ask}"
    if ask == "value":
        return Proved(name, scene, values, a, [Step("", x)], {"a": a})
    if ask == "sum":
        return Proved(name, scene, values, f"{a} + {b}", [Step(f"{x} + {y}", x + y)], {"a": a, "b": b})
    if ask == "difference":
        return (
            None if x == y else Proved(name, scene, values, f"{a} - {b}", [Step(f"{x} - {y}", x - y)], {"a": a, "b": b})
        )
    if ask == "total":
        return Proved(name, scene, values, all_names, [added], {})
    if ask == "scaled":
        k = between(rng, 2, 5)
        return Proved(name, scene, values, f"{k} * {a}", [Step(f"{k} * {x}", k * x)], {"a": a, "k": k})
    if ask == "range":
        high, low, listed = max(numbers), min(numbers), ", ".join(values)
        step = Step(f"{high} - {low}", high - low)
        return None if high == low else Proved(name, scene, values, f"max({listed}) - min({listed})", [step], {})
    if total % len(values):
        return None
    steps = [added, Step(f"{total} / {len(values)}", total // len(values))]
    return Proved(name, scene, values, f"({all_names}) // {len(values)}", steps, {})


def _ask_pie(rng: random.Random, size: int) -> Proved | None:
    count = between(rng, 3, 5)
    cuts = sorted(distinct(rng, range(1, 20), count - 1))
    shares = [5 * (end - start) for start, end in zip([0, *cuts], [*cuts, 20], strict=True)]
    if min(shares) < 10:
        return None  # its number would find no room
    colors = distinct(rng, tuple(COLORS), count)
    scene = Pie(size, one(rng, TINTS), tuple(zip(colors, shares, strict=True)))
    values = dict(scene.slices)
    a, b = distinct(rng, colors, 2)
    if values[a] < values[b]:
        a, b = b, a
    x, y = values[a], values[b]
    ask = one(rng, ("value", "sum", "difference", "of", "rest"))
    if ask == "value":
        return Proved("pie_value", scene, values, a, [Step("", x)], {"a": a})
    if ask == "sum":
        return Proved("pie_sum", scene, values, f"{a} + {b}", [Step(f"{x} + {y}", x + y)], {"a": a, "b": b})
    if ask == "difference":
        step = Step(f"{x} - {y}", x - y)
        return None if x == y else Proved("pie_difference", scene, values, f"{a} - {b}", [step], {"a": a, "b": b})
    if ask == "of":
        k = 20 * between(rng, 1, 25)
        steps = [Step(f"{k} * {x}", k * x), Step(f"{k * x} / 100", k * x // 100)]
        return Proved("pie_of", scene, values, f"{k} * {a} // 100", steps, {"a": a, "k": k})
    return Proved("pie_rest", scene, values, f"100 - {a}", [Step(f"100 - {x}", 100 - x)], {"a": a})
