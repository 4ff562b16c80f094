"""Charts and geometry: programs run, and a second reader finds the answer in the pixels and the question alone."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from data_builders._visual.drawing import draw_row
from data_builders._visual.proofs import Proved, Step, checked
from data_builders.building.build import Task
from data_builders.shapes import split_of
from data_builders.visual_instruct import VisualInstruct, VisualOptions
from mmreason.answers.verify import verify
from mmreason.types import Example
from tests.data_builders.seeing import (
    Pixels,
    colored,
    coverage_of,
    hue_name,
    ink_of,
    pixels_of,
    read_chart,
    read_dots,
    texts_in,
)


def drawn(task: str, n: int, tmp_path: Path, **options: Any) -> list[Example]:
    builder = VisualInstruct(VisualOptions(task=task, n=n, out=tmp_path, **options))
    made = [asyncio.run(builder.make(each, None)) for each in builder.plan()]  # type: ignore[arg-type]
    assert not any(one.drops for one in made)
    return [row for one in made for row in one.rows]


@pytest.mark.parametrize("task", ["charts", "geometry"])
def test_programs_print_the_answers(task: str, tmp_path: Path) -> None:
    rows = drawn(task, 120, tmp_path)
    programs = [row["meta"]["program"] for row in rows]
    runner = "import sys, json\nfor program in json.load(sys.stdin): exec(program, {})"
    ran = subprocess.run(
        [sys.executable, "-c", runner], input=json.dumps(programs), capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [row["answer"] for row in rows]
    assert len({row["meta"]["ask"] for row in rows}) >= 10
    for row in rows:
        (said,) = row["completion"]
        assert verify(said["content"], str(row["answer"]), "number").correct  # type: ignore[index, arg-type]


def test_a_program_runs_in_the_sandbox(tmp_path: Path) -> None:
    from mmreason.tools.python import PythonTool

    for task in ("charts", "geometry"):
        for row in drawn(task, 3, tmp_path):
            printed = PythonTool().call({"code": row["meta"]["program"]}, timeout_s=20)
            assert printed.strip() == row["answer"]


def test_a_wrong_proof_is_no_proof(tmp_path: Path) -> None:
    (row,) = drawn("charts", 1, tmp_path)
    scene: Any = None
    right = Proved("x", scene, {"a": 3, "b": 4}, "a + b", [Step("3 + 4", 7)], {})
    assert checked(right) == 7
    for expression, steps in (("a - b", right.steps), ("a / b", right.steps), ("c", right.steps), ("a + b", [])):
        assert checked(Proved("x", scene, {"a": 3, "b": 4}, expression, steps, {})) is None
    assert row["meta"]["values"]


# ---- a second reader


def read_line_chart(pixels: Pixels) -> dict[str, int]:
    """Letter -> value: points are where the ink of the line is thickest, values by the numbers at the lines."""
    size = len(pixels)
    ink = ink_of(pixels)
    base = int(np.argmax(ink.sum(axis=1) > size // 2))
    axis = int(np.argmax(ink[base - size // 2 : base].all(axis=0)))
    scale = []
    labels, _ = ndimage.label(ink[:base, :axis].any(axis=1))
    for (rows,) in ndimage.find_objects(labels):
        dots = ink[rows, :axis]
        scale.append((int(read_dots(dots[:, dots.any(axis=0).argmax() :], size)), (rows.start + rows.stop) / 2))
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    grey = (spread < 6) & (np.abs(pixels.astype(int) - pixels[0, -1].astype(int)).max(axis=2) > 20) & ~ink
    grid = [y for y in range(base) if grey[y, axis:].sum() > size // 3 and not grey[y - 1, axis:].sum() > size // 3]
    places = [base, *reversed(grid)]  # of 0, 1, 2 ... lines above the axis
    told = {min(range(len(places)), key=lambda i: abs(places[i] - middle)): value for value, middle in scale}
    (unit,) = {value / line for line, value in told.items()}
    below = ink.copy()
    below[: base + max(1, size // 128)] = False
    mask = colored(pixels)
    values = {}
    for letter, (x0, _, x1, _) in sorted(texts_in(below, size)):
        middle = (x0 + x1) // 2
        rows = [y for y in range(base) if mask[y, middle - 1 : middle + 2].all()]
        point = (min(rows) + max(rows)) / 2
        values[letter] = int(unit * min(range(len(places)), key=lambda i: abs(places[i] - point)))
    return values


def read_pie(pixels: Pixels) -> dict[str, int]:
    """Color -> number: the text that stands in it, held against its share of the disc's pixels."""
    mask = colored(pixels)
    colors, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    named = np.array([hue_name(color) for color in colors], dtype=object)
    hues = np.where(mask, named[places.reshape(mask.shape)], "")
    counts = Counter(hues[mask].tolist())
    total = sum(counts.values())
    found = {}
    for text, (x0, y0, x1, y1) in texts_in(ink_of(pixels), len(pixels)):
        around = hues[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2]
        color = Counter(around[around != ""].tolist()).most_common(1)[0][0]
        assert color not in found
        found[color] = int(text)
        assert abs(100 * counts[color] / total - int(text)) < 2.5, (color, text, counts)
    assert sum(found.values()) == 100
    return found


