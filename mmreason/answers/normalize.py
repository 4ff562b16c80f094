"""Text folding and LaTeX clean-up that every later step relies on. Linear in the input, no sympy.

`fold` makes full-width forms, foreign digits, dashes, odd spaces and invisible marks plain. `to_latex` writes unicode
mathematics as LaTeX. `clean_math` removes what carries no meaning (delimiters, spacing, \\left, \\dfrac, \\text ...).
"""

from __future__ import annotations

import re
import unicodedata

MAX_ANSWER = 4000
"""Characters of an answer or a gold that are looked at; a longer one is refused as unreadable."""


def _fold_table() -> dict[int, str | None]:
    table: dict[int, str | None] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, *range(0x1D7CE, 0x1D800, 10)):
        table.update({zero + digit: str(digit) for digit in range(10)})
    # Dashes and minus signs.
    table.update(dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212, 0xFE63, 0x2796, 0xFE58), "-"))
    # Spaces of every width, and line separators.
    table.update(dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000, 0x09, 0x0B, 0x0C), " "))
    table.update(dict.fromkeys((0x85, 0x2028, 0x2029), "\n"))
    # Invisible: zero-width, bidi controls, soft hyphen, BOM, variation selectors, lone surrogates, control characters.
    invisible = (0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
    table.update(dict.fromkeys((*invisible, *range(0xFE00, 0xFE10), *range(0xD800, 0xE000)), None))
    table.update(dict.fromkeys((*range(0x00, 0x09), 0x0D, *range(0x0E, 0x20), *range(0x7F, 0x85)), None))
    table.update({0x2044: "/", 0x2215: "/", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2236: ":"})
    table.update({0x3010: "[", 0x3011: "]", 0xFF61: "。", 0xFF0E: ".", 0xFFE5: "¥", 0xFFE1: "£"})
    return table


_FOLD = _fold_table()
_NEEDS_FOLD = re.compile(r"[^\n -~]")


def fold(text: str) -> str:
    """Returns `text` with full-width forms, digits, dashes and spaces made plain and invisible marks removed."""
    if _NEEDS_FOLD.search(text) is None:
        return text
    return text.translate(_FOLD)


_SUPER = {ord(char): str(i) for i, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {ord("⁺"): "+", ord("⁻"): "-", ord("ⁿ"): "n"}
_SUB = {ord(char): str(i) for i, char in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_SUPER_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUB_RUN = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile(r"(\d)?\s?([¼½¾⅐-⅞↉])")
_SQRT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|(?=[({\\]))")
_LATEX = {
    "π": r"\pi ",
    "×": r"\times ",
    "✕": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "∙": r"\cdot ",
    "÷": r"\div ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^{\circ}",
    "º": r"^{\circ}",
    "∘": r"\circ ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "φ": r"\phi ",
    "ϕ": r"\phi ",
    "ω": r"\omega ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "、": ", ",
    "；": ";",
    "，": ",",
    "∶": ":",
    "𝑥": "x",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "℃": r"^{\circ}C",
    "℉": r"^{\circ}F",
    "％": "%",
    "∠": "",
}
_LATEX_TABLE = {ord(char): latex for char, latex in _LATEX.items()}


def _vulgar(match: re.Match[str]) -> str:
    parts = unicodedata.normalize("NFKC", match.group(2)).split("⁄")
    body = "/".join(parts)
    return f"{match.group(1)} {body}" if match.group(1) else body


def _sqrt(match: re.Match[str]) -> str:
    return rf"\sqrt{{{match.group(1)}}}" if match.group(1) else r"\sqrt"


def to_latex(text: str) -> str:
    """Returns folded text with unicode mathematics (π, √2, x², ½, ≤, ∪, °) written as LaTeX."""
    if text.isascii():
        return text
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPER_RUN.sub(lambda m: "^{" + m.group().translate(_SUPER) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + m.group().translate(_SUB) + "}", text)
    return _SQRT.sub(_sqrt, text).translate(_LATEX_TABLE)


_DROP = re.compile(
    r"\\\\|\\[!,;:>]|\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|"
    r"quad|qquad|thinspace|enspace|bf|rm|it|phantom\{[^{}]*\})(?![A-Za-z])|\\ |~|&nbsp;"
)


def _drop(match: re.Match[str]) -> str:
    token = match.group()
    if token == r"\\":  # the end of a matrix row stays
        return token
    return "" if token == r"\!" else " "


_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_FRAC_BARE = re.compile(r"\\frac\s*(?:(\d|[a-zA-Z])\s*(\d|[a-zA-Z])|(\d|[a-zA-Z])\s*(?=\{))")
_FRAC_TAIL = re.compile(r"(\\frac\{[^{}]*\})\s*(\d|[a-zA-Z])")
_SQRT_BARE = re.compile(r"\\sqrt\s*(\d|[a-zA-Z])")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\\deg(?![A-Za-z])")
_DELIMITERS = re.compile(r"\$\$?|(?<!\\)\\[()\[\]]|\*\*|`")
_SYNONYMS = re.compile(
    r"\\(?:leq|leqslant|geq|geqslant|ne|lt|gt|ast|lbrace|rbrace|lbrack|rbrack|varnothing)(?![A-Za-z])"
)
_SYNONYM_OF = {
    r"\leq": r"\le ",
    r"\leqslant": r"\le ",
    r"\geq": r"\ge ",
    r"\geqslant": r"\ge ",
    r"\ne": r"\neq ",
    r"\lt": "<",
    r"\gt": ">",
    r"\ast": "*",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\varnothing": r"\emptyset ",
}


def _frac_bare(match: re.Match[str]) -> str:
    if match.group(3):
        return rf"\frac{{{match.group(3)}}}"
    return rf"\frac{{{match.group(1)}}}{{{match.group(2)}}}"


def balanced(text: str) -> bool:
    """Whether every unescaped `{` in `text` has its `}`."""
    depth = 0
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


_BRACE = re.compile(r"\\[{}\\]|[{}]")


def closing_brace(text: str, opening: int) -> int:
    """The index of the `}` that closes the `{` at `opening`, or -1 where none does."""
    depth = 0
    for match in _BRACE.finditer(text, opening):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def brace_pairs(text: str, start: int = 0) -> dict[int, int]:
    """The closing index of every unescaped `{` from `start` on that is closed, in one pass."""
    pairs: dict[int, int] = {}
    stack: list[int] = []
    for match in _BRACE.finditer(text, start):
        token = match.group()
        if token == "{":
            stack.append(match.start())
        elif token == "}" and stack:
            pairs[stack.pop()] = match.start()
    return pairs


_WRAPPERS = (
    r"\text{",
    r"\mathrm{",
    r"\boxed{",
    r"\fbox{",
    r"\mathbf{",
    r"\boldsymbol{",
    r"\bm{",
    r"\textbf{",
    r"\emph{",
    r"\underline{",
    r"\ensuremath{",
)


def strip_wrapper(text: str) -> str:
    """Removes outer delimiters and wrappers: `$...$`, `\\(...\\)`, `\\boxed{...}`, `**...**`, `{...}`, a final stop."""
    for _ in range(12):
        before = text
        text = text.strip().strip("`").strip()
        if text.startswith("**") and text.endswith("**") and len(text) > 4:
            text = text[2:-2]
        elif text.startswith("$") and text.endswith("$") and len(text) > 2 and "$" not in text.strip("$"):
            text = text.strip("$")
        elif text[:2] in (r"\(", r"\[") and text.endswith(r"\)" if text[1] == "(" else r"\]"):
            text = text[2:-2]
        elif text.endswith(("\\", ".", "。", ",", ";")) and not text.endswith(("\\\\", "..")):
            text = text[:-1]
        elif text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
            text = text[1:-1]
        else:
            for wrapper in _WRAPPERS:
                if text.startswith(wrapper) and closing_brace(text, len(wrapper) - 1) == len(text) - 1:
                    text = text[len(wrapper) : -1]
                    break
        if text == before:
            break
    return text


def clean_math(text: str) -> str:
    """Removes what carries no meaning in LaTeX: delimiters, spacing, \\left, \\dfrac, bare \\frac12, `{,}`."""
    text = to_latex(fold(text))
    if "\\" not in text and "$" not in text and "*" not in text and "`" not in text and "{" not in text:
        return text.strip()
    text = text.replace("\\$", "").replace("{,}", ",").replace(r"\%", "%")
    text = _DELIMITERS.sub(" " if "$" in text[1:-1] else "", text)
    text = _DROP.sub(_drop, text)
    text = _DEGREE.sub(r"^{\\circ}", text)
    text = _SYNONYMS.sub(lambda m: _SYNONYM_OF.get(m.group(), m.group()), text)
    text = _FRAC.sub(r"\\frac", text)
    if "\\frac" in text:
        text = _FRAC_TAIL.sub(r"\1{\2}", _FRAC_BARE.sub(_frac_bare, text))
    text = _SQRT_BARE.sub(r"\\sqrt{\1}", text)
    text = strip_wrapper(text)
    return r"\emptyset" if text.replace(" ", "") == r"\{\}" else text


_SPACE = re.compile(r"\s+")
_COMMAND_SPACE = re.compile(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])")


def canonical(text: str) -> str:
    """A form for string equality: cleaned, without spaces (kept as `~` where they end a LaTeX command)."""
    text = _COMMAND_SPACE.sub(r"\1~", clean_math(text))
    return _SPACE.sub("", text)
