"""Everything that can go wrong before the first paid request: sources, settings, test sets, folder, plan, ledger."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from data_builders.building.build import Builder, BuildOptions, SourceNote, Task
from data_builders.building.contamination import Decontaminator, load_decontaminator
from data_builders.building.manifest import UNKNOWN, identity, source_json, with_licenses
from data_builders.building.shards import BUILD, Entry, ShardStore, can_write, digest_ids
from data_builders.building.teachers import (
    NO_TEACHER,
    MeteredLedger,
    ToolBench,
    ledger_path,
    lent,
    open_tools,
    other_configs,
    teacher_configs,
)
from mmreason.clients.endpoint import Endpoint
from mmreason.clients.prices import format_dollars
from mmreason.clients.settings import EndpointConfig
from mmreason.clients.types import Completer
from mmreason.types import ConfigError, DataError


@dataclass
class Job:
    """A run that can begin.

    Attributes:
        finished: the shards that need not be made again.
        tasks: the whole plan, where tasks don't depend on earlier rows; else None, and `plan` gives them.
        tools, endpoints: what `make` asks with, and what is to be closed in the end.
    """

    builder: Builder[Any]
    sources: list[SourceNote]
    test_sets: Decontaminator
    store: ShardStore
    finished: list[Entry] = field(default_factory=list)
    tasks: list[Task] | None = None
    plan: Iterator[Task] = field(default_factory=lambda: iter(()))
    tools: ToolBench = field(default_factory=lambda: ToolBench((), None, {}, own=False))
    endpoints: list[Endpoint] = field(default_factory=list)
    ledger: MeteredLedger | None = None
    ends: bool = True
    """Whether the plan, of which `tasks` are a part, ends with them (and not at the limit)."""

    @property
    def options(self) -> BuildOptions:
        options: BuildOptions = self.builder.options
        return options

    @property
    def planned(self) -> int | None:
        """Tasks in all, as far as is known."""
        return self.options.limit if self.tasks is None else len(self.tasks)

    @property
    def done_tasks(self) -> int:
        """Tasks of the finished shards."""
        return sum(len(entry.rows_of) for entry in self.finished)

    def first_tasks(self, n: int) -> list[Task]:
        """The first tasks of the plan; takes them from it where it is read lazily."""
        return self.tasks[:n] if self.tasks is not None else list(islice(self.plan, n))

    def describe(self) -> str:
        """In a line: tasks, sources, test sets."""
        count = "tasks as its rows come" if self.planned is None else f"{self.planned:,} tasks"
        read = sum(one.rows for one in self.sources)
        against = ", ".join(one["name"] for one in self.test_sets.sets) or "none"
        return f"{self.builder.name}: {count} from {read:,} source rows; test sets kept out: {against}"


@contextlib.contextmanager
def prepare(builder: Builder[Any], completers: Sequence[Completer] | None, say: Callable[[str], None]) -> Iterator[Job]:
    """Check everything, and hold the folder until the block ends. A dry run writes nothing.

    Raises: ConfigError, DataError.
    """
    options: BuildOptions = builder.options
    asks = builder.needs_endpoint() and not completers
    teachers = teacher_configs(options) if asks else []
    others = other_configs(options, builder.other_endpoints()) if not completers else {}
    if asks and not teachers:
        raise ConfigError(NO_TEACHER)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; name a folder")
    sources = _sources(builder, say)
    _check_pictures(builder, teachers)
    store = ShardStore(options.out, options.split, options.tasks_per_shard, builder.columns)
    with contextlib.ExitStack() as held:
        if not options.dry_run:
            _check_foreign(store)
            held.enter_context(store.locked())
        cache = None if options.dry_run else options.out / BUILD
        job = Job(builder, sources, load_decontaminator(options.decontaminate, cache), store)
        made_of = identity(builder, sources, job.test_sets.sets)
        store.check(made_of)
        job.finished = store.load(options.limit)
        _plan(job)
        if completers:
            job.tools = lent(completers)
        elif teachers or others:
            if not options.dry_run:
                job.ledger = MeteredLedger(ledger_path(options), max_budget=options.max_budget)
                held.enter_context(job.ledger)
                _settle(job.ledger, options, say)
            job.tools, job.endpoints = open_tools(teachers, others, job.ledger)
        if not options.dry_run:
            with can_write(options.out):
                store.record(made_of)
        yield job


def _check_foreign(store: ShardStore) -> None:
    """Before the lock's folder is made, which would make a foreign folder look like ours. Raises: ConfigError."""
    if not (store.journal / "config.json").is_file():
        store.check({})


def _check_pictures(builder: Builder[Any], teachers: Sequence[EndpointConfig]) -> None:
    """Raises: ConfigError: no request with a picture could be sent, since its cost would have no upper bound."""
    for config in teachers if builder.sends_images() else ():
        if config.image_tokens is None and config.prices is not None and config.prices.input > 0:
            raise ConfigError(
                f"the source has pictures, and {config.model} a price: give --teacher.image_tokens, the most prompt "
                "tokens that it is charged for one of them"
            )


def _sources(builder: Builder[Any], say: Callable[[str], None]) -> list[SourceNote]:
    sources = with_licenses(builder.sources(), builder.options.license)
    for one in sources:
        if source_json(one)["license"] == UNKNOWN:
            say(f"warning: {one.name} names no licence; recorded as unknown (give it with --license)")
    return sources


def _plan(job: Job) -> None:
    """Take the plan, all of it where no task depends on rows. Raises: DataError, ConfigError."""
    builder, limit = job.builder, job.options.limit
    job.plan = iter(builder.plan())
    if builder.round_size is not None:
        if builder.round_size < 1:
            raise ConfigError(f"{builder.name}: round_size must be at least 1, not {builder.round_size}")
        return
    tasks = list(islice(job.plan, None if limit is None else limit + 1))
    job.ends = limit is None or len(tasks) <= limit
    job.tasks = tasks[:limit]
    if not job.tasks:
        raise DataError(f"{builder.name}: there is nothing to do: the sources give no task", reason="empty")
    twice = [name for name, count in Counter(task.id for task in job.tasks).items() if count > 1]
    if twice:
        raise DataError(f"{builder.name}: two tasks have the id {twice[0]!r}; are the ids of the source rows unique?")
    for entry in job.finished:
        start = entry.number * job.store.size
        check_ids(job.store, entry, [task.id for task in job.tasks[start : start + len(entry.rows_of)]])


def check_ids(store: ShardStore, entry: Entry, ids: Sequence[str]) -> None:
    """Raises: DataError: a finished shard was made of other tasks than the plan has now."""
    if digest_ids(ids) != entry.ids:
        raise DataError(
            f"{store.folder}: shard {entry.number} was made of other tasks than are planned now, though sources and "
            "options are the same: the plan isn't reproducible, or it comes from another version; use another --out",
            path=store.folder,
        )


def _settle(ledger: MeteredLedger, options: BuildOptions, say: Callable[[str], None]) -> None:
    # Once settled, the option may stay in a file: there is nothing left that it could be about.
    if options.settle_doubtful is not None and ledger.account().doubtful.requests:
        settled = ledger.settle_doubtful(options.settle_doubtful)
        say(f"{settled} doubtful requests settled at ${options.settle_doubtful:g}")
    doubtful = ledger.account().doubtful
    if doubtful.requests:
        say(
            f"{doubtful.requests} requests may have been charged without a reply, {format_dollars(doubtful.amount)} at "
            "most; that counts as spent until --settle_doubtful says what the bill has for them"
        )
