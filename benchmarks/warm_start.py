"""How the shipped warm start is made: `recipes/sft.py` without flags, its curve, and its weights in half precision.

    python benchmarks/warm_start.py             # train (or find it finished), record the curve
    python benchmarks/warm_start.py --publish   # and put the checkpoint into recipes/warm_start

The run lies in outputs/warm_start and continues where it was interrupted. Writes to benchmarks/results/:
warm_start.csv (a row for each logged step and each evaluation) and warm_start.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows
from data_builders.word_problems import VERSION
from mmreason._files import write_whole

RUN = ROOT / "outputs" / "warm_start"
SHIPPED = ROOT / "recipes" / "warm_start"
LARGEST = 4_000_000  # bytes of weights that may be shipped
PACKAGES = ("torch", "transformers", "trl", "tokenizers")
KEPT = ("step", "loss", "mean_token_accuracy", "learning_rate", "grad_norm")
CARD = """\
# The demo's warm start

A decoder of {parameters:.2f}M parameters (Qwen2 architecture, {layers} layers, width {width}) with a tokenizer of
{vocabulary} tokens, both made by this project's code. It has learned generated English word problems of one to four
steps; {bare:.0f} % of its examples showed only the answer, so it knows the steps but mostly guesses at once.

It was made by

    accelerate launch recipes/sft.py
    python benchmarks/warm_start.py --publish

and its curve is benchmarks/results/warm_start.csv and warm_start.png. Weights are stored in float16 and trained on in
float32. manifest.json says what went in and what came out. `make demo-scratch` makes it anew.
{note}"""


def train(threads: int | None) -> float:
    """Run the recipe to its end, or go on with it; returns the seconds that took."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate" / "cpu.yaml")]
    started = time.perf_counter()
    command = [sys.executable, *launcher, "recipes/sft.py"]
    status = subprocess.run(command, cwd=ROOT, env=child_environment(threads), check=False).returncode
    if status:
        raise SystemExit(f"recipes/sft.py ended with exit status {status}")
    return time.perf_counter() - started


def curve_rows() -> list[dict[str, Any]]:
    """Rows of warm_start.csv, by step."""
    rows: dict[int, dict[str, Any]] = {}
    for text in (RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        kept = {name: line[name] for name in line if name in KEPT or name.startswith("eval/")}
        rows.setdefault(line["step"], {}).update({name.removeprefix("eval/"): kept[name] for name in kept})
    for entry in json.loads((RUN / "evaluation.json").read_text(encoding="utf-8")).values():
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        for name, measured in entry["sets"].items():
            greedy = measured["greedy"]
            row |= {f"{name}/greedy": greedy["value"], f"{name}/mean_length": measured["mean_length"]}
    origin = provenance(int(options()["seed"]), PACKAGES)
    return [rows[step] | origin for step in sorted(rows)]


def options() -> dict[str, Any]:
    return dict(yaml.safe_load((RUN / "config.yaml").read_text(encoding="utf-8")))


def plot(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Loss and token accuracy over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axes, name, title in (
        (left, "loss", "loss, nats per token"),
        (right, "mean_token_accuracy", "next token right, training rows"),
    ):
        measured = [row for row in rows if row.get(name)]
        axes.plot([int(row["step"]) for row in measured], [float(row[name]) for row in measured], color="#0072B2", lw=1)
        axes.set(xlabel="step", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="0.9", lw=0.8)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def publish(note: str) -> None:
    """Put the final checkpoint, in float16, with a card and a manifest into recipes/warm_start.

    Args: note: what else the card should say of this run.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(RUN / "final", dtype=torch.float16)
    tokenizer = AutoTokenizer.from_pretrained(RUN / "final")
    new = SHIPPED.with_name(f".{SHIPPED.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    weights = (new / "model.safetensors").read_bytes()
    if len(weights) > LARGEST:
        raise SystemExit(f"the weights have {len(weights):,} bytes, at most {LARGEST:,} may be shipped")
    chosen = options()
    manifest = {
        "made_by": "accelerate launch recipes/sft.py",
        "word_problems": chosen["word_problems"] | {"version": VERSION},
        "steps": chosen["max_steps"],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "evaluation": json.loads((RUN / "evaluation.json").read_text(encoding="utf-8"))["after"],
    } | provenance(int(chosen["seed"]), PACKAGES)
    write_whole(new / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    card = CARD.format(
        parameters=model.num_parameters() / 1e6,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        vocabulary=len(tokenizer),
        bare=100 * chosen["word_problems"]["bare_share"],
        note=f"\n{note}\n" if note else "",
    )
    write_whole(new / "README.md", card)
    shutil.rmtree(SHIPPED, ignore_errors=True)
    new.replace(SHIPPED)
    print(f"published to {SHIPPED}: {len(weights):,} bytes of weights")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--publish", action="store_true", help="put the checkpoint into recipes/warm_start")
    parser.add_argument("--note", default="", help="a sentence about this run for the card")
    parser.add_argument("--threads", type=int, help="OpenMP threads (default: as `make demo-scratch` runs)")
    arguments = parser.parse_args(argv)
    seconds = train(arguments.threads)
    save_rows(RESULTS / "warm_start.csv", curve_rows(), ("step",))
    plot(read_rows(RESULTS / "warm_start.csv"), RESULTS / "warm_start.png")
    if arguments.publish:
        publish(arguments.note)
    print(f"{seconds:.0f} s; written to {RESULTS / 'warm_start.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
