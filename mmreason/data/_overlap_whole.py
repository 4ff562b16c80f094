"""The rule for items that no n-gram identifies: the whole question, and its choices beside it.

A short question ("What is the capital of France?") occurs in many texts that have nothing to do with the test. It
counts where its choices stand beside it, as a list; without choices, where it stands as a sentence of its own. Its
operators count too: "3 + 2" isn't "3 - 2".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmreason.data._words import BREAK, SIGNS, signed_words

_CHOICES_WITHIN = 12  # words between question and choices: "Answer with the letter of the correct choice. Options:"
_LABEL_WORDS = 3  # words that may name a choice: "or", "option A", "选项 A"
_LABELS = frozenset(
    {"or", "option", "options", "choice", "choices", "选", "项", "ii", "iii", "iv", "vi", "vii", "viii"}
)


@dataclass(frozen=True, slots=True)
class WholeItem:
    """An item to be found as a whole.

    Attributes:
        signed: `signed_words` of the question without breaks.
        choices: the words of each choice; choices without words are left out.
    """

    signed: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]


class SignedRow:
    """The words of a row and what stands between them."""

    def __init__(self, text: str) -> None:
        self._tokens = signed_words(text)
        self._word_at = [i for i, token in enumerate(self._tokens) if token not in SIGNS]
        self.words = [self._tokens[i] for i in self._word_at]

    def holds(self, item: WholeItem, position: int) -> bool:
        """Does the item stand here, where the first words of its question have been found?

        Args: position: of the question's first word among the row's words.
        """
        signed = item.signed
        words = [i for i, token in enumerate(signed) if token not in SIGNS]
        if position + len(words) > len(self.words):
            return False
        first, last = self._word_at[position], self._word_at[position + len(words) - 1]
        inner = [token for token in self._tokens[first : last + 1] if token != BREAK]
        if inner != list(signed[words[0] : words[-1] + 1]):
            return False
        start = first - words[0]
        stop = last + len(signed) - words[-1]
        if start < 0 or tuple(self._tokens[start:first] + self._tokens[last + 1 : stop]) != (
            signed[: words[0]] + signed[words[-1] + 1 :]
        ):
            return False
        if item.choices:
            return _choices_beside(self.words, position, position + len(words), item.choices)
        return self._tokens[start - 1 : start] in ([], [BREAK]) and self._tokens[stop : stop + 1] in ([], [BREAK])


def _choices_beside(words: Sequence[str], first: int, last: int, choices: Sequence[tuple[str, ...]]) -> bool:
    """Are the choices listed, in any order, soon after words[first:last] or shortly before?"""
    longest = sum(map(len, choices)) + _LABEL_WORDS * len(choices) + _CHOICES_WITHIN
    after = words[last : last + longest]
    if _holds_list(after, range(_CHOICES_WITHIN + 1), 0, choices):
        return True
    before = words[max(0, first - longest) : first]
    return _holds_list(before, range(len(before)), len(before) - _CHOICES_WITHIN, choices)


def _holds_list(
    words: Sequence[str], starts: Iterable[int], least_end: int, choices: Sequence[tuple[str, ...]]
) -> bool:
    """Does a list of exactly these choices, each with or without a label, start at one of these words?

    Args: least_end: the list must not end before this word.
    """
    failed: set[tuple[int, tuple[tuple[str, ...], ...]]] = set()  # each state is tried once, whatever came before it

    def goes_on(at: int, left: tuple[tuple[str, ...], ...]) -> bool:
        if not left:
            return at >= least_end
        if (at, left) in failed:
            return False
        for label in range(_LABEL_WORDS + 1):
            if label and not _is_label(words[at + label - 1 : at + label]):
                break
            for number, choice in enumerate(left):
                start = at + label
                if tuple(words[start : start + len(choice)]) == choice and goes_on(
                    start + len(choice), left[:number] + left[number + 1 :]
                ):
                    return True
        failed.add((at, left))
        return False

    return any(goes_on(start, tuple(sorted(choices))) for start in starts)


def _is_label(word: Sequence[str]) -> bool:
    """Can this word (in a list, empty at the end of the text) name a choice?"""
    return any(
        one in _LABELS or (one.isascii() and (len(one) == 1 or (one.isdigit() and len(one) == 2))) for one in word
    )
