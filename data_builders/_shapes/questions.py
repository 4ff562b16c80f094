"""Questions about rendered scenes: an answer is drawn first, so that all are equally frequent, then a scene for it."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_builders._shapes.figures import Figure, lay_line, lay_rectangle, lay_triangle
from data_builders._shapes.scenes import (
    COLORS,
    SHAPES,
    TINTS,
    Bar,
    Bars,
    Combination,
    Objects,
    Scene,
    between,
    lay_objects,
)
from data_builders._shapes.words import Equation, Group, Picture, Question, Seen, Step, Value
from data_builders._words.templates import distinct, one

_S = TypeVar("_S", bound=Scene)

HELD_OUT = frozenset(
    Combination(color, shape)
    for color, shape in zip(
        ("red", "green", "blue", "yellow", "purple", "orange"),
        ("square", "triangle", "circle", "diamond", "cross", "star"),
        strict=True,
    )
)
"""Combinations of color and shape that occur in the split of unseen combinations only."""
_TRIES_PER_SCENE = 60  # one in ten scenes falls to the test split
_NEAR_SHARE = 0.5  # of the objects that are not asked for: those that share the color or the shape of one that is
_SMALLEST_ANGLE = 25  # degrees


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard the questions of a level are.

    Attributes:
        colors, shapes: how many of COLORS and SHAPES its objects have.
        objects: fewest and most objects of a picture, `largest` the most that are asked for at once.
        grid: objects lie in a grid x grid plan.
        bars, lines, units: fewest and most bars, lines of their grid, and what a line may stand for.
        letters: bars have one color and a letter, else each has a color.
        angle_step: angles are multiples of it, in degrees.
        sides: shortest and longest side of a rectangle.
        tints: how many of TINTS its grounds have.
        asks: task -> what it may ask.
        tasks: those drawn where none are named.
    """

    colors: int
    shapes: int
    objects: tuple[int, int]
    largest: int
    grid: int
    bars: tuple[int, int]
    lines: int
    units: tuple[int, ...]
    letters: bool
    angle_step: int
    sides: tuple[int, int]
    tints: int
    asks: dict[str, tuple[str, ...]]
    tasks: tuple[str, ...]


LEVELS: dict[int, Level] = {
    1: Level(
        colors=3,
        shapes=3,
        objects=(1, 4),
        largest=4,
        grid=3,
        bars=(2, 3),
        lines=5,
        units=(1,),
        letters=False,
        angle_step=10,
        sides=(2, 6),
        tints=1,
        asks={
            "describe": ("describe",),
            "count": ("count",),
            "compare": ("more", "most"),
            "arithmetic": ("sum", "difference"),
            "bars": ("bar_value", "bar_highest"),
            "angles": ("line",),
            "sides": ("perimeter",),
        },
        tasks=("count", "compare", "arithmetic", "bars"),
    ),
    2: Level(
        colors=4,
        shapes=4,
        objects=(3, 8),
        largest=6,
        grid=4,
        bars=(3, 4),
        lines=9,
        units=(1,),
        letters=False,
        angle_step=5,
        sides=(2, 9),
        tints=1,
        asks={
            "describe": ("describe",),
            "count": ("count",),
            "compare": ("more", "most"),
            "arithmetic": ("sum", "difference", "multiple"),
            "bars": ("bar_value", "bar_highest", "bar_sum", "bar_difference"),
            "angles": ("line", "triangle"),
            "sides": ("perimeter", "area"),
        },
        tasks=("count", "compare", "arithmetic", "bars", "angles", "sides"),
    ),
    3: Level(
        colors=6,
        shapes=6,
        objects=(6, 12),
        largest=9,
        grid=4,
        bars=(3, 5),
        lines=9,
        units=(1, 2, 5, 10),
        letters=True,
        angle_step=1,
        sides=(2, 12),
        tints=len(TINTS),
        asks={
            "describe": ("describe",),
            "count": ("count",),
            "compare": ("more", "most"),
            "arithmetic": ("multiple", "multiple_minus"),
            "bars": ("bar_value", "bar_highest", "bar_sum", "bar_difference"),
            "angles": ("triangle", "three_on_a_line"),
            "sides": ("perimeter", "area", "side_of_area", "side_of_perimeter"),
        },
        tasks=("count", "compare", "arithmetic", "bars", "angles", "sides"),
    ),
}


