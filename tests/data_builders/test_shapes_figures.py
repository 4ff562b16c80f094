"""Figures of the shapes builder are drawn true to their numbers: measured in the pixels and between the drawn ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from data_builders.shapes import generate
from tests.data_builders.seeing import Pixels, colored, coverage_of, pixels_of


def figures(ask: str, size: int, n: int = 50) -> list[tuple[dict[str, Any], Pixels]]:
    """Scenes of one sort of question with their pictures."""
    task = "sides" if ask in ("perimeter", "area") else "angles"
    rows = generate(n, 5, level=3, tasks=[task], image_size=size)
    return [(row["meta"]["scenes"][0], pixels_of(row["images"][0])) for row in rows if row["meta"]["ask"] == ask]


@pytest.mark.parametrize("size", [48, 64, 224])
def test_rectangles_have_the_ratio_of_their_sides(size: int) -> None:
    scenes = figures("perimeter", size)
    assert len(scenes) > 5
    for scene, picture in scenes:
        ys, xs = np.nonzero(colored(picture))
        wide, high = scene["numbers"]
        assert (xs.max() + 1 - xs.min()) * high == (ys.max() + 1 - ys.min()) * wide


@pytest.mark.parametrize(("size", "slack"), [(64, 4.0), (224, 1.5)])
def test_angles_of_triangles_measured_in_the_picture(size: int, slack: float) -> None:
    """Lines are fitted through the left and the right edge; how much of a pixel is covered tells parts of one."""
    scenes = figures("triangle", size)
    assert len(scenes) > 15
    for scene, picture in scenes:
        mask = colored(picture)
        covered, _ = coverage_of(picture, picture[0, 0], mask)
        full = covered > 0.99
        rows = [y for y in np.nonzero(full.any(axis=1))[0] if full[y].sum() >= 3][1:-1]
        lefts = [float(np.argmax(full[y])) for y in rows]
        left = [x - covered[y, : int(x)].sum() for y, x in zip(rows, lefts, strict=True)]
        right = [x + covered[y, int(x) :].sum() for y, x in zip(rows, lefts, strict=True)]
        (down_left, _), (down_right, _) = np.polyfit(rows, left, 1), np.polyfit(rows, right, 1)
        ways = (down_left, -down_right) if full[rows[0]].sum() > full[rows[-1]].sum() else (-down_left, down_right)
        measured = [math.degrees(math.atan2(1, way)) for way in ways]
        measured.append(180 - sum(measured))
        assert np.allclose(measured, scene["numbers"], atol=slack), (scene, measured)


@pytest.mark.parametrize(("size", "slack"), [(32, 2.0), (64, 1.0), (224, 0.4)])
def test_angles_between_the_drawn_ends(size: int, slack: float) -> None:
    for level in (2, 3):
        for row in generate(80, 6, level=level, tasks=["angles"], image_size=size):
            scene = row["meta"]["scenes"][0]
            if scene["kind"] == "triangle":
                corners = scene["parts"][0]
                angles = [_angle(corners[i], corners[i - 1], corners[i - 2]) for i in range(3)]
            else:
                # A ray's corners: two at its foot, two at its end. The line goes to the right and to the left of it.
                ways = [_direction(*part) for part in scene["parts"][1:]]
                ends = [0.0, *ways, 180.0]
                angles = [b - a for a, b in itertools.pairwise(ends)]
            assert np.allclose(angles, scene["numbers"], atol=2 * slack if scene["kind"] == "line" else slack), scene
            assert sum(scene["numbers"]) == 180 and min(scene["numbers"]) >= 25


def _angle(at: list[int], one: list[int], other: list[int]) -> float:
    a, b = (math.atan2(point[1] - at[1], point[0] - at[0]) for point in (one, other))
    turn = abs(math.degrees(a - b))
    return min(turn, 360 - turn)


def _direction(a: list[int], b: list[int], c: list[int], d: list[int]) -> float:
    foot, end = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), ((c[0] + d[0]) / 2, (c[1] + d[1]) / 2)
    return math.degrees(math.atan2(foot[1] - end[1], end[0] - foot[0]))
