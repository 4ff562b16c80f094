"""What the benchmarks share: the columns that say under what something was measured, results files, thread counts."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmreason._files import write_whole
from mmreason.cli.env import list_gpus

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Changes of these make a measurement one of more than the last commit; changed docs and results don't.
_CODE = ("mmreason", "recipes", "data_builders", "benchmarks/*.py", "constraints.txt")

Row = Mapping[str, Any]


def provenance(seed: int, packages: Sequence[str]) -> dict[str, Any]:
    """The columns that every results file ends with.

    Args: packages: those whose versions the numbers depend on; one that isn't installed is left out.
    """
    found = [f"python={platform.python_version()}"]
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name}={version(name)}")
    return {
        "seed": seed,
        "machine": machine(),
        "versions": " ".join(found),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine() -> str:
    """Processor, number of cores and GPUs: "x86_64, 2 CPUs"."""
    gpus = [gpu.split(",")[0] for gpu in list_gpus()]
    return ", ".join([platform.machine(), f"{os.cpu_count()} CPUs", *gpus])


def commit() -> str:
    """The commit that is measured, with "+changes" where the code differs from it; "unknown" outside a repository."""
    head = _git("rev-parse", "--short", "HEAD")
    return (head + ("+changes" if _git("status", "--porcelain", "--", *_CODE) else "")) if head else "unknown"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def save_rows(path: Path, rows: Sequence[Row], part: Sequence[str]) -> None:
    """Write a results file, atomically. Rows of parts that were not measured this time stay as they are.

    Args: part: the columns that name what was measured; rows of the file that are like a new one in them are replaced.
    """

    def key(row: Row) -> tuple[str, ...]:
        return tuple(_cell(row.get(name)) for name in part)

    measured = {key(row) for row in rows}
    kept = [row for row in read_rows(path) if key(row) not in measured]
    table: list[Row] = [*kept, *rows]
    last = list(provenance_columns())
    names = dict.fromkeys(name for row in table for name in row if name not in last)
    columns = [*names, *(name for name in last if any(name in row for row in table))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)
    write_whole(path, text.getvalue())


def provenance_columns() -> tuple[str, ...]:
    """The names of the columns that `provenance` gives."""
    return ("seed", "machine", "versions", "commit", "date")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a results file; none where it isn't there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def child_environment(threads: int | None) -> dict[str, str]:
    """The environment for a process that is measured; without a number of threads it chooses as it does for users.

    Fewer threads than cores leave room for whatever else the machine does, and make sums repeatable elsewhere.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment
