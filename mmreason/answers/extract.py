"""Finding the answer in a completion.

Explicit markers, in this order: `<answer>`, `\\boxed`/`\\fbox`, `####` (whichever of the three ends last; they beat
all else), then phrases and labels ("the answer is", "Answer: B", "A: 42", 答案是), the last one first. They give the
*strict* answer. Fallbacks give only the *flexible* one: an option standing alone, a last formula, the last number,
the whole text.

What a policy may try, and what happens:
- text before `</think>` counts only where nothing follows it; an unclosed `<think>` gives no strict answer;
- several boxes (or tags): the last counts; boxes with nothing but commas, spaces, "or" between them are one list;
- "5 or 6", "A and B", "A) ... B) ..." stay lists and equal no single gold;
- an empty box is no answer.

All work is linear: only the last `TAIL` characters are read, by bounded patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmreason.answers.choices import conclude_choice, conclude_yesno, read_choice, read_letter, read_yesno
from mmreason.answers.normalize import MAX_ANSWER, brace_pairs, fold
from mmreason.answers.numbers import parse_number
from mmreason.answers.spans import read_math, read_number, read_text
from mmreason.answers.types import Choices, Extraction, Kind

TAIL = 16_384
"""Characters at the end of a completion that are searched."""

_END = 4000  # characters at the end of the text in which fallbacks look for lines

_BLANK = Extraction(None, None, None)


# Long runs of one blank would make "blanks, then a word" patterns quadratic; no answer needs them.
_RUNS = (" " * 9, "\n" * 5, "*" * 5, "_" * 9)  # a plain search for these is faster than the pattern
_RUN = re.compile(r" {9,}|\n{5,}|\*{5,}|_{9,}")


def _shorten(match: re.Match[str]) -> str:
    return match.group()[:4]


def final_part(text: str) -> tuple[str, bool]:
    """The part of a completion that holds its answer, and whether it may give a strict one.

    That is what follows the last `</think>` if anything does; an unclosed `<think>` is read but not strictly.
    """
    strict = True
    end = text.rfind("</think>")
    if end >= 0:
        after = text[end + 8 :]
        if after.strip():
            text = after
        else:
            text, strict = text[:end], False
    elif "<think>" in text:
        strict = False
    if len(text) > TAIL:
        text = text[-TAIL:]
    text = fold(text)
    return (_RUN.sub(_shorten, text) if any(run in text for run in _RUNS) else text), strict


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_JOIN = re.compile(
    r"[\s$,;.、，&]*(?:\\?(?:and|or|text\{\s*(?:and|or)\s*\}|quad|qquad)|和|或|与)?[\s$,;.、，&]*(?:\\\)|\\\(|\\\]|\\\[|\s|\$)*"
)


def _boxes(body: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of the boxes of `body`, outermost only, at most the last 64."""
    starts = list(_BOX.finditer(body))[-64:]
    closing = brace_pairs(body, starts[0].start()) if starts else {}
    found: list[tuple[int, int, str]] = []
    covered = -1
    for match in starts:
        if match.start() < covered:
            continue
        at = match.end()
        if body[at : at + 1] == "{":
            close = closing.get(at, -1)
            if close < 0:
                continue
            found.append((match.start(), close + 1, body[at + 1 : close]))
            covered = close
        else:
            bare = re.match(r"-?[\w.]+", body[at : at + 40])
            if bare is not None:
                found.append((match.start(), at + bare.end(), bare.group()))
    return found


def _join(items: list[tuple[int, int, str]], body: str, joins: re.Pattern[str]) -> tuple[int, int, str] | None:
    """The last non-empty item, together with the items before it that only separators keep apart."""
    items = [item for item in items if item[2].strip()]
    if not items:
        return None
    start, end, text = items[-1]
    parts = [text.strip()]
    for other in reversed(items[:-1]):
        gap = body[other[1] : start]
        if len(gap) > 40 or joins.fullmatch(gap) is None:
            break
        if other[2].strip() not in parts:
            parts.insert(0, other[2].strip())
        start = other[0]
    return start, end, ", ".join(parts)


def _boxed(body: str) -> tuple[int, int, str] | None:
    if "\\boxed" not in body and "\\fbox" not in body and "\\framebox" not in body:
        return None
    found = _join(_boxes(body), body, _JOIN)
    if found is None:
        return None
    start, end, text = found
    inner = _boxed(text) if len(text) <= MAX_ANSWER and ("\\boxed" in text or "\\fbox" in text) else None
    return (start, end, inner[2]) if inner is not None else found


