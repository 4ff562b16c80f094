"""Rollouts drawn beside the update, by an engine with weights of its own, at most `max_staleness` rollouts behind.

The engine gets new weights whenever it has nothing left to do, and then draws the next `max_staleness` rollouts while
the policy learns from those before. So rollout n + j was drawn with the weights that rollout n was about to change, for
j = 1 … max_staleness: which weights drew what depends on no clock, and a resumed run draws what the unbroken one drew.
The objective corrects for it: the ratio is taken to the policy as it was before this rollout's updates, and importance
weights lead from there to the policy that sampled (decoupled objective, arXiv 2505.24298 eq. 5).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmreason.rollout.types import Completion, Engine, Request, Sampling
from mmreason.trainers.state import CheckpointError


@dataclass(frozen=True)
class Asked:
    """What one draw asks.

    rows: of the groups of all processes. mine: of each completion of this process. requests: this process's, empty once
    they are on their way.
    """

    rows: list[int]
    mine: list[int]
    requests: Sequence[Request] = ()


@dataclass
class _Draw:
    number: int
    drawn_at: int  # the rollout that was to be learned from when the weights were taken
    asked: Asked
    groups: Future[list[list[Completion]]]


class RolloutsAhead:
    """Draws rollouts in a thread of its own.

    Args:
        engine: one that holds its own weights, and uses no collectives to generate.
        ask: gives what the next rollout asks. seed: of a rollout, by its number.
        max_staleness: at least 1. last: number of the last rollout, behind which nothing is drawn.
    """

    def __init__(
        self,
        engine: Engine,
        ask: Callable[[], Asked],
        sampling: Sampling,
        seed: Callable[[int], int],
        max_staleness: int,
        last: int,
    ) -> None:
        self.engine, self.ask, self.seed = engine, ask, seed
        # Generators of the whole process belong to the update, which runs beside.
        self.sampling = replace(sampling, own_generators=True)
        self.max_staleness, self.last = max_staleness, last
        self._ahead: deque[_Draw] = deque()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._worker = ThreadPoolExecutor(1, "rollouts", _begin_thread, (device,))

    def __len__(self) -> int:
        return len(self._ahead)

    def take(self, number: int) -> tuple[Asked, list[list[Completion]], int]:
        """(what a rollout asked, its completions, how many rollouts ago its weights were taken). Collective.

        Rollouts are taken in order.
        """
        if not self._ahead:
            self.engine.sync()
            self._draw(number, number)
        draw = self._ahead.popleft()
        if draw.number != number:
            raise ValueError(f"rollout {number} was asked for, but {draw.number} was drawn")
        groups = draw.groups.result()
        if not self._ahead and number < self.last:
            self.engine.sync()
            for ahead in range(number + 1, min(number + self.max_staleness, self.last) + 1):
                self._draw(ahead, number)
        return draw.asked, groups, number - draw.drawn_at

    def _draw(self, number: int, drawn_at: int) -> None:
        asked = self.ask()  # pictures are rendered here: their cache is not for two threads
        job = self._worker.submit(self.engine.generate, asked.requests, self.sampling, self.seed(number))
        self._ahead.append(_Draw(number, drawn_at, replace(asked, requests=()), job))

    def wait(self) -> None:
        """Until the engine is free for something else: an evaluation, a canary."""
        for draw in self._ahead:
            draw.groups.result()

    def close(self) -> None:
        """Give up what was not begun."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    # ---- in checkpoints: what was drawn and not yet learned from

    def save(self, path: Path) -> None:
        """Write this process's rollouts ahead, once they are drawn."""
        self.wait()
        draws = [
            {
                "number": draw.number,
                "drawn_at": draw.drawn_at,
                "asked": {"rows": draw.asked.rows, "mine": draw.asked.mine},
                "groups": [[vars(completion) for completion in group] for group in draw.groups.result()],
            }
            for draw in self._ahead
        ]
        path.write_text(json.dumps(draws), encoding="utf-8")

    def load(self, path: Path) -> None:
        """Read what `save` wrote. Raises CheckpointError naming the file."""
        try:
            self._ahead = deque(_from_json(one) for one in json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: the rollouts drawn ahead can't be read ({error!r}); name another checkpoint with --resume"
            ) from error


def _begin_thread(device: int | None) -> None:
    """A new thread begins on the first device, whichever is this process's."""
    if device is not None:
        torch.cuda.set_device(device)


def _from_json(found: dict[str, Any]) -> _Draw:
    done: Future[list[list[Completion]]] = Future()
    done.set_result([[Completion(**one) for one in group] for group in found["groups"]])
    return _Draw(int(found["number"]), int(found["drawn_at"]), Asked(**found["asked"]), done)
