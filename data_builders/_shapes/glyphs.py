"""Two bitmap fonts for the numbers and letters in rendered scenes: as data, so that they are the same everywhere."""

from __future__ import annotations

SMALL: dict[str, str] = {
    "0": "### #.# #.# #.# ###",
    "1": ".#. ##. .#. .#. ###",
    "2": "##. ..# .#. #.. ###",
    "3": "### ..# .## ..# ###",
    "4": "#.# #.# ### ..# ..#",
    "5": "### #.. ##. ..# ##.",
    "6": ".## #.. ### #.# ###",
    "7": "### ..# .#. .#. .#.",
    "8": "### #.# ### #.# ###",
    "9": "### #.# ### ..# ##.",
    "A": ".#. #.# ### #.# #.#",
    "B": "##. #.# ##. #.# ##.",
    "C": ".## #.. #.. #.. .##",
    "D": "##. #.# #.# #.# ##.",
    "E": "### #.. ##. #.. ###",
    "?": "##. ..# .#. ... .#.",
}
"""Three columns, five rows."""

LARGE: dict[str, str] = {
    "0": ".###. #...# #..## #.#.# ##..# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": ".###. #...# ....# ..##. ....# #...# .###.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. .#... .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "?": ".###. #...# ....# ...#. ..#.. ..... ..#..",
    "°": ".##.. #..#. #..#. .##.. ..... ..... .....",
}
"""Five columns, seven rows."""

_LARGE_FROM = 96  # pixels a canvas must have for the large font


def rows_of(text: str, size: int) -> list[str]:
    """The rows of dots of a text on a canvas of `size` pixels, before scaling: "#" is ink."""
    glyphs = LARGE if size >= _LARGE_FROM else SMALL
    return [".".join(rows) for rows in zip(*(glyphs[letter].split() for letter in text), strict=True)]


def dot_of(size: int) -> int:
    """How many pixels a dot of the font is wide on a canvas of `size` pixels."""
    return max(1, size // _LARGE_FROM)


def degree_sign(size: int) -> str:
    """The sign, or nothing where the font of a canvas of `size` pixels lacks it."""
    return "°" if size >= _LARGE_FROM else ""


def text_size(text: str, size: int) -> tuple[int, int]:
    """(width, height) in pixels of a text on a canvas of `size` pixels."""
    columns, rows = (5, 7) if size >= _LARGE_FROM else (3, 5)
    return (len(text) * (columns + 1) - 1) * dot_of(size), rows * dot_of(size)
