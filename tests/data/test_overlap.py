"""The overlap index against a literal reference, near misses that must not hit, files, rows and errors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data import _overlap_table, overlap
from mmreason.data._overlap_rows import eval_item
from mmreason.data._overlap_table import WindowTable
from mmreason.data.overlap import EvalItem, OverlapIndex, decontaminate, row_text, scan
from mmreason.types import ConfigError, DataError
from tests.timing import allowed

DUCKS = "Janet's ducks lay 16 eggs per day. She eats three for breakfast and sells the rest at the market for $2 each."
CAPITAL = EvalItem("capital", "What is the capital of France?", ("Paris", "Lyon", "Marseille", "Nice"))
TRUE_OF = EvalItem(
    "cells",
    "Which of the following is true?",
    ("All cells have a nucleus", "Viruses are cells", "Plant cells have walls", "None of the above"),
)
SHORT = EvalItem("remainder", "Determine the remainder of 54 (mod 6).")
SUM = EvalItem("sum", "What is 3 + 2?", ("4", "5", "6", "-5"))
SIGNED = EvalItem("signed", "−4 + ( −3 )=", ("−7", "−1", "1", "7"))
CELLS = EvalItem("cmmlu", "下列关于细胞的叙述，正确的是", ("细胞都有核", "病毒有细胞", "植物细胞有壁", "以上都不对"))


def found(question: EvalItem | str, text: str, **options: Any) -> bool:
    return OverlapIndex.build({"test": [question]}).find([text], **options) != [None]


@pytest.mark.parametrize(
    "text",
    [
        DUCKS,
        DUCKS.upper(),
        "janets ducks lay 16 eggs per day she eats three for breakfast and sells the rest at the market for 2 each",
        "**Janet’s** ducks lay 16 eggs per day; she eats <b>three</b> for breakfast and sells the rest — at the "
        "market — for \\$2 each!",
        f"Once upon a time. {DUCKS} How much does she make? Let's think step by step.",
        json.dumps({"question": DUCKS + "\nHow much?"}),
        DUCKS.replace(" ", "\n"),
        DUCKS.replace(" ", "\u00a0\u200b"),
        "Ｊａｎｅｔ＇ｓ" + DUCKS[7:],
    ],
)
def test_a_long_question_is_found_in_any_dress(text: str) -> None:
    assert found(DUCKS, text)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (CAPITAL, "What is the capital of France?\n(A) Paris (B) Lyon (C) Marseille (D) Nice"),
        (CAPITAL, "Q: WHAT IS THE CAPITAL OF FRANCE\nOptions:\n1. Nice\n2. Paris\n3. Lyon, or 4. Marseille"),
        (CAPITAL, "Choose from Lyon, Paris, Nice, Marseille: what is the capital of France?"),
        (TRUE_OF, "Which of the following is true? A) Viruses are cells; B) plant cells have walls; C) all cells have "
                  "a nucleus; D) none of the above"),
        (SHORT, "A problem: Determine the remainder of $54 (\\text{mod}\\ 6)$. The answer is 0."),
        (SHORT, "> determine the remainder of 54 [mod 6]\n\n0"),
        (SHORT, "1) Determine the remainder of 54 (mod 6)"),
        (SHORT, "<|user|>Determine the remainder of 54 (mod 6)<|assistant|>0"),
        (SUM, "What is 3+2? 4 5 6 -5"),
        (SIGNED, "-4 + (-3) = ?\nA. -7\nB. -1\nC. 1\nD. 7"),
        (CELLS, "下列关于细胞的叙述,正确的是（ ）A、病毒有细胞 B、细胞都有核 C、以上都不对 D、植物细胞有壁"),
        (CELLS, "单选题：下列关于细胞的叙述，正确的是\n选项A：细胞都有核\n选项B：病毒有细胞\n选项C：植物细胞有壁\n"
                "选项D：以上都不对"),
    ],
)  # fmt: skip
def test_a_short_question_is_found_with_its_choices_or_as_a_sentence(item: EvalItem, text: str) -> None:
    assert found(item, text)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (CAPITAL, "What is the capital of France? Paris."),
        (CAPITAL, "What is the capital of France?\n(A) Paris (B) Rome (C) Berlin (D) Madrid"),
        (CAPITAL, "What is the capital of Italy?\n(A) Paris (B) Lyon (C) Marseille (D) Nice"),
        (CAPITAL, "What is the capital of France? Paris; the mayor of Lyon disagrees; Marseille and Nice are large."),
        (CAPITAL, "What is the capital of France? " + "I asked it. " * 9 + "(A) Paris (B) Lyon (C) Marseille (D) Nice"),
        (TRUE_OF, "Which of the following is true?"),
        (TRUE_OF, "Which of the following is true?\n(A) Dogs bark (B) Cats bark (C) Cows bark (D) None of the above"),
        (SHORT, "Determine the remainder of 54 (mod 6) + 3."),
        (SHORT, "Determine the remainder of 54 (mod 6)^2."),
        (SHORT, "Determine the remainder of 54 (mod 61)."),
        (SHORT, "We determine the remainder of 54 (mod 6) as follows."),
        (SHORT, "Determine the remainder of 5.4 (mod 6)."),
        (SUM, "What is 3 - 2? 4 5 6 -5"),
        (SUM, "What is 3 * 2? 4 5 6 -5"),
        (SUM, "What is 3/2? 4 5 6 -5"),
        (SUM, "What is 3.2? 4 5 6 -5"),
        (SIGNED, "4 + (-3) = ?\nA. -7\nB. -1\nC. 1\nD. 7"),
        (CELLS, "下列关于细胞的叙述，正确的是"),
        (CELLS, "下列关于细胞的叙述，正确的是\nA. 红细胞 B. 白细胞 C. 血小板 D. 神经元"),
    ],
)  # fmt: skip
def test_a_near_miss_of_a_short_question_is_no_hit(item: EvalItem, text: str) -> None:
    assert not found(item, text)


def test_choices_that_contain_one_another_take_no_time() -> None:
    """Numbers can be labels or choices, and the ways to read a row of them are many."""
    item = EvalItem("q", "How many are there?", tuple(" ".join("1" * k) for k in range(1, 11)))
    start = time.perf_counter()
    assert not found(item, ("How many are there? " + "1 " * 40 + "none ") * 2)
    assert found(item, "How many are there? " + " ".join(f"{k}) {choice}" for k, choice in enumerate(item.choices)))
    assert time.perf_counter() - start < allowed(20)


LICENCE = (
    'Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance '
    "with the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless "
    "required by applicable law or agreed to in writing, software distributed under the License is distributed AS IS. "
)
IMPORTS = "from typing import List, Dict, Tuple, Optional, Any\nimport math\nimport re\nimport os\nimport sys\n\n\n"


@pytest.mark.parametrize(
    ("boilerplate", "questions"),
    [
        (
            "Answer the following question. Think step by step, and put your final answer within \\boxed{}.\n",
            [DUCKS, "A train goes 60 miles an hour for three hours and then rests; how far did it get by noon?"],
        ),
        (
            IMPORTS,
            [
                'def add(x: int, y: int) -> int:\n    """Add two numbers x and y, and give their sum back."""',
                'def is_prime(n: int) -> bool:\n    """Return true if a given number is prime, else false."""',
            ],
        ),
        (
            LICENCE,
            [
                "def longest(strings): out of a list of strings, return the longest one, and the first of several such",
                "def factorize(n): return the list of prime factors of a given integer, from smallest to largest",
            ],
        ),
        (
            "阅读下面的材料，根据材料内容回答后面的问题，并说明理由，答案写在答题卡上。",
            ["小明有三个苹果，他给了小红一个苹果，又买了五个苹果，他现在一共有几个苹果？",
             "一列火车每小时行驶六十公里，从甲地到乙地需要三个小时，两地之间相距多少公里？"],
        ),
    ],
)  # fmt: skip
def test_what_items_of_a_set_share_identifies_none(boilerplate: str, questions: list[str]) -> None:
    index = OverlapIndex.build({"test": [boilerplate + question for question in questions]})
    assert index.find([boilerplate, boilerplate + "Something else is asked here. " * 5], min_share=1e-9) == [None, None]
    assert [hit and hit.item for hit in index.find([boilerplate + question for question in questions])] == ["0", "1"]


def test_the_share_of_the_words() -> None:
    """A text with 15 of an item's 20 words in order has 3 of its 8 13-grams; they cover those 15 words."""
    words = [f"w{i}" for i in range(20)]
    index = OverlapIndex.build({"a": [" ".join(words)], "b": [" ".join(words[5:])]})
    both = index.find_all([" ".join(words)], min_share=0.1)
    assert [[(hit.dataset, hit.share) for hit in hits] for hits in both] == [[("a", 1.0), ("b", 1.0)]]
    (hits,) = index.find_all([" ".join(words[5:])], min_share=0.1)
    text = " ".join(words[5:18])
    assert [(hit.dataset, hit.share, hit.text) for hit in hits] == [("b", 1.0, text), ("a", 0.75, text)]
    assert index.find([" ".join(words[:15])], min_share=0.75)[0] is not None
    assert index.find([" ".join(words[:15])], min_share=0.751) == [None]
    assert index.find([" ".join(words[:12])], min_share=1e-9) == [None]


