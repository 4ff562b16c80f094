"""How strongly a drift from the reference is punished: a fixed coefficient, or one that holds the KL at a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class KLControl:
    """β, the coefficient of the KL: fixed, or proportionally controlled (arXiv 1909.08593 sec. 2.2).

    e = clip(KL / target - 1, -0.2, 0.2);  β ← β (1 + e · min(n / horizon, 1))

    One update changes β by at most the clipped error, a factor from 0.8 to 1.2, however many completions a rollout has:
    without that bound β would turn negative where n > 5 · horizon. A KL that isn't finite leaves β as it is.

    Args:
        value: the first β. target: KL of a completion, nats; None: β stays as it is.
        horizon: completions after which an error of 1 would have doubled β (the paper's K_β = n / horizon = 0.1).
    """

    def __init__(self, value: float, target: float | None = None, horizon: int = 10_000) -> None:
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Args: kl: mean over completions of the sum over their tokens, nats. completions: in the rollout measured."""
        if self.target is not None and math.isfinite(kl):
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * min(completions / self.horizon, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = float(state["value"]) if self.target is not None else self.value


class ScoreScaling:
    """Brings scores of any size to one size: running mean and deviation over all scores seen, then a bound.

    Mean and variance are put together batch by batch (Chan et al. 1979), so they are those of all scores at once.

    Args: scale: divide by the running standard deviation. norm: and subtract the running mean first. clip: bound of
        what comes out, None: none. Without scale and norm nothing but the bound applies.
    """

    def __init__(self, scale: bool, norm: bool, clip: float | None) -> None:
        self.scale, self.norm, self.clip = scale, norm, clip
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, scores: list[float]) -> None:
        """Args: scores: of all processes, the same on each."""
        if not scores:
            return
        n, mean = len(scores), sum(scores) / len(scores)
        gap, count = mean - self.mean, self.count + n
        self.squares += sum((s - mean) ** 2 for s in scores) + gap * gap * self.count * n / count
        self.mean += gap * n / count
        self.count = count

    def __call__(self, score: float) -> float:
        if self.scale:
            deviation = (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 1.0
            score = (score - self.mean if self.norm else score) / (deviation + 1e-8)
        return score if self.clip is None else min(max(score, -self.clip), self.clip)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])
