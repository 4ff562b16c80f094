"""What does a distillation step hold in memory? Heads in chunks against logits of all places, vocabulary of 150,000.

    python benchmarks/distill_memory.py

Student and teacher heads (hidden 512 and 1024) over 2,048 places: divergence and its gradient for hidden states and the
student's head. Plain is what one writes with torch (logits of both, log_softmax, KL); ours applies the heads to 256
places at a time (`mmreason.losses.distill.in_chunks`). Each runs in a process of its own; its peak is counted from
where heads and hidden states are there already. Losses and gradients have to agree.
Writes benchmarks/results/distill_memory.csv and .png; exit status 1 where the peak is not GOAL times smaller.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, read_rows, save_rows

GOAL = 3.0
HIDDEN, TEACHER = 512, 1024
PLAIN, WHOLE, CHUNKED = "torch, all logits", "ours, all logits", "ours, in chunks"
KINDS = ("forward_kl", "jsd")


def measure(way: str, kind: str, vocab: int, places: int, seed: int) -> dict[str, Any]:
    """Loss, gradient norms, seconds and MiB of one step in this process."""
    import torch
    import torch.nn.functional as F

    from mmreason.losses.distill import in_chunks, logits_divergence

    torch.manual_seed(seed)
    student, teacher = torch.nn.Linear(HIDDEN, vocab, bias=False), torch.nn.Linear(TEACHER, vocab, bias=False)
    hidden, theirs = torch.randn(places, HIDDEN, requires_grad=True), torch.randn(places, TEACHER)
    student.weight.grad = torch.zeros_like(student.weight)  # part of what is there before
    teacher.requires_grad_(False)
    before = _peak_mib()
    started = time.perf_counter()
    if way == PLAIN:
        p, q = F.log_softmax(teacher(theirs), -1), F.log_softmax(student(hidden), -1)
        if kind == "forward_kl":
            loss = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
        else:
            half = torch.log(torch.tensor(0.5))
            mixture = torch.logsumexp(torch.stack([p + half, q + half]), dim=0)
            parts = [F.kl_div(mixture, one, reduction="none", log_target=True).sum(-1) for one in (p, q)]
            loss = 0.5 * (parts[0] + parts[1]).mean()
    else:

        def compute(mine: Any, other: Any) -> Any:
            return logits_divergence(student(mine), teacher(other), kind)  # type: ignore[arg-type]

        loss = in_chunks(compute, hidden, theirs, size=256 if way == CHUNKED else places).mean()
    loss.backward()
    seconds = time.perf_counter() - started
    assert hidden.grad is not None
    return {
        "loss": loss.item(),
        "hidden_grad": hidden.grad.norm().item(),
        "head_grad": student.weight.grad.norm().item(),
        "seconds": seconds,
        "mib": _peak_mib() - before,
    }


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run(way: str, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    words = ["--child", way, kind, "--vocab", str(arguments.vocab), "--places", str(arguments.places)]
    command = [sys.executable, "-m", "benchmarks.distill_memory", *words, "--seed", str(arguments.seed)]
    env = child_environment(arguments.threads)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{way}, {kind}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--places", type=int, default=2_048)
    parser.add_argument("--threads", type=int, default=2, help="OpenMP threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        way, kind = arguments.child
        print(json.dumps(measure(way, kind, arguments.vocab, arguments.places, arguments.seed)))
        return 0
    rows, is_well = [], True
    for kind in KINDS:
        found = {way: run(way, kind, arguments) for way in (PLAIN, WHOLE, CHUNKED)}
        for way, one in found.items():
            for name in ("loss", "hidden_grad", "head_grad"):
                if abs(one[name] - found[PLAIN][name]) > 1e-3 * abs(found[PLAIN][name]):
                    raise SystemExit(f"{kind}, {way}: {name} is {one[name]}, with torch {found[PLAIN][name]}")
            ratio = found[PLAIN]["mib"] / one["mib"]
            rows.append(
                {
                    "divergence": kind,
                    "way": way,
                    "vocabulary": arguments.vocab,
                    "places": arguments.places,
                    "peak_mib": round(one["mib"]),
                    "less": round(ratio, 2),
                    "seconds": round(one["seconds"], 2),
                    **provenance(arguments.seed, ["torch"]),
                }
            )
            print({name: rows[-1][name] for name in ("divergence", "way", "peak_mib", "less", "seconds")}, flush=True)
        is_well &= found[PLAIN]["mib"] >= GOAL * found[CHUNKED]["mib"]
    save_rows(RESULTS / "distill_memory.csv", rows, ("divergence", "way", "vocabulary", "places"))
    plot(read_rows(RESULTS / "distill_memory.csv"))
    print(f"{GOAL} times less is claimed: {'as claimed' if is_well else 'NOT so'}")
    return 0 if is_well else 1


def plot(rows: Sequence[dict[str, str]]) -> None:
    """Peak memory of each way as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.4, 3.0), layout="constrained")
    colours = {PLAIN: "0.6", WHOLE: "tab:cyan", CHUNKED: "tab:blue"}
    for shift, way in enumerate((PLAIN, WHOLE, CHUNKED)):
        own = {row["divergence"]: float(row["peak_mib"]) / 1024 for row in rows if row["way"] == way}
        places = [place + 0.27 * (shift - 1) for place in range(len(KINDS))]
        bars = axis.bar(places, [own[kind] for kind in KINDS], width=0.25, color=colours[way], label=way)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.set_xticks(range(len(KINDS)), KINDS)
    axis.set_ylabel("peak memory, GiB")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "distill_memory.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
