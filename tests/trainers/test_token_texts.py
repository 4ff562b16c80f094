"""The text of each token: joined they are the completion, whatever the tokenizer does with characters and spaces."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.token_texts import TokenTexts
from tests.timing import allowed

BYTES = tiny_tokenizer()  # every byte is a token
TEXTS = ["so 12 + 7 = 19.\n", "因此，答案是：42。", "a😀b é", "नमस्ते", "", " "]


def ids_of(data: bytes) -> list[int]:
    """Token ids of the tiny tokenizer for bytes that need not be text."""
    from tokenizers import pre_tokenizers

    # GPT-2's table: printable bytes stand for themselves, the others for the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    return [BYTES.convert_tokens_to_ids(table[byte]) for byte in data]


def sentencepiece_like() -> Any:
    """A tokenizer in Llama 2's manner: ▁ for spaces, <0x..> for bytes of characters that it doesn't know."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s", "."]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_completion(text: str) -> None:
    ids = [*BYTES(text, add_special_tokens=False)["input_ids"], BYTES.eos_token_id]
    texts = TokenTexts(BYTES)(ids)
    assert len(texts) == len(ids) and "".join(texts) == text + "<|end|>" and texts[-1] == "<|end|>"


def test_a_character_belongs_to_its_last_token() -> None:
    texts = TokenTexts(BYTES)(ids_of("4是2".encode()))
    assert texts == ["4", "", "", "是", "2"]


def test_a_character_cut_off_is_shown_as_such() -> None:
    assert TokenTexts(BYTES)(ids_of("是".encode()[:2])) == ["", "\ufffd"]
    assert TokenTexts(BYTES)(ids_of("是".encode()[:2] + b"7")) == ["", "\ufffd", "7"]
    assert TokenTexts(BYTES)(ids_of("\ufffd7".encode())) == ["", "", "\ufffd", "7"]  # the model wrote the mark itself
    assert TokenTexts(BYTES)([]) == []


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.one_of(st.text(max_size=6).map(str.encode), st.binary(max_size=30)), max_size=6))
def test_any_bytes(parts: list[bytes]) -> None:
    """Models write broken text, too: nothing is lost or doubled."""
    ids = ids_of(b"".join(parts))
    texts = TokenTexts(BYTES)(ids)
    assert len(texts) == len(ids) and "".join(texts) == BYTES.decode(ids)


def test_spaces_and_byte_fallback_of_sentencepiece() -> None:
    tokenizer = sentencepiece_like()
    names = ["▁the", "▁cat", "s", "▁the", *(f"<0x{byte:02X}>" for byte in "是好".encode()), ".", "</s>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    texts = TokenTexts(tokenizer)(ids)
    assert texts == [" the", " cat", "s", " the", "", "", "是", "", "", "好", ".", "</s>"]
    # Only the space at the very start, which decoding takes off, is more.
    assert "".join(texts) == " " + tokenizer.decode(ids)


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        self.calls += 1
        return str(BYTES.decode(ids))


def test_a_whole_character_is_decoded_once() -> None:
    tokenizer = Counting()
    texts = TokenTexts(tokenizer)
    ids = ids_of(b"12 + 7 = 19 " * 20)
    texts(ids)
    calls = tokenizer.calls
    assert calls == 2 * len(set(ids))
    texts(ids)
    assert tokenizer.calls == calls


@pytest.mark.parametrize(
    "data", [b"so 12 + 7 = 19, " * 13, "因此，答案是四十二。".encode() * 7, bytes(range(128, 208))]
)
def test_two_hundred_tokens_take_under_5_ms(data: bytes) -> None:
    texts, ids = TokenTexts(BYTES), (ids_of(data) * 3)[:200]
    texts(ids)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        texts(ids)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < allowed(5e-3), seconds
