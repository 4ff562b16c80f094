"""Geometry: triangles, angles on a line, rectangles and circles with questions that a program answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from data_builders._shapes.canvas import Canvas
from data_builders._shapes.figures import Figure, lay_line, lay_rectangle, lay_triangle
from data_builders._shapes.glyphs import text_size
from data_builders._shapes.scenes import COLORS, INK, TINTS, WHITE, Box, Color, Label, between, box
from data_builders._visual.proofs import Proved, Step
from data_builders._words.templates import distinct, one

_ANGLES = ("first_angle", "second_angle", "third_angle")
_RIGHT = ((3, 4, 5), (6, 8, 10), (5, 12, 13), (8, 15, 17), (9, 12, 15))
_SMALLEST_ANGLE = 25  # degrees
_MARGIN = 3  # pixels


@dataclass(frozen=True)
class Circle:
    """A disc with a radius drawn in it and its length above the radius.

    Attributes:
        radius: the number that is told; it is drawn to no scale.
        x, y, half: the middle and the half of the width, in pixels.
    """

    size: int
    background: Color
    color: str
    radius: int
    x: int
    y: int
    half: int

    def content(self) -> dict[str, object]:
        return {"kind": "circle", "color": self.color, "radius": self.radius}

    def spec(self) -> dict[str, object]:
        drawn = {"x": self.x, "y": self.y, "half": self.half, "labels": [list(self._label)]}
        return self.content() | {"size": self.size, "background": list(self.background)} | drawn

    def boxes(self) -> list[Box]:
        disc = (self.x - self.half, self.y - self.half, self.x + self.half, self.y + self.half)
        return [box("circle", self.color, *disc), self._label.box(self.size)]

    @property
    def _label(self) -> Label:
        wide, high = text_size(str(self.radius), self.size)
        return Label(str(self.radius), self.x + (self.half - wide) // 2, self.y - high - _MARGIN)

    def draw(self, canvas: Canvas) -> None:
        thick = max(1, self.size // 80)
        canvas.shape("circle", self.x - self.half, self.y - self.half, 2 * self.half, COLORS[self.color])
        canvas.fill(self.x, self.y, self.x + self.half, self.y + thick, WHITE)
        canvas.fill(self.x - thick, self.y - thick, self.x + thick, self.y + 2 * thick, WHITE)
        canvas.text(self._label.x, self._label.y, self._label.text, INK)


def ask_figure(rng: random.Random, size: int) -> Proved | None:
    """A question about a figure; None where the draw gives none."""
    return one(rng, _ASKS)(rng, size, one(rng, TINTS), one(rng, tuple(COLORS)))


def _angles(rng: random.Random, size: int, ground: Color, color: str) -> Proved | None:
    count, is_triangle = (3, True) if rng.random() < 0.6 else (between(rng, 2, 3), False)
    cuts = sorted(distinct(rng, range(1, 180), count - 1))
    angles = tuple(end - start for start, end in zip([0, *cuts], [*cuts, 180], strict=True))
    if min(angles) < _SMALLEST_ANGLE:
        return None
    missing = between(rng, 0, count - 1)
    if is_triangle:
        scene = lay_triangle(rng, size, ground, color, (angles[0], angles[1], angles[2]), missing)
    else:
        scene = lay_line(rng, size, ground, color, angles, missing)
    if scene is None:
        return None
    told = [angle for at, angle in enumerate(angles) if at != missing]
    values = dict(zip(_ANGLES, told, strict=False))
    steps = [Step(f"180 - {told[0]}", 180 - told[0])]
    if count == 3:
        steps.append(Step(f"{180 - told[0]} - {told[1]}", 180 - sum(told)))
    expression = " - ".join(["180", *values])
    return Proved("triangle" if is_triangle else "line", scene, values, expression, steps, {})


def _rectangle(rng: random.Random, size: int, ground: Color, color: str) -> Proved | None:
    ask = one(rng, ("area", "perimeter", "side", "diagonal"))
    wide, high = distinct(rng, range(2, 13), 2) if ask != "diagonal" else one(rng, _RIGHT)[:2]
    missing = between(rng, 0, 1) if ask == "side" else -1
    scene = lay_rectangle(rng, size, ground, color, (wide, high), missing)
    if scene is None:
        return None
    names = ("width", "height")
    values = {name: side for at, (name, side) in enumerate(zip(names, (wide, high), strict=True)) if at != missing}
    area, half = wide * high, wide + high
    if ask == "area":
        return Proved("rectangle_area", scene, values, "width * height", [Step(f"{wide} * {high}", area)], {})
    if ask == "perimeter":
        steps = [Step(f"{wide} + {high}", half), Step(f"2 * {half}", 2 * half)]
        return Proved("rectangle_perimeter", scene, values, "2 * (width + height)", steps, {})
    if ask == "diagonal":
        return Proved("rectangle_diagonal", scene, values, "sqrt(width**2 + height**2)", _root(wide, high), {})
    ((name, told),) = values.items()
    step = Step(f"{area} / {told}", area // told)
    return Proved("rectangle_side", scene, values, f"{area} // {name}", [step], {"k": area})


def _root(a: int, b: int) -> list[Step]:
    squares = a * a + b * b
    root = next(c for x, y, c in _RIGHT if {x, y} == {a, b})
    return [Step(f"{a} * {a}", a * a), Step(f"{b} * {b}", b * b), Step(f"{a * a} + {b * b}", squares),
            Step(f"√{squares}", root)]  # fmt: skip


def _right(rng: random.Random, size: int, ground: Color, color: str) -> Proved | None:
    """A right-angled triangle: half of the rectangle of its legs, whose labels it keeps."""
    ask = one(rng, ("area", "hypotenuse"))
    if ask == "area":
        wide, high = distinct(rng, range(2, 13), 2)
    else:
        wide, high = distinct(rng, one(rng, _RIGHT)[:2], 2)
    plan = None if wide * high % 2 and ask == "area" else lay_rectangle(rng, size, ground, color, (wide, high), -1)
    if plan is None:
        return None
    (corners,) = plan.parts
    x0, y0, x1, y1 = corners[0][0], corners[0][1], corners[2][0], corners[2][1]
    half = ((x0, y0), (x1, y0), (x0, y1))  # the labels stand above and to the left: there are the legs
    scene = Figure(size, ground, "right triangle", color, (wide, high), -1, (half,), plan.labels)
    values = {"width": wide, "height": high}
    if ask == "hypotenuse":
        return Proved("right_hypotenuse", scene, values, "sqrt(width**2 + height**2)", _root(wide, high), {})
    area = wide * high
    steps = [Step(f"{wide} * {high}", area), Step(f"{area} / 2", area // 2)]
    return Proved("right_area", scene, values, "width * height // 2", steps, {})


def _circle(rng: random.Random, size: int, ground: Color, color: str) -> Proved | None:
    radius, ask = between(rng, 2, 30), one(rng, ("diameter", "area", "circumference"))
    half = size * between(rng, 30, 45) // 100
    x, y = (between(rng, half + 2, size - half - 2) for _ in range(2))
    scene, values = Circle(size, ground, color, radius, x, y, half), {"radius": radius}
    if ask == "area":
        return Proved("circle_area", scene, values, "radius * radius", [Step(f"{radius} * {radius}", radius**2)], {})
    return Proved(f"circle_{ask}", scene, values, "2 * radius", [Step(f"2 * {radius}", 2 * radius)], {})


_ASKS: tuple[Callable[[random.Random, int, Color, str], Proved | None], ...] = (_angles, _rectangle, _right, _circle)
