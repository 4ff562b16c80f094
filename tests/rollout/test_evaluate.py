"""Held-out accuracy: intervals, majority vote, verdict counts, and problems dealt out to processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.models.tiny import tiny_tokenizer
from mmreason.rollout.evaluate import Accuracy, Evaluation, GreedyAnswer, evaluate, wilson_interval
from mmreason.rollout.types import Completion, Engine, Request, Sampling

TOKENIZER = tiny_tokenizer()
SAMPLING = Sampling(32, temperature=0.9)


class ScriptedEngine:
    """Answers a prompt [i] with what the script holds for problem i: the first text greedily, the others as samples."""

    name = "scripted"

    def __init__(self, script: Sequence[Sequence[str]]):
        self.script = script
        self.calls: list[tuple[list[int], list[int], float, int]] = []

    def sync(self) -> None:
        raise AssertionError("evaluate leaves syncing to the trainer")

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        problems = [request.prompt_ids[0] for request in requests]
        self.calls.append((problems, [request.n for request in requests], sampling.temperature, seed))
        out = []
        for request, problem in zip(requests, problems, strict=True):
            texts = self.script[problem][:1] if sampling.temperature == 0 else self.script[problem][1:]
            assert len(texts) == request.n
            ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
            out.append([Completion(row, [0.0] * len(row), truncated=False) for row in ids])
        return out

    def close(self) -> None:
        """Nothing to free."""


def run(
    script: Sequence[Sequence[str]],
    golds: Sequence[str],
    k: int,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[list[Any]], list[Any]] = lambda items: items,
) -> tuple[Evaluation, ScriptedEngine]:
    (result, _), engine = run_with_answers(script, golds, k, rank, world_size, gather)
    return result, engine


def run_with_answers(
    script: Sequence[Sequence[str]],
    golds: Sequence[str],
    k: int,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[list[Any]], list[Any]] = lambda items: items,
) -> tuple[tuple[Evaluation, list[GreedyAnswer]], ScriptedEngine]:
    engine = ScriptedEngine(script)
    checked: Engine = engine  # the script keeps to the protocol
    result = evaluate(
        checked,
        [[i] for i in range(len(golds))],
        [{"id": f"p{i}", "answer": gold, "meta": {"kind": "number"}} for i, gold in enumerate(golds)],
        TOKENIZER.decode,
        SAMPLING,
        k=k,
        seed=7,
        rank=rank,
        world_size=world_size,
        gather_objects=gather,
    )
    return result, engine


# -------------------- the interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (3, 7), (500, 1000), (1319, 1319)])
def test_interval_equals_scipys(correct: int, total: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_interval_holds_the_share(total: int, share: float) -> None:
    correct = round(total * share)
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1


def test_no_problems() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isnan(Accuracy(0, 0).value)
    found, _ = run([], [], k=3)
    assert found.greedy.n == 0 and found.verdicts == {}


# -------------------- accuracy and the vote

SCRIPT = [
    ["#### 4", "#### 4", "#### 5", "#### 4"],  # right; the vote too
    ["The answer is 7", "#### 8", "#### 8", "#### 7"],  # right; the vote is wrong
    ["so 9 it is", "\\boxed{9.0}", "#### 9", "no idea"],  # right by a fallback only; 9.0 and 9 vote together
    ["#### 1", "no idea", "none", "what"],  # wrong; nobody votes
    ["no idea", "#### 3", "#### 12", "#### 12"],  # unparseable; the vote is right
]
GOLDS = ["4", "7", "9", "2", "12"]


def test_counts_by_hand() -> None:
    found, engine = run(SCRIPT, GOLDS, k=3)
    assert found.greedy == Accuracy(3, 5)
    assert found.greedy_strict == Accuracy(2, 5)
    assert found.majority == Accuracy(3, 5) and found.k == 3
    assert found.verdicts == {"correct": 3, "wrong": 1, "unparseable": 1}
    assert found.mean_length == pytest.approx(sum(len(texts[0]) for texts in SCRIPT) / 5)  # one token per byte
    assert engine.calls == [([0, 1, 2, 3, 4], [1] * 5, 0.0, 7), ([0, 1, 2, 3, 4], [3] * 5, 0.9, 8)]


def test_greedy_answers_are_handed_on() -> None:
    (_, answers), _ = run_with_answers(SCRIPT, GOLDS, k=3)
    assert [answer.completion for answer in answers] == [texts[0] for texts in SCRIPT]
    assert [answer.prompt for answer in answers] == [TOKENIZER.decode([i]) for i in range(5)]
    assert [(answer.row, answer.id) for answer in answers] == [(i, f"p{i}") for i in range(5)]
    assert [answer.answer for answer in answers] == GOLDS
    assert [answer.verdict for answer in answers] == ["correct", "correct", "correct", "wrong", "unparseable"]
    assert [answer.extracted for answer in answers] == ["4", "7", "9", "1", None]
    assert [answer.length for answer in answers] == [len(texts[0]) for texts in SCRIPT]


def test_no_vote_below_two_samples() -> None:
    for k in (0, 1):
        found, engine = run(SCRIPT, GOLDS, k=k)
        assert found.majority is None and len(engine.calls) == 1
        assert found.to_json()["majority"] is None and "maj@" not in found.table()


ANSWERS: dict[str, float | None] = {
    "#### 3": 3.0,
    "\\boxed{3.0}": 3.0,
    "The answer is 6/2.": 3.0,
    "#### 4": 4.0,
    "<answer>4.00</answer>": 4.0,
    "#### 1,000": 1000.0,
    "#### 1000": 1000.0,
    "no idea": None,
}


def brute_force(votes: Sequence[str], gold: float) -> bool:
    """The value that most samples gave, the earliest of equals."""
    values = [ANSWERS[vote] for vote in votes]
    given_values = [value for value in values if value is not None]
    if not given_values:
        return False
    return max(given_values, key=lambda v: (given_values.count(v), -given_values.index(v))) == gold


@settings(max_examples=60, deadline=None)
@given(
    votes=st.lists(st.lists(st.sampled_from(list(ANSWERS)), min_size=5, max_size=5), min_size=1, max_size=4),
    golds=st.lists(st.sampled_from(["3", "4", "1000"]), min_size=4, max_size=4),
)
def test_majority_equals_brute_force(votes: list[list[str]], golds: list[str]) -> None:
    golds = golds[: len(votes)]
    found, _ = run([["#### 0", *row] for row in votes], golds, k=5)
    expected = sum(brute_force(row, float(gold)) for row, gold in zip(votes, golds, strict=True))
    assert found.majority == Accuracy(expected, len(votes))


# -------------------- several processes


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_dealing_to_processes_changes_nothing(world_size: int) -> None:
    alone, _ = run_with_answers(SCRIPT, GOLDS, k=3)
    kept: list[Any] = []
    engines = []

    def keep(items: list[Any]) -> list[Any]:
        kept.extend(items)
        return items

    for rank in range(world_size):
        engines.append(run(SCRIPT, GOLDS, 3, rank, world_size, keep)[1])
    assert sorted(record["row"] for record in kept) == list(range(5)), "each problem is counted once"
    together, _ = run_with_answers(SCRIPT, GOLDS, 3, 0, world_size, lambda items: list(reversed(kept)))
    assert together == alone
    # Sampling is collective with sharded weights: all processes make the same calls with the same number of rows.
    shapes = [[(len(problems), counts, seed) for problems, counts, _, seed in engine.calls] for engine in engines]
    assert all(shape == shapes[0] for shape in shapes)
    asked = [problem for engine in engines for problem in engine.calls[0][0]]
    assert set(asked) == set(range(5)) and len(asked) == math.ceil(5 / world_size) * world_size


# -------------------- what is shown and written


def test_table_and_json() -> None:
    found, _ = run(SCRIPT, GOLDS, k=3)
    assert "0.600 [0.231, 0.882] (3/5)" in found.table()
    assert "maj@3" in found.table() and "unparseable 1" in found.table()
    data = found.to_json()
    low, high = wilson_interval(3, 5)
    assert data["greedy"] == {"correct": 3, "n": 5, "value": 0.6, "low": low, "high": high}
    assert data["verdicts"] == found.verdicts and data["mean_length"] == found.mean_length