def _tagged(body: str) -> tuple[int, int, str] | None:
    if "<answer>" not in body and "</answer>" not in body:
        return None
    items: list[tuple[int, int, str]] = []
    position = 0
    while len(items) < 512:
        close = body.find("</answer>", position)
        if close < 0:
            break
        opening = body.rfind("<answer>", position, close)
        if opening >= 0:
            items.append((opening, close + 9, body[opening + 8 : close]))
        position = close + 9
    opening = body.rfind("<answer>")
    if opening >= position:  # never closed: cut off, or the end of the text is its end
        items.append((opening, len(body), body[opening + 8 :]))
    return _join(items, body, _JOIN)


def _hashed(body: str) -> tuple[int, int, str] | None:
    at = body.rfind("####")
    if at < 0:
        return None
    end = body.find("\n", at)
    end = len(body) if end < 0 else end
    text = body[at:end].lstrip("#").strip()
    if not text or body[max(0, at - 1) : at] == "#":
        return None
    # "#### Step 3" is a markdown heading; an answer line ends the text or is a bare number.
    if body[end:].strip() and re.fullmatch(r"[-+$€£]?\s*\d[\d,./]*\s*%?", text) is None:
        return None
    return at, end, text


_KEYWORDS = (
    "answer",
    "choose",
    "select",
    "pick",
    "ans",
    "result is",
    "option",
    "choice",
    "答案",
    "选",
    "solution is",
    "答:",
)
_IS = r"(?:is|are|was|equals|should\s+be|would\s+be|will\s+be|must\s+be|has\s+to\s+be|comes\s+to)"
_STRONG = r"[\s*_\"'`)]{0,12}"
_MIDDLE = r"[^.\n:=?]{0,80}?"
_PICK = r"(?:\s+(?:option|choice|answer|letter))?\s*:?\s*(?=[(*]{0,3}[A-J]\b)"
_AFTER = {
    "answer": re.compile(
        rf"answers?{_STRONG}(?:\([^()\n]{{0,40}}\))?{_STRONG}(?::|=|-(?=\s)|(?=[A-J]\b|\$|\\boxed|\([A-Ja-j]\)|\d+\s*\.?\s*$)|"
        rf"{_MIDDLE}\b{_IS}\b(?!\s+(?:not|n't|given|a\s+list|as\s+follows|one\s+of|in\s+the\s+form|correct|wrong|found|unknown))"
        rf"(?:\s*(?:simply|therefore|then|thus|just|clearly|approximately|about|roughly|indeed|actually|hence|probably|likely|also|"
        rf"now|definitely|exactly|around|given\s+by|therefore,))?\s*[:=]?)",
        re.IGNORECASE,
    ),
    "ans": re.compile(rf"ans{_STRONG}(?:\.?\s*(?::|=|-)|\.?\s+{_IS}\b|\.\s)", re.IGNORECASE),
    "result is": re.compile(r"result\s+is(?:\s+therefore)?\s*:?", re.IGNORECASE),
    "solution is": re.compile(r"solution\s+is(?:\s+therefore)?\s*:?", re.IGNORECASE),
    "option": re.compile(rf"(?:option{_STRONG}(?::|{_IS}\b\s*:?)|option(?=\s+\(?[A-J]\b))", re.IGNORECASE),
    "choice": re.compile(rf"(?:choice{_STRONG}(?::|{_IS}\b\s*:?)|choice(?=\s+\(?[A-J]\b))", re.IGNORECASE),
    **{verb: re.compile(verb + _PICK, re.IGNORECASE) for verb in ("choose", "select", "pick")},
    "答案": re.compile(r"答案\]?(?:应该是|应该为|应为|应是|就是|选择|选|是|为|:|=)?\s*:?"),
    "选": re.compile(r"选(?:项是|项为|项|择)?\s*:?\s*(?=[(\[]?[A-J])"),
    "答:": re.compile(r"答:"),
}
_BEFORE = re.compile(
    r"(?:option\s+|choice\s+)?([(\[*]*[A-J][)\]*]*)\s+is\s+(?:(?:the|our|my|a)\s+)?(?:(?:only|most|best|correct|right|final|likely|"
    r"accurate|appropriate)\s+){0,3}$"
)
"""What stands before "answer" in "C is the correct answer"."""
_WORDY = re.compile(r"[A-Za-z]")
_CHOICE_ONLY = frozenset(("choose", "select", "pick", "option", "choice", "选"))
_MAX_TRIES = 24


