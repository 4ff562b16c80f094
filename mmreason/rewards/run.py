"""Call the rewards of a step, check what they return, weigh and time them."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreason.rewards.registry import RewardFunc
from mmreason.types import ConfigError, MMReasonError


class RewardError(MMReasonError):
    """A reward function failed or returned what is no reward. Names the reward and, where known, the row."""

    def __init__(self, message: str, *, reward: str, row: str | None = None) -> None:
        super().__init__(message)
        self.reward, self.row = reward, row


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
    """

    names: tuple[str, ...]
    per_func: NDArray[np.float64]
    total: NDArray[np.float64]
    seconds: NDArray[np.float64]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

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
) -> RewardBatch:
    """Score N completions.

    Args:
        funcs: R rewards, plain or coroutine functions.
        weights: R numbers, or None for ones.
        prompts, completions, completion_ids: N each.
        columns: further dataset columns, N each, passed by name; ``id`` names rows in errors.
        trainer_state: passed on.

    Raises: RewardError (exception in a reward, wrong number of rewards, no number, NaN or infinite), ConfigError
        (number of weights, or a column of the wrong length).
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
    names = tuple(_name(func) for func in funcs)
    raw, seconds = _run_all(funcs, names, call)
    per_func = np.full((n, len(funcs)), np.nan)
    for r, (name, values) in enumerate(zip(names, raw, strict=True)):
        per_func[:, r] = _checked(name, values, call)
    missing = np.isnan(per_func)
    total = np.where(missing, 0.0, per_func * weight).sum(axis=1)
    total[missing.all(axis=1)] = np.nan
    return RewardBatch(names, per_func, total, seconds, call.extra, call.metrics)


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


def _name(func: RewardFunc) -> str:
    """Metric name; of a functools.partial that of its function."""
    for holder in (func, getattr(func, "func", None)):
        name = getattr(holder, "__name__", None)
        if name:
            return str(name)
    return type(func).__name__


def _run_all(funcs: Sequence[RewardFunc], names: Sequence[str], call: _Call) -> tuple[list[Any], NDArray[np.float64]]:
    """Raw return values and seconds of all functions; coroutines run together after the plain functions."""
    raw: list[Any] = [None] * len(funcs)
    seconds = np.zeros(len(funcs))
    waiting: list[tuple[int, Any]] = []
    for r, func in enumerate(funcs):
        start = time.perf_counter()
        try:
            raw[r] = func(**call.arguments())
        except MMReasonError:
            raise  # already says what is wrong and what to do
        except Exception as error:
            raise _failure(func, names[r], error, call) from error
        seconds[r] = time.perf_counter() - start
        if inspect.isawaitable(raw[r]):
            waiting.append((r, raw[r]))
    if waiting:
        for (r, _), (value, problem, spent) in zip(waiting, run_async(_gather(waiting)), strict=True):
            seconds[r] += spent
            if isinstance(problem, MMReasonError):
                raise problem
            if problem is not None:
                raise _failure(funcs[r], names[r], problem, call) from problem
            raw[r] = value
    return raw, seconds


async def _gather(waiting: Sequence[tuple[int, Any]]) -> list[tuple[Any, Exception | None, float]]:
    async def one(awaitable: Any) -> tuple[Any, Exception | None, float]:
        start = time.perf_counter()
        try:
            return await awaitable, None, time.perf_counter() - start
        except Exception as error:
            return None, error, time.perf_counter() - start

    return list(await asyncio.gather(*(one(awaitable) for _, awaitable in waiting)))


def _failure(func: RewardFunc, name: str, error: Exception, call: _Call) -> RewardError:
    """Find the first row that fails by itself, so that the error can name it."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, TypeError) and "required" in str(error):
        columns = ", ".join(sorted(set(call.per_row) - {"prompts", "completions", "completion_ids"})) or "none"
        return RewardError(f"reward {name!r} failed: {what}. Dataset columns: {columns}", reward=name)
    for row, row_id in enumerate(call.row_ids):
        try:
            value = func(**call.arguments(row))
            if inspect.isawaitable(value):
                run_async(_awaited(value))
        except Exception as single:
            said = f"{type(single).__name__}: {single}"
            return RewardError(f"reward {name!r} failed on row {row_id}: {said}", reward=name, row=row_id)
    return RewardError(
        f"reward {name!r} failed on the batch of {len(call.row_ids)} (on no single row): {what}", reward=name
    )


async def _awaited(value: Any) -> Any:
    return await value


def _checked(name: str, values: Any, call: _Call) -> list[float]:
    """The rewards of one function as floats, NaN for None."""
    if hasattr(values, "tolist"):  # numpy arrays and torch tensors
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise RewardError(
            f"reward {name!r} returned {type(values).__name__}, not a list of numbers or None", reward=name
        )
    if len(values) != len(call.row_ids):
        raise RewardError(
            f"reward {name!r} returned {len(values)} rewards for {len(call.row_ids)} completions", reward=name
        )
    checked = []
    for value, row_id in zip(values, call.row_ids, strict=True):
        if value is None:
            checked.append(math.nan)
            continue
        try:
            number = float(value) if not isinstance(value, (str, bytes)) else None
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = None
        if number is None or not math.isfinite(number):
            kind = "no number" if number is None else "not finite"
            raise RewardError(
                f"reward {name!r} returned {value!r} for row {row_id}: {kind} (None skips a row)",
                reward=name,
                row=row_id,
            )
        checked.append(number)
    return checked


_LOOP_LOCK = threading.Lock()
_LOOPS: list[asyncio.AbstractEventLoop] = []


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end from any thread, on one lasting event loop.

    The loop lasts so that a reward's HTTP client may keep its connections from step to step, and it has a thread of
    its own so that callers inside a running loop (notebooks) work too.
    """
    with _LOOP_LOCK:
        if not _LOOPS:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="mmreason-rewards", daemon=True).start()
            _LOOPS.append(loop)
    return asyncio.run_coroutine_threadsafe(coroutine, _LOOPS[0]).result()
