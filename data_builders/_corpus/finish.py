"""What became of a corpus: counts from datatrove's statistics of each task, then manifest, card and report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_builders._corpus.dedup import drop_names
from data_builders._corpus.pipeline import Places
from data_builders.building.build import SourceNote
from data_builders.building.counts import SAMPLE_CHARACTERS, Counts
from data_builders.building.shards import CARD, Entry
from data_builders.building.writing import MANIFEST, file_digest
from mmreason._files import write_whole
from mmreason.types import MMReasonError

if TYPE_CHECKING:
    from data_builders.corpus import Corpus

_DROPPED, _MASKED, _HIT = "dropped_", "masked_", "hit_"
_REPORTED_SHARDS = 50
"""Of more, the report reads these many, evenly chosen."""
_SAMPLES = 10
_VARIETY_DOCUMENTS = 200
"""Of which the report counts distinct n-grams: about the words of the 2,000 rows that it takes of shorter texts."""


@dataclass(frozen=True)
class Making:
    """What the manifest tells beside the counts.

    Attributes: planned: documents to be read; tasks: of the pipelines.
    """

    notes: Sequence[SourceNote]
    test_sets: Sequence[Mapping[str, Any]]
    planned: int
    tasks: int
    description: str


class Finish(PipelineStep):  # type: ignore[misc]
    """The last stage: manifest.json, README.md, report.html."""

    type = "💽 - WRITER"
    name = "Manifest"

    def __init__(self, corpus: Corpus, making: Making) -> None:
        super().__init__()
        self._corpus, self._making = corpus, making

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        finish(self._corpus, self._making)


class Check(PipelineStep):  # type: ignore[misc]
    """A stage that ends a run of which cleaning has left too little: those behind it are not begun."""

    type = "🔎 - CHECK"
    name = "Share that stays"

    def __init__(self, corpus: Corpus, making: Making) -> None:
        super().__init__()
        self._corpus, self._making = corpus, making

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        reason = too_few(self._corpus, self._making, print)
        if reason is not None:
            raise MMReasonError(reason)


def too_few(corpus: Corpus, making: Making, say: Callable[[str], None]) -> str | None:
    """Why so few documents are left after cleaning that something must be wrong, the report written; None if enough.

    Raises: OSError.
    """
    options = corpus.options
    total = sum_up(Places(options.out), making)
    left = total.tasks - total.dropped.total()
    share = left / max(1, total.tasks)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in total.dropped.most_common(5))
    say(f"cleaned: {left:,} of {total.tasks:,} documents stay ({share:.1%}){'; ' + reasons if reasons else ''}")
    is_enough = total.tasks < options.min_accept_after or share >= options.min_accept_rate
    if not left or not is_enough:
        for reason, count in total.dropped.most_common(5):
            for text in total.samples.get(reason, [])[:1]:
                say(f"{reason} ({count:,}), e.g. {' '.join(text.split())[:300]}")
    if is_enough:
        return None
    stopped = f"{share:.1%} of the documents are left after cleaning, below min_accept_rate={options.min_accept_rate:g}"
    finish(corpus, making, stopped)
    return f"{stopped}; the report shows what was dropped and why"


def finish(corpus: Corpus, making: Making, stopped: str | None = None) -> dict[str, Any]:
    """Write manifest, card and report; returns the manifest. Args: stopped: why it ended early. Raises: OSError."""
    from data_builders.building.card import make_card
    from data_builders.building.manifest import make_manifest

    places = Places(corpus.options.out)
    total = sum_up(places, making)
    entries = [] if stopped else list(_shards(corpus, places, making.tasks))
    manifest = make_manifest(
        corpus, making.notes, making.test_sets, entries, total, planned=making.planned, stopped=stopped, ledger=None
    )
    write_whole(places.out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    write_whole(places.out / CARD, make_card(manifest, places.out.resolve().name, making.description, synthetic=False))
    if corpus.options.report:
        from data_builders.building.report import write_report

        write_report(places.out / "report.html", manifest, total, _row_stats(places.out, entries))
    return manifest


def _shards(corpus: Corpus, places: Places, tasks: int) -> Iterator[Entry]:
    """An entry for each task's shard."""
    for rank in range(tasks):
        path = places.out / f"{corpus.options.split}-{rank:05d}.parquet"
        file = None
        if path.is_file():
            rows = _total(_stats(places, "write", rank)[-1], "documents")
            file = {"name": path.name, "rows": rows, "sha256": file_digest(path), "bytes": path.stat().st_size}
        yield Entry(rank, "", [], True, rank == tasks - 1, file, {}, "")


def sum_up(places: Places, making: Making) -> Counts:
    """The counts of all tasks that have ended, with quotes of what was dropped."""
    total = Counts()
    for stage in ("clean", "write"):
        for rank in range(making.tasks):
            steps = _stats(places, stage, rank)
            if steps and stage == "clean":
                total.tasks += _total(steps[0], "documents")
            if steps and stage == "write":
                total.kept += _total(steps[-1], "documents")
                for name in ("characters", "tokens"):
                    total.extra[name] += _total(steps[-1], name)
            for step in steps:
                _add(total, step)
    total.extra = +total.extra
    total.accepted, total.made = total.kept, total.tasks
    for everything in (True, False):
        _quote(total, places.drops(everything))
    return total


def _add(total: Counts, step: Mapping[str, Any]) -> None:
    """Drops, masks and hits of a block."""
    found: Counter[str] = Counter()
    for name in step["stats"]:
        if name.startswith(_DROPPED):
            found[name.removeprefix(_DROPPED)] += _total(step, name)
        elif name.startswith(_MASKED):
            total.extra[name] += _total(step, name)
        elif name.startswith(_HIT):
            total.hits[name.removeprefix(_HIT)] += _total(step, name)
    named = next((name for name in drop_names() if step["name"].endswith(name)), None)
    if named is not None:
        found[named] += _total(step, "dropped")
    total.dropped.update(+found)


def _stats(places: Places, stage: str, rank: int) -> list[dict[str, Any]]:
    """What datatrove counted in a task, block by block; nothing for one that hasn't ended."""
    path = places.stage(stage) / "stats" / f"{rank:05d}.json"
    if not path.is_file():
        return []
    held: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _total(step: Mapping[str, Any], name: str) -> int:
    value = step["stats"].get(name, 0)
    return int(value["total"] if isinstance(value, Mapping) else value)


def _quote(total: Counts, folder: Path) -> None:
    """A few documents of each reason, from the first files that have some."""
    import gzip

    for reason in total.dropped:
        quoted = total.samples.setdefault(reason, [])
        for path in sorted((folder / reason).glob("*.jsonl.gz")):
            if len(quoted) >= _SAMPLES:
                break
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line, _ in zip(lines, range(_SAMPLES - len(quoted)), strict=False):
                    held = json.loads(line)
                    text = held["text"]
                    cut = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"
                    quoted.append(f"{held['id']}: {cut}")
                    why = held.get("metadata", {}).get("contaminated")
                    if why is not None and len(total.hit_samples) < 20:
                        total.hit_samples.append(f"{held['id']}: {why}")


def _row_stats(out: Path, entries: Sequence[Entry]) -> Any:
    from data_builders.building.row_stats import RowStats
    from mmreason.data.reader import read_rows

    stats = RowStats(_VARIETY_DOCUMENTS)
    files = [entry.file for entry in entries if entry.file is not None]
    for file in files[:: -(-len(files) // _REPORTED_SHARDS) or 1]:
        for _, row in read_rows(out / file["name"]):
            stats.add(row)  # type: ignore[arg-type]
    return stats
