"""How loss falls with parameters and tokens: Chinchilla's law, fitted to small runs of recipes/pretrain.py.

    python benchmarks/scaling_law.py --texts FOLDER_OR_FILE           # the grid of runs, then the fit
    python benchmarks/scaling_law.py --fit benchmarks/results/scaling_law.csv

L(N, D) = E + A / N^α + B / D^β (arXiv 2203.15556, equation 2), by the approach of its section 3.3 and appendix D.3:
L-BFGS on the Huber loss of log L from a grid of starts. Each run has its own number of parameters N (embeddings left
out) and tokens D, and its own schedule. Runs lie in outputs/scaling_law and continue where they were interrupted.
Writes benchmarks/results/scaling_law.csv (a row for each run) and scaling_law.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows

RUNS = ROOT / "outputs" / "scaling_law"
PACKAGES = ("torch", "transformers", "tokenizers")
DELTA = 1e-3  # of the Huber loss, as in the paper
_POLISHED = 8  # starts that are followed to the end
FEWEST = 5
"""Runs that determine five constants."""
SHAPES: dict[str, dict[str, int]] = {
    name: {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "intermediate_size": 3 * width,
    }
    for name, width, layers in (("64x2", 64, 2), ("96x3", 96, 3), ("128x4", 128, 4), ("192x4", 192, 4))
}
STEPS = (100, 200, 400)
ROWS, LENGTH, VOCABULARY = 16, 256, 2048
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """L = E + A / N^α + B / D^β, nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Floats, tokens: Floats) -> Floats:
        """Of models of N parameters after D tokens."""
        return np.asarray(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def optimum(self, compute: float) -> tuple[float, float]:
        """(N, D) that the law holds best for a compute of 6 · N · D operations (equation 4)."""
        exponent = self.beta / (self.alpha + self.beta)
        gain = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return gain * (compute / 6) ** exponent, (compute / 6) ** (1 - exponent) / gain


def fit(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> Law:
    """The law nearest to some runs.

    Args: (runs,) parameters, tokens, losses in nats per token.
    Raises: ValueError: fewer runs than constants, or a number that is not above 0.
    """
    from scipy.optimize import minimize

    n, d, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    if not len(n) == len(d) == len(loss) >= FEWEST:
        raise ValueError(f"{len(n)} runs can't determine five constants: at least {FEWEST}")
    if min(n.min(), d.min(), loss.min()) <= 0:
        raise ValueError("parameters, tokens and losses must be above 0")
    log_n, log_d, log_loss = np.log(n), np.log(d), np.log(loss)

    def objective(theta: Floats) -> tuple[float, Floats]:
        """Σ Huber(log-sum-exp(a - α log N, b - β log D, e) - log L), and its gradient."""
        a, b, e, alpha, beta = theta
        parts = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        top = parts.max(axis=0)
        total = np.exp(parts - top).sum(axis=0)
        shares = np.exp(parts - top) / total
        residual = top + np.log(total) - log_loss
        inside = np.abs(residual) <= DELTA
        value = np.where(inside, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2))
        slope = np.clip(residual, -DELTA, DELTA)
        pulls = shares * slope
        gradient = [
            pulls[0].sum(),
            pulls[1].sum(),
            pulls[2].sum(),
            -(pulls[0] * log_n).sum(),
            -(pulls[1] * log_d).sum(),
        ]
        return float(value.sum()) / DELTA**2, np.array(gradient) / DELTA**2

    starts = itertools.product((0.0, 5.0, 10.0, 20.0), (0.0, 5.0, 10.0, 20.0), (-1.0, 0.5), (0.2, 0.6), (0.2, 0.6))
    rough = [minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}) for start in starts]
    best = sorted(rough, key=lambda result: float(result.fun))[:_POLISHED]
    settings = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-10}
    found = [minimize(objective, one.x, jac=True, method="L-BFGS-B", options=settings) for one in best]
    a, b, e, alpha, beta = min(found, key=lambda result: result.fun).x
    return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), float(alpha), float(beta))


# --------------------------------------------------------------------------------------------------------------------
# The runs


