"""What does a run in the sandbox cost? Against `subprocess.run([python, "-I", "-c", code])`, which isolates nothing.

    python benchmarks/sandbox.py

The same small programs, all different, each with its own right output, through every isolation that this machine
offers and through the peer, in turns. Latency: one run at a time on a warm sandbox, as the caller sees it. Rate: many
runs on `--workers` workers, for the peer as many threads. A line per isolation goes to benchmarks/results/sandbox.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from benchmarks.common import RESULTS, Row, provenance, save_rows
from mmreason.tools.sandbox import Isolation, IsolationError, Job, Sandbox

ISOLATIONS: tuple[Isolation, ...] = ("namespaces", "bubblewrap", "landlock")
PEER = "none (subprocess)"
RunMany = Callable[[Sequence[str]], list[str]]
"""Programs -> what they printed."""

_PROGRAM = """\
import math

def solution(n):
    total = 0
    for i in range(n):
        if math.gcd(i, {a}) == 1:
            total += i * {b}
    return total

print(solution({n}))
"""


def programs(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(program, what it prints); about a tenth of a millisecond of work each."""
    made = []
    for _ in range(count):
        a, b, n = rng.randint(2, 99), rng.randint(2, 10**6), rng.randint(200, 400)
        printed = sum(i * b for i in range(n) if math.gcd(i, a) == 1)
        made.append((_PROGRAM.format(a=a, b=b, n=n), f"{printed}\n"))
    return made


def run_peer(code: str) -> str:
    """The program in a fresh interpreter, with a deadline and nothing else."""
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def peer_many(workers: int) -> RunMany:
    """`run_peer` on some threads."""

    def run(codes: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run_peer, codes))

    return run


def sandbox_many(sandbox: Sandbox) -> RunMany:
    """The sandbox's `run_many`."""
    return lambda codes: [run.stdout for run in sandbox.run_many([Job(code) for code in codes])]


def latencies(run_many: RunMany, made: Sequence[tuple[str, str]]) -> list[float]:
    """Seconds of each program by itself. Raises RuntimeError for a wrong output."""
    seconds = []
    for code, expected in made:
        start = time.perf_counter()
        (printed,) = run_many([code])
        seconds.append(time.perf_counter() - start)
        if printed != expected:
            raise RuntimeError(f"a program printed {printed!r}, not {expected!r}")
    return seconds


def rate(run_many: RunMany, made: Sequence[tuple[str, str]]) -> float:
    """Programs a second. Raises RuntimeError for a wrong output."""
    start = time.perf_counter()
    printed = run_many([code for code, _ in made])
    seconds = time.perf_counter() - start
    if printed != [expected for _, expected in made]:
        raise RuntimeError("a program printed something else than it should")
    return len(made) / seconds


def measure(arguments: argparse.Namespace) -> list[Row]:
    """A row for the peer, then one per isolation."""
    rng = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        ways: dict[str, RunMany] = {PEER: peer_many(arguments.workers)}
        start_s: dict[str, float] = {}
        for isolation in ISOLATIONS:
            try:
                sandbox = stack.enter_context(Sandbox(workers=arguments.workers, isolation=isolation))
                start = time.perf_counter()
                sandbox.warm()
            except IsolationError as error:
                print(f"not measured: {error}", file=sys.stderr)
                continue
            start_s[isolation] = time.perf_counter() - start
            ways[isolation] = sandbox_many(sandbox)
        single: dict[str, list[float]] = {way: [] for way in ways}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for run_many in ways.values():
            latencies(run_many, programs(5, rng))
        for _ in tqdm(range(arguments.repeats), desc="sandbox", leave=False):
            for way, run_many in ways.items():
                single[way] += latencies(run_many, programs(arguments.runs, rng))
                rates[way].append(rate(run_many, programs(arguments.runs, rng)))
    return [row(way, single[way], rates, start_s.get(way), arguments) for way in ways]


def row(
    way: str,
    seconds: Sequence[float],
    rates: dict[str, list[float]],
    start_s: float | None,
    arguments: argparse.Namespace,
) -> Row:
    """The line of one isolation."""
    best, peer = max(rates[way]), max(rates[PEER])  # the machine may be shared: the least disturbed repeat
    return {
        "isolation": way,
        "median_ms": round(statistics.median(seconds) * 1000, 2),
        "p95_ms": round(statistics.quantiles(seconds, n=20)[-1] * 1000, 2),
        "runs_per_s": round(best, 1),
        "rate_over_peer": round(best / peer, 2),
        "start_s": None if start_s is None else round(start_s, 3),
        "workers": arguments.workers,
        "runs": arguments.runs * arguments.repeats,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default %(default)s)")
    parser.add_argument("--runs", type=int, default=200, help="programs per repeat (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of the rates the best counts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    rows = measure(arguments)
    for one in rows:
        print(
            f"{one['isolation']:<18} median {one['median_ms']:>7} ms   p95 {one['p95_ms']:>7} ms   "
            f"{one['runs_per_s']:>7} runs/s on {one['workers']} workers"
        )
    if len(rows) == 1:
        print("this machine offers no isolation: nothing but the peer was measured", file=sys.stderr)
        return 1
    if not arguments.no_save:
        path = RESULTS / "sandbox.csv"
        save_rows(path, [{**one, **provenance(arguments.seed, ())} for one in rows], ("isolation", "workers"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
