"""Preference losses against a float64 loop of their papers' formulas, and TRL's trainers on the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.losses import preference as losses

BETA, GAMMA, EPSILON = 0.3, 0.7, 0.2
CHOSEN, REJECTED = [1.5, -0.4, 0.0, 12.0, -7.0], [-0.5, 0.3, 0.0, -9.0, 8.0]
MEANS, OTHER_MEANS = [-0.2, -1.7, -0.9, -3.0, -0.01], [-1.1, -0.4, -0.9, -0.05, -6.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(logp: float) -> float:
    return math.exp(logp) / (1 - math.exp(logp))


# name -> (ours, the formula for one pair, as its paper writes it, the two inputs)
FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float, float], float], Any]] = {
    "dpo": (
        lambda w, r: losses.dpo_loss(w, r, beta=BETA),
        lambda w, r: -math.log(sigmoid(BETA * w - BETA * r)),
        (CHOSEN, REJECTED),
    ),
    "cdpo": (
        lambda w, r: losses.dpo_loss(w, r, beta=BETA, label_smoothing=EPSILON),
        lambda w, r: -(1 - EPSILON) * math.log(sigmoid(BETA * (w - r))) - EPSILON * math.log(sigmoid(BETA * (r - w))),
        (CHOSEN, REJECTED),
    ),
    "robust": (
        lambda w, r: losses.robust_dpo_loss(w, r, beta=BETA, label_smoothing=EPSILON),
        lambda w, r: (
            ((1 - EPSILON) * -math.log(sigmoid(BETA * (w - r))) - EPSILON * -math.log(sigmoid(BETA * (r - w))))
            / (1 - 2 * EPSILON)
        ),
        (CHOSEN, REJECTED),
    ),
    "hinge": (
        lambda w, r: losses.hinge_loss(w, r, beta=BETA),
        lambda w, r: max(0.0, 1 - BETA * (w - r)),
        (CHOSEN, REJECTED),
    ),
    "ipo": (
        lambda w, r: losses.ipo_loss(w, r, beta=BETA),
        lambda w, r: (w - r - 1 / (2 * BETA)) ** 2,
        (MEANS, OTHER_MEANS),
    ),
    "bco": (
        lambda w, r: losses.bco_pair_loss(w, r, beta=BETA),
        lambda w, r: -math.log(sigmoid(BETA * w)) - math.log(sigmoid(-BETA * r)),
        (CHOSEN, REJECTED),
    ),
    "simpo": (
        lambda w, r: losses.simpo_loss(w, r, beta=BETA, gamma=GAMMA),
        lambda w, r: -math.log(sigmoid(BETA * w - BETA * r - GAMMA)),
        (MEANS, OTHER_MEANS),
    ),
    "orpo": (
        lambda w, r: losses.odds_ratio_loss(w, r),
        lambda w, r: -math.log(sigmoid(math.log(odds(w) / odds(r)))),
        (MEANS, OTHER_MEANS),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_its_formula(name: str) -> None:
    ours, formula, (first, second) = FORMULAS[name]
    found = ours(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert found.tolist() == pytest.approx([formula(a, b) for a, b in zip(first, second, strict=True)], rel=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_its_gradient(name: str) -> None:
    """Against finite differences, away from the hinge's corner."""
    ours, _, (first, second) = FORMULAS[name]
    given = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in (first, second)]
    assert torch.autograd.gradcheck(ours, given)


LABELS = [True, False, False, True, True]


@pytest.mark.parametrize("kl", [0.0, 0.6])
def test_kto(kl: float) -> None:
    found = losses.kto_loss(
        torch.tensor(CHOSEN, dtype=torch.float64),
        torch.tensor(LABELS),
        kl,
        beta=BETA,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    want = [
        1.3 - 1.3 * sigmoid(BETA * (ratio - kl)) if wanted else 0.8 - 0.8 * sigmoid(BETA * (kl - ratio))
        for ratio, wanted in zip(CHOSEN, LABELS, strict=True)
    ]
    assert found.tolist() == pytest.approx(want, rel=1e-12)


def test_ktos_baseline_is_never_negative_and_has_no_gradient() -> None:
    mean = torch.tensor(0.4, requires_grad=True)
    assert losses.kto_baseline(mean).item() == pytest.approx(0.4) and not losses.kto_baseline(mean).requires_grad
    assert losses.kto_baseline(torch.tensor(-0.4)).item() == 0.0


@settings(deadline=None)
@given(st.floats(min_value=-200, max_value=-1e-7))
def test_log1mexp(x: float) -> None:
    given_ = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = losses.log1mexp(given_)
    with localcontext(prec=120):  # digits enough for 1 - e^-200
        want = float((1 - Decimal(x).exp()).ln())
    assert found.item() == pytest.approx(want, rel=1e-9, abs=1e-80)
    found.backward()
    assert given_.grad is not None and math.isfinite(given_.grad.item())


def test_a_certain_completion_gives_no_infinity() -> None:
    logps = torch.zeros(2, requires_grad=True)
    loss = losses.odds_ratio_loss(logps, torch.tensor([-1.0, -1.0])).sum()
    loss.backward()
    assert torch.isfinite(loss) and logps.grad is not None and torch.isfinite(logps.grad).all()


def test_smoothing_at_equal_margins() -> None:
    """Hand values: no difference is -log 1/2, with any smoothing."""
    zero = torch.zeros(1)
    for smoothing in (0.0, 0.3):
        assert losses.dpo_loss(zero, zero, beta=0.1, label_smoothing=smoothing).item() == pytest.approx(math.log(2))
    assert losses.robust_dpo_loss(zero, zero, beta=0.1, label_smoothing=0.3).item() == pytest.approx(math.log(2))
    assert losses.ipo_loss(zero, zero, beta=0.5).item() == pytest.approx(1.0)
    assert losses.simpo_loss(zero, zero, beta=2.0, gamma=0.0).item() == pytest.approx(math.log(2))


# TRL's functions that are apart from its trainers' forward passes


def trl(**fields: Any) -> Any:
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **fields)


@pytest.mark.parametrize(
    ("loss_type", "smoothing"), [("simpo", 0.0), ("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0)]
)
def test_as_trls_cpo(loss_type: str, smoothing: float) -> None:
    """Without a reference its sigmoid and hinge losses are DPO's of plain log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    first, second = torch.tensor(MEANS), torch.tensor(OTHER_MEANS)
    fields = trl(loss_type=loss_type, beta=BETA, simpo_gamma=GAMMA, label_smoothing=smoothing, alpha=0.0)
    want, *_ = CPOTrainer.cpo_loss(fields, first, second)
    if loss_type == "simpo":
        found = losses.simpo_loss(first, second, beta=BETA, gamma=GAMMA)
    elif loss_type == "hinge":
        found = losses.hinge_loss(first, second, beta=BETA)
    else:
        found = losses.dpo_loss(first, second, beta=BETA, label_smoothing=smoothing)
    assert torch.allclose(found, want, atol=1e-6)


def test_as_trls_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    first, second = torch.tensor(MEANS), torch.tensor(OTHER_MEANS)
    want, *_ = ORPOTrainer.odds_ratio_loss(trl(beta=BETA), first, second)
    assert torch.allclose(BETA * losses.odds_ratio_loss(first, second), -want, atol=1e-6)