def command(texts: str, shape: str, steps: int, seed: int) -> list[str]:
    """A run's command line: its own width, depth, number of tokens, and schedule."""
    options: dict[str, Any] = {
        "objective": "clm",
        "dataset_name": texts,
        "txt_unit": "paragraph",
        "train_tokenizer": {"vocab_size": VOCABULARY},
        "model_type": "qwen2",
        "config_overrides": SHAPES[shape] | {"tie_word_embeddings": True},
        "max_length": LENGTH,
        "per_device_train_batch_size": ROWS,
        "max_steps": steps,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 20,
        "gradient_checkpointing": "false",
        "eval_samples": 64,
        "logging_steps": 20,
        "save_steps": 100,
        "seed": seed,
        "output_dir": str(RUNS / f"{shape}-{steps}-{seed}"),
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", _word(value))]
    return [sys.executable, "recipes/pretrain.py", *flags]


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def measured(shape: str, steps: int, seed: int) -> dict[str, Any]:
    """What a finished run gave: parameters without embeddings, tokens, held-out loss."""
    from safetensors.torch import load_file

    folder = RUNS / f"{shape}-{steps}-{seed}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (loss,) = [line["eval/loss"] for line in lines if line["step"] == steps and "eval/loss" in line]
    weights = load_file(folder / "final" / "model.safetensors")
    parameters = sum(value.numel() for name, value in weights.items() if "embed" not in name and "lm_head" not in name)
    return {
        "shape": shape,
        "steps": steps,
        "parameters": parameters,
        "tokens": steps * ROWS * LENGTH,
        "loss": round(loss, 6),
    }


def plot(rows: Sequence[dict[str, str]], law: Law, path: Path) -> None:
    """Measured losses and the law's, over tokens, one line for each size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for number, size in enumerate(sorted({int(row["parameters"]) for row in rows})):
        own = [row for row in rows if int(row["parameters"]) == size]
        tokens = np.array(sorted(int(row["tokens"]) for row in own), dtype=np.float64)
        curve = np.geomspace(tokens.min() / 1.5, tokens.max() * 1.5, 50)
        axes.plot(curve, law.loss(np.full_like(curve, size), curve), lw=1, color=f"C{number}")
        axes.plot(
            [int(row["tokens"]) for row in own], [float(row["loss"]) for row in own], "o", ms=4, color=f"C{number}",
            label=f"{size / 1e6:.2f}M",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="tokens", title="held-out loss, nats per token; lines: the fitted law")
    axes.legend(title="parameters", frameon=False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def report(law: Law, rows: Sequence[dict[str, str]]) -> str:
    """The law in words, how far the runs are from it, and what it says of more compute."""
    n, d, loss = (np.array([float(row[name]) for row in rows]) for name in ("parameters", "tokens", "loss"))
    apart = np.abs(law.loss(n, d) / loss - 1)
    lines = [
        f"L = {law.E:.3f} + {law.A:.3g} / N^{law.alpha:.3f} + {law.B:.3g} / D^{law.beta:.3f}",
        f"{len(rows)} runs; relative error {apart.mean():.2%} on average, {apart.max():.2%} at most",
    ]
    for factor in (1, 10, 100):
        best_n, best_d = law.optimum(factor * float((6 * n * d).max()))
        lines.append(f"compute x {factor}: N = {best_n:.3g}, D = {best_d:.3g}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", help="what is learned: as --dataset_name of recipes/pretrain.py")
    parser.add_argument("--fit", type=Path, help="only fit the runs of this file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="OpenMP threads")
    arguments = parser.parse_args(argv)
    path = arguments.fit or RESULTS / "scaling_law.csv"
    if arguments.fit is None:
        if arguments.texts is None:
            parser.error("--texts or --fit is needed")
        origin = provenance(arguments.seed, PACKAGES)
        for shape, steps in itertools.product(SHAPES, STEPS):
            words = command(arguments.texts, shape, steps, arguments.seed)
            subprocess.run(words, cwd=ROOT, env=child_environment(arguments.threads), check=True)
            save_rows(path, [measured(shape, steps, arguments.seed) | origin], ("shape", "steps", "seed"))
    rows = read_rows(path)
    law = fit(*([float(row[name]) for row in rows] for name in ("parameters", "tokens", "loss")))
    print(report(law, rows))
    if arguments.fit is None:
        plot(rows, law, RESULTS / "scaling_law.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
