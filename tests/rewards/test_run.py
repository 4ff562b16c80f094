"""compute_rewards: weights, None, async functions, and whatever a reward may return or raise."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.rewards import RewardError, compute_rewards, load_rewards
from mmreason.types import ConfigError
from tests.timing import allowed

N = 4


def run(*funcs: Any, weights: list[float] | None = None, **columns: Any) -> Any:
    columns.setdefault("id", [f"row{i}" for i in range(N)])
    return compute_rewards(
        list(funcs),
        weights,
        prompts=["p"] * N,
        completions=[f"c{i}" for i in range(N)],
        completion_ids=[[1] * i for i in range(N)],
        columns=columns,
        trainer_state="state",
    )


def index(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(c[1:]) for c in completions]


def holes(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None if c in ("c0", "c2") else 1.0 for c in completions]


def all_none(completions: list[str], **kwargs: Any) -> list[None]:
    return [None] * len(completions)


def test_weighted_total_skips_none() -> None:
    batch = run(index, holes, weights=[2.0, 0.5])
    assert batch.names == ("index", "holes")
    assert np.array_equal(batch.per_func, [[0, np.nan], [1, 1], [2, np.nan], [3, 1]], equal_nan=True)
    assert batch.total.tolist() == [0.0, 2.5, 4.0, 6.5]
    assert batch.seconds.shape == (2,) and (batch.seconds >= 0).all() and not batch.skipped.any()


def test_rows_that_every_reward_skips_are_nan() -> None:
    batch = run(all_none, holes)
    assert batch.skipped.tolist() == [True, False, True, False]
    assert np.array_equal(batch.total, [np.nan, 1, np.nan, 1], equal_nan=True)


def test_everything_is_passed() -> None:
    seen: dict[str, Any] = {}

    def look(**kwargs: Any) -> list[int]:
        seen.update(kwargs)
        kwargs["log_extra"]("verdict", ["ok"] * N)
        kwargs["log_metric"]("calls", 3)
        kwargs["completions"].clear()  # a reward can't spoil the lists for the next one
        return [1] * N

    batch = run(look, index, answer=["1"] * N)
    assert {"prompts", "completion_ids", "trainer_state", "answer", "id"} <= set(seen)
    assert seen["trainer_state"] == "state" and batch.per_func[3, 1] == 3.0
    assert batch.extra == {"verdict": ["ok"] * N} and batch.metrics == {"calls": [3.0]}


@pytest.mark.parametrize("value", [np.arange(4.0), torch.arange(4.0), (0, 1, 2, 3), [False, True, 2, np.float32(3)]])
def test_numbers_in_any_dress(value: Any) -> None:
    assert run(lambda **kwargs: value).per_func[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_tensors_of_one_number() -> None:
    assert run(lambda **kwargs: [torch.tensor(1.5)] * N).total.tolist() == [1.5] * N


@pytest.mark.parametrize(
    ("value", "message", "row"),
    [
        ([1.0] * 3, "returned 3 rewards for 4 completions", None),
        (None, "returned NoneType, not a list", None),
        (1.0, "returned float, not a list", None),
        ("abcd", "returned str, not a list", None),
        ([1, 2, "3", 4], "returned '3' for row row2: no number", "row2"),
        ([1, float("nan"), 3, 4], "returned nan for row row1: not finite", "row1"),
        ([1, 2, 3, float("-inf")], "row row3: not finite", "row3"),
        ([[1], 2, 3, 4], "row row0: no number", "row0"),
        ([1, 2, 3, 10**400], "row row3: no number", "row3"),
        ([1, 1e39, 3, 4], "returned 1e\\+39 for row row1: too large for float32", "row1"),
    ],
)
def test_what_is_no_reward_is_named(value: Any, message: str, row: str | None) -> None:
    def odd(**kwargs: Any) -> Any:
        return value

    with pytest.raises(RewardError, match=f"reward 'odd' {message}|reward 'odd' returned.*{message}") as caught:
        run(index, odd)
    assert (caught.value.reward, caught.value.row) == ("odd", row)


def fails_on_c2(completions: list[str], **kwargs: Any) -> list[float]:
    return [1 / (c != "c2") for c in completions]


async def async_fails_on_c2(completions: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return fails_on_c2(completions)


@pytest.mark.parametrize("func", [fails_on_c2, async_fails_on_c2])
def test_exceptions_name_reward_and_row(func: Any) -> None:
    with pytest.raises(RewardError, match=rf"reward '{func.__name__}' failed on row row2: ZeroDivisionError") as caught:
        run(index, func)
    assert caught.value.row == "row2" and isinstance(caught.value.__cause__, ZeroDivisionError)


def test_rows_without_id_are_numbered() -> None:
    with pytest.raises(RewardError, match="failed on row 2"):
        compute_rewards(
            [fails_on_c2], None, prompts=["p"] * 3, completions=["c0", "c1", "c2"], completion_ids=[[1]] * 3
        )


def test_failure_of_the_batch_only() -> None:
    def batch_only(completions: list[str], **kwargs: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(RewardError, match="failed on the batch of 4 .*RuntimeError: too many"):
        run(batch_only)


def test_missing_column_is_said() -> None:
    with pytest.raises(RewardError, match="accuracy_reward.*'answer'.*Dataset columns: id, source"):
        run(*load_rewards(["accuracy"]), source=["s"] * N)


def test_async_rewards_run_together_also_inside_a_loop() -> None:
    async def slow(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.3)
        return [2.0] * len(completions)

    async def slow_too(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.3)
        return [3.0] * len(completions)

    start = time.perf_counter()
    batch = run(slow, index, slow_too)
    assert time.perf_counter() - start < allowed(0.55)
    assert batch.per_func[1].tolist() == [2.0, 1.0, 3.0] and batch.seconds[0] >= 0.29

    async def notebook() -> Any:
        return run(slow)

    assert asyncio.run(notebook()).total.tolist() == [2.0] * N


def test_async_bound_with_parameters() -> None:
    async def scaled(completions: list[str], scale: float = 1.0, **kwargs: Any) -> list[float]:
        return [scale] * len(completions)

    (reward,) = load_rewards([{"name": scaled, "scale": 5.0}])
    assert run(reward).total.tolist() == [5.0] * N


def test_wrong_sizes_and_weights() -> None:
    with pytest.raises(ConfigError, match="4 completions, but 3 entries in 'answer'"):
        run(index, answer=["1"] * 3)
    for weights in ([1.0], [1.0, 2.0, 3.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="reward_weights"):
            run(index, holes, weights=weights)


def test_user_errors_pass_through() -> None:
    def picky(**kwargs: Any) -> list[float]:
        raise ConfigError("set the judge's endpoint")

    with pytest.raises(ConfigError, match="endpoint"):
        run(picky)


def test_empty_batch() -> None:
    batch = compute_rewards([index], None, prompts=[], completions=[], completion_ids=[])
    assert batch.per_func.shape == (0, 1) and batch.total.shape == (0,)
