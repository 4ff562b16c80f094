"""Call the rewards of a step, check what they return, weigh and time them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmreason.rewards.deadline import MOST_GIVEN_UP, HangsError, awaited, hanging_calls, run_async, within
from mmreason.rewards.registry import RewardFunc
from mmreason.types import ConfigError, MMReasonError


class RewardError(MMReasonError):
    """A reward function failed or returned what is no reward. Names the reward and, where known, the row."""

    def __init__(self, message: str, *, reward: str, row: str | None = None) -> None:
        super().__init__(message)
        self.reward, self.row = reward, row


_LARGEST = float(np.finfo(np.float32).max)  # advantages are computed in float32
OnError = Literal["stop", "mask"]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Rewards of N completions by R functions.

    Attributes:
        names: R metric names.
        per_func: (N, R) float64, NaN where a function returned None (skip).
        total: (N,) float64, the weighted sum over functions that gave a reward; NaN where none did.
        seconds: (R,) wall-clock seconds of each function (async ones run together, so theirs overlap).
        extra: columns that functions logged through ``log_extra(name, values)``.
        metrics: numbers that functions logged through ``log_metric(name, value)``.
        masked: with ``on_error="mask"``: name of a reward -> (row, why) of the completions that got none because of a
            failure. They are NaN in `per_func`, as those that a function skipped.
    """

    names: tuple[str, ...]
    per_func: NDArray[np.float64]
    total: NDArray[np.float64]
    seconds: NDArray[np.float64]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    masked: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """(N,) True where no function gave a reward: the row should carry no gradient."""
        return np.isnan(self.total)


def compute_rewards(
    funcs: Sequence[RewardFunc],
    weights: Sequence[float] | None,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]] | None = None,
    trainer_state: Any = None,
    on_error: OnError = "stop",
    timeout: float | None = None,
) -> RewardBatch:
    """Score N completions.

    Args:
        funcs: R rewards, plain or coroutine functions.
        weights: R numbers, or None for ones.
        prompts, completions, completion_ids: N each.
        columns: further dataset columns, N each, passed by name; ``id`` names rows in errors.
        trainer_state: passed on.
        on_error: "mask": rows on which a function fails, found by calling it for each row alone, get no reward from it
            and are counted in ``masked``. What is wrong with no single row masks them all.
        timeout: seconds that one call of a function may take, see mmreason.rewards.deadline for what that can't do.

    Raises: RewardError (exception in a reward, wrong number of rewards, no number, NaN or infinite, too slow; with
        "mask" only where too many calls hang), ConfigError (number of weights, or a column of the wrong length), and
        whatever MMReasonError a reward raises: it says by itself what to do, for example that a judge is down.
    """
    columns = dict(columns or {})
    n = len(completions)
    for name, values in {"prompts": prompts, "completion_ids": completion_ids, **columns}.items():
        if len(values) != n:
            raise ConfigError(f"{n} completions, but {len(values)} entries in {name!r}")
    weight = np.ones(len(funcs)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (len(funcs),) or not np.isfinite(weight).all():
        raise ConfigError(f"reward_weights {weights} must be {len(funcs)} finite numbers, one per reward function")
    call = _Call(prompts, completions, completion_ids, columns, trainer_state)
    names = tuple(reward_name(func) for func in funcs)
    raw, seconds = _run_all(funcs, names, call, timeout)
    per_func = np.full((n, len(funcs)), np.nan)
    masked: dict[str, list[tuple[str, str]]] = {}
    for r, (func, name, outcome) in enumerate(zip(funcs, names, raw, strict=True)):
        if on_error == "stop":
            if outcome.error is not None:
                raise _failure(func, name, outcome.error, call, timeout) from outcome.error
            per_func[:, r] = _checked(name, outcome.value, call.row_ids)
        else:
            started = time.perf_counter()
            per_func[:, r], bad = _masked(func, name, outcome, call, timeout)
            seconds[r] += time.perf_counter() - started
            masked |= {name: bad} if bad else {}
    missing = np.isnan(per_func)
    total = np.where(missing, 0.0, per_func * weight).sum(axis=1)
    total[missing.all(axis=1)] = np.nan
    return RewardBatch(names, per_func, total, seconds, call.extra, call.metrics, masked)


class _Call:
    """The arguments of one scoring, whole or of a single row, and what functions log during it."""

    def __init__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: dict[str, Sequence[Any]],
        trainer_state: Any,
    ) -> None:
        self.per_row = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        self.trainer_state = trainer_state
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        ids = columns.get("id")
        self.row_ids = [str(i) for i in (ids if ids is not None else range(len(completions)))]

    def arguments(self, row: int | None = None) -> dict[str, Any]:
        chosen = slice(None) if row is None else slice(row, row + 1)
        per_row = {name: list(values[chosen]) for name, values in self.per_row.items()}
        log: dict[str, Any] = {"log_extra": _ignore, "log_metric": _ignore}
        if row is None:
            log = {"log_extra": self._log_extra, "log_metric": self._log_metric}
        return {**per_row, "trainer_state": self.trainer_state, **log}

    def _log_extra(self, name: str, values: Sequence[Any]) -> None:
        self.extra[name] = list(values)

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))


