"""GAE, value loss, whitening and token rewards against literal float64 loops and values worked out by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.losses.value import (
    Moments,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_per_token,
    masked_moments,
    token_rewards,
    whiten,
)

NUMBER = st.floats(-3, 3, width=32)


def literal_gae(
    rewards: list[float], values: list[float], acts: list[bool], gamma: float, lam: float, last: float
) -> list[float]:
    """Equation 16 as it stands: for each step the sum over all later steps. Python floats are float64."""
    steps = [t for t, act in enumerate(acts) if act]
    out = [0.0] * len(rewards)
    for i, t in enumerate(steps):
        total = 0.0
        for j in range(i, len(steps)):
            following = values[steps[j + 1]] if j + 1 < len(steps) else last
            delta = rewards[steps[j]] + gamma * following - values[steps[j]]
            total += (gamma * lam) ** (j - i) * delta
        out[t] = total
    return out


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[Any, ...]:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    table = st.lists(st.lists(NUMBER, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    mask = st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    last = st.lists(NUMBER, min_size=rows, max_size=rows)
    share = st.floats(0, 1)
    return draw(table), draw(table), draw(mask), draw(last), draw(share), draw(share)


@settings(max_examples=100, deadline=None)
@given(trajectories())
def test_gae_is_the_double_sum(drawn: tuple[Any, ...]) -> None:
    rewards, values, mask, last, gamma, lam = drawn
    tensors = [torch.tensor(part, dtype=torch.float64) for part in (rewards, values, mask)]
    advantages, returns = gae(*tensors, gamma=gamma, lam=lam, bootstrap=torch.tensor(last, dtype=torch.float64))
    for i in range(len(rewards)):
        expected = literal_gae(rewards[i], values[i], mask[i], gamma, lam, last[i])
        np.testing.assert_allclose(advantages[i], expected, rtol=1e-12, atol=1e-12)
        for t, act in enumerate(mask[i]):
            assert returns[i, t].item() == pytest.approx(expected[t] + values[i][t] if act else 0.0, abs=1e-12)


def test_gae_by_hand() -> None:
    """Three tokens, reward 1 at the end, γ = 0.9, λ = 0.5."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.6]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=0.5)
    third = 1 - 0.6
    second = 0.9 * 0.6 - 0.4 + 0.45 * third
    first = 0.9 * 0.4 - 0.2 + 0.45 * second
    torch.testing.assert_close(advantages, torch.tensor([[first, second, third]]))
    torch.testing.assert_close(returns, torch.tensor([[first + 0.2, second + 0.4, 1.0]]))


def test_gae_with_lambda_one_is_the_discounted_return_less_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 7, generator=generator), torch.randn(3, 7, generator=generator)
    _, returns = gae(rewards, values, torch.ones(3, 7), gamma=0.8, lam=1.0)
    expected = [[sum(0.8 ** (s - t) * row[s] for s in range(t, 7)) for t in range(7)] for row in rewards.tolist()]
    torch.testing.assert_close(returns, torch.tensor(expected))


def test_an_environments_tokens_are_stepped_over() -> None:
    """With them cut out, the sampled tokens have the same advantages."""
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(1, 8, generator=generator), torch.randn(1, 8, generator=generator)
    acts = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1]]).bool()
    apart, _ = gae(rewards, values, acts.float(), gamma=0.9, lam=0.8)
    cut, _ = gae(rewards[acts][None], values[acts][None], torch.ones(1, 5), gamma=0.9, lam=0.8)
    torch.testing.assert_close(apart[acts], cut[0])
    assert (apart[~acts] == 0).all()


def test_clipped_value_loss_by_hand() -> None:
    """(V, V_old, R) -> ½ max of the two squares; the clipped one is the larger where V left the range towards R."""
    cases = [
        (0.5, 0.4, 1.0, 0.5 * 0.25, False),  # within the range: both are the same
        (0.9, 0.4, 1.0, 0.5 * 0.4**2, True),  # moved to R by 0.5: held at 0.6, no gradient
        (0.1, 0.9, 1.0, 0.5 * 0.9**2, False),  # moved away from R: the plain square is larger
        (-1.0, 0.0, -2.0, 0.5 * 1.8**2, True),
    ]
    values = torch.tensor([[case[0] for case in cases]], requires_grad=True)
    old, returns = (torch.tensor([[case[i] for case in cases]]) for i in (1, 2))
    found = clipped_value_loss(values, old, returns, 0.2)
    torch.testing.assert_close(found.loss, torch.tensor([[case[3] for case in cases]]))
    assert found.clipped.tolist() == [[case[4] for case in cases]]
    found.loss.sum().backward()
    expected = [0.0 if case[4] else case[0] - case[2] for case in cases]
    torch.testing.assert_close(values.grad, torch.tensor([expected]))
    plain = clipped_value_loss(values, old, returns, None)
    torch.testing.assert_close(plain.loss, 0.5 * (values - returns) ** 2)
    assert not plain.clipped.any()


