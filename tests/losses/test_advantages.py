"""Advantages against a literal float64 loop, and against those of TRL's GRPOTrainer for the same rewards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.losses.advantages import (
    RewardAggregation,
    ScaleRewards,
    centred_in_group,
    group_advantages,
    leave_one_out,
    normalized,
    penalized_returns,
    total_rewards,
    without_signal,
)

NAN = float("nan")
EPS = 1e-4


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Over what is not nan; the standard deviation has n-1 in the denominator and is 0 for fewer than two values."""
    there = [v for v in values if not math.isnan(v)]
    if not there:
        return NAN, 0.0
    mean = sum(there) / len(there)
    if len(there) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in there) / (len(there) - 1))


def by_loop(
    rewards: Sequence[Sequence[float]], weights: Sequence[float], g: int, scale: str, aggregation: str
) -> tuple[list[float], list[float]]:
    """(advantages, total rewards), one completion after the other."""
    n, r = len(rewards), len(weights)

    def total(row: Sequence[float]) -> float:
        there = [w * x for w, x in zip(weights, row, strict=True) if not math.isnan(x)]
        return sum(there) if there else NAN

    totals = [total(row) for row in rewards]
    advantages = []
    if aggregation == "sum_then_normalize":
        for i in range(n):
            mean, std = mean_std(totals[i // g * g : i // g * g + g])
            if scale == "batch":
                std = mean_std(totals)[1]
            advantages.append((totals[i] - mean) / (1.0 if scale == "none" else std + EPS))
    else:
        normalised = [[NAN] * r for _ in range(n)]
        for i, k in itertools.product(range(n), range(r)):
            mean, std = mean_std([row[k] for row in rewards[i // g * g : i // g * g + g]])
            normalised[i][k] = (rewards[i][k] - mean) / (std + EPS)
        summed = [total(row) for row in normalised]
        mean, std = mean_std(summed)
        advantages = [(value - mean) / (std + EPS) for value in summed]
    return [0.0 if math.isnan(a) else a for a in advantages], totals


CHOICES: list[tuple[ScaleRewards, RewardAggregation]] = [
    ("group", "sum_then_normalize"),
    ("batch", "sum_then_normalize"),
    ("none", "sum_then_normalize"),
    ("group", "normalize_then_sum"),
]
reward = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-10, 10, width=32))


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    g=st.integers(1, 5),
    groups=st.integers(1, 4),
    funcs=st.integers(1, 3),
    choice=st.sampled_from(CHOICES),
)
def test_equals_a_loop(data: st.DataObject, g: int, groups: int, funcs: int, choice: Any) -> None:
    n = g * groups
    rewards = data.draw(st.lists(st.lists(reward, min_size=funcs, max_size=funcs), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=funcs, max_size=funcs))
    scale, aggregation = choice
    found = group_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        g,
        scale_rewards=scale,
        aggregation=aggregation,
    )
    advantages, totals = by_loop(rewards, weights, g, scale, aggregation)
    torch.testing.assert_close(found.advantages, torch.tensor(advantages, dtype=torch.float64), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found.rewards, torch.tensor(totals, dtype=torch.float64), equal_nan=True)
    groups = [{t for t in found.rewards[i : i + g].tolist() if not math.isnan(t)} for i in range(0, n, g)]
    assert found.zero_std.tolist() == [len(group) < 2 for group in groups]


def test_by_hand() -> None:
    """Two groups of two: the right one of a pair gets +1/√2 (std of {0, 1} is √½), a pair of equals gets 0."""
    found = group_advantages(torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.ones(1), 2)
    half = 0.5 / (math.sqrt(0.5) + EPS)
    assert found.advantages.tolist() == pytest.approx([half, -half, 0, 0])
    assert found.zero_std.tolist() == [False, True]
    unscaled = group_advantages(
        torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.tensor([3.0]), 2, scale_rewards="none"
    )
    assert unscaled.advantages.tolist() == [1.5, -1.5, 0, 0]


@pytest.mark.parametrize(("scale", "aggregation"), CHOICES)
def test_an_unscored_completion_moves_nothing(scale: ScaleRewards, aggregation: RewardAggregation) -> None:
    """Its advantage is 0, and its group's baseline is the mean of the others (2 here, not 4/3)."""
    rewards = torch.tensor([[3.0, NAN], [NAN, NAN], [1.0, NAN], [5.0, 1.0], [2.0, 0.0], [NAN, 0.5]])
    found = group_advantages(rewards, torch.ones(2), 3, scale_rewards=scale, aggregation=aggregation)
    assert found.advantages[1].item() == 0.0
    assert math.isnan(found.rewards[1].item()) and found.rewards[5].item() == 0.5
    assert not found.advantages.isnan().any()
    if scale == "none":
        assert found.advantages[:3].tolist() == [1.0, 0.0, -1.0]


def test_a_group_with_one_scored_completion_learns_nothing() -> None:
    rewards = torch.tensor([[NAN], [7.0], [NAN], [NAN], [NAN], [NAN]])
    found = group_advantages(rewards, torch.ones(1), 3)
    assert found.advantages.tolist() == [0.0] * 6
    assert found.zero_std.tolist() == [True, True]


@pytest.mark.parametrize(("scale", "aggregation"), CHOICES)
@pytest.mark.parametrize("g", [3, 7, 8, 16])
def test_equal_rewards_have_no_signal_in_float32(g: int, scale: ScaleRewards, aggregation: RewardAggregation) -> None:
    """The mean of eight times 0.3 is rounded; what is left of it is no reason to move. The other group is as it was."""
    for value in (0.3, 0.1, 0.7, 1.1, 123.4):
        equal = torch.tensor([value] * g + [value * i for i in range(g)])
        equal[1] = NAN
        found = group_advantages(equal[:, None], torch.ones(1), g, scale_rewards=scale, aggregation=aggregation)
        assert found.zero_std.tolist() == [True, False]
        assert found.advantages[:g].tolist() == [0.0] * g
        assert found.advantages[g:].abs().min() < found.advantages[g:].abs().max()
        assert without_signal(equal, g).tolist() == [True, False]
        assert leave_one_out(equal, g)[:g].nan_to_num(nan=0.0).tolist() == [0.0] * g
        assert centred_in_group(equal, g)[:g].nan_to_num(nan=0.0).tolist() == [0.0] * g


def test_equal_sums_of_different_rewards_still_move_where_each_is_normalised() -> None:
    """GDPO's point: (1, 0) and (0, 1) tell completions apart that their sum doesn't."""
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.3, 0.3], [0.3, 0.3], [0.3, 0.3]])
    found = group_advantages(rewards, torch.tensor([1.0, 1.0]), 3, aggregation="normalize_then_sum")
    assert found.zero_std.tolist() == [True, True] and found.advantages[3:].tolist() == [0.0] * 3
    one_sided = group_advantages(rewards, torch.tensor([1.0, 0.5]), 3, aggregation="normalize_then_sum")
    assert one_sided.advantages[0] > 0.5 > 0 > one_sided.advantages[1]
    assert one_sided.advantages[3:].tolist() == [0.0] * 3


