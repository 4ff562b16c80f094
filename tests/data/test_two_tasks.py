"""Rationale and answer as two tasks: what is asked, what is said, and rows that can't be split."""

from __future__ import annotations

from typing import Any

import pytest

from mmreason.data.schema import to_dataset
from mmreason.data.supervised import prepare_supervised
from mmreason.data.two_tasks import as_labels, task_of, two_tasks
from mmreason.types import DataError

COLUMNS = ("prompt", "completion", "answer", "id", "source", "meta")


def rows(*thoughts: str | None) -> Any:
    made = []
    for i, thought in enumerate(thoughts):
        turn = {"role": "assistant", "content": f"{i}."} | ({"reasoning_content": thought} if thought else {})
        made.append(
            {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [turn], "answer": str(i), "id": f"r{i}"}
        )
    return to_dataset(made, COLUMNS)  # type: ignore[arg-type]


def test_a_row_becomes_two() -> None:
    found = list(two_tasks(rows("so it is", None)))
    assert [(row["id"], row["prompt"][0]["content"], row["completion"][0]["content"]) for row in found] == [
        ("r0-label", "[label] 0?", "0."),
        ("r0-rationale", "[rationale] 0?", "so it is"),
        ("r1-label", "[label] 1?", "1."),
    ]
    assert all("reasoning_content" not in row["completion"][0] for row in found)
    assert [task_of(row["id"]) for row in found] == ["label", "rationale", "label"]
    assert [row["answer"] for row in found] == ["0", "0", "1"]
    assert two_tasks(rows("因为"), "zh")[1]["prompt"][0]["content"] == "【解析】0?"


def test_what_is_measured_is_asked_for_the_answer_alone() -> None:
    found = as_labels(rows("so it is"))
    assert len(found) == 1 and found[0]["prompt"][0]["content"] == "[label] 0?"
    assert found[0]["completion"] == [{"role": "assistant", "content": "0."}]


def test_rows_without_rationales_and_with_several_turns_are_refused() -> None:
    with pytest.raises(DataError, match="no row's completion has reasoning_content"):
        two_tasks(rows(None, None))
    turns = [{"role": "assistant", "content": "a"}] * 2
    asked = [{"role": "user", "content": "x"}]
    several = to_dataset([{"prompt": asked, "completion": turns, "id": "r7"}], COLUMNS)  # type: ignore[typeddict-item]
    with pytest.raises(DataError, match="row r7: step by step takes completions of one message, this has 2"):
        two_tasks(several)


def test_weights_of_rows_are_multiplied() -> None:
    from mmreason.models.tiny import tiny_tokenizer

    found, _ = prepare_supervised(two_tasks(rows("so it is")), tiny_tokenizer())
    before = [found[i].weights for i in range(2)]
    found.scale([1.0, 0.25])
    assert found[0].weights == before[0] and found[1].weights == [0.25 * w for w in before[1]]
    assert found.weight_sums[1] == pytest.approx(0.25 * sum(before[1]))
    assert found.supervised[1] == sum(w > 0 for w in before[1])
