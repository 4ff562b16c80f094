"""What will it cost? A pilot of a few rows, which the ledger keeps, and what follows from it for the rest."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmreason.clients.ledger import Ledger
from mmreason.clients.prices import to_dollars
from mmreason.clients.run import Remembering, Tally, complete_all
from mmreason.clients.types import Reply, Request

PILOT = 50
"""Rows of a pilot."""

_Z_975 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Quote:
    """A pilot, and its extrapolation. Amounts are US dollars.

    Attributes:
        rows: requests in all, `known` of them in the ledger before the pilot.
        pilot: outcomes of the pilot, counted.
        spent: what the pilot cost, unusable and doubtful replies included.
        seconds: that the pilot took.
        rest: requests that are left to ask.
        expected, low, high: of the rest, with the 95 % prediction interval of the sum; None with fewer than 3 answers.
        prompt_tokens, completion_tokens: expected of the rest.
        rest_seconds: expected of the rest, from the latency of the pilot and the concurrency.
        accepted: rows of the pilot that `accept` took; None without one.
        per_accepted: `spent` for each of these; None without any.
    """

    rows: int
    known: int
    pilot: Tally
    spent: float
    seconds: float
    rest: int
    expected: float | None
    low: float | None
    high: float | None
    prompt_tokens: float
    completion_tokens: float
    rest_seconds: float
    accepted: int | None
    per_accepted: float | None

    def describe(self) -> str:
        """Some lines for a person."""
        lines = [
            f"{self.rows} requests, {self.known} of them answered in the ledger",
            f"pilot: {self.pilot.describe()}; ${self.spent:.4g} in all, in {self.seconds:.0f} s",
        ]
        if self.expected is None:
            lines.append("the pilot has too few answers for an estimate")
        else:
            lines += [
                f"the other {self.rest}: ${self.expected:.4g} (95 % interval ${self.low:.4g} to ${self.high:.4g})",
                f"tokens: {self.prompt_tokens:,.0f} in, {self.completion_tokens:,.0f} out; "
                f"time: about {_duration(self.rest_seconds)}",
            ]
        if self.accepted is not None:
            each = "" if self.per_accepted is None else f", ${self.per_accepted:.4g} for each"
            lines.append(f"accepted: {self.accepted} of {self.pilot.answered} answers{each}")
        return "\n".join(lines)


async def quote(
    completer: Remembering,
    requests: Sequence[Request],
    *,
    ledger: Ledger,
    concurrency: int,
    pilot: int = PILOT,
    seed: int = 0,
    accept: Callable[[Request, Reply], bool] | None = None,
    progress: str | None = None,
) -> Quote:
    """Ask a random sample of what isn't known yet, and extrapolate.

    The interval is that of a sum of n_rest further draws from what n_pilot draws were taken from, with Student's t:
    n_rest * (mean ± t * s * sqrt(1/n_pilot + 1/n_rest)), not below 0. It takes the rows for alike; it can't know of a
    rare row that costs a hundred times the others.

    Args:
        completer: with prices, or there is nothing to tell.
        requests: all of them.
        ledger: the completer's; it knows what unusable replies cost.
        concurrency: with which the rest will be asked.
        pilot: rows to ask now. seed: of the sample.
        accept: whether a reply is one that the caller would keep.
        progress: the name of a progress bar.
    """
    unknown = [request for request in requests if completer.known(request) is None]
    chosen = random.Random(f"quote {seed}").sample(unknown, min(pilot, len(unknown)))
    before, start, tally = ledger.account().spent, time.monotonic(), Tally()
    outcomes = [outcome async for outcome in complete_all(completer, chosen, progress=progress)]
    seconds = time.monotonic() - start
    for outcome in outcomes:
        tally.add(outcome)
    replies = [(outcome.request, outcome.reply) for outcome in outcomes if outcome.reply is not None]
    rest = len(unknown) - len(chosen)
    spent = to_dollars(ledger.account().spent - before)
    # What failed rows cost is known in sum only: it is laid on the others in proportion.
    scale = spent / tally.dollars if tally.dollars else 1.0
    costs = [scale * (reply.cost or 0.0) for _, reply in replies] + [0.0] * tally.failed.total()
    bounds = interval(costs, rest) if replies else None
    expected, low, high = bounds if bounds is not None else (None, None, None)
    asked = max(1, len(chosen))
    accepted = None if accept is None else sum(accept(*pair) for pair in replies)
    latency = statistics.fmean([reply.seconds for _, reply in replies] or [0.0])
    return Quote(
        rows=len(requests),
        known=len(requests) - len(unknown),
        pilot=tally,
        spent=spent,
        seconds=seconds,
        rest=rest,
        expected=expected,
        low=low,
        high=high,
        prompt_tokens=rest * tally.prompt_tokens / asked,
        completion_tokens=rest * tally.completion_tokens / asked,
        rest_seconds=math.ceil(rest / concurrency) * latency,
        accepted=accepted,
        per_accepted=spent / accepted if accepted else None,
    )


def interval(costs: Sequence[float], rest: int) -> tuple[float, float, float] | None:
    """(expected, low, high): the sum of `rest` further costs, with its 95 % prediction interval; None below 3 costs."""
    n = len(costs)
    if n < 3:
        return None
    mean, spread = statistics.fmean(costs), statistics.stdev(costs)
    half = student_t_975(n - 1) * spread * math.sqrt(1 / n + 1 / rest) * rest if rest else 0.0
    return rest * mean, max(0.0, rest * mean - half), rest * mean + half


def student_t_975(df: int) -> float:
    """The 97.5 % quantile of Student's t for df >= 2, within 0.5 %.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5; for df = 2 the closed form.
    """
    if df == 2:
        p = 2 * 0.975 - 1
        return p * math.sqrt(2 / (1 - p * p))
    z = _Z_975
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df**power for power, term in enumerate(terms, 1))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
