"""How fast are answers checked? Measures `mmreason.answers` against math-verify in the same run, on the same strings.

    python benchmarks/answers.py --data ../shared/data        # real GSM8K solutions and MATH golds
    python benchmarks/answers.py                               # strings made by code

Easy path: extract + verify of GSM8K-like solutions, in one thread of this process. Hard path: golds and their
rewritings that need symbolic comparison, through the worker pool, against math-verify's own `parse` + `verify` in one
process. Writes one line per measurement to benchmarks/results/answers.csv.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import RESULTS, provenance, save_rows
from mmreason.answers import infer_kind, verify, verify_many
from mmreason.answers.pool import default_workers, shared_pool

Pair = tuple[str, str]


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def easy_pairs(data: Path | None, count: int, rng: random.Random) -> list[Pair]:
    """(solution, gold) pairs in GSM8K's manner."""
    if data is not None:
        rows = read_rows(data / "gsm8k" / "model_solutions_labeled.jsonl")
        pairs = [(str(row["solution"]), str(row["gold"])) for row in rows]
        return [pairs[i % len(pairs)] for i in range(count)]
    pairs = []
    for _ in range(count):
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        step = f"She buys {a} packs of {b} pens, so she has {a} * {b} = <<{a}*{b}={a * b}>>{a * b} pens.\n"
        gold = a * b + rng.choice((0, 0, 1))
        pairs.append(
            (step * 3 + rng.choice(("A: {}", "#### {}", "The answer is {}.", "\\boxed{{{}}}")).format(a * b), str(gold))
        )
    return pairs


def hard_pairs(data: Path | None, count: int, rng: random.Random) -> list[Pair]:
    """(boxed answer, gold) pairs that need symbols; all differ, so that nothing is compared twice."""
    if data is not None:
        rows = read_rows(data / "math" / "train_answers.jsonl") + read_rows(data / "math" / "math500.jsonl")
        golds = sorted({str(row["answer"]) for row in rows if row["answer"] is not None})
        golds = [gold for gold in golds if infer_kind(gold) == "math"]
    else:
        golds = [
            rng.choice(
                ("\\frac{{{}\\sqrt{{{}}}}}{{{}}}", "{}x^2 + {}x + {}", "\\left( {}, \\frac{{{}\\pi}}{{{}}} \\right)")
            ).format(rng.randint(2, 50), rng.randint(2, 50), rng.randint(3, 50))
            for _ in range(400)
        ]
    pairs: dict[Pair, None] = {}
    for gold in golds:
        pairs[(f"\\boxed{{{gold} + 0}}", gold)] = None
    while len(pairs) < count:
        left, right = rng.choice(golds), rng.choice(golds)
        if left != right:
            pairs[(f"\\boxed{{{left}}}", right)] = None
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    return shuffled[:count]


def rate(run: Callable[[], object], count: int, repeats: int, label: str) -> float:
    """The best of `repeats` rates, in items a second (the machine is shared: the best run is the least disturbed)."""
    best = 0.0
    for _ in tqdm(range(repeats), desc=label, leave=False):
        start = time.perf_counter()
        run()
        best = max(best, count / (time.perf_counter() - start))
    return best


def math_verify_rate(pairs: Sequence[Pair], repeats: int) -> float:
    """math-verify's `parse` + `verify` with its defaults, in this process."""
    import logging

    from math_verify import parse
    from math_verify import verify as compare

    logging.disable(logging.CRITICAL)

    def run() -> None:
        for text, gold in pairs:
            compare(parse(f"${gold}$"), parse(text))

    for text, gold in pairs[:20]:  # load the grammar outside the clock
        compare(parse(f"${gold}$"), parse(text))
    return rate(run, len(pairs), repeats, "math-verify")


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All measurements as rows (name, value, unit)."""
    rng = random.Random(arguments.seed)
    easy = easy_pairs(arguments.data, arguments.easy, rng)
    texts, golds = [text for text, _ in easy], [gold for _, gold in easy]
    rows: list[dict[str, object]] = []

    def note(name: str, value: float, unit: str, items: int) -> None:
        rows.append({"name": name, "value": round(value, 3), "unit": unit, "items": items})

    note(
        "easy verify_many",
        rate(lambda: verify_many(texts, golds), len(easy), arguments.repeats, "easy"),
        "answers/s",
        len(easy),
    )
    one_by_one = rate(lambda: [verify(*pair) for pair in easy], len(easy), arguments.repeats, "easy, one by one")
    note("easy verify", one_by_one, "answers/s", len(easy))
    hard = hard_pairs(arguments.data, arguments.hard, rng)
    workers = arguments.workers or default_workers()
    verify_many(["\\boxed{\\pi x}"] * workers, [f"\\sqrt{{{i + 2}}}" for i in range(workers)], workers=workers)  # start
    hard_texts, hard_golds = [text for text, _ in hard], [gold for _, gold in hard]
    pooled = rate(
        lambda: verify_many(hard_texts, hard_golds, workers=workers, timeout_s=30),
        len(hard),
        arguments.repeats,
        "hard, pool",
    )
    shared_pool().close()
    single = math_verify_rate(hard, arguments.repeats)
    note(f"hard pool, {workers} workers", pooled, "answers/s", len(hard))
    note("hard math-verify, 1 process", single, "answers/s", len(hard))
    note(f"hard pool / ({workers} x math-verify)", pooled / (workers * single), "ratio", len(hard))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and math/ (default: generated strings)")
    parser.add_argument("--easy", type=int, default=7200, help="easy pairs (default %(default)s)")
    parser.add_argument("--hard", type=int, default=1500, help="hard pairs (default %(default)s)")
    parser.add_argument("--workers", type=int, help="worker processes (default: one per usable core, at most 8)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data: no such folder: {arguments.data}")
    rows = measure(arguments)
    for row in rows:
        print(f"{row['name']:<36} {row['value']:>12} {row['unit']:<10} ({row['items']} items)")
    if not arguments.no_save:
        under = provenance(arguments.seed, ("math-verify", "sympy", "latex2sympy2_extended"))
        strings = {"strings": "real" if arguments.data else "generated"}
        path = RESULTS / "answers.csv"
        save_rows(path, [row | strings | under for row in rows], ("name", "strings"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
