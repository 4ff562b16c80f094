"""Run data → one HTML file that needs nothing else: no network, no second file, no library."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmreason import __version__
from mmreason._files import write_whole
from mmreason.report.data import Limits, RunData
from mmreason.report.payload import answers_data, browser_data, page_data
from mmreason.report.rollouts import RolloutReader
from mmreason.report.run import name_runs, read_run
from mmreason.types import ConfigError, MMReasonError

ASSETS = files("mmreason.report") / "assets"
# In the order in which they build on each other; together they are one script.
SCRIPTS = (
    "dom.js",
    "state.js",
    "charts.js",
    "pictures.js",
    "summary.js",
    "reward_model.js",
    "bill.js",
    "curves.js",
    "answers.js",
    "tokens.js",
    "rollouts.js",
    "settings.js",
    "main.js",
)
FILE_NAME = "report.html"


def write_report(
    runs: Sequence[Path | str], out: Path | str | None = None, *, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Write the report of one run, or of several next to each other.

    Args:
        runs: output folders of recipes, finished or not.
        out: the file; `report.html` in the first run's folder by default.
        say: gets a line per run, per file that can't be read, and for the result.

    Returns:
        The written file.

    Raises:
        DataError: a folder is no run. ConfigError: no run, or one twice. MMReasonError: the file can't be written.
    """
    return Report([Path(run) for run in runs], None if out is None else Path(out)).write(say)


class Report:
    """The report of some runs, written once or again and again while they go on."""

    def __init__(self, runs: Sequence[Path], out: Path | None = None, limits: Limits | None = None) -> None:
        if not runs:
            raise ConfigError("a report needs at least one run: give a recipe's output_dir")
        self.paths = list(runs)
        self.names = name_runs(self.paths)
        self.out = out if out is not None else self.paths[0] / FILE_NAME
        self.limits = (limits or Limits()).divided(len(self.paths))
        self.runs: list[RunData] = []
        self._readers = [RolloutReader() for _ in self.paths]
        if self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a folder; name a file in it, such as {self.out / FILE_NAME}")

    def write(self, say: Callable[[str], None], reload_seconds: float | None = None) -> Path:
        """Read the runs and write the page, which asks for its successor every `reload_seconds` if given."""
        self.runs = [
            read_run(path, name=name, limits=self.limits, reader=reader)
            for path, name, reader in zip(self.paths, self.names, self._readers, strict=True)
        ]
        for run in self.runs:
            say(describe(run))
            for line in run.problems + run.notes:
                say(f"  {line}")
        size = self.publish(reload_seconds)
        say(f"wrote {self.out} ({size / 1e6:.1f} MB)")
        return self.out

    def publish(self, reload_seconds: float | None = None) -> int:
        """Write the page from what was read last, atomically; returns its size in bytes."""
        page = render(self.runs, self.limits, reload_seconds).encode("utf-8")
        try:
            write_whole(self.out, page)
        except OSError as error:
            raise MMReasonError(
                f"the report {self.out} can't be written ({error}); choose another file with --out"
            ) from error
        return len(page)


def describe(run: RunData) -> str:
    """One line for the terminal: what was found in a run."""
    parts = [f"{_count(len(run.metrics.steps), 'step')} of metrics"]
    if run.rollouts is not None:
        total, shown = run.rollouts.total_completions, run.rollouts.shown
        part = f"{_count(total, 'completion')} in {_count(len(run.rollouts.steps), 'rollout')}"
        parts.append(part + (f", {shown:,} of them to browse" if shown < total else ""))
    else:
        parts.append("no rollouts")
    parts.append(_count(len(run.measurements), "evaluation"))
    return f"{run.path}: {'; '.join(parts)}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def render(runs: Sequence[RunData], limits: Limits, reload_seconds: float | None = None) -> str:
    """The page as text.

    What models wrote is data, never markup: it sits in script elements that browsers don't run, with `<` escaped, and
    the page's script puts it on the screen as text. A Content-Security-Policy allows that one script and nothing else.
    """
    from jinja2 import Environment, StrictUndefined

    style = _asset("style.css")
    script = "(() => {\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    data = page_data(runs, limits)
    data |= {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "reload": reload_seconds,
    }
    packed = {}
    for i, run in enumerate(runs):
        if run.rollouts is not None and run.rollouts.groups:
            packed[f"rollouts-{i}"] = pack(browser_data(run.rollouts))
        if run.answers:
            packed[f"answers-{i}"] = pack(answers_data(run.answers))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("page.html.j2"))
    return template.render(
        title=" · ".join(run.name for run in runs),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=script_json(data),
        packed=packed,
    )


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or begin a comment."""
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and lone surrogates are escaped
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(value: Any) -> str:
    """Large data as base64 of gzipped JSON, unpacked by the page when it is first looked at."""
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(encoded, compresslevel=6, mtime=0)).decode("ascii")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A Content-Security-Policy source: the browser runs an inline element only if its content hashes to this."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
