"""Rows of the word problem builder: right, reproducible, apart by split, spread, and read alike by a second reader."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders import word_problems
from data_builders.word_problems import LANGUAGES, LEVELS, SPLITS, STYLES, generate, split_of
from mmreason.answers import extract, verify_many
from mmreason.types import ConfigError, Example
from tests.data_builders.reading import answer_of

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
EVALUATE: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def text_of(example: Example) -> str:
    return str(example["prompt"][0]["content"])  # type: ignore[index]


def reasoning_of(example: Example) -> str | None:
    return example["completion"][0].get("reasoning_content")  # type: ignore[index, union-attr, return-value]


def content_of(example: Example) -> str:
    return str(example["completion"][0]["content"])  # type: ignore[index]


def numbers_of(example: Example) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text_of(example))]


def check(example: Example) -> None:
    """The rationale is a chain from the story's numbers to the answer that leaves no number and no result unused."""
    meta, told = example["meta"], numbers_of(example)
    unused = Counter(told)
    results: list[int] = []
    idle: Counter[int] = Counter()
    steps = str(reasoning_of(example)).splitlines()
    for step in steps:
        match = STEP.fullmatch(step)
        assert match, step
        left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        assert EVALUATE[sign](Fraction(left), Fraction(right)) == result
        assert all(1 <= value <= 99 for value in (left, right, result))
        for operand in (left, right):
            assert operand in told or operand in results, (operand, step, told)
            if idle[operand]:
                idle[operand] -= 1
            elif unused[operand]:
                unused[operand] -= 1
        results.append(result)
        idle[result] += 1
    assert str(results[-1]) == example["answer"]
    assert +idle == Counter([results[-1]])  # every earlier result was used
    assert len(steps) == meta["steps"]
    # What is told and not used is the distractor, and it is nowhere in the steps.
    distractors = list((+unused).elements())
    assert len(distractors) == meta["distractor"]
    used = {int(number) for step in steps for number in re.findall(r"\d+", step)}
    assert not used & set(distractors)
    for number in distractors:
        told.remove(number)
    assert told == meta["operands"]  # in the order of the story
    assert min(told) >= 2 and int(example["answer"] or "") not in told


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    level=st.sampled_from([*LEVELS]),
    split=st.sampled_from(SPLITS),
    language=st.sampled_from(["en", "zh", "both"]),
)
def test_rationales_hold(seed: int, level: str, split: str, language: str) -> None:
    examples = generate(20, seed, level=level, split=split, language=language)
    for i, example in enumerate(examples):
        check(example)
        meta = example["meta"]
        assert example["id"] == f"word_problems/{level}/{language}/{seed}/{split}/{i}"
        assert example["source"] == "word_problems" and meta["kind"] == "number" and meta["choices"] is None
        assert str(meta["level"]) == level and meta["steps"] in LEVELS[level]
        assert meta["language"] == (language if language != "both" else ("en", "zh")[i % 2])
        assert level in ("3", "mix") or not meta["distractor"]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("split", SPLITS)
def test_thousands_of_rationales_hold(language: str, split: str) -> None:
    for example in generate(3000, 1, level="mix", split=split, language=language):
        check(example)


@pytest.mark.parametrize("split", SPLITS)
def test_a_second_reader_finds_the_same_answers(split: str) -> None:
    examples = generate(4000, 2, level="mix", split=split)
    assert [str(answer_of(text_of(example))) for example in examples] == [example["answer"] for example in examples]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("style", ["rationale", "bare"])
def test_references_are_verified(language: str, style: str) -> None:
    examples = generate(500, 4, level="mix", language=language, style=style)
    golds = [str(example["answer"]) for example in examples]
    completions = [content_of(example) for example in examples]
    if style == "rationale":
        thoughts = [str(reasoning_of(example)) for example in examples]
        completions += [f"<think>\n{t}\n</think>\n\n{c}" for t, c in zip(thoughts, completions, strict=True)]
        completions += [f"{t}\n{c}" for t, c in zip(thoughts, completions, strict=False)]
        golds *= 3
    else:
        assert all(reasoning_of(example) is None for example in examples)
    assert all(judgement.correct for judgement in verify_many(completions, golds, ["number"] * len(golds)))
    assert [extract(completion, "number").strict for completion in completions] == golds
    wrong = [str(int(gold) + 1) for gold in golds]
    assert not any(judgement.correct for judgement in verify_many(completions, wrong, ["number"] * len(golds)))