def test_a_copy_with_a_word_changed() -> None:
    """A changed word costs itself, and what is left of fewer than 13 words beside it."""
    words = [f"w{i}" for i in range(40)]
    index = OverlapIndex.build({"a": [" ".join(words)]})
    shares = []
    for changed in (13, 20, 30, 39):
        (hit,) = index.find([" ".join([*words[:changed], "other", *words[changed + 1 :]])], min_share=0.1)
        shares.append(hit.share if hit else 0.0)
    assert shares == [39 / 40, 39 / 40, 30 / 40, 39 / 40]


ALPHABET = st.lists(st.sampled_from("abcd"), min_size=0, max_size=14).map(" ".join)


@given(items=st.lists(ALPHABET, min_size=1, max_size=6), texts=st.lists(ALPHABET, max_size=5), n=st.integers(2, 5))
def test_shares_equal_a_literal_reference(items: list[str], texts: list[str], n: int) -> None:
    def ngrams(text: str) -> dict[tuple[str, ...], set[int]]:
        """Each n-gram with the places of its words where it first stands."""
        parts = text.split()
        places: dict[tuple[str, ...], set[int]] = {}
        for i in range(len(parts) - n + 1):
            places.setdefault(tuple(parts[i : i + n]), set(range(i, i + n)))
        return places

    distinct = [text for text in dict.fromkeys(items) if len(text.split()) >= 3]
    index = OverlapIndex.build({"test": items}, n=n)
    for text, hits in zip(texts, index.find_all(texts, min_share=1e-9), strict=True):
        expected = {}
        for item in distinct:
            own = {
                ngram: places
                for ngram, places in ngrams(item).items()
                if not any(ngram in ngrams(other) for other in distinct if other != item)
            }
            covered = set().union(*(places for ngram, places in own.items() if ngram in ngrams(text)))
            if covered:
                expected[str(items.index(item))] = len(covered) / len(set().union(*own.values()))
        assert {hit.item: hit.share for hit in hits if hit.rule == "ngram"} == expected
        assert [hit.share for hit in hits] == sorted((hit.share for hit in hits), reverse=True)


