"""Rewards that raise, return nonsense or hang: the row is named or masked, and the run goes on or stops as asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.clients.endpoint import Endpoint
from mmreason.clients.ledger import Ledger
from mmreason.clients.settings import EndpointConfig
from mmreason.clients.types import EndpointError, Request
from mmreason.rewards import RewardBatch, RewardError, compute_rewards, deadline
from mmreason.types import ConfigError
from tests.clients.server import running_server
from tests.timing import allowed

N = 4


def run(*funcs: Any, on_error: Any = "mask", timeout: float | None = None) -> RewardBatch:
    return compute_rewards(
        list(funcs),
        None,
        prompts=["p"] * N,
        completions=[f"c{i}" for i in range(N)],
        completion_ids=[[1] * i for i in range(N)],
        columns={"id": [f"row{i}" for i in range(N)]},
        on_error=on_error,
        timeout=timeout,
    )


@pytest.fixture(autouse=True)
def nothing_hangs_afterwards() -> Iterator[None]:
    yield
    released.set()
    ends = time.monotonic() + 10
    while deadline.hanging():
        assert time.monotonic() < ends, "a call that was given up did not end"
        time.sleep(0.01)
    released.clear()


released = threading.Event()
"""Ends what hangs, so that the tests leave no thread behind."""


def index(completions: list[str], **_: Any) -> list[float]:
    return [float(c[1:]) for c in completions]


def fails_on_c2(completions: list[str], **_: Any) -> list[float]:
    return [1.0 / (c != "c2") for c in completions]


async def async_fails_on_c2(completions: list[str], **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return fails_on_c2(completions)


def hangs_on_c2(completions: list[str], **_: Any) -> list[float]:
    if "c2" in completions:
        released.wait(30)
    return [1.0] * len(completions)


async def async_hangs_on_c2(completions: list[str], **_: Any) -> list[float]:
    if "c2" in completions:
        await asyncio.sleep(30)
    return [1.0] * len(completions)


# ---- masking


@pytest.mark.parametrize("func", [fails_on_c2, async_fails_on_c2])
def test_a_row_that_raises_is_masked_alone(func: Any) -> None:
    batch = run(index, func)
    assert np.array_equal(batch.per_func[:, 1], [1, 1, np.nan, 1], equal_nan=True)
    assert batch.total.tolist() == [1.0, 2.0, 2.0, 4.0] and not batch.skipped.any()
    assert batch.masked == {func.__name__: [("row2", "ZeroDivisionError: float division by zero")]}


def test_a_row_that_every_reward_fails_on_is_skipped() -> None:
    assert run(fails_on_c2).skipped.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("value", "lost", "why"),
    [
        ([1, float("nan"), 3, None], ["row1"], "returned nan for row row1: not finite"),
        (np.array([1, 2, np.inf, -np.inf]), ["row2", "row3"], "returned inf for row row2"),
        ([1, "2", 3, 4], ["row1"], "no number"),
        ([1.0] * 3, ["row0", "row1", "row2", "row3"], "returned 3 rewards for 4 completions"),
        (7, ["row0", "row1", "row2", "row3"], "not a list"),
    ],
)
def test_values_that_are_no_rewards_are_masked(value: Any, lost: list[str], why: str) -> None:
    def odd(**_: Any) -> Any:
        return value

    batch = run(odd)
    assert [row for row, _ in batch.masked["odd"]] == lost and why in batch.masked["odd"][0][1]
    for i, row in enumerate(f"row{i}" for i in range(N)):
        expected = np.nan if row in lost or value[i] is None else value[i]
        assert np.array_equal(batch.per_func[i, 0], expected, equal_nan=True)


def test_what_fails_on_no_single_row_masks_them_all() -> None:
    def batch_only(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [1.0]

    batch = run(batch_only, index)
    assert [why for _, why in batch.masked["batch_only"]] == ["RuntimeError: too many"] * N
    assert batch.total.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_nothing_masked_is_nothing_told() -> None:
    assert run(index).masked == {} and run(lambda completions, **_: [None] * N).masked == {}


def test_stop_is_the_default() -> None:
    with pytest.raises(RewardError, match="row row2: ZeroDivisionError"):
        compute_rewards(
            [fails_on_c2], None, prompts=["p"] * 3, completions=["c0", "c1", "c2"], completion_ids=[[1]] * 3,
            columns={"id": ["row0", "row1", "row2"]},
        )  # fmt: skip


def test_our_own_errors_stop_the_run_all_the_same() -> None:
    def picky(**_: Any) -> list[float]:
        raise ConfigError("set the judge's endpoint")

    with pytest.raises(ConfigError, match="set the judge's endpoint"):
        run(picky)


# ---- hanging


@pytest.mark.parametrize("func", [hangs_on_c2, async_hangs_on_c2])
def test_a_hanging_row_is_masked_alone(func: Any) -> None:
    start = time.perf_counter()
    batch = run(func, index, timeout=0.5)
    assert time.perf_counter() - start < allowed(3.0)
    assert np.array_equal(batch.per_func[:, 0], [1, 1, np.nan, 1], equal_nan=True)
    assert batch.masked == {func.__name__: [("row2", "no answer within reward_timeout=0.5 s")]}
    assert batch.per_func[:, 1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("func", [hangs_on_c2, async_hangs_on_c2])
def test_a_hanging_row_is_named(func: Any) -> None:
    with pytest.raises(
        RewardError, match=rf"{func.__name__}.* on row row2: no answer within reward_timeout=0\.5 s"
    ) as e:
        run(func, on_error="stop", timeout=0.5)
    assert e.value.row == "row2"


def test_two_hanging_rows_of_one_batch_are_masked_and_the_run_goes_on() -> None:
    """The batch's own call, which hangs by them, doesn't count beside them: in the next step the reward is called."""

    def hangs_on_two(completions: list[str], **_: Any) -> list[float]:
        if {"c0", "c2"} & set(completions):
            released.wait(30)
        return [1.0] * len(completions)

    batch = run(hangs_on_two, timeout=0.3)
    assert [row for row, _ in batch.masked["hangs_on_two"]] == ["row0", "row2"]
    assert np.array_equal(batch.per_func[:, 0], [np.nan, 1, np.nan, 1], equal_nan=True)
    assert deadline.hanging_calls() == ["hangs_on_two on row row0", "hangs_on_two on row row2"]
    assert run(index).total.tolist() == [0, 1, 2, 3]
    with pytest.raises(RewardError, match=r"row row0; hangs_on_two on row row2; hangs_on_c2 on row row2\)"):
        run(hangs_on_c2, timeout=0.3)
        run(index)


def test_a_batch_that_hangs_by_no_row_counts() -> None:
    def batch_hangs(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            released.wait(30)
        return [1.0]

    assert len(run(batch_hangs, timeout=0.2).masked["batch_hangs"]) == N
    assert deadline.hanging_calls() == ["batch_hangs on a batch of 4"]


def test_too_many_hanging_calls_stop_the_run_even_where_rows_are_masked() -> None:
    def hangs(**_: Any) -> list[float]:
        released.wait(30)
        return []

    with pytest.raises(RewardError, match="'hangs' is not called any more: 3 reward calls of this run hang") as e:
        run(hangs, timeout=0.1)
    assert all(f"hangs on row row{i}" in str(e.value) for i in range(3))
    assert deadline.hanging() == deadline.MOST_GIVEN_UP


def test_a_coroutine_that_blocks_the_loop_is_left_behind_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_GRACE_S", 0.2)

    async def blocks(completions: list[str], **_: Any) -> list[float]:
        if "c2" in completions:
            released.wait(30)  # no await: the loop itself stands still
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"blocks its event loop|no answer within"):
        run(blocks, on_error="stop", timeout=0.2)
    assert run(async_fails_on_c2).per_func[0, 0] == 1.0  # on a loop of its own again


def test_within_its_time_nothing_changes() -> None:
    batch = run(index, async_fails_on_c2, timeout=30)
    assert batch.per_func[:, 0].tolist() == [0, 1, 2, 3] and deadline.hanging() == 0


def test_errors_cross_the_thread_with_their_type() -> None:
    with pytest.raises(RewardError, match="row row2: ZeroDivisionError") as caught:
        run(fails_on_c2, on_error="stop", timeout=30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_timeout_error_of_the_reward_itself_is_its_own() -> None:
    async def gives_up(completions: list[str], **_: Any) -> list[float]:
        raise TimeoutError("my own")

    with pytest.raises(RewardError, match="TimeoutError: my own"):
        run(gives_up, on_error="stop")


# ---- a judge that is down


def judge_of(endpoint: Endpoint) -> Any:
    async def judged(completions: list[str], **_: Any) -> list[float]:
        asked = [Request(messages=[{"role": "user", "content": f"rate {c}"}], max_tokens=8) for c in completions]
        replies = await asyncio.gather(*(endpoint.complete(one) for one in asked))
        return [float(reply.text.split()[-1]) for reply in replies]

    return judged


def test_a_judge_that_is_down_is_waited_for() -> None:
    replies = {f"rate c{i}": f"score {i}" for i in range(N)}
    with running_server(down_s=1.0, replies=replies) as server:
        config = EndpointConfig(base_url=server.base_url, model="judge", retry_s=60, max_retries=50, circuit_s=0.2)
        endpoint = Endpoint(config)
        start = time.perf_counter()
        assert run(judge_of(endpoint), on_error="stop").total.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert time.perf_counter() - start >= 0.9
        assert any(entry.fault != "ok" for entry in server.log)
        deadline.run_async(endpoint.aclose())


def test_a_judge_that_stays_down_stops_the_run_and_is_not_paid_twice(tmp_path: Path) -> None:
    plans = {f"rate c{i}": f"score {i}" for i in range(N)}
    with running_server(replies=plans) as server:
        config = EndpointConfig(base_url=server.base_url, model="judge", retry_s=1, max_retries=1)
        endpoint = Endpoint(config, ledger=Ledger(tmp_path / "judge.ledger"))
        assert run(judge_of(endpoint)).total.tolist() == [0.0, 1.0, 2.0, 3.0]
        paid = len(server.log)
        deadline.run_async(endpoint.aclose())
    # Down for good: what the ledger has is still answered, what it hasn't stops the run, masked rows or not.
    with contextlib.closing(Ledger(tmp_path / "judge.ledger")) as ledger:
        endpoint = Endpoint(config, ledger=ledger)
        assert run(judge_of(endpoint)).total.tolist() == [0.0, 1.0, 2.0, 3.0] and paid == N

        async def asks_anew(completions: list[str], **_: Any) -> list[float]:
            return [float((await endpoint.complete(
                Request(messages=[{"role": "user", "content": f"again {c}"}], max_tokens=8)
            )).text) for c in completions]  # fmt: skip

        with pytest.raises(EndpointError):
            run(asks_anew)
        deadline.run_async(endpoint.aclose())
