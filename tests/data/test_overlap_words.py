"""Words of texts: one spelling for what looks different, and what the signed form keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data._words import BREAK, SIGNS, signed_words, words
from tests.timing import allowed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("?! -- …", ""),
        ("Don’t can't ‘quote’ rock'n'roll", "dont cant quote rocknroll"),
        ("well-known and/or snake_case ____ x", "well known and or snake case x"),
        ("$1,000,000 and 1,2,3 and 80,0000 and 3，000", "1000000 and 1 2 3 and 80 0000 and 3000"),
        ("ＡＢＣ１２３ ﬁne Straße STRASSE", "abc123 fine strasse strasse"),
        ("so\u00adft zero\u200bwidth no\u00a0break", "soft zerowidth no break"),
        ("对ABC的影响，是３。ひらカナー", "对 abc 的 影 响 是 3 ひ ら カ ナ ー"),
        ("हिन्दी में नमस्ते", "हिन्दी में नमस्ते"),
        (r"\frac12 \dfrac{1}{2} \tfrac 1 2 \sqrt2 \log_264", "frac 1 2 frac 1 2 frac 1 2 sqrt 2 log 264"),
        (r"24,\!000 1{,}000 \left(x\right) 3\,\text{cm} \DFRAC{A}{B}", "24000 1000 x 3 cm frac a b"),
        (r"one\nTwo \neq \nu \times", "one two neq nu times"),
        ("a <b>bold</b> <br/> <span class='x y'>z</span> a<b and c>d", "a bold z a b and c d"),
        ("<|im_start|>user hi<|im_end|> <think>no</think>", "user hi no"),
        ("see [the page](https://a.b/c?d=e) and d[k](x)", "see the page and d k x"),
        ("Tom &amp; Jerry&nbsp;3 &lt; 4 AT&T", "tom jerry 3 4 at t"),
        ("lone \ud800 surrogate\x00null", "lone surrogate null"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 2", "3 + 2"),
        ("3-2, 3 – 2, −4, (x)-1, x - y, -$2$", "3 - 2 3 - 2 - 4 x - 1 x - y - 2"),
        ("well-known – or not - yes", "well known or not yes"),
        ("1/2 and/or a/b (x)/3", "1 / 2 and or a b x / 3"),
        ("2*3, x*y, 2 * (3) **bold** *it*", "2 * 3 x * y 2 * 3 bold it"),
        ("3.5 is. Not! 5! e.g.", "3 . 5 is | not | 5 ! e | g |"),
        ("x^2 = 4 ≤ √9 < 10 %", "x ^ 2 = 4 ≤ √ 9 < 10 %"),
        ("a\n- b\n1) c\n> d", "a | | b | 1 | c | | d"),
        ("“a” 说：「好」。", "| a | 说 | | 好 | |"),
    ],
)
def test_signed_words(text: str, expected: str) -> None:
    assert signed_words(text) == [BREAK if token == "|" else token for token in expected.split()]


@given(st.text(alphabet=st.characters(codec=None), max_size=60) | st.text("a1 .,-*/+!?'\n\\{}$<>()字，é²", max_size=40))
def test_signed_words_are_the_words_and_signs(text: str) -> None:
    assert [token for token in signed_words(text) if token not in SIGNS] == words(text)


@given(st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=60))
def test_case_says_nothing(text: str) -> None:
    if r"\n" not in text.lower() and r"\r" not in text.lower() and r"\t" not in text.lower() and "&" not in text:
        assert words(text.upper()) == words(text) == words(text.lower())


@given(
    st.lists(st.text("abc123字", min_size=1), max_size=8), st.sampled_from([" ", ", ", "?\n", " — ", "; ", " (", "\t"])
)
def test_punctuation_says_nothing(parts: list[str], mark: str) -> None:
    assert words(mark.join(parts)) == words(" ".join(parts))


def test_every_real_text_has_the_same_words_either_way(shared_data: Path) -> None:
    for name in ("math/math500", "mcqa/cmmlu_dev", "code/humaneval", "tool_use/tora_examples"):
        for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8"):
            text = "\n".join(str(cell) for cell in json.loads(line).values())
            assert [token for token in signed_words(text) if token not in SIGNS] == words(text)


@pytest.mark.parametrize(
    "text",
    [
        "<a" + ' b="c"' * 20_000,
        "<" * 100_000,
        "<aa " + "a" * 100_000,
        "[x](" * 30_000,
        "\\" * 100_000,
        "1," * 50_000,
        "- " * 50_000 + "x",
        " " * 100_000 + "x",
        "&" * 100_000,
        "a " * 50_000 + "-",
        "(1) " * 30_000,
    ],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    signed_words(text)
    words(text)
    assert time.perf_counter() - start < allowed(3)
