"""Groups that teach nothing are replaced: which are taken, where they end up, and what is said when none is left."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.rewards.run import RewardBatch
from mmreason.rollout.types import Completion
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.dynamic_sampling import Drawn, DynamicSampling, Filled, placed
from mmreason.trainers.rewarding import Rewarder
from mmreason.trainers.state import RunState
from mmreason.types import ConfigError
from tests.trainers.threads import on_ranks


def accuracy_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def length_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


REWARDER = Rewarder(None, [accuracy_reward, length_reward], [1.0, 0.5], RunState())


def options(size: int, groups: int, g: int, rounds: int = 10, **more: Any) -> PolicyConfig:
    args = PolicyConfig(
        num_generations=g, per_device_train_batch_size=groups * g // size, dynamic_sampling=True,
        dynamic_sampling_max_rounds=rounds, **more,
    )  # fmt: skip
    args.resolve(size)
    assert args.groups_per_rollout == groups
    return args


class Asked:
    """Stands for engine and rewards on one process: completion i of prompt p is [p, i]; `useful` groups differ."""

    def __init__(self, parallel: Any, g: int, useful: list[bool], by_length: bool = False) -> None:
        self.parallel, self.g, self.useful, self.by_length = parallel, g, useful, by_length
        self.prompts, self.rounds = 0, list[int]()

    def __call__(self, groups: int, number: int) -> tuple[Drawn, torch.Tensor]:
        assert number == len(self.rounds) and groups * self.g % self.parallel.size == 0
        local = groups * self.g // self.parallel.size
        slots = range(self.parallel.rank * local, (self.parallel.rank + 1) * local)
        mine = [(self.prompts + slot // self.g, slot % self.g) for slot in slots]
        self.prompts += groups
        self.rounds.append(groups)
        per_func = np.array([[float(self._useful(p) and i == 0), float(self.by_length and i)] for p, i in mine])
        drawn = [Completion([p, i], [-0.5 * i, -1.0], i == 1) for p, i in mine]
        rewards = RewardBatch(
            ("accuracy_reward", "length_reward"), per_func, per_func @ [1.0, 0.5], np.zeros(2),
            {"verdict": [f"{p}/{i}" for p, i in mine]},
        )  # fmt: skip
        samples = Samples.of([p for p, _ in mine], {p: [p] for p, _ in mine}, drawn, False)  # type: ignore[arg-type]
        found = Drawn(samples, drawn, [f"{p} {i}" for p, i in mine], rewards)
        return found, self.parallel.gather(torch.tensor(per_func))

    def _useful(self, prompt: int) -> bool:
        return self.useful[prompt % len(self.useful)]


def fill(size: int, groups: int, g: int, useful: list[bool], rounds: int = 10, **more: Any) -> list[Any]:
    """(filled, rounds asked) on each process."""

    def work(parallel: Any) -> tuple[Filled, list[int]]:
        asked = Asked(parallel, g, useful, by_length=more.pop("by_length", False))
        sampling = DynamicSampling(options(size, groups, g, rounds, **more), REWARDER, parallel)
        return sampling.fill(asked), asked.rounds

    return on_ranks(size, work)


shapes = st.integers(1, 4).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, 3), st.integers(2, 4), st.booleans())
)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, useful=st.lists(st.booleans(), min_size=1, max_size=40), rounds=st.integers(1, 6))
def test_the_first_useful_groups_are_taken_whoever_sampled_them(
    shape: tuple[int, int, int, bool], useful: list[bool], rounds: int
) -> None:
    size, each, g, spread = shape
    groups, g = (each, g * size) if spread else (each * size, g)  # spread: a group lies on several processes
    found = fill(size, groups, g, useful, rounds)
    assert len({tuple(asked) for _, asked in found}) == 1, "processes asked for different numbers of prompts"
    prompts = sum(found[0][1])
    there = [p for p in range(prompts) if useful[p % len(useful)]]
    expected = (there + [p for p in range(prompts) if p not in there])[:groups]
    flat = [tuple(ids) for filled, _ in found for ids in filled.drawn.samples.completion_ids]
    # Whole groups next to each other, every completion once, the same groups whatever the number of processes.
    assert [p for p, _ in itertools.groupby(flat, key=lambda ids: ids[0])] == [
        flat[i][0] for i in range(0, len(flat), g)
    ]
    assert [i for _, i in flat] == list(range(g)) * groups
    assert sorted({p for p, _ in flat}) == sorted(expected)
    for filled, asked in found:
        drawn = filled.drawn
        assert len(drawn) == groups * g // size
        # All that belongs to a completion went with it: its row (and so its images), text, rewards and verdict.
        for k, (p, i) in enumerate(drawn.samples.completion_ids):
            assert drawn.samples.rows[k] == p and drawn.texts[k] == f"{p} {i}"
            assert drawn.samples.sampling_logps[k] == [-0.5 * i, -1.0] and drawn.samples.truncated[k] == (i == 1)
            assert drawn.rewards.extra["verdict"][k] == f"{p}/{i}" and drawn.completions[k].token_ids == [p, i]
            assert drawn.rewards.per_func[k, 0] == float(useful[p % len(useful)] and i == 0)
        every = torch.tensor(np.concatenate([one.drawn.rewards.per_func for one, _ in found]))
        assert torch.equal(filled.per_func, every)
        assert filled.left_out == ((prompts - groups) * g, (prompts - groups) * g * 2)
        assert filled.metrics["dynamic_sampling/prompts"] == prompts
        assert filled.metrics["dynamic_sampling/rounds"] == len(asked) <= rounds
        assert filled.metrics["dynamic_sampling/useful_share"] == pytest.approx(len(there) / prompts)
        assert filled.metrics["dynamic_sampling/missing"] == max(groups - len(there), 0)
        assert filled.metrics["dynamic_sampling/surplus"] == max(len(there) - groups, 0)
    assert len(there) >= groups or len(found[0][1]) == rounds, "it gave up too early"


def test_a_rollout_that_is_full_at_once_asks_once() -> None:
    ((filled, asked),) = fill(1, 4, 2, [True])
    assert asked == [4] and filled.left_out == (0, 0)
    assert [p for p, _ in filled.drawn.samples.completion_ids] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_later_rounds_ask_as_many_as_will_probably_do() -> None:
    """Half of the groups teach something: 4 of 8 are missing after the first round, so 8 more are asked, not 4."""
    ((filled, asked),) = fill(1, 8, 2, [True, False])
    assert asked == [8, 8]
    ((filled, asked),) = fill(1, 8, 2, [True] * 7 + [False])
    assert asked == [8, 2] and filled.metrics["dynamic_sampling/surplus"] == 1


def test_it_goes_on_and_says_so_when_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ((filled, asked),) = fill(1, 4, 2, [False, False, False, True], rounds=2)
    assert asked == [4, 4] and filled.metrics["dynamic_sampling/missing"] == 2
    assert [p for p, _ in filled.drawn.samples.completion_ids][::2] == [3, 7, 0, 1]
    assert "after 2 rounds only 2 of 4 groups" in caplog.text and "prompt_selection" in caplog.text


def test_equality_can_be_that_of_one_reward() -> None:
    """DAPO asks for right and wrong answers in a group (eq. 11); a length penalty tells all of them apart."""
    assert fill(1, 4, 2, [True, False], by_length=True)[0][1] == [4]
    assert fill(1, 4, 2, [True, False], by_length=True, dynamic_sampling_reward="accuracy")[0][1] == [4, 4]
    with pytest.raises(
        ConfigError, match=r"dynamic_sampling_reward: 'acuracy' is none of .* accuracy_reward, length_reward"
    ):
        fill(1, 4, 2, [True], dynamic_sampling_reward="acuracy")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(1, 6), each=st.integers(0, 6))
def test_pieces_stay_where_they_can(data: st.DataObject, size: int, each: int) -> None:
    holders = data.draw(st.lists(st.integers(0, size - 1), min_size=size * each, max_size=size * each))
    targets = placed(holders, size)
    assert all(targets.count(rank) == each for rank in range(size))
    moved = sum(holder != target for holder, target in zip(holders, targets, strict=True))
    assert moved == sum(max(holders.count(rank) - each, 0) for rank in range(size))
