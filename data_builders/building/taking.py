"""Take what tasks have become, in the order of the plan: check the rows, keep them, write shards, see when to stop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from data_builders.building.build import Drop, Task
from data_builders.building.card import make_card
from data_builders.building.counts import HITS, Counts, sum_counts
from data_builders.building.manifest import make_manifest
from data_builders.building.prepare import Job, check_ids
from data_builders.building.progress import Progress
from data_builders.building.row_stats import RowStats
from data_builders.building.shards import CARD, REPORT, Entry, normalise
from data_builders.building.writing import MANIFEST
from mmreason._files import write_whole
from mmreason.clients.types import EndpointError, ErrorKind
from mmreason.types import DataError, Example, MMReasonError

if TYPE_CHECKING:
    from data_builders.building.work import Outcome

MANY_FAILURES = 100
"""Failures in a row after which the server is taken for gone."""
FINAL: tuple[ErrorKind, ...] = ("bad_request", "schema", "bad_reply", "logprobs")
"""Errors of the request or its reply. Others may pass: where later tasks depend on a task's rows, they wait for it."""
_SHOWN_DROPS = 3


@dataclass(frozen=True)
class Stop:
    """Why a run ends early. status: see `building/runner.py`."""

    status: int
    why: str


class Taking:
    """The state of a run between the tasks and the files. Args: see `Work`."""

    def __init__(self, job: Job, say: Callable[[str], None], *, progress: bool) -> None:
        self.job, self.say = job, say
        self.index = 0
        self.stop: Stop | None = None
        self.stats = RowStats()
        self._ids: set[str] = set()
        self._after = ""
        self._shard = 0
        self._is_finished = False
        self._begin_shard()
        self._replayed: list[list[Example]] = []
        self._tasks = self._accepted = self._failures_in_row = 0
        self._progress = Progress(job, say, bar=progress)

    def __enter__(self) -> Taking:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()

    @property
    def failed(self) -> int:
        """Tasks of the set that have no reply."""
        return sum(sum(entry.counts["failed"].values()) for entry in self.job.store.entries)

    def _begin_shard(self) -> None:
        self._task_ids: list[str] = []
        self._rows: list[list[Example]] = []
        self._counts = Counts()
        self._is_whole = True

    # ----------------------------------------------------------------------------------------------------------------
    # Rows of finished shards

    def replay(self, task: Task) -> None:
        """Let a task of a finished shard pass: its rows go through `keep` again.

        Raises: DataError: a damaged shard, another plan, or a builder that now drops what it kept.
        """
        entry = self.job.finished[self._shard]
        if not self._task_ids:
            self._replayed = self.job.store.read(entry)
        rows = self._replayed[len(self._task_ids)]
        self._task_ids.append(task.id)
        for row in rows:
            self._ids.add(str(row.get("id")))
            dropped = self.job.builder.keep(row)
            if dropped is not None:
                raise DataError(
                    f"{self.job.store.folder}: the row {row.get('id')!r} of shard {entry.number} was kept, and is now "
                    f"dropped ({dropped.reason}): keep() of {self.job.builder.name} must follow from kept rows alone"
                )
            self.stats.add(row)
        self.index += 1
        if len(self._task_ids) == len(entry.rows_of):
            check_ids(self.job.store, entry, self._task_ids)
            counts = Counts.of_json(entry.counts)
            self._tasks += counts.tasks - counts.failed.total()
            self._accepted += counts.accepted
            self._progress.replayed(counts)
            self._after, self._shard, self._replayed = entry.hash, self._shard + 1, []
            self._begin_shard()

    # ----------------------------------------------------------------------------------------------------------------
    # Rows of new tasks

    def saw(self, outcome: Outcome) -> None:
        """A task has ended, though perhaps not yet those before it."""
        self._progress.saw(outcome.meter.spent)
        if isinstance(outcome.error, EndpointError) and _meets_all(outcome.error):
            status = 3 if outcome.error.kind == "budget" else 1
            self._stop(status, str(outcome.error))

    def interrupt(self) -> bool:
        """Stop in order; False where that has been asked for before."""
        if self.stop is not None:
            return False
        self._stop(130, "interrupted")
        return True

    def take(self, outcome: Outcome) -> None:
        """Check and keep the rows of the next task, and write its shard if it is the last of it.

        Raises: DataError: a row that a builder must not make. OSError: the shard can't be written.
        """
        task, counts = outcome.task, self._counts
        kept: list[Example] = []
        error = outcome.error
        is_failed = isinstance(error, EndpointError) and error.kind != "refused"
        if isinstance(error, EndpointError) and is_failed:
            counts.failed[error.kind] += 1
            self._fail(error)
        else:
            self._failures_in_row = 0
            if error is not None:  # the provider's content filter has spoken: asked again, it would be paid again
                counts.drop("refused", f"{task.id}: {error}")
            elif outcome.made is not None:
                kept = self._check_rows(outcome)
                counts.extra.update(outcome.made.counts)
        counts.tasks += 1
        counts.accepted += bool(kept)
        for name in ("replies", "prompt_tokens", "completion_tokens", "dollars"):
            setattr(counts, name, getattr(counts, name) + getattr(outcome.meter, name))
        self.index += 1
        self._task_ids.append(task.id)
        self._rows.append(kept)
        self._tasks += not is_failed
        self._accepted += bool(kept)
        self._progress.took(accepted=bool(kept), failed=bool(isinstance(error, EndpointError)))
        self._watch_rate()
        if len(self._task_ids) == self.job.store.size:
            self._write(ended=False)

    def _fail(self, error: EndpointError) -> None:
        has_rounds = self.job.builder.round_size is not None
        if not has_rounds or error.kind not in FINAL:
            self._is_whole = False
            if has_rounds:  # tasks paid for without its rows would be other ones once it has some
                self._stop(1, f"later tasks depend on one that failed: {error}")
        self._failures_in_row += 1
        if self._failures_in_row >= MANY_FAILURES:
            self._stop(1, f"{MANY_FAILURES} tasks in a row failed, the last with: {error}")

    def _check_rows(self, outcome: Outcome) -> list[Example]:
        made, counts, kept = outcome.made, self._counts, list[Example]()
        assert made is not None
        for drop in made.drops:
            counts.drop(drop.reason, f"{outcome.task.id}: {drop.text}")
        for row, hit in zip(made.rows, outcome.hits, strict=True):
            counts.made += 1
            try:
                row = self._checked(row, outcome.task)
            except UnicodeEncodeError as error:  # half a character, as models write it now and then
                counts.drop("bad_encoding", f"{row['id']}: {error}")
                continue
            if hit is not None:
                counts.hits[hit.dataset] += 1
                if len(counts.hit_samples) < HITS:
                    counts.hit_samples.append(f"{row['id']}: {hit.reason}")
                counts.drop("contaminated", f"{row['id']}: {hit.reason}")
                continue
            dropped = self._keep(row)
            if dropped is not None:
                counts.drop(dropped.reason, f"{row['id']}: {dropped.text or _text(row)}")
                continue
            kept.append(row)
            counts.kept += 1
            self.stats.add(row)
        return kept

    def _checked(self, row: Example, task: Task) -> Example:
        builder = self.job.builder
        unknown = [name for name in row if name not in builder.columns and row[name] is not None]  # type: ignore[literal-required]
        if unknown or not isinstance(row.get("id"), str) or not row["id"]:
            what = f"the column {unknown[0]!r}, which is none of its columns" if unknown else "no id (a text)"
            raise DataError(f"{builder.name}: a row of the task {task.id!r} has {what}", row=task.id)
        return normalise(row, builder.columns)

    def _keep(self, row: Example) -> Drop | None:
        if row["id"] in self._ids:
            return Drop("duplicate_id", "another row has this id")
        dropped = self.job.builder.keep(row)
        if dropped is None:
            self._ids.add(row["id"])
        return dropped

    def _watch_rate(self) -> None:
        options = self.job.options  # tasks that failed say nothing of the builder
        if self._tasks >= options.min_accept_after and self._accepted < options.min_accept_rate * self._tasks:
            self._stop(
                4,
                f"{self._accepted} of {self._tasks} tasks gave a row, {self._accepted / self._tasks:.0%}, and "
                f"min_accept_rate is {options.min_accept_rate:.0%}",
            )

    def _stop(self, status: int, why: str) -> None:
        self.stop = self.stop or Stop(status, why)

    # ----------------------------------------------------------------------------------------------------------------
    # Files

    def _write(self, *, ended: bool) -> None:
        whole = self._is_whole and (ended or len(self._task_ids) in (self.job.store.size, self._last_size()))
        entry = self.job.store.write(
            self._task_ids, self._rows, self._counts, self._after, self._shard, complete=whole, ended=ended
        )
        self._after, self._shard = entry.hash, self._shard + 1
        self._progress.wrote(self._counts)
        self._begin_shard()

    def _last_size(self) -> int:
        """Tasks of the last shard where the limit ends the plan; 0 where it is not this shard."""
        limit = self.job.options.limit
        return limit - self._shard * self.job.store.size if limit == self.index else 0

    def close(self, *, normal: bool, ended: bool) -> None:
        """Write the last shard, whole or not. normal: all tasks were done. ended: the plan has no more.

        A shard that was being made again stays as it is where more of its tasks are done there.
        Raises: OSError.
        """
        if self._task_ids and self._shard >= len(self.job.finished) and (normal or not self._is_fuller_there()):
            self._write(ended=normal and ended)
        self._is_finished = normal
        if normal:
            self.job.store.prune(self._shard)

    def _is_fuller_there(self) -> bool:
        done = len(self._task_ids) - self._counts.failed.total()
        return any(
            entry.number == self._shard
            and entry.after == self._after
            and len(entry.rows_of) - sum(entry.counts["failed"].values()) > done
            for entry in self.job.store.entries
        )

    def finish(self, description: str, error: BaseException | None) -> dict[str, Any]:
        """Write manifest, card and report, and say how it ended; returns the manifest. error: what broke the run."""
        job, options = self.job, self.job.options
        entries: Sequence[Entry] = job.store.entries
        total = sum_counts((Counts.of_json(entry.counts) for entry in entries), samples=_SHOWN_DROPS + 2)
        manifest = make_manifest(
            job.builder, job.sources, job.test_sets.sets, entries, total,
            planned=job.planned, stopped=self._why(error), ledger=self._account(),
        )  # fmt: skip
        try:
            _write_text(options.out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
            _write_text(options.out / CARD, make_card(manifest, options.out.resolve().name, description))
            if options.report:
                from data_builders.building.report import write_report

                write_report(options.out / REPORT, manifest, total, self.stats)
        except OSError as error:
            self.say(f"{options.out}: the manifest can't be written: {error.strerror or error}")
        self._tell_end(manifest, total)
        return manifest

    def _why(self, error: BaseException | None) -> str | None:
        """Why it ended early; None where it did not."""
        if self.stop is not None:
            return self.stop.why
        if error is not None:
            name = "" if isinstance(error, MMReasonError) else f"{type(error).__name__}: "
            return f"{name}{error}".strip(": ")
        return None if self._is_finished else "interrupted"

    def _account(self) -> dict[str, Any] | None:
        if self.job.ledger is None:
            return None
        with contextlib.suppress(MMReasonError):
            account = self.job.ledger.account()
            entries = {"paid": account.paid, "unusable": account.wasted, "doubtful": account.doubtful}
            return {name: {"requests": one.requests, "dollars": one.dollars} for name, one in entries.items()}
        return None

    def _tell_end(self, manifest: dict[str, Any], total: Counts) -> None:
        counts, options = manifest["counts"], self.job.options
        if self.stop is not None:
            self.say(f"stopped: {self.stop.why}")
            if self.stop.status == 4:
                for reason, texts in total.samples.items():
                    self.say(f"dropped as {reason}, {total.dropped[reason]} in all:")
                    for text in texts[:_SHOWN_DROPS]:
                        self.say(f"  {text}")
        dropped = ", ".join(f"{count} {reason}" for reason, count in total.dropped.most_common())
        failed = ", ".join(f"{count} {kind}" for kind, count in total.failed.most_common())
        self.say(
            f"{options.out}: {counts['rows']['kept']} rows of {counts['tasks']['done']} tasks"
            + (f"; dropped: {dropped}" if dropped else "")
            + (f"; failed: {failed}" if failed else "")
            + (f"; {self._progress.money()}" if total.replies else "")
        )
        if not manifest["complete"]:
            self.say("not complete: the same command goes on")


def _meets_all(error: EndpointError) -> bool:
    """Would every further request meet it? A 403 may be of this request alone: some providers refuse contents so."""
    return error.kind == "budget" or (error.kind == "auth" and error.status != 403)


def _write_text(path: Path, text: str) -> None:
    """Lone surrogates, which a message may quote, become escapes (in JSON the same text)."""
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _text(row: Example) -> str:
    """A dropped row as text, without its images."""
    return json.dumps({name: cell for name, cell in row.items() if name not in ("images", "id")}, ensure_ascii=False)
