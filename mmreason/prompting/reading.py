"""Reading what a strategy asked for out of a completion: lists and verdicts. What can't be read is never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

# "1. x", "1) x", "(1) x", "1、x", "**1.** x", "- x"; but not "3.5 kg" or "10:30".
_ITEM = re.compile(r"^[\s>#*_]*(?:\(?\d{1,2}\s*(?:[.)、．]|[:：])(?!\d)|[-*•](?=\s))[\s*_]*(\S.*?)\s*$")
_EDGE = " \t*_`\"'.,;!。，；！“”"


def items(text: str) -> list[str]:
    """The items of a numbered or bulleted list, in order; other lines are left out."""
    found = (_ITEM.match(line) for line in text.splitlines())
    return [match[1].removesuffix("**").strip() for match in found if match is not None]


def verdict(text: str, words: Mapping[str, float]) -> float | None:
    """The value of the word that the last line consists of, alone or after a colon; None where it is another one."""
    lines = [line for line in text.splitlines() if line.strip(_EDGE)]
    if not lines:
        return None
    last = re.split(r"[:：]", lines[-1].strip(_EDGE))[-1].strip(_EDGE).casefold()
    return words.get(last)
