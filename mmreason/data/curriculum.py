"""Easy rows first: what a model may see grows with its competence.

The law is that of competence-based curriculum learning (Platanios et al. 2019, arXiv 1903.09848): a row's difficulty is
its rank among all rows, from 0 to 1; after t rows the model's competence is c(t), and a step draws uniformly from the
rows of difficulty up to c(t). Here t counts rows, not steps, so that the law is the same for any batch size.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mmreason._functions import did_you_mean
from mmreason.data.mixture import ShuffledOrder, mixed_seed
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["linear", "root", "step"]
PACINGS = get_args(Kind)
LENGTH = "length"
"""Value of `by` that sorts rows by their tokens instead of by a column."""
DRAWN_AT_ONCE = 64
"""Rows drawn without repetition from those of one competence."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """The competence c(t), t in rows: the share of all rows, easiest first, that may be drawn.

    With T rows until everything is open and c0 the share at the start, after the paper:
        linear  c(t) = min(1, t (1 - c0) / T + c0)
        root    c(t) = min(1, (t (1 - c0^p) / T + c0^p)^(1/p)): new rows come in ever more slowly. p = 2 did best there.
        step    the linear law at the beginning of each of `steps` equally long stages.

    Args:
        rows: T, at least 1. start: c0, above 0 to 1. power: p of "root", at least 1. steps: stages of "step".
    """

    rows: int
    kind: Kind = "root"
    start: float = 0.1
    power: float = 2.0
    steps: int = 4

    def __post_init__(self) -> None:
        if self.kind not in PACINGS:
            hint = did_you_mean(str(self.kind), PACINGS)
            raise ConfigError(f"curriculum: pacing {self.kind!r} is none of {', '.join(PACINGS)}.{hint}")
        if self.rows < 1:
            raise ConfigError(f"curriculum: rows={self.rows} must be at least 1")
        if not 0 < self.start <= 1:
            raise ConfigError(f"curriculum: start={self.start} must be above 0 and at most 1")
        if not self.power >= 1 or math.isinf(self.power):
            raise ConfigError(f"curriculum: power={self.power} must be at least 1")
        if self.steps < 1:
            raise ConfigError(f"curriculum: steps={self.steps} must be at least 1")

    def competence(self, t: int) -> float:
        """c(t), from c0 to 1, after t ≥ 0 rows."""
        if t >= self.rows:
            return 1.0
        if self.kind == "root":
            first = self.start**self.power
            return min(1.0, float((t * (1 - first) / self.rows + first) ** (1 / self.power)))
        if self.kind == "step":
            t = t * self.steps // self.rows * self.rows // self.steps
        return min(1.0, t * (1 - self.start) / self.rows + self.start)


class CurriculumOrder:
    """Rows of growing difficulty for the first `pacing.rows` positions; then pass after pass over all of them.

    Positions are filled 64 at a time: without repetition from the rows that are open at the first of them (repeated
    only where fewer are open). So the order is a pure function of the position, and a row is drawn as often as chance
    has it. Rows of equal difficulty are ordered by chance, by the seed.

    Args:
        difficulty: (N,) of each row, larger is harder; finite.
        pacing: how fast harder rows are let in.
        seed: of the order.
        rows: (N,) the rows' indices; None for 0 … N - 1.
        hardest_first: the other way round.
    """

    total = None

    def __init__(
        self,
        difficulty: Sequence[float],
        pacing: Pacing,
        seed: int,
        *,
        rows: Sequence[int] | None = None,
        hardest_first: bool = False,
    ) -> None:
        values = np.asarray(difficulty, dtype=np.float64)
        indices = np.arange(len(values)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(indices) != len(values):
            raise ConfigError(f"curriculum: {len(values)} difficulties for {len(indices)} rows")
        if not np.isfinite(values).all():
            raise ConfigError("curriculum: every row needs a finite difficulty")
        ties = np.array(ShuffledOrder(len(values), mixed_seed(seed, 1)).take(0, len(values)), dtype=np.int64)
        order = ties[np.argsort((-values if hardest_first else values)[ties], kind="stable")]
        self._easiest_first = indices[order]
        self._pacing, self._seed = pacing, seed
        self._afterwards = ShuffledOrder(indices.tolist(), seed)

    @property
    def rows_per_epoch(self) -> int:
        return len(self._easiest_first)

    def open_rows(self, position: int) -> int:
        """How many rows, the easiest first, may stand at a position."""
        first = min(position, self._pacing.rows) // DRAWN_AT_ONCE * DRAWN_AT_ONCE
        if position >= self._pacing.rows:
            return self.rows_per_epoch
        return max(1, math.floor(self._pacing.competence(first) * self.rows_per_epoch))

    def take(self, start: int, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            at = start + len(taken)
            if at >= self._pacing.rows:
                return taken + self._afterwards.take(at - self._pacing.rows, count - len(taken))
            block, place = divmod(at, DRAWN_AT_ONCE)
            end = min(DRAWN_AT_ONCE, place + count - len(taken), self._pacing.rows - block * DRAWN_AT_ONCE)
            taken += self._easiest_first[self._block(block)[place:end]].tolist()
        return taken

    def _block(self, number: int) -> list[int]:
        """Places in the order by difficulty of the 64 rows of a block."""
        open_rows = self.open_rows(number * DRAWN_AT_ONCE)
        draw = random.Random(mixed_seed(self._seed, 2, number))
        places: list[int] = []
        while len(places) < DRAWN_AT_ONCE:
            places += draw.sample(range(open_rows), min(open_rows, DRAWN_AT_ONCE - len(places)))
        return places


def difficulties(dataset: Dataset, by: str, lengths: Sequence[int] | None = None) -> list[float]:
    """The difficulty of each row.

    Args:
        by: "length" for the tokens of the row; or a column, or a key in one ("meta.level"). Texts that hold a number
            ("Level 5") count as it.
        lengths: (N,) tokens of each row, which "length" needs.

    Raises: DataError naming the first row whose value is missing or no finite number, or that there is no such column;
        ConfigError where "length" is asked for without lengths.
    """
    if by == LENGTH:
        if lengths is None:
            raise ConfigError("curriculum: by: length needs the rows' lengths in tokens")
        if len(lengths) != len(dataset):
            raise ConfigError(f"curriculum: {len(lengths)} lengths for {len(dataset)} rows")
        return [float(length) for length in lengths]
    column, *keys = by.split(".")
    if column not in dataset.column_names:
        known = [LENGTH, *dataset.column_names]
        raise DataError(
            f"curriculum: no column {column!r}; there are {', '.join(known)}, and keys as in meta.level."
            + did_you_mean(column, known)
        )
    names = list(dataset["id"]) if "id" in dataset.column_names else [str(i) for i in range(len(dataset))]
    return [_number(_reach(cell, keys), name, by) for name, cell in zip(names, dataset[column], strict=True)]


def _reach(cell: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        cell = cell.get(key) if isinstance(cell, Mapping) else None
    return cell


def _number(value: Any, row: str, by: str) -> float:
    if isinstance(value, str):
        numbers = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.])", value)
        value = float(numbers[0]) if len(numbers) == 1 else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"row {row}: curriculum: {by} is {value!r}, not a finite number", row=row, reason="bad_score")
    return float(value)
