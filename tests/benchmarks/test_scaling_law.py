"""The scaling-law fit recovers planted constants, shrugs off an outlier, and says what compute is best spent on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import read_rows, save_rows
from benchmarks.scaling_law import SHAPES, Law, command, fit, main, plot, report

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv 2203.15556, equation 10
OTHER = Law(E=0.8, A=35.0, B=90.0, alpha=0.45, beta=0.37)


def grid(law: Law) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e10, 6), np.geomspace(1e8, 1e12, 6)))
    return n, d, law.loss(n, d)


@pytest.mark.parametrize("law", [CHINCHILLA, OTHER], ids=["chinchilla", "other"])
def test_planted_constants_are_recovered(law: Law) -> None:
    found = fit(*grid(law))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.01), name


def test_noise_and_an_outlier() -> None:
    """Huber: a run that failed hardly moves the law."""
    n, d, loss = grid(CHINCHILLA)
    loss = loss * np.exp(np.random.default_rng(0).normal(0, 1e-3, len(loss)))
    loss[7] *= 1.5
    found = fit(n, d, loss)
    assert pytest.approx(1.69, rel=0.05) == found.E
    assert found.alpha == pytest.approx(0.34, abs=0.02) and found.beta == pytest.approx(0.28, abs=0.02)


def test_the_best_split_of_compute() -> None:
    """By brute force over the curve 6 · N · D = C."""
    compute = 6e21
    n, d = CHINCHILLA.optimum(compute)
    assert 6 * n * d == pytest.approx(compute)
    sizes = np.geomspace(n / 100, n * 100, 20001)
    best = sizes[np.argmin(CHINCHILLA.loss(sizes, compute / 6 / sizes))]
    assert n == pytest.approx(best, rel=1e-3)


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="4 runs can't determine five constants"):
        fit([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1])
    with pytest.raises(ValueError, match="above 0"):
        fit([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [4, 3, 2, 1, 0])


def test_results_are_fitted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, d, loss = grid(CHINCHILLA)
    rows = [{"parameters": int(a), "tokens": int(b), "loss": c} for a, b, c in zip(n, d, loss, strict=True)]
    path = tmp_path / "runs.csv"
    save_rows(path, rows, ("parameters", "tokens"))
    assert main(["--fit", str(path)]) == 0
    told = capsys.readouterr().out
    assert "L = 1.69" in told and "N^0.340" in told and "36 runs" in told
    plot(read_rows(path), CHINCHILLA, tmp_path / "law.png")
    assert (tmp_path / "law.png").stat().st_size > 5000
    assert report(CHINCHILLA, read_rows(path)).count("compute x") == 3


def test_the_runs_are_commands_of_the_recipe() -> None:
    from mmreason.config import parse_config
    from recipes.pretrain import OPTIONS

    for shape in SHAPES:
        model, fresh, corpus, options = parse_config(OPTIONS, command("texts", shape, 100, 1)[2:])
        options.check(model, fresh, corpus)
        assert fresh.config_overrides["hidden_size"] % fresh.config_overrides["num_attention_heads"] == 0