def _phrases(body: str, choice: bool) -> Iterator[tuple[int, str]]:
    """(start, text after) of the answer phrases in `body`, the last first."""
    lower = body.lower()
    if len(lower) != len(body):  # a few letters change their length in lower case
        lower = body
    ends: list[tuple[int, int]] = []
    for keyword in _KEYWORDS:
        if keyword in _CHOICE_ONLY and not choice:
            continue
        at, tries = len(lower), 0
        while tries < _MAX_TRIES and (at := lower.rfind(keyword, 0, at)) >= 0:
            tries += 1
            if _WORDY.match(keyword) and at and lower[at - 1].isalpha():
                continue
            if choice and (early := _BEFORE.search(body[max(0, at - 60) : at])) is not None:
                start = max(0, at - 60) + early.start(1)
                if start == 0 or not body[start - 1].isalnum():
                    ends.append((start, at))
                    continue
            match = _AFTER[keyword].match(body, at)
            if match is not None and match.end() > at:
                ends.append((match.end(), at))
    for end, at in sorted(ends, reverse=True):
        yield at, body[end:at] if end < at else body[end : end + MAX_ANSWER]


_LABEL = re.compile(r"[*_\s]*A[*_]*\s*:")


def _label(body: str) -> str | None:
    """What follows the last "A:" that starts a line."""
    at = len(body)
    for _ in range(_MAX_TRIES):
        at = body.rfind("A", 0, at)
        if at < 0:
            return None
        line = body.rfind("\n", 0, at) + 1
        match = _LABEL.match(body, line)
        if match is not None and match.start() <= at < match.end():
            return body[match.end() : match.end() + MAX_ANSWER]
        at = max(line, 0)
        if at == 0:
            return None
    return None


def _read(span: str, kind: Kind | None, choices: Choices) -> str | None:
    """Reads a marked span in the way of its kind; None where the span holds nothing of that kind."""
    if kind == "number":
        return read_number(span)
    if kind == "choice":
        letter = read_choice(_line(span), choices)
        return (letter or _line(span)) if letter is not None else None
    if kind == "yesno":
        said = read_yesno(_line(span))
        return (said or _line(span)) if said is not None else None
    if kind == "text":
        return read_text(span)
    return read_math(span)


def _line(span: str) -> str:
    span = span.strip(" \n*_:")
    end = span.find("\n")
    return (span if end < 0 else span[:end]).strip()


def _explicit(body: str, kind: Kind | None, choices: Choices) -> tuple[str, str] | None:
    """(answer, marker) from the explicit markers of `body`, None where there are none."""
    marked = [
        (found[1], found[2], name)
        for name, find in (("tag", _tagged), ("boxed", _boxed), ("hash", _hashed))
        if (found := find(body)) is not None
    ]
    if marked:
        _, span, name = max(marked)
        span = span.strip()
        if len(span) > MAX_ANSWER:
            return span[:MAX_ANSWER], name
        if name == "tag":
            inner = _explicit(span, kind, choices)
            if inner is not None:
                return inner[0], name
        return _read_marked(span, kind, choices), name
    for _, span in _phrases(body, kind == "choice"):
        answer = _read(span, kind, choices)
        if answer is not None:
            return answer, "phrase"
    label = _label(body)
    if label is not None and (answer := _read(label, kind, choices)) is not None:
        return answer, "label"
    return None


def _read_marked(span: str, kind: Kind | None, choices: Choices) -> str:
    """The answer in a box, tag or hash line: such a span *is* the answer, even where it can't be read as its kind."""
    if kind == "number" and (parse_number(span) is not None or not _is_prose(span)):
        return span
    if kind in ("number", "choice", "yesno"):
        read = _read(span, kind, choices)
        return span if read is None else read
    return span


_COMMAND = re.compile(r"\\(?!text|\$|%|mbox|mathrm|boxed|\(|\)|\[|\]|,|!|;| )")


def _is_prose(span: str) -> bool:
    """Whether a marked span is a sentence ("The total is 42 apples") rather than a formula or a list."""
    if _COMMAND.search(span) or re.search(r"[_{}^=@#\[\]<>|]|\w\(", span.replace("\\text{", "").replace("}", "")):
        return False
    return re.search(r"[A-Za-z]{3,}\s+\S|[\u4e00-\u9fff]", span) is not None


_DIGIT = re.compile(r"\d")
_NUMBER_END = re.compile(r"\d[\d,]*(?:\.\d+)?")


def _last_number(body: str) -> str | None:
    """The last number of a text, with its sign, fraction, currency and percent, else None."""
    backwards = _DIGIT.search(body[::-1])
    if backwards is None:
        return None
    end = len(body) - backwards.start()
    return read_number(body[max(0, end - 400) : end + 60], last=True)


def _last_math(body: str) -> str | None:
    """The content of the last `$...$`, `\\(...\\)` or `\\[...\\]` of a text, where no number follows it."""
    best: tuple[int, str] | None = None
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        end = body.rfind(closing)
        start = body.rfind(opening, 0, end) if end > 0 else -1
        if start < 0 or not body[start + len(opening) : end].strip():
            continue
        if opening == "$" and (body.count("$") % 2 or "\n" in body[start:end]):
            continue
        if best is None or end > best[0]:
            best = (end, body[start + len(opening) : end])
    if best is None or _DIGIT.search(body, best[0] + 2) is not None:
        return None
    return read_math("$" + best[1].strip() + "$")


