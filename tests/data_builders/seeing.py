"""A second look at rendered scenes, from the pixels and the English question alone.

It knows nothing of how they are drawn. Objects are what is connected and of one hue; their shape is told by how they
fill their box; numbers are read from the ink. Only the patterns of the digits are taken from the fonts.
"""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data_builders._shapes.glyphs import LARGE, SMALL

HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 130, "blue": 222, "purple": 282}
Pixels = NDArray[np.uint8]


class Thing(NamedTuple):
    """What is seen: color, shape, box (x1, y1 just past the last pixel)."""

    color: str
    shape: str
    box: tuple[int, int, int, int]


def pixels_of(image: dict[str, Any]) -> Pixels:
    opened = Image.open(io.BytesIO(image["bytes"]))
    assert opened.format == "PNG" and opened.mode == "RGB"
    return np.array(opened)


def hue_name(rgb: Sequence[int]) -> str:
    hue = colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] * 360
    return min(HUES, key=lambda name: min(abs(hue - HUES[name]), 360 - abs(hue - HUES[name])))


def ink_of(pixels: Pixels) -> NDArray[np.bool_]:
    return pixels.max(axis=2) < 64


def colored(pixels: Pixels) -> NDArray[np.bool_]:
    """Everything that is neither ground nor ink nor grey."""
    far = np.abs(pixels.astype(int) - pixels[0, 0].astype(int)).max(axis=2) > 6
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    return far & (spread > 12) & ~ink_of(pixels)


def coverage_of(part: Pixels, ground: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], str]:
    """How much of each pixel is covered, and the color: that of the pixel which is farthest from the ground."""
    away = part.astype(float) - ground.astype(float)
    distance = (away**2).sum(axis=2) * mask
    full = away[np.unravel_index(distance.argmax(), distance.shape)]
    covered = np.clip((away @ full) / (full @ full), 0, 1) * mask
    return covered, hue_name([int(value) for value in ground + full])


