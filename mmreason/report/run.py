"""Reading one run folder. Whatever is missing is left out; whatever can't be read is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmreason.report.answers import read_answers
from mmreason.report.data import Limits, RunData
from mmreason.report.metrics import read_bill, read_events, read_measurements, read_metrics
from mmreason.report.rollouts import RolloutReader
from mmreason.report.settings import read_record, read_settings
from mmreason.types import ConfigError, DataError

_MARKS = ("metrics.jsonl", "run.json", "evaluation.json", "rollouts", "evaluations")
WATCHED = (
    "metrics.jsonl",
    "guards.jsonl",
    "run.json",
    "config.yaml",
    "evaluation.json",
    "bill.json",
    "rollouts/*.parquet",
    "evaluations/*.parquet",
)


def check_run(path: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        DataError: says what was looked for.
    """
    if path.is_dir() and any((path / name).exists() for name in _MARKS):
        return
    what = "no such folder" if not path.exists() else "a file" if not path.is_dir() else "has none of them"
    raise DataError(
        f"{path} is no run: a run's output_dir holds {', '.join(_MARKS[:-1])} or {_MARKS[-1]} ({what}). "
        "Give the output_dir of a recipe",
        path=path,
        reason="no_run",
    )


def read_run(
    path: Path, *, name: str | None = None, limits: Limits | None = None, reader: RolloutReader | None = None
) -> RunData:
    """Read a run's output folder, finished or not.

    Args:
        path: the output_dir of a recipe. name: what to call it; the folder's name by default.
        limits: how many texts to keep. reader: one that read this run before, to read only what changed.

    Raises:
        DataError: no run is there.
    """
    path = Path(path)
    check_run(path)
    limits = limits or Limits()
    metrics, problems, notes = read_metrics(path / "metrics.jsonl")
    events, bad_events = read_events(path / "guards.jsonl")
    settings, bad_settings = read_settings(path / "config.yaml")
    record, bad_record = read_record(path / "run.json")
    measurements, bad_measurements = read_measurements(path / "evaluation.json")
    bill, bad_bill = read_bill(path / "bill.json")
    answers, bad_answers = read_answers(path / "evaluations", limits)
    rollouts, bad_rollouts = (reader or RolloutReader()).read(path / "rollouts", limits)
    return RunData(
        path=path,
        name=name or path.resolve().name,
        metrics=metrics,
        measurements=measurements,
        answers=answers,
        rollouts=rollouts,
        settings=settings,
        record=record,
        problems=problems
        + bad_events
        + bad_settings
        + bad_record
        + bad_measurements
        + bad_bill
        + bad_answers
        + bad_rollouts,
        notes=notes,
        events=events,
        bill=bill,
    )


def name_runs(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart.

    Raises:
        ConfigError: a run is there twice.
    """
    parts = [path.resolve().parts for path in paths]
    for i, path in enumerate(paths):
        if parts[i] in parts[:i]:
            raise ConfigError(f"{path} is named twice; a report compares different runs")
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def fingerprint(path: Path) -> frozenset[tuple[str, int, int]]:
    """Names, times and sizes of the files that a report reads: differs when there is something new to show."""
    found = set()
    for pattern in WATCHED:
        for file in path.glob(pattern):
            try:
                stat = file.stat()
            except FileNotFoundError:  # replaced or rewound between the two calls; the next look sees it
                continue
            found.add((str(file), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)
