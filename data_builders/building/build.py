"""What a builder is: it plans tasks, makes rows of each, and says which to keep. `runner.py` does all the rest.

    class Doubles(Builder[DoublesOptions]):
        name, version = "doubles", 1

        def plan(self) -> Iterator[Task]:
            yield from (Task(str(number), number) for number in range(self.options.n))

        async def make(self, task: Task, tools: Tools) -> Made:
            reply = await tools.teacher.complete(Request(messages=[...]))
            ...

    def main(argv: Sequence[str] | None = None) -> int:
        return run_main(Doubles, DoublesOptions, argv, description=__doc__)

The order of the tasks is the order of the rows, however many are under way: a run that was killed and run again, with
any concurrency, writes the rows of an unbroken one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mmreason.clients.types import Completer
from mmreason.types import ConfigError, Example

_ROWS, _MONEY, _RUN = "Rows", "Teacher and money", "Running"


def option(text: str, group: str = "Builder", *, rows: bool = True) -> dict[str, Any]:
    """The metadata of an option's field.

    Args:
        text: for `--help`, with `group` as its heading.
        rows: whether another value would give other rows. Only what doesn't may change when a run goes on.
    """
    return {"help": text, "group": group, "rows": rows}


def _setting(text: str, group: str) -> dict[str, Any]:
    return option(text, group, rows=False)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of every builder. Subclasses add theirs; see the `help` of each field."""

    out: Path = field(metadata=_setting("Folder for the shards, manifest.json, README.md and report.html.", _ROWS))
    split: str = field(default="train", metadata=option("Name of the split that is written.", _ROWS))
    limit: int | None = field(default=None, metadata=_setting("Plan at most so many tasks.", _ROWS))
    seed: int = field(default=0, metadata=option("The same seed and replies give the same rows.", _ROWS))
    decontaminate: list[str] | None = field(
        default=None,
        metadata=_setting(
            "Test sets whose questions no row may hold (paths, hub ids, NAME=PATH); default: the usual benchmarks'; "
            "[] for none.",
            _ROWS,
        ),
    )
    license: str | None = field(default=None, metadata=_setting("Licence of the sources, where they don't say.", _ROWS))
    teacher: dict[str, Any] | list[dict[str, Any]] | None = field(
        default=None,
        metadata=option("An endpoint's settings, {base_url: …, model: …, price: …}, or a list of such.", _MONEY),
    )
    ledger: Path | None = field(default=None, metadata=_setting("The ledger's file (default: in the folder).", _MONEY))
    prices: Path | None = field(default=None, metadata=_setting("YAML file of prices, see `mmreason ask`.", _MONEY))
    max_budget: float | None = field(default=None, metadata=_setting("US dollars for all runs on this ledger.", _MONEY))
    settle_doubtful: float | None = field(
        default=None,
        metadata=_setting(
            "What the provider's bill has for requests that may have been charged, in US dollars.", _MONEY
        ),
    )
    concurrency: int = field(default=64, metadata=_setting("Tasks under way at once.", _RUN))
    tasks_per_shard: int = field(default=1000, metadata=option("Tasks whose rows one file holds.", _RUN))
    min_accept_rate: float = field(
        default=0.0, metadata=_setting("Stop where a smaller share of the tasks gives a row.", _RUN)
    )
    min_accept_after: int = field(default=50, metadata=_setting("Tasks after which that share is looked at.", _RUN))
    dry_run: bool = field(default=False, metadata=_setting("Check everything, show the first tasks, ask nobody.", _RUN))
    quote: bool = field(default=False, metadata=_setting("Run a pilot, say what the rest would cost, and end.", _RUN))
    report: bool = field(default=True, metadata=_setting("Write report.html.", _RUN))

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("concurrency", 1), ("tasks_per_shard", 1), ("min_accept_after", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        if not 0 <= self.min_accept_rate <= 1:
            raise ConfigError(f"min_accept_rate must be from 0 to 1, not {self.min_accept_rate}")
        if self.quote and self.dry_run:
            raise ConfigError("quote and dry_run exclude each other: a quote asks the rows of its pilot")


@dataclass(frozen=True, slots=True)
class SourceNote:
    """A source, as the manifest records it.

    Attributes:
        name: what the user gave: path or hub id, with its split.
        revision: the hub's commit, or None for files.
        license: None where nothing tells it (warned, and recorded as unknown).
        sha256: of a file's bytes, or of a set's rows.
        rows: read from it.
    """

    name: str
    rows: int
    sha256: str
    license: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A unit of work, planned before anything is paid.

    Attributes:
        id: unique in the run and the same in every run.
        data: whatever `make` needs.
    """

    id: str
    data: Any


@dataclass(frozen=True, slots=True)
class Drop:
    """A row, or a task, that is not kept.

    Attributes:
        reason: short code, the key of the counts: "wrong_answer", "duplicate" ...
        text: what it was, for the report's samples.
    """

    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """What a task has become: rows that passed the builder's own checks, and what did not.

    Attributes:
        counts: whatever else the manifest shall sum up ("notes_recomputed": 12 ...).
    """

    rows: Sequence[Example] = ()
    drops: Sequence[Drop] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Tools(Protocol):
    """What the runner lends to `make`. Costs and tokens of what is asked here are counted for the task."""

    @property
    def teacher(self) -> Completer:
        """The teacher: one endpoint, or several behind a router. Raises ConfigError where none is configured."""
        ...

    @property
    def teachers(self) -> Sequence[Completer]:
        """Each configured model by itself, to ask several of them the same; copies of one model count once."""
        ...

    def endpoint(self, settings: Mapping[str, Any]) -> Completer:
        """Another endpoint, a judge's say, by its settings (one of `Builder.other_endpoints`), on the same ledger.

        Where a caller of `run` gave completers of its own, it is the first of them.
        """
        ...


O = TypeVar("O", bound=BuildOptions)  # noqa: E741 - an options class


class Builder(ABC, Generic[O]):
    """A builder. Its constructor takes the checked options and reads nothing yet."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raise it whenever the same options and replies would give other rows."""
    needs_teacher: ClassVar[bool] = True
    columns: Sequence[str] = ("prompt", "completion", "answer", "id", "source", "meta")
    """An Example's columns that the shards have (see `mmreason.data.schema.example_features`).

    An instance may set its own in `sources`: trainers take a set with the column "images" for one of pictures."""

    def __init__(self, options: O) -> None:
        self.options = options
        self.counts: Mapping[str, int] = {}
        """The sums of `Made.counts` over all tasks, of earlier runs too; there when `told` is asked."""

    def needs_endpoint(self) -> bool:
        """Whether these options ask a teacher at all."""
        return self.needs_teacher

    def other_endpoints(self) -> Sequence[Mapping[str, Any]]:
        """Settings of the endpoints that `make` asks besides the teacher; their prices and keys are checked first."""
        return ()

    def sends_images(self) -> bool:
        """Whether `make` shows the teacher pictures; asked after `sources`. A priced one then needs image_tokens."""
        return False

    @abstractmethod
    def sources(self) -> Sequence[SourceNote]:
        """Read and check all input, and say what it is. Called once, before `plan`.

        Raises: DataError, ConfigError naming file, row and what to do.
        """

    @abstractmethod
    def plan(self) -> Iterator[Task]:
        """The tasks, in order; called once. Deterministic in the options and the sources, and then finite; with a
        `round_size` also in the rows kept so far, read lazily, and endless if so wished (`--limit` ends it)."""

    @property
    def round_size(self) -> int | None:
        """Tasks of a round where later tasks depend on rows that were kept earlier (Self-Instruct); None: none does.

        The runner takes the next round from `plan` only when all rows of the last one have gone through `keep`.
        """
        return None

    @abstractmethod
    async def make(self, task: Task, tools: Tools) -> Made:
        """Generate and verify. Raises EndpointError (the runner counts the task as failed and goes on, or ends the run
        where no further request can succeed), DataError."""

    def keep(self, row: Example) -> Drop | None:
        """None to keep a row, or why not. Called in task order, one row at a time: here a builder remembers what later
        rows are compared with (novelty, duplicates).

        When a run goes on, it is called again for the kept rows of finished shards only. So what it remembers may
        follow from rows that it kept, and from nothing else. The row has the builder's `columns`, without those that
        are None, and its values as JSON gives them back (lists, no tuples)."""
        return None

    def told(self) -> Mapping[str, object]:
        """What else the manifest tells, under "told", after the last row. Follows from the rows that `keep` kept."""
        return {}