def shape_of(covered: NDArray[np.float64]) -> str:
    """The shape, from its share of its box, where its middle lies, and how wide its top is."""
    height, width = covered.shape
    share = covered.sum() / (height * width)
    middle = (covered.sum(axis=1) @ (np.arange(height) + 0.5)) / covered.sum() / height
    if share > 0.95:
        return "square"
    if share > 0.68:
        return "circle"
    if share < 0.42:
        return "star"
    if middle > 0.58:
        return "triangle"
    top = covered[: max(1, height // 6)].mean()  # a third of a cross, at most a sixth of a diamond
    return "cross" if top > 0.25 else "diamond"


def things_in(pixels: Pixels) -> list[Thing]:
    """All objects of a picture, in no particular order."""
    found = []
    labels, _ = ndimage.label(colored(pixels), np.ones((3, 3)))
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        covered, color = coverage_of(pixels[rows, columns], pixels[0, 0], labels[rows, columns] == index)
        found.append(Thing(color, shape_of(covered), (columns.start, rows.start, columns.stop, rows.stop)))
    return found


# ---- text


def read_dots(dots: NDArray[np.bool_], size: int) -> str:
    """The text of a patch of ink."""
    dot = max(1, size // 96)
    fonts = {
        letter: np.array([[c == "#" for c in row] for row in rows.split()])
        for letter, rows in (LARGE if size >= 96 else SMALL).items()
    }
    trimmed = {letter: glyph[:, glyph.any(axis=0)] for letter, glyph in fonts.items()}
    small = dots[::dot, ::dot]
    text, at = "", 0
    while at < small.shape[1]:
        if not small[:, at].any():
            at += 1
            continue
        end = at
        while end < small.shape[1] and small[:, end].any():
            end += 1
        glyph = small[:, at:end]
        text += next(letter for letter, known in trimmed.items() if np.array_equal(_padded(known, glyph), glyph))
        at = end
    return text


def _padded(known: NDArray[np.bool_], glyph: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return known if known.shape == glyph.shape else np.zeros(1, bool)


def texts_in(ink: NDArray[np.bool_], size: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """The texts of a picture and their boxes; labels are further apart than the letters of one."""
    dot = max(1, size // 96)
    height = (7 if size >= 96 else 5) * dot
    near = ndimage.binary_dilation(ink, np.ones((4 * dot + 1, 4 * dot + 1 if size >= 96 else 3)))
    labels, count = ndimage.label(near, np.ones((3, 3)))
    found = []
    for index in range(1, count + 1):
        ys, xs = np.nonzero(ink & (labels == index))
        x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        assert y1 - y0 == height, (index, y0, y1)
        found.append((read_dots(ink[y0:y1, x0:x1], size), (x0, y0, x1, y1)))
    return found


# ---- bar charts


class Chart(NamedTuple):
    """A bar chart as it is seen: name (letter or color) -> value, from left to right."""

    values: dict[str, int]
    boxes: list[tuple[int, int, int, int]]


def read_chart(pixels: Pixels) -> Chart:
    size = len(pixels)
    ink = ink_of(pixels)
    base = int(np.argmax(ink.sum(axis=1) > size // 2))
    axis = int(np.argmax(ink[base - size // 2 : base].all(axis=0)))  # unbroken, as no column of labels is
    thick = max(1, size // 128)
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    ground = pixels[0, -1].astype(int)
    line_color = (spread < 6) & (np.abs(pixels.astype(int) - ground).max(axis=2) > 20) & ~ink
    is_line = line_color[:base, axis + thick :].sum(axis=1) > 0
    tops = [y for y in range(base) if is_line[y] and (y == 0 or not is_line[y - 1])]
    lines = {y: index for index, y in enumerate(reversed(tops), start=1)}
    spacing = base - tops[-1]
    assert all(base - y == index * spacing for y, index in lines.items())

    units = set()
    labels, _ = ndimage.label(ink[: base + 3 * thick, :axis].any(axis=1))
    for (rows,) in ndimage.find_objects(labels):
        dots = ink[rows, :axis]
        value = int(read_dots(dots[:, dots.any(axis=0).argmax() :], size))
        middle = (rows.start + rows.stop) / 2
        index = min(lines, key=lambda y: abs(y + thick / 2 - middle))
        assert abs(index + thick / 2 - middle) <= 1.5 * thick
        units.add(value / lines[index])
    assert len(units) == 1, units
    unit = int(units.pop())

    found, _ = ndimage.label(colored(pixels), np.ones((3, 3)))
    below = ink[base + 2 * thick :]
    letters = read_dots(below[below.any(axis=1)], size) if below.any() else ""
    values: dict[str, int] = {}
    boxes = []
    for rows, columns in sorted(ndimage.find_objects(found), key=lambda where: where[1].start):
        assert rows.stop == base
        lines_high, rest = divmod(rows.stop - rows.start, spacing)
        assert rest == 0
        name = letters[len(values)] if letters else hue_name(pixels[base - 1, columns.start])
        assert name not in values
        values[name] = lines_high * unit
        boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    return Chart(values, boxes)


# ---- the answer, from the pictures and the question


def answer_of(pictures: Sequence[Pixels], question: str) -> str:
    """The answer to an English question."""
    if "bar" in question.split("?")[0] and re.search(r"\bbars?\b", question):
        return _of_chart(read_chart(pictures[0]).values, question)
    if re.search(r"\b(angles?|rectangle)\b", question):
        ink = ink_of(pictures[0])
        texts = [text.rstrip("°") for text, _ in texts_in(ink, len(pictures[0]))]
        return str(_of_figure([int(text) for text in texts if text != "?"], question))
    return _of_objects([things_in(picture) for picture in pictures], question)


def _of_chart(values: dict[str, int], question: str) -> str:
    if "highest" in question:
        best = [name for name, value in values.items() if value == max(values.values())]
        assert len(best) == 1 and re.search(rf"\b{best[0]}\b", question)
        return best[0]
    named = [a or b for a, b in re.findall(r"the (\w+) bar|bar ([A-E])\b", question)]
    told = [values[name] for name in named]
    if "sum" in question:
        return str(sum(told))
    return str(told[0] - told[1] if "higher" in question else told[0])


def _of_figure(told: list[int], question: str) -> int:
    if "angle" in question and "rectangle" not in question:
        return 180 - sum(told)
    given = [int(number) for number in re.findall(r"\d+", question)]
    if given:
        (side,) = told
        return given[0] // side if "area" in question else given[0] // 2 - side
    a, b = told
    return a * b if "area" in question else 2 * (a + b)


def groups_in(question: str) -> list[str]:
    """The objects that a question names: "red circles", "shapes"."""
    colors = "|".join(HUES)
    return re.findall(rf"((?:(?:{colors}) )?(?:shapes|circles|squares|triangles|diamonds|stars|crosses))", question)


def count_of(things: Sequence[Thing], group: str) -> int:
    """How many objects belong to a group."""
    *color, noun = group.split()
    shape = {"shapes": None, "crosses": "cross"}.get(noun, noun.removesuffix("s"))
    return sum(thing.color in (color or [thing.color]) and shape in (None, thing.shape) for thing in things)


def _of_objects(pictures: Sequence[Sequence[Thing]], question: str) -> str:
    things = pictures[0]
    if match := re.fullmatch(r"Which color has the most shapes: (.+)\?", question):
        numbers = {color: count_of(things, f"{color} shapes") for color in re.split(", | or ", match[1])}
        assert sum(numbers.values()) == len(things)
        best = [color for color, number in numbers.items() if number == max(numbers.values())]
        assert len(best) == 1
        return best[0]
    groups = groups_in(question)
    if len(pictures) == 2:
        a, b = (count_of(picture, groups[0]) for picture in pictures)
        return str(a + b if "both" in question else a - b)
    told = [count_of(things, group) for group in groups]
    if question.startswith("Are there more"):
        return "yes" if told[0] > told[1] else "no"
    if match := re.match(r"What is (\d) times", question):
        total = int(match[1]) * told[0] + told[1]
        return str(total - told[2] if "minus" in question else total)
    if "together" in question:
        return str(sum(told))
    return str(told[0] - told[1] if " more " in question else told[0])
