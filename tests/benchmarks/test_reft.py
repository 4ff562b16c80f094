"""benchmarks/reft.py: the pairwise test, what is compared, and which claims count as broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reft import ARMS, broken_claims, compare, mcnemar, parse, reft_flags, sft_flags
from benchmarks.runs import plot_arms
from mmreason.config import parse_config


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_p_is_that_of_the_exact_binomial_test(wins: int, losses: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_arms_are_compared_on_the_problems_of_the_seeds_that_both_have() -> None:
    right = {
        (1, "reft"): {0: True, 1: True, 2: True, 3: False},
        (1, "sft_time"): {0: True, 1: False, 2: False, 3: True},
        (2, "reft"): {0: True, 1: True, 2: False, 3: False},
    }
    row = compare(right, "sft_time")
    assert row is not None
    assert (row["seeds"], row["problems"], row["reft_only"], row["other_only"]) == (1, 4, 2, 1)
    assert row["points"] == 25.0 and row["p"] == pytest.approx(mcnemar(2, 1))
    assert compare(right, "sft_updates") is None


def test_a_claim_is_broken_by_points_by_p_and_by_missing_seeds() -> None:
    good = {"against": "sft_time", "seeds": 3, "points": 3.5, "p": 0.01, "problems": 1500}
    assert broken_claims([good], 3) == []
    for change in ({"points": 2.9}, {"p": 0.06}, {"seeds": 1}):
        assert len(broken_claims([good | change], 3)) == 1
    assert broken_claims([good | {"against": "reft_no_kl", "points": -9.0}], 3) == []


def test_the_commands_are_those_of_the_recipes(tmp_path: Path) -> None:
    """All arms learn from the same 1,500 problems; only what an ablation leaves out differs."""
    from recipes.reft import OPTIONS
    from recipes.sft import OPTIONS as SFT_OPTIONS

    read = {
        arm: parse_config(OPTIONS, reft_flags(2, arm, 50, 300)[1:]) for arm in ("reft", "reft_no_kl", "reft_no_partial")
    }
    plain = read["reft"]
    assert plain[1].word_problems["n"] == 1500 and plain[3].seed == 2 and plain[3].max_steps == 50
    assert read["reft_no_kl"][3].kl_coef == 0 and plain[3].kl_coef > 0
    assert read["reft_no_partial"][3].partial_reward == 0 and plain[3].partial_reward == 0.1
    options = {"sft": plain[3].sft}
    model, data, args = parse_config(SFT_OPTIONS, sft_flags(tmp_path, 2, 50, options, 300)[1:])
    assert data.word_problems == plain[1].word_problems and data.prompt_template is plain[1].prompt_template
    assert args.per_device_train_batch_size == plain[3].per_device_train_batch_size
    assert model.model_name_or_path == str(tmp_path / "sft" / "final")


def test_the_picture_and_the_order_of_arms(tmp_path: Path) -> None:
    assert parse(["--arms", "sft_time"]).arms == ["reft", "sft_time"]  # the others go on from its warm-up
    rows = [{"seed": "1", "arm": arm, "value": "0.8", "low": "0.7", "high": "0.9"} for arm in ARMS[:3]]
    plot_arms(rows, ARMS, "greedy accuracy", tmp_path / "reft.png")
    assert (tmp_path / "reft.png").stat().st_size > 5000