def _ignore(name: str, value: Any) -> None:
    """Stands in for the loggers while a failing row is looked for."""


def reward_name(func: RewardFunc) -> str:
    """Metric name; of a functools.partial that of its function."""
    for holder in (func, getattr(func, "func", None)):
        name = getattr(holder, "__name__", None)
        if name:
            return str(name)
    return type(func).__name__


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one call of a function came to: a value, or an error that is none of ours."""

    value: Any = None
    error: Exception | None = None


def _run_all(
    funcs: Sequence[RewardFunc], names: Sequence[str], call: _Call, timeout: float | None
) -> tuple[list[_Outcome], NDArray[np.float64]]:
    """Outcomes and seconds of all functions; coroutines run together after the plain functions."""
    raw: list[_Outcome] = []
    seconds = np.zeros(len(funcs))
    for r, (func, name) in enumerate(zip(funcs, names, strict=True)):
        start = time.perf_counter()
        raw.append(_call_once(func, name, call, None, timeout))
        seconds[r] = time.perf_counter() - start
    waiting = [(r, outcome.value) for r, outcome in enumerate(raw) if inspect.isawaitable(outcome.value)]
    if waiting:
        found = _await_all([awaitable for _, awaitable in waiting], timeout)
        for (r, _), (outcome, spent) in zip(waiting, found, strict=True):
            raw[r] = outcome
            seconds[r] += spent
    return raw, seconds


def _call_once(func: RewardFunc, name: str, call: _Call, row: int | None, timeout: float | None) -> _Outcome:
    """Of one row, or of all.

    Raises MMReasonError: the function's own, or the one of a run in which too many calls hang.
    """
    hanging = hanging_calls()
    if len(hanging) >= MOST_GIVEN_UP:
        raise RewardError(
            f"reward {name!r} is not called any more: {len(hanging)} reward calls of this run hang "
            f"({'; '.join(hanging)}), and a thread can't be ended. Run the same command to continue, and let the "
            "function give up by itself, or work in a process that it can kill",
            reward=name,
        )
    try:
        what = f"{name} on " + (f"a batch of {len(call.row_ids)}" if row is None else f"row {call.row_ids[row]}")
        return _Outcome(within(timeout, functools.partial(func, **call.arguments(row)), what))
    except MMReasonError:
        raise  # already says what is wrong and what to do
    except Exception as error:
        return _Outcome(error=error)


def _await_all(awaitables: Sequence[Any], timeout: float | None) -> list[tuple[_Outcome, float]]:
    """Outcome and seconds of each, run together. Raises MMReasonError: one of theirs."""

    async def one(awaitable: Any) -> tuple[_Outcome, float]:
        start = time.perf_counter()
        try:
            outcome = _Outcome(await awaited(awaitable, timeout))
        except Exception as error:
            outcome = _Outcome(error=error)
        return outcome, time.perf_counter() - start

    async def every() -> list[tuple[_Outcome, float]]:
        return list(await asyncio.gather(*(one(awaitable) for awaitable in awaitables)))

    try:
        found: list[tuple[_Outcome, float]] = run_async(every(), timeout)
    except HangsError as error:
        found = [(_Outcome(error=error), timeout or 0.0)] * len(awaitables)
    for outcome, _ in found:
        if isinstance(outcome.error, MMReasonError):
            raise outcome.error
    return found


def _one_row(func: RewardFunc, name: str, call: _Call, row: int, timeout: float | None) -> _Outcome:
    outcome = _call_once(func, name, call, row, timeout)
    return _await_all([outcome.value], timeout)[0][0] if inspect.isawaitable(outcome.value) else outcome


def _what(error: Exception) -> str:
    return str(error) if isinstance(error, HangsError) else f"{type(error).__name__}: {error}"


def _failure(func: RewardFunc, name: str, error: Exception, call: _Call, timeout: float | None) -> RewardError:
    """Find the first row that fails by itself, so that the error can name it."""
    if isinstance(error, TypeError) and "required" in str(error):
        columns = ", ".join(sorted(set(call.per_row) - {"prompts", "completions", "completion_ids"})) or "none"
        return RewardError(f"reward {name!r} failed: {_what(error)}. Dataset columns: {columns}", reward=name)
    for row, row_id in enumerate(call.row_ids):
        single = _one_row(func, name, call, row, timeout).error
        if single is not None:
            return RewardError(f"reward {name!r} failed on row {row_id}: {_what(single)}", reward=name, row=row_id)
    return RewardError(
        f"reward {name!r} failed on the batch of {len(call.row_ids)} (on no single row): {_what(error)}", reward=name
    )


def _masked(
    func: RewardFunc, name: str, outcome: _Outcome, call: _Call, timeout: float | None
) -> tuple[list[float], list[tuple[str, str]]]:
    """The rewards of one function, NaN where it gave none, and (row, why) of those that a failure took."""
    ids = call.row_ids
    if outcome.error is None:
        try:
            return _checked(name, outcome.value, ids), []
        except RewardError as error:
            if error.row is None:  # no list, or one of another length: whose rewards these are can't be known
                return [math.nan] * len(ids), [(row_id, str(error)) for row_id in ids]
        singles = [_Outcome([value]) for value in _listed(outcome.value)]
    else:
        whole = outcome.error
        if isinstance(whole, HangsError):
            whole.count(False)  # it hangs by rows that now are called, and count, alone
        singles = _row_by_row(func, name, call, timeout)
        if isinstance(whole, HangsError) and not any(isinstance(single.error, HangsError) for single in singles):
            whole.count(True)
        if all(single.error is None for single in singles):  # the batch as such is what it can't take
            return [math.nan] * len(ids), [(row_id, _what(outcome.error)) for row_id in ids]
    rewards, bad = [math.nan] * len(ids), []
    for row, (row_id, single) in enumerate(zip(ids, singles, strict=True)):
        try:
            if single.error is not None:
                raise RewardError(_what(single.error), reward=name, row=row_id)
            (rewards[row],) = _checked(name, single.value, [row_id])
        except RewardError as error:
            bad.append((row_id, str(error)))
    return rewards, bad


def _row_by_row(func: RewardFunc, name: str, call: _Call, timeout: float | None) -> list[_Outcome]:
    """Each row alone: plain calls one after another, coroutines together."""
    singles = [_call_once(func, name, call, row, timeout) for row in range(len(call.row_ids))]
    waiting = [row for row, single in enumerate(singles) if inspect.isawaitable(single.value)]
    if waiting:
        found = _await_all([singles[row].value for row in waiting], timeout)
        for row, (outcome, _) in zip(waiting, found, strict=True):
            singles[row] = outcome
    return singles


def _listed(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)  # numpy arrays and torch tensors


def _checked(name: str, values: Any, row_ids: Sequence[str]) -> list[float]:
    """The rewards of one function as floats, NaN for None."""
    if hasattr(values, "tolist"):
        values = _listed(values)
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise RewardError(
            f"reward {name!r} returned {type(values).__name__}, not a list of numbers or None", reward=name
        )
    if len(values) != len(row_ids):
        raise RewardError(f"reward {name!r} returned {len(values)} rewards for {len(row_ids)} completions", reward=name)
    checked = []
    for value, row_id in zip(values, row_ids, strict=True):
        if value is None:
            checked.append(math.nan)
            continue
        try:
            number = float(value) if not isinstance(value, (str, bytes)) else None
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = None
        if number is None or not abs(number) <= _LARGEST:
            kind = "no number" if number is None else "too large for float32" if math.isfinite(number) else "not finite"
            raise RewardError(
                f"reward {name!r} returned {value!r} for row {row_id}: {kind} (None skips a row)",
                reward=name,
                row=row_id,
            )
        checked.append(number)
    return checked
