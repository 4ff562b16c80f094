"""Rows token by token: folded images, nothing that steers a terminal or a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.report.tokens import (
    ShownRow,
    ShownToken,
    fold_images,
    printable,
    terminal_text,
    tokens_page,
    write_tokens,
)
from mmreason.types import MMReasonError


def token(text: str, role: str = "user", weight: float = 0.0, number: int = 1, place: int = 0) -> ShownToken:
    return ShownToken(text, role, weight, number, place)  # type: ignore[arg-type]


def image(number: int = 9) -> ShownToken:
    return token("<image>", "image", number=number)


def row(*tokens: ShownToken) -> ShownRow:
    return ShownRow("r1", [("tokens", "3")], list(tokens))


def test_runs_of_an_image_token_become_one() -> None:
    folded = fold_images([token("a"), image(), image(), image(8), token("b"), image()])
    assert [(t.text, t.count) for t in folded] == [
        ("a", 1), ("<image>", 2), ("<image>", 1), ("b", 1), ("<image>", 1),
    ]  # fmt: skip
    assert "a<image ×2>" in terminal_text(row(token("a"), image(), image()), colour=False)


def test_weights_in_plain_text() -> None:
    text = terminal_text(
        row(token("q"), token("a", "assistant", 0.5), token("b", "assistant", 0.5), token("c", "assistant", 1.0)),
        colour=False,
    )
    assert text == "r1\n  tokens: 3\n\nq⟦0.5|ab⟧⟦c⟧"


def test_colours_end_with_the_line() -> None:
    text = terminal_text(row(token("a\nb"), token("c", "assistant", 1.0)), colour=True)
    assert text.endswith("\x1b[34ma\x1b[0m\n\x1b[34mb\x1b[0m\x1b[1;30;42mc\x1b[0m")


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_nothing_in_a_row_steers(text: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", printable(text))
    shown = terminal_text(row(token(text)), colour=True)
    assert re.sub("\x1b\\[[0-9;]+m", "", shown).count("\x1b") == 0
    page = tokens_page([row(token(text), token("x", "assistant", 1.0))], text)
    page.encode("utf-8")
    assert page.count("<span") == 2 + 1 + 7 and page.count("<pre") == 1


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MMReasonError, match="can't be written"):
        write_tokens([row(token("a"))], "t", tmp_path / "file" / "x.html")


def test_weights_are_shades_of_the_heaviest() -> None:
    page = tokens_page([row(*(token("x", "assistant", w) for w in (0.0, 0.5, 1.0, 2.0)))], "t")
    assert re.findall(r'class="assistant (w\d)"', page) == ["w0", "w1", "w2", "w4"]
    assert 'title="token 0, id 1, assistant, weight 0.5"' in page
