"""Bounds in seconds that mean the same on a slow or busy machine as on the one they were set on."""

from __future__ import annotations

import time

# Seconds that `building.work` takes on the quiet two-core x86-64 virtual machine (CPython 3.11) of the docs' numbers.
_REFERENCE_S = 0.0085
_ROUNDS = 7


def _work() -> int:
    """What this project's own code does most: small strings, dictionaries, function calls."""
    counts: dict[str, int] = {}
    for i in range(60_000):
        word = str(i % 997)
        counts[word] = counts.get(word, 0) + len(word)
    return len(counts)


def slowness() -> float:
    """How many times longer this machine takes, now, than the reference does when it is quiet; at least 1."""
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        _work()
        seconds.append(time.perf_counter() - start)
    return max(1.0, sum(seconds) / _ROUNDS / _REFERENCE_S)


def allowed(seconds: float) -> float:
    """A bound that was set for the reference machine, as long as this one needs for the same work."""
    return seconds * slowness()
