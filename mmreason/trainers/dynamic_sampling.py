"""DAPO's dynamic sampling: groups that teach nothing are replaced by those of further prompts, over all processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmreason.losses.advantages import without_signal
from mmreason.rewards.run import RewardBatch
from mmreason.rollout.types import Completion
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.rewarding import Rewarder

log = logging.getLogger(__name__)


@dataclass
class Drawn:
    """This process's completions of one draw, and what they were rewarded with. All have one entry per completion."""

    samples: Samples
    completions: list[Completion]
    texts: list[str]
    rewards: RewardBatch

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, indices: Sequence[int]) -> Drawn:
        """The completions at these places, in this order."""
        samples = {f.name: _picked(getattr(self.samples, f.name), indices) for f in fields(Samples)}
        at, old = np.asarray(indices, dtype=int), self.rewards
        rewards = RewardBatch(
            old.names,
            old.per_func[at],
            old.total[at],
            old.seconds,
            {name: _picked(values, indices) for name, values in old.extra.items()},
            old.metrics,
        )
        return Drawn(Samples(**samples), _picked(self.completions, indices), _picked(self.texts, indices), rewards)

    @staticmethod
    def joined(parts: Sequence[Drawn]) -> Drawn:
        """Several draws as one. A column that one of them lacks is None there."""
        apart = any(part.samples.sampled for part in parts)
        for part in parts:
            if apart and not part.samples.sampled:
                part.samples.sampled = [[True] * len(ids) for ids in part.samples.completion_ids]
        samples = {f.name: [x for part in parts for x in getattr(part.samples, f.name)] for f in fields(Samples)}
        extra = {name: [] for part in parts for name in part.rewards.extra}  # type: dict[str, list[Any]]
        for name, column in extra.items():
            for part in parts:
                column += part.rewards.extra.get(name) or [None] * len(part)
        rewards = RewardBatch(
            parts[0].rewards.names,
            np.concatenate([part.rewards.per_func for part in parts]),
            np.concatenate([part.rewards.total for part in parts]),
            np.sum([part.rewards.seconds for part in parts], axis=0),
            extra,
        )
        completions = [completion for part in parts for completion in part.completions]
        return Drawn(Samples(**samples), completions, [text for part in parts for text in part.texts], rewards)


def _picked(values: list[Any], indices: Sequence[int]) -> list[Any]:
    return [values[i] for i in indices] if values else []


