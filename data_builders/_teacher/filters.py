"""Why an answer is not worth learning, as far as rules can tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_builders._teacher.language import other_language

_WINDOW = 6
_FEWEST = 40
_PERIODS = range(8, 201)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFilter:
    """Rules for answers; each fault has a code.

    Attributes:
        min_chars, max_chars: of the answer without its thoughts ("empty", "too_short", "too_long").
        refusals: answers that refuse, by `mmreason.clients.safety_lists` ("refusal").
        truncated: answers cut off at the limit ("truncated").
        same_language: answers in another language than the question ("other_language").
        max_repetition: share of repeated runs of six words ("repetition"); a text that ends in a loop is one, too.
    """

    min_chars: int = 1
    max_chars: int | None = None
    refusals: bool = True
    truncated: bool = True
    same_language: bool = True
    max_repetition: float = 0.4

    def fault(self, asked: str, answer: str, finish_reason: str = "stop", thoughts: str | None = None) -> str | None:
        """The code of the first fault, None for a good answer.

        Args: asked: the words of the last question. finish_reason: of the reply.
        """
        text = answer.strip()
        if self.truncated and finish_reason == "length":
            return "truncated"
        if not text:
            return "empty"
        if len(text) < self.min_chars:
            return "too_short"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "too_long"
        if self.refusals and refuses(text):
            return "refusal"
        if self.same_language and other_language(asked, text):
            return "other_language"
        whole = f"{thoughts or ''}\n{text}"
        if repeated_share(whole) > self.max_repetition or ends_in_loop(whole):
            return "repetition"
        return None


def refuses(text: str) -> bool:
    """Does an answer refuse, by the patterns of `mmreason.clients.safety_lists`?"""
    from mmreason.clients.safety_lists import load_lists

    return load_lists().find_refusal(text) is not None


def ends_in_loop(text: str) -> bool:
    """Does a text end in five rounds of the same 8 to 200 characters, wherever in a round it breaks off?

    Rules of dashes and the like, rounds of fewer than four different characters, are none.
    """
    end = text.rstrip()[-5 * _PERIODS[-1] :]
    for period in _PERIODS:
        if len(end) >= 5 * period and end[-4 * period :] == end[-5 * period : -period]:
            return len(set(end[-period:])) > 3
    return False


def repeated_share(text: str) -> float:
    """Of a text's runs of six words, the share that stood in it before; 0 for fewer than 40 words."""
    from mmreason.data._words import words

    found = words(text)
    if len(found) < _FEWEST:
        return 0.0
    runs = Counter(tuple(found[i : i + _WINDOW]) for i in range(len(found) - _WINDOW + 1))
    return 1 - len(runs) / runs.total()
