"""`--watch`: the report follows a run that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from mmreason.report.page import Report
from mmreason.report.run import fingerprint
from mmreason.types import MMReasonError


def watch_report(
    runs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    seconds: float = 10.0,
    say: Callable[[str], None] = print,
    started: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the report, and again whenever a file of the runs has changed, until they are finished or Ctrl-C.

    While it goes on, the page reloads itself; the last version that is written doesn't any more. A run counts as
    finished when its last step is done and measured (evaluation.json has "after").

    Args:
        runs, out: as for `write_report`. seconds: time between two looks at the files.
        say: gets a line for everything that happens. started: called once, with the first written file.

    Raises:
        DataError, ConfigError, MMReasonError: as `write_report`, for the first report only; later ones are said, and
            tried again.
    """
    report = Report([Path(run) for run in runs], None if out is None else Path(out))
    say(f"watching {', '.join(report.names)}: a new report within {seconds:g} s of any change; Ctrl-C ends it")
    seen = [fingerprint(path) for path in report.paths]
    try:
        report.write(say, seconds)
        started(report.out)
        while not all(run.finished for run in report.runs):
            time.sleep(seconds)
            now = [fingerprint(path) for path in report.paths]
            if now != seen:
                seen = now
                _write_again(report, say, seconds)
        end = "the run is finished" if len(report.runs) == 1 else "all runs are finished"
    except KeyboardInterrupt:
        end = "stopped"
        if not report.runs:
            say("stopped before the first report was written")
            return report.out
    report.publish()
    say(f"{end}; {report.out} is the last report")
    return report.out


def _write_again(report: Report, say: Callable[[str], None], seconds: float) -> None:
    before = {problem for run in report.runs for problem in run.problems}
    lines: list[str] = []
    try:
        report.write(lines.append, seconds)
    except MMReasonError as error:  # the folder is being started over, or the disk is full: that can pass
        say(f"{_clock()} {error}; trying again at the next change")
        return
    steps = ", ".join(f"{name} at step {run.last_step}" for name, run in zip(report.names, report.runs, strict=True))
    say(f"{_clock()} {steps}: {lines[-1]}")
    for run in report.runs:
        for problem in run.problems:
            if problem not in before:
                say(f"  {problem}")


def _clock() -> str:
    return datetime.now().strftime("%H:%M:%S")
