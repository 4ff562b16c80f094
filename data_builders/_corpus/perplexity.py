"""Perplexity of documents, under a small model on the disk or under the characters of a text that is taken for good."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mmreason.types import ConfigError

_MAX_TOKENS = 1024
"""Of a document, from its beginning, that a neural model reads."""
_ORDER = 5


class Scorer(Protocol):
    """Gives the perplexity of texts: of a token under a neural model, of a character under an n-gram model."""

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """exp(-mean log p) of each text; infinity for one without anything to predict."""
        ...


@lru_cache(maxsize=1)
def load_scorer(path: str) -> Scorer:
    """A folder holds a causal model of transformers; a .txt file is what the n-grams of an n-gram model come from.

    Raises: ConfigError: neither is there.
    """
    place = Path(path).expanduser()
    if (place / "config.json").is_file():
        return NeuralScorer(str(place))
    if place.is_file() and place.suffix == ".txt":
        try:
            return CharacterModel(place.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"--perplexity_model {path}: not UTF-8 ({error}); convert it with iconv -t UTF-8"
            ) from None
    raise ConfigError(
        f"--perplexity_model {path}: expected the folder of a causal language model (with config.json), or a .txt file "
        "with text of the kind that is wanted, from which an n-gram model of characters is made"
    )


class CharacterModel:
    """An n-gram model of characters with Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1998, eq. 16).

    p(c | h) = (n(h, c) + t(h) p(c | h')) / (n(h) + t(h)), where t(h) is the number of different characters seen after
    h, and h' is h without its first character. The shortest history is empty, below which all characters are alike.
    """

    def __init__(self, text: str, order: int = _ORDER) -> None:
        self._order = order
        self._counts: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        text = " ".join(text.split())
        for length in range(1, order + 1):
            self._counts.update(text[i : i + length] for i in range(len(text) - length + 1))
        for gram, count in self._counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1
        self._floor = 1 / (len({gram for gram in self._counts if len(gram) == 1}) + 1)

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """See `Scorer`; white space of any kind and length is one blank."""
        return [self._perplexity(" ".join(text.split())) for text in texts]

    def _perplexity(self, text: str) -> float:
        if not text:
            return math.inf
        total = 0.0
        counts, totals, kinds = self._counts, self._totals, self._kinds
        for end in range(1, len(text) + 1):
            p = self._floor
            for start in range(end - 1, max(-1, end - 1 - self._order), -1):
                history = text[start : end - 1]
                n, t = totals.get(history, 0), kinds.get(history, 0)
                if n == 0:
                    break  # a longer history was not seen either
                p = (counts.get(text[start:end], 0) + t * p) / (n + t)
            total += math.log(p)
        return math.exp(-total / len(text))


class NeuralScorer:
    """A causal language model on the CPU or the first GPU. Raises: ConfigError: it can't be loaded."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"--perplexity_model {folder}: can't be loaded: {error}") from None
        self._model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        limit = getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS
        self._length = min(_MAX_TOKENS, limit)

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """See `Scorer`. Each text is read alone, so that it doesn't depend on its neighbours."""
        return [self._perplexity(text) for text in texts]

    def _perplexity(self, text: str) -> float:
        import torch

        ids = self._tokenizer(text, add_special_tokens=False, truncation=True, max_length=self._length)["input_ids"]
        start = self._tokenizer.bos_token_id
        row = ([start, *ids] if start is not None else ids)[: self._length]
        if len(row) < 2:
            return math.inf
        given = torch.tensor([row], device=self._model.device)
        with torch.inference_mode():
            logits = self._model(input_ids=given).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, given[0, 1:])
        return math.exp(min(float(loss), 700.0))
