"""Hazard categories, word lists and refusal patterns: the first pass over a text, without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from mmreason.clients.judge_types import Language
from mmreason.types import ConfigError

OPENING = 300
"""Characters of an answer in which a refusal is looked for: models refuse first, if they refuse."""
_PIECE = re.compile(r"<(\w+)>")
_BLANKS = re.compile(r"\s+")
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")


@dataclass(frozen=True, slots=True)
class Hazard:
    """One category of harm.

    Attributes:
        name: its key.
        descriptions: language -> what belongs to it, as the judge is told.
        words: what makes a text worth a second look.
    """

    name: str
    descriptions: Mapping[Language, str]
    words: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class SafetyLists:
    """Attributes:
    hazards: name -> category.
    refusals: patterns for the opening of an answer.
    """

    hazards: dict[str, Hazard] = field(default_factory=dict)
    refusals: tuple[re.Pattern[str], ...] = ()

    def find_hazards(self, text: str) -> dict[str, tuple[str, ...]]:
        """Category -> the different words of its list that stand in the text; categories without any are left out."""
        plain = _plain(text)
        found = {}
        for name, hazard in self.hazards.items():
            hits = dict.fromkeys(match.group() for match in hazard.words.finditer(plain)) if hazard.words else {}
            if hits:
                found[name] = tuple(hits)
        return found

    def find_refusal(self, answer: str) -> str | None:
        """The words of the answer's opening that refuse; None without any."""
        opening = _plain(answer)[:OPENING]
        return next((match.group() for pattern in self.refusals if (match := pattern.search(opening))), None)


@lru_cache(maxsize=8)
def load_lists(path: str | Path | None = None) -> SafetyLists:
    """The lists of a YAML file; None: those of the package, `mmreason/clients/safety_lists.yaml`, which says the form.

    Raises: ConfigError naming file and entry.
    """
    import yaml

    where = str(path) if path is not None else "safety_lists.yaml"
    try:
        if path is not None:
            text = Path(path).read_text(encoding="utf-8")
        else:
            text = resources.files("mmreason.clients").joinpath("safety_lists.yaml").read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: no safety lists: {error}") from None
    unknown = sorted(set(value) - {"categories", "pieces", "refusals"}) if isinstance(value, dict) else []
    if not isinstance(value, dict) or unknown or not isinstance(value.get("categories"), dict):
        raise ConfigError(f"{where}: safety lists have `categories`, `pieces`, `refusals`{_not(unknown)}")
    hazards = {name: _hazard(name, entry, where) for name, entry in value["categories"].items()}
    pieces = value.get("pieces") or {}
    return SafetyLists(hazards, tuple(_pattern(text, pieces, where) for text in value.get("refusals") or []))


def word_list(path: str | Path) -> SafetyLists:
    """One category, `words`, of a text file with a word or phrase on each line (# begins a comment line).

    Raises: ConfigError: it can't be read, or has none.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no word list: {error}") from None
    words = [line for line in lines if line.strip(" *") and not line.startswith("#")]
    if not words:
        raise ConfigError(f"{path}: the word list is empty; put a word or phrase on each line")
    return SafetyLists({"words": Hazard("words", {}, _any_of(words))})


def _hazard(name: Any, entry: Any, where: str) -> Hazard:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(f"{where}: category {name!r}: a name is made of a-z, 0-9 and _")
    if not isinstance(entry, dict) or set(entry) - {"en", "zh", "words"} or not (set(entry) & {"en", "zh"}):
        raise ConfigError(f"{where}: category {name} has a description (`en`, `zh`) and `words`")
    words = entry.get("words") or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip(" *") for word in words):
        raise ConfigError(f"{where}: category {name}: words are texts")
    languages: tuple[Language, ...] = ("en", "zh")
    descriptions = {language: str(entry[language]) for language in languages if language in entry}
    return Hazard(name, descriptions, _any_of(words) if words else None)


def _any_of(words: list[str]) -> re.Pattern[str]:
    """Whole words where words have blanks between them, anywhere in Chinese."""
    bounded: list[str] = []
    anywhere: list[str] = []
    for word in map(_plain, words):
        text = re.escape(word.removesuffix("*"))
        if word.isascii():
            bounded.append(text + (r"\w*" if word.endswith("*") else r"\b"))
        else:
            anywhere.append(text)
    parts = [rf"\b(?:{'|'.join(bounded)})"] if bounded else []
    return re.compile("|".join(parts + anywhere))


def _pattern(text: Any, pieces: Mapping[str, list[str]], where: str) -> re.Pattern[str]:
    try:
        return re.compile(_PIECE.sub(lambda match: f"(?:{'|'.join(pieces[match[1]])})", text))
    except KeyError as error:
        raise ConfigError(f"{where}: refusals: {text!r}: no pieces of the name {error}") from None
    except (re.error, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: refusals: {text!r} is no regular expression: {error}") from None


def _plain(text: str) -> str:
    return _BLANKS.sub(" ", text.translate(_APOSTROPHES)).strip().lower()


def _not(unknown: list[str]) -> str:
    return f", not {', '.join(unknown)}" if unknown else ""