def test_bad_arguments() -> None:
    rewards = torch.zeros(6, 1)
    with pytest.raises(ValueError, match="num_generations=4"):
        group_advantages(rewards, torch.ones(1), 4)
    with pytest.raises(ValueError, match="std"):
        group_advantages(rewards, torch.ones(1), 3, scale_rewards="std")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="average"):
        group_advantages(rewards, torch.ones(1), 3, aggregation="average")  # type: ignore[arg-type]


# -------------------- the other estimators


@settings(max_examples=150, deadline=None)
@given(rewards=st.lists(st.lists(reward, min_size=3, max_size=3), min_size=1, max_size=5))
def test_leave_one_out_equals_a_loop(rewards: list[list[float]]) -> None:
    flat = [value for row in rewards for value in row]
    found = leave_one_out(torch.tensor(flat, dtype=torch.float64), 3)
    for i, value in enumerate(flat):
        others = [flat[j] for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i and not math.isnan(flat[j])]
        if math.isnan(value) or not others:
            assert math.isnan(found[i].item())
        else:
            assert found[i].item() == pytest.approx(value - sum(others) / len(others), abs=1e-9)


def test_leave_one_out_is_the_group_mean_scaled() -> None:
    """r_i - mean of the others = G / (G - 1) (r_i - mean of all): RLOO and unscaled GRPO differ by a constant."""
    rewards = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 2.0, 7.0], dtype=torch.float64)
    plain = group_advantages(rewards[:, None], torch.ones(1), 4, scale_rewards="none").advantages
    torch.testing.assert_close(leave_one_out(rewards, 4), plain * 4 / 3)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(reward, min_size=1, max_size=12))
