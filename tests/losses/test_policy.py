"""The objective of the GRPO family against hand-computed values and literal float64 loops over the papers' formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.losses.policy import (
    IMPORTANCE_MODES,
    LOSS_TYPES,
    BatchSize,
    ImportanceMode,
    LossType,
    aggregate,
    clipped_surrogate,
    importance_weights,
    kl_to_reference,
)

LIMIT = 16
GLOBAL = [name for name in LOSS_TYPES if name != "bnpo"]


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -------------------- the surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "low", "high"),
    [
        (1.0, 2.0, -2.0, False, False),
        (1.1, 2.0, -2.2, False, False),  # inside the range: plain importance weighting
        (1.5, 2.0, -2.4, False, True),  # good token, already likelier than 1.2: clipped
        (0.5, 2.0, -1.0, False, False),  # good token that got less likely: not clipped, the min takes the ratio
        (0.5, -2.0, 1.6, True, False),  # bad token, already below 0.8: clipped
        (1.5, -2.0, 3.0, False, False),  # bad token that got likelier: not clipped
        (1.5, 0.0, 0.0, False, False),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, low: bool, high: bool) -> None:
    found = clipped_surrogate(torch.tensor([[math.log(ratio)]]), torch.tensor([advantage]))
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)
    assert found.ratio.item() == pytest.approx(ratio, rel=1e-6)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (low, high)


@pytest.mark.parametrize("delta", [None, 1.4])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.1, 0.5)])
def test_surrogate_equals_a_loop(low: float, high: float, delta: float | None) -> None:
    logps, old = randn(6, 9, seed=1), randn(6, 9, seed=2)
    advantages = randn(6, seed=3)
    found = clipped_surrogate(logps - old, advantages, epsilon_low=low, epsilon_high=high, delta=delta)
    for i, t in itertools.product(range(6), range(9)):
        r = math.exp(logps[i, t].item() - old[i, t].item())
        a = advantages[i].item()
        first = (r if delta is None else min(r, delta)) * a
        second = min(max(r, 1 - low), 1 + high) * a
        assert found.loss[i, t].item() == pytest.approx(-min(first, second), rel=1e-5, abs=1e-6)


def test_gradient_is_the_policy_gradient_on_policy_and_stops_where_clipped() -> None:
    advantages = torch.tensor([1.5, -0.5])
    logps = randn(2, 3, seed=4).requires_grad_()
    clipped_surrogate(logps - logps.detach(), advantages).loss.sum().backward()
    torch.testing.assert_close(logps.grad, -advantages[:, None].expand(2, 3))  # REINFORCE: -A per token

    ratios = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    logps = ratios.log().requires_grad_()
    clipped_surrogate(logps, torch.tensor([1.0, -1.0])).loss.sum().backward()
    torch.testing.assert_close(logps.grad, torch.tensor([[0.0, -0.5], [1.5, 0.0]]))


def test_delta_bounds_the_loss_of_a_bad_token() -> None:
    far = torch.tensor([[math.log(50.0)]])
    bad = torch.tensor([-1.0])
    assert clipped_surrogate(far, bad).loss.item() == pytest.approx(50, rel=1e-5)
    assert clipped_surrogate(far, bad, delta=4.0).loss.item() == pytest.approx(4.0)


# -------------------- the KL


def test_kl_estimate_is_non_negative_and_zero_at_the_reference() -> None:
    logps, ref = randn(50, 40, seed=5, scale=2), randn(50, 40, seed=6, scale=2)
    assert (kl_to_reference(logps, ref) >= 0).all()
    assert (kl_to_reference(logps, logps) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_kl_estimate_is_unbiased(seed: int) -> None:
    """Its expectation over tokens of the policy, summed over the whole vocabulary, is KL(π ‖ π_ref)."""
    log_p = torch.log_softmax(randn(7, seed=seed).double(), 0)
    log_q = torch.log_softmax(randn(7, seed=seed + 100).double(), 0)
    expectation = (log_p.exp() * kl_to_reference(log_p, log_q)).sum()
    exact = (log_p.exp() * (log_p - log_q)).sum()
    assert expectation.item() == pytest.approx(exact.item(), rel=1e-12)
    assert exact.item() != pytest.approx(
        (log_q.exp() * (log_q - log_p)).sum().item(), rel=1e-2
    )  # not the other direction


def test_kl_gradient() -> None:
    """d/d logπ of k3 = 1 - π_ref/π, by hand."""
    logps, ref = randn(3, 4, seed=7).requires_grad_(), randn(3, 4, seed=8)
    kl_to_reference(logps, ref).sum().backward()
    torch.testing.assert_close(logps.grad, 1 - torch.exp(ref - logps.detach()))


# -------------------- importance sampling weights


def weights_by_loop(
    logps: Tensor, sampling: Tensor, mask: Tensor, mode: str, high: float | None, low: float | None
) -> list[list[float]]:
    out = []
    for row, srow, mrow in zip(logps.tolist(), sampling.tolist(), mask.tolist(), strict=True):
        gaps = [0.0 if not m or math.isnan(s) else x - s for x, s, m in zip(row, srow, mrow, strict=True)]
        ratios = [math.exp(sum(gaps))] if "sequence" in mode else [math.exp(gap) for gap in gaps]
        if "truncate" in mode:
            ratios = [min(r, math.inf if high is None else high) for r in ratios]
            ratios = [max(r, 0.0 if low is None else low) for r in ratios]
        else:
            ratios = [
                r if (high is None or r <= high) and (low is None or r >= low) else 0.0
                for r in ratios
            ]  # fmt: skip
        out.append(ratios)
    return out


@pytest.mark.parametrize("bounds", [(3.0, None), (1.5, 0.7), (None, 0.5), (None, None)])
@pytest.mark.parametrize("mode", IMPORTANCE_MODES)
def test_importance_weights_equal_a_loop(mode: ImportanceMode, bounds: tuple[float | None, float | None]) -> None:
    logps, sampling = randn(8, 6, seed=9, scale=0.5).double(), randn(8, 6, seed=10, scale=0.5).double()
    mask = (torch.arange(6) < torch.tensor([6, 5, 4, 3, 2, 1, 0, 6])[:, None]).double()
    sampling[0, 1] = sampling[7, 3] = float("nan")  # the engine gave none
    sampling[1, 5] = float("-inf")  # padding may hold anything
    high, low = bounds
    found = importance_weights(logps, sampling, mask, mode, high, low)
    expected = weights_by_loop(logps, sampling, mask, mode, high, low)
    assert found.shape == (8, 1 if "sequence" in mode else 6)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    if high is not None or low is not None:
        free = weights_by_loop(logps, sampling, mask, mode, None, None)
        assert expected != free, "the bounds bind nowhere: this case proves nothing"


def test_importance_weights_carry_no_gradient_and_refuse_an_unknown_mode() -> None:
    logps = randn(2, 3, seed=11).requires_grad_()
    for mode in IMPORTANCE_MODES:
        assert not importance_weights(logps, logps.detach() - 1, torch.ones(2, 3), mode, 3.0).requires_grad
    with pytest.raises(ValueError, match="token_clip"):
        importance_weights(logps, logps, torch.ones(2, 3), "token_clip", 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_truncate"):
        importance_weights(logps, logps, torch.ones(2, 3), "batch_truncate", 3.0)  # type: ignore[arg-type]


# -------------------- the averages


def paper(loss_type: LossType, rows: Sequence[Sequence[float]], used: Sequence[bool]) -> float:
    """The formula of the paper for a whole step: rows of token losses; a row that isn't used keeps its place with 0."""
    counted = [list(row) if use else [] for row, use in zip(rows, used, strict=True)]
    if loss_type in ("grpo", "sapo"):
        return sum(sum(row) / len(row) for row in counted if row) / len(rows)
    if loss_type == "dr_grpo":
        return sum(sum(row) for row in counted) / (len(rows) * LIMIT)
    if loss_type == "luspo":
        return sum(sum(row) for row in counted) / len(rows)
    tokens = sum(len(row) for row in counted)
    return sum(sum(row) for row in counted) / max(tokens, 1)


