"""The stages of a corpus: which blocks of datatrove run over which files, in which order.

    raw files ──clean──▶ .build/clean/RANK.jsonl.zst ──signatures, comparing──▶ lists of copies ──write──▶ shards

The cleaned documents are written once and read again by each later stage, which leaves out what the lists of the stages
before it name. Each stage is a pipeline of its own, whose tasks are marked as they end: a run that goes on does the
rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.building.contamination import MIN_SHARE
from data_builders.building.shards import BUILD
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from data_builders.corpus import CorpusOptions

RULES = ("repetition", "gopher", "c4", "fineweb")
_SPLIT_BY_LANGUAGE: Mapping[str, Mapping[str, dict[str, Any]]] = {
    # Chinese words have one or two characters, and lines end with other marks than C4 knows.
    "zh": {
        "gopher": {
            "min_avg_word_length": 1,
            "max_avg_word_length": 4,
            "stop_words": ["的", "了", "是", "在", "和", "有", "不", "我"],
        },
        "c4": {"filter_no_terminal_punct": False, "min_words_per_line": -1},
    },
}
_DEFAULTS: Mapping[str, dict[str, Any]] = {"c4": {"filter_no_terminal_punct": False}}
"""As FineWeb uses them (arXiv 2406.17557): C4's rule that lines end with a full stop costs 30 % of the tokens."""


@dataclass(frozen=True)
class Stage:
    """A pipeline. Attributes: tasks: how many it has; steps: makes its blocks, which are not shared."""

    name: str
    tasks: int
    steps: Callable[[], list[Any]]


@dataclass(frozen=True)
class Places:
    """Where everything lies."""

    out: Path

    @property
    def build(self) -> Path:
        return self.out / BUILD

    def stage(self, name: str) -> Path:
        """datatrove's folder for a stage: logs, statistics, marks of finished tasks."""
        return self.build / "stages" / name

    def work(self, name: str) -> Path:
        """What stages hand on to one another."""
        return self.build / name

    @property
    def plan(self) -> Path:
        return self.build / "plan.json"

    @property
    def test_sets(self) -> Path:
        return self.build / "test_sets.safetensors"

    def drops(self, everything: bool) -> Path:
        return self.out / "dropped" if everything else self.build / "dropped"


@dataclass(frozen=True)
class Setup:
    """What the stages are made from.

    Attributes:
        has_test_sets: whether there is an index of test sets.
        has_pages: whether a source may hold web pages, whose text has to be taken out of them.
        finish: makes the blocks of the last stage.
        check: makes those that end a run which cleaning has left too little of, where nobody waits for that stage.
    """

    options: CorpusOptions
    places: Places
    tasks: int
    has_test_sets: bool
    has_pages: bool
    finish: Callable[[], list[Any]] = field(default=list)
    check: Callable[[], list[Any]] = field(default=list)

    def drops(self, reason: str) -> Any:
        """Where a filter puts what it drops."""
        from data_builders._corpus.rules import Drops

        return Drops(self.places.drops(self.options.keep_drops), reason, everything=self.options.keep_drops)


def make_stages(setup: Setup) -> list[Stage]:
    """All stages, in order."""
    options, many = setup.options, setup.tasks
    found = [Stage("clean", many, lambda: _clean(setup))]
    if options.executor == "slurm" and options.min_accept_rate:
        found.append(Stage("check", 1, setup.check))
    if options.exact:
        found += [
            Stage("exact_signatures", many, lambda: _exact_signatures(setup)),
            Stage("exact_find", 1, lambda: _exact_find(setup)),
        ]
    if options.minhash:
        found += [
            Stage("minhash_signatures", many, lambda: _minhash_signatures(setup)),
            Stage("minhash_buckets", options.minhash_buckets, lambda: _minhash_buckets(setup)),
            Stage("minhash_cluster", 1, lambda: _minhash_cluster(setup)),
        ]
    if options.simhash:
        found += [
            Stage("simhash_signatures", many, lambda: _simhash_signatures(setup)),
            Stage("simhash_find", 1, lambda: _simhash_find(setup)),
        ]
    if options.domain_weights or options.domain_caps:
        found += [
            Stage("balance_sizes", many, lambda: _balance_sizes(setup)),
            Stage("balance_find", 1, lambda: _balance_find(setup)),
        ]
    return [*found, Stage("write", many, lambda: _write(setup)), Stage("finish", 1, setup.finish)]