def weak_hash(count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.zeros(count, dtype=np.uint64)  # every window has the hash 0


@given(items=st.lists(ALPHABET, min_size=1, max_size=6), texts=st.lists(ALPHABET, max_size=5))
def test_hash_collisions_change_nothing(items: list[str], texts: list[str]) -> None:
    expected = list(OverlapIndex.build({"test": items}, n=3).find_all(texts, min_share=1e-9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_overlap_table, "_token_weights", weak_hash)
        assert list(OverlapIndex.build({"test": items}, n=3).find_all(texts, min_share=1e-9)) == expected


def test_a_table_needs_an_end() -> None:
    table = WindowTable(np.array([1, 2], np.int32), np.array([0]), np.array([2]), 2)
    assert [array.tolist() for array in table.lookup(np.array([1, 2, 0, 1, 0, 2, 0], np.int32))] == [[0], [0]]
    with pytest.raises(ValueError, match="end with 0"):
        table.lookup(np.array([1, 2], np.int32))


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
def test_the_size_of_chunks_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = OverlapIndex.build({"test": [DUCKS, CAPITAL, SHORT]})
    texts = ["", DUCKS, "nothing", row_text({"q": CAPITAL.question, "choices": [*CAPITAL.choices]}), SHORT.question] * 3
    monkeypatch.setattr(overlap, "_CHUNK_WORDS", size)
    assert [hit and hit.item for hit in index.find(texts)] == [None, "0", None, "capital", "remainder"] * 3


def test_rows_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_CHUNK_WORDS", 20)
    taken = 0

    def rows() -> Iterator[str]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield DUCKS

    results = scan(rows(), OverlapIndex.build({"test": [DUCKS]}))
    assert next(results)[1] is not None and taken < 5


def test_decontaminate_parts_examples() -> None:
    choices = {"kind": "choice", "choices": list(CAPITAL.choices)}
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "id": DUCKS},
        {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DUCKS}]}]},
        {"prompt": "Hi", "completion": [{"role": "assistant", "content": "9", "reasoning_content": DUCKS}]},
        {"prompt": [{"role": "user", "content": CAPITAL.question}], "answer": "A", "meta": choices},
        {"prompt": [{"role": "user", "content": CAPITAL.question}], "answer": "Paris", "meta": {"choices": None}},
        {"prompt": "x", "chosen": [{"role": "assistant", "content": DUCKS}], "rejected": []},
    ]
    index = OverlapIndex.build({"ducks": [DUCKS], "capitals": [CAPITAL]})
    kept, dropped = result = decontaminate(rows, index)
    assert kept == [rows[0], rows[4]]
    assert [entry.row for entry in dropped] == [rows[1], rows[2], rows[3], rows[5]]
    assert result.counts() == {"capitals": 1, "ducks": 3}
    assert dropped[2].hit.reason == "capitals capital: the whole question, 'what is the capital of france'"
    assert dropped[0].hit.reason.startswith("ducks 0: 100% of its words, 'janets ducks lay 16 eggs")


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ("Why?", EvalItem("7", "Why?")),
        ({"question": "Q", "choices": ["a", "b"], "id": 3}, EvalItem("3", "Q", ("a", "b"))),
        ({"Question": "Q", "A": "a", "B": "b", "C": None}, EvalItem("7", "Q", ("a", "b"))),
        ({"question": "Q", "options": ["A)6", "B)18"]}, EvalItem("7", "Q", ("6", "18"))),
        ({"question": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}, EvalItem("7", "Q", ("a", "b"))),
        (
            {
                "question": {"stem": "Q", "choices": [{"label": "A", "text": "a"}, {"label": "B", "text": "b"}]},
                "id": "x",
            },
            EvalItem("x", "Q", ("a", "b")),
        ),
        ({"question": "Q", "options": {"A": "a", "B": "b"}}, EvalItem("7", "Q", ("a", "b"))),
        ({"question": "Q", "choices": ("a", "b")}, EvalItem("7", "Q", ("a", "b"))),
        ({"question": "Q", "choices": np.array(["a", "b"], dtype=object)}, EvalItem("7", "Q", ("a", "b"))),
        ({"question": "Q", "choices": {"text": np.array(["a", "b"])}}, EvalItem("7", "Q", ("a", "b"))),
        ({"Body": "Two.", "Question": "How many?"}, EvalItem("7", "Two.\nHow many?")),
        ({"ctx": "A man", "endings": ["runs", "sits"]}, EvalItem("7", "A man", ("runs", "sits"))),
        (
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q\n(A) a\n(B) b"}]},
                ],
                "answer": "A",
                "meta": {"kind": "choice", "choices": ["a", "b"]},
                "id": "e",
            },
            EvalItem("e", "Q", ("a", "b")),
        ),
        ({"task_id": "HumanEval/0", "prompt": "def f():"}, EvalItem("HumanEval/0", "def f():")),
    ],
)
def test_the_question_of_a_row(row: Any, item: EvalItem) -> None:
    assert eval_item(row, "set row 7", 7) == item