def chart_answer(pixels: Pixels, question: str) -> int:
    """The answer to an English question about a chart."""
    if "pie" in question:
        values = read_pie(pixels)
    elif "bar" in question:
        values = dict(read_chart(pixels).values)
    else:
        values = read_line_chart(pixels)
    named = [word for word in re.findall(r"[A-Za-z]+", question) if word in values]
    told = [values[name] for name in named]
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    every = list(values.values())
    if "average" in question:
        assert sum(every) % len(every) == 0
        return sum(every) // len(every)
    if "highest" in question:
        return max(every) - min(every)
    if "isn't" in question:
        return 100 - told[0]
    if "people" in question:
        return numbers[0] * told[0] // 100
    if "times as high" in question:
        return numbers[0] * told[0]
    if any(word in question for word in ("add up", "the sum of the values", "together")):
        return told[0] + told[1]
    if any(word in question for word in ("total", "sum of all")):
        return sum(every)
    if any(word in question for word in ("higher", "greater", "ahead")):
        return told[0] - told[1]
    assert len(told) == 1, question
    return told[0]


def figure_answer(pixels: Pixels, question: str) -> int:
    """The answer to an English question about a figure."""
    texts = [text.rstrip("°") for text, _ in texts_in(ink_of(pixels), len(pixels))]
    told = [int(text) for text in texts if text != "?"]
    if "degrees" in question:
        return 180 - sum(told)
    if "circle" in question:
        (radius,) = told
        return radius * radius if "area" in question else 2 * radius
    given = [int(number) for number in re.findall(r"\d+", question)]
    if given:
        return given[0] // told[0]
    a, b = told
    if "diagonal" in question or "longest" in question:
        assert isqrt(a * a + b * b) ** 2 == a * a + b * b
        return isqrt(a * a + b * b)
    if "perimeter" in question:
        return 2 * (a + b)
    return a * b // 2 if "right-angled" in question else a * b


@pytest.mark.parametrize("size", [96, 224])
def test_the_pictures_prove_the_answers(size: int, tmp_path: Path) -> None:
    """Neither the specification nor the program is looked at."""
    asks = Counter()
    for task, answer in (("charts", chart_answer), ("geometry", figure_answer)):
        for row in drawn(task, 50, tmp_path, image_size=size):
            text = row["prompt"][0]["content"][1]["text"]  # type: ignore[index, typeddict-item]
            assert str(answer(pixels_of(row["images"][0]), text)) == row["answer"], (row["id"], text)
            asks[row["meta"]["ask"]] += 1
    assert len(asks) >= 20, asks


def test_pictures_show_the_figure_that_is_asked_for(tmp_path: Path) -> None:
    """By how much of its box a figure fills: half for a right-angled triangle, π/4 for a circle."""
    shares = {"right triangle": 0.5, "circle": 0.785, "rectangle": 1.0}
    seen = Counter()
    for row in drawn("geometry", 80, tmp_path):
        kind = str(row["meta"]["scene"]["kind"])
        if kind not in shares:
            continue
        pixels = pixels_of(row["images"][0])
        mask = colored(pixels)
        ys, xs = np.nonzero(mask)
        part = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
        covered, color = coverage_of(pixels[part], pixels[0, 0], mask[part])
        assert abs(covered.mean() - shares[kind]) < 0.05, (kind, covered.mean())
        assert color == row["meta"]["scene"]["color"]
        seen[kind] += 1
    assert min(seen[kind] for kind in shares) >= 5


def test_rows_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    options = VisualOptions(task="charts", n=50, out=tmp_path, language="both")
    one = draw_row(options, Task("x", 7), "s")
    assert one == draw_row(options, Task("x", 7), "s")
    assert one.rows[0]["images"] != draw_row(options, Task("x", 8), "s").rows[0]["images"]
    assert [row["meta"]["language"] for row in drawn("charts", 4, tmp_path, language="both")] == ["en", "zh"] * 2
    other = drawn("charts", 4, tmp_path, seed=1)
    assert [row["images"] for row in other] != [row["images"] for row in drawn("charts", 4, tmp_path)]


@pytest.mark.parametrize("task", ["charts", "geometry"])
def test_train_and_test_share_no_scene(task: str, tmp_path: Path) -> None:
    sides = {"test": "test", "train": "train", "validation": "train"}
    for split, side in sides.items():
        builder = VisualInstruct(VisualOptions(task=task, n=12, out=tmp_path, split=split))
        for each in builder.plan():
            made = asyncio.run(builder.make(each, None))  # type: ignore[arg-type]
            for row in made.rows:
                assert side == _side(row)


def _side(row: Example) -> str:
    """The side of the scene, from what its specification tells of its content."""
    spec = row["meta"]["scene"]
    kind = spec["kind"]
    if kind in ("bars", "lines"):
        parts = spec["bars" if kind == "bars" else "points"]
        bars = [[part["color"], part["letter"], part["value"] // spec["unit"]] for part in parts]
        return split_of({"kind": kind, "bars": bars, "unit": spec["unit"], "lines": spec["lines"]})
    if kind == "pie":
        return split_of({"kind": kind, "slices": [[part["color"], part["percent"]] for part in spec["slices"]]})
    names = ("kind", "color", "radius") if kind == "circle" else ("kind", "color", "numbers", "missing")
    return split_of({name: spec[name] for name in names})