# --------------------------------------------------------------------------------------------------------------------
# Cleaning


def cleaning_steps(setup: Setup) -> list[Any]:
    """The blocks between reading and writing cleaned documents."""
    from data_builders._corpus.rules import (
        ContaminationRule,
        ExtractHtml,
        HarmfulRule,
        LanguageRule,
        MaskPii,
        PerplexityRule,
    )

    options = setup.options
    steps: list[Any] = []
    if setup.has_pages:
        steps.append(ExtractHtml(options.extract_timeout, setup.drops("no_text")))
    if options.pii:
        steps.append(MaskPii(options.pii))
    if options.languages:
        steps.append(LanguageRule(options.languages, options.min_language_score, setup.drops("language")))
    steps += rule_filters(options, setup.drops)
    if options.harmful_min:
        steps.append(HarmfulRule(options.harmful_words, options.harmful_min, setup.drops("harmful")))
    if options.perplexity_model is not None:
        band = options.perplexity_low, options.perplexity_high
        steps.append(PerplexityRule(options.perplexity_model, *band, setup.drops("perplexity")))
    if setup.has_test_sets:
        steps.append(ContaminationRule(setup.places.test_sets, MIN_SHARE, setup.drops("contaminated")))
    return steps


def _clean(setup: Setup) -> list[Any]:
    from datatrove.pipeline.writers import JsonlWriter

    from data_builders._corpus.steps import CLEAN_NAME, ReadRaw

    options, places = setup.options, setup.places
    return [
        ReadRaw(places.plan, options.reading(), options.domain, setup.drops("unreadable")),
        *cleaning_steps(setup),
        JsonlWriter(str(places.work("clean")), output_filename=CLEAN_NAME, compression="zstd"),
    ]


def rule_filters(options: CorpusOptions, drops: Callable[[str], Any]) -> list[Any]:
    """datatrove's quality and repetition filters, each once for each language.

    Raises: ConfigError: a setting that the filter doesn't have.
    """
    from data_builders._corpus.rules import ByLanguage

    kinds = _filter_classes()
    languages = options.languages or ["en"]
    found = []
    for rule in RULES:
        if rule in options.rules:
            filters = {one: _filter(kinds[rule], rule, one, options) for one in languages}
            found.append(ByLanguage(rule, filters, drops(rule)))
    return found


def _filter_classes() -> dict[str, Any]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    kinds = (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter)
    return dict(zip(RULES, kinds, strict=True))


def _filter(kind: Any, rule: str, language: str, options: CorpusOptions) -> Any:
    """A filter with the defaults, ours, those of its language, and the user's settings, the later over the earlier."""
    known = [name for name in inspect.signature(kind).parameters if name not in ("exclusion_writer", "language")]
    given = dict(options.rule_options.get(rule) or {})
    own = {name: given.pop(name) for name in list(given) if isinstance(given[name], dict)}
    for name in [*given, *(key for settings in own.values() for key in settings)]:
        if name not in known:
            raise ConfigError(
                f"rule_options.{rule}.{name}: no such setting{did_you_mean(name, known)} There are: {', '.join(known)}"
            )
    unused = sorted(set(own) - set(options.languages))
    if unused:
        raise ConfigError(f"rule_options.{rule}.{unused[0]}: no language of --languages, and no setting with settings")
    settings = {**_DEFAULTS.get(rule, {}), **_SPLIT_BY_LANGUAGE.get(language, {}).get(rule, {}), **given}
    return kind(**{**settings, **own.get(language, {})}, language=language)


# --------------------------------------------------------------------------------------------------------------------
# Copies


