"""The tiny tokenizer loses no text, and the tiny decoder is a normal checkpoint."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmreason.models.tiny import TINY_SIZES, save_tiny, tiny_decoder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "image"}, {"type": "text", "text": "2?"}]},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "and 3+3?"},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same tokenizer as transformers gives it back from a checkpoint, there perhaps as another class."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny(tmp_path_factory.mktemp("saved")))


@settings(max_examples=300, deadline=None)
@given(text=st.text())
@example(" leading, trailing and  double spaces \n\t\r\n")
@example("do n't , `` quote '' . ?")  # what a decoder that tidies up would change
@example("12 345,67 ½ ² ６ 一百 π∑ 👩‍👩‍👧 \u200b\x00\x7f")
@example("e\u0301 as two code points comes back as one")
def test_any_text_comes_back(loaded: Any, text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    composed = TOKENIZER.backend_tokenizer.normalizer.normalize_str(text)
    assert TOKENIZER.decode(ids) == composed and (composed == text or unicodedata.normalize("NFC", text) != text)
    assert len(ids) == len(composed.encode()) or "<|" in text  # a special token's name in the text is one token
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids and loaded.decode(ids) == composed
    assert all(0 <= token < len(TOKENIZER) for token in ids)


def test_digits_are_spelled() -> None:
    assert [TOKENIZER.decode([t]) for t in TOKENIZER("1234")["input_ids"]] == ["1", "2", "3", "4"]


TEXTS = ["Ana buys 12 more apples.", "Ben sells 7 apples.", "苹果有12个。"] * 20


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(a tokenizer with merges learned from TEXTS, the same one as a checkpoint gives it back)."""
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path_factory.mktemp("learned"), texts=TEXTS, vocab_size=300)
    return tiny_tokenizer(TEXTS, 300), AutoTokenizer.from_pretrained(folder)


def test_frequent_words_become_tokens_and_digits_stay_digits(learned: Any) -> None:
    tokenizer, loaded = learned
    assert len(tokenizer) <= 300
    assert [tokenizer.decode([t]) for t in tokenizer("sells 12 apples")["input_ids"]][-4:] == [" ", "1", "2", " apples"]
    texts = [tokenizer.decode([t]) for t in range(len(tokenizer))]
    assert all(len(text) == 1 for text in texts if any(c.isdigit() for c in text))
    assert tokenizer.pad_token_id == len(tokenizer) - 5 and tokenizer.eos_token_id == len(tokenizer) - 4
    assert tokenizer("苹果有12个。")["input_ids"] == loaded("苹果有12个。")["input_ids"]


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_with_merges_too(learned: Any, text: str) -> None:
    tokenizer, loaded = learned
    composed = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == composed
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids


def test_special_tokens_are_single_and_skipped() -> None:
    ids = TOKENIZER("<|user|>hi<|end|>")["input_ids"]
    assert len(ids) == 4 and ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "hi"
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id


def test_chat_template() -> None:
    text = TOKENIZER.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>be brief<|end|><|user|>2+2?<|end|><|assistant|>4<|end|><|user|>and 3+3?<|end|><|assistant|>"
    )
    done = TOKENIZER.apply_chat_template(MESSAGES, tokenize=False)
    assert text == done + "<|assistant|>"
    ids = TOKENIZER.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert TOKENIZER.decode(ids) == text


def test_reasoning_stands_before_the_answer() -> None:
    turn = [{"role": "assistant", "reasoning_content": "2 + 2 = 4", "content": "The answer is 4."}]
    text = TOKENIZER.apply_chat_template(turn, tokenize=False)
    assert text == "<|assistant|>2 + 2 = 4\nThe answer is 4.<|end|>"


@pytest.mark.parametrize("size", TINY_SIZES)
def test_save_and_load(tmp_path: Path, size: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path / "a" / "b", size, seed=4)
    assert list(Path(folder).glob("*.safetensors")) and not list(Path(folder).glob("*.bin"))
    model, loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = tiny_decoder(size, seed=4)
    assert model.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert (loaded.pad_token_id, loaded.eos_token_id) == (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id)
    assert model.generation_config.eos_token_id == loaded.eos_token_id
    assert loaded.chat_template == TOKENIZER.chat_template
    assert len(loaded) == len(TOKENIZER) == model.config.vocab_size


def test_seed_decides_the_weights_and_leaves_the_generators() -> None:
    state = torch.get_rng_state()
    first, same, other = tiny_decoder(seed=1), tiny_decoder(seed=1), tiny_decoder(seed=2)
    assert torch.equal(torch.get_rng_state(), state)

    def equal(a: Any, b: Any) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    assert equal(first, same) and not equal(first, other)


def test_sizes_are_as_documented() -> None:
    def millions(size: str) -> float:
        return tiny_decoder(size, vocab_size=1024).num_parameters() / 1e6

    assert {size: round(millions(size), 1) for size in TINY_SIZES} == {"xs": 0.1, "s": 1.2, "m": 2.6}
    assert tiny_decoder(num_hidden_layers=1).config.num_hidden_layers == 1
