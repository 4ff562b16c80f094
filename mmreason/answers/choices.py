"""Multiple-choice and yes/no answers: a letter or a choice's own text is read, a list of them never."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mmreason.answers.normalize import canonical, clean_math, fold, strip_wrapper
from mmreason.answers.numbers import parse_number, same_number
from mmreason.answers.types import Choices

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DEFAULT_LETTERS = "ABCDEFGHIJ"

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox|textit|rm|bf|boxed|fbox|textsf|operatorname|emph)\b\s*"
)
_NOISE = re.compile(r"[{}$*_`\\]")
_SPACES = re.compile(r"\s+")
_LABEL_PREFIX = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:、]\s*(?=\S)")
_ARTICLE = re.compile(r"^(?:the|a|an)\s+")
_EDGE = " \t\n.,;:!?\"'()[]<>。，、；：！？「」《》-"


@lru_cache(maxsize=8192)
def plain(text: str) -> str:
    """A form for comparing words: no LaTeX or markdown wrapping, case-folded, single spaces, no edge punctuation."""
    text = _NOISE.sub(" ", _TEXT_COMMAND.sub(" ", fold(text)))
    text = _SPACES.sub(" ", text).strip(_EDGE).casefold()
    return _ARTICLE.sub("", text)


@lru_cache(maxsize=2048)
def _texts(choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices without their own labels ("A)32400" becomes "32400" if every choice is so labelled)."""
    stripped = []
    for index, choice in enumerate(choices):
        match = _LABEL_PREFIX.match(choice)
        if match is None or match.group(1).upper() != LETTERS[index % 26]:
            return choices
        stripped.append(choice[match.end() :])
    return tuple(stripped)