def test_normalized_equals_a_loop(values: list[float]) -> None:
    mean, std = mean_std(values)
    found = normalized(torch.tensor(values, dtype=torch.float64))
    expected = [0.0 if math.isnan(v) else (v - mean) / (std + EPS) for v in values]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-7)


def test_centred_in_group_and_signal() -> None:
    rewards = torch.tensor([1.0, 3.0, NAN, 5.0, 5.0, 5.0])
    torch.testing.assert_close(
        centred_in_group(rewards, 3), torch.tensor([-1.0, 1.0, NAN, 0.0, 0.0, 0.0]), equal_nan=True
    )
    assert without_signal(rewards, 3).tolist() == [False, True]
    assert without_signal(torch.tensor([NAN, NAN, 4.0, 1.0, 1.0, NAN]), 3).tolist() == [True, True]
    table = torch.tensor([[1.0, 2.0], [NAN, 3.0], [NAN, NAN]])
    torch.testing.assert_close(
        total_rewards(table, torch.tensor([1.0, 0.5])), torch.tensor([2.0, 1.5, NAN]), equal_nan=True
    )


def test_penalized_returns_equal_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    kl = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    rewards = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = (torch.arange(6) < torch.tensor([6, 3, 0, 5])[:, None]).double()
    mask[3, 2] = 0  # an environment's token is stepped over
    found = penalized_returns(rewards, kl, mask, 0.3)
    for i, t in itertools.product(range(4), range(6)):
        left = sum(0.3 * kl[i, u].item() for u in range(t, 6) if mask[i, u])
        expected = rewards[i].item() - left if mask[i, t] else 0.0
        assert found[i, t].item() == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real GRPOTrainer that samples real completions; its reward functions read the table `trainer.rewards_table`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer

    table: list[list[float | None]] = []

    def column(k: int) -> Any:
        def reward_func(completions: list[str], **_: Any) -> list[float | None]:
            assert len(completions) == len(table)
            return [row[k] for row in table]

        reward_func.__name__ = f"reward_{k}"
        return reward_func

    config = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=3,
        reward_weights=[1.0, 0.5, -2.0],
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        tiny_decoder(),
        reward_funcs=[column(k) for k in range(3)],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["1+1=", "2+2="]}),
        processing_class=tiny_tokenizer(),
    )
    trainer.rewards_table = table
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more cost a tiny model more than they bring
    yield trainer
    torch.set_num_threads(threads)


TABLES: dict[str, list[list[float | None]]] = {
    "values": [[0.1 * i, (i * 7 % 5) / 3, -0.2 * i * i] for i in range(8)],
    "some abstain": [[float(i % 3), None if i % 2 else 1.5 * i, NAN if i == 4 else 0.3 * i] for i in range(8)],
    "a row unscored": [[None] * 3 if i in (1, 6) else [float(i % 2), 0.25 * i, None] for i in range(8)],
    "a group unscored": [[None] * 3 if i < 4 else [float(i), None, 1.0] for i in range(8)],
    "one scored in its group": [[None] * 3 if i in (0, 1, 2) else [float(i), 2.0, None] for i in range(8)],
    "all equal": [[1.0, 2.0, 3.0]] * 8,
}


@pytest.mark.parametrize(("scale", "aggregation"), CHOICES)
@pytest.mark.parametrize("name", TABLES)
def test_equals_trl(trl_trainer: Any, name: str, scale: ScaleRewards, aggregation: RewardAggregation) -> None:
    table = TABLES[name]
    trl_trainer.rewards_table[:] = table
    trl_trainer.scale_rewards, trl_trainer.multi_objective_aggregation = scale, aggregation
    trl_trainer.model.train()
    prompts = [{"prompt": prompt} for prompt in ("1+1=", "2+2=") for _ in range(4)]
    theirs = trl_trainer._generate_and_score_completions(prompts)["advantages"]
    ours = group_advantages(
        torch.tensor([[NAN if x is None else x for x in row] for row in table]),
        torch.tensor([1.0, 0.5, -2.0]),
        4,
        scale_rewards=scale,
        aggregation=aggregation,
    )
    torch.testing.assert_close(ours.advantages, theirs, atol=1e-6, rtol=1e-6)
    if name != "all equal" and not (name == "one scored in its group" and aggregation == "normalize_then_sum"):
        assert theirs.abs().max() > 0.1, "nothing but zeros: this case proves nothing"