def digest(examples: list[Example]) -> str:
    return hashlib.sha256(json.dumps(examples, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def test_the_same_rows_as_ever() -> None:
    """Where this fails, rows changed: raise VERSION, then put the new hash here."""
    rows = generate(100, 0, level="mix", language="both", style="mixed")
    assert digest(rows) == "1fcaad0e7ce85bca20fd224e0f0147684d94d1e09d8789981290a2c97e059fcd"


def test_seeds_and_prefixes() -> None:
    rows = generate(300, 0, level=2, language="both", style="mixed")
    assert rows == generate(300, 0, level="2", language="both", style="mixed")
    assert generate(120, 0, level=2, language="both", style="mixed") == rows[:120]
    assert not {text_of(r) for r in generate(300, 1, level=2, language="both")} & {text_of(r) for r in rows}


def test_styles_change_only_the_completions() -> None:
    styles = {style: generate(2000, 5, level=1, style=style) for style in STYLES}
    for rows in styles.values():
        assert [text_of(row) for row in rows] == [text_of(row) for row in styles["rationale"]]
    assert all(reasoning_of(row) for row in styles["rationale"])
    assert not any(reasoning_of(row) for row in styles["bare"])
    for share in (0.0, 0.2, 0.55, 1.0):
        rows = generate(2000, 5, level=1, style="mixed", bare_share=share)
        assert abs(sum(reasoning_of(row) is None for row in rows) / 2000 - share) < 0.04
        for row, bare, full in zip(rows, styles["bare"], styles["rationale"], strict=True):
            assert row == (bare if reasoning_of(row) is None else full)


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_disjoint(level: str) -> None:
    rows = {split: generate(3000, 6, level=level, split=split, language="both") for split in SPLITS}

    def keys(split: str) -> set[tuple[str, tuple[int, ...]]]:
        return {(row["meta"]["template"], tuple(sorted(row["meta"]["operands"]))) for row in rows[split]}

    def templates(split: str) -> set[str]:
        return {row["meta"]["template"] for row in rows[split]}

    assert not keys("train") & keys("test")
    assert templates("train") == templates("test")
    assert not templates("train") & templates("unseen_templates")
    for split in SPLITS:
        assert len({text_of(row) for row in rows[split]}) == len({row["id"] for row in rows[split]}) == 3000


def test_split_of_a_set_of_operands() -> None:
    assert split_of("gain", (3, 50)) == split_of("gain", (50, 3))
    sides = [split_of("gain", (a, b)) for a in range(60) for b in range(a + 1)]
    assert 0.07 < sides.count("test") / len(sides) < 0.13
    assert any(split_of("gain", (a, 5)) != split_of("loss", (a, 5)) for a in range(6, 60))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_answers_and_steps_are_spread(level: str, split: str, language: str) -> None:
    rows = generate(2000, 7, level=level, split=split, language=language)
    answers = Counter(row["answer"] for row in rows)
    assert max(answers.values()) <= 0.035 * len(rows) and len(answers) > 80
    last = sum(int(row["answer"] or "") == numbers_of(row)[-1] for row in rows)
    assert last == 0
    steps = Counter(row["meta"]["steps"] for row in rows)
    known = [s for s in LEVELS[level] if split != "unseen_templates" or s > 1]
    assert set(steps) == set(known)
    assert all(0.8 < count * len(known) / known.count(n) / len(rows) < 1.2 for n, count in steps.items())
    long = [row for row in rows if row["meta"]["steps"] >= 4]
    told = sum(row["meta"]["distractor"] for row in long)
    if level in ("3", "mix"):
        assert 0.25 < told / len(long) < 0.42
        assert not any(row["meta"]["distractor"] for row in rows if row["meta"]["steps"] < 4)
    else:
        assert told == 0


def test_small_sets_have_no_favourite_either() -> None:
    for seed in range(5):
        rows = generate(500, seed, level=1, split="test")
        assert max(Counter(row["answer"] for row in rows).values()) <= 0.05 * 500


def test_favourite_answers_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one_template = ((word_problems.TEMPLATES["cost"],),)
    monkeypatch.setattr(word_problems, "_by_steps", lambda level, unseen: one_template)

    def most() -> int:
        rows = generate(400, 0, level=1)
        return max(Counter(row["answer"] for row in rows).values())

    assert most() <= 3 + 0.03 * 400 + 1
    monkeypatch.setattr(word_problems, "_ANSWER_SHARE", 1.0)
    assert most() > 20  # few products, some of them often


def test_quick() -> None:
    generate(10, 0)
    best = 99.0
    for _ in range(3):
        start = time.process_time()
        generate(5000, 0, level="mix", language="both", style="mixed")
        best = min(best, time.process_time() - start)
    assert best < 0.8  # 8 s for 50,000


def test_rows_may_repeat_where_that_is_wished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LANGUAGES["en"], "words", lambda rng: _fixed_words())
    monkeypatch.setattr(word_problems, "_by_steps", lambda level, unseen: ((word_problems.TEMPLATES["cost"],),))
    with pytest.raises(ConfigError, match=r"gave only \d+ different test problems in 'en', 400 were asked for"):
        generate(400, 0, level=1, split="test")
    monkeypatch.setattr(word_problems, "_ANSWER_SHARE", 1.0)
    assert len(generate(400, 0, level=1, split="test", distinct=False)) == 400


def _fixed_words() -> dict[str, object]:
    return dict.fromkeys(("n", "he", "goods", "good", "shop"), "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"level": 4}, "unknown level '4'; known: 1, 2, 1-2, 3, mix"),
        ({"level": "mixx"}, "did you mean 'mix'"),
        ({"split": "tests"}, "unknown split 'tests' .did you mean 'test'"),
        ({"split": "unseen"}, "did you mean 'unseen_templates'"),
        ({"language": "en-US"}, "did you mean 'en'"),
        ({"language": "cn"}, "unknown language 'cn'"),
        ({"style": "rational"}, "did you mean 'rationale'"),
        ({"bare_share": 1.5}, "bare_share must be a number from 0 to 1, not 1.5"),
        ({"bare_share": float("nan")}, "bare_share must be"),
        ({"bare_share": "half"}, "bare_share must be a number from 0 to 1, not 'half'"),
    ],
)
def test_named_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(**{"n": 5, "seed": 0, **arguments})  # type: ignore[arg-type]
