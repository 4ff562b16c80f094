"""Is a text new? ROUGE-L against all that is there, as in Self-Instruct (arXiv 2212.10560, section 2.2)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LATIN_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a text is too like: its number in the pool, and the F-measure of ROUGE-L."""

    index: int
    score: float


class Pool:
    """Texts in the order in which they came, and whether another is new beside them.

    A text is new where ROUGE-L's F-measure with every other is below the threshold. Scores are rouge_score's; a bound
    on the longest common subsequence from the counts of the words spares most of them and changes no decision.

    Args:
        threshold: 0.7 in Self-Instruct.
    """

    def __init__(self, threshold: float = 0.7, texts: Iterable[str] = ()) -> None:
        self.threshold = threshold
        self.texts: list[str] = []
        self._counts: list[Counter[str]] = []
        self._sizes: list[int] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> None:
        tokens = tokenize(text)
        self.texts.append(text)
        self._counts.append(Counter(tokens))
        self._sizes.append(len(tokens))

    def nearest(self, text: str, first: int | None = None) -> Nearest | None:
        """The first text that this one is too like, None where it is new.

        Args: first: look at the first so many only. Texts without a word are like equal texts alone.
        """
        tokens = tokenize(text)
        counts, size = Counter(tokens), len(tokens)
        for i in range(len(self.texts) if first is None else first):
            if not size or not self._sizes[i]:
                if text.strip() == self.texts[i].strip():
                    return Nearest(i, 1.0)
                continue
            if 2 * min(size, self._sizes[i]) < self.threshold * (size + self._sizes[i]):
                continue
            few, many = sorted((counts, self._counts[i]), key=len)
            shared = sum(min(count, many[word]) for word, count in few.items())
            if 2 * shared < self.threshold * (size + self._sizes[i]):
                continue
            score = rouge_l(self.texts[i], text)
            if score >= self.threshold:
                return Nearest(i, score)
        return None


def rouge_l(target: str, prediction: str) -> float:
    """The F-measure of ROUGE-L, 0 to 1."""
    return float(_scorer().score(target, prediction)["rougeL"].fmeasure)


@functools.lru_cache(maxsize=65_536)
def tokenize(text: str) -> tuple[str, ...]:
    """rouge_score's own words; where there are other scripts, which it drops, those of `mmreason.data`."""
    lowered = text.lower()
    if lowered.isascii():
        return tuple(_LATIN_WORD.findall(lowered))
    from mmreason.data._words import words

    return tuple(words(text))


class _Tokenizer:
    def tokenize(self, text: str) -> list[str]:
        return list(tokenize(text))


@functools.lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Tokenizer())
