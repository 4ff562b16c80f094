"""Blocks of a datatrove pipeline that clean documents: what datatrove lacks, and its own filters by language.

A filter drops a document with a reason that tells rule and cause, such as `gopher_short_doc`; datatrove counts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.writers import JsonlWriter

from data_builders._corpus.pii import Kind, mask
from data_builders.building.counts import SAMPLES

_LANGUAGE_CHARACTERS = 4000
"""Of a document, from its middle: more tell no more about its language."""


class Drops(JsonlWriter):  # type: ignore[misc]
    """Keeps documents that a filter drops: a file for each reason, all of them or a few for the report.

    Args: reason: of those that come without one.
    """

    def __init__(self, folder: Path, reason: str, *, everything: bool) -> None:
        super().__init__(str(folder), output_filename="${reason}/${rank}.jsonl.gz")
        self._reason, self._everything = reason, everything
        self._seen: Counter[str] = Counter()

    def write(self, document: Document, rank: int = 0, **words: Any) -> None:
        """Write a document, unless enough of its kind are written."""
        reason = document.metadata.pop("filter_reason", self._reason)
        self._seen[reason] += 1
        if self._everything or self._seen[reason] <= SAMPLES:
            super().write(document, rank, reason=reason, **words)


class ExtractHtml(Trafilatura):  # type: ignore[misc]
    """The main text of web pages, by trafilatura in a process of its own; other documents pass."""

    name = "HTML to text"

    def __init__(self, timeout: float, drops: Drops) -> None:
        # Its own deduplication would remember earlier pages.
        super().__init__(timeout=timeout, deduplicate=False)
        self._drops = drops

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with ExtractorSandbox(timeout=self.timeout) as sandbox, self._drops as drops:
            for doc in data:
                if doc.metadata.pop("is_html", False):
                    page, reason = doc.text, "no_text"
                    try:
                        with self.track_time():
                            doc.text = sandbox.process_document(page, self.extract) or ""
                    except (TimeoutError, EOFError):
                        doc.text, reason = "", "extraction_timeout"
                    if not doc.text.strip():
                        doc.text, doc.metadata["filter_reason"] = page, reason
                        self.stat_update("dropped", f"dropped_{reason}")
                        drops.write(doc, rank)
                        continue
                yield doc


class MaskPii(PipelineStep):  # type: ignore[misc]
    """Personal data become placeholders; how many of each kind is counted, and stands in the document's meta."""

    type = "✂️ - FORMAT"
    name = "Personal data"

    def __init__(self, kinds: Sequence[Kind]) -> None:
        super().__init__()
        self._kinds = tuple(kinds)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for doc in data:
            with self.track_time():
                doc.text, counts = mask(doc.text, self._kinds)
            if counts:
                doc.metadata["masked"] = dict(counts)
                for kind, count in counts.items():
                    self.stat_update(f"masked_{kind}", value=count)
            yield doc


class LanguageRule(BaseFilter):  # type: ignore[misc]
    """Keeps documents in some languages, identified offline by py3langid.

    Args:
        languages: ISO 639-1 codes. min_score: least probability of the language.
    """

    name = "Language"

    def __init__(self, languages: Sequence[str], min_score: float, drops: Drops) -> None:
        super().__init__(drops)
        self._languages, self._min_score = frozenset(languages), min_score

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        begin = max(0, (len(doc.text) - _LANGUAGE_CHARACTERS) // 2)
        language, score = _identifier().classify(doc.text[begin : begin + _LANGUAGE_CHARACTERS])
        doc.metadata |= {"language": language, "language_score": round(float(score), 4)}
        if language not in self._languages:
            return False, "language"
        return (True, "") if score >= self._min_score else (False, "language_uncertain")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class ByLanguage(BaseFilter):  # type: ignore[misc]
    """One of datatrove's filters, set up for each language. Documents in another language pass."""

    def __init__(self, key: str, filters: Mapping[str, BaseFilter], drops: Drops) -> None:
        self.name = key
        super().__init__(drops)
        self._key, self._filters = key, dict(filters)
        self._only = next(iter(self._filters.values())) if len(self._filters) == 1 else None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        chosen = self._filters.get(doc.metadata.get("language", ""), self._only)
        if chosen is None:
            return True
        kept, reason = get_filter_result(chosen.filter(doc))
        # Gopher's own reasons begin with its name
        return True if kept else (False, f"{self._key}_{code(reason or 'rule').removeprefix(f'{self._key}_')}")


def code(reason: str) -> str:
    """A reason as a word that can name a folder."""
    return re.sub(r"\W+", "_", reason).strip("_")


class HarmfulRule(BaseFilter):  # type: ignore[misc]
    """Drops documents with words of a list.

    Args:
        lists: a YAML file in the form of mmreason/clients/safety_lists.yaml, a text file with a word on each line, or
            None for the package's lists.
        least: different words that must occur.
    """

    name = "Harmful words"

    def __init__(self, lists: str | None, least: int, drops: Drops) -> None:
        super().__init__(drops)
        self._lists, self._least = lists, least

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        found = _word_lists(self._lists).find_hazards(doc.text)
        if sum(map(len, found.values())) < self._least:
            return True
        worst = max(found, key=lambda name: len(found[name]))
        doc.metadata["harmful"] = {name: list(words) for name, words in found.items()}
        return False, f"harmful_{worst}"


@lru_cache(maxsize=2)
def _word_lists(path: str | None) -> Any:
    """Raises: ConfigError naming file and entry."""
    from mmreason.clients.safety_lists import load_lists, word_list

    if path is None or Path(path).suffix in (".yaml", ".yml"):
        return load_lists(path)
    return word_list(path)


def check_word_lists(path: str | None) -> None:
    """Raises: ConfigError: the lists can't be read."""
    _word_lists(path)


class ContaminationRule(BaseFilter):  # type: ignore[misc]
    """Drops documents in which a test set's question stands. Args: index: file of a `mmreason.data.overlap` index."""

    name = "Test questions"

    def __init__(self, index: Path, min_share: float, drops: Drops) -> None:
        super().__init__(drops, batch_size=64)
        self._index, self._min_share = str(index), min_share

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        found: list[bool | tuple[bool, str]] = []
        for doc, hit in zip(
            batch, _overlap_index(self._index).find(_texts(batch), min_share=self._min_share), strict=True
        ):
            if hit is not None:
                self.stat_update(f"hit_{hit.dataset}")
                doc.metadata["contaminated"] = hit.reason
            found.append(True if hit is None else (False, "contaminated"))
        return found


def _texts(batch: Sequence[Document]) -> list[str]:
    return [doc.text for doc in batch]


@lru_cache(maxsize=1)
def _overlap_index(path: str) -> Any:
    from mmreason.data.overlap import OverlapIndex

    return OverlapIndex.load(path)


class PerplexityRule(BaseFilter):  # type: ignore[misc]
    """Keeps documents whose perplexity under a model lies in a band. Args: model: see `load_scorer`."""

    name = "Perplexity"

    def __init__(self, model: str, low: float, high: float, drops: Drops, batch_size: int = 8) -> None:
        super().__init__(drops, batch_size=batch_size)
        self._model, self._low, self._high = model, low, high

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        from data_builders._corpus.perplexity import load_scorer

        found: list[bool | tuple[bool, str]] = []
        for doc, value in zip(batch, load_scorer(self._model).perplexities(_texts(batch)), strict=True):
            doc.metadata["perplexity"] = float(f"{value:.6g}")
            if value < self._low:
                found.append((False, "perplexity_low"))
            else:
                found.append(True if value <= self._high else (False, "perplexity_high"))
        return found
