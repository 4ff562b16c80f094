"""What will it cost? A random sample of the tasks is made, its replies stay in the ledger, and the rest follows."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_builders.building.prepare import Job
from data_builders.building.progress import duration
from data_builders.building.work import Outcome, attempt
from mmreason.clients.quote import PILOT, interval
from mmreason.clients.types import EndpointError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class BuildQuote:
    """A pilot, and its extrapolation; amounts in US dollars.

    Attributes:
        planned: tasks in all, None where the plan is open. left: of them not made yet, what the pilot made not among
            them.
        tasks: of the pilot. made: without those that failed, which say nothing of the others' cost. accepted: those
            that gave a row. rows: that they gave, before `keep`.
        failed: tasks without a reply, by kind.
        spent: what the pilot cost now, replies without use and tries in doubt among it.
        cost: what the tasks made cost in all, earlier replies from the ledger among it.
        expected, low, high: of the tasks that are left, with the 95 % prediction interval; None where unknown.
        seconds: expected of them.
    """

    planned: int | None
    left: int | None
    tasks: int
    made: int
    accepted: int
    rows: int
    failed: Counter[str]
    spent: float
    cost: float
    prompt_tokens: int
    completion_tokens: int
    expected: float | None
    low: float | None
    high: float | None
    seconds: float | None

    def describe(self) -> str:
        """Some lines for a person."""
        if not self.tasks:
            return "no task is left to be made"
        kinds = "".join(f", {count} failed ({kind})" for kind, count in self.failed.most_common())
        each = f", ${self.cost / self.rows:.4g} for a row" if self.rows else ""
        lines = [
            f"pilot: {self.tasks} tasks, {self.accepted} of them gave {self.rows} rows{kinds}; "
            f"${self.spent:.4g} spent now, ${self.cost:.4g} with what was paid earlier{each}"
        ]
        if not self.made:
            lines.append("no task has a reply, so nothing can be said of the others")
        elif self.left is None:
            lines.append(f"the plan is open; {PILOT} more tasks like these cost ${PILOT * self.cost / self.made:.4g}")
        elif self.expected is None:
            lines.append("the pilot has too few tasks for an estimate")
        else:
            share = self.left / self.made
            lines += [
                f"the other {self.left} tasks: ${self.expected:.4g} (95 % interval ${self.low:.4g} to "
                f"${self.high:.4g}), {share * self.rows:,.0f} rows before duplicates are dropped",
                f"tokens: {share * self.prompt_tokens:,.0f} in, {share * self.completion_tokens:,.0f} out; "
                f"time: about {duration(self.seconds or 0.0)}",
            ]
        return "\n".join(lines)


async def quote(job: Job, progress: bool, pilot: int = PILOT) -> BuildQuote:
    """Make a random sample of the tasks that are left (the first ones, where later ones depend on their rows).

    A task's cost is that of all its replies, whenever they were paid, so that a second quote says the same; and that of
    replies without use. The interval takes the tasks for alike, see `mmreason.clients.quote`.
    """
    if job.tasks is None:
        chosen, left = job.first_tasks(min(pilot, job.builder.round_size or pilot, job.options.limit or pilot)), None
        if job.options.limit is not None:
            left = job.options.limit - max(job.done_tasks, len(chosen))
    else:
        unmade = job.tasks[job.done_tasks :]
        chosen = random.Random(f"quote {job.options.seed}").sample(unmade, min(pilot, len(unmade)))
        left = len(unmade) - len(chosen)
    try:
        outcomes = await _make(job, chosen, progress)
    finally:
        await asyncio.gather(*(endpoint.aclose() for endpoint in job.endpoints))
    for outcome in outcomes:
        if outcome.error is not None and not isinstance(outcome.error, EndpointError):
            raise outcome.error
    return _extrapolate(job, outcomes, left)


async def _make(job: Job, tasks: Sequence[Any], progress: bool) -> list[Outcome]:
    from tqdm import tqdm

    slots = asyncio.Semaphore(job.options.concurrency)
    with tqdm(desc="pilot", total=len(tasks), unit="task", disable=not progress) as bar:

        async def one(task: Any) -> Outcome:
            async with slots:
                outcome = await attempt(job, task)
            bar.update()
            return outcome

        return list(await asyncio.gather(*(asyncio.create_task(one(task)) for task in tasks)))


def _extrapolate(job: Job, outcomes: Sequence[Outcome], left: int | None) -> BuildQuote:
    failed = Counter[str]()
    for outcome in outcomes:
        if isinstance(outcome.error, EndpointError) and _is_failed(outcome):
            failed[outcome.error.kind] += 1
    made = [outcome for outcome in outcomes if not _is_failed(outcome)]
    if left is not None and job.tasks is not None:
        left += failed.total()  # the run asks them again
    costs = [max(outcome.meter.dollars, 0.0) + _unused(outcome) for outcome in made]
    bounds = None if left is None else interval(costs, left)
    clean = [sum(hit is None for hit in outcome.hits) for outcome in made]
    seconds = statistics.fmean([outcome.seconds for outcome in made] or [0.0])
    expected, low, high = (None, None, None) if bounds is None else bounds
    return BuildQuote(
        planned=job.planned,
        left=left,
        tasks=len(outcomes),
        made=len(made),
        accepted=sum(map(bool, clean)),
        rows=sum(clean),
        failed=failed,
        spent=sum(outcome.meter.spent for outcome in outcomes),
        cost=sum(costs),
        prompt_tokens=sum(outcome.meter.prompt_tokens for outcome in made),
        completion_tokens=sum(outcome.meter.completion_tokens for outcome in made),
        expected=expected,
        low=low,
        high=high,
        seconds=None if left is None else math.ceil(left / job.options.concurrency) * seconds,
    )


def _is_failed(outcome: Outcome) -> bool:
    """As a run counts it: what the provider's filter refuses is dropped, and costs what it costs."""
    return isinstance(outcome.error, EndpointError) and outcome.error.kind != "refused"


def _unused(outcome: Outcome) -> float:
    """What a task has paid now for nothing: its spending without that of the replies that are new."""
    return max(0.0, outcome.meter.spent - outcome.meter.new_dollars)
