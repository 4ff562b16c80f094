"""Rows of the shapes builder: a second reader sees in the pixels what the rows say, and the splits share nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import operator
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example as also_with
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders.shapes import LEVELS, SPLITS, STYLES, TASKS, generate, split_of
from mmreason.answers import KINDS, extract, verify_many
from mmreason.types import ConfigError, Example
from tests.data_builders.seeing import (
    Pixels,
    Thing,
    answer_of,
    colored,
    count_of,
    groups_in,
    ink_of,
    pixels_of,
    read_chart,
    texts_in,
    things_in,
)
from tests.timing import allowed

HELD_OUT = {
    ("red", "square"),
    ("green", "triangle"),
    ("blue", "circle"),
    ("yellow", "diamond"),
    ("purple", "cross"),
    ("orange", "star"),
}
CALCULATE: dict[str, Callable[[int, int], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
ALL_TASKS: dict[str, Any] = {"tasks": [task for task in TASKS if task != "describe"], "two_images": 0.15}


def parts_of(example: Example) -> list[dict[str, str]]:
    return example["prompt"][0]["content"]  # type: ignore[index, return-value]


def text_of(example: Example) -> str:
    return parts_of(example)[-1]["text"]


def reasoning_of(example: Example) -> str | None:
    return example["completion"][0].get("reasoning_content")  # type: ignore[index, union-attr, return-value]


def content_of(example: Example) -> str:
    return str(example["completion"][0]["content"])  # type: ignore[index]


def pictures_of(example: Example) -> list[Pixels]:
    return [pixels_of(image) for image in example["images"]]


# ---- what the rows say is in the pictures


@settings(max_examples=25, deadline=None)
@also_with(seed=4, level=3, split="train", size=74)  # nine labels, whose zeros stand in one column like an axis
@given(
    seed=st.integers(0, 10**9),
    level=st.sampled_from([*LEVELS]),
    split=st.sampled_from(SPLITS),
    size=st.one_of(st.integers(32, 100), st.sampled_from([150, 224, 448])),
)
def test_a_second_reader_finds_the_same_answers(seed: int, level: int, split: str, size: int) -> None:
    for i, example in enumerate(generate(5, seed, level=level, split=split, image_size=size, **ALL_TASKS)):
        pictures = pictures_of(example)
        assert all(picture.shape == (size, size, 3) for picture in pictures)
        assert answer_of(pictures, text_of(example)) == example["answer"]
        assert parts_of(example)[:-1] == [{"type": "image"}] * len(pictures)
        check_boxes(example, pictures)
        check_steps(example, pictures)
        meta = example["meta"]
        assert example["id"] == f"shapes/{level}/en/{size}/{seed}/{split}/{i}" and example["source"] == "shapes"
        assert (len(pictures) == 2) == (meta["task"] == "two_images")
        assert meta["level"] == level and meta["language"] == "en" and meta["kind"] in KINDS
        assert (meta["choices"] is not None) == (meta["kind"] == "choice")
        assert [scene["size"] for scene in meta["scenes"]] == [size] * len(pictures)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [32, 64])
def test_many_rows_hold(level: int, size: int) -> None:
    for example in generate(120, 1, level=level, image_size=size, **ALL_TASKS):
        pictures = pictures_of(example)
        assert answer_of(pictures, text_of(example)) == example["answer"], example["id"]
        check_boxes(example, pictures)
        check_steps(example, pictures)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_captions_list_what_is_seen(level: int, split: str) -> None:
    examples = generate(40, 2, level=level, split=split, tasks=["describe"], style="mixed")
    for example in examples:
        (picture,) = pictures_of(example)
        caption = content_of(example)
        listed = [tuple(item.split()) for item in caption.split(", ")]
        assert Counter(listed) == Counter((thing.color, thing.shape) for thing in things_in(picture))
        _check_reading_order(example["meta"]["scenes"][0]["objects"])
        assert listed == [(o["color"], o["shape"]) for o in example["meta"]["scenes"][0]["objects"]]
        assert reasoning_of(example) is None and example["answer"] == caption and example["meta"]["kind"] == "text"
        assert (split == "unseen_combinations") == any(look in HELD_OUT for look in listed)
    assert len({content_of(example) for example in examples}) > 10
    (chinese,) = generate(1, 2, level=level, tasks=["describe"], language="zh")
    assert not re.search(r"[a-z]", text_of(chinese) + content_of(chinese))


def check_boxes(example: Example, pictures: list[Pixels]) -> None:
    """Each box is tight around what is seen, to a pixel; objects touch neither the edge nor each other."""
    kinds = [scene["kind"] for scene in example["meta"]["scenes"]]
    for index, (kind, picture) in enumerate(zip(kinds, pictures, strict=True)):
        size = len(picture)
        told = [entry for entry in example["meta"]["boxes"] if entry["image"] == index]
        if kind == "objects":
            seen = things_in(picture)
            assert Counter((t.color, t.shape) for t in seen) == Counter((e["color"], e["label"]) for e in told)
        elif kind == "bars":
            chart = read_chart(picture)
            letters = [entry["label"].removeprefix("bar").strip() or entry["color"] for entry in told]
            assert letters == list(chart.values)
            seen = [Thing("", "", box) for box in chart.boxes]
        else:
            # Thin lines fade into the ground where they end: only what is well covered.
            ys, xs = np.nonzero(colored(picture))
            figure = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            texts = texts_in(ink_of(picture), size)
            assert sorted(text for text, _ in texts) == sorted(entry["label"] for entry in told[1:])
            seen = [Thing("", "", figure), *(Thing("", "", box) for _, box in texts)]
        assert len(seen) == len(told)
        dot = max(1, size // 96)
        for entry in told:
            # A glyph may leave a column of its cell free.
            slack = 2 * dot if entry["color"] == "black" else 1
            assert any(_near(entry["box"], thing.box, slack) for thing in seen), (example["id"], entry, seen)
            x0, y0, x1, y1 = entry["box"]
            assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
        boxes = [entry["box"] for entry in told] if kind == "objects" else []
        for i, one in enumerate(boxes):
            assert min(one[2] - one[0], one[3] - one[1]) >= 6
            assert one[0] >= 1 and one[2] < size and one[1] >= 1 and one[3] < size
            for other in boxes[:i]:
                apart = (one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3])
                assert max(apart) >= 2


def _near(told: list[int], seen: tuple[int, int, int, int], slack: int) -> bool:
    return all(abs(a - b) <= slack for a, b in zip(told, seen, strict=True))


def check_steps(example: Example, pictures: list[Pixels]) -> None:
    """Each line is true: what it lists and counts is seen, what it calculates is right and leads to the answer."""
    counted: list[int] = []
    results: list[int] = []
    question = text_of(example)
    lines = str(reasoning_of(example)).splitlines()
    for line in lines:
        if match := re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line):
            left, right, result = int(match[1]), int(match[3]), int(match[4])
            assert CALCULATE[match[2]](left, right) == result
            results.append(result)
        elif match := re.fullmatch(r"(\d+) ([<>=]) (\d+)", line):
            left, right = int(match[1]), int(match[3])
            assert counted == [left, right] and CALCULATE[match[2]](left, right)
            assert (match[2] == ">") == (example["answer"] == "yes")
        elif match := re.fullmatch(r"([\w ]+): (\d+)", line):
            assert _counted(match[1], pictures, question) == int(match[2]), (example["id"], line)
            counted.append(int(match[2]))
        else:
            listed = [tuple(item.split()) for item in line.split(", ")]
            assert Counter(listed) == Counter((thing.color, thing.shape) for thing in things_in(pictures[0]))
            assert listed == [(o["color"], o["shape"]) for o in example["meta"]["scenes"][0]["objects"]]
            _check_reading_order(example["meta"]["scenes"][0]["objects"])
    if example["meta"]["kind"] == "number":
        assert str((results or counted)[-1]) == example["answer"]
    if example["meta"]["kind"] == "choice":
        names = [line.split(":")[0].replace("bar", "").strip() for line in lines]
        assert names == example["meta"]["choices"] and names[counted.index(max(counted))] == example["answer"]
        assert re.findall(r"\w+", question.split(":")[1].replace(" or ", " ")) == names
    assert example["answer"] in content_of(example)


def _counted(label: str, pictures: list[Pixels], question: str) -> int:
    """What a line of a rationale gives a number of."""
    if match := re.fullmatch(r"picture (\d)", label):
        return count_of(things_in(pictures[int(match[1]) - 1]), groups_in(question)[0])
    if match := re.fullmatch(r"(\w+) bar|bar (\w)", label):
        return read_chart(pictures[0]).values[match[1] or match[2]]
    return count_of(things_in(pictures[0]), label if label.endswith("s") else f"{label} shapes")


def _check_reading_order(objects: list[dict[str, Any]]) -> None:
    for one, other in itertools.pairwise(objects):
        assert other["x"] >= one["x"] + one["side"] or other["y"] >= one["y"] + one["side"]


# ---- golds, languages, styles


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("style", ["rationale", "bare"])
def test_references_are_verified(language: str, style: str) -> None:
    examples = generate(200, 4, level=3, language=language, style=style, image_size=32, **ALL_TASKS)
    golds = [str(example["answer"]) for example in examples]
    kinds = [example["meta"]["kind"] for example in examples]
    choices = [example["meta"]["choices"] for example in examples]
    completions = [content_of(example) for example in examples]
    if style == "rationale":
        thoughts = [str(reasoning_of(example)) for example in examples]
        whole = [f"<think>\n{t}\n</think>\n\n{c}" for t, c in zip(thoughts, completions, strict=True)]
        whole += [f"{t}\n{c}" for t, c in zip(thoughts, completions, strict=True)]
        completions, golds, kinds, choices = completions + whole, golds * 3, kinds * 3, choices * 3
    judged = verify_many(completions, golds, kinds, choices)
    assert all(judgement.correct and judgement.strict_correct for judgement in judged)
    assert set(kinds) == {"number", "choice", "yesno"}
    for completion, gold, kind, options in zip(completions, golds, kinds, choices, strict=True):
        assert extract(completion, kind, options).strict is not None, (completion, gold)
    others = [_another(gold, kind, options) for gold, kind, options in zip(golds, kinds, choices, strict=True)]
    assert not any(judgement.correct for judgement in verify_many(completions, others, kinds, choices))


def _another(gold: str, kind: str, choices: list[str] | None) -> str:
    if choices:
        return next(choice for choice in choices if choice != gold)
    if kind == "yesno":
        return {"yes": "no", "no": "yes", "是": "否", "否": "是"}[gold]
    return str(int(gold) + 1)


def test_languages_change_only_the_words() -> None:
    english, chinese, both = (
        generate(80, 0, level=3, language=language, image_size=32, **ALL_TASKS) for language in ("en", "zh", "both")
    )
    assert [row["images"] for row in english] == [row["images"] for row in chinese] == [row["images"] for row in both]
    for en, zh in zip(english, chinese, strict=True):
        assert en["meta"]["scenes"] == zh["meta"]["scenes"] and en["meta"]["ask"] == zh["meta"]["ask"]
        assert re.search(r"[\u4e00-\u9fff]", text_of(zh)) and not re.search(r"[a-z]", text_of(zh) + content_of(zh))
        if en["meta"]["kind"] == "number":
            assert en["answer"] == zh["answer"]
            numbers = [re.findall(r"\d+", str(reasoning_of(row))) for row in (en, zh)]
            assert numbers[0] == numbers[1]
    assert [row["meta"]["language"] for row in both] == ["en", "zh"] * 40


def test_styles_change_only_the_completions() -> None:
    styles = {style: generate(400, 5, image_size=32, style=style) for style in STYLES}
    assert all(reasoning_of(row) for row in styles["rationale"])
    assert not any(reasoning_of(row) for row in styles["bare"])
    assert abs(sum(reasoning_of(row) is None for row in styles["mixed"]) / 400 - 0.55) < 0.07
    for row, bare, full in zip(styles["mixed"], styles["bare"], styles["rationale"], strict=True):
        assert row == (bare if reasoning_of(row) is None else full)
        assert bare["images"] == full["images"] and text_of(bare) == text_of(full)


# ---- the same rows


def digest(examples: list[Example]) -> str:
    rows = json.dumps(examples, ensure_ascii=False, sort_keys=True, default=bytes.hex)
    return hashlib.sha256(rows.encode()).hexdigest()


def golden_rows() -> list[Example]:
    return [
        row
        for size in (32, 64, 224)
        for split in SPLITS
        for row in generate(12, 0, level=3, split=split, image_size=size, language="both", style="mixed", **ALL_TASKS)
    ]


def test_captions_in_place_of_questions() -> None:
    """A share of the questions about objects asks what is in the same picture; the others are what they were."""
    plain = generate(200, 3, level=1, tasks=["count", "bars"], image_size=32)
    told = generate(200, 3, level=1, tasks=["count", "bars"], image_size=32, caption_share=0.7)
    assert [row["images"] for row in plain] == [row["images"] for row in told]
    asks = Counter(row["meta"]["ask"] for row in told)
    assert asks["count"] + asks["describe"] == 100 and 50 <= asks["describe"] <= 88 and asks["bar_value"] > 0
    for before, row in zip(plain, told, strict=True):
        if row["meta"]["ask"] == "describe":
            listed = ", ".join(f"{box['color']} {box['label']}" for box in row["meta"]["boxes"])
            assert row["completion"] == [{"role": "assistant", "content": listed}] and row["answer"] == listed
        else:
            assert (row["answer"], row["meta"]) == (before["answer"], before["meta"])
    every = generate(40, 3, level=1, tasks=["count"], image_size=32, caption_share=1.0)
    assert {row["meta"]["task"] for row in every} == {"describe"}
    two = generate(20, 3, level=2, tasks=["count"], two_images=1.0, caption_share=1.0)
    assert {row["meta"]["task"] for row in two} == {"two_images"}


def test_the_same_rows_as_ever() -> None:
    """Where this fails, rows or pictures changed: raise VERSION, then put the new hash here."""
    assert digest(golden_rows()) == "f3e6feaef557c731faf3a3558b022f18706d502217378167a43dd0fdf9a94f65"


@pytest.mark.slow
def test_the_same_rows_in_another_process() -> None:
    code = "from tests.data_builders.test_shapes import digest, golden_rows; print(digest(golden_rows()))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == digest(golden_rows())


def test_seeds_and_prefixes() -> None:
    rows = generate(60, 0, level=2, **ALL_TASKS)
    assert generate(25, 0, level=2, **ALL_TASKS) == rows[:25]
    images = {image["bytes"] for row in rows for image in row["images"]}
    assert not images & {image["bytes"] for row in generate(60, 1, level=2, **ALL_TASKS) for image in row["images"]}
    assert generate(20, 0, level=2) == generate(20, 0, level=2, tasks=LEVELS[2].tasks)
    assert generate(20, 0, tasks="bars, count") == generate(20, 0, tasks=["count", "bars"])  # type: ignore[arg-type]


# ---- splits


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_disjoint(level: int) -> None:
    rows = {split: generate(300, 6, level=level, split=split, image_size=32, **ALL_TASKS) for split in SPLITS}
    images = {split: {image["bytes"] for row in rows[split] for image in row["images"]} for split in SPLITS}
    scenes = {split: {_seen(scene) for row in rows[split] for scene in row["meta"]["scenes"]} for split in SPLITS}
    for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not images[one] & images[other] and not scenes[one] & scenes[other]
    looks = {
        split: {
            (thing["color"], thing["shape"])
            for row in rows[split]
            for scene in row["meta"]["scenes"]
            for thing in scene.get("objects", ())
        }
        for split in SPLITS
    }
    colors, kinds = LEVELS[level].colors, LEVELS[level].shapes
    held_out = {look for look in HELD_OUT if look in looks["unseen_combinations"]}
    assert len(held_out) >= 3 and looks["train"] == looks["test"] and not looks["train"] & HELD_OUT
    assert len(looks["train"]) == colors * kinds - len(held_out)
    assert {color for color, _ in looks["train"]} == {color for color, _ in looks["unseen_combinations"]}
    assert {shape for _, shape in looks["train"]} == {shape for _, shape in looks["unseen_combinations"]}
    for row in rows["unseen_combinations"]:
        assert row["meta"]["task"] in ("count", "compare", "arithmetic", "two_images")
        named = groups_in(text_of(row))[0].split()
        assert (named[0], "cross" if named[1] == "crosses" else named[1][:-1]) in HELD_OUT
        assert row["meta"]["task"] != "count" or row["answer"] != "0"
    for split in SPLITS:
        assert len({(text_of(row), str(row["images"])) for row in rows[split]}) == 300


def _seen(scene: dict[str, Any]) -> str:
    """What a scene shows without where exactly: its objects in cells of a fifth of the picture, or its numbers."""
    if scene["kind"] == "bars":
        return json.dumps([scene["bars"], scene["unit"]])
    if scene["kind"] != "objects":
        return json.dumps([scene["kind"], scene["color"], scene["numbers"], scene["missing"]])
    cell = scene["size"] // 16
    objects = [[o["color"], o["shape"], o["x"] // cell, o["y"] // cell] for o in scene["objects"]]
    return json.dumps(objects)


def test_split_of_a_scene() -> None:
    sides = [split_of({"kind": "bars", "bars": [a, b]}) for a in range(60) for b in range(60)]
    assert 0.08 < sides.count("test") / len(sides) < 0.12
    assert split_of({"a": 1, "b": [2]}) == split_of({"b": [2], "a": 1})


# ---- what is asked


@pytest.mark.parametrize("level", LEVELS)
def test_tasks_and_answers_are_spread(level: int) -> None:
    rows = generate(1000, 7, level=level, image_size=48, two_images=0.2)
    tasks = Counter(row["meta"]["task"] for row in rows)
    assert 0.15 < tasks.pop("two_images") / 1000 < 0.25 and set(tasks) == set(LEVELS[level].tasks)
    assert max(tasks.values()) - min(tasks.values()) <= 1
    asked: dict[str, Counter[str]] = {}
    for row in rows:
        asked.setdefault(row["meta"]["ask"], Counter())[str(row["answer"])] += 1
    wanted = {ask for task in LEVELS[level].tasks for ask in LEVELS[level].asks[task]} - {"three_on_a_line"}
    assert set(asked) == wanted | {"two_sum", "two_difference"} | ({"line"} if level > 1 else set())
    for ask, answers in asked.items():
        # Nothing is much more frequent than the others, as far as the rows of one sort of question can tell.
        fair = answers.total() / len(answers)
        assert max(answers.values()) <= 2 * fair + 3 * math.sqrt(fair), (ask, answers)
    assert set(asked["more"]) == {"yes", "no"} and max(asked["more"].values()) < 0.65 * asked["more"].total()
    zero_to_largest = {str(number) for number in range(LEVELS[level].largest + 1)}
    assert set(asked["count"]) == zero_to_largest
    if level == 1:
        numbers = [int(str(row["answer"])) for row in rows if row["meta"]["kind"] == "number"]
        assert max(numbers) < 10
        totals = [len(s["objects"]) for row in rows for s in row["meta"]["scenes"] if s["kind"] == "objects"]
        assert set(totals) == {0, 1, 2, 3, 4} or set(totals) == {1, 2, 3, 4}


def test_others_look_like_what_is_asked_for() -> None:
    """Where a color and a shape are asked for, one of the two alone isn't enough."""
    near = total = 0
    for row in generate(300, 8, level=3, tasks=["count"], image_size=32):
        words = groups_in(text_of(row))[0].split()
        if len(words) == 2 and words[1] != "shapes":
            shape = "cross" if words[1] == "crosses" else words[1][:-1]
            objects = row["meta"]["scenes"][0]["objects"]
            total += 1
            near += any((o["color"] == words[0]) != (o["shape"] == shape) for o in objects)
    assert total > 60 and near / total > 0.8