def test_token_rewards_put_the_score_on_the_last_sampled_token() -> None:
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    penalties = torch.full((3, 4), 0.1)
    found = token_rewards(torch.tensor([1.0, 2.0, 3.0]), penalties, mask)
    torch.testing.assert_close(found, torch.tensor([[-0.1, -0.1, 0.9, 0], [-0.1, 0, 1.9, 0], [0, 0, 0, 0]]))


def test_kl_estimates_have_the_exact_mean() -> None:
    """Weighted with π's probabilities, both are KL(π ‖ π_ref) itself, which has a closed form."""
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 1.0]], dtype=torch.float64)
    logp, ref = torch.log_softmax(logits, -1)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logits[0]), torch.distributions.Categorical(logits=logits[1])
    )
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((logp.exp() * kl_per_token(logp, ref, estimator)).sum(), exact)  # type: ignore[arg-type]
    assert (kl_per_token(logp, ref, "k3") >= 0).all() and (kl_per_token(logp, ref) < 0).any()
    with pytest.raises(ValueError, match="k1 or k3"):
        kl_per_token(logp, ref, "k2")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=30), st.integers(0, 30))
def test_moments_are_those_of_the_masked_entries_in_any_split(entries: list[tuple[float, bool]], cut: int) -> None:
    kept = [value for value, used in entries if used]
    x = torch.tensor([value for value, _ in entries], dtype=torch.float64)
    mask = torch.tensor([float(used) for _, used in entries])
    found = masked_moments(x, mask)
    assert found.count == len(kept)
    assert found.mean == pytest.approx(statistics.fmean(kept) if kept else 0, abs=1e-9)
    assert found.variance == pytest.approx(statistics.variance(kept) if len(kept) > 1 else 0, rel=1e-9, abs=1e-9)
    # As two processes see it: each adds the other's sums.
    halves = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    sums: list[list[torch.Tensor]] = [[], []]
    for _ in range(2):  # the second pass knows the mean, which needs the first pass's total
        sums = [[], []]
        for own, (part, part_mask) in zip(sums, halves, strict=True):
            masked_moments(part, part_mask, lambda s, own=own: (own.append(s), _second(s, found))[1])  # type: ignore[misc]
    total = [a + b for a, b in zip(*sums, strict=True)]
    assert total[0].tolist() == pytest.approx([found.count, found.mean * found.count], abs=1e-6)
    assert total[1].item() == pytest.approx(found.variance * max(found.count - 1, 0), rel=1e-6, abs=1e-6)


def _second(sums: torch.Tensor, whole: Moments) -> torch.Tensor:
    return torch.tensor([whole.count, whole.mean * whole.count]) if len(sums) == 2 else sums


def test_whitened_tokens_have_mean_zero_and_variance_one() -> None:
    generator = torch.Generator().manual_seed(2)
    x, mask = 5 + 3 * torch.randn(6, 9, generator=generator), (torch.rand(6, 9, generator=generator) < 0.7).float()
    moments = masked_moments(x, mask)
    white = whiten(x, mask, moments)
    again = masked_moments(white, mask)
    assert again.mean == pytest.approx(0, abs=1e-6) and again.variance == pytest.approx(1, abs=1e-6)
    assert (white[mask == 0] == 0).all()
    kept = masked_moments(whiten(x, mask, moments, shift_mean=False), mask)
    assert kept.mean == pytest.approx(moments.mean, rel=1e-6) and kept.variance == pytest.approx(1, abs=1e-6)
    same = torch.full((2, 3), 4.0)
    assert (whiten(same, torch.ones(2, 3), masked_moments(same, torch.ones(2, 3))) == 0).all()


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 4.0, 99.0]]), torch.tensor([[1.0, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 7.0), returns, mask) == pytest.approx(0)
    values = torch.tensor([[0.0, 2.0, 3.0, 0.0]])
    expected = 1 - statistics.variance([1, 0, 1]) / statistics.variance([1, 2, 4])
    assert explained_variance(values, returns, mask) == pytest.approx(expected)
    assert math.isnan(explained_variance(values, torch.ones_like(returns), mask))