class Draw:
    """What a question is drawn from: the random numbers, the level, and which scenes belong to the split.

    Args:
        size: pixels of a picture along each side.
        unseen: draw objects of HELD_OUT too, and ask for them.
        accepts: whether a scene belongs to the split.
    """

    def __init__(
        self, rng: random.Random, level: Level, size: int, *, unseen: bool, accepts: Callable[[Scene], bool]
    ) -> None:
        self.rng = rng
        self.level = level
        self.size = size
        self.unseen = unseen
        self.accepts = accepts
        self.colors = tuple(COLORS)[: level.colors]
        looks = [Combination(color, shape) for color in self.colors for shape in SHAPES[: level.shapes]]
        self.looks = [look for look in looks if unseen or look not in HELD_OUT]
        self.held_out = [look for look in looks if look in HELD_OUT]

    def ask(self, task: str) -> Question | None:
        """A question of one of TASKS or about "two_images", None where no scene for it was found in the split."""
        return _ASK[task](self)

    def ground(self) -> tuple[int, int, int]:
        """A color for the background."""
        return one(self.rng, TINTS[: self.level.tints])

    def scene(self, make: Callable[[], _S | None]) -> _S | None:
        """A scene of the split, the first of some that `make` gives."""
        for _ in range(_TRIES_PER_SCENE):
            scene = make()
            if scene is not None and self.accepts(scene):
                return scene
        return None

    def groups(self, count: int) -> list[Group]:
        """Groups that share no object: shapes, colors, or combinations; of unseen ones the first is held out."""
        if self.unseen:
            first = one(self.rng, self.held_out)
            others = [look for look in self.looks if look != first]
            return [Group(*look) for look in (first, *distinct(self.rng, others, count - 1))]
        by = one(self.rng, ("shape", "color", "both"))
        if by == "shape":
            return [Group(None, shape) for shape in distinct(self.rng, SHAPES[: self.level.shapes], count)]
        if by == "color":
            return [Group(color, None) for color in distinct(self.rng, self.colors, count)]
        return [Group(*look) for look in distinct(self.rng, self.looks, count)]

    def objects(self, groups: Sequence[Group], counts: Sequence[int]) -> Objects | None:
        """A picture with so many objects of each group and some others."""
        return self.scene(lambda: self._objects(groups, counts))

    def _objects(self, groups: Sequence[Group], counts: Sequence[int]) -> Objects:
        looks = []
        for group, count in zip(groups, counts, strict=True):
            members = [look for look in self.looks if group.has(look)]
            looks += [one(self.rng, members) for _ in range(count)]
        others = [look for look in self.looks if not any(group.has(look) for group in groups)]
        near = [look for look in others if any(look.color == g.color or look.shape == g.shape for g in groups)]
        fewest, most = self.level.objects
        if others:
            for _ in range(between(self.rng, max(fewest - len(looks), 0), most - len(looks))):
                looks.append(one(self.rng, near if near and self.rng.random() < _NEAR_SHARE else others))
        return lay_objects(self.rng, self.size, self.ground(), self.level.grid, looks)


# ---- objects


def _count(draw: Draw) -> Question | None:
    groups = draw.groups(1)
    answer = between(draw.rng, int(draw.unseen), draw.level.largest)
    scene = draw.objects(groups, (answer,))
    if scene is None:
        return None
    steps = (Seen(tuple(thing.look for thing in scene.things)), Value(groups[0], answer))
    return Question("count", "count", {"a": groups[0]}, (scene,), steps, answer)


def _describe(draw: Draw) -> Question | None:
    """A caption: the objects in reading order."""
    groups = draw.groups(1) if draw.unseen else []
    scene = draw.objects(groups, [1] * len(groups))
    if scene is None:
        return None
    return _caption(scene)


def _caption(scene: Objects) -> Question:
    return Question("describe", "describe", {}, (scene,), (), tuple(thing.look for thing in scene.things))


def captioned(question: Question) -> Question | None:
    """The question what is in the same picture; None where there are several pictures, or something else than objects.

    Pictures that a question was asked about are not as random as those of "describe": what they show is mostly alike,
    which is easier to learn.
    """
    (first, *others) = question.scenes
    return _caption(first) if isinstance(first, Objects) and not others else None


def _compare(draw: Draw) -> Question | None:
    ask = "more" if draw.unseen else one(draw.rng, draw.level.asks["compare"])
    return _more(draw) if ask == "more" else _most(draw)


def _more(draw: Draw) -> Question | None:
    groups = draw.groups(2)
    yes = draw.rng.random() < 0.5
    most = draw.level.objects[1]
    a, b = one(
        draw.rng,
        [
            (a, b)
            for a in range(int(draw.unseen), draw.level.largest + 1)
            for b in range(min(draw.level.largest, most - a) + 1)
            if (a > b) == yes and a + b > 0
        ],
    )
    scene = draw.objects(groups, (a, b))
    if scene is None:
        return None
    sign = ">" if a > b else "<" if a < b else "="
    steps = (Value(groups[0], a), Value(groups[1], b), Equation(a, sign, b, None))
    return Question("compare", "more", {"a": groups[0], "b": groups[1]}, (scene,), steps, yes)


