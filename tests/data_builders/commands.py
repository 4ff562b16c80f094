"""How long a command works, for limits that hold on a busy machine too."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence


def output_and_cpu_seconds(command: Sequence[str], tries: int = 3) -> tuple[str, float]:
    """A command's output, and the processor seconds of its quickest run."""
    best, text = float("inf"), ""
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return text, best
