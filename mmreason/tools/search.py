"""The search tool: BM25 (Robertson and Zaragoza 2009, in Lucene's form) over a local corpus, computed by bm25s.

    score(q, d) = sum over words w of q:  idf(w) * f / (f + k1 * (1 - b + b * |d| / mean |d|)),
    idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5))

f: how often w stands in d, n: passages with w, N: passages. A word that stands twice in the query counts twice.
Results are ordered by the score rounded to 6 decimals, as it is shown; equal ones by their place in the corpus.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.tools.corpus import Corpus, Passage, content_key, read_corpus, words
from mmreason.types import ConfigError, DataError

_log = logging.getLogger(__name__)
_FORMAT = 1
"""Part of an index's key: raise it when `words` or what is stored changes."""
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, and its score (above 0)."""

    passage: Passage
    score: float


class SearchTool:
    """Keyword search over a corpus of passages.

    Args:
        corpus: file, folder or passages, see `mmreason.tools.corpus.read_corpus`.
        k: passages that a search returns at most.
        k1, b: of BM25.
        max_chars: of one passage that the model is shown.
        index_dir: a folder where the index is kept under a hash of passages and parameters; later runs load it.
        text, id: names of the fields of a row.

    Raises: ConfigError for a parameter out of its range, DataError as `read_corpus`.
    """

    name = "search"

    def __init__(
        self,
        corpus: Corpus,
        k: int = 3,
        k1: float = 1.5,
        b: float = 0.75,
        max_chars: int = 1000,
        index_dir: str | Path | None = None,
        text: str = "text",
        id: str = "id",
    ) -> None:
        if k < 1 or max_chars < 1 or k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(
                "search: k and max_chars must be at least 1, k1 at least 0, b from 0 to 1; "
                f"got {k}, {max_chars}, {k1}, {b}"
            )
        self.k, self.k1, self.b, self.max_chars = k, k1, b, max_chars
        self.passages = read_corpus(corpus, text=text, id=id)
        self._index = self._load(Path(index_dir)) if index_dir is not None else self._build()
        self.description = (
            f"Keyword search over {len(self.passages)} passages; returns the {k} that fit best, with ids and scores."
        )
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "words to look for"}},
            "required": ["query"],
            "additionalProperties": False,
        }

    def search(self, query: str, k: int | None = None) -> list[Hit]:
        """The k best passages with a score above 0, best first."""
        import numpy as np

        tokens = words(query)
        if not tokens:
            return []
        scores = np.round(self._index.get_scores(tokens), _DECIMALS)
        k = min(k or self.k, len(scores))
        lowest = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero((scores >= lowest) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
        return [Hit(self.passages[i], float(scores[i])) for i in best]

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """The passages as text, each under a line with its rank, id and score.

        The deadline is not looked at: among 300,000 passages a search takes 5 to 50 ms.
        """
        hits = self.search(arguments["query"])
        if not hits:
            return "no passage has any of these words"
        return "\n\n".join(
            f"[{rank}] id={hit.passage.id} score={hit.score:.2f}\n{self._cut(hit.passage.text)}"
            for rank, hit in enumerate(hits, 1)
        )

    def _cut(self, text: str) -> str:
        left_out = len(text) - self.max_chars
        return text if left_out <= 0 else f"{text[: self.max_chars]} [... {left_out:,} more characters]"

    def _build(self) -> Any:
        import bm25s

        # float64: in float32 a score depends on the order in which its words are added.
        index = bm25s.BM25(method="lucene", k1=self.k1, b=self.b, dtype="float64")
        tokens = [words(passage.text) for passage in self.passages]
        if not any(tokens):
            raise DataError("search: no passage has a word in it", reason="empty")
        index.index(tokens, show_progress=False)
        return index

    def _load(self, folder: Path) -> Any:
        """The kept index of these passages and parameters; built and kept where there is none."""
        import bm25s

        key = hashlib.sha256(f"{_FORMAT} {bm25s.__version__} {self.k1} {self.b} {content_key(self.passages)}".encode())
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"search: index_dir {folder} is a file; it must be a folder or a new name")
        target = folder / f"bm25-{key.hexdigest()[:32]}"
        if target.is_dir():
            try:
                return bm25s.BM25.load(target, show_progress=False)
            except Exception as error:  # a damaged file may fail in any way, and the index can be made again
                _log.warning("search: %s can't be loaded and is built again: %s", target, error)
                shutil.rmtree(target)
        index = self._build()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".bm25-"))
        temporary.chmod(0o755)  # mkdtemp's is private; the index may be shared
        try:
            index.save(temporary, show_progress=False)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster; its index is the same
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return index
