"""Log-probabilities of servers that tell the truth in their several ways pass; those of servers that lie don't."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.clients.logprobs import LogprobsError, parse_logprobs


def entry(token: str, logprob: float = -0.5, raw: bytes | None = None, top: list[Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"token": token, "logprob": logprob}
    if raw is not None:
        found["bytes"] = list(raw)
    if top is not None:
        found["top_logprobs"] = top
    return found


def read(entries: list[Any], text: str, k: int = 0, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"reasoning": None, "stop": (), "completion_tokens": None, "is_text_only": True}
    return parse_logprobs({"content": entries}, k=k, text=text, **(defaults | settings))


@given(st.lists(st.text(min_size=1), max_size=20))
def test_tokens_that_make_up_the_text_pass(tokens: list[str]) -> None:
    text = "".join(tokens)
    found = read([entry(t) for t in tokens], text) if tokens else ()
    assert [token.token for token in found] == tokens


@given(st.text(min_size=1), st.data())
def test_bytes_cut_anywhere_join_to_the_text(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))))
    parts = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if raw[a:b]]
    read([entry(part.decode(errors="replace"), raw=part) for part in parts], text)


@pytest.mark.parametrize(
    ("tokens", "text", "settings"),
    [
        (["4", "2", "<|im_end|>"], "42", {"completion_tokens": 3}),  # the end token is listed
        (["4", "2"], "42", {"completion_tokens": 3}),  # and left out
        (["a", "<|user|>", "b"], "ab", {}),  # special tokens are absent from the text
        (["The", "answer"], "The answer", {}),  # sentencepiece tokens decoded one by one
        (["x", " y", "\n", "Obser", "vation: z"], "x y", {"stop": ("Observation:",)}),
        (["caf", "\ufffd", "\ufffd", "!"], "café!", {}),  # parts of characters without bytes
        (["caf", "", "é", "!", ""], "café!\ufffd", {}),  # the same in vLLM
        (["<think>", "why", "</think>", "42"], "42", {"reasoning": "why", "completion_tokens": 4}),
        ([], "", {"completion_tokens": 0}),
    ],
)
def test_what_is_no_lie_passes(tokens: list[str], text: str, settings: dict[str, Any]) -> None:
    read([entry(t) for t in tokens], text, **settings)


def test_alternatives_come_likeliest_first() -> None:
    top = [entry("b", math.log(0.2)), entry("a", math.log(0.7))]
    (token,) = read([entry("b", math.log(0.2), top=top)], "b", k=2)
    assert [name for name, _ in token.top] == ["a", "b"]
    assert token.logprob == math.log(0.2)


def test_alternatives_that_are_parts_of_characters_may_look_alike() -> None:
    for name in ("\ufffd", ""):
        top = [entry(name, math.log(0.4)), entry(name, math.log(0.3))]
        read([entry(name, math.log(0.4), top=top)], "é", k=2)


def two(first: float, second: float) -> list[Any]:
    return [entry("a", first), entry("b", second)]


@pytest.mark.parametrize(
    ("entries", "text", "k", "settings", "word"),
    [
        ([], "text", 0, {}, "missing"),
        ([entry("a", 0.5)], "a", 0, {}, "which is none"),
        ([entry("a", float("nan"))], "a", 0, {}, "which is none"),
        ([{"token": "a"}], "a", 0, {}, "which is none"),
        ([{"logprob": -1.0}], "a", 0, {}, "not a token"),
        ([entry("a", -0.1, top=two(-0.1, -0.1))], "a", 2, {}, "add up to 1.81"),
        ([entry("a", -0.7, top=two(-0.7, -0.9)[:1])], "a", 2, {}, "no place has more than 1"),
        ([entry("a", -0.7, top=two(-0.7, -0.9))], "a", 1, {}, "has 2 alternatives, 1 were"),
        ([entry("a", -0.7, top=[entry("a", -0.7), entry("a", -3.0)])], "a", 2, {}, "twice"),
        ([entry("a", -0.7, top=two(-1.2, -1.3))], "a", 2, {}, "among its alternatives"),
        ([entry("a"), entry("c")], "ab", 0, {}, "are not the text"),
        ([entry("a")], "ab", 0, {}, "more than the tokens"),
        ([entry("a"), entry("b"), entry("c")], "ab", 0, {}, "are not the text"),
        ([entry("\ufffd")], "a whole sentence", 0, {}, "more than the tokens"),
        ([entry("a"), entry("b")], "ab", 0, {"completion_tokens": 9}, "9 were counted"),
        ([entry("a"), entry("b")], "ab", 0, {"completion_tokens": 0}, "0 were counted"),
        ([entry("x"), entry("STOPPED")], "xy", 0, {"stop": ("STOP",)}, "are not the text"),
        ([entry("<think>"), entry("41")], "42", 0, {"reasoning": "why"}, "don't contain the text"),
    ],
)
def test_lies_are_caught(entries: list[Any], text: str, k: int, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(LogprobsError, match=word):
        read(entries, text, k, **settings)


@pytest.mark.parametrize("found", [None, {}, {"content": None}, [], "x"])
def test_no_logprobs_at_all(found: Any) -> None:
    with pytest.raises(LogprobsError, match="missing"):
        parse_logprobs(found, k=0, text="a", reasoning=None, stop=(), completion_tokens=1, is_text_only=True)