def placed(holders: Sequence[int], size: int) -> list[int]:
    """Which process each of n pieces goes to, n / size to each, as few as possible leaving the one that holds them.

    Args: holders: of each piece. size: number of processes, a divisor of n.
    """
    quota = [len(holders) // size] * size
    targets = [-1] * len(holders)
    for i, holder in enumerate(holders):
        if quota[holder]:
            targets[i], quota[holder] = holder, quota[holder] - 1
    free = [rank for rank in range(size) for _ in range(quota[rank])]
    for i, target in enumerate(targets):
        if target < 0:
            targets[i] = free.pop(0)
    return targets


@dataclass(frozen=True)
class Filled:
    """A rollout of groups that teach something.

    drawn: of this process. per_func: (N, R) rewards of all. metrics: for metrics.jsonl. left_out: completions and their
    tokens, of all processes, that were sampled and not used.
    """

    drawn: Drawn
    per_func: Tensor
    metrics: dict[str, float]
    left_out: tuple[int, int]


class DynamicSampling:
    """Asks further prompts until a rollout is full of groups whose rewards differ (arXiv 2503.14476 sec. 3.2, eq. 11).

    Groups are counted in the order in which their prompts were asked, over all processes, and the first that suffice
    are taken, so the choice doesn't depend on who sampled what. Whole groups then stay with the process that holds them
    where they can; what is left moves to those that lack some. Images stay in the dataset: a row's number is enough.

    Args: args: resolved options. rewarder: knows which rewards have to differ within a group.
    """

    def __init__(self, args: PolicyConfig, rewarder: Rewarder, parallel: DataParallel) -> None:
        self.groups, self.num_generations, self.parallel = args.groups_per_rollout, args.num_generations, parallel
        self.max_rounds = args.dynamic_sampling_max_rounds
        self.values = rewarder.values("dynamic_sampling_reward", args.dynamic_sampling_reward)
        self.whole = self.groups % parallel.size == 0  # no group is spread over processes
        self._warned = False

    def fill(self, draw: Callable[[int, int], tuple[Drawn, Tensor]]) -> Filled:
        """A full rollout (collective).

        Args: draw: (number of groups, round) → this process's share of their completions, and the rewards of all
            processes (N, R).
        """
        rounds: list[Drawn] = []
        holders, signal = list[int](), list[bool]()  # of each piece, of each group, in the order of asking
        while True:
            asked = self._to_ask(signal)
            part, per_func = draw(asked, len(rounds))
            rounds.append(part)
            holders += [rank for rank in range(self.parallel.size) for _ in range(len(part) // self._piece)]
            signal += (~without_signal(self.values(per_func), self.num_generations)).tolist()
            if sum(signal) >= self.groups or len(rounds) == self.max_rounds:
                break
        chosen = self._chosen(signal)
        drawn = self._exchanged(Drawn.joined(rounds), holders, chosen)
        useful = sum(signal)
        metrics = {
            "dynamic_sampling/rounds": float(len(rounds)),
            "dynamic_sampling/prompts": float(len(signal)),
            "dynamic_sampling/useful_share": useful / len(signal),
            "dynamic_sampling/surplus": float(max(useful - self.groups, 0)),
            "dynamic_sampling/missing": float(max(self.groups - useful, 0)),
        }
        device = self.parallel.accelerator.device
        per_func = self.parallel.gather(torch.tensor(drawn.rewards.per_func, device=device))
        return Filled(drawn, per_func, metrics, self._left_out(rounds, drawn))

    @property
    def _piece(self) -> int:
        """Completions that stay together when they move: a group, or one where groups are spread over processes."""
        return self.num_generations if self.whole else 1

    def _to_ask(self, signal: Sequence[bool]) -> int:
        """Groups of the next round: all at first, then as many as will probably do; each process samples as many."""
        if not signal:
            return self.groups
        size, missing = self.parallel.size, self.groups - sum(signal)
        unit = size if self.whole else size // math.gcd(size, self.num_generations)
        likely = math.ceil(missing * len(signal) / max(sum(signal), 1))
        return min(self.groups, math.ceil(likely / unit) * unit)

    def _chosen(self, signal: Sequence[bool]) -> list[int]:
        """Groups of the rollout, in the order of asking: useful ones, then, where there are too few, others."""
        useful = [group for group, there in enumerate(signal) if there][: self.groups]
        missing = self.groups - len(useful)
        if missing and not self._warned and self.parallel.rank == 0:
            self._warned = True
            log.warning(
                "dynamic_sampling: after %d rounds only %d of %d groups have rewards that differ; the rollout goes on "
                "with groups that teach nothing. The problems are too hard or too easy for the policy: see "
                "dynamic_sampling/useful_share in metrics.jsonl, prompt_selection, dynamic_sampling_max_rounds",
                self.max_rounds,
                len(useful),
                self.groups,
            )
        others = [group for group, there in enumerate(signal) if not there][:missing]
        return useful + others

    def _exchanged(self, mine: Drawn, holders: Sequence[int], chosen: Sequence[int]) -> Drawn:
        """This process's share of the chosen groups. mine: its completions of all rounds, in the order of asking."""
        per_group = self.num_generations // self._piece
        pieces = [group * per_group + i for group in chosen for i in range(per_group)]
        size, rank = self.parallel.size, self.parallel.rank
        from_ranks = [holders[piece] for piece in pieces]
        # Where a group is spread, its completions have to lie in the order of processes; else any place will do.
        per_rank = len(pieces) // size
        targets = placed(from_ranks, size) if self.whole else [i // per_rank for i in range(len(pieces))]
        place: dict[int, int] = {}  # piece → its place among those that this process holds
        for piece, holder in enumerate(holders):
            if holder == rank:
                place[piece] = len(place)

        def of(piece: int) -> Drawn:
            start = place[piece] * self._piece
            return mine.take(range(start, start + self._piece))

        moving = [i for i, (holder, to) in enumerate(zip(from_ranks, targets, strict=True)) if holder != to]
        sent: dict[int, Drawn] = {}
        if moving:
            sent = dict(self.parallel.gather_objects([(i, of(pieces[i])) for i in moving if from_ranks[i] == rank]))
        kept = [i for i, to in enumerate(targets) if to == rank]
        return Drawn.joined([sent[i] if i in sent else of(pieces[i]) for i in kept])

    def _left_out(self, rounds: Sequence[Drawn], used: Drawn) -> tuple[int, int]:
        """(completions, tokens) of all processes that were sampled and not used."""
        counts = [
            sum(len(part) for part in rounds) - len(used),
            sum(len(ids) for part in rounds for ids in part.samples.completion_ids)
            - sum(len(ids) for ids in used.samples.completion_ids),
        ]
        device = self.parallel.accelerator.device
        completions, tokens = self.parallel.gather(torch.tensor([counts], device=device)).sum(0).tolist()
        return completions, tokens
