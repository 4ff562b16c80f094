"""Tokenizers learned from a corpus: nothing is lost, merges fit the corpus, special tokens stay whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmreason.models.tokenizer_training import bytes_per_token, check_training, save_tokenizer, train_tokenizer
from mmreason.types import ConfigError

TEXTS = ["the quick brown fox jumps over the lazy dog, again and again and again"] * 20
SPECIAL = ("<|mask|>", "<extra_id_0>", "<extra_id_1>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 300, special=SPECIAL)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    import unicodedata

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_it_is_one_of_the_corpus(tokenizer: Any, tmp_path: Path) -> None:
    assert len(tokenizer) == 300 and tokenizer.mask_token == "<|mask|>"
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [297, 298, 299]
    assert tokenizer("a <extra_id_1> 12")["input_ids"].count(299) == 1
    assert len(tokenizer("12345")["input_ids"]) == 5, "each digit is a token"
    assert bytes_per_token(tokenizer, TEXTS) > 2 > 1.3 > bytes_per_token(tokenizer, ["ZQXWV JKZ!"])
    again = AutoTokenizer.from_pretrained(save_tokenizer(tokenizer, tmp_path, 4096))
    assert again.get_vocab() == tokenizer.get_vocab() and again.model_max_length == 4096
    assert again(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_only_the_beginning_is_learned_from() -> None:
    cut = train_tokenizer(["aaaaaaaa" * 50, "bbbbbbbb" * 50], 270, max_characters=400)
    assert "aa" in cut.get_vocab() and "bb" not in cut.get_vocab()


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({}, "needs vocab_size"),
        ({"vocab_siz": 300}, "Did you mean 'vocab_size'"),
        ({"vocab_size": 263}, "at least 264"),
        ({"vocab_size": "300"}, "must be a whole number"),
    ],
)
def test_wrong_settings_are_named(given_settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_training(given_settings, SPECIAL)
