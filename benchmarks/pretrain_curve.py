"""Perplexity on real text while a small decoder learns it from nothing: recipes/pretrain.py on books and web pages.

    python benchmarks/pretrain_curve.py --texts ../shared/data/text            # a tokenizer and a decoder from scratch
    python benchmarks/pretrain_curve.py --texts FOLDER --steps 200

The run lies in outputs/pretrain_curve and continues where it was interrupted. Writes to benchmarks/results/:
pretrain_curve.csv (a row for each logged step and each measurement) and pretrain_curve.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows

RUN = ROOT / "outputs" / "pretrain_curve"
CONFIG = ROOT / "recipes" / "configs" / "pretrain" / "text-small.yaml"
PACKAGES = ("torch", "transformers", "tokenizers")
KEPT = ("step", "loss", "grad_norm", "learning_rate", "eval/loss", "eval/perplexity", "eval/bits_per_byte")


def command(texts: str, steps: int | None, seed: int) -> list[str]:
    """The run's command line: the shipped YAML on the texts that are named."""
    words = [sys.executable, "recipes/pretrain.py", "--config", str(CONFIG), "--dataset_name", texts]
    words += ["--output_dir", str(RUN), "--seed", str(seed)]
    return words + ([] if steps is None else ["--max_steps", str(steps)])


def curve_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Rows of pretrain_curve.csv, by step."""
    rows: dict[int, dict[str, Any]] = {}
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        kept = {name.replace("eval/", "held_out_"): line[name] for name in KEPT if name in line}
        rows.setdefault(line["step"], {}).update(kept)
    origin = provenance(seed, PACKAGES)
    return [rows[step] | origin for step in sorted(rows)]


def plot(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Held-out perplexity and bits per byte over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    names = (("held_out_perplexity", "held-out perplexity"), ("held_out_bits_per_byte", "held-out bits per byte"))
    for one, (name, title) in zip(axes, names, strict=True):
        measured = [row for row in rows if row.get(name)]
        one.plot([int(row["step"]) for row in measured], [float(row[name]) for row in measured], "o-", ms=3, lw=1)
        one.set(xlabel="step", title=title)
        one.grid(axis="y", color="0.9", lw=0.8)
    axes[0].set_yscale("log")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def falls(rows: Sequence[dict[str, str]]) -> bool:
    """Is each measured perplexity below the one before it?"""
    measured = [float(row["held_out_perplexity"]) for row in rows if row.get("held_out_perplexity")]
    return len(measured) > 2 and all(after < before for before, after in itertools.pairwise(measured))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, help="what is learned: as --dataset_name of recipes/pretrain.py")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: as the YAML has it)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="OpenMP threads")
    arguments = parser.parse_args(argv)
    words = command(arguments.texts, arguments.steps, arguments.seed)
    subprocess.run(words, cwd=ROOT, env=child_environment(arguments.threads), check=True)
    path = RESULTS / "pretrain_curve.csv"
    path.unlink(missing_ok=True)  # the curve of one run
    save_rows(path, curve_rows(RUN, arguments.seed), ("step",))
    rows = read_rows(path)
    plot(rows, RESULTS / "pretrain_curve.png")
    print(f"perplexity {'falls at every measurement' if falls(rows) else 'does not fall throughout'}; see {path}")
    return 0 if falls(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
