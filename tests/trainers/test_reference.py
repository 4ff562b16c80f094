"""A reference with another vocabulary is refused before anything is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.models.tiny import save_tiny, tiny_tokenizer
from mmreason.trainers.reference import check_reference
from mmreason.types import ConfigError


def load(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_the_same_vocabulary_passes_from_the_same_place_and_from_another(tmp_path: Path) -> None:
    here, there = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", seed=3)
    policy, tokenizer = load(here)
    for path in (here, there):
        check_reference(load(path)[0], policy, tokenizer)


def test_rows_beyond_the_tokenizer_are_padding(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "a")
    (model, tokenizer), (policy, _) = load(path), load(path)
    model.resize_token_embeddings(model.config.vocab_size + 64)
    check_reference(model, policy, tokenizer)


def test_a_smaller_vocabulary_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "a")
    (model, tokenizer), (policy, _) = load(path), load(path)
    model.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(ConfigError, match=rf"knows {len(tokenizer) - 1} tokens, the policy {len(tokenizer)}"):
        check_reference(model, policy, tokenizer)


def test_the_same_size_with_other_tokens_is_refused(tmp_path: Path) -> None:
    here, there = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b")
    file = Path(there) / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    tokens = tiny_tokenizer().get_vocab()
    one, two = (next(t for t, i in tokens.items() if i == wanted and t.isalnum()) for wanted in _two_words(tokens))
    swapped = text.replace(f'"{one}": {tokens[one]}', f'"{one}": {tokens[two]}')
    swapped = swapped.replace(f'"{two}": {tokens[two]}', f'"{two}": {tokens[one]}')
    assert swapped != text
    file.write_text(swapped, encoding="utf-8")
    policy, tokenizer = load(here)
    with pytest.raises(
        ConfigError, match=rf"2 of {len(tokenizer)} tokens have another id there, such as '{min(one, two)}'"
    ):
        check_reference(load(there)[0], policy, tokenizer)


def _two_words(tokens: dict[str, int]) -> tuple[int, int]:
    plain = sorted(index for token, index in tokens.items() if token.isalnum())
    return plain[0], plain[-1]


def test_a_reference_without_a_tokenizer_is_taken_by_its_size(tmp_path: Path) -> None:
    here, there = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(there) / name).unlink()
    check_reference(load(there)[0], *load(here))