def _survivors(setup: Setup, until: str, *, final: bool = False) -> list[Any]:
    """Cleaned documents without what the stages before `until` have listed. Args: final: keep and count the drops."""
    from data_builders._corpus.dedup import BalanceFilter, ExactFilter, MinhashFilter, SimhashFilter, exact_config
    from data_builders._corpus.steps import ReadClean

    options, places = setup.options, setup.places
    steps: list[Any] = [ReadClean(places.work("clean"))]

    def writer(reason: str) -> Any:
        return setup.drops(reason) if final else None

    if until == "exact":
        return steps
    if options.exact:
        steps.append(ExactFilter(str(places.work("exact_copies")), exact_config(), writer(ExactFilter.name)))
    if until == "minhash":
        return steps
    if options.minhash:
        steps.append(MinhashFilter(str(places.work("minhash_copies")), writer(MinhashFilter.name)))
    if until == "simhash":
        return steps
    if options.simhash:
        steps.append(SimhashFilter(str(places.work("simhash_copies")), writer(SimhashFilter.name)))
    if until == "write" and (options.domain_weights or options.domain_caps):
        steps.append(BalanceFilter(places.work("balance") / "last.json", options.seed, setup.drops("over_share")))
    return steps


def _exact_signatures(setup: Setup) -> list[Any]:
    from datatrove.pipeline.dedup import ExactDedupSignature

    from data_builders._corpus.dedup import exact_config

    signatures = ExactDedupSignature(str(setup.places.work("exact")), exact_config())
    return [*_survivors(setup, "exact"), signatures]


def _exact_find(setup: Setup) -> list[Any]:
    from datatrove.pipeline.dedup import ExactFindDedups

    from data_builders._corpus.dedup import exact_config

    places = setup.places
    places.work("exact_copies").mkdir(parents=True, exist_ok=True)
    return [ExactFindDedups(str(places.work("exact")), str(places.work("exact_copies")), exact_config())]


def _minhash(setup: Setup) -> Any:
    from data_builders._corpus.dedup import minhash_config

    options = setup.options
    return minhash_config(options.minhash_ngrams, options.minhash_buckets, options.minhash_rows, options.seed)


def _minhash_signatures(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import MinhashSignature

    languages = setup.options.languages or ["en"]
    signatures = MinhashSignature(setup.places.work("minhash"), _minhash(setup), list(languages))
    return [*_survivors(setup, "minhash"), signatures]


def _minhash_buckets(setup: Setup) -> list[Any]:
    from datatrove.pipeline.dedup import MinhashDedupBuckets

    places = setup.places
    folders = str(places.work("minhash")), str(places.work("minhash_pairs"))
    return [MinhashDedupBuckets(*folders, config=_minhash(setup), lines_to_buffer=1024)]


def _minhash_cluster(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import MinhashCluster

    places = setup.places
    folders = str(places.work("minhash_pairs")), str(places.work("minhash_copies"))
    return [MinhashCluster(*folders, config=_minhash(setup))]


def _simhash_signatures(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import SimhashSignature

    signatures = SimhashSignature(setup.places.work("simhash"), setup.options.simhash_shingle)
    return [*_survivors(setup, "simhash"), signatures]


def _simhash_find(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import SimhashFind

    places = setup.places
    return [SimhashFind(places.work("simhash"), places.work("simhash_copies"), setup.options.simhash_distance)]


def _balance_sizes(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import BalanceSignature

    options, places = setup.options, setup.places
    sizes = BalanceSignature(places.work("balance") / "sizes", options.balance_by, options.seed)
    return [*_survivors(setup, "balance"), sizes]


def _balance_find(setup: Setup) -> list[Any]:
    from data_builders._corpus.dedup import BalanceFind

    options, folder = setup.options, setup.places.work("balance")
    return [BalanceFind(folder / "sizes", folder / "last.json", options.domain_weights, options.domain_caps)]


# --------------------------------------------------------------------------------------------------------------------
# Shards


def _write(setup: Setup) -> list[Any]:
    from data_builders._corpus.steps import WriteShard

    options, out = setup.options, setup.places.out
    tokens = out / "tokens" if options.store_tokens else None
    shard = WriteShard(out, f"{options.split}-{{rank:05d}}", options.tokenizer, tokens)
    return [*_survivors(setup, "write", final=True), shard]


def check_rules(options: CorpusOptions) -> Sequence[str]:
    """The rules in their order. Raises: ConfigError: rules that there are not."""
    unknown = [rule for rule in [*options.rules, *options.rule_options] if rule not in RULES]
    if unknown:
        raise ConfigError(f"no rule {unknown[0]!r}{did_you_mean(unknown[0], RULES)} There are: {', '.join(RULES)}")
    return [rule for rule in RULES if rule in options.rules]
