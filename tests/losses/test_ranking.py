"""Losses of reward models against sums that are written out in float64, hand values, and each other."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.losses.ranking import (
    ABSENT,
    centring_penalty,
    outcome_loss,
    pair_loss,
    plackett_luce_loss,
    process_loss,
)


def double(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """A row of rewards and ranks, with ties and places without a completion."""
    size = draw(st.integers(1, 6))
    rewards = draw(st.lists(st.floats(-6, 6), min_size=size, max_size=size))
    ranks = draw(st.lists(st.integers(ABSENT, 3), min_size=size, max_size=size))
    return rewards, ranks


@given(rankings(), st.floats(-1, 2))
@settings(max_examples=80, deadline=None)
def test_against_literal_loops(row: tuple[list[float], list[int]], margin: float) -> None:
    rewards, ranks = row
    there = [i for i, rank in enumerate(ranks) if rank != ABSENT]
    pairs = [(i, j) for i in there for j in there if ranks[i] < ranks[j]]
    lost = sum(-log_sigmoid(rewards[i] - rewards[j] - margin) for i, j in pairs)
    squares = sum((rewards[i] + rewards[j]) ** 2 for i, j in pairs)
    whole = 0.0
    for i in there:
        below = [j for j in there if ranks[i] < ranks[j]]
        whole -= math.log(math.exp(rewards[i]) / (math.exp(rewards[i]) + sum(math.exp(rewards[j] + margin)
                                                                            for j in below)))  # fmt: skip
    given_ranks, shift = torch.tensor([ranks]), torch.tensor([margin], dtype=torch.float64)
    count = max(len(pairs), 1)
    assert pair_loss(double([rewards]), given_ranks, shift).item() == pytest.approx(lost / count, abs=1e-9)
    assert centring_penalty(double([rewards]), given_ranks).item() == pytest.approx(squares / count, abs=1e-9)
    assert plackett_luce_loss(double([rewards]), given_ranks, shift).item() == pytest.approx(whole, abs=1e-9)


def test_probabilities_of_all_orders_sum_to_one() -> None:
    """Plackett-Luce is a distribution over orders: that ties it to the definition, not to a loop like it."""
    rewards = double([[0.3, -1.2, 2.0, 0.7]])
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = torch.tensor([[order.index(i) for i in range(4)]])
        total += math.exp(-plackett_luce_loss(rewards, ranks).item())
    assert total == pytest.approx(1.0, abs=1e-12)


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(-1, 3))
@settings(deadline=None)
def test_of_two_items_the_ranking_loss_is_the_pair_loss(one: float, other: float, margin: float) -> None:
    rewards, ranks = double([[one, other]]).requires_grad_(), torch.tensor([[1, 0]])
    shift = torch.tensor([margin], dtype=torch.float64)
    losses = [loss(rewards, ranks, shift).sum() for loss in (pair_loss, plackett_luce_loss)]
    gradients = [torch.autograd.grad(loss, rewards)[0] for loss in losses]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_hand_values() -> None:
    ranks = torch.tensor([[0, 1]])
    assert pair_loss(double([[1.0, 1.0]]), ranks).item() == pytest.approx(math.log(2))
    assert pair_loss(double([[2.0, 0.0]]), ranks).item() == pytest.approx(math.log1p(math.exp(-2)))
    margin = torch.tensor([0.5], dtype=torch.float64)
    assert pair_loss(double([[2.0, 0.0]]), ranks, margin).item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert centring_penalty(double([[2.0, -0.5]]), ranks).item() == pytest.approx(2.25)
    # A > B > C with rewards 2, 1, 0: e²/(e²+e+1) · e/(e+1)
    chance = math.e**2 / (math.e**2 + math.e + 1) * math.e / (math.e + 1)
    assert plackett_luce_loss(double([[2.0, 1.0, 0.0]]), torch.tensor([[0, 1, 2]])).item() == pytest.approx(
        -math.log(chance)
    )
    # two that tie above a third: each is chosen over the third, never over the other
    tied = torch.tensor([[0, 0, 1]])
    expected = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))
    assert plackett_luce_loss(double([[2.0, 1.0, 0.0]]), tied).item() == pytest.approx(expected)


def test_nothing_compared_is_no_loss_and_no_nan() -> None:
    rewards = double([[1.0, 5.0], [3.0, 100.0]]).requires_grad_()
    ranks = torch.tensor([[1, 1], [0, ABSENT]])
    for loss in (pair_loss, plackett_luce_loss, centring_penalty):
        found = loss(rewards, ranks)
        assert found.tolist() == [0.0, 0.0]
        (gradient,) = torch.autograd.grad(found.sum(), rewards)
        assert not gradient.any() and torch.isfinite(gradient).all()


def test_outcomes_and_steps() -> None:
    draw = random.Random(0)
    logits = double([[draw.gauss(0, 3) for _ in range(4)] for _ in range(5)])
    labels = double([[draw.choice([0.0, 1.0, 0.25]) for _ in range(4)] for _ in range(5)])
    there = torch.tensor([[j < 1 + i % 4 for j in range(4)] for i in range(5)])
    expected = []
    for row in range(5):
        total = 0.0
        for step in range(4):
            if there[row, step]:
                x, y = logits[row, step].item(), labels[row, step].item()
                total -= y * log_sigmoid(x) + (1 - y) * log_sigmoid(-x)
        expected.append(total)
    assert process_loss(logits, labels, there).tolist() == pytest.approx(expected, abs=1e-12)
    alone = [-(y * log_sigmoid(x) + (1 - y) * log_sigmoid(-x)) for x, y in zip(logits[:, 0], labels[:, 0], strict=True)]
    assert outcome_loss(logits[:, 0], labels[:, 0]).tolist() == pytest.approx([float(x) for x in alone], abs=1e-12)