def test_quick() -> None:
    best = 99.0
    for _ in range(3):
        start = time.process_time()
        generate(300, 0, level=1)
        best = min(best, time.process_time() - start)
    assert best < allowed(0.6)  # 500 pictures of 64 pixels a second


def test_progress_is_shown_for_long_sets_only(capsys: pytest.CaptureFixture[str]) -> None:
    generate(50, 0, image_size=32)
    assert capsys.readouterr().err == ""


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"level": 4}, "unknown level 4.*known: 1, 2, 3"),
        ({"level": "1"}, "level must be a whole number, not '1'"),
        ({"split": "tests"}, "unknown split 'tests' .did you mean 'test'"),
        ({"split": "unseen"}, "did you mean 'unseen_combinations'"),
        ({"tasks": ["counts"]}, "unknown task 'counts' .did you mean 'count'"),
        ({"tasks": "bars,angels"}, "did you mean 'angles'"),
        ({"tasks": []}, "tasks is empty; known: count, compare"),
        ({"tasks": 3}, "tasks must be a list of names, not 3"),
        ({"tasks": [3]}, "unknown task 3"),
        ({"image_size": 31}, "image_size must be from 32 to 448 pixels, not 31"),
        ({"image_size": 449}, "not 449"),
        ({"image_size": 64.0}, "image_size must be a whole number, not 64.0"),
        ({"two_images": 1.5}, "two_images must be a number from 0 to 1, not 1.5"),
        ({"two_images": float("nan")}, "two_images must be"),
        ({"language": "en-US"}, "did you mean 'en'"),
        ({"style": "rational"}, "did you mean 'rationale'"),
        ({"bare_share": "half"}, "bare_share must be a number from 0 to 1, not 'half'"),
        ({"caption_share": -0.1}, "caption_share must be a number from 0 to 1, not -0.1"),
        (
            {"split": "unseen_combinations", "tasks": ["bars"]},
            "the tasks bars have no combinations of color and shape to hold out: set n_unseen to 0, or add",
        ),
    ],
)
def test_named_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(**{"n": 5, "seed": 0, **arguments})


def test_more_questions_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart has no place that could change: two bars of two heights and six colors make 120 charts."""
    monkeypatch.setitem(LEVELS, 1, replace(LEVELS[1], bars=(2, 2), lines=2))
    message = r"level 1 gave only \d\d different test questions for the tasks bars at 32 pixels, 1000 were asked for"
    with pytest.raises(ConfigError, match=message):
        generate(1000, 0, tasks=["bars"], split="test", image_size=32)