def _most(draw: Draw) -> Question | None:
    """One color has more objects than each other that the question names, and there are no further colors."""
    colors = tuple(distinct(draw.rng, draw.colors, min(3, len(draw.colors))))
    winner = int(draw.rng.random() * len(colors))
    fewest, most = draw.level.objects

    def counts() -> list[int]:
        while True:
            top = between(draw.rng, 1, draw.level.largest)
            drawn = [top if i == winner else between(draw.rng, 0, top - 1) for i in range(len(colors))]
            if fewest <= sum(drawn) <= most:
                return drawn

    groups = [Group(color, None) for color in colors]
    drawn = counts()
    scene = draw.scene(lambda: _only(draw, groups, drawn))
    if scene is None:
        return None
    steps = tuple(Value(color, count) for color, count in zip(colors, drawn, strict=True))
    return Question("compare", "most", {}, (scene,), steps, colors[winner], colors)


def _only(draw: Draw, groups: Sequence[Group], counts: Sequence[int]) -> Objects:
    looks = [
        one(draw.rng, [look for look in draw.looks if group.has(look)])
        for group, count in zip(groups, counts, strict=True)
        for _ in range(count)
    ]
    return lay_objects(draw.rng, draw.size, draw.ground(), draw.level.grid, looks)


def _arithmetic(draw: Draw) -> Question | None:
    ask = one(draw.rng, draw.level.asks["arithmetic"])
    groups = draw.groups(3 if ask == "multiple_minus" else 2)
    k = 1 if ask in ("sum", "difference") else between(draw.rng, 2, 3) if draw.level.letters else 2
    by_answer = _counts(ask, k, int(draw.unseen), draw.level.largest, draw.level.objects[1])
    answer = one(draw.rng, tuple(by_answer))
    counts = one(draw.rng, by_answer[answer])
    scene = draw.objects(groups, counts)
    if scene is None:
        return None
    a, b = counts[:2]
    steps: list[Step] = [Value(group, count) for group, count in zip(groups, counts, strict=True)]
    if ask in ("sum", "difference"):
        steps.append(Equation(a, "+" if ask == "sum" else "-", b, answer))
    else:
        steps += [Equation(k, "*", a, k * a), Equation(k * a, "+", b, k * a + b)]
    if ask == "multiple_minus":
        steps.append(Equation(k * a + b, "-", counts[2], answer))
    slots = dict(zip("abc", groups, strict=False)) | ({"k": k} if k > 1 else {})
    return Question("arithmetic", ask, slots, (scene,), tuple(steps), answer)


