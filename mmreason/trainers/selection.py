"""Which problems are worth asking, by how often they were solved: a band of pass rates, a curriculum, replay."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

Curriculum = Literal["none", "easy_first", "hard_first"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectionOptions:
    """The `prompt_selection` block.

    Attributes:
        min_pass_rate, max_pass_rate: rows outside this band are left out from the next epoch on.
        after: groups of a row that must have been judged before it may be left out.
        return_after: epochs that a row stays out; then it is asked once more, and judged by that. 0: for good.
        ema: weight of the newest group in a row's pass rate.
        reward: the reward function whose value, bounded to 0 … 1, is the pass of a completion. None: `accuracy` where
            it is one of reward_funcs, else the weighted sum of all.
        curriculum: order of the rows within an epoch; ties, and rows never asked, in shuffled order.
        difficulty: column of numbers, the larger the harder, that the curriculum goes by. None: the observed pass rate.
        replay_hard: share of each rollout's prompts that are drawn again from hard rows.
        hard_pass_rate: a row is hard if its pass rate is above 0 and at most this.
        priority: draw every prompt with a probability that grows with how undecided it is, √(p (1 - p)) + floor with p
            the pass rate (SPO, arXiv 2509.13232 sec. 3.3), instead of going through the rows in epochs.
        priority_floor: the floor, so that no row is forgotten.
    """

    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    after: int = 1
    return_after: int = 3
    ema: float = 0.5
    reward: str | None = None
    curriculum: Curriculum = "none"
    difficulty: str | None = None
    replay_hard: float = 0.0
    hard_pass_rate: float = 0.3
    priority: bool = False
    priority_floor: float = 0.05

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> SelectionOptions:
        """Raises ConfigError naming the key."""
        kinds = {f.name: f for f in fields(cls)}
        for key, value in block.items():
            if key not in kinds:
                raise ConfigError(f"prompt_selection: unknown key {key!r}{did_you_mean(key, kinds)}")
            default = kinds[key].default
            if default is None:
                fits = value is None or isinstance(value, str)
            elif isinstance(default, bool | int | str):
                fits = type(value) is type(default)
            else:
                fits = isinstance(value, int | float) and not isinstance(value, bool)
            if not fits:
                wanted = "text" if default is None else type(default).__name__
                raise ConfigError(f"prompt_selection: {key}={value!r} must be of type {wanted}")
        found = cls(**block)
        found._check()
        return found

    def _check(self) -> None:
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ConfigError(
                f"prompt_selection: 0 <= min_pass_rate={self.min_pass_rate} <= max_pass_rate={self.max_pass_rate} <= 1 "
                "must hold"
            )
        for name in ("replay_hard", "hard_pass_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"prompt_selection: {name}={getattr(self, name)} must be from 0 to 1")
        if not 0 < self.ema <= 1 or self.after < 1 or self.return_after < 0 or self.priority_floor <= 0:
            raise ConfigError(
                f"prompt_selection: ema={self.ema} must be above 0 and at most 1, after={self.after} at least 1, "
                f"return_after={self.return_after} not negative, priority_floor={self.priority_floor} above 0"
            )
        if self.curriculum not in get_args(Curriculum):
            raise ConfigError(
                f"prompt_selection: curriculum={self.curriculum!r} must be one of {', '.join(get_args(Curriculum))}"
            )
        banded = self.min_pass_rate > 0 or self.max_pass_rate < 1
        if self.priority and (self.curriculum != "none" or self.replay_hard or banded):
            raise ConfigError(
                "prompt_selection: priority draws from all rows by their weights; leave out curriculum, replay_hard, "
                "min_pass_rate and max_pass_rate"
            )
        if self.difficulty is not None and self.curriculum == "none":
            raise ConfigError("prompt_selection: difficulty is what a curriculum goes by: set curriculum: easy_first")


@dataclass
class _Record:
    """rate: moving average of the pass rate. seen: groups judged. out_since: epoch in which the row was left out."""

    rate: float
    seen: int = 1
    out_since: int | None = None


class PromptSelection:
    """Draws rows by what was observed of them; a pure function of the observations and the number of rows drawn before.

    Args:
        options: the block. rows: number of training rows. seed, shuffle: of the run.
        difficulty: one number per row, where the block names a column.
        value: a row's pass rate as something else tracks it (SPO's values), for `priority`.
    """

    def __init__(
        self,
        options: SelectionOptions,
        rows: int,
        seed: int,
        shuffle: bool,
        difficulty: Sequence[float] | None = None,
        value: Callable[[int], float] | None = None,
    ) -> None:
        self.options, self.rows, self.seed, self.shuffle = options, rows, seed, shuffle
        self.difficulty, self.value = difficulty, value or self._rate
        self._records: dict[int, _Record] = {}
        self._epoch, self._left = -1, list[int]()
        self._replayed, self._active, self._warned = 0, rows, False

    def draw(self, n: int, drawn: int) -> list[int]:
        """The next n rows. drawn: how many were drawn before, by which random draws are seeded."""
        if self.options.priority:
            return self._by_priority(n, drawn)
        share = self.options.replay_hard
        again = math.floor((drawn + n) * share + 1e-9) - math.floor(drawn * share + 1e-9)
        fresh = self._fresh(n - again)
        replayed = self._hard(again, drawn, set(fresh))
        self._replayed += len(replayed)
        return fresh + self._fresh(again - len(replayed)) + replayed

    def observe(self, rows: Sequence[int], passes: Sequence[float]) -> None:
        """Take in a rollout: the row and the pass (0 … 1; nan: not judged) of each completion of all processes."""
        judged: dict[int, list[float]] = {}
        for row, value in zip(rows, passes, strict=True):
            if not math.isnan(value):
                judged.setdefault(row, []).append(min(max(value, 0.0), 1.0))
        for row, values in judged.items():
            rate = math.fsum(values) / len(values)
            record = self._records.get(row)
            if record is None:
                self._records[row] = _Record(rate)
            else:
                record.rate += self.options.ema * (rate - record.rate)
                record.seen += 1

    def metrics(self) -> dict[str, float]:
        """Rows that were never asked, that are too hard, too easy, or in this epoch's share; prompts asked again."""
        records, options = self._records.values(), self.options
        old = [record.rate for record in records if record.seen >= options.after]
        return {
            "prompts/active": float(self._active),
            "prompts/unseen": float(self.rows - len(self._records)),
            "prompts/too_hard": float(sum(rate < options.min_pass_rate for rate in old)),
            "prompts/too_easy": float(sum(rate > options.max_pass_rate for rate in old)),
            "prompts/pass_rate": math.fsum(r.rate for r in records) / len(records) if records else math.nan,
            "prompts/replayed": float(self._replayed),
        }

    def _rate(self, row: int) -> float:
        """A row's pass rate; undecided where it was never asked."""
        return self._records[row].rate if row in self._records else 0.5

    def _in_band(self, rate: float) -> bool:
        return self.options.min_pass_rate <= rate <= self.options.max_pass_rate

    def _may_be_asked(self, row: int) -> bool:
        """In the epoch that begins. A row that was out for long enough is let in once; then its new rate decides."""
        record = self._records.get(row)
        if record is None or record.seen < self.options.after or self._in_band(record.rate):
            if record is not None:
                record.out_since = None
            return True
        if record.out_since is None:
            record.out_since = self._epoch
        if self.options.return_after and self._epoch - record.out_since >= self.options.return_after:
            record.out_since = None
            return True
        return False

    def _fresh(self, n: int) -> list[int]:
        """The next n rows of this epoch, and of the next where it ends."""
        rows: list[int] = []
        while len(rows) < n:
            if not self._left:
                self._begin_epoch()
            wanted = n - len(rows)
            rows, self._left = rows + self._left[:wanted], self._left[wanted:]
        return rows

    def _begin_epoch(self) -> None:
        self._epoch += 1
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(self.rows)
        active = [row for row in map(int, order) if self._may_be_asked(row)]
        self._active = len(active)
        if not active:
            if not self._warned:
                log.warning(
                    "prompt_selection: no row's pass rate is between %s and %s, so all are asked again; widen the band",
                    self.options.min_pass_rate,
                    self.options.max_pass_rate,
                )
            self._warned, active = True, [int(row) for row in order]
        if self.options.curriculum != "none":
            sign = 1.0 if self.options.curriculum == "easy_first" else -1.0
            active.sort(key=lambda row: sign * self._hardness(row))  # stable: ties stay shuffled
        self._left = active

    def _hardness(self, row: int) -> float:
        return self.difficulty[row] if self.difficulty is not None else 1 - self._rate(row)

    def _hard(self, n: int, drawn: int, besides: set[int]) -> list[int]:
        """At most n different rows that are solved sometimes, but seldom."""
        if n == 0:
            return []
        bound = self.options.hard_pass_rate
        hard = sorted(row for row, r in self._records.items() if 0 < r.rate <= bound and row not in besides)
        chosen = np.random.default_rng([self.seed, 1, drawn]).permutation(len(hard))[:n]
        return [hard[i] for i in chosen]

    def _by_priority(self, n: int, drawn: int) -> list[int]:
        """n rows, all different where there are as many, by weight."""
        rows = np.arange(self.rows)
        rates = np.array([min(max(self.value(row), 0.0), 1.0) for row in range(self.rows)])
        weights = np.sqrt(rates * (1 - rates)) + self.options.priority_floor
        generator, out = np.random.default_rng([self.seed, 2, drawn]), list[int]()
        while len(out) < n:
            part = min(n - len(out), self.rows)
            out += map(int, generator.choice(rows, part, replace=False, p=weights / weights.sum()))
        return out

    def state_dict(self) -> dict[str, Any]:
        """See mmreason.trainers.state.Stateful."""
        records = {str(row): [r.rate, r.seen, r.out_since] for row, r in self._records.items()}
        left = [self._epoch, self._active, self._replayed, self._warned]
        return {"records": records, "counts": left, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._records = {int(row): _Record(*kept) for row, kept in state["records"].items()}
        self._epoch, self._active, self._replayed, self._warned = state["counts"]
        self._left = list(state["left"])
