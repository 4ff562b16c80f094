"""Spans of two tokenizations: they cover the text, are as short as they can be, and texts that differ are refused."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data.spans import align, token_borders
from mmreason.types import DataError


@cache
def tokenizers() -> tuple[Any, Any]:
    """One token a byte, and words."""
    from mmreason.models.tiny import tiny_tokenizer

    texts = ["the apples are 17 and the pears are 25, so there are 42 in all"] * 20
    return tiny_tokenizer(), tiny_tokenizer(texts, vocab_size=330)


def encoded(text: str, *, end: bool = True) -> tuple[list[int], list[int]]:
    first, second = ([*one(text)["input_ids"], *([one.eos_token_id] if end else [])] for one in tokenizers())
    return first, second


def pieces(ids: list[int], spans: list[int], tokenizer: Any) -> list[tuple[int, str]]:
    """(number, text) of each run of tokens in one span."""
    runs = groupby(zip(spans, ids, strict=True), key=lambda pair: pair[0])
    return [(number, tokenizer.decode([token for _, token in run])) for number, run in runs]


def test_spans_are_the_shortest_that_both_cut_out() -> None:
    first, second = encoded("the apples are 17")
    found = align(first, second, tokenizers(), "row 1")
    words = [(0, "the"), (1, " apples"), (2, " are"), (3, " "), (4, "1"), (5, "7"), (6, "<|end|>")]
    assert pieces(first, found[0], tokenizers()[0]) == words == pieces(second, found[1], tokenizers()[1])


@settings(max_examples=80)
@given(st.text(alphabet=st.sampled_from("the apls 17.,é汉字🙂\n"), max_size=30), st.booleans())
def test_any_text(text: str, end: bool) -> None:
    """Both sides have the same spans with the same texts, numbered from 0 without a gap."""
    first, second = encoded(text, end=end)
    one, other = (
        token_borders(ids, tokenizer)[0] for ids, tokenizer in zip((first, second), tokenizers(), strict=True)
    )
    assert one == other
    found = align(first, second, tokenizers(), "row 1")
    sides = [pieces(ids, spans, one) for ids, spans, one in zip((first, second), found, tokenizers(), strict=True)]
    numbers = [number for number, _ in sides[0]]
    assert numbers == [number for number, _ in sides[1]] == list(range(len(numbers)))
    assert [said.strip() for _, said in sides[0]] == [said.strip() for _, said in sides[1]]
    if first == second and text == text.strip() and text.isascii():
        assert found[0] == list(range(len(first)))


def test_the_same_tokenizer_gives_each_token_its_own_span() -> None:
    ids, _ = encoded("so 17 + 25 = 42")
    one, other = align(ids, ids, (tokenizers()[0], tokenizers()[0]), "row 1")
    assert one == other == list(range(len(ids)))


def test_characters_of_several_tokens_stay_whole() -> None:
    ids, _ = encoded("a汉b", end=False)
    one, _ = align(ids, ids, (tokenizers()[0], tokenizers()[0]), "row 1")
    assert one == [0, 1, 1, 1, 2]


def test_an_end_on_one_side_only_is_in_no_span() -> None:
    first, second = encoded("the apples")
    one, other = align(first, second[:-1], tokenizers(), "row 1")
    assert one[-1] == -1 and -1 not in one[:-1] and -1 not in other


def test_texts_that_differ_are_refused() -> None:
    first, _ = encoded("so 42")
    _, second = encoded("so 41")
    with pytest.raises(
        DataError, match=r"row 7: student and teacher are to learn different texts, from character 4 on"
    ):
        align(first, second, tokenizers(), "row 7")
