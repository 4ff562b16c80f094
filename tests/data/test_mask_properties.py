"""What carries loss, for any texts: the assistant's words and the ends of its turns, and nobody else's."""

from __future__ import annotations

import unicodedata
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmreason.data.loss_spans import LossOn, Span, token_weights, weighted
from mmreason.data.supervised import render_supervised
from tests.data.mask_cases import WEATHER, frozen, tokenizer_for

NAMES = ["qwen2_5", "qwen3", "qwen3_5_think", "llama3", "gemma", "glm4moe", "gptoss", "phi3", "deepseek_r1_distill"]
THINK = ("qwen3", "qwen3_5_think", "glm4moe", "gptoss", "deepseek_r1_distill")
CALL = ("qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "gptoss")

TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co"), exclude_characters="\x00"),
        st.sampled_from(" \n\t<>|{}\"'\\/👩‍👧éßقلम"),
    ),
    max_size=30,
).map(lambda text: unicodedata.normalize("NFC", text))


@st.composite
def conversations(draw: st.DrawFn, name: str) -> tuple[Any, list[tuple[str, str]], list[str]]:
    """(an Example, each assistant's message's own words and whole text, the words of everyone else)."""
    number = 0

    def words() -> str:
        nonlocal number
        number += 1
        return f"W{number}W{draw(TEXT)}"

    others: list[str] = []
    spoken: list[tuple[str, str]] = []
    messages: list[Any] = []

    def listen(role: str, **more: Any) -> None:
        others.append(words())
        messages.append({"role": role, "content": others[-1], **more})

    def speak(message: Any, text: str) -> None:
        messages.append({"role": "assistant", **message})
        spoken.append((text[: text.index("W", 1) + 1], text))

    if name != "gemma" and draw(st.booleans()):
        listen("system")
    turns = draw(st.integers(1, 3))
    start = 0
    for turn in range(turns):
        listen("user")
        start = len(messages)
        if name in CALL and draw(st.booleans()):
            town = words()
            call = {"type": "function", "function": {"name": "get_weather", "arguments": {"town": town, "n": turn}}}
            speak({"content": "", "tool_calls": [call]}, town)
            listen("tool", name="get_weather")
        answer: Any = {"content": words()}
        if name in THINK and draw(st.booleans()):
            answer["reasoning_content"] = words()
        speak(answer, answer["content"])
    example = {
        "id": "r",
        "source": "s",
        "prompt": messages[:start],
        "completion": messages[start:],
        "tools": [WEATHER] if any("tool_calls" in m for m in messages) else None,
    }
    return example, spoken, others


def check(name: str, case: tuple[Any, list[tuple[str, str]], list[str]]) -> None:
    example, spoken, others = case
    tokenizer = tokenizer_for(name)
    added = set(tokenizer.get_added_vocab().values())
    rows = render_supervised(example, tokenizer, loss_on=LossOn(turns="all"), chat_template_kwargs=frozen(name))
    runs: list[list[int]] = []
    for row in rows:
        for supervised, pairs in groupby(zip(row.weights, row.ids, strict=True), key=lambda pair: pair[0] > 0):
            ids = [token for _, token in pairs]
            text = tokenizer.decode(ids)
            if supervised:
                runs.append(ids)
                assert not any(other[: other.index("W", 1) + 1] in text for other in others)
    assert len(runs) == len(spoken)
    for ids, (marker, whole) in zip(runs, spoken, strict=True):
        text = tokenizer.decode(ids)
        assert text.count(marker) == 1
        assert ids[-1] in added and ids.count(ids[-1]) == 1
        if "town" not in text:
            assert whole.strip() in text
    # Every row is the tokens of its whole text.
    for row in rows:
        assert tokenizer(tokenizer.decode(row.ids), add_special_tokens=False)["input_ids"] == row.ids


@pytest.mark.parametrize("name", NAMES)
def test_any_texts(name: str) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(name))
    def run(case: Any) -> None:
        check(name, case)

    run()


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_very_many_texts(name: str) -> None:
    @settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(name))
    def run(case: Any) -> None:
        check(name, case)

    run()


@settings(max_examples=200, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True),
    borders=st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=5, max_size=5),
)
def test_token_weights_against_a_loop_over_characters(
    cuts: list[int], borders: list[int], weights: list[float]
) -> None:
    """A token has the weight of its first character; one that begins before what carries loss has none."""
    text = "x" * 41
    cuts, borders = sorted({0, 41, *cuts}), sorted(borders)
    offsets = list(pairwise(cuts))
    kinds: Any = ["reasoning", "answer", "tool_call", "reasoning", "answer"]
    loss_on = LossOn(reasoning=weights[0], answer=weights[1], tool_call=weights[2])
    spans = [Span(kind, a, b, (a, b)) for kind, a, b in zip(kinds, borders, borders[1:], strict=False)]
    of_character = [0.0] * 41
    for span in spans:
        of_character[span.start : span.stop] = [getattr(loss_on, span.kind)] * (span.stop - span.start)
    regions = weighted(text, spans, loss_on)
    straddles = any(of_character[a] == 0 and any(of_character[i] for i in range(a, b)) for a, b in offsets)
    assume(not straddles)
    assert token_weights(offsets, regions, text) == [of_character[a] for a, _ in offsets]
