"""split_holdout: exact size, disjoint by question, deterministic, independent of the row order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data import split_holdout, to_dataset
from mmreason.data.holdout import question_key
from mmreason.types import ConfigError, Example


def example(question: str, row_id: str) -> Example:
    return {"prompt": [{"role": "user", "content": question}], "id": row_id}


@settings(max_examples=40, deadline=None)
@given(
    questions=st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=30),
    n=st.integers(0, 29),
    seed=st.integers(0, 9),
)
def test_disjoint_complete_and_repeatable(questions: list[str], n: int, seed: int) -> None:
    dataset = to_dataset([example(q, str(i)) for i, q in enumerate(questions)], ("prompt", "id"))
    try:
        train, held = split_holdout(dataset, n, seed)
    except ConfigError:
        # Refused only where it must be: too many rows, or groups of duplicates that the greedy choice could not fit.
        assert n >= len(questions) or len(set(questions)) < len(questions)
        return
    assert len(held) == n and len(train) == len(questions) - n
    assert not {question_key(p) for p in train["prompt"]} & {question_key(p) for p in held["prompt"]}
    assert sorted([*train["id"], *held["id"]]) == sorted(dataset["id"])
    assert held["id"][:] == split_holdout(dataset, n, seed)[1]["id"][:]


def test_row_order_and_growth_keep_the_choice() -> None:
    rows = [example(f"question {i}", str(i)) for i in range(100)]
    held = set(split_holdout(to_dataset(rows, ("prompt", "id")), 20, seed=0)[1]["id"])
    again = set(split_holdout(to_dataset(rows[::-1], ("prompt", "id")), 20, seed=0)[1]["id"])
    grown = rows + [example(f"new {i}", f"n{i}") for i in range(10)]
    kept = held & set(split_holdout(to_dataset(grown, ("prompt", "id")), 20, seed=0)[1]["id"])
    other = set(split_holdout(to_dataset(rows, ("prompt", "id")), 20, seed=1)[1]["id"])
    assert held == again and len(kept) >= 14 and held != other


def test_equal_questions_in_other_dress() -> None:
    keys = {
        question_key([{"role": "user", "content": "What  is ２+2?"}]),
        question_key(
            [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "what is 2+2"}]}]
        ),
        question_key("WHAT IS 2+2 ?"),
    }
    assert keys == {"what is 2+2"}


@pytest.mark.parametrize("n", [-1, 3, 4])
def test_sizes_that_can_not_be(n: int) -> None:
    dataset = to_dataset([example(str(i), str(i)) for i in range(3)], ("prompt", "id"))
    with pytest.raises(ConfigError, match="can't hold out"):
        split_holdout(dataset, n, 0)


def test_duplicates_that_do_not_fit() -> None:
    dataset = to_dataset([example("same", str(i)) for i in range(4)], ("prompt", "id"))
    with pytest.raises(ConfigError, match="1 different questions in 4 rows"):
        split_holdout(dataset, 2, 0)
