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
        return sum(p.numel() for p in tiny_decoder(size).parameters()) / 1e6

    assert round(millions("xs"), 1) == 0.1 and round(millions("s"), 1) == 1.3
    assert tiny_decoder(num_hidden_layers=1).config.num_hidden_layers == 1
