"""Duplicate finders against all-pairs references, published properties and planted copies."""

from __future__ import annotations

import functools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data.duplicates import band_rows, block_masks, find_duplicates, keep_first, shingles, simhash
from mmreason.types import ConfigError, DataError
from tests.timing import allowed

Groups = list[tuple[int, ...]]


def components(n: int, linked: Callable[[int, int], bool]) -> Groups:
    """Groups by comparing all pairs and spreading the smallest number until nothing changes."""
    label = list(range(n))
    links = [(a, b) for a, b in combinations(range(n), 2) if linked(a, b)]
    changed = True
    while changed:
        changed = False
        for a, b in links:
            low = min(label[a], label[b])
            changed = changed or label[a] != label[b]
            label[a] = label[b] = low
    found = [tuple(i for i in range(n) if label[i] == root) for root in range(n)]
    return [group for group in found if len(group) > 1]


@functools.cache
def runs(text: str, size: int) -> set[str]:
    parts = text.split()
    return {" ".join(parts[i : i + size]) for i in range(max(1, len(parts) - size + 1))}


def jaccard(a: str, b: str, size: int) -> float:
    """Of plain texts of words in lower case."""
    return len(runs(a, size) & runs(b, size)) / len(runs(a, size) | runs(b, size))


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "black", "grey"]), min_size=1, max_size=9).map(" ".join)


def edited(texts: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Copies of the texts with a few words exchanged, shuffled among them."""
    copies = []
    for text in rng.choices(texts, k=count):
        parts = text.split()
        for _ in range(rng.randrange(4)):
            parts[rng.randrange(len(parts))] = rng.choice(["seven", "cats", "quickly", "her"])
        copies.append(" ".join(parts))
    mixed = [*texts, *copies]
    rng.shuffle(mixed)
    return mixed


@given(st.lists(WORDS | st.sampled_from(["", "?", "!"]), max_size=12))
def test_exact_is_equality(texts: list[str]) -> None:
    assert find_duplicates(texts) == components(len(texts), lambda a, b: texts[a] == texts[b])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is 3 + 2?", "what IS 3+2", True),
        ("What is 3 + 2?", "What is 3 - 2?", False),
        ("She isn’t here.", "She isn't here!", True),
        ("**Bold** <i>move</i>", "bold move", True),
        ("中文，测试。", "中文 测试", True),
        ("中文测试", "中文测验", False),
        ("1,000 apples", "1000 apples", True),
        ("", "", True),
        ("...", "???", False),
        ("...", "", False),
        ("a\nb. c", "a b c", True),
    ],
)
@pytest.mark.parametrize("method", ["exact", "minhash", "simhash"])
def test_what_is_the_same(a: str, b: str, same: bool, method: Any) -> None:
    options = {} if method == "exact" else {"threshold": 1.0} if method == "minhash" else {"distance": 0}
    assert find_duplicates([a, "another text", b], method, **options) == ([(0, 2)] if same else [])


@settings(deadline=None)
@given(st.lists(WORDS, max_size=10), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 3))
def test_minhash_equals_all_pairs(texts: list[str], threshold: float, size: int) -> None:
    """With 1024 values in narrow bands nothing is missed: a pair at the threshold with less than 1 in 10^6."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmreason.data.duplicates._MISSED", 1e-7)
        found = find_duplicates(texts, "minhash", threshold=threshold, shingle=size, num_perm=1024)
    assert found == components(len(texts), lambda a, b: jaccard(texts[a], texts[b], size) >= threshold)


