"""A tokenizer of one's own: byte-level BPE, learned from a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import ConfigError

KEYS: dict[str, str] = {
    "vocab_size": "tokens in all, special ones included",
    "max_characters": "learn from the first so many characters of the corpus; left out: 500 million",
}
_MAX_CHARACTERS = 500_000_000  # merges hardly change beyond, and the trainer holds all distinct words in memory
_BYTES = 261  # one token per byte, and the five special tokens of a conversation


def check_training(settings: Mapping[str, Any], special: Sequence[str] = ()) -> None:
    """Refuse settings that can't be: see `KEYS`. Raises ConfigError."""
    for key in settings:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise ConfigError(f"train_tokenizer: unknown key {key!r}; known: {', '.join(KEYS)}.{hint}")
    if "vocab_size" not in settings:
        raise ConfigError("train_tokenizer needs vocab_size: the number of tokens")
    least = _BYTES + len(special)
    for key, value in settings.items():
        low = least if key == "vocab_size" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"train_tokenizer: {key}={value!r} must be a whole number, at least {low}")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, special: Sequence[str] = (), max_characters: int = _MAX_CHARACTERS
) -> Any:
    """Learn a byte-level BPE tokenizer: any text round-trips, and each digit is a token of its own.

    It has the special tokens and the chat template of `tiny_tokenizer`, so that later stages can hold conversations.

    Args:
        texts: of the corpus. vocab_size: upper bound of all tokens; a small corpus has fewer merges to learn.
        special: further special tokens, the last ones of the vocabulary; one named <|mask|> is the mask token.
    Returns: a `PreTrainedTokenizerFast`.
    Raises: ConfigError: a vocabulary that is too small for bytes and special tokens.
    """
    check_training({"vocab_size": vocab_size, "max_characters": max_characters}, special)
    tokenizer = tiny_tokenizer(_first(texts, max_characters), vocab_size - len(special))
    if "<|mask|>" in special:
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    others = [token for token in special if token != "<|mask|>"]
    if others:
        tokenizer.add_special_tokens({"additional_special_tokens": others}, replace_extra_special_tokens=False)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, max_length: int) -> str:
    """Write a tokenizer that says how long its model's rows are; returns its path."""
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    return str(folder)


def bytes_per_token(tokenizer: Any, texts: Iterable[str]) -> float:
    """How well a tokenizer fits some texts: UTF-8 bytes per token; 1.0 for one that learned nothing."""
    size = tokens = 0
    for text in texts:
        size += len(text.encode())
        tokens += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return size / max(tokens, 1)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    left = characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
