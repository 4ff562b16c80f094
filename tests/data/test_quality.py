"""Scores of rows and sets against cases worked out by hand, scipy, and planted oddities in real rows."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.clients.types import Reply, Request
from mmreason.data.doctor_rows import read_everything
from mmreason.data.quality import RowQuality, score_rows, style_features
from mmreason.data.quality_judge import judge_rows
from mmreason.data.quality_set import balance, length_bias, spearman, summarise, task_type, variety
from tests.pictures import cell, picture


def row(question: str, reply: str = "It is fine.", number: int = 0, **more: Any) -> dict[str, Any]:
    example: dict[str, Any] = {
        "id": f"r{number}",
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": reply}],
        "meta": {},
    }
    return example | more


def scores_of(*rows: dict[str, Any]) -> list[RowQuality]:
    return score_rows([{**example, "id": f"r{i}"} for i, example in enumerate(rows)])


@pytest.mark.parametrize(
    ("question", "clarity", "note"),
    [
        ("Name the three primary colours.", 1.0, None),
        ("Why?", 0.5, "short"),
        ("Write an email to [insert name] about the meeting.", 0.5, "placeholder"),
        ("Lorem ipsum: summarise it in one sentence.", 0.5, "placeholder"),
        ("Answer the question about the attached file.", 0.75, "points at something"),
        ("Solve it as described above, please.", 0.75, "points at something"),
        ("WRITE A SHORT STORY ABOUT A DRAGON AND A BEAR", 0.75, "capitals"),
        ("Write a list of the things that you need for,", 0.75, "breaks off"),
        ("TODO,", 0.0, "placeholder"),
        ("法国的首都是哪里？", 1.0, None),
    ],
)
def test_clarity(question: str, clarity: float, note: str | None) -> None:
    (found,) = scores_of(row(question))
    assert found.clarity == clarity
    assert not found.notes if note is None else any(note in text for text in found.notes)


@pytest.mark.parametrize(
    ("reply", "completeness", "note"),
    [
        ("Paris is the capital of France.", 1.0, None),
        ("Paris", 1.0, None),
        (
            "1. Eat more vegetables and fruit each day\n2. Sleep for eight hours every single night of the week",
            1.0,
            None,
        ),
        ("The capital of France is Paris, and it has been so since the", 0.5, "breaks off"),
        ("Here it is:\n```python\nprint(1)\n", 0.5, "code block"),
        ("The value is f(x = 3 for all of it.", 0.75, "bracket"),
        ("I'm sorry, but I can't help with that.", 0.5, "refuses"),
        ("抱歉，我无法回答。", 0.5, "refuses"),
        ("def f(x):\n    return the_value_of_a_name if x else b or c and d or e and f", 1.0, None),
    ],
)
def test_completeness(reply: str, completeness: float, note: str | None) -> None:
    (found,) = scores_of(row("Say something about it, please.", reply))
    assert found.completeness == completeness
    assert not found.notes if note is None else any(note in text for text in found.notes)


def test_correctness_is_the_verifiers() -> None:
    right = row("1 + 1 = what?", "So the answer is 2.", answer="2")
    wrong = row("1 + 1 = what?", "So the answer is 3.", answer="2")
    without = row("Say hello to me.", "Hello to you.")
    assert [found.correctness for found in scores_of(right, wrong, without)] == [1.0, 0.0, None]
    assert scores_of(wrong)[0].notes == ("the answer isn't the gold",)


def test_style_is_the_share_of_usual_features() -> None:
    usual = [row(f"Question {i} of them?", f"It is number {i}.") for i in range(9)]
    odd = row(
        "Question of another kind?",
        "## Answer\n- one\n- two\n```x```",
    )
    found = scores_of(*usual, odd)
    assert [one.style for one in found[:9]] == [1.0] * 9
    differing = sum(style_features(odd)[name] != value for name, value in style_features(usual[0]).items())
    assert differing >= 3 and found[9].style == pytest.approx(1 - differing / len(style_features(odd)))


def test_diversity_is_the_share_of_4_grams_of_its_own() -> None:
    same, other = row("a b c d e", "f"), row("p q r s t", "u")
    found = scores_of(same, same, other)
    assert [one.diversity for one in found] == [0.0, 0.0, 1.0]
    # "a b c d", "b c d x", "c d x f" : the first is shared
    assert scores_of(row("a b c d", "e"), row("a b c d x", "f"))[1].diversity == pytest.approx(2 / 3)


def test_difficulty_ranks_by_level_or_by_effort() -> None:
    levels = [row("Solve it now, please.", "5", meta={"level": f"Level {level}"}) for level in (3, 1, 5, 3)]
    assert [one.difficulty for one in scores_of(*levels)] == [0.5, 0.0, 1.0, 0.5]
    easy = row("Solve it now.", "Done.")
    thought = "First 2 + 3 = 5, then 5 * 7 = 35, so that we get 35 of them in the end."
    hard = row("Solve it now.", "35", completion=[{"role": "assistant", "content": "35", "reasoning_content": thought}])
    first, second = scores_of(easy, hard)
    assert (first.difficulty, second.difficulty) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("example", "kind"),
    [
        (row("Translate this sentence into German."), "translation"),
        (row("Write a Python function that sorts a list."), "code"),
        (row("How many apples are left?"), "mathematics"),
        (row("Which is it?", meta={"choices": ["a", "b"]}), "choice"),
        (row("Is it red?", meta={"kind": "yesno"}, images=[1]), "image: yes or no"),
        (row("Look it up.", tools=[{}]), "tools"),
        ({"id": "x", "text": "Once upon a time."}, "document"),
        (row("Write a poem about the sea."), "writing"),
        (row("Hm."), "other"),
    ],
)
def test_task_types(example: dict[str, Any], kind: str) -> None:
    assert task_type(example) == kind


def test_balance_is_the_evenness_of_types() -> None:
    even = [row("Translate it into German."), row("How many apples are left?")]
    assert balance(even)["evenness"] == pytest.approx(1.0)
    skewed = balance([*even[:1] * 3, even[1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert skewed == {"types": {"translation": 3, "mathematics": 1}, "evenness": pytest.approx(entropy)}
    assert balance(even[:1])["evenness"] == 0


def test_variety_counts_different_n_grams() -> None:
    found = variety([row("a a b", "c"), row("a b", "c d")])
    assert found["distinct-1 of instructions"] == 2 / 5 and found["distinct-2 of instructions"] == 2 / 3
    assert found["distinct-1 of replies"] == 2 / 3 and found["distinct-2 of replies"] == 1.0


def test_length_bias_of_pairs_and_labels() -> None:
    def pair(chosen: str, rejected: str) -> dict[str, Any]:
        sides = {"chosen": chosen, "rejected": rejected}
        return {"id": chosen, "prompt": "q", **{k: [{"role": "assistant", "content": v}] for k, v in sides.items()}}

    pairs = [pair("a b c", "a"), pair("a", "b"), pair("a", "b c d e")]
    found = length_bias(pairs, score_rows(pairs))
    assert found["chosen is longer"] == 0.5
    assert found["mean ln(chosen / rejected)"] == pytest.approx((math.log(4 / 2) + math.log(2 / 5)) / 3)
    labels = [row("Say it to me.", "a b c d", label=True), row("Say it to me.", "a b", label=False)]
    assert length_bias(labels, score_rows(labels))["wanted over unwanted"] == 2.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import spearmanr

    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = spearman(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)


def test_a_summary_names_the_lowest_rows() -> None:
    rows = [row(f"Name the number {i} of them.", f"It is number {i}.", i) for i in range(5)]
    rows[3] = row("Why?", "The reason for it is that the thing was made by the", 3)
    found = summarise(rows, score_rows(rows))
    assert [one["row"] for one in found["lowest"]] == ["r3"] and len(found["lowest"][0]["notes"]) == 2
    assert found["rows"] == 5 and found["means"]["clarity"] == {"mean": 0.9, "rows": 5}
    assert sum(found["difficulty"]) == 5 and json.dumps(found)


def test_planted_oddities_in_real_rows_are_the_lowest(shared_data: Path) -> None:
    read = read_everything(str(shared_data / "instruction" / "alpaca_2k.jsonl"), max_rows=300)
    examples: list[Any] = read.examples
    examples[17] = examples[17] | {"prompt": [{"role": "user", "content": "TODO"}]}
    broken = "I am sorry, but as an AI I can only say that the thing which you have asked about is of the"
    examples[99] = examples[99] | {"completion": [{"role": "assistant", "content": broken}]}
    lowest = summarise(examples, score_rows(examples))["lowest"]
    assert {one["row"] for one in lowest[:3]} >= {"alpaca_2k/17", "alpaca_2k/99"}


class FixedJudge:
    """Gives each answer the rating that it asks for; the requests are kept."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        text = json.dumps(request.messages)
        rating = 2 if "worthless" in text else 9
        names = ("clarity", "correctness", "completeness", "style", "difficulty")
        answer = {"explanation": f"It is a {rating}."} | dict.fromkeys(names, rating)
        return Reply(text=json.dumps(answer), parsed=answer)


def test_a_judge_rates_a_sample() -> None:
    judge = FixedJudge()
    rows = [row(f"Question {i}, please?", f"Answer {i}.", i, images=[cell(picture(8, 8))]) for i in range(6)]
    rows[2] = row("Question 2, please?", "worthless", 2)
    rows.append({"id": "empty", "prompt": "Only asked.", "meta": {}})
    found = asyncio.run(judge_rows(rows, judge, rows=100))
    assert found["rows"] == len(judge.requests) == 6 and found["means"]["clarity"] == pytest.approx((5 * 9 + 2) / 6)
    assert found["lowest"][0] == {
        "row": "r2", "clarity": 2, "correctness": 2, "completeness": 2, "style": 2, "difficulty": 2,
        "reasons": "It is a 2.",
    }  # fmt: skip
    first, second = FixedJudge(), FixedJudge()
    picked = [asyncio.run(judge_rows(rows, one, rows=3, seed=4)) for one in (first, second)]
    assert picked[0] == picked[1] and len(first.requests) == 3