def test_saved_and_loaded(tmp_path: Path) -> None:
    index = OverlapIndex.build({"ducks": [DUCKS], "short": [CAPITAL, CELLS, SHORT]}, n=12)
    texts = [DUCKS, row_text({"q": CAPITAL.question, "c": [*CAPITAL.choices]}), SHORT.question, "nothing of it"]
    index.save(tmp_path / "new" / "index.safetensors")
    loaded = OverlapIndex.load(tmp_path / "new" / "index.safetensors")
    assert loaded.find(texts) == index.find(texts) and loaded.find(texts)[:3].count(None) == 0
    assert (loaded.n, loaded.sets) == (12, index.sets)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new" / "index.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "again.safetensors",
        "index.safetensors",
    ]


def test_a_save_that_fails_leaves_the_earlier_index(tmp_path: Path) -> None:
    path = tmp_path / "index.safetensors"
    OverlapIndex.build({"old": [DUCKS]}).save(path)

    (tmp_path / f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"index\.safetensors: .*No space"):
        OverlapIndex.build({"new": [CAPITAL]}).save(path)
    assert [entry.name for entry in OverlapIndex.load(path).sets] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_content_hashes_and_counts() -> None:
    def digest(rows: list[Any]) -> str:
        return OverlapIndex.build({"test": rows}).sets[0].sha256

    assert digest([DUCKS, CAPITAL]) == digest([DUCKS, CAPITAL])
    assert len({digest([DUCKS]), digest([DUCKS.lower()]), digest([CAPITAL]), digest([EvalItem("9", DUCKS)])}) == 4
    counted = OverlapIndex.build(
        {"test": [DUCKS, DUCKS.upper(), CAPITAL, "Why?", "?!", "3 - 2 = x", "3 + 2 = x"]}
    ).sets[0]
    assert (counted.rows, counted.by_ngrams, counted.by_whole, counted.copies, counted.unindexed) == (7, 1, 3, 1, 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "none"])