@functools.cache
def _counts(ask: str, k: int, least: int, largest: int, most: int) -> dict[int, list[tuple[int, ...]]]:
    """Answer -> the counts that give it: the first from `least` on, each up to `largest`, together up to `most`."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for counts in itertools.product(range(largest + 1), repeat=3 if ask == "multiple_minus" else 2):
        a, b, *rest = counts
        answer = a - b if ask == "difference" else k * a + b - sum(rest)
        if answer >= 0 and a >= least and 0 < sum(counts) <= most:
            found.setdefault(answer, []).append(counts)
    return found


def _two_images(draw: Draw) -> Question | None:
    """A question about the objects of two pictures: how many in both, or how many more in the first."""
    group = draw.groups(1)[0]
    low, largest = int(draw.unseen), draw.level.largest
    ask = one(draw.rng, ("two_sum", "two_difference"))
    if ask == "two_sum":
        answer = between(draw.rng, 2 * low, 2 * largest)
        a = between(draw.rng, max(low, answer - largest), min(largest, answer - low))
        b = answer - a
    else:
        answer = between(draw.rng, 0, largest - low)
        b = between(draw.rng, low, largest - answer)
        a = answer + b
    first, second = draw.objects((group,), (a,)), draw.objects((group,), (b,))
    if first is None or second is None:
        return None
    last = Equation(a, "+" if ask == "two_sum" else "-", b, answer)
    steps = (Value(Picture(1), a), Value(Picture(2), b), last)
    return Question("two_images", ask, {"a": group}, (first, second), steps, answer)


# ---- bar charts


def _bars(draw: Draw) -> Question | None:
    level, rng = draw.level, draw.rng
    ask = one(rng, level.asks["bars"])
    number = between(rng, *level.bars)
    colors = [one(rng, tuple(COLORS))] * number if level.letters else distinct(rng, tuple(COLORS), number)
    letters = "ABCDE"[:number] if level.letters else [""] * number
    first, second = distinct(rng, range(number), 2)
    heights = _heights(rng, ask, level.lines)
    unit = one(rng, level.units)

    def make() -> Bars:
        values = [between(rng, 1, heights[0] - 1 if ask == "bar_highest" else level.lines) for _ in range(number)]
        values[first] = heights[0]
        if len(heights) > 1:
            values[second] = heights[1]
        drawn = tuple(Bar(*bar) for bar in zip(colors, letters, values, strict=True))
        return Bars(draw.size, draw.ground(), drawn, unit, level.lines)

    scene = draw.scene(make)
    if scene is None:
        return None
    a, b = scene.bars[first], scene.bars[second]
    if ask == "bar_highest":
        names = tuple(bar.letter or bar.color for bar in scene.bars)
        steps = tuple(Value(bar, bar.height * unit) for bar in scene.bars)
        return Question("bars", ask, {}, (scene,), steps, names[first], names)
    left, right = a.height * unit, b.height * unit
    if ask == "bar_value":
        return Question("bars", ask, {"a": a}, (scene,), (Value(a, left),), left)
    answer = left + right if ask == "bar_sum" else left - right
    last = Equation(left, "+" if ask == "bar_sum" else "-", right, answer)
    return Question("bars", ask, {"a": a, "b": b}, (scene,), (Value(a, left), Value(b, right), last), answer)


def _heights(rng: random.Random, ask: str, lines: int) -> tuple[int, ...]:
    """The heights of the bars that are asked for."""
    if ask == "bar_value":
        return (between(rng, 1, lines),)
    if ask == "bar_highest":
        return (between(rng, 2, lines),)
    if ask == "bar_sum":
        total = between(rng, 2, 2 * lines)
        left = between(rng, max(1, total - lines), min(lines, total - 1))
        return left, total - left
    difference = between(rng, 1, lines - 1)
    right = between(rng, 1, lines - difference)
    return right + difference, right


# ---- figures


def _angles(draw: Draw) -> Question | None:
    ask = one(draw.rng, draw.level.asks["angles"])
    number = 2 if ask == "line" else 3
    step = draw.level.angle_step
    least = -(-_SMALLEST_ANGLE // step)
    answer = between(draw.rng, least, 180 // step - least * (number - 1))

    def make() -> Figure | None:
        color, missing = one(draw.rng, tuple(COLORS)), int(draw.rng.random() * number)
        rest = [180 // step - answer]
        if number == 3:
            known = between(draw.rng, least, rest[0] - least)
            rest = [known, rest[0] - known]
        rest.insert(missing, answer)
        angles = tuple(angle * step for angle in rest)
        if ask == "triangle":
            left, right, top = angles
            return lay_triangle(draw.rng, draw.size, draw.ground(), color, (left, right, top), missing)
        return lay_line(draw.rng, draw.size, draw.ground(), color, angles, missing)

    scene = draw.scene(make)
    if scene is None:
        return None
    told = [angle for index, angle in enumerate(scene.numbers) if index != scene.missing]
    total = sum(told)
    steps = [Equation(180, "-", total, answer * step)]
    if number == 3:
        steps.insert(0, Equation(told[0], "+", told[1], total))
    return Question("angles", "triangle" if ask == "triangle" else "line", {}, (scene,), tuple(steps), answer * step)


def _sides(draw: Draw) -> Question | None:
    ask = one(draw.rng, draw.level.asks["sides"])

    def make() -> Figure | None:
        color = one(draw.rng, tuple(COLORS))
        missing = int(draw.rng.random() * 2) if ask.startswith("side_of") else -1
        wide, high = distinct(draw.rng, range(draw.level.sides[0], draw.level.sides[1] + 1), 2)
        return lay_rectangle(draw.rng, draw.size, draw.ground(), color, (wide, high), missing)

    scene = draw.scene(make)
    if scene is None:
        return None
    wide, high = scene.numbers
    half, area = wide + high, wide * high
    if ask == "perimeter":
        steps = [Equation(wide, "+", high, half), Equation(2, "*", half, 2 * half)]
        return Question("sides", ask, {}, (scene,), tuple(steps), 2 * half)
    if ask == "area":
        return Question("sides", ask, {}, (scene,), (Equation(wide, "*", high, area),), area)
    told, answer = scene.numbers[1 - scene.missing], scene.numbers[scene.missing]
    if ask == "side_of_area":
        return Question("sides", ask, {"k": area}, (scene,), (Equation(area, "/", told, answer),), answer)
    steps = [Equation(2 * half, "/", 2, half), Equation(half, "-", told, answer)]
    return Question("sides", ask, {"k": 2 * half}, (scene,), tuple(steps), answer)


_ASK: dict[str, Callable[[Draw], Question | None]] = {
    "count": _count,
    "compare": _compare,
    "arithmetic": _arithmetic,
    "bars": _bars,
    "angles": _angles,
    "sides": _sides,
    "describe": _describe,
    "two_images": _two_images,
}
TASKS = tuple(task for task in _ASK if task != "two_images")
OBJECT_TASKS = ("count", "compare", "arithmetic", "describe")
"""The tasks that can ask for a combination of color and shape."""