def test_minhash_finds_nearly_all_pairs_and_no_others(shared_data: Path) -> None:
    """GSM8K questions with edited copies: at most 1 % of the duplicates are missed, none is invented."""
    with (shared_data / "gsm8k" / "test.jsonl").open(encoding="utf-8") as file:
        questions = [" ".join(json.loads(line)["question"].split()) for line in file][:300]
    letters = "abcdefghijklmnopqrstuvwxyz "
    plain = ["".join(character for character in text.lower() if character in letters) for text in questions]
    texts = edited([" ".join(text.split()) for text in plain], random.Random(3), 300)
    expected = components(len(texts), lambda a, b: jaccard(texts[a], texts[b], 3) >= 0.7)
    found = find_duplicates(texts, "minhash", threshold=0.7, shingle=3)
    whole = {group: max((set(group) & set(other) for other in expected), key=len) for group in found}
    assert all(set(group) == inside for group, inside in whole.items()), "a group with a text that is no duplicate"
    missed = sum(map(len, expected)) - sum(map(len, found))
    assert len(expected) > 100 and 0 <= missed <= 0.01 * sum(map(len, expected))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [64, 128, 256])
def test_bands_miss_at_most_one_pair_in_a_hundred(threshold: float, num_perm: int) -> None:
    rows = band_rows(threshold, num_perm)
    rng = np.random.default_rng(0)
    equal = rng.random((4000, num_perm)) < threshold  # do the values of a pair at the threshold agree?
    bands = equal[:, : num_perm // rows * rows].reshape(4000, -1, rows).all(axis=2)
    assert 1 - bands.any(axis=1).mean() < 0.02
    assert (1 - threshold ** (rows + 1)) ** (num_perm // (rows + 1)) > 0.01 or rows == num_perm


def reference_print(text: str, size: int) -> int:
    """Charikar's sketch, bit by bit."""
    parts = text.split()
    votes = Counter[int]()
    for i in range(max(1, len(parts) - size + 1)):
        value = int.from_bytes(blake2b(" ".join(parts[i : i + size]).encode(), digest_size=8).digest(), "big")
        for bit in range(64):
            votes[bit] += 1 if value >> bit & 1 else -1
    return sum(1 << bit for bit in range(64) if votes[bit] > 0)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=14), st.integers(0, 16), st.integers(1, 3))
def test_simhash_equals_all_pairs(texts: list[str], distance: int, size: int) -> None:
    prints = [reference_print(text, size) for text in texts]
    assert [simhash(text.split(), size) for text in texts] == prints
    expected = components(len(texts), lambda a, b: (prints[a] ^ prints[b]).bit_count() <= distance)
    assert find_duplicates(texts, "simhash", distance=distance, shingle=size) == expected


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 16).flatmap(lambda k: st.tuples(st.just(k), st.sets(st.integers(0, 63), max_size=k))),
    st.sampled_from([2, 1000, 10**8]),
)
def test_prints_within_the_distance_share_a_block(value: int, near: tuple[int, set[int]], n: int) -> None:
    distance, bits = near
    other = value ^ sum(1 << bit for bit in bits)
    assert any(value & mask == other & mask for mask in block_masks(distance, n))


def test_masks_grow_with_the_number_of_prints() -> None:
    assert len(block_masks(3, 1000)) == 4 and len(block_masks(3, 10**8)) > 4
    assert all(mask.bit_count() >= 16 for mask in block_masks(3, 1000))


def test_similar_texts_have_near_prints() -> None:
    """The angle between the votes sets the distance: a long text with a word changed is near, another one is not."""
    rng = random.Random(0)
    parts = [f"w{rng.randrange(5000)}" for _ in range(1000)]
    near = [*parts[:500], "changed", *parts[501:]]
    far = [f"w{rng.randrange(5000)}" for _ in range(1000)]
    assert (simhash(parts, 3) ^ simhash(near, 3)).bit_count() <= 6
    assert 16 < (simhash(parts, 3) ^ simhash(far, 3)).bit_count() < 48


@pytest.mark.parametrize("method", ["minhash", "simhash"])
def test_chinese_is_compared_by_characters(method: Any) -> None:
    text = "小明有三个苹果，他给了小红一个苹果，又从商店里买了五个苹果和两个梨，请问他现在一共有几个水果？"
    nearly = text.replace("？", "").replace("小红", "小兰")
    other = "一列火车每小时行驶六十公里，从甲地到乙地需要三个小时，两地之间相距多少公里？火车几点到达？"
    options = {"threshold": 0.6} if method == "minhash" else {"distance": 12}
    assert find_duplicates([text, other, nearly], method, shingle=2, **options) == [(0, 2)]


