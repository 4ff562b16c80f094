"""`mmreason report RUN …`: one HTML file about a run, or about several next to each other."""

from __future__ import annotations

import argparse
import math
import webbrowser
from collections.abc import Sequence
from pathlib import Path

DEFAULT_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; called for every `mmreason --help`, so nothing heavy happens here."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a recipe's output_dir; several are compared")
    parser.add_argument("--out", metavar="FILE", help="the HTML file (default: report.html in the first RUN)")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive_seconds,
        const=DEFAULT_SECONDS,
        metavar="SECONDS",
        help=f"follow runs that go on: write it again when files change (looks every {DEFAULT_SECONDS:g} s)",
    )
    parser.add_argument("--open", action="store_true", help="show it in the web browser")


def positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds (a RUN goes before --watch)")
    return seconds


def run_report(runs: Sequence[str], out: str | None, watch: float | None, show: bool) -> int:
    """Write the report, saying what was read and what could not be; with `watch` again and again."""
    from mmreason.report import watch_report, write_report

    def say(line: str) -> None:
        print(line, flush=True)

    def started(path: Path) -> None:
        if show and not webbrowser.open(path.resolve().as_uri()):
            say(f"no web browser was found; open {path} in one")

    if watch is None:
        started(write_report(runs, out, say=say))
    else:
        watch_report(runs, out, seconds=watch, say=say, started=started)
    return 0
