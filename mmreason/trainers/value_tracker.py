"""SPO's baseline: how often each prompt was solved of late, forgotten the faster the faster the policy moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError


@dataclass(frozen=True)
class TrackerOptions:
    """The `spo` block.

    rho_min, rho_max: bounds of the share of old evidence that an observation leaves. half_life: KL, nats per token,
    after which that share would be a half. prior: value of a prompt that was never asked; None: the mean of all that
    were. prior_weight: observations that it counts as. (The paper samples each prompt before training instead.)
    """

    rho_min: float = 0.875
    rho_max: float = 0.96
    half_life: float = 0.06
    prior: float | None = None
    prior_weight: float = 2.0

    @classmethod
    def of(cls, block: Mapping[str, Any] | None) -> TrackerOptions:
        """Raises ConfigError naming the key."""
        block = dict(block or {})
        names = [f.name for f in fields(cls)]
        for key, value in block.items():
            if key not in names:
                raise ConfigError(f"spo: unknown key {key!r}{did_you_mean(key, names)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number and not (key == "prior" and value is None):
                raise ConfigError(f"spo: {key}={value!r} must be a number")
        found = cls(**block)
        if not 0 <= found.rho_min <= found.rho_max < 1:
            raise ConfigError(f"spo: 0 <= rho_min={found.rho_min} <= rho_max={found.rho_max} < 1 must hold")
        if found.half_life <= 0 or found.prior_weight < 0:
            raise ConfigError(
                f"spo: half_life={found.half_life} must be above 0 and prior_weight={found.prior_weight} not below it"
            )
        return found


class ValueTracker:
    """The mean reward of each prompt under a policy that changes (SPO, arXiv 2509.13232 sec. 3.1).

    A success rate has a Beta(α, β) posterior with α = v n and β = (1 - v) n. An observation r first makes old evidence
    count less, n ← ρ n with ρ = 2^(-D / half_life) within [rho_min, rho_max], D being how far the policy moved since
    the prompt was asked last; then v ← v + (r - v) / (n + 1) and n ← n + 1. Rewards outside of 0 … 1 are tracked as
    means, too.

    D here is the sum of the KLs of the updates in between, nats per token. A KL is no distance, so it is an estimate.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self.drift = 0.0
        self._kept: dict[int, tuple[float, float, float]] = {}  # row → value, evidence, drift when it was asked last
        self._sum, self._count = 0.0, 0

    def __len__(self) -> int:
        """Prompts that were asked."""
        return len(self._kept)

    def moved(self, kl: float) -> None:
        """Tell how far an update of the policy went, nats per token."""
        self.drift += max(kl, 0.0)

    def value(self, row: int) -> float:
        """What a completion of the row is expected to be rewarded with."""
        return self._kept[row][0] if row in self._kept else self._prior()

    def observe(self, rows: Sequence[int], rewards: Sequence[float]) -> list[float]:
        """Take in a rollout: a row and a reward (nan: none) for each completion, of all processes.

        Returns: the values that stood before, one per completion: what is compared with a baseline may not be in it.
        """
        first = not self._count
        if first:  # nothing stands before it: its own mean, the same constant for all, is the baseline
            self._take_in(rewards)
        before = [self.value(row) for row in rows]
        if not first:
            self._take_in(rewards)
        known = dict(zip(rows, before, strict=True))
        for row, reward in zip(rows, rewards, strict=True):
            if math.isnan(reward):
                continue
            value, evidence, drift = self._kept.get(row, (known[row], self.options.prior_weight, self.drift))
            if row in self._kept:
                evidence *= self._forgetting(self.drift - drift)
            self._kept[row] = (value + (reward - value) / (evidence + 1), evidence + 1, self.drift)
        return before

    def _take_in(self, rewards: Sequence[float]) -> None:
        scored = [reward for reward in rewards if not math.isnan(reward)]
        self._sum, self._count = self._sum + math.fsum(scored), self._count + len(scored)

    def _prior(self) -> float:
        if self.options.prior is not None:
            return self.options.prior
        return self._sum / self._count if self._count else 0.5

    def _forgetting(self, moved: float) -> float:
        return min(max(2.0 ** (-moved / self.options.half_life), self.options.rho_min), self.options.rho_max)

    def state_dict(self) -> dict[str, Any]:
        """See mmreason.trainers.state.Stateful."""
        rows = {str(row): list(kept) for row, kept in self._kept.items()}
        return {"drift": self.drift, "sum": self._sum, "count": self._count, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.drift, self._sum, self._count = float(state["drift"]), float(state["sum"]), int(state["count"])
        self._kept = {int(row): (kept[0], kept[1], kept[2]) for row, kept in state["rows"].items()}