@pytest.mark.parametrize("method", ["exact", "minhash", "simhash"])
def test_the_same_every_time_and_in_every_order(method: Any) -> None:
    rng = random.Random(1)
    base = [" ".join(rng.choices("abcdefghij", k=12)) for _ in range(60)]
    texts = edited(base, rng, 60)
    groups = find_duplicates(texts, method, shingle=2)
    assert groups == find_duplicates(texts, method, shingle=2) == sorted(tuple(sorted(group)) for group in groups)
    order = rng.sample(range(len(texts)), len(texts))
    shuffled = find_duplicates([texts[i] for i in order], method, shingle=2)
    assert {frozenset(order[i] for i in group) for group in shuffled} == set(map(frozenset, groups))


def test_groups_link_through_others() -> None:
    parts = [f"w{i}" for i in range(40)]
    texts = [" ".join(parts[i : i + 20]) for i in (0, 2, 4, 6)]
    assert jaccard(texts[0], texts[3], 1) < 0.8 < jaccard(texts[0], texts[1], 1)
    assert find_duplicates(texts, "minhash", threshold=0.8, shingle=1, num_perm=256) == [(0, 1, 2, 3)]


def test_keep_first() -> None:
    texts = ["b", "a", "B!", "c", "A?", "b."]
    groups = find_duplicates(texts)
    assert groups == [(0, 2, 5), (1, 4)]
    assert keep_first(len(texts), groups) == [0, 1, 3]
    assert keep_first(3, []) == [0, 1, 2]


def test_shingles() -> None:
    assert shingles(["a", "b", "c"], 2) == {("a", "b"), ("b", "c")}
    assert shingles(["a", "b"], 5) == {("a", "b")}


@pytest.mark.parametrize("method", ["exact", "minhash", "simhash"])
@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["\ud800 x", "x"]])
def test_few_and_strange_texts(method: Any, texts: list[str]) -> None:
    expected = [] if len(texts) < 2 else [(0, 1)]
    assert find_duplicates(texts, method) == expected


def test_texts_that_are_none() -> None:
    with pytest.raises(DataError, match="text 1: None is no text"):
        find_duplicates(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="a single text is given"):
        find_duplicates("abc")


@pytest.mark.parametrize("method", ["minhash", "simhash"])
def test_many_copies_take_no_time(method: Any) -> None:
    """Ten thousand copies are one text to compare."""
    assert find_duplicates(["Copy this, please!", "copy this please"] * 5000, method) == [tuple(range(10_000))]


def test_pairs_just_below_the_threshold_are_compared_once() -> None:
    """Texts of one template meet in most bands, and none of their pairs is joined."""
    words = " ".join(f"w{i}" for i in range(55))
    texts = [f"{words} x{i} y{i}" for i in range(1000)]
    start = time.perf_counter()
    assert find_duplicates(texts, "minhash", threshold=0.97) == []
    assert time.perf_counter() - start < allowed(5)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("fuzzy", {}, "none of exact, minhash, simhash"),
        ("exact", {"threshold": 0.8}, "threshold=0.8 is a setting of method 'minhash', not of 'exact'"),
        ("minhash", {"distance": 3}, "distance=3 is a setting of method 'simhash', not of 'minhash'"),
        ("minhash", {"threshold": 0.0}, "threshold=0.0 must be above 0"),
        ("minhash", {"threshold": float("nan")}, "threshold=nan"),
        ("minhash", {"threshold": 0.01, "num_perm": 64}, "num_perm=64 is too small .* threshold=0.01"),
        ("minhash", {"num_perm": 0}, "num_perm=0"),
        ("simhash", {"distance": 17}, "distance=17 must be from 0 to 16"),
        ("simhash", {"shingle": 0}, "shingle=0"),
    ],
)
def test_wrong_settings(method: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_duplicates(["a b c", "d e f"], method, **options)
