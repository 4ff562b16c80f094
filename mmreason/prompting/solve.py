"""Running strategies: one problem, or many side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy
from mmreason.prompting.types import Outcome, Problem, Sample, Solution
from mmreason.types import ConfigError


async def solve(strategy: Strategy, problem: Problem, sample: Sample) -> Outcome:
    """Solve one problem.

    Raises: whatever the sampler raises; DataError where the problem lacks what the strategy needs.
    """
    outcome = await _attempt(strategy, problem, sample)
    if outcome.error is not None:
        raise outcome.error
    return outcome


async def solve_each(
    strategy: Strategy, problems: Iterable[Problem], sample: Sample, *, concurrency: int = 64
) -> AsyncIterator[tuple[int, Outcome]]:
    """(index of the problem, its outcome) as they are done; no more than `concurrency` are under way.

    A problem that fails has its exception in `Outcome.error`, and doesn't disturb the others. Problems are taken from
    the iterable as places get free. Closing the iterator cancels what is under way.

    Raises: ConfigError for a concurrency below 1.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    waiting = enumerate(problems)
    running: dict[asyncio.Task[Outcome], int] = {}
    try:
        while True:
            while len(running) < concurrency and (entry := next(waiting, None)) is not None:
                running[asyncio.create_task(_attempt(strategy, entry[1], sample))] = entry[0]
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=running.__getitem__):
                yield running.pop(task), task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def solve_all(
    strategy: Strategy, problems: Iterable[Problem], sample: Sample, *, concurrency: int = 64
) -> list[Outcome]:
    """The outcomes of all problems, in their order; see `solve_each`."""
    found = {i: outcome async for i, outcome in solve_each(strategy, problems, sample, concurrency=concurrency)}
    return [found[i] for i in range(len(found))]


async def _attempt(strategy: Strategy, problem: Problem, sample: Sample) -> Outcome:
    session = Session(problem, sample, temperature=strategy.temperature, max_tokens=strategy.max_tokens)
    try:
        return session.outcome(await strategy.run(problem, session))
    except Exception as error:  # whatever ends one problem; the others go on, and what was paid for is kept
        return session.outcome(Solution(answer=None, text=""), error)
