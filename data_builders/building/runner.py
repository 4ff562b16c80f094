"""Run a builder: plan → generate → verify → write, resumable at every moment. See `run_main` and `run`.

Tasks are begun in the order of the plan, many at once across the borders of shards, and their rows are taken in that
order. A shard is written when the last of its tasks has ended; a run that is killed makes the unwritten ones again,
and what the ledger holds of their requests is not asked again.

Exit status: 0 done; 1 some tasks failed (the same command asks them again); 2 something the user can put right; 3 the
budget stopped the run; 4 fewer rows than min_accept_rate were accepted; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from data_builders.building.build import Builder, BuildOptions
from mmreason.types import MMReasonError

if TYPE_CHECKING:
    from mmreason.clients.types import Completer

DONE, SOME_FAILED, USER_ERROR, OUT_OF_BUDGET, FEW_ACCEPTED, INTERRUPTED = 0, 1, 2, 3, 4, 130

O = TypeVar("O", bound=BuildOptions)  # noqa: E741 - an options class


@dataclass(frozen=True)
class Result:
    """How a run ended. manifest: {} after a dry run or a quote."""

    status: int
    manifest: dict[str, Any]


def run_main(
    builder_class: type[Builder[O]], options_class: type[O], argv: Sequence[str] | None, *, description: str | None
) -> int:
    """A builder's command line.

    Args:
        argv: the words behind the command; `sys.argv[1:]` if None.
        description: the module's docstring; its first paragraph stands in `--help`.

    Returns:
        The exit status, see the top of this module.
    """
    from data_builders.building.command import parse_options

    words = list(sys.argv[1:] if argv is None else argv)
    text = (description or "").strip().split("\n\n")[0]
    try:
        options = parse_options(options_class, words or ["--help"], f"mmreason build {builder_class.name}", text)
        builder = builder_class(options)
        return execute(builder, say=_say, progress=sys.stderr.isatty(), description=text, signals=True).status
    except MMReasonError as error:
        from mmreason.report.tokens import printable

        print(f"error: {printable(str(error))}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where it ended")
        return INTERRUPTED


def _say(text: str) -> None:
    from mmreason.report.tokens import printable

    print(printable(text), file=sys.stderr, flush=True)


def run(
    builder: Builder[Any],
    *,
    completers: Sequence[Completer] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> dict[str, Any]:
    """Run a builder from Python; returns the manifest ("complete" and, where it is so, "stopped" tell how it ended).

    Args:
        completers: stand for the configured teachers; no ledger keeps their replies.
        say: told what happens.
        progress: show a bar.

    Raises: MMReasonError.
    """
    return execute(builder, completers=completers, say=say, progress=progress).manifest


def execute(
    builder: Builder[Any],
    *,
    completers: Sequence[Completer] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
    description: str = "",
    signals: bool = False,
) -> Result:
    """Run a builder: its plan, its quote, or all of it.

    Args:
        completers, say, progress: as of `run`.
        description: for the dataset card.
        signals: end in an orderly way at the first Ctrl-C or SIGTERM.

    Raises: MMReasonError.
    """
    from data_builders.building.prepare import prepare

    options: BuildOptions = builder.options
    with prepare(builder, completers, say) as job:
        if options.dry_run:
            for task in job.first_tasks(3):
                say(f"task {task.id}: {_short(task.data)}")
            say(f"dry run: {job.describe()}; nobody was asked and nothing written")
            return Result(DONE, {})
        if options.quote:
            import asyncio

            from data_builders.building.pilot import quote

            found = asyncio.run(quote(job, progress))
            print(found.describe())
            has_none = found.tasks > 0 and not found.made
            return Result(OUT_OF_BUDGET if found.failed["budget"] else SOME_FAILED if has_none else DONE, {})
        import asyncio

        from data_builders.building.work import Work

        work = Work(job, say, progress=progress)
        try:
            asyncio.run(work.run(signals=signals))
        finally:
            manifest = work.finish(description or (type(builder).__doc__ or "").split("\n")[0])
        return Result(work.status, manifest)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 400 else text[:400] + " …"


__all__ = [
    "DONE",
    "FEW_ACCEPTED",
    "INTERRUPTED",
    "OUT_OF_BUDGET",
    "SOME_FAILED",
    "USER_ERROR",
    "execute",
    "run",
    "run_main",
]
