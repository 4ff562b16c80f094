"""Texts as words that survive re-casing, re-punctuation and mark-up: what overlap and duplicates are counted in.

`words` drops all punctuation and operators, so that an edited copy still agrees. `signed_words` keeps the operators of
formulas and the ends of sentences, for comparisons in which "3 + 2" and "3 - 2" must differ.
"""

from __future__ import annotations

import html
import re
import unicodedata

BREAK = "\n"
"""The token of `signed_words` for the end of a sentence or line, and for a quotation mark."""

# All but `_ESCAPED_BREAK` meet text in lower case.
# How a formula looks, not what it says: "\left(", "\text{...}", spacing. "\!" closes up, as in "24,\!000".
_LATEX_STYLE = re.compile(
    r"\\(?:left|right|bigg?[lr]?|displaystyle|textstyle|limits|"
    r"text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|mathsf|mathbb|mathcal|boldsymbol|"
    r"quad|qquad)(?![a-z])|\\[,;:> \\]"
)
_LATEX_CLOSE_UP = re.compile(r"\\!|\{(?=,\})|(?<=\{,)\}")
_LATEX_SIZED = re.compile(r"\\[dtc](?=frac|binom)")
_LATEX_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)(\d)")
_LATEX_COMMAND_NUMBER = re.compile(r"(\\[a-z]+)(?=\d)")
# A line break in a text that was stored as JSON inside JSON; "\neq", "\rho" and "\theta" go on in lower case.
_ESCAPED_BREAK = re.compile(r"\\[nrt](?![a-z])")
_TAG = re.compile(
    r"</?(?:[abipqsu]|[a-z][\w-]+)(?:\s+[\w-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'>][^\s>]*))*\s*/?>|<\|\w+\|>"
)
_LINK_TARGET = re.compile(r"\]\((?:https?:|mailto:|/|#|\./)[^()\s]*\)")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))(?<=\d,)")

# Scripts written without spaces, a token a character: Han, kana, bopomofo.
_IDEOGRAPHS = (
    (0x3005, 0x3007), (0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x3105, 0x312F),
    (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
_APOSTROPHES = "'\u2018\u2019\u02bc\u2032"


def is_ideograph(word: str) -> bool:
    """Is this a character that is a word of `words` by itself?"""
    return len(word) == 1 and any(low <= ord(word) <= high for low, high in _IDEOGRAPHS)


class _WordTable(dict[int, str]):
    """Character -> what it gives to words, for `str.translate`; filled as characters come."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in _APOSTROPHES or category == "Cf":  # "don't" is one word, also with a soft hyphen in it
            part = ""
        elif category[0] not in "LMN":
            part = " "
        elif is_ideograph(character):
            part = f" {character} "
        else:
            part = character
        self[code] = part
        return part


_TABLE = _WordTable()


def clean(text: str) -> str:
    """The text in one spelling: NFKC, folded case, no HTML or chat tags, link targets, LaTeX style, "," in "1,000"."""
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text:
        text = _ESCAPED_BREAK.sub("\n", text)
    text = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    if "\\" in text:
        text = _LATEX_STYLE.sub(" ", _LATEX_SIZED.sub(r"\\", _LATEX_CLOSE_UP.sub("", text)))
        text = _LATEX_COMMAND_NUMBER.sub(r"\1 ", _LATEX_SHORT_FRACTION.sub(r"\\frac \1 \2", text))
    if "<" in text:
        text = _TAG.sub("\n", text)
    if "](" in text:
        text = _LINK_TARGET.sub("]", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    return text


def words(text: str) -> list[str]:
    """Words of letters and digits in order; each Chinese or Japanese character is one."""
    return clean(text).translate(_TABLE).split()


# "-" is a minus beside a number, a bracket or between one-letter names, else a hyphen or dash; "/" and "*" are
# operators beside numbers and brackets, else "and/or" and *emphasis*; "!" is one behind a number or bracket. A bullet,
# the ">" of a quotation or a number such as "1)" at the start of a line ends what stood before.
_SIGNS = re.compile(
    r"(?P<line>^[ \t]*(?:[-+*>•]+[ \t]+|\(?\w{1,3}[.)][ \t]+)+)"
    r"|(?P<same>[+=^%√∞≤≥≠<>×÷±∓→∈∪∩⊂⊆∫∑∏¬∧∨⊃≡∀∃])"
    r"|(?P<minus>−|(?<=[\d)\]}]) ?[-–]|[-–] ?(?=[\d(\[{\\$])|(?<=\b[^\W\d_]) ?[-–] ?(?=[^\W\d_]\b))"
    r"|(?P<over>(?<=[\d)\]}]) ?/|/ ?(?=[\d(\[{]))"
    r"|(?P<times>(?<=[\d)\]}]) ?\*(?!\*)|(?<!\*)\* ?(?=[\d(\[{])|(?<=\b[^\W\d_])\*(?=[^\W\d_]\b))"
    r"|(?P<point>(?<=\d)\.(?=\d))|(?P<factorial>(?<=[\d)])!)"
    r"|(?P<stop>[.?!:;。\n\r\"“”«»「」『』`])",
    re.MULTILINE,
)
_SIGN_OF = {"minus": "-", "over": "/", "times": "*", "point": ".", "factorial": "!"}
SIGNS = frozenset("+=^%√∞≤≥≠<>×÷±∓→∈∪∩⊂⊆∫∑∏¬∧∨⊃≡∀∃-/*.!") | {BREAK}
"""The tokens of `signed_words` that are no words."""


def signed_words(text: str) -> list[str]:
    """The words of a text with what stands between them: operators of formulas, and `BREAK` at the end of a sentence.

    Without the tokens in `SIGNS` it is `words(text)`.
    """
    text = clean(text)
    tokens: list[str] = []
    position = 0
    for match in _SIGNS.finditer(text):
        tokens += text[position : match.start()].translate(_TABLE).split()
        position = match.end()
        kind = match.lastgroup
        if kind == "line":
            tokens += match[0].translate(_TABLE).split()
        tokens.append(BREAK if kind in ("line", "stop") else _SIGN_OF.get(kind or "", match[0]))
    return tokens + text[position:].translate(_TABLE).split()