def test_damaged_files(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "index.safetensors"
    OverlapIndex.build({"ducks": [DUCKS]}).save(path)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    if damage == "flip":
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-10])
    elif damage == "other":
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(1)}, path)
    else:
        path.unlink()
    words = {"flip": "damaged", "cut": "can't be read", "other": "no overlap index", "none": "no such index"}
    with pytest.raises(DataError, match=words[damage]) as caught:
        OverlapIndex.load(path)
    assert str(path) in str(caught.value)


def test_sets_from_files(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"question": DUCKS, "id": "d"}) + "\n")
    index = OverlapIndex.build({"file": path, "folder": str(tmp_path / "..") + "/" + tmp_path.name}, split="train")
    assert [hit.dataset for hit in next(index.find_all([DUCKS]))] == ["file", "folder"]


@pytest.mark.parametrize(
    ("sets", "options", "error", "words"),
    [
        ({"a": [{"text_en": "x"}]}, {}, DataError, "a row 0: no question found.*in the columns text_en"),
        ({"a": [DUCKS, 3]}, {}, DataError, "a row 1: 3 is neither a text nor a row"),
        ({"a": []}, {}, DataError, "a: the test set has no rows"),
        ({}, {}, ConfigError, "no test sets given"),
        ({"a": [DUCKS]}, {"n": 1}, ConfigError, "n=1"),
        ({"a": "missing.jsonl"}, {}, DataError, "missing.jsonl: no such file"),
        ({"a": "missing.jsonl"}, {"split": "test[:10]"}, ConfigError, "without a slice"),
    ],
)
def test_wrong_sets(sets: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        OverlapIndex.build(sets, **options)


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps({"question": DUCKS}).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match="set.jsonl:2: bad_encoding"):
        OverlapIndex.build({"a": path})


def test_wrong_texts_and_shares() -> None:
    index = OverlapIndex.build({"a": [DUCKS]})
    for share in (0.0, 1.1, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="min_share"):
            index.find_all([], min_share=share)
    with pytest.raises(DataError, match=r"text 1: None is no text"):
        index.find(["x", None])  # type: ignore[list-item]
    assert index.find([]) == [] and index.find(["", "\ud800 \x00"]) == [None, None]


def test_wrong_rows() -> None:
    """What can't be looked at must not pass as clean."""
    index = OverlapIndex.build({"a": [DUCKS]})
    for row in (None, 3, {1}):
        with pytest.raises(DataError, match=r"row 1: .* is neither a text nor a row"):
            decontaminate(["x", row], index)  # type: ignore[list-item]
    for call in (index.find, index.find_all, lambda text: decontaminate(text, index)):
        with pytest.raises(DataError, match="a single text is given"):
            call(DUCKS)
    messages = np.array([{"role": "user", "content": DUCKS}], dtype=object)  # as pandas gives them
    assert len(decontaminate([{"messages": messages}], index).dropped) == 1


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    OverlapIndex.build({"ducks": [DUCKS]}, progress=True).find([DUCKS], progress=True)
    shown = capsys.readouterr().err
    assert "indexing ducks" in shown and "looking for test items" in shown


@pytest.mark.parametrize("row", [{"input_ids": [1, 2, 3], "id": "a"}, {}, []])
def test_a_row_without_text_is_not_taken_for_clean(row: Any) -> None:
    with pytest.raises(DataError, match="has no text: look for overlap before rows are tokenised"):
        decontaminate([row], OverlapIndex.build({"test": [DUCKS]}))
    assert decontaminate([""], OverlapIndex.build({"test": [DUCKS]})).kept == [""]
