"""Options of a mixture: what is wrong is named; what is right becomes one dataset and its order."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.curriculum import difficulties
from mmreason.data.mixture_options import (
    CurriculumOptions,
    Member,
    build_order,
    load_members,
    member_weights,
    parse_members,
)
from mmreason.types import ConfigError, DataError


def write(path: Path, rows: int, **more: Any) -> str:
    lines = [json.dumps({"question": f"{path.stem} {i} + 1?", "answer": f"#### {i + 1}"} | more) for i in range(rows)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_entries_become_members() -> None:
    entries = [
        {"name": "openai/gsm8k:main", "weight": 2, "split": "train[:10]"},
        {"name": "d/tools.jsonl", "weight": 1},
    ]
    gsm8k, tools, replay = parse_members(entries, {"name": "text.jsonl", "share": 0.1, "format": "text"})
    assert gsm8k == Member("openai/gsm8k:main", "gsm8k", 2, read_with={"split": "train[:10]"})
    assert (tools.source, tools.weight, tools.read_with) == ("tools", 1, {})
    assert (replay.source, replay.share, replay.weight) == ("replay", 0.1, None)


def test_sets_of_one_name_are_numbered() -> None:
    entries = [{"name": "a/train.jsonl"}, {"name": "b/train.jsonl"}, {"name": "c.jsonl", "source": "mine"}]
    assert [member.source for member in parse_members(entries)] == ["train-1", "train-2", "mine"]


@pytest.mark.parametrize(
    ("datasets", "replay", "words"),
    [
        ([], None, "datasets is empty"),
        ([{"name": "a", "wieght": 1}], None, r"datasets\[0\]: unknown key 'wieght'.*Did you mean 'weight'"),
        ([{"name": "a"}, {"weight": 1}], None, r"datasets\[1\]: no name"),
        ([{"name": 3}], None, "name=3 must be a text"),
        ([{"name": "a", "column_map": "x"}], None, "column_map='x' must be a mapping"),
        ([{"name": "a", "weight": 0}], None, r"datasets\[0\]: weight=0 must be above 0"),
        ([{"name": "a", "weight": math.nan}], None, "weight=nan must be above 0"),
        ([{"name": "a", "weight": True}], None, "weight=True must be a number"),
        ([{"name": "a", "max_rows": 1.5}], None, "max_rows=1.5 must be a whole number"),
        ([{"name": "a", "weight": 1}, {"name": "b"}], None, "b has no weight, others have one"),
        ([{"name": "a", "source": "x"}, {"name": "b", "source": "x"}, {"name": "x-1"}], None, "the source 'x-1'"),
        ([{"name": "a"}], {"name": "b"}, "replay: share=None must be above 0 and below 1"),
        ([{"name": "a"}], {"name": "b", "share": 1}, "replay: share=1"),
        ([{"name": "a"}], {"name": "b", "share": 0.5, "weight": 1}, "replay: unknown key 'weight'"),
    ],
)
def test_wrong_entries_are_named(datasets: list[Any], replay: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_members(datasets, replay)


def members(*weights: float | None, share: float | None = None) -> list[Member]:
    made = [Member(f"m{i}", f"m{i}", weight) for i, weight in enumerate(weights)]
    return made + ([Member("r", "replay", share=share)] if share else [])


def test_weights_worked_out_by_hand() -> None:
    assert member_weights(members(2, 1, share=0.1), [5, 5, 5]) == [Fraction(6, 10), Fraction(3, 10), Fraction(1, 10)]
    assert member_weights(members(None, None), [30, 10]) == [Fraction(3, 4), Fraction(1, 4)]
    roots = member_weights(members(None, None), [900, 100], temperature=2.0)
    assert [float(share) for share in roots] == pytest.approx([0.75, 0.25])
    even = member_weights(members(None, None), [900, 100], temperature=math.inf)
    assert even == [Fraction(1, 2)] * 2
    with pytest.raises(ConfigError, match="mixture_temperature=2.0 weighs sets by size"):
        member_weights(members(1, 2), [1, 1], temperature=2.0)
    with pytest.raises(ConfigError, match="mixture_temperature=0 must be above 0"):
        member_weights(members(None), [1], temperature=0)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=5), st.floats(1, 20), st.sampled_from([None, 0.05, 0.5]))
def test_temperature_goes_from_sizes_to_evenness(sizes: list[int], temperature: float, share: float | None) -> None:
    shares = member_weights(
        members(*[None] * len(sizes), share=share), [*sizes, 7][: len(sizes) + bool(share)], temperature
    )
    assert sum(shares) == 1
    powers = [size ** (1 / temperature) for size in sizes]
    for got, power in zip(shares, powers, strict=False):
        assert float(got) == pytest.approx(power / sum(powers) * (1 - (share or 0)))


def test_sets_are_loaded_one_behind_the_other(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", 4), write(tmp_path / "two.jsonl", 3)
    said: list[str] = []
    rows = load_members(parse_members([{"name": one}, {"name": two, "split": "train[:2]"}]), said.append)
    assert rows["source"] == ["one"] * 4 + ["two"] * 2
    assert rows["answer"] == ["1", "2", "3", "4", "1", "2"]
    assert len(set(rows["id"])) == 6 and rows[0]["prompt"][0]["content"].startswith("one 0")
    assert said[0].startswith("one: ") and "2 examples" in said[1]


def test_ids_that_sets_share_are_told_apart(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "train.jsonl", 2), write(tmp_path / "b" / "train.jsonl", 1)
    rows = load_members(parse_members([{"name": one}, {"name": two}]))
    assert rows["id"] == ["gsm8k/train/0", "gsm8k/train/1", "train-2/gsm8k/train/0"]


def test_a_template_is_of_its_set(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", 1), write(tmp_path / "two.jsonl", 1)
    entries = [{"name": one, "prompt_template": "Q: {question}"}, {"name": two}]
    rows = load_members(parse_members(entries), prompt_template="none")
    assert [row[0]["content"] for row in rows["prompt"]] == ["Q: one 0 + 1?", "two 0 + 1?"]


def test_an_order_of_sets_and_a_replay() -> None:
    sources = ["a"] * 60 + ["replay"] * 5 + ["b"] * 20
    parsed = parse_members([{"name": "a"}, {"name": "b"}], {"name": "r", "share": 0.2})
    order = build_order(sources, 0, parsed)
    drawn = Counter(sources[row] for row in order.take(0, 100))
    assert order.rows_per_epoch == 100 and drawn == {"a": 60, "b": 20, "replay": 20}
    assert build_order(sources, 1, parsed).take(0, 100) != order.take(0, 100)
    plain = build_order(sources, 0)
    assert sorted(plain.take(0, 85)) == list(range(85)) == build_order(sources, 0, shuffle=False).take(0, 85)


def test_caps_and_ends_reach_the_order() -> None:
    sources = ["a"] * 10 + ["b"] * 10
    parsed = parse_members([{"name": "a", "weight": 1, "max_epochs": 2}, {"name": "b", "weight": 1, "max_rows": 3}])
    order = build_order(sources, 0, parsed)
    assert order.total == 23 and Counter(sources[row] for row in order.take(0, 50)) == {"a": 20, "b": 3}
    assert build_order(sources, 0, parsed, stop="first_exhausted").rows_per_epoch < order.rows_per_epoch


def test_a_set_without_rows_or_a_row_without_a_set() -> None:
    with pytest.raises(DataError, match="no row of b is left"):
        build_order(["a"], 0, parse_members([{"name": "a"}, {"name": "b"}]))
    with pytest.raises(DataError, match="source 'c' is no set of the mixture"):
        build_order(["a", "c"], 0, parse_members([{"name": "a"}]))


def test_a_curriculum_inside_a_mixture_keeps_its_shares() -> None:
    """In every window of ten: seven easy-first rows of a, three of b, while each set's own rows grow harder."""
    sources = ["a"] * 700 + ["b"] * 300
    difficulty = [float(i % 100) for i in range(1000)]
    options = CurriculumOptions.parse({"by": "meta.level", "pacing": "linear", "start": 0.05, "epochs": 2})
    parsed = parse_members([{"name": "a", "weight": 7}, {"name": "b", "weight": 3}])
    order = build_order(sources, 0, parsed, curriculum=options, difficulty=difficulty)
    rows = order.take(0, 2000)
    for start in range(0, 2000, 10):
        assert sum(sources[row] == "a" for row in rows[start : start + 10]) == 7
    assert all(difficulty[row] < 20 for row in rows[:200])
    for name in "ab":
        mine = [difficulty[row] for row in rows if sources[row] == name]
        assert sum(mine[: len(mine) // 4]) < sum(mine[-len(mine) // 4 :]) / 2
    assert order.take(777, 50) == rows[777:827]
    with pytest.raises(ConfigError, match="difficulty is missing"):
        build_order(sources, 0, parsed, curriculum=options)


def test_a_replay_has_no_curriculum() -> None:
    sources = ["a"] * 100 + ["replay"] * 100
    parsed = parse_members([{"name": "a"}], {"name": "r", "share": 0.5})
    options = CurriculumOptions.parse({"start": 0.01})
    order = build_order(sources, 0, parsed, curriculum=options, difficulty=[*range(100), *range(100)])
    drawn = order.take(0, 64)
    assert len({row for row in drawn if row < 100}) == 1
    assert len({row for row in drawn if row >= 100}) == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bye": "length"}, "unknown key 'bye'.*Did you mean 'by'"),
        ({"start": "a"}, "start='a' must be of the type float"),
        ({"rows": 1.5}, "rows=1.5 must be of the type int"),
        ({"rows": 5, "epochs": 1}, "rows or epochs, not both"),
        ({"epochs": -1}, "epochs=-1 must be above 0"),
        ({"pacing": "cubic"}, "'cubic' is none of linear, root, step"),
        ({"pacing": "rot"}, "Did you mean 'root'"),
        ({"hardest_first": 1}, "hardest_first=1 must be of the type bool"),
    ],
)
def test_wrong_curricula_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CurriculumOptions.parse(options)


def test_on_real_sets(shared_data: Path) -> None:
    """MATH by its levels: an epoch's first tenth is of easy problems; GSM8K beside it, by size; nothing is lost."""
    entries = [
        {"name": str(shared_data / "math" / "math500.jsonl"), "source": "math"},
        {"name": str(shared_data / "gsm8k" / "train.jsonl"), "split": "train[:1500]"},
    ]
    parsed = parse_members(entries)
    rows = load_members(parsed)
    level = [meta.get("level", 1) for meta in rows["meta"]]
    rows = rows.add_column("level", [str(one) for one in level])
    order = build_order(rows["source"], 0, parsed)
    assert order.rows_per_epoch == 2000 and sorted(order.take(0, 2000)) == list(range(2000))
    options = CurriculumOptions.parse({"by": "level", "start": 0.1})
    paced = build_order(rows["source"], 0, parsed, curriculum=options, difficulty=difficulties(rows, "level"))
    math_rows = [row for row in paced.take(0, 2000) if row < 500]
    assert len(math_rows) == 500
    values = difficulties(rows, "level")
    assert max(values[row] for row in math_rows[:40]) < 3 < sum(values[row] for row in math_rows[-100:]) / 100
