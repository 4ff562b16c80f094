"""Advantages over all processes: each estimator against a literal loop, and the same whoever holds which completion."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.estimators import estimate_advantages
from mmreason.trainers.value_tracker import TrackerOptions, ValueTracker
from mmreason.types import ConfigError
from tests.trainers.threads import on_ranks

NAN = float("nan")
LENGTHS = [3, 1, 4, 2, 5, 2, 0, 3]
REWARDS = [1.0, 0.0, 0.5, 1.0, 0.0, NAN, 0.25, 2.0]
GENERATOR = torch.Generator().manual_seed(0)
OLD = [torch.randn(n, generator=GENERATOR).tolist() for n in LENGTHS]
REF = [torch.randn(n, generator=GENERATOR).tolist() for n in LENGTHS]
ROWS = [4, 4, 4, 4, 7, 7, 7, 7]


def samples_of(part: slice, reference: bool) -> Samples:
    count = len(LENGTHS[part])
    return Samples(
        rows=ROWS[part],
        prompt_ids=[[1]] * count,
        completion_ids=[[5] * n for n in LENGTHS[part]],
        sampling_logps=[[9.0] * n for n in LENGTHS[part]],
        truncated=[False] * count,
        in_loss=[True] * count,
        old_logps=OLD[part],
        ref_logps=REF[part] if reference else [],
    )


def estimate(size: int = 1, rewards: list[float] | None = None, **options: Any) -> tuple[list[Any], list[list[float]]]:
    """(advantages, token advantages) of all completions, by `size` processes."""
    args = PolicyConfig(num_generations=4, **options)
    args.check_objective()
    per_func = torch.tensor(REWARDS if rewards is None else rewards, dtype=torch.float64).unsqueeze(1)
    per_rank = 8 // size

    def work(parallel: Any) -> Samples:
        mine = samples_of(slice(parallel.rank * per_rank, (parallel.rank + 1) * per_rank), args.beta > 0)
        tracker = ValueTracker(TrackerOptions(prior=0.4)) if args.advantage_estimator == "spo" else None
        found = estimate_advantages(args, None, per_func, mine, parallel, tracker)
        assert (
            found.advantages.shape == (8,)
            and torch.isnan(found.rewards).tolist() == torch.isnan(per_func[:, 0]).tolist()
        )
        return mine

    parts = on_ranks(size, work)
    return [a for part in parts for a in part.advantages], [t for part in parts for t in part.token_advantages]


def stats(values: list[float]) -> tuple[float, float]:
    there = [v for v in values if not math.isnan(v)]
    mean = sum(there) / len(there)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in there) / (len(there) - 1))


def kl_of(i: int) -> float:
    return sum(o - r for o, r in zip(OLD[i], REF[i], strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("normalize", [False, True])
def test_rloo_with_its_kl_in_the_reward(beta: float, normalize: bool) -> None:
    found, tokens = estimate(advantage_estimator="rloo", beta=beta, normalize_advantages=normalize)
    rewards = [r - beta * kl_of(i) for i, r in enumerate(REWARDS)]
    expected = []
    for i, r in enumerate(rewards):
        others = [rewards[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i and not math.isnan(rewards[j])]
        expected.append(r - sum(others) / len(others))
    if normalize:
        mean, std = stats(expected)
        expected = [(a - mean) / (std + 1e-4) for a in expected]
    assert found == pytest.approx([0.0 if math.isnan(a) else a for a in expected], abs=1e-5)
    assert not tokens


def test_reinforce_plus_plus_baseline() -> None:
    found, _ = estimate(advantage_estimator="reinforce_plus_plus_baseline")
    means = [stats(REWARDS[:4])[0], stats(REWARDS[4:])[0]]
    centred = [r - means[i // 4] for i, r in enumerate(REWARDS)]
    mean, std = stats(centred)
    assert found == pytest.approx([0.0 if math.isnan(c) else (c - mean) / std for c in centred], abs=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_reinforce_plus_plus_per_token(beta: float) -> None:
    found, tokens = estimate(advantage_estimator="reinforce_plus_plus", beta=beta)
    returns = []
    for i, n in enumerate(LENGTHS):
        kl = [o - r for o, r in zip(OLD[i], REF[i], strict=True)]
        returns.append([REWARDS[i] - beta * sum(kl[t:]) for t in range(n)])
    mean, std = stats([value for row in returns for value in row])
    for row, token_row, whole in zip(returns, tokens, found, strict=True):
        expected = [0.0 if math.isnan(value) else (value - mean) / std for value in row]
        assert token_row == pytest.approx(expected, abs=1e-4)
        assert whole == pytest.approx(sum(expected) / max(len(expected), 1), abs=1e-4)


def test_spo_subtracts_the_value_before_and_normalizes_over_the_batch() -> None:
    found, _ = estimate(advantage_estimator="spo")
    gaps = [r - 0.4 for r in REWARDS]
    mean, std = stats(gaps)
    assert found == pytest.approx([0.0 if math.isnan(g) else (g - mean) / (std + 1e-4) for g in gaps], abs=1e-5)


def test_group_advantages_with_the_kl_in_the_reward() -> None:
    found, _ = estimate(advantage_estimator="group", beta=0.2, kl_in_reward=True, scale_rewards="none")
    rewards = [r - 0.2 * kl_of(i) for i, r in enumerate(REWARDS)]
    means = [stats(rewards[:4])[0], stats(rewards[4:])[0]]
    assert found == pytest.approx(
        [0.0 if math.isnan(r) else r - means[i // 4] for i, r in enumerate(rewards)], abs=1e-5
    )
    plain, _ = estimate(advantage_estimator="group", beta=0.2, scale_rewards="none")
    assert plain != found, "the KL belongs to the loss there"


ESTIMATORS = ["group", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "spo"]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_processes_don_t_matter(name: str, beta: float) -> None:
    """Two, four or eight processes, the last with a group on four of them each."""
    options = {"advantage_estimator": name, "beta": beta}
    whole, tokens = estimate(1, **options)
    for size in (2, 4, 8):
        found, found_tokens = estimate(size, **options)
        assert found == pytest.approx(whole, abs=1e-5)
        assert len(found_tokens) == len(tokens)
        for row, expected in zip(found_tokens, tokens, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ESTIMATORS), value=st.sampled_from([0.0, 1.0, 0.3, NAN]))
def test_equal_rewards_give_zero_and_no_nan(name: str, value: float) -> None:
    found, tokens = estimate(rewards=[value] * 8, advantage_estimator=name)
    assert all(math.isfinite(a) for a in found) and all(math.isfinite(t) for row in tokens for t in row)
    if name != "spo" or math.isnan(value):
        assert max(map(abs, found)) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"advantage_estimator": "group"},
        {"advantage_estimator": "rloo"},
        {"advantage_estimator": "rloo", "normalize_advantages": True},
        {"advantage_estimator": "reinforce_plus_plus_baseline"},
    ],
)
@pytest.mark.parametrize("value", [0.3, 0.1, 0.7])
def test_a_group_of_equal_rewards_moves_nothing(options: dict[str, Any], value: float) -> None:
    """Exactly, whatever rounding makes of its mean and of the batch's, and beside a group that teaches something."""
    found, _ = estimate(rewards=[value, NAN, value, value, 0.1, 0.7, 0.2, 0.9], **options)
    assert found[:4] == [0.0] * 4 and min(map(abs, found[4:])) > 1e-3
    assert estimate(rewards=[value] * 8, **options)[0] == [0.0] * 8


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "spo"])
def test_one_completion_to_a_prompt(name: str) -> None:
    """No group: equal rewards of the batch, not of groups of one, count as no signal."""
    args = PolicyConfig(num_generations=1, advantage_estimator=name)  # type: ignore[arg-type]
    args.resolve(1)

    def without_signal(rewards: list[float]) -> float:
        per_func, tracker = torch.tensor(rewards).unsqueeze(1), ValueTracker(TrackerOptions())
        mine = samples_of(slice(8), False)
        (found,) = on_ranks(1, lambda p: estimate_advantages(args, None, per_func, mine, p, tracker))
        assert not found.advantages.isnan().any()
        return float(found.zero_std.float().mean())

    assert without_signal(REWARDS) == 0.0 and without_signal([1.0] * 8) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_generations": 1}, "at least 2 completions"),
        ({"num_generations": 1, "advantage_estimator": "rloo"}, "reinforce_plus_plus and spo need no group"),
        (
            {"num_generations": 1, "advantage_estimator": "spo", "dynamic_sampling": True},
            "num_generations to 2 or more",
        ),
        ({"num_generations": 0, "advantage_estimator": "spo"}, "num_generations=0"),
        ({"loss_type": "cispo"}, "epsilon_high=None is the bound of the importance ratio itself"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "5.0 is recommended"),
        ({"loss_type": "luspo"}, "set importance_sampling_level to sequence"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "leave importance_sampling_level at token"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile=0.0"),
        ({"kl_in_reward": True}, "set beta"),
        (
            {"kl_in_reward": True, "beta": 0.1, "multi_objective_aggregation": "normalize_then_sum"},
            "use multi_objective_aggregation: sum_then_normalize",
        ),
        (
            {"advantage_estimator": "rloo", "beta": 0.1, "multi_objective_aggregation": "normalize_then_sum"},
            "advantage_estimator=rloo, which takes the sum of rewards: use multi_objective_aggregation: sum_then_norm",
        ),
        ({"advantage_estimator": "rloo", "scale_rewards": "none"}, "scale_rewards: none has no effect .*leave it out"),
        (
            {"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"},
            "scale_rewards: batch has no effect .*leave it out",
        ),
        ({"normalize_advantages": True}, "leave it out, or set advantage_estimator: rloo"),
        ({"dynamic_sampling_reward": "accuracy"}, "dynamic_sampling_reward=accuracy .*set dynamic_sampling: true"),
        ({"dynamic_sampling_max_rounds": 3}, "dynamic_sampling_max_rounds=3 .*set dynamic_sampling: true"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 8.0}, "delta=8.0 has no effect with loss_type cispo"),
        ({"loss_type": "sapo", "delta": 8.0}, "delta=8.0 has no effect with loss_type sapo"),
        ({"delta": 1.2}, r"must be above 1 \+ epsilon = 1.2"),
        ({"delta": 1.25, "epsilon_high": 0.28}, r"must be above 1 \+ epsilon_high = 1.28"),
        ({"spo": {"rho_min": 0.5}}, "has no effect with advantage_estimator=group"),
        ({"dynamic_sampling_max_rounds": 0}, "must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PolicyConfig(**options).resolve(1)


@pytest.mark.parametrize(
    "options",
    [
        {"delta": 1.3},
        {"scale_rewards": "none", "kl_in_reward": True, "beta": 0.1},
        {"multi_objective_aggregation": "normalize_then_sum", "beta": 0.1},
        {"advantage_estimator": "rloo", "normalize_advantages": True},
        {"dynamic_sampling": True, "dynamic_sampling_reward": "accuracy", "dynamic_sampling_max_rounds": 3},
    ],
)
def test_what_goes_together_is_taken(options: dict[str, Any]) -> None:
    PolicyConfig(**options).resolve(1)
