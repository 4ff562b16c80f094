"""The rewards of a rollout: each completion as messages, with the columns of its row, to every reward function."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmreason.losses.advantages import total_rewards
from mmreason.rewards.accuracy import judge
from mmreason.rewards.run import OnError, RewardBatch, compute_rewards, reward_name
from mmreason.rollout.types import Completion
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.environments import recorded_name
from mmreason.trainers.state import RunState
from mmreason.types import ConfigError


class Rewarder:
    """Scores completions of training rows.

    Args:
        dataset: the rows. funcs, weights, on_error, timeout: see `compute_rewards`.
        state: what rewards see as `trainer_state`. parallel: over whose processes failures are counted.
    """

    def __init__(
        self,
        dataset: Any,
        funcs: Sequence[Callable[..., Any]],
        weights: Sequence[float] | None,
        state: RunState,
        *,
        on_error: OnError = "stop",
        timeout: float | None = None,
        parallel: DataParallel | None = None,
    ) -> None:
        self.dataset, self.funcs, self.weights, self.state = dataset, list(funcs), weights, state
        self.on_error, self.timeout, self.parallel = on_error, timeout, parallel

    def __call__(
        self, samples: Samples, drawn: Sequence[Completion], texts: Sequence[str], metrics: dict[str, float]
    ) -> RewardBatch:
        """Args: drawn, texts: the completions of `samples`, as the engine gave them and as text."""
        columns = self._columns(samples.rows)
        for name in dict.fromkeys(name for completion in drawn for name in completion.columns):
            columns[name] = [completion.columns.get(name) for completion in drawn]
        prompts = columns.pop("prompt")
        completions = [
            _as_messages(completion, text) if isinstance(prompt, list) else text
            for prompt, completion, text in zip(prompts, drawn, texts, strict=True)
        ]
        rewards = compute_rewards(
            self.funcs,
            self.weights,
            prompts=prompts,
            completions=completions,
            completion_ids=samples.completion_ids,
            columns=columns,
            trainer_state=self.state,
            on_error=self.on_error,
            timeout=self.timeout,
        )
        self._count_failures(rewards, metrics)
        lost = [completion.failed is not None for completion in drawn]
        rewards.per_func[lost] = rewards.total[lost] = math.nan
        played = dict.fromkeys(name for completion in drawn for name in completion.columns)
        rewards.extra.update({recorded_name(name): columns[name] for name in played})
        if any(completion.messages is not None for completion in drawn):
            rewards.extra["messages"] = completions
        for name, seconds in zip(rewards.names, rewards.seconds.tolist(), strict=True):
            metrics[f"time/reward/{name}"] = metrics.get(f"time/reward/{name}", 0.0) + seconds
        metrics |= {name: sum(values) / len(values) for name, values in rewards.metrics.items()}
        if "answer" in columns and "verdict" not in rewards.extra:
            judged = judge(completions, columns["answer"], columns.get("meta"))
            rewards.extra["verdict"] = [None if j is None else str(j.verdict) for j in judged]
            rewards.extra["extracted"] = [None if j is None else j.answer for j in judged]
        return rewards

    def _count_failures(self, rewards: RewardBatch, metrics: dict[str, float]) -> None:
        """Add rewards/NAME/errors, the completions of this step that a failure took the reward from. Collective."""
        if self.on_error == "stop":
            return
        counts = torch.tensor([float(len(rewards.masked.get(name, ()))) for name in rewards.names])
        if self.parallel is not None:
            counts = self.parallel.sum(counts.to(self.parallel.accelerator.device))
        for name, count in zip(rewards.names, counts.tolist(), strict=True):
            metrics[f"rewards/{name}/errors"] = metrics.get(f"rewards/{name}/errors", 0.0) + count
        for name, failures in rewards.masked.items():
            row, why = failures[0]
            tqdm.write(
                f"WARNING: reward {name!r} failed on {len(failures)} of {len(rewards.total)} completions, which get no "
                f"reward from it (row {row}: {why})",
                file=sys.stderr,
            )

    @property
    def names(self) -> list[str]:
        """Metric names of the functions, in their order."""
        return [reward_name(func) for func in self.funcs]

    def values(self, option: str, name: str | None) -> Callable[[Tensor], Tensor]:
        """(N, R) rewards → (N,): those of one function, or the weighted sum of all; nan where there is none.

        Args: option: that names the function, for the error. name: as in reward_funcs; None: the weighted sum.
        """
        if name is None:
            weights = torch.tensor(self.weights or [1.0] * len(self.funcs))
            return lambda per_func: total_rewards(per_func.float(), weights.to(per_func.device))
        for column, known in enumerate(self.names):
            if known in (name, f"{name}_reward"):
                return lambda per_func: per_func[:, column].float()
        raise ConfigError(f"{option}: {name!r} is none of this run's rewards, which are {', '.join(self.names)}")

    def _columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        picked = [self.dataset[row] for row in dict.fromkeys(rows)]
        by_row = dict(zip(dict.fromkeys(rows), picked, strict=True))
        return {name: [by_row[row][name] for row in rows] for name in self.dataset.column_names}


def _as_messages(completion: Completion, text: str) -> list[dict[str, Any]]:
    if completion.messages is None:
        return [{"role": "assistant", "content": text}]
    return [dict(message) for message in completion.messages]