def padded(rows: Sequence[Sequence[float]], used: Sequence[bool]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    loss, mask = torch.full((len(rows), width), 7.0, dtype=torch.float64), torch.zeros(len(rows), width).double()
    for i, (row, use) in enumerate(zip(rows, used, strict=True)):
        loss[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[i, : len(row)] = float(use)
    return loss, mask


numbers = st.floats(-100, 100, allow_nan=False)
token_rows = st.lists(
    st.tuples(st.lists(numbers, min_size=0, max_size=LIMIT), st.booleans()), min_size=1, max_size=12
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(drawn=token_rows, cuts=st.sets(st.integers(1, 11)), loss_type=st.sampled_from(GLOBAL))
def test_shares_add_up_to_the_papers_formula(
    drawn: list[tuple[list[float], bool]], cuts: set[int], loss_type: LossType
) -> None:
    """Any split of the step into micro-batches, on any number of processes, gives the same loss."""
    rows, used = [row for row, _ in drawn], [use for _, use in drawn]
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    tokens = sum(len(row) for row, use in drawn if use)
    size = BatchSize(sequences=len(rows), tokens=tokens, micro_batches=len(edges) - 1)
    shares = [
        aggregate(*padded(rows[a:b], used[a:b]), loss_type, size, LIMIT).item() for a, b in itertools.pairwise(edges)
    ]
    assert sum(shares) == pytest.approx(paper(loss_type, rows, used), rel=1e-9, abs=1e-9)


def test_bnpo_is_local_to_the_micro_batch() -> None:
    """The one loss that depends on the split, as aggregate's docstring says: by hand for two rows of 1 and 3 tokens."""
    rows, used = [[4.0], [1.0, 1.0, 1.0]], [True, True]
    whole = aggregate(*padded(rows, used), "bnpo", BatchSize(2, 4, 1), LIMIT)
    assert whole.item() == pytest.approx(7 / 4)
    split = [aggregate(*padded([row], [True]), "bnpo", BatchSize(2, 4, 2), LIMIT) for row in rows]
    assert sum(share.item() for share in split) == pytest.approx((4 + 1) / 2)
    assert "alone" in (aggregate.__doc__ or "") and "local" in (aggregate.__doc__ or "")


def token_weights(loss_type: LossType, lengths: Sequence[int]) -> list[float]:
    """Gradient of the loss with respect to one token of each completion, all with the same token loss."""
    loss, mask = padded([[1.0] * n for n in lengths], [True] * len(lengths))
    loss.requires_grad_()
    aggregate(loss, mask, loss_type, BatchSize(len(lengths), sum(lengths), 1), LIMIT).backward()
    assert (loss.grad[mask == 0] == 0).all()
    return loss.grad[:, 0].tolist()


def test_length_bias_of_each_loss() -> None:
    """Dr. GRPO and DAPO weigh a token alike whatever the length of its completion; in GRPO the weight falls with it."""
    lengths = [1, 4, 16]
    assert token_weights("dr_grpo", lengths) == pytest.approx([1 / (3 * LIMIT)] * 3)
    assert token_weights("dapo", lengths) == pytest.approx([1 / 21] * 3)
    assert token_weights("grpo", lengths) == pytest.approx([1 / 3, 1 / 12, 1 / 48])
    # and in Dr. GRPO it does not depend on the lengths of the others either
    assert token_weights("dr_grpo", [1, 4, 4])[1] == pytest.approx(token_weights("dr_grpo", lengths)[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_to_learn_from_is_zero_not_nan(loss_type: LossType) -> None:
    loss, mask = padded([[1.0, 2.0], [3.0]], [False, False])
    loss.requires_grad_()
    share = aggregate(loss, mask, loss_type, BatchSize(2, 0, 1), LIMIT)
    share.backward()
    assert share.item() == 0.0 and (loss.grad == 0).all()


def test_unknown_loss_type() -> None:
    with pytest.raises(ValueError, match="grpo_v2"):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), "grpo_v2", BatchSize(1, 1, 1), LIMIT)  # type: ignore[arg-type]
