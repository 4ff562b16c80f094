"""Rows as a model sees them, token by token: for a terminal, or as one HTML file. Knows no other package."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from mmreason import __version__
from mmreason._files import write_whole
from mmreason.report.page import _asset, _hash
from mmreason.types import MMReasonError

Role = Literal["template", "system", "user", "assistant", "tool", "image"]
ROLES: dict[Role, str] = {
    "template": "what the chat template writes",
    "system": "system and developer messages",
    "user": "the user",
    "assistant": "the assistant",
    "tool": "results of tools",
    "image": "images",
}
_COLOURS: dict[Role, str] = {
    "template": "2",
    "system": "35",
    "user": "34",
    "assistant": "36",
    "tool": "33",
    "image": "35;1",
}
_LOSS = "1;30;42"
_LEVELS = 4


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token, or several of an image that are shown as one.

    Attributes:
        text: what it adds to the text. role: whose it is. weight: of its loss, 0.0 without.
        id: the token's id. place: its number in the row. count: tokens that this stands for.
    """

    text: str
    role: Role
    weight: float
    id: int
    place: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row with a title and what is to be said of it, as (name, value)."""

    title: str
    facts: list[tuple[str, str]]
    tokens: list[ShownToken]


def fold_images(tokens: Sequence[ShownToken]) -> list[ShownToken]:
    """Each run of the same image token as one."""
    folded: list[ShownToken] = []
    for (role, _), run in groupby(tokens, key=lambda token: (token.role, token.id if token.role == "image" else -1)):
        group = list(run)
        folded += [replace(group[0], count=len(group))] if role == "image" else group
    return folded


def printable(text: str) -> str:
    """A text without characters that steer a terminal or turn the reading direction; those are shown as escapes."""
    return "".join(
        character if character in "\n\t" or not _steers(character) else _escape(character) for character in text
    )


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character != "\u200d"  # joins emoji


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _label(token: ShownToken) -> str:
    text = printable(token.text)
    return f"<image ×{token.count}>" if token.role == "image" else text


# --------------------------------------------------------------------------------------------------------------------
# Terminal


def terminal_text(row: ShownRow, *, colour: bool, table: bool = False) -> str:
    """A row for the terminal.

    Args:
        colour: with ANSI colours; else runs of tokens with loss stand in ⟦…⟧, led by their weight where that isn't 1.
        table: a line for each token besides, with number, id, role and weight.
    """
    lines = [printable(row.title), *(f"  {name}: {printable(value)}" for name, value in row.facts), ""]
    lines.append(_coloured(row.tokens) if colour else _bracketed(row.tokens))
    if table:
        lines += ["", f"{'token':>7} {'id':>8}  {'role':<10} {'weight':>6}  text", *map(_line, row.tokens)]
    return "\n".join(lines)


def _coloured(tokens: Sequence[ShownToken]) -> str:
    pieces = []
    for token in fold_images(tokens):
        code = f"{_COLOURS[token.role]}" if not token.weight else _LOSS if token.weight >= 1 else "30;42"
        # A colour that goes on over a line break would fill the rest of the line.
        lines = [f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in _label(token).split("\n")]
        pieces.append("\n".join(lines))
    return "".join(pieces)


def _bracketed(tokens: Sequence[ShownToken]) -> str:
    pieces = []
    for weight, run in groupby(fold_images(tokens), key=lambda token: token.weight):
        text = "".join(map(_label, run))
        lead = "" if weight == 1 else f"{weight:g}|"
        pieces.append(f"⟦{lead}{text}⟧" if weight else text)
    return "".join(pieces)


def _line(token: ShownToken) -> str:
    return f"{token.place:>7} {token.id:>8}  {token.role:<10} {token.weight:>6g}  {printable(repr(token.text))}"


# --------------------------------------------------------------------------------------------------------------------
# HTML


def write_tokens(rows: Sequence[ShownRow], title: str, out: str | Path) -> Path:
    """Write the page. Raises: MMReasonError where it can't be."""
    path = Path(out)
    try:
        write_whole(path, tokens_page(rows, title))
    except OSError as error:
        raise MMReasonError(f"{path} can't be written ({error.strerror or error}); choose another file") from error
    return path


def tokens_page(rows: Sequence[ShownRow], title: str) -> str:
    """The page as text. What rows hold is escaped, and no script may run on it."""
    from jinja2 import Environment, StrictUndefined

    style = _asset("style.css") + _asset("tokens.css")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("tokens.html.j2"))
    return template.render(
        title=printable(title),
        rows=[(row, list(_cells(row))) for row in rows],
        roles=ROLES,
        style=style,
        style_hash=_hash(style),
        version=__version__,
    )


def _cells(row: ShownRow) -> Iterator[tuple[str, str, str]]:
    """(classes, tooltip, text) of each token; line breaks are shown and kept."""
    most = max((token.weight for token in row.tokens), default=0.0)
    for token in fold_images(row.tokens):
        level = math.ceil(_LEVELS * token.weight / most) if token.weight else 0
        tip = f"token {token.place}, id {token.id}, {token.role}, weight {token.weight:g}"
        yield f"{token.role} w{level}", tip, _label(token).replace("\n", "↵\n")