@lru_cache(maxsize=2048)
def _keys(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((plain(text), canonical(text).casefold()) for text in _texts(choices))


def choice_texts(choices: Sequence[str]) -> tuple[str, ...]:
    """The options' own texts, without labels."""
    return _texts(tuple(choices))


def match_text(text: str, choices: Sequence[str]) -> int | None:
    """The index of the one choice whose own text equals `text` (as words, as LaTeX or as a number), else None."""
    if len(text) > 2000:
        return None
    key, latex = plain(text), canonical(text).casefold()
    if not key and not latex:
        return None
    keys = _keys(tuple(choices))
    for index, (words, math) in enumerate(keys):
        if (key and words == key) or (latex and math == latex):
            return index
    number = parse_number(text)
    if number is None:
        return None
    hits = [
        index
        for index, other in enumerate(choice_texts(choices))
        if (value := parse_number(other)) is not None and same_number(value, number)
    ]
    return hits[0] if len(hits) == 1 else None


def _prefix_text(text: str, choices: Sequence[str]) -> int | None:
    """The index of the longest choice text that `text` starts with, where the rest begins at a word's end."""
    key = plain(text)
    best, length = None, 0
    for index, (words, _) in enumerate(_keys(tuple(choices))):
        if len(words) > length and key.startswith(words) and not key[len(words) : len(words) + 1].isalnum():
            rest = key[len(words) :]
            # "5 or 6" starts with "5", "1,000" starts with "1", "3/4" with "3": none of these names one choice.
            if words[-1:].isdigit() and re.match(r"[.,/^:]?\s*\d|\s*[*/^=+-]", rest):
                continue
            if re.match(r"\s*,?\s*(?:or|and|and/or|nor|to|或|和)\b", rest):
                continue
            best, length = index, len(words)
    return best


_DECOR = r"[\s(\[{<\"'*_`$\\]*"
_LETTER = re.compile(
    r"^[\s\"'*_`$:]*(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|answer|letter)s?(?:\s+is)?\s*:?|选项|选择|选|答案)?"
    r"[\s:\"'*_`$<]*(?P<open>[(\[]?)[\s*$]*(?P<letter>[A-Za-z])(?![A-Za-z0-9])(?P<close>(?:[\s*$]*[)\]])?)(?P<rest>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_MORE = re.compile(
    r"^[\s)\].*,;/&、，|+-]*(?:(?:or|and|and/or|nor|with|to|或|和|与|以及)\s*)?(?:(?:option|choice|answer)\s+)?"
    r"[(\[*\"'$]*(?P<letter>[A-Z])(?=[\s)\].,;:*\"'$/&、，。|]|$)",
)
_CONJUNCTION = re.compile(r"^[\s)\].*,]*(?:or|and/or|and|nor|或|和|与|/|&)\s*[(\[*]*([A-Za-z])(?=[\s)\].,;:*]|$)")
_AFTER_WORD = re.compile(
    r"^\s+(?:is|was|because|since|as|which|for|with|and\s+not|not|rather|in|by|where|that)\b|^\s*(?:=|-|:|\()"
)


def _sequence(rest: str, first: str, allowed: str) -> bool:
    """Whether a letter is followed by further letters of the options: a list of guesses or an enumeration."""
    match = _CONJUNCTION.match(rest) or _MORE.match(rest)
    if match is None:
        return False
    other = match.group(1).upper()
    # "A, I think" and "C. A long text": a capital I or A that starts words is no letter of an option.
    start = match.end(1)
    if match.group(1) in "AI" and re.match(r"\s+[a-z]", rest[start : start + 3]) and rest.lstrip()[:2].lower() != "or":
        return False
    return other in allowed and other != first


_ITEM = re.compile(r"(?:^|(?<=[\s,;(]))([A-Z])[).:](?=\s)")


def _enumeration(rest: str, first: str, allowed: str) -> bool:
    """Whether what follows a letter lists further options ("A) 10 cm B) 12 cm"), not a remark in a later sentence."""
    others = [match for match in _ITEM.finditer(rest) if match.group(1) in allowed and match.group(1) != first]
    if not others:
        return False
    return len({match.group(1) for match in others}) >= 2 or re.search(r"[.。!?]\s", rest[: others[0].start()]) is None


_REFUTED = re.compile(r"[\s)\].*]*(?:is|was|are|seems|can)\s*(?:n't|not\b|(?:also\s+)?(?:incorrect|wrong|false)\b)")


def letters_for(choices: Choices) -> str:
    """The labels that exist: one per choice, A-J where the choices aren't known."""
    return LETTERS[: len(choices)] if choices else DEFAULT_LETTERS


def read_letter(span: str, choices: Choices = None, *, alone: bool = False) -> str | None:
    """Reads an option's label from the start of a span that a marker gave ("(B)", "B) 12 cm", "\\text{(C)}", "option
    D").

    Args:
        span: the text after the marker.
        choices: the options, for which labels exist and so that "A good man" isn't read as A.
        alone: accept only a span that holds nothing else (for spans that no marker announced).

    Returns:
        The upper-case letter; "" where several letters are named (a list of guesses); None where none is.
    """
    allowed = letters_for(choices)
    span = _NOISE.sub(" ", _TEXT_COMMAND.sub(" ", span.replace("\\(", "(").replace("\\)", ")"))).strip()
    span = re.sub(r"^\(\s*\(", "(", span[:400])
    match = _LETTER.match(span)
    if match is None:
        return None
    raw, rest, bracket = match["letter"], match["rest"], bool(match["open"] or match["close"])
    letter = raw.upper()
    if letter not in allowed or (rest.startswith(("'", "^", "=")) and not bracket):
        return None
    if _sequence(rest, letter, allowed) or _enumeration(rest, letter, allowed):
        return ""
    if _REFUTED.match(rest):
        return None
    tail = rest.strip(_EDGE)
    if not tail:
        return letter
    if alone and not (bracket or rest.lstrip("* ")[:1] in (".", ":", ")")):
        return None
    if bracket or rest.lstrip("* ")[:1] in (".", ":", ",", ";", ")", "(", "]", "-", "。", "，", "、"):
        return letter if raw.isupper() or bracket or len(tail) < 60 else None
    if raw.islower():
        return None
    # A bare capital followed by words: fine unless it can be the article or the pronoun.
    if letter in "AI" and _AFTER_WORD.match(rest) is None:
        return None
    if choices and (index := match_text(span, choices)) is not None:
        return LETTERS[index]
    return letter if not rest[:1].isdigit() else None


def read_choice(span: str, choices: Choices = None, *, alone: bool = False) -> str | None:
    """The label of the option that a span names by letter or by the option's own text.

    Returns:
        The letter; "" for several options at once; None if the span names none.
    """
    span = strip_wrapper(span[:2000])
    if choices:
        exact = match_text(span, choices)
        if exact is not None:
            as_letter = plain(span).upper()
            # Options that are letters themselves ("A" among ["B", "A"]): the label wins unless the sets are equal.
            if len(as_letter) != 1 or as_letter not in letters_for(choices):
                return LETTERS[exact]
    letter = read_letter(span, choices, alone=alone)
    if letter is not None or not choices or alone:
        return letter
    index = _prefix_text(span, choices)
    return None if index is None else LETTERS[index]


_YES = frozenset(
    [
        "yes",
        "true",
        "yeah",
        "yep",
        "correct",
        "right",
        "是",
        "是的",
        "对",
        "对的",
        "正确",
        "yea",
        "y",
        "t",
        "真",
        "可以",
        "能",
        "会",
    ]
)
_NO = frozenset(
    [
        "no",
        "false",
        "nope",
        "incorrect",
        "wrong",
        "否",
        "不是",
        "不",
        "错",
        "错误",
        "不对",
        "不正确",
        "n",
        "f",
        "假",
        "不可以",
        "不能",
        "不会",
        "没有",
    ]
)
_YESNO = re.compile(r"(?<![A-Za-z])(yes|no|true|false|yeah|nope)(?![A-Za-z])", re.IGNORECASE)
_CJK_YESNO = re.compile(r"^(不正确|不可以|不是|不对|不能|不会|错误|正确|可以|是的|对的|是|否|对|错|不|真|假)")
_NOT_TRUE = re.compile(r"\b(?:not|isn't|n't)\s+(?:\w+\s+)?(true|correct|false)\b", re.IGNORECASE)


def read_yesno(span: str) -> str | None:
    """ "yes" or "no" where a span says one of them first, "" where it says both ("yes or no"), None where neither."""
    text = plain(span[:600])
    if text in _YES:
        return "yes"
    if text in _NO:
        return "no"
    head = re.split(r"(?<=[a-z])[.,;:!。，；]|\n|\s-\s|\bbecause\b|\bsince\b", text, maxsplit=1)[0]
    if (negated := _NOT_TRUE.search(head)) is not None:
        return "yes" if negated.group(1) == "false" else "no"
    found = {_side(word) for word in _YESNO.findall(head)}
    if len(found) == 2:
        return ""
    if found:
        return found.pop()
    match = _CJK_YESNO.match(text)
    if match is not None:
        rest = text[match.end() : match.end() + 2]
        if rest[:1] in ("或", "否", "不", "非"):
            return ""
        return _side(match.group(1))
    return None


def _side(word: str) -> str:
    return "yes" if word.lower() in _YES else "no"


def gold_letter(gold: str, choices: Choices) -> str | None:
    """The label that a gold names: a letter, "(B)", "B) text", or the text of one of the choices."""
    text = fold(gold).strip()
    if choices:
        index = match_text(text, choices)
        bare = plain(text).upper()
        if len(bare) == 1 and bare in letters_for(choices) and bare in LETTERS:
            return bare
        if index is not None:
            return LETTERS[index]
    letter = read_letter(clean_math(text), choices)
    return letter or None


_SAID = re.compile(r"(?:^|[,;:]\s*|\bis\s+|\banswer\s+)(yes|no)(?=[.,;!]|$)|\b(true|false)\b")
_DENIED = re.compile(r"\b(?:not|never|neither|nor|no|cannot|unlikely)\b|n't\b")


def conclude_yesno(line: str) -> str | None:
    """ "yes" or "no" where the last line of a text concludes with exactly one of them ("it is false")."""
    text = plain(line[-600:])
    if _NOT_TRUE.search(text):
        return None
    said = {_side(first or second) for first, second in _SAID.findall(text)}
    return said.pop() if len(said) == 1 else None


_SO = re.compile(r"(?:\bso|\bthus|\btherefore|\bhence|\bit'?s|\bis)[\s,:]*[(*]*([A-Z])[)*]*[.\s]*$", re.IGNORECASE)


def conclude_choice(line: str, choices: Choices) -> str | None:
    """The label with which a last line ends ("So B.") or whose own text it ends with ("It is the nucleus."), else None.

    The text has to be the only option in that sentence, and nothing in the sentence may deny it.
    """
    sentence = re.split(r"(?<=[.!?。])\s+", line.strip()[-400:])[-1]
    match = _SO.search(sentence)
    if match is not None and match.group(1).isupper() and match.group(1) in letters_for(choices):
        return None if _DENIED.search(sentence.casefold()) else match.group(1)
    text = plain(sentence)
    if not choices or not text or _DENIED.search(text):
        return None
    named = [
        index
        for index, (words, _) in enumerate(_keys(tuple(choices)))
        if len(words) >= 3 and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
    ]
    if len(named) != 1 or not text.endswith(_keys(tuple(choices))[named[0]][0]):
        return None
    return LETTERS[named[0]]