def _fallback(body: str, kind: Kind | None, choices: Choices) -> tuple[str, str] | None:
    """(answer, marker) where no explicit marker gave one."""
    text = body.strip()
    if not text:
        return None
    lines = [line for line in text[-_END:].splitlines() if line.strip()]
    if kind == "choice":
        return _fallback_choice(text, lines, choices)
    if kind == "yesno":
        for line in _outer_lines(text, lines):
            said = read_yesno(line)
            if said is not None:
                return (said or line.strip()), "yesno"
        said = conclude_yesno(lines[-1])
        return None if said is None else (said, "yesno")
    if kind == "text":
        return (text, "whole") if len(text) <= MAX_ANSWER else None
    if kind == "number":
        if len(text) <= 300 and parse_number(text) is not None:
            return text, "whole"
        number = _last_number(text)
        if number is not None:
            return number, "last_number"
        words = read_number(text) if len(text) < 200 else None
        return None if words is None else (words, "whole")
    if len(lines) == 1 and len(text) <= 300 and (whole := _whole_math(text)) is not None:
        return whole, "whole"
    formula = _last_math(text)
    if formula is not None:
        return formula, "math"
    number = _last_number(text)
    return None if number is None else (number, "last_number")


_PROSE = re.compile(
    r"(?:^|[\s$])(?!sqrt|frac|text|sin|cos|tan|log|and|or|cup|cap|infty|degrees?)[a-z]{3,}\s+[a-z]{2,}", re.IGNORECASE
)


_TEXT_ARGUMENT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}")


def _whole_math(text: str) -> str | None:
    return None if _PROSE.search(_TEXT_ARGUMENT.sub(" ", text)) else text


def _fallback_choice(text: str, lines: list[str], choices: Choices) -> tuple[str, str] | None:
    if len(lines) == 1 and len(text) <= 400:
        letter = read_choice(text, choices, alone=len(text) >= 60)
        if letter is None and (ending := conclude_choice(text, choices)) is not None:
            return ending, "choice"
        return None if letter is None else ((letter or text), "whole")
    for line in _outer_lines(text, lines):
        letter = read_letter(line, choices, alone=True) if len(line) < 200 else None
        if letter is None and choices:
            letter = read_choice(line, choices, alone=True)
        if letter == "" or (letter and _enumerates(lines, choices)):
            return None
        if letter:
            return letter, "choice"
    letter = conclude_choice(lines[-1], choices)
    return None if letter is None else (letter, "choice")


def _outer_lines(text: str, lines: list[str]) -> list[str]:
    """The last line and the first one, each only where its beginning wasn't cut off."""
    last = lines[-1:] if len(lines) > 1 or len(text) <= _END else []
    return last if len(text) >= TAIL - 16 else [*last, text.split("\n", 1)[0]]


def _enumerates(lines: list[str], choices: Choices) -> bool:
    """Whether the text lists the options line by line ("A) ..." then "B) ..."): such a line is no answer."""
    seen = {line.strip().lstrip("(*- ")[:1].upper() for line in lines if re.match(r"[\s*(-]*[A-Za-z][).:]", line)}
    return len(seen) > 1


def extract(text: str, kind: Kind | None = None, choices: Choices = None) -> Extraction:
    """Finds the answer of a completion.

    Args:
        text: the completion; any string, of any length.
        kind: what is looked for; None reads it as symbolic mathematics or a number.
        choices: the options, for kind "choice".

    Returns:
        The flexible and the strict answer and the marker that gave it. Never raises.
    """
    body, may_be_strict = final_part(text)
    found = _explicit(body, kind, choices)
    if found is not None:
        answer = found[0].strip()
        if answer:
            return Extraction(answer, found[1], answer if may_be_strict else None)
    found = _fallback(body, kind, choices)
    if found is None or not found[0].strip():
        return _BLANK
    return Extraction(found[0].strip(), found[1], None)


def gold_answer(solution: str, kind: Kind | None = None) -> str | None:
    """The gold of a worked solution that marks it ("#### 42", `\\boxed{...}`, "The answer is B."), else None."""
    at = solution.rfind("####")
    if at >= 0 and len(solution) - at < MAX_ANSWER:
        line = solution[at + 4 :].strip().split("\n", 1)[0].strip()
        if line:
            return line
    found = _explicit(fold(solution[-TAIL:]), kind, None)
    return found[0] if found is not None else None
