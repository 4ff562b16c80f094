"""Raw text becomes a clean, deduplicated corpus for pretraining, by datatrove on local cores, Slurm or Ray.

    python -m data_builders.corpus --source web=crawl/*.warc.gz books=books/ --out corpus --tokenizer models/base
    mmreason build corpus --config corpus.yaml workers=32
    mmreason build corpus --config corpus.yaml --executor slurm --slurm.partition cpu --slurm.time 08:00:00

JSON lines, parquet, WARC and WET, text; gzip or zstandard around them. Documents go through: text of web pages, masking
of personal data, language, rules of repetition and quality (Gopher, C4, FineWeb), harmful words, a band of perplexity,
test questions; then exact copies, near copies by MinHash and by SimHash, and the shares of domains. Every drop has a
reason, and can be kept. `recipes/pretrain.py --dataset_name OUT` reads the result.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_builders.building.build import Builder, BuildOptions, Made, SourceNote, Task, Tools, option
from mmreason.types import ConfigError, DataError, MMReasonError, OnBadRow

if TYPE_CHECKING:
    from data_builders._corpus.files import ReadOptions
    from data_builders._corpus.finish import Making
    from data_builders._corpus.pipeline import Places, Stage

_IN, _CLEAN, _COPIES, _OUT, _RUN = "Sources", "Cleaning", "Copies and shares", "Shards", "Running"
_RULES = ["repetition", "gopher", "c4", "fineweb"]
_KINDS: tuple[Literal["email", "id", "card", "ip", "phone"], ...] = ("email", "id", "card", "ip", "phone")


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(BuildOptions):
    """The options of `mmreason build corpus`; see the `help` of each field."""

    source: list[str] = field(
        metadata=option("Files, folders or patterns, as PATH or NAME=PATH; of copies the earlier source's stays.", _IN)
    )
    text_key: str = field(default="text", metadata=option("Field of the text in JSON lines and parquet.", _IN))
    id_key: str = field(default="id", metadata=option("Field of a document's own id, kept in its meta.", _IN))
    keep_fields: list[str] = field(
        default_factory=lambda: ["url", "date"], metadata=option("Fields that are kept in meta.", _IN)
    )
    txt_unit: Literal["file", "paragraph", "line"] = field(
        default="file", metadata=option("What a document of a .txt file is.", _IN)
    )
    on_bad_row: OnBadRow = field(
        default="error", metadata=option("What documents without a usable text do: end the run, or drop.", _IN)
    )
    extract_timeout: float = field(
        default=10.0, metadata=option("Seconds for taking the text out of a web page.", _CLEAN)
    )
    pii: list[Literal["email", "id", "card", "ip", "phone"]] = field(
        default_factory=lambda: list(_KINDS), metadata=option("Personal data that become placeholders.", _CLEAN)
    )
    languages: list[str] = field(
        default_factory=lambda: ["en"], metadata=option("Languages that stay (ISO 639-1); [] for all.", _CLEAN)
    )
    min_language_score: float = field(default=0.65, metadata=option("Least probability of the language.", _CLEAN))
    rules: list[str] = field(
        default_factory=lambda: list(_RULES), metadata=option("Rules of repetition and quality that apply.", _CLEAN)
    )
    rule_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=option("Settings of datatrove's filters, by rule, then perhaps by language.", _CLEAN),
    )
    harmful_words: str | None = field(
        default=None, metadata=option("Own list: a .yaml like the package's, or a word on each line of a .txt.", _CLEAN)
    )
    harmful_min: int = field(
        default=3, metadata=option("So many different words of the list drop a document; 0: none does.", _CLEAN)
    )
    perplexity_model: str | None = field(
        default=None,
        metadata=option("Folder of a causal model, or a .txt of wanted text for an n-gram model.", _CLEAN),
    )
    perplexity_low: float = field(default=0.0, metadata=option("Least perplexity that stays.", _CLEAN))
    perplexity_high: float = field(default=math.inf, metadata=option("Highest perplexity that stays.", _CLEAN))
    exact: bool = field(default=True, metadata=option("Drop copies that differ in white space only.", _COPIES))
    minhash: bool = field(default=True, metadata=option("Drop near copies by MinHash.", _COPIES))
    minhash_ngrams: int = field(default=5, metadata=option("Words of a shingle.", _COPIES))
    minhash_buckets: int = field(default=14, metadata=option("Bands of the signature.", _COPIES))
    minhash_rows: int = field(default=8, metadata=option("Hashes of a band.", _COPIES))
    simhash: bool = field(default=True, metadata=option("Drop near copies by SimHash.", _COPIES))
    simhash_distance: int = field(default=3, metadata=option("Bits of 64 in which copies differ at most.", _COPIES))
    simhash_shingle: int = field(default=3, metadata=option("Words of a shingle.", _COPIES))
    domain: str = field(
        default="source", metadata=option("Field of a document's domain (see keep_fields), or source.", _COPIES)
    )
    domain_weights: dict[str, float] = field(
        default_factory=dict, metadata=option("Domain: share. Sizes as large as the scarcest allows.", _COPIES)
    )
    domain_caps: dict[str, int] = field(default_factory=dict, metadata=option("Domain: largest size.", _COPIES))
    balance_by: Literal["documents", "characters"] = field(
        default="characters", metadata=option("What sizes of domains count.", _COPIES)
    )
    tokenizer: str | None = field(default=None, metadata=option("Counts each document's tokens.", _OUT))
    store_tokens: bool = field(default=False, metadata=option("Also write the token ids, to OUT/tokens.", _OUT))
    tasks_per_shard: int = field(
        default=10_000, metadata=option("Documents that a task reads, and whose rest one shard holds.", _OUT)
    )
    keep_drops: bool = field(
        default=False, metadata=option("Keep all that is dropped, in OUT/dropped/REASON.", _OUT, rows=False)
    )
    executor: Literal["local", "slurm", "ray"] = field(
        default="local", metadata=option("datatrove's executor.", _RUN, rows=False)
    )
    workers: int | None = field(
        default=None, metadata=option("Tasks at once; default: this machine's cores.", _RUN, rows=False)
    )
    slurm: dict[str, Any] = field(
        default_factory=dict,
        metadata=option("Settings of datatrove's Slurm executor: time, partition, …", _RUN, rows=False),
    )
    ray: dict[str, Any] = field(
        default_factory=dict,
        metadata=option("Settings of datatrove's Ray executor, and the cluster's address.", _RUN, rows=False),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None or self.quote:
            raise ConfigError("corpus asks no teacher: leave out --teacher and --quote")
        if not self.source:
            raise ConfigError("--source is empty: name files, folders or patterns")
        for name in ("minhash_ngrams", "minhash_buckets", "minhash_rows", "simhash_shingle", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.simhash_distance <= 10:
            raise ConfigError(f"simhash_distance must be from 0 to 10, not {self.simhash_distance}; 3 is usual")
        if self.perplexity_model is None and (self.perplexity_low > 0 or self.perplexity_high < math.inf):
            raise ConfigError("perplexity_low and perplexity_high need --perplexity_model, which tells the perplexity")
        if self.perplexity_low > self.perplexity_high:
            raise ConfigError("perplexity_low is above perplexity_high: no document could stay")
        if self.store_tokens and self.tokenizer is None:
            raise ConfigError("--store_tokens needs --tokenizer")
        if bad := [name for name, weight in self.domain_weights.items() if weight <= 0]:
            raise ConfigError(f"domain_weights.{bad[0]} must be above 0; leave a source out to have none of it")
        if bad := [name for name, cap in self.domain_caps.items() if cap < 1]:
            raise ConfigError(f"domain_caps.{bad[0]} must be at least 1")

    def reading(self) -> ReadOptions:
        """How the raw files are read."""
        from data_builders._corpus.files import ReadOptions

        kept = dict.fromkeys([*self.keep_fields, *([self.domain] if self.domain != "source" else [])])
        return ReadOptions(self.text_key, self.id_key, tuple(kept), self.txt_unit)

    @property
    def processes(self) -> int:
        """Tasks at once."""
        return self.workers or os.cpu_count() or 1


class Corpus(Builder[CorpusOptions]):
    """Text for pretraining, cleaned and deduplicated."""

    name, version, needs_teacher = "corpus", 1, False
    columns = ("text", "id", "source", "meta")

    def sources(self) -> Sequence[SourceNote]:
        """Not asked: `execute` inspects the files through datatrove."""
        return []

    def plan(self) -> Iterator[Task]:
        """No tasks of their own: datatrove has them."""
        return iter(())

    async def make(self, task: Task, tools: Tools) -> Made:
        """Never called."""
        raise NotImplementedError

    def told(self) -> Mapping[str, object]:
        """What the settings of MinHash find."""
        from data_builders._corpus.dedup import found_probability

        options = self.options
        if not options.minhash:
            return {}
        shape = options.minhash_buckets, options.minhash_rows
        return {"minhash_found": {str(s): found_probability(s, *shape) for s in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)}}


def run(corpus: Corpus, *, say: Callable[[str], None] = print, progress: bool = False) -> dict[str, Any]:
    """Build a corpus from Python; returns the manifest, {} after a dry run or where Slurm has the rest to do.

    Raises: MMReasonError.
    """
    return execute(corpus, say, progress=progress)


def execute(
    corpus: Corpus, say: Callable[[str], None], *, progress: bool = False, description: str = ""
) -> dict[str, Any]:
    """As `run`. Args: description: for the dataset card."""
    _check_installed()
    from data_builders._corpus import run as running
    from data_builders._corpus.finish import too_few
    from data_builders._corpus.pipeline import Places, check_rules
    from data_builders.building.shards import ShardStore

    options = corpus.options
    check_rules(options)
    places = Places(options.out.absolute())
    if options.dry_run:
        return _dry_run(corpus, say)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; name a folder")
    store = ShardStore(options.out, options.split, options.tasks_per_shard, corpus.columns)
    if not (store.journal / "config.json").is_file():
        store.check({})
    with store.locked():
        making, stages = _prepare(corpus, places, say, description or (type(corpus).__doc__ or ""), progress)
        if options.executor == "slurm":
            running.submit_stages(stages, places, options.processes, options.slurm, say)
            return _manifest(places, stages[-1])
        start = _starter(options, places)

        def after(stage: Stage) -> None:
            if stage.name == "clean" and (reason := too_few(corpus, making, say)) is not None:
                raise FewAcceptedError(reason)

        sizes = [sum(count for *_, count in task) for task in _plan(places)[1]]
        running.run_stages(stages, places, start, say, sizes=sizes, progress=progress, after=after)
    return _manifest(places, stages[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `building/runner.py` for its exit status."""
    from data_builders.building.command import parse_options
    from data_builders.building.runner import DONE, INTERRUPTED, USER_ERROR
    from mmreason.report.tokens import printable

    def say(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    words = list(sys.argv[1:] if argv is None else argv)
    text = (__doc__ or "").split("\n\n")[0]
    try:
        options = parse_options(CorpusOptions, words or ["--help"], "mmreason build corpus", text)
        execute(Corpus(options), say, progress=sys.stderr.isatty(), description=text)
    except FewAcceptedError as error:
        say(f"error: {error}")
        return error.status
    except MMReasonError as error:
        say(f"error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it ended")
        return INTERRUPTED
    return DONE


class FewAcceptedError(MMReasonError):
    """Fewer documents stay than --min_accept_rate. Attributes: status: the command's exit status."""

    status = 4


# --------------------------------------------------------------------------------------------------------------------
# Parts of a run


def _check_installed() -> None:
    from importlib.util import find_spec

    for name in ("datatrove", "orjson", "py3langid", "spacy", "trafilatura", "warcio", "zstandard"):
        if find_spec(name) is None:
            raise ConfigError(f"corpus needs {name}: pip install 'mmreason[corpus]'")


def _prepare(
    corpus: Corpus, places: Places, say: Callable[[str], None], description: str, progress: bool
) -> tuple[Making, list[Stage]]:
    """Inspect the sources, check the folder, write the plan. Raises: ConfigError, DataError."""
    from data_builders._corpus.finish import Check, Finish, Making
    from data_builders._corpus.pipeline import Setup, make_stages
    from data_builders._corpus.run import local_executor, run_stages
    from data_builders._corpus.sources import has_pages, inspect_files, make_notes, named_files
    from data_builders._corpus.steps import make_plan, save_plan
    from data_builders.building.contamination import load_decontaminator

    options = corpus.options
    sources = named_files(options.source)
    files = [file for held in sources.values() for file in held]
    _check_settings(corpus, sources)

    def here(stage: Stage) -> None:
        run_stages([stage], places, lambda one: local_executor(one, places, options.processes), say, progress=progress)

    found = inspect_files(files, options, places, here)
    notes = _licensed(make_notes(sources, options.source, found), options.license, say)
    test_sets = load_decontaminator(options.decontaminate, places.build)
    _check_same(corpus, notes, test_sets.sets, places)
    plan = make_plan(files, [one.rows for one in found], options.tasks_per_shard, options.limit)
    save_plan(places.plan, plan)
    planned = sum(count for task in plan[1] for *_, count in task)
    making = Making(notes, test_sets.sets, planned, len(plan[1]), description.strip())
    against = ", ".join(one["name"] for one in test_sets.sets) or "none"
    say(f"corpus: {planned:,} documents in {len(plan[1])} tasks; test sets kept out: {against}")
    _forget_missing(corpus, places)
    ends: list[Callable[[], list[Any]]] = [lambda: [Finish(corpus, making)], lambda: [Check(corpus, making)]]
    return making, make_stages(Setup(options, places, len(plan[1]), bool(test_sets.sets), has_pages(files), *ends))


def _check_settings(corpus: Corpus, sources: Mapping[str, Any]) -> None:
    """What would else come out in the middle of a run. Raises: ConfigError."""
    from data_builders._corpus.pipeline import rule_filters
    from data_builders._corpus.rules import check_word_lists
    from data_builders._corpus.steps import check_tokenizer

    options = corpus.options
    if options.languages or options.rules:
        _check_languages(options)
    rule_filters(options, lambda _: None)
    if options.harmful_min:
        check_word_lists(options.harmful_words)
    if options.perplexity_model is not None:
        from data_builders._corpus.perplexity import load_scorer

        load_scorer(options.perplexity_model)
    if options.tokenizer is not None:
        check_tokenizer(options.tokenizer)
    if options.domain == "source":
        from mmreason._functions import did_you_mean

        for name in [*options.domain_weights, *options.domain_caps]:
            if name not in sources:
                raise ConfigError(
                    f"domain_weights, domain_caps: no source {name!r}.{did_you_mean(name, sources)} There are: "
                    f"{', '.join(sources)}"
                )


def _check_languages(options: CorpusOptions) -> None:
    """Raises: ConfigError: a language that can't be told, or whose words can't be told apart."""
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    for language in options.languages:
        try:
            load_word_tokenizer(language)
        except ValueError:
            raise ConfigError(
                f"--languages {language}: datatrove has no words for it; expected codes as en, zh, de"
            ) from None
        except ImportError as error:
            raise ConfigError(f"--languages {language}: {error}") from None


def _licensed(notes: Sequence[SourceNote], given: str | None, say: Callable[[str], None]) -> list[SourceNote]:
    from data_builders.building.manifest import with_licenses

    found = with_licenses(notes, given)
    for one in found:
        if one.license is None:
            say(f"warning: {one.name} names no licence; recorded as unknown (give it with --license)")
    return found


def _check_same(
    corpus: Corpus, notes: Sequence[SourceNote], test_sets: Sequence[Mapping[str, Any]], places: Places
) -> None:
    """Is what the folder holds of the same making? Raises: ConfigError."""
    import json

    from data_builders.building.manifest import identity
    from data_builders.building.shards import differences
    from mmreason._files import write_whole

    path = places.build / "config.json"
    made_of = json.loads(json.dumps(identity(corpus, notes, test_sets) | {"limit": corpus.options.limit}))
    if path.is_file() and places.stage("clean").is_dir():
        held = json.loads(path.read_text(encoding="utf-8"))
        if differing := differences(held, made_of):
            raise ConfigError(
                f"another config's manifest in the output folder {corpus.options.out}: use another --out, or delete "
                f"it. It differs in {'; '.join(differing)}"
            )
    write_whole(path, json.dumps(made_of, indent=1) + "\n")


def _forget_missing(corpus: Corpus, places: Places) -> None:
    """Shards that the manifest names and that are not there any more are written again."""
    from data_builders.building.writing import read_manifest

    manifest = read_manifest(places.out) or {}
    for name, told in manifest.get("files", {}).items():
        path = places.out / name
        if not path.is_file() or path.stat().st_size != told["bytes"]:
            rank = int(Path(name).stem.rpartition("-")[2])
            (places.stage("write") / "completions" / f"{rank:05d}").unlink(missing_ok=True)
            (places.stage("finish") / "completions" / "00000").unlink(missing_ok=True)


def _starter(options: CorpusOptions, places: Places) -> Callable[[Stage], Any]:
    from data_builders._corpus.run import local_executor, ray_executor

    if options.executor == "local":
        return lambda stage: local_executor(stage, places, options.processes)
    return lambda stage: ray_executor(stage, places, options.processes, options.ray)


def _plan(places: Places) -> Any:
    from data_builders._corpus.steps import load_plan

    load_plan.cache_clear()
    return load_plan(str(places.plan))


def _manifest(places: Places, last: Stage) -> dict[str, Any]:
    """What is written, once the last stage is done."""
    from data_builders.building.writing import read_manifest

    done = (places.stage(last.name) / "completions" / "00000").exists()
    return (read_manifest(places.out) or {}) if done else {}


def _dry_run(corpus: Corpus, say: Callable[[str], None]) -> dict[str, Any]:
    """Check everything, tell what would be done; writes nothing."""
    from data_builders._corpus.files import read_documents
    from data_builders._corpus.pipeline import Places, Setup, make_stages
    from data_builders._corpus.sources import has_pages, inspect_files, make_notes, named_files
    from data_builders._corpus.steps import make_plan
    from data_builders.building.contamination import load_decontaminator

    options = corpus.options
    sources = named_files(options.source)
    files = [file for held in sources.values() for file in held]
    _check_settings(corpus, sources)
    found = inspect_files(files, options, None, lambda _: None)
    _licensed(make_notes(sources, options.source, found), options.license, say)
    test_sets = load_decontaminator(options.decontaminate, None)
    tasks = make_plan(files, [one.rows for one in found], options.tasks_per_shard, options.limit)[1]
    if not tasks:
        raise DataError("there is nothing to do: the sources hold no documents", reason="empty")
    for raw in read_documents(files[tasks[0][0][0]], options.reading(), 0, 3):
        say(f"document {raw.where}: {' '.join(raw.text.split())[:300]}")
    setup = Setup(options, Places(options.out.absolute()), len(tasks), bool(test_sets.sets), has_pages(files))
    for stage in make_stages(setup):
        say(f"stage {stage.name}: {stage.tasks} tasks")
    for similarity, share in dict(corpus.told()).get("minhash_found", {}).items():  # type: ignore[attr-defined]
        say(f"MinHash finds copies of Jaccard similarity {similarity} with probability {share:.6f}")
    count = sum(count for task in tasks for *_, count in task)
    say(f"dry run: {count:,} documents in {len(files)} files; nothing written")
    return {}


if __name__ == "__main__":
    raise SystemExit(main())
